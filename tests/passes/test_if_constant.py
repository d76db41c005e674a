"""If with a constant condition."""

import itertools

import hypothesis
import numpy as np
from hypothesis import strategies as st

from graphopt import catalog
from graphopt.passes.if_constant import IfConstant
from graphopt.pipeline.manager import PassManager
from graphopt.pipeline.spec import parse
from graphopt.testing import check, check_ignores, model_from_text, run

BRANCHES = """<then_branch = t () => (float[N] a) <float two={2}> { p = Mul(x, two) a = Relu(p) },
    else_branch = e () => (float[N] b) { b = Neg(x) }>"""


def test_then() -> None:
    check(
        IfConstant(),
        f"g (float[N] x) => (float[N] y) <bool c={{1}}> {{ y = If(c) {BRANCHES} }}",
        "g (float[N] x) => (float[N] y) <float two={2}> { p = Mul(x, two) y = Relu(p) }",
        exact=True,
    )


def test_else() -> None:
    check(
        IfConstant(),
        f"g (float[N] x) => (float[N] y) <bool[1] c={{0}}> {{ q = If(c) {BRANCHES} y = Abs(q) }}",
        "g (float[N] x) => (float[N] y) { b = Neg(x) y = Abs(b) }",
        exact=True,
    )


def test_a_branch_that_gives_an_outer_constant_twice() -> None:
    check(
        IfConstant(),
        """g (float[N] x) => (float[1] y, float[1] z) <bool c={1}> {
            y, z = If(c) <then_branch = t () => (float[1] k, float[1] l) <float[1] k={3}> { l = Identity(k) },
                          else_branch = e () => (float[1] b, float[1] d) <float[1] b={1}> { d = Identity(b) }> }""",
        "g (float[N] x) => (float[1] y, float[1] z) <float[1] k={3}> { z = Identity(k) y = Identity(k) }",
        exact=True,
    )


def test_nested_and_inside_a_branch_that_stays() -> None:
    model = check(
        IfConstant(),
        """g (float[N] x, bool d) => (float[N] y) <bool c={1}, bool no={0}> {
            q = If(c) <then_branch = t () => (float[N] a) {
                    a = If(no) <then_branch = tt () => (float[N] a1) { a1 = Exp(x) },
                                else_branch = ee () => (float[N] a2) { a2 = Neg(x) }> },
                else_branch = e () => (float[N] b) { b = Abs(x) }>
            y = If(d) <then_branch = t2 () => (float[N] m) {
                    m = If(c) <then_branch = t3 () => (float[N] m1) { m1 = Relu(q) },
                               else_branch = e3 () => (float[N] m2) { m2 = Exp(q) }> },
                else_branch = e2 () => (float[N] n) { n = Abs(q) }> }""",
        exact=True,
    )
    assert [node.op_type for node in model.graph.all_nodes()] == ["Neg", "If", "Relu", "Abs"]


def test_constants_of_equal_name_stay_apart() -> None:
    check(
        IfConstant(),
        """g (float[N] x) => (float[N] y) <bool c={1}, float two={5}> {
            p = Add(x, two)
            y = If(c) <then_branch = t () => (float[N] a) { r = Constant<value = float {2}>() a = Mul(p, r) },
                       else_branch = e () => (float[N] b) { b = Neg(x) }> }""",
        "g (float[N] x) => (float[N] y) <float two={5}, float r={2}> { p = Add(x, two) y = Mul(p, r) }",
        exact=True,
    )


def test_ignores_a_condition_that_is_not_constant() -> None:
    check_ignores(IfConstant(), f"g (float[N] x, bool c) => (float[N] y) {{ y = If(c) {BRANCHES} }}")


@hypothesis.settings(derandomize=True, deadline=None, max_examples=15)
@hypothesis.given(
    st.recursive(
        st.sampled_from(["Neg", "Relu", "Abs"]),
        lambda inner: st.tuples(st.booleans(), inner, inner),
        max_leaves=6,
    )
)
def test_any_nest(tree: object) -> None:
    count = 0
    conditions = []

    def build(node: object, out: str) -> str:
        nonlocal count
        if isinstance(node, str):
            return f"{out} = {node}(x)"
        assert isinstance(node, tuple)
        count += 1
        number = count
        conditions.append(f"bool c{number}={{{int(node[0])}}}")
        left, right = build(node[1], f"l{number}"), build(node[2], f"r{number}")
        return (
            f"{out} = If(c{number}) <then_branch = t{number} () => (float[N] l{number}) {{ {left} }}, "
            f"else_branch = e{number} () => (float[N] r{number}) {{ {right} }}>"
        )

    hypothesis.assume(isinstance(tree, tuple))
    body = build(tree, "y")
    text = f"g (float[N] x) => (float[N] y) <{', '.join(conditions)}> {{ {body} }}"
    assert len(check(IfConstant(), text, exact=True).graph) == 1


def test_the_shape_that_a_branch_gives_chooses_the_next_one() -> None:
    """What TorchScript's exporter makes of ``squeeze(dim)``, three times over."""
    steps = "\n".join(
        f"""
        s{place} = Shape({before})
        d{place} = Gather <axis=0> (s{place}, zero)
        c{place} = Equal(d{place}, one)
        {after} = If (c{place}) <
            then_branch = t{place} () => (float[] a{place}) {{ a{place} = Squeeze({before}, front) }},
            else_branch = e{place} () => (float[] b{place}) {{ b{place} = Identity({before}) }}
        >"""
        for place, (before, after) in enumerate(itertools.pairwise(["x", "y0", "y1", "y2"]))
    )
    model = model_from_text(
        f"""
        g (float[1,1,3] x) => (float[R] y)
        <int64 zero = {{0}}, int64 one = {{1}}, int64[1] front = {{0}}>
        {{ {steps} y = Relu(y2) }}
        """
    )
    passes = [pass_ for pass_ in catalog.expand(parse("fold")) if pass_.name != "onnxsim"]
    folded, records = PassManager(passes).run(model)
    assert sorted(node.op_type for node in folded.graph.all_nodes()) == ["Relu", "Reshape"]
    assert sum(record.name == "if-constant" for record in records) == 4  # the last one finds nothing
    x = {"x": np.ones((1, 1, 3), np.float32)}
    np.testing.assert_array_equal(run(folded, x)["y"], run(model, x)["y"])
