"""What ``bench_gpu`` measures, part by part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """Something that is measured.

    Attributes:
        summary: What, in a few words.
        seconds: How long it is thought to take.
        needs: Modules.
        commands: Arguments of Python, one after the other.
        smoke: The same at a size for a CPU.
        tests: Parts that must have passed before.
    """

    summary: str
    seconds: int
    needs: tuple[str, ...]
    commands: tuple[str, ...]
    smoke: tuple[str, ...]
    tests: tuple[str, ...] = ()


_SIZE = "--size 224 --rounds 1"
_R101 = f"--recipe inat2017_resnet101 {_SIZE}"
_R50 = f"--recipe photos_resnet50 {_SIZE}"
_TRAIN = "-m benchmarks.bench_train --record"
_PARTS = f"-m benchmarks.step_parts {_R101} --variants channels_last --batch 128 --precision bf16"
_LAUNCHED = "--variants ddp captured --precision bf16 --steps 10"
_COMPILED = "--variants ddp_compiled --precision bf16 --steps 10"
_FP32 = "--variants ddp captured --steps 6"
_INPUT = f"{_TRAIN} {_R101} --variants ddp captured --kinds 'region grouping' --precision bf16 --batch 128 --steps 20"
_INFER = f"-m benchmarks.bench_inference {_R101} --seconds 1 --record"
_WITHOUT_ONNX = "--providers 'region grouping' 'whole network' explanations"
_LIGHT = ("triton", "tensorboard", "webdataset", "jsonargparse", "scipy", "timm")
_SMOKE_TRAIN = "-m benchmarks.bench_train --batch 4 --size 64 --steps 1 --rounds 1"
_SMOKE_DDP = f"{_SMOKE_TRAIN} --kinds 'region grouping' --variants ddp"
_SMOKE_COMPILED = f"{_SMOKE_TRAIN} --kinds 'whole network' --variants ddp_compiled"
_SMOKE_LOADER = "--images {out}/images --files 200 --batch 8 --seconds 0.2 --rounds 1 --workers 1"


def _batches(options: str, *batches: int) -> tuple[str, ...]:
    return tuple(f"{_TRAIN} {options} --batch {batch}" for batch in batches)


# Seconds are of an H200 as far as a part has been measured there, generous for hosts whose processes start slowly.
PARTS: Mapping[str, Part] = {
    "correctness": Part(
        "the tests of the kernels, and how far they are from float64",
        150,
        ("triton", "pytest"),
        ("-m pytest -q -m gpu {parallel} tests/kernels tests/model", "-m benchmarks.kernel_accuracy"),
        ("-m pytest -q -m gpu tests/model/test_fused_model.py",),
    ),
    "kernels": Part(
        "grouping and occurrence beside eager, torch.compile and a copy of the same bytes, in bf16 and then in fp32",
        280,
        ("triton",),
        tuple(
            f"-m benchmarks.bench_kernels --layout channels_last --dtype {dtype} --record" for dtype in ("bf16", "fp32")
        ),
        ("-m benchmarks.bench_kernels --dry-run",),
        ("correctness",),
    ),
    "steps": Part(
        "the tests of steps that are launched",
        150,
        (*_LIGHT, "pytest"),
        (
            "-m pytest -q -m gpu tests/distributed",  # which looks at the clock, so one by one
            "-m pytest -q -m gpu {parallel} tests/training -k 'not captured'",
        ),
        ("-m pytest -q tests/training/test_batch_reader.py",),
        ("correctness",),
    ),
    "replays": Part(
        "those of steps that are captured",
        60,
        (*_LIGHT, "pytest"),
        ("-m pytest -q -m gpu tests/training -k captured",),
        ("-m pytest -q tests/training/test_captured_run.py",),
        ("steps",),
    ),
    "captured": Part(
        "a step of ResNet-101 with region grouping beside torchvision's, launched and captured whole in a CUDA graph",
        250,
        _LIGHT,
        (
            *_batches(f"{_R101} {_LAUNCHED}", 128),
            *_batches(f"{_R101} --kinds 'region grouping' --variants lean image --precision bf16 --steps 10", 128),
            *_batches(f"{_R101} {_FP32}", 64),
        ),
        (f"{_SMOKE_TRAIN} --variants ddp",),
        ("replays",),
    ),
    "training": Part(
        "that with DeepSpeed and in NCHW, the parts of a step and its profile",
        340,
        ("deepspeed",),
        (
            *_batches(f"{_R101} --variants nchw channels_last kept ddp --precision bf16 --steps 20", 128),
            f"{_PARTS} --steps 20 --record",
            f"{_PARTS} --steps 4 --operators 22",
        ),
        (
            f"{_SMOKE_TRAIN} --variants kept",
            "-m benchmarks.step_parts --batch 4 --size 64 --steps 1 --rounds 1 --variants kept",
        ),
        ("steps",),
    ),
    "resnet101": Part(
        "captured and launched steps with 32, 64 and 256 images",
        270,
        _LIGHT,
        _batches(f"{_R101} {_LAUNCHED}", 32, 64, 256),
        (_SMOKE_DDP,),
        ("replays",),
    ),
    "resnet50": Part(
        "those of ResNet-50 with 32, 64, 128 and 256 images",
        300,
        _LIGHT,
        _batches(f"{_R50} {_LAUNCHED}", 32, 64, 128, 256),
        (_SMOKE_DDP,),
        ("replays",),
    ),
    "graphs": Part(
        "the same step under torch.compile's own CUDA graphs, and with activation checkpointing",
        150,
        ("deepspeed", "triton"),
        _batches(f"{_R101} --variants cuda_graphs checkpointed --precision bf16 --steps 20", 128),
        (f"{_SMOKE_TRAIN} --kinds 'whole network' --variants checkpointed",),
        ("steps",),
    ),
    "compiled": Part(
        "the same step compiled, and that of ResNet-50",
        400,
        _LIGHT,
        (*_batches(f"{_R101} {_COMPILED}", 128), *_batches(f"{_R50} {_COMPILED}", 128)),
        (_SMOKE_COMPILED,),
        ("steps",),
    ),
    "images": Part(
        "the tests of the decoder",
        150,
        ("nvidia.dali", "pytest"),
        ("-m pytest -q -m gpu tests/batches",),  # one of them looks at the clock
        ("-m pytest -q tests/batches/test_growing.py",),
    ),
    "loader": Part(
        "batches of DALI (cpu, and mixed at three loads of the JPEG engine) beside ImageFolder and webdataset",
        140,
        ("nvidia.dali",),
        ("-m benchmarks.bench_loader --files 2000 --workers {cores} --batch 128 --seconds 4 --rounds 1 --record",),
        (f"-m benchmarks.bench_loader {_SMOKE_LOADER}",),
        ("images",),
    ),
    "input": Part(
        "the share of a step that waits for images of DALI, decoded on the GPU and on the CPU",
        160,
        (*_LIGHT, "nvidia.dali"),
        tuple(f"{_INPUT} --input {decoder}" for decoder in ("mixed", "cpu")),
        (f"{_SMOKE_DDP} --input cpu --images {{out}}/images",),
        ("replays", "images"),
    ),
    "inference": Part(
        "logits and explanations of ResNet-101: 1 and 64 images, and 256 in bf16",
        220,
        (),
        (
            f"{_INFER} {_WITHOUT_ONNX} --batches 1 64",
            f"{_INFER} --providers 'region grouping' --batches 256 --precision bf16",
        ),
        (f"-m benchmarks.bench_inference --batches 2 --size 64 --seconds 0.1 --rounds 1 {_WITHOUT_ONNX}",),
        ("correctness",),
    ),
    "fp32": Part(
        "captured and launched steps in fp32 with 32 and 128 images",
        320,
        _LIGHT,
        (*_batches(f"{_R101} {_FP32}", 32, 128), *_batches(f"{_R50} {_FP32}", 32, 128)),
        (_SMOKE_DDP,),
        ("replays",),
    ),
    "fp32_large": Part(
        "those with 256 images, and of ResNet-50 with 64",
        260,
        _LIGHT,
        (*_batches(f"{_R50} {_FP32}", 64, 256), *_batches(f"{_R101} {_FP32}", 256)),
        (_SMOKE_DDP,),
        ("replays",),
    ),
    "compiled_small": Part(
        "compiled steps with 32 images",
        400,
        _LIGHT,
        (*_batches(f"{_R101} {_COMPILED}", 32), *_batches(f"{_R50} {_COMPILED}", 32)),
        (_SMOKE_COMPILED,),
        ("steps",),
    ),
    "compiled_medium": Part(
        "compiled steps with 64 images",
        400,
        _LIGHT,
        (*_batches(f"{_R101} {_COMPILED}", 64), *_batches(f"{_R50} {_COMPILED}", 64)),
        (_SMOKE_COMPILED,),
        ("steps",),
    ),
    "compiled_large": Part(
        "compiled steps with 256 images",
        400,
        _LIGHT,
        (*_batches(f"{_R101} {_COMPILED}", 256), *_batches(f"{_R50} {_COMPILED}", 256)),
        (_SMOKE_COMPILED,),
        ("steps",),
    ),
}
