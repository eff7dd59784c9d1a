"""Archives of published data sets."""

import io
import tarfile
import zipfile

import numpy as np
import pytest

from pipelines.datasets.published import unpack


def write(path, content):
    """An archive with one file ``images/a.jpg``."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("images/a.jpg", content)
        return
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as archive:
        member = tarfile.TarInfo("images/a.jpg")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz", "a.tgz"])
def test_an_archive_is_unpacked_once(tmp_path, name):
    content = np.random.default_rng(0).bytes(5000)
    write(tmp_path / name, content)
    for _ in range(2):
        unpack(tmp_path, {name: "images"})
        assert (tmp_path / "images/a.jpg").read_bytes() == content
        (tmp_path / name).unlink(missing_ok=True)
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


@pytest.mark.parametrize("name", ["a.zip", "a.tgz"])
def test_one_wrong_bit_is_found_by_the_checksum(tmp_path, name):
    """Wherever it lies in the stored bytes of the file; nothing is left of what was extracted."""
    content = np.random.default_rng(0).bytes(20000)
    write(tmp_path / name, content)
    archive = (tmp_path / name).read_bytes()
    for position in np.random.default_rng(1).integers(600, 15000, 20):
        damaged = bytearray(archive)
        damaged[position] ^= 4
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"{name}: cannot be extracted \(") as caught:
            unpack(tmp_path, {name: "images"})
        assert len(str(caught.value).splitlines()) == 1
        assert [path.name for path in tmp_path.iterdir()] == [name]
