"""CelebA in small: the published files in their formats, with drawn faces."""

from __future__ import annotations

import math
import shutil
import zipfile
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

HEADER = """
5_o_Clock_Shadow Arched_Eyebrows Attractive Bags_Under_Eyes Bald Bangs Big_Lips Big_Nose Black_Hair Blond_Hair Blurry
Brown_Hair Bushy_Eyebrows Chubby Double_Chin Eyeglasses Goatee Gray_Hair Heavy_Makeup High_Cheekbones Male
Mouth_Slightly_Open Mustache Narrow_Eyes No_Beard Oval_Face Pale_Skin Pointy_Nose Receding_Hairline Rosy_Cheeks
Sideburns Smiling Straight_Hair Wavy_Hair Wearing_Earrings Wearing_Hat Wearing_Lipstick Wearing_Necklace
Wearing_Necktie Young
"""
ATTRIBUTES = HEADER.split()
HAIR = {"Black_Hair": (25, 20, 25), "Blond_Hair": (235, 210, 120), "Brown_Hair": (120, 75, 40)}  # one for each face
OPTIONAL = ("Eyeglasses", "Wearing_Hat", "Wearing_Lipstick")
ALWAYS = ("No_Beard", "Young")
POINTS = ("lefteye", "righteye", "nose", "leftmouth", "rightmouth")
PLACES = ((0.3, 0.42), (0.7, 0.42), (0.5, 0.62), (0.35, 0.8), (0.65, 0.8))  # of the points, as shares of the face box
ALIGNED = ((178, 218), (41, 60, 96, 128))

EXACT_BOX = "000001.jpg"  # the face covers exactly 30 % of the image that is not aligned
SMALL_BOX = "000002.jpg"  # one column of pixels less
EMPTY_BOX = "000003.jpg"  # no width, no height
OUTER_BOX = "000004.jpg"  # 36 % of the image, 22 % without what lies outside of it
OUTER_POINT = "000005.jpg"  # the left eye lies left of the image
SPECIAL = {  # width and height of the image that is not aligned; x, y, width and height of the box
    EXACT_BOX: ((150, 120), (40, 20, 60, 90)),
    SMALL_BOX: ((150, 120), (40, 20, 59, 90)),
    EMPTY_BOX: ((150, 120), (75, 60, 0, 0)),
    OUTER_BOX: ((150, 120), (100, 10, 80, 80)),
    OUTER_POINT: ((160, 130), (-40, 5, 110, 120)),
}

Scene = tuple[tuple[int, int], tuple[int, int, int, int]]


def build(raw: Path, images: int = 48, seed: int = 0, flat: bool = False) -> None:
    """Writes the data set.

    The first 60 % of the images are training images, the next 20 % validation images. Faces are small in every third.
    Except for the special ones, images whose number is a multiple of 8 are test images of MAFL, and those with a
    remainder of 2 or 5 training images of MAFL.

    Args:
        raw: Where to.
        images: Number of images, at least 30.
        seed: Decides about everything else.
        flat: Whether annotation files and folders of images lie directly in the raw folder.
    """
    rng = np.random.default_rng(seed)
    img, anno, eval_, mafl = (raw if flat else raw / name for name in ("Img", "Anno", "Eval", "MAFL"))
    for folder in (img / "img_align_celeba", img / "img_celeba", anno, eval_, mafl):
        folder.mkdir(parents=True, exist_ok=True)
    names = [f"{number:06d}.jpg" for number in range(1, images + 1)]
    attributes, boxes, points, aligned_points = [], [], [], []
    for number, name in enumerate(names, 1):
        traits = {*ALWAYS, str(rng.choice(list(HAIR))), *(trait for trait in OPTIONAL if rng.random() < 0.4)}
        scene = SPECIAL.get(name) or _scene(rng, small=number % 3 == 0)
        attributes.append([1 if attribute in traits else -1 for attribute in ATTRIBUTES])
        boxes.append(scene[1])
        points.append(_draw(img / "img_celeba" / name, scene, traits, rng))
        aligned_points.append(_draw(img / "img_align_celeba" / name, ALIGNED, traits, rng))

    columns = " ".join(f"{point}_{axis}" for point in POINTS for axis in "xy")
    parts = [[0 if 5 * place < 3 * images else 1 if 5 * place < 4 * images else 2] for place in range(images)]
    _write(anno / "list_attr_celeba.txt", names, attributes, [str(images), " ".join(ATTRIBUTES) + " "])
    _write(anno / "list_bbox_celeba.txt", names, boxes, [str(images), "image_id x_1 y_1 width height"])
    _write(anno / "list_landmarks_celeba.txt", names, points, [str(images), columns])
    _write(anno / "list_landmarks_align_celeba.txt", names, aligned_points, [str(images), columns])
    _write(eval_ / "list_eval_partition.txt", names, parts)
    for file, remainders in (("training.txt", (2, 5)), ("testing.txt", (0,))):
        listed = [name for name in names if name not in SPECIAL and int(name[:6]) % 8 in remainders]
        (mafl / file).write_text("\n".join(rng.permutation(listed)))


def archive(raw: Path) -> None:
    """Replaces the folder of the aligned images by the archive that is published."""
    parent = raw / "Img" if (raw / "Img").exists() else raw
    with zipfile.ZipFile(parent / "img_align_celeba.zip", "w") as file:
        for path in sorted((parent / "img_align_celeba").iterdir()):
            file.write(path, f"img_align_celeba/{path.name}")
    shutil.rmtree(parent / "img_align_celeba")


def as_on_kaggle(raw: Path) -> None:
    """Replaces the published files by the copy on Kaggle: CSV beside a folder of aligned images in another."""
    (raw / "img_align_celeba").mkdir()
    (raw / "Img" / "img_align_celeba").rename(raw / "img_align_celeba" / "img_align_celeba")
    for path in sorted(raw.glob("[AE]*/list_*.txt")):
        lines = path.read_text().splitlines()
        if path.stem == "list_eval_partition":
            rows = ["image_id partition", *lines]
        else:
            rows = [lines[1] if lines[1].startswith("image_id") else f"image_id {lines[1]}", *lines[2:]]
        (raw / f"{path.stem}.csv").write_text("".join(",".join(row.split()) + "\r\n" for row in rows))
    for folder in ("Img", "Anno", "Eval", "MAFL"):
        shutil.rmtree(raw / folder)


def _write(path: Path, names: Sequence[str], rows: Iterable[Sequence[int]], head: Sequence[str] = ()) -> None:
    """Columns are aligned by spaces where their numbers have different lengths, as published."""
    lines = [f"{name} {' '.join(f'{value:2d}' for value in row)}" for name, row in zip(names, rows, strict=True)]
    path.write_text("\n".join([*head, *lines]) + "\n")


def _scene(rng: np.random.Generator, small: bool) -> Scene:
    width, height = (int(side) for side in rng.integers(120, 201, 2))
    side = math.sqrt(rng.uniform(0.1, 0.28) if small else rng.uniform(0.34, 0.7))
    w, h = round(side * width), round(side * height)
    return (width, height), (int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1)), w, h)


def _draw(path: Path, scene: Scene, traits: Collection[str], rng: np.random.Generator) -> list[int]:
    """Draws a face into a box of an image and returns x and y of its points."""
    size, (x, y, w, h) = scene
    image = Image.new("RGB", size, tuple(int(value) for value in rng.integers(90, 200, 3)))
    brush = ImageDraw.Draw(image)

    def part(x0: float, y0: float, x1: float, y1: float) -> tuple[float, float, float, float]:
        return x + x0 * w, y + y0 * h, x + x1 * w, y + y1 * h

    brush.ellipse(part(-0.1, -0.25, 1.1, 0.75), fill=next(HAIR[trait] for trait in HAIR if trait in traits))
    brush.ellipse(part(0.05, 0.0, 0.95, 1.0), fill=(225, 180, 150))
    centres = np.array(PLACES) + rng.uniform(-0.02, 0.02, (len(PLACES), 2))
    for across, down in centres[:2]:
        reach = 0.14 if "Eyeglasses" in traits else 0.05
        brush.ellipse(part(across - reach, down - reach, across + reach, down + reach), fill=(20, 20, 40))
    brush.ellipse(part(*(centres[2] - 0.05), *(centres[2] + 0.05)), fill=(190, 130, 110))
    (left, upper), (right, lower) = centres[3:].min(axis=0), centres[3:].max(axis=0)
    brush.ellipse(
        part(left, upper - 0.05, right, lower + 0.05),
        fill=(200, 20, 40) if "Wearing_Lipstick" in traits else (180, 120, 110),
    )
    if "Wearing_Hat" in traits:
        brush.rectangle(part(-0.15, -0.3, 1.15, 0.12), fill=(40, 60, 190))
    image.save(path, quality=90)
    return [math.floor(value) for value in (centres * (w, h) + (x, y)).ravel()]
