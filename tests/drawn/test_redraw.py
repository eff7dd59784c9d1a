"""Drawing the images of shards again, with parts left out: nothing else may change."""

import dataclasses

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import binary_dilation

from pipelines.drawn.birds import Birds, BirdsConfig
from pipelines.drawn.creatures import Creatures, CreaturesConfig
from pipelines.drawn.redraw import Scene, redraw
from pipelines.drawn.scenes import SCENERY
from pipelines.shards.manifest import Manifest

SPLITS = [
    Birds(BirdsConfig(species=16, size=96, seed=3, occlusion=0.5), "test", 3),
    Creatures(CreaturesConfig(species=8, size=96, seed=3), "test", 3),
]
THIN = 4  # pixels of an image where a polygon is thinner than a pixel, so that the part map misses it
NEAR = np.ones((3, 3), dtype=bool)  # pixels at an outline are partly covered: the canvas is twice as fine


def manifest(split, **changed):
    config = dataclasses.asdict(split.config)
    options = config | {"test": split.per_species, "version": "0"} | changed
    return Manifest(
        classes=tuple(split.class_names),
        dataset=split.name,
        options=options,
        seed=0,
        samples_per_shard=9,
        fields=(),
        splits={},
    )


def pixels(drawing):
    return np.asarray(drawing.image).astype(int)


@pytest.mark.parametrize("split", SPLITS, ids=lambda split: split.name)
def test_hiding_a_part_changes_the_pixels_of_that_part_only(split):
    """The random stream goes on as if the part were drawn, so that everything else is the same, light included."""
    changed = 0
    for index in range(0, len(split), 2):
        whole = split.drawing(index)
        for p, name in enumerate(split.part_names, 1):
            without = split.drawing(index, [name])
            mask = whole.part_map == p
            differs = (pixels(whole) != pixels(without)).any(2)
            assert (differs & ~binary_dilation(mask, NEAR)).sum() <= THIN, (index, name)
            assert not (without.part_map == p).any()
            assert (without.part_map[~mask] == whole.part_map[~mask]).mean() > 0.999
            assert name in without.absent
            changed += differs.sum()
    assert changed > 1000


@pytest.mark.parametrize("split", SPLITS, ids=lambda split: split.name)
def test_hiding_the_scenery_leaves_the_object_as_it_is(split):
    changed = 0
    for index in range(0, len(split), 2):
        whole, bare = split.drawing(index), split.drawing(index, [SCENERY])
        inside = ~binary_dilation(whole.part_map == 0, NEAR)
        differs = (pixels(whole) != pixels(bare)).any(2)
        assert (differs & inside).sum() <= THIN
        np.testing.assert_array_equal(whole.part_map, bare.part_map)
        changed += differs.sum()
    assert changed > 1000


@pytest.mark.parametrize("split", SPLITS, ids=lambda split: split.name)
def test_things_of_the_scenery_go_one_by_one(split):
    """One changes nothing but what lies behind the object; all together are the scenery."""
    counts = []
    for index in range(0, len(split), 12):
        whole = split.drawing(index)
        counts.append(len(whole.things))
        inside = ~binary_dilation(whole.part_map == 0, NEAR)
        for name in whole.things[::5]:
            without = split.drawing(index, [name])
            assert ((pixels(whole) != pixels(without)).any(2) & inside).sum() <= THIN
            np.testing.assert_array_equal(whole.part_map, without.part_map)
        bare = split.drawing(index, [SCENERY])
        np.testing.assert_array_equal(pixels(split.drawing(index, whole.things)), pixels(bare))
    assert min(counts) >= 7
    assert max(counts) > 20


def test_a_thing_is_seen_where_its_absence_changes_a_pixel():
    birds = SPLITS[0]
    scene = Scene(birds, birds[3])
    assert 3 < len(scene.things) <= len(birds.drawing(3).things)
    for name, mask in scene.things.items():
        differs = (scene.without([name]) != scene.pixels).any(2)
        assert not (mask & ~differs).sum() > mask.sum() // 2  # the JPEG may hold the same number by chance
        assert not (mask & (scene.part_map > 0)).any()
    scenery = (scene.without([SCENERY]) != scene.pixels).any(2) & (scene.part_map == 0)
    assert (scenery & ~np.any(list(scene.things.values()), axis=0)).sum() <= THIN


def test_classes_differ_in_their_parts():
    for split in SPLITS:
        looks = [tuple(sorted(parts.items(), key=lambda pair: pair[0])) for parts in split.class_parts]
        assert len(set(looks)) == len(split.class_names)
        assert all(set(parts) <= set(split.part_names) for parts in split.class_parts)


def test_nothing_hidden_is_the_image_itself_and_all_hidden_is_no_object():
    birds = SPLITS[0]
    assert pixels(birds.drawing(5, [])).tolist() == pixels(birds.drawing(5)).tolist()
    assert not birds.drawing(5, birds.part_names).part_map.any()


def test_what_cannot_be_hidden_is_named():
    with pytest.raises(ValueError, match=r"got scenery 99"):
        SPLITS[0].drawing(0, ["scenery 99"])
    with pytest.raises(ValueError, match=r"hidden: expected beak, .*, scenery or scenery 1 to \d+, got antlers"):
        SPLITS[0].drawing(0, ["antlers"])


@pytest.mark.parametrize("split", SPLITS, ids=lambda split: split.name)
def test_a_manifest_is_enough_to_draw_the_split_again(split):
    again = redraw(manifest(split), "test")
    assert [again[index].jpeg for index in (0, 7)] == [split[index].jpeg for index in (0, 7)]
    assert [again.index_of(split[index].key) for index in (0, 7)] == [0, 7]


@pytest.mark.parametrize("option,value,split", [("own_scenery", 0.95, "test"), ("missing", 1.0, "train")])
@pytest.mark.parametrize("kind,config", [(Birds, BirdsConfig(8, 64)), (Creatures, CreaturesConfig(4, 64))])
def test_manifests_of_earlier_versions_did_not_know_every_option(kind, config, option, value, split):
    drawn = kind(dataclasses.replace(config, **{option: value}), split, 1)
    told = manifest(drawn, **{split: 1})
    assert redraw(told, split)[3].jpeg == drawn[3].jpeg
    del told.options[option]
    assert redraw(told, split)[3].jpeg == kind(config, split, 1)[3].jpeg != drawn[3].jpeg


def test_other_data_cannot_be_drawn_again():
    birds = SPLITS[0]
    with pytest.raises(ValueError, match="photos is not drawn"):
        redraw(dataclasses.replace(manifest(birds), dataset="photos"), "test")
    with pytest.raises(ValueError, match=r"does not say how it was drawn \(no val\)"):
        redraw(manifest(birds), "val")


def test_an_image_that_is_drawn_differently_now_is_refused():
    birds = SPLITS[0]
    other = redraw(manifest(birds, seed=4), "test")
    with pytest.raises(ValueError, match="test-000003: is drawn differently now"):
        Scene(other, birds[3])
    for key in ("train-000003", "test-000048", "test-x"):
        with pytest.raises(ValueError, match="key: expected test-000000 to test-000047"):
            birds.index_of(key)


def test_a_scene_keeps_the_pixels_of_the_shard_but_for_what_was_hidden():
    birds = SPLITS[0]
    sample = birds[3]
    scene = Scene(birds, sample)
    for name, mask in scene.parts.items():
        without = scene.without([name])
        differs = (without != scene.pixels).any(2)
        assert (differs & ~binary_dilation(mask, NEAR)).sum() <= THIN
        assert (differs & mask).any()
    np.testing.assert_array_equal(scene.without([]), scene.pixels)
    assert set(scene.parts) == {birds.part_names[p - 1] for p in np.unique(sample.part_map) if p}
    assert scene.pixels.shape == (96, 96, 3)
    assert isinstance(Image.fromarray(scene.without([SCENERY])), Image.Image)
