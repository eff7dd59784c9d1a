"""One self-contained HTML page about an evaluated run: ``report.html``, which opens from disk without a network."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from pipelines.files import atomic_write, check_file, read_json_lines, sha256
from pipelines.images import open_rgb
from pipelines.shards import reader
from pipelines.shards.manifest import Manifest
from pipelines.shards.storage import Location
from rg.config import flatten
from rg.evaluation.calibration import Reliability
from rg.evaluation.measured import FIELD, MEASURED, not_measured
from rg.evaluation.parts import mostly_background
from rg.explain import contributions, overlays
from rg.explain.colors import HEAT, css, ink_on, palette
from rg.explain.explainer import Explainer
from rg.explain.explanation import Explanation
from rg.explain.facts import crop_to_window
from rg.explain.pictures import ANSWERS, bytes_uri, data_uri
from rg.pages import charts, showcase
from rg.pages.concepts import concepts, prior_path
from rg.pages.numbers import percent, signed
from rg.pages.predictions import Prediction, Predictions
from rg.pages.scripts import script
from rg.pages.templates import template
from rg.runs.confidence import basis
from rg.runs.folder import (
    HISTORY,
    METRICS,
    PREDICTIONS,
    REPORT,
    Classes,
    check_labelled,
    check_measured,
    check_shards,
    load_config,
    read_json,
    read_record,
)
from rg.runs.part_names import Part
from rg.runs.part_pictures import read_part_pictures
from rg.runs.progress import progress_bar

SCRIPT = "report.js"
GALLERY, MISTAKES, STRIP, BARS = 12, 12, 6, 10
FIRST = 4  # cards of either kind that are not folded away
CARD_SIDE, STRIP_SIDE, STRIP_SIDE_OF_MANY, MANY_PARTS = 320, 224, 144, 16
UNDECIDED = "Evaluation named {}. The image is so undecided that the rounding of a decoder tips it."
NAME = Markup("<bdi>{}</bdi>")  # in a sentence: one that is read from the right would turn the numbers beside it
UNKNOWN = {"shards": "unknown, evaluated by an earlier version"}
NOTHING_STANDS_OUT = f"No part stands out: each adds or takes less than {contributions.NOTABLE} to or from the logit."


@dataclass(frozen=True)
class Card:
    """One test image with its explanation.

    Attributes:
        key: Of the sample.
        other: The class to compare with, if any: why, its name, its probability.
        remark: What else there is to say about the image.
        explanation: Of the image.
        image: The image as the model saw it, a data URI like the next two.
        parts: Its parts.
        attribution: Its attribution.
        zoom: Where the model zoomed in, None without a sampler.
        bars: Its contributions.
        versus: Its contributions to the label less those to the class to compare with; empty without one.
        choices: What the page needs to tell the answer without some parts, JSON; None of attributes.
    """

    key: str
    other: tuple[str, str, float] | None
    remark: str
    explanation: Explanation
    image: str
    parts: str
    attribution: str
    zoom: str | None
    bars: list[contributions.Bar]
    versus: list[contributions.Bar]
    choices: str | None


def report(run: Path, data: Location | None = None, out: Path | None = None) -> Path:
    """Write the page.

    Args:
        run: Run folder that has been evaluated.
        data: Folder of the shards that it was evaluated on, if they have moved since.
        out: Page to write; default ``run/report.html``.

    Returns:
        Path of the page.

    Raises:
        ValueError: the run has not been evaluated, or its data is gone.
    """
    out = out or run / REPORT
    check_file(out, "--out")
    config, classes = load_config(run)
    if config.model.kind == "plain":
        raise ValueError(f"{run}: holds a plain network, which has no parts to show (model.kind)")
    check_labelled(run, config)
    if not (run / METRICS).is_file():
        raise ValueError(f"{run}: has no {METRICS}; run `python -m rg evaluate` first")
    metrics, record = read_json(run / METRICS, "weights"), read_record(run)
    check_measured(run, metrics, "evaluate")
    predictions = Predictions.read(run / PREDICTIONS)
    if "selective" not in metrics:
        raise ValueError(f"{run}: was evaluated by an earlier version; run `python -m rg evaluate` again")
    if "imported" in record:
        raise ValueError(f"{run}: was imported, and a report needs the history of a run; see evaluate and explain")
    history = _read_history(run / HISTORY)
    manifest = _find_data(metrics, data)
    check_shards(run, metrics.get("shards", {}), manifest, "evaluate")
    if metrics.get("predictions") not in (None, sha256(run / PREDICTIONS)):
        raise ValueError(f"{run}: {PREDICTIONS} is not that of {METRICS}; run `python -m rg evaluate` again")
    classes.check(Classes.of(manifest), "--data", run)

    explainer = Explainer.load(run)
    cards, spots = _pictures(explainer, data or metrics["data"], manifest, metrics, predictions)
    colors = palette(len(explainer.parts))
    row = read_part_pictures(run, len(explainer.parts))
    page_template = template("rg.pages", REPORT, percent=percent, signed=signed)
    source = script("rg.pages", SCRIPT, "choices.js")
    page = page_template.render(
        script=Markup(source),
        script_hash=base64.b64encode(hashlib.sha256(source.encode()).digest()).decode(),
        edits=str(explainer.model.edits),
        run=run.resolve().name,
        record=record,
        metrics=metrics,
        classes=classes,
        tiles=_tiles(metrics, explainer.parts),
        rows=_metric_rows(metrics),
        field=_field_rows(metrics),
        not_measured=not_measured(metrics),
        cards=cards,
        first=FIRST,
        part_pictures=row and bytes_uri(row, "webp"),
        wrong=int((predictions.errors > 0).sum()),
        concepts=concepts(explainer.parts, metrics["parts"], predictions, classes.names),
        problems=mostly_background([part.background for part in _standing(explainer.parts)]),
        spots=spots,
        prior=prior_path(len(predictions), config.loss.prior_alpha, config.loss.prior_beta),
        prior_name=f"Beta({config.loss.prior_alpha:g}, {config.loss.prior_beta:g})",
        least_span=contributions.NOTABLE,
        heat=HEAT,
        colors=[css(color) for color in colors],
        inks=[css(ink_on(color)) for color in colors],
        withheld=_selective_rows(metrics["selective"], metrics.get("confidence")),
        reliability=_reliability(metrics),
        charts=charts.charts(history),
        quantile_size=(charts.QUANTILE_WIDTH, charts.QUANTILE_HEIGHT),
        answers=ANSWERS,
        chart_size=(charts.WIDTH, charts.HEIGHT),
        settings=_plain(flatten(dataclasses.asdict(config))),
        data=_plain(_data(record, metrics)),
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(out) as file:
        file.write(page.encode())
    return out


def _pictures(
    explainer: Explainer,
    data: Location,
    manifest: Manifest,
    metrics: Mapping[str, Any],
    predictions: Predictions,
) -> tuple[dict[str, list[Card]], list[list[tuple[str, str]]]]:
    """The cards of both galleries, and for every part pictures of it with their labels.

    Explanations hold maps of whole images, so they are drawn one by one and dropped.
    """
    parts = metrics["parts"]
    cards: dict[str, list[Card]] = {"gallery": [], "mistakes": []}
    spots: list[list[tuple[str, str]]] = [[] for _ in parts]
    side = STRIP_SIDE if len(parts) <= MANY_PARTS else STRIP_SIDE_OF_MANY
    places: list[tuple[str | int, int]] = [
        *(("gallery", image) for image in showcase.best(predictions, manifest)[:GALLERY]),
        *(("mistakes", image) for image in showcase.worst(predictions)[:MISTAKES]),
        *((k, image) for k, part in enumerate(parts) for image in showcase.showing(predictions, k, part)[:STRIP]),
    ]
    wanted = [predictions[image] for _, image in places]
    explained = _explain(explainer, data, metrics["split"], wanted, manifest)
    for (place, _), prediction, explanation in zip(places, wanted, explained, strict=True):
        if isinstance(place, int):
            spot = overlays.spotlight(explanation, place, (side, side))
            spots[place].append((data_uri(spot), _label(prediction, manifest)))
        else:
            cards[place].append(_card(prediction, explanation, manifest))
    return cards, spots


def _read_history(path: Path) -> list[dict[str, Any]]:
    try:
        lines = list(read_json_lines(path, drop_half_line=True))
    except FileNotFoundError:
        raise ValueError(f"{path.parent}: has no {path.name}, which `python -m rg train` writes") from None
    for number, line in enumerate(lines, 1):
        if not (isinstance(line, dict) and {"kind", "step"} <= set(line)):
            raise ValueError(f"{path}: expected kind, step in every line, but line {number} has others")
    return lines


def _data(record: Mapping[str, Any], metrics: Mapping[str, Any]) -> dict[str, Any]:
    """What the run was trained and measured on."""
    measured = {f"measured on {name}, sha256": digest for name, digest in metrics.get("shards", UNKNOWN).items()}
    if "data" not in record:
        return {"data set": "not recorded"} | measured
    data = record["data"]
    trained = {"data set": data["dataset"], "training shards": len(data["shards"])}
    return trained | measured | flatten(data["options"])


def _find_data(metrics: Mapping[str, Any], data: Location | None) -> Manifest:
    if data is not None:
        return Manifest.load(data)
    try:
        return Manifest.load(metrics["data"])
    except ValueError:
        raise ValueError(f"--data: the shards are no longer in {metrics['data']}; say where they are") from None


def _explain(
    explainer: Explainer, data: Location, split: str, predictions: Sequence[Prediction], manifest: Manifest
) -> Iterator[Explanation]:
    """Explanations of samples as they are tested, cut to what the model saw, one by one; the truth is their rival."""
    samples = reader.read(data, split, [prediction.key for prediction in predictions])
    bar = progress_bar(samples, desc="explain", total=len(predictions))
    for sample, prediction in zip(bar, predictions, strict=True):
        truth = _label(prediction, manifest) if prediction.errors else ""
        image = open_rgb(sample.jpeg)
        place = sample.place if explainer.model.place is not None else None
        yield crop_to_window(explainer.explain(image, view="crop", versus=truth or None, place=place))


def _card(prediction: Prediction, explanation: Explanation, manifest: Manifest) -> Card:
    size, rival = (CARD_SIDE, CARD_SIDE), explanation.rival
    other, versus = None, []
    if isinstance(prediction.label, list):
        remark = _attributes(prediction, manifest)
    elif prediction.errors:
        remark = _argument(explanation)
    else:
        remark = "" if contributions.stands_out(explanation) else NOTHING_STANDS_OUT
    if rival and not manifest.multi_label:
        measured = manifest.classes[prediction.predicted]
        if explanation.label != measured:
            remark = UNDECIDED.format(measured)
        truth = _label(prediction, manifest)
        other = ("In truth" if rival.label == truth != explanation.label else "Next", rival.label, rival.probability)
        versus = contributions.bars(explanation, BARS, versus_rival=True)
    return Card(
        key=prediction.key,
        other=other,
        remark=remark,
        explanation=explanation,
        image=data_uri(overlays.photo(explanation, size)),
        parts=data_uri(overlays.parts_overlay(explanation, size=size)),
        attribution=data_uri(overlays.attribution_overlay(explanation, size)),
        zoom=None if explanation.zoom is None else data_uri(overlays.zoom_overlay(explanation, size)),
        bars=contributions.bars(explanation, BARS),
        versus=versus,
        choices=json.dumps(explanation.choices.to_dict()) if explanation.choices else None,
    )


def _argument(explanation: Explanation) -> str:
    """The one or two parts that spoke most for the label, in words."""
    if not contributions.stands_out(explanation):
        return NOTHING_STANDS_OUT
    ranked = sorted(explanation.parts, key=lambda part: -part.contribution)[:2]
    spoke = [
        NAME.format(part.name) + f" ({signed(part.contribution)})"
        for part in ranked
        if part.contribution >= contributions.NOTABLE
    ]
    return "Most of what spoke for it: " + Markup(", ").join(spoke) + "." if spoke else "No part clearly spoke for it."


def _attributes(prediction: Prediction, manifest: Manifest) -> str:
    """Which attributes are wrong, in words."""
    pairs = list(zip(manifest.classes, prediction.label, prediction.predicted, strict=True))
    missed = [name for name, truth, predicted in pairs if truth > predicted]
    added = [name for name, truth, predicted in pairs if truth < predicted]
    text = Markup(f"{len(pairs) - prediction.errors} of {len(pairs)} attributes are right.")
    for word, names in (("Missed", missed), ("Wrongly seen", added)):
        if names:
            text += f" {word}: " + Markup(", ").join(NAME.format(name) for name in names[:5])
            text += ", …." if len(names) > 5 else "."
    return text


def _label(prediction: Prediction, manifest: Manifest) -> str:
    return "" if isinstance(prediction.label, list) else manifest.classes[prediction.label]


def _tiles(metrics: Mapping[str, Any], parts: Sequence[Part]) -> list[tuple[str, str, str]]:
    """Name, value and remark of the numbers that matter most, of those that were measured."""
    chance = metrics["chance"]
    parts = _standing(parts)
    objects = sum(not part.background for part in parts)
    sample = "of all attributes of all images"
    if chance is not None:
        right = round(metrics["accuracy"] * metrics["samples"])
        sample = f"{right} of {metrics['samples']} images; chance: {percent(chance)}"
    unit = "the box" if metrics["evaluation"]["landmark_scale"] == "box" else "the distance between the eyes"
    measurable = metrics.get("landmark_images", metrics["samples"])  # not in a file of an earlier version
    unit += f", on {measurable} images" if measurable < metrics["samples"] else ""
    tiles = [
        ("Accuracy", "accuracy", sample),
        ("Mean class accuracy", "mean_class_accuracy", "every class counted once"),
        ("Landmark error", "landmark_error", f"of {unit}; one mean shape has {percent(metrics['mean_shape_error'])}"),
        ("Pointing-game error", "pointing_error", "of the attribution peaks miss the object"),
    ]
    return [
        *((name, percent(metrics[key]), remark) for name, key, remark in tiles if metrics[key] is not None),
        (
            "Parts in use",
            f"{metrics['parts_in_use']} of {len(parts)}",
            f"{objects} of the object, {len(parts) - objects} of the surroundings or hardly counting",
        ),
    ]


def _standing(parts: Sequence[Part]) -> list[Part]:
    """Parts that are neither the background slot nor merged into others."""
    return [part for part in parts if not part.slot and part.merged_into is None]


def _metric_rows(metrics: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Name, value and meaning of every metric that was measured."""
    without = metrics.get("places", {}).get("accuracy_without")  # of a run that was told places
    return [
        *((name, percent(metrics[key], 2), meaning) for name, key, meaning, _ in MEASURED if metrics[key] is not None),
        *(
            [("Accuracy without places", percent(without, 2), "The same by the images alone.")]
            if without is not None
            else []
        ),
        *(
            (
                f"Accuracy by {level.replace('_', '-')}",
                percent(measured["accuracy"], 2),
                "Classes of a group count as one.",
            )
            for level, measured in metrics["levels"].items()
        ),
        ("Occurrence prior loss", f"{metrics['prior_loss']:.4f}", "Distance of occurrence from the prior (Eq. 2)."),
    ]


def _field_rows(metrics: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Name, value and meaning of what was measured by the field's protocol; nothing by an earlier version."""
    figures = metrics.get("field", {})
    return [
        (name, percent(figures[key], 2), meaning) for name, key, meaning, _ in FIELD if figures.get(key) is not None
    ]


def _selective_rows(
    selective: Mapping[str, Any] | None, confidence: Mapping[str, Any] | None
) -> list[tuple[str, str, str]]:
    """Name, value and meaning of what becomes of the answers if some are withheld.

    Args:
        selective: What metrics.json holds of it; None if nothing was fitted.
        confidence: On how many images it rests; None in a file of an earlier version.
    """
    if selective is None:
        return (
            [("Confidence", "fitted", f"Temperature, threshold and limit: {basis(**confidence)}.")]
            if confidence
            else []
        )
    rests_on = basis(**confidence) if confidence else "on an unknown number of validation images"
    target = percent(selective["target_precision"])
    rows = [
        ("Answers given", "coverage", "Share of the answers that are sure enough, about images with known parts."),
        ("Right among those", "precision", f"The target is {target}. Temperature, threshold and limit: {rests_on}."),
        ("Unsure", "unsure", "Share of the answers that are withheld, being below the threshold."),
        ("No known part fits", "unknown", "Of these images, which show what the model knows, so false alarms."),
        ("Area under risk and coverage", "aurc", "Mean error of the n surest answers, over all n; 0 is best."),
    ]
    return [(name, percent(selective[key], 2), meaning) for name, key, meaning in rows]


def _reliability(metrics: Mapping[str, Any]) -> charts.ReliabilityChart:
    """How far confidence can be trusted, as measured and with the temperature that was fitted."""
    measured = {"as measured": metrics["reliability"]}
    if metrics["temperature"] is not None:
        measured[f"at temperature {metrics['temperature']:.2f}"] = metrics["calibrated_reliability"]
    return charts.reliability_chart({name: Reliability(**values) for name, values in measured.items()})


def _plain(values: Mapping[str, Any]) -> dict[str, str]:
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}
