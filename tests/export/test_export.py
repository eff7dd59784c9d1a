"""Exported models: the same outputs as the model for any batch and size, without the code of this package."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from timm.layers import Conv2dSame
from torch import nn

from kernels import operators
from pipelines.files import sha256, write_json
from rg.cli.main import main
from rg.config import (
    BackboneConfig,
    GroupingConfig,
    HeadConfig,
    InputConfig,
    LossConfig,
    ModelConfig,
    RunConfig,
    SamplerConfig,
    SecondStageConfig,
)
from rg.explain.explainer import Explainer
from rg.export import export as module
from rg.export.export import Sizes, describe, export, find_sizes, trace
from rg.model.build import build_model
from rg.model.maps import part_map
from rg.runs.confidence import Confidence, write_confidence
from rg.runs.folder import Classes, load_model, save_config, save_weights

CLASSES = ("wren", "robin", "jay")
TOLERANCE = 1e-4  # what every exported model is promised to keep
NO_SAMPLER, ONE_STAGE = SamplerConfig(), SecondStageConfig()
ENVIRONMENT = {"python": "3.11.7", "torch": "2.9.0"}


def make_run(
    folder,
    backbone="resnet18",
    multi_label=False,
    padding="valid",
    kind="region_grouping",
    crop=80,
    sampler=NO_SAMPLER,
    second_stage=ONE_STAGE,
):
    """A run with random weights, whose head tells images apart and whose assignments are sharp."""
    torch.manual_seed(0)
    weights = "imagenet" if "lite0" in backbone else "none"
    config = RunConfig(
        ModelConfig(
            BackboneConfig(backbone, weights),
            GroupingConfig(
                num_parts=4,
                background=second_stage is not ONE_STAGE,
                standardize=True,
                smoothing_padding=padding,
            ),
            HeadConfig(region_channels=16, region_width=8, region_blocks=1, attention_width=8),
            kind,
            sampler=sampler,
            second_stage=second_stage,
        ),
        LossConfig(detail_weight=0.5, glimpse_weight=0.5) if sampler.kind == "trilinear" else LossConfig(),
        input=InputConfig(short_side=max(96, crop), crop=crop),
    )
    model = build_model(config.model, 3, multi_label)
    with torch.no_grad():
        for norm in model.modules():
            if isinstance(norm, nn.BatchNorm1d):
                norm.running_mean.normal_(std=0.1)
                norm.running_var.uniform_(0.5, 1.5)
                norm.weight.uniform_(0.5, 1.5)
        if kind != "plain":
            model.initialize_dictionary(torch.randint(0, 256, (8, 3, crop, crop), dtype=torch.uint8), 0)
            model.dictionary.raw_sigma.fill_(-4)
    folder.mkdir()
    save_config(folder, config, Classes(CLASSES, multi_label))
    save_weights(folder, model)
    record = {"recipe": "photos_lite0", "device": "cpu", "ranks": 1, "environment": ENVIRONMENT}
    data = {"dataset": "folder", "options": {"quality": 90}, "shards": ["0"]}
    write_json(folder / "run.json", record | {"data": data})
    return folder


def noise(*shape):
    return 255 * torch.rand(*shape, generator=torch.Generator().manual_seed(1))


def session_of(path):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def lite0(tmp_path_factory):
    """The backbone of the demo; parts have names."""
    run = make_run(tmp_path_factory.mktemp("lite0") / "run", "tf_efficientnet_lite0", padding="same")
    write_json(run / "part_names.json", {"1": "crown", "2": {"background": True}})
    assert main(["export", str(run)]) == 0
    return run


@pytest.mark.parametrize("shape", [(1, 3, 17, 17), (2, 3, 18, 97), (5, 3, 64, 31), (1, 3, 161, 160)])
def test_onnx_gives_what_the_model_gives(lite0, shape):
    """Compared with float64, at assignments whose logits reach hundreds."""
    model = load_model(lite0)[0].double()
    images = noise(*shape)
    with torch.no_grad():
        x, dictionary = model.features(images.double()), model.dictionary
        distance = torch.cdist(x.flatten(2).transpose(1, 2), dictionary.centers)
        assert (distance.square() / (2 * dictionary.sigma.square())).max() > 200
        expected = model(images.double())
    session = session_of(lite0 / "model.onnx")
    found = session.run(None, {"images": images.numpy()})
    for output, value in zip(session.get_outputs(), found, strict=True):
        np.testing.assert_allclose(value, getattr(expected, output.name), rtol=0, atol=TOLERANCE)


def test_onnx_of_attributes_gives_what_the_model_gives(tmp_path):
    """Attention is one for every attribute."""
    run = make_run(tmp_path / "run", multi_label=True)
    assert main(["export", str(run)]) == 0
    model = load_model(run)[0].double()
    images = noise(3, 3, 97, 80)
    with torch.no_grad():
        expected = model(images.double())
    assert expected.attention.shape == (3, len(CLASSES), 4)
    session = session_of(run / "model.onnx")
    found = session.run(None, {"images": images.numpy()})
    for output, value in zip(session.get_outputs(), found, strict=True):
        np.testing.assert_allclose(value, getattr(expected, output.name), rtol=0, atol=TOLERANCE)


def test_onnx_says_what_it_takes(lite0):
    content = onnx.load(lite0 / "model.onnx")
    onnx.checker.check_model(content, full_check=True)
    assert {entry.domain: entry.version for entry in content.opset_import}[""] == 18
    session = session_of(lite0 / "model.onnx")
    (images,) = session.get_inputs()
    assert (images.name, images.type, images.shape) == ("images", "tensor(float)", ["N", 3, "H", "W"])
    assert [output.name for output in session.get_outputs()] == ["logits", "assign", "attention"]
    stored = {name: json.loads(value) for name, value in session.get_modelmeta().custom_metadata_map.items()}
    assert stored["classes"] == list(CLASSES)
    assert not stored["multi_label"]
    background = load_model(lite0)[0].background.tolist()
    names = ["part 0", "crown", "part 2", "part 3"]
    seen = [background[0], background[1], True, background[3]]
    assert stored["parts"] == [{"name": n, "background": b} for n, b in zip(names, seen, strict=True)]
    assert stored["size"] == {"any": True, "minimum": 17, "stride": 16}
    assert (stored["input"]["short_side"], stored["input"]["crop"]) == (96, 80)
    assert stored["versions"]["torch"] == torch.__version__.partition("+")[0]


def test_the_example_of_the_card_runs(lite0, tmp_path):
    """On a picture that lies on its side, and whose short side is that of testing, so that nothing is resized, it says
    what explain says.
    """
    pixels = np.random.default_rng(0).integers(0, 256, (96, 120, 3), dtype=np.uint8)
    (exif := Image.Exif())[0x0112] = 6  # to be turned clockwise
    Image.fromarray(np.rot90(pixels)).save(tmp_path / "bird.png", exif=exif)
    (tmp_path / "bird.png").rename(tmp_path / "bird.jpg")  # read by content: no loss, so the pixels are the same
    (tmp_path / "model.onnx").write_bytes((lite0 / "model.onnx").read_bytes())
    (code,) = re.findall(r"```python\n(.+?)```", (lite0 / "model.onnx.md").read_text(), re.DOTALL)
    assert len(code.splitlines()) <= 13
    code += "\nprint(json.dumps(logits[0].tolist()))"
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    label, logits = result.stdout.splitlines()
    explanation = Explainer.load(lite0, "cpu").explain(pixels, view="crop")
    assert label == explanation.label
    assert max(json.loads(logits)) == pytest.approx(explanation.logit, abs=TOLERANCE)


def test_the_card_prepares_photos_as_the_run_does(lite0, tmp_path, monkeypatch, capsys):
    """Of any shape, half transparent ones, too: the logits of the program are those of explain and of the server."""
    httpx = pytest.importorskip("httpx")
    from tests.server.test_serve import Limits, served

    random = np.random.default_rng(1)
    paths = [tmp_path / f"{number}.png" for number in range(24)]
    for number, path in enumerate(paths):
        width, height = random.integers(90, 400, 2)
        coarse = random.integers(0, 256, (9, 9, 4 if number % 4 == 0 else 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((width, height)).save(path)
    explainer = Explainer.load(lite0, "cpu")
    explanations = explainer.explain(paths, view="crop")
    with httpx.Client(timeout=60) as client, served(explainer, Limits()) as address:
        posts = [
            client.post(f"{address}/explain", params={"view": "crop", "top_k": 1000}, content=path.read_bytes())
            for path in paths
        ]
    (code,) = re.findall(r"```python\n(.+?)```", (lite0 / "model.onnx.md").read_text(), re.DOTALL)
    monkeypatch.chdir(lite0)
    for path, explanation, post in zip(paths, explanations, posts, strict=True):
        names = {}
        exec(code.replace("bird.jpg", str(path)), names)
        assert names["logits"].max() == pytest.approx(explanation.logit, abs=TOLERANCE)
        assert post.json()["logit"] == pytest.approx(explanation.logit, abs=TOLERANCE)
        probabilities = {answer["label"]: answer["probability"] for answer in post.json()["top_k"]}
        softmax = torch.from_numpy(names["logits"][0]).double().softmax(0).tolist()
        assert probabilities == pytest.approx(dict(zip(explainer.classes.names, softmax, strict=True)), abs=TOLERANCE)
    assert capsys.readouterr().out.splitlines() == [explanation.label for explanation in explanations]


@pytest.mark.parametrize("view,temperature", [("input", 1.5), ("whole", 2.5)])
def test_a_file_carries_what_turns_its_logits_into_answers(lite0, tmp_path, view, temperature):
    """That of the crops, which the file is prepared for."""
    run = tmp_path / "run"
    shutil.copytree(lite0, run, ignore=shutil.ignore_patterns("model.onnx*"))
    model, config, classes = load_model(run)
    config = dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, view=view))
    assert describe(run, model, config, classes, Sizes(True, 17, 16))["confidence"] is None
    fitted = Confidence(1.5, 0.8, 0.1, 0.95, 0.01, 0.9, 0.96, 24, "birds", sha256(run / "model.safetensors"))
    write_confidence(run / "confidence.json", fitted)
    write_confidence(run / "confidence.input.json", dataclasses.replace(fitted, temperature=2.5))
    confidence = describe(run, model, config, classes, Sizes(True, 17, 16))["confidence"]
    assert confidence == {"temperature": temperature, "threshold": 0.8, "target_precision": 0.95, "dataset": "birds"}
    write_confidence(run / "confidence.input.json", dataclasses.replace(fitted, temperature=None, threshold=None))
    write_confidence(run / "confidence.json", dataclasses.replace(fitted, temperature=None, threshold=None))
    confidence = describe(run, model, config, classes, Sizes(True, 17, 16))["confidence"]
    assert (confidence["temperature"], confidence["threshold"]) == (1.0, 1.0)  # all answers are withheld, as by explain


ELSEWHERE = """
import sys
for name in ("rg", "kernels", "pipelines", "timm", "torchvision"):
    sys.modules[name] = None
import json, torch
files = {"metadata.json": ""}
model = torch.export.load(sys.argv[1], extra_files=files).module()
outputs = [model(images) for images in torch.load(sys.argv[2], weights_only=True)]
torch.save({"metadata": json.loads(files["metadata.json"]), "outputs": outputs}, sys.argv[3])
"""


def test_a_program_of_torch_export_needs_torch_alone(tmp_path):
    """Of a model of attributes; the smoothing window has to fit into its maps."""
    run = make_run(tmp_path / "run", multi_label=True)
    out, differences = export(run, "torch-export", tmp_path / "new" / "birds.pt2")
    assert (out, set(differences)) == (tmp_path / "new" / "birds.pt2", {"logits", "assign", "attention"})
    images = [noise(1, 3, 65, 70), noise(4, 3, 131, 65)]
    torch.save(images, tmp_path / "images.pt")
    (tmp_path / "elsewhere.py").write_text(ELSEWHERE)
    command = [sys.executable, "elsewhere.py", out, "images.pt", "outputs.pt"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    found = torch.load(tmp_path / "outputs.pt", weights_only=True)
    model = load_model(run)[0].double()
    for given, outputs in zip(images, found["outputs"], strict=True):
        with torch.no_grad():
            expected = model(given.double())
        assert list(outputs) == ["logits", "assign", "attention"]
        for name, value in outputs.items():
            torch.testing.assert_close(value.double(), getattr(expected, name), rtol=0, atol=TOLERANCE)
    assert found["outputs"][1]["attention"].shape == (4, 3, 4)
    assert found["metadata"]["multi_label"]
    assert found["metadata"]["size"] == {"any": True, "minimum": 65, "stride": 16}
    page = (tmp_path / "new" / "birds.pt2.md").read_text()
    assert "torch.export.load('birds.pt2'" in page
    assert "of 3 attributes" in page


def paths_in(file):
    """Folders of this machine that a file, or a file in an archive, names."""
    content = file.read_bytes()
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            content = b"".join(archive.read(name) for name in archive.namelist())
    return set(re.findall(rb"/[\w./-]*(?:/rg/|site-packages)[\w./-]*", content))


@pytest.mark.parametrize("kind,format", [("saliency", "torch-export"), ("trilinear", "onnx")])
def test_a_sampler_is_part_of_what_is_exported(tmp_path, kind, format):
    """And assignments are those of the images, of any batch."""
    sampler = SamplerConfig(kind, 64, 2, "test_resnet", "none", glimpse=64)
    run = make_run(tmp_path / "run", padding="same", crop=96, sampler=sampler)
    model = load_model(run)[0]
    with torch.no_grad():
        for parameter in model.sampler.parameters():
            parameter.normal_(std=0.3)  # so that it does zoom
        model.dictionary.raw_sigma.fill_(0)  # rounding of places in the image is much for very sharp assignments
    save_weights(run, model)
    path, _ = export(run, format)
    images = noise(3, 3, 96, 96)
    with torch.no_grad():
        sampled = model.sampler(images)
        expected = model.double()(images.double())
    assert (sampled.nodes.diff(dim=2)[..., 0].amax() / sampled.nodes.diff(dim=2)[..., 0].amin()) > 1.05
    assert expected.assign.shape == (3, 4, 6, 6)
    if format == "onnx":
        found = session_of(path).run(None, {"images": images.numpy()})[1]
    else:
        found = torch.export.load(path).module()(images)["assign"].detach()
    np.testing.assert_allclose(found, expected.assign, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    "masks,shrink,format,shape",
    [
        ("together", 2, "onnx", (2, 3, 97, 130)),
        ("each", 1, "torch-export", (3, 3, 96, 64)),
    ],
)
def test_a_second_stage_is_part_of_what_is_exported(tmp_path, masks, shrink, format, shape):
    """And the file tells which pixels it has shown to itself. Sizes need not be multiples of the stride."""
    run = make_run(tmp_path / "run", padding="same", second_stage=SecondStageConfig(masks, shrink))
    model = load_model(run)[0]
    path, differences = export(run, format)
    assert list(differences) == ["logits", "assign", "attention", "part_map"]
    assert differences["part_map"] == 0
    card = path.with_name(f"{path.name}.md").read_text()
    assert "`part_map` | int64 [N, H, W]" in card
    assert "logits, assign, attention, part_map = " in card
    images = noise(*shape)
    with torch.no_grad():
        expected = model(images)
    strongest = part_map(expected.assign, shape[2:])
    assert len(strongest.unique()) > 2
    if format == "onnx":
        session = session_of(path)
        names = [output.name for output in session.get_outputs()]
        found = dict(zip(names, session.run(None, {"images": images.numpy()}), strict=True))
    else:
        found = {name: value.detach().numpy() for name, value in torch.export.load(path).module()(images).items()}
    assert found["part_map"].dtype == np.int64
    unlike = found["part_map"] != strongest.numpy()
    assert unlike.mean() < 1e-3  # of pixels between two parts, float32 cannot tell which is stronger
    for name in ("logits", "attention"):
        same = ~unlike.any((1, 2))
        np.testing.assert_allclose(found[name][same], getattr(expected, name).numpy()[same], rtol=0, atol=TOLERANCE)


def test_no_folder_of_this_machine_is_in_a_file(lite0, tmp_path):
    assert paths_in(lite0 / "model.onnx") == set()
    export(make_run(tmp_path / "run", "test_resnet"), "torch-export", tmp_path / "model.pt2")
    assert paths_in(tmp_path / "model.pt2") == set()


def test_a_plain_network_gives_logits(tmp_path, capsys):
    run = make_run(tmp_path / "run", "test_resnet", kind="plain")
    assert main(["export", str(run), "--out", str(tmp_path / "plain.onnx")]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 2
    assert printed[0].startswith("logits     differs by at most ")
    assert printed[1] == str(tmp_path / "plain.onnx")
    images = noise(3, 3, 97, 75)
    session = session_of(tmp_path / "plain.onnx")
    assert [output.name for output in session.get_outputs()] == ["logits"]
    assert "parts" not in session.get_modelmeta().custom_metadata_map
    with torch.no_grad():
        expected = load_model(run)[0](images).logits
    np.testing.assert_allclose(session.run(None, {"images": images.numpy()})[0], expected, rtol=0, atol=TOLERANCE)


def test_a_backbone_of_one_size_says_so(tmp_path, caplog):
    run = make_run(tmp_path / "run", "test_vit", padding="same", crop=160)
    with caplog.at_level("INFO", "rg.export.export"):
        export(run, "torch-export")
    assert "images of 160x160 pixels only" in caplog.text
    assert "images of 160x160 pixels only" in (run / "model.pt2.md").read_text()
    program = torch.export.load(run / "model.pt2", extra_files=(files := {"metadata.json": ""}))
    assert json.loads(files["metadata.json"])["size"] == {"any": False, "side": 160, "stride": 16}
    images = noise(4, 3, 160, 160)
    with torch.no_grad():
        expected = load_model(run)[0](images).logits
        torch.testing.assert_close(program.module()(images)["logits"], expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("padding,positions", [("valid", 5), ("same", 2)])
def test_the_minimum_is_the_smallest_that_the_model_takes(padding, positions):
    config = ModelConfig(BackboneConfig("resnet18", "none"), GroupingConfig(smoothing_padding=padding))
    model = build_model(config, 3).eval()
    sizes = find_sizes(model, 80)
    assert sizes == Sizes(True, 16 * (positions - 1) + 1, 16)
    with torch.no_grad():
        assert model(noise(1, 3, sizes.side, sizes.side)).assign.shape[2:] == (positions, positions)
        if padding == "valid":
            with pytest.raises(ValueError, match="smoothing window"):
                model(noise(1, 3, sizes.side - 1, sizes.side))


@pytest.mark.parametrize("kernel", [2, 3, 4, 5, 7])
@pytest.mark.parametrize("stride", [1, 2])
def test_the_stand_in_pads_as_timm_does(kernel, stride):
    own = Conv2dSame(2, 4, kernel, stride).double()
    stand_in = module._SameConvolution(own)
    for height in range(kernel, kernel + 9):
        x = torch.randn(1, 2, height, 2 * height + 1, dtype=torch.float64)
        torch.testing.assert_close(stand_in(x), own(x))


def test_no_operator_of_ours_is_in_a_graph(tmp_path, monkeypatch):
    """Not even where Triton would compute."""
    monkeypatch.setattr(operators, "INTERPRETED", True)
    model = load_model(make_run(tmp_path / "run", "test_resnet"))[0]
    graph = trace(model, find_sizes(model, 80)).graph
    namespaces = {node.target.namespace for node in graph.nodes if isinstance(node.target, torch._ops.OpOverload)}
    assert namespaces == {"aten"}


@pytest.mark.parametrize("format", ["onnx", "torch-export"])
def test_a_model_that_differs_is_not_written(tmp_path, monkeypatch, capsys, format):
    run = make_run(tmp_path / "run", "test_resnet", kind="plain")
    before = sorted(run.iterdir())
    traceable = module._traceable

    def spoiled(model):
        model = traceable(model)
        model.classifier.bias.data += torch.tensor([0, 2e-3, 0])
        return model

    monkeypatch.setattr(module, "_traceable", spoiled)
    assert main(["export", str(run), "--format", format]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "logits of the exported model differs by 2.0e-03" in captured.err.splitlines()[-1]
    assert sorted(run.iterdir()) == before


def test_what_is_not_a_number_differs(tmp_path):
    model = load_model(make_run(tmp_path / "run", "test_resnet", kind="plain"))[0]
    program = lambda images: {"logits": torch.full((len(images), 3), torch.nan)}  # noqa: E731
    assert not module.compare(model, program, Sizes(True, 17, 32), 80)["logits"] <= TOLERANCE


def test_another_shape_differs(tmp_path):
    """Also one that would be broadcast."""
    model = load_model(make_run(tmp_path / "run", "test_resnet", kind="plain"))[0]
    program = lambda images: {"logits": model(images).logits[:, :1]}  # noqa: E731
    with pytest.raises(ValueError, match=r"logits of the exported model: expected \[1, 3\] for 1 images.*got \[1, 1\]"):
        module.compare(model, program, Sizes(True, 17, 32), 80)


def test_bad_arguments(tmp_path, monkeypatch, capsys):
    run = make_run(tmp_path / "run", "test_resnet", kind="plain")
    with pytest.raises(ValueError, match="format: expected one of onnx, torch-export, got 'tflite'"):
        export(run, "tflite")
    assert main(["export", str(run), "--out", str(tmp_path / "model.pt2")]) == 2
    assert "out: expected a name that ends in .onnx, got 'model.pt2'" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main(["export", str(run)]) == 2
    assert "needs onnxruntime; pip install 'region-grouping[export]'" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.onnx"))


@pytest.mark.parametrize("multi_label,form", [(False, "onnx"), (True, "torch-export")])
def test_parts_that_are_off_or_merged_are_so_in_the_file(tmp_path, multi_label, form):
    """Beside the model as it was trained, in float64, edited by hand."""
    run = make_run(tmp_path / "run", multi_label=multi_label)
    model, images = load_model(run)[0].double(), noise(3, 3, 97, 80)
    with torch.no_grad():
        whole = model(images.double())
        heard = torch.tensor([1.0, 0, 1, 1], dtype=torch.float64)
        logits = model.classify(whole.regions, whole.attention * heard)
    merged = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 0]], dtype=torch.float64)
    expected = {
        "logits": logits,
        "assign": torch.einsum("nkhw,kj->njhw", whole.assign, merged),
        "attention": (whole.attention * heard) @ merged,
    }
    write_json(run / "part_names.json", {"1": {"off": True}, "3": {"merge": 2}})
    assert main(["export", str(run), "--format", form]) == 0
    if form == "onnx":
        session = session_of(run / "model.onnx")
        names = [one.name for one in session.get_outputs()]
        found = dict(zip(names, session.run(None, {"images": images.numpy()}), strict=True))
        assert json.loads(session.get_modelmeta().custom_metadata_map["edits"]) == {"off": [1], "merged": {"3": 2}}
        card = run / "model.onnx.md"
    else:
        outputs = torch.export.load(run / "model.pt2").module()(images)
        found, card = {name: value.detach().numpy() for name, value in outputs.items()}, run / "model.pt2.md"
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=0, atol=TOLERANCE)
    assert (whole.logits - logits).abs().max() > 10 * TOLERANCE
    assert "part 1 switched off, part 3 merged into part 2" in card.read_text()
