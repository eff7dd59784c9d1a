"""What part_names.json may say of a part beside its name, and what it may not."""

import json
import re

import pytest
import torch

import rg
from rg.cli.main import main
from rg.model.edits import Edits
from rg.runs.folder import load_model, read_edits
from rg.runs.part_entries import edits
from rg.runs.part_names import read_parts
from tests.support import miniature_run

SLOT = 5


@pytest.mark.parametrize(
    "content,expected",
    [
        ({"3": "crown", "1": {"background": True}}, Edits()),
        ({"3": {"name": "crown", "off": True}, "1": {"merge": 2}}, Edits((3,), {1: 2})),
        ({"3": {"off": False}}, Edits()),
        ({"3": {"off": True}, "1": {"merge": 3}, "0": {"merge": 2}}, Edits((1, 3), {0: 2, 1: 3})),
    ],
)
def test_parts_are_switched_off_and_merged(tmp_path, content, expected):
    assert edits(tmp_path, content, 4) == expected


@pytest.mark.parametrize(
    "content,message",
    [
        ({"6": {"off": True}}, "expected numbers of parts, 0 to 5, got '6'"),
        ({"1": {"of": True}}, "part 1: expected a name, or any of name, background, off, merge, got {'of': True}"),
        ({"1": {"off": 1}}, "part 1: expected off true or false, got 1"),
        ({"1": {"merge": "2"}}, "part 1: expected merge with the number of another part, got '2'"),
        ({"1": {"merge": True}}, "part 1: expected merge with the number of another part, got True"),
        ({"1": {"merge": 1}}, "part 1: expected merge with the number of another part, got 1"),
        ({"1": {"merge": 6}}, "part 1: expected merge with the number of another part, got 6"),
        ({"1": {"merge": 2}, "2": {"merge": 3}}, "part 1: expected a part that stays, got 2, merged into 3"),
        ({"1": {"merge": 2, "off": True}}, "part 1 is merged; switch off part 2, which it is merged into"),
        ({"5": {"off": True}}, "part 5 is the background slot, which no class rests on; leave it as it is"),
        ({"1": {"merge": 5}}, "part 5 is the background slot"),
        ({str(k): {"off": True} for k in range(5)}, "expected a part that is on, got all of them off"),
    ],
)
def test_what_cannot_be_is_told_in_a_line(tmp_path, content, message):
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path}: {message}")) as told:
        edits(tmp_path, content, 6, SLOT)
    assert "\n" not in str(told.value)


@pytest.fixture
def run(small_birds, tmp_path):
    return miniature_run.build(tmp_path / "run", small_birds)


def test_a_run_is_loaded_with_its_edits(run):
    unedited = load_model(run)[0]
    (run / "part_names.json").write_text('{"1": {"off": true}, "3": {"merge": 0, "name": "tip"}}')
    model, config, _ = load_model(run)
    assert model.edits == read_edits(run) == Edits((1,), {3: 0})
    parts = read_parts(run, model.background.tolist())
    assert [(part.off, part.merged_into) for part in parts] == [(False, None), (True, None), (False, None), (False, 0)]
    assert unedited.state_dict().keys() == model.state_dict().keys()
    images = torch.randint(0, 256, (2, 3, 64, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole, output = unedited(images), model(images)
        contributions, _ = unedited.contributions(whole, torch.arange(4).expand(2, 4))
    torch.testing.assert_close(output.logits, whole.logits - contributions[..., 1])
    assert rg.load(run, device="cpu").parts == parts
    assert config.model.grouping.num_parts == 4


@pytest.mark.parametrize("verb", ["export", "evaluate"])
def test_the_command_line_refuses_in_a_line(run, small_birds, capsys, verb):
    (run / "part_names.json").write_text(json.dumps({"1": {"merge": 7}}))
    data = ["--data", str(small_birds)] if verb == "evaluate" else []
    assert main([verb, str(run), *data]) == 2
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    expected = "part 1: expected merge with the number of another part, got 7"
    assert line == f"rg: error: {run / 'part_names.json'}: {expected}"
