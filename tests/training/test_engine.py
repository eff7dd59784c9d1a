"""The engine against optimisers stepped by hand: what learns, and that it goes on bit for bit."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip("deepspeed")

from rg.config import BackboneConfig, OptimizerConfig, RunConfig, TrainConfig
from rg.distributed import batch_norm
from rg.model.build import build_model
from rg.model.region_grouping import RegionGroupingModel
from rg.training.engine import Engine
from rg.training.parameters import choose_learning
from tests.support import miniature_run
from tests.support.world import World

IMAGES, STEPS = 4, 3
OWN = ("attention_share", "dictionary.border")  # statistics, which every rank has its own of
TRAIN = TrainConfig(epochs=2, global_batch=IMAGES, batch_norm="frozen")


def config(train: str = "all", **optimizer: Any) -> RunConfig:
    model = miniature_run.CONFIG.model
    backbone = dataclasses.replace(model.backbone, train=train)
    settings = OptimizerConfig(lr=0.01, new_layer_lr_scale=2.0, **optimizer)
    return RunConfig(model=dataclasses.replace(model, backbone=backbone), optimizer=settings, train=TRAIN)


def build(settings: RunConfig) -> RegionGroupingModel:
    torch.manual_seed(0)
    model = RegionGroupingModel(settings.model, 4)
    choose_learning(model, settings.model.backbone)
    return model


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.rand(IMAGES, 3, 64, 64, generator=generator) * 255, torch.arange(IMAGES)


def driven(settings: RunConfig, engine: Any) -> RunConfig:
    return dataclasses.replace(settings, train=dataclasses.replace(settings.train, engine=engine))


def take_steps(group: Any, settings: RunConfig, stage: int, first: int, end: int, saved: Any = None) -> Any:
    """Weights and state of the optimiser after some steps, from the beginning or from such a result."""
    model = build(settings)
    if saved:
        model.load_state_dict(saved[0], strict=False)
    sections = {"zero_optimization": {"stage": stage}} if stage else {}
    engine = Engine(model, settings, group, STEPS, sections, saved and saved[1])
    begin = sum(engine.sizes[: group.ranks.rank])
    own = slice(begin, begin + engine.sizes[group.ranks.rank])
    for step in range(first, end):
        for micro in range(settings.train.accumulation):
            images, labels = batch(step + STEPS * micro)
            output = engine(images[own])
            loss = F.cross_entropy(output.logits, labels[own]) * engine.share * len(engine.sizes)
            engine.backward(loss)
            engine.step(step, last=micro == settings.train.accumulation - 1)
    weights = {name: value for name, value in engine.weights().items() if name not in OWN}
    return weights, engine.momentum()


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    with World(1, tmp_path_factory.mktemp("world") / "store") as world:
        yield world


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    with World(2, tmp_path_factory.mktemp("world") / "store") as world:
        yield world


@pytest.mark.parametrize("stage", [0, 2])
def test_a_frozen_backbone_stays_as_it_is(alone, stage):
    settings = dataclasses.replace(config("none"), train=dataclasses.replace(TRAIN, batch_norm="local"))
    before = build(settings).state_dict()
    ((weights, momentum),) = alone(take_steps, settings, stage, 0, 2)
    changed = {name for name, value in weights.items() if not torch.equal(value, before[name])}
    assert not {name for name in (*changed, *momentum) if name.startswith("backbone.")}
    assert {"classifier.linear.weight", "dictionary.centers"} <= changed
    assert all(map(torch.any, momentum.values()))


def test_frozen_statistics_are_those_of_the_backbone_alone(alone):
    settings = config()
    backbone = dataclasses.replace(settings.model.backbone, frozen_statistics=True)
    model, train = (
        dataclasses.replace(settings.model, backbone=backbone),
        dataclasses.replace(TRAIN, batch_norm="local"),
    )
    settings = dataclasses.replace(settings, model=model, train=train)
    before = build(settings).state_dict()
    ((weights, _),) = alone(take_steps, settings, 0, 0, 2)
    statistics = {name for name in before if name.endswith(("running_mean", "running_var"))}
    same = {name for name in statistics if torch.equal(weights[name], before[name])}
    assert same == {name for name in statistics if name.startswith("backbone.")}
    assert not torch.equal(weights["backbone.features.conv1.weight"], before["backbone.features.conv1.weight"])


@pytest.mark.parametrize("engine", ["deepspeed", "ddp"])
@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_steps_are_those_of_the_optimiser_by_hand(alone, kind, engine):
    settings = driven(config(kind=kind, weight_decay=0.1, rates={"classifier.*": 0.5}), engine)
    ((weights, _),) = alone(take_steps, settings, 0, 0, 2)
    model = build(settings).train()
    batch_norm.freeze(model)
    groups = []
    for name, parameter in model.named_parameters():
        decay = 0.1 if kind == "sgd" or parameter.ndim > 1 else 0.0
        lr = 0.01 if name.startswith(("backbone.", "classifier.")) else 0.02
        groups.append({"params": [parameter], "lr": lr, "weight_decay": decay})
    optimizer = torch.optim.AdamW(groups) if kind == "adamw" else torch.optim.SGD(groups, momentum=0.9)
    base = [group["lr"] for group in groups]
    for step in range(2):
        images, labels = batch(step)
        optimizer.zero_grad()
        F.cross_entropy(model(images).logits, labels).backward()
        for group, lr in zip(optimizer.param_groups, base, strict=True):
            group["lr"] = lr * 0.5 * (1 + math.cos(math.pi * step / (2 * STEPS)))
        optimizer.step()
    for name, value in model.named_parameters():
        torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-5)


def test_ddp_goes_on_bit_for_bit_on_three_ranks(tmp_path):
    """Whose sums depend on their order, and so on what DDP sums together, in the first step as in all others."""
    train = dataclasses.replace(TRAIN, global_batch=2 * IMAGES, accumulation=2)
    settings = driven(dataclasses.replace(config(), train=train), "ddp")
    with World(3, tmp_path / "store") as world:
        (whole, *_), (stopped, *_) = (world(take_steps, settings, 0, 0, end) for end in (3, 2))
        resumed, *_ = world(take_steps, settings, 0, 2, 3, stopped)
    for results in zip(whole, resumed, strict=True):
        assert all(map(torch.equal, results[0].values(), results[1].values()))


@pytest.mark.parametrize("stage", [0, 2])
def test_adamw_goes_on_bit_for_bit(pair, stage):
    settings = config(kind="adamw", depth_decay=0.8)
    whole = pair(take_steps, settings, stage, 0, 3)
    stopped = pair(take_steps, settings, stage, 0, 2)
    resumed = pair(take_steps, settings, stage, 2, 3, stopped[0])
    for results in zip(whole[0], whole[1], resumed[0], strict=True):
        assert len({tuple(result) for result in results}) == 1
        for name, value in results[0].items():
            assert all(torch.equal(value, result[name]) for result in results[1:]), name


@pytest.mark.parametrize(("accumulation", "clip_norm", "tolerance"), [(2, 0.0, 0.0), (1, 0.1, 1e-6)])
def test_ddp_takes_the_steps_of_deepspeed(pair, accumulation, clip_norm, tolerance):
    """Bit for bit, but for the norm of the gradient, which is summed in another order.

    That is a relative error of some 2^-23, of gradients that move no weight by more than 0.1.
    """
    train = dataclasses.replace(TRAIN, global_batch=accumulation * IMAGES, accumulation=accumulation)
    settings = dataclasses.replace(config(clip_norm=clip_norm), train=train)
    results = [pair(take_steps, driven(settings, engine), 0, 0, 3) for engine in ("deepspeed", "ddp")]
    for (weights, momentum), (others, of_others) in zip(*results, strict=True):
        assert momentum.keys() == of_others.keys()
        for name, value in (weights | momentum).items():
            torch.testing.assert_close((others | of_others)[name], value, rtol=tolerance, atol=tolerance)


def averages(group: Any, settings: RunConfig, count: int) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    """The moving average after some steps of which the second is left out, and the weights after each."""
    torch.manual_seed(0)
    model = build_model(settings.model, 4, pretrained=False)
    engine, history = Engine(model, settings, group, STEPS), []
    for step in range(count):
        images, labels = batch(step)
        engine.backward(F.cross_entropy(engine(images).logits, labels))
        engine.step(step, last=True, skip=step == 1)
        history.append(engine.trained_weights())
    return engine.weights(), history


@pytest.mark.parametrize(
    "changed", [{}, {"kind": "plain", "backbone": BackboneConfig("test_convnext", "none")}], ids=str
)
def test_the_moving_average_is_that_of_its_definition(alone, changed):
    """Also of a network without batch norm, which counts nothing."""
    train = dataclasses.replace(TRAIN, batch_norm="local", ema=0.5)
    model = dataclasses.replace(config().model, **changed)
    ((average, history),) = alone(averages, dataclasses.replace(config(), model=model, train=train), 5)
    expected = {name: value.double() for name, value in history[0].items()}
    for step in (2, 3, 4):
        decay = min(0.5, 1 - (step + 1) ** (-2 / 3))
        expected = {name: decay * value + (1 - decay) * history[step][name] for name, value in expected.items()}
    for name, value in expected.items():
        if name.endswith("num_batches_tracked"):
            assert average[name] == history[-1][name]
        else:
            torch.testing.assert_close(average[name].double(), value, rtol=1e-5, atol=1e-6)
