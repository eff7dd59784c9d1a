"""The DALI loader against Pillow, torchvision and its own promises."""

import io
import json
import math
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import v2

from pipelines.batches.decoders import pick_decoder
from pipelines.batches.decoding import Decoding
from pipelines.batches.geometry import Geometry, central_start
from pipelines.batches.loader import Loader
from pipelines.shards import reader, writer
from pipelines.shards.manifest import Manifest, Schema
from pipelines.shards.samples import Sample
from tests.support.decoders import DECODERS

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
    assert keys == Counter(sample.key for sample in reader.read(small_birds, "test"))


def test_labels_belong_to_their_images(small_birds):
    labels = {sample.key: sample.label for sample in reader.read(small_birds, "val")}
    for batch in Loader(small_birds, "val", TEST, 7):
        assert [labels[key] for key in batch.keys] == batch.labels.tolist()


def test_training_is_a_stream_of_full_batches_that_cycles(small_birds):
    size = Manifest.load(small_birds).split("train").samples
    keys = [key for batch in batches(Loader(small_birds, "train", TRAIN, 8), 2 * size // 8) for key in batch.keys]
    cycles = [keys[:size], keys[size:]]
    assert all(len(set(cycle)) == size for cycle in cycles)
    assert cycles[0] != cycles[1]


@pytest.mark.parametrize("world", [2, 3, 5, 8])
def test_ranks_share_out_the_batches_of_a_single_one(small_birds, world):
    """Every global batch is the same, pixel for pixel, whatever the number of ranks: over the end of an epoch, too."""
    whole = batches(Loader(small_birds, "train", TRAIN, 24), 3)
    ranks = [batches(Loader(small_birds, "train", TRAIN, 24, rank=rank, world_size=world), 3) for rank in range(world)]
    for number, batch in enumerate(whole):
        parts = [rank[number] for rank in ranks]
        assert batch.keys == [key for part in parts for key in part.keys]
        assert torch.equal(batch.images, torch.cat([part.images for part in parts]))
        assert torch.equal(batch.labels, torch.cat([part.labels for part in parts]))


def test_ranks_and_seeds_augment_differently(small_birds):
    def draw(**options):
        return batches(Loader(small_birds, "train", TRAIN, 32, **options), 1)[0]

    again, same, other = draw(seed=1), draw(seed=1), draw(seed=2)
    assert torch.equal(again.images, same.images)
    assert again.keys != other.keys
    views = [dict(zip(batch.keys, batch.images, strict=True)) for batch in (again, other)]
    assert sum(torch.equal(views[0][key], views[1][key]) for key in views[0]) == 0
    ranks = [batches(Loader(small_birds, "train", TRAIN, 32, rank=rank, world_size=2), 1)[0] for rank in (0, 1)]
    assert not set(ranks[0].keys) & set(ranks[1].keys)


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("stop", [1, 3, 11])
def test_a_stream_goes_on_exactly_where_it_stopped(small_birds, stop, decoder):
    def loader():
        return Loader(small_birds, "train", TRAIN, 5, decoding=Decoding(decoder, threads=1))

    whole = batches(loader(), stop + 6)
    stopped = loader()
    batches(stopped, stop)
    resumed = loader()
    resumed.resume(stopped.state())
    for expected, found in zip(whole[stop:], batches(resumed, 6), strict=True):
        assert expected.keys == found.keys
        assert torch.equal(expected.images, found.images)


def test_a_stream_goes_on_with_another_number_of_ranks(small_birds):
    whole = batches(Loader(small_birds, "train", TRAIN, 12), 4)
    stopped = Loader(small_birds, "train", TRAIN, 12, rank=1, world_size=3)
    batches(stopped, 2)
    for rank in range(2):
        resumed = Loader(small_birds, "train", TRAIN, 12, rank=rank, world_size=2)
        resumed.resume(stopped.state())
        for expected, found in zip(whole[2:], batches(resumed, 2), strict=True):
            assert torch.equal(expected.images[6 * rank : 6 * rank + 6], found.images)


def test_a_balanced_stream_draws_small_classes_as_often(tmp_path):
    content = io.BytesIO()
    Image.new("RGB", (64, 64)).save(content, "JPEG")
    labels = [0] * 18 + [1] * 6
    source = [Sample(f"{n:03d}", content.getvalue(), label, 64, 64, str(n)) for n, label in enumerate(labels)]
    data = tmp_path / "data"
    writer.write(data, "d", {"train": source}, schema=Schema(("a", "b")), options={}, samples_per_shard=7)
    assert sorted(reader.Reader(data, "train").labels()) == labels
    for balance, counts in ((0.0, [18, 6]), (1.0, [12, 12])):
        first, second = batches(Loader(data, "train", TRAIN, 24, balance=balance), 2)
        assert np.abs(np.bincount(first.labels, minlength=2) - counts).max() <= 1
        assert first.keys != second.keys
    with (data / "train-00001.idx").open("a") as file:
        file.write("no line of an index")
    assert sorted(reader.Reader(data, "train").labels()) == labels


def test_attributes_are_not_balanced(small_birds, tmp_path):
    data = shutil.copytree(small_birds, tmp_path / "data")
    replace(Manifest.load(data), multi_label=True).save(data)
    with pytest.raises(ValueError, match=r"^train.balance: expected 0 for attributes, got 1.0$"):
        Loader(data, "train", TRAIN, 4, balance=1.0)


@pytest.mark.parametrize(
    "changed,message",
    [
        ({"seed": 1}, "seed = 0, now it is 1"),
        ({"batch_size": 6}, "global batch = 5, now it is 6"),
        ({"geometry": replace(TRAIN, flip=0.25)}, "flip = 0.5, now it is 0.25"),
        ({"decoding": Decoding("pillow")}, "decoder = 'DALI .* cpu', now it is 'Pillow"),
        ({"split": "val"}, "shards = "),
        ({"balance": 0.5}, "balance = None, now it is 0.5"),
    ],
)
def test_a_stream_does_not_go_on_as_another(small_birds, changed, message):
    settings = {"split": "train", "geometry": TRAIN, "batch_size": 5}
    state = Loader(small_birds, **settings).state()
    with pytest.raises(ValueError, match=message):
        Loader(small_birds, **settings | changed).resume(state)


def test_a_batch_has_an_image_at_least(small_birds):
    with pytest.raises(ValueError, match=r"^batch_size: expected at least 1, got 0$"):
        Loader(small_birds, "train", TRAIN, 0)
    with pytest.raises(ValueError, match=r"3 samples cannot be shared by 4 ranks"):
        Loader(small_birds, "train", TRAIN, 3, world_size=4)


def test_a_state_is_plain_values(small_birds):
    loader = Loader(small_birds, "train", TRAIN, 5)
    batches(loader, 3)
    assert json.loads(json.dumps(loader.state())) == loader.state()
    assert loader.state()["next"] == 15


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
    writer.write(folder, "dots", {"train": Dots()}, schema=Schema(("a", "b"), landmarks=names, parts=names), options={})
    return folder, colors


@pytest.mark.parametrize(
    "geometry",
    [
        Geometry(96, 96),
        Geometry(144, 112),
        Geometry(144, 112, training=True, flip=0.0, brightness=0.0),
        Geometry(100, 96, training=True, flip=1.0, brightness=0.0),
        Geometry(300, 200, training=True, flip=0.5, brightness=0.0),
    ],
)
@pytest.mark.parametrize("decoder", DECODERS)
def test_annotations_follow_the_pixels(dots, geometry, decoder):
    folder, colors = dots
    seen = 0
    loader = Loader(folder, "train", geometry, 4, annotations=True, decoding=Decoding(decoder))
    for batch in batches(loader, 3):
        for n, key in enumerate(batch.keys):
            image = batch.images[n].permute(1, 2, 0).cpu().numpy().astype(int)
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
    (sample,) = reader.read(folder, "train", [key])
    side = int(min(sample.width, sample.height) * geometry.crop / geometry.short_side + 0.5)
    return geometry.crop / side


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("short_side,crop,tolerance", [(64, 48, 0), (32, 24, 1.5), (128, 96, 1.5)])
def test_test_crop_is_torchvisions_resize_and_center_crop(small_birds, short_side, crop, tolerance, decoder):
    """Sizes at which the window needs no rounding; the two filters differ by rounding, and at the window's edge."""
    reference = v2.Compose([v2.Resize(short_side, antialias=True), v2.CenterCrop(crop)])
    originals = {sample.key: Image.open(io.BytesIO(sample.jpeg)) for sample in reader.read(small_birds, "val")}
    for batch in Loader(small_birds, "val", Geometry(short_side, crop), 8, decoding=Decoding(decoder)):
        for key, image in zip(batch.keys, batch.images.cpu(), strict=True):
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


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="memory is page-locked for a GPU")
@pytest.mark.parametrize("decoder", DECODERS[:2])
def test_a_gpu_copies_images_while_the_host_goes_on(small_birds, decoder):
    plain, pinned = (
        next(iter(Loader(small_birds, "val", TEST, 8, decoding=Decoding(decoder, pinned=pinned)))).images
        for pinned in (False, True)
    )
    assert torch.equal(plain, pinned)
    assert pinned.is_pinned()
    assert not plain.is_pinned()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="streams are those of a GPU")
@pytest.mark.parametrize("decoder", DECODERS[2:])
def test_the_host_does_not_wait_for_what_the_gpu_has_still_to_do(small_birds, decoder):
    """Nor are pixels overwritten before they have been copied."""
    expected = [batch.images.cpu() for batch in Loader(small_birds, "val", TEST, 8, decoding=Decoding("cpu"))]
    found, waited = [], False
    for batch in Loader(small_birds, "val", TEST, 8, decoding=Decoding(decoder)):
        waited |= bool(found) and torch.cuda.current_stream().query()
        found.append(batch.images)
        torch.cuda._sleep(1_000_000_000)  # cycles: about half a second
    assert not waited
    for one, other in zip(expected, found, strict=True):
        assert (one.float() - other.cpu().float()).abs().max() <= 6


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


def test_the_decoder_follows_the_device():
    assert pick_decoder("auto", torch.device("cpu")) == "cpu"
    assert pick_decoder("auto", torch.device("cuda")) == "mixed"
    assert pick_decoder("cpu", torch.device("cuda")) == "cpu"
    with pytest.raises(ValueError, match="mixed needs a GPU"):
        pick_decoder("mixed", torch.device("cpu"))


WITHOUT_DALI = """
import logging, sys, torch
logging.basicConfig(level=logging.WARNING)
sys.modules["nvidia.dali"] = None
from pipelines.batches.decoding import Decoding; from pipelines.batches.decoders import pick_decoder
from pipelines.batches.geometry import Geometry
from pipelines.batches.loader import Loader
decoder = [pick_decoder("auto", torch.device(device)) for device in ("cpu", "cuda")][1]
loader = Loader(sys.argv[1], "test", Geometry(64, 64), 16, decoding=Decoding(decoder))
print(decoder, sum(len(batch.keys) for batch in loader))
"""


def test_without_dali_pillow_decodes_and_says_so_once(small_birds):
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_DALI, small_birds], capture_output=True, text=True, check=True
    )
    assert result.stdout == "pillow 40\n"
    assert result.stderr.count("DALI is not installed") == 1


@pytest.mark.parametrize("decoder", DECODERS[1:])
def test_all_decoders_deliver_the_same_stream(small_birds, decoder):
    """Same keys, labels and windows; pixels differ by the rounding of decoders and resampling filters."""
    dali, other = (
        batches(Loader(small_birds, "train", TRAIN, 16, annotations=True, decoding=Decoding(name)), 4)
        for name in ("cpu", decoder)
    )
    for one, another in zip(dali, other, strict=True):
        assert one.keys == another.keys
        assert torch.equal(one.labels, another.labels)
        assert torch.equal(one.landmarks, another.landmarks)
        assert torch.equal(one.part_maps, another.part_maps)
        difference = (one.images.float() - another.images.cpu().float()).abs()
        assert difference.mean() < 0.5
        assert difference.max() <= 6


@given(
    width=st.integers(1, 900),
    height=st.integers(1, 900),
    short_side=st.integers(32, 500),
    stride=st.sampled_from([8, 14, 16, 32]),
)
def test_a_whole_image_is_cut_to_multiples_of_the_stride(width, height, short_side, stride):
    """Around the centre, by less than a stride of the output on the whole; the scale of both axes is the same."""
    window = Geometry(short_side, 16, view="whole", stride=stride).central_window(width, height)
    scale = Fraction(short_side, min(width, height))
    for extent, first, inner, outer in (
        (width, window.x0, window.width, window.columns),
        (height, window.y0, window.height, window.rows),
    ):
        assert outer % stride == 0
        assert outer <= extent * scale < outer + stride
        assert 0 <= first <= first + inner <= extent
        assert abs(first - (extent - first - inner)) <= 1
        assert abs(inner - outer / scale) <= Fraction(1, 2)


@pytest.mark.parametrize("decoder", DECODERS)
def test_whole_images_are_all_delivered_by_their_size(dots, decoder):
    """160x120, 120x160 and 128x128, at short side 100: 128x96 or 96x128 or 96x96 with landmarks and part maps."""
    folder, colors = dots
    geometry = Geometry(100, 16, view="whole")
    keys = Counter()
    for batch in Loader(folder, "train", geometry, 3, annotations=True, decoding=Decoding(decoder)):
        keys.update(batch.keys)
        rows, columns = batch.images.shape[2:]
        assert sorted({rows, columns}) in ([96, 128], [96])
        assert batch.part_maps.shape[1:] == (rows, columns)
        for n in range(len(batch.keys)):
            for number in range(4):
                x, y = batch.landmarks[n, number].int().tolist()
                if 2 < x < columns - 3 and 2 < y < rows - 3:
                    assert abs(batch.images[n, :, y, x].cpu().int() - torch.tensor(colors[number])).max() < 40
                    assert batch.part_maps[n, y, x] == number + 1
    assert keys == Counter(f"dot-{index}" for index in range(12))


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_stretched_image_is_the_whole_one(dots, decoder):
    folder, _ = dots
    originals = {sample.key: sample for sample in reader.read(folder, "train")}
    loader = Loader(folder, "train", Geometry(0, 64, view="stretch"), 5, annotations=True, decoding=Decoding(decoder))
    for batch in loader:
        for image, landmarks, key in zip(batch.images.cpu(), batch.landmarks, batch.keys, strict=True):
            sample = originals[key]
            original = Image.open(io.BytesIO(sample.jpeg))
            expected = np.asarray(original.resize((64, 64), Image.Resampling.BILINEAR)).astype(int)
            assert abs(image.permute(1, 2, 0).numpy() - expected).max() <= 2
            assert np.allclose(landmarks, sample.landmarks * 64 / (sample.width, sample.height), atol=1e-4)


def test_a_checkpoint_of_version_0_2_goes_on(small_birds):
    """The names that it gave of a stream, and no others."""
    geometry = ["brightness", "crop", "flip", "short_side", "training", "view"]
    stream = ["decoder", "global batch", "next", "numpy", "seed", "shards", "split"]
    loader = Loader(small_birds, "train", TRAIN, 5)
    batches(loader, 3)
    state = loader.state()
    assert sorted({*state} - {"read", "damaged"}) == sorted([*geometry, *stream])
