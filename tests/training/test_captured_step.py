"""Captured steps: replayed on a CPU by a stand-in for CUDA graphs, they train bit for bit as launched ones do."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import math
import signal
import weakref
from collections.abc import Sequence
from functools import reduce
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from pipelines.batches.loader import Batch
from rg.config import RunConfig
from rg.distributed.group import Group
from rg.distributed.ranks import Ranks
from rg.model.build import build_model
from rg.model.noise import image_seeds
from rg.training import captured_step
from rg.training.batch_reader import BatchReader
from rg.training.captured_step import WARM_UP
from rg.training.engine import Engine, check_engine
from rg.training.loop import Loop
from rg.training.micro_step import Inputs, MicroStep
from rg.training.objective import Objective
from tests.support import miniature_run
from tests.support.recorded_graph import recorded

SIDE, STEPS, CLASSES = 64, 6, 4
# Captured steps have float32 rates, as the kernels of a GPU always do; these are the same in both precisions.
TRAIN = {
    "optimizer.lr": 2**-9,
    "optimizer.new_layer_lr_scale": 2.0,
    "optimizer.schedule": "step",
    "optimizer.milestones": (1,),
    "optimizer.gamma": 0.5,
    "train.engine": "ddp",
    "train.epochs": 2,
    "train.global_batch": 4,
}
SECOND = {"model.grouping.background": True, "model.second_stage.masks": "together"}
TERMS = ("presence", "background", "border", "concentration", "total_variation", "orthogonality", "entropy")
PARTS = {
    "model.grouping.background": True,
    "model.grouping.gumbel": True,
    "model.head.part_dropout": 0.3,
    "loss.prior_queue": 16,
    "loss.equivariance_weight": 1.0,
    **{f"loss.{name}_weight": 0.1 for name in TERMS},
}
SAMPLER = {"model.sampler.weights": "none", "model.sampler.size": SIDE, "model.sampler.glimpse": SIDE}
SALIENCY = {**SAMPLER, "model.sampler.kind": "saliency", "model.sampler.shrink_epochs": 1}
STREAMS = {f"loss.{name}_weight": 1.0 for name in ("detail", "glimpse", "distillation")}
TRILINEAR = {**SAMPLER, **STREAMS, "model.sampler.kind": "trilinear"}
MIXED = {"input.mixup": 0.4, "input.cutmix": 1.0, "loss.label_smoothing": 0.1}
KINDS: dict[str, dict[str, Any]] = {
    "paper": {},
    "parts": PARTS | {"optimizer.kind": "adamw", "optimizer.clip_norm": 1.0},
    "mixed": MIXED | {"train.accumulation": 2, "train.ema": 0.9},
    "saliency": SALIENCY,
    "trilinear": TRILINEAR,
    "second stage": SECOND | {"train.precision": "bf16"},
    "places": {"model.place.on": True, "model.place.dropout": 0.5},
    "frozen": {"train.batch_norm": "frozen", "model.backbone.train": "none"},
    "plain": {"model.kind": "plain", "loss.prior_weight": 0.0},
}


def configure(changed: dict[str, Any]) -> RunConfig:
    """A small run with settings by their dotted names."""
    values = dataclasses.asdict(miniature_run.CONFIG)
    for name, value in {**TRAIN, **changed}.items():
        *groups, last = name.split(".")
        reduce(dict.__getitem__, groups, values)[last] = value
    return RunConfig.from_dict(values)


def batch(number: int, size: int, side: int = SIDE) -> Batch:
    generator = torch.Generator().manual_seed(number)
    images = torch.randint(0, 256, (size, 3, side, side), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, CLASSES, (size,), generator=generator)
    masks = torch.randint(0, 2, (size, side, side), generator=generator, dtype=torch.uint8)
    places = torch.rand(size, 3, generator=generator) * 90
    return Batch(images, labels, [f"{number}-{n}" for n in range(size)], part_maps=masks, places=places)


def batches(changed: dict[str, Any], sides: Sequence[int] = (SIDE,) * STEPS) -> list[Batch]:
    """The micro batches of steps whose images have these sides."""
    count = changed.get("train.accumulation", 1)
    size = TRAIN["train.global_batch"] // count
    return [batch(step * count + micro, size, side) for step, side in enumerate(sides) for micro in range(count)]


class Batches(list[Batch]):
    """A loader of these."""

    def state(self) -> dict[str, Any]:
        return {}


class Run:
    """Steps of a run, without shards, checkpoints and files."""

    def __init__(self, changed: dict[str, Any], capture: bool, images: Sequence[Batch]) -> None:
        self.config = configure({**changed, "train.capture": capture})
        torch.manual_seed(0)
        model = build_model(self.config.model, CLASSES, pretrained=False)
        self.engine = Engine(model, self.config, Group(Ranks()), STEPS // 2)
        checkpoints: Any = SimpleNamespace(busy=False, pending=False, newest=None)
        heartbeat: Any = SimpleNamespace(at=lambda _: None)
        loader: Any = Batches(images)
        what = Objective(self.config, self.engine.sizes, 0)
        self.loop = Loop(self.config, Path(), self.engine, what, loader, None, STEPS // 2, checkpoints, heartbeat)

    def step(self) -> None:
        torch.manual_seed(self.loop.step)
        self.loop._train_step()
        self.loop.step += 1

    def state(self) -> dict[str, Any]:
        """All that a step changes."""
        past = self.loop.objective.past
        return {
            "trained": self.engine.trained_weights(),
            "evaluated": self.engine.weights(),
            "optimizer": self.engine.momentum(),
            "meter": self.loop.meter.values(),
            "past": [] if past is None else past.tolist(),
            "skipped": self.loop.skipped,
        }


def alike(one: Any, other: Any) -> bool:
    leaves, others = pytree.tree_leaves(one), pytree.tree_leaves(other)
    return len(leaves) == len(others) and all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(leaves, others, strict=True)
    )


@pytest.fixture(autouse=True)
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many graphs have been captured, in a list that is as long."""
    captured: list[int] = []

    def graph_of(step: Any, pool: Any) -> Any:
        captured.append(len(captured))
        return recorded(step, pool)

    monkeypatch.setattr(captured_step, "graph_of", graph_of)
    return captured


@pytest.mark.parametrize("kind", KINDS)
def test_replayed_steps_are_those_that_are_launched(kind, graphs):
    shrinking = STEPS // 2 if kind == "saliency" else 0  # steps that are launched whatever is asked for
    images = batches(KINDS[kind], (SIDE,) * (shrinking + STEPS))
    launched, replayed = (Run(KINDS[kind], capture, images) for capture in (False, True))
    for _ in range(shrinking + STEPS):
        launched.step()
        replayed.step()
        assert alike(launched.state(), replayed.state())
    assert STEPS > WARM_UP
    assert len(graphs) == 1
    assert math.isfinite(sum(replayed.state()["meter"]))


def test_what_is_not_finite_is_left_out_on_the_device():
    """At a launched step and at a replayed one; the other steps are as if it had not been."""
    images = [dataclasses.replace(each, images=each.images.float()) for each in batches(KINDS["parts"])]
    for step in (1, STEPS - 2):
        images[step].images[0, 0, 0, 0] = math.inf
    launched, replayed = (Run(KINDS["parts"], capture, images) for capture in (False, True))
    for step in range(STEPS):
        launched.step()
        replayed.step()
        assert alike(launched.state(), replayed.state())
        assert replayed.loop.skipped == (step >= 1) + (step >= STEPS - 2)
    assert all(value.isfinite().all() for value in replayed.engine.trained_weights().values())


def test_a_launched_step_that_is_left_out_stops_no_captured_one():
    """The last step that shrinks its images, which is launched, is not finite."""
    images = batches(KINDS["saliency"], (SIDE,) * (2 * STEPS))
    last = STEPS // 2 - 1
    images[last] = dataclasses.replace(images[last], images=torch.full_like(images[last].images.float(), math.nan))
    launched, replayed = (Run(KINDS["saliency"], capture, images) for capture in (False, True))
    for _ in images:
        launched.step()
        before = replayed.engine.trained_weights()["dictionary.centers"]
        replayed.step()
        assert alike(launched.state(), replayed.state())
        after = replayed.engine.trained_weights()["dictionary.centers"]
        assert torch.equal(before, after) == (replayed.loop.step == last + 1)
    assert replayed.loop.skipped == 1


@pytest.mark.parametrize("signals,expected", [([], STEPS - 1), ([signal.SIGTERM], 0)])
def test_the_next_step_is_read_ahead_unless_this_is_the_last_one(monkeypatch, signals, expected):
    asked = []
    monkeypatch.setattr(BatchReader, "read_ahead", lambda _, count, is_busy: asked.append((count, is_busy())))
    run = Run({}, True, batches({}))
    run.loop.received += signals
    for _ in range(STEPS):
        run.step()
    assert asked == [(1, False)] * expected


def test_a_run_ends_what_its_loader_does_in_the_background(monkeypatch):
    run = Run({}, True, [])
    ended = []
    run.loop.is_main = False  # which writes files
    run.loop.batches = SimpleNamespace(close=lambda: ended.append(True))  # type: ignore[assignment]
    monkeypatch.setattr(Loop, "_run", lambda _: {}["lost"])
    with pytest.raises(KeyError, match="lost"):
        run.loop.run()
    assert ended == [True]


def test_graphs_of_shapes_that_come_no_more_are_dropped(monkeypatch):
    replays = []

    def graph_of(step: Any, pool: Any) -> Any:
        replay, outputs = recorded(step, pool)
        replays.append(weakref.ref(replay.__self__))  # type: ignore[attr-defined]
        return replay, outputs

    monkeypatch.setattr(captured_step, "graph_of", graph_of)
    images = batches({}, (SIDE,) * (WARM_UP + 2) + (SIDE + 32,) * (WARM_UP + 2))
    run = Run({}, True, images)
    for number in range(len(images)):
        run.step()
        gc.collect()
        assert [replay() is not None for replay in replays] == [[], [True], [False, True]][
            (number >= WARM_UP) + (number >= 2 * WARM_UP + 2)
        ]


def test_other_shapes_have_a_graph_of_their_own(graphs):
    images = batches({}, (SIDE, SIDE + 32) * (WARM_UP + 2))
    launched, replayed = (Run({}, capture, images) for capture in (False, True))
    for _ in images:
        launched.step()
        replayed.step()
        assert alike(launched.state(), replayed.state())
    assert len(graphs) == 2


class Meta(Ranks):
    """A rank whose device has shapes and no numbers."""

    device = torch.device("meta")  # type: ignore[assignment]


class OnMeta:
    """What ``MicroStep`` needs of an engine."""

    def __init__(self, model: Any, size: int) -> None:
        self.model, self.sizes, self.share = model.to("meta").train(), [size], 1.0
        self.group = Group(Meta())

    def __call__(self, *inputs: Any, **told: Any) -> Any:
        return self.model(*inputs, **told)

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()


class Watch(TorchDispatchMode):
    """Sees that nothing goes from the host to the device, where the device is one that computes nothing.

    Copies are seen as such. What Python makes a tensor of, a list for example, is seen when it is used: it is neither a
    result nor has it been there before.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kept = [each for each in gc.get_objects() if issubclass(type(each), torch.Tensor) and each.is_meta]
        self.known = {memory(tensor) for tensor in self.kept}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        results = function(*args, **(kwargs or {}))
        made = [leaf for leaf in pytree.tree_leaves(results) if isinstance(leaf, torch.Tensor)]
        on_host = [tensor for tensor in given if not tensor.is_meta and (tensor.ndim or any(t.is_meta for t in made))]
        assert not on_host or not any(tensor.is_meta for tensor in (*given, *made)), f"{function}: {on_host}"
        fresh = [tensor for tensor in given if tensor.is_meta and memory(tensor) not in self.known]
        assert not fresh, f"{function}: made by the host: {fresh}"
        self.kept += made  # so that no other memory gets its place
        self.known.update(memory(tensor) for tensor in made)
        return results


def memory(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_moves_nothing_between_host_and_device(kind, monkeypatch):
    """A graph cannot hold that. The second step is looked at: what is kept from the first is on the device by then."""
    config = configure(KINDS[kind])
    size = config.train.global_batch // config.train.accumulation
    engine: Any = OnMeta(build_model(config.model, CLASSES, pretrained=False), size)
    what = Objective(config, [size], 0)
    if what.past is not None:
        what.past = what.past.to("meta")
    micro_step = MicroStep(config, engine, what)
    drawn = batch(0, size)
    arrived = [
        None if value is None else value.to("meta")
        for value in micro_step.inputs(drawn, torch.zeros(2), image_seeds(0, 0, 0, 0, size))
    ]
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # which knows no such device
    for watch in (contextlib.nullcontext, Watch):
        with watch():
            losses = micro_step.forward(Inputs(*arrived))
            micro_step.backward(losses)
        engine.model.zero_grad()


def test_what_cannot_be_captured_is_refused():
    captured = configure({"train.capture": True})
    with pytest.raises(ValueError, match=r"train\.capture: expected false on a CPU, got true"):
        check_engine(captured, Ranks())
    with pytest.raises(ValueError, match=r"train\.capture: expected false on 2 ranks, got true"):
        check_engine(captured, Meta(0, 2))
    with pytest.raises(ValueError, match=r"train\.capture: expected false with model\.kind = scops, got True"):
        configure({"train.capture": True, "model.kind": "scops", "model.grouping.background": True})
    with pytest.raises(ValueError, match=r"train\.activation_checkpointing: expected false with train.capture = true"):
        configure({"train.capture": True, "train.activation_checkpointing": True})
    with pytest.raises(ValueError, match=r"train\.engine: expected ddp with train\.capture = true, got 'deepspeed'"):
        configure({"train.capture": True, "train.engine": "deepspeed"})
