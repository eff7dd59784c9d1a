"""Crops that grow from stage to stage of training."""

import dataclasses

import pytest
import torch

from pipelines.batches.decoding import Decoding
from pipelines.batches.geometry import Geometry
from pipelines.batches.loader import Loader
from rg import recipes
from rg.config import InputConfig
from rg.runs.inputs import growing_geometries, training_geometry
from tests.support.decoders import DECODERS

BATCH = 12  # of 32 images: batches lie across the ends of epochs
SIZES = {0: 32, 1: 48, 3: 64}  # epoch -> crop
GEOMETRIES = {epoch: Geometry(crop + 8, crop, training=True) for epoch, crop in SIZES.items()}


def batches(data, geometry, decoder="pillow", count=14, state=None, **options):
    loader = Loader(data, "train", geometry, BATCH, decoding=Decoding(decoder, threads=1), seed=3, **options)
    if state:
        loader.resume(state)
    stream = iter(loader)
    return loader, [next(stream) for _ in range(count)]


def epoch_of(batch_number):
    return batch_number * BATCH // 32


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_batch_is_that_of_a_loader_of_its_size_alone(small_birds, decoder):
    _, found = batches(small_birds, GEOMETRIES, decoder)
    alone = {epoch: batches(small_birds, geometry, decoder)[1] for epoch, geometry in GEOMETRIES.items()}
    sizes = []
    for number, batch in enumerate(found):
        stage = max(epoch for epoch in SIZES if epoch <= epoch_of(number))
        expected = alone[stage][number]
        assert batch.keys == expected.keys
        assert torch.equal(batch.images, expected.images)
        sizes.append(batch.images.shape[2])
    assert sizes == sorted(sizes)
    assert set(sizes) == {32, 48, 64}


def test_ranks_change_the_size_at_the_same_step_and_resume_in_it(small_birds):
    loader, whole = batches(small_birds, GEOMETRIES, count=5)
    state = loader.state()
    _, rest = batches(small_birds, GEOMETRIES, count=9, state=state)
    _, expected = batches(small_birds, GEOMETRIES)
    shares = [batches(small_birds, GEOMETRIES, rank=rank, world_size=2)[1] for rank in (0, 1)]
    for number, batch in enumerate(expected):
        assert torch.equal((whole + rest)[number].images, batch.images)
        assert torch.equal(torch.cat([share[number].images for share in shares]), batch.images)


def test_a_checkpoint_of_other_stages_is_refused(small_birds):
    loader, _ = batches(small_birds, GEOMETRIES, count=1)
    with pytest.raises(ValueError, match="the checkpoint belongs to batches with later = "):
        batches(small_birds, {0: GEOMETRIES[0], 2: GEOMETRIES[3]}, state=loader.state())


def test_crops_grow_in_equal_steps_over_equal_numbers_of_epochs():
    config = InputConfig(short_side=320, crop=224, smallest_crop=128)
    geometries = growing_geometries(config, 75)
    assert {epoch: geometry.crop for epoch, geometry in geometries.items()} == {0: 128, 18: 160, 37: 192, 56: 224}
    for geometry in geometries.values():
        assert geometry.short_side == pytest.approx(geometry.crop * 320 / 224, abs=0.5)
    assert geometries[56] == training_geometry(config)
    assert growing_geometries(dataclasses.replace(config, smallest_crop=0), 75) == {0: training_geometry(config)}
    assert growing_geometries(config, 2)[1] == training_geometry(config)  # stages that have no epoch are left out


@pytest.mark.parametrize("values", [{"smallest_crop": 8}, {"smallest_crop": 240}, {"stages": 1}])
def test_sizes_that_make_no_sense_are_refused(values):
    with pytest.raises(ValueError, match=rf"^input.{next(iter(values))}: expected"):
        InputConfig(**values)


def test_recipes_of_today_differ_from_those_of_the_paper_in_what_they_say():
    for name in ("mini_inat", "inat2017_resnet101"):
        paper, modern = recipes.get(name), recipes.get(f"{name}_modern")
        assert modern.model == paper.model
        assert (modern.train.ema, modern.train.balance, modern.loss.label_smoothing) == (0.9998, 0.5, 0.1)
        assert modern.input == dataclasses.replace(paper.input, smallest_crop=modern.input.smallest_crop)
        assert 0 < modern.input.smallest_crop < modern.input.crop
