"""The landmark protocols of the paper, against scikit-learn written out by hand on random images."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression
from sklearn.preprocessing import StandardScaler

from pipelines.batches.loader import Batch
from pipelines.shards.manifest import Manifest
from rg.config import EvaluationConfig
from rg.evaluation.tally import Tally, landmark_metrics
from rg.model.region_grouping import ModelOutput

K, P, CLASSES = 3, 4, ("a", "b", "c")
MANIFEST = Manifest(
    classes=CLASSES,
    landmarks=("left eye", "right eye", "nose", "tail"),
    dataset="random",
    options={},
    seed=0,
    samples_per_shard=1,
    fields=("jpg", "cls", "json"),
    splits={},
)


def random_tally(seed, images=60, shape=(40, 56), corner=False):
    """Random assignment maps, boxes on some images only, landmarks of which a third is invisible."""
    rng = np.random.default_rng(seed)
    rows, columns = shape
    generator = torch.Generator().manual_seed(seed)
    assign = torch.softmax(3 * torch.randn(images, K, 5, 7, generator=generator), 1)
    landmarks = rng.uniform(0, (columns, rows), (images, P, 2)).astype(np.float32)
    visible = rng.random((images, P)) < 0.67
    first = rng.uniform(0, 15, (images, 2))
    boxes = np.concatenate([first, first + rng.uniform(10, 24, (images, 2))], axis=1)
    batch = Batch(
        torch.zeros(images, 3, rows, columns, dtype=torch.uint8),
        torch.from_numpy(rng.integers(0, len(CLASSES), images)),
        [f"{seed}-{n}" for n in range(images)],
        torch.from_numpy(landmarks),
        torch.from_numpy(visible),
        [box[None] if n % 4 else np.empty((0, 4)) for n, box in enumerate(boxes)],
    )
    even = torch.full((images, K), 1 / K)
    tally = Tally(MANIFEST, corner=corner)
    tally.add(batch, ModelOutput(torch.zeros(images, len(CLASSES)), assign, even, even, torch.empty(0)))
    return tally, batch, assign.double().numpy()


def centroids(assign, shape, first):
    """The first cell is at ``first`` times its size: a half; or 1 as in the authors' code, which counts from 1."""
    rows, columns = shape
    x = (first + np.arange(assign.shape[3])) * columns / assign.shape[3]
    y = (first + np.arange(assign.shape[2])) * rows / assign.shape[2]
    mass = assign.sum((2, 3))
    return np.stack([(assign.sum(2) * x).sum(2) / mass, (assign.sum(3) * y).sum(2) / mass], axis=2)


def boxed(batch):
    return np.array([len(boxes) > 0 for boxes in batch.boxes])


def predicted(fit, test, p):
    """Standardise, regress, undo: landmark p where it is visible; -> rows of test, their predictions."""
    (fit_x, fit_y, fit_v), (test_x, _, test_v) = fit, test
    scale_x, scale_y = StandardScaler().fit(fit_x[fit_v[:, p]]), StandardScaler().fit(fit_y[fit_v[:, p], p])
    regression = LinearRegression()
    regression.fit(scale_x.transform(fit_x[fit_v[:, p]]), scale_y.transform(fit_y[fit_v[:, p], p]))
    seen = np.flatnonzero(test_v[:, p])
    return seen, scale_y.inverse_transform(regression.predict(scale_x.transform(test_x[seen])))


def in_boxes(data, shape=(40, 56), first=0.5, label=None):
    """Of the images that have a box, or of those of one class."""
    _, batch, assign = data
    kept = boxed(batch) if label is None else boxed(batch) & (batch.labels.numpy() == label)
    boxes = np.stack([boxes[0] for boxes, keep in zip(batch.boxes, kept, strict=True) if keep])
    origin, size = boxes[:, None, :2], boxes[:, None, 2:] - boxes[:, None, :2]
    centers = (centroids(assign, shape, first)[kept] - origin) / size
    landmarks, visibility = batch.landmarks.numpy()[kept], batch.visibility.numpy()[kept]
    return centers.reshape(len(centers), -1), (landmarks - origin) / size, visibility


def pooled(fit, test):
    errors = []
    for p in range(P):
        seen, found = predicted(fit, test, p)
        errors += list(np.linalg.norm(found - test[1][seen, p], axis=1))
    return np.mean(errors)


@pytest.mark.parametrize("first", [0.5, 1])
def test_cub_regression_relative_to_the_box_pooled_over_visible_landmarks(first):
    fit, test = random_tally(0, 200, corner=first == 1), random_tally(1, corner=first == 1)
    result, errors = landmark_metrics(fit[0], test[0], EvaluationConfig(), CLASSES)
    expected, other = (pooled(*(in_boxes(data, first=start) for data in (fit, test))) for start in (first, 1.5 - first))
    assert result["landmark_error"] == pytest.approx(expected, rel=1e-4)
    assert result["landmark_error"] != pytest.approx(other, rel=3e-4)
    assert set(errors) == set(test[1].keys)
    measurable = test[1].visibility.numpy() & boxed(test[1])[:, None]
    assert 0 < (~boxed(test[1])).sum() < 60
    assert np.isnan(np.stack(list(errors.values()))).tolist() == (~measurable).tolist()
    assert result["landmark_images"] == measurable.any(1).sum()


def test_images_without_a_box_have_no_error_of_the_box():
    """An error of the whole image is another quantity: neither it nor its regression may leak in."""
    (fit, *_), (test, *_) = random_tally(0, 200), random_tally(1)
    result, errors = landmark_metrics(fit, test, EvaluationConfig(), CLASSES)
    for tally in (fit, test):
        for n in np.flatnonzero(tally.boxes[0].isnan().any(1)):
            tally.landmarks[0][n] += 1000
            tally.centers[0][n] += 1000
    assert landmark_metrics(fit, test, EvaluationConfig(), CLASSES)[0] == result
    test.boxes = [torch.full_like(boxes, torch.nan) for boxes in test.boxes]
    result, errors = landmark_metrics(fit, test, EvaluationConfig(), CLASSES)
    assert result["landmark_error"] is result["mean_shape_error"] is None
    assert (result["landmark_images"], set(result["landmark_errors"].values())) == (0, {None})
    assert np.isnan(np.stack(list(errors.values()))).all()


def test_cub_classes_alone():
    """The columns of Table 4: fitted and tested on the images of one class."""
    fit, test = random_tally(0, 200), random_tally(1, 90)
    result, _ = landmark_metrics(fit[0], test[0], EvaluationConfig(landmark_classes=(0, 2)), CLASSES)
    assert list(result["landmark_errors_alone"]) == ["a", "c"]
    for label in (0, 2):
        sides = [in_boxes(data, label=label) for data in (fit, test)]
        assert result["landmark_errors_alone"][CLASSES[label]] == pytest.approx(pooled(*sides), rel=1e-4)


def test_celeba_regression_relative_to_the_distance_of_the_eyes():
    fit, test = random_tally(2, 200, (64, 64)), random_tally(3, 60, (64, 64))
    result, _ = landmark_metrics(fit[0], test[0], EvaluationConfig(landmark_scale="interocular"), CLASSES)
    sides = []
    for _, batch, assign in (fit, test):
        centers = centroids(assign, (64, 64), 0.5).reshape(len(batch.keys), -1)
        sides.append((centers, batch.landmarks.numpy(), batch.visibility.numpy()))
    truth, visible = sides[1][1:]
    eyes = np.linalg.norm(truth[:, 0] - truth[:, 1], axis=1)
    every = []
    for p, name in enumerate(MANIFEST.landmarks):
        seen, found = predicted(*sides, p)
        measurable = visible[seen, :2].all(axis=1)  # without both eyes there is nothing to divide by
        error = (np.linalg.norm(found - truth[seen, p], axis=1) / eyes[seen])[measurable]
        assert result["landmark_errors"][name] == pytest.approx(error.mean(), rel=1e-4)
        every += list(error)
    assert result["landmark_error"] == pytest.approx(np.mean(every), rel=1e-4)


def test_celeba_regression_in_units_of_the_distance_of_the_eyes():
    """As in the authors' code: divided before the regression, which gives another error."""
    fit, test = random_tally(2, 200, (64, 64), corner=True), random_tally(3, 60, (64, 64), corner=True)
    sides = []
    for _, batch, assign in (fit, test):
        landmarks, visible = batch.landmarks.numpy(), batch.visibility.numpy()
        eyes = np.linalg.norm(landmarks[:, 0] - landmarks[:, 1], axis=1)
        known = visible[:, :2].all(axis=1)
        centers = centroids(assign, (64, 64), 1).reshape(len(eyes), -1) / eyes[:, None]
        sides.append((centers[known], (landmarks / eyes[:, None, None])[known], visible[known]))
    units, interocular = (
        landmark_metrics(fit[0], test[0], EvaluationConfig(landmark_scale=scale), CLASSES)[0]["landmark_error"]
        for scale in ("interocular_units", "interocular")
    )
    assert units == pytest.approx(pooled(*sides), rel=1e-4)
    assert units != pytest.approx(interocular, rel=1e-3)
