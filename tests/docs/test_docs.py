"""What the documentation says can be done: its links, names, commands and programs, and the site built of it."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import json
import os
import pkgutil
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kernels import dispatch
from rg.cli.main import VERBS, main
from rg.config import BackboneConfig, GroupingConfig, HeadConfig, InputConfig, ModelConfig, RunConfig
from rg.model.region_grouping import RegionGroupingModel
from rg.recipes import RECIPES
from rg.runs.folder import Classes, save_config, save_weights

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]
BENCHMARKS = {path.stem: path for path in (ROOT / "benchmarks").glob("*.py") if path.stem != "__init__"}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)

needs_mkdocs = pytest.mark.skipif(importlib.util.find_spec("mkdocstrings") is None, reason="no mkdocstrings")


def fences(page: Path, language: str) -> list[str]:
    """The blocks of code of a page in a language; those without a name are commands."""
    return [code for name, code in FENCE.findall(page.read_text()) if name == language]


def spans(page: Path) -> list[str]:
    """The code in the sentences of a page."""
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", FENCE.sub("", page.read_text()))]


def commands(page: Path) -> list[list[str]]:
    """The words of every command of a page, without comments."""
    lines = [line for fence in fences(page, "") for line in fence.splitlines()]
    starts = re.compile(rf"(python -m|make|sbatch|srun|{'|'.join(BENCHMARKS)}) |launch/\S+\.sh ")
    return [shlex.split(code, comments=True) for code in [*lines, *spans(page)] if starts.match(code)]


def options(words: list[str]) -> Iterator[str]:
    return (word.partition("=")[0] for word in words if word.startswith("--"))


@functools.cache
def help_of(*verb: str) -> str:
    """What ``python -m rg VERB --help`` prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        main([*verb, "--help"])
    return printed.getvalue()


def names_option(text: str, option: str) -> bool:
    return re.search(rf"(?<![\w-]){re.escape(option)}(?![\w.-])", text) is not None


def is_placeholder(word: str) -> bool:
    return word.isupper()


# The site


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = mkdocs("--site-dir", folder)
    assert done.returncode == 0, done.stderr
    return folder


def mkdocs(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", *map(str, arguments)]
    variables = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=variables)


@needs_mkdocs
def test_the_site_holds_every_page_and_loads_nothing_from_elsewhere(site: Path) -> None:
    for page in (ROOT / "docs").rglob("*.md"):
        html = (site / page.relative_to(ROOT / "docs").with_suffix(".html")).read_text()
        assert not re.findall(r"""(?:src=|<link[^>]+href=|url\()["']?(?:https?:)?//[^"'\s>]+""", html), page
    assert not (site / "numbers.json").exists()


@needs_mkdocs
@pytest.mark.parametrize(
    "page,complaint",
    [
        ("::: rg.explain.explainer.Nobody", "rg.explain.explainer.Nobody could not be found"),
        ("[elsewhere](nowhere.md)", "nowhere.md"),
        ("[elsewhere](#nothing)", "#nothing"),
        ("![a picture](nothing.png)", "nothing.png"),
    ],
)
def test_what_is_not_there_fails_the_build(page: str, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text(f"# Home\n\n{page}\n")
    config = tmp_path / "mkdocs.yml"
    config.write_text(f"INHERIT: {ROOT / 'mkdocs.yml'}\ndocs_dir: docs\nnav:\n  - index.md\n")
    done = mkdocs("--config-file", config, "--site-dir", tmp_path / "site")
    assert done.returncode != 0
    assert complaint in done.stderr


# Form


def test_the_readme_is_short() -> None:
    assert len(README.read_text().splitlines()) <= 130


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_no_line_is_long(page: Path) -> None:
    lines = [line for line in page.read_text().splitlines() if not line.startswith("|") and "](" not in line]
    assert max(map(len, lines)) <= 200


@pytest.mark.parametrize("page", [README, ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md"])
def test_links_lead_to_files(page: Path) -> None:
    for link in re.findall(r"\]\((?!https?:)([^)#\s]+)", page.read_text()):
        assert (page.parent / link).exists(), link


def test_the_picture_of_the_rooms_shows_every_room() -> None:
    words = re.findall(r">([^<]+)</text>", (ROOT / "docs" / "rooms.svg").read_text())
    rooms = [path.parent.name for package in ("rg", "pipelines") for path in (ROOT / package).glob("*/__init__.py")]
    files = [path.stem for path in (ROOT / "rg").glob("*.py") if not path.stem.startswith("__")]
    assert {*rooms, *files, "benchmarks", "rg", "pipelines", "kernels"} <= set(words)


# Names


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_names_of_the_code_exist(page: Path) -> None:
    for span in spans(page):
        if re.fullmatch(r"(rg|kernels|pipelines|benchmarks)(\.\w+)+", span):
            assert exists(span) or is_placeholder(span.rpartition(".")[2]), span
        if re.fullmatch(r"(rg|kernels|pipelines|benchmarks|launch|tests|docs)/[\w./*-]+", span):
            assert list(ROOT.glob(span.replace("NAME", "*").rstrip("/"))), span


def exists(name: str) -> bool:
    """Whether it is a module, which is not imported, or something in one."""
    with contextlib.suppress(ModuleNotFoundError):
        if importlib.util.find_spec(name):
            return True
    try:
        pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        return False
    return True


# Commands


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_can_be_typed(page: Path) -> None:
    for words in commands(page):
        line = shlex.join(words)
        match words:
            case ["python", "-m", "rg", *rest] | ["srun", "python", "-m", "rg", *rest]:
                check_verb(rest, line)
            case ["python", "-m", module, *rest] if module.startswith("benchmarks."):
                check_benchmark(module.removeprefix("benchmarks."), rest, line)
            case [name, *rest] if name in BENCHMARKS:
                check_benchmark(name, rest, line)
            case ["make", *targets]:
                check_targets(targets, line)
            case _:
                check_launch(words, line)


def check_verb(words: list[str], line: str) -> None:
    verb, *rest = words
    if is_placeholder(verb):
        return
    assert verb in VERBS, line
    text = help_of(verb)
    if verb == "prepare":
        assert rest[0] in help_of("prepare"), line
        text = help_of("prepare", rest[0])
    if verb == "recipes" and rest[:1] == ["show"]:
        assert rest[1] in RECIPES, line
    if verb == "train" and rest and not rest[0].startswith("-"):
        assert is_placeholder(rest[0]) or rest[0] in RECIPES, line
    for option in options(rest):
        assert names_option(text, option), f"{line}: {option}"


def check_benchmark(name: str, words: list[str], line: str) -> None:
    if is_placeholder(name):
        return
    assert name in BENCHMARKS, line
    programs = [BENCHMARKS[word] for word in (name, *words) if word in BENCHMARKS]  # compare runs another one
    sources = [*programs, *(ROOT / "benchmarks" / "tools").glob("*.py")]
    text = "".join(path.read_text() for path in sources)
    for option in options(words):
        assert option == "--help" or names_option(text, option), f"{line}: {option}"


def check_targets(words: list[str], line: str) -> None:
    targets = re.findall(r"^([\w.-]+):", (ROOT / "Makefile").read_text(), re.M)
    for word in words:
        assert "=" in word or is_placeholder(word) or word in targets, line


def check_launch(words: list[str], line: str) -> None:
    (place,) = [number for number, word in enumerate(words) if word.startswith("launch/")]
    assert (ROOT / words[place]).is_file(), line
    for option in options(words[place + 1 :]):
        assert option == "--dry-run" or names_option(help_of("train"), option), f"{line}: {option}"


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_options_in_sentences_exist(page: Path) -> None:
    programs = [*BENCHMARKS.values(), *(ROOT / "benchmarks" / "tools").glob("*.py"), *(ROOT / "launch").iterdir()]
    datasets = re.findall(r"^  (\w+) ", help_of("prepare"), re.M)
    texts = [*map(help_of, VERBS), *(help_of("prepare", name) for name in datasets)]
    text = "\n".join([*texts, *(path.read_text() for path in programs)])
    for span in spans(page):
        if span.startswith("--"):
            for option in options(span.split()):
                assert names_option(text, option), span


# Programs


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, which knows nothing, and a photo."""
    folder = tmp_path_factory.mktemp("place")
    config = RunConfig(
        model=ModelConfig(
            BackboneConfig(name="resnet18", weights="none"),
            GroupingConfig(num_parts=12, smoothing_padding="same"),
            HeadConfig(region_channels=16, region_width=8, region_blocks=1, attention_width=8),
        ),
        input=InputConfig(short_side=64, crop=64),
    )
    run = folder / "runs" / "demo"
    run.mkdir(parents=True)
    torch.manual_seed(0)
    save_config(run, config, Classes(("Wren", "Robin", "Jay")))
    save_weights(run, RegionGroupingModel(config.model, 3))
    pixels = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "bird.jpg")
    return folder


PROGRAMS = [(name, code) for name, page in zip(NAMES, PAGES, strict=True) for code in fences(page, "python")]


@pytest.mark.parametrize("name,code", PROGRAMS, ids=[name for name, _ in PROGRAMS])
def test_programs_run(name: str, code: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setattr(dispatch, "_preferred", dispatch.preferred())  # is what it was again afterwards
    exec(compile(code, name, "exec"), {"__name__": "__main__"})


def test_there_are_programs_to_run() -> None:
    assert len(PROGRAMS) >= 6
    assert {"README.md", "docs/explanations.md", "docs/kernels.md"} <= {name for name, _ in PROGRAMS}


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_json_is_json(page: Path) -> None:
    for code in fences(page, "json"):
        json.loads(code)
