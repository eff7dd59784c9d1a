"""Batch norm of three ranks with unequal shares against PyTorch's and timm's of one process, in float64."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from rg.distributed import batch_norm
from rg.distributed.batch_norm import SynchronizedBatchNorm
from rg.distributed.group import Group
from tests.support.world import World

SIZES = (3, 1, 2)
CPU = torch.device("cpu")
STEPS = 3


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Iterator[World]:
    with World(len(SIZES), tmp_path_factory.mktemp("world") / "store") as world:
        yield world


@pytest.fixture(scope="module")
def world_of_one(tmp_path_factory) -> Iterator[World]:
    with World(1, tmp_path_factory.mktemp("world") / "store") as world:
        yield world


def flat() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3), nn.BatchNorm1d(3))


def deep() -> nn.Module:
    """Nested layers, a batch norm with timm's activation, and settings that are not the default."""
    block = nn.Sequential(nn.Conv2d(4, 6, 3), BatchNormAct2d(6, eps=1e-3, act_layer=nn.LeakyReLU, inplace=False))
    plain = nn.BatchNorm2d(4, momentum=None, affine=False)
    return nn.Sequential(nn.Conv2d(5, 4, 1), plain, block, nn.Sequential(nn.BatchNorm2d(6, momentum=0.3), nn.Sigmoid()))


def sequences() -> nn.Module:
    return nn.BatchNorm1d(5)


SHAPES = {flat: (5,), deep: (5, 7, 6), sequences: (5, 8)}
MODELS = list(SHAPES)


def made(build) -> nn.Module:
    """With parameters that tell channels apart."""
    torch.manual_seed(1)
    model = build().double()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine:
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.uniform_(module.bias, -1, 1)
    return model


def batches(build, count: int) -> tuple[Tensor, Tensor]:
    """Inputs of every step, far from zero mean, and factors that make a loss of the outputs."""
    torch.manual_seed(2)
    inputs = 3 * torch.randn(STEPS, count, *SHAPES[build], dtype=torch.float64) + 5
    return inputs, torch.randn(STEPS, *made(build)(inputs[0]).shape, dtype=torch.float64)


def learn(model: nn.Module, inputs: Tensor, factors: Tensor) -> dict[str, Tensor]:
    """Steps on a loss that is a sum over images: the last outputs, all gradients, and the state in the end."""
    inputs = inputs.clone().requires_grad_()
    outputs = [model(x) for x in inputs]
    torch.stack([(out.square() * factor).sum() for out, factor in zip(outputs, factors, strict=True)]).sum().backward()
    found = {"outputs": torch.stack(outputs).detach().transpose(0, 1), "inputs": inputs.grad.transpose(0, 1)}
    return found | {"state": model.state_dict(), "grads": [parameter.grad for parameter in model.parameters()]}


def learn_share(group: Group, build, sizes: tuple[int, ...]) -> dict:
    inputs, factors = batches(build, sum(sizes))
    rank = group.ranks.rank
    model = batch_norm.synchronize(made(build), CPU)
    return learn(model, inputs.split(sizes, 1)[rank], factors.split(sizes, 1)[rank])


@pytest.mark.parametrize("build", MODELS)
def test_ranks_together_compute_what_one_process_does(world, build):
    """Outputs, gradients of inputs and parameters, and running statistics after some steps."""
    expected = learn(made(build).train(), *batches(build, sum(SIZES)))
    found = world(learn_share, build, SIZES)
    for name in ("outputs", "inputs"):
        torch.testing.assert_close(torch.cat([each[name] for each in found]), expected[name])
    for number, grad in enumerate(expected["grads"]):
        torch.testing.assert_close(sum(each["grads"][number] for each in found), grad)
    for each in found:
        torch.testing.assert_close(each["state"], expected["state"])


@pytest.mark.parametrize("build", MODELS)
def test_one_rank_computes_what_a_process_does(world_of_one, build):
    expected = learn(made(build).train(), *batches(build, 4))
    (found,) = world_of_one(learn_share, build, (4,))
    torch.testing.assert_close(found, expected)


def learn_differently(group: Group, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Outputs and running variance of a batch norm in float32 for inputs of a dtype."""
    model = SynchronizedBatchNorm(nn.BatchNorm2d(5))
    inputs = (100 + torch.arange(12.0 * 5 * 9).view(12, 5, 3, 3) % 17).to(dtype)
    return model(inputs.split((4, 6, 2))[group.ranks.rank]).detach(), model.running_var


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrow_inputs_are_averaged_in_float32(world, dtype):
    """Values around 100 in bfloat16, whose squares it cannot tell apart."""
    inputs = (100 + torch.arange(12.0 * 5 * 9).view(12, 5, 3, 3) % 17).to(dtype)
    norm = nn.BatchNorm2d(5).double()
    expected = norm(inputs.double())
    found = world(learn_differently, dtype)
    outputs = torch.cat([out for out, _ in found])
    assert outputs.dtype == dtype
    # bfloat16 is rounded at the end only: next to each other at most, 2**-7 apart.
    torch.testing.assert_close(outputs, expected.to(dtype), rtol=2**-7 if dtype == torch.bfloat16 else 1e-5, atol=1e-5)
    for _, variance in found:
        torch.testing.assert_close(variance.double(), norm.running_var, rtol=1e-5, atol=0)


def evaluate(group: Group, build) -> tuple[Tensor, dict]:
    """With running statistics, and without asking the others: only one rank calls it."""
    model = batch_norm.synchronize(made(build), CPU)
    inputs, factors = batches(build, sum(SIZES))
    learn(model, inputs.split(SIZES, 1)[group.ranks.rank], factors.split(SIZES, 1)[group.ranks.rank])
    model.eval()
    out = model(inputs[0]).detach() if group.ranks.rank == 1 else torch.empty(0)
    return out, model.state_dict()


@pytest.mark.parametrize("build", MODELS)
def test_evaluation_takes_running_statistics_on_a_rank_alone(world, build):
    model = made(build)
    inputs, factors = batches(build, sum(SIZES))
    learn(model, inputs, factors)
    state = copy.deepcopy(model.state_dict())
    expected = model.eval()(inputs[0]).detach()
    found = world(evaluate, build)
    torch.testing.assert_close(found[1][0], expected)
    torch.testing.assert_close(found[1][1], state)


def test_weights_go_from_one_to_many_ranks_and_back():
    """A checkpoint names them alike; PReLU is an activation that has weights itself."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), BatchNormAct2d(4, act_layer=nn.PReLU), nn.BatchNorm2d(4))
    names = list(model.state_dict())
    weight = model[2].weight
    synchronized = batch_norm.synchronize(model, CPU)
    assert list(synchronized.state_dict()) == names
    assert synchronized[2].weight is weight


def test_what_is_no_batch_norm_stays():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4), nn.Dropout(0.5), nn.BatchNorm2d(4)).eval()
    before = list(model)
    after = list(batch_norm.synchronize(model, CPU))
    assert after[:3] == before[:3]
    assert isinstance(after[3], SynchronizedBatchNorm)
    assert not after[3].training, "it was in evaluation mode"


@pytest.mark.parametrize("build", [flat, deep])
@pytest.mark.parametrize("synchronized", [False, True])
def test_frozen_statistics_stay_while_weights_learn(build, synchronized):
    """No process group here: frozen batch norms ask nobody."""
    inputs, factors = batches(build, 6)
    model = made(build)
    learn(model, inputs, factors)
    if synchronized:
        batch_norm.synchronize(model, CPU)
    model.zero_grad()
    before = copy.deepcopy(model.state_dict())
    fixed = copy.deepcopy(model).eval()
    model.train()
    batch_norm.freeze(model)
    found = learn(model, inputs, factors)
    torch.testing.assert_close(found["state"], before, rtol=0, atol=0)
    torch.testing.assert_close(found, learn(fixed, inputs, factors))
    assert all(grad.abs().sum() > 0 for grad in found["grads"])
    assert model.training
    model.train()
    assert all(module.training for module in model.modules()), "a new call of train thaws"


def test_inputs_without_channels_are_named():
    with pytest.raises(ValueError, match=r"input: expected \[N, C, \.\.\.\], got \[4\]"):
        SynchronizedBatchNorm(nn.BatchNorm1d(4))(torch.zeros(4))
