"""Roll-up against loops and scikit-learn, and what holds of any taxonomy."""

import tracemalloc

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.metrics import accuracy_score

from rg.evaluation import rows
from rg.evaluation.rollup import Level, accuracies, levels, roll_up

TAXONOMY = {
    "Anas crecca": "Aves",
    "Anas crecca carolinensis": "Aves",
    "Anas platyrhynchos": "Aves",
    "Morus bassanus": "Aves",
    "Morus alba": "Plantae",
    "Quercus \N{MULTIPLICATION SIGN} bebbiana": "Plantae",
    "Quercus alba": "Plantae",
    "\N{MULTIPLICATION SIGN}Cupressocyparis leylandii": "Plantae",
    "Polygonia c-album": "Insecta",
    "Isoëtes lacustris": "Plantae",
    "Salmo cf. trutta": "Actinopterygii",
}
CLASSES, FAMILIES = tuple(TAXONOMY), tuple(TAXONOMY.values())


def draw(seed: int, images: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are often right, and labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, len(CLASSES), images)
    logits = rng.normal(size=(images, len(CLASSES)))
    logits[np.arange(images), labels] += 1
    return logits.astype(np.float32), labels


def named(level: Level) -> list[str]:
    """The group of every class."""
    return [level.groups[group] for group in level.index]


def test_genera_are_first_words_and_those_of_two_kingdoms_are_two():
    genera = ["Anas"] * 3 + ["Morus (Aves)", "Morus (Plantae)", "Quercus", "Quercus", "Cupressocyparis"]
    genera += ["Polygonia", "Isoëtes", "Salmo"]
    found = levels(CLASSES, FAMILIES)
    assert list(found) == ["genus", "super_category"]
    assert named(found["genus"]) == genera
    assert named(found["super_category"]) == list(FAMILIES)
    for level in found.values():
        assert list(level.groups) == sorted(set(named(level)))
        assert level.index.dtype == np.int64


def test_without_super_categories_a_shared_name_is_one_genus():
    found = levels(CLASSES, ())
    assert list(found) == ["genus"]
    assert found["genus"].groups.count("Morus") == 1
    assert found["genus"].index[3] == found["genus"].index[4]


@pytest.mark.parametrize("other", ["Anas", "wren", "anas crecca", "Blue Jay", "001.Black_footed_Albatross", "", " "])
def test_one_name_that_is_no_binomial_leaves_no_genus(other):
    assert list(levels((*CLASSES, other), (*FAMILIES, "Aves"))) == ["super_category"]


def test_a_single_group_is_no_level():
    assert levels(("Anas crecca", "Anas acuta"), ("Aves", "Aves")) == {}
    assert levels(("wren", "tit"), ()) == {}


def test_super_categories_are_one_per_class():
    with pytest.raises(ValueError, match="super_categories: expected one for each of 2 classes, got 1"):
        levels(("wren", "tit"), ("Aves",))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_groups_add_up_their_classes(dtype):
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.full(len(CLASSES), 0.3), 50).astype(dtype)
    for level in levels(CLASSES, FAMILIES).values():
        expected = np.zeros((50, len(level.groups)))
        for n in range(50):
            for label, group in enumerate(level.index):
                expected[n, group] += float(probabilities[n, label])
        found = roll_up(probabilities, level)
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, expected, rtol=1e-14)
        np.testing.assert_allclose(found.sum(1), probabilities.sum(1, dtype=np.float64), rtol=1e-14)


def test_a_group_without_classes_has_no_probability():
    level = Level(("none", "all", "none either"), np.array([1, 1]))
    assert roll_up(np.array([[0.25, 0.75]]), level).tolist() == [[0, 1, 0]]


def test_rolling_up_in_two_steps_is_rolling_up_at_once():
    genus, top = levels(CLASSES, FAMILIES).values()
    step = Level(top.groups, np.array([top.index[genus.index == group][0] for group in range(len(genus.groups))]))
    probabilities = softmax(draw(1)[0].astype(float), axis=1)
    np.testing.assert_allclose(roll_up(roll_up(probabilities, genus), step), roll_up(probabilities, top), rtol=1e-13)


def test_the_level_is_one_of_the_classes():
    level = levels(CLASSES, FAMILIES)["genus"]
    with pytest.raises(ValueError, match=r"probabilities: expected \[N, 11\], got \[2, 10\]"):
        roll_up(np.ones((2, 10)), level)
    with pytest.raises(ValueError, match=r"probabilities: expected \[N, 11\], got \[11\]"):
        roll_up(np.ones(11), level)


@pytest.mark.parametrize("seed", range(4))
def test_accuracies_are_those_of_sklearn(seed):
    logits, labels = draw(seed)
    probabilities = softmax(logits.astype(float), axis=1)
    found = levels(CLASSES, FAMILIES)
    measured = accuracies(logits, labels, found)
    assert list(measured) == list(found)
    for name, level in found.items():
        names = np.array(named(level))
        sums = [[row[names == group].sum() for group in level.groups] for row in probabilities]
        answers = [level.groups[np.argmax(row)] for row in sums]
        assert measured[name] == pytest.approx(
            {
                "accuracy": accuracy_score(names[labels], answers),
                "accuracy_of_best_class": accuracy_score(names[labels], names[logits.argmax(1)]),
            },
            abs=1e-12,
        )


@pytest.mark.parametrize("seed", range(4))
def test_coarser_is_never_harder(seed):
    logits, labels = draw(seed)
    measured = accuracies(logits, labels, levels(CLASSES, FAMILIES))
    shares = [accuracy_score(labels, logits.argmax(1)), *(one["accuracy_of_best_class"] for one in measured.values())]
    assert shares == sorted(shares)


def test_groups_may_outweigh_the_best_class():
    level = {"genus": Level(("A", "B"), np.array([0, 1, 1]))}
    logits = np.log([[0.4, 0.3, 0.3]])
    assert accuracies(logits, np.array([2]), level)["genus"] == {"accuracy": 1, "accuracy_of_best_class": 0}
    assert accuracies(logits, np.array([0]), level)["genus"] == {"accuracy": 0, "accuracy_of_best_class": 1}


def test_neither_order_nor_constants_nor_blocks_matter(monkeypatch):
    logits, labels = draw(5)
    expected = accuracies(logits, labels, levels(CLASSES, FAMILIES))
    rng = np.random.default_rng(0)
    images, order = rng.permutation(len(labels)), rng.permutation(len(CLASSES))
    shuffled = levels([CLASSES[label] for label in order], [FAMILIES[label] for label in order])
    same = accuracies(logits[images][:, order], np.argsort(order)[labels[images]], shuffled)
    assert same == expected
    offsets = rng.integers(-1000, 1000, (len(labels), 1))
    assert accuracies(logits.astype(float) + offsets, labels, levels(CLASSES, FAMILIES)) == expected
    for size in (1, 70, logits.size):
        monkeypatch.setattr(rows, "BLOCK", size)
        assert accuracies(logits, labels, levels(CLASSES, FAMILIES)) == expected


def test_many_classes_are_never_in_float64_all_at_once(monkeypatch):
    monkeypatch.setattr(rows, "BLOCK", 1 << 14)
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2000, 500)).astype(np.float32)
    level = Level(tuple(map(str, range(50))), np.arange(500) % 50)
    tracemalloc.start()
    try:
        accuracies(logits, rng.integers(0, 500, 2000), {"genus": level})
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < logits.size * 8 / 4


@pytest.mark.parametrize(
    "logits,labels,message",
    [
        (np.zeros((0, 3)), np.zeros(0, int), r"logits: expected \[N, C\], got \[0, 3\]"),
        (np.zeros(3), np.zeros(3, int), r"logits: expected \[N, C\], got \[3\]"),
        (np.array([[0, np.nan, 0]]), np.zeros(1, int), "logits: expected finite values, got nan to nan"),
        (np.array([[0, 1, np.inf]]), np.zeros(1, int), "logits: expected finite values, got 0.0 to inf"),
        (np.zeros((2, 3)), np.zeros((2, 3), int), r"labels: expected \[2\], got \[2, 3\]"),
        (np.zeros((2, 3)), np.array([0, 3]), "labels: expected 0 to 2, got 0 to 3"),
        (np.zeros((2, 3)), np.array([-1, 2]), "labels: expected 0 to 2, got -1 to 2"),
    ],
)
def test_what_cannot_be_measured_is_refused(logits, labels, message):
    with pytest.raises(ValueError, match=message):
        accuracies(logits, labels, {"genus": Level(("A", "B"), np.array([0, 1, 1]))})
