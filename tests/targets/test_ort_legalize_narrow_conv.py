"""Convolutions to few channels."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.targets.ort.legalize.narrow_conv import NarrowConv
from graphopt.testing import assert_same_numbers, check, check_ignores, check_refuses, model_from_text


def conv(
    x: str = "1,16,8,6",
    y: str = "1,1,8,6",
    attributes: str = "pads=[1,1,1,1]",
    weight: tuple[int, ...] = (1, 16, 3, 3),
    more: str = "",
) -> str:
    numbers = np.random.default_rng(0).standard_normal(weight).astype(np.float32)
    content = ",".join(f"{number:.5f}" for number in numbers.reshape(-1))
    dims = ",".join(map(str, weight))
    return (
        f"g (float[{x}] x) => (float[{y}] y) <float[{dims}] w={{{content}}}, float[{weight[0]}] b="
        f"{{{','.join(map(str, range(weight[0])))}}}> {{ {more} y = Conv<{attributes}>(x, w, b) }}"
    )


def test_even_sizes() -> None:
    model = check(NarrowConv(), conv())
    assert [node.op_type for node in model.graph] == ["Conv", "DepthToSpace"]
    assert model.graph[0].outputs[0].shape == [1, 4, 4, 3]


def test_padding_that_the_operator_finds() -> None:
    model = check(NarrowConv(), conv(attributes='auto_pad="SAME_LOWER"', weight=(1, 16, 3, 4)))
    assert [node.op_type for node in model.graph] == ["Conv", "DepthToSpace"]


def test_sizes_that_may_be_odd() -> None:
    model = check(NarrowConv(), conv("N,16,H,W", "N,1,H,W"))
    assert [node.op_type for node in model.graph] == ["Conv", "DepthToSpace", "Shape", "Slice"]
    check(NarrowConv(), conv("1,16,7,5", "1,1,7,5"))


@pytest.mark.parametrize(
    "text",
    [
        conv(attributes="pads=[1,1,1,1], strides=[2,2]", y="1,1,4,3"),
        conv(attributes="pads=[2,2,2,2], dilations=[2,2]"),
        conv(attributes='auto_pad="VALID"', y="1,1,6,4", weight=(1, 16, 1, 1)),
        conv(attributes="pads=[0,0,0,0]", weight=(1, 16, 1, 1)),
        conv(y="1,4,8,6", weight=(4, 16, 3, 3)),
        conv("N,16,H,W", "N,1,A,B", attributes="pads=[0,0,0,0]"),  # Sizes that are not the input's.
        conv(y="1,2,8,6", attributes="pads=[1,1,1,1], group=2", weight=(2, 8, 3, 3)),
    ],
)
def test_leaves_alone(text: str) -> None:
    check_ignores(NarrowConv(), text)


def test_refuses() -> None:
    check_refuses(NarrowConv(), conv("1,8,8,6", weight=(1, 8, 3, 3)), "8 channels in")
    check_refuses(NarrowConv(), conv(more="z = Conv(x, w)"), "is shared")


@settings(max_examples=30)
@given(
    outputs=st.integers(1, 3),
    kernel=st.tuples(st.integers(3, 6), st.integers(3, 6)),
    pads=st.tuples(*[st.integers(0, 4)] * 4),
    sides=st.tuples(st.integers(6, 11), st.integers(6, 11)),
    dynamic=st.booleans(),
)
def test_any_kernel_and_padding(
    outputs: int, kernel: tuple[int, int], pads: tuple[int, ...], sides: tuple[int, int], dynamic: bool
) -> None:
    found = [side + pads[axis] + pads[axis + 2] - kernel[axis] + 1 for axis, side in enumerate(sides)]
    x, y = (
        ("1,16,H,W", f"1,{outputs},A,B")
        if dynamic
        else (f"1,16,{sides[0]},{sides[1]}", f"1,{outputs},{found[0]},{found[1]}")
    )
    if dynamic and found == list(sides):
        y = f"1,{outputs},H,W"
    text = conv(x, y, f"pads=[{','.join(map(str, pads))}]", (outputs, 16, *kernel))
    same = [pads[axis] + pads[axis + 2] + 1 == kernel[axis] for axis in (0, 1)]
    even = not dynamic and all(size % 2 == 0 for size in found)
    if not even and not all(same):
        check_ignores(NarrowConv(), text)
        return
    model = check(
        NarrowConv(),
        text,
        feeds={"x": np.random.default_rng(1).standard_normal((1, 16, *sides)).astype(np.float32)},
    )
    assert_same_numbers(model_from_text(text), model, {"x": np.ones((1, 16, *sides), np.float32)})
