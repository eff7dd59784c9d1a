"""The one sample contract that every data set, shard and loader of this project keeps.

A sample is one JPEG with its label and whatever annotation the data set has. In a WebDataset shard it is a group of
files that share a key:

====================  =========================================================================================
``<key>.jpg``         RGB or grey-scale JPEG, baseline or progressive, upright (no EXIF rotation left)
``<key>.cls``         ASCII: the class index, or for multi-label data the 0/1 attributes separated by spaces
``<key>.json``        ``width``, ``height``, ``source``, and where known ``super_category``, ``landmarks``,
                      ``visibility``, ``boxes``, ``absent``, ``answers``, ``latitude``, ``longitude``, ``day`` (of
                      the year)
``<key>.parts.png``   optional 8-bit part map of the size of the image: 0 is background, p is part p of the manifest
====================  =========================================================================================

Coordinates are continuous pixels of the *stored* image: (0, 0) is the outer corner of the top left pixel, whose centre
is (0.5, 0.5). A box (x0, y0, x1, y1) that covers the whole image is therefore (0, 0, width, height).
"""

from __future__ import annotations

import io
import json
import re
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from PIL import Image

from pipelines.places import Place

JPEG, LABEL, ANNOTATION, PART_MAP = "jpg", "cls", "json", "parts.png"
FIELDS = (JPEG, LABEL, ANNOTATION, PART_MAP)
PLACE = ("latitude", "longitude", "day")
KEY_PATTERN = re.compile(r"[A-Za-z0-9_-]+")

Entry = TypeVar("Entry")


@dataclass(frozen=True)
class Sample:
    """One image with its label and annotation.

    Attributes:
        key: Name in the shard, unique in the data set: letters, digits, ``_`` and ``-``.
        jpeg: The encoded image.
        label: Class index, or one 0/1 value per attribute.
        width: Width of the stored image in pixels.
        height: Height of the stored image in pixels.
        source: Where the sample came from (a path below the raw folder, or what generated it).
        super_category: Name of the coarse category, if the data set has them.
        landmarks: float32 [L, 2], x and y in pixels of the stored image, or None.
        visibility: bool [L]; the position of an invisible landmark means nothing. None without landmarks.
        boxes: float32 [B, 4], x0, y0, x1, y1 in pixels of the stored image, or None.
        part_map: uint8 [height, width], 0 is background, or None.
        absent: Names of the parts that the object lacks, so that they cannot be merely hidden; None if not known.
        place: Where and when the photo was taken; None if nothing of it is known.
        answers: The classes that are right, of which the label is one; None if it is the only one.
    """

    key: str
    jpeg: bytes
    label: int | tuple[int, ...]
    width: int
    height: int
    source: str
    super_category: str | None = None
    landmarks: np.ndarray | None = None
    visibility: np.ndarray | None = None
    boxes: np.ndarray | None = None
    part_map: np.ndarray | None = None
    absent: tuple[str, ...] | None = None
    place: Place | None = None
    answers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not KEY_PATTERN.fullmatch(self.key):
            raise ValueError(f"key: expected letters, digits, '_' and '-', got {self.key!r}")
        if self.width < 1 or self.height < 1:
            raise ValueError(f"{self.key}: expected an image of at least 1x1 pixel, got {self.width}x{self.height}")
        if (self.landmarks is None) != (self.visibility is None):
            raise ValueError(f"{self.key}: landmarks and visibility come together or not at all")
        if self.landmarks is not None and self.visibility is not None:
            if self.landmarks.ndim != 2 or self.landmarks.shape[1] != 2:
                raise ValueError(f"{self.key}: expected landmarks [L, 2], got {list(self.landmarks.shape)}")
            if self.visibility.shape != self.landmarks.shape[:1]:
                raise ValueError(
                    f"{self.key}: {len(self.landmarks)} landmarks but {len(self.visibility)} visibility values"
                )
        if self.boxes is not None and (self.boxes.ndim != 2 or self.boxes.shape[1] != 4):
            raise ValueError(f"{self.key}: expected boxes [B, 4], got {list(self.boxes.shape)}")
        if self.part_map is not None and self.part_map.shape != (self.height, self.width):
            raise ValueError(
                f"{self.key}: part map is {list(self.part_map.shape)}, the image {[self.height, self.width]}"
            )
        if self.absent is not None and len(set(self.absent)) < len(self.absent):
            raise ValueError(f"{self.key}: expected every absent part once, got {', '.join(self.absent)}")
        if self.answers is not None and self.label not in self.answers:
            raise ValueError(f"{self.key}: answers: expected the label {self.label} among them, got {self.answers}")


def encode(sample: Sample) -> dict[str, bytes]:
    """The sample as shard fields: extension -> bytes, in the order of ``FIELDS``."""
    labels = sample.label if isinstance(sample.label, tuple) else (sample.label,)
    annotation: dict[str, object] = {"width": sample.width, "height": sample.height, "source": sample.source}
    if sample.super_category is not None:
        annotation["super_category"] = sample.super_category
    if sample.landmarks is not None and sample.visibility is not None:
        annotation["landmarks"] = np.round(sample.landmarks.astype(float), 2).tolist()
        annotation["visibility"] = sample.visibility.astype(int).tolist()
    if sample.boxes is not None:
        annotation["boxes"] = np.round(sample.boxes.astype(float), 2).tolist()
    if sample.absent is not None:
        annotation["absent"] = sample.absent
    if sample.answers is not None:
        annotation["answers"] = sample.answers
    annotation |= _told(sample.place)
    fields = {
        JPEG: sample.jpeg,
        LABEL: " ".join(map(str, labels)).encode(),
        ANNOTATION: json.dumps(annotation, separators=(",", ":"), sort_keys=True).encode(),
    }
    if sample.part_map is not None:
        buffer = io.BytesIO()
        Image.fromarray(sample.part_map).save(buffer, "PNG", compress_level=1)
        fields[PART_MAP] = buffer.getvalue()
    return fields


def decode(key: str, fields: dict[str, bytes]) -> Sample:
    """The inverse of ``encode``.

    Raises:
        ValueError: a required field is missing or cannot be read; the message names the key and the field.
    """
    for name in (JPEG, LABEL, ANNOTATION):
        if name not in fields:
            raise ValueError(f"{key}: field .{name} is missing")
    annotation = decode_annotation(fields[ANNOTATION], key)
    part_map = None
    if PART_MAP in fields:
        try:
            part_map = np.asarray(Image.open(io.BytesIO(fields[PART_MAP])))
        except OSError as error:
            raise ValueError(f"{key}: field .{PART_MAP} is no image ({error})") from None
    return Sample(
        key=key,
        jpeg=fields[JPEG],
        label=decode_label(fields[LABEL], key),
        width=annotation["width"],
        height=annotation["height"],
        source=annotation["source"],
        super_category=annotation.get("super_category"),
        landmarks=_array(annotation, "landmarks", np.float32),
        visibility=_array(annotation, "visibility", bool),
        boxes=_array(annotation, "boxes", np.float32),
        part_map=part_map,
        absent=_tuple(annotation, "absent", str, key),
        place=_place(annotation, key),
        answers=_tuple(annotation, "answers", int, key),
    )


def decode_label(field: bytes, key: str) -> int | tuple[int, ...]:
    """Class index, or the tuple of 0/1 attributes, of a ``.cls`` field."""
    try:
        values = tuple(int(word) for word in field.split())
    except ValueError:
        values = ()
    if not values:
        raise ValueError(f"{key}: field .{LABEL} holds {field[:40]!r}, expected integers")
    return values[0] if len(values) == 1 else values


def decode_annotation(field: bytes, key: str) -> dict:
    """The dictionary of a ``.json`` field, checked to hold the image size and the source."""
    try:
        annotation = json.loads(field)
    except ValueError as error:
        raise ValueError(f"{key}: field .{ANNOTATION} is no JSON ({error})") from None
    missing = [name for name in ("width", "height", "source") if name not in annotation]
    if missing:
        raise ValueError(f"{key}: field .{ANNOTATION} lacks {', '.join(missing)}")
    return annotation


def _array(annotation: dict, name: str, dtype: type) -> np.ndarray | None:
    if name not in annotation:
        return None
    array: np.ndarray = np.asarray(annotation[name], dtype=dtype)
    return array.reshape(-1, {"landmarks": 2, "boxes": 4}[name]) if name != "visibility" else array


def _told(place: Place | None) -> dict[str, float]:
    """What is known of a place, by name; a metre is a hundred thousandth of a degree."""
    values = {name: getattr(place, name, None) for name in PLACE}
    return {name: round(value, 5) for name, value in values.items() if value is not None}


def _place(annotation: dict, key: str) -> Place | None:
    known = {name: annotation[name] for name in PLACE if name in annotation}
    try:
        return Place(**known) if known else None
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None


def _tuple(annotation: dict, name: str, of: type[Entry], key: str) -> tuple[Entry, ...] | None:
    if name not in annotation:
        return None
    value = annotation[name]
    if not isinstance(value, list) or not all(isinstance(entry, of) for entry in value):
        raise ValueError(f"{key}: {name}: expected a list of {of.__name__}, got {value!r}")
    return tuple(value)
