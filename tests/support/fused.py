"""What the tests of the fused kernels share: inputs, and how far from float64 results may be."""

import torch

from kernels import grouping, reference

DEVICE = "cuda" if torch.cuda.is_available() and not grouping.INTERPRETED else "cpu"
LAYOUTS = {
    "contiguous": lambda x: x.contiguous(),
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "cut_out": lambda x: torch.nn.functional.pad(x, (1, 2, 1, 1, 2, 0))[:, 2:, 1:-1, 1:-2],
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
}
# Relative rounding of what a kernel multiplies: float32 and 3xTF32; for bfloat16 features two halves of 8 bits each,
# which the interpreter truncates (2^-7 each) instead of rounding them.
ROUNDING = {torch.float64: 2**-52, torch.float32: 2**-22, torch.float16: 2**-22, torch.bfloat16: 2**-14}


def draw(case, dtype=torch.float64, layout="contiguous", seed=0):
    N, C, H, W, K = case
    generator = torch.Generator().manual_seed(seed)
    parameters = torch.float64 if dtype == torch.float64 else torch.float32
    x = torch.randn(N, C, H, W, generator=generator).to(dtype)
    centers = torch.randn(K, C, generator=generator).to(parameters) / 2
    sigma = ((0.3 + 0.4 * torch.rand(K, generator=generator)) * C**0.25).to(parameters)
    return LAYOUTS[layout](x.to(DEVICE)), centers.to(DEVICE), sigma.to(DEVICE)


def upstream(like, seed):
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(seed)).to(like)


def region_grouping(provider, x, centers, sigma):
    assign, regions = provider.region_grouping(x, centers, sigma)
    return {"assign": assign, "regions": regions}


def results(operator, provider, inputs):
    """Outputs and gradients by name, with the same upstream gradients for everyone."""
    inputs = {name: tensor.detach().requires_grad_() for name, tensor in inputs.items()}
    outputs = operator(provider, **inputs)
    grads = [upstream(output, seed) for seed, output in enumerate(outputs.values(), start=1)]
    found = torch.autograd.grad(list(outputs.values()), list(inputs.values()), grads, allow_unused=True)
    return outputs | {f"gradient of {name}": grad for name, grad in zip(inputs, found, strict=True)}


def compare(operator, inputs, provider):
    """The fused operator next to float64: at most twice as far as PyTorch, and what its operands are rounded to."""
    dtype = inputs["x"].dtype
    wide = {name: tensor.double() for name, tensor in inputs.items()}
    noise = torch.Generator().manual_seed(3)
    shaken = {
        name: tensor * (1 + ROUNDING[dtype] * (2 * torch.rand(tensor.shape, generator=noise) - 1).to(tensor))
        for name, tensor in wide.items()
    }
    exact, disturbed = results(operator, reference, wide), results(operator, reference, shaken)
    plain, fused = results(operator, reference, inputs), results(operator, provider, inputs)
    for name, truth in exact.items():
        assert fused[name].dtype == plain[name].dtype, name
        assert fused[name].shape == truth.shape, name
        errors = [found[name].double() - truth for found in (fused, plain, disturbed)]
        for measure in (lambda error: error.abs().max(), lambda error: error.square().mean().sqrt()):
            ours, theirs, floor = map(measure, errors)
            # At most twice the reference's own error, and what inputs rounded like the operands would change. The last
            # term, next to upstream gradients of size 1, is for gradients that vanish but for rounding (C = 1).
            limit = 2 * theirs + 4 * floor + 4 * torch.finfo(plain[name].dtype).eps * measure(truth) + ROUNDING[dtype]
            assert ours <= limit, f"{name}: error {ours:.2e}, limit {limit:.2e}, reference {theirs:.2e}"


def poison_fresh_memory(monkeypatch):
    """What is allocated from now on is full of NaN, so that nothing is read that nobody has written."""

    def poison(fresh):
        return fresh.fill_(float("nan")) if fresh.is_floating_point() else fresh

    for owner, name in ((torch, "empty"), (torch.Tensor, "new_empty")):
        allocate = getattr(owner, name)
        poisoned = lambda *args, allocate=allocate, **kwargs: poison(allocate(*args, **kwargs))  # noqa: E731
        monkeypatch.setattr(owner, name, poisoned)


def check_captured(inputs, provider):
    """Gradients of ``region_grouping`` that a CUDA graph computes are those of a call."""
    expected = results(region_grouping, provider, inputs)
    grads = [upstream(expected[name], seed) for seed, name in enumerate(("assign", "regions"), start=1)]
    leaves = [tensor.detach().requires_grad_() for tensor in inputs.values()]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = torch.autograd.grad(provider.region_grouping(*leaves), leaves, grads)
    for value in found:
        value.fill_(torch.nan)
    graph.replay()
    for name, value in zip(inputs, found, strict=True):
        assert torch.equal(value, expected[f"gradient of {name}"]), name
