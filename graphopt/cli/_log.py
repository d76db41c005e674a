"""The pass log of a bundle: what was applied, refused and undone, pass by pass, as a person reads it in a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from graphopt.cli._console import bad, bold, dim

_WIDTH = 100


def lines(passes: Sequence[Mapping[str, Any]]) -> list[str]:
    """One paragraph a pass; those that did nothing together at the end, by reason.

    Args:
        passes: As the manifest holds them.
    """
    shown: list[str] = []
    idle: dict[str, list[str]] = {}
    for record in passes:
        if record["status"] == "nothing to do" and not record["refused"] and not record["details"]:
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
    shown += [dim(f"  {refusal(entry)}") for entry in record["refused"]]
    return shown


def refusal(entry: Mapping[str, Any]) -> str:
    """One rewrite that was not done."""
    return f"refused {entry['rewrite']} at {entry['site']}: {entry['reason']}"


def _numbers(record: Mapping[str, Any]) -> str:
    if record["identical"]:
        return "bit-identical"
    if record["error"] is not None:
        return f"{record['error']:.1e}, noise floor {record['noise_floor'] or 0:.1e}"
    return str(record["numerics"])
