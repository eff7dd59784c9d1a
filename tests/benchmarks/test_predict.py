"""The model of a step on a cluster: its fit, its limits, and the table in the documentation."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import predict, report
from benchmarks.predict import Cluster, Training
from benchmarks.tools import operations
from pipelines.datasets import inat2017
from rg import recipes
from rg.config import BackboneConfig, TrainConfig
from rg.model.build import build_model


def row(case, p50, provider="region grouping", mode="cuda, bf16, channels_last", metric="time", device="GPU"):
    return {"device": device, "case": case, "provider": provider, "mode": mode, "metric": metric, "p50": str(p50)}


def test_a_line_is_found_again():
    fit = predict.fit("rows", [8, 16, 32, 64], [5 + 0.5 * n for n in (8, 16, 32, 64)])
    assert (fit.fixed, fit.per_image) == pytest.approx((5, 0.5))
    assert fit.errors == pytest.approx([0] * 4, abs=1e-12)
    assert fit.step(100) == pytest.approx(55)


def test_no_other_line_has_smaller_relative_errors():
    images, times = np.array([4, 16, 64]), np.array([10.0, 21.0, 60.0])
    fit = predict.fit("rows", images.tolist(), times.tolist())

    def squares(fixed, per_image):
        return (((fixed + per_image * images) / times - 1) ** 2).sum()

    assert np.square(fit.errors).sum() == pytest.approx(squares(fit.fixed, fit.per_image))
    for fixed, per_image in ((0.1, 0), (-0.1, 0), (0, 0.01), (0, -0.01)):
        assert squares(fit.fixed + fixed, fit.per_image + per_image) > squares(fit.fixed, fit.per_image)


def test_rows_that_differ_in_more_than_images_are_not_one_line():
    rows = [row(f"net, {n} images of 128 px", 2 * n) for n in (8, 16, 32)]
    rows += [row(f"net, {n} images of 128 px", 3 * n, provider="whole network") for n in (8, 16, 32)]
    rows += [row(f"net, {n} images of 128 px", 100, metric="memory") for n in (8, 16, 32)]
    rows += [row(f"other, {n} images of 128 px", n) for n in (8, 16)]  # two say nothing of the error
    found = predict.fits(rows)
    assert [(fit.name, round(fit.per_image, 6)) for fit in found] == [
        ("GPU, net, 128 px, region grouping, cuda, bf16, channels_last", 2),
        ("GPU, net, 128 px, whole network, cuda, bf16, channels_last", 3),
    ]
    assert predict.pick(found, "whole network") is found[1]
    for words in ("cuda", "cpu"):
        with pytest.raises(ValueError, match="--fit: expected words of one of GPU, net, 128 px, region grouping"):
            predict.pick(found, words)


@pytest.mark.parametrize("device,images", [("cpu", (16, 32, 64)), ("cuda", (16, 16, 16))])
def test_ranks_share_a_cpu_and_not_a_gpu(device, images):
    rows = [row(f"{n} ranks x 16 images of 128 px", 10 * n, "step", f"training, {device}") for n in (1, 2, 4)]
    found = predict.fits(rows)
    assert [fit.images for fit in found] == ([images] if device == "cpu" else [])


def test_limits_of_a_cluster():
    cluster = Cluster(gpus=8, images=64, compute=45.0, network=100.0, loader=math.inf)
    assert Cluster(1, 64, 45.0, 100.0, math.inf).communication(1) == 0
    assert cluster.communication(1) == pytest.approx(2 * 7 / 8 * 200.8 / 200, rel=0.02)  # ms: MB over GB/s
    steps = [cluster.step(nodes) for nodes in (1, 2, 4, 64)]
    assert steps == sorted(steps)
    slow = Cluster(8, 64, 45.0, 1.0, math.inf)
    assert slow.communication(64) - slow.communication(1) > 2 * 63 / 64 * 200
    assert slow.bound(64) == "communication"
    starved = Cluster(8, 64, 45.0, 100.0, loader=1000.0)
    assert starved.throughput(3) == pytest.approx(3000)
    assert (starved.bound(3), cluster.bound(3)) == ("loader", "compute")


def test_the_documentation_holds_what_it_predicts():
    text = (report.ROOT / "docs" / "clusters.md").read_text()
    for network in (100.0, 12.5):
        cluster = Cluster(gpus=8, images=64, compute=1000 * 64 / 1430, network=network, loader=math.inf)
        assert predict.table(cluster, [1, 2, 4, 8, 16, 32, 64], 579_184) in text


def test_command(capsys):
    assert predict.main(["--nodes", "1", "8"]) == 0
    out = capsys.readouterr().out
    assert "Assumed: 1,430 images/s a GPU" in out
    assert "| 8 | 64 |" in out
    with pytest.raises(SystemExit) as stopped:
        predict.main(["--fit", "abacus"])
    assert stopped.value.code == 2
    assert "--fit: expected words of one of" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        predict.main(["--recipe", "inat2017_resnet11"])
    assert stopped.value.code == 2
    assert "there is no 'inat2017_resnet11'; did you mean inat2017_resnet101" in capsys.readouterr().err


def test_operations_are_those_of_the_layers():
    """Of a ResNet-18, as the sizes of its convolutions say; forward, and backward twice but for the image itself."""
    config = recipes.get("mini_inat_plain")
    config = replace(config, model=replace(config.model, backbone=BackboneConfig(name="resnet18")))
    config = replace(config, input=replace(config.input, crop=64, smallest_crop=32), train=TrainConfig(epochs=6))
    found, parameters = operations.stages(config, 10)
    assert [(stage.epochs, stage.crop) for stage in found] == [(1, 32), (2, 48), (1, 48), (2, 64)]
    model = build_model(config.model, 10, pretrained=False)
    assert parameters == sum(parameter.numel() for parameter in model.parameters())
    counted, first = 0, None

    def count(module, _, output):
        nonlocal counted, first
        products = output[0].numel() * module.weight[0].numel() * 2
        first = first or products
        counted += products

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    model.eval()(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    assert found[-1].operations == pytest.approx(3 * counted - first, rel=1e-3)


def test_a_whole_training_in_the_documentation():
    """The rows are those of the program; crops that grow cost what the squares of their sides say, nearly."""
    training = Training.of("inat2017_resnet101_modern")
    text = (report.ROOT / "docs" / "clusters.md").read_text()
    for host in (0.0, 85.0):
        for nodes in (1, 8):
            clusters = training.on(8, nodes, 1430.0, host, 100.0, math.inf)
            assert training.row(clusters, nodes, inat2017.TRAIN_IMAGES) in text
            assert all(cluster.step(nodes) > host for cluster in clusters)
    squares = np.mean([(stage.crop / 224) ** 2 for stage in training.stages])
    shares = [stage.operations / training.base for stage in training.stages]
    assert shares[-1] == pytest.approx(1)
    assert np.mean(shares) == pytest.approx(squares, rel=0.05)
    with pytest.raises(ValueError, match="--nodes: expected GPUs that share a batch of 512 evenly, got 24"):
        training.on(8, 3, 1430.0, 0.0, 100.0, math.inf)
