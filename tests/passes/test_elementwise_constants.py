"""Chains of sums and products with constants."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from graphopt.passes.elementwise_constants import ElementwiseConstants
from graphopt.testing import apply, assert_same_numbers, check, check_ignores, check_refuses, model_from_text

CONSTANTS = """<float one={1}, float two={2}, float four={4}, float half={0.5}, float[3,1] column={1,2,4},
    float[4] row={1,2,3,4}, float magic={12582912}, float tiny={1e-30}, float big={1e30}, float zero={0},
    float[1,1,1] high={3}, float third={0.33333334}>"""
HEAD = "g (float[3,4] x) => (float[3,4] y)"


@pytest.mark.parametrize(
    ("body", "after"),
    [
        ("a = Add(x, one) y = Add(a, one)", "y = Add(x, two)"),
        ("a = Add(x, four) y = Sub(a, two)", "y = Add(x, two)"),
        ("a = Mul(x, two) y = Mul(half, a)", "y = Identity(x)"),
        ("a = Mul(x, two) y = Mul(a, two)", "y = Mul(x, four)"),
        ("a = Mul(x, two) y = Div(a, four)", "y = Mul(x, half)"),
        ("a = Add(x, one) b = Mul(a, two) y = Add(b, two)", "a = Mul(x, two) y = Add(a, four)"),
        ("a = Neg(x) y = Add(a, one)", "y = Sub(one, x)"),
        ("a = Sub(one, x) y = Sub(two, a)", "y = Add(x, one)"),
        (
            "a = Mul(x, two) b = Add(a, one) c = Mul(b, two) y = Add(c, two)",
            "a = Mul(x, four) y = Add(a, four)",
        ),
        ("a = Mul(x, column) y = Mul(a, column)", None),
        ("a = Mul(x, column) b = Add(a, one) y = Mul(b, column)", None),
    ],
)
def test_fires(body: str, after: str | None) -> None:
    check(
        ElementwiseConstants(),
        f"{HEAD} {CONSTANTS} {{ {body} }}",
        after and f"{HEAD} {CONSTANTS} {{ {after} }}",
    )


@pytest.mark.parametrize("kind", ["int32", "int64"])
def test_integers_wrap_around_as_before(kind: str) -> None:
    check(
        ElementwiseConstants(),
        f"""g ({kind}[N] x) => ({kind}[N] y) <{kind} a={{2147483647}}, {kind} b={{5}}, {kind} c={{2147483000}}>
        {{ p = Add(x, a) q = Mul(p, b) y = Sub(q, c) }}""",
        exact=True,
    )


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("a = Add(x, magic) y = Sub(a, magic)", "cancel"),
        ("a = Mul(x, tiny) y = Mul(a, tiny)", "below the range"),
        ("a = Mul(x, big) y = Mul(a, big)", "leaves the range"),
        ("a = Mul(x, column) y = Mul(a, row)", "larger than its parts"),
        ("a = Mul(x, two) y = Div(a, zero)", "divides by zero"),
    ],
)
def test_refuses(body: str, reason: str) -> None:
    check_refuses(ElementwiseConstants(), f"{HEAD} {CONSTANTS} {{ {body} }}", reason)


@pytest.mark.parametrize(
    "body",
    [
        "a = Mul(x, two) y = Add(a, one)",
        "a = Mul(x, two) y = Mul(a, x)",
        "a = Div(two, x) y = Mul(a, two)",
        "a = Add(x, one) b = Mul(a, two) y = Add(a, b)",
        "a = Relu(x) y = Add(a, one)",
    ],
)
def test_ignores(body: str) -> None:
    check_ignores(ElementwiseConstants(), f"{HEAD} {CONSTANTS} {{ {body} }}")


def test_ignores_integer_division() -> None:
    check_ignores(
        ElementwiseConstants(),
        "g (int64[N] x) => (int64[N] y) <int64 two={2}> { a = Mul(x, two) b = Div(a, two) y = Add(b, two) }",
    )


def test_a_constant_that_raises_the_rank_still_does() -> None:
    check(
        ElementwiseConstants(),
        f"g (float[3,4] x) => (float[1,3,4] y) {CONSTANTS} {{ a = Mul(x, high) y = Mul(a, third) }}",
    )


STEP = st.tuples(
    st.sampled_from(["Add", "Sub", "Mul", "Div", "Neg", "RSub"]),
    st.sampled_from([[], [1], [4], [3, 1], [3, 4], [1, 1, 1]]),
    st.floats(0.5, 2, width=32),
)


@hypothesis.settings(derandomize=True, deadline=None, max_examples=50)
@hypothesis.given(st.lists(STEP, min_size=2, max_size=6), st.sampled_from(["float", "double", "int64"]))
def test_any_chain(steps: list[tuple[str, list[int], float]], kind: str) -> None:
    constants, body, shape = [f"{kind} unused={{0}}"], [], (3, 4)
    for index, (op, dims, number) in enumerate(steps):
        count = int(np.prod(dims))
        content = ",".join(str(int(number * 7) if kind == "int64" else number + i / 8) for i in range(count))
        constants.append(f"{kind}{dims if dims else ''} c{index}={{{content}}}")
        operands = {"Neg": f"v{index}", "RSub": f"c{index}, v{index}"}.get(op, f"v{index}, c{index}")
        body.append(f"v{index + 1} = {op.lstrip('R')}({operands})")
        if op != "Neg":
            shape = np.broadcast_shapes(shape, tuple(dims))  # type: ignore[assignment]
    text = (
        f"g ({kind}[3,4] v0) => ({kind}{list(shape)} v{len(steps)}) "
        f"<{', '.join(constants)}> {{ {' '.join(body)} }}"
    )
    model, _ = apply(ElementwiseConstants(), text)
    assert len(model.graph) <= len(steps)
    assert_same_numbers(model_from_text(text), model, rtol=1e-12 if kind == "double" else 2e-6)
