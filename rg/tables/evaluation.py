"""What ``evaluate`` measured, for people: percentages, and a line for every part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rg.evaluation.measured import FIELD, MEASURED, not_measured
from rg.evaluation.parts import problems
from rg.explain.numbers import percent
from rg.model.edits import Edits
from rg.runs.confidence import basis


def table(result: dict[str, Any]) -> str:
    """The metrics for people: percentages, and a line per part."""
    keys = [metric.key for metric in MEASURED if result.get(metric.key) is not None]
    percentages = {key: percent(result[key], 2) for key in keys}
    if result["chance"] is not None:
        right = round(result["accuracy"] * result["samples"])
        percentages["accuracy"] += f" ({right} of {result['samples']} images; chance {percent(result['chance'], 2)})"
    if "landmark_error" in percentages and result["landmark_images"] < result["samples"]:
        percentages["landmark_error"] += f" (on the {result['landmark_images']} images that can tell)"
    rows = [
        (metric.name, percentages[metric.key] + _interval(result["intervals"], metric.key))
        for metric in MEASURED
        if metric.key in percentages
    ]
    if places := result.get("places"):
        told = f"told of {places['told']} images; {percent(places['changed'], 2)} of the answers change"
        rows.insert(1, ("Accuracy without places", f"{percent(places['accuracy_without'], 2)} ({told})"))
    for name, level in result["levels"].items():
        rows.append((f"Accuracy by {name.replace('_', '-')}", percent(level["accuracy"], 2)))
    if result["reliability"] is not None:
        rows.append(("Calibration error", percent(result["reliability"]["ece"], 2)))
    if result["temperature"] is not None:
        error, temperature = result["calibrated_reliability"]["ece"], result["temperature"]
        rows[-1] = (rows[-1][0], f"{rows[-1][1]}; {percent(error, 2)} at temperature {temperature:.2f}")
    rows += _selective_rows(result)
    if result["confidence"]:
        rows.append(("Confidence", basis(**result["confidence"])))
    lines = [f"{result['dataset']}, {result['split']}: {result['samples']} images"]
    if result["damaged"]:
        lines[0] += f", {result['damaged']} more are damaged and left out"
    if result.get("edits"):
        lines.append(f"  {Edits.from_dict(result['edits'])} (part_names.json)")
    part_lines = []
    if "parts" in result:
        part_lines = _part_lines(result)
        rows.append(("Occurrence prior loss", f"{result['prior_loss']:.4f}"))
        if "saliency" in result:
            rows.append(("Learned without labels", f"saliency: {result['saliency']}"))
        else:
            rows.append(("Contributions less their logit", f"{result['decomposition_error']:.1e} at most"))
        parts = sum(not part["state"].startswith(("background slot", "merged")) for part in result["parts"])
        rows.append(("Parts in use", f"{result['parts_in_use']} of {parts}"))
    else:
        rows += _baseline_rows(result)
    rows += [*_field_rows(result), ("[from, to]", "95 % confidence over images")]
    return "\n".join([*lines, *(f"  {name:<32}{value}".rstrip() for name, value in rows), *part_lines])


def _interval(intervals: Mapping[str, Any], key: str) -> str:
    """The interval of a share in percent, after a space; nothing without any."""
    if key not in intervals:
        return ""
    low, high = intervals[key]
    return f" [{100 * low:.1f}, {100 * high:.1f}]"


def _field_rows(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The field's protocol, of what of it was measured."""
    key, title = "field", "The field's protocol"
    if key not in result:
        key, title = "dff_field", f"{title}, of DFF"
    figures = result[key] or {}
    measured = [metric for metric in FIELD if figures.get(metric.key) is not None]
    rows = [
        (f"  {metric.name}", percent(figures[metric.key], 2) + _interval(result["intervals"][key], metric.key))
        for metric in measured
    ]
    return [(title, ""), *rows] if rows else []


def _selective_rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    """What becomes of the answers if some are withheld."""
    selective = result["selective"]
    if selective is None:
        return []
    shares = {name: percent(selective[name], 2) for name in ("coverage", "unsure", "unknown", "aurc")}
    given = "none"
    if selective["precision"] is not None:
        given = f"{shares['coverage']}, {percent(selective['precision'], 2)} of them right"
    return [
        ("Answers given", f"{given} (target {100 * selective['target_precision']:g} %)"),
        ("Unsure, no known part fits", f"{shares['unsure']}, {shares['unknown']}"),
        ("Area under risk and coverage", shares["aurc"]),
    ]


def _baseline_rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    """What others make of a plain network."""
    names = {"cam": "CAM", "grad_cam": "Grad-CAM", "guided_grad_cam": "Guided Grad-CAM"}
    errors = {f"Pointing error, {names[key]}": error for key, error in result["pointing_errors"].items()}
    errors["Landmark error, DFF"] = result["dff_landmark_error"]
    return [(name, "not measured" if error is None else percent(error, 2)) for name, error in errors.items()]


def _part_lines(result: dict[str, Any]) -> list[str]:
    lines = [f"  {line}" for line in not_measured(result)]
    names = [part["name"] if part["name"] != f"part {part['part']}" else "" for part in result["parts"]]
    width = max(len(part["state"]) for part in result["parts"])
    header = f"{'state':<{width}}  {'name' if any(names) else ''}".rstrip()
    lines.append("  part  occurrence   present  prior distance  attention      area  kind        " + header)
    for part, name in zip(result["parts"], names, strict=True):
        present, area, kind = (
            percent(part["on"]),
            percent(part["area"]),
            "background" if part["background"] else "object",
        )
        lines.append(
            f"  {part['part']:>4}  {part['occurrence']:>10.3f}  {present:>8}  {part['prior_distance']:>14.3f}  "
            f"{part['attention']:>9.3f}  {area:>8}  {kind:<10}  "
            f"{part['state']:<{width}}  {name}".rstrip()
        )
    if any(part["background"] for part in result["parts"]):
        lines.append("  background: surroundings, or parts that hardly count")
    return lines + [f"  {problem} {advice}" for problem, advice in problems(result["parts"])]
