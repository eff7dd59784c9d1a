"""Folders and files that one process at a time writes: who owns them is told, and a kill leaves no lock."""

import errno
import fcntl
import signal
import socket
import subprocess
import sys

import pytest

from pipelines.locks import locked, owned_folder

OWNER = """
import os, signal, sys
from pathlib import Path
from pipelines.locks import locked
with locked(Path(sys.argv[1])):
    print("owner", flush=True)
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_folder_has_one_owner_who_is_named_until_it_is_killed(tmp_path):
    command = [sys.executable, "-c", OWNER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout.readline() == "owner\n"
        named = f"process {owner.pid} on {socket.gethostname()}, since 2"
        refusal = f"^{tmp_path}: another process is writing into this folder .{named}"
        with pytest.raises(ValueError, match=refusal), locked(tmp_path):
            pass
        refusal = rf"^{tmp_path}/a.json: another process is writing this file"
        with locked(tmp_path, "a.json"), pytest.raises(ValueError, match=refusal), locked(tmp_path, "a.json"):
            pass
    assert owner.returncode == -signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    with locked(tmp_path):
        pass
    assert not [*tmp_path.iterdir()]


def test_a_folder_that_was_made_to_own_it_goes_again_if_it_stays_empty(tmp_path):
    for name in ("empty", "full"):
        with owned_folder(tmp_path / name / "run"):
            if name == "full":
                (tmp_path / name / "run" / "file").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_a_file_system_without_locks_is_told_of(tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locked(tmp_path):
        assert "this file system has no locks" in caplog.text
