"""The model: published parameter counts, exact contributions, ablations, initialisation."""

import dataclasses
import importlib.util
import itertools
import math
import sys

import pytest
import torch
from sklearn.cluster import KMeans

from rg import recipes
from rg.config import BackboneConfig, GroupingConfig, HeadConfig, ModelConfig
from rg.model import layers
from rg.model.layers import (
    FeatureStandardization,
    GroupedLinear,
    MultiLabelAttention,
    MultiLabelClassifier,
    PartDictionary,
)
from rg.model.region_grouping import RegionGroupingModel

SMALL = ModelConfig(
    backbone=BackboneConfig(name="resnet18", weights="none"),
    grouping=GroupingConfig(num_parts=4, smoothing_padding="same"),
    head=HeadConfig(region_channels=24, region_width=8, region_blocks=2, attention_width=8),
)


def build(config=SMALL, classes=5, **options):
    torch.manual_seed(0)
    model = RegionGroupingModel(config, classes, **options)
    for module in model.modules():  # running statistics and affine terms as after some training
        if isinstance(module, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
            if module.affine:
                torch.nn.init.uniform_(module.weight, 0.5, 1.5)
                torch.nn.init.normal_(module.bias, std=0.1)
    return model.eval()


def images(count=3, size=96):
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "recipe,classes,parameters", [("cub200_resnet101", 200, 40_179_984), ("inat2017_resnet101", 5089, 50_200_620)]
)
def test_parameter_count_is_that_of_the_authors(recipe, classes, parameters):
    with torch.device("meta"):
        model = RegionGroupingModel(recipes.get(recipe).model, classes, pretrained=False)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_output_is_consistent():
    output = build()(images())
    *tensors, place = output
    assert [list(tensor.shape) for tensor in tensors] == [[3, 5], [3, 4, 6, 6], [3, 4], [3, 4], [3, 4, 256]]
    assert place is None
    torch.testing.assert_close(output.assign.sum(1), torch.ones(3, 6, 6))
    torch.testing.assert_close(output.attention.sum(1), torch.ones(3))
    torch.testing.assert_close(output.regions.norm(dim=2), torch.ones(3, 4))


def test_images_may_be_bytes_or_floats():
    model = build()
    torch.testing.assert_close(model(images()).logits, model(images().float()).logits)


@pytest.mark.parametrize("standardize", [False, True])
def test_the_gradient_of_an_image_is_the_same_alone(standardize):
    """In float64, where no ReLU opens or closes by rounding. Batch norm misreads the layout of some gradients."""
    grouping = dataclasses.replace(SMALL.grouping, standardize=standardize)
    model = build(dataclasses.replace(SMALL, grouping=grouping)).double()

    def gradient(pixels):
        pixels = pixels.double().requires_grad_()
        return torch.autograd.grad(model(pixels).logits[:, 1].sum(), pixels)[0]

    torch.testing.assert_close(gradient(images()[2:])[0], gradient(images())[2])


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("attention", [False, True])
def test_contributions_and_constant_are_the_logit(multi_label, attention):
    config = dataclasses.replace(SMALL, head=dataclasses.replace(SMALL.head, attention=attention))
    model = build(config, multi_label=multi_label)
    output = model(images())
    classes = torch.tensor([[0, 3], [1, 4], [2, 2]])
    parts, constant = model.contributions(output, classes)
    assert parts.shape == (3, 2, 4)
    torch.testing.assert_close(parts.sum(2) + constant, output.logits.gather(1, classes), rtol=1e-5, atol=1e-5)


def test_without_attention_every_region_counts_the_same():
    config = dataclasses.replace(SMALL, head=dataclasses.replace(SMALL.head, attention=False))
    assert torch.equal(build(config)(images()).attention, torch.full((3, 4), 0.25))
    assert torch.equal(build(config, multi_label=True)(images()).attention, torch.full((3, 5, 4), 0.25))


def test_shapley_values_are_the_mean_over_all_orders():
    torch.manual_seed(0)
    K, D, L = 3, 6, 2
    head = MultiLabelClassifier(HeadConfig(region_width=4), D, L).double().eval()
    torch.nn.init.ones_(head.norms[-1].weight)
    features, attention = torch.randn(1, K, D).double(), torch.rand(1, L, K).double()

    def logit(parts, label):
        kept = torch.zeros(K, dtype=torch.float64)
        kept[list(parts)] = 1
        return head(features, attention * kept)[0, label]

    shares, constant = head.contributions(features, attention, torch.tensor([[1]]))
    for part in range(K):
        gains = []
        for order in itertools.permutations(range(K)):
            before = order[: order.index(part)]
            gains.append(logit((*before, part), 1) - logit(before, 1))
        assert shares[0, 0, part].item() == pytest.approx((sum(gains) / math.factorial(K)).item())
    assert constant.item() == pytest.approx(logit((), 1).item())


def test_grouped_linear_is_a_loop_over_linear_layers():
    layer = GroupedLinear(3, 5, 2)
    x = torch.randn(4, 3, 5)
    expected = torch.stack([x[:, group] @ layer.weight[group] for group in range(3)], dim=1)
    torch.testing.assert_close(layer(x), expected)


def test_attributes_in_batched_products_are_a_loop_over_one_head_each():
    """As the authors compute them: forty attentions, and behind a batch norm of all forty bottlenecks and layers."""
    torch.manual_seed(0)
    N, K, C, L, width = 6, 4, 16, 40, 8
    config = HeadConfig(attention_width=16, region_width=width, region_channels=C)
    attention, head = MultiLabelAttention(config, C, L).double(), MultiLabelClassifier(config, C, L).double()
    for norm in (*attention.norms, *head.norms, head.norm):
        torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
        torch.nn.init.uniform_(norm.bias, -0.5, 0.5)
    regions, features = torch.randn(N, K, C).double(), torch.randn(N, K, C).double()

    def part(norm, label):
        """The batch norm of one attribute."""
        width = norm.num_features // L
        alone = torch.nn.BatchNorm1d(width).double()
        alone.weight.data, alone.bias.data = (
            values.data[label * width : (label + 1) * width] for values in (norm.weight, norm.bias)
        )
        return alone

    weights, attended = [], []
    for label in range(L):
        out = regions.flatten(0, 1)
        for layer, norm in zip(attention.layers, attention.norms, strict=True):
            out = torch.relu(part(norm, label)(out @ layer.weight[label]))
        weights.append(torch.softmax(out.view(N, K), 1))
        attended.append((weights[-1][:, :, None] * features).sum(1))
    shared = torch.nn.BatchNorm1d(C).double()
    shared.load_state_dict(head.norm.state_dict())
    normed = shared(torch.stack(attended, 1).flatten(0, 1)).view(N, L, C)
    logits = []
    for label in range(L):
        out = normed[:, label]
        for index, (layer, norm) in enumerate(zip(head.layers, head.norms, strict=True)):
            out = part(norm, label)(out @ layer.weight[label])
            out = torch.relu(out + normed[:, label] if index == 2 else out)
        logits.append(out @ head.weight[label] + head.bias[label])

    torch.testing.assert_close(attention(regions), torch.stack(weights, 1))
    torch.testing.assert_close(head(features, torch.stack(weights, 1)), torch.stack(logits, 1))


def test_dictionary_starts_at_clusters_of_the_features():
    model = build(dataclasses.replace(SMALL, grouping=GroupingConfig(num_parts=4, standardize=True))).train()
    model.initialize_dictionary(images(8), seed=0)
    assert model.training
    model.eval()
    x = model.standardization(model.backbone(images(8)))
    # Standardised: mean 0 and expected squared length 4.
    torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(256), atol=1e-5, rtol=0)
    assert x.square().sum(1).mean().item() == pytest.approx(4, rel=0.02)
    positions = x.permute(0, 2, 3, 1).flatten(0, 2).detach()
    inertia = torch.cdist(positions, model.dictionary.centers).min(1).values.square().sum().item()
    assert inertia < 1.1 * KMeans(4, n_init=10, random_state=0).fit(positions.numpy()).inertia_


def test_a_start_of_batches_sees_features_as_training_does():
    model = build(dataclasses.replace(SMALL, grouping=GroupingConfig(num_parts=4, standardize=True))).eval()
    before = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    modes = [module.training for module in model.modules()]
    model.initialize_dictionary(images(8), seed=0, of_batches=True)
    assert [module.training for module in model.modules()] == modes
    for name, value in model.backbone.state_dict().items():
        assert torch.equal(value, before[name]), name
    tested = model.backbone(images(8)).mean((0, 2, 3))
    trained = model.backbone.train()(images(8)).mean((0, 2, 3))
    torch.testing.assert_close(model.standardization.norm.running_mean, trained)
    assert not torch.allclose(trained, tested, rtol=0.01)


def test_fused_maps_have_the_same_share_of_the_squared_length():
    standardization = FeatureStandardization([20, 60]).double().train()
    x = standardization(5 + 3 * torch.randn(16, 80, 8, 8, dtype=torch.float64))
    # Of 4 in all: batch norm makes the mean square of every channel 1 but for its epsilon of 1e-5.
    for half in x.split([20, 60], 1):
        assert half.square().sum(1).mean().item() == pytest.approx(2, rel=1e-5)


def test_a_salient_start_finds_the_small_parts_that_stand_out():
    """A large body, whose shades k-means divides, and three small marks of bright colours; pixels are the features."""
    scenes = torch.full((8, 3, 128, 128), 60, dtype=torch.uint8)
    scenes += torch.arange(0, 128, dtype=torch.uint8).view(1, 1, 1, 128)
    marks = ((0, 16, 16), (1, 16, 96), (2, 96, 16))
    for channel, y, x in marks:
        scenes[:, channel, y : y + 16, x : x + 16] = 255
    grouping = GroupingConfig(num_parts=4, centered=True)

    def found(init):
        """In how many parts the marks are."""
        grouping_there = dataclasses.replace(grouping, init=init)
        model = build(dataclasses.replace(SMALL, grouping=grouping_there))
        model.backbone, model.dictionary = Shrunk(), PartDictionary(grouping_there, 3)
        model.initialize_dictionary(scenes, seed=0)
        strongest = model.dictionary.group(model.features(scenes))[0][0].argmax(0)
        return len({int(strongest[y // 16, x // 16]) for _, y, x in marks})

    assert (found("salient"), found("kmeans")) == (3, 2)


@pytest.mark.filterwarnings("ignore:One of the clusters is empty", "ignore:invalid value encountered in divide")
def test_a_salient_start_where_nothing_stands_out():
    grouping = GroupingConfig(num_parts=4, centered=True, init="salient")
    model = build(dataclasses.replace(SMALL, grouping=grouping))
    model.backbone, model.dictionary = Shrunk(), PartDictionary(grouping, 3)
    model.initialize_dictionary(torch.full((2, 3, 64, 64), 128, dtype=torch.uint8), seed=0)
    torch.testing.assert_close(model.dictionary.centers.detach(), torch.zeros(4, 3))


class Shrunk(torch.nn.Module):
    def forward(self, pixels):
        return torch.nn.functional.avg_pool2d(pixels / 255, 16)


def test_kmeans_needs_as_many_positions_as_parts():
    model = build()
    with pytest.raises(ValueError, match="num_parts"):
        model.initialize_dictionary(images(1, 16), seed=0)


def test_the_border_of_the_map_is_tracked_in_training_alone():
    dictionary = PartDictionary(GroupingConfig(num_parts=2, smoothing_padding="same"), 2).train()
    with torch.no_grad():
        dictionary.centers.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    x = torch.zeros(1, 2, 6, 6)
    x[:, 0] = 1
    x[:, :, 2:4, 2:4] = torch.tensor([0.0, 1.0]).view(1, 2, 1, 1)
    for _ in range(400):
        dictionary(x)
    # Both parts get sigmoid(+-4) where they are, (|x - d_1|^2 - |x - d_2|^2) / (2 sigma^2) = 2 / 0.5.
    near, far = torch.tensor([4.0, -4.0]).sigmoid()
    inside = torch.stack([4 * far + 12 * near, 4 * near + 12 * far]) / 16
    torch.testing.assert_close(dictionary.border, torch.stack([torch.stack([near, far]), inside]), rtol=1e-3, atol=1e-3)
    frozen = dictionary.eval().border.clone()
    dictionary(x.flip(1))
    assert torch.equal(dictionary.border, frozen)


def test_background_gathers_at_the_border_or_is_not_looked_at():
    model = build()
    model.dictionary.border.copy_(torch.tensor([[0.5, 0.2, 0.2, 0.1], [0.2, 0.3, 0.3, 0.2]]))
    model.attention_share.copy_(torch.tensor([0.3, 0.12, 0.4, 0.18]))
    assert model.background.tolist() == [True, True, False, False]


def test_the_share_of_attention_is_tracked_in_training_alone():
    model = build().train()
    expected = model.attention_share.clone()
    for _ in range(3):
        expected = 0.98 * expected + 0.02 * model(images()).attention.mean(0)
    torch.testing.assert_close(model.attention_share, expected)
    frozen = model.eval().attention_share.clone()
    model(images())
    assert torch.equal(model.attention_share, frozen)


def test_parameter_groups_are_disjoint_and_complete():
    model = build()
    backbone, new = model.parameter_groups()
    assert len({*map(id, backbone), *map(id, new)}) == len(backbone) + len(new) == len(list(model.parameters()))
    assert {id(parameter) for parameter in model.backbone.parameters()} == set(map(id, backbone))


@pytest.mark.parametrize("raw_sigma", [float("nan"), -1000.0])
def test_a_dictionary_that_training_has_spoilt_gives_a_loss_that_is_no_number(raw_sigma):
    dictionary = PartDictionary(GroupingConfig(num_parts=3, smoothing_padding="same"), channels=8)
    with torch.no_grad():
        dictionary.raw_sigma.fill_(raw_sigma)
    _, regions, occurrence = dictionary(torch.randn(2, 8, 5, 5))
    assert regions.isnan().all()
    assert occurrence.isnan().all()


def test_another_package_of_the_name_of_ours_is_told(monkeypatch, tmp_path):
    path = tmp_path / "kernels" / "__init__.py"
    path.parent.mkdir()
    path.touch()
    foreign = importlib.util.module_from_spec(importlib.util.spec_from_file_location("kernels", path))
    monkeypatch.setitem(sys.modules, "kernels", foreign)
    specification = importlib.util.spec_from_file_location("layers", layers.__file__)
    with pytest.raises(ImportError, match=rf"^{path}: expected the package kernels of region-grouping, got another"):
        specification.loader.exec_module(importlib.util.module_from_spec(specification))


def test_a_seed_gives_the_weights_that_it_gave():
    """Figures of the documentation name their seeds. These numbers are those of version 0.1.0."""
    torch.manual_seed(0)
    model = RegionGroupingModel(recipes.get("birds_lite0").model, 48)
    weights = model.classifier.linear.weight[0, :3].tolist()
    assert weights == pytest.approx([-0.00685516744852066, -0.027733124792575836, 0.023631848394870758], rel=1e-6)


def test_centred_assignment_does_not_see_what_all_positions_share():
    torch.manual_seed(0)
    config = GroupingConfig(num_parts=3, centered=True)
    dictionary = PartDictionary(config, 5).double()
    x, shift = torch.randn(2, 5, 4, 6, dtype=torch.float64), torch.randn(2, 5, 1, 1, dtype=torch.float64)
    assign, regions = dictionary.group(x)
    told_apart = x - x.mean((2, 3), keepdim=True)
    distance = ((told_apart.unsqueeze(1) - dictionary.centers[:, :, None, None]) ** 2).sum(2)
    expected = torch.softmax(-distance / (2 * dictionary.sigma**2)[:, None, None], 1)
    torch.testing.assert_close(assign, expected)
    mean = torch.einsum("nkhw,nchw->nkc", expected, x) / expected.sum((2, 3))[:, :, None]
    residual = (mean - dictionary.centers) / dictionary.sigma[:, None]
    torch.testing.assert_close(regions, residual / residual.norm(dim=2, keepdim=True))  # of features as they are
    torch.testing.assert_close(dictionary.group(x + shift)[0], assign)
