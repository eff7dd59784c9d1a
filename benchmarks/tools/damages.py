"""Kinds of damage to raw images and to shards, as disks, networks and people do it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from pipelines.shards.reader import read_fields, read_index
from pipelines.shards.storage import open_storage
from pipelines.shards.writer import write_shard

Fields = dict[str, bytes]

NO_IMAGE = b"<html>404 Not Found</html>"
WRONG_SUM, SHORT_TAR, STALE_INDEX = "wrong sha256", "truncated tar", "stale index"


def keys_in(folder: Path) -> set[str]:
    """Keys of all samples, as the indexes of the shards have them."""
    storage = open_storage(folder)
    return {entry.key for path in folder.glob("*.idx") for entry in read_index(storage, path.name)}


def first_half(data: bytes) -> bytes:
    """What is left of a file that was cut short."""
    return data[: len(data) // 2]


def zero_tail(data: bytes) -> bytes:
    """What is left of a file whose last blocks never reached the disk."""
    return first_half(data).ljust(len(data), b"\0")


def save_as_png(path: Path) -> None:
    """Replaces an image by a PNG under the same name."""
    with Image.open(path) as image:
        image.load()
    image.save(path, "PNG")


def without(name: str, fields: Fields) -> Fields:
    """All fields but one."""
    return {other: data for other, data in fields.items() if other != name}


RAW_DAMAGE: dict[str, Callable[[Path], object]] = {
    "truncated JPEG": lambda path: path.write_bytes(first_half(path.read_bytes())),
    "zero-filled tail": lambda path: path.write_bytes(zero_tail(path.read_bytes())),
    "empty file": lambda path: path.write_bytes(b""),
    "all zero bytes": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "not an image": lambda path: path.write_bytes(NO_IMAGE),
    "PNG called .jpg": save_as_png,
    "suffix .JPG": lambda path: path.rename(path.with_suffix(".JPG")),
}
SAMPLE_DAMAGE: dict[str, Callable[[Fields], Fields]] = {
    "truncated JPEG": lambda fields: fields | {"jpg": first_half(fields["jpg"])},
    "zero-filled tail": lambda fields: fields | {"jpg": zero_tail(fields["jpg"])},
    "all zero bytes": lambda fields: fields | {"jpg": bytes(len(fields["jpg"]))},
    "not an image": lambda fields: fields | {"jpg": NO_IMAGE},
    "missing label": partial(without, "cls"),
    "damaged label": lambda fields: fields | {"cls": b"\xff"},
    "missing field": partial(without, "json"),
    "member .JPG": lambda fields: {"JPG" if name == "jpg" else name: data for name, data in fields.items()},
}
SHARD_DAMAGE = (*SAMPLE_DAMAGE, WRONG_SUM, SHORT_TAR, STALE_INDEX)


def chosen(names: Iterable[str], share: float) -> set[str]:
    """A share of some names."""
    names = sorted(names)
    return set(np.random.default_rng(0).choice(names, round(share * len(names)), replace=False).tolist())


def damage_raw(kind: str, raw: Path, share: float) -> set[str]:
    """Damages a share of the raw files and returns where they lie below the folder."""
    hit = chosen((path.relative_to(raw).as_posix() for path in raw.glob("train/*/*")), share)
    for name in hit:
        RAW_DAMAGE[kind](raw / name)
    return hit


def damage_shards(kind: str, folder: Path, share: float, other: Path) -> set[str]:
    """Damages shards without telling the manifest.

    Args:
        kind: One of ``SHARD_DAMAGE``.
        folder: The shards.
        share: Share of the samples that are hit.
        other: Another packing of the same images.

    Returns:
        The keys of the damaged samples; a stale index damages none.
    """
    if kind == STALE_INDEX:
        shutil.copy(other / "train-00000.idx", folder)
        return set()
    storage = open_storage(folder)
    keys = keys_in(folder)
    if kind == SHORT_TAR:
        name = max(folder.glob("*.tar")).stem
        lost = read_index(storage, f"{name}.idx")[-round(share * len(keys)) :]
        os.truncate(folder / f"{name}.tar", sum(lost[0].span) // 2)
        return {entry.key for entry in lost}
    hit = chosen(keys, share)
    for path in sorted(folder.glob("*.tar")):
        entries = read_index(storage, f"{path.stem}.idx")
        if kind == WRONG_SUM:
            for entry in entries:
                if entry.key in hit:
                    change_byte(path, *entry.fields["jpg"])
        elif any(entry.key in hit for entry in entries):
            content = [(entry.key, read_fields(storage, path.name, entry)) for entry in entries]
            damage = SAMPLE_DAMAGE[kind]
            write_shard(folder, path.stem, [(key, damage(data) if key in hit else data) for key, data in content])
    return hit


def change_byte(path: Path, start: int, size: int) -> None:
    """Changes a byte in the middle of a JPEG, that neither makes nor unmakes a marker."""
    with path.open("r+b") as file:
        for position in range(start + size // 2, start + size):
            file.seek(position - 1)
            before, byte, after = file.read(3)
            if 0xFF not in (before, byte, byte ^ 0x10, after):
                file.seek(position)
                file.write(bytes([byte ^ 0x10]))
                return
