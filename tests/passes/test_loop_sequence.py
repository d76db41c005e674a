"""What a loop computes of one row of a sequence after the other."""

import numpy as np
import pytest

from graphopt.passes.loop_sequence import LoopSequence
from graphopt.testing import apply, assert_same_numbers, check, check_ignores, check_refuses, model_from_text


def loop(
    row: str = "r = Gather(x, i)",
    of_it: str = "p = MatMul(r, w)",
    ends: str = "c1 = Identity(c)",
    about: str = "",
) -> str:
    return f"""g (int64 n, float[3,2,4] x, float[4,4] w, float[4] b, float[3,2,4] a, int64[3] ids, float[2,4] h)
        => (float[2,4] y) <bool yes={{1}}, int64 one={{1}}, int64 two={{2}}, int64 zero={{0}} {about}> {{
        q, y = Loop(n, yes, zero, h) <body = l (int64 i, bool c, int64 j, float[2,4] s)
            => (bool c1, int64 j1, float[2,4] t) {{
            {ends} j1 = Add(j, one) {row} {of_it} z = Add(s, p) t = Tanh(z) }}> }}"""


@pytest.mark.parametrize("index", ["i", "j"])
def test_a_product(index: str) -> None:
    model = check(LoopSequence(), loop(f"r = Gather(x, {index})"))
    assert [node.op_type for node in model.graph] == ["MatMul", "Loop"]
    body = model.graph[1].attributes["body"].as_graph()
    assert [node.op_type for node in body] == ["Identity", "Add", "Gather", "Add", "Tanh"]
    assert model.graph[0].outputs[0].shape == [3, 2, 4]


def test_a_chain_with_what_is_the_body_s_own() -> None:
    of_it = "m = MatMul(r, w) d = Add(m, b) e = Relu(d) p = Mul(e, k)"
    text = loop(of_it=of_it).replace("{\n            c1", "<float k={3}> {\n            c1")
    model = check(LoopSequence(), text)
    assert [node.op_type for node in model.graph] == ["MatMul", "Add", "Relu", "Mul", "Loop"]
    assert [value.name for value in model.graph.initializers.values()].count("k") == 1


def test_what_is_cheap_stays_where_the_row_is_read_anyway() -> None:
    model = check(LoopSequence(), loop(of_it="m = MatMul(r, w) e = Relu(r) f = Mul(e, s) p = Add(f, m)"))
    assert [node.op_type for node in model.graph] == ["MatMul", "Relu", "Loop"]
    check_ignores(LoopSequence(), loop(of_it="e = Relu(r) f = Mul(e, s) p = Sub(r, f)"))


@pytest.mark.parametrize(
    "given",
    [
        {"row": "r = Gather(x, two)"},  # Not a row after the other.
        {"row": "g = Gather(ids, i) r = Gather(x, g)"},
        {"row": "r = Gather<axis=1>(a, i)", "of_it": "u = ReduceSum<keepdims=0>(r) p = Add(u, s)"},
        {"of_it": "m = MatMul(r, s) p = Relu(m)"} | {"row": "v = Gather(x, i) r = Transpose<perm=[1,0]>(v)"},
        {"of_it": "m = MatMul(r, b) o = Unsqueeze(m, two) p = Add(s, o)"} | {"about": ", int64[1] ax={1}"},
        {"of_it": "m = Add(r, a) p = ReduceMax<keepdims=0>(m, ax)", "about": ", int64[1] ax={0}"},
    ],
)
def test_what_is_not_the_same_of_all_rows(given: dict[str, str]) -> None:
    if "Unsqueeze" in given.get("of_it", ""):
        given = given | {"of_it": given["of_it"].replace("m, two", "m, ax")}
    check_ignores(LoopSequence(), loop(**given))


def test_a_loop_that_ends_by_what_it_computes() -> None:
    ends = "big = ReduceMax<keepdims=0>(s) c1 = Less(big, lim)"
    check_ignores(LoopSequence(), loop(ends=ends, about=", float lim={5}"))
    check(LoopSequence(), loop(ends="c1 = Less(j, n)"))


def test_a_table_is_no_sequence() -> None:
    text = loop("r = Gather(table, i)", about=", float[3,2,4] table={" + ",".join(["1.5"] * 24) + "}")
    check_refuses(LoopSequence(), text, "constant")


def test_fewer_and_no_rows() -> None:
    text = loop(of_it="m = MatMul(r, w) p = Add(m, b)")
    after, _ = apply(LoopSequence(), text)
    rng = np.random.default_rng(0)
    shapes = {"x": (3, 2, 4), "w": (4, 4), "b": (4,), "a": (3, 2, 4), "h": (2, 4)}
    feeds = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    for trips in (0, 1, 3):
        assert_same_numbers(
            model_from_text(text), after, {**feeds, "n": np.array(trips), "ids": np.arange(3)}
        )


def test_a_division_of_integers_stays() -> None:
    """A row that the loop does not reach may hold a zero."""
    text = """g (int64 n, int64[k] x) => (int64 y) <bool yes={1}, int64 zero={0}, int64 hundred={100}> {
        y = Loop(n, yes, zero) <body = l (int64 i, bool c, int64 s) => (bool c1, int64 t) {
            c1 = Identity(c) r = Gather(x, i) p = Div(hundred, r) t = Add(s, p) }> }"""
    after, log = apply(LoopSequence(), text)
    assert not log.applied
    feeds = {"n": np.array(2), "x": np.array([2, 5, 0, 0])}
    assert_same_numbers(model_from_text(text), after, feeds, exact=True)
