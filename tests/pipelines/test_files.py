"""Lines of JSON, as a process that may be killed writes them, and folders that one process writes into."""

import json

import pytest

from pipelines.files import check_content, json_line, read_json_lines, write_together

RECORDS = [{"step": 1, "loss": 0.1 + 0.2}, {"step": 2, "name": "größer\nals"}, {}]


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_bytes(b"".join(map(json_line, RECORDS)))
    assert path.read_bytes().count(b"\n") == len(RECORDS)
    assert list(read_json_lines(path)) == list(read_json_lines(path, drop_half_line=True)) == RECORDS
    path.write_bytes(b"")
    assert list(read_json_lines(path)) == []


def test_of_a_file_that_is_cut_anywhere_all_whole_lines_are_read(tmp_path):
    path = tmp_path / "records.jsonl"
    whole = b"".join(map(json_line, RECORDS))
    ends = [len(b"".join(map(json_line, RECORDS[:count]))) for count in range(1, len(RECORDS) + 1)]
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        # A line without its line feed is whole.
        complete = sum(cut >= end - 1 for end in ends)
        assert list(read_json_lines(path, drop_half_line=True)) == RECORDS[:complete]
        if whole[:cut].endswith((b"\n", b"}")) or not cut:
            assert list(read_json_lines(path)) == RECORDS[:complete]
        else:
            with pytest.raises(ValueError, match=rf"records.jsonl: expected one JSON value per line.* {complete + 1} "):
                list(read_json_lines(path))


@pytest.mark.parametrize("damage", [b"{\n", b"\xff\xfe\n", b"\n", b"\0\0\0\n"])
@pytest.mark.parametrize("drop_half_line", [False, True])
def test_a_damaged_line_is_an_error_where_it_is_not_cut_off(tmp_path, damage, drop_half_line):
    path = tmp_path / "records.jsonl"
    path.write_bytes(json_line(RECORDS[0]) + damage + json.dumps(RECORDS[1]).encode())
    lines = read_json_lines(path, drop_half_line)
    assert next(lines) == RECORDS[0]
    with pytest.raises(ValueError, match="got line 2") as caught:
        next(lines)
    assert len(str(caught.value).splitlines()) == 1


def test_a_file_that_is_missing_is_said_to_be(tmp_path):
    with pytest.raises(FileNotFoundError):
        list(read_json_lines(tmp_path / "none.jsonl"))


@pytest.mark.parametrize("taken", ["model", "card"])
def test_files_that_belong_together_are_written_together(tmp_path, taken):
    contents = {tmp_path / "model": b"1", tmp_path / "card": b"2"}
    write_together(contents)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == contents
    for path in contents:
        path.unlink()
    (tmp_path / taken).mkdir()
    with pytest.raises(OSError, match=rf"{taken}: is a folder, expected a file"):
        write_together(contents)
    assert [path.name for path in tmp_path.iterdir()] == [taken]


@pytest.mark.parametrize(
    "content,words",
    [
        (b"", "the file is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\n", "`git lfs pull`"),
        (b"\n<!DOCTYPE html><html>", "web page"),
    ],
)
def test_what_is_left_of_a_file_is_called_by_its_name(tmp_path, content, words):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(ValueError, match=rf"^x: expected JSON, .*{words}"):
        check_content(tmp_path / "x", "x", "JSON")
