"""Which cache a run reads by way of."""

import errno

import pytest

from pipelines.shards import cache as cache_module
from rg.config import InputConfig
from rg.runs import inputs


def test_training_makes_the_folder_of_its_cache(tmp_path):
    assert inputs.cache(InputConfig()) is None
    cache = inputs.cache(InputConfig(cache=str(tmp_path / "a" / "b"), cache_gib=0.5))
    assert (cache.folder, cache.limit) == (tmp_path / "a" / "b", 2**29)
    assert cache.folder.is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"^input\.cache: expected a folder, but .*file is a file$"):
        inputs.cache(InputConfig(cache=str(tmp_path / "file")))


def test_evaluation_takes_the_cache_of_a_run_only_where_it_is(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "none").mkdir()
    assert inputs.cache_of_run(InputConfig()) is None
    config = InputConfig(cache=str(tmp_path / "cache"))
    assert inputs.cache_of_run(config) is None
    assert not (tmp_path / "cache").exists()
    (tmp_path / "cache").mkdir()
    assert inputs.cache_of_run(config).folder == tmp_path / "cache"
    assert caplog.records == []

    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(cache_module.fcntl, "flock", refuse)
    assert inputs.cache_of_run(config) is None
    assert "cannot be a cache ([Errno" in caplog.text
    assert "shards are read without it" in caplog.text
