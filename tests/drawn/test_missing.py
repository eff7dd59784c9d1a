"""Training images without some parts, and the classes that are right then."""

import dataclasses

import numpy as np
import pytest
from scipy.stats import binomtest, chisquare

from pipelines.drawn import birds
from pipelines.drawn.birds import Birds, BirdsConfig
from pipelines.drawn.creatures import Creatures, CreaturesConfig
from pipelines.shards.manifest import Schema
from pipelines.shards.samples import decode, encode

KINDS = [(Birds, BirdsConfig(species=16, size=64)), (Creatures, CreaturesConfig(species=4, size=64))]


def lacking_parts(config, missing):
    return dataclasses.replace(config, missing=missing)


@pytest.mark.parametrize("kind,config", KINDS)
def test_images_lack_any_number_of_parts_but_not_all(kind, config):
    split = kind(lacking_parts(config, 0.6), "train", 25)
    taken = [split._taken(index) for index in range(len(split))]
    own = [split.own_parts[index % len(split.class_names)] for index in range(len(split))]
    some = [(len(parts), len(of)) for parts, of in zip(taken, own, strict=True) if parts]
    # A right program fails once in 1e6.
    assert binomtest(len(some), len(split), 0.6).pvalue > 1e-6
    for total in {total for _, total in some}:
        counts = [sum(pair == (number, total) for pair in some) for number in range(total + 1)]
        assert counts[0] == counts[total] == 0
        assert chisquare(counts[1:total]).pvalue > 1e-6
    assert all(set(parts) <= set(of) for parts, of in zip(taken, own, strict=True))


@pytest.mark.parametrize("kind,config", KINDS)
def test_the_manifest_tells_how_often_a_part_is_not_there(kind, config):
    split = kind(lacking_parts(config, 0.6), "train", 12)
    absent = [split[index].absent for index in range(len(split))]
    for part, rate in zip(split.part_names, split.absence, strict=True):
        assert binomtest(sum(part in parts for parts in absent), len(split), rate).pvalue > 1e-6


@pytest.mark.parametrize("kind,config", KINDS)
def test_all_other_images_are_as_they_were(kind, config):
    whole, missing = kind(config, "train", 2), kind(lacking_parts(config, 0.5), "train", 2)
    for index in range(len(whole)):
        before, now = whole[index], missing[index]
        taken = missing._taken(index)
        assert set(now.absent) == {*before.absent, *taken}
        assert (now.jpeg == before.jpeg) == np.array_equal(now.part_map, before.part_map)
        if not taken:
            assert now.jpeg == before.jpeg
        assert np.array_equal(now.part_map, missing.drawing(index, taken).part_map)
    for name in ("val", "test"):
        assert encode(kind(config, name, 1)[3]) == encode(kind(lacking_parts(config, 0.5), name, 1)[3])


def test_of_a_family_those_birds_are_right_that_would_make_the_same_image():
    config = BirdsConfig(species=16, size=64, missing=1.0, absent=0.5)
    split = Birds(config, "train", 2)
    several = 0
    for index in range(len(split)):
        sample = split[index]
        species = split.species[sample.label]
        labels = [label for label, other in enumerate(split.species) if other.family == species.family]
        # A generator that leaves out more parts would hide what tells them apart.
        always = {*birds.PARTS} - {*sample.absent}
        images = [
            birds.draw(split.species[label], config, np.random.default_rng(3), always, sample.absent).image.tobytes()
            for label in labels
        ]
        own = images[labels.index(sample.label)]
        alike = {label for label, image in zip(labels, images, strict=True) if image == own}
        assert alike == {*(sample.answers or [sample.label])} & {*labels}
        several += len(alike) > 1
    assert several > 5


def test_answers_are_kept_in_shards_and_must_hold_the_label():
    split = Birds(BirdsConfig(species=16, size=64, missing=1.0), "train", 1)
    sample = next(sample for sample in map(split.__getitem__, range(len(split))) if sample.answers)
    assert decode(sample.key, encode(sample)).answers == sample.answers
    other = next(label for label in range(16) if label not in sample.answers)
    with pytest.raises(ValueError, match=f"answers: expected the label {other} among them"):
        dataclasses.replace(sample, label=other)
    annotation = encode(sample)
    annotation["json"] = annotation["json"].replace(b'"answers":[', b'"answers":["a",')
    with pytest.raises(ValueError, match="answers: expected a list of int"):
        decode(sample.key, annotation)


def test_what_is_no_probability_is_refused():
    with pytest.raises(ValueError, match=r"missing: expected a probability, got -1"):
        BirdsConfig(missing=-1)


def test_answers_beyond_the_classes_contradict_the_schema():
    split = Birds(BirdsConfig(species=16, size=64, missing=1.0), "train", 1)
    sample = next(sample for sample in map(split.__getitem__, range(len(split))) if sample.answers)
    names = {"landmarks": tuple(split.landmark_names), "parts": tuple(split.part_names)}
    sample = dataclasses.replace(sample, super_category=None)
    assert not Schema(tuple(split.class_names), **names).violations(sample)
    few = Schema(tuple(split.class_names[: max(sample.answers)]), **names)
    assert f"answers {sample.answers}, expected 0 to {max(sample.answers) - 1}" in few.violations(sample)
