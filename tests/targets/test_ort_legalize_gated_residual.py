"""Residuals around gates."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.targets.ort.legalize.gated_residual import GatedResidual
from graphopt.testing import check, check_ignores, check_refuses

HEAD = "g (float[N,2,3,4] x, float[N,2,1,1] s) => (float[N,2,3,4] y)"


@pytest.mark.parametrize("product", ["Mul(x, s)", "Mul(s, x)"])
@pytest.mark.parametrize("total", ["Add(x, m)", "Add(m, x)"])
def test_fires(product: str, total: str) -> None:
    check(
        GatedResidual(),
        f"{HEAD} {{ m = {product} y = {total} }}",
        f"{HEAD} <float o={{1}}> {{ g = Add(s, o) y = Mul(x, g) }}",
    )


def test_fires_on_maps_of_unknown_size() -> None:
    head = "g (float[N,2,H,W] x, float[N,2,1,1] s) => (float[N,2,H,W] y)"
    check(
        GatedResidual(),
        f"{head} {{ m = Mul(x, s) y = Add(x, m) }}",
        f"{head} <float o={{1}}> {{ g = Add(s, o) y = Mul(x, g) }}",
    )


def test_refuses_a_product_that_is_read_elsewhere() -> None:
    check_refuses(
        GatedResidual(),
        HEAD.replace("y)", "y, float[N,2,3,4] z)") + " { m = Mul(x, s) y = Add(x, m) z = Relu(m) }",
        "used elsewhere",
    )


@pytest.mark.parametrize(
    "text",
    [
        f"{HEAD} {{ a = Relu(x) m = Mul(x, s) y = Add(a, m) }}",
        f"{HEAD} {{ m = Mul(x, s) y = Sub(x, m) }}",
        f"{HEAD} {{ m = Mul(x, x) y = Add(x, m) }}",
        f"{HEAD} <float k={{2}}> {{ m = Mul(x, k) y = Add(x, m) }}",
        "g (float[N,2] x, float[N,2] s) => (float[N,2] y) { m = Mul(x, s) y = Add(x, m) }",
        "g (float[N,2,1,3] x, float[N,2,1,1] s) => (float[N,2,1,3] y) { m = Mul(x, s) y = Add(x, m) }",
        "g (float[N,2,1,1] x, float[N,2,3,4] s) => (float[N,2,3,4] y) { m = Mul(x, s) y = Add(x, m) }",
        "g (int64[N,2,3,4] x, int64[N,2,1,1] s) => (int64[N,2,3,4] y) { m = Mul(x, s) y = Add(x, m) }",
    ],
)
def test_ignores(text: str) -> None:
    check_ignores(GatedResidual(), text)


@settings(derandomize=True, deadline=None, max_examples=25)
@given(gate=st.sampled_from(["N,2,1,1", "2,1,1", "1,1", "1", "N,1,1,4", "1,2,1,1", "2,3,1"]))
def test_property(gate: str) -> None:
    check(
        GatedResidual(),
        f"g (float[N,2,3,4] x, float[{gate}] s) => (float[N,2,3,4] y) {{ m = Mul(x, s) y = Add(m, x) }}",
        rtol=1e-6,
    )
