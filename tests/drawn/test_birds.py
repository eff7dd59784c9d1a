"""The bird data set: reproducible, and exact in everything that it says about an image."""

import io
import math
import pickle

import numpy as np
import pytest
from PIL import Image

from pipelines.drawn.bird_shapes import puppet
from pipelines.drawn.birds import OPTIONAL, Birds, BirdsConfig, draw
from pipelines.drawn.species import LANDMARKS, PARTS, draw_species, shapes
from pipelines.shards.manifest import Manifest, Schema
from pipelines.shards.reader import read
from pipelines.shards.samples import decode, encode
from pipelines.shards.verify import verify
from pipelines.shards.writer import write

FIELDS = ("key", "jpeg", "label", "width", "height", "source", "super_category", "absent")
ARRAYS = ("landmarks", "visibility", "boxes", "part_map")


@pytest.fixture(scope="module")
def birds():
    return Birds(BirdsConfig(), "train", per_species=15)


@pytest.fixture(scope="module")
def samples(birds):
    return [birds[index] for index in range(len(birds))]


def same(a, b):
    return all(getattr(a, name) == getattr(b, name) for name in FIELDS) and all(
        np.array_equal(getattr(a, name), getattr(b, name)) for name in ARRAYS
    )


def distance_to(part_map, part, x, y):
    """From a point to the nearest pixel centre of a part."""
    rows, columns = np.nonzero(part_map == PARTS.index(part) + 1)
    return np.hypot(columns + 0.5 - x, rows + 0.5 - y).min() if len(rows) else math.inf


def test_an_image_depends_on_its_index_alone(birds, samples):
    copy = pickle.loads(pickle.dumps(birds))
    for index in (599, 17, 3, 17):
        assert same(birds[index], samples[index])
        assert same(copy[index], samples[index])
    assert same(Birds(BirdsConfig(), "train", per_species=99)[17], samples[17])


def test_splits_and_seeds_share_no_image_but_splits_share_the_species(birds, samples):
    others = [Birds(BirdsConfig(), split, per_species=1) for split in ("val", "test")]
    reseeded = Birds(BirdsConfig(seed=1), "train", per_species=1)
    for other in others:
        assert other.class_names == birds.class_names
        assert other.species == birds.species
    assert reseeded.species != birds.species
    jpegs = [sample.jpeg for sample in samples]
    jpegs += [other[index].jpeg for other in (*others, reseeded) for index in range(len(other))]
    assert len(set(jpegs)) == len(jpegs)


def test_a_sample_keeps_the_contract_and_survives_a_shard(birds, samples):
    assert len(birds) == len(samples) == 15 * 48
    for index in (0, 41, 599):
        sample = samples[index]
        assert sample.key == f"train-{index:06d}"
        assert sample.source == f"birds seed=0 split=train index={index}"
        assert sample.label == index % 48
        assert sample.super_category == birds.super_categories[sample.label]
        assert sample.landmarks.dtype == np.float32
        assert sample.landmarks.shape == (len(birds.landmark_names), 2)
        assert sample.visibility.dtype == bool
        assert sample.part_map.dtype == np.uint8
        again = decode(sample.key, encode(sample))
        assert (again.jpeg, again.label, again.absent) == (sample.jpeg, sample.label, sample.absent)
        assert np.array_equal(again.part_map, sample.part_map)
        # The annotation is written with two decimals.
        np.testing.assert_allclose(again.landmarks, sample.landmarks, atol=0.0051)


@pytest.mark.parametrize("size", [64, 200])
def test_images_have_the_size_asked_for(size):
    sample = Birds(BirdsConfig(species=2, size=size), "val", per_species=1)[1]
    with Image.open(io.BytesIO(sample.jpeg)) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (size, size))
    assert (sample.width, sample.height) == (size, size)
    assert sample.part_map.shape == (size, size)


def test_the_box_is_tight(samples):
    for sample in samples:
        x0, y0, x1, y1 = sample.boxes[0].astype(int)
        bird = sample.part_map > 0
        within = np.zeros_like(bird)
        within[y0:y1, x0:x1] = True
        assert not bird[~within].any()
        assert all(edge.any() for edge in (bird[y0], bird[y1 - 1], bird[:, x0], bird[:, x1 - 1]))


def test_visible_landmarks_lie_on_their_part(samples):
    for sample in samples:
        for (x, y), visible, part in zip(sample.landmarks, sample.visibility, LANDMARKS.values(), strict=True):
            if visible:
                assert distance_to(sample.part_map, part, x, y) <= 2


def test_nothing_but_the_edge_and_the_bird_itself_hides_a_landmark_without_occluders():
    birds = Birds(BirdsConfig(absent=0, occlusion=0, size=256), "train", per_species=3)
    samples = [birds[index] for index in range(len(birds))]
    landmarks = np.array([sample.landmarks for sample in samples])
    visible = np.array([sample.visibility for sample in samples])
    inside = ((landmarks > 0) & (landmarks < 256)).all(axis=2)
    assert not (visible & ~inside).any()
    for name in ("beak tip", "eye", "crown", "breast", "tail tip"):  # those that no other part of the bird can cover
        column = birds.landmark_names.index(name)
        hidden = [
            k
            for k in np.flatnonzero(inside[:, column] & ~visible[:, column])
            if samples[k].part_map[int(landmarks[k, column, 1]), int(landmarks[k, column, 0])] == 0
        ]
        assert hidden == [], name


def test_tips_are_where_the_parts_end():
    """The beak's tip is the beak's farthest pixel from the eye, found without the landmarks of the drawing.

    The landmark keeps 4 % of the length away from the outline, which the rim extends by 0.014 to 0.016 body lengths:
    at 256 px, where a body length is at most 150 px and the longest beak 0.6 of it, 0.04 * 90 + 0.016 * 150 + 1 < 8.
    """
    birds = Birds(BirdsConfig(absent=0, occlusion=0, size=256), "val", per_species=3)
    checked = 0
    for index in range(len(birds)):
        sample = birds[index]
        (tip, eye), (tip_visible, eye_visible) = sample.landmarks[:2], sample.visibility[:2]
        rows, columns = np.nonzero(sample.part_map == PARTS.index("beak") + 1)
        inside = rows.min() > 0 and columns.min() > 0 and rows.max() < 255 and columns.max() < 255
        if tip_visible and eye_visible and inside:
            farthest = np.hypot(columns + 0.5 - eye[0], rows + 0.5 - eye[1]).argmax()
            assert np.hypot(columns[farthest] + 0.5 - tip[0], rows[farthest] + 0.5 - tip[1]) < 8
            checked += 1
    assert checked > len(birds) / 2


def test_parts_are_absent_as_often_as_configured():
    """Counts over the images whose species have the chance: a binomial deviates from its mean by more than 5 standard
    deviations, sqrt(n p (1 - p)), less than once in a million. Tails always tell, so they are never absent here."""
    config = BirdsConfig(species=16, absent=0.3, occlusion=0, clutter=0)
    birds = Birds(config, "train", per_species=30)
    drawings = [birds.drawing(index) for index in range(len(birds))]
    for part in OPTIONAL:
        absent = np.array([part in drawing.absent for drawing in drawings])
        free = np.array([part not in birds.telling[index % 16] for index in range(len(birds))])
        assert not absent[~free].any()
        assert abs(absent.sum() - 0.3 * free.sum()) <= 5 * math.sqrt(0.3 * 0.7 * free.sum())
        shown = np.array([(drawing.part_map == PARTS.index(part) + 1).any() for drawing in drawings])
        assert not (shown & absent).any()
        assert (shown | absent).mean() > 0.95  # present but out of the image or behind the bird is rare
    never = Birds(BirdsConfig(absent=0), "train", per_species=1)
    assert all(never.drawing(index).absent == () for index in range(len(never)))
    assert never.absence == [0] * len(PARTS)


def test_shards_say_which_parts_are_absent_and_how_often_they_are(tmp_path):
    """The bound is that of the binomial above; the sum over species of unequal chances varies less. In the first two
    genera, which are full, the tail tells; in the third, of four species, it does not."""
    config = BirdsConfig(species=20, size=64, absent=0.3, clutter=0)
    birds = Birds(config, "train", per_species=25)
    schema = Schema(
        classes=birds.class_names,
        super_categories=birds.super_categories,
        landmarks=birds.landmark_names,
        parts=birds.part_names,
        absence=birds.absence,
    )
    write(tmp_path, "birds", {"train": birds}, schema=schema, options={})
    manifest = Manifest.load(tmp_path)
    recorded = dict(zip(manifest.parts, manifest.absence, strict=True))
    assert recorded["legs"] == 0.3
    assert recorded["tail"] == pytest.approx(0.3 * 4 / 20)
    assert {part for part in recorded if not recorded[part]} == set(PARTS) - set(OPTIONAL)
    samples = list(read(tmp_path, "train"))
    for part, rate in recorded.items():
        count = sum(part in sample.absent for sample in samples)
        assert abs(count - 500 * rate) <= 5 * math.sqrt(500 * rate * (1 - rate)), part
    assert verify(tmp_path) == []


def test_occluders_are_small_and_as_rare_as_configured():
    """The same image with and without occluder; the binomial bound is that of the absent parts."""
    bare = Birds(BirdsConfig(species=2, occlusion=0), "train", per_species=150)
    some = Birds(BirdsConfig(species=2, occlusion=0.2), "train", per_species=150)
    areas = [[(birds.drawing(index).part_map > 0).sum() for index in range(300)] for birds in (bare, some)]
    kept = np.divide(areas[1], areas[0])
    # An occluder aims at a point of the frame, where there may be no bird: its rate bounds the hits from above.
    assert 0.1 * 300 < (kept < 1).sum() <= 0.2 * 300 + 5 * math.sqrt(300 * 0.2 * 0.8)
    assert kept.min() > 0.5


@pytest.mark.parametrize("count", [2, 3, 40, 200])
def test_species_are_distinct_but_for_near_duplicates_that_differ_in_one_part(count):
    species, pairs = draw_species(count, np.random.default_rng(5))
    assert len(species) == count
    parts = np.array([[hash(variant) for variant in one.parts] for one in species])
    differences = (parts[:, None] != parts[None]).sum(axis=2)
    alike = {frozenset(pair) for pair in np.argwhere(differences == 1).tolist()}
    assert {frozenset(pair[:2]) for pair in pairs} == alike
    for a, b, part in pairs:
        assert species[a].family == species[b].family
        assert (parts[a] != parts[b])[PARTS.index(part)]
    assert (differences + np.eye(count) > 0).all()
    assert (differences == 1).any(axis=1).all() or count % 8 == 1
    for one in species:
        for part, variant in zip(PARTS, one.parts, strict=True):
            assert variant.shape in shapes(one.family, part)


def test_in_a_full_genus_head_trunk_and_tail_all_matter():
    birds = Birds(BirdsConfig(species=48), "train", per_species=1)
    assert len(birds.near_duplicates) == 6 * 12  # the edges of six cubes
    for telling in birds.telling:
        assert len(telling) == 3
        assert "tail" in telling
        assert len(telling & {"beak", "head", "crest"}) == len(telling & {"wing", "belly"}) == 1


def test_near_duplicates_look_alike_except_at_the_part_that_tells_them_apart(birds):
    config = BirdsConfig(occlusion=0)
    for a, b, part in birds.near_duplicates:
        changed = []
        for seed in range(6):
            one, two = (
                draw(birds.species[label], config, np.random.default_rng([7, seed]), always=[part]) for label in (a, b)
            )
            assert part not in one.absent
            pixels = np.abs(np.subtract(one.image, two.image, dtype=int)).max(axis=2)
            value = PARTS.index(part) + 1
            region = (one.part_map == value) | (two.part_map == value)
            # A pixel averages 2 x 2 points of which the part map holds one, so it may change beside the part; and a
            # sliver of the part that is thinner than a pixel can slip between these points for one pixel more.
            near = np.zeros((132, 132), dtype=bool)
            for dy in range(5):
                for dx in range(5):
                    near[dy : dy + 128, dx : dx + 128] |= region
            # Where the belly shows between two other parts, such a sliver can lie by itself: a pixel, no more.
            assert np.count_nonzero(pixels[~near[2:-2, 2:-2]]) <= 1
            changed.append((pixels > 40).sum())
        assert np.median(changed) >= 8, (part, changed)


def test_the_telling_part_is_always_drawn():
    birds = Birds(BirdsConfig(absent=1, clutter=0), "test", per_species=1)
    for label in range(48):
        assert birds.drawing(label).absent == tuple(part for part in OPTIONAL if part not in birds.telling[label])


def test_the_mean_shape_is_a_poor_guess(samples):
    """Landmarks relative to the box, against their mean over the set: pose and mirroring keep them apart."""
    boxes = np.array([sample.boxes[0] for sample in samples])
    points = np.array([sample.landmarks for sample in samples])
    visible = np.array([sample.visibility for sample in samples])
    points = (points - boxes[:, None, :2]) / (boxes[:, None, 2:] - boxes[:, None, :2])
    mean = np.stack([points[visible[:, k], k].mean(axis=0) for k in range(points.shape[1])])
    assert np.linalg.norm(points - mean, axis=2)[visible].mean() >= 0.2


def test_half_of_the_birds_face_left(samples):
    """720 fair coins stay within 5 standard deviations, 5 * sqrt(720) / 2 = 67, of 360."""
    left = sum(sample.landmarks[0, 0] < sample.landmarks[1, 0] for sample in samples)
    assert abs(left - 360) <= 67


def test_birds_come_in_many_sizes_and_mostly_inside(samples):
    sides = np.array([(sample.boxes[0, 2:] - sample.boxes[0, :2]).max() for sample in samples]) / 128
    assert 0.45 < np.quantile(sides, 0.05) < 0.65
    assert 0.8 < np.quantile(sides, 0.95) <= 1
    assert all((sample.part_map == PARTS.index("belly") + 1).any() for sample in samples)


def test_the_surroundings_do_not_know_the_species(birds):
    """With equal generators, birds of one family stand in the same place in the same scene."""
    first = birds.super_categories.index("Songbirds")
    second = birds.super_categories.index("Songbirds", first + 1)
    config = BirdsConfig(occlusion=0)
    one, two = (draw(birds.species[label], config, np.random.default_rng(3)) for label in (first, second))
    background = (one.part_map == 0) & (two.part_map == 0)
    equal = (np.asarray(one.image) == np.asarray(two.image)).all(axis=2)
    assert equal[background].mean() > 0.95  # the pixels at the rims of the birds are mixed


def test_names(birds):
    assert len(set(birds.class_names)) == len(birds.class_names) == 48
    assert len(set(Birds(BirdsConfig(species=500), "train", 1).class_names)) == 500
    assert birds.part_names == ["beak", "eye", "head", "crest", "wing", "belly", "tail", "legs"]
    assert len(birds.super_categories) == 48
    assert len(set(birds.super_categories)) == 6


def test_puppets_of_a_family_share_their_frame(birds):
    frames = {}
    for one in birds.species:
        bird = puppet(one)
        frame = bird.points[bird.frame]
        np.testing.assert_array_equal(frames.setdefault(one.family, frame), frame)
        assert bird.points.shape == (len(bird.joints), 2)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("species", 1),
        ("species", 501),
        ("size", 63),
        ("size", 2000),
        ("seed", -1),
        ("absent", 1.5),
        ("absent", math.nan),
        ("occlusion", -0.1),
        ("clutter", -1.0),
        ("clutter", 5.0),
    ],
)
def test_a_bad_config_names_its_field(field, value):
    with pytest.raises(ValueError, match=rf"^{field}: expected .*, got {value}$"):
        BirdsConfig(**{field: value})


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"^split: expected one of train, val, test, got 'dev'$"):
        Birds(BirdsConfig(), "dev", 1)
    with pytest.raises(ValueError, match=r"^per_species: expected at least 1 image, got 0$"):
        Birds(BirdsConfig(), "train", 0)
    with pytest.raises(IndexError, match=r"^index: expected 0 to 47, got 48$"):
        Birds(BirdsConfig(), "train", 1)[48]
