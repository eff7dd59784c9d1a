"""The notebook: every cell runs on a run and shards where it expects them, and what is committed shows pictures."""

import os
import re
import shutil

import pytest

nbformat, nbclient, _, _ = map(pytest.importorskip, ("nbformat", "nbclient", "ipykernel", "matplotlib"))
from rg.runs.environment import ROOT  # noqa: E402
from tests.support import miniature_run  # noqa: E402

NOTEBOOK = ROOT / "examples" / "explain.ipynb"
LARGEST = 1_500_000  # bytes, that a clone stays small
FOLDER_OF_A_MACHINE = re.compile(r"(?<![\w.])/(home|root|tmp|work|mnt|opt|var|usr|Users)/|[A-Z]:\\\\")


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def pictures(cell):
    """How many pictures a cell shows."""
    shown = [output.get("data", {}) for output in cell.outputs]
    return sum("image/png" in data for data in shown) + sum(
        data.get("text/html", "").count("<img src=") for data in shown
    )


def test_every_cell_runs(small_birds, tmp_path, monkeypatch):
    committed = nbformat.read(NOTEBOOK, nbformat.NO_CONVERT)
    notebook = nbformat.read(NOTEBOOK, nbformat.NO_CONVERT)
    (tmp_path / "examples").mkdir()
    shutil.copytree(small_birds, tmp_path / "data" / "birds")
    run = miniature_run.build(tmp_path / "runs" / "demo", small_birds)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    resources = {"metadata": {"path": str(tmp_path / "examples")}}
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3", resources=resources).execute()
    assert {path.name for path in (run / "explained").iterdir()} == {"bird.json", "bird.png"}
    assert list(map(pictures, code_cells(notebook))) == list(map(pictures, code_cells(committed)))
    for cell in code_cells(notebook):
        kinds = [(output.output_type, output.get("name")) for output in cell.outputs]
        assert ("stream", "stderr") not in kinds
    sums = [output.text for cell in code_cells(notebook) if "maps[0].sum()" in cell.source for output in cell.outputs]
    equations = re.findall(r"(\S+) = (\S+)", "".join(sums))
    assert len(equations) == 2
    for left, right in equations:
        assert float(left) == pytest.approx(float(right), abs=2e-3)  # of float32 sums, printed to 1e-3


def test_the_committed_notebook_is_small_and_complete():
    assert NOTEBOOK.stat().st_size < LARGEST
    assert not FOLDER_OF_A_MACHINE.search(NOTEBOOK.read_text())
    cells = code_cells(nbformat.read(NOTEBOOK, nbformat.NO_CONVERT))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert all(cell.outputs for cell in cells)
    assert sum(map(pictures, cells)) == 4  # one explanation, the maps, two more explanations
