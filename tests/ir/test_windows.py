"""Pads of windows, ``auto_pad`` resolved: the backend computes the same to the bit with what is told."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.ir import windows
from graphopt.testing import model_from_text, run


def window(op: str, attributes: str, x: str = "1,2,7,8", weights: str = "w") -> ir.Node:
    """A node of a graph from text, reading ``x`` [batch, channels, ...]."""
    inputs = f"x, {weights}" if weights else "x"
    model = model_from_text(
        f"g (float[{x}] x, float[2,2,3,2] w) => (float[A,B,C,D] y) {{ y = {op} <{attributes}> ({inputs}) }}"
    )
    return model.graph[0]


@pytest.mark.parametrize(
    ("attributes", "x", "pads"),
    [
        ("group=1", "1,2,7,8", (0, 0, 0, 0)),
        ("pads=[1,0,2,3]", "1,2,7,8", (1, 0, 2, 3)),
        ('auto_pad="VALID"', "1,2,H,W", (0, 0, 0, 0)),
        ('auto_pad="SAME_UPPER"', "1,2,H,W", (1, 0, 1, 1)),
        ('auto_pad="SAME_LOWER"', "1,2,H,W", (1, 1, 1, 0)),
        ('auto_pad="SAME_UPPER", dilations=[2,3]', "1,2,7,8", None),
        ('auto_pad="SAME_UPPER", strides=[2,2]', "1,2,7,8", (1, 0, 1, 0)),
        ('auto_pad="SAME_UPPER", strides=[4,4]', "1,2,8,9", (0, 0, 0, 1)),
        ('auto_pad="SAME_UPPER", strides=[2,2]', "1,2,H,8", None),
    ],
)
def test_of_a_convolution(attributes: str, x: str, pads: tuple[int, ...] | None) -> None:
    node = window("Conv", attributes, x)
    assert windows.kernel(node) == (3, 2)
    assert windows.pads(node) == pads
    assert windows.is_padded(node) == (pads is None or any(pads))


def test_of_a_pool() -> None:
    node = window("MaxPool", 'kernel_shape=[2,2], strides=[2,1], auto_pad="SAME_LOWER"', weights="")
    assert (windows.kernel(node), windows.steps(node, "strides", 2)) == ((2, 2), (2, 1))
    assert windows.steps(node, "dilations", 2) == (1, 1)
    assert windows.pads(node) == (1, 1, 0, 0)


def test_of_a_transposed_convolution_same_is_not_told() -> None:
    node = window("ConvTranspose", 'auto_pad="SAME_UPPER"')
    assert windows.pads(node) is None and windows.is_padded(node)
    assert windows.pads(window("ConvTranspose", 'auto_pad="VALID"')) == (0, 0, 0, 0)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    op=st.sampled_from(["Conv", "MaxPool"]),
    mode=st.sampled_from(["SAME_UPPER", "SAME_LOWER"]),
    size=st.tuples(st.integers(3, 12), st.integers(3, 12)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 2)),
)
def test_the_backend_pads_alike(op: str, mode: str, size: tuple[int, int], stride: tuple[int, int]) -> None:
    """ONNX Runtime itself pads no pool that steps over data."""
    rng = np.random.default_rng(0)
    x = ",".join(map(str, (1, 2, *size)))
    weights, kernel = ("w", "") if op == "Conv" else ("", "kernel_shape=[3,2], ")
    about = f"{kernel}strides=[{stride[0]},{stride[1]}]"
    pads = windows.pads(window(op, f'{about}, auto_pad="{mode}"', x, weights))
    assert pads is not None
    feeds = {
        "x": rng.standard_normal((1, 2, *size)).astype(np.float32),
        "w": rng.standard_normal((2, 2, 3, 2)).astype(np.float32),
    }
    made = []
    for padding in (f'auto_pad="{mode}"', f"pads=[{','.join(map(str, pads))}]"):
        node = window(op, f"{about}, {padding}", x, weights)
        assert node.graph is not None
        model = ir.Model(node.graph, ir_version=10)  # type: ignore[arg-type]
        made.append(
            run(model, {name: feeds[name] for name in [value.name for value in model.graph.inputs]})["y"]
        )  # type: ignore[index]
    np.testing.assert_array_equal(*made)
