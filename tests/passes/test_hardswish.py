"""HardSwish in the forms that Paddle, PyTorch and others write."""

import pytest

from graphopt.passes.hardswish import HardSwish
from graphopt.testing import check, check_ignores, check_refuses

CONSTANTS = "<float three={3}, float zero={0}, float six={6}, float sixth={0.16666667}>"
AFTER = "g (float[N,4] x) => (float[N,4] y) { y = HardSwish(x) }"


@pytest.mark.parametrize(
    "body",
    [
        "a = Add(x, three) b = Clip(a, zero, six) c = Mul(x, b) y = Div(c, six)",
        "a = Add(three, x) b = Clip(a, zero, six) c = Div(b, six) y = Mul(c, x)",
        "a = Add(x, three) b = Clip(a, zero, six) c = Mul(b, x) y = Mul(c, sixth)",
        "a = Add(x, three) r = Relu(a) b = Min(r, six) c = Mul(b, sixth) y = Mul(x, c)",
        "a = HardSigmoid<alpha=0.16666667, beta=0.5>(x) y = Mul(x, a)",
    ],
)
def test_fires(body: str) -> None:
    check(HardSwish(), f"g (float[N,4] x) => (float[N,4] y) {CONSTANTS} {{ {body} }}", AFTER)


def test_refuses_a_shared_inner_value() -> None:
    body = "a = Add(x, three) b = Clip(a, zero, six) c = Mul(x, b) y = Div(c, six)"
    check_refuses(
        HardSwish(),
        f"g (float[N,4] x) => (float[N,4] y, float[N,4] b) {CONSTANTS} {{ {body} }}",
        "is an output of the graph",
    )


@pytest.mark.parametrize(
    "body",
    [
        "a = Add(x, six) b = Clip(a, zero, six) c = Mul(x, b) y = Div(c, six)",
        "a = Add(x, three) b = Clip(a, zero, six) c = Mul(x, b) y = Div(c, three)",
        "a = HardSigmoid(x) y = Mul(x, a)",
    ],
)
def test_ignores_other_constants(body: str) -> None:
    check_ignores(HardSwish(), f"g (float[N,4] x) => (float[N,4] y) {CONSTANTS} {{ {body} }}")
