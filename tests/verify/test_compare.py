"""Comparison in multiples of a measured noise floor."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from graphopt.verify.compare import Status, compare_output, deviation, element_floor

RNG = np.random.default_rng(0)


def status(
    reference: object, result: object, noise: object = None, multiple: float = 8.0, scale: float = 0.0
) -> Status:
    arrays = [
        np.asarray(array, dtype=np.float32) if not isinstance(array, np.ndarray) else array
        for array in (reference, result)
    ]
    return compare_output("y", arrays[0], arrays[1], noise, multiple, scale).status  # type: ignore[arg-type]


def test_identical_bits() -> None:
    assert status([1.0, np.nan, np.inf], [1.0, np.nan, np.inf]) is Status.IDENTICAL


@pytest.mark.parametrize(
    "result", [[1.0, np.inf, np.inf], [1.0, np.nan, -np.inf], [1.0, 2.0, np.inf], [np.nan, np.nan, np.inf]]
)
def test_non_finite_elements_must_stay_where_they_are(result: list[float]) -> None:
    assert status([1.0, np.nan, np.inf], result) is Status.DIFFERENT


def test_shape_and_type_must_stay() -> None:
    assert status(np.zeros((2, 1), np.float32), np.zeros((2,), np.float32)) is Status.DIFFERENT
    assert status(np.zeros(2, np.float32), np.zeros(2, np.float64)) is Status.DIFFERENT


def test_scores_beside_boxes_have_a_floor_of_their_own() -> None:
    reference = np.concatenate([RNG.uniform(0, 640, (4, 100)), RNG.uniform(0.1, 1, (1, 100))]).astype(
        np.float32
    )
    noise = np.abs(reference) * 2e-7
    good, bad = reference.copy(), reference.copy()
    good[0, 0] += 5e-4
    bad[4, 0] += 1e-3
    assert status(reference, good, noise) is Status.WITHIN_NOISE
    assert status(reference, bad, noise) is Status.DIFFERENT


def test_saturated_probabilities_are_compared_on_their_range() -> None:
    reference = np.zeros((1, 64), np.float32)
    result = reference.copy()
    result[0, 3] = 2e-8
    assert status(reference, result) is Status.DIFFERENT
    assert status(reference, result, scale=1.0) is Status.WITHIN_NOISE


def test_integers_may_differ_only_where_the_model_itself_is_unstable() -> None:
    reference, result = np.array([1, 2, 3]), np.array([1, 2, 4])
    assert status(reference, result) is Status.DIFFERENT
    assert status(reference, result, np.array([False, False, True])) is Status.WITHIN_NOISE


@settings(deadline=None)
@given(
    hnp.arrays(np.float32, hnp.array_shapes(max_dims=3, max_side=6), elements=st.floats(-1e3, 1e3, width=32)),
    st.floats(1e-3, 1e3),
)
def test_an_error_well_beyond_the_noise_is_always_found(reference: np.ndarray, size: float) -> None:
    noise = np.full(reference.shape, size * 1e-3)
    result = reference.astype(np.float32).copy()
    index = tuple(np.zeros(reference.ndim, dtype=int))
    step = max(size, float(np.abs(reference).max()) * 1e-3)
    result[index] += np.float32(step)
    assert status(reference, result, noise) is Status.DIFFERENT


@settings(deadline=None)
@given(hnp.arrays(np.float32, (5, 7), elements=st.floats(-1e6, 1e6, width=32)))
def test_the_floor_is_positive_and_never_above_the_whole(reference: np.ndarray) -> None:
    floor = element_floor(reference, np.zeros(reference.shape))
    assert (floor > 0).all()
    assert floor.max() <= 4 * np.finfo(np.float32).eps * np.abs(reference).max() + 1e-37


def test_deviation_ignores_what_is_not_finite() -> None:
    moved = deviation({"y": np.array([1.0, np.nan], np.float32)}, {"y": np.array([1.5, 2.0], np.float32)})
    assert moved["y"].tolist() == [0.5, 0.0]


def test_a_pixel_is_not_refused_for_a_row_that_was_quiet_by_chance() -> None:
    """Along a long axis the floor of a slice is that of its neighbourhood; along a short one its own."""
    reference = np.ones((1, 1, 160, 160), np.float32)
    noise = np.zeros(reference.shape)
    noise[0, 0, 80, 80] = 1e-3
    floor = element_floor(reference, noise)
    assert floor[0, 0, 99, 61] == 1e-3, "within an eighth of either axis"
    assert floor[0, 0, 101, 80] < 1e-4, "farther away it is what was seen there"
    fields = np.ones((1, 84, 512), np.float32)
    apart = np.zeros(fields.shape)
    apart[:, :4] = 1e-3
    assert element_floor(fields, apart)[0, 4:].max() < 1e-4, "boxes and scores"


@settings(max_examples=40, deadline=None)
@given(st.integers(128, 700), st.integers(0, 1000))
def test_neighbours_are_those_within_an_eighth(length: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    noise = (rng.random(length) ** 20)[:, None] * np.ones((1, 32))
    reach = length // 8
    wanted = [noise[max(0, place - reach) : place + reach + 1].max() for place in range(length)]
    floor = element_floor(np.full((length, 32), 1e-6, np.float32), noise)
    np.testing.assert_array_equal(floor[:, 0], np.maximum(wanted, noise.max() / 64))
