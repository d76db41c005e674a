"""What lossy passes decided, as a person reads it in a terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from graphopt.cli._console import dim, good, table
from graphopt.verify.budget import percent
from graphopt.words import size

_MOST_POINTS = 6
_PRUNED = ("layer", "", "channels", "multiplications", "error", "refitted", "saves", "why it lost none")
_FACTORED = ("layer", "", "rank", "multiplications", "error", "refitted", "saves", "reason")
_SPARSE = ("layer", "", "zeros", "chosen by", "error", "made up for", "reason")
_LOWERED = ("layer", "", "precision", "float ms", "int8 ms", "noise", "reason")


def points(details: Mapping[str, Any]) -> list[str]:
    """What was judged, the fastest first, one line each; a star where nothing else is as fast, as small and as good."""
    if "tried" in details:
        return [
            f"{1 - point['macs_left']:4.0%} of the multiplications gone  {_judgement(point) or 'not judged'}"
            for point in details["tried"]
        ]
    if "distilled" in details:
        return _training(details["distilled"])
    if "judged" in details:
        return [f"{point['label']}  {_judgement(point) or 'not judged'}" for point in details["judged"]]
    found = sorted(details.get("pareto", []), key=lambda point: point.get("predicted_ms") or 0.0)
    return [
        f"{point['int8']:4d} nodes on integers  {point['predicted_ms']:8.2f} ms predicted  "
        f"{_constants(point)}{_judgement(point)}{'  *' if point.get('front') else ''}"
        for point in found[:_MOST_POINTS]
    ]


def stored(details: Mapping[str, Any]) -> list[str]:
    """Constants that are stored in fewer bits, as a table; nothing where there are none."""
    rows = [
        [
            one["name"],
            one["op"],
            str(one["bits"]),
            size(one["nbytes"][0]),
            size(one["nbytes"][1]),
            _small(one["noise"]),
        ]
        for one in details.get("stored", [])
    ]
    headings = ("constant", "read by", "bits", "before", "after", "noise of its own")
    return [table(headings, rows, right=(2, 3, 4, 5), indent=2)] if rows else []


def constant_words(one: Mapping[str, Any]) -> str:
    """How a constant is stored, in words."""
    before, after = one["nbytes"]
    return (
        f"{one['name']} is stored in {one['bits']} bits and widened on load: {size(after)} in place of "
        f"{size(before)}, noise {_small(one['noise'])} of its own power"
    )


def _training(told: Mapping[str, Any]) -> list[str]:
    """How the loss fell, and how the training ended."""
    history: list[tuple[int, float]] = told["history"]
    every = max(len(history) // _MOST_POINTS, 1)
    shown = [f"step {step:5d}  loss {loss:.2e}" for step, loss in history[every - 1 :: every]]
    return [
        f"{told['optimizer']} at {told['rate']:g}, {told['batch']} samples a step, {len(told['hidden'])} hidden values",
        *shown,
        told["end"],
    ]


def _constants(point: Mapping[str, Any]) -> str:
    """How large the constants are, before what is left in float is stored in fewer bits."""
    return f"{size(point['constant_bytes']):>8}  " if "constant_bytes" in point else ""


def _judgement(point: Mapping[str, Any]) -> str:
    """What a form lost; empty where it was not judged."""
    drop, decibels = point.get("drop"), point.get("decibels")
    mark = "within" if point.get("held") else "over"
    return "" if drop is None else f"drop {percent(drop):>7}  {decibels:5.1f} dB  {mark} the budget"


def layer_table(rows: Sequence[Mapping[str, Any]], indent: int = 0) -> str:
    """Layers of one pass as a table; empty where there are none."""
    parts = []
    for key, (headings, cells, right) in _TABLES.items():
        own = [row for row in rows if _kind(row) == key]
        if own:
            parts.append(table(headings, map(cells, own), right=right, indent=indent))
    return "\n".join(parts)


def _kind(row: Mapping[str, Any]) -> str:
    """What was decided of a layer, by what is told of it."""
    return next((key for key in ("channels", "rank", "zeros") if key in row), "precision")


def layer_words(row: Mapping[str, Any]) -> str:
    """One layer in a sentence."""
    where = f" on {row['target']}" if row.get("target") else ""
    reason = f": {row['reason']}" if row.get("reason") else ""
    kind = _kind(row)
    if kind == "precision":
        return f"{row.get('precision', '')}{where}{reason}"
    if kind == "zeros":
        return f"{row['zeros']:.0%} of its weights are zero{where}{reason}"
    if kind == "rank":
        split = row["rank"] is not None and row["rank"][1] < row["rank"][0]
        return (
            (f"two products of rank {row['rank'][1]} of {row['rank'][0]}" if split else "as it was")
            + where
            + reason
        )
    before, after = row["channels"]
    parts = [
        f"{before} -> {after} channels{where}" if after != before else f"all {before} channels kept{where}"
    ]
    if row["reason"]:
        parts[0] += f" ({row['reason']})"
    macs, macs_after = row["macs"]
    if macs:
        parts.append(f"{macs_after / macs:.0%} of its multiplications left")
    if row["error_before"] is not None:
        parts.append(f"error {_small(row['error_before'])} -> {_small(row['error_after'])} by new weights")
    if row.get("not_refitted"):
        parts.append(f"not refitted: {row['not_refitted']}")
    if row["saved_ms"] is not None:
        parts.append(f"saves {row['saved_ms']:.3f} ms")
    return ", ".join(parts)


def _pruned_row(row: Mapping[str, Any]) -> list[str]:
    before, after = row["channels"]
    macs, macs_after = row["macs"]
    saved = row["saved_ms"]
    reason = row["reason"] or (f"not refitted: {row['not_refitted']}" if row.get("not_refitted") else "")
    return [
        row["node"],
        row["op"],
        f"{before} -> {good(str(after))}" if after != before else str(before),
        "" if not macs else f"{macs_after / macs:.0%}",
        _small(row["error_before"]),
        _small(row["error_after"]),
        "" if saved is None else f"{saved:.3f} ms",
        dim(reason) if reason else "",
    ]


def _factored_row(row: Mapping[str, Any]) -> list[str]:
    before, after = row["rank"] or (None, None)
    macs, macs_after = row["macs"] or (None, None)
    saved, rank = row["saved_ms"], "" if before is None else str(before)
    return [
        row["node"],
        row["op"],
        f"{rank} -> {good(str(after))}" if after != before else rank,
        "" if not macs else f"{macs_after / macs:.0%}",
        _small(row["error_after"]),
        _small(row["error_refitted"]),
        "" if saved is None else f"{saved:.3f} ms",
        dim(row["reason"]) if row["reason"] else "",
    ]


def _sparse_row(row: Mapping[str, Any]) -> list[str]:
    return [
        row["node"],
        row["op"],
        f"{row['zeros']:.0%}",
        row["criterion"],
        _small(row["error_before"]),
        _small(row["error_after"]),
        dim(row["reason"]) if row["reason"] else "",
    ]


def _lowered_row(row: Mapping[str, Any]) -> list[str]:
    reason = row.get("reason") or ""
    times = [row.get(name) for name in ("float_ms", "int8_ms")]
    return [
        row["node"],
        row.get("op", ""),
        str(row.get("precision", "")),
        *("" if value is None else f"{value:.3f}" for value in times),
        _small(row.get("noise")),
        dim(reason) if reason else "",
    ]


def _small(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}"


_TABLES: Mapping[str, tuple[Sequence[str], Callable[[Mapping[str, Any]], list[str]], Sequence[int]]] = {
    "channels": (_PRUNED, _pruned_row, (2, 3, 4, 5, 6)),
    "rank": (_FACTORED, _factored_row, (2, 3, 4, 5, 6)),
    "zeros": (_SPARSE, _sparse_row, (2, 4, 5)),
    "precision": (_LOWERED, _lowered_row, (3, 4, 5)),
}
"""Headings, cells and right-aligned columns, by what is told of a layer."""
