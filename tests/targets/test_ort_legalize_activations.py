"""Activations and norms whose kernels in ONNX Runtime are scalar: Mish, Softplus, Elu, PRelu, ReduceL2."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.rewrite import Rewrite
from graphopt.targets.ort.legalize.elu import LegalizeElu
from graphopt.targets.ort.legalize.mish import LegalizeMish
from graphopt.targets.ort.legalize.prelu import LegalizePRelu
from graphopt.targets.ort.legalize.reduce_l2 import LegalizeReduceL2
from graphopt.targets.ort.legalize.softplus import LegalizeSoftplus
from graphopt.testing import apply, check, check_ignores, check_refuses, model_from_text, run

HEAD = "g (float[N] x) => (float[N] y)"
UNARY: list[tuple[str, type[Rewrite]]] = [
    ("Mish", LegalizeMish),
    ("Softplus", LegalizeSoftplus),
    ("Elu", LegalizeElu),
]
SPECIAL = [0.0, -0.0, np.inf, -np.inf, np.nan, 3e38, -3e38, 1e-38, 1e-45, 88.0, 89.0, -87.0, -88.0, -104.0]
Floats = npt.NDArray[np.float32]


def everywhere() -> Floats:
    """All magnitudes of float32, both signs, and a dense grid where the functions bend."""
    rng = np.random.default_rng(0)
    sizes = 10.0 ** rng.uniform(-44, 38, 20000) * rng.choice([-1, 1], 20000)
    return np.concatenate([SPECIAL, np.linspace(-30, 30, 60001), np.linspace(-110, 110, 2201), sizes]).astype(
        np.float32
    )


def exact(op_type: str, x: Floats) -> npt.NDArray[np.float64]:
    wide = x.astype(np.float64)
    power = np.exp(np.minimum(wide, 300.0))
    if op_type == "Mish":
        return np.asarray(wide * (power * (power + 2) / (power * (power + 2) + 2)))
    return np.logaddexp(0.0, wide) if op_type == "Softplus" else np.where(wide > 0, wide, np.expm1(wide))


@pytest.mark.parametrize(("op_type", "rewrite"), UNARY)
def test_accurate_over_all_floats(op_type: str, rewrite: type[Rewrite]) -> None:
    """To a few units in the last place, as far as the kernel that is replaced; NaN and infinities alike."""
    before = model_from_text(f"{HEAD} {{ y = {op_type}(x) }}")
    after, _ = apply(rewrite(), before)
    x = everywhere()
    kernel, result = run(before, {"x": x})["y"], run(after, {"x": x})["y"]
    np.testing.assert_array_equal(np.isnan(result), np.isnan(kernel))
    with np.errstate(all="ignore"):
        wanted = exact(op_type, x)
    finite = np.isfinite(wanted)
    np.testing.assert_array_equal(result[~finite], wanted[~finite].astype(np.float32))
    # Elu subtracts 1 from the exponential, as the kernel does: absolute accuracy near 0.
    floor = 1e-7 if op_type == "Elu" else 1e-36
    np.testing.assert_allclose(result[finite], wanted[finite], rtol=4e-7, atol=floor)


@pytest.mark.parametrize(("op_type", "rewrite"), UNARY)
@settings(derandomize=True, deadline=None, max_examples=25)
@given(values=st.lists(st.floats(width=32), min_size=1, max_size=8))
def test_property(op_type: str, rewrite: type[Rewrite], values: list[float]) -> None:
    before = model_from_text(f"{HEAD} {{ y = {op_type}(x) }}")
    after, _ = apply(rewrite(), before)
    feeds = {"x": np.array(values, np.float32)}
    np.testing.assert_allclose(run(after, feeds)["y"], run(before, feeds)["y"], rtol=1e-6, atol=1e-7)


def test_forms() -> None:
    check(
        LegalizeMish(),
        f"{HEAD} {{ y = Mish(x) }}",
        f"{HEAD} <float a={{20}}, float b={{2}}> {{ m = Min(x, a) e = Exp(m) f = Add(e, b) n = Mul(e, f) "
        "d = Add(n, b) q = Div(n, d) y = Mul(x, q) }",
    )
    check(
        LegalizeElu(),
        f"{HEAD} {{ y = Elu<alpha=0.5>(x) }}",
        f"{HEAD} <float z={{0}}, float o={{1}}, float a={{0.5}}> {{ m = Min(x, z) e = Exp(m) s = Sub(e, o) "
        "t = Mul(s, a) y = Max(x, t) }",
    )
    check(
        LegalizeSoftplus(),
        f"{HEAD} {{ y = Softplus(x) }}",
        f"{HEAD} <float o={{1}}> {{ a = Abs(x) n = Neg(a) t = Exp(n) u = Add(t, o) v = Sub(u, o) l = Sub(t, v) "
        "q = Div(l, u) r = Relu(x) g = Log(u) p = Add(g, q) y = Add(r, p) }",
    )


@pytest.mark.parametrize(
    ("op_type", "rewrite"), [*UNARY, ("PRelu", LegalizePRelu), ("ReduceL2", LegalizeReduceL2)]
)
def test_ignores_other_types(op_type: str, rewrite: type[Rewrite]) -> None:
    more = {"PRelu": "(x, s)", "ReduceL2": "<keepdims=0>(x, axes)"}.get(op_type, "(x)")
    shape = "float16[2]" if op_type == "ReduceL2" else "float16[2,3]"
    check_ignores(
        rewrite(),
        f"g (float16[2,3] x) => ({shape} y) <float16[3] s={{1,2,3}}, int64[1] axes={{1}}> {{ y = {op_type}{more} }}",
    )


@pytest.mark.parametrize("alpha", [-0.5, 0.0, 1.5])
def test_elu_refuses_other_alphas(alpha: float) -> None:
    check_refuses(LegalizeElu(), f"{HEAD} {{ y = Elu<alpha={alpha}>(x) }}", "is not Elu")


@settings(derandomize=True, deadline=None, max_examples=25)
@given(alpha=st.floats(1e-3, 1.0), values=st.lists(st.floats(-200, 200, width=32), min_size=1, max_size=8))
def test_elu_alphas(alpha: float, values: list[float]) -> None:
    feeds = {"x": np.array(values, np.float32)}
    check(LegalizeElu(), f"{HEAD} {{ y = Elu<alpha={alpha:.6f}>(x) }}", feeds=feeds, rtol=1e-6)


PRELU = "g (float[N,2,3] x) => (float[N,2,3] y)"


@pytest.mark.parametrize("slope", ["float[2,1] s={0.25,-0.5}", "float[1] s={1}", "float[3] s={0.1,0.2,1}"])
def test_prelu(slope: str) -> None:
    check(
        LegalizePRelu(),
        f"{PRELU} <{slope}> {{ y = PRelu(x, s) }}",
        f"{PRELU} <{slope}> {{ a = Mul(x, s) y = Max(x, a) }}",
        exact=True,
    )


@pytest.mark.onnxruntime("1.27", "keeps infinities in its PRelu kernel")
def test_prelu_of_extremes() -> None:
    x = np.array(
        [[[value] * 3] * 2 for value in (np.inf, -np.inf, np.nan, 0.0, -0.0, 3e38, -3e38)], np.float32
    )
    check(
        LegalizePRelu(),
        f"{PRELU} <float[3] s={{-0.5,0.25,1}}> {{ y = PRelu(x, s) }}",
        feeds={"x": x},
        exact=True,
    )


@pytest.mark.parametrize(
    ("slopes", "reason"), [("{0.5,1.5,0.1}", "slope above 1"), ("{0.5,0,0.1}", "slope of 0")]
)
def test_prelu_refuses(slopes: str, reason: str) -> None:
    check_refuses(LegalizePRelu(), f"{PRELU} <float[3] s={slopes}> {{ y = PRelu(x, s) }}", reason)


def test_prelu_ignores_slopes_that_are_not_constant() -> None:
    check_ignores(LegalizePRelu(), "g (float[N,3] x, float[3] s) => (float[N,3] y) { y = PRelu(x, s) }")


@settings(derandomize=True, deadline=None, max_examples=25)
@given(slopes=st.lists(st.floats(-4, 1).filter(lambda slope: abs(slope) > 1e-3), min_size=3, max_size=3))
def test_prelu_property(slopes: list[float]) -> None:
    written = ",".join(f"{slope:.6f}" for slope in slopes)
    check(LegalizePRelu(), f"{PRELU} <float[3] s={{{written}}}> {{ y = PRelu(x, s) }}", exact=True)


L2 = "g (float[N,2,3] x) => (float[N,A,B] y)"


@pytest.mark.parametrize("axes", ["int64[1] a={-1}", "int64[2] a={2,1}"])
def test_reduce_l2(axes: str) -> None:
    check(
        LegalizeReduceL2(),
        f"{L2} <{axes}> {{ y = ReduceL2<keepdims=1>(x, a) }}",
        f"{L2} <{axes}> {{ q = Mul(x, x) r = ReduceSum<keepdims=1>(q, a) y = Sqrt(r) }}",
        rtol=1e-6,
    )


@pytest.mark.parametrize("value", [1e19, 1e20, 3e38, 1e-23, 1e-30, np.inf, np.nan])
def test_reduce_l2_overflows_and_underflows_where_the_kernel_does(value: float) -> None:
    before = model_from_text(
        "g (float[N,2] x) => (float[N] y) <int64[1] a={1}> { y = ReduceL2<keepdims=0>(x, a) }"
    )
    after, log = apply(LegalizeReduceL2(), before)
    assert log.applied
    feeds = {"x": np.array([[value, value]], np.float32)}
    np.testing.assert_allclose(run(after, feeds)["y"], run(before, feeds)["y"], rtol=1e-6)


def test_reduce_l2_refuses_inner_axes() -> None:
    check_refuses(
        LegalizeReduceL2(), f"{L2} <int64[1] a={{1}}> {{ y = ReduceL2(x, a) }}", "not the last ones"
    )


def test_reduce_l2_ignores_axes_that_are_not_constant() -> None:
    check_ignores(LegalizeReduceL2(), "g (float[N,2] x, int64[1] a) => (float[A,B] y) { y = ReduceL2(x, a) }")


@settings(derandomize=True, deadline=None, max_examples=20)
@given(count=st.integers(1, 3), keepdims=st.integers(0, 1), size=st.integers(1, 9))
def test_reduce_l2_property(count: int, keepdims: int, size: int) -> None:
    axes = ",".join(str(-1 - index) for index in range(count))
    out = ",".join("ABC"[: 3 if keepdims else 3 - count])
    check(
        LegalizeReduceL2(),
        f"g (float[N,4,{size}] x) => (float[{out}] y) <int64[{count}] a={{{axes}}}> "
        f"{{ y = ReduceL2<keepdims={keepdims}>(x, a) }}",
        rtol=2e-6,
    )
