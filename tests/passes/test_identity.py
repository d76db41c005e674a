"""Identity and Dropout."""

import hypothesis
import pytest
from hypothesis import strategies as st

from graphopt.passes.identity import EliminateIdentity
from graphopt.testing import check, check_ignores, check_refuses

NO = "<bool no={0}, bool yes={1}, float half={0.5}>"


@pytest.mark.parametrize(
    "body",
    [
        "a = Identity(x) y = Relu(a)",
        "a = Identity(x) b = Identity(a) y = Relu(b)",
        "a = Dropout(x) y = Relu(a)",
        "a = Dropout(x, half) y = Relu(a)",
        "a = Dropout(x, half, no) y = Relu(a)",
        "a = Relu(x) y = Identity(a)",
        "a = Relu(x) y = Dropout(a)",
    ],
)
def test_fires(body: str) -> None:
    check(
        EliminateIdentity(),
        f"g (float[N,4] x) => (float[N,4] y) {NO} {{ {body} }}",
        "g (float[N,4] x) => (float[N,4] y) { y = Relu(x) }",
        exact=True,
    )


def test_the_node_before_takes_the_name_for_its_other_readers_too() -> None:
    check(
        EliminateIdentity(),
        "g (float[N] x) => (float[N] z, float[N] y) { a = LeakyRelu<alpha=0.5>(x) z = Neg(a) y = Identity(a) }",
        "g (float[N] x) => (float[N] z, float[N] y) { y = LeakyRelu<alpha=0.5>(x) z = Neg(y) }",
        exact=True,
    )


@pytest.mark.parametrize(
    "graph",
    [
        "g (float[N] x) => (float[N] y) { y = Identity(x) }",
        "g (float[N] x) => (float[2] y, float[N] z) <float[2] c={1,2}> { y = Identity(c) z = Relu(x) }",
        "g (float[N] x) => (float[N] y, float[N] z) { y = Relu(x) z = Identity(y) }",
        "g (float[4] x) => (float[2] y, float[2] b) { a, b = Split<num_outputs=2>(x) y = Identity(a) }",
    ],
)
def test_ignores_an_identity_that_carries_a_name(graph: str) -> None:
    check_ignores(EliminateIdentity(), graph)


def test_ignores_an_identity_of_an_outer_value_in_a_branch() -> None:
    check_ignores(
        EliminateIdentity(),
        """g (bool c, float[N] x) => (float[N] y) {
            y = If(c) <then_branch = t () => (float[N] a) { a = Identity(x) },
                       else_branch = e () => (float[N] b) { b = Relu(x) }> }""",
    )


def test_works_inside_a_branch() -> None:
    check(
        EliminateIdentity(),
        """g (bool c, float[N] x) => (float[N] y) {
            y = If(c) <then_branch = t () => (float[N] a) { p = Identity(x) a = Neg(p) },
                       else_branch = e () => (float[N] b) { q = Relu(x) b = Identity(q) }> }""",
        """g (bool c, float[N] x) => (float[N] y) {
            y = If(c) <then_branch = t () => (float[N] a) { a = Neg(x) },
                       else_branch = e () => (float[N] b) { b = Relu(x) }> }""",
        exact=True,
    )


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("y = Dropout(x, half, train)", "training_mode is not constantly false"),
        ("y = Dropout(x, half, yes)", "training_mode is not constantly false"),
    ],
)
def test_refuses_training(body: str, reason: str) -> None:
    check_refuses(
        EliminateIdentity(), f"g (float[N] x, bool train) => (float[N] y) {NO} {{ {body} }}", reason
    )


def test_refuses_a_mask_that_is_read() -> None:
    graph = "g (float[N] x) => (float[N] y, bool[N] m) { a, m = Dropout(x) y = Relu(a) }"
    check_refuses(EliminateIdentity(), graph, "the mask is read")


@hypothesis.settings(derandomize=True, deadline=None, max_examples=15)
@hypothesis.given(st.lists(st.sampled_from(["Identity", "Dropout", "Neg", "Relu"]), min_size=2, max_size=8))
def test_any_chain(ops: list[str]) -> None:
    hypothesis.assume(set(ops) & {"Identity", "Dropout"} and set(ops) & {"Neg", "Relu"})
    body = " ".join(f"v{index + 1} = {op}(v{index})" for index, op in enumerate(ops))
    model = check(EliminateIdentity(), f"g (float[N] v0) => (float[N] v{len(ops)}) {{ {body} }}", exact=True)
    kept = [op for op in ops if op in ("Neg", "Relu")]
    assert [node.op_type for node in model.graph] == kept
