"""LRN as a banded convolution."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.targets.ort.legalize.lrn import LegalizeLrn
from graphopt.testing import check, check_ignores, check_refuses


def lrn(channels: int, size: int, alpha: float, beta: float, bias: float) -> str:
    return (
        f"g (float[N,{channels},5,4] x) => (float[N,{channels},5,4] y) "
        f"{{ y = LRN<size={size}, alpha={alpha}, beta={beta}, bias={bias}>(x) }}"
    )


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    channels=st.integers(1, 9),
    size=st.sampled_from([1, 3, 5, 7]),
    alpha=st.floats(1e-4, 2.0),
    beta=st.sampled_from([0.25, 0.5, 0.75, 1.0]),
    bias=st.floats(0.5, 3.0),
)
def test_numbers_agree(channels: int, size: int, alpha: float, beta: float, bias: float) -> None:
    check(LegalizeLrn(), lrn(channels, size, alpha, beta, bias))


def test_large_activations() -> None:
    feeds = {"x": (np.random.default_rng(0).standard_normal((1, 6, 5, 4)) * 300).astype(np.float32)}
    check(LegalizeLrn(), lrn(6, 5, 1e-4, 0.75, 1.0), feeds=feeds)


def test_refuses_other_exponents() -> None:
    check_refuses(LegalizeLrn(), lrn(4, 3, 0.1, 0.6, 1.0), "the exponent 0.6")


def test_refuses_many_channels() -> None:
    check_refuses(LegalizeLrn(), lrn(1025, 3, 0.1, 0.75, 1.0), "too large")


@pytest.mark.parametrize("shape", ["N,C,5,4", "N,4,5"])
def test_ignores_unknown_channels_and_other_ranks(shape: str) -> None:
    check_ignores(LegalizeLrn(), f"g (float[{shape}] x) => (float[{shape}] y) {{ y = LRN<size=3>(x) }}")
