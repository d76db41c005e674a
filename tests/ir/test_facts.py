"""What is known of values, against what ONNX Runtime does."""

from __future__ import annotations

from functools import lru_cache

import hypothesis
import numpy as np
from hypothesis import strategies as st

from graphopt.ir import facts
from graphopt.testing import model_from_text
from graphopt.verify.session import Session

BOUNDS = st.integers(-12, 12) | st.sampled_from([2**63 - 1, -(2**63) + 99, 2**31 - 2, -(2**31)])


@lru_cache
def _slice() -> Session:
    text = "g (float[N] x, int64[1] s, int64[1] e, int64[1] t) => (float[M] y) <int64[1] a={0}> { y = Slice(x, s, e, a, t) }"
    return Session(model_from_text(text))


@hypothesis.settings(derandomize=True, deadline=None, max_examples=600)
@hypothesis.given(st.integers(1, 6), BOUNDS, BOUNDS, st.sampled_from([1, 1, 2, 3, -1, -1, -2, -4]))
@hypothesis.example(1, -5, -10, -1)
@hypothesis.example(4, -9, -12, -2)
def test_a_slice_takes_the_places_that_onnx_runtime_takes(size: int, start: int, end: int, step: int) -> None:
    places = facts.sliced(size, start, end, step)
    if step < 0 and end >= 2**31 - 1:
        assert places is None
        return
    feeds = {"x": np.arange(size, dtype=np.float32)}
    feeds |= {name: np.array([bound]) for name, bound in zip("set", (start, end, step), strict=True)}
    assert places is not None and list(places) == _slice().run(feeds)["y"].tolist()


def test_a_slice_with_step_0_is_none() -> None:
    assert facts.sliced(3, 0, 2, 0) is None
    assert list(facts.sliced(0, 0, 5) or ()) == [] == list(facts.sliced(0, -1, -5, -1) or ())
