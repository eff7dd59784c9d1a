"""How far our windows are from resized and cut images."""

import csv
import io

import numpy as np
import pytest
from PIL import Image

from benchmarks import bench_loader, window_accuracy
from benchmarks.tools import image_set
from pipelines.batches.geometry import Window

FILES = 12


def test_a_window_differs_from_the_resized_image_by_rounding(tmp_path, monkeypatch, capsys):
    if reason := bench_loader.missing("dali_cpu"):
        pytest.skip(reason)
    monkeypatch.setattr(window_accuracy, "RESULTS", tmp_path / "window_accuracy.csv")
    found = window_accuracy.compare_images(image_set.image_set(tmp_path, FILES))
    assert all(len(values) == FILES for values in found.values())
    # Two roundings to whole grey levels, Pillow's after each axis and DALI's after both, and two decoders' own.
    assert max(found["window, max"]) <= 2
    assert max(found["window, mean"]) < 0.5
    # Of a window of side 262.5 at a corner of whole pixels: half a stored pixel of rounding in each, 0.85 of output.
    assert max(found["offset of the corners"]) < 0.9

    monkeypatch.setattr(window_accuracy, "compare_images", lambda _: found)
    assert window_accuracy.main(f"--images {tmp_path} --files {FILES} --record".split()) == 0
    lines = capsys.readouterr().out.splitlines()[-len(found) :]
    with window_accuracy.RESULTS.open(newline="") as file:
        rows = {row["metric"]: row for row in csv.DictReader(file)}
    for (name, values), line in zip(found.items(), lines, strict=True):
        assert line.startswith(name)
        assert f"{np.mean(values):.3f} {window_accuracy.UNITS[name]} on average" in line
        assert float(rows[name]["p50"]) == pytest.approx(np.median(values), rel=1e-3)
        assert rows[name]["n"] == str(FILES)


def test_differences_in_grey_levels():
    """Of 640 x 640 pixels, of which nothing is rounded, so that both references are the same but for the border."""
    original = Image.open(io.BytesIO(image_set.draw(0))).resize((640, 640))
    window = original.resize((224, 224), Image.Resampling.BILINEAR, box=(96, 96, 544, 544))
    brighter = np.asarray(window).astype(int) + 3
    brighter[0] += 4
    assert window_accuracy.differences(brighter, original) == {
        "window, mean": 3,
        "window, max": 3,
        "window, max at the border": 7,
        "torchvision, mean": 3,
        "torchvision, max": 3,
        "offset of the corners": 0,
    }


def test_offset_is_zero_where_nothing_is_rounded():
    # 640 x 640 -> 320 x 320, of which (48, 48) to (272, 272): (96, 96) to (544, 544) before.
    assert window_accuracy.offset((640, 640), Window(96, 96, 448, 448, 224, 224)) == 0
    assert window_accuracy.offset((640, 640), Window(98, 96, 448, 448, 224, 224)) == 1
    assert window_accuracy.offset((640, 640), Window(96, 96, 446, 446, 224, 224)) == 1
