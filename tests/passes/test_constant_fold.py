"""Evaluation of what does not depend on an input."""

import hypothesis
import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import strategies as st

from graphopt.passes.constant_fold import ConstantFold, ConstantFoldOptions
from graphopt.passes.dead_code import DeadCode
from graphopt.rewrite import RewriteLog
from graphopt.testing import apply, assert_same_numbers, check, check_ignores, model_from_text, run, text_of


@pytest.mark.parametrize(
    ("kind", "values", "call", "after"),
    [
        ("float[2]", "1,4", "Sqrt(c)", "float[2] k={1,2}"),
        ("double[2]", "1,4", "Neg(c)", "double[2] k={-1,-4}"),
        ("int64[2]", "7,-7", "Mul(c, c)", "int64[2] k={49,49}"),
        ("int32[2]", "1,2", "Sub(c, c)", "int32[2] k={0,0}"),
        pytest.param(
            *("uint8[2]", "1,2", "Max(c, c)", "uint8[2] k={1,2}"),
            marks=pytest.mark.onnxruntime("1.24", "has a kernel for Max of uint8"),
        ),
        ("bool[2]", "1,0", "Not(c)", "bool[2] k={0,1}"),
        ("float", "4", "Sqrt(c)", "float k={2}"),
    ],
)
def test_types(kind: str, values: str, call: str, after: str) -> None:
    dtype = kind.split("[")[0]
    check(
        ConstantFold(),
        f"g ({dtype}[2] x) => ({dtype}[2] y) <{kind} c={{{values}}}> {{ k = {call} y = Where(z, x, k) }}".replace(
            "Where(z, x, k)", "Concat<axis=0>(x, r)" if "[" not in kind else "Concat<axis=0>(x, k)"
        )
        .replace(" y =", " r = Reshape(k, one) y =" if "[" not in kind else " y =")
        .replace("<", "<int64[1] one={1}, ", 1)
        .replace(f"=> ({dtype}[2] y)", f"=> ({dtype}[A] y)"),
        (
            f"g ({dtype}[2] x) => ({dtype}[A] y) <{after if '[' in kind else 'float[1] k={2}'}> "
            "{ y = Concat<axis=0>(x, k) }"
        ),
        exact=True,
    )


def test_text() -> None:
    text = """g (string[N] x) => (bool[N] y) <string[1] a={"p"}, string[1] b={"q"}> {
        c = StringConcat(a, b) y = Equal(x, c) }"""
    model, log = model_from_text(text), RewriteLog()
    assert ConstantFold().run(model, log)
    assert [node.op_type for node in model.graph] == ["Equal"]
    feeds = {"x": np.array(["pq", "p", "q"], dtype=object)}
    assert (
        run(model, feeds)["y"].tolist()
        == run(model_from_text(text), feeds)["y"].tolist()
        == [True, False, False]
    )


def test_a_region_is_one_application_for_each_result_that_stays() -> None:
    text = """g (float[N,2] x) => (float[N,2] y) <float[2] a={1,2}, float[2] b={3,4}> {
        p = Add(a, b) q = Mul(p, a) r = Exp(q) s = Mul(x, r) t = Neg(p) y = Add(s, t) }"""
    model, log = model_from_text(text), RewriteLog()
    assert ConstantFold().run(model, log)
    assert sorted(entry.site for entry in log.applied) == ["r", "t"]
    assert [node.op_type for node in model.graph] == ["Mul", "Add"]
    assert len(model.graph.initializers) == 2
    assert_same_numbers(model_from_text(text), model, exact=True)


def test_an_output_keeps_its_name() -> None:
    check(
        ConstantFold(),
        "g (float[2] x) => (float[2] y, float[2] z) <float[2] a={1,4}> { y = Sqrt(a) z = Mul(x, y) }",
        "g (float[2] x) => (float[2] y, float[2] z) <float[2] k={1,2}> { y = Identity(k) z = Mul(x, k) }",
        exact=True,
    )


def test_several_outputs() -> None:
    check(
        ConstantFold(),
        """g (float[2] x) => (float[2] y) <float[4] a={1,2,3,4}> {
            p, q = Split<num_outputs=2>(a) s = Mul(x, p) y = Add(s, q) }""",
        "g (float[2] x) => (float[2] y) <float[2] p={1,2}, float[2] q={3,4}> { s = Mul(x, p) y = Add(s, q) }",
        exact=True,
    )


WEIGHT = "<int64[4] s={64,64,3,3}>"


def test_weights_are_built_whatever_their_size() -> None:
    model = check(
        ConstantFold(),
        f"""g (float[1,64,4,4] x) => (float[1,64,4,4] y) {WEIGHT} {{
            w = ConstantOfShape<value = float[1] {{0.5}}>(s) u = Identity(w) y = Conv<pads=[1,1,1,1]>(x, u) }}""",
        exact=True,
    )
    assert [node.op_type for node in model.graph] == ["Conv"]
    assert (
        sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)
        == 147456
    )


def test_large_results_that_are_no_weights_are_not_stored() -> None:
    text = """g (float[64,64,3,3] x) => (float[64,64,3,3] y) <int64[4] s={64,64,3,3}, int64 half={32}> {
        f = Cast<to=1>(half) w = Expand(f, s) v = Exp(w) y = Add(x, v) }"""
    model, log = apply(ConstantFold(), text)
    # The Cast of one number is folded, what it is spread over is not.
    assert [node.op_type for node in model.graph] == ["Expand", "Exp", "Add"]
    assert [entry.site for entry in log.applied] == ["f"]
    assert_same_numbers(model_from_text(text), model, exact=True)
    allowed = model_from_text(text)
    ConstantFold(ConstantFoldOptions(max_growth_bytes=1 << 20)).run(allowed, RewriteLog())
    assert [node.op_type for node in allowed.graph] == ["Add"]


def test_results_above_the_limit_are_never_computed() -> None:
    text = """g (float x) => (float y) <int64[2] s={4000000,4000000}> {
        w = ConstantOfShape(s) m = ReduceMax<keepdims=0>(w) y = Add(x, m) }"""
    check_ignores(ConstantFold(), text)


@pytest.mark.parametrize(
    "body",
    [
        "r = RandomNormal<shape=[2]>() y = Add(x, r)",
        "r = Bernoulli(half) y = Add(x, r)",
        "r = Dropout(half, p, yes) y = Add(x, r)",
        "r = DequantizeLinear(whole, p, z) y = Add(x, r)",
        "y = Identity(half)",
        "r = Relu(x) y = Add(r, half)",
        "b = Cast<to=16>(half) n = Neg(b) r = Cast<to=1>(n) y = Add(x, r)",
    ],
)
def test_ignores(body: str) -> None:
    constants = "<float[2] half={0.5,0.25}, float p={0.5}, bool yes={1}, uint8 z={0}, uint8[2] whole={1,0}>"
    check_ignores(ConstantFold(), f"g (float[2] x) => (float[2] y) {constants} {{ {body} }}")


def test_float_weights_are_quantized_once() -> None:
    head = "g (float[2] x) => (float[2] y)"
    dequantized = "r = DequantizeLinear(q, p, z) y = Add(x, r)"
    check(
        ConstantFold(),
        f"{head} <float[2] w={{0.5,0.25}}, float p={{0.25}}, int8 z={{1}}> {{ q = QuantizeLinear(w, p, z) {dequantized} }}",
        f"{head} <float p={{0.25}}, int8 z={{1}}, int8[2] q={{3,2}}> {{ {dequantized} }}",
    )
    check(
        ConstantFold(),
        f"{head} <float[2] w={{0,255}}> {{ q, p, z = DynamicQuantizeLinear(w) {dequantized} }}",
        f"{head} <uint8[2] q={{0,255}}, float p={{1}}, uint8 z={{0}}> {{ {dequantized} }}",
    )


def test_ignores_a_large_integer_weight_that_a_cast_widens() -> None:
    values = ",".join(["1"] * 40000)
    text = f"""g (float[N,200] x) => (float[N,200] y) <int8[200,200] w={{{values}}}> {{
        f = Cast<to=1>(w) y = MatMul(x, f) }}"""
    check_ignores(ConstantFold(), text)


def test_ignores_what_a_caller_may_override() -> None:
    check_ignores(
        ConstantFold(), "g (float[1] x, float[1] c = {4}) => (float[1] y) { s = Sqrt(c) y = Mul(x, s) }"
    )


def test_one_operator_that_the_runtime_lacks_does_not_stop_the_others() -> None:
    text = """g (float[2] x, int16[2] z) => (float[2] y, int16[2] u) <float[2] a={1,4}, int16[2] b={-1,2}> {
        r = Relu(b) u = Add(z, r) s = Sqrt(a) t = Neg(s) v = Exp(t) y = Mul(x, v) }"""
    model, log = model_from_text(text), RewriteLog()
    assert ConstantFold().run(model, log)
    assert [entry.site for entry in log.applied] == ["v"]
    assert [entry.site for entry in log.refused] == ["r"]
    assert "Relu" in log.refused[0].reason
    assert [node.op_type for node in model.graph] == ["Relu", "Add", "Mul"]


def test_inside_branches_and_loops() -> None:
    text = """g (float[2] x, bool c) => (float[2] y, float[2] w) <float[2] a={1,4}, int64 n={3}, bool yes={1}> {
        y = If(c) <then_branch = t () => (float[2] t2) <float[2] b={2,2}> {
                t0 = Sqrt(a) t1 = Mul(t0, b) t2 = Add(x, t1) },
                   else_branch = e () => (float[2] e1) { e0 = Sqrt(a) e1 = Mul(x, e0) }>
        w = Loop(n, yes, x) <body = l (int64 i, bool k, float[2] v) => (bool k1, float[2] v1) {
            k1 = Identity(k) l0 = Exp(a) v1 = Add(v, l0) }> }"""
    model, log = model_from_text(text), RewriteLog()
    assert ConstantFold().run(model, log)
    assert sorted(entry.site for entry in log.applied) == ["e0", "l0", "t1"]
    assert [node.op_type for node in model.graph.all_nodes()] == [
        "If",
        "Add",
        "Mul",
        "Loop",
        "Identity",
        "Add",
    ]
    assert_same_numbers(model_from_text(text), model, exact=True)


def test_control_flow_that_is_wholly_constant() -> None:
    text = """g (float[2] x) => (float[2] y) <float[2] a={1,4}, int64 n={3}, bool yes={1}, float[2] b={1,1}> {
        w = Loop(n, yes, a) <body = l (int64 i, bool k, float[2] v) => (bool k1, float[2] v1) {
            k1 = Identity(k) v1 = Add(v, b) }>
        y = Add(x, w) }"""
    model = check(
        ConstantFold(),
        text,
        "g (float[2] x) => (float[2] y) <float[2] k={4,7}> { y = Add(x, k) }",
        exact=True,
    )
    assert len(model.graph.initializers) == 1


def test_control_flow_that_reads_an_input_stays() -> None:
    check_ignores(
        ConstantFold(),
        """g (float[2] x) => (float[2] y) <float[2] a={1,4}, int64 n={3}, bool yes={1}> {
            y = Loop(n, yes, a) <body = l (int64 i, bool k, float[2] v) => (bool k1, float[2] v1) {
                k1 = Identity(k) v1 = Add(v, x) }> }""",
    )


def test_sizes_that_depend_on_contents() -> None:
    text = """g (float[N] x) => (float[M] y) <int64[4] a={0,1,0,1}, float[4] t={1,2,3,4}> {
        b = Cast<to=9>(a) k = Compress(t, b) s = Shape(k) m = ConstantOfShape<value = float[1] {2.0}>(s)
        p = Add(k, m) y = Concat<axis=0>(x, p) }"""
    model = check(ConstantFold(), text, exact=True)
    assert [node.op_type for node in model.graph] == ["Concat"]


def test_a_range_whose_operand_is_no_scalar_stays_valid() -> None:
    """ONNX Runtime computes it, but rejects the model once that operand is a constant."""
    text = """g (float[N] x, int64 n) => (float[M] y) <int64[1] a={1}, int64 one={1}> {
        b = Add(a, a) r = Range(b, n, one) f = Cast<to=1>(r) y = Concat<axis=0>(x, f) }"""
    feeds = {"x": np.ones(2, np.float32), "n": np.array(5)}
    model = model_from_text(text)
    ConstantFold().run(model, RewriteLog())
    assert (
        run(model, feeds)["y"].tolist() == run(model_from_text(text), feeds)["y"].tolist() == [1, 1, 2, 3, 4]
    )


def test_the_gate_is_asked() -> None:
    text = """g (float[2] x) => (float[2] y) <float[2] a={1,4}> {
        p = Sqrt(a) q = Neg(p) r = Exp(q) s = Mul(x, r) y = Add(s, q) }"""
    model, log = model_from_text(text), RewriteLog()
    ConstantFold().run(model, log, lambda application: application.site != "r")
    assert [entry.site for entry in log.applied] == ["q"]
    assert [node.op_type for node in model.graph] == ["Exp", "Mul", "Add"]
    assert_same_numbers(model_from_text(text), model, exact=True)


def test_the_original_is_not_touched() -> None:
    text = "g (float[2] x) => (float[2] y) <float[2] a={1,4}> { p = Sqrt(a) y = Mul(x, p) }"
    model = model_from_text(text)
    copy = model.clone()
    ConstantFold().run(copy, RewriteLog())
    assert text_of(model) == text_of(model_from_text(text)) and isinstance(model, ir.Model)


OPS = st.sampled_from(["Neg", "Exp", "Add", "Sub", "Max", "Transpose", "Relu", "input"])


@hypothesis.settings(derandomize=True, deadline=None, max_examples=25)
@hypothesis.given(st.lists(st.tuples(OPS, st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=10))
def test_any_graph(steps: list[tuple[str, int, int]]) -> None:
    body = ["v0 = Neg(c)"]
    depends = [False]
    for index, (op, a, b) in enumerate(steps, start=1):
        left, right = a % index, b % index
        if op == "input":
            body.append(f"v{index} = Add(v{left}, x)")
            depends.append(True)
        elif op in ("Add", "Sub", "Max"):
            body.append(f"v{index} = {op}(v{left}, v{right})")
            depends.append(depends[left] or depends[right])
        else:
            body.append(f"v{index} = {op}(v{left})")
            depends.append(depends[left])
    last = len(steps)
    text = (
        f"g (float[2,2] x) => (float[2,2] v{last}, float[2,2] z) <float[2,2] c={{1,2,0.5,-1}}> "
        f"{{ {' '.join(body)} z = Add(x, v{last // 2}) }}"
    )
    model, _ = apply(ConstantFold(), text)
    DeadCode().run(model, RewriteLog())
    for node in model.graph:
        constant = all(value is not None and value.is_initializer() for value in node.inputs)
        assert not constant or node.op_type == "Identity"
    before, after = (run(m, {"x": np.eye(2, dtype=np.float32)}) for m in (model_from_text(text), model))
    for name, wanted in before.items():
        np.testing.assert_array_equal(after[name], wanted)
