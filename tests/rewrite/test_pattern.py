"""Patterns match what they say, in any operand order, and never across graphs."""

from __future__ import annotations

import onnx_ir as ir

from graphopt.rewrite import any_of, const, maybe, op, var
from graphopt.rewrite.pattern import Bindings, Pattern
from graphopt.testing import model_from_text

x, y = var("x"), var("y")


def ways(pattern: Pattern, text: str) -> list[dict[str, str | None]]:
    """What each solution at the graph's output binds."""
    model = model_from_text(text)
    bound = Bindings(model.graph)
    return [
        {name: None if value is None else value.name for name, value in bound.values.items()}
        for _ in pattern.solutions(model.graph.outputs[0], bound)
    ]


def graph(body: str, constants: str = "float one={1}, float half={0.5}") -> str:
    return f"g (float[N] a, float[N] b) => (float[N] out) <{constants}> {{ {body} }}"


def test_commutative_operands_match_in_either_order() -> None:
    pattern = op("Mul", op("Sigmoid", x), x)
    assert ways(pattern, graph("s = Sigmoid(a) out = Mul(s, a)")) == [{"x": "a"}]
    assert ways(pattern, graph("s = Sigmoid(a) out = Mul(a, s)")) == [{"x": "a"}]
    assert ways(pattern, graph("s = Sigmoid(a) out = Mul(s, b)")) == []


def test_other_operands_keep_their_order() -> None:
    pattern = op("Sub", x, const(1.0))
    assert ways(pattern, graph("out = Sub(a, one)")) == [{"x": "a"}]
    assert ways(pattern, graph("out = Sub(one, a)")) == []


def test_all_ways_are_offered() -> None:
    assert len(ways(op("Add", x, y), graph("out = Add(a, b)"))) == 2
    assert len(ways(op("Add", x, y), graph("out = Add(a, a)"))) == 1


def test_constants_compare_by_content() -> None:
    pattern = op("Mul", x, const(0.5))
    assert ways(pattern, graph("out = Mul(half, a)")) == [{"x": "a"}]
    assert ways(pattern, graph("out = Mul(a, one)")) == []
    assert ways(pattern, graph("out = Mul(a, k)", "float[1] k={0.5}")) == [{"x": "a"}]
    assert ways(pattern, graph("out = Mul(a, k)", "float[2] k={0.5,0.5}")) == []


def test_alternatives_and_optional_wrappers() -> None:
    pattern = op("Add", maybe("Identity", op("Relu", x)), any_of(const(1.0), const(0.5)))
    for body in ("r = Relu(a) out = Add(r, one)", "r = Relu(a) i = Identity(r) out = Add(half, i)"):
        assert ways(pattern, graph(body)) == [{"x": "a"}]


def test_absent_and_surplus_inputs() -> None:
    text = "g (float[1,1,4] a) => (float[1,1,4] out) <float[1,1,1] w={1}, float[1] b={1}> "
    plain, biased = text + "{ out = Conv(a, w) }", text + "{ out = Conv(a, w, b) }"
    assert ways(op("Conv", x, y), plain) and not ways(op("Conv", x, y), biased)
    assert ways(op("Conv", x, y, open_inputs=True), biased)
    assert ways(op("Conv", x, y, None), plain) and not ways(op("Conv", x, y, None), biased)
    assert ways(op("Conv", x, y, var("b", optional=True)), plain)[0]["b"] is None


def test_attributes_must_agree() -> None:
    text = "g (float[N,4] a) => (float[N,4] out) { out = Softmax<axis=1>(a) }"
    assert ways(op("Softmax", x, attrs={"axis": 1}), text)
    assert not ways(op("Softmax", x, attrs={"axis": 0}), text)


def test_a_pattern_stays_inside_its_graph() -> None:
    text = """g (float[N] a, bool c) => (float[N] out) {
      r = Relu(a)
      out = If(c) <
        then_branch = t () => (float[N] p) { p = Neg(r) },
        else_branch = e () => (float[N] q) { q = Neg(a) }
      >
    }"""
    model = model_from_text(text)
    branch: ir.Graph = model.graph[1].attributes["then_branch"].as_graph()
    bound = Bindings(branch)
    assert not list(op("Neg", op("Relu", x)).solutions(branch.outputs[0], bound))
    assert [bound.values["x"].name for _ in op("Neg", x).solutions(branch.outputs[0], bound)] == ["r"]  # type: ignore[union-attr]
