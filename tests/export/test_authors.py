"""Checkpoints of the authors' code: their outputs by their formulas, written out here on the tensors of the file."""

import dataclasses
import json
import os
import re
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import rg
from pipelines.files import sha256
from pipelines.shards.manifest import Manifest
from rg import recipes
from rg.cli.main import main
from rg.config import EvaluationConfig, InputConfig, SamplerConfig
from rg.evaluation.evaluate import evaluate
from rg.export import authors
from rg.export.authors import authors_state, export_checkpoint, import_checkpoint
from rg.model.region_grouping import RegionGroupingModel
from rg.runs.folder import Classes, load_config, load_model, save_config

STAGES = {"resnet50": (3, 4, 6), "resnet101": (3, 4, 23)}
ATTRIBUTES = ("smiling", "young")


def convolution(name, inputs, outputs, size=1):
    return {f"{name}.weight": (outputs, inputs, size, size)}


def batch_norm(name, width):
    vectors = {f"{name}.{key}": (width,) for key in ("weight", "bias", "running_mean", "running_var")}
    return vectors | {f"{name}.num_batches_tracked": ()}


def bottleneck(name, inputs, width, outputs, size=1, projection=False):
    shapes = {}
    for number, (i, o, s) in enumerate([(inputs, width, 1), (width, width, size), (width, outputs, 1)], 1):
        shapes |= convolution(f"{name}.conv{number}", i, o, s) | batch_norm(f"{name}.bn{number}", o)
    if projection:
        shapes |= convolution(f"{name}.downsample.0", inputs, outputs) | batch_norm(f"{name}.downsample.1", outputs)
    return shapes


def authors_shapes(backbone, parts, classes=0, attributes=0):
    """Name -> shape of every tensor in a checkpoint of the authors' code."""
    shapes = convolution("conv1", 3, 64, 7) | batch_norm("bn1", 64)
    for stage, (inputs, outputs) in enumerate(pairwise((64, 256, 512, 1024)), 1):
        for block in range(STAGES[backbone][stage - 1]):
            first = inputs if block == 0 else outputs
            shapes |= bottleneck(f"layer{stage}.{block}", first, outputs // 4, outputs, 3, projection=block == 0)
    shapes |= {"grouping.weight": (parts, 1024, 1, 1), "grouping.smooth_factor": (parts,)}
    for block in range(4):
        shapes |= bottleneck(f"post_block.{block}", 2048 if block else 1024, 512, 2048, projection=block == 0)
    shapes |= batch_norm("groupingbn", 2048)
    if classes:
        for block in range(2):
            shapes |= bottleneck(f"attconv.{block}", 1024, 256, 1024)
        shapes |= convolution("attconv.2", 1024, 1) | {"attconv.2.bias": (1,)} | batch_norm("attconv.3", 1)
        shapes |= {"mylinear.weight": (classes, 2048), "mylinear.bias": (classes,)}
    for attribute in range(attributes):
        for layer, (inputs, outputs) in zip((0, 3, 6), pairwise((1024, 256, 32, 1)), strict=True):
            shapes |= convolution(f"attconv.{attribute}.{layer}", inputs, outputs)
            shapes |= batch_norm(f"attconv.{attribute}.{layer + 1}", outputs)
        shapes |= bottleneck(f"nonlinear.{attribute}", 2048, 512, 2048)
        shapes |= {f"mylinear.{attribute}.weight": (1, 2048), f"mylinear.{attribute}.bias": (1,)}
    return shapes


def random_state(shapes):
    """Every tensor as after some training; features small enough that no position belongs to one part alone."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for index, (name, shape) in enumerate(shapes.items()):
        if name.endswith("num_batches_tracked"):
            shared = ("attconv", "nonlinear") if "mylinear.0.bias" in shapes else ()
            state[name] = torch.tensor(7 if name.startswith(shared) else index)
        elif name.endswith("running_var"):
            state[name] = 0.5 + torch.rand(shape, generator=generator)
        elif name.endswith(("running_mean", "bias")) or name == "grouping.smooth_factor":
            state[name] = 0.3 * torch.randn(shape, generator=generator)
        elif len(shape) == 1:
            state[name] = 0.5 + torch.rand(shape, generator=generator)
        else:
            fan_in = torch.Size(shape[1:]).numel()
            state[name] = torch.randn(shape, generator=generator) * (2 / fan_in) ** 0.5
    for name in state:
        if re.match(r"layer\d\.\d+\.(bn3|downsample\.1)\.(weight|bias)", name):
            state[name] *= 0.03 if name.startswith("layer3") else 0.4
    return state


class Authors:
    """The formulas, in float64.

    Before the ReLU of the attention they can note its statistics, so that it cuts off some parts and not others.
    """

    def __init__(self, state, backbone, note=False):
        self.state = {name: value.double() for name, value in state.items()}
        self.backbone = backbone
        self.note = note

    def conv(self, x, name, stride=1):
        weight = self.state[f"{name}.weight"]
        return F.conv2d(x, weight, self.state.get(f"{name}.bias"), stride, padding=weight.shape[2] // 2)

    def bn(self, x, name):
        if self.note and x.shape[1] == 1:
            self.state |= {f"{name}.running_mean": x.mean().view(1), f"{name}.running_var": x.var().view(1)}
        keys = ("running_mean", "running_var", "weight", "bias")
        mean, var, weight, bias = (self.state[f"{name}.{key}"].view(-1, 1, 1) for key in keys)
        return (x - mean) / torch.sqrt(var + 1e-5) * weight + bias

    def bottleneck(self, x, name, stride=1):
        out = F.relu(self.bn(self.conv(x, f"{name}.conv1"), f"{name}.bn1"))
        out = F.relu(self.bn(self.conv(out, f"{name}.conv2", stride), f"{name}.bn2"))
        out = self.bn(self.conv(out, f"{name}.conv3"), f"{name}.bn3")
        if f"{name}.downsample.0.weight" in self.state:
            x = self.bn(self.conv(x, f"{name}.downsample.0", stride), f"{name}.downsample.1")
        return F.relu(out + x)

    def features(self, images):
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        x = F.relu(self.bn(self.conv((images.double() / 255 - mean) / std, "conv1", 2), "bn1"))
        x = F.max_pool2d(x, 3, 2, 1)
        for stage, blocks in enumerate(STAGES[self.backbone], 1):
            for block in range(blocks):
                x = self.bottleneck(x, f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1)
        return x

    def __call__(self, images):
        """Images [1, 3, H, W] -> logits, assignment, attention."""
        x = self.features(images).unsqueeze(1)
        centers = self.state["grouping.weight"].unsqueeze(0)  # [1, K, C, 1, 1]
        s = torch.sigmoid(self.state["grouping.smooth_factor"]).view(-1, 1, 1)
        q = torch.softmax(-(x - centers).square().sum(2) / s, dim=1)
        mean = (q.unsqueeze(2) * x).sum((3, 4)) / q.sum((2, 3)).clamp(min=1e-5).unsqueeze(2)
        residual = (mean - centers.flatten(2)) / torch.sqrt(s / 2).squeeze(2)
        regions = (residual / residual.norm(dim=2, keepdim=True)).transpose(1, 2).unsqueeze(3)  # [1, C, K, 1]
        z = regions
        for block in range(4):
            z = self.bottleneck(z, f"post_block.{block}")
        if "mylinear.weight" in self.state:
            out = self.bottleneck(self.bottleneck(regions, "attconv.0"), "attconv.1")
            a = torch.softmax(F.relu(self.bn(self.conv(out, "attconv.2"), "attconv.3")), dim=2)
            pooled = self.bn((a * z).sum(2, keepdim=True), "groupingbn").flatten(1)
            logits = pooled @ self.state["mylinear.weight"].T + self.state["mylinear.bias"]
            return logits, q, a.flatten(1)
        logits, attention = [], []
        for attribute in range(sum(name.startswith("mylinear") for name in self.state) // 2):
            out = regions
            for layer in (0, 3, 6):
                name = f"attconv.{attribute}"
                out = F.relu(self.bn(self.conv(out, f"{name}.{layer}"), f"{name}.{layer + 1}"))
            a = torch.softmax(out, dim=2)
            pooled = self.bottleneck(self.bn((a * z).sum(2, keepdim=True), "groupingbn"), f"nonlinear.{attribute}")
            weight, bias = (self.state[f"mylinear.{attribute}.{key}"] for key in ("weight", "bias"))
            logits.append(pooled.flatten(1) @ weight.T + bias)
            attention.append(a.flatten(1))
        return torch.cat(logits, 1), q, torch.stack(attention, 1)


def config_of(backbone):
    """CUB-200 in all but the size of the images; 5 parts."""
    config = recipes.get("cub200_resnet101" if backbone == "resnet101" else "photos_resnet50")
    return dataclasses.replace(config, input=InputConfig(short_side=96, crop=96, decoder="pillow"))


def image():
    return torch.randint(0, 256, (1, 3, 96, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@dataclasses.dataclass
class Case:
    backbone: str
    state: dict
    file: Path
    run: Path


CASES = {
    "resnet50": ("resnet50", 5, 0, "as the authors save it"),
    "resnet50-attributes": ("resnet50", 9, 2, "bare"),
    "resnet101": ("resnet101", 5, 0, "without module."),
    "resnet101-attributes": ("resnet101", 9, 2, "as the authors save it"),
}


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory, small_birds):
    backbone, parts, attributes, form = CASES[request.param]
    folder = tmp_path_factory.mktemp("authors")
    classes = Classes(ATTRIBUTES, True) if attributes else Classes(Manifest.load(small_birds).classes)
    state = random_state(authors_shapes(backbone, parts, 0 if attributes else len(classes.names), attributes))
    authors = Authors(state, backbone, note=True)
    x = authors.features(image()).flatten(2)[0].T
    places = torch.linspace(0, len(x) - 1, parts).long()
    noise = 0.3 * x.std() * torch.randn(parts, 1024, generator=torch.Generator().manual_seed(2))
    authors.state["grouping.weight"] = (x[places] + noise).view(parts, 1024, 1, 1)
    authors(image())
    state = {name: value.to(state[name].dtype) for name, value in authors.state.items()}

    prefix = "" if form == "without module." else "module."
    content = {prefix + name: value for name, value in state.items()}
    if form != "bare":
        content = {"epoch": 150, "state_dict": content, "best_acc": 0.873, "optimizer_state_dict": {}, "scheduler": {}}
    file = folder / "model_best.pth.tar"
    torch.save(content, file, _use_new_zipfile_serialization=form == "bare")
    import_checkpoint(file, config_of(backbone), classes, folder / "run", "the command")
    yield Case(backbone, state, file, folder / "run")
    shutil.rmtree(folder)  # hundreds of megabytes


@torch.no_grad()
def test_an_imported_model_is_that_of_the_authors(case):
    model, _, _ = load_model(case.run)
    output = model(image())
    expected = Authors(case.state, case.backbone)(image())
    for name, theirs in zip(("logits", "assign", "attention"), expected, strict=True):
        ours = getattr(output, name).double()
        assert ours.shape == theirs.shape, name
        assert theirs.std() > 0.05 * theirs.abs().mean(), f"{name}: all alike, this says nothing"
        assert (ours - theirs).abs().max() < 1e-4 * theirs.abs().max(), name
    assert expected[1].max(1).values.median() < 0.9, "every position belongs to one part alone, this says nothing"


@pytest.mark.parametrize("case", ["resnet50", "resnet50-attributes", "resnet101"], indirect=True)
def test_the_way_back_gives_the_same_bytes(case, tmp_path):
    export_checkpoint(case.run, tmp_path / "back.pth.tar")
    content = torch.load(tmp_path / "back.pth.tar", weights_only=True)
    (tmp_path / "back.pth.tar").unlink()
    assert list(content) == ["state_dict"]
    back = content["state_dict"]
    assert set(back) == {f"module.{name}" for name in case.state}
    for name, value in case.state.items():
        tensor = back[f"module.{name}"]
        assert (tensor.dtype, tensor.shape) == (value.dtype, value.shape), name
        assert tensor.numpy().tobytes() == value.numpy().tobytes(), name


def test_a_run_says_what_it_was_made_from(case):
    config, classes = load_config(case.run)
    assert config.model.grouping.num_parts == len(case.state["grouping.smooth_factor"])
    assert classes.multi_label == ("mylinear.0.weight" in case.state)
    record = json.loads((case.run / "run.json").read_text())
    assert record["command"] == "the command"
    assert record["imported"] == {"file": str(case.file), "sha256": sha256(case.file)}
    assert record["environment"]["torch"]
    assert [path.name for path in case.run.parent.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("case", ["resnet50", "resnet50-attributes"], indirect=True)
def test_an_imported_run_explains(case):
    explanation = rg.load(case.run, device="cpu").explain(Image.new("RGB", (120, 96), (90, 120, 60)))
    assert len(explanation.parts) == len(case.state["grouping.smooth_factor"])
    total = sum(part.contribution for part in explanation.parts) + explanation.constant
    assert total == pytest.approx(explanation.logit, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("case", ["resnet50"], indirect=True)
def test_an_imported_run_is_evaluated(case, small_birds):
    result = evaluate(case.run, small_birds, "val", device="cpu")
    assert (result["samples"], len(result["parts"])) == (24, 5)


@pytest.mark.parametrize("case", ["resnet50"], indirect=True)
def test_the_commands_import_and_export(case, small_birds, tmp_path, capsys):
    (tmp_path / "data").mkdir()
    manifest = json.loads((small_birds / "manifest.json").read_text()) | {"dataset": "cub200"}
    (tmp_path / "data" / "manifest.json").write_text(json.dumps(manifest))
    words = ["--recipe", "cub200_resnet101_authors", "--backbone", "resnet50", "--data", str(tmp_path / "data")]
    assert main(["import", str(case.file), *words, "--out", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == (case.run / "model.safetensors").read_bytes()
    assert json.loads((tmp_path / "run" / "run.json").read_text())["recipe"] == "cub200_resnet101_authors"
    assert main(["export-authors", str(tmp_path / "run"), "--out", str(tmp_path / "back.pth.tar")]) == 0
    back = torch.load(tmp_path / "back.pth.tar", weights_only=True)["state_dict"]
    assert {name.removeprefix("module.") for name in back} == set(case.state)
    capsys.readouterr()
    for wrong, message in (
        (["import", str(case.file), *words, "--out", str(tmp_path / "run")], "expected a new or an empty folder"),
        (["import", str(tmp_path / "none"), *words, "--out", str(tmp_path / "other")], "there is no file"),
        (["import", str(case.file), *words[:-1], str(small_birds), "--out", str(tmp_path / "y")], "is for cub200, got"),
        (["export-authors", str(tmp_path / "none"), "--out", str(tmp_path / "x")], "no such run folder"),
    ):
        assert main(wrong) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


@pytest.mark.parametrize("backbone", STAGES)
@pytest.mark.parametrize("attributes", [0, 40])
def test_names_and_shapes_at_full_size(backbone, attributes):
    with torch.device("meta"):
        model = RegionGroupingModel(config_of(backbone).model, attributes or 200, attributes > 0, pretrained=False)
    expected = authors_shapes(backbone, 5, 0 if attributes else 200, attributes)
    assert {name: tuple(view.shape) for name, view in authors_state(model).items()} == expected


CLASSES = Classes(("wren", "robin", "jay"))


def blank(**options):
    """A state dict of 3 classes or attributes whose tensors take no room on the disk."""
    shapes = authors_shapes(**({"backbone": "resnet50", "parts": 5, "classes": 3} | options))
    dtypes = {name: torch.int64 if name.endswith("num_batches_tracked") else torch.float32 for name in shapes}
    return {name: torch.zeros((), dtype=dtypes[name]).expand(shape) for name, shape in shapes.items()}


def without(name):
    return {key: value for key, value in blank().items() if key != name}


FITS = "does not fit resnet50 with 5 parts and 3 outputs: "


@pytest.mark.parametrize(
    "content,words",
    [
        (
            lambda: without("post_block.2.bn1.bias"),
            FITS + "lacks post_block.2.bn1.bias, expected float32 [512]",
        ),
        (
            lambda: blank() | {"mylinear.weight": torch.zeros(3, 1024)},
            FITS + "mylinear.weight: expected float32 [3, 2048], got float32 [3, 1024]",
        ),
        (
            lambda: blank() | {"bn1.bias": torch.zeros(64).half()},
            FITS + "bn1.bias: expected float32 [64], got float16 [64]",
        ),
        (
            lambda: blank(backbone="resnet101"),
            FITS + "did not expect layer3.6.conv1.weight, which is float32 [256, 1024, 1, 1]",
        ),
        (lambda: blank(classes=7), "was trained on 7 classes, got the names of 3 classes"),
        (lambda: blank(classes=0, attributes=3), "was trained on 3 attributes, got the names of 3 classes"),
        (lambda: blank(parts=65), "model.grouping.num_parts: expected 1 to 64 parts, got 65"),
        (lambda: {"epoch": 3}, "holds no state dict"),
        (lambda: torch.zeros(3), "holds no state dict"),
        (lambda: {"state_dict": {}}, "holds no state dict"),
        (lambda: {"state_dict": blank(), "args": Case("", {}, Path(), Path())}, "beside tensors"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path, content, words):
    torch.save(content(), tmp_path / "x.pth.tar")
    with pytest.raises(ValueError, match=re.escape(words)) as refusal:
        import_checkpoint(tmp_path / "x.pth.tar", config_of("resnet50"), CLASSES, tmp_path / "run")
    assert len(str(refusal.value).splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["x.pth.tar"]


def test_a_count_that_differs_between_attributes_is_refused(tmp_path):
    state = blank(classes=0, attributes=3) | {"nonlinear.1.bn2.num_batches_tracked": torch.tensor(4)}
    torch.save(state, tmp_path / "x.pth.tar")
    with pytest.raises(ValueError, match=r"nonlinear\.1\.bn2\.num_batches_tracked: expected 0 .*, got 4"):
        import_checkpoint(tmp_path / "x.pth.tar", config_of("resnet50"), Classes(CLASSES.names, True), tmp_path / "run")


class Mine:
    def __reduce__(self):
        return os.mkdir, ("mine",)


def test_code_in_a_file_does_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": blank(), "scheduler": Mine()}, "x.pth.tar")
    with pytest.raises(
        ValueError, match=r"^checkpoint: x\.pth\.tar holds \S+\.mkdir beside tensors, .* could run code"
    ):
        import_checkpoint(Path("x.pth.tar"), config_of("resnet50"), CLASSES, Path("run"))
    assert [path.name for path in tmp_path.iterdir()] == ["x.pth.tar"]


@pytest.mark.parametrize(
    "content,words", [(b"", "is empty"), (b"hello", "no checkpoint"), (b"PK\x03\x04", "cut short")]
)
def test_other_files_are_refused(tmp_path, content, words):
    (tmp_path / "x.pth.tar").write_bytes(content)
    with pytest.raises(ValueError, match=rf"^checkpoint: \S+x\.pth\.tar.*{words}") as refusal:
        import_checkpoint(tmp_path / "x.pth.tar", config_of("resnet50"), CLASSES, tmp_path / "run")
    assert len(str(refusal.value).splitlines()) == 1
    with pytest.raises(ValueError, match="there is no file"):
        import_checkpoint(tmp_path / "y.pth.tar", config_of("resnet50"), CLASSES, tmp_path / "run")


def test_other_architectures_are_refused(tmp_path):
    """In both directions, before anything is read or written."""
    config = config_of("resnet50")
    grouping = dataclasses.replace(config.model.grouping, standardize=True)
    standardized = dataclasses.replace(config, model=dataclasses.replace(config.model, grouping=grouping))
    sampled = dataclasses.replace(
        config, model=dataclasses.replace(config.model, sampler=SamplerConfig("saliency", size=64, glimpse=64))
    )
    sampled = dataclasses.replace(sampled, evaluation=EvaluationConfig())
    for other, words in (
        (sampled, "model.sampler.kind: the authors' code has 'none', got 'saliency'"),
        (recipes.get("birds_lite0"), "model.backbone.name: .* got 'tf_efficientnet_lite0'"),
        (standardized, "model.grouping.standardize: the authors' code has False, got True"),
    ):
        with pytest.raises(ValueError, match=words):
            import_checkpoint(tmp_path / "x.pth.tar", other, CLASSES, tmp_path / "run")
        save_config(tmp_path, other, CLASSES)
        with pytest.raises(ValueError, match=words):
            export_checkpoint(tmp_path, tmp_path / "back.pth.tar")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["classes.json", "config.json"]


def test_nothing_is_overwritten(tmp_path):
    for name in ("x.pth.tar", "run/model.safetensors"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("precious")
    with pytest.raises(ValueError, match=r"out: expected a new or an empty folder, but .* holds model\.safetensors"):
        import_checkpoint(tmp_path / "x.pth.tar", config_of("resnet50"), CLASSES, tmp_path / "run")
    with pytest.raises(ValueError, match=r"out: .*x\.pth\.tar exists"):
        export_checkpoint(tmp_path / "run", tmp_path / "x.pth.tar")
    assert {(tmp_path / name).read_text() for name in ("x.pth.tar", "run/model.safetensors")} == {"precious"}


def test_a_run_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    def full(run, _):
        (run / "model.safetensors").write_bytes(b"half")
        raise OSError("disk full")

    torch.save(blank(), tmp_path / "x.pth.tar")
    monkeypatch.setattr(authors, "save_weights", full)
    with pytest.raises(OSError, match="disk full"):
        import_checkpoint(tmp_path / "x.pth.tar", config_of("resnet50"), CLASSES, tmp_path / "runs" / "a")
    assert list((tmp_path / "runs").iterdir()) == []
