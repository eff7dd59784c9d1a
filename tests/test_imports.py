"""What can be imported without the heavy packages, and which room imports which."""

import importlib
import subprocess
import sys

import pytest

import rg
from rg.runs.environment import ROOT, environment

WITHOUT = """
import sys
for name in ("nvidia.dali", "deepspeed", "tensorboard"):
    sys.modules[name] = None
import rg, kernels
assert callable(rg.load) and callable(kernels.region_grouping)
assert rg.recipes.get("birds_lite0").model.grouping.num_parts > 1
assert callable(rg.losses.occurrence_prior_loss)
import rg.explain.explainer
assert callable(rg.report.report)
try:
    rg.load("/nowhere")
except ValueError as error:
    assert "no such run folder" in str(error)
else:
    raise AssertionError
"""


def test_explaining_needs_neither_dali_nor_deepspeed():
    result = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_import_rg_imports_nothing_heavy():
    code = "import sys, rg; print([m for m in ('torch', 'timm', 'deepspeed', 'nvidia.dali') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_a_star_imports_what_is_light():
    code = "import sys\nfrom rg import *\nprint(sorted(n for n in globals() if n[0] != '_' and n != 'sys'))\n"
    code += "print([name for name in ('torch', 'timm', 'deepspeed') if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == ["['Place', 'keep_freed_memory', 'load']", "[]"]


@pytest.mark.parametrize("name", rg.MODULES)
def test_public_modules_are_found_under_their_names(name):
    """Each in a process of its own, where nothing has imported it."""
    code = f"import rg; print(rg.{name}.__name__)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.stdout.strip(), result.returncode) == (rg.MODULES[name], 0), result.stderr


@pytest.mark.parametrize(
    "room,names",
    [("explain", ["Explainer"]), ("model", ["RegionGroupingModel", "ModelOutput", "build_model"])],
)
def test_rooms_hold_what_stood_in_modules_of_their_name(room, names):
    module = importlib.import_module(f"rg.{room}")
    for name in names:
        assert getattr(module, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        module.nonsense  # noqa: B018


ALONE = """
import importlib.util, sys
import pytest
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name in ("timm", "webdataset") else find_spec(name, *more)
sys.exit(pytest.main(["--collect-only", "-q", "-p", "no:cacheprovider", "tests"]))
"""


def test_where_packages_are_missing_the_tests_of_kernels_are_collected_alone():
    result = subprocess.run([sys.executable, "-c", ALONE], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-2000:]
    files = {line.partition("::")[0] for line in result.stdout.splitlines() if "::" in line}
    of_kernels = ("dispatch", "grouping", "image_grouping", "occurrence", "operators")
    assert files == {f"tests/kernels/test_{name}.py" for name in of_kernels}


def test_the_code_is_found_where_it_is():
    """Fingerprints and commits are those of the folder that holds the packages."""
    assert all((ROOT / name / "__init__.py").is_file() for name in ("kernels", "pipelines", "rg"))
    if (ROOT / ".git").exists():
        command = ["git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD"]
        commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        assert environment()["commit"].removesuffix("-dirty") == commit


def test_unknown_names_of_rg_are_attribute_errors():
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        rg.nonsense  # noqa: B018
