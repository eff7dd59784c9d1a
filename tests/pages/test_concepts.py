"""What is said of parts, against loops over images, quantiles of scipy and parts of which something is known."""

import numpy as np
import pytest
from scipy.stats import beta
from scipy.stats.mstats import mquantiles

from rg.evaluation.parts import ADVICE, mostly_background, problems
from rg.explain.contributions import NOTABLE
from rg.pages import charts
from rg.pages.charts import QUANTILE_HEIGHT, QUANTILE_WIDTH, QUANTILES, quantile_path
from rg.pages.concepts import class_means, concepts, prior_path
from rg.pages.predictions import Predictions
from rg.runs.part_names import Part

CLASSES = ("wren", "robin", "jay", "rook", "owl", "never seen")
K = 3


def points(path: str) -> np.ndarray:
    """Coordinates [M, 2] of an SVG path, from 0 to 1 and upwards."""
    all_concepts = np.array([point.split() for point in path[1:].split("L")], float)
    return np.stack([all_concepts[:, 0] / QUANTILE_WIDTH, 1 - all_concepts[:, 1] / QUANTILE_HEIGHT], axis=1)


@pytest.fixture
def predictions():
    rng = np.random.default_rng(0)
    labels = rng.integers(len(CLASSES) - 1, size=40)
    contributions = np.stack([rng.normal(size=40), 0.001 * rng.random(40), 2 + rng.random(40)], axis=1)
    area = np.full((40, K), 0.3)
    return Predictions(["key"] * 40, labels, labels, np.ones(40), labels, rng.random((40, K)), area, contributions)


@pytest.fixture
def all_concepts(predictions):
    parts = (Part(0, "crown", False, named=True), Part(1, "part 1", True), Part(2, "part 2", False))
    states = ("in use", "dead", "duplicate of part 0")
    return concepts(parts, [{"state": state} for state in states], predictions, CLASSES)


def test_means_are_those_of_the_images_of_a_class(predictions):
    means = class_means(predictions, len(CLASSES))
    assert means.shape == (len(CLASSES), K)
    assert np.isnan(means[-1]).all()
    for c in range(len(CLASSES) - 1):
        of_class = predictions.contributions[predictions.explained == c]
        assert means[c] == pytest.approx(np.mean(of_class, axis=0))


def test_classes_are_ranked_by_what_a_part_adds(predictions, all_concepts):
    means = class_means(predictions, len(CLASSES))[:-1]
    for k, concept in enumerate(all_concepts):
        adds = dict(zip(CLASSES, means[:, k], strict=False))
        ranked = sorted(adds, key=lambda name, adds=adds: -adds[name])
        assert [one.label for one in concept.matters] == [name for name in ranked[:3] if adds[name] >= NOTABLE]
        assert [one.label for one in concept.against] == [name for name in ranked[::-1][:3] if adds[name] <= -NOTABLE]
        assert concept.separation == pytest.approx(np.std(means[:, k]))
        for one in concept.matters + concept.against:
            assert one.contribution == pytest.approx(adds[one.label])
            assert one.difference == pytest.approx(adds[one.label] - np.mean(means[:, k]))
    assert all_concepts[0].matters
    assert all_concepts[0].against
    assert not all_concepts[1].matters + all_concepts[1].against  # it adds less than what is notable
    assert len(all_concepts[2].matters) == 3
    assert not all_concepts[2].against


def test_a_part_with_a_name_and_a_fault(all_concepts):
    assert [concept.title for concept in all_concepts] == ["Crown", "Part 1", "Part 2"]
    assert [concept.advice for concept in all_concepts] == ["", ADVICE["dead"], ADVICE["duplicate"]]


def test_curves_are_the_sorted_occurrence(predictions, all_concepts):
    for k, concept in enumerate(all_concepts):
        occurrence = sorted(predictions.occurrence[:, k])
        places = (np.arange(40) + 0.5) / 40
        assert points(concept.curve) == pytest.approx(np.stack([places, occurrence], axis=1), abs=1e-3)


def test_many_images_are_told_by_quantiles():
    values = np.random.default_rng(1).beta(2, 0.5, 12_345)
    levels, heights = points(quantile_path(values)).T
    assert len(levels) == QUANTILES
    assert heights == pytest.approx(mquantiles(values, levels, alphap=0.5, betap=0.5), abs=1e-3)  # Hazen's
    levels, heights = points(prior_path(12_345, 2, 0.5)).T
    assert heights == pytest.approx(beta.ppf(levels, 2, 0.5), abs=2e-3)  # the picture is 60 units high
    assert charts.quantile_path(np.ones(1)) == "M130.0 0.0"


def test_problems_are_named():
    parts = [{"name": name, "state": "in use", "background": False} for name in ("crown", "wing", "tail", "sky")]
    assert problems(parts) == []
    parts[1]["state"] = "dead"
    parts[2]["state"] = "duplicate of part 0"
    parts[3] = parts[3] | {"state": "everywhere", "background": True}
    kinds = ("dead", "duplicate", "everywhere")
    assert problems(parts) == [
        (f"{kind}: {name}.", ADVICE[kind.lower()])
        for kind, name in zip(("Dead", "Duplicate", "Everywhere"), ("wing", "tail", "sky"), strict=True)
    ]
    assert {ADVICE[kind] for kind in kinds} == {advice for _, advice in problems(parts)}
    assert mostly_background([True, True, False]) == []
    assert mostly_background([True, True, True, False]) == [("3 of 4 parts are background.", ADVICE["background"])]
