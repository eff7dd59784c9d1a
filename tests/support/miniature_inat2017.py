"""A few drawn species in the layout of iNaturalist 2017.

A species is a shape and a colour on grey noise. What makes the real data set awkward is here as well: category ids with
gaps, lists in no order, names beyond ASCII, super-categories and images without boxes, images with several, boxes that
leave the image or have no area, and an image without a stated size.
"""

from __future__ import annotations

import colorsys
import hashlib
import json
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SPECIES = (
    ("Aves", "Anas platyrhynchos"),
    ("Insecta", "Polygonia c-album"),
    ("Plantae", "Quercus \N{MULTIPLICATION SIGN} bebbiana"),
    ("Actinopterygii", "Salmo cf. trutta"),
    ("Aves", "Anas crecca"),
    ("Insecta", "Vanessa cardui"),
    ("Plantae", "Isoëtes lacustris"),
    ("Actinopterygii", "Gambusia affinis"),
)
WITHOUT_BOXES = "Plantae"
TWO_OBJECTS, ACROSS_THE_BORDER, EMPTY_BOX, UNBOXED, NO_SIZE = range(5)  # numbers of images of a species
ARCHIVES = {
    "train_val_images.tar.gz": ("train_val_images",),
    "train_val2017.zip": ("train2017.json", "val2017.json"),
    "train_2017_bboxes.zip": ("train_2017_bboxes.json",),
    "val_2017_bboxes.zip": ("val_2017_bboxes.json",),
    "inat2017_locations.zip": ("train2017_locations.json", "val2017_locations.json"),
}


def build(raw: Path, species: int = 8, images: int = 8, seed: int = 0) -> None:
    """Writes the images and the four annotation files.

    Args:
        raw: The folder to write to.
        species: Number of species, at least 2.
        images: Number of training images of every species, the first five of which are special; half as many are
            official validation images.
        seed: Decides about everything that is drawn.
    """
    rng = np.random.default_rng(seed)
    category_ids = 3 + 7 * rng.permutation(species)
    categories = []
    for number, category_id in enumerate(category_ids.tolist()):
        super_category, name = SPECIES[number % len(SPECIES)]
        name += f" var. {number // len(SPECIES)}" if number >= len(SPECIES) else ""
        categories.append({"id": category_id, "name": name, "supercategory": super_category})
    counts = {"train": images, "val": images // 2}
    image_ids = iter(rng.permutation(2 * species * sum(counts.values())).tolist())
    for split, count in counts.items():
        entries, labels, boxes = [], [], []
        for number, category in enumerate(categories):
            folder = f"train_val_images/{category['supercategory']}/{category['name']}"
            for copy in range(count):
                image_id = next(image_ids)
                training = split == "train"
                picture, corners = _draw(
                    rng, number, species, training and copy == TWO_OBJECTS, training and copy == ACROSS_THE_BORDER
                )
                if category["supercategory"] == WITHOUT_BOXES or copy == UNBOXED:
                    corners = []
                elif training and copy == EMPTY_BOX:
                    corners.append((30.0, 20.0, 30.0, 50.0))
                file = f"{folder}/{hashlib.md5(f'{seed} {image_id}'.encode()).hexdigest()}.jpg"
                (raw / file).parent.mkdir(parents=True, exist_ok=True)
                picture.save(raw / file, quality=90)
                size = {} if training and copy == NO_SIZE else {"width": picture.width, "height": picture.height}
                entries.append({"id": image_id, "file_name": file, **size, "license": 1, "rights_holder": "Nobody"})
                labels.append({"id": image_id, "image_id": image_id, "category_id": category["id"]})
                boxes += [
                    {
                        "id": 100 * image_id + box_number,
                        "image_id": image_id,
                        "category_id": category["id"],
                        "bbox": [x0, y0, x1 - x0, y1 - y0],
                        "area": (x1 - x0) * (y1 - y0) / 2,
                        "iscrowd": 0,
                    }
                    for box_number, (x0, y0, x1, y1) in enumerate(corners)
                ]
        boxed = {box["image_id"] for box in boxes}
        boxed_entries = [entry for entry in entries if entry["id"] in boxed]
        _write(raw / f"{split}2017.json", rng, entries, labels, categories)
        _write(raw / f"{split}_2017_bboxes.json", rng, boxed_entries, boxes, categories)


def archive(raw: Path) -> None:
    """Packs everything as it is published, and removes what was packed; what is not there is left out."""
    for name, members in ARCHIVES.items():
        if not (raw / members[0]).exists():
            continue
        if name.endswith(".zip"):
            with zipfile.ZipFile(raw / name, "w", zipfile.ZIP_DEFLATED) as file:
                for member in members:
                    file.write(raw / member, member)
                    (raw / member).unlink()
        else:
            with tarfile.open(raw / name, "w:gz") as file:
                for member in members:
                    file.add(raw / member, member)
                    shutil.rmtree(raw / member)


def _draw(
    rng: np.random.Generator, number: int, species: int, two_objects: bool, across_the_border: bool
) -> tuple[Image.Image, list[tuple[float, float, float, float]]]:
    """A picture of a species, and the corners x0, y0, x1, y1 of its objects."""
    width, height = (int(side) for side in rng.integers(80, 161, 2))
    picture = Image.fromarray(rng.integers(90, 150, (height, width), np.uint8)).convert("RGB")
    colour = tuple(round(255 * value) for value in colorsys.hsv_to_rgb(number / species, 1, 0.9))
    draw = ImageDraw.Draw(picture)
    corners = []
    for left, right in ((0, width // 2), (width // 2, width)) if two_objects else ((0, width),):
        w, h = (int(side) for side in rng.integers(20, 36, 2))
        x0 = -w // 3 if across_the_border else int(rng.integers(left, right - w + 1))
        y0 = int(rng.integers(0, height - h + 1))
        box = (x0, y0, x0 + w - 1, y0 + h - 1)  # the last pixels
        if number % 3 == 0:
            draw.ellipse(box, fill=colour)
        elif number % 3 == 1:
            draw.rectangle(box, fill=colour)
        else:
            draw.polygon([(x0 + w // 2, y0), (x0 + w - 1, y0 + h - 1), (x0, y0 + h - 1)], fill=colour)
        corners.append((float(x0), float(y0), float(x0 + w), float(y0 + h)))
    return picture, corners


def _write(path: Path, rng: np.random.Generator, images: list, annotations: list, categories: list) -> None:
    content = {
        "info": {"year": 2017, "description": "drawn"},
        "licenses": [{"id": 1, "name": "none", "url": ""}],
        "images": [images[place] for place in rng.permutation(len(images))],
        "annotations": [annotations[place] for place in rng.permutation(len(annotations))],
        "categories": [categories[place] for place in rng.permutation(len(categories))],
    }
    path.write_text(json.dumps(content))


def add_locations(raw: Path, seed: int = 0) -> dict[int, dict]:
    """Writes the two files of locations, in no order, with nulls, and returns their entries by the ids of images."""
    rng = np.random.default_rng(seed)
    entries = {}
    for split in ("train", "val"):
        images = json.loads((raw / f"{split}2017.json").read_text())["images"]
        own = []
        for number, image in enumerate(images):
            latitude, longitude = rng.uniform(-90, 90), rng.uniform(-180, 180)
            entry = {"id": image["id"], "lat": latitude, "lon": longitude, "loc_uncert": 15.0, "user_id": 7}
            entry |= {"date": f"2016-{1 + number % 12:02d}-{1 + number % 28:02d}"}
            if number % 5 == 1:
                entry |= {"lat": None, "lon": None, "loc_uncert": None}
            if number % 7 == 2:
                entry["date"] = None
            own.append(entry)
            entries[image["id"]] = entry
        order = rng.permutation(len(own))
        (raw / f"{split}2017_locations.json").write_text(json.dumps([own[place] for place in order]))
    return entries
