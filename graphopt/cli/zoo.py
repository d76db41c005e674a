"""``graphopt zoo``: real models to try."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import click

from graphopt.cli._options import common


@click.group("zoo", short_help="List and fetch real models to try.")
def command() -> None:
    """Real models, brought by the recipes in models/zoo.toml."""


@command.command("list")
@common
def list_models(as_json: bool) -> None:
    """List the models of the zoo."""
    import dataclasses

    from graphopt import zoo
    from graphopt.cli._console import bold, table, write, write_json

    recipes = zoo.listing()
    if as_json:
        write_json({"models": [dataclasses.asdict(recipe) for recipe in recipes]})
        return
    rows = [[bold(recipe.name), recipe.description, recipe.licence] for recipe in recipes]
    write(table(("model", "what it is", "licence"), rows))
    write("\ngraphopt zoo fetch MODEL brings one")


@command.command("fetch")
@click.argument("names", nargs=-1, required=True, metavar="MODEL...")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Copy the model here as well (one MODEL only)."
)
@common
def fetch(names: tuple[str, ...], output: Path | None, as_json: bool) -> None:
    """Bring models to the cache, check their hashes, and print where they lie.

    \b
      graphopt zoo fetch ppocrv4-rec -o rec.onnx
    """
    from graphopt import zoo
    from graphopt.cli._console import Progress, write, write_json
    from graphopt.cli._place import check_parent
    from graphopt.errors import UsageError

    if output is not None:
        if len(names) > 1:
            raise UsageError("-o takes a single model", hint="fetch them one by one, or leave out -o")
        if output.exists() or output.is_symlink():
            raise UsageError(f"{output} exists", hint="choose another output with -o, or remove it")
        check_parent(output)
    found: dict[str, str] = {}
    with Progress() as progress:
        for name in names:
            progress.say(f"fetching {name}")
            path = zoo.fetch(name)
            if output is not None:
                path = _copy(path, output)
            found[name] = str(path)
    if as_json:
        write_json({"models": found})
    else:
        for place in found.values():
            write(place)


def _copy(path: Path, output: Path) -> Path:
    """Copy a file, all or nothing."""
    with tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as folder:
        os.replace(shutil.copyfile(path, Path(folder) / output.name), output)
    return output
