"""Masks beside photos: a folder ``masks`` that mirrors the folder ``images``.

    raw/images/<class>/robin.jpg      or raw/images/train/<class>/..., as ``pipelines.datasets.layout`` says
    raw/masks/<class>/robin.png       the mask of that photo, as large as it is shown: upright
    raw/parts.txt                     optional: the name of a part in each line

Without ``parts.txt`` every level but 0 is foreground. With it the levels are part ids: 0 is background, 1 is the part
of the first line, and so on. Masks are PNGs of grey levels, of a palette (whose indexes are the levels), or of colours
with three equal channels.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from pipelines.formats import open_image
from pipelines.image_files import find_images, is_passed_over

IMAGES, MASKS, PARTS = "images", "masks", "parts.txt"
FOREGROUND = ("foreground",)
MAX_PARTS = 255

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Masks:
    """The masks of the photos of a folder.

    Attributes:
        raw: The folder that holds ``images`` and ``masks``.
        parts: Name of every part; ``FOREGROUND`` if the masks tell foreground only.
    """

    raw: Path
    parts: tuple[str, ...]

    @classmethod
    def find(cls, raw: Path) -> Masks | None:
        """The masks of a folder, None if there is no ``masks`` beside ``images``.

        Raises:
            ValueError: ``parts.txt`` is not a list of different names.
            OSError: a file cannot be read.
        """
        if not (raw / MASKS).is_dir() or not (raw / IMAGES).is_dir():
            return None
        return cls(raw, _part_names(raw / PARTS) if (raw / PARTS).exists() else FOREGROUND)

    @property
    def photos(self) -> Path:
        """Where the photos are."""
        return self.raw / IMAGES

    def warn(self) -> None:
        """Logs the folders of images beside the two, which are left out."""
        for path in sorted(self.raw.iterdir()):
            known = path.name in (IMAGES, MASKS) or is_passed_over(path.name)
            if not known and path.is_dir() and find_images(path).images:
                logger.warning("%s: left out, photos are those of %s", path, self.photos)

    def source(self, photo: str) -> str:
        """Path of a mask below the raw folder, given that of its photo."""
        return (MASKS / Path(photo).relative_to(IMAGES).with_suffix(".png")).as_posix()

    def check(self, photos: Iterable[str]) -> None:
        """Checks that every photo has a mask.

        Args:
            photos: Paths below the raw folder.

        Raises:
            ValueError: masks are missing.
        """
        photos = list(photos)
        missing = [mask for mask in map(self.source, photos) if not (self.raw / mask).is_file()]
        if missing:
            raise ValueError(
                f"{self.raw}: {len(missing)} of {len(photos)} photos have no mask, the first missing is {missing[0]}; "
                f"add them, or give {self.photos} to do without masks"
            )

    def read(self, photo: str, width: int, height: int) -> np.ndarray:
        """The part map of a photo.

        Args:
            photo: Its path below the raw folder.
            width: Its width in pixels, upright.
            height: Its height.

        Returns:
            uint8 [height, width]: 0 is background, p is part p.

        Raises:
            ValueError: the mask cannot be decoded, has colours, another size, or a level that is no part.
            OSError: it cannot be read.
        """
        source = self.source(photo)
        content = (self.raw / source).read_bytes()
        try:
            with open_image(io.BytesIO(content)) as image:
                levels = _levels(image)
        except Exception as error:  # damaged files make Pillow raise nearly anything
            raise ValueError(f"{source}: no mask ({' '.join(str(error).split()) or type(error).__name__})") from None
        if levels.shape != (height, width):
            raise ValueError(
                f"{source}: expected {width}x{height} pixels like the upright photo, "
                f"got {levels.shape[1]}x{levels.shape[0]}"
            )
        if self.parts == FOREGROUND:
            return (levels > 0).astype(np.uint8)
        if levels.max() > len(self.parts):
            raise ValueError(f"{source}: expected levels 0 to {len(self.parts)} as in {PARTS}, got {levels.max()}")
        return levels.astype(np.uint8)


def _part_names(path: Path) -> tuple[str, ...]:
    try:
        names = tuple(line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip())
    except UnicodeDecodeError:
        raise ValueError(f"{path}: expected UTF-8 text, the name of a part in each line") from None
    if not 1 <= len(set(names)) == len(names) <= MAX_PARTS:
        raise ValueError(f"{path}: expected 1 to {MAX_PARTS} different names, one in each line, got {len(names)}")
    return names


def _levels(image: Image.Image) -> np.ndarray:
    """Integers [height, width]: grey levels, indexes of a palette, or one of three equal channels."""
    if image.format != "PNG":
        raise ValueError(f"expected a PNG, got {image.format}")
    levels = np.asarray(image)
    if levels.ndim == 2:
        return levels
    channels = levels[:, :, :3]
    opaque = levels.shape[2] == 3 or (levels.shape[2] == 4 and (levels[:, :, 3] == 255).all())
    if not opaque or (channels != channels[:, :, :1]).any():
        raise ValueError("expected grey levels or a palette, got colours or transparency")
    return channels[:, :, 0]
