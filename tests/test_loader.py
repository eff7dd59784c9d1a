"""The DALI loader against Pillow, torchvision and its own promises."""

import io
import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from pipelines import plan, shards
from pipelines.geometry import Geometry, central_start
from pipelines.loader import Loader, pick_decoder
from pipelines.manifest import Manifest, Schema
from pipelines.samples import Sample

TEST = Geometry(short_side=64, crop=64)
TRAIN = Geometry(short_side=72, crop=64, training=True)


def batches(loader, count):
    stream = iter(loader)
    return [next(stream) for _ in range(count)]


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("batch", [4, 7, 64])
def test_testing_sees_every_sample_once(small_birds, world, batch):
    keys = Counter()
    for rank in range(world):
        for part in Loader(small_birds, "test", TEST, batch, rank=rank, world_size=world):
            keys.update(part.keys)
            assert len(part.keys) == len(part.images) == len(part.labels)
    assert keys == Counter(sample.key for sample in shards.read(small_birds, "test"))


def test_labels_belong_to_their_images(small_birds):
    labels = {sample.key: sample.label for sample in shards.read(small_birds, "val")}
    for batch in Loader(small_birds, "val", TEST, 7):
        assert [labels[key] for key in batch.keys] == batch.labels.tolist()


@pytest.mark.parametrize("world", [1, 2])
def test_training_is_a_stream_of_full_batches_that_cycles(small_birds, world):
    size = Manifest.load(small_birds).split("train").samples
    for rank in range(world):
        first, end = plan.shard_range(size, rank, world)
        own = end - first
        loader = Loader(small_birds, "train", TRAIN, 6, rank=rank, world_size=world)
        keys = [key for batch in batches(loader, 2 * own // 6 + 1) for key in batch.keys]
        cycles = [keys[:own], keys[own : 2 * own]]
        assert all(len(set(cycle)) == own for cycle in cycles)
        assert set(cycles[0]) == set(cycles[1])
        assert cycles[0] != cycles[1]


def test_ranks_and_seeds_augment_differently(small_birds):
    def draw(**options):
        return batches(Loader(small_birds, "train", TRAIN, 32, **options), 1)[0]

    again, same, other = draw(seed=1), draw(seed=1), draw(seed=2)
    assert torch.equal(again.images, same.images)
    assert again.keys != other.keys
    views = [dict(zip(batch.keys, batch.images, strict=True)) for batch in (again, other)]
    assert sum(torch.equal(views[0][key], views[1][key]) for key in views[0]) == 0
    ranks = [batches(Loader(small_birds, "train", TRAIN, 16, rank=rank, world_size=2), 1)[0] for rank in (0, 1)]
    assert not set(ranks[0].keys) & set(ranks[1].keys)


@pytest.mark.parametrize("stop", [1, 3, 11])
def test_a_stream_goes_on_exactly_where_it_stopped(small_birds, stop):
    whole = batches(Loader(small_birds, "train", TRAIN, 5), stop + 6)
    loader = Loader(small_birds, "train", TRAIN, 5)
    batches(loader, stop)
    resumed = batches(Loader(small_birds, "train", TRAIN, 5, state=loader.state()), 6)
    for expected, found in zip(whole[stop:], resumed, strict=True):
        assert expected.keys == found.keys
        assert torch.equal(expected.images, found.images)


@pytest.fixture(scope="module")
def dots(tmp_path_factory):
    """Images of several shapes, each with four coloured dots at its landmarks, boxes around them, and a part map."""
    colors = np.array([(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)])

    class Dots:
        def __len__(self):
            return 12

        def source(self, index):
            return str(index)

        def __getitem__(self, index):
            rng = np.random.default_rng(index)
            width, height = [(160, 120), (120, 160), (128, 128)][index % 3]
            center = np.array([width / 2, height / 2])
            landmarks = center + np.array([(-25, -20), (25, -20), (-20, 25), (20, 20)]) + rng.integers(-8, 8, (4, 2))
            pixels = np.full((height, width, 3), 60, np.uint8)
            part_map = np.zeros((height, width), np.uint8)
            ys, xs = np.mgrid[:height, :width] + 0.5
            for number, (x, y) in enumerate(landmarks):
                disk = (xs - x) ** 2 + (ys - y) ** 2 < 25
                pixels[disk] = colors[number]
                part_map[disk] = number + 1
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "JPEG", quality=98, subsampling=0)
            boxes = np.stack([np.array([x - 5, y - 5, x + 5, y + 5]) for x, y in landmarks]).astype(np.float32)
            visibility = np.array([True, True, True, index % 2 == 0])
            return Sample(
                f"dot-{index}", buffer.getvalue(), index % 2, width, height, str(index), None,
                landmarks.astype(np.float32), visibility, boxes, part_map,
            )  # fmt: skip

    folder = tmp_path_factory.mktemp("dots")
    names = tuple("rgby")
    shards.write(folder, "dots", {"train": Dots()}, schema=Schema(("a", "b"), landmarks=names, parts=names), options={})
    return folder, colors


@pytest.mark.parametrize(
    "geometry",
    [
        Geometry(96, 96),
        Geometry(144, 112),
        Geometry(144, 112, training=True, flip=0.0, jitter=0.0),
        Geometry(100, 96, training=True, flip=1.0, jitter=0.0),
        Geometry(300, 200, training=True, flip=0.5, jitter=0.0),
    ],
)
def test_annotations_follow_the_pixels(dots, geometry):
    folder, colors = dots
    seen = 0
    loader = Loader(folder, "train", geometry, 4, annotations=True)
    for batch in batches(loader, 3):
        for n, key in enumerate(batch.keys):
            image = batch.images[n].permute(1, 2, 0).numpy().astype(int)
            for number in range(4):
                x, y = batch.landmarks[n, number].tolist()
                hidden = number == 3 and int(key.removeprefix("dot-")) % 2 == 1
                inside = 0 <= x < geometry.crop and 0 <= y < geometry.crop
                assert bool(batch.visibility[n, number]) == (inside and not hidden)
                margin = 4
                if not (margin < x < geometry.crop - margin and margin < y < geometry.crop - margin):
                    continue
                # The centre of mass of the dot's colour is where the landmark went, and so is that of its part.
                ys, xs = np.nonzero(np.abs(image - colors[number]).sum(2) < 150)
                near = np.hypot(xs + 0.5 - x, ys + 0.5 - y) < 12
                where = np.array([xs[near].mean() + 0.5, ys[near].mean() + 0.5])
                if min(x, y) > 10 and max(x, y) < geometry.crop - 10:
                    assert np.abs(where - (x, y)).max() < 0.8
                assert int(batch.part_maps[n, int(y), int(x)]) == number + 1
                seen += 1
            kept = sum(
                -5 * scale < x < geometry.crop + 5 * scale and -5 * scale < y < geometry.crop + 5 * scale
                for x, y in batch.landmarks[n].tolist()
                for scale in [_scale(folder, key, geometry)]
            )
            assert len(batch.boxes[n]) == kept
            assert (batch.boxes[n] >= 0).all()
            assert (batch.boxes[n] <= geometry.crop).all()
    assert seen > 12


def _scale(folder, key, geometry):
    (sample,) = shards.read(folder, "train", [key])
    side = int(min(sample.width, sample.height) * geometry.crop / geometry.short_side + 0.5)
    return geometry.crop / side


@pytest.mark.parametrize("short_side,crop,tolerance", [(64, 48, 0), (32, 24, 1.5), (128, 96, 1.5)])
def test_test_crop_is_torchvisions_resize_and_center_crop(small_birds, short_side, crop, tolerance):
    """Sizes at which the window needs no rounding; the two filters differ by rounding, and at the window's edge."""
    reference = v2.Compose([v2.Resize(short_side, antialias=True), v2.CenterCrop(crop)])
    originals = {sample.key: Image.open(io.BytesIO(sample.jpeg)) for sample in shards.read(small_birds, "val")}
    for batch in Loader(small_birds, "val", Geometry(short_side, crop), 8):
        for key, image in zip(batch.keys, batch.images, strict=True):
            expected = v2.functional.pil_to_tensor(reference(originals[key])).float()
            inner = (slice(None), slice(2, -2), slice(2, -2))
            assert (image[inner].float() - expected[inner]).abs().max() <= tolerance


@pytest.mark.parametrize("short_side,crop", [(72, 64), (80, 50), (448, 448), (200, 16), (90, 81)])
def test_side_of_the_window_is_the_nearest_whole_number(short_side, crop):
    geometry = Geometry(short_side, crop)
    for short in range(1, 600):
        exact = Fraction(crop * short, short_side)
        side = geometry.side(short)
        assert side == max(1, math.floor(exact + Fraction(1, 2)))
        assert side <= short


def test_central_start_leaves_the_same_on_both_sides():
    for extent in range(1, 40):
        for side in range(1, extent + 1):
            before = central_start(extent, side)
            assert before - (extent - side - before) in (0, 1)


def test_images_are_bytes_in_channels_last(small_birds):
    batch = next(iter(Loader(small_birds, "val", TEST, 8)))
    assert batch.images.dtype == torch.uint8
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.landmarks is None


def test_batches_do_not_share_memory(small_birds):
    stream = iter(Loader(small_birds, "train", TRAIN, 8))
    first = next(stream)
    copy = first.images.clone()
    for _ in range(6):
        next(stream)
    assert torch.equal(first.images, copy)


def test_missing_split_and_files_are_named(small_birds, tmp_path):
    with pytest.raises(ValueError, match="train, val, test, got 'dev'"):
        Loader(small_birds, "dev", TEST, 4)
    with pytest.raises(ValueError, match="no such folder"):
        Loader(tmp_path / "nothing", "train", TEST, 4)
    with pytest.raises(ValueError, match="40 samples cannot be shared by 41 ranks"):
        Loader(small_birds, "test", TEST, 4, world_size=41)


def test_a_damaged_index_of_the_right_size_is_one_line(small_birds, tmp_path):
    for path in small_birds.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    index = tmp_path / "test-00000.idx"
    index.write_bytes(b"x" * index.stat().st_size)
    with pytest.raises(ValueError, match=r"split test cannot be read .*rg verify"):
        list(Loader(tmp_path, "test", TEST, 4))


def test_the_decoder_follows_the_device():
    assert pick_decoder("auto", torch.device("cpu")) == "cpu"
    assert pick_decoder("auto", torch.device("cuda")) == "mixed"
    assert pick_decoder("cpu", torch.device("cuda")) == "cpu"
    with pytest.raises(ValueError, match="mixed needs a GPU"):
        pick_decoder("mixed", torch.device("cpu"))


def test_a_jpeg_that_broke_after_packing_is_one_line(small_birds, tmp_path):
    for path in small_birds.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    tar = tmp_path / "test-00000.tar"
    content = bytearray(tar.read_bytes())
    content[600:2600] = bytes(2000)
    tar.write_bytes(content)
    with pytest.raises(ValueError, match=r"split test cannot be read .*rg verify") as error:
        list(Loader(tmp_path, "test", TEST, 4))
    assert "\n" not in str(error.value)
