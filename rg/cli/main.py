"""The command line: ``python -m rg VERB ...``, also installed as ``region-grouping``."""

from __future__ import annotations

import io
import logging
import os
import select
import sys
from collections.abc import Callable, Sequence

from rg import __version__
from rg.cli.data import prepare, verify
from rg.cli.explain import compare, explain, faithful, parts, report, serve
from rg.cli.leakage import leakage
from rg.cli.parser import Arguments, choose, listing
from rg.cli.runs import evaluate, export, export_authors, import_authors, list_recipes, tables, train
from rg.malloc import keep_freed_memory

CLOSED_PIPE = 141  # exit code of programs that SIGPIPE ends

EXTRAS = {  # top-level module -> what it is, and the extra that brings it
    "nvidia": ("NVIDIA DALI", "train"),
    "tensorboard": ("TensorBoard", "train"),
    "starlette": ("Starlette", "serve"),
    "uvicorn": ("uvicorn", "serve"),
    "python_multipart": ("python-multipart", "serve"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb.

    Returns:
        Exit code: 0 on success, 1 if ``verify`` found problems or training diverged, 2 for bad input (one line on
        standard error), 75 if a signal stopped training after a checkpoint, 76 if another rank was lost, 130 after
        Ctrl-C, 141 if the reader of standard output has gone.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that cannot be printed must not end hours of work
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    for name in ("rg", "pipelines"):
        logging.getLogger(name).setLevel(logging.INFO)
    try:
        try:
            return _run(arguments)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # Who read the output has seen enough, such as head. The interpreter would complain of what is left of it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CLOSED_PIPE


def _run(arguments: Arguments) -> int:
    verb = arguments[0] if arguments else "--help"
    if verb in ("-h", "--help"):
        print(_overview())
        return 0 if arguments else 2
    if verb == "--version":
        print(__version__)
        return 0
    keep_freed_memory()
    try:
        _check_text(arguments)
        return choose("verb", verb, VERBS)(arguments[1:]) or 0
    except (ValueError, OSError) as error:
        if isinstance(error, BrokenPipeError) and _reader_is_gone():
            raise
        print(f"rg: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        missing = EXTRAS.get((error.name or "").partition(".")[0])
        if missing is None:
            raise
        package, extra = missing
        print(f"rg: error: {package} is not installed; pip install 'region-grouping[{extra}]'", file=sys.stderr)
        return 2
    except ImportError as error:
        if error.name != "kernels":
            raise
        print(f"rg: error: {error}", file=sys.stderr)
        return 2
    except FloatingPointError as error:
        print(f"rg: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("rg: interrupted", file=sys.stderr)
        return 130


def _reader_is_gone() -> bool:
    """Whether standard output is a pipe that nobody reads any more."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), select.POLLOUT)
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    except (OSError, ValueError):  # it is no file
        return False


VERBS: dict[str, Callable[[Arguments], int | None]] = {
    "prepare": prepare,
    "verify": verify,
    "train": train,
    "evaluate": evaluate,
    "explain": explain,
    "faithful": faithful,
    "leakage": leakage,
    "compare": compare,
    "report": report,
    "parts": parts,
    "export": export,
    "serve": serve,
    "tables": tables,
    "import": import_authors,
    "export-authors": export_authors,
    "recipes": list_recipes,
}


def _check_text(arguments: Sequence[str]) -> None:
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:
            raise ValueError(f"expected arguments in UTF-8, got {os.fsencode(argument)!r}; rename the file") from None


def _overview() -> str:
    return f"usage: python -m rg VERB ... (VERB --help for its options)\n\n{listing(VERBS)}"
