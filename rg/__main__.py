"""The command line: ``python -m rg VERB ...``, also installed as ``region-grouping``."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import json
import logging
import os
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_type_hints

from jsonargparse import ActionConfigFile

from rg import __version__, recipes
from rg.config import EvaluationConfig, RunConfig, differences, flatten
from rg.malloc import keep_freed_memory
from rg.parser import Arguments, choose, listing, make_parser
from rg.prepare import prepare, verify

EXTRAS = {  # top-level module -> what it is, and the extra of setup.py that brings it
    "nvidia": ("NVIDIA DALI", "train"),
    "deepspeed": ("DeepSpeed", "train"),
    "tensorboard": ("TensorBoard", "train"),
    "starlette": ("Starlette", "serve"),
    "uvicorn": ("uvicorn", "serve"),
    "python_multipart": ("python-multipart", "serve"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb.

    Returns:
        Exit code: 0 on success, 1 if ``verify`` found problems or training diverged, 2 for bad input (one line on
        standard error), 75 if a signal stopped training after a checkpoint, 76 if another rank was lost, 130 after
        Ctrl-C.
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
    keep_freed_memory()
    try:
        return choose("verb", verb, VERBS)(arguments[1:]) or 0
    except (ValueError, OSError) as error:
        print(f"rg: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        missing = EXTRAS.get((error.name or "").partition(".")[0])
        if missing is None:
            raise
        package, extra = missing
        print(f"rg: error: {package} is not installed; pip install 'region-grouping[{extra}]'", file=sys.stderr)
        return 2
    except FloatingPointError as error:
        print(f"rg: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("rg: interrupted", file=sys.stderr)
        return 130


def train(arguments: Arguments) -> int:
    """Train a recipe on shards."""
    if not arguments or arguments[0] in ("-h", "--help"):
        arguments = ["birds_lite0", "--help"]
    if arguments[0].startswith("-"):
        raise ValueError(f"train: expected a recipe first, got {arguments[0]} (python -m rg recipes)")
    recipe = recipes.get(arguments[0])
    parser = make_parser("train", train)
    parser.add_argument("recipe", help="see python -m rg recipes")
    parser.add_argument(
        "--config",
        action=ActionConfigFile,
        help="file with settings, such as the config.json of a run; options given beside it win",
    )
    parser.add_argument("--data", required=True, help="folder of shards, or its URL (s3://bucket/folder, https://...)")
    parser.add_argument("--out", type=Path, required=True, help="run folder to write")
    parser.add_argument("--resume", action="store_true", help="continue the run in --out from its newest checkpoint")
    parser.add_argument("--auto-resume", action="store_true", help="the same if it has one, else start it")
    parser.add_argument("--deepspeed", type=Path | None, default=None, help="JSON of how DeepSpeed shares out the work")
    for name, hint in get_type_hints(RunConfig).items():
        parser.add_argument(f"--{name}", type=hint, default=getattr(recipe, name))
    args = parser.instantiate(parser.parse_args(_config_first(arguments)))
    config = RunConfig(**{field.name: args[field.name] for field in dataclasses.fields(RunConfig)})
    command = shlex.join(["python", "-m", "rg", "train", *arguments])
    resume = "auto" if args.auto_resume else "yes" if args.resume else "no"
    module = importlib.import_module("rg.train")
    code = module.train(config, args.data, args.out, resume, args.deepspeed, command, arguments[0])
    for number in module.SIGNALS:  # the exit code is decided
        signal.signal(number, signal.SIG_IGN)
    return code


def evaluate(arguments: Arguments) -> None:
    """Measure accuracy and parts of a run; prints a table and writes RUN/metrics.json."""
    from rg.run_folder import CONFIG, load_config

    parser = make_parser("evaluate", evaluate)
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
    """Explain images, any number: a line and a picture of each, and a page with all of them."""
    parser = make_parser("explain", explain)
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("images", type=Path, nargs="+", help="image files and folders of them")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    views = "the whole image, or the crop that evaluation takes; auto: whole if the backbone takes any size"
    parser.add_argument("--view", choices=["auto", "whole", "crop"], default="auto", help=views)
    parser.add_argument("--batch-size", type=int, default=16, help="images at once")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda")
    kinds = "kind of the pictures; none: neither pictures nor a page, explanations.jsonl only"
    parser.add_argument("--pictures", choices=["webp", "png", "none"], default="webp", help=kinds)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="threads that decode, and that draw")
    parser.add_argument("--overwrite", action="store_true", help="begin anew what was explained with other settings")
    args = parser.parse_args(arguments)
    options = {name: args[name] for name in ("view", "batch_size", "device", "pictures", "jobs", "overwrite")}
    importlib.import_module("rg.explain_files").explain_files(args.run, args.images, args.out, **options)


def compare(arguments: Arguments) -> None:
    """Show region grouping beside CAM, Grad-CAM, Guided Grad-CAM, Integrated Gradients and DFF on images."""
    parser = make_parser("compare", compare)
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("images", type=Path, nargs="+", help="image files and folders of them")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    plain = "run folder of a plain network on the same classes, to show what its own methods say"
    parser.add_argument("--plain", type=Path | None, default=None, help=plain)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda")
    args = parser.parse_args(arguments)
    module = importlib.import_module("rg.compare")
    print(module.compare(args.run, args.images, args.out, args.plain, args.device))


def faithful(arguments: Arguments) -> None:
    """Measure whether explanations are faithful; prints a table and writes RUN/faithful.json."""
    module, tables = importlib.import_module("rg.faithful"), importlib.import_module("rg.faithful_table")
    parser = make_parser("faithful", faithful)
    parser.add_argument("runs", type=Path, nargs="+", help="run folders; of several the mean and deviation is printed")
    parser.add_argument(
        "--data", type=str | None, default=None, help="shards to measure on; without it, what RUN holds"
    )
    parser.add_argument("--plain", type=Path | None, default=None, help="run of a plain network to measure beside RUN")
    parser.add_argument("--split", default=None, type=str | None, help="default: test if there is one, else val")
    parser.add_class_arguments(module.Protocol, as_group=False)
    parser.add_argument("--batch-size", type=int, default=16, help="images at once")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda")
    parser.add_argument("--format", choices=list(tables.FORMS), default="text", help="how to print it")
    args = parser.parse_args(arguments)
    if args.data is None:
        given = [
            name for name, value in vars(parser.get_defaults()).items() if name != "format" and args[name] != value
        ]
        if given := [name for name in given if name != "runs"]:
            raise ValueError(f"--data: expected shards to measure on, as --{given[0].replace('_', '-')} is given")
        print(tables.render(tables.read(args.runs), args.format))
        return
    if args.plain and len(args.runs) > 1:
        raise ValueError(f"--plain: expected one run to measure it beside, got {len(args.runs)}")
    protocol = module.Protocol(**{field.name: args[field.name] for field in dataclasses.fields(module.Protocol)})
    settings = (args.plain, args.split, protocol, args.batch_size, args.device)
    print(tables.render([module.faithful(run, args.data, *settings) for run in args.runs], args.format))


def report(arguments: Arguments) -> None:
    """Write one self-contained page about an evaluated run."""
    parser = make_parser("report", report)
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--data", type=str | None, default=None, help="shards, if they have moved since evaluate")
    parser.add_argument("--out", type=Path | None, default=None, help="page to write; default RUN/report.html")
    args = parser.parse_args(arguments)
    print(importlib.import_module("rg.report").report(args.run, args.data, args.out))


def export(arguments: Arguments) -> None:
    """Write the model of a run for other programs (ONNX, torch.export), with a model card."""
    module = importlib.import_module("rg.export")
    parser = make_parser("export", export)
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--format", choices=list(module.FORMATS), default="onnx", help="what to write")
    parser.add_argument(
        "--out", type=Path | None, default=None, help="file to write; default RUN/model.onnx or RUN/model.pt2"
    )
    args = parser.parse_args(arguments)
    out, differences = module.export(args.run, args.format, args.out)
    for name, difference in differences.items():
        print(f"{name:<10} differs by at most {difference:.1e}")
    print(out)


def serve(arguments: Arguments) -> None:
    """Serve a page on which people ask a run about their photos, and a JSON API."""
    module = importlib.import_module("rg.serve")
    parser = make_parser("serve", serve)
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; the default is this machine only")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on; 0 for any that is free")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda")
    parser.add_argument("--allow-host", nargs="+", default=[], help="names by which browsers may call the server")
    parser.add_argument("--limits", type=module.Limits, default=module.Limits())
    args = parser.instantiate(parser.parse_args(arguments))
    module.serve(args.run, args.host, args.port, args.device, args.allow_host, args.limits)


def tables(arguments: Arguments) -> None:
    """Print the paper's tables, published figures beside those of evaluated runs."""
    module = importlib.import_module("rg.tables")
    parser = make_parser("tables", tables)
    parser.add_argument("runs", type=Path, nargs="*", help="run folders; runs of one recipe share a cell")
    parser.add_argument("--format", choices=list(module.FORMS), default="text", help="how to print them")
    args = parser.parse_args(arguments)
    print(module.render(module.tables(args.runs), args.format), end="")


def import_authors(arguments: Arguments) -> None:
    """Make a run of a checkpoint of the authors' code."""
    from pipelines.manifest import Manifest
    from rg.run_folder import Classes

    parser = make_parser("import", import_authors)
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
    parser = make_parser("export-authors", export_authors)
    parser.add_argument("run", type=Path, help="run folder of a ResNet")
    parser.add_argument("--out", type=Path, required=True, help=".pth.tar file to write")
    args = parser.parse_args(arguments)
    importlib.import_module("rg.authors").export_checkpoint(args.run, args.out)
    print(args.out)


def list_recipes(arguments: Arguments) -> None:
    """List the named runs; recipes show NAME prints one with all its settings."""
    if arguments[:1] == ["show"]:
        parser = make_parser("recipes show", list_recipes)
        parser.add_argument("name", help="recipe to print")
        for setting, value in flatten(dataclasses.asdict(recipes.get(parser.parse_args(arguments[1:]).name))).items():
            print(f"{setting:<36} {json.dumps(value)}")
        return
    make_parser("recipes", list_recipes).parse_args(arguments)
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
    "faithful": faithful,
    "compare": compare,
    "report": report,
    "export": export,
    "serve": serve,
    "tables": tables,
    "import": import_authors,
    "export-authors": export_authors,
    "recipes": list_recipes,
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


def _overview() -> str:
    return f"usage: python -m rg VERB ... (VERB --help for its options)\n\n{listing(VERBS)}"


if __name__ == "__main__":
    sys.exit(main())
