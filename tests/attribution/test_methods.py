"""Which methods there are for a model, the maps that look at nothing, and the factors of what is explained."""

import numpy as np
import pytest
import torch
from torch import nn

from rg.attribution.factorization import DeepFeatureFactorization
from rg.attribution.maps import cam, contribution_map, guides
from rg.attribution.methods import BASELINES, NAMES, NO_CAM, NO_PARTS, NOT_RELU, RandomMaps, centre, factorize, methods
from rg.config import BackboneConfig, GroupingConfig, HeadConfig, ModelConfig
from rg.model.build import build_model

CLASSES = torch.tensor([2, 0])


def images(rows=64, columns=96):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (2, 3, rows, columns), dtype=torch.uint8, generator=generator)


def build(kind, backbone="resnet18"):
    torch.manual_seed(0)
    config = ModelConfig(
        BackboneConfig(name=backbone, weights="none"),
        GroupingConfig(num_parts=3, standardize=True, smoothing_padding="same"),
        HeadConfig(region_channels=16, region_width=8, region_blocks=1, attention_width=8),
        kind=kind,
    )
    return build_model(config, 5).eval()


@pytest.mark.parametrize("kind", ["region_grouping", "plain"])
def test_every_method_is_defined_or_says_why_not(kind):
    model = build(kind)
    found = methods(model, factorize(model, [images()], 2, 3, 0), 2, 0)
    assert list(found) == list(NAMES)
    undefined = {key: method.undefined for key, method in found.items() if method.explain is None}
    expected = (
        {"cam": NO_CAM} if kind == "region_grouping" else dict.fromkeys(("attribution", "contribution"), NO_PARTS)
    )
    assert undefined == expected
    for method in found.values():
        assert (method.explain is None) == bool(method.undefined)
        if method.explain:
            maps = method.explain(images(), CLASSES)
            assert maps.dtype == torch.float32
            assert maps.ndim == 3
            assert len(maps) == 2
            assert not maps.requires_grad
    key, function = ("contribution", contribution_map) if kind == "region_grouping" else ("cam", cam)
    torch.testing.assert_close(found[key].explain(images(), CLASSES), function(model, images(), CLASSES))


def test_guided_backpropagation_is_a_matter_of_the_backbone():
    model = build("region_grouping", "mobilenetv3_small_100")
    assert not guides(model)
    assert methods(model, factorize(model, [images()], 2, 3, 0), 2, 0)["guided_grad_cam"].undefined == NOT_RELU


def test_random_maps_are_uniform_have_a_number_for_every_stride_and_never_repeat():
    draw = RandomMaps(16, 3)
    one, other = draw(images(70, 96), CLASSES), draw(images(70, 96), CLASSES)
    assert one.shape == (2, 5, 6)
    assert not torch.equal(one, other)
    assert torch.equal(RandomMaps(16, 3)(images(70, 96), CLASSES), one)
    many = RandomMaps(1, 0)(images(), CLASSES)
    # 12,288 uniform numbers: 5 standard errors of the mean are 0.013
    assert many.mean().item() == pytest.approx(0.5, abs=0.013)
    assert 0 <= many.min() < 0.01
    assert 0.99 < many.max() < 1


def test_random_maps_begin_anew_for_each_batch():
    maps = RandomMaps(8, 0)
    images, classes = torch.zeros(1, 3, 64, 64), torch.zeros(1, dtype=torch.int64)
    first = maps(images, classes)
    maps.begin(1)
    second = maps(images, classes)
    maps.begin(0)
    assert torch.equal(maps(images, classes), first)
    assert not torch.equal(first, second)


def test_the_centre_is_a_gaussian_a_quarter_as_wide_as_the_image():
    maps = centre(images(64, 96), CLASSES)
    assert maps.shape == (2, 64, 96)
    y, x = (np.arange(side) + 0.5 - side / 2 for side in (64, 96))
    expected = np.exp(-((y[:, None] / (64 / 4)) ** 2) / 2 - (x / (96 / 4)) ** 2 / 2)
    np.testing.assert_allclose(maps[0], expected, rtol=1e-4)
    assert torch.equal(maps[0], maps[1])


def test_the_factors_are_those_of_all_positions_where_there_are_few():
    model = build("plain")
    with torch.no_grad():
        nn.init.uniform_(model.classifier.weight)
        features = model.features(images()).numpy()
    found = factorize(model, [images()[:1], images()[1:]], 2, 2, 0).factorization.reconstruction_err_
    expected = DeepFeatureFactorization(2, 0).fit(features).factorization.reconstruction_err_
    assert found == pytest.approx(expected, rel=1e-3)  # the same positions in another order


def test_baselines_are_named():
    assert set(BASELINES) < set(NAMES)
