"""Scenery that goes with the class in training and not in testing, and no other pixel than before without it."""

import dataclasses
from collections import Counter

import numpy as np
import pytest
from scipy.stats import binomtest

from pipelines.drawn import scenes
from pipelines.drawn.birds import Birds, BirdsConfig
from pipelines.drawn.creatures import Creatures, CreaturesConfig
from pipelines.drawn.scenes import SCENES

KINDS = [(Birds, BirdsConfig(species=14, size=64)), (Creatures, CreaturesConfig(species=4, size=64))]


class SeenError(Exception):
    """The scene is known, and the rest need not be drawn."""


@pytest.fixture
def scene_of():
    """Split and index -> name of the scene that the image shows."""
    names = {id(scene): name for name, scene in SCENES.items()}

    def backdrop(_, scene, *__):
        raise SeenError(names[id(scene)])

    def find(split, index):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(scenes, "backdrop", backdrop)
            with pytest.raises(SeenError) as seen:
                split.drawing(index)
        return str(seen.value)

    return find


def swapped(config, own):
    return dataclasses.replace(config, own_scenery=own)


@pytest.mark.parametrize("kind,config", KINDS)
def test_a_class_has_its_own_scenery_in_training_and_never_in_testing(kind, config, scene_of):
    per_species = 60
    seen = {}
    for name in ("train", "val", "test"):
        split = kind(swapped(config, 0.8), name, per_species)
        classes = len(split.class_names)
        images = [range(label, len(split), classes) for label in range(classes)]
        seen[name] = [Counter(scene_of(split, index) for index in own) for own in images]
    own = [counts.most_common(1)[0][0] for counts in seen["train"]]
    sizes = Counter(own).values()
    assert len(sizes) == len(SCENES)
    assert max(sizes) - min(sizes) <= 1
    for name in ("train", "val"):
        hits = sum(counts[scene] for counts, scene in zip(seen[name], own, strict=True))
        # A right program fails once in 1e6.
        assert binomtest(hits, per_species * len(own), 0.8).pvalue > 1e-6
    assert all(counts[scene] == 0 for counts, scene in zip(seen["test"], own, strict=True))
    others = sum(seen["test"], Counter())
    for scene in SCENES:
        rate = np.mean([mine != scene for mine in own]) / (len(SCENES) - 1)
        assert binomtest(others[scene], others.total(), rate).pvalue > 1e-6


@pytest.mark.parametrize("kind,config", KINDS)
def test_certain_scenery_is_always_the_own(kind, config, scene_of):
    split = kind(swapped(config, 1.0), "train", 3)
    classes = len(split.class_names)
    for label in range(classes):
        assert len({scene_of(split, n) for n in range(label, len(split), classes)}) == 1


@pytest.mark.parametrize("kind,config", KINDS)
def test_species_do_not_depend_on_the_scenery(kind, config):
    assert kind(swapped(config, 0.95), "train", 1).species == kind(config, "train", 1).species


def test_without_the_option_the_generator_goes_on_as_it_did_before_there_was_one():
    assert scenes.odds_of_classes(9, 0.0, 0, swapped=True) is None
    for seed in range(20):
        now, before = np.random.default_rng(seed), np.random.default_rng(seed)
        assert scenes.pick(now, None) is list(SCENES.values())[before.integers(len(SCENES))]
        assert now.bit_generator.state == before.bit_generator.state


def test_what_is_no_probability_is_refused():
    for config in (BirdsConfig, CreaturesConfig):
        with pytest.raises(ValueError, match=r"own_scenery: expected a probability, got 1\.5"):
            config(own_scenery=1.5)
