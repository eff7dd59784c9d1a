"""What decoding only the crop window costs in grey levels.

python -m benchmarks.window_accuracy [--record]

Our central windows, decoded by DALI on the CPU, next to two references. ``window`` is the whole image resized by Pillow
to the very grid of our window and cut there: what decoding only the window costs. ``torchvision`` is resize, then crop:
our window is also rounded to whole pixels before and not after resizing, so its corners lie up to ``offset`` output
pixels elsewhere.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torchvision.transforms.v2 import functional

from benchmarks.bench_loader import GEOMETRY, missing
from benchmarks.tools import ledger
from benchmarks.tools.command import run_main
from benchmarks.tools.comparison import percentiles, record
from benchmarks.tools.image_set import describe, image_set
from benchmarks.tools.options import image_parser
from pipelines.batches.geometry import Geometry, Window
from pipelines.batches.loader import Loader
from pipelines.shards import reader

RESULTS = ledger.RESULTS / "window_accuracy.csv"
COMPARED = 200  # images
BORDER = 2  # output pixels at the edge of a window that a filter of twice the pixel distance reaches over
UNITS = {
    "window, mean": "grey levels",
    "window, max": "grey levels",
    "window, max at the border": "grey levels",
    "torchvision, mean": "grey levels",
    "torchvision, max": "grey levels",
    "offset of the corners": "pixels",
}


def compare_images(images: Path) -> dict[str, list[float]]:
    """Name -> the differences of every image, for the first images of a set."""
    loader = Loader(images / "shards", "train", Geometry(GEOMETRY.short_side, GEOMETRY.crop), COMPARED)
    batch = next(iter(loader))
    originals = reader.read(images / "shards", "train", batch.keys)
    measured = [
        differences(pixels.permute(1, 2, 0).numpy(), Image.open(io.BytesIO(sample.jpeg)))
        for pixels, sample in zip(batch.images, originals, strict=True)
    ]
    return {name: [each[name] for each in measured] for name in UNITS}


def differences(ours: np.ndarray, original: Image.Image) -> dict[str, float]:
    """How our central window, uint8 [C, C, 3], differs from both references: a value for every name of ``UNITS``."""
    crop = GEOMETRY.crop
    window = GEOMETRY.central_window(*original.size)
    box = (window.x0, window.y0, window.x0 + window.width, window.y0 + window.width)
    resized = original.resize((crop, crop), Image.Resampling.BILINEAR, box=box)
    cut = functional.center_crop(functional.resize(original, [GEOMETRY.short_side]), [crop])
    from_window, from_cut = (abs(ours.astype(int) - np.asarray(reference)) for reference in (resized, cut))
    inner = (slice(BORDER, -BORDER), slice(BORDER, -BORDER))
    return {
        "window, mean": float(from_window[inner].mean()),
        "window, max": float(from_window[inner].max()),
        "window, max at the border": float(from_window.max()),
        "torchvision, mean": float(from_cut[inner].mean()),
        "torchvision, max": float(from_cut[inner].max()),
        "offset of the corners": offset(original.size, window),
    }


def offset(size: tuple[int, int], window: Window) -> float:
    """Largest distance, along an axis and in output pixels, of a window's corner to that of torchvision's crop."""
    scale = GEOMETRY.short_side / min(size)
    distances = []
    for extent, first in zip(size, (window.x0, window.y0), strict=True):
        resized = int(extent * scale)
        start, ratio = round((resized - GEOMETRY.crop) / 2), resized / extent
        distances.append(abs(first * ratio - start))
        distances.append(abs((first + window.width) * ratio - start - GEOMETRY.crop))
    return max(distances)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the differences and, with ``--record``, appends them to ``results/window_accuracy.csv``."""
    parser = image_parser(__doc__, RESULTS)
    options = parser.parse_args(arguments)
    if missing("dali_cpu"):
        parser.error(missing("dali_cpu"))
    for name, values in compare_images(image_set(options.images, options.files)).items():
        p50, most = percentiles(values)[1], max(values)
        print(f"{name:<32}{np.mean(values):>8.3f} {UNITS[name]} on average, p50 {p50:.3f}, largest {most:.3f}")
        if options.record:
            record(RESULTS, describe(options.files), "dali_cpu", "central window", name, UNITS[name], values)
    return 0


if __name__ == "__main__":
    run_main(main)
