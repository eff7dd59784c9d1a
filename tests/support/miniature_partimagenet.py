"""A small PartImageNet in the layout of its OOD release: objects of rectangles, each a part in a colour of its own.

Masks are polygons, run lengths or compressed run lengths. What makes the real annotations awkward is here as well:
annotations without area, crowds, polygons of two points, masks that overlap, an image without a part, and one that is
stored on its side.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco

SPLIT = "train_test_split_pimagenet_ood.txt"
PARTS = ("Fish Head", "Fish Body", "Fish Tail", "Bird Head", "Bird Body", "Car Body", "Car Tier")
SYNSETS = {"n01440764": "Fish", "n02009229": "Bird", "n02012849": "Bird", "n04252225": "Car"}
NAMES = ("tench", "little blue heron", "crane", "snowplow")
BARE, TURNED, OVERLAPPING, TWO_POINTS = range(4)  # numbers of images of the first class
ON_ITS_SIDE = 6  # value of the EXIF orientation


def colour(part: int) -> tuple[int, int, int]:
    """RGB of part p, 1 to 7; black is background."""
    return 255 * (part & 1), 255 * (part >> 1 & 1), 255 * (part >> 2 & 1)


def build(raw: Path, images: int = 8, seed: int = 0) -> dict[str, np.ndarray]:
    """Writes ``train.json``, the images and the list of test images: every fourth of a class, of one class the last.

    Args:
        raw: The folder, made if missing.
        images: Images of every class, at least 4.
        seed: Decides everything that is random.

    Returns:
        File name -> the part map of the upright image, uint8.
    """
    rng = np.random.default_rng(seed)
    content: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": [], "categories": []}
    for number, name in enumerate(PARTS):
        content["categories"].append({"id": number, "name": name, "supercategory": name.split()[0]})
    truth: dict[str, np.ndarray] = {}
    split = []
    order = rng.permutation(len(SYNSETS) * images).tolist()
    for image_id, place in enumerate(order):
        label, number = place // images, place % images
        synset, above = list(SYNSETS.items())[label]
        name = f"{synset}_{rng.integers(1, 40) * images + number}.JPEG"
        width, height = rng.integers(70, 90, 2).tolist()
        special = number if label == 0 else -1
        parts = [part for part, part_name in enumerate(PARTS) if part_name.startswith(above) and special != BARE]
        part_map = np.zeros((height, width), np.uint8)
        for column, part in enumerate(parts):
            x, y = 4 + 22 * column, int(rng.integers(4, 30))
            box = (x, y, 18, 34)
            part_map[y : y + 34, x : x + 18] = part + 1
            content["annotations"].append(_annotation(image_id, part, box, special == TWO_POINTS, height, width, rng))
            if special == OVERLAPPING and column:  # covers the part before, which has the lower id and keeps the place
                content["annotations"].append(
                    _annotation(image_id, part, (x - 22, y, 18, 34), False, height, width, rng)
                )
                before = part_map[y : y + 34, x - 22 : x - 4]
                before[before == 0] = part + 1
        for odd in ({"area": 0}, {"iscrowd": 1}):
            entry = _annotation(image_id, 0, (0, 0, width, height), False, height, width, rng)
            content["annotations"].append(entry | odd)
        content["images"].append({"id": image_id, "file_name": name, "width": width, "height": height})
        pixels = np.array([colour(part) for part in range(len(PARTS) + 1)], np.uint8)[part_map]
        exif = Image.Exif()
        if special == TURNED:
            exif[0x0112] = ON_ITS_SIDE
        path = raw / "train" / synset / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, "JPEG", quality=95, subsampling="4:4:4", exif=exif)
        truth[name] = np.rot90(part_map, -1) if special == TURNED else part_map
        split.append(f"{image_id}\t{int(number % 4 == 3)}\t{label}\t{synset}\t{name}\n")
    (raw / "train.json").write_text(json.dumps(content))
    (raw / SPLIT).write_text("".join(split))
    return truth


def _annotation(
    image: int,
    part: int,
    box: tuple[int, int, int, int],
    two_points: bool,
    height: int,
    width: int,
    rng: np.random.Generator,
) -> dict[str, Any]:
    x, y, columns, rows = box
    mask = np.zeros((height, width), np.uint8, order="F")
    mask[y : y + rows, x : x + columns] = 1
    corners = [x, y, x, y + rows, x + columns, y + rows, x + columns, y]
    runs = np.flatnonzero(np.diff(np.concatenate([[0], mask.ravel(order="F"), [2]])))
    packed = coco.encode(mask)
    kinds: list[Any] = [
        [corners],
        {"size": [height, width], "counts": np.diff(runs, prepend=0).tolist()},
        {"size": [height, width], "counts": packed["counts"].decode()},
    ]
    return {
        "image_id": image,
        "category_id": part,
        "area": columns * rows,
        "iscrowd": 0,
        "bbox": [x, y, columns, rows],
        "segmentation": [[x, y, x + columns, y + rows]] if two_points else kinds[rng.integers(3)],
    }
