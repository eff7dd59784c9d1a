"""How a folder of class folders is laid out: its splits, its classes, and the images of each.

Either without splits or with them:

    raw/<class>/**/*.jpg        raw/train/<class>/**/*.jpg    raw/val/<class>/**/*.jpg    raw/test/<class>/**/*.jpg

Split folders may be called train or training, val, valid or validation, test or testing, in upper or lower case, with
digits and words such as "set" around: ``Training_Set``, ``train2017``. A train folder without a val or test folder is a
class if images lie directly in it. Folders that look like splits and cannot be told from classes are refused.
"""

from __future__ import annotations

import logging
import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.image_files import ImageFiles, few, find_images, is_passed_over, log_files, look_in

WORDS = {
    "train": ("train", "training", "trn"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing", "tst"),
}
AROUND = r"[\W\d_]*({words})[\W\d_]*((set|data|dataset|split|folder|images?|imgs?|pictures?|photos?)[\W\d_]*)*"
SPLIT_FOLDERS = {split: re.compile(AROUND.format(words="|".join(words))) for split, words in WORDS.items()}
LAYOUT = "expected raw/<class>/*.jpg, or raw/train/<class>/*.jpg with or without raw/val/<class>/*.jpg"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Layout:
    """What lies in a folder.

    Attributes:
        raw: The folder.
        folders: Folder of every split; empty if the class folders lie in the raw folder itself.
        files: Split -> class -> its images, both sorted by name; without split folders all of them are ``train``.
        class_folders: All class folders with what was found in them.
        beside: What lies beside the class folders.
    """

    raw: Path
    folders: Mapping[str, Path]
    files: Mapping[str, Mapping[str, Sequence[Path]]]
    class_folders: Mapping[Path, ImageFiles]
    beside: Sequence[ImageFiles]

    @classmethod
    def read(cls, raw: Path) -> Layout:
        """Looks at a folder.

        Raises:
            ValueError: it is not laid out as described above, what it means is not clear, or a folder's name can be no
                class.
            OSError: a folder cannot be read.
        """
        folders = split_folders(raw)
        files: dict[str, dict[str, list[Path]]] = {}
        class_folders: dict[Path, ImageFiles] = {}
        beside: list[ImageFiles] = []
        for split, parent in (folders or {"train": raw}).items():
            beside.append(look_in(parent))
            if loose := beside[-1].images:
                raise ValueError(
                    f"{parent}: holds images that are in no class folder, such as {few(parent, loose[:1])}; {LAYOUT}"
                )
            named = _named(parent)
            found = {folder: find_images(folder) for folder in named.values()}
            files[split] = {name: found[folder].images for name, folder in named.items() if found[folder].images}
            class_folders |= found
        if len(files["train"]) < 2:
            place, count = folders.get("train", raw), len(files["train"])
            raise ValueError(
                f"{place}: expected images of at least 2 classes, found {count}; {_deeper(place) or LAYOUT}"
            )
        for split, parent in folders.items():
            _check_known(parent, files[split], folders["train"], files["train"])
        return cls(raw, folders, files, class_folders, beside)

    def warn(self) -> None:
        """Logs what was left out, and what is perhaps not meant so."""
        for folder in _subfolders(self.raw) if self.folders else ():
            if folder not in self.folders.values() and find_images(folder).images:
                logger.warning("%s: left out, it is in no split folder", folder)
        for folder, found in self.class_folders.items():
            if not found.images:
                logger.warning("%s: left out, it holds no images", folder)
        for split, files in self.files.items():
            missing = [name for name in self.files["train"] if name not in files]
            if missing:
                logger.warning("%s: no images of %d classes, such as %s", self.folders[split], len(missing), missing[0])
        below = [frozenset(path.name for path in _subfolders(folder)) for folder in self.class_folders]
        if len(set(below)) == 1 and len(below[0]) > 1 and all(map(_holds_classes, self.class_folders)):
            logger.warning(
                "%s: every class holds the same folders, %s; if these are the classes, put the images of each together",
                *(self.raw, " and ".join(sorted(below[0])[:2])),
            )

    def log(self) -> None:
        """Logs what was understood, and which files were taken and passed over."""
        classes = list(self.files["train"])
        splits = ", ".join(f"{split} is {folder.name}" for split, folder in self.folders.items()) or "no split folders"
        logger.info("%s: %s; %d classes, %s to %s", self.raw, splits, len(classes), classes[0], classes[-1])
        nested = {path.parent for found in self.class_folders.values() for path in found.images}
        if nested := nested - set(self.class_folders):
            names = few(self.raw, sorted(nested))
            logger.info("%s: folders below class folders, taken for their class (%d): %s", self.raw, len(nested), names)
        log_files(self.raw, [*self.beside, *self.class_folders.values()])


def class_name(folder: str) -> str:
    """The class whose images lie in a folder of that name: composed Unicode without spaces around.

    One and the same name is composed on some systems and decomposed on others.
    """
    return unicodedata.normalize("NFC", folder).strip()


def split_folders(raw: Path) -> dict[str, Path]:
    """Split -> folder; empty if the class folders lie in the raw folder itself.

    Raises:
        ValueError: there is no such folder, it holds two folders for one split, or folders that may be splits or
            classes.
        OSError: a folder cannot be read.
    """
    if not raw.is_dir():
        raise ValueError(f"{raw}: no such folder; {LAYOUT}")
    alike: dict[str, list[Path]] = {}
    for folder in _subfolders(raw):
        for split in _splits_called(folder.name):
            alike.setdefault(split, []).append(folder)
    with_classes = [folder for folders in alike.values() for folder in folders if _holds_classes(folder)]
    if not with_classes and set(alike) <= {"train"}:
        _refuse_hidden_splits(raw)
        return {}
    for folders in alike.values():
        if len(folders) > 1:
            raise ValueError(f"{raw}: has both {folders[0].name} and {folders[1].name}; remove or rename one")
    if "train" not in alike:
        names = " and ".join(folder.name for (folder,) in alike.values())
        raise ValueError(
            f"{raw}: has {names}, named like validation or test images, but no train folder; {LAYOUT}; "
            "rename what is meant otherwise"
        )
    return {split: alike[split][0] for split in WORDS if split in alike}


def _refuse_hidden_splits(raw: Path) -> None:
    """Refuses names in which a split is one word of several, and split folders below class folders."""
    by_word: dict[str, Path] = {}
    for folder in _subfolders(raw):
        inner = {split: path for path in _subfolders(folder) for split in _splits_called(path.name)}
        if len(inner) > 1 and any(find_images(path).images for path in inner.values()):
            names = " and ".join(path.name for path in inner.values())
            raise ValueError(f"{raw}: {folder.name} holds {names}; give {folder}, or put them above the class folders")
        for word in re.split(r"[\W\d_]+", folder.name.lower()):
            for split in _splits_called(word):
                by_word.setdefault(split, folder)
    if len(by_word) > 1 and all(map(_holds_classes, by_word.values())):
        names = " and ".join(folder.name for folder in by_word.values())
        raise ValueError(f"{raw}: {names} may be splits or classes; rename them {' and '.join(by_word)}; {LAYOUT}")


def _splits_called(name: str) -> list[str]:
    """The split that a folder of that name is for: none or one."""
    return [split for split, pattern in SPLIT_FOLDERS.items() if pattern.fullmatch(name.lower())]


def _holds_classes(folder: Path) -> bool:
    """Whether there are images in the folders of a folder, and none directly in it."""
    return not look_in(folder).images and any(find_images(path).images for path in _subfolders(folder))


def _subfolders(parent: Path) -> list[Path]:
    return sorted(path for path in parent.iterdir() if not is_passed_over(path.name) and path.is_dir())


def _named(parent: Path) -> dict[str, Path]:
    """Class -> folder, sorted by name.

    Raises:
        ValueError: a name cannot be that of a class, or two names are one.
    """
    named: dict[str, Path] = {}
    alike: dict[str, Path] = {}
    for folder in _subfolders(parent):
        name = class_name(folder.name)
        if not _is_text(name):
            raise ValueError(
                f"{parent}: the folder {os.fsencode(folder.name)!r} is not named by one line of UTF-8 text; rename it"
            )
        other = alike.setdefault(name.casefold(), folder)
        if other is not folder:
            raise ValueError(
                f"{parent}: the folders {other.name!a} and {folder.name!a} differ by case, by spaces around, "
                "or by how letters are composed; rename one, or put their images together"
            )
        named[name] = folder
    return dict(sorted(named.items()))


def _is_text(name: str) -> bool:
    """Whether a name is one line that every program shows."""
    return bool(name) and not any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in name)


def _check_known(parent: Path, files: Mapping[str, object], train: Path, classes: Mapping[str, object]) -> None:
    """Checks that a split has no classes that the training split has not."""
    unknown = [name for name in files if name not in classes]
    if not unknown:
        return
    near = {name.casefold(): name for name in classes}
    alike = [f"{name} is {near[name.casefold()]} there" for name in unknown if name.casefold() in near]
    raise ValueError(
        f"{parent}: classes without training images: {', '.join(unknown)}; "
        + (f"{alike[0]}, rename one" if alike else f"add some to {train}, or remove these folders")
    )


def _deeper(folder: Path) -> str:
    """What to give instead of a folder whose only folder holds the classes; empty if there is no such thing."""
    inner = [path for path in _subfolders(folder) if find_images(path).images]
    if len(inner) == 1 and _holds_classes(inner[0]):
        return f"give {inner[0]} if its folders are the classes"
    return ""
