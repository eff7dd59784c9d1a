"""What places add to the logits: nothing unless it is asked for, exactly 0 where nothing is known, and a term alone."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from rg.config import (
    BackboneConfig,
    GroupingConfig,
    HeadConfig,
    InputConfig,
    ModelConfig,
    PlaceConfig,
    RunConfig,
    SamplerConfig,
)
from rg.model.build import build_model, mean_with_mirror, said
from rg.model.noise import image_seeds
from rg.model.place import PlaceTerm, encoding, left_out

CLASSES = 5
PLAIN = ModelConfig(
    BackboneConfig(name="resnet18", weights="none"),
    GroupingConfig(num_parts=3, smoothing_padding="same"),
    HeadConfig(region_channels=16, region_width=8, region_blocks=1, attention_width=8),
)
ON = dataclasses.replace(PLAIN, place=PlaceConfig(on=True, width=16, blocks=2))
NAN = math.nan
PLACES = torch.tensor([[52.5, 13.25, 172.0], [NAN, NAN, NAN], [NAN, NAN, 20.0], [-33.9, 151.2, NAN]])
IMAGES = torch.randint(0, 256, (4, 3, 64, 64), generator=torch.Generator().manual_seed(1)).to(torch.uint8)


def make(config: ModelConfig, multi_label: bool = False):
    torch.manual_seed(0)
    return build_model(config, CLASSES, multi_label)


def told(config: ModelConfig, multi_label: bool = False):
    """A model in evaluation mode whose places say something."""
    model = make(config, multi_label).eval()
    torch.nn.init.normal_(model.place.last.weight, generator=torch.Generator().manual_seed(2))
    return model


@pytest.mark.parametrize("kind", ["region_grouping", "plain"])
def test_off_is_as_it_was(kind):
    before, off = make(dataclasses.replace(PLAIN, kind=kind)), make(dataclasses.replace(ON, kind=kind))
    own = {name: value for name, value in off.state_dict().items() if not name.startswith("place.")}
    assert before.place is None
    assert own.keys() == before.state_dict().keys() < off.state_dict().keys()
    assert all(torch.equal(value, own[name]) for name, value in before.state_dict().items())
    before.eval()
    with torch.no_grad():
        assert before(IMAGES).place is None
        assert torch.equal(before(IMAGES).logits, off.eval()(IMAGES).logits)
        with pytest.raises(ValueError, match="places: expected None, as the model has no term for places"):
            before(IMAGES, places=PLACES)
        assert torch.equal(said(before, IMAGES, PLACES).logits, before(IMAGES).logits)


def test_settings_of_earlier_runs_have_no_places():
    values = dataclasses.asdict(RunConfig(model=PLAIN))
    del values["model"]["place"]
    assert RunConfig.from_dict(values).model == PLAIN


@pytest.mark.parametrize("kind", ["region_grouping", "plain"])
def test_logits_are_the_image_and_the_place(kind):
    model = told(dataclasses.replace(ON, kind=kind))
    with torch.no_grad():
        alone, both = model(IMAGES), model(IMAGES, places=PLACES)
        assert alone.place is None
        assert torch.equal(both.logits, alone.logits + both.place)
        assert torch.equal(both.place[1], torch.zeros(CLASSES))
        assert torch.equal(both.logits[1], alone.logits[1])
        assert (both.place[[0, 2, 3]].abs().amax(1) > 1e-3).all()
        mirrored = mean_with_mirror(model, IMAGES, PLACES, both.logits)
        expected = (model(IMAGES).logits + model(IMAGES.flip(3)).logits) / 2 + both.place
        torch.testing.assert_close(mirrored, expected)


@pytest.mark.parametrize("multi_label", [False, True])
def test_parts_constant_and_place_sum_to_the_logit(multi_label):
    model = told(ON, multi_label).double()
    with torch.no_grad():
        output = model(IMAGES, places=PLACES.double())
        classes = torch.tensor([[0, 3]] * 4)
        parts, constant = model.contributions(output, classes)
        total = parts.sum(2) + constant + output.place.gather(1, classes)
        torch.testing.assert_close(total, output.logits.gather(1, classes))


def test_behind_a_sampler():
    sampler = SamplerConfig("saliency", 32, network="resnet18", weights="none", glimpse=32)
    model = told(dataclasses.replace(ON, sampler=sampler))
    with torch.no_grad():
        both = model(IMAGES, places=PLACES)
        torch.testing.assert_close(both.logits, model(IMAGES).logits + both.place)


def test_it_begins_at_zero_and_learns():
    model = make(ON)
    output = model(IMAGES, places=PLACES)
    assert not output.place.any()
    torch.nn.functional.cross_entropy(output.logits, torch.tensor([0, 1, 2, 3])).backward()
    assert model.place.last.weight.grad.abs().max() > 0
    _, new = model.parameter_groups()
    assert {id(parameter) for parameter in model.place.parameters()} <= set(map(id, new))


def test_angles_are_those_of_the_published_prior():
    """Longitude over 180, latitude over 90 and the share of the year in -1 to 1, times pi."""
    sines, cosines = encoding(PLACES.double()).chunk(2, 1)
    angles = np.pi * np.array([52.5 / 90, 13.25 / 180, 2 * 171 / 365.25])
    np.testing.assert_allclose(sines[0], np.sin(angles))
    np.testing.assert_allclose(cosines[0], np.cos(angles))
    assert not encoding(PLACES)[1].any()
    assert not encoding(PLACES)[2, [0, 1, 3, 4]].any()
    dateline = encoding(torch.tensor([[10.0, 180.0, 1.0], [10.0, -180.0, 366.0]]).double())
    # From the last day of a leap year to the first of the next one it is a quarter of a day: an angle of 0.005.
    torch.testing.assert_close(dateline[0], dateline[1], atol=0.005, rtol=0)


def test_places_are_left_out_as_often_as_said():
    count, share = 20_000, 0.3
    seeds = image_seeds(0, 0, 0, 0, count)
    places = torch.tensor([[1.0, 2.0, 3.0]]).expand(count, 3)
    hidden = left_out(places, seeds, share).isnan()
    kept = 1 - share
    expected = {
        "coordinates": (hidden[:, 0], 1 - kept**2),
        "date": (hidden[:, 2], 1 - kept**2),
        "all": (hidden.all(1), 1 - kept * (1 - share**2)),
    }
    for name, (found, probability) in expected.items():
        # Four standard deviations of a share over that many images.
        assert abs(found.double().mean() - probability) < 4 * math.sqrt(probability * (1 - probability) / count), name
    assert torch.equal(hidden[:, 0], hidden[:, 1])
    assert torch.equal(left_out(places[7:9], seeds[7:9], share).isnan(), hidden[7:9])


def test_training_hears_of_some_places_and_evaluation_of_all():
    term = PlaceTerm(PlaceConfig(on=True, width=8, blocks=1, dropout=0.5), CLASSES)
    torch.nn.init.normal_(term.last.weight)
    places, seeds = PLACES[:1].expand(64, 3), image_seeds(0, 1, 0, 0, 64)
    silent = ~term(places, seeds).any(1)
    assert 0 < silent.sum() < 64
    assert term(places).any(1).all()


def test_full_precision_under_autocast():
    term = PlaceTerm(PlaceConfig(on=True, width=8, blocks=1), CLASSES)
    torch.nn.init.normal_(term.last.weight)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(term(PLACES), term.float()(PLACES))
        found = term(PLACES)
    assert found.dtype == torch.float32
    assert torch.equal(found, term(PLACES))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": ON, "input": InputConfig(mixup=0.2)}, "input.mixup: expected 0 with model.place.on"),
        ({"model": ON, "input": InputConfig(cutmix=1.0)}, "input.cutmix: expected 0 with model.place.on"),
    ],
)
def test_what_does_not_go_together(change, message):
    with pytest.raises(ValueError, match=message):
        RunConfig(**change)


def test_a_model_that_names_no_class_has_no_places():
    with pytest.raises(ValueError, match=r"model\.place\.on: expected false with model.kind = scops"):
        dataclasses.replace(ON, kind="scops", grouping=GroupingConfig(background=True))


@pytest.mark.parametrize(("name", "value"), [("width", 0), ("blocks", -1), ("dropout", 1.0)])
def test_bad_settings_are_named(name, value):
    with pytest.raises(ValueError, match=rf"model\.place\.{name}: expected"):
        PlaceConfig(**{name: value})
