"""Half precision: which nodes, where the casts stand, and what the emulation shows that the CPU provider hides."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.ir import check
from graphopt.quant.half_graph import converted
from graphopt.quant.half_plan import magnitudes_of, plan_of
from graphopt.targets.ort.halves import kernels
from graphopt.testing import model_from_text
from graphopt.verify.session import Session

HALF = ir.DataType.FLOAT16
OPERATORS = kernels()["float16"]
Feeds = dict[str, Any]

NET = """
g (float[N,4] x) => (float[N,4] y)
<float[4,4] w = {0.11,-0.2,0.3,0.44,-0.5,0.6,0.7,0.8,-0.9,0.1,0.2,0.3,0.4,-0.5,0.6,0.7},
 float[4] b = {0.1,-0.2,0.3,-0.4}> {
    m = MatMul(x, w)
    a = Add(m, b)
    r = Relu(a)
    n = MatMul(r, w)
    y = Sigmoid(n)
}
"""


def plan(
    model: ir.Model, *feeds: Feeds, dtype: ir.DataType = HALF
) -> tuple[frozenset[str], dict[str, float], Any]:
    magnitudes = magnitudes_of(model, feeds)
    found = plan_of(model, OPERATORS, magnitudes, dtype)
    return found.chosen, magnitudes, found.reasons


def ops(model: ir.Model, names: frozenset[str]) -> set[str]:
    return {node.op_type for node in model.graph if node.name in names}


def x_of(*shape: int, scale: float = 1.0) -> Feeds:
    return {"x": (np.random.default_rng(0).standard_normal(shape) * scale).astype(np.float32)}


def rounded(array: Any) -> Any:
    return array.astype(np.float16).astype(np.float32)


@pytest.mark.parametrize("emulate", [True, False])
def test_computes_in_half_precision_and_keeps_the_interface(emulate: bool) -> None:
    model = model_from_text(NET)
    feeds = x_of(3, 4)
    chosen, magnitudes, reasons = plan(model, feeds)
    assert len(chosen) == 5 and not reasons
    result = converted(model, chosen, HALF, magnitudes, emulate=emulate)
    check.check(result)
    assert [(value.name, value.dtype) for value in result.graph.outputs] == [("y", ir.DataType.FLOAT)]
    casts = [node for node in result.graph if node.op_type == "Cast"]
    weights = {value.dtype for value in result.graph.initializers.values()}
    assert weights == ({ir.DataType.FLOAT} if emulate else {HALF})
    assert len(casts) == (12 if emulate else 2)
    wanted, got = Session(model).run(feeds)["y"], Session(result).run(feeds)["y"]
    np.testing.assert_allclose(got, wanted, atol=5e-3)
    assert got.dtype == np.float32 and not np.array_equal(got, wanted)


def test_the_emulation_rounds_each_tensor() -> None:
    model = model_from_text(NET)
    feeds = x_of(3, 4)
    chosen, magnitudes, _ = plan(model, feeds)
    got = Session(converted(model, chosen, HALF, magnitudes, emulate=True), optimize="all").run(feeds)["y"]
    weight, bias = (model.graph.initializers[name].const_value.numpy() for name in ("w", "b"))  # type: ignore[union-attr]
    x = rounded(feeds["x"])
    hidden = rounded(np.maximum(rounded(rounded(x @ rounded(weight)) + rounded(bias)), 0))
    np.testing.assert_allclose(got, rounded(1 / (1 + np.exp(-rounded(hidden @ rounded(weight))))), atol=1e-3)


def test_an_overflow_that_the_cpu_provider_hides_is_seen() -> None:
    model = model_from_text(
        "g (float[N,2] x) => (float[N,2] y) <float k = {1000.0}, float t = {0.001}> "
        "{ a = Mul(x, k) b = Mul(a, k) c = Mul(b, t) y = Mul(c, t) }"
    )
    feeds = {"x": np.ones((3, 2), np.float32)}
    everything = frozenset(node.name or "" for node in model.graph)
    hidden = Session(converted(model, everything, HALF, {}), optimize="all").run(feeds)["y"]
    shown = Session(converted(model, everything, HALF, {}, emulate=True), optimize="all").run(feeds)["y"]
    # Islands of light nodes are left as they are: all four are neighbours of one another.
    assert np.isfinite(hidden).all() and np.isinf(shown).all()
    chosen, magnitudes, reasons = plan(model, feeds)
    assert magnitudes["b"] == pytest.approx(1e6) and "1e+06" in "".join(reasons.values())
    exact = converted(model, chosen, HALF, magnitudes, emulate=True)
    np.testing.assert_allclose(Session(exact).run(feeds)["y"], 1.0, rtol=1e-2)


def test_each_tensor_is_cast_once_each_way() -> None:
    model = model_from_text(
        """
        g (float[N,4] x) => (float[N,4] y, float[N,4] z, float[N,4] m)
        <float[4,4] w = {1,2,3,4,5,6,7,8,9,1,2,3,4,5,6,7}> {
            m = MatMul(x, w)
            s = CumSum(m, i)
            t = CumSum(m, i)
            u = Add(s, t)
            y = MatMul(u, w)
            z = MatMul(u, w)
        }
        """.replace("g (", "g (").replace("> {", ", int64 i = {0}> {")
    )
    chosen, magnitudes, reasons = plan(model, x_of(3, 4))
    assert ops(model, chosen) == {"MatMul", "Add"} and any(
        "inner sums" in reason for reason in reasons.values()
    )
    result = converted(model, chosen, HALF, magnitudes)
    check.check(result)
    # In: x, and the two sums; out: m for its readers and the caller at once, y, z.
    assert Counter(node.op_type for node in result.graph)["Cast"] == 6
    for node in result.graph:
        source = node.inputs[0].producer() if node.op_type == "Cast" and node.inputs[0] is not None else None
        assert source is None or source.op_type != "Cast", "no cast of a cast"
    feeds = x_of(3, 4)
    wanted, got = Session(model).run(feeds), Session(result).run(feeds)
    for name in ("y", "z", "m"):
        np.testing.assert_allclose(got[name], wanted[name], rtol=1e-2, atol=np.abs(wanted[name]).max() * 2e-3)


def test_a_constant_beyond_the_range_stays() -> None:
    model = model_from_text(
        "g (float[N,4] x, bool[N,4] c) => (float[N,4] y) <float big = {-3.0e38}, float eps = {1.0e-12}> "
        "{ a = Where(c, x, big) b = Softmax(a) d = Add(b, eps) e = Sqrt(d) y = Relu(e) }"
    )
    feeds = {**x_of(3, 4), "c": np.array([[1, 0, 1, 0]] * 3, bool)}
    chosen, _, reasons = plan(model, feeds)
    text = " ".join(reasons.values())
    assert "the constant 'big' holds 3e+38" in text and "1e-12 is too small" in text
    assert not {"Where", "Softmax", "Add"} & ops(model, chosen)


def test_a_mask_of_attention_is_cut_off_at_the_range() -> None:
    model = model_from_text(
        """
        g (float[1,3,8] x, bool[1,1,3,3] c) => (float[1,3,8] y) <float big = {-3.0e38}, float none = {0.0}> {
            mask = Where(c, none, big)
            y = Attention<q_num_heads=2, kv_num_heads=2>(x, x, x, mask)
        }
        """
    )
    seen = np.tril(np.ones((3, 3), bool))[None, None]
    feeds = {**x_of(1, 3, 8), "c": seen}
    chosen, magnitudes, _ = plan(model, feeds)
    assert ops(model, chosen) == {"Attention"}
    for emulate in (True, False):
        result = converted(model, chosen, HALF, magnitudes, emulate=emulate)
        check.check(result)
        got = Session(result, optimize="all").run(feeds)["y"]
        np.testing.assert_allclose(got, Session(model).run(feeds)["y"], atol=5e-3)


def test_values_that_subgraphs_read_are_float32_there() -> None:
    model = model_from_text(
        """
        g (float[N,4] x, bool c) => (float[N,4] y)
        <float[4,4] w = {1,2,3,4,5,6,7,8,9,1,2,3,4,5,6,7}> {
            m = MatMul(x, w)
            k = If(c) <
                then_branch = one () => (float[N,4] p) { p = Relu(m) },
                else_branch = two () => (float[N,4] q) { q = Neg(m) }
            >
            y = MatMul(k, w)
        }
        """
    )
    feeds = {**x_of(3, 4), "c": np.array(True)}
    chosen, magnitudes, reasons = plan(model, feeds)
    assert ops(model, chosen) == {"MatMul"} and "it holds a subgraph" in reasons.values()
    for emulate in (True, False):
        result = converted(model, chosen, HALF, magnitudes, emulate=emulate)
        check.check(result)
        wanted = Session(model).run(feeds)["y"]
        np.testing.assert_allclose(Session(result).run(feeds)["y"], wanted, atol=np.abs(wanted).max() * 2e-3)


def test_a_light_node_between_float32_stays() -> None:
    model = model_from_text(
        "g (float[N,4] x) => (float[N,4] y) <int64 i = {0}> { a = CumSum(x, i) b = Relu(a) y = CumSum(b, i) }"
    )
    chosen, _, reasons = plan(model, x_of(3, 4))
    assert not chosen and any("casts would cost more" in reason for reason in reasons.values())


def test_types_of_the_interface_can_change() -> None:
    model = model_from_text(NET)
    chosen, magnitudes, _ = plan(model, x_of(3, 4))
    result = converted(model, chosen, HALF, magnitudes, keep_io=False)
    check.check(result)
    assert {value.dtype for value in (*result.graph.inputs, *result.graph.outputs)} == {HALF}
    assert not any(node.op_type == "Cast" for node in result.graph)
    feeds = {"x": x_of(3, 4)["x"].astype(np.float16)}
    assert Session(result).run(feeds)["y"].dtype == np.float16


def test_scales_of_a_resize_and_other_float32_operands_stay() -> None:
    model = model_from_text(
        """
        g (float[1,1,4,4] x) => (float[1,1,8,8] y)
        <float[1,1,3,3] w = {1,2,3,4,5,6,7,8,9}, float[4] s = {1,1,2,2}> {
            c = Conv<pads=[1,1,1,1]>(x, w)
            y = Resize(c, , s)
        }
        """
    )
    feeds = x_of(1, 1, 4, 4)
    chosen, magnitudes, _ = plan(model, feeds)
    assert len(chosen) == 2
    result = converted(model, chosen, HALF, magnitudes)
    check.check(result)
    assert model.graph.initializers["s"].dtype == ir.DataType.FLOAT and "s" in result.graph.initializers
    np.testing.assert_allclose(
        Session(result).run(feeds)["y"], Session(model).run(feeds)["y"], rtol=1e-2, atol=0.1
    )


def test_a_mask_made_of_booleans_is_cast_once() -> None:
    model = model_from_text(
        """
        g (float[N,4] x, bool[N,4] c) => (float[N,4] y)
        <float[4,4] w = {1,2,3,4,5,6,7,8,9,1,2,3,4,5,6,7}> {
            f = Cast<to=1>(c)
            m = MatMul(x, w)
            y = Mul(m, f)
        }
        """
    )
    feeds = {**x_of(3, 4), "c": np.array([[1, 0, 1, 0]] * 3, bool)}
    chosen, magnitudes, _ = plan(model, feeds)
    result = converted(model, chosen, HALF, magnitudes)
    check.check(result)
    casts = [node for node in result.graph if node.op_type == "Cast"]
    assert sorted(node.inputs[0].dtype.name for node in casts if node.inputs[0] is not None and node.inputs[0].dtype) == [
        "BOOL", "FLOAT", "FLOAT16",
    ]  # fmt: skip
    wanted = Session(model).run(feeds)["y"]
    np.testing.assert_allclose(Session(result).run(feeds)["y"], wanted, atol=np.abs(wanted).max() * 2e-3)


def test_magnitudes_are_over_all_samples_and_count_nan_as_infinite() -> None:
    model = model_from_text("g (float[N] x) => (float[N] y) { a = Log(x) y = Neg(x) }")
    found = magnitudes_of(model, [{"x": np.array([1, 5], np.float32)}, {"x": np.array([2, 100], np.float32)}])
    assert found["y"] == 100 and found["a"] == pytest.approx(np.log(100))
    assert magnitudes_of(model, [{"x": np.array([-1.0], np.float32)}])["a"] == np.inf
    assert magnitudes_of(model, [{"x": np.array([], np.float32)}])["y"] == 0


def test_bfloat16_has_the_range_of_float32() -> None:
    model = model_from_text(NET)
    feeds = x_of(3, 4, scale=1e6)
    assert not plan(model, feeds)[0]
    dtype = ir.DataType.BFLOAT16
    found = plan_of(model, kernels()["bfloat16"], magnitudes_of(model, [feeds]), dtype)
    assert len(found.chosen) == 5
    shown = Session(converted(model, found.chosen, dtype, {}, emulate=True)).run(feeds)["y"]
    assert np.isfinite(shown).all()
    check.check(converted(model, found.chosen, dtype, {}))
