"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass
class Settings:
    """What holds for every command.

    Attributes:
        debug: Show the traceback of an error.
        json: Print one JSON object on stdout and nothing else there.
    """

    debug: bool = False
    json: bool = False


def _debug(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    del param
    if value:
        ctx.ensure_object(Settings).debug = True


def _json(ctx: click.Context, param: click.Parameter, value: bool) -> bool:
    del param
    if value:
        ctx.ensure_object(Settings).json = True
    return value


debug_option = click.option(
    "--debug", is_flag=True, is_eager=True, expose_value=False, callback=_debug,
    help="Show the traceback of an error.",
)  # fmt: skip

json_option = click.option(
    "--json", "as_json", is_flag=True, is_eager=True, callback=_json, help="Print one JSON object on stdout."
)

data_option = click.option(
    "--data", type=click.Path(path_type=Path), metavar="FILE|FOLDER",
    help="Real inputs: a .npz file with an array for each input, by its name, or a folder of such files, or of .npy "
    "files named after the inputs. An array of several samples has one axis more than its input. Made-up inputs "
    "without it.",
)  # fmt: skip

transform_option = click.option(
    "--transform", metavar="F",
    help="Makes inputs of what --data holds: FILE.py:FUNCTION, called with each entry; for images and other files.",
)  # fmt: skip

seed_option = click.option(
    "--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True, help="Of made-up inputs."
)

threads_option = click.option(
    "--threads", type=click.IntRange(0, 1024), default=0, show_default=True, metavar="N",
    help="Threads of an operator; 0 leaves it to the backend.",
)  # fmt: skip

input_shape_option = click.option(
    "--input-shape", "input_shapes", multiple=True, metavar="NAME:SIZE,...",
    help="Fix the shape of an input, as x:1,3,224,224; ? leaves a size as it is. Repeatable.",
)  # fmt: skip


def inputs_options(function: Function) -> Function:
    """``--data``, ``--transform`` and ``--input-shape``: what a model is run on."""
    return data_option(transform_option(input_shape_option(function)))


def common(function: Function) -> Function:
    """``--json`` and ``--debug``, which every command has."""
    return json_option(debug_option(function))


def parse_shapes(texts: tuple[str, ...]) -> dict[str, tuple[int | None, ...]] | None:
    """Shapes by input name; None where none is given.

    Raises:
        SpecError: One cannot be read, or an input is given twice.
    """
    from graphopt.errors import SpecError
    from graphopt.ir.shapes import parse_input_shape

    shapes: dict[str, tuple[int | None, ...]] = {}
    for text in texts:
        name, dims = parse_input_shape(text)
        if name in shapes:
            raise SpecError(f"the shape of input {name!r} is given twice", hint="give it once for each input")
        shapes[name] = tuple(dims)
    return shapes or None
