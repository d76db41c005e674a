"""What the options of a pass are: names, types and defaults from its dataclass, their meaning from its docstring."""

from __future__ import annotations

import dataclasses
import inspect
import re
from dataclasses import dataclass
from typing import Any

_SECTION = re.compile(r"^(?:Attributes|Args):\n((?:[ \t]+.*\n?|\n)*)", re.MULTILINE)
_ENTRY = re.compile(r"^ {4}(\w[\w, ]*): ((?:.|\n(?! {4}\w[\w, ]*: ))*)", re.MULTILINE)


@dataclass(frozen=True)
class OptionInfo:
    """One option.

    Attributes:
        name: As it is written in a list of passes.
        type: Of its values, as annotated.
        default: What it is where nothing is said.
        meaning: From the docstring, in one line; empty where it says nothing.
    """

    name: str
    type: str
    default: Any
    meaning: str


def options_of(options: type[Any]) -> tuple[OptionInfo, ...]:
    """The options of a pass, in the order in which its class and the classes before it name them.

    Args:
        options: The dataclass ``Options`` of the pass.
    """
    meanings: dict[str, str] = {}
    for cls in reversed(options.__mro__):
        for section in _SECTION.findall(inspect.cleandoc(cls.__doc__ or "") + "\n"):
            for names, text in _ENTRY.findall(section):
                meanings |= dict.fromkeys(names.split(", "), " ".join(text.split()))
    return tuple(
        OptionInfo(field.name, _type(str(field.type)), _default(field), meanings.get(field.name, ""))
        for field in dataclasses.fields(options)
    )


def _type(annotated: str) -> str:
    """An annotation as people read it: the choices of a Literal, or the type."""
    if not annotated.startswith("Literal["):
        return annotated
    return " | ".join(choice.strip("'\" ") for choice in annotated[len("Literal[") : -1].split(","))


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


__all__ = ["OptionInfo", "options_of"]
