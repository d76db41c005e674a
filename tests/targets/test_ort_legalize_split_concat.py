"""Pointwise convolutions of two tensors side by side."""

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.targets.ort.legalize.split_concat import SplitConcat
from graphopt.testing import apply, assert_same_numbers, model_from_text


def model(
    body: str, left: int = 16, right: int = 32, outputs: int = 8, dtype: str = "float", group: int = 1
) -> ir.Model:
    """Two convolutions ``a`` and ``b``, then ``body``, which makes ``y``."""
    made = model_from_text(
        f"g ({dtype}[N,4,6,6] x, {dtype}[{left},4,1,1] u, {dtype}[{right},4,1,1] v, "
        f"{dtype}[{outputs},{(left + right) // group},1,1] w, {dtype}[{outputs}] k) => ({dtype}[N,O,A,B] y) "
        f"{{ a = Conv(x, u) b = Conv(x, v) {body} }}"
    )
    rng = np.random.default_rng(0)
    for value in made.graph.inputs[1:]:
        assert value.shape is not None and value.dtype is not None
        content = rng.standard_normal(value.shape.numpy()).astype(value.dtype.numpy())
        value.const_value = ir.tensor(content, name=value.name)
        made.graph.register_initializer(value)
    del made.graph.inputs[1:]
    return made


CONCAT = "c = Concat<axis=1>(a, b) "


@settings(derandomize=True, deadline=None, max_examples=25)
@given(
    left=st.sampled_from([16, 32, 48]),
    right=st.sampled_from([16, 64]),
    outputs=st.integers(1, 9),
    bias=st.booleans(),
    pooled=st.booleans(),
)
def test_numbers_agree(left: int, right: int, outputs: int, bias: bool, pooled: bool) -> None:
    data, pool = ("p", "p = MaxPool<kernel_shape=[3,3], strides=[2,2]>(c) ") if pooled else ("c", "")
    before = model(CONCAT + pool + f"y = Conv({data}, w{', k' if bias else ''})", left, right, outputs)
    after, log = apply(SplitConcat(), before)
    assert log.counts() == {"split-concat": 1}
    kinds = [node.op_type for node in after.graph]
    assert sorted(kinds) == sorted(["Conv"] * 4 + ["MaxPool"] * 2 * pooled + ["Add"])
    assert_same_numbers(before, after)


@pytest.mark.parametrize(
    ("body", "outputs", "reason"),
    [
        (CONCAT + "d = Conv(c, w) e = Relu(c) f = ReduceMax(e) y = Add(d, f)", 8, "used elsewhere"),
        (CONCAT + "y = Conv(c, w)", 49, "more output than input channels"),
    ],
)
def test_refuses(body: str, outputs: int, reason: str) -> None:
    before = model(body, outputs=outputs)
    after, log = apply(SplitConcat(), before)
    assert not log.applied and len(after.graph) == len(before.graph)
    assert reason in log.refused[0].reason


@pytest.mark.parametrize(
    ("body", "options"),
    [
        (CONCAT + "y = Conv<strides=[2,2]>(c, w)", {}),
        (CONCAT + "y = Conv<pads=[1,1,1,1]>(c, w)", {}),
        (CONCAT + 'y = Conv<auto_pad="SAME_UPPER", strides=[2,1]>(c, w)', {}),
        (CONCAT + "y = Conv<group=2>(c, w)", {"group": 2}),
        ("c = Concat<axis=1>(a, b) d = Concat<axis=2>(c, c) y = Conv(d, w)", {}),
        (CONCAT + "y = Conv(c, w)", {"left": 24, "right": 24}),
        ("r = Exp(a) c = Concat<axis=1>(r, b) y = Conv(c, w)", {}),
    ],
)
def test_ignores(body: str, options: dict[str, int]) -> None:
    _, log = apply(SplitConcat(), model(body, **options))  # type: ignore[arg-type]
    assert not log.applied and not log.refused


def test_ignores_half_precision() -> None:
    _, log = apply(SplitConcat(), model(CONCAT + "y = Conv(c, w)", dtype="float16"))
    assert not log.applied and not log.refused
