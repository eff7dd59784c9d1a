"""Taking true parts away, with models that need one known part, and contributions against the model itself."""

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_erosion
from torch import nn

from pipelines.batches.geometry import Geometry
from pipelines.drawn.birds import Birds, BirdsConfig
from pipelines.drawn.redraw import Scene
from rg.attribution.funnybirds import sufficient_sets
from rg.attribution.removal import Removal, Sight, covering_by_part
from rg.config import BackboneConfig, GroupingConfig, HeadConfig, ModelConfig
from rg.model.plain import PlainOutput
from rg.model.region_grouping import RegionGroupingModel

BIRDS = Birds(BirdsConfig(species=8, size=96, seed=1, occlusion=0.0), "test", 2)
WINDOW = Geometry(96, 96, "crop").central_window(96, 96)
CLASSES = torch.tensor([0])


def sight(index):
    return Sight(Scene(BIRDS, BIRDS[index]), WINDOW)


def shown(values):
    return lambda _, classes: values.expand(len(classes), -1, -1)


class NeedsOnePart(nn.Module):
    """Says the true class as long as the inner pixels of one part are those of one image, else the next."""

    def __init__(self, of, part):
        super().__init__()
        self.mask = torch.from_numpy(binary_erosion(of.parts[part], np.ones((3, 3))))
        self.pixels = of.image(frozenset()).float()
        self.label = of.scene.label

    def forward(self, images):
        differs = (images.float() - self.pixels).abs()[..., self.mask].mean((1, 2))
        logits = torch.zeros(len(images), 8)
        logits[:, self.label], logits[:, (self.label + 1) % 8] = 10 - differs, 9.0
        return PlainOutput(logits)


def heart(one, name):
    """Pixels of a part or thing that are near no other."""
    others = [mask for other, mask in one.near.items() if other != name]
    return {**one.parts, **one.things}[name] & ~np.any(others, axis=0)


def measured(part, **marked):
    """What a map is worth that gives some places a share of it, for a model that needs one part."""
    one = sight(3)
    hearts = {name: torch.from_numpy(heart(one, name)).float() for name in marked}
    values = sum(share * hearts[name] / hearts[name].sum() for name, share in marked.items())
    removal = Removal(NeedsOnePart(one, part), {"map": shown(values)}, 8)
    about = removal.values(["one"], [one], torch.tensor([one.scene.label]), {"map": values[None]}).figures()
    return one, about.pop("methods")["map"], about


@pytest.mark.parametrize("part", ["belly", "tail"])
def test_a_map_that_marks_what_the_model_needs_passes_every_check(part):
    one, of, about = measured(part, **{part: 1.0})
    assert (of["preservation"], of["deletion_check"], of["distractibility"]) == (1, 1, 1)
    assert of["outside"] == pytest.approx(0, abs=1e-6)
    assert about == {"background_independence": 1, "thing_independence": 1}
    sets = sufficient_sets(BIRDS.class_parts, one.scene.label, BIRDS.part_names)
    assert of["synthetic_data"] == max((part in names) / len(names) for names in sets)
    assert of["target_sensitivity"] is None  # no other class depends on anything


def test_a_map_that_marks_another_part_fails_them():
    one, of, _ = measured("belly", tail=1.0)
    assert (of["preservation"], of["deletion_check"]) == (0, 0)
    needless = len(one.parts) - 1 + len(one.things)  # all but the belly; the tail of them is called important
    assert of["distractibility"] == pytest.approx(1 - 1 / needless)


def test_a_thing_distracts_a_map_that_marks_it():
    thing = max(sight(3).things, key=lambda name: heart(sight(3), name).sum())
    one, of, _ = measured("belly", belly=0.4, **{thing: 0.6})
    assert (of["preservation"], of["deletion_check"]) == (1, 1)
    assert of["outside"] == pytest.approx(0.6)
    assert of["distractibility"] == pytest.approx(1 - 1 / (len(one.parts) - 1 + len(one.things)))


def test_a_thing_that_the_model_needs_is_no_independent_background():
    one = sight(3)
    thing = max(one.things, key=lambda name: one.things[name].sum())
    whole, without = (one.image(frozenset(hidden)).float() for hidden in ([], [thing]))

    class NeedsOneThing(nn.Module):
        def forward(self, images):
            changed = (whole - without).abs().sum(0) > 0
            differs = (images.float() - whole).abs()[..., changed].mean((1, 2))
            return PlainOutput((10 - differs)[:, None].expand(-1, 8))

    about = Removal(NeedsOneThing(), {}, 8).values(["one"], [one], CLASSES, {}).figures()
    assert about["thing_independence"] < 1
    assert about["thing_independence"] >= 1 - (1 + len(one.things) / 4) / len(one.things)  # it, and what it overlaps


class Linear(nn.Module):
    """Every class is a weighted sum of all pixels."""

    def __init__(self):
        super().__init__()
        self.weights = torch.randn(8, 3, 96, 96, generator=torch.Generator().manual_seed(0)).double()

    def forward(self, images):
        return PlainOutput(torch.einsum("nchw,kchw->nk", images.double() / 255, self.weights))


def test_single_deletion_is_one_for_a_map_that_knows_every_fall():
    one, model = sight(5), Linear()
    whole = model(one.image(frozenset())[None]).logits[0, 5]
    falls = [float(whole - model(one.image(frozenset([name]))[None]).logits[0, 5]) for name in one.parts]
    masks = [mask.astype(float) for mask in one.parts.values()]
    near = [one.near[name].astype(float) for name in one.parts]  # of two parts beside each other they overlap
    heights = np.linalg.solve(np.einsum("ihw,jhw->ij", near, masks), falls)
    knows = torch.from_numpy(np.einsum("j,jhw->hw", heights, masks)).float()
    removal = Removal(model, {"knows": shown(knows), "lies": shown(-knows)}, 4)
    by_method = removal.values(["one"], [one], CLASSES, {"knows": knows[None], "lies": -knows[None]}).figures()[
        "methods"
    ]
    assert by_method["knows"]["single_deletion"] == pytest.approx(1)
    assert by_method["lies"]["single_deletion"] == pytest.approx(-1)


def test_the_covering_part_and_its_fall_are_those_of_the_model():
    torch.manual_seed(0)
    config = ModelConfig(
        BackboneConfig(name="resnet18", weights="none"),
        GroupingConfig(num_parts=4, standardize=True, init="kmeans", smoothing_padding="same"),
        HeadConfig(region_channels=16, region_width=8, region_blocks=1, attention_width=8),
    )
    model = RegionGroupingModel(config, 8)
    sights = [sight(index) for index in (0, 6)]
    images = torch.stack([one.image(frozenset()) for one in sights])
    model.initialize_dictionary(images, 0)
    nn.init.zeros_(model.classifier.linear.bias)  # else no part is worth 5 % of a logit
    model.double().eval()
    classes = torch.tensor([2, 7])  # whatever the model says
    removal = Removal(model, {"flat": shown(torch.ones(6, 6))}, 3)
    values = removal.values(["a", "b"], sights, classes, {"flat": torch.ones(2, 6, 6)})
    covering = values.figures()["covering"]
    by_part, ends = covering_by_part(values, BIRDS.part_names)

    falls, others, most, counts, half = [], [], [], [], []
    with torch.no_grad():
        output = model(images)
        for n, one in enumerate(sights):
            whole = model.contributions(output, classes[:, None])[0][n, 0].numpy()
            up = nn.functional.interpolate(output.assign[n][None], (96, 96), mode="bilinear", align_corners=False)[0]
            for name in one.parts:
                without = model(one.image(frozenset([name]))[None])
                change = whole - model.contributions(without, classes[n][None, None])[0][0, 0].numpy()
                inside = (up * torch.from_numpy(one.parts[name])).sum((1, 2)) / one.parts[name].sum()
                k = int(inside.argmax())
                most.append(np.abs(change).argmax() == k)
                half.append(float(inside[k]) > 0.5)
                logits = [float(of.logits[n * (of is output), classes[n]]) for of in (output, without)]
                counts.append(logits[0] - logits[1] >= 0.05 * abs(logits[0]))
                falls.append(change[k])
                others.append(np.abs(np.delete(change, k)).mean())
    assert len(falls) == sum(of["pairs"] for of in by_part.values())
    assert covering["fall"] == pytest.approx(sum(of["fall"] * of["pairs"] for of in by_part.values()) / len(falls))
    for name, of in by_part.items():
        assert ends[name]["fall"][0] <= of["fall"] <= ends[name]["fall"][1]
    assert covering["fall"] == pytest.approx(np.mean(falls), abs=1e-5)
    assert covering["others"] == pytest.approx(np.mean(others), abs=1e-5)
    assert covering["chance"] == 0.25
    for name, expected in (("most", most), ("counts", counts), ("half", half)):
        assert covering[name] == pytest.approx(np.mean(expected))
    where = [a for a, b, c in zip(most, counts, half, strict=True) if b and c]
    assert covering["most_where_both"] == (pytest.approx(np.mean(where)) if where else None)
    assert np.std(falls) > 1e-4  # the parts of an untrained model differ, too
