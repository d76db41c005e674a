"""Pass lists as text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt.errors import SpecError, UnknownNameError
from graphopt.pipeline.spec import PassSpec, make_options, parse


@pytest.mark.parametrize(
    ("text", "specs"),
    [
        ("fuse", [PassSpec("fuse")]),
        (" fold , fuse ", [PassSpec("fold"), PassSpec("fuse")]),
        ("fuse{disable=[gelu, silu]}", [PassSpec("fuse", {"disable": ["gelu", "silu"]})]),
        ("p{a=1,b=0.5,c=true,d=word,e=\"two words\"},q", [PassSpec("p", {"a": 1, "b": 0.5, "c": True, "d": "word", "e": "two words"}), PassSpec("q")]),
        ("p{}", [PassSpec("p")]),
        ("p{a=[]}", [PassSpec("p", {"a": []})]),
        ("fold,../mine.py:Strip{a=1}", [PassSpec("fold"), PassSpec("../mine.py:Strip", {"a": 1})]),
        ("C:\\p\\mine.py:Strip", [PassSpec("C:\\p\\mine.py:Strip")]),
        ("a.b:Strip,fuse", [PassSpec("a.b:Strip"), PassSpec("fuse")]),
    ],
)  # fmt: skip
def test_reads(text: str, specs: list[PassSpec]) -> None:
    assert list(parse(text)) == specs


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("fold,", "a pass name after the comma"),
        ("fold fuse", "expected ',' at position 5"),
        ("fuse{disable}", "expected '='"),
        ("fuse{disable=", "a value"),
        ("fuse{disable=[gelu}", "expected ','"),
        ("fuse{a=1,a=2}", "given twice"),
        ("{a=1}", "a pass name"),
    ],
)
def test_says_what_was_expected(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message.replace("[", r"\[")):
        parse(text)


names = st.from_regex(r"[a-z][a-z0-9\-]{0,8}", fullmatch=True)
values = st.recursive(
    st.integers(-99, 99) | st.booleans() | names | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3),
)


@given(
    st.lists(st.builds(PassSpec, names, st.dictionaries(names, values, max_size=3)), min_size=1, max_size=3)
)
def test_what_is_written_reads_back(specs: list[PassSpec]) -> None:
    assert list(parse(",".join(map(str, specs)))) == specs


@dataclass(frozen=True)
class Options:
    """For the tests."""

    bits: int = 8
    ratio: float = 0.5
    mode: Literal["min-max", "mse"] = "mse"
    disable: tuple[str, ...] = ()


def test_makes_typed_options() -> None:
    assert make_options(
        Options, {"bits": 4, "ratio": 1, "mode": "min-max", "disable": ["a"]}, "pass 'q'"
    ) == Options(4, 1.0, "min-max", ("a",))


@pytest.mark.parametrize(
    ("given_", "error", "message"),
    [
        ({"bit": 4}, UnknownNameError, "did you mean 'bits'"),
        ({"bits": "four"}, SpecError, "must be of type int, not 'four'"),
        ({"bits": True}, SpecError, "must be of type int"),
        ({"mode": "msee"}, UnknownNameError, "did you mean 'mse'"),
    ],
)
def test_refuses_wrong_options(given_: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make_options(Options, given_, "pass 'q'")
