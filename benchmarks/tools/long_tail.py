"""iNaturalist 2017 at its full cardinality with tiny pictures: the raw layout, its long tail, and boxes."""

from __future__ import annotations

import colorsys
import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from pipelines.datasets.inat2017 import SPECIES, SUPER_CATEGORIES, TEST_IMAGES, TRAIN_IMAGES

SIDE = 40  # pixels
RATIO = 280  # of the most frequent species to the rarest one, in training; 14 in testing
DRAWN = 16  # pictures of a species; more of it are these again
UNBOXED = 4  # of the super-categories have no boxes


def build(raw: Path, share: float = 1.0, seed: int = 0) -> int:
    """Write images and annotation files; what is there already stays.

    Args:
        raw: Folder.
        share: Of the images; species are always all there.
        seed: Of everything that is drawn.

    Returns:
        Number of images.
    """
    rng = np.random.default_rng(seed)
    species = [(f"Genus{number // 7:03d} species{number:04d}", number % SUPER_CATEGORIES) for number in range(SPECIES)]
    categories: list[dict[str, Any]] = [
        {"id": k, "name": name, "supercategory": f"Super{top:02d}"} for k, (name, top) in enumerate(species)
    ]
    written = 0
    for split, images, ratio in (("train", TRAIN_IMAGES, RATIO), ("val", TEST_IMAGES, RATIO / 20)):
        counts = rng.permutation(tail(round(share * images), SPECIES, ratio))
        entries: list[dict[str, Any]] = []
        labels: list[dict[str, Any]] = []
        boxes: list[dict[str, Any]] = []
        for category, count in zip(categories, counts.tolist(), strict=True):
            folder = f"train_val_images/{category['supercategory']}/{category['name']}"
            (raw / folder).mkdir(parents=True, exist_ok=True)
            pictures = list(_pictures(category["id"], min(count, DRAWN), seed))
            for copy in range(count):
                image = written + len(entries)
                jpeg, box = pictures[copy % DRAWN]
                file = f"{folder}/{hashlib.md5(f'{split} {image}'.encode()).hexdigest()}.jpg"
                if not (raw / file).exists():
                    (raw / file).write_bytes(jpeg)
                entries.append({"id": image, "file_name": file, "width": SIDE, "height": SIDE, "license": 1})
                labels.append({"id": image, "image_id": image, "category_id": category["id"]})
                if category["id"] % SUPER_CATEGORIES >= UNBOXED:
                    boxes.append({"id": image, "image_id": image, "category_id": category["id"], "bbox": box})
        written += len(entries)
        common = {"info": {}, "licenses": [], "categories": categories}
        for name, rows in ((f"{split}2017.json", labels), (f"{split}_2017_bboxes.json", boxes)):
            content = common | {"images": entries, "annotations": rows}
            (raw / name).write_text(json.dumps(content))
    return written


def tail(images: int, species: int, ratio: float) -> np.ndarray:
    """Images of every species, the most frequent first: a power law, at least 1 each, that adds up.

    Raises:
        ValueError: fewer images than species.
    """
    if images < species:
        raise ValueError(f"images: expected at least one for each of {species} species, got {images}")
    weights = np.arange(1, species + 1) ** (-np.log(ratio) / np.log(species))
    exact = weights / weights.sum() * (images - species)
    counts = 1 + np.floor(exact).astype(np.int64)
    counts[np.argsort(np.floor(exact) - exact)[: images - counts.sum()]] += 1
    return counts


def _pictures(number: int, count: int, seed: int) -> Iterator[tuple[bytes, list[float]]]:
    """JPEGs of a species, a disc of its colour on grey noise, and x, y, width and height of the disc."""
    rng = np.random.default_rng((seed, number))
    colour = tuple(round(255 * value) for value in colorsys.hsv_to_rgb(number / SPECIES, 0.5 + number % 2 / 2, 0.9))
    for _ in range(count):
        picture = Image.fromarray(rng.integers(90, 150, (SIDE, SIDE, 3), np.uint8))
        size = int(rng.integers(12, 25))
        x, y = (int(place) for place in rng.integers(0, SIDE - size, 2))
        ImageDraw.Draw(picture).ellipse((x, y, x + size - 1, y + size - 1), fill=colour)
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=85)
        yield buffer.getvalue(), [float(x), float(y), float(size), float(size)]
