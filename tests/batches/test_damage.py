"""Damaged shards at run time: what is damaged is named, counted and left out, and nothing else changes."""

import functools
import json
import os
import re
import shutil
import tarfile

import pytest
import torch

from pipelines.batches.decoding import Decoding
from pipelines.batches.geometry import Geometry
from pipelines.batches.loader import Loader
from pipelines.shards import writer
from pipelines.shards.reader import read, read_fields, read_index
from pipelines.shards.storage import open_storage
from tests.support import forked
from tests.support.decoders import DECODERS
from tests.training.test_train import command

TEST = Geometry(64, 48)
TRAIN = Geometry(72, 64, training=True)
BATCH = 16
BATCHES = 6  # of training, which are three epochs
SHARE = re.compile(r".+: (\d+) of (\d+) samples of the split \w+ are damaged, more than a share of 0\.01 \(input\.max_")


def change(name, function):
    return lambda fields: fields | {name: function(fields[name])}


def without(name):
    return lambda fields: {other: data for other, data in fields.items() if other != name}


def enlarged(annotation):
    content = json.loads(annotation)
    return json.dumps(content | {"width": 3 * content["width"], "height": 3 * content["height"]}).encode()


# Found before anything is decoded.
PLAIN = {
    "truncated JPEG": change("jpg", lambda data: data[: len(data) // 2]),
    "zero-filled tail": change("jpg", lambda data: data[: len(data) // 2].ljust(len(data), b"\0")),
    "missing label": without("cls"),
    "damaged label": change("cls", lambda _: b"\xff"),
    "label of no class": change("cls", lambda _: b"4"),
    "missing field": without("json"),
    "damaged field": change("json", lambda data: data[:-2]),
    "member .JPG": lambda fields: {"JPG" if name == "jpg" else name: data for name, data in fields.items()},
}
# Found by the decoder, which other images of the batch share.
UNDECODABLE = {
    "all zero bytes": change("jpg", lambda data: bytes(len(data))),
    "not an image": change("jpg", lambda _: b"<html>404 Not Found</html>"),
    "no quantisation table": change("jpg", lambda data: data.replace(b"\xff\xdb", b"\xff\xfe")),
    "another size": change("json", enlarged),
}
KINDS = PLAIN | UNDECODABLE
CASES = [pytest.param(kind, "pillow") for kind in PLAIN]
CASES += [pytest.param(kind, *decoder.values, marks=decoder.marks) for kind in UNDECODABLE for decoder in DECODERS]


def tars(folder, split):
    """Key -> tar of all samples of a split, in the order of the shards, as tarfile sees them."""
    found = {}
    for path in sorted(folder.glob(f"{split}-*.tar")):
        with tarfile.open(path) as tar:
            found |= {name.partition(".")[0]: path.name for name in tar.getnames()}
    return found


def some(folder, split):
    """Samples of a split that are to be damaged."""
    return set(list(tars(folder, split))[3::9])


def damaged_copy(folder, out, keys, damage):
    """A copy with damaged samples, whose tars and indexes fit each other; only the manifest knows better."""
    shutil.copytree(folder, out)
    storage = open_storage(out)
    for path in sorted(out.glob("*.tar")):
        fields = {
            entry.key: read_fields(storage, path.name, entry) for entry in read_index(storage, f"{path.stem}.idx")
        }
        if not keys.isdisjoint(fields):
            content = [(key, damage(data) if key in keys else data) for key, data in fields.items()]
            writer.write_shard(out, path.stem, content)
    return out


def loader(folder, geometry, decoder, batch=BATCH, **options):
    split = "train" if geometry.training else "test"
    return Loader(
        folder, split, geometry, batch, **{"decoding": Decoding(decoder, threads=1), "max_damaged": 1.0} | options
    )


def batches(source, count=BATCHES):
    stream = iter(source)
    return [next(stream) for _ in range(count)]


def images(source):
    """Key -> pixels of one pass."""
    return {key: image for batch in source for key, image in zip(batch.keys, batch.images, strict=True)}


def left_out(caplog):
    """Tar and key of every line about a sample that was left out, sorted."""
    messages = [record.getMessage() for record in caplog.records]
    assert not any("\n" in message for message in messages)
    return sorted(match[1] for message in messages if (match := re.match(r"left out (\S+: \S+): .", message)))


@pytest.fixture(scope="module")
def undamaged(small_birds):
    """Decoder -> what it makes of the shards in order: the pass for testing, and the batches of training."""
    return functools.cache(
        lambda decoder: (images(loader(small_birds, TEST, decoder)), batches(loader(small_birds, TRAIN, decoder)))
    )


@pytest.mark.parametrize("kind,decoder", CASES)
def test_testing_delivers_all_other_samples(small_birds, undamaged, tmp_path, caplog, kind, decoder):
    where, bad = tars(small_birds, "test"), some(small_birds, "test")
    test = loader(damaged_copy(small_birds, tmp_path / "data", bad, KINDS[kind]), TEST, decoder)
    expected, _ = undamaged(decoder)
    for number in (1, 2):
        found = images(test)
        assert list(found) == [key for key in where if key not in bad]
        assert all(torch.equal(image, expected[key]) for key, image in found.items())
        assert test.damaged == number * len(bad)
    assert left_out(caplog) == sorted(f"{where[key]}: {key}" for key in bad)


@pytest.mark.parametrize("kind,decoder", CASES)
def test_training_replaces_damaged_samples_alone(small_birds, undamaged, tmp_path, caplog, kind, decoder):
    """Epoch after epoch, whatever is read ahead."""
    where, bad = tars(small_birds, "train"), some(small_birds, "train")
    labels = {sample.key: sample.label for sample in read(small_birds, "train")}
    train = loader(damaged_copy(small_birds, tmp_path / "data", bad, KINDS[kind]), TRAIN, decoder)
    replaced = 0
    for found, expected in zip(batches(train), undamaged(decoder)[1], strict=True):
        assert len(found.keys) == len(found.images) == BATCH
        assert found.labels.tolist() == [labels[key] for key in found.keys]
        for place, key in enumerate(expected.keys):
            if key in bad:
                replaced += 1
                assert found.keys[place] not in bad
            else:
                assert found.keys[place] == key
                assert torch.equal(found.images[place], expected.images[place])
    assert replaced == 3 * len(bad)
    assert train.damaged >= replaced  # what came in their place may have been damaged as well
    assert train.state()["read"] == BATCHES * BATCH + train.damaged
    assert left_out(caplog) == sorted(f"{where[key]}: {key}" for key in bad)


@pytest.fixture(scope="module")
def zeroed(small_birds, tmp_path_factory):
    """Shards with images of zeros in all splits."""
    keys = set().union(*(some(small_birds, split) for split in ("train", "val", "test")))
    return damaged_copy(small_birds, tmp_path_factory.mktemp("zeroed") / "data", keys, KINDS["all zero bytes"])


@pytest.fixture(scope="module", params=DECODERS)
def stream(request, zeroed):
    """Decoder, batches of training on the damaged shards, and the state after them."""
    whole = loader(zeroed, TRAIN, request.param)
    return request.param, batches(whole), whole.state()


@pytest.mark.parametrize("stop", [1, 4])
def test_a_damaged_stream_goes_on_exactly_where_it_stopped(zeroed, stream, stop):
    decoder, expected, state = stream
    stopped, resumed = loader(zeroed, TRAIN, decoder), loader(zeroed, TRAIN, decoder)
    batches(stopped, stop)
    assert stopped.damaged > 0
    resumed.resume(stopped.state())
    for one, other in zip(expected[stop:], batches(resumed, BATCHES - stop), strict=True):
        assert one.keys == other.keys
        assert torch.equal(one.images, other.images)
    assert resumed.state() == state


def test_ranks_share_out_a_damaged_stream(zeroed, stream):
    decoder, expected, state = stream
    ranks = [loader(zeroed, TRAIN, decoder, BATCH, rank=rank, world_size=2) for rank in range(2)]
    for whole, *parts in zip(expected, *map(batches, ranks), strict=True):
        assert whole.keys == parts[0].keys + parts[1].keys
        assert torch.equal(whole.images, torch.cat([part.images for part in parts]))
    assert state["damaged"] == sum(rank.damaged for rank in ranks)


@pytest.mark.parametrize("decoder", DECODERS)
def test_shards_in_order_leave_no_line(small_birds, caplog, decoder):
    test, train = loader(small_birds, TEST, decoder), loader(small_birds, TRAIN, decoder)
    assert len(images(test)) == 40
    batches(train)
    assert test.damaged == train.damaged == 0
    assert caplog.records == []


@pytest.mark.parametrize("lost", [1, 10])
def test_samples_of_a_truncated_tar_are_left_out(small_birds, tmp_path, caplog, lost):
    data = shutil.copytree(small_birds, tmp_path / "data")
    with tarfile.open(data / "test-00001.tar") as tar:
        members = tar.getmembers()
    keys = list(dict.fromkeys(member.name.partition(".")[0] for member in members))[-lost:]
    first = next(member for member in members if member.name == f"{keys[0]}.jpg")
    os.truncate(data / "test-00001.tar", first.offset_data + first.size // 2)
    test = loader(data, TEST, "pillow", max_damaged=0.01)
    assert images(test).keys() == tars(small_birds, "test").keys() - keys
    assert test.damaged == lost
    assert left_out(caplog) == sorted(f"test-00001.tar: {key}" for key in keys)


def test_samples_gone_without_a_trace_are_counted(small_birds, tmp_path, caplog):
    """A shard packed anew with fewer samples; nothing is left that could tell which."""
    data = shutil.copytree(small_birds, tmp_path / "data")
    storage = open_storage(data)
    entries = read_index(storage, "test-00001.idx")
    del entries[4:6]
    content = [(entry.key, read_fields(storage, "test-00001.tar", entry)) for entry in entries]
    writer.write_shard(data, "test-00001", content)
    test = loader(data, TEST, "pillow")
    assert images(test).keys() == tars(data, "test").keys()
    assert test.damaged == 2
    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("left out")]
    assert lines == [f"left out test-00001.tar: sample {n}: lost, 13 samples can be found in the tar" for n in (13, 14)]


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes((path.parent / "test-00000.idx").read_bytes()),
        lambda path: path.write_bytes(bytes(path.stat().st_size)),
        lambda path: path.write_bytes(b""),
    ],
)
def test_a_stale_index_costs_no_sample(small_birds, undamaged, tmp_path, caplog, damage):
    data = shutil.copytree(small_birds, tmp_path / "data")
    damage(data / "test-00001.idx")
    test = loader(data, TEST, "pillow")
    expected, _ = undamaged("pillow")
    found = images(test)
    assert list(found) == list(expected)
    assert all(torch.equal(image, expected[key]) for key, image in found.items())
    assert test.damaged == 0
    assert any("test-00001.idx: its sha256 differs" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("decoder", DECODERS)
def test_changed_pixels_are_delivered(small_birds, tmp_path, decoder):
    """What decodes cannot be told from another image without reading whole shards; that is for verify."""
    bad = some(small_birds, "test")

    def change_byte(data):
        middle = (data.index(b"\xff\xda") + len(data)) // 2
        at = next(n for n in range(middle, len(data)) if 0xFF not in (data[n - 1], data[n], data[n] ^ 16, data[n + 1]))
        return data[:at] + bytes([data[at] ^ 16]) + data[at + 1 :]

    data = damaged_copy(small_birds, tmp_path / "data", bad, change("jpg", change_byte))
    test = loader(data, TEST, decoder)
    assert images(test).keys() == tars(small_birds, "test").keys()
    assert test.damaged == 0


@pytest.mark.parametrize("kind", ["missing label", "all zero bytes"])
def test_more_than_the_share_stops_a_test(small_birds, tmp_path, kind):
    """1 % of at least 1000: ten are allowed."""
    keys = list(tars(small_birds, "test"))
    ten, eleven = (
        loader(
            damaged_copy(small_birds, tmp_path / str(count), set(keys[20 : 20 + count]), KINDS[kind]),
            TEST,
            "pillow",
            max_damaged=0.01,
        )
        for count in (10, 11)
    )
    assert len(images(ten)) == 30
    with pytest.raises(ValueError, match=SHARE) as caught:
        images(eleven)
    assert SHARE.match(str(caught.value)).groups() == ("11", "32")
    assert len(str(caught.value).splitlines()) == 1


def test_more_than_the_share_stops_training(zeroed):
    train = loader(zeroed, TRAIN, "pillow", max_damaged=0.01)
    with pytest.raises(ValueError, match=SHARE) as caught:
        list(train)
    damaged, read = map(int, SHARE.match(str(caught.value)).groups())
    assert damaged == train.damaged > 10
    assert (read - damaged) % BATCH == 0
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("geometry", [TEST, TRAIN])
def test_more_lost_than_the_share_is_found_before_anything_is_read(small_birds, tmp_path, geometry):
    data = shutil.copytree(small_birds, tmp_path / "data")
    split = "train" if geometry.training else "test"
    os.truncate(data / f"{split}-00000.tar", 5000)
    with pytest.raises(ValueError, match=SHARE) as caught:
        loader(data, geometry, "pillow", max_damaged=0.01)
    lost, samples = map(int, SHARE.match(str(caught.value)).groups())
    assert 10 < lost <= 15
    assert samples == len(tars(small_birds, split))


def test_a_split_without_any_sample_ends(small_birds, tmp_path):
    keys = tars(small_birds, "train").keys() | tars(small_birds, "test").keys()
    data = damaged_copy(small_birds, tmp_path / "data", keys, KINDS["missing label"])
    test = loader(data, TEST, "pillow")
    assert list(test) == []
    assert test.damaged == 40
    with pytest.raises(ValueError, match="100 samples of the split train in a row are damaged"):
        next(iter(loader(data, TRAIN, "pillow")))


def test_a_run_on_damaged_shards_trains_to_the_end(zeroed, small_birds, tmp_path):
    out = tmp_path / "run"
    result = forked.run(command(zeroed, out, train__epochs=1, input__max_damaged=0.1))
    assert result.returncode == 0, result.stderr
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    counts = [line["damaged"] for line in lines if line["kind"] == "train"]
    assert counts == sorted(counts)
    assert counts[-1] >= len(some(small_birds, "train"))
    for split in ("train", "val"):
        where = tars(small_birds, split)
        for key in some(small_birds, split):
            assert f"left out {where[key]}: {key}: " in result.stderr
