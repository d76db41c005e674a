"""What is the same in every iteration of a loop."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from graphopt.passes.loop_invariant import LoopInvariant
from graphopt.passes.loop_sequence import LoopSequence
from graphopt.testing import apply, assert_same_numbers, check, check_ignores, model_from_text

CELL = """g (int64 n, float[2] x, float[2] w) => (float[2] h, float[m,2] all) <bool yes={1}> {
    k, h, all = Loop(n, yes, w, x) <body = b (int64 i, bool c, float[2] v, float[2] s)
        => (bool c1, float[2] v1, float[2] t, float[2] out) <float two={2}> {
        c1 = Identity(c) v1 = Identity(v) p = Mul(v, two) e = Exp(p) t = Add(s, e) out = Identity(t) }> }"""


def test_a_state_that_is_handed_on_and_what_is_computed_of_it() -> None:
    check(
        LoopInvariant(),
        CELL,
        """g (int64 n, float[2] x, float[2] w) => (float[2] h, float[m,2] all) <bool yes={1}, float two={2}> {
            p = Mul(w, two) e = Exp(p)
            h, all = Loop(n, yes, x) <body = b (int64 i, bool c, float[2] s)
                => (bool c1, float[2] t, float[2] out) {
                c1 = Identity(c) t = Add(s, e) out = Identity(t) }> }""",
        exact=True,
    )


def test_an_output_of_the_model_keeps_its_name() -> None:
    text = CELL.replace("(float[2] h, float[m,2] all)", "(float[2] k, float[2] h, float[m,2] all)")
    after, _ = apply(LoopInvariant(), text)
    assert [value.name for value in after.graph.outputs] == ["k", "h", "all"]
    for trips in (0, 1, 3):
        feeds = {
            "n": np.array(trips),
            "x": np.array([1, 2], np.float32),
            "w": np.array([0.5, -1], np.float32),
        }
        assert_same_numbers(model_from_text(text), after, feeds, exact=True)


def test_a_state_that_is_collected_as_well() -> None:
    text = """g (int64 n, float[2] w) => (float[m,2] all) <bool yes={1}> {
        k, all = Loop(n, yes, w) <body = b (int64 i, bool c, float[2] v) => (bool c1, float[2] v, float[2] v) {
            c1 = Identity(c) }> }"""
    after, log = apply(LoopInvariant(), text)
    (loop,) = [node for node in after.graph if node.op_type == "Loop"]
    assert len(loop.outputs) == 1 and log.applied
    feeds = {"n": np.array(3), "w": np.array([0.5, -1], np.float32)}
    assert_same_numbers(model_from_text(text), after, feeds, exact=True)


def test_a_loop_keeps_an_output() -> None:
    check_ignores(
        LoopInvariant(),
        """g (int64 n, float[2] w) => (float[2] y) <bool yes={1}> {
            y = Loop(n, yes, w) <body = b (int64 i, bool c, float[2] v) => (bool c1, float[2] v) {
                c1 = Identity(c) }> }""",
    )


def test_out_of_loops_in_loops() -> None:
    after, _ = apply(
        LoopInvariant(),
        """g (int64 n, float[2] x, float[2] w) => (float[2] y) <bool yes={1}> {
            y = Loop(n, yes, x) <body = b (int64 i, bool c, float[2] s) => (bool c1, float[2] t) {
                c1 = Identity(c)
                t = Loop(n, c1, s) <body = bb (int64 j, bool d, float[2] u) => (bool d1, float[2] v) {
                    d1 = Identity(d) e = Exp(w) p = Mul(e, s) v = Add(u, p) }> }> }""",
    )
    assert [node.op_type for node in after.graph] == ["Exp", "Loop"]
    body = after.graph[1].attributes["body"].as_graph()
    assert [node.op_type for node in body] == ["Identity", "Mul", "Loop"]


def test_the_body_of_a_scan() -> None:
    check(
        LoopInvariant(),
        """g (float[3,2] x, float[2] w) => (float[3,2] y) {
            y = Scan<num_scan_inputs=1, body = b (float[2] r) => (float[2] o) { e = Exp(w) o = Mul(r, e) }>(x) }""",
        """g (float[3,2] x, float[2] w) => (float[3,2] y) {
            e = Exp(w)
            y = Scan<num_scan_inputs=1, body = b (float[2] r) => (float[2] o) { o = Mul(r, e) }>(x) }""",
        exact=True,
    )


@pytest.mark.parametrize(
    "node",
    ["q = Div(m, n)", "q = RandomUniformLike<dtype=7>(n)", "q = Gather(l, n)", "z = Add(n, i) q = Neg(z)"],
)
def test_what_may_fail_and_what_is_random_stays(node: str) -> None:
    """A loop that does not run divides by nothing."""
    dtype = "float" if "Random" in node else "int64"
    check_ignores(
        LoopInvariant(),
        f"""g (int64 n, int64 m, int64[4] l) => ({dtype}[k] y) <bool yes={{1}}> {{
            y = Loop(n, yes) <body = b (int64 i, bool c) => (bool c1, {dtype} o) {{
                c1 = Identity(c) {node.replace("dtype=7", "dtype=1")} o = Identity(q) }}> }}""",
    )


OPERATORS = ("Add", "Mul", "Sub", "Max", "MatMul", "Tanh", "Neg", "Sigmoid")


@st.composite
def bodies(draw: st.DrawFn) -> str:
    """Bodies of a loop over the rows of a sequence, with a state that grows and one that does not."""
    # Name, rank, and whether its last size is 3: outside ones, the row, the states.
    values = {"w": 2, "v": 1, "r": 2, "s": 2, "u": 2}
    lines = []
    for number in range(draw(st.integers(1, 7))):
        op = draw(st.sampled_from(OPERATORS))
        first = draw(st.sampled_from([name for name, rank in values.items() if op != "MatMul" or rank == 2]))
        name = f"t{number}"
        if op in ("Tanh", "Neg", "Sigmoid"):
            lines.append(f"{name} = {op}({first})")
            values[name] = values[first]
            continue
        second = draw(st.sampled_from([name for name, rank in values.items() if op != "MatMul" or rank == 2]))
        lines.append(f"{name} = {op}({first}, {second})")
        values[name] = max(values[first], values[second])
    last = draw(st.sampled_from([name for name, rank in values.items() if rank == 2]))
    return (
        "g (int64 n, float[4,3,3] x, float[3,3] w, float[3] v, float[3,3] h) => (float[3,3] y, float[m,3,3] all) "
        "<bool yes={1}, int64 zero={0}> { k, q, y, all = Loop(n, yes, zero, w, h) <body = b (int64 i, bool c, int64 j, "
        "float[3,3] u, float[3,3] s) => (bool c1, int64 j1, float[3,3] u1, float[3,3] s1, float[3,3] o) "
        "<int64 one={1}> { c1 = Identity(c) j1 = Add(j, one) u1 = Identity(u) r = Gather(x, j) "
        + " ".join(lines)
        + f" z = Add(s, {last}) s1 = Tanh(z) o = Mul(s1, {last}) }}> }}"
    )


@hypothesis.given(text=bodies())
@hypothesis.settings(max_examples=60)
def test_any_body_computes_the_same(text: str) -> None:
    before = model_from_text(text)
    after, _ = apply(LoopInvariant(), text)
    moved, _ = apply(LoopSequence(), after)
    rng = np.random.default_rng(0)
    arrays = {
        name: rng.standard_normal(shape).astype(np.float32)
        for name, shape in {"x": (4, 3, 3), "w": (3, 3), "v": (3,), "h": (3, 3)}.items()
    }
    for trips in (0, 1, 4):
        feeds = {"n": np.array(trips), **arrays}
        assert_same_numbers(before, after, feeds, exact=True)
        assert_same_numbers(before, moved, feeds)


@pytest.mark.parametrize(
    ("op", "shapes", "moves"),
    [
        ("Add", ("n", "n"), True),
        ("Add", ("n", "m"), False),
        ("Add", ("n", "1"), True),
        ("MatMul", ("n", "m"), False),
        ("MatMul", ("n", "n"), True),
    ],
)
def test_what_may_fail_on_its_shapes_stays(op: str, shapes: tuple[str, str], moves: bool) -> None:
    """The loop runs only where it does not fail: its first condition may be a comparison of the shapes."""
    after, _ = apply(
        LoopInvariant(),
        f"""g (int64 n, float[{shapes[0]}] a, float[{shapes[1]}] b, float start) => (float y) <bool yes={{1}}> {{
        y = Loop(n, yes, start) <body = l (int64 i, bool c, float s) => (bool c1, float t) {{
            c1 = Identity(c) p = {op}(a, b) q = ReduceSum<keepdims=0>(p) t = Add(s, q) }}> }}""",
    )
    assert (after.graph[0].op_type == op) == moves


@pytest.mark.parametrize(("kind", "moves"), [("float", True), ("int64", False)])
def test_a_division_of_integers_stays(kind: str, moves: bool) -> None:
    after, _ = apply(
        LoopInvariant(),
        f"""g (int64 n, {kind}[2] a, {kind}[2] b, {kind}[2] start) => ({kind}[2] y) <bool yes={{1}}> {{
        y = Loop(n, yes, start) <body = l (int64 i, bool c, {kind}[2] s) => (bool c1, {kind}[2] t) {{
            c1 = Identity(c) p = Div(a, b) t = Add(s, p) }}> }}""",
    )
    assert (after.graph[0].op_type == "Div") == moves
