"""Histograms: exact, bounded, the same in any order; and the ranges that rules take from them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from graphopt.ir.facts import Array
from graphopt.quant.clipping import METHODS, Rule, clipped, total_errors
from graphopt.quant.histogram import BINS, Histogram
from graphopt.quant.ranges import Range, affine

LARGE = float(np.float32(3e38))
FLOATS = st.floats(-LARGE, LARGE, width=32)
PIECES = st.lists(hnp.arrays(np.float32, st.integers(1, 60), elements=FLOATS), min_size=1, max_size=6)


def seen(*pieces: Array) -> Histogram:
    histogram = Histogram()
    for piece in pieces:
        histogram.add(piece)
    return histogram


def state(histogram: Histogram) -> tuple[object, ...]:
    return (
        histogram.low,
        histogram.high,
        histogram.elements,
        histogram.zeros,
        histogram.exponent,
        histogram.counts.tolist(),
    )


def draw(kind: str, count: int = 40_000, seed: int = 0) -> Array:
    """A tensor such as networks have."""
    rng = np.random.default_rng(seed)
    normal = rng.standard_normal(count)
    made = {
        "normal": normal,
        "relu": np.maximum(normal, 0),
        "heavy": rng.standard_t(3, count),
        "laplace": rng.laplace(size=count),
        "silu": normal * 2 / (1 + np.exp(-normal * 2)),
        "sigmoid": 1 / (1 + np.exp(-3 * normal)),
        "shifted": normal + 20,
        "negative": -np.abs(normal),
        "outlier": np.append(normal[1:], 300.0),
    }
    return made[kind].astype(np.float32)


KINDS = ("normal", "relu", "heavy", "laplace", "silu", "sigmoid", "shifted", "negative", "outlier")


@given(PIECES)
@settings(max_examples=100, deadline=None)
@example(
    [np.array([1e-30, -1e-30], np.float32), np.array([3e38, 0], np.float32), np.array([5.0], np.float32)]
)
def test_order_and_cuts_do_not_matter(pieces: list[Array]) -> None:
    together = seen(np.concatenate(pieces))
    assert state(seen(*pieces)) == state(together)
    assert state(seen(*pieces[::-1])) == state(together)
    assert state(seen(np.sort(np.concatenate(pieces)))) == state(together)


@given(PIECES)
@settings(max_examples=100, deadline=None)
def test_counts_are_those_of_the_final_bins(pieces: list[Array]) -> None:
    numbers = np.concatenate(pieces)
    histogram = seen(*pieces)
    assert (histogram.low, histogram.high) == (numbers.min(), numbers.max())
    assert histogram.elements == numbers.size and histogram.zeros == int((numbers == 0).sum())
    slots = np.trunc(numbers[numbers != 0].astype(np.float64) / histogram.width).astype(int) + BINS - 1
    assert histogram.counts.tolist() == np.bincount(slots, minlength=2 * BINS - 1).tolist()


def test_memory_does_not_grow() -> None:
    histogram = Histogram()
    for scale in (1e-20, 1.0, 1e5, 1e30):
        histogram.add(np.full(100_000, scale, np.float32))
        assert histogram.counts.nbytes == 8 * (2 * BINS - 1)
    assert histogram.counts.sum() == 400_000


def test_of_a_large_array_a_part_is_counted_all_over_it() -> None:
    size = 5 << 18
    ramp = np.arange(size, dtype=np.float32).reshape(5, 512, 512)
    histogram = seen(ramp)
    assert (histogram.low, histogram.high, histogram.largest) == (0, size - 1, size)
    assert abs(histogram.elements - size) < 20**2
    quarters = np.add.reduceat(
        histogram.counts[BINS - 1 :][: size // int(histogram.width)], np.arange(4) * 640
    )
    assert np.ptp(quarters) < 0.01 * size
    # One column of a matrix, whose width is a multiple of the step that would be taken.
    columns = np.zeros((1 << 12, 6 * 128), np.float32)
    columns[:, ::6] = 1
    histogram = seen(columns)
    assert histogram.zeros / histogram.elements == pytest.approx(5 / 6, rel=0.01)
    found, _ = clipped(seen(draw("normal", 2_000_000)), Rule("percentile", 99.9))
    assert found.high == pytest.approx(3.29, abs=0.05)


def test_bins_are_at_least_half_used() -> None:
    """A bin is at most 1/2048 of the largest magnitude."""
    for largest in (1.0, 1.5, 1.999, 2.0, 1e-3, 7e30):
        histogram = seen(np.array([largest, -largest / 3], np.float32))
        assert histogram.width <= np.float32(largest) / (BINS / 2)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_has_no_range(wrong: float) -> None:
    histogram = seen(np.ones(4, np.float32), np.array([1, wrong], np.float32), np.ones(4, np.float32))
    for method in METHODS:
        found, _ = clipped(histogram, Rule(method))
        assert "not finite" in found.why_not


@pytest.mark.parametrize("method", METHODS)
def test_zero_and_nothing(method: str) -> None:
    rule = Rule(method)  # type: ignore[arg-type]
    for histogram in (seen(np.zeros(50_000, np.float32)), Histogram(), seen(np.zeros(0, np.float32))):
        found, _ = clipped(histogram, rule)
        assert "zero throughout" in found.why_not
    tiny, _ = clipped(seen(np.full(50_000, 1e-40, np.float32)), rule)
    assert "zero throughout" in tiny.why_not
    small, _ = clipped(seen(np.full(50_000, 1e-30, np.float32)), rule)
    assert small.why_not == "" and affine(small, (0, 255), symmetric=False).scale > 0


@given(
    hnp.arrays(np.float32, st.integers(1, 400), elements=st.floats(-100, 100, width=32)),
    st.floats(50.5, 100),
)
@settings(max_examples=150, deadline=None)
def test_percentile_is_that_of_all_data_within_a_bin(numbers: Array, percentile: float) -> None:
    histogram = seen(numbers[: len(numbers) // 2], numbers[len(numbers) // 2 :])
    found, enough = clipped(histogram, Rule("percentile", percentile))
    ordered = np.sort(numbers)
    cut = int(len(numbers) * (100 - percentile) / 200)
    assert enough == (len(numbers) * (100 - percentile) / 200 >= 1 or percentile == 100 or not numbers.any())
    # The bin around zero is twice as wide.
    for got, wanted in ((found.low, ordered[cut]), (found.high, ordered[len(ordered) - 1 - cut])):
        assert abs(got - wanted) <= 2 * histogram.width
    assert (
        ordered[0] <= found.low <= ordered[cut]
        and ordered[-1] >= found.high >= ordered[len(ordered) - 1 - cut]
    )


POWERS = {"mse": 2.0, "norm": 2.4}
SIGNED = {"limits": (-128, 127), "symmetric": True}
ERROR_RULES = [Rule("mse"), Rule("norm"), Rule("mse", **SIGNED), Rule("norm", **SIGNED)]  # type: ignore[arg-type]


def error(numbers: Array, found: Range, rule: Rule) -> float:
    """The mean error of really quantizing, to the rule's power."""
    made = affine(found, rule.limits, symmetric=rule.symmetric)
    integers = np.clip(np.rint(numbers / made.scale) + made.zero_point, *rule.limits)
    return float((np.abs((integers - made.zero_point) * made.scale - numbers) ** POWERS[rule.method]).mean())


@pytest.mark.parametrize("rule", ERROR_RULES, ids=["mse-u8", "norm-u8", "mse-s8", "norm-s8"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_error_is_the_least_of_all_ranges(kind: str, rule: Rule) -> None:
    numbers = draw(kind)
    found, enough = clipped(seen(numbers), rule)
    shares = np.concatenate([np.geomspace(0.02, 0.5, 12), np.linspace(0.55, 1, 14)])
    low, high = float(min(numbers.min(), 0)), float(max(numbers.max(), 0))
    brute = min(
        error(numbers, Range(low * a, high * b), rule)
        for a in (shares if low < 0 else [1])
        for b in (shares if high > 0 else [1])
    )
    assert enough and error(numbers, found, rule) <= 1.05 * brute


@pytest.mark.parametrize("rule", ERROR_RULES, ids=["mse-u8", "norm-u8", "mse-s8", "norm-s8"])
@pytest.mark.parametrize("kind", KINDS)
def test_predicted_errors_are_the_real_ones(kind: str, rule: Rule) -> None:
    numbers = draw(kind)
    histogram, power = seen(numbers), POWERS[rule.method]
    ranges = [
        Range(float(numbers.min()) * share, float(numbers.max()) * share) for share in (0.05, 0.3, 0.9, 1.0)
    ]
    predicted = total_errors(histogram.edges(), histogram.counts, ranges, rule, power) / numbers.size
    assert predicted == pytest.approx([error(numbers, found, rule) for found in ranges], rel=0.12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS)
def test_a_rule_only_ever_narrows_and_keeps_most(kind: str, method: str) -> None:
    numbers = draw(kind)
    found, _ = clipped(seen(numbers), Rule(method))  # type: ignore[arg-type]
    assert numbers.min() <= found.low <= found.high <= numbers.max()
    kept = np.mean((numbers >= min(found.low, 0)) & (numbers <= max(found.high, 0)))
    assert kept > 0.98


def test_entropy_and_mse_leave_a_lone_outlier_out() -> None:
    histogram = seen(draw("outlier", 250_000))
    for rule in (
        Rule("percentile"),
        Rule("entropy"),
        Rule("mse", limits=(0, 7)),
    ):
        found, _ = clipped(histogram, rule)
        assert 2 < found.high < 150, rule
    assert clipped(histogram, Rule("minmax"))[0].high == 300


@pytest.mark.parametrize(
    ("rule", "count", "enough"),
    [
        (Rule("percentile", 99.99), 19_000, False),
        (Rule("percentile", 99.99), 21_000, True),
        (Rule("percentile", 100), 10, True),
        (Rule("entropy"), 1_000, False),
        (Rule("entropy"), 3_000, True),
        (Rule("mse"), 10, True),
    ],
    ids=str,
)
def test_too_few_elements_take_all(rule: Rule, count: int, enough: bool) -> None:
    numbers = draw("normal", count)
    found, was_enough = clipped(seen(numbers), rule)
    assert was_enough == enough
    if not enough:
        assert (found.low, found.high) == (numbers.min(), numbers.max())


def test_width_is_a_power_of_two() -> None:
    mantissa, _ = math.frexp(seen(np.array([0.3], np.float32)).width)
    assert mantissa == 0.5
