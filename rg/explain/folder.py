"""What ``explain`` writes: a folder that grows by one image at a time, and goes on where it stopped.

settings.json           what explained: weights, parts, confidence, view, kind of the pictures
explanations.jsonl      one line for each image: Explanation.to_dict(), true class, picture, size and time of the file
left_out.jsonl          what the latest run could not decode, and why
explanations-0003.jsonl and left_out-0003.jsonl, the same of process 3 while several explain together
pictures/NAME.webp      image, parts, attribution and contributions
thumbnails/NAME.webp    parts
explanations.csv        the same in a table, or explanations.parquet
gallery.html            one page with all of them

A picture is there before its line is, and either is complete; half a line at the end, of a killed run, is none.
"""

from __future__ import annotations

import contextlib
import heapq
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

from pipelines.datasets.layout import class_name
from pipelines.files import atomic_write, json_line, read_json_lines, write_json
from pipelines.locks import locked
from rg.explain import pictures
from rg.explain.explanation import Explanation
from rg.explain.image_files import name_each
from rg.explain.overlays import parts_overlay
from rg.runs.folder import read_json

SETTINGS, EXPLANATIONS, LEFT_OUT = "settings.json", "explanations.jsonl", "left_out.jsonl"
TABLES = {"csv": "explanations.csv", "parquet": "explanations.parquet"}
PICTURES, THUMBNAILS = "pictures", "thumbnails"
THUMBNAIL_SIDE = 320  # pixels

Line = dict[str, Any]


@dataclass(frozen=True)
class ExplainedFolder:
    """A folder of explanations that is being written; see ``open_folder``.

    Attributes:
        path: The folder.
        kind: Of the pictures: png, webp or none.
        to_do: Images that have no explanation yet.
        names: Of the pictures, for every image.
        class_names: A file in a folder of such a name shows that class.
    """

    path: Path
    kind: str
    to_do: Sequence[Path]
    names: Mapping[str, str]
    class_names: Collection[str]
    _explanations: IO[bytes]
    _left_out: IO[bytes]

    @cached_property
    def _classes(self) -> dict[str, str]:
        """Name that the folder of a class has on every system -> class."""
        return {class_name(name): name for name in self.class_names}

    def draw(self, explanation: Explanation) -> Line:
        """Write the pictures of an explanation and return its line; may be called from several threads."""
        assert explanation.source is not None
        file, name = Path(explanation.source), self.names[explanation.source]
        line = {
            **explanation.to_dict(),
            "truth": self._classes.get(class_name(file.parent.name)),
            "name": name,
            "picture": None,
            **version(file),
        }
        if self.kind != "none":
            picture, thumbnail = _pictures(self.path, self.kind, name)
            parts = parts_overlay(explanation, size=pictures.panel_size(explanation))
            with atomic_write(picture) as out:
                pictures.write(pictures.panel(explanation, parts), out, self.kind)
            parts.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
            with atomic_write(thumbnail) as out:
                pictures.write(parts, out, "webp")
            line["picture"] = picture.relative_to(self.path).as_posix()
        return line

    def append(self, line: Line) -> None:
        """Add a line that ``draw`` returned."""
        self._explanations.write(json_line(line))
        self._explanations.flush()

    def leave_out(self, source: str, reason: str) -> None:
        """Note an image that cannot be decoded."""
        self._left_out.write(json_line({"source": source, "reason": reason}))
        self._left_out.flush()


@contextlib.contextmanager
def open_folder(
    path: Path,
    files: Sequence[Path],
    settings: Mapping[str, Any],
    class_names: Collection[str] = (),
    overwrite: bool = False,
) -> Iterator[ExplainedFolder]:
    """Open a folder to write explanations of files; it is made if it is not there.

    What it holds already stays, also of other files, but for images that have changed since.

    Args:
        path: The folder.
        files: Images to explain.
        settings: What decides the explanations, as JSON values; ``pictures`` is png, webp or none.
        class_names: A file in a folder of such a name shows that class.
        overwrite: Drop what it holds.

    Raises:
        ValueError: it was explained with other settings, or another process is writing into it.
        OSError: it cannot be written to.
    """
    path.mkdir(parents=True, exist_ok=True)
    kind = settings["pictures"]
    with locked(path):
        gather(path)  # what a killed run left was explained with the settings that are there
        if overwrite:
            _clear(path)
        elif (path / EXPLANATIONS).is_file():
            _check(path, settings)
        write_json(path / SETTINGS, settings)
        for folder in (path / PICTURES, path / THUMBNAILS):
            if kind != "none":
                folder.mkdir(exist_ok=True)
            for half in folder.glob("*.tmp"):
                half.unlink()
        done = _keep(path, files, kind)
        to_do = [file for file in files if str(file) not in done]
        with (path / EXPLANATIONS).open("ab") as explanations, (path / LEFT_OUT).open("wb") as left_out:
            yield ExplainedFolder(path, kind, to_do, name_each(files, done), class_names, explanations, left_out)


@contextlib.contextmanager
def join_folder(
    path: Path, kind: str, to_do: Sequence[Path], names: Mapping[str, str], class_names: Collection[str], process: int
) -> Iterator[ExplainedFolder]:
    """A folder that one of several processes has opened, to write a share of it; ``gather`` brings all together.

    Args:
        path: The folder.
        kind: Of the pictures.
        to_do: The share.
        names: Of the pictures, for every image of the share.
        class_names: See ``open_folder``.
        process: Number of this process.
    """
    path.mkdir(exist_ok=True)  # so that a host sees a folder that another one has made
    explanations, left_out = (_of_process(path / name, process) for name in (EXPLANATIONS, LEFT_OUT))
    with explanations.open("ab") as lines, left_out.open("wb") as others:
        yield ExplainedFolder(path, kind, to_do, names, class_names, lines, others)


def gather(path: Path, order: Sequence[Path] = ()) -> None:
    """Take the lines of processes into those of the folder, each image once, and remove their files.

    Args:
        path: The folder, which nobody else writes to.
        order: Of the images, in which each process has written. Others come first, one process after another.
    """
    for name in (EXPLANATIONS, LEFT_OUT):
        shares = sorted(path.glob(_of_process(Path(name)).name))
        if shares:
            places = {str(source): place for place, source in enumerate(order)}
            own = [path / name] if (path / name).is_file() else []
            lines = heapq.merge(
                *(read_json_lines(file, drop_half_line=True) for file in (*own, *shares)),
                key=lambda line: places.get(line["source"], -1),
            )
            seen: set[str] = set()
            with atomic_write(path / name) as file:
                for line in lines:
                    if line["source"] not in seen:
                        seen.add(line["source"])
                        file.write(json_line(line))
        for share in shares:
            share.unlink()


def _of_process(path: Path, process: int | None = None) -> Path:
    """The file of a process beside that of all; a pattern of all of them without a number."""
    return path.with_name(f"{path.stem}-{'[0-9]*' if process is None else f'{process:04d}'}{path.suffix}")


def read_lines(path: Path) -> Iterator[Line]:
    """The explanations in a folder, one after the other; half a line at the end is left out."""
    return read_json_lines(path / EXPLANATIONS, drop_half_line=True)


def _check(path: Path, settings: Mapping[str, Any]) -> None:
    before = read_json(path / SETTINGS)
    # A run may be renamed; its weights tell which it is.
    changed = [name for name in settings if name != "run" and settings[name] != before.get(name)]
    if changed:
        raise ValueError(
            f"--out: {path} was explained with other settings ({', '.join(changed)}); "
            "take another folder, or --overwrite to begin anew"
        )


def _clear(path: Path) -> None:
    """Remove what ``explain`` wrote, and nothing else."""
    if (path / EXPLANATIONS).is_file():
        for line in read_lines(path):
            if line["picture"]:
                (path / line["picture"]).unlink(missing_ok=True)
                (path / THUMBNAILS / f"{line['name']}.webp").unlink(missing_ok=True)
        (path / EXPLANATIONS).unlink()
    for table in TABLES.values():
        (path / table).unlink(missing_ok=True)


def _keep(path: Path, files: Sequence[Path], kind: str) -> dict[str, str]:
    """Drop half lines, and lines of files that have changed; return source and name of the others."""
    done: dict[str, str] = {}
    if not (path / EXPLANATIONS).is_file():
        return done
    wanted = {str(file) for file in files}
    with atomic_write(path / EXPLANATIONS) as kept:
        for line in read_lines(path):
            source, name = line["source"], line["name"]
            if source in wanted and {key: line[key] for key in ("bytes", "modified")} != version(Path(source)):
                continue
            if kind == "none" or all(picture.is_file() for picture in _pictures(path, kind, name)):
                done[source] = name
                kept.write(json_line(line))
    return done


def version(file: Path) -> dict[str, int]:
    """Size in bytes and modification time: what changes when a file is edited."""
    stat = file.stat()
    return {"bytes": stat.st_size, "modified": stat.st_mtime_ns}


def _pictures(path: Path, kind: str, name: str) -> tuple[Path, Path]:
    return path / PICTURES / f"{name}.{kind}", path / THUMBNAILS / f"{name}.webp"
