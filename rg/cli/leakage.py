"""The verb that measures whether answers depend on what surrounds the object."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from pipelines.locks import by_first, locked
from rg.cli.launched import joined
from rg.cli.parser import Arguments, make_parser


def leakage(arguments: Arguments) -> None:
    """Measure whether answers depend on what surrounds the object; prints a table and writes RUN/leakage.json."""
    from rg.evaluation.leakage_protocol import Protocol

    parser = make_parser("leakage", leakage)
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--data", required=True, help="folder of shards, or its URL (s3://bucket/folder, https://...)")
    parser.add_argument("--split", default=None, type=str | None, help="default: test if there is one, else val")
    parser.add_class_arguments(Protocol, as_group=False)
    parser.add_argument("--batch-size", type=int, default=16, help="images at once")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda")
    args = parser.parse_args(arguments)
    from rg.evaluation.leakage import leakage as measure
    from rg.runs.folder import LEAKAGE
    from rg.tables.leakage import table

    protocol = Protocol(**{field.name: args[field.name] for field in dataclasses.fields(Protocol)})
    with joined(args.device) as peers, by_first(peers, locked(args.run, LEAKAGE)):
        result = measure(args.run, args.data, args.split, protocol, args.batch_size, args.device, peers)
        if peers.ranks.rank == 0:
            print(table(result))
