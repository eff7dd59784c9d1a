"""The images that the loader's benchmarks read: JPEGs of about 500 x 375 pixels and 40 to 110 KB, drawn once."""

from __future__ import annotations

import io
import os
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from pipelines.cores import usable_cores
from pipelines.datasets.folder import Folder
from pipelines.shards import writer
from pipelines.shards.manifest import Schema

SEED = 1
CLASSES = 8
SIZES = ((500, 375), (375, 500), (500, 333), (500, 400))
QUALITY = 90
SHARDS = 32  # of the images; webdataset's workers share them out


def draw(index: int) -> bytes:
    """One JPEG: noise of all scales, as natural images have it, and discs with hard edges."""
    rng = np.random.default_rng((SEED, index))
    width, height = SIZES[index % len(SIZES)]
    contrast = rng.uniform(1.2, 5.0)
    pixels = np.full((height, width, 3), 128, np.float32)
    for octave in range(9):
        shape = (height // 2**octave + 2, width // 2**octave + 2, 3)
        noise = Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))
        layer = np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32)
        pixels += 0.04 * contrast * 2 ** (0.45 * octave) * (layer - 128)
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    for _ in range(12):
        x, y = rng.integers(0, (width, height))
        a, b = rng.integers(5, 60, 2)
        pen.ellipse((x - a, y - b, x + a, y + b), fill=tuple(rng.integers(0, 256, 3).tolist()))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def image_set(folder: Path, files: int) -> Path:
    """The folder of ``files`` images below ``folder``, made if it is not there: ``raw`` (class folders), ``shards``."""
    final = folder / f"{files}-images-seed-{SEED}"
    if final.is_dir():
        return final
    print(f"drawing {files} images into {final}, once")
    folder.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{final.name}-", dir=folder))
    try:
        with ThreadPoolExecutor(usable_cores()) as pool:
            for index, jpeg in enumerate(pool.map(draw, range(files + CLASSES))):
                split = "train" if index < files else "val"
                path = temporary / "raw" / split / f"class_{index % CLASSES}" / f"{index:06d}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(jpeg)
        pack(temporary / "raw", temporary / "shards")
        os.replace(temporary, final)
    except BaseException:
        shutil.rmtree(temporary)
        raise
    return final


def pack(raw: Path, out: Path, jobs: int = 1) -> None:
    """Writes the training images as our shards."""
    source = Folder(raw, "train")
    schema = Schema(source.class_names)
    per_shard = -(-len(source) // SHARDS)
    writer.write(out, "benchmark", {"train": source}, schema=schema, options={}, samples_per_shard=per_shard, jobs=jobs)


def describe(files: int) -> str:
    """What the ledger calls a set."""
    return f"{files} JPEGs of 500x375"
