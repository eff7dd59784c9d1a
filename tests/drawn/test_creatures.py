"""The creatures: reproducible, exact in everything that they say about an image, and told apart by no part alone."""

import io
import itertools
import math
import pickle
import re
from collections import Counter

import numpy as np
import pytest
from PIL import Image, ImageDraw

from pipelines.drawn.anatomies import ANATOMIES, PARTS
from pipelines.drawn.creature_shapes import Species, puppet
from pipelines.drawn.creatures import Creatures, CreaturesConfig, draw, draw_species
from pipelines.drawn.shapes import COLOURS
from pipelines.drawn.species import Variant
from pipelines.shards.manifest import Manifest, Schema
from pipelines.shards.reader import read
from pipelines.shards.samples import decode, encode
from pipelines.shards.verify import verify
from pipelines.shards.writer import write

SUPER_CATEGORIES = ["Aves", "Actinopterygii", "Insecta", "Plantae"]
OPTIONAL = {"Aves": "legs", "Actinopterygii": "pectoral fin", "Insecta": "legs", "Plantae": "leaf"}
HAVE = {
    "Aves": {"eye", "head", "legs", "wing", "breast", "tail"},
    "Actinopterygii": {"eye", "head", "flank", "dorsal fin", "tail fin", "pectoral fin"},
    "Insecta": {"eye", "head", "legs", "antennae", "thorax", "elytra"},
    "Plantae": {"sepals", "petals", "centre", "stem", "leaf"},
}
FIELDS = ("key", "jpeg", "label", "width", "height", "source", "super_category", "absent")
ARRAYS = ("landmarks", "visibility", "boxes", "part_map")


@pytest.fixture(scope="module")
def creatures():
    return Creatures(CreaturesConfig(), "train", per_species=20)


@pytest.fixture(scope="module")
def samples(creatures):
    return [creatures[index] for index in range(len(creatures))]


def same(a, b):
    return all(getattr(a, name) == getattr(b, name) for name in FIELDS) and all(
        np.array_equal(getattr(a, name), getattr(b, name)) for name in ARRAYS
    )


def shown(part_map, part):
    return part_map == PARTS.index(part) + 1


def distance_to(part_map, part, x, y):
    """From a point to the nearest pixel centre of a part."""
    rows, columns = np.nonzero(shown(part_map, part))
    return np.hypot(columns + 0.5 - x, rows + 0.5 - y).min() if len(rows) else math.inf


def test_an_image_depends_on_its_index_alone(creatures, samples):
    copy = pickle.loads(pickle.dumps(creatures))
    for index in (401, 17, 3, 17):
        assert same(creatures[index], samples[index])
        assert same(copy[index], samples[index])
    assert same(Creatures(CreaturesConfig(), "train", per_species=99)[17], samples[17])


def test_splits_and_seeds_share_no_image_but_splits_share_the_species(creatures, samples):
    others = [Creatures(CreaturesConfig(), split, per_species=2) for split in ("val", "test")]
    reseeded = Creatures(CreaturesConfig(seed=1), "train", per_species=2)
    for other in others:
        assert other.class_names == creatures.class_names
        assert other.species == creatures.species
    assert reseeded.species != creatures.species
    found = samples + [other[index] for other in (*others, reseeded) for index in range(len(other))]
    assert len({sample.jpeg for sample in found}) == len({sample.part_map.tobytes() for sample in found}) == len(found)
    assert len({sample.source for sample in found}) == len(found)


def test_a_sample_keeps_the_contract_and_survives_a_shard(creatures, samples):
    assert len(creatures) == len(samples) == 20 * 4 * 6
    assert creatures.part_names == creatures.landmark_names == list(PARTS)
    for index in (0, 41, 479):
        sample = samples[index]
        assert sample.key == f"train-{index:06d}"
        assert sample.source == creatures.source(index) == f"creatures seed=0 split=train index={index}"
        assert sample.label == index % 24
        assert sample.super_category == creatures.super_categories[sample.label]
        assert (sample.landmarks.dtype, sample.landmarks.shape) == (np.float32, (len(PARTS), 2))
        assert (sample.visibility.dtype, sample.visibility.shape) == (bool, (len(PARTS),))
        assert (sample.part_map.dtype, sample.part_map.shape) == (np.uint8, (144, 144))
        again = decode(sample.key, encode(sample))
        assert (again.jpeg, again.label, again.absent) == (sample.jpeg, sample.label, sample.absent)
        assert again.super_category == sample.super_category
        assert np.array_equal(again.part_map, sample.part_map)
        # The annotation is written with two decimals.
        np.testing.assert_allclose(again.landmarks, sample.landmarks, atol=0.0051)


@pytest.mark.parametrize("size", [64, 200])
def test_images_have_the_size_asked_for(size):
    sample = Creatures(CreaturesConfig(species=4, size=size), "val", per_species=1)[5]
    with Image.open(io.BytesIO(sample.jpeg)) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (size, size))
    assert (sample.width, sample.height) == (size, size)
    assert sample.part_map.shape == (size, size)


def test_super_categories_have_equally_many_classes_and_their_own_parts(creatures, samples):
    assert creatures.super_categories == [name for name in SUPER_CATEGORIES for _ in range(6)]
    assert [species.super_category for species in creatures.species] == creatures.super_categories
    seen = {name: set() for name in SUPER_CATEGORIES}
    for sample in samples:
        parts = {PARTS[value - 1] for value in np.unique(sample.part_map) if value}
        seen[sample.super_category] |= parts
        assert not parts & set(sample.absent)
        assert set(PARTS) - HAVE[sample.super_category] <= set(sample.absent)
        assert set(sample.absent) & HAVE[sample.super_category] <= {OPTIONAL[sample.super_category]}
    assert seen == HAVE


# --------------------------------------------------------------------------------------------------------- what it says


def test_the_box_is_tight_where_there_is_one(creatures, samples):
    assert creatures.boxed == {"Aves", "Actinopterygii", "Insecta"}
    for sample in samples:
        assert (sample.boxes is not None) == (sample.super_category in creatures.boxed)
        if sample.boxes is None:
            continue
        assert sample.boxes.shape == (1, 4)
        x0, y0, x1, y1 = sample.boxes[0].astype(int)
        creature = sample.part_map > 0
        within = np.zeros_like(creature)
        within[y0:y1, x0:x1] = True
        assert not creature[~within].any()
        assert all(edge.any() for edge in (creature[y0], creature[y1 - 1], creature[:, x0], creature[:, x1 - 1]))


@pytest.mark.parametrize(("fraction", "boxed"), [(0, 0), (0.2, 1), (0.5, 2), (1, 4)])
def test_as_many_super_categories_as_configured_have_boxes(fraction, boxed):
    few = Creatures(CreaturesConfig(species=4, size=64, box_fraction=fraction), "train", per_species=1)
    found = {few.super_categories[label]: few[label].boxes is not None for label in range(16)}
    assert found == {name: place < boxed for place, name in enumerate(SUPER_CATEGORIES)}


def test_landmarks_and_part_maps_agree(samples):
    """Visible means that the part shows in the pixel of the landmark or in one beside it. The centres of these are at
    most sqrt(1.5^2 + 0.5^2) pixels away, those of all other pixels at least sqrt(0.5)."""
    counts = Counter()
    for sample in samples:
        for (x, y), visible, part in zip(sample.landmarks, sample.visibility, PARTS, strict=True):
            inside = 0 <= x < 144 and 0 <= y < 144
            distance = distance_to(sample.part_map, part, x, y)
            if visible:
                assert inside
                assert part not in sample.absent
                assert distance <= math.sqrt(2.5)
            elif inside:
                assert distance >= math.sqrt(0.5)
            counts[part, bool(visible)] += 1
    assert all(counts[part, True] > 0.1 * len(samples) for part in PARTS)
    assert all(counts[part, False] > 0 for part in PARTS)


@pytest.mark.parametrize("super_category", SUPER_CATEGORIES)
def test_all_looks_cover_the_landmark_of_their_part(super_category):
    """Drawn as they are built, without any turn, so that no part hides the centre of another."""
    anatomy = ANATOMIES[super_category]
    assert set(anatomy.parts) == HAVE[super_category]
    for look in range(4):
        shapes = [list(anatomy.parts[part].looks)[look] for part in anatomy.genus + anatomy.species]
        built = puppet(Species(super_category, tuple(Variant(shape, "Jade", "Rose") for shape in shapes)))
        canvas = Image.new("L", (1600, 1600))
        brush = ImageDraw.Draw(canvas)
        places = 8 * built.points + 800
        for start, stop, fill in built.polygons:
            brush.polygon(places[start:stop].ravel().tolist(), fill=fill[3])
        values = [canvas.getpixel((round(x), round(y))) for x, y in places[built.centres]]
        assert [PARTS[value - 1] for value in values] == list(anatomy.parts), shapes


def test_nothing_but_the_edge_hides_a_landmark_that_no_other_part_can_cover():
    bare = Creatures(CreaturesConfig(species=4, absent=0, occlusion=0, clutter=0), "val", per_species=6)
    on_top = {"eye", "petals", "centre", "elytra", "thorax", "flank"}
    checked = set()
    for index in range(len(bare)):
        drawing = bare.drawing(index)
        inside = ((drawing.landmarks >= 0) & (drawing.landmarks < 144)).all(axis=1)
        for part in on_top & HAVE[bare.super_categories[index % 16]]:
            place = PARTS.index(part)
            assert drawing.visibility[place] == inside[place]
            checked.add(part)
    assert checked == on_top


def test_parts_are_absent_as_often_as_configured():
    """A count of n images with chance p deviates from n p by more than 5 standard deviations, sqrt(n p (1 - p)), less
    than once in a million."""
    bare = Creatures(CreaturesConfig(species=4, size=64, absent=0.3, occlusion=0, clutter=0), "train", per_species=30)
    drawings = [bare.drawing(index) for index in range(len(bare))]
    kinds = np.array([bare.super_categories[index % 16] for index in range(len(bare))])
    total = np.zeros(len(PARTS))
    for place, part in enumerate(PARTS):
        absent = np.array([part in drawing.absent for drawing in drawings])
        seen = np.array([shown(drawing.part_map, part).any() for drawing in drawings])
        assert not (seen & absent).any()
        assert (seen | absent).mean() > 0.95  # drawn, but out of the image or behind the rest, is rare
        for kind in SUPER_CATEGORIES:
            count, of = absent[kinds == kind].sum(), (kinds == kind).sum()
            rate = 0.3 if part == OPTIONAL[kind] else float(part not in HAVE[kind])
            assert abs(count - of * rate) <= 5 * math.sqrt(of * rate * (1 - rate)), (part, kind)
        total[place] = absent.mean()
    # Of four super-categories only those with the part as an option vary: at most 240 of the 480 images.
    np.testing.assert_allclose(total, bare.absence, atol=5 * math.sqrt(240 * 0.3 * 0.7) / 480)
    assert dict(zip(PARTS, bare.absence, strict=True)) == pytest.approx(
        {part: np.mean([part not in HAVE[kind] or 0.3 * (part == OPTIONAL[kind]) for kind in HAVE]) for part in PARTS}
    )
    never = Creatures(CreaturesConfig(species=4, size=64, absent=0), "train", per_species=1)
    for index in range(16):
        assert set(never.drawing(index).absent) == set(PARTS) - HAVE[never.super_categories[index]]


def test_every_part_is_somewhere_and_nowhere_everywhere(creatures):
    assert all(0.2 < absence < 0.9 for absence in creatures.absence)


def test_occluders_are_small_and_as_rare_as_configured():
    """The same image with and without occluder. It aims at a part that may be absent or out of the image, so that its
    rate bounds the hits from above; the binomial bound is that of the absent parts."""
    count = 400
    bare = Creatures(CreaturesConfig(species=4, size=64, occlusion=0, clutter=0), "train", per_species=25)
    some = Creatures(CreaturesConfig(species=4, size=64, occlusion=0.3, clutter=0), "train", per_species=25)
    areas = [[(split.drawing(index).part_map > 0).sum() for index in range(count)] for split in (bare, some)]
    kept = np.divide(areas[1], areas[0])
    assert 0.15 * count < (kept < 1).sum() <= 0.3 * count + 5 * math.sqrt(count * 0.3 * 0.7)
    assert kept.min() > 0.4


def test_creatures_come_in_many_sizes_and_mostly_inside(samples):
    sides = np.array(
        [(sample.boxes[0, 2:] - sample.boxes[0, :2]).max() for sample in samples if sample.boxes is not None]
    )
    assert 0.3 < np.quantile(sides / 144, 0.05) < 0.55
    assert 0.7 < np.quantile(sides / 144, 0.95) <= 1
    assert min((sample.part_map > 0).sum() for sample in samples) > 0.01 * 144**2


def test_poses_are_those_of_the_super_category(samples):
    """240 fair coins stay within 5 standard deviations, 5 * sqrt(240) / 2 = 39, of 120. Birds and fish face either way,
    beetles any way; flowers stand upright."""
    above, left = Counter(), Counter()
    for sample in samples:
        points = dict(zip(PARTS, sample.landmarks, strict=True))
        front, back = {
            "Aves": ("head", "tail"),
            "Actinopterygii": ("head", "tail fin"),
            "Insecta": ("head", "elytra"),
            "Plantae": ("centre", "stem"),
        }[sample.super_category]
        left[sample.super_category] += points[front][0] < points[back][0]
        above[sample.super_category] += points[front][1] < points[back][1]
    assert abs(left["Aves"] + left["Actinopterygii"] - 120) <= 39
    assert 30 < left["Insecta"] < 90
    assert 30 < above["Insecta"] < 90
    assert above["Plantae"] == 120


# ----------------------------------------------------------------------------------------------------------- what tells


def colour_distance(a, b):
    return math.dist(COLOURS[a.colour], COLOURS[b.colour])


def clearly_different(a, b):
    return a.shape != b.shape and colour_distance(a, b) >= 130


@pytest.mark.parametrize("count", [4, 5, 6, 7, 12, 30])
@pytest.mark.parametrize("super_category", SUPER_CATEGORIES)
def test_no_part_alone_tells_the_species(super_category, count):
    anatomy = ANATOMIES[super_category]
    for seed in range(5):
        species = draw_species(super_category, count, np.random.default_rng([seed, count]))
        assert len(set(species)) == len(species) == count
        for part in anatomy.genus + anatomy.species:
            variants = Counter(one.by_part()[part] for one in species)
            assert min(variants.values()) >= 2, part
            assert len(variants) >= 2, part
            for variant in variants:
                assert variant.shape in anatomy.parts[part].looks
                assert math.dist(COLOURS[variant.colour], COLOURS[variant.accent]) >= 130
        genera = {}
        for one in species:
            genera.setdefault(one.variants[:2], []).append(one.variants[2:])
        assert {len(members) for members in genera.values()} <= {2, 3}
        for of_part in (0, 1):  # nor does a part that tells the species of a genus apart tell the genus
            users = Counter(variant for members in genera.values() for variant in {one[of_part] for one in members})
            assert min(users.values()) >= 2
        for one, other in itertools.combinations(genera, 2):
            assert all(a.shape != b.shape or colour_distance(a, b) >= 130 for a, b in zip(one, other, strict=True))
            assert any(map(clearly_different, one, other))
        for one, other in itertools.combinations(species, 2):  # what differs within a genus differs clearly
            for a, b in zip(one.variants[2:], other.variants[2:], strict=True):
                assert a == b or clearly_different(a, b)
        for part in set(anatomy.parts) - set(anatomy.genus + anatomy.species):
            assert len(anatomy.parts[part].looks) == 1


def test_species_of_a_super_category_differ_in_the_pixels_of_what_tells_them_apart(creatures):
    """A pixel of the image averages 2 x 2 points of which the part map holds one, so that it may change beside the
    part; a sliver of the part that is thinner than a pixel can slip between these points for one pixel more. Where a
    part shows between two others, such slivers can lie by themselves: a few pixels."""
    config = CreaturesConfig(occlusion=0)
    for a, b in itertools.combinations(range(24), 2):
        one, two = creatures.species[a], creatures.species[b]
        if one.super_category != two.super_category or one.variants[:2] != two.variants[:2]:
            continue
        telling = [part for part, variant in one.by_part().items() if two.by_part()[part] != variant]
        assert set(telling) <= set(ANATOMIES[one.super_category].species)
        changed = []
        for seed in range(4):
            left, right = (draw(species, config, np.random.default_rng([7, seed])) for species in (one, two))
            assert left.absent == right.absent
            assert np.array_equal(left.landmarks, right.landmarks)
            pixels = np.abs(np.subtract(left.image, right.image, dtype=int)).max(axis=2)
            region = np.zeros((144, 144), dtype=bool)
            for part in telling:
                region |= shown(left.part_map, part) | shown(right.part_map, part)
            near = np.zeros((148, 148), dtype=bool)
            for dy, dx in itertools.product(range(5), repeat=2):
                near[dy : dy + 144, dx : dx + 144] |= region
            assert np.count_nonzero(pixels[~near[2:-2, 2:-2]]) <= 3
            changed.append((pixels > 40).sum())
        assert np.median(changed) >= 20, (creatures.class_names[a], creatures.class_names[b])


def test_the_surroundings_do_not_know_the_species(creatures):
    """With equal generators, creatures of one super-category stand in the same place in the same scene."""
    config = CreaturesConfig(occlusion=0)
    for first in (0, 6, 12, 18):
        one, two = (draw(creatures.species[first + k], config, np.random.default_rng(3)) for k in (0, 5))
        background = (one.part_map == 0) & (two.part_map == 0)
        equal = (np.asarray(one.image) == np.asarray(two.image)).all(axis=2)
        assert equal[background].mean() > 0.93  # the pixels at the rims of the creatures are mixed


@pytest.mark.parametrize("count", [4, 6, 11, 30])
def test_names_are_unique_binomials_whose_first_word_is_the_genus(count):
    for seed in range(3):
        drawn = Creatures(CreaturesConfig(species=count, seed=seed), "train", 1)
        assert len(set(drawn.class_names)) == len(drawn.class_names) == 4 * count
        assert all(re.fullmatch(r"[A-Z][a-z]+ [a-z]+", name) for name in drawn.class_names)
        genera = {(species.super_category, species.variants[:2]) for species in drawn.species}
        pairs = {
            (name.split()[0], species.super_category, species.variants[:2])
            for name, species in zip(drawn.class_names, drawn.species, strict=True)
        }
        assert len({name for name, _, _ in pairs}) == len(pairs) == len(genera) == 4 * -(-count // 3)


# --------------------------------------------------------------------------------------------------------------- shards


def test_shards_say_which_parts_are_absent_and_how_often_they_are(tmp_path):
    """The bound is that of the binomial above, with the 80 images of a super-category as its n."""
    drawn = Creatures(CreaturesConfig(species=4, size=64, absent=0.3), "train", per_species=20)
    schema = Schema(
        classes=tuple(drawn.class_names),
        super_categories=tuple(drawn.super_categories),
        landmarks=tuple(drawn.landmark_names),
        parts=tuple(drawn.part_names),
        absence=tuple(drawn.absence),
    )
    write(tmp_path, "creatures", {"train": drawn}, schema=schema, options={}, samples_per_shard=100)
    manifest = Manifest.load(tmp_path)
    assert verify(tmp_path) == []
    assert not manifest.splits["train"].quarantined
    recorded = dict(zip(manifest.parts, manifest.absence, strict=True))
    assert recorded["legs"] == pytest.approx((0.3 + 1 + 0.3 + 1) / 4)
    assert recorded["eye"] == 0.25
    assert recorded["sepals"] == 0.75
    samples = list(read(tmp_path, "train"))
    assert len(samples) == 320
    for part, rate in recorded.items():
        count = sum(part in sample.absent for sample in samples)
        kinds = sum(part == optional for optional in OPTIONAL.values())
        assert abs(count - 320 * rate) <= 5 * math.sqrt(kinds * 80 * 0.3 * 0.7), part
    assert Counter(sample.super_category for sample in samples if sample.boxes is not None) == dict.fromkeys(
        SUPER_CATEGORIES[:3], 80
    )


# ------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("species", 3),
        ("species", 31),
        ("size", 63),
        ("size", 2000),
        ("seed", -1),
        ("absent", 1.5),
        ("absent", math.nan),
        ("occlusion", -0.1),
        ("clutter", -1.0),
        ("clutter", 5.0),
        ("box_fraction", 1.1),
        ("box_fraction", math.nan),
    ],
)
def test_a_bad_config_names_its_field(field, value):
    with pytest.raises(ValueError, match=rf"^{field}: expected [^\n]*, got {value}$"):
        CreaturesConfig(**{field: value})


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"^split: expected one of train, val, test, got 'dev'$"):
        Creatures(CreaturesConfig(), "dev", 1)
    with pytest.raises(ValueError, match=r"^per_species: expected at least 1 image, got 0$"):
        Creatures(CreaturesConfig(), "train", 0)
    for index in (24, -1):
        with pytest.raises(IndexError, match=rf"^index: expected 0 to 23, got {index}$"):
            Creatures(CreaturesConfig(), "train", 1)[index]
