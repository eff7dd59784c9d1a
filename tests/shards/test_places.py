"""Places on their way: sample -> shard -> sample and batch, with some that are not known."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.batches.decoding import Decoding
from pipelines.batches.geometry import Geometry
from pipelines.batches.loader import Loader
from pipelines.datasets.resized import Resized
from pipelines.drawn.creatures import Creatures, CreaturesConfig
from pipelines.drawn.ranges import draw_place
from pipelines.drawn.redraw import redraw
from pipelines.places import Place
from pipelines.shards.manifest import Manifest, Schema
from pipelines.shards.reader import read
from pipelines.shards.samples import ANNOTATION, Sample, decode, encode
from pipelines.shards.verify import verify
from pipelines.shards.writer import write

PLACES = (Place(52.123456, -13.2, 172), None, Place(day=366), Place(-90, 180), Place(0.0, 0.0, 1))


@dataclass
class Told:
    """Small drawn images with places."""

    places: tuple[Place | None, ...] = PLACES

    def __len__(self) -> int:
        return len(self.places)

    def source(self, index: int) -> str:
        return str(index)

    def __getitem__(self, index: int) -> Sample:
        drawn = Creatures(CreaturesConfig(species=4, size=64), "train", 1)[index]
        told = {"label": index % 2, "source": self.source(index), "place": self.places[index]}
        nothing = dict.fromkeys(("super_category", "landmarks", "visibility", "absent", "boxes", "part_map"))
        return replace(drawn, **told, **nothing)


def make(out: Path, source: object, locations: bool = True) -> Manifest:
    schema = Schema(classes=("a", "b"), locations=locations)
    return write(out, "told", {"train": source}, schema=schema, options={}, samples_per_shard=3)  # type: ignore[dict-item]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("told") / "shards"
    make(out, Told())
    return out


def test_shards_hold_what_is_known(folder: Path) -> None:
    found = {int(sample.source): sample.place for sample in read(folder, "train")}
    assert found == {**dict(enumerate(PLACES)), 0: Place(52.12346, -13.2, 172)}
    assert json.loads((folder / "manifest.json").read_text())["locations"] is True
    assert Manifest.load(folder).locations
    assert verify(folder) == []


def test_batches_have_nan_for_what_is_not_known(folder: Path) -> None:
    loader = Loader(folder, "train", Geometry(64, 64), 4, decoding=Decoding("pillow"))
    keys, places = [], []
    for batch in loader:
        keys += batch.keys
        places.append(batch.places)
    found = torch.cat(places)
    assert found.dtype == torch.float32
    sources = {sample.key: int(sample.source) for sample in read(folder, "train")}
    expected = [PLACES[sources[key]].numbers if PLACES[sources[key]] else (np.nan,) * 3 for key in keys]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


def test_data_without_places_is_written_as_ever(tmp_path: Path) -> None:
    manifest = make(tmp_path, Told((None,) * 3), locations=False)
    assert "locations" not in (tmp_path / "manifest.json").read_text()
    assert Manifest.load(tmp_path) == manifest
    assert not manifest.locations
    assert next(iter(Loader(tmp_path, "train", Geometry(64, 64), 2, decoding=Decoding("pillow")))).places is None


def test_a_place_where_none_is_expected(tmp_path: Path) -> None:
    manifest = make(tmp_path, Told((None, Place(day=3))), locations=False)
    assert [bad.reason for bad in manifest.splits["train"].quarantined] == ["a place or a date, expected none"]


def test_smaller_images_were_taken_where_larger_ones_were() -> None:
    assert Resized(Told(), 32)[0].place == PLACES[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda told: told.update(latitude=91), "latitude: expected -90 to 90 degrees, got 91"),
        (lambda told: told.update(longitude="east"), "longitude: expected -180 to 180 degrees, got 'east'"),
        (lambda told: told.update(day=0), "day: expected a day of the year, 1 to 366, got 0"),
        (lambda told: told.pop("latitude"), "latitude, longitude: expected both or neither, got one"),
    ],
)
def test_places_out_of_range_are_named(change: Callable[[dict], object], message: str) -> None:
    sample = Told()[0]
    fields = encode(sample)
    annotation = json.loads(fields[ANNOTATION])
    change(annotation)
    fields[ANNOTATION] = json.dumps(annotation).encode()
    with pytest.raises(ValueError, match=f"^{sample.key}: {message}"):
        decode(sample.key, fields)


def test_verify_reads_places(tmp_path: Path) -> None:
    make(tmp_path, Told(PLACES[:1]))
    tar = tmp_path / "train-00000.tar"
    content = tar.read_bytes()
    assert content.count(b'"latitude":52.12346') == 1
    tar.write_bytes(content.replace(b'"latitude":52.12346', b'"latitude":152.1234'))
    problems = verify(tmp_path)
    assert any("latitude: expected -90 to 90 degrees, got 152.123" in problem for problem in problems)


def test_creatures_change_in_nothing_but_their_places() -> None:
    plain, told = (Creatures(CreaturesConfig(species=4, size=64, places=places), "val", 5) for places in (False, True))
    assert (plain.locations, told.locations) == (False, True)
    for index in (0, 7, 33):
        before, after = encode(plain[index]), encode(replace(told[index], place=None))
        assert before == after


def test_species_of_a_genus_share_no_range_and_others_do() -> None:
    creatures = Creatures(CreaturesConfig(places=True), "train", 1)
    genera: dict[str, list] = {}
    for name, home in zip(creatures.class_names, creatures.ranges, strict=True):
        genera.setdefault(name.split()[0], []).append(home)
    assert all(len(set(homes)) == len(homes) > 1 for homes in genera.values())
    assert len(set(creatures.ranges)) <= 8 < len(creatures.ranges)


def test_drawn_places_lie_around_the_range_and_some_are_not_known() -> None:
    creatures = Creatures(CreaturesConfig(species=4, size=64, places=True), "test", 200)
    count = len(creatures.class_names)
    places = [draw_place(creatures.ranges[index % count], 0, 2, index) for index in range(len(creatures))]
    located = np.array([place is not None and place.latitude is not None for place in places])
    dated = np.array([place is not None and place.day is not None for place in places])
    # Shares of 0.9 over 3200 images: four standard deviations are 0.021.
    assert abs(located.mean() - 0.9) < 0.021
    assert abs(dated.mean() - 0.9) < 0.021
    homes = [creatures.ranges[index % count] for index in range(len(creatures))]
    offsets = [
        place.latitude - home.latitude for place, home in zip(places, homes, strict=True) if place and place.latitude
    ]
    assert abs(np.std(offsets) - 9) < 1
    assert creatures[5].place == places[5]


@pytest.mark.parametrize("places", [False, True])
def test_creatures_are_drawn_again_with_their_places(places: bool) -> None:
    """Manifests without places do not name the setting, as those of earlier versions."""
    drawn = Creatures(CreaturesConfig(species=4, size=64, places=places), "test", 1)
    options = {**asdict(drawn.config), "test": 1}
    if not places:
        del options["places"]
    files = {"seed": 0, "samples_per_shard": 9, "fields": (), "splits": {}}
    manifest = Manifest(classes=tuple(drawn.class_names), dataset="creatures", options=options, **files)
    again = redraw(manifest, "test")
    assert again.locations is places
    assert again[3].place == drawn[3].place
