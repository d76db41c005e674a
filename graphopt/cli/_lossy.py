"""What lossy passes decided, as a person reads it in a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from graphopt.cli._console import dim, good, table

_MOST_POINTS = 6
_PRUNED = ("layer", "", "channels", "multiplications", "error", "refitted", "saves", "why it lost none")
_LOWERED = ("layer", "", "precision", "float ms", "int8 ms", "noise", "reason")


def points(details: Mapping[str, Any]) -> list[str]:
    """What was judged, the fastest first, one line each."""
    if "tried" in details:
        return [
            f"{1 - point['macs_left']:4.0%} of the multiplications gone  {_judgement(point) or 'not judged'}"
            for point in details["tried"]
        ]
    found = sorted(details.get("pareto", []), key=lambda point: point.get("predicted_ms") or 0.0)
    return [
        f"{point['int8']:4d} nodes on integers  {point['predicted_ms']:8.2f} ms predicted  {_judgement(point)}"
        for point in found[:_MOST_POINTS]
    ]


def _judgement(point: Mapping[str, Any]) -> str:
    """What a form lost; empty where it was not judged."""
    drop, decibels = point.get("drop"), point.get("decibels")
    mark = "within" if point.get("held") else "over"
    return "" if drop is None else f"drop {drop:7.2%}  {decibels:5.1f} dB  {mark} the budget"


def layer_table(rows: Sequence[Mapping[str, Any]], indent: int = 0) -> str:
    """Layers of one pass as a table; empty where there are none."""
    pruned = [row for row in rows if "channels" in row]
    others = [row for row in rows if "channels" not in row]
    parts = []
    if pruned:
        parts.append(table(_PRUNED, map(_pruned_row, pruned), right=(2, 3, 4, 5, 6), indent=indent))
    if others:
        parts.append(table(_LOWERED, map(_lowered_row, others), right=(3, 4, 5), indent=indent))
    return "\n".join(parts)


def layer_words(row: Mapping[str, Any]) -> str:
    """One layer in a sentence."""
    where = f" on {row['target']}" if row.get("target") else ""
    if "channels" not in row:
        reason = f": {row['reason']}" if row.get("reason") else ""
        return f"{row.get('precision', '')}{where}{reason}"
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
