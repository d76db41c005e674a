"""What lossy passes decided, as a person reads it in a terminal."""

from __future__ import annotations

from typing import Any

from graphopt.pipeline.record import PassRecord

_MOST_POINTS = 6


def summary(record: PassRecord) -> str:
    """One line: how much of a graph went to lower precision, or away."""
    if "pruned" in record.details:
        return _pruned(record.details)
    if "factored" in record.details:
        return _factored(record.details)
    layers: list[dict[str, Any]] = record.details.get("layers", [])
    products = [
        layer for layer in layers if layer.get("op") in ("Conv", "ConvTranspose", "MatMul", "Gemm", "")
    ]
    lowered = [layer for layer in products if layer.get("precision") not in (None, "float32")]
    target = record.details.get("target", "")
    if not products:
        return f"for {target}" if target else ""
    kept = len(products) - len(lowered)
    names = sorted({str(layer["precision"]) for layer in lowered}) or ["int8"]
    text = f"{len(lowered)} of {len(products)} layers to {' and '.join(names)}"
    return f"{text}, {kept} kept float · {target}" if kept else f"{text} · {target}"


def points(record: PassRecord) -> list[str]:
    """What was judged, the fastest first, one line each."""
    if "tried" in record.details:
        return [_tried(point) for point in record.details["tried"]]
    found: list[dict[str, Any]] = record.details.get("pareto", [])
    shown: list[str] = []
    for point in sorted(found, key=lambda entry: entry.get("predicted_ms") or 0.0)[:_MOST_POINTS]:
        shown.append(
            f"{point['int8']:4d} nodes on integers  {point['predicted_ms']:8.2f} ms predicted  {_judged(point)}"
        )
    return shown


def _judged(point: dict[str, Any]) -> str:
    """What a form lost; empty where it was not judged."""
    drop, decibels = point.get("drop"), point.get("decibels")
    mark = "within" if point.get("held") else "over"
    return "" if drop is None else f"drop {drop:7.2%}  {decibels:5.1f} dB  {mark} the budget"


def _pruned(details: dict[str, Any]) -> str:
    layers: list[dict[str, Any]] = details["pruned"]
    narrower = sum(layer["channels"][1] < layer["channels"][0] for layer in layers)
    target = details.get("target", "")
    if details.get("macs_left") is None:
        return f"none of {len(layers)} layers · {target}"
    left: float = details["macs_left"]
    return (
        f"{narrower} of {len(layers)} layers narrower, {1 - left:.0%} of the multiplications gone · {target}"
    )


def _factored(details: dict[str, Any]) -> str:
    layers: list[dict[str, Any]] = details["factored"]
    lower = sum(layer["rank"] is not None and layer["rank"][1] < layer["rank"][0] for layer in layers)
    target = details.get("target", "")
    if details.get("macs_left") is None:
        return f"none of {len(layers)} layers · {target}"
    left: float = details["macs_left"]
    return f"{lower} of {len(layers)} layers in two products, {1 - left:.0%} of the multiplications gone · {target}"


def _tried(point: dict[str, Any]) -> str:
    return f"{1 - point['macs_left']:4.0%} of the multiplications gone  {_judged(point) or 'not judged'}"
