"""Subnormal weights."""

import hypothesis
import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from graphopt.passes.subnormals import Subnormals, count_subnormals, without_subnormals
from graphopt.rewrite import RewriteLog
from graphopt.testing import apply, check_ignores, check_refuses, model_from_text

TEXT = """g (float[N,3] x, bool c) => (float[N,3] y) <float[3] w={1, 1e-40, -2e-39}, float[3] v={1e-37, 0, 2}> {
    a = Mul(x, w) b = Add(a, v)
    y = If(c) <then_branch = t () => (float[N,3] p) <float[1] s={1e-42}> { p = Add(b, s) },
               else_branch = e () => (float[N,3] q) { q = Neg(b) }> }"""


def test_fires_and_counts() -> None:
    model = model_from_text(TEXT)
    shared = model.graph.initializers["w"].const_value
    assert shared is not None
    copy = model.clone()
    tested, log = Subnormals(), RewriteLog()
    assert tested.run(copy, log)
    assert tested.zeroed == {"w": 2, "s": 1}
    assert [entry.site for entry in log.applied] == ["w", "s"]
    assert tested.run(copy, log) is False
    changed = copy.graph.initializers["w"].const_value
    assert changed is not None
    np.testing.assert_array_equal(changed.numpy(), np.array([1, 0, -0.0], np.float32))
    assert np.signbit(changed.numpy()[2])
    assert count_subnormals(shared.numpy()) == 2, "the original is shared and must stay"


def test_the_gate_is_asked() -> None:
    model = model_from_text(TEXT)
    tested = Subnormals()
    assert tested.run(model, RewriteLog(), lambda application: application.site != "w")
    assert list(tested.zeroed) == ["s"]


def test_ignores_half_precision_and_normal_numbers() -> None:
    check_ignores(
        Subnormals(), "g (float16[2] x) => (float16[2] y) <float16[2] w={1, 15360}> { y = Mul(x, w) }"
    )
    check_ignores(Subnormals(), "g (float[2] x) => (float[2] y) <float[2] w={1.2e-38, 0}> { y = Mul(x, w) }")


def test_ignores_what_a_caller_may_override() -> None:
    model, log = apply(Subnormals(), "g (float[1] x, float[1] w = {1e-40}) => (float[1] y) { y = Mul(x, w) }")
    assert not log.applied and isinstance(model, ir.Model)


@hypothesis.settings(derandomize=True, deadline=None, max_examples=50)
@hypothesis.given(
    st.sampled_from([np.float32, np.float64]).flatmap(
        lambda dtype: st_numpy.arrays(dtype, st_numpy.array_shapes(max_dims=2, max_side=5))
    )
)
def test_only_subnormal_elements_change(content: np.ndarray) -> None:  # type: ignore[type-arg]
    tiny = np.finfo(content.dtype).tiny
    result = without_subnormals(content)
    expected = np.where(np.abs(content) < tiny, np.zeros_like(content), content)
    np.testing.assert_array_equal(result, expected)
    np.testing.assert_array_equal(np.signbit(result), np.signbit(content))
    assert count_subnormals(content) == int(np.sum(result != content) - np.sum(np.isnan(content)))


@pytest.mark.parametrize(
    "body",
    ["y = Div(x, w)", "y = Max(x, w)", "a = Add(x, w) b = Log(w) y = Mul(a, b)", "y = Pow(w, x)"],
)
def test_refuses_what_is_small_on_purpose(body: str) -> None:
    check_refuses(
        Subnormals(), f"g (float[1] x) => (float[1] y) <float[1] w={{1e-40}}> {{ {body} }}", "on purpose"
    )
