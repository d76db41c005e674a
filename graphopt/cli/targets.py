"""``graphopt targets``: what targets there are, and which of them this machine has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from graphopt.cli._options import common


@click.command("targets", short_help="List targets, and what of them this machine has.")
@common
def command(as_json: bool) -> None:
    """List targets, those of plugins included, and whether this machine can compile for them and run them."""
    from graphopt import catalog
    from graphopt.cli._console import bold, dim, table, write, write_json

    entries = listing()
    if as_json:
        groups = {name: list(members) for name, members in catalog.TARGET_GROUPS.items()}
        write_json({"targets": entries, "groups": groups})
        return
    rows = []
    for entry in entries:
        origin = "" if entry["origin"] == "built-in" else f"[{entry['origin']}] "
        rows.append([bold(entry["name"]), entry["version"], state(entry), origin + remark(entry)])
    write(table(("target", "version", "", ""), rows))
    write()
    for name, members in catalog.TARGET_GROUPS.items():
        fastest = dim("the fastest of ") if len(members) > 1 else ""
        write(f"{bold(name)}  {fastest}{', '.join(members)}")


def state(entry: Mapping[str, Any]) -> str:
    """In words, whether a target of :func:`listing` can be used here."""
    from graphopt.cli._console import bad, good

    if entry["error"]:
        return bad("cannot be loaded")
    if entry["runnable"]:
        return good("runs here")
    return bad("compiles, does not run here" if entry["available"] else "not available")


def remark(entry: Mapping[str, Any]) -> str:
    """On one line, what the probe of a target of :func:`listing` says, or why it cannot be loaded."""
    lines = (" ".join(line.split()) for line in (entry["error"] or entry["reason"]).splitlines())
    return "; ".join(filter(None, lines))


def listing() -> list[dict[str, Any]]:
    """Every target with what its probe says; one that fails carries its error."""
    from graphopt import catalog

    entries: list[dict[str, Any]] = []
    for name, origin in catalog.target_names():
        entry: dict[str, Any] = {"name": name, "origin": origin, "version": "", "reason": "", "error": ""}
        entry |= {"available": False, "runnable": False}
        try:
            probe = catalog.target(name).probe()
        except Exception as error:  # a plugin may raise anything; it is listed, and breaks nothing else
            entry["error"] = getattr(error, "message", "") or f"{type(error).__name__}: {error}"
        else:
            entry |= {"version": probe.version, "reason": probe.reason}
            entry |= {"available": probe.available, "runnable": probe.runnable}
        entries.append(entry)
    return entries
