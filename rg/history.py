"""What happened in a run: metrics.jsonl, TensorBoard, and the means that go into them."""

from __future__ import annotations

import json
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from pipelines.manifest import atomic_write
from rg.engine import Engine

METRICS, TENSORBOARD = "metrics.jsonl", "tensorboard"


class Meter:
    """Means since the last reading, kept on the device until they are read.

    Args:
        sums: What ``sums`` was when the run was stopped, or None at the start.
    """

    def __init__(self, sums: Tensor | None) -> None:
        self.sums = torch.zeros(5) if sums is None else sums
        self.start_clock()

    def add(self, values: Tensor, waited: float) -> None:
        """Loss, classification loss, prior loss and accuracy of one micro batch, and the seconds waited for it."""
        self.sums = self.sums.to(values.device) + torch.cat([values.float(), values.new_ones(1)])
        self.waited += waited
        self.batches += 1

    def read(self, engine: Engine) -> dict[str, float]:
        """Means over ranks and micro batches; starts anew."""
        *sums, count = engine.sum(self.sums.double()).tolist()
        seconds = time.perf_counter() - self.began
        images = self.batches * engine.micro_batch * engine.ranks.world_size
        record = dict(
            zip(("loss", "classification_loss", "prior_loss", "accuracy"), (s / count for s in sums), strict=True)
        )
        record |= {
            "lr": engine.lr,
            "images_per_second": images / seconds,
            "data_wait": self.waited / seconds,
        }
        self.sums = torch.zeros(5)
        self.start_clock()
        return record

    def start_clock(self) -> None:
        """Count images, and the seconds that they take and that are waited for them, from now on."""
        self.began, self.waited, self.batches = time.perf_counter(), 0.0, 0


class History:
    """metrics.jsonl and TensorBoard; after a resume, records later than the checkpoint are dropped.

    Args:
        out: Run folder.
        step: Step at which the run begins, 0 or that of the checkpoint.
        enabled: False on all ranks but the first, which alone writes.
    """

    def __init__(self, out: Path, step: int, enabled: bool) -> None:
        self.path, self.step, self.enabled = out / METRICS, step, enabled

    def __enter__(self) -> History:
        if self.enabled:
            lines = self.path.read_text().splitlines(True) if self.step and self.path.exists() else []
            # A killed run can leave half a line at the end.
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= self.step]
            with atomic_write(self.path) as file:
                file.write("".join(kept).encode())
            self.board = SummaryWriter(str(self.path.parent / TENSORBOARD), purge_step=self.step + 1)
        return self

    def write(self, kind: str, step: int, epoch: float, record: dict[str, float]) -> None:
        """One line of metrics.jsonl: the kind (train, validation), where in the run, and the values."""
        if not self.enabled:
            return
        with self.path.open("a") as file:
            file.write(json.dumps({"kind": kind, "step": step, "epoch": round(epoch, 4), **record}) + "\n")
        for name, value in record.items():
            self.board.add_scalar(f"{kind}/{name}", value, step)

    def __exit__(self, *_: object) -> None:
        if self.enabled:
            self.board.close()
