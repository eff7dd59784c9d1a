"""The command line: ``python -m rg VERB ...``, also installed as ``region-grouping``."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import importlib
import itertools
import json
import logging
import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

from jsonargparse import ActionConfigFile, ArgumentParser
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from rg import __version__, recipes
from rg.config import EvaluationConfig, RunConfig, differences, flatten

Arguments = list[str]

LOG_SECONDS = 30  # between two lines about progress in a log

TRAIN_EXTRA = {"nvidia": "NVIDIA DALI", "deepspeed": "DeepSpeed", "tensorboard": "TensorBoard"}

logger = logging.getLogger("rg")


class Parser(ArgumentParser):
    """An argument parser whose errors are one line and name the nearest option for an unknown one."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        options = [option for option in self._option_string_actions if option.startswith("--")]
        message = _in_words(" ".join(str(message).split()), options)
        unknown = re.findall(r"--[\w.-]+", message) if "nrecognized" in message else []
        near = [match for option in unknown for match in difflib.get_close_matches(option, options, n=2, cutoff=0.6)]
        hint = f"did you mean {' or '.join(near)}?" if near else f"see python -m {self.prog} --help"
        raise ValueError(f"{message}; {hint}") from ex


def _in_words(message: str, options: Sequence[str]) -> str:
    """A message of the parser with options as they are typed, and without the classes of Python."""
    typed = {option[2:].replace("-", "_"): option for option in options}
    if wrong := re.fullmatch(r'Parser key "(.+?)": Expected an? (.+)\. Got value: ?(.*)', message):
        key, kind, value = wrong.groups()
        kind = re.sub(r"<class '(\w+)'>", r"\1", kind)
        kind = re.sub(r"typing\.Literal\[(.+)\]", r"one of \1", kind)
        kind = re.sub(r"^tuple$", "a list such as [0,1]", kind)
        return f"{typed.get(key, key)}: expected {kind}, got {value!r}"
    if missing := re.fullmatch(r"(the following arguments are required: )(.+)", message):
        return missing[1] + ", ".join(typed.get(name, name) for name in missing[2].split(", "))
    return message


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb.

    Returns:
        Exit code: 0 on success, 1 if ``verify`` found problems, 2 for bad input (one line on standard error), 128 + n
        after signal n.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    for name in ("rg", "pipelines"):
        logging.getLogger(name).setLevel(logging.INFO)
    verb = arguments[0] if arguments else "--help"
    if verb in ("-h", "--help"):
        print(_overview())
        return 0 if arguments else 2
    if verb == "--version":
        print(__version__)
        return 0
    try:
        return _choose("verb", verb, VERBS)(arguments[1:]) or 0
    except (ValueError, OSError) as error:
        print(f"rg: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        package = TRAIN_EXTRA.get((error.name or "").partition(".")[0])
        if package is None:
            raise
        print(f"rg: error: {package} is not installed; pip install 'region-grouping[train]'", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("rg: interrupted", file=sys.stderr)
        return 130


def prepare(arguments: Arguments) -> None:
    """Write a data set as shards: your photos, CUB-200-2011, CelebA, iNaturalist 2017, drawn birds and creatures."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: python -m rg prepare DATASET --out DIR ...\n\n" + _listing(DATASETS))
        return
    _choose("data set", arguments[0], DATASETS)(arguments[1:])


def prepare_birds(arguments: Arguments) -> None:
    """The embedded data set: procedurally drawn birds with exact parts, landmarks and boxes."""
    from pipelines.birds import Birds, BirdsConfig

    _prepare_drawn(arguments, "birds", prepare_birds, BirdsConfig, Birds, train=50, val=4, test=10)


def prepare_creatures(arguments: Arguments) -> None:
    """Drawn birds, fish, beetles and flowers: embedded like birds, in the likeness of iNaturalist."""
    from pipelines.creatures import Creatures, CreaturesConfig

    _prepare_drawn(arguments, "creatures", prepare_creatures, CreaturesConfig, Creatures, train=60, val=10, test=20)


def _prepare_drawn(
    arguments: Arguments, name: str, function: Callable[..., Any], config_class: Any, draw: Any, **counts: int
) -> None:
    from pipelines.manifest import Schema

    parser = _shard_parser(f"prepare {name}", function)
    parser.add_class_arguments(config_class, name)
    for split, count in counts.items():
        parser.add_argument(f"--{split}", type=int, default=count, help=f"{split} images of a species")
    args = parser.parse_args(arguments)
    config = config_class(**vars(args[name]))
    sources = {split: draw(config, split, args[split]) for split in counts}
    first = sources["train"]
    schema = Schema(
        classes=tuple(first.class_names),
        super_categories=tuple(first.super_categories),
        landmarks=tuple(first.landmark_names),
        parts=tuple(first.part_names),
        absence=tuple(first.absence),
    )
    options = dataclasses.asdict(config) | {split: args[split] for split in counts}
    _write_shards(args, name, sources, schema, options, config.seed)


def prepare_cub200(arguments: Arguments) -> None:
    """CUB-200-2011: 200 birds with boxes and 15 landmarks; --raw holds CUB_200_2011.tgz or what it unpacks to."""
    from pipelines.cub200 import Cub200
    from pipelines.raw import splits

    _prepare_published(arguments, "cub200", prepare_cub200, Cub200, splits)


def prepare_celeba(arguments: Arguments) -> None:
    """CelebA, aligned faces and the official partition: 40 attributes and five landmarks."""
    from pipelines.celeba import AlignedCelebA

    _prepare_published(arguments, "celeba", prepare_celeba, AlignedCelebA, None)


def prepare_celeba_unaligned(arguments: Arguments) -> None:
    """CelebA as found on the web, with the splits of the landmark protocol: faces on 30 % of the image, MAFL lists."""
    from pipelines.celeba import UnalignedCelebA

    _prepare_published(arguments, "celeba_unaligned", prepare_celeba_unaligned, UnalignedCelebA, UnalignedCelebA.splits)


def prepare_inat2017(arguments: Arguments) -> None:
    """iNaturalist 2017: 5,089 species in 13 super-categories; its validation set, which papers report on, is test."""
    from pipelines.inat2017 import INat2017
    from pipelines.raw import splits

    _prepare_published(arguments, "inat2017", prepare_inat2017, INat2017, splits)


def _prepare_published(
    arguments: Arguments,
    name: str,
    function: Callable[..., Any],
    reader: Any,
    splits: Callable[[float], tuple[str, ...]] | None,
) -> None:
    """``splits`` gives the splits for a share of validation images; None where the data set has a split for that."""
    parser = _shard_parser(f"prepare {name}", function)
    parser.add_argument("--raw", type=Path, required=True, help="folder of the published files")
    held_out: dict[str, Any] = {}
    if splits:
        share = "share of the training images held out, to watch and to choose settings by; 0: none, as published"
        parser.add_argument("--val-fraction", type=float, default=0.0, help=share)
    parser.add_argument("--seed", type=int, default=0, help="decides the order, and what is held out")
    parser.add_argument("--allow-partial", action="store_true", help="accept fewer images than were published")
    _add_short_side(parser)
    args = parser.parse_args(arguments)
    options: dict[str, Any] = {"allow_partial": args.allow_partial}
    if splits:
        held_out = {"seed": args.seed, "val_fraction": args.val_fraction}
        options["val_fraction"] = args.val_fraction
    names = splits(args.val_fraction) if splits else reader.SPLITS
    sources = {split: reader(args.raw, split, allow_partial=args.allow_partial, **held_out) for split in names}
    _write_resized(args, name, sources, sources["train"].schema, options)


def prepare_folder(arguments: Arguments) -> None:
    """Your own photos: one folder of images per class, with or without train and val folders above."""
    from pipelines.folder import Folder, splits
    from pipelines.manifest import Schema

    parser = _shard_parser("prepare folder", prepare_folder)
    parser.add_argument("--raw", type=Path, required=True, help="the folder of class folders")
    parser.add_argument("--val-fraction", type=float, default=0.2, help="share held out where raw has no val folder")
    parser.add_argument("--seed", type=int, default=0, help="decides what is held out, and the order")
    _add_short_side(parser)
    args = parser.parse_args(arguments)
    folders = {split: Folder(args.raw, split, args.seed, args.val_fraction) for split in splits(args.raw)}
    schema = Schema(classes=folders["train"].class_names)
    name = args.raw.resolve().name or "folder"
    _write_resized(args, name, folders, schema, {"val_fraction": args.val_fraction})


def _add_short_side(parser: Parser) -> None:
    parser.add_argument(
        "--short-side", type=int, default=0, help="scale larger images down to this short side; 0: keep the files"
    )
    parser.add_argument("--quality", type=int, default=90, help="JPEG quality of the images that are scaled down")


def _write_resized(args: Any, dataset: str, sources: dict[str, Any], schema: Any, options: dict[str, Any]) -> None:
    """Writes images from files, scaled down if ``--short-side`` says so."""
    from pipelines.resize import Resized

    written: dict[str, Any] = sources
    if args.short_side:
        written = {split: Resized(source, args.short_side, args.quality) for split, source in sources.items()}
        options |= {"short_side": args.short_side, "quality": args.quality}
    options["files"] = {split: source.digest() for split, source in sources.items()}
    _write_shards(args, dataset, written, schema, options, args.seed)


def verify(arguments: Arguments) -> int:
    """Check shards: sizes, sums, indexes, annotations, images; --repair mends what can be mended."""
    from pipelines.storage import is_local
    from pipelines.verify import repair
    from pipelines.verify import verify as verify_shards

    parser = _parser("verify", verify)
    parser.add_argument("folder", help="local folder of shards")
    parser.add_argument("--decode", type=bool, default=True, help="decode every image")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="worker processes")
    parser.add_argument(
        "--repair",
        action="store_true",
        help="rebuild indexes, and replace damaged shards by new ones without the samples that are lost",
    )
    args = parser.parse_args(arguments)
    if not is_local(args.folder):
        raise ValueError(f"folder: expected a local folder, got {args.folder}; verify before uploading")
    if args.repair and not args.decode:
        raise ValueError("--repair: expected --decode true, or images that do not decode would be kept")
    with _image_progress() as progress:
        if args.repair:
            repairs, problems = repair(args.folder, jobs=args.jobs, progress=progress)
        else:
            repairs, problems = (
                [],
                verify_shards(args.folder, decode_images=args.decode, jobs=args.jobs, progress=progress),
            )
    print("\n".join(repairs + (problems or [f"{args.folder}: every shard is good"])))
    return 1 if problems else 0


def train(arguments: Arguments) -> int:
    """Train a recipe on shards."""
    if not arguments or arguments[0] in ("-h", "--help"):
        arguments = ["birds_lite0", "--help"]
    if arguments[0].startswith("-"):
        raise ValueError(f"train: expected a recipe first, got {arguments[0]} (python -m rg recipes)")
    recipe = recipes.get(arguments[0])
    parser = _parser("train", train)
    parser.add_argument("recipe", help="see python -m rg recipes")
    parser.add_argument(
        "--config",
        action=ActionConfigFile,
        help="file with settings, such as the config.json of a run; options given beside it win",
    )
    parser.add_argument("--data", required=True, help="folder of shards, or its URL (s3://bucket/folder, https://...)")
    parser.add_argument("--out", type=Path, required=True, help="run folder to write")
    parser.add_argument("--resume", action="store_true", help="continue the run in --out from its newest checkpoint")
    for name, hint in get_type_hints(RunConfig).items():
        parser.add_argument(f"--{name}", type=hint, default=getattr(recipe, name))
    args = parser.instantiate(parser.parse_args(_config_first(arguments)))
    config = RunConfig(**{field.name: args[field.name] for field in dataclasses.fields(RunConfig)})
    command = shlex.join(["python", "-m", "rg", "train", *arguments])
    return importlib.import_module("rg.train").train(config, args.data, args.out, args.resume, command, arguments[0])


def evaluate(arguments: Arguments) -> None:
    """Measure accuracy and parts of a run; prints a table and writes RUN/metrics.json."""
    from rg.checkpoint import CONFIG, load_config

    parser = _parser("evaluate", evaluate)
    runs = [word for word in arguments if Path(word, CONFIG).is_file()]
    how = load_config(Path(runs[0]))[0].evaluation if runs else EvaluationConfig()
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--data", required=True, help="folder of shards, or its URL (s3://bucket/folder, https://...)")
    parser.add_argument("--split", default=None, type=str | None, help="default: test if there is one, else val")
    parser.add_argument("--batch-size", type=int, default=64, help="images at once")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda")
    parser.add_argument("--evaluation", type=EvaluationConfig, default=how)
    args = parser.instantiate(parser.parse_args(arguments))
    module = importlib.import_module("rg.evaluate")
    settings = (args.split, args.batch_size, args.device, args.evaluation)
    print(module.table(module.evaluate(args.run, args.data, *settings)))


def explain(arguments: Arguments) -> None:
    """Explain images: one JSON and one PNG each."""
    parser = _parser("explain", explain)
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("images", type=Path, nargs="+", help="image files and folders of them")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    views = "the whole image, or the crop that evaluation takes; auto: whole if the backbone takes any size"
    parser.add_argument("--view", choices=["auto", "whole", "crop"], default="auto", help=views)
    parser.add_argument("--batch-size", type=int, default=16, help="images at once")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda")
    args = parser.parse_args(arguments)
    module = importlib.import_module("rg.explain")
    module.explain_files(args.run, args.images, args.out, args.view, args.batch_size, args.device)


def report(arguments: Arguments) -> None:
    """Write one self-contained page about an evaluated run."""
    parser = _parser("report", report)
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--data", type=str | None, default=None, help="shards, if they have moved since evaluate")
    parser.add_argument("--out", type=Path | None, default=None, help="page to write; default RUN/report.html")
    args = parser.parse_args(arguments)
    print(importlib.import_module("rg.report").report(args.run, args.data, args.out))


def tables(arguments: Arguments) -> None:
    """Print the paper's tables, published figures beside those of evaluated runs."""
    module = importlib.import_module("rg.tables")
    parser = _parser("tables", tables)
    parser.add_argument("runs", type=Path, nargs="*", help="run folders; runs of one recipe share a cell")
    parser.add_argument("--format", choices=list(module.FORMS), default="text", help="how to print them")
    args = parser.parse_args(arguments)
    print(module.render(module.tables(args.runs), args.format), end="")


def import_authors(arguments: Arguments) -> None:
    """Make a run of a checkpoint of the authors' code."""
    from pipelines.manifest import Manifest
    from rg.checkpoint import Classes

    parser = _parser("import", import_authors)
    parser.add_argument("checkpoint", type=Path, help=".pth.tar file; tensors only, no code in it is run")
    parser.add_argument("--recipe", required=True, help="settings of the run, such as cub200_resnet101_authors")
    parser.add_argument("--data", required=True, help="shards of the data set it was trained on: names of the classes")
    parser.add_argument("--out", type=Path, required=True, help="run folder to write")
    parser.add_argument(
        "--backbone", default=None, type=str | None, help="resnet50 or resnet101; default: the recipe's"
    )
    args = parser.parse_args(arguments)
    config = recipes.get(args.recipe)
    if args.backbone:
        backbone = dataclasses.replace(config.model.backbone, name=args.backbone)
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, backbone=backbone))
    manifest = Manifest.load(args.data)
    dataset = importlib.import_module("rg.tables").DATASETS.get(args.recipe.removesuffix("_authors"), manifest.dataset)
    if manifest.dataset != dataset:
        raise ValueError(f"--data: {args.recipe} is for {dataset}, got shards of {manifest.dataset}")
    classes = Classes(manifest.classes, manifest.multi_label)
    command = shlex.join(["python", "-m", "rg", "import", *arguments])
    importlib.import_module("rg.authors").import_checkpoint(
        args.checkpoint, config, classes, args.out, command, args.recipe
    )
    print(args.out)


def export_authors(arguments: Arguments) -> None:
    """Write a run as a checkpoint that the authors' code reads."""
    parser = _parser("export-authors", export_authors)
    parser.add_argument("run", type=Path, help="run folder of a ResNet")
    parser.add_argument("--out", type=Path, required=True, help=".pth.tar file to write")
    args = parser.parse_args(arguments)
    importlib.import_module("rg.authors").export_checkpoint(args.run, args.out)
    print(args.out)


def list_recipes(arguments: Arguments) -> None:
    """List the named runs; recipes show NAME prints one with all its settings."""
    if arguments[:1] == ["show"]:
        parser = _parser("recipes show", list_recipes)
        parser.add_argument("name", help="recipe to print")
        for setting, value in flatten(dataclasses.asdict(recipes.get(parser.parse_args(arguments[1:]).name))).items():
            print(f"{setting:<36} {json.dumps(value)}")
        return
    _parser("recipes", list_recipes).parse_args(arguments)
    for name, function in recipes.RECIPES.items():
        print(f"{name}\n    {(function.__doc__ or '').splitlines()[0]}")
        for setting, (before, after) in differences(recipes.get(recipes.family(name)), recipes.get(name)).items():
            print(f"    {setting} = {json.dumps(after)} instead of {json.dumps(before)}")


VERBS: dict[str, Callable[[Arguments], int | None]] = {
    "prepare": prepare,
    "verify": verify,
    "train": train,
    "evaluate": evaluate,
    "explain": explain,
    "report": report,
    "tables": tables,
    "import": import_authors,
    "export-authors": export_authors,
    "recipes": list_recipes,
}
DATASETS: dict[str, Callable[[Arguments], None]] = {
    "birds": prepare_birds,
    "creatures": prepare_creatures,
    "folder": prepare_folder,
    "cub200": prepare_cub200,
    "celeba": prepare_celeba,
    "celeba_unaligned": prepare_celeba_unaligned,
    "inat2017": prepare_inat2017,
}


def _config_first(arguments: Arguments) -> Arguments:
    """--config before everything else: of two values for a setting the parser takes the one that comes later."""
    config: Arguments = []
    rest: Arguments = []
    words = iter(arguments)
    for word in words:
        if word == "--config":
            config += [word, *itertools.islice(words, 1)]
        else:
            (config if word.startswith("--config=") else rest).append(word)
    return config + rest


def _parser(name: str, function: Callable[..., Any]) -> Parser:
    return Parser(prog=f"rg {name}", description=function.__doc__, allow_abbrev=False)


def _shard_parser(name: str, function: Callable[..., Any]) -> Parser:
    parser = _parser(name, function)
    parser.add_argument("--out", type=Path, required=True, help="folder of shards to write")
    parser.add_argument("--samples-per-shard", type=int, default=1000, help="raw samples of one shard")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="worker processes")
    return parser


def _write_shards(args: Any, dataset: str, sources: Any, schema: Any, options: dict[str, Any], seed: int) -> None:
    from pipelines import shards

    with _image_progress() as progress:
        manifest = shards.write(
            args.out,
            dataset,
            sources,
            schema=schema,
            options=options | {"version": __version__},
            samples_per_shard=args.samples_per_shard,
            seed=seed,
            jobs=args.jobs,
            progress=progress,
        )
    for name, split in manifest.splits.items():
        left_out = f", {len(split.quarantined)} left out (listed in manifest.json)" if split.quarantined else ""
        print(f"{name}: {split.samples} samples in {len(split.shards)} shards{left_out}")
    print(f"{manifest.num_classes} classes in {args.out}")


@contextlib.contextmanager
def _image_progress() -> Iterator[Callable[[int, int], None]]:
    """A function to call with the number of finished images and that of all, first before any work is done.

    It shows images/s and the time left, on a terminal in a bar, in a log in a line from time to time.
    """
    hidden = not sys.stderr.isatty()
    first: int | None = None
    began = logged = time.monotonic()

    def advance(done: int, total: int) -> None:
        nonlocal first, logged
        if first is None:
            first = bar.initial = bar.n = done
            bar.total = total
        bar.update(done - bar.n)
        now = time.monotonic()
        if hidden and done > first and (now - logged >= LOG_SECONDS or done == total):
            rate = (done - first) / max(now - began, 1e-9)
            left = tqdm.format_interval((total - done) / rate)
            logger.info("%d/%d images %.0f img/s eta %s", done, total, rate, left)
            logged = now

    with logging_redirect_tqdm(), tqdm(unit="image", smoothing=0, disable=hidden, leave=False) as bar:
        yield advance


def _choose(kind: str, name: str, known: dict[str, Callable[[Arguments], Any]]) -> Callable[[Arguments], Any]:
    if name not in known:
        near = difflib.get_close_matches(name, known, n=2) or list(known)
        raise ValueError(f"there is no {kind} {name!r}; did you mean {' or '.join(near)}?")
    return known[name]


def _listing(functions: dict[str, Callable[..., Any]]) -> str:
    return "\n".join(f"  {name:<22} {(function.__doc__ or '').splitlines()[0]}" for name, function in functions.items())


def _overview() -> str:
    return f"usage: python -m rg VERB ... (VERB --help for its options)\n\n{_listing(VERBS)}"


if __name__ == "__main__":
    sys.exit(main())
