"""``graphopt targets``: what targets there are, and which of them this machine has."""

from __future__ import annotations

from typing import Any

import click

from graphopt.cli._options import common


@click.command("targets", short_help="List targets, and what of them this machine has.")
@common
def command(as_json: bool) -> None:
    """List targets, those of plugins included, and whether this machine can compile for them and run them."""
    from graphopt import catalog
    from graphopt.cli._console import bad, bold, dim, good, table, write, write_json

    entries = listing()
    if as_json:
        groups = {name: list(members) for name, members in catalog.TARGET_GROUPS.items()}
        write_json({"targets": entries, "groups": groups})
        return
    rows = []
    for entry in entries:
        if entry["error"]:
            state = bad("cannot be loaded")
        elif entry["runnable"]:
            state = good("runs here")
        else:
            state = bad("compiles, does not run here" if entry["available"] else "not available")
        origin = "" if entry["origin"] == "built-in" else f"[{entry['origin']}] "
        remark = " ".join((entry["error"] or entry["reason"]).split())
        rows.append([bold(entry["name"]), entry["version"], state, origin + remark])
    write(table(("target", "version", "", ""), rows))
    write()
    for name, members in catalog.TARGET_GROUPS.items():
        write(f"{bold(name)}  {dim('the fastest of')} {', '.join(members)}" if len(members) > 1 else f"{bold(name)}  {members[0]}")


def listing() -> list[dict[str, Any]]:
    """Every target with what its probe says; one that fails carries its error."""
    from graphopt import catalog

    entries: list[dict[str, Any]] = []
    for name, origin in catalog.target_names():
        entry: dict[str, Any] = {
            "name": name, "origin": origin, "version": "", "available": False, "runnable": False, "reason": "", "error": "",
        }  # fmt: skip
        try:
            probe = catalog.target(name).probe()
        except Exception as error:  # a plugin may raise anything; it is listed, and breaks nothing else
            entry["error"] = getattr(error, "message", "") or f"{type(error).__name__}: {error}"
        else:
            entry |= {
                "version": probe.version, "available": probe.available, "runnable": probe.runnable, "reason": probe.reason,
            }  # fmt: skip
        entries.append(entry)
    return entries
