"""What a type checker says of a program that explains images."""

import re
from pathlib import Path

import pytest

api = pytest.importorskip("mypy.api")

ROOT = Path(__file__).parents[2]
OTHERS = ("torch", "torchvision", "timm", "scipy", "sklearn", "tqdm", "safetensors", "triton", "webdataset")
SETTINGS = f"""\
[mypy]
mypy_path = {ROOT}
strict = True
follow_imports = silent
[mypy-{",".join(f"{name}.*" for name in OTHERS)}]
follow_imports = skip
ignore_missing_imports = True
"""
PROGRAM = """\
from pathlib import Path
from typing import Literal
import numpy as np
from PIL import Image
from typing_extensions import assert_type
import rg
from rg.explain import Explainer
from rg.explain.explanation import Explanation, Explanations
from rg.explain.facts import Rival

model = rg.load("runs/demo", device="cpu")
"""
TYPES = {
    "model": "Explainer",
    "rg.load(Path('runs/demo'))": "Explainer",
    "model.explain('a.jpg')": "Explanation",
    "model.explain(Path('a.jpg'), view='crop', top_k=3, versus='wren')": "Explanation",
    "model.explain(Image.new('RGB', (8, 8)))": "Explanation",
    "model.explain(np.zeros((8, 8, 3), np.uint8))": "Explanation",
    "model.explain(['a.jpg'])": "Explanations",
    "model.explain([Path('a.jpg'), 'b.jpg'], batch_size=2)": "Explanations",
    "model.explain(('a.jpg', Image.new('RGB', (8, 8))))": "Explanations",
    "model.explain(sorted(Path().iterdir()))": "Explanations",
    "model.explain(['a.jpg'])[0]": "Explanation",
    "model.explain('a.jpg').label": "str",
    "model.explain('a.jpg').probability": "float",
    "model.explain('a.jpg').answer": "Literal['label', 'unsure', 'unknown', 'none']",
    "model.explain('a.jpg').top_k": "list[tuple[str, float]]",
    "model.explain('a.jpg').rival": "Rival | None",
    "model.explain('a.jpg').photo_size": "tuple[int, int] | None",
    "model.explain('a.jpg').parts[0].contribution": "float",
    "model.explain('a.jpg').picture()": "Image.Image",
    "[explanation.label for explanation in model.explain(['a.jpg'])]": "list[str]",
    "[explanation.logit for explanation in model.stream(['a.jpg'])]": "list[float]",
}
WRONG = {
    "model.explain(3)": "call-overload",
    "model.explain(b'a.jpg')": "arg-type",
    "model.explain([1])": "list-item",
    "model.explain('a.jpg', view=1)": "call-overload",
    "model.explain('a.jpg', size=224)": "call-overload",
    "model.explain('a.jpg')[0]": "index",
    "model.explain(['a.jpg']).label": "attr-defined",
    "model.explain('a.jpg').lable": "attr-defined",
    "model.explain('a.jpg').rival.label": "union-attr",
    "rg.load(7)": "arg-type",
}


@pytest.fixture(scope="module")
def errors(tmp_path_factory):
    """Expression -> the errors in its line, of all lines of one program."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "mypy.ini").write_text(SETTINGS)
    lines = [f"assert_type({expression}, {expected})" for expression, expected in TYPES.items()]
    (folder / "program.py").write_text(PROGRAM + "\n".join([*lines, *WRONG]) + "\n")
    options = [f"--config-file={folder / 'mypy.ini'}", f"--cache-dir={folder / 'cache'}"]
    output, failure, _ = api.run([*options, str(folder / "program.py")])
    assert failure == ""
    errors = {}
    for number, text in re.findall(r"program\.py:(\d+): error: (.*)", output):
        errors.setdefault(int(number), []).append(text)
    first = PROGRAM.count("\n") + 1
    assert all(number >= first for number in errors), output
    return {expression: errors.get(number, []) for number, expression in enumerate([*TYPES, *WRONG], start=first)}


@pytest.mark.parametrize("expression", TYPES)
def test_types_are_known(errors, expression):
    assert errors[expression] == []


@pytest.mark.parametrize("expression", WRONG)
def test_wrong_uses_are_errors(errors, expression):
    assert {re.search(r"\[([\w-]+)\]$", text)[1] for text in errors[expression]} == {WRONG[expression]}
