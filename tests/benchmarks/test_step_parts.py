"""Which part of a step its time is put down to, with a model whose parts take known times."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from benchmarks import step_parts

FORWARD = {"backbone": 8.0, "grouping": 5.0, "head": 3.0}  # seconds
BACKWARD = {"backbone": 4.0, "grouping": 2.0, "head": 6.0}


class Slow(torch.autograd.Function):
    """The identity, which takes its time on a clock that nothing else moves."""

    now = 0.0

    @staticmethod
    def forward(context, x, part):
        context.part = part
        Slow.now += FORWARD[part]
        return x.clone()

    @staticmethod
    def backward(context, gradient):
        Slow.now += BACKWARD[context.part]
        return gradient, None


class Layer(nn.Module):
    def __init__(self, part):
        super().__init__()
        self.part = part
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return Slow.apply(self.weight * x, self.part)


class Dictionary(Layer):
    def forward(self, x):
        regions = super().forward(x)
        return x.detach(), regions, regions.mean()


class Grouped(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone, self.dictionary, self.head = Layer("backbone"), Dictionary("grouping"), Layer("head")

    def forward(self, x):
        _, regions, occurrence = self.dictionary(self.backbone(x))
        return SimpleNamespace(logits=self.head(regions), occurrence=occurrence)


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone, self.head = Layer("backbone"), Layer("head")

    def forward(self, x):
        return SimpleNamespace(logits=self.head(self.backbone(x)), occurrence=torch.zeros(()))


def test_what_a_gpu_does_in_a_step():
    gpu, cpu = torch.autograd.DeviceType.CUDA, torch.autograd.DeviceType.CPU
    step = [SimpleNamespace(name="gemm", device_type=gpu, device_time_total=1500.0, is_user_annotation=False)] * 4
    step += [SimpleNamespace(name="step", device_type=gpu, device_time_total=3000.0, is_user_annotation=True)]
    step += [SimpleNamespace(name="aten::mm", device_type=cpu, device_time_total=1500.0)]
    step += [SimpleNamespace(name="cudaEventSynchronize", device_type=cpu, device_time_total=0.0)]
    assert step_parts.device_work(step * step_parts.PROFILED) == (
        "a step: the GPU works 6.0 ms in 4 kernels and copies; the host waits in cudaEventSynchronize 1 "
        "(once in cudaDeviceSynchronize to read the clock)"
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="the clock of a GPU is its own")
@pytest.mark.parametrize("model,parts", [(Grouped(), list(FORWARD)), (Plain(), ["backbone", "head"])])
def test_every_part_gets_its_time(model, parts, monkeypatch):
    monkeypatch.setattr(step_parts.time, "perf_counter", lambda: Slow.now)
    clock = step_parts.Clock()
    step_parts.attach(model, clock)
    for _ in range(2):  # the second starts anew
        clock.mark()
        output = model(torch.ones(4))
        loss = output.logits.sum() + output.occurrence
        clock.mark(("loss", "forward"))
        loss.backward()
        clock.mark(("backbone", "backward"))
        spent = clock.read()
    whole = spent.pop(step_parts.WHOLE)
    assert sum(spent.values()) == pytest.approx(whole)
    expected = {(part, "forward"): 1000 * FORWARD[part] for part in parts}
    expected |= {(part, "backward"): 1000 * BACKWARD[part] for part in parts}
    assert {part: value for part, value in spent.items() if value} == pytest.approx(expected)
    assert set(spent) <= set(step_parts.PARTS)


def test_the_table_has_a_column_for_each_variant():
    one = {("backbone", "forward"): 2.0, step_parts.WHOLE: 5.0}
    text = step_parts.table({"nchw": [one, one], "kept": [{step_parts.WHOLE: 3.0}]})
    assert text.splitlines() == [
        "| part | nchw | kept |",
        "|---|---|---|",
        "| backbone, forward | 2.0 | 0.0 |",
        "| step, all | 5.0 | 3.0 |",
    ]
