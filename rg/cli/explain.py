"""The verbs that show why: of photos, of a run, and beside other methods."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from pipelines.cores import usable_cores
from pipelines.locks import by_first, locked, owned_folder
from rg.cli.launched import joined
from rg.cli.parser import Arguments, make_parser


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
    tables = "also write explanations.csv or explanations.parquet, a row for each image"
    parser.add_argument("--table", choices=["csv", "parquet", "none"], default="csv", help=tables)
    jobs = "threads that decode, and that draw; 0: the cores of this process, shared with others of the launch"
    parser.add_argument("--jobs", type=int, default=0, help=jobs)
    parser.add_argument("--overwrite", action="store_true", help="begin anew what was explained with other settings")
    parser.add_argument("--latitude", type=str | None, default=None, help="where all photos were taken, degrees north")
    parser.add_argument("--longitude", type=str | None, default=None, help="the same, degrees east")
    parser.add_argument("--date", type=str | None, default=None, help="when all photos were taken, YYYY-MM-DD")
    parser.add_argument("--exif", action="store_true", help="take place and date of each image from its EXIF block")
    args = parser.parse_args(arguments)
    from pipelines.places import Place
    from rg.explain.explainer import PlaceLike
    from rg.explain.files import explain_files
    from rg.pages import gallery

    place: PlaceLike = Place.read(args.latitude, args.longitude, args.date)
    if args.exif and place:
        raise ValueError("--exif: expected no --latitude, --longitude or --date beside it, got some")
    place = "exif" if args.exif else place
    options = {name: args[name] for name in ("view", "batch_size", "device", "pictures", "table", "overwrite")}
    with joined(args.device) as peers:
        threads = args.jobs or max(1, usable_cores() // peers.sharing)
        told = {"place": place, **options}
        explain_files(args.run, args.images, args.out, write_page=gallery.write, jobs=threads, peers=peers, **told)


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
    from rg.pages.compare import compare as compare_methods

    with joined(args.device) as peers:
        page = compare_methods(args.run, args.images, args.out, args.plain, args.device, peers)
        if peers.ranks.rank == 0:
            print(page)


def faithful(arguments: Arguments) -> None:
    """Measure whether explanations are faithful; prints a table and writes RUN/faithful.json."""
    from rg.attribution.protocol import Protocol
    from rg.tables.grid import FORMS

    parser = make_parser("faithful", faithful)
    parser.add_argument("runs", type=Path, nargs="+", help="run folders; of several the mean and deviation is printed")
    parser.add_argument(
        "--data", type=str | None, default=None, help="shards to measure on; without it, what RUN holds"
    )
    parser.add_argument("--plain", type=Path | None, default=None, help="run of a plain network to measure beside RUN")
    parser.add_argument(
        "--interventions", type=Path | None, default=None, help="FunnyBirds as published, for shards of it"
    )
    parser.add_argument("--split", default=None, type=str | None, help="default: test if there is one, else val")
    parser.add_class_arguments(Protocol, as_group=False)
    parser.add_argument("--batch-size", type=int, default=16, help="images at once")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda")
    parser.add_argument("--format", choices=FORMS, default="text", help="how to print it")
    args = parser.parse_args(arguments)
    from rg.attribution.faithful import check
    from rg.attribution.faithful import faithful as measure
    from rg.runs.folder import FAITHFUL
    from rg.tables import faithful as tables

    if args.data is None:
        defaults = vars(parser.get_defaults()).items()
        changed = [name for name, value in defaults if name not in ("format", "runs") and args[name] != value]
        if changed:
            raise ValueError(f"--data: expected shards to measure on, as --{changed[0].replace('_', '-')} is given")
        print(tables.render(tables.read(args.runs), args.format))
        return
    if args.plain and len(args.runs) > 1:
        raise ValueError(f"--plain: expected one run to measure it beside, got {len(args.runs)}")
    protocol = Protocol(**{field.name: args[field.name] for field in dataclasses.fields(Protocol)})
    settings = (args.plain, args.split, protocol, args.batch_size, args.device, args.interventions)
    with joined(args.device) as peers:
        peers.together(lambda: check(args.runs, args.data, args.split))
        for run in args.runs:
            with by_first(peers, locked(run, FAITHFUL)):
                measure(run, args.data, *settings, peers=peers, again=len(args.runs) == 1)
        if peers.ranks.rank == 0:
            print(tables.render(tables.read(args.runs), args.format))


def report(arguments: Arguments) -> None:
    """Write one self-contained page about an evaluated run."""
    parser = make_parser("report", report)
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--data", type=str | None, default=None, help="shards, if they have moved since evaluate")
    parser.add_argument("--out", type=Path | None, default=None, help="page to write; default RUN/report.html")
    args = parser.parse_args(arguments)
    from rg.pages.report import report as write_report
    from rg.runs.folder import REPORT
    from rg.runs.threads import limit_threads

    limit_threads()
    out = args.out or args.run / REPORT
    with owned_folder(out.parent, out.name) if args.out else locked(args.run, REPORT):
        print(write_report(args.run, args.data, out))


def parts(arguments: Arguments) -> None:
    """Show what each part does and what becomes of the answers without it; writes RUN/parts.html and parts.json."""
    parser = make_parser("parts", parts)
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--data", required=True, help="folder of shards, or its URL (s3://bucket/folder, https://...)")
    parser.add_argument("--split", default=None, type=str | None, help="default: test if there is one, else val")
    parser.add_argument("--batch-size", type=int, default=64, help="images at once")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda")
    args = parser.parse_args(arguments)
    from rg.pages.parts import write_parts
    from rg.runs.folder import PARTS_PAGE

    with joined(args.device) as peers, by_first(peers, locked(args.run, PARTS_PAGE)):
        page = write_parts(args.run, args.data, args.split, args.batch_size, args.device, peers=peers)
        if peers.ranks.rank == 0:
            print(page)


def serve(arguments: Arguments) -> None:
    """Serve a page on which people ask a run about their photos, and a JSON API."""
    from rg.server.limits import Limits

    parser = make_parser("serve", serve)
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; the default is this machine only")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on; 0 for any that is free")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda")
    parser.add_argument("--allow-host", nargs="+", default=[], help="names by which browsers may call the server")
    parser.add_argument("--limits", type=Limits, default=Limits())
    args = parser.instantiate(parser.parse_args(arguments))
    from rg.runs.threads import limit_threads
    from rg.server import app

    limit_threads()
    app.serve(args.run, args.host, args.port, args.device, args.allow_host, args.limits)
