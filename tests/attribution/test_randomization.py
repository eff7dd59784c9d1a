"""Randomised models: what changes, what stays, what holds again after, and maps whose answers are known."""

import copy

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

from rg.attribution.maps import cam, contribution_map, part_attribution
from rg.attribution.methods import centre
from rg.attribution.randomization import (
    BINS,
    EVERY,
    another_class,
    cascade,
    complexity_rise,
    randomization,
    stages,
    survivors,
)
from rg.config import BackboneConfig, GroupingConfig, HeadConfig, ModelConfig, SamplerConfig
from rg.model.build import build_model

CLASSES = torch.tensor([2, 0, 1, 1, 4])
HEAD = ["classifier", "attention", "region_transform", "dictionary"]
DEPTHS = ["backbone_upper", "backbone_middle", "backbone_lower"]


def images(count=5):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 3, 64, 64), dtype=torch.uint8, generator=generator)


def build(kind, multi_label=False):
    torch.manual_seed(0)
    config = ModelConfig(
        BackboneConfig(name="test_resnet", weights="none"),
        GroupingConfig(num_parts=3, standardize=True, smoothing_padding="same"),
        HeadConfig(region_channels=16, region_width=8, region_blocks=1, attention_width=8),
        kind=kind,
    )
    model = build_model(config, 5, multi_label).eval().requires_grad_(False)
    for norm in model.modules():  # statistics and scales as after training, no ones and zeros
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            for values in (norm.running_var, norm.weight):
                if values is not None:
                    nn.init.uniform_(values, 0.5, 1.5)
    return model


def of_stage(model, layers):
    """Names of the parameters of a stage."""
    own = {id(parameter) for layer in layers for parameter in layer.parameters(recurse=False)}
    return {name for name, parameter in model.named_parameters() if id(parameter) in own}


@pytest.mark.parametrize("kind,multi_label", [("region_grouping", False), ("region_grouping", True), ("plain", False)])
def test_one_stage_after_another_is_shuffled_and_all_is_as_it_was(kind, multi_label):
    model = build(kind, multi_label)
    before = copy.deepcopy(model.state_dict())
    found = stages(model)
    assert [*found] == (["classifier"] if kind == "plain" else HEAD) + DEPTHS
    names = {stage: of_stage(model, layers) for stage, layers in found.items()}
    everything = [name for own in names.values() for name in own]
    assert sorted(everything) == sorted(name for name, _ in model.named_parameters())
    random = set()
    for stage in cascade(model, images(), (0, 1)):
        random |= names[stage]
        for name, parameter in model.named_parameters():
            same = torch.equal(parameter, before[name])
            assert same or name in random
            if name in names[stage] and len({*before[name].flatten()[:9].tolist()}) == 9:
                assert not same
                assert parameter.amax() == before[name].amax()
                assert parameter.double().sum().item() == pytest.approx(before[name].double().sum().item(), abs=1e-6)
    assert random == set(everything)
    for name, values in model.state_dict().items():
        assert torch.equal(values, before[name]), name
    assert not any(module.training for module in model.modules())


def test_what_was_before_holds_again_also_when_somebody_stops_in_the_middle():
    model = build("plain")
    before = copy.deepcopy(model.state_dict())
    going = cascade(model, images(), (0,))
    next(going)
    assert not torch.equal(model.classifier.weight, before["classifier.weight"])
    going.close()
    assert torch.equal(model.classifier.weight, before["classifier.weight"])


def test_batch_norms_of_random_stages_have_the_statistics_of_the_images():
    model = build("region_grouping")
    norm = model.standardization.norm
    before = norm.running_mean.clone()
    for stage in cascade(model, images(), (0,)):
        with torch.no_grad():
            features = model.features(torch.cat([images(), images().flip(3)])) / model.standardization.scale
        mean, variance = features.mean((0, 2, 3)), features.var((0, 2, 3))
        expected = norm.running_var / (norm.running_var + norm.eps)
        if stage in HEAD[:3]:
            assert torch.equal(norm.running_mean, before)
        elif stage == "dictionary":
            np.testing.assert_allclose(mean, 0, atol=1e-4)
            np.testing.assert_allclose(variance, expected, rtol=1e-3)
        else:
            # Norms below were fitted in the same pass, where they divide by the deviation of the batch, later by that
            # of the population: over 160 positions that is 1 + 1/320 for each of 15 norms, 5 % in all.
            np.testing.assert_allclose(mean, 0, atol=0.05)
            np.testing.assert_allclose(variance, expected, rtol=0.1)


def test_one_image_is_enough_for_statistics():
    model = build("region_grouping")
    for _ in cascade(model, images(1), (0,)):
        with torch.no_grad():
            assert model(images(1)).logits.isfinite().all()


def test_a_sampler_is_random_last():
    config = ModelConfig(
        BackboneConfig(name="test_resnet", weights="none"), kind="plain", sampler=SamplerConfig(kind="saliency")
    )
    model = build_model(config, 5, pretrained=False).eval()
    assert [*stages(model)] == ["classifier", *DEPTHS, "sampler"]


def edges(of, _):
    """Knows neither parameters nor classes."""
    return of.float().mean(1)[:, 1:] - of.float().mean(1)[:, :-1]


def test_the_numbers_are_those_of_a_plain_loop():
    model = build("region_grouping")

    def contributions(of, classes):
        return contribution_map(model, of, classes)

    compared = {"contribution": contributions, "edges": edges, "centre": centre}
    found = randomization(model, compared, images(), CLASSES, (3, 4))
    own, named = images()[::EVERY], CLASSES[::EVERY]
    first = contributions(own, named)
    expected = {}
    for stage in cascade(model, images(), (3, 4)):
        after = contributions(own, named)
        expected[f"mprt_after_{stage}"] = [
            spearmanr(a.flatten(), b.flatten())[0] for a, b in zip(first, after, strict=True)
        ]
    scores = found["contribution"]
    for name, values in expected.items():
        np.testing.assert_allclose(scores[name][::EVERY], values, atol=1e-6)
    np.testing.assert_allclose(scores["mprt"][::EVERY], np.mean([*expected.values()], axis=0), atol=1e-6)
    np.testing.assert_array_equal(scores["mprt_full"], scores["mprt_after_backbone_lower"])
    np.testing.assert_allclose(scores["emprt"][::EVERY], complexity_rise(first, after, (64, 64)))
    assert (scores["mprt_full"][::EVERY] < 0.9).all()
    for by_name in found.values():
        assert by_name.keys() == scores.keys()
        for values in by_name.values():
            assert np.isnan(np.delete(values, np.s_[::EVERY])).all()
    for key in ("edges", "centre"):
        for name in ("mprt", "mprt_full", "smprt", "random_logit"):
            np.testing.assert_allclose(found[key][name][::EVERY], 1)
        np.testing.assert_array_equal(found[key]["emprt"][::EVERY], 0)


def test_attention_knows_no_class_and_activation_maps_do():
    for kind, function, same in (("region_grouping", part_attribution, True), ("plain", cam, False)):
        model = build(kind)
        compared = {"map": lambda of, classes, function=function, model=model: function(model, of, classes)}
        random_logit = randomization(model, compared, images(), CLASSES, (0,))["map"]["random_logit"][::EVERY]
        assert (random_logit > 0.9999).all() == same


def test_the_other_class_is_any_but_the_own():
    classes = torch.arange(5).repeat(2000)
    others = another_class(classes, 5, (0,))
    counts = torch.zeros(5, 5).index_put_((classes, others), torch.ones(()), accumulate=True)
    assert (counts.diag() == 0).all()
    # 2,000 draws from four: 4 standard deviations of a count are 77
    assert (counts[~torch.eye(5, dtype=torch.bool)] - 500).abs().max() < 78
    assert another_class(classes, 1, (0,)) is None


def test_the_complexity_is_the_entropy_of_the_histogram():
    flat, steps = torch.zeros(1, 40, 40), (torch.arange(1600.0) % 100).view(1, 40, 40)
    steps[0, 0] = 99.0
    two = (torch.arange(1600) % 2).view(1, 40, 40).float()
    counts = np.histogram(steps, BINS)[0]
    entropy = -sum(count / 1600 * np.log(count / 1600) for count in counts if count)
    assert entropy == pytest.approx(np.log(100), rel=0.02)
    rise = complexity_rise(two, steps, (40, 40))
    assert rise[0] == pytest.approx((entropy - np.log(2)) / np.log(2))
    assert complexity_rise(7 * two - 3, steps / 9, (40, 40))[0] == pytest.approx(rise[0])
    assert complexity_rise(two, flat, (40, 40))[0] == -1
    assert np.isnan(complexity_rise(flat, steps, (40, 40))).all()


def test_survivors_are_much_the_same():
    assert survivors({"a": 0.49, "b": 0.5, "c": None, "d": -0.9}) == ["b"]
