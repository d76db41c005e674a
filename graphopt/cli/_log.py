"""The pass log of a bundle: what was applied, refused and undone, pass by pass, as a person reads it in a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from graphopt.cli._console import bad, bold, dim
from graphopt.errors import listed
from graphopt.pipeline.record import PassStatus

_WIDTH = 100
_LISTED = 3


def lines(passes: Sequence[Mapping[str, Any]]) -> list[str]:
    """One paragraph a pass; those that did nothing together at the end, by reason.

    Args:
        passes: As the manifest holds them.
    """
    shown: list[str] = []
    idle: dict[str, list[str]] = {}
    for record in passes:
        if record["status"] == PassStatus.NOTHING.value and not record["refused"] and not record["details"]:
            idle.setdefault(record["reason"] or "nothing to do", []).append(record["name"])
            continue
        shown += _pass(record)
    for reason, names in idle.items():
        text = f"{reason}: {', '.join(names)}"
        shown += [dim(part) for part in textwrap.wrap(text, _WIDTH, break_on_hyphens=False)]
    return shown


def _pass(record: Mapping[str, Any]) -> list[str]:
    nodes = record["nodes"]
    change = f"{nodes['before']} -> {nodes['after']} nodes" if nodes["before"] != nodes["after"] else ""
    reason = f": {record['reason']}" if record["reason"] else ""
    parts = (f"{record['status']}{reason}", change, f"{record['seconds']:.1f} s", _numbers(record))
    shown = [f"{bold(record['name'])}  " + "   ".join(filter(None, parts))]
    shown += [f"  {name} x{count}" for name, count in record["rewrites"].items()]
    for entry in record["undone"]:
        repro = f" (repro: {entry['repro']})" if entry.get("repro") else ""
        shown.append(f"  {bad('undone')} {entry['what']}: {entry['reason']}{repro}")
    shown += [dim(f"  {text}") for text in refusals(record["refused"])]
    return shown


def refusals(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """What was not done, alike ones on one line with the first places."""
    places: dict[tuple[str, str], list[str]] = {}
    for entry in entries:
        places.setdefault((entry["rewrite"], entry["reason"]), []).append(entry["site"])
    return [
        f"refused {rewrite} at {listed(sites, _LISTED, quote=str)}: {reason}"
        for (rewrite, reason), sites in places.items()
    ]


def _numbers(record: Mapping[str, Any]) -> str:
    if record["error"] is None:
        return str(record["numerics"])
    error = f"{record['error']:.1e}, noise floor {record['noise_floor'] or 0:.1e}"
    together = ", all passes" if record["together"] else ""
    return ("bit-identical" if record["identical"] else error) + together
