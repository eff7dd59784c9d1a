"""``python -m rg``."""

from __future__ import annotations

import sys

from rg.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
