"""What the command lines of all benchmarks do with input that they cannot take."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn


def run_main(main: Callable[[], int]) -> NoReturn:
    """Ends this program with the exit code of ``main``, or with 2 and one line if it raises ValueError or OSError."""
    try:
        sys.exit(main())
    except (ValueError, OSError) as error:
        print(f"{Path(sys.argv[0]).stem}: error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
