"""What is told of the options of a pass."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from graphopt.pipeline.options import OptionInfo, options_of
from graphopt.pipelines import PASSES


@dataclass(frozen=True)
class Base:
    """Options.

    Attributes:
        first: What comes first,
            in two lines.
    """

    first: int = 1


@dataclass(frozen=True)
class Options(Base):
    """More.

    Attributes:
        mode: How.
        names, others: Of what.
    """

    mode: Literal["a", "b"] = "a"
    names: tuple[str, ...] = ()
    others: bool = False
    untold: float = 0.5


def test_names_types_defaults_and_meanings() -> None:
    first, mode, names, others, untold = options_of(Options)
    assert first == OptionInfo("first", "int", 1, "What comes first, in two lines.")
    assert (mode.type, mode.meaning) == ("a | b", "How.")
    assert names.meaning == others.meaning == "Of what." and others.default is False
    assert untold.meaning == ""


@pytest.mark.parametrize("name", sorted(PASSES))
def test_every_option_of_a_built_in_pass_says_what_it_is(name: str) -> None:
    module, _, attribute = PASSES[name].partition(":")
    cls: Any = getattr(importlib.import_module(module), attribute)
    if hasattr(cls, "Options"):
        assert all(option.meaning for option in options_of(cls.Options)), options_of(cls.Options)
