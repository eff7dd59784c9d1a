"""The verbs that make and check shards: ``prepare DATASET`` and ``verify``."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from pipelines.cores import usable_cores
from pipelines.files import check_folder
from pipelines.locks import locked
from rg import __version__
from rg.cli.launched import joined
from rg.cli.parser import Arguments, Parser, choose, listing, make_parser
from rg.runs.progress import image_progress

if TYPE_CHECKING:
    from jsonargparse import Namespace

    from pipelines.drawn.birds import BirdsConfig
    from pipelines.drawn.creatures import CreaturesConfig
    from pipelines.drawn.split import DrawnSplit
    from pipelines.shards.manifest import Manifest, Schema
    from pipelines.shards.writer import Source

    class FileSource(Source, Protocol):
        """A source that reads files."""

        def digest(self) -> str:
            """What changes with the files."""
            ...

    class PublishedSource(FileSource, Protocol):
        """One split of a published data set."""

        @property
        def schema(self) -> Schema:
            """What the numbers in its samples mean."""
            ...


logger = logging.getLogger(__name__)

DrawnConfig = TypeVar("DrawnConfig", bound="BirdsConfig | CreaturesConfig")


def prepare(arguments: Arguments) -> None:
    """Write a data set as shards: your photos, published data sets such as CUB-200-2011, drawn birds and creatures."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: python -m rg prepare DATASET --out DIR ...\n\n" + listing(DATASETS))
        return
    choose("data set", arguments[0], DATASETS)(arguments[1:])


def prepare_birds(arguments: Arguments) -> None:
    """The embedded data set: procedurally drawn birds with exact parts, landmarks and boxes."""
    from pipelines.drawn.birds import Birds, BirdsConfig

    _prepare_drawn(arguments, "birds", prepare_birds, BirdsConfig, Birds, train=50, val=4, test=10)


def prepare_creatures(arguments: Arguments) -> None:
    """Drawn birds, fish, beetles and flowers: embedded like birds, in the likeness of iNaturalist."""
    from pipelines.drawn.creatures import Creatures, CreaturesConfig

    _prepare_drawn(arguments, "creatures", prepare_creatures, CreaturesConfig, Creatures, train=60, val=10, test=20)


def _prepare_drawn(
    arguments: Arguments,
    name: str,
    function: Callable[[Arguments], None],
    config_class: type[DrawnConfig],
    draw: Callable[[DrawnConfig, str, int], DrawnSplit],
    **counts: int,
) -> None:
    from pipelines.shards.manifest import Schema

    parser = _shard_parser(f"prepare {name}", function)
    parser.add_class_arguments(config_class, name)
    for split, count in counts.items():
        parser.add_argument(f"--{split}", type=int, default=count, help=f"{split} images of a species")
    args = _parse(parser, arguments)
    config = config_class(**vars(args[name]))
    sources = {split: draw(config, split, args[split]) for split in counts}
    first = sources["train"]
    schema = Schema(
        classes=tuple(first.class_names),
        super_categories=tuple(first.super_categories),
        landmarks=tuple(first.landmark_names),
        parts=tuple(first.part_names),
        absence=tuple(first.absence),
        locations=first.locations,
    )
    options = dataclasses.asdict(config) | {split: args[split] for split in counts}
    if not first.locations:
        options.pop("places", None)  # which earlier manifests do not name
    _write_shards(args, name, sources, schema, options, config.seed)


def prepare_cub200(arguments: Arguments) -> None:
    """CUB-200-2011: 200 birds with boxes and 15 landmarks; --raw holds CUB_200_2011.tgz or what it unpacks to."""
    from pipelines.datasets.cub200 import Cub200
    from pipelines.datasets.published import splits

    _prepare_published(arguments, "cub200", prepare_cub200, Cub200, splits)


def prepare_nabirds(arguments: Arguments) -> None:
    """NABirds: 555 birds in a hierarchy, with boxes and 11 landmarks; --raw holds nabirds.tar.gz or its folder."""
    from pipelines.datasets.nabirds import NABirds
    from pipelines.datasets.published import splits

    _prepare_published(arguments, "nabirds", prepare_nabirds, NABirds, splits)


def prepare_funnybirds(arguments: Arguments) -> None:
    """FunnyBirds: 50 rendered birds whose parts can be taken away; --raw holds FunnyBirds.zip or its folder."""
    from pipelines.datasets.funnybirds import FunnyBirds
    from pipelines.datasets.published import splits

    _prepare_published(arguments, "funnybirds", prepare_funnybirds, FunnyBirds, splits)


def prepare_partimagenet(arguments: Arguments) -> None:
    """PartImageNet, with part masks: 109 classes of its OOD release, divided as for part discovery."""
    from pipelines.datasets.partimagenet import PartImageNet
    from pipelines.datasets.published import splits

    def read(raw: Path, split: str, **settings: Any) -> PartImageNet:
        from timm.data import ImageNetInfo

        return PartImageNet(raw, split, describe=ImageNetInfo().label_name_to_description, **settings)

    _prepare_published(arguments, "partimagenet", prepare_partimagenet, read, splits)


def prepare_celeba(arguments: Arguments) -> None:
    """CelebA, aligned faces and the official partition: 40 attributes and five landmarks."""
    from pipelines.datasets.celeba import AlignedCelebA

    _prepare_published(arguments, "celeba", prepare_celeba, AlignedCelebA, AlignedCelebA.SPLITS)


def prepare_celeba_unaligned(arguments: Arguments) -> None:
    """CelebA as found on the web, with the splits of the landmark protocol: faces on 30 % of the image, MAFL lists."""
    from pipelines.datasets.celeba import UnalignedCelebA

    _prepare_published(arguments, "celeba_unaligned", prepare_celeba_unaligned, UnalignedCelebA, UnalignedCelebA.splits)


def prepare_inat2017(arguments: Arguments) -> None:
    """iNaturalist 2017: 5,089 species in 13 super-categories; its validation set, which papers report on, is test."""
    from pipelines.datasets.inat2017 import INat2017
    from pipelines.datasets.published import splits

    _prepare_published(arguments, "inat2017", prepare_inat2017, INat2017, splits)


def _prepare_published(
    arguments: Arguments,
    name: str,
    function: Callable[[Arguments], None],
    read: Callable[..., PublishedSource],
    splits: tuple[str, ...] | Callable[[float], tuple[str, ...]],
) -> None:
    """``splits`` are those of the data set, or a function of the share of training images held out for validation."""
    parser = _shard_parser(f"prepare {name}", function)
    parser.add_argument("--raw", type=Path, required=True, help="folder of the published files")
    if callable(splits):
        share = "share of the training images held out, to watch and to choose settings by; 0: none, as published"
        parser.add_argument("--val-fraction", type=float, default=0.0, help=share)
    parser.add_argument("--seed", type=int, default=0, help="decides the order, and what is held out")
    parser.add_argument("--allow-partial", action="store_true", help="accept fewer images than were published")
    _add_short_side(parser)
    args = _parse(parser, arguments)
    options: dict[str, Any] = {"allow_partial": args.allow_partial}
    held_out: dict[str, Any] = {}
    if callable(splits):
        held_out = {"seed": args.seed, "val_fraction": args.val_fraction}
        options["val_fraction"] = args.val_fraction
        splits = splits(args.val_fraction)
    sources = {split: read(args.raw, split, allow_partial=args.allow_partial, **held_out) for split in splits}
    _write_resized(args, name, sources, sources["train"].schema, options)


def prepare_folder(arguments: Arguments) -> None:
    """Your own photos: one folder of images per class, with or without train and val folders above, and masks."""
    from pipelines.datasets.folder import LOCATIONS, Folder, log_copies, splits
    from pipelines.shards.manifest import Schema

    parser = _shard_parser("prepare folder", prepare_folder)
    parser.add_argument(
        "--raw", type=Path, required=True, help="the folder of class folders, or that of images/ and masks/"
    )
    parser.add_argument("--val-fraction", type=float, default=0.2, help="share held out where raw has no val folder")
    parser.add_argument("--seed", type=int, default=0, help="decides what is held out, and the order")
    told = "where and when photos were taken: none; csv: from raw/metadata.csv; exif: as the camera wrote it into them"
    parser.add_argument("--locations", choices=list(LOCATIONS), default="none", help=told)
    parser.add_argument("--keep-empty-classes", action="store_true", help="keep classes without usable training images")
    _add_short_side(parser)
    args = _parse(parser, arguments)
    folders = {
        split: Folder(args.raw, split, args.seed, args.val_fraction, args.locations) for split in splits(args.raw)
    }
    folders["train"].layout.log()
    if folders["train"].part_names:
        logger.info("%s: masks of %s", args.raw, ", ".join(folders["train"].part_names))
    if "val" not in folders["train"].layout.folders:
        logger.info("%g %% of every class are held out for validation", 100 * args.val_fraction)
    options: dict[str, Any] = {"val_fraction": args.val_fraction}
    if args.locations != "none":
        options["locations"] = args.locations
    unusable = {} if args.keep_empty_classes else folders["train"].unusable_classes()
    for name, reason in unusable.items():
        logger.warning("class %s left out: none of its training images can be used; the first: %s", name, reason)
    if unusable:
        options["empty_classes"] = list(unusable)
        folders = {split: folder.without(unusable) for split, folder in folders.items()}
    log_copies(folders)
    schema = Schema(
        classes=folders["train"].class_names,
        parts=folders["train"].part_names,
        locations=args.locations != "none",
    )
    _write_resized(args, args.raw.resolve().name or "folder", folders, schema, options)


def _add_short_side(parser: Parser) -> None:
    parser.add_argument(
        "--short-side", type=int, default=0, help="scale larger images down to this short side; 0: keep the files"
    )
    parser.add_argument("--quality", type=int, default=90, help="JPEG quality of the images that are scaled down")


def _write_resized(
    args: Namespace, dataset: str, sources: Mapping[str, FileSource], schema: Schema, options: dict[str, Any]
) -> None:
    """Writes images from files, scaled down if ``--short-side`` says so."""
    from pipelines.datasets.resized import Resized

    written: Mapping[str, Source] = sources
    if args.short_side:
        written = {split: Resized(source, args.short_side, args.quality) for split, source in sources.items()}
        options |= {"short_side": args.short_side, "quality": args.quality}
    options["files"] = {split: source.digest() for split, source in sources.items()}
    _write_shards(args, dataset, written, schema, options, args.seed)


def verify(arguments: Arguments) -> int:
    """Check shards: sizes, sums, indexes, annotations, images; --repair mends what can be mended."""
    parser = make_parser("verify", verify)
    parser.add_argument("folder", help="local folder of shards")
    parser.add_argument("--decode", type=bool, default=True, help="decode every image")
    jobs = "worker processes; 0: as many as cores, shared with others of the launch"
    parser.add_argument("--jobs", type=int, default=0, help=jobs)
    parser.add_argument(
        "--repair",
        action="store_true",
        help="rebuild indexes, and replace damaged shards by new ones without the samples that are lost",
    )
    args = parser.parse_args(arguments)
    from pipelines.shards.storage import is_local
    from pipelines.shards.verify import repair
    from pipelines.shards.verify import verify as verify_shards

    if not is_local(args.folder):
        raise ValueError(f"folder: expected a local folder, got {args.folder}; verify before uploading")
    if args.repair and not args.decode:
        raise ValueError("--repair: expected --decode true, or images that do not decode would be kept")
    with joined() as peers, image_progress(shown=peers.ranks.rank == 0) as progress:
        processes, workers = peers.ranks.world_size, args.jobs or max(1, usable_cores() // peers.sharing)

        def check() -> None:
            if args.repair and processes > 1:
                raise ValueError(f"--repair: expected one process, got {processes}")

        peers.together(check)
        repairs: list[str] = []
        if args.repair:
            with locked(Path(args.folder)):
                repairs, problems = repair(args.folder, jobs=workers, progress=progress)
        else:
            options = {"decode_images": args.decode, "jobs": workers, "progress": progress, "peers": peers}
            problems = verify_shards(args.folder, **options)
    if peers.ranks.rank == 0:
        print("\n".join(repairs + (problems or [f"{args.folder}: every shard is good"])))
    return 1 if problems else 0


DATASETS: dict[str, Callable[[Arguments], None]] = {
    "birds": prepare_birds,
    "creatures": prepare_creatures,
    "folder": prepare_folder,
    "cub200": prepare_cub200,
    "nabirds": prepare_nabirds,
    "partimagenet": prepare_partimagenet,
    "funnybirds": prepare_funnybirds,
    "celeba": prepare_celeba,
    "celeba_unaligned": prepare_celeba_unaligned,
    "inat2017": prepare_inat2017,
}


def _shard_parser(name: str, function: Callable[[Arguments], None]) -> Parser:
    parser = make_parser(name, function)
    parser.add_argument("--out", type=Path, required=True, help="folder of shards to write")
    parser.add_argument("--samples-per-shard", type=int, default=1000, help="raw samples of one shard")
    parser.add_argument("--jobs", type=int, default=usable_cores(), help="worker processes")
    return parser


def _parse(parser: Parser, arguments: Arguments) -> Namespace:
    """The arguments, of which ``--out`` can be written to: reading raw files may take hours."""
    from pipelines.shards.manifest import NAME

    args = parser.parse_args(arguments)
    if not (args.out / NAME).is_file():  # complete shards may lie where nobody can write
        check_folder(args.out, "--out")
    return args


def _write_shards(
    args: Namespace,
    dataset: str,
    sources: Mapping[str, Source],
    schema: Schema,
    options: Mapping[str, Any],
    seed: int,
) -> None:
    from pipelines.shards import writer

    with image_progress() as progress:
        manifest = writer.write(
            args.out,
            dataset,
            sources,
            schema=schema,
            options={**options, "version": __version__},
            samples_per_shard=args.samples_per_shard,
            seed=seed,
            jobs=args.jobs,
            progress=progress,
        )
    _log_empty_classes(manifest)
    for name, split in manifest.splits.items():
        left_out = f", {len(split.quarantined)} left out (listed in manifest.json)" if split.quarantined else ""
        print(f"{name}: {split.samples} samples in {len(split.shards)} shards{left_out}")
    print(f"{manifest.num_classes} classes in {args.out}")


def _log_empty_classes(manifest: Manifest) -> None:
    """Published data sets keep the numbers of their classes, also where a class has no training image."""
    counts = manifest.split("train").class_counts
    empty = [name for name, count in zip(manifest.classes, counts, strict=True) if not count]
    if empty:
        kind = "attributes" if manifest.multi_label else "classes"
        logger.warning(
            "%d of %d %s have no training image, such as %s: they keep their numbers, but nothing trains their outputs",
            len(empty),
            len(counts),
            kind,
            empty[0],
        )
