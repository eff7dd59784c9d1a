"""The driver of a browser."""

from __future__ import annotations

from types import ModuleType

import pytest

PATIENCE = 60_000  # milliseconds until what a page is to do has failed


def page_driver() -> ModuleType:
    """Playwright; the test is skipped without."""
    found = pytest.importorskip("playwright.sync_api")
    found.expect.set_options(timeout=PATIENCE)
    return found
