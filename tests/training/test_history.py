"""The record of a run: what was written after the checkpoint it goes on from is dropped."""

from rg.training.history import History

RECORD = {"loss": 0.1 + 0.2, "lr": 1e-30}


def write(out, first, last):
    with History(out, first - 1, enabled=True) as history:
        for step in range(first, last + 1):
            history.write("train", step, step / 3, RECORD)


def test_a_resumed_run_has_the_record_of_one_that_never_stopped(tmp_path):
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
    write(tmp_path / "whole", 1, 6)
    path = tmp_path / "stopped" / "metrics.jsonl"
    write(path.parent, 1, 4)
    path.write_bytes(path.read_bytes()[:-20])  # killed while it wrote step 4
    write(path.parent, 4, 5)
    write(path.parent, 3, 6)  # from an older checkpoint
    assert path.read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()


def test_a_new_run_begins_anew(tmp_path):
    write(tmp_path, 1, 3)
    write(tmp_path, 1, 1)
    assert (tmp_path / "metrics.jsonl").read_bytes().count(b"\n") == 1


def test_other_ranks_write_nothing(tmp_path):
    with History(tmp_path, 0, enabled=False) as history:
        history.write("train", 1, 0.1, RECORD)
    assert not list(tmp_path.iterdir())
