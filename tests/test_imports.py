"""What can be imported without the heavy packages, and which room imports which."""

import subprocess
import sys

WITHOUT = """
import sys
for name in ("nvidia.dali", "deepspeed", "tensorboard"):
    sys.modules[name] = None
import rg, kernels
assert callable(rg.load) and callable(kernels.region_grouping)
assert rg.recipes.get("birds_lite0").model.grouping.num_parts > 1
assert callable(rg.losses.occurrence_prior_loss)
import rg.explain, rg.report
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


def test_unknown_names_of_rg_are_attribute_errors():
    import pytest

    import rg

    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        rg.nonsense  # noqa: B018
