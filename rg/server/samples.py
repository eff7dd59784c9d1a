"""Photographs to try a model with: of runs on drawn data sets, which can be drawn anew; other runs have none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pipelines.drawn.birds import Birds, BirdsConfig
from pipelines.drawn.creatures import Creatures, CreaturesConfig
from rg.runs.folder import RECORD, Classes, read_record

COUNT = 3
DRAWN: Mapping[str, tuple[Any, Any]] = {Birds.name: (Birds, BirdsConfig), Creatures.name: (Creatures, CreaturesConfig)}


@dataclass(frozen=True)
class Sample:
    """A photograph, and the name of the class that it shows.

    Attributes:
        label: Name of the class.
        jpeg: The file.
    """

    label: str
    jpeg: bytes


def samples(run: Path, classes: Classes) -> tuple[Sample, ...]:
    """Test images of different classes, as ``prepare`` drew them; none of a run on photographs.

    Args:
        run: Run folder.
        classes: Of the run; without those of the drawings there are no samples either.

    Raises:
        ValueError: the record of the run is not one of this program.
    """
    data = read_record(run).get("data", {})
    if data.get("dataset") not in DRAWN:
        return ()
    drawing, config = DRAWN[data["dataset"]]
    recorded = data.get("options", {})
    options = {field.name: recorded[field.name] for field in fields(config) if field.name in recorded}
    try:
        split = drawing(config(**options), "test", 1)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{run / RECORD}: data.options: {error}") from None
    if tuple(split.class_names) != classes.names:
        return ()
    chosen = [number * len(split) // COUNT for number in range(min(COUNT, len(split)))]
    return tuple(Sample(split.class_names[index], split[index].jpeg) for index in chosen)
