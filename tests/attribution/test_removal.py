"""Taking true parts away, with models that need one known part, and contributions against the model itself."""

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_erosion
from torch import nn

from pipelines.batches.geometry import Geometry
from pipelines.drawn.birds import Birds, BirdsConfig
from pipelines.drawn.redraw import Scene
from pipelines.drawn.split import SCENERY
from rg.attribution.removal import Removal, Sight, covering_by_part
from rg.config import BackboneConfig, GroupingConfig, HeadConfig, ModelConfig
from rg.model.plain import PlainOutput
from rg.model.region_grouping import RegionGroupingModel

BIRDS = Birds(BirdsConfig(species=8, size=96, seed=1, occlusion=0.0), "test", 2)
WINDOW = Geometry(96, 96, "crop").central_window(96, 96)
CLASSES = torch.tensor([0])


def sight(index):
    return Sight(Scene(BIRDS, BIRDS[index]), WINDOW)


class NeedsOnePart(nn.Module):
    """Says class 0 as long as the inner pixels of one part are those of one image, else class 1."""

    def __init__(self, of, part):
        super().__init__()
        self.mask = torch.from_numpy(binary_erosion(of.masks[part], np.ones((3, 3))))
        self.pixels = of.image(frozenset()).float()

    def forward(self, images):
        differs = (images.float() - self.pixels).abs()[..., self.mask].mean((1, 2))
        return PlainOutput(torch.stack([10 - differs, torch.full_like(differs, 9.0)], dim=1))


def measured(part, *marked):
    """What a map is worth that marks some parts, for a model that needs one."""
    one = sight(3)
    removal = Removal(NeedsOnePart(one, part), 8)
    values = sum(torch.from_numpy(one.masks[name]).float() for name in marked)
    about = removal.values(["one"], [one], CLASSES, {"map": values[None]}).figures()
    return one, about.pop("methods")["map"], about


@pytest.mark.parametrize("part", ["belly", "tail"])
def test_a_map_that_marks_what_the_model_needs_passes_every_check(part):
    _, of, about = measured(part, part)
    assert (of["preservation"], of["deletion_check"], of["distractibility"], of["outside"]) == (1, 1, 1, 0)
    assert about == {"background_independence": 1}


def test_a_map_that_marks_another_part_fails_them():
    one, of, _ = measured("belly", "tail")
    assert (of["preservation"], of["deletion_check"], of["outside"]) == (0, 0, 0)
    needless = len(one.masks) - 1  # all parts but the belly, and the scenery; the tail of them is called important
    assert of["distractibility"] == pytest.approx(1 - 1 / needless)


def test_the_scenery_distracts_a_map_that_marks_it():
    one, of, _ = measured("belly", "belly", SCENERY)
    assert (of["preservation"], of["deletion_check"]) == (1, 1)
    share = one.masks[SCENERY].sum() / (one.masks[SCENERY].sum() + one.masks["belly"].sum())
    assert of["outside"] == pytest.approx(share, abs=1e-6)
    assert of["distractibility"] == pytest.approx(1 - 1 / (len(one.masks) - 1))


class Linear(nn.Module):
    """Class 0 is a weighted sum of all pixels."""

    def __init__(self):
        super().__init__()
        self.weights = torch.randn(3, 96, 96, generator=torch.Generator().manual_seed(0)).double()

    def forward(self, images):
        score = (images.double() / 255 * self.weights).sum((1, 2, 3))
        return PlainOutput(torch.stack([score, score - 1], dim=1))


def test_single_deletion_is_one_for_a_map_that_knows_every_fall():
    one, model = sight(5), Linear()
    whole = model(one.image(frozenset())[None]).logits[0, 0]
    knows = torch.zeros(96, 96)
    for name in one.parts:
        mask = torch.from_numpy(one.masks[name])
        fall = whole - model(one.image(frozenset([name]))[None]).logits[0, 0]
        knows[mask] = (fall / mask.sum()).float()
    removal = Removal(model, 4)
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
    model.eval()
    classes = torch.tensor([2, 7])
    removal = Removal(model, 3)
    values = removal.values(["a", "b"], sights, classes, {"flat": torch.ones(2, 6, 6)})
    covering = values.figures()["covering"]
    by_part, ends = covering_by_part(values, BIRDS.part_names)

    falls, others = [], []
    with torch.no_grad():
        output = model(images)
        for n, one in enumerate(sights):
            whole = model.contributions(output, classes[:, None])[0][n, 0].numpy()
            up = nn.functional.interpolate(output.assign[n][None], (96, 96), mode="bilinear", align_corners=False)[0]
            for name in one.parts:
                without = model(one.image(frozenset([name]))[None])
                change = whole - model.contributions(without, classes[n][None, None])[0][0, 0].numpy()
                k = int((up * torch.from_numpy(one.masks[name])).sum((1, 2)).argmax())
                falls.append(change[k])
                others.append(np.abs(np.delete(change, k)).mean())
    assert len(falls) == sum(of["pairs"] for of in by_part.values())
    assert covering["fall"] == pytest.approx(sum(of["fall"] * of["pairs"] for of in by_part.values()) / len(falls))
    for name, of in by_part.items():
        assert ends[name]["fall"][0] <= of["fall"] <= ends[name]["fall"][1]
    assert covering["fall"] == pytest.approx(np.mean(falls), abs=1e-5)
    assert covering["others"] == pytest.approx(np.mean(others), abs=1e-5)
    assert covering["chance"] == 0.25
    assert np.std(falls) > 1e-4  # the parts of an untrained model differ, too
