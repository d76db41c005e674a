"""Explicit padding before convolutions and pools."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.ir import kernels
from graphopt.passes.pad_into_conv import PadIntoConv
from graphopt.testing import apply, assert_same_numbers, check, check_ignores, check_refuses, model_from_text

HEAD = "g (float[1,1,5,5] x) => (float[1,1,A,B] y)"
PADS = "int64[8] p={0,0,1,0,0,0,1,2}"
WEIGHT = "float[1,1,3,3] w={1,2,3,4,5,6,7,8,9}"


def test_fires_for_conv() -> None:
    check(
        PadIntoConv(),
        f"{HEAD} <{PADS}, {WEIGHT}> {{ t = Pad(x, p) y = Conv<strides=[2,2]>(t, w) }}",
        f"{HEAD} <{WEIGHT}> {{ y = Conv<pads=[1,0,1,2], strides=[2,2]>(x, w) }}",
    )


def test_pads_add_up_and_axes_are_followed() -> None:
    check(
        PadIntoConv(),
        f"{HEAD} <int64[4] p={{3,1,0,2}}, int64[2] ax={{-1,2}}, float v={{0}}, {WEIGHT}> "
        "{ t = Pad(x, p, v, ax) y = Conv<pads=[1,1,1,1], kernel_shape=[3,3]>(t, w) }",
        f"{HEAD} <{WEIGHT}> {{ y = Conv<pads=[2,4,3,1], kernel_shape=[3,3]>(x, w) }}",
    )


@pytest.mark.parametrize(
    ("mode", "pads"), [("VALID", "1,0,1,2"), ("SAME_UPPER", "1,1,2,3"), ("SAME_LOWER", "2,1,1,3")]
)
def test_auto_pad(mode: str, pads: str) -> None:
    weight = "float[1,1,2,3] w={1,2,3,4,5,6}"
    check(
        PadIntoConv(),
        f'{HEAD} <{PADS}, {weight}> {{ t = Pad(x, p) y = Conv<auto_pad="{mode}">(t, w) }}',
        f"{HEAD} <{weight}> {{ y = Conv<pads=[{pads}]>(x, w) }}",
    )


def test_auto_pad_that_depends_on_the_size() -> None:
    body = '{ t = Pad(x, p) y = Conv<auto_pad="SAME_UPPER", strides=[2,2]>(t, w) }'
    check(
        PadIntoConv(),
        f"{HEAD} <{PADS}, {WEIGHT}> {body}",
        f"{HEAD} <{WEIGHT}> {{ y = Conv<pads=[2,1,2,3], strides=[2,2]>(x, w) }}",
    )
    open_sizes = "g (float[1,1,H,5] x) => (float[1,1,A,B] y)"
    check_refuses(PadIntoConv(), f"{open_sizes} <{PADS}, {WEIGHT}> {body}", "auto_pad SAME")


def test_average_pool_counts_the_padding() -> None:
    check(
        PadIntoConv(),
        f"{HEAD} <int64[8] p={{0,0,1,1,0,0,1,1}}> {{ t = Pad(x, p) y = AveragePool<kernel_shape=[3,3]>(t) }}",
        f"{HEAD} {{ y = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1>(x) }}",
    )


@pytest.mark.onnxruntime("1.25", "counts all padding in its AveragePool kernel")
def test_average_pool_counts_padding_that_is_not_equal() -> None:
    check(
        PadIntoConv(),
        f"{HEAD} <{PADS}> {{ t = Pad(x, p) y = AveragePool<kernel_shape=[3,3]>(t) }}",
        f"{HEAD} {{ y = AveragePool<kernel_shape=[3,3], pads=[1,0,1,2], count_include_pad=1>(x) }}",
    )


def test_refuses_an_average_pool_that_the_kernel_gets_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """As ONNX Runtime up to 1.24."""
    monkeypatch.setattr(kernels, "average_pool_counts_all_padding", lambda: False)
    text = f"{HEAD} <{PADS}> {{ t = Pad(x, p) y = AveragePool<kernel_shape=[3,3]>(t) }}"
    check_refuses(PadIntoConv(), text, "not equal on all sides")


def test_max_pool_takes_zeros_where_the_data_is_not_negative() -> None:
    check(
        PadIntoConv(),
        f"{HEAD} <{PADS}> {{ r = Relu(x) t = Pad(r, p) y = MaxPool<kernel_shape=[3,3]>(t) }}",
        f"{HEAD} {{ r = Relu(x) y = MaxPool<kernel_shape=[3,3], pads=[1,0,1,2]>(r) }}",
    )
    check_refuses(
        PadIntoConv(),
        f"{HEAD} <{PADS}> {{ t = Pad(x, p) y = MaxPool<kernel_shape=[3,3]>(t) }}",
        "could be the maximum",
    )


@pytest.mark.parametrize(
    ("constants", "body", "reason"),
    [
        (PADS + ", float v={1}", "t = Pad(x, p, v) y = Conv(t, w)", "another value than 0"),
        ("int64[8] p={0,1,0,0,0,1,0,0}", "t = Pad(x, p) y = Conv<group=3>(t, w3)", "channels"),
        ("int64[8] p={0,0,-1,0,0,0,1,2}", "t = Pad(x, p) y = Conv(t, w)", "crops"),
        (PADS, 't = Pad<mode="reflect">(x, p) y = Conv(t, w)', "with a constant"),
        (
            PADS,
            "t = Pad(x, p) r = Relu(t) q = Conv(t, w) k = Conv(r, w) y = Add(q, k)",
            "something else reads",
        ),
        (
            PADS,
            "t = Pad(x, p) y = AveragePool<kernel_shape=[3,3], pads=[1,1,0,0]>(t)",
            "leaves its own padding out",
        ),
        (PADS, "t = Pad(x, p) y = AveragePool<kernel_shape=[3,3], ceil_mode=1>(t)", "ceil_mode"),
        (PADS, "t = Pad(x, p) y = AveragePool<kernel_shape=[2,2]>(t)", "narrower than the window"),
        (PADS, "r = Relu(x) t = Pad(r, p) y = MaxPool<kernel_shape=[3,3], dilations=[2,1]>(t)", "dilated"),
    ],
)
def test_refuses(constants: str, body: str, reason: str) -> None:
    more = "float[3,1,1,1] w3={1,2,3}"
    check_refuses(
        PadIntoConv(),
        f"g (float[1,1,5,5] x) => (float[1,C,A,B] y) <{constants}, {WEIGHT}, {more}> {{ {body} }}",
        reason,
    )


def test_refuses_a_padded_graph_output() -> None:
    check_refuses(
        PadIntoConv(),
        f"g (float[1,1,5,5] x) => (float[1,1,A,B] y, float[1,1,C,D] t) <{PADS}, {WEIGHT}> "
        "{ t = Pad(x, p) y = Conv(t, w) }",
        "output of the graph",
    )


def test_ignores_pads_that_are_not_constant() -> None:
    check_ignores(
        PadIntoConv(),
        f"g (float[1,1,5,5] x, int64[8] p) => (float[1,1,A,B] y) <{WEIGHT}> {{ t = Pad(x, p) y = Conv(t, w) }}",
    )


@given(
    st.lists(st.integers(0, 2), min_size=4, max_size=4),
    st.lists(st.integers(0, 1), min_size=4, max_size=4),
    st.integers(1, 2),
    st.integers(1, 2),
    st.integers(0, 1),
    st.sampled_from(["Conv", "AveragePool", "MaxPool"]),
)
@settings(derandomize=True, deadline=None, max_examples=80)
def test_property(
    outer: list[int], own: list[int], stride: int, dilation: int, counts: int, kind: str
) -> None:
    widths = ",".join(map(str, [0, 0, *outer[:2], 0, 0, *outer[2:]]))
    options = f"strides=[{stride},1], pads={own}, dilations=[{dilation},1]"
    if kind == "Conv":
        op = f"Conv<{options}>(t, w)"
    elif kind == "AveragePool":
        op = f"AveragePool<{options}, kernel_shape=[3,3], count_include_pad={counts}>(t)"
    else:
        op = f"MaxPool<{options}, kernel_shape=[3,3]>(t)"
    text = f"{HEAD} <int64[8] p={{{widths}}}, {WEIGHT}> {{ r = Abs(x) t = Pad(r, p) y = {op} }}"
    before = model_from_text(text)
    after, log = apply(PadIntoConv(), text)
    assert log.applied or kind != "Conv"
    assert_same_numbers(before, after)
