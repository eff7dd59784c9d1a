"""A small CUB-200-2011 in the published layout, with what is odd about it: grey images, hidden and outlying landmarks.

Every image shows a bird: a body in the colour of its species, and at every visible landmark a square blob in the colour
of the part. So classes can be learned, and landmarks found in the picture.
"""

from __future__ import annotations

import colorsys
import shutil
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

FOLDER, ARCHIVE = "CUB_200_2011", "CUB_200_2011.tgz"
SPECIES = (
    "Black_footed_Albatross",
    "Brewer_Blackbird",
    "Bobolink",
    "Chuck_will_Widow",
    "Le_Conte_Sparrow",
    "Nelson_Sharp_tailed_Sparrow",
    "Artic_Tern",
    "Forsters_Tern",
    "Black_and_white_Warbler",
    "American_Three_toed_Woodpecker",
)
PARTS = {  # name -> place in a bird that looks to the left, in parts of its width and height
    "back": (0.57, 0.28),
    "beak": (0.04, 0.24),
    "belly": (0.52, 0.76),
    "breast": (0.30, 0.66),
    "crown": (0.25, 0.03),
    "forehead": (0.12, 0.09),
    "left eye": (0.16, 0.29),
    "left leg": (0.46, 0.97),
    "left wing": (0.54, 0.52),
    "nape": (0.40, 0.16),
    "right eye": (0.28, 0.25),
    "right leg": (0.62, 0.97),
    "right wing": (0.72, 0.44),
    "tail": (0.97, 0.62),
    "throat": (0.18, 0.49),
}
BLOB = 2  # pixels from the centre of a blob to its last one
HIDDEN = 0.15  # share of the landmarks


def build(raw: Path, classes: int = 4, images: int = 6, seed: int = 0) -> None:
    """Writes ``CUB_200_2011`` into a folder.

    Half of the images of a class are for training. The last image of the first class is grey-scale; the tail of the
    first image of the last class lies outside of the image, beyond which its box reaches.

    Args:
        raw: The folder, made if missing.
        classes: Number of classes, at most that of ``SPECIES``.
        images: Images of every class.
        seed: Decides everything that is random.
    """
    rng = np.random.default_rng(seed)
    folder = raw / FOLDER
    tables: dict[str, list[str]] = {}

    def add(name: str, *columns: object) -> None:
        tables.setdefault(name, []).append(" ".join(map(str, columns)) + "\n")

    for part, name in enumerate(PARTS, 1):
        add("parts/parts.txt", part, name)
    number = 0
    for label, species in enumerate(SPECIES[:classes]):
        name = f"{label + 1:03d}.{species}"
        add("classes.txt", label + 1, name)
        (folder / "images" / name).mkdir(parents=True)
        training = rng.permutation(np.arange(images) % 2 == 0)
        for image, of_class in enumerate(rng.permutation(images) + 1):  # not in the order of the file names
            number += 1
            file = f"{name}/{species.title()}_{of_class:04d}_{rng.integers(1, 800_000)}.jpg"
            outlying = label == classes - 1 and image == 0
            picture, box, landmarks, visible = draw(label / classes, rng, outlying)
            if label == 0 and image == images - 1:
                picture = picture.convert("L")
            picture.save(folder / "images" / file, quality=95, subsampling="4:4:4")
            add("images.txt", number, file)
            add("image_class_labels.txt", number, label + 1)
            add("train_test_split.txt", number, int(training[image]))
            add("bounding_boxes.txt", number, *map(float, box))
            for part, ((x, y), shown) in enumerate(zip(landmarks, visible, strict=True), 1):
                add("parts/part_locs.txt", number, part, *(map(float, (x, y)) if shown else (0.0, 0.0)), int(shown))
                add("parts/part_click_locs.txt", number, part, float(x), float(y), 1, 0.742)
            add("attributes/image_attribute_labels.txt", number, 1, 0, 3, 27.7080)
    add("README", "The Caltech-UCSD Birds-200-2011 Dataset")
    add("attributes/certainties.txt", 1, "not visible")
    add("../attributes.txt", 1, "has_bill_shape::curved_(up_or_down)")  # the archive has it beside the folder
    for file, lines in tables.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text("".join(lines))


def archive(raw: Path) -> None:
    """Packs what ``build`` has written as ``CUB_200_2011.tgz`` and removes it."""
    with tarfile.open(raw / ARCHIVE, "w:gz") as file:
        for name in (FOLDER, "attributes.txt"):
            file.add(raw / name, name)
    shutil.rmtree(raw / FOLDER)
    (raw / "attributes.txt").unlink()


def colour(part: int) -> tuple[int, int, int]:
    """RGB of the blobs of a part, counted from 0."""
    return _rgb(part / len(PARTS), saturation=1.0, value=1.0)


def draw(
    hue: float, rng: np.random.Generator, outlying: bool
) -> tuple[Image.Image, tuple[int, int, int, int], np.ndarray, np.ndarray]:
    """A bird of about 90x70 pixels.

    Returns:
        The image; the box x, y, width, height; the pixels of the landmarks int [15, 2]; which are visible bool [15].
    """
    width, height = rng.integers(84, 97), rng.integers(64, 77)
    size = np.array([rng.integers(60, 73), rng.integers(44, 55)])
    start = rng.integers(4, (width, height) - size - 4)
    places = np.array(list(PARTS.values()))
    if not outlying and rng.random() < 0.5:
        places[:, 0] = 1 - places[:, 0]
    landmarks = np.round(start + places * size).astype(int)
    visible = rng.random(len(PARTS)) >= HIDDEN
    if outlying:
        tail = list(PARTS).index("tail")
        landmarks[tail, 0], visible[tail] = width + 1, True
    noise = rng.integers(90, 130) + rng.integers(-12, 13, (height, width, 1))
    picture = Image.fromarray(np.broadcast_to(noise, (height, width, 3)).astype(np.uint8))
    pencil = ImageDraw.Draw(picture)
    body = np.concatenate([start + 0.2 * size, start + 0.85 * size]).tolist()
    pencil.ellipse(body, fill=_rgb(hue, saturation=0.5, value=0.6))
    for part in np.flatnonzero(visible):
        x, y = landmarks[part].tolist()
        pencil.rectangle((x - BLOB, y - BLOB, x + BLOB, y + BLOB), fill=colour(int(part)))
    first, last = landmarks.min(0) - BLOB, landmarks.max(0) + BLOB
    return picture, (*first.tolist(), *(last + 1 - first).tolist()), landmarks, visible


def _rgb(hue: float, saturation: float, value: float) -> tuple[int, int, int]:
    red, green, blue = (round(255 * channel) for channel in colorsys.hsv_to_rgb(hue, saturation, value))
    return red, green, blue
