"""A small NABirds in the published layout: a tree of classes, of which images have the leaves, and UUIDs as image ids.

The pictures are those of the miniature of CUB-200-2011; 11 of their 15 blobs are annotated.
"""

from __future__ import annotations

import shutil
import tarfile
import uuid
from pathlib import Path

import numpy as np

from tests.support import miniature_cub200

FOLDER, ARCHIVE = "nabirds", "nabirds.tar.gz"
CLASSES = {  # number -> name, parent
    0: ("Birds", None),
    1: ("Ducks, Geese, and Swans", 0),
    2: ("Hummingbirds", 0),
    30: ("Mallard", 1),
    31: ("Snow Goose", 1),
    32: ("Rufous Hummingbird", 2),
    299: ("Mallard (Female/Eclipse male)", 30),
    300: ("Mallard (Breeding male)", 30),
    305: ("Snow Goose (Blue morph)", 31),
    817: ("Rufous Hummingbird (Adult male)", 32),
}
GROUPS = {
    "Mallard (Female/Eclipse male)": "Ducks, Geese, and Swans",
    "Mallard (Breeding male)": "Ducks, Geese, and Swans",
    "Snow Goose (Blue morph)": "Ducks, Geese, and Swans",
    "Rufous Hummingbird (Adult male)": "Hummingbirds",
}
PARTS = {  # name -> its name in CUB-200-2011
    "bill": "beak",
    "crown": "crown",
    "nape": "nape",
    "left eye": "left eye",
    "right eye": "right eye",
    "belly": "belly",
    "breast": "breast",
    "back": "back",
    "tail": "tail",
    "left wing": "left wing",
    "right wing": "right wing",
}


def build(raw: Path, images: int = 6, seed: int = 0) -> None:
    """Writes ``nabirds`` into a folder.

    Half of the images of a class are for training. Lines of images are in no order.

    Args:
        raw: The folder, made if missing.
        images: Images of every leaf of ``CLASSES``.
        seed: Decides everything that is random.
    """
    rng = np.random.default_rng(seed)
    folder = raw / FOLDER
    tables: dict[str, list[str]] = {}

    def add(name: str, *columns: object) -> None:
        tables.setdefault(name, []).append(" ".join(map(str, columns)) + "\n")

    for number, (name, parent) in CLASSES.items():
        add("classes.txt", number, name)
        if parent is not None:
            add("hierarchy.txt", number, parent)
    for part, name in enumerate(PARTS):
        add("parts/parts.txt", part, name)
    places = [list(miniature_cub200.PARTS).index(name) for name in PARTS.values()]
    leaves = [number for number, (name, _) in CLASSES.items() if name in GROUPS]
    for place in rng.permutation(len(leaves) * images).tolist():
        label, of_class = leaves[place // images], place % images
        image = uuid.UUID(bytes=rng.bytes(16), version=4)
        file = f"{label:04d}/{image.hex}.jpg"
        picture, box, landmarks, visible = miniature_cub200.draw(place / len(leaves) / images, rng, outlying=False)
        (folder / "images" / file).parent.mkdir(parents=True, exist_ok=True)
        picture.save(folder / "images" / file, quality=95, subsampling="4:4:4")
        add("images.txt", image, file)
        add("image_class_labels.txt", image, label)
        add("train_test_split.txt", image, of_class % 2)
        add("bounding_boxes.txt", image, *box)
        add("sizes.txt", image, *picture.size)
        add("photographers.txt", image, "A. Photographer")
        for part, cub in enumerate(places):
            x, y = landmarks[cub] if visible[cub] else (-1, -1)
            add("parts/part_locs.txt", image, part, x, y, int(visible[cub]))
    add("README", "The NABirds Dataset")
    for file, lines in tables.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text("".join(lines))


def archive(raw: Path) -> None:
    """Packs what ``build`` has written as ``nabirds.tar.gz`` and removes it."""
    with tarfile.open(raw / ARCHIVE, "w:gz") as file:
        file.add(raw / FOLDER, FOLDER)
    shutil.rmtree(raw / FOLDER)
