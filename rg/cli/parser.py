"""What all verbs of the command line share: a parser whose errors are one line, and lists of named functions."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import ArgumentParser

Arguments = list[str]
URL = re.compile(r"[A-Za-z][\w+.-]+:/")  # of which a path has dropped a slash


class Parser(ArgumentParser):
    """An argument parser whose errors are one line and name the nearest option for an unknown one."""

    def parse_args(self, args: Sequence[str] | None = None, *more: Any, **options: Any) -> Any:  # type: ignore[override]
        """As the library does it, but a URL is refused where a path of this machine is expected, as it was typed."""
        namespace = super().parse_args(args, *more, **options)
        for name, value in vars(namespace.as_flat()).items():
            for path in value if isinstance(value, list) else [value]:
                if isinstance(path, Path) and URL.match(str(path)):
                    typed = [word.partition("=")[2] if word.startswith("--") else word for word in args or ()]
                    url = next((word for word in typed if "://" in word and Path(word) == path), path)
                    option = f"--{name}" if f"--{name}" in self._option_string_actions else name
                    self.error(f"{option}: expected a file or folder of this machine, got {url}")
        return namespace

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        options = [option for option in self._option_string_actions if option.startswith("--")]
        message = _in_words(" ".join(str(message).split()), options)
        unknown = re.findall(r"--[\w.-]+", message) if "nrecognized" in message else []
        near = [match for option in unknown for match in difflib.get_close_matches(option, options, n=2, cutoff=0.6)]
        hint = f"did you mean {' or '.join(near)}?" if near else f"see python -m {self.prog} --help"
        raise ValueError(f"{message}; {hint}") from ex


def _in_words(message: str, options: Sequence[str]) -> str:
    """A message of the parser with options as they are typed, and without the classes of Python."""
    typed = {option[2:].replace("-", "_"): option for option in options}
    if mistyped := re.fullmatch(r'Parser key "(.+?)": Expected an? (.+)\. Got value: ?(.*)', message):
        key, kind, value = mistyped.groups()
        kind = re.sub(r"<class '(\w+)'>", r"\1", kind)
        kind = re.sub(r"typing\.Literal\[(.+)\]", r"one of \1", kind)
        kind = re.sub(r"^tuple$", "a list such as [0,1]", kind)
        return f"{typed.get(key, key)}: expected {kind}, got {value!r}"
    if missing := re.fullmatch(r"(the following arguments are required: )(.+)", message):
        return missing[1] + ", ".join(typed.get(name, name) for name in missing[2].split(", "))
    return message


def make_parser(name: str, function: Callable[..., Any]) -> Parser:
    """The parser of a verb, described by its docstring."""
    return Parser(prog=f"rg {name}", description=function.__doc__, allow_abbrev=False)


def choose(kind: str, name: str, known: dict[str, Callable[[Arguments], Any]]) -> Callable[[Arguments], Any]:
    """The function of that name.

    Raises:
        ValueError: there is none; the message names the nearest ones.
    """
    if name not in known:
        near = difflib.get_close_matches(name, known, n=2) or list(known)
        raise ValueError(f"there is no {kind} {name!r}; did you mean {' or '.join(near)}?")
    return known[name]


def listing(functions: dict[str, Callable[..., Any]]) -> str:
    """Names and the first lines of the docstrings."""
    return "\n".join(f"  {name:<22} {(function.__doc__ or '').splitlines()[0]}" for name, function in functions.items())
