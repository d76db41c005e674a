"""Casts whose first step loses nothing."""

import hypothesis
import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import strategies as st

from graphopt.passes.cast_chain import CastChain
from graphopt.testing import apply, check, check_ignores, check_refuses, model_from_text, run

CODES = {
    name: int(ir.DataType[name])
    for name in ("FLOAT", "FLOAT16", "DOUBLE", "INT32", "INT64", "BOOL", "INT8", "UINT8")
}
TEXT = {"FLOAT": "float", "DOUBLE": "double"}


def _kind(name: str) -> str:
    return TEXT.get(name, name.lower())


def _chain(source: str, middle: str, target: str) -> str:
    return (
        f"g ({_kind(source)}[N] x) => ({_kind(target)}[N] y) "
        f"{{ a = Cast<to={CODES[middle]}>(x) y = Cast<to={CODES[target]}>(a) }}"
    )


@pytest.mark.parametrize(
    ("source", "middle", "target"),
    [
        ("FLOAT16", "FLOAT", "DOUBLE"),
        ("INT32", "INT64", "FLOAT"),
        ("BOOL", "INT64", "FLOAT"),
        ("BOOL", "FLOAT", "INT32"),
        ("INT32", "DOUBLE", "INT64"),
        ("UINT8", "FLOAT16", "FLOAT"),
        ("FLOAT", "DOUBLE", "FLOAT16"),
        ("INT64", "INT64", "INT32"),
    ],
)
def test_fires(source: str, middle: str, target: str) -> None:
    after = f"g ({_kind(source)}[N] x) => ({_kind(target)}[N] y) {{ y = Cast<to={CODES[target]}>(x) }}"
    check(CastChain(), _chain(source, middle, target), after, exact=True)


def test_there_and_back_cancels() -> None:
    check(
        CastChain(),
        "g (float16[N] x) => (float16[N] y) { a = Cast<to=1>(x) b = Cast<to=10>(a) y = Neg(b) }",
        "g (float16[N] x) => (float16[N] y) { y = Neg(x) }",
        exact=True,
    )


def test_a_cast_to_the_same_type_goes() -> None:
    check(
        CastChain(),
        "g (float[N] x) => (float[N] y) { a = Cast<to=1>(x) y = Neg(a) }",
        "g (float[N] x) => (float[N] y) { y = Neg(x) }",
        exact=True,
    )


def test_cast_like() -> None:
    check(
        CastChain(),
        "g (int64[N] x, float16[M] z) => (float16[N] y) { y = CastLike(x, z) }",
        "g (int64[N] x, float16[M] z) => (float16[N] y) { y = Cast<to=10>(x) }",
        exact=True,
    )
    check(
        CastChain(),
        "g (float[N] x, float[M] z) => (float[N] y) { a = CastLike(x, z) y = Neg(a) }",
        "g (float[N] x, float[M] z) => (float[N] y) { y = Neg(x) }",
        exact=True,
    )


@pytest.mark.parametrize(
    ("source", "middle", "target"),
    [
        ("FLOAT", "FLOAT16", "FLOAT"),
        ("FLOAT", "INT32", "FLOAT"),
        ("INT64", "INT32", "INT64"),
        ("INT64", "DOUBLE", "INT64"),
        ("INT64", "BOOL", "FLOAT"),
        ("INT8", "UINT8", "INT32"),
        ("INT32", "DOUBLE", "INT8"),
    ],
)
def test_refuses_loss(source: str, middle: str, target: str) -> None:
    check_refuses(CastChain(), _chain(source, middle, target), "loses values")


def test_ignores_text() -> None:
    check_ignores(CastChain(), "g (float[N] x) => (float[N] y) { a = Cast<to=8>(x) y = Cast<to=1>(a) }")


NAMES = st.sampled_from(sorted(CODES))


@hypothesis.settings(derandomize=True, deadline=None, max_examples=60)
@hypothesis.given(NAMES, NAMES, NAMES, st.integers(0, 2**32 - 1))
def test_numbers_never_change(source: str, middle: str, target: str, seed: int) -> None:
    text = _chain(source, middle, target)
    model, _ = apply(CastChain(), text)
    rng = np.random.default_rng(seed)
    dtype = ir.DataType[source].numpy()
    if dtype.kind == "f":
        # In the range of every target, since beyond it a conversion to integers is not defined.
        x = np.clip(rng.standard_normal(64) * 30, 0, 120).astype(dtype)
    elif dtype.kind == "b":
        x = rng.integers(0, 2, 64).astype(bool)
    else:
        info = np.iinfo(dtype)
        x = rng.integers(info.min, info.max, 64, dtype=dtype, endpoint=True)
    if dtype.kind == "i" and dtype.itemsize > 2 and "FLOAT16" in (middle, target):
        x = (x % 1000).astype(dtype)
    np.testing.assert_array_equal(
        run(model, {"x": x})["y"], run(model_from_text(text), {"x": x})["y"], err_msg=text
    )
