"""``graphopt passes``: what passes there are."""

from __future__ import annotations

import sys

import click

from graphopt.cli._options import common


@click.command("passes", short_help="List passes, groups and pipelines, plugins included.")
@click.argument("name", required=False)
@common
def command(name: str | None, as_json: bool) -> None:
    """List passes, groups and pipelines, those of plugins included; a plugin that fails is shown with its error.

    With NAME, tell what that pass does, what it refuses, and which options it has.

    \b
      graphopt passes quantize
    """
    from graphopt import catalog
    from graphopt.cli._console import bad, bold, dim, table, write, write_json
    from graphopt.pipelines import GROUPS, PIPELINES

    if name is not None and name not in (*GROUPS, *PIPELINES):
        _show_one(name, as_json)
        return

    entries = catalog.passes()
    groups = {
        name: {
            "requires": list(group.requires),
            "stages": [{"name": stage.name, "members": list(stage.members)} for stage in group.stages],
        }
        for name, group in GROUPS.items()
    }
    if as_json:
        write_json(
            {
                "passes": [vars(entry) for entry in entries],
                "groups": groups,
                "pipelines": {name: list(members) for name, members in PIPELINES.items()},
            }
        )
        return
    rows = []
    for entry in entries:
        summary = bad(f"cannot be loaded: {entry.error}") if entry.error else _short(entry.summary)
        origin = "" if entry.origin == "built-in" else f"  [{entry.origin}]"
        rows.append([bold(entry.name), entry.numerics, summary + origin])
    write(table(("pass", "numerics", "what it does"), rows))
    write()
    write(f"{bold('numerics')}  {_NUMERICS}")
    write()
    for name, members in PIPELINES.items():
        write(
            f"{bold(name)}  {', '.join(members) or 'no pass of the graph; what the target itself needs still runs'}"
        )
    for name, group in GROUPS.items():
        after = f" (after {', '.join(group.requires)})" if group.requires else ""
        write(f"{bold(name)}{after}")
        for stage in group.stages:
            inner = "" if stage.members == (stage.name,) else dim(": " + ", ".join(stage.members))
            write(f"  {stage.name}{inner}")


def _show_one(name: str, as_json: bool) -> None:
    """One pass with its options.

    Raises:
        UnknownNameError: No such pass.
    """
    import dataclasses
    import inspect

    from graphopt import catalog
    from graphopt.cli._console import bold, table, write, write_json
    from graphopt.pipeline.options import options_of
    from graphopt.pipeline.spec import written

    cls = catalog.pass_class(name)
    module = inspect.getmodule(cls)
    about = inspect.cleandoc((module.__doc__ if module is not None else None) or cls.__doc__ or "")
    options = options_of(cls.Options) if hasattr(cls, "Options") else ()
    if as_json:
        write_json(
            {
                "name": name,
                "numerics": cls.numerics.value,
                "about": about,
                "options": [dataclasses.asdict(option) for option in options],
            }
        )
        return
    write(f"{bold(name)}  {cls.numerics.value}")
    write()
    write(about)
    write()
    if not options:
        write("no options")
        return
    rows = [[bold(option.name), option.type, written(option.default), option.meaning] for option in options]
    write(table(("option", "type", "default", "what it is"), rows))


_NUMERICS = (
    "exact: the arithmetic stays bit for bit; reassociates: rounding may change, within 8 times the model's noise "
    "floor; lossy: held to the budget (--max-drop)"
)


def _short(text: str, width: int = 100) -> str:
    """On a terminal at most so many characters; whole in a pipe or file."""
    if not sys.stdout.isatty():
        return text
    return text if len(text) <= width else text[: width - 1].rstrip() + "…"
