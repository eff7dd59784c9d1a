import dataclasses
import json

import pytest
import torch

from rg import recipes
from rg.config import (
    GroupingConfig,
    InputConfig,
    LossConfig,
    OptimizerConfig,
    RunConfig,
    TrainConfig,
    differences,
    flatten,
)
from rg.model import terms


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_recipes_survive_json(name):
    config = recipes.get(name)
    assert RunConfig.from_dict(json.loads(json.dumps(dataclasses.asdict(config)))) == config


def test_every_recipe_says_what_it_is():
    assert all(function.__doc__ for function in recipes.RECIPES.values())


def test_the_recipe_without_prior_differs_in_the_prior_alone():
    changed = differences(recipes.birds_lite0(), recipes.birds_lite0_no_prior())
    assert list(changed) == ["loss.prior_weight"]


@pytest.mark.parametrize("name,side", [("birds_lite0", 8), ("photos_lite0", 14), ("cub200_resnet101", 28)])
def test_terms_of_other_methods_cost_a_small_part_the_same_on_every_map(name, side):
    """Of 3 x 3 positions, which presence asks for: as on the maps that the weights were published for."""

    def part(side):
        maps = torch.zeros(1, 1, side, side)
        maps[..., 2:5, 2:5] = 1
        return maps

    ours = recipes.get(f"{name}_pdisconet").loss.concentration_weight * terms.concentration_loss(part(side))
    # The term measures from the first position to the last, 7 steps of 8 positions and 27 of 28: (28 / 27 x 7 / 8)^2,
    # and the weight is rounded from 6.7 to 7.
    assert 0.78 < 1000 * terms.concentration_loss(part(28)) / ours < 1.02
    ours = recipes.get(f"{name}_pdiscoformer").loss.total_variation_weight * terms.total_variation_loss(part(side))
    assert ours == pytest.approx(terms.total_variation_loss(part(37)).item(), rel=0.1)  # rounded to two digits


def test_unknown_recipe_names_the_near_ones():
    with pytest.raises(ValueError, match="birds_lite0"):
        recipes.get("birds_lite")


def test_unknown_setting_is_refused():
    with pytest.raises(ValueError, match="parts"):
        RunConfig.from_dict({"model": {"grouping": {"parts": 3}}})


def test_flatten():
    assert flatten({"a": {"b": 1, "c": (2, 3)}, "d": 4}) == {"a.b": 1, "a.c": [2, 3], "d": 4}


@pytest.mark.parametrize(
    "make,match",
    [
        (lambda: GroupingConfig(num_parts=0), "model.grouping.num_parts: expected 1 to 64 parts, got 0"),
        (lambda: GroupingConfig(num_parts=65), "num_parts"),
        (lambda: GroupingConfig(smoothing_std=0), "smoothing_std"),
        (
            lambda: InputConfig(short_side=200, crop=224),
            "input.short_side: expected at least input.crop = 224, got 200",
        ),
        (lambda: InputConfig(flip=1.5), "input.flip"),
        (lambda: InputConfig(cache=""), "input.cache: expected a folder, or none, got ''"),
        (lambda: InputConfig(cache_gib=0), "input.cache_gib: expected more than 0, got 0"),
        (lambda: LossConfig(prior_alpha=0), "loss.prior_alpha"),
        (lambda: LossConfig(prior_weight=-1), "loss.prior_weight"),
        (lambda: OptimizerConfig(lr=0), "optimizer.lr"),
        (lambda: OptimizerConfig(schedule="step"), "optimizer.milestones"),
        (lambda: TrainConfig(global_batch=1), "train.global_batch"),
        (lambda: TrainConfig(global_batch=10, accumulation=3), "multiple"),
        (lambda: TrainConfig(compile="cuda_graphs", accumulation=2), "expected 1 with train.compile = cuda_graphs"),
        (lambda: TrainConfig(compile="cuda_graphs", batch_norm="sync"), "expected local or frozen with train.compile"),
        (lambda: TrainConfig(epochs=0), "train.epochs"),
        (lambda: RunConfig(seed=-1), "seed"),
    ],
)
def test_values_out_of_range_are_named(make, match):
    with pytest.raises(ValueError, match=match):
        make()
