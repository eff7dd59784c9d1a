"""The field's protocol on random data, against scikit-learn and plain loops; parts and landmarks may be missing."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LinearRegression
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from sklearn.preprocessing import StandardScaler

from pipelines.batches.loader import Batch
from pipelines.shards.manifest import Manifest
from rg.evaluation.field import FIGURES, field_metrics
from rg.evaluation.hits import consistency, hit_vectors, noisy
from rg.evaluation.tally import Tally
from rg.model.region_grouping import ModelOutput

K, P, T, CLASSES = 4, 5, 3, 3  # K parts, the last of them background
ROWS, COLUMNS = 28, 42
BACKGROUND = np.array([False] * (K - 1) + [True])
MANIFEST = Manifest(
    classes=tuple("abc"),
    landmarks=tuple("12345"),
    parts=tuple("xyz"),
    dataset="random",
    options={},
    seed=0,
    samples_per_shard=1,
    fields=("jpg", "cls", "json"),
    splits={},
)


def random_split(seed, images, *, empty=False, classes=CLASSES):
    """A tally, the batch and the maps: parts that are seldom active, a third of the landmarks invisible, one always."""
    rng = np.random.default_rng(seed)
    assign = np.exp(rng.normal(0, 0.6, (images, K, 4, 6)))
    assign = torch.from_numpy((assign / assign.sum(1, keepdims=True)).astype(np.float32))
    landmarks = rng.uniform(0, (COLUMNS, ROWS), (images, P, 2)).astype(np.float32)
    visible = rng.random((images, P)) < 0.67
    visible[:, 2] = False
    first = rng.uniform(0, 10, (images, 2))
    boxes = np.concatenate([first, first + rng.uniform(8, 18, (images, 2))], axis=1)
    part_maps = np.zeros((images, ROWS, COLUMNS)) if empty else rng.integers(0, T + 1, (images, ROWS, COLUMNS))
    batch = Batch(
        torch.zeros(images, 3, ROWS, COLUMNS, dtype=torch.uint8),
        torch.from_numpy(rng.integers(0, classes, images)),
        [f"{seed}-{n}" for n in range(images)],
        torch.from_numpy(landmarks),
        torch.from_numpy(visible),
        [box[None] for box in boxes],
        torch.from_numpy(part_maps.astype(np.uint8)),
    )
    even = torch.full((images, K), 1 / K)
    tally = Tally(MANIFEST, num_parts=K - 1)
    other = torch.from_numpy(rng.permuted(assign.numpy(), axis=0))
    tally.hit(batch, assign, torch.where(torch.arange(images)[:, None, None, None] % 2 == 0, assign, other))
    tally.add(batch, ModelOutput(torch.zeros(images, CLASSES), assign, even, even, torch.empty(0)))
    return tally, batch, assign.double().numpy()


def expected_keypoint_error(fit, test):
    """Image by image and landmark by landmark, with scikit-learn; cells of the map counted from 0."""

    def look(data):
        _, batch, assign = data
        features, active, targets = [], [], []
        for n, maps in enumerate(assign):
            x0, y0, x1, y1 = batch.boxes[n][0]
            row, flags = [], []
            for part in maps[: K - 1]:
                x = sum(c * part[r, c] for r in range(4) for c in range(6)) / part.sum() * COLUMNS / 6
                y = sum(r * part[r, c] for r in range(4) for c in range(6)) / part.sum() * ROWS / 4
                row += [(x - x0) / (x1 - x0), (y - y0) / (y1 - y0)]
                flags += [part.max() > 0.5] * 2
            features.append(row)
            active.append(flags)
            points = batch.landmarks[n].double().numpy()
            targets.append([[(x - x0) / (x1 - x0), (y - y0) / (y1 - y0)] for x, y in points])
        return np.array(features), np.array(active), np.array(targets), batch.visibility.numpy()

    (a, active, b, visible), (c, tested_active, d, tested_visible) = look(fit), look(test)
    assert 0.1 < active.mean() < 0.9
    errors = []
    for p in range(P):
        rows, tested = visible[:, p], tested_visible[:, p]
        if not tested.any():
            continue
        x, y = StandardScaler().fit(a[rows]), StandardScaler().fit(b[rows, p])
        regression = LinearRegression(fit_intercept=False)
        regression.fit(np.where(active[rows], x.transform(a[rows]), 0), y.transform(b[rows, p]))
        predicted = regression.predict(np.where(tested_active[tested], x.transform(c[tested]), 0))
        errors += np.hypot(*(y.inverse_transform(predicted) - d[tested, p]).T).tolist()
    return np.mean(errors)


def expected_hits(batch, assign):
    up = F.interpolate(torch.from_numpy(assign).float(), (ROWS, COLUMNS), mode="bicubic", align_corners=False).numpy()
    hits = np.zeros((len(assign), K, P), bool)
    for n in range(len(assign)):
        for k in range(K):
            row, column = np.unravel_index(up[n, k].argmax(), (ROWS, COLUMNS))
            for p in range(P):
                x, y = map(math.floor, batch.landmarks[n, p].tolist())
                inside = abs(x - column) <= COLUMNS * 36 / 224 and abs(y - row) <= ROWS * 36 / 224
                hits[n, k, p] = inside and bool(batch.visibility[n, p])
    return hits


def expected_consistency(hits, visible, labels):
    consistent = []
    for label in set(labels.tolist()):
        for k in range(hits.shape[1]):
            best = 0.0
            for p in range(P):
                images = [n for n in range(len(labels)) if labels[n] == label and visible[n, p]]
                if images:
                    best = max(best, sum(hits[n, k, p] for n in images) / len(images))
            consistent.append(best >= 0.8)
    return np.mean(consistent)


@pytest.mark.parametrize(("classes", "images"), [(CLASSES, 60), (1, 9)])
def test_every_figure_is_that_of_plain_loops_and_scikit_learn(classes, images):
    fit, test = random_split(0, 120), random_split(1, images, classes=classes)
    tally, batch, assign = test
    figures, ends = field_metrics(fit[0], tally, tally, BACKGROUND, "box")
    assert tuple(figures) == FIGURES
    visible, labels = batch.visibility.numpy(), batch.labels.numpy()
    expected = {"keypoint_error": expected_keypoint_error(fit, test)}

    up = F.interpolate(torch.from_numpy(assign), (ROWS, COLUMNS), mode="bilinear", align_corners=False).argmax(1)
    truth = batch.part_maps.numpy()
    expected["pixel_nmi"] = normalized_mutual_info_score(truth.ravel(), up.numpy().ravel())
    expected["pixel_ari"] = adjusted_rand_score(truth.ravel(), up.numpy().ravel())
    pairs = list(zip((truth > 0), (up.numpy() < K - 1), strict=True))
    expected["foreground_iou"] = np.mean([(a & b).sum() / (a | b).sum() for a, b in pairs])

    hits = expected_hits(batch, assign)
    assert 0.02 < hits.mean() < 0.5
    expected["consistency"] = expected_consistency(hits[:, : K - 1], visible, labels)
    unchanged = torch.cat(tally.unchanged).numpy()
    assert unchanged[::2].all()
    assert not unchanged.all()
    expected["stability"] = unchanged[:, : K - 1].mean()
    assert np.array_equal(torch.cat(tally.hits).numpy(), hits)
    for name, value in expected.items():
        assert figures[name] == pytest.approx(value, rel=1e-4, abs=1e-9), name
    for name, (low, high) in ends.items():
        assert low < high, name
        assert low <= figures[name] <= high or "nmi" in name  # which is higher of images that are drawn twice
    assert set(ends) == set(FIGURES) - {"consistency"}


def test_landmarks_take_the_part_of_the_up_sampled_maps():
    """NMI and ARI at landmarks, in both protocols: bilinear up-sampling to the image, argmax, at visible landmarks."""
    tally, batch, assign = random_split(2, 80)
    pixels = batch.landmarks.floor() + 0.5  # where the up-sampled maps have values
    batch.landmarks.copy_(pixels)
    tally = Tally(MANIFEST, num_parts=K - 1)
    maps = torch.from_numpy(assign).float()
    even = torch.full((80, K), 1 / K)
    tally.add(batch, ModelOutput(torch.zeros(80, CLASSES), maps, even, even, torch.empty(0)))
    up = F.interpolate(maps, (ROWS, COLUMNS), mode="bilinear", align_corners=False).argmax(1)
    predicted, truth = [], []
    for n, p in batch.visibility.nonzero().tolist():
        column, row = batch.landmarks[n, p].long().tolist()
        predicted.append(int(up[n, row, column]))
        truth.append(p)
    figures, _ = field_metrics(random_split(0, 90)[0], tally, tally, BACKGROUND, "box")
    assert figures["nmi"] == pytest.approx(normalized_mutual_info_score(truth, predicted))
    assert figures["ari"] == pytest.approx(adjusted_rand_score(truth, predicted))
    assert figures["landmarks_on_object"] == pytest.approx(np.mean(np.array(predicted) < K - 1))
    assert figures["stability"] is figures["consistency"] is None  # not asked for


def test_what_cannot_be_told_is_none():
    tally, batch, assign = random_split(3, 8, empty=True)
    figures, ends = field_metrics(None, tally, tally, np.ones(K, bool), "box")
    assert {name for name, value in figures.items() if value is not None} == {"pixel_nmi", "pixel_ari"} == set(ends)
    hits = hit_vectors(torch.from_numpy(assign), batch.landmarks, torch.zeros(8, P, dtype=bool), (ROWS, COLUMNS))
    assert consistency(hits.numpy(), np.zeros((8, P), bool), batch.labels.numpy()) is None


def test_consistent_from_four_images_of_five():
    hits = np.zeros((6, 2, 1), bool)
    hits[:4, 0] = hits[:3, 1] = True
    visible = np.ones((6, 1), bool)
    visible[5] = False  # does not count
    assert consistency(hits, visible, np.zeros(6, int)) == 0.5


def test_noise_depends_on_the_number_of_an_image_and_nothing_else():
    images = torch.randint(0, 256, (5, 3, 31, 17), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    std = torch.tensor([50.0, 60, 70]).view(1, 3, 1, 1)
    whole = noisy(images, range(5), std)
    assert torch.equal(whole[[3, 0]], noisy(images[[3, 0]], [3, 0], std))
    noise = (whole - images) / std
    assert noise.abs().max() <= 0.25 + 1e-5
    clipped = np.clip(np.random.default_rng(0).normal(0, 0.2, 200_000), -0.25, 0.25)
    assert noise.mean().item() == pytest.approx(0, abs=0.01)
    assert noise.std().item() == pytest.approx(clipped.std(), rel=0.03)
    assert not torch.equal(noise[0], noise[1])
