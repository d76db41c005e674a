"""What nothing reads."""

import hypothesis
import onnx_ir as ir
import pytest
from hypothesis import strategies as st

from graphopt.passes.dead_code import DeadCode
from graphopt.rewrite import RewriteLog
from graphopt.testing import assert_same_numbers, check, check_ignores, model_from_text, text_of


def test_nodes_and_constants() -> None:
    model = check(
        DeadCode(),
        """g (float[N] x) => (float[N] y) <float one={1}, float two={2}> {
            a = Add(x, one) b = Mul(a, two) c = Exp(b) d = Sin(c) y = Relu(x) }""",
        "g (float[N] x) => (float[N] y) { y = Relu(x) }",
        exact=True,
    )
    assert not model.graph.initializers


def test_what_only_dead_branches_read() -> None:
    check(
        DeadCode(),
        """g (float[N] x, bool c) => (float[N] y) {
            a = Exp(x) b = Abs(x)
            p = If(c) <then_branch = t () => (float[N] t1) { t1 = Neg(a) },
                       else_branch = e () => (float[N] e1) { e1 = Relu(a) }>
            y = If(c) <then_branch = u () => (float[N] u1) { u0 = Exp(b) u1 = Neg(b) },
                       else_branch = f () => (float[N] f1) { f1 = Relu(x) }> }""",
        """g (float[N] x, bool c) => (float[N] y) {
            b = Abs(x)
            y = If(c) <then_branch = u () => (float[N] u1) { u1 = Neg(b) },
                       else_branch = f () => (float[N] f1) { f1 = Relu(x) }> }""",
        exact=True,
    )


@pytest.mark.parametrize(
    ("call", "kept"),
    [
        ("y, m = Dropout(x)", 1),
        ("y, i = MaxPool<kernel_shape=[2,2]>(x)", 1),
        ("y, m, v = LayerNormalization(x, s)", 1),
    ],
)
def test_optional_outputs(call: str, kept: int) -> None:
    model = check(
        DeadCode(),
        f"g (float[1,2,4,4] x) => (float[A,B,C,D] y) <float[4] s={{1,1,1,1}}> {{ {call} }}",
        exact=True,
    )
    assert len(next(iter(model.graph)).outputs) == kept


def test_an_optional_output_in_front_of_one_that_is_read() -> None:
    model = check(
        DeadCode(),
        """g (float[5,1,3] x) => (float[A,B,C] h) <float[1,8,3] w={"""
        + ",".join(["0.1"] * 24)
        + """},
            float[1,8,2] r={"""
        + ",".join(["0.2"] * 16)
        + """}> { y, h, c = LSTM<hidden_size=2>(x, w, r) }""",
        exact=True,
    )
    assert [value.name for value in next(iter(model.graph)).outputs] == ["", "h"]


@pytest.mark.parametrize(
    "text",
    [
        "g (float[4] x) => (float[2] y) { y, z = Split<num_outputs=2>(x) }",
        "g (float[4] x) => (float[A] y) <int64[1] k={2}> { y, i = TopK(x, k) }",
        """g (float[2,1,3] x) => (float[2,1,3] y) <float[1] s={1}> {
            y, m, v = BatchNormalization<training_mode=1>(x, s, s, s, s) }""",
        "g (float[4] x, float[2] unused) => (float[4] y) { y = Relu(x) }",
    ],
)
def test_ignores_what_has_to_stay(text: str) -> None:
    check_ignores(DeadCode(), text)


FUNCTIONS = """<ir_version: 10, opset_import: ["" : 21, "own": 1]>
g (float[N] x) => (float[N] y) { y = own.outer(x) }
<domain: "own", opset_import: ["" : 21, "own": 1]> outer (a) => (b) { b = own.inner(a) }
<domain: "own", opset_import: ["" : 21]> inner (a) => (b) { b = Neg(a) }
<domain: "own", opset_import: ["" : 21]> unused (a) => (b) { b = Exp(a) }"""


def test_functions() -> None:
    model, log = model_from_text(FUNCTIONS), RewriteLog()
    assert DeadCode().run(model, log)
    assert [identifier[1] for identifier in model.functions] == ["outer", "inner"]
    assert_same_numbers(model_from_text(FUNCTIONS), model, exact=True)


def test_the_gate_is_asked() -> None:
    text = "g (float[N] x) => (float[N] y) { a = Exp(x) b = Neg(a) c = Abs(x) y = Relu(x) }"
    model = model_from_text(text)
    DeadCode().run(model, RewriteLog(), lambda application: application.site != "b")
    assert [node.op_type for node in model.graph] == ["Exp", "Neg", "Relu"]


@hypothesis.settings(derandomize=True, deadline=None, max_examples=20)
@hypothesis.given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=10))
def test_any_graph(edges: list[tuple[int, int]]) -> None:
    body = []
    reads: dict[int, set[int]] = {0: set()}
    for index, (left, right) in enumerate(edges, start=1):
        a, b = left % index, right % index
        reads[index] = {a, b}
        body.append(f"v{index} = Add(v{a}, v{b})")
    last = len(edges)
    text = f"g (float[N] v0) => (float[N] v{last}) {{ {' '.join(body)} }}"
    needed, stack = set(), [last]
    while stack:
        node = stack.pop()
        if node and node not in needed:
            needed.add(node)
            stack += reads[node]
    model = model_from_text(text)
    before = text_of(model)
    changed = DeadCode().run(model, RewriteLog())
    assert changed == (len(needed) < last) and changed == (before != text_of(model))
    assert len(model.graph) == len(needed) and isinstance(model, ir.Model)
    assert_same_numbers(model_from_text(text), model, exact=True)
