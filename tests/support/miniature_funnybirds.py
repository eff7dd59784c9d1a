"""A small FunnyBirds in the published layout: birds of rectangles, each a part whose look is its shade."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
from PIL import Image

FOLDER, SIZE = "FunnyBirds", 64
LOOKS = {"beak": 4, "eye": 3, "foot": 4, "tail": 9, "wing": 6}
PLACES = {  # x, y, width, height of every part; eye, foot and wing come in pairs
    "beak": [(50, 20, 10, 6)],
    "eye": [(42, 14, 4, 4), (36, 14, 4, 4)],
    "foot": [(26, 52, 6, 10), (36, 52, 6, 10)],
    "tail": [(4, 34, 14, 8)],
    "wing": [(20, 28, 8, 12), (32, 28, 8, 12)],
}
COLOURS = {
    "beak": [(255, 255, 0)],
    "eye": [(255, 255, 253), (255, 255, 254)],
    "foot": [(255, 0, 1), (255, 0, 2)],
    "tail": [(0, 0, 255)],
    "wing": [(0, 255, 1), (0, 255, 2)],
}
THINGS = 4  # of every image; one of them cannot be seen


def classes(count: int, rng: np.random.Generator) -> list[dict[str, int]]:
    """Different looks."""
    unique = {tuple(int(rng.integers(number)) for number in LOOKS.values()) for _ in range(3 * count)}
    return [dict(zip(LOOKS, looks, strict=True)) for looks in sorted(unique)[:count]]


def draw(looks: dict[str, int], parts: set[str], things: dict[int, tuple[int, int]]) -> tuple[Image.Image, Image.Image]:
    """The image and its masks, both RGBA as published, of some parts and things at their places."""
    image, masks = np.full((SIZE, SIZE, 4), 255, np.uint8), np.zeros((SIZE, SIZE, 4), np.uint8)
    masks[..., 3] = 255
    image[..., :3] = (200, 220, 240)
    for number, (x, y) in things.items():
        image[y : y + 8, x : x + 8, :3] = (40 * number, 90, 30)
        masks[y : y + 8, x : x + 8, :3] = (204, 204, 204 + number)
    image[12:54, 16:50, :3], masks[12:54, 16:50, :3] = 128, 0
    for name, boxes in PLACES.items():
        for (x, y, width, height), colour in zip(boxes, COLOURS[name], strict=True):
            if name in parts:
                image[y : y + height, x : x + width, :3] = (250 - 25 * looks[name], 20 * looks[name], colour[2])
                masks[y : y + height, x : x + width, :3] = colour
    return Image.fromarray(image, "RGBA"), Image.fromarray(masks, "RGBA")


def build(raw: Path, species: int = 6, train: int = 3, test: int = 1, seed: int = 0) -> None:
    """Writes ``FunnyBirds`` into a folder.

    Args:
        raw: The folder, made if missing.
        species: Number of classes.
        train: Training images of each; every second lacks parts.
        test: Test images of each.
        seed: Decides everything that is random.
    """
    rng = np.random.default_rng(seed)
    folder = raw / FOLDER
    folder.mkdir(parents=True)
    of_class = classes(species, rng)
    listed = [{"class_idx": number, "parts": looks} for number, looks in enumerate(of_class)]
    parts = {name: [{"model": f"{name}{look:02d}.glb"} for look in range(count)] for name, count in LOOKS.items()}
    (folder / "classes.json").write_text(json.dumps(listed))
    (folder / "parts.json").write_text(json.dumps(parts))
    for split, count in (("train", train), ("test", test)):
        entries = []
        for number in range(species * count):
            label = number // count
            looks = of_class[label]
            kept = {name for name in LOOKS if split == "test" or number % 2 or rng.random() < 0.5}
            places = {thing: (int(rng.integers(0, 16)), int(rng.integers(0, 56))) for thing in range(1, THINGS)}
            things = {0: (24, 20)} | places  # the first is hidden by the body
            models = {
                f"{name}_model": parts[name][looks[name]]["model"] if name in kept else "placeholder" for name in LOOKS
            }
            entries.append({"class_idx": label, **models, "bg_objects": "0,3,1,2,"})
            image, masks = draw(looks, kept, things)
            _save(image, folder / split / str(label) / f"{number:06d}.png")
            _save(masks, folder / f"{split}_part_map" / str(label) / f"{number:06d}.png")
            if split == "test":
                below = folder / "test_interventions" / str(label) / f"{number:06d}"
                for size in range(len(LOOKS) + 1):
                    for some in itertools.combinations(sorted(LOOKS), size):
                        _save(draw(looks, set(some), things)[0], below / f"body_{'_'.join(some)}.png")
                for thing in things:
                    left = {other: place for other, place in things.items() if other != thing}
                    _save(draw(looks, kept, left)[0], below / "background_interventions" / f"{thing}.png")
        (folder / f"dataset_{split}.json").write_text(json.dumps(entries))


def _save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
