"""The verbs that make and measure runs, and that carry them in and out."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shlex
import signal
from pathlib import Path
from typing import TYPE_CHECKING, get_type_hints

from jsonargparse import ActionConfigFile

from pipelines.locks import by_first, locked, owned_folder
from rg import recipes
from rg.cli.launched import joined
from rg.cli.parser import Arguments, make_parser
from rg.config import EvaluationConfig, RunConfig, differences, flatten
from rg.export.formats import FORMATS
from rg.tables.grid import FORMS

if TYPE_CHECKING:
    from rg.training.train import Resume


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
    resume: Resume = "auto" if args.auto_resume else "yes" if args.resume else "no"
    from rg.training.train import SIGNALS
    from rg.training.train import train as train_run

    code = train_run(config, args.data, args.out, resume, args.deepspeed, command, arguments[0])
    for number in SIGNALS:  # the exit code is decided
        signal.signal(number, signal.SIG_IGN)
    return code


def evaluate(arguments: Arguments) -> None:
    """Measure accuracy and parts of a run; prints a table and writes RUN/metrics.json."""
    parser = make_parser("evaluate", evaluate)
    settings_of_run = _evaluation_of_run(arguments)
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--data", required=True, help="folder of shards, or its URL (s3://bucket/folder, https://...)")
    parser.add_argument("--split", default=None, type=str | None, help="default: test if there is one, else val")
    parser.add_argument("--batch-size", type=int, default=64, help="images at once")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda")
    parser.add_argument("--evaluation", type=EvaluationConfig, default=settings_of_run)
    args = parser.instantiate(parser.parse_args(arguments))
    from rg.evaluation.evaluate import evaluate as evaluate_run
    from rg.runs.folder import METRICS, load_config, of_view
    from rg.tables.evaluation import table

    settings = (args.split, args.batch_size, args.device, args.evaluation)
    own_view = load_config(args.run)[0].evaluation.view
    view = None if args.evaluation.view == own_view else args.evaluation.view
    with joined(args.device) as peers, by_first(peers, locked(args.run, of_view(METRICS, view))):
        result = evaluate_run(args.run, args.data, *settings, peers)
        if peers.ranks.rank == 0:
            print(table(result))


def _evaluation_of_run(arguments: Arguments) -> EvaluationConfig:
    """Settings of the run that the arguments name."""
    folders = [Path(word) for word in arguments if Path(word).is_dir()]
    if not folders:
        return EvaluationConfig()
    from rg.runs.folder import CONFIG, load_config

    runs = [folder for folder in folders if (folder / CONFIG).is_file()]
    return load_config(runs[0])[0].evaluation if runs else EvaluationConfig()


def export(arguments: Arguments) -> None:
    """Write the model of a run for other programs (ONNX, torch.export), with a model card."""
    parser = make_parser("export", export)
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--format", choices=list(FORMATS), default="onnx", help="what to write")
    parser.add_argument(
        "--out", type=Path | None, default=None, help="file to write; default RUN/model.onnx or RUN/model.pt2"
    )
    args = parser.parse_args(arguments)
    from rg.export import export as exports
    from rg.runs.threads import limit_threads

    limit_threads()
    out = args.out or args.run / f"model{FORMATS[args.format]}"
    with owned_folder(out.parent, out.name) if args.out else locked(args.run, out.name):
        _, differences = exports.export(args.run, args.format, out)
    for name, difference in differences.items():
        print(f"{name:<10} differs by at most {difference:.1e}")
    print(out)


def tables(arguments: Arguments) -> None:
    """Print the paper's tables, published figures beside those of evaluated runs."""
    parser = make_parser("tables", tables)
    parser.add_argument("runs", type=Path, nargs="*", help="run folders; runs of one recipe share a cell")
    parser.add_argument(
        "--parts", action="store_true", help="instead, parts by the field's protocol, beside those of others"
    )
    parser.add_argument("--format", choices=[*FORMS, "json"], default="text", help="how to print them")
    args = parser.parse_args(arguments)
    from rg.tables import paper, parts

    if args.parts:
        print(parts.render(parts.parts_tables(args.runs), args.format), end="")
    else:
        print(paper.render(paper.tables(args.runs), args.format), end="")


def import_authors(arguments: Arguments) -> None:
    """Make a run of a checkpoint of the authors' code."""
    parser = make_parser("import", import_authors)
    parser.add_argument("checkpoint", type=Path, help=".pth.tar file; tensors only, no code in it is run")
    parser.add_argument("--recipe", required=True, help="settings of the run, such as cub200_resnet101_authors")
    parser.add_argument("--data", required=True, help="shards of the data set it was trained on: names of the classes")
    parser.add_argument("--out", type=Path, required=True, help="run folder to write")
    parser.add_argument(
        "--backbone", default=None, type=str | None, help="resnet50 or resnet101; default: the recipe's"
    )
    args = parser.parse_args(arguments)
    from pipelines.shards.manifest import Manifest
    from rg.export.authors import import_checkpoint
    from rg.runs.folder import Classes
    from rg.tables.paper import DATASETS

    config = recipes.get(args.recipe)
    if args.backbone:
        backbone = dataclasses.replace(config.model.backbone, name=args.backbone)
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, backbone=backbone))
    manifest = Manifest.load(args.data)
    dataset = DATASETS.get(args.recipe.removesuffix("_authors"), manifest.dataset)
    if manifest.dataset != dataset:
        raise ValueError(f"--data: {args.recipe} is for {dataset}, got shards of {manifest.dataset}")
    classes = Classes.of(manifest)
    command = shlex.join(["python", "-m", "rg", "import", *arguments])
    out = args.out.resolve()
    with owned_folder(out.parent, out.name):
        import_checkpoint(args.checkpoint, config, classes, out, command, args.recipe)
    print(args.out)


def export_authors(arguments: Arguments) -> None:
    """Write a run as a checkpoint that the authors' code reads."""
    parser = make_parser("export-authors", export_authors)
    parser.add_argument("run", type=Path, help="run folder of a ResNet")
    parser.add_argument("--out", type=Path, required=True, help=".pth.tar file to write")
    args = parser.parse_args(arguments)
    from rg.export.authors import export_checkpoint

    with owned_folder(args.out.parent, args.out.name):
        export_checkpoint(args.run, args.out)
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
