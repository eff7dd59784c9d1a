"""Which font has which character: those that are installed with this program, then those of the system."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import unicodedata
from functools import lru_cache
from pathlib import Path

import fontpkg
from fontTools.ttLib import TTFont, TTLibError
from PIL import ImageFont

FAMILIES = ("Noto Sans", "Noto Sans Arabic", "Noto Sans Thai", "Heebo")  # of fontpkg; the first is that of all pictures
CJK = ("cvttf_NotoSansCJK_Regular", "NotoSansCJKtc-Regular.otf")  # package of the extra "cjk", and its file
MACOS = "Arial Unicode.ttf"  # where there is no fontconfig to ask; it has nearly everything
EAST_ASIAN = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "BOPOMOFO", "IDEOGRAPHIC")

Face = tuple[str, int]  # file, and index of the font in it


_seen_in_system: list[Face] = []


@lru_cache(maxsize=64)
def font(face: Face, size: float) -> ImageFont.FreeTypeFont:
    """A font; the size is in pixels."""
    path, index = face
    return ImageFont.truetype(path, size, index)


@lru_cache(maxsize=1)
def main_face() -> Face:
    """The font of all pictures: Latin, Greek, Cyrillic and Devanagari."""
    return str(fontpkg.path(FAMILIES[0])), 0


@lru_cache(maxsize=4096)
def face_of(character: str) -> Face | None:
    """The first font that has a character, None if no font at hand has it."""
    code = ord(character)
    for face in (*_installed(), *_seen_in_system):
        if has(face, code):
            return face
    for face in _of_system(code):
        if has(face, code):
            _seen_in_system.append(face)
            return face
    return None


def face_of_all(text: str) -> Face | None:
    """The first installed font that has every character of a text, None if there is none."""
    return next((face for face in _installed() if all(has(face, ord(character)) for character in text)), None)


def has(face: Face, code: int) -> bool:
    """Whether a font has a glyph for a code point."""
    return code in _codes(face)


@lru_cache(maxsize=1)
def _installed() -> tuple[Face, ...]:
    """The fonts of this program, then whatever else of fontpkg is installed."""
    others = sorted({family.name for family in fontpkg.families().values()} - set(FAMILIES))
    faces = [(str(fontpkg.path(name, nearest=True)), 0) for name in (*FAMILIES, *others)]
    package, file = CJK
    cjk = importlib.util.find_spec(package)
    if cjk and cjk.origin:
        faces.append((str(Path(cjk.origin).with_name(file)), 0))
    return tuple(faces)


def _of_system(code: int) -> tuple[Face, ...]:
    """What the system would show a code point with, if that is an outline that Pillow can draw."""
    if not shutil.which("fc-match"):
        try:
            return ((str(ImageFont.truetype(MACOS).path), 0),)
        except OSError:
            return ()
    pattern = f"sans:charset={code:x}:scalable=true:color=false"
    asked = subprocess.run(["fc-match", "--format", "%{file}|%{index}", pattern], capture_output=True, text=True)
    path, _, index = asked.stdout.partition("|")
    return ((path, int(index)),) if index.isdecimal() and int(index) < 2**16 else ()


@lru_cache(maxsize=64)
def _codes(face: Face) -> frozenset[int]:
    path, index = face
    try:
        with TTFont(path, lazy=True, fontNumber=index) as file:
            return frozenset(file.getBestCmap() or ())
    except (OSError, TTLibError):
        return frozenset()


def remedy(character: str) -> str:
    """What to install for a character that no font at hand has."""
    if unicodedata.name(character, "").startswith(EAST_ASIAN):
        return "pip install 'region-grouping[cjk]', or the system's fonts-noto-cjk"
    package = "fonts-symbola" if unicodedata.category(character) == "So" else "fonts-noto-core"
    return f"install a font that has them, such as Debian's {package}"
