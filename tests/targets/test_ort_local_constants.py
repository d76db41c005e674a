"""Constants that a branch alone reads belong to it."""

import numpy as np
import onnx_ir as ir
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.ir import model as ir_model
from graphopt.targets.ort.local_constants import LocalConstants
from graphopt.testing import apply, assert_same_numbers, model_from_text


def moved(model: ir.Model) -> tuple[ir.Model, list[str]]:
    """A copy with the pass applied, and the names that it moved."""
    after, log = apply(LocalConstants(), model)
    return after, [application.site for application in log.applied]


def initializers(model: ir.Model) -> dict[str, set[str]]:
    """Names of the initializers by the name of their graph."""
    return {graph.name or "": set(graph.initializers) for graph in ir_model.all_graphs(model)}


def branches(then: str, other: str, outside: str = "") -> ir.Model:
    """``y`` by one of two branches, over constants a, b and c [3] of the main graph."""
    model = model_from_text(
        f"g (float[3] x, bool p, float[3] a, float[3] b, float[3] c) => (float[3] y) {{ {outside} "
        f"y = If <then_branch = t () => (float[3] u) {{ {then} }}, else_branch = e () => (float[3] v) {{ {other} }}> (p) }}"
    )
    for index, value in enumerate(model.graph.inputs[2:]):
        value.const_value = ir.tensor(np.arange(3, dtype=np.float32) + index, name=value.name)
        model.graph.register_initializer(value)
    del model.graph.inputs[2:]
    return model


def test_each_goes_to_the_branch_that_reads_it() -> None:
    before = branches("u = Add(x, a)", "v = Mul(x, b)")
    after, _ = moved(before)
    assert initializers(after) == {"g": {"c"}, "t": {"a"}, "e": {"b"}}
    for p in (True, False):
        x = np.float32([1, 2, 3])
        assert_same_numbers(before, after, {"x": x, "p": np.array(p)})


def test_what_two_branches_or_the_graph_around_them_read_stays() -> None:
    before = branches("k = Add(x, a) u = Add(k, b)", "v = Mul(x, a)", outside="z = Mul(x, b)")
    after, names = moved(before)
    assert names == []
    assert initializers(after) == {"g": {"a", "b", "c"}, "t": set(), "e": set()}


def test_what_the_model_returns_stays() -> None:
    before = branches("u = Add(x, a)", "v = Mul(x, b)")
    before.graph.outputs.append(before.graph.initializers["b"])
    after, names = moved(before)
    assert names == ["a"]
    assert initializers(after) == {"g": {"b", "c"}, "t": {"a"}, "e": set()}


NESTED = (
    "i = If <then_branch = tt () => (float[3] r) { r = Add(x, a) }, else_branch = te () => (float[3] s)"
    " { s = Mul(x, b) }> (p) u = Add(i, b)"
)


def test_innermost_graph_that_holds_all_readers() -> None:
    after, _ = moved(branches(NESTED, "v = Mul(x, c)"))
    assert initializers(after) == {"g": set(), "t": {"b"}, "tt": {"a"}, "te": set(), "e": {"c"}}


@settings(derandomize=True, deadline=None, max_examples=30)
@given(
    then=st.lists(st.sampled_from("abc"), max_size=3),
    other=st.lists(st.sampled_from("abc"), max_size=3),
    p=st.booleans(),
)
def test_numbers_agree(then: list[str], other: list[str], p: bool) -> None:
    def body(names: list[str], last: str) -> str:
        steps = [f"{last}{index} = Add({last}{index - 1}, {name})" for index, name in enumerate(names, 1)]
        return " ".join([f"{last}0 = Neg(x)", *steps, f"{last} = Identity({last}{len(names)})"])

    before = branches(body(then, "u"), body(other, "v"))
    after, _ = moved(before)
    assert initializers(after)["t"] == set(then) - set(other)
    assert initializers(after)["e"] == set(other) - set(then)
    assert_same_numbers(before, after, {"x": np.float32([1, -2, 3]), "p": np.array(p)})
