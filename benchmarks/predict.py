"""What training on a cluster would take: a small model of a step, fitted to rows of ``results/``.

python -m benchmarks.predict --nodes 1 2 4 8 16 32 64 [--gpus 8] [--images 64] [--throughput 1430] [--network 100]
python -m benchmarks.predict --nodes 1 2 4 8 --fit "cuda, bf16, channels_last"
python -m benchmarks.predict --nodes 1 8 --recipe inat2017_resnet101_modern

A step is ``fixed + per_image * images`` milliseconds for its images, then the sum of the gradients, the gather of the
occurrences, and nothing overlaps (DeepSpeed's stage 0 sums the gradients after backward). The first two numbers are
those of the least squares of relative errors over the rows of ``bench_train`` (``--fit`` names their mode), or
``--throughput`` says how many images a second one GPU takes by itself. A step is never shorter than its host takes to
launch it (``--host``). A node cannot train on more images than its loader delivers. The program prints how far the
fits are from the rows that they were made of.

With ``--recipe`` the whole training of a recipe for iNaturalist 2017 is predicted. Its batch is shared by the GPUs, and
an image takes the time of one of ``inat2017_resnet101``, which ``--throughput`` is of, times the ratio of their
operations, stage by stage where crops grow.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks import report
from benchmarks.tools import ledger
from benchmarks.tools.command import run_main
from benchmarks.tools.operations import Stage, stages
from benchmarks.tools.options import at_least, duration
from pipelines.datasets import inat2017
from rg import recipes

ROWS = ("train", "ranks")
BASE = "inat2017_resnet101"  # whose images/s --throughput are
PARAMETERS = 50.2e6  # region grouping on ResNet-101, 5,089 species
PARTS, FLAGS = 8, 3  # float32 that are gathered of every image, and of every rank
FLOAT = 4  # bytes
LINK = 200.0  # GB/s that every GPU sends to the others of its node
HOP = 0.015  # ms of a hop of a tree between nodes
LEAST = 3  # numbers of images, of a line of two parameters
RANK = 0.003  # ms that a gather takes for each rank
_CASE = re.compile(r"(?:(?P<name>[^,]+), )?(?:(?P<ranks>\d+) ranks x )?(?P<images>\d+) images of (?P<size>\d+) px")


@dataclass(frozen=True)
class Fit:
    """Milliseconds of a step as a line over its images.

    Attributes:
        name: Device, recipe, size, provider and mode of the rows.
        fixed: Milliseconds of a step without images.
        per_image: Milliseconds of an image.
        images: Of every row.
        errors: By how much of the measured time the line is above every row.
    """

    name: str
    fixed: float
    per_image: float
    images: tuple[int, ...]
    errors: tuple[float, ...]

    def step(self, images: float) -> float:
        """Milliseconds of a step."""
        return self.fixed + self.per_image * images


@dataclass(frozen=True)
class Cluster:
    """What steps are predicted for.

    Attributes:
        gpus: Of a node.
        images: Of a GPU, a step.
        compute: Milliseconds of a step on one GPU by itself.
        network: GB/s that a node sends.
        loader: Images/s that the loader of a node delivers.
        parameters: Whose gradients are summed.
    """

    gpus: int
    images: int
    compute: float
    network: float
    loader: float
    parameters: float = PARAMETERS

    def communication(self, nodes: int) -> float:
        """Milliseconds of the sums and gathers of a step.

        Gradients are reduced over the GPUs of a node, then over the nodes, all GPUs of a node sharing its network, and
        sent back the same way: rings move 2 (n - 1) / n of the bytes.
        """
        gradients, ranks = FLOAT * self.parameters, nodes * self.gpus
        inside = 2 * (self.gpus - 1) / self.gpus * gradients / (1e6 * LINK)
        between = 2 * (nodes - 1) / nodes * gradients / (1e6 * self.network)
        gathered = FLOAT * (PARTS * self.images + FLAGS) * (ranks - 1) / (1e6 * min(LINK, self.network))
        return inside + between + gathered + HOP * 2 * math.log2(nodes) + RANK * (ranks - 1)

    def step(self, nodes: int) -> float:
        """Milliseconds of a step, whichever is longer: training, or reading the images of the next."""
        return max(self.compute + self.communication(nodes), 1000 * self.gpus * self.images / self.loader)

    def throughput(self, nodes: int) -> float:
        """Images/s."""
        return 1000 * nodes * self.gpus * self.images / self.step(nodes)

    def bound(self, nodes: int) -> str:
        """What takes most of a step: loader, communication or compute."""
        if self.step(nodes) > self.compute + self.communication(nodes):
            return "loader"
        return "communication" if self.communication(nodes) > self.compute else "compute"


def fit(name: str, images: Sequence[int], times: Sequence[float]) -> Fit:
    """The line with the least squares of relative errors.

    Args:
        name: Of the rows.
        images: Of a step.
        times: Milliseconds of a step.

    Raises:
        ValueError: fewer than three different numbers of images, which say nothing of the error.
    """
    if len(set(images)) < LEAST:
        raise ValueError(f"{name}: expected rows of at least {LEAST} numbers of images, got {sorted(set(images))}")
    x, y = np.asarray(images, float), np.asarray(times, float)
    design = np.stack([np.ones_like(x), x], 1) / y[:, None]
    fixed, per_image = np.linalg.lstsq(design, np.ones_like(y), rcond=None)[0]
    errors = (fixed + per_image * x) / y - 1
    return Fit(name, float(fixed), float(per_image), tuple(images), tuple(errors.tolist()))


def fits(rows: Iterable[report.Row]) -> list[Fit]:
    """A line for all rows of ``bench_train`` and ``bench_ranks`` that differ in nothing but the number of images.

    Ranks on a CPU share it, so their images count together.
    """
    points: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        case = _CASE.fullmatch(row["case"])
        if case is None or row["metric"] != "time" or row["provider"] in ("gather", "save"):
            continue
        shared = int(case["ranks"] or 1) if "cpu" in row["mode"] else 1
        words = (row["device"], case["name"], f"{case['size']} px", row["provider"], row["mode"])
        name = ", ".join(word for word in words if word)
        points.setdefault(name, []).append((shared * int(case["images"]), float(row["p50"])))
    return [
        fit(name, *zip(*measured, strict=True))
        for name, measured in points.items()
        if len({n for n, _ in measured}) >= LEAST
    ]


def pick(candidates: Sequence[Fit], words: str) -> Fit:
    """The only fit whose name holds the words.

    Raises:
        ValueError: there is none, or there are several.
    """
    matching = [candidate for candidate in candidates if words in candidate.name]
    if len(matching) != 1:
        names = "; ".join(candidate.name for candidate in candidates)
        raise ValueError(f"--fit: expected words of one of {names or 'no rows'}, got {words!r}")
    return matching[0]


def table(cluster: Cluster, nodes: Sequence[int], images: int) -> str:
    """Step, images/s, efficiency against one node and time of an epoch of ``images``, in Markdown."""
    lines = ["| nodes | GPUs | step | images/s | of one node | epoch | bound by |", "|---|---|---|---|---|---|---|"]
    for count in nodes:
        rate = cluster.throughput(count)
        share = rate / (count * cluster.throughput(1))
        lines.append(
            f"| {count} | {count * cluster.gpus} | {cluster.step(count):.1f} ms | {rate:,.0f} | {share:.0%} | "
            f"{images / rate:.1f} s | {cluster.bound(count)} |"
        )
    return "\n".join(lines)


@dataclass(frozen=True)
class Training:
    """The whole training of a recipe.

    Attributes:
        batch: Images of a step, over all GPUs.
        stages: Of its crops.
        parameters: Whose gradients are summed.
        base: Operations of an image of ``BASE``.
    """

    batch: int
    stages: Sequence[Stage]
    parameters: int
    base: float

    @classmethod
    def of(cls, name: str) -> Training:
        """That of a recipe for iNaturalist 2017.

        Raises:
            ValueError: there is no such recipe.
        """
        config, base = recipes.get(name), recipes.get(BASE)
        of_recipe, parameters = stages(config, inat2017.SPECIES)
        same = config.model == base.model and of_recipe[-1].crop == base.input.crop
        of_base = of_recipe if same else stages(base, inat2017.SPECIES)[0]
        return cls(config.train.global_batch, of_recipe, parameters, of_base[-1].operations)

    def on(self, gpus: int, nodes: int, throughput: float, host: float, network: float, loader: float) -> list[Cluster]:
        """The cluster as every stage finds it.

        Args:
            gpus: Of a node.
            nodes: How many.
            throughput: Images/s of one GPU by itself, of ``BASE``.
            host: Milliseconds that it takes to launch a step.
            network: GB/s that a node sends.
            loader: Images/s that the loader of a node delivers.

        Raises:
            ValueError: the batch cannot be shared evenly.
        """
        ranks = nodes * gpus
        if self.batch % ranks:
            raise ValueError(f"--nodes: expected GPUs that share a batch of {self.batch} evenly, got {ranks}")
        images = self.batch // ranks
        times = [1000 * images / throughput * stage.operations / self.base for stage in self.stages]
        return [Cluster(gpus, images, max(host, time), network, loader, self.parameters) for time in times]

    def row(self, clusters: Sequence[Cluster], nodes: int, images: int) -> str:
        """Step, time and GPU hours with epochs of so many images, a line of Markdown."""
        steps = sorted({round(cluster.step(nodes), 1) for cluster in clusters})
        pairs = zip(self.stages, clusters, strict=True)
        hours = sum(stage.epochs * images / cluster.throughput(nodes) for stage, cluster in pairs) / 3600
        ranks, step = nodes * clusters[0].gpus, " to ".join(f"{step:.1f}" for step in {steps[0]: 0, steps[-1]: 0})
        return f"| {nodes} | {ranks} | {self.batch // ranks} | {step} ms | {hours:.2f} h | {hours * ranks:,.0f} |"


def training_table(rows: Iterable[str]) -> str:
    """Rows of ``Training`` under their names, in Markdown."""
    head = ["| nodes | GPUs | images of a GPU | step | training | GPU hours |", "|---|---|---|---|---|---|"]
    return "\n".join([*head, *rows])


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the fits, the assumptions and the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--nodes", type=at_least(1), nargs="+", default=[1, 2, 4, 8, 16, 32, 64], help="how many")
    parser.add_argument("--gpus", type=at_least(1), default=8, help="of a node")
    work = parser.add_mutually_exclusive_group()
    work.add_argument("--images", type=at_least(1), default=64, help="of a GPU, a step")
    work.add_argument("--recipe", help="of iNaturalist 2017, whose whole training is predicted")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--throughput", type=duration, default=1430.0, help="images/s of one GPU by itself")
    source.add_argument("--fit", help="take them from the rows whose device, recipe, size, provider and mode hold this")
    parser.add_argument("--host", type=float, default=0.0, help="ms that launching a step takes at least")
    parser.add_argument("--network", type=duration, default=100.0, help="GB/s that a node sends")
    parser.add_argument("--loader", type=duration, default=math.inf, help="images/s of a node's; default: enough")
    parser.add_argument("--epoch", type=at_least(1), default=inat2017.TRAIN_IMAGES, help="images; default: iNaturalist")
    options = parser.parse_args(arguments)
    if options.recipe and options.fit:
        parser.error("--recipe: expected --throughput, that of inat2017_resnet101, not --fit")
    if options.recipe:
        try:
            training = Training.of(options.recipe)
            speeds = options.throughput, options.host, options.network, options.loader
            rows = [training.row(training.on(options.gpus, n, *speeds), n, options.epoch) for n in options.nodes]
        except ValueError as error:
            parser.error(str(error))
        print(training_table(rows))
        return 0
    try:
        fitted = fits([row for name in ROWS if (ledger.RESULTS / f"{name}.csv").is_file() for row in report.read(name)])
        chosen = pick(fitted, options.fit) if options.fit else None
    except ValueError as error:
        parser.error(str(error))
    for line in fitted:
        errors = ", ".join(f"{n}: {error:+.1%}" for n, error in zip(line.images, line.errors, strict=True))
        print(f"{line.name}: {line.fixed:.1f} ms + {line.per_image:.2f} ms an image (error at {errors})")
    compute = chosen.step(options.images) if chosen else 1000 * options.images / options.throughput
    compute = max(options.host, compute)
    print(
        f"Assumed: {f'the fit of {chosen.name}' if chosen else f'{options.throughput:,.0f} images/s a GPU'}, so "
        f"{compute:.1f} ms a step of {options.images} images; {PARAMETERS / 1e6:.1f} M parameters; fp32 gradients, "
        f"not overlapped; {LINK:.0f} GB/s inside a node, {options.network:g} GB/s out of it; {1000 * HOP:.0f} us a "
        f"hop, {1000 * RANK:.0f} us for each rank of the gather; the loader of a node delivers "
        f"{'enough' if math.isinf(options.loader) else f'{options.loader:,.0f} images/s'}"
    )
    cluster = Cluster(options.gpus, options.images, compute, options.network, options.loader)
    print(table(cluster, options.nodes, options.epoch))
    return 0


if __name__ == "__main__":
    run_main(main)
