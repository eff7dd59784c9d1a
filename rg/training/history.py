"""What happened in a run: metrics.jsonl, TensorBoard, and the means that go into them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from pipelines.files import atomic_write, json_line, read_json_lines
from rg.runs.folder import HISTORY, TENSORBOARD
from rg.training.engine import Engine


class Meter:
    """Means over images since the last reading, kept on the device until they are read.

    Args:
        terms: Names of the terms of the loss.
        sums: What ``values()`` was when the run was stopped, None at the start.
        labelled: Whether there is an accuracy, too, the last of the values.
    """

    def __init__(self, terms: Sequence[str], sums: Sequence[float] | None = None, labelled: bool = True) -> None:
        self.names = ("loss", *(f"{name}_loss" for name in terms), *(["accuracy"] if labelled else []))
        self._sums = torch.tensor(sums or [0.0] * (len(self.names) + 1), dtype=torch.float64)
        self.start_clock()

    def add(self, values: Tensor, count: int, waited: float) -> None:
        """Values by ``names`` of the images of one micro batch, how many they are, and the seconds waited for them."""
        weighted = torch.cat([values.double(), values.new_ones(1, dtype=torch.float64)]) * count
        self._sums = self._sums.to(values.device) + weighted
        self._waited += waited
        self._images += count

    def values(self) -> list[float]:
        """Sums of the values over images, and the number of images, of this rank."""
        return self._sums.tolist()

    def read(self, engine: Engine) -> dict[str, float]:
        """Means over the images of all ranks, none if all steps were left out; starts anew."""
        seconds = time.perf_counter() - self._began
        own = torch.cat([self._sums, self._sums.new_tensor([self._images])])
        *sums, count, images = engine.group.sum(own.to(engine.group.ranks.device)).tolist()
        record = {name: total / count for name, total in zip(self.names, sums, strict=True) if count}
        record |= {"lr": engine.lr, "images_per_second": images / seconds, "data_wait": self._waited / seconds}
        self._sums = torch.zeros_like(self._sums)
        self.start_clock()
        return record

    def start_clock(self) -> None:
        """Count images, and the seconds that they take and that are waited for them, from now on."""
        self._began, self._waited, self._images = time.perf_counter(), 0.0, 0


class History:
    """metrics.jsonl and TensorBoard; after a resume, records later than the checkpoint are dropped.

    Args:
        out: Run folder.
        step: Step at which the run begins, 0 or that of the checkpoint.
        enabled: False on all ranks but the first, which alone writes.
    """

    def __init__(self, out: Path, step: int, enabled: bool) -> None:
        self.path, self.step, self.enabled = out / HISTORY, step, enabled

    def __enter__(self) -> History:
        if self.enabled:
            resumes = self.step > 0 and self.path.exists()
            records = list(read_json_lines(self.path, drop_half_line=True)) if resumes else []
            with atomic_write(self.path) as file:
                file.writelines(json_line(record) for record in records if record["step"] <= self.step)
            self.board = SummaryWriter(str(self.path.parent / TENSORBOARD), purge_step=self.step + 1)
        return self

    def write(self, kind: str, step: int, epoch: float, record: dict[str, float]) -> None:
        """One line of metrics.jsonl: the kind (train, validation), where in the run, and the values."""
        if not self.enabled:
            return
        with self.path.open("ab") as file:
            file.write(json_line({"kind": kind, "step": step, "epoch": round(epoch, 4), **record}))
        for name, value in record.items():
            self.board.add_scalar(f"{kind}/{name}", value, step)

    def __exit__(self, *_: object) -> None:
        if self.enabled:
            self.board.close()
