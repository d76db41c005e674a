"""Common subexpressions."""

import hypothesis
import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import strategies as st

from graphopt.passes.cse import CommonSubexpressions, CseOptions
from graphopt.rewrite import RewriteLog
from graphopt.testing import OPSET, assert_same_numbers, check, check_ignores, model_from_text, text_of

HEAD = "g (float[N,4] x) => (float[N,4] y)"


@pytest.mark.parametrize(
    ("body", "after"),
    [
        ("a = Relu(x) b = Relu(x) y = Add(a, b)", "a = Relu(x) y = Add(a, a)"),
        ("a = Add(x, p) b = Add(q, x) y = Mul(a, b)", "a = Add(x, p) y = Mul(a, a)"),
        ("a = Exp(x) b = Neg(a) c = Exp(x) d = Neg(c) y = Sub(b, d)", "a = Exp(x) b = Neg(a) y = Sub(b, b)"),
        ("a = Elu<alpha=0.5>(x) b = Elu<alpha=0.5>(x) y = Mul(a, b)", "a = Elu<alpha=0.5>(x) y = Mul(a, a)"),
        (
            "a, b = Split<axis=1, num_outputs=2>(x) c, d = Split<axis=1, num_outputs=2>(x) y = Concat<axis=1>(b, d)",
            "a, b = Split<axis=1, num_outputs=2>(x) y = Concat<axis=1>(b, b)",
        ),
    ],
)
def test_fires(body: str, after: str) -> None:
    constants = "<float[1] p={2}, float[1] q={2}>"
    check(
        CommonSubexpressions(),
        f"{HEAD} {constants} {{ {body} }}",
        f"{HEAD} {constants} {{ {after} }}",
        exact=True,
    )


def test_outputs_keep_their_names() -> None:
    check(
        CommonSubexpressions(),
        "g (float[N] x) => (float[N] y, float[N] z) { a = Relu(x) b = Neg(a) y = Relu(x) z = Abs(b) }",
        "g (float[N] x) => (float[N] y, float[N] z) { y = Relu(x) b = Neg(y) z = Abs(b) }",
        exact=True,
    )
    check(
        CommonSubexpressions(),
        "g (float[N] x) => (float[N] y, float[N] z) { y = Relu(x) z = Relu(x) }",
        "g (float[N] x) => (float[N] y, float[N] z) { y = Relu(x) z = Identity(y) }",
        exact=True,
    )


def test_scopes() -> None:
    model = check(
        CommonSubexpressions(),
        """g (float[N] x, bool c) => (float[N] y) <float[2] k={1,2}> {
            a = Exp(x)
            y = If(c) <then_branch = t () => (float[N] t2) <float m={3}> {
                    t0 = Exp(x) t1 = Sin(x) t3 = Mul(t0, m) t2 = Add(t3, t1) },
                       else_branch = e () => (float[N] e2) <float n={3}> {
                    e0 = Sin(x) e1 = Mul(a, n) e2 = Add(e0, e1) }> }""",
        exact=True,
    )
    assert [node.op_type for node in model.graph.all_nodes()] == [
        "Exp",
        "If",
        "Sin",
        "Mul",
        "Add",
        "Sin",
        "Mul",
        "Add",
    ]


def test_a_constant_of_a_branch_becomes_one_of_the_graph_around_it() -> None:
    text = """g (float[N] x, bool c) => (float[N] y) <float k={3}> {
            a = Mul(x, k)
            y = If(c) <then_branch = t () => (float[N] t1) <float m={3}> { t1 = Add(a, m) },
                       else_branch = e () => (float[N] e1) { e1 = Neg(a) }> }"""
    model = model_from_text(text)
    assert CommonSubexpressions().run(model, RewriteLog())
    assert not any(graph.initializers for graph in model.graph.subgraphs())
    assert_same_numbers(model_from_text(text), model, exact=True)


@pytest.mark.parametrize(
    "body",
    [
        "a = RandomNormalLike<seed=1.0>(x) b = RandomNormalLike<seed=1.0>(x) y = Sub(a, b)",
        "a = Elu<alpha=0.5>(x) b = Elu<alpha=0.25>(x) y = Sub(a, b)",
        "a = Sub(x, p) b = Sub(p, x) y = Mul(a, b)",
        "a = Add(x, p) b = Add(x, q) y = Mul(a, b)",
        "a = Add(x, p) b = Add(x, r) y = Mul(a, b)",
        "a = Add(x, zero) b = Add(x, minus) y = Mul(a, b)",
    ],
)
def test_ignores(body: str) -> None:
    constants = "<float[1] p={2}, float[1] q={3}, float r={2}, float zero={0}, float minus={-0.0}>"
    check_ignores(CommonSubexpressions(), f"{HEAD} {constants} {{ {body} }}")


def test_ignores_a_constant_that_a_caller_may_override() -> None:
    check_ignores(
        CommonSubexpressions(),
        "g (float[1] x, float[1] p = {2}) => (float[1] y) <float[1] q={2}> { a = Mul(x, p) y = Add(a, q) }",
    )


def _with_weights(weights: list[np.ndarray]) -> ir.Model:  # type: ignore[type-arg]
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["N"]))
    nodes, values, current = [], [], x
    for index, content in enumerate(weights):
        tensor = ir.tensor(content, name=f"w{index}")
        value = ir.Value(
            name=f"w{index}",
            type=ir.TensorType(tensor.dtype),
            shape=ir.Shape(content.shape),
            const_value=tensor,
        )
        values.append(value)
        total = ir.node("ReduceSum", [value], attributes={"keepdims": 0}, name=f"s{index}")
        total.outputs[0].name = f"s{index}"
        add = ir.node("Add", [current, total.outputs[0]], name=f"a{index}")
        add.outputs[0].name = f"a{index}"
        add.outputs[0].type, add.outputs[0].shape = x.type, x.shape
        current = add.outputs[0]
        nodes += [total, add]
    graph = ir.Graph([x], [current], nodes=nodes, initializers=values, opset_imports={"": OPSET}, name="g")
    return ir.Model(graph, ir_version=10)


def test_large_constants_are_told_apart_beyond_their_samples() -> None:
    same = np.zeros(100_000, np.float32)
    other = same.copy()
    other[30_000] = 1
    model = _with_weights([same, other, same.copy(), other.copy()])
    before = model.clone()
    assert CommonSubexpressions().run(model, RewriteLog())
    assert list(model.graph.initializers) == ["w0", "w1"]
    assert_same_numbers(before, model)


def test_options() -> None:
    model = _with_weights([np.zeros(1000, np.float32)] * 2)
    assert not CommonSubexpressions(CseOptions(max_constant_bytes=100)).run(model, RewriteLog())
    assert not CommonSubexpressions(CseOptions(constants=False)).run(model, RewriteLog())
    assert CommonSubexpressions().run(model, RewriteLog())


def test_the_gate_is_asked() -> None:
    model = model_from_text(f"{HEAD} {{ a = Relu(x) b = Relu(x) c = Relu(x) d = Add(a, b) y = Add(c, d) }}")
    CommonSubexpressions().run(model, RewriteLog(), lambda application: application.site != "b")
    assert [node.op_type for node in model.graph] == ["Relu", "Relu", "Add", "Add"]


@hypothesis.settings(derandomize=True, deadline=None, max_examples=30)
@hypothesis.given(
    st.lists(
        st.tuples(st.sampled_from(["Add", "Sub", "Min"]), st.integers(0, 9), st.integers(0, 9)),
        min_size=2,
        max_size=10,
    )
)
def test_any_graph(steps: list[tuple[str, int, int]]) -> None:
    body = [f"v{i} = {op}(v{a % i}, v{b % i})" for i, (op, a, b) in enumerate(steps, start=1)]
    last = len(steps)
    middle = f", float[N] v{last - 1}" if last > 2 else ""
    text = f"g (float[N] v0) => (float[N] v{last}{middle}) {{ {' '.join(body)} }}"
    model = model_from_text(text)
    CommonSubexpressions().run(model, RewriteLog())
    keys = [(n.op_type, *(v.name for v in n.inputs if v)) for n in model.graph if n.op_type != "Identity"]
    assert len(set(keys)) == len(keys), text_of(model)
    assert_same_numbers(model_from_text(text), model, exact=True)
