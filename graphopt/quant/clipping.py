"""From what was observed of a tensor to the range that is quantized: what lies beyond it saturates.

- ``minmax``: everything.
- ``percentile``: so many percent of the elements; half of the others is cut at either end.
- ``entropy``: the range whose quantized distribution tells most about the original one, by Kullback-Leibler divergence
  (Migacz, 8-bit Inference with TensorRT, GTC 2017), here for one- and two-sided tensors on the integers in use.
- ``mse``: the range with the least mean squared error on the integers in use, as scale and zero point make them, not
  on an ideal grid (the search of OMSE, Choukroun et al. 2019, for asymmetric ranges as well). Within a bin numbers
  are taken as evenly spread, and the error is integrated exactly.
- ``norm``: the same with the error's power 2.4 in place of 2 (as the observers of BRECQ, Li et al., ICLR 2021): what
  saturates is off in one direction, and does not average out in the sums that read it as rounding does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from graphopt.ir.facts import Array
from graphopt.quant.histogram import BINS, Histogram
from graphopt.quant.ranges import Range, affine

Method = Literal["minmax", "percentile", "entropy", "mse", "norm"]
METHODS: tuple[Method, ...] = ("minmax", "percentile", "entropy", "mse", "norm")
PERCENTILE = 99.99

_ENTROPY_RANGES = 128
_ENTROPY_ELEMENTS = 2048
_SMOOTHING = 1e-4
_NARROWEST = 1 / 64
_JOINT = 32
_EACH = 11
_COARSER = 4
_ONE_SIDED = 17
_REFINEMENTS = (0.5, 0.15, 0.05)
_POINT = 1e-6
_POWERS = {"mse": 2.0, "norm": 2.4}


@dataclass(frozen=True)
class Rule:
    """How ranges are chosen.

    Attributes:
        method: One of those above.
        percentile: Of the elements, from 50 to 100; for that method.
        limits: Least and largest integer.
        symmetric: Whether the zero point is the middle of the integers.
    """

    method: Method = "minmax"
    percentile: float = PERCENTILE
    limits: tuple[int, int] = (0, 255)
    symmetric: bool = False

    def __str__(self) -> str:
        return f"percentile {self.percentile:g}" if self.method == "percentile" else self.method


AUTO = (Rule("norm"), Rule("percentile", 99.99), Rule("mse"), Rule("minmax"), Rule("percentile", 99.9))
"""What loses least on most models, and what is tried in its place (docs/quantization.md)."""


def clipped(seen: Histogram, rule: Rule) -> tuple[Range, bool]:
    """The range to quantize, and whether there were enough elements for the rule; where not, it is all of them."""
    if not seen.is_finite:
        return Range(-math.inf, math.inf), True
    if seen.low > seen.high:
        return Range(0.0, 0.0), True
    whole = Range(seen.low, seen.high)
    if rule.method == "minmax" or not seen.counts.any():
        return whole, True
    if rule.method == "percentile":
        few = _tail(seen, rule.percentile) < 1 and rule.percentile < 100
        return (whole, False) if few else (_percentile(seen, rule.percentile), True)
    if rule.method in _POWERS:
        return _least_error(seen, rule, _POWERS[rule.method]), True
    few = seen.elements - seen.zeros < _ENTROPY_ELEMENTS
    return (whole, False) if few else (_entropy(seen, rule), True)


def _tail(seen: Histogram, percentile: float) -> float:
    """Elements to be cut at either end."""
    return seen.elements * (100.0 - percentile) / 200.0


def _percentile(seen: Histogram, percentile: float) -> Range:
    counts = seen.counts.copy()
    counts[BINS - 1] += seen.zeros
    total = np.cumsum(counts)
    rank = int(_tail(seen, percentile))
    edges = seen.edges()
    first = int(np.searchsorted(total, rank, side="right"))
    last = int(np.searchsorted(total, seen.elements - 1 - rank, side="right"))
    return Range(max(float(edges[first]), seen.low), min(float(edges[last + 1]), seen.high))


def _bins(seen: Histogram) -> tuple[Array, Array]:
    """Bounds [n + 1] and counts [n] of the bins from the first to the last that holds a number; no zeros."""
    full = np.flatnonzero(seen.counts)
    first, last = int(full[0]), int(full[-1])
    edges = np.clip(seen.edges()[first : last + 2], seen.low, seen.high)
    return edges, seen.counts[first : last + 1]


def _entropy(seen: Histogram, rule: Rule) -> Range:
    edges, counts = _bins(seen)
    weights = counts.astype(np.float64)
    levels = rule.limits[1] - rule.limits[0] + 1
    largest = max(-seen.low, seen.high)
    low, high = (-largest, largest) if rule.symmetric else (min(seen.low, 0.0), max(seen.high, 0.0))
    sides = 2 if low < 0 < high else 1
    # From as many bins as integers on: fewer could not differ from their quantized form.
    least = min(seen.width * levels / sides, largest)
    middles = (edges[:-1] + edges[1:]) / 2
    best, chosen = math.inf, largest
    for bound in np.linspace(least, largest, _ENTROPY_RANGES):
        divergence = _divergence(middles, weights, max(low, -bound), min(high, bound), levels)
        if divergence <= best:
            best, chosen = divergence, float(bound)
    return Range(max(seen.low, -chosen), min(seen.high, chosen))


def _divergence(middles: Array, counts: Array, low: float, high: float, levels: int) -> float:
    """Kullback-Leibler divergence of the clipped from the quantized distribution."""
    first, last = np.searchsorted(middles, low), np.searchsorted(middles, high, side="right")
    if last - first < 2 or high <= low:
        return math.inf
    inside = counts[first:last]
    clipped_counts = inside.copy()
    clipped_counts[0] += counts[:first].sum()
    clipped_counts[-1] += counts[last:].sum()
    cells = ((middles[first:last] - low) * (levels / (high - low))).astype(np.intp).clip(0, levels - 1)
    full = inside > 0
    sums = np.bincount(cells, weights=inside, minlength=levels)
    numbers = np.bincount(cells, weights=full, minlength=levels)
    spread = np.where(full, sums[cells] / np.maximum(numbers[cells], 1), 0.0)
    if not spread.any():
        return math.inf
    p = clipped_counts / clipped_counts.sum()
    q = np.maximum(spread / spread.sum(), _SMOOTHING / spread.size)
    known = p > 0
    return float((p[known] * np.log(p[known] / q[known])).sum())


def _least_error(seen: Histogram, rule: Rule, power: float) -> Range:
    edges, counts = _bins(seen)
    low, high = min(seen.low, 0.0), max(seen.high, 0.0)

    def least(lows: Array, highs: Array, bins: tuple[Array, Array] = (edges, counts)) -> tuple[float, float]:
        ranges = [Range(float(a), float(b)) for a, b in zip(lows, highs, strict=True)]
        errors = total_errors(*bins, ranges, rule, power)
        # The widest of equals: data to come may lie further out.
        index = int(np.flatnonzero(errors <= errors.min() * (1 + 1e-9))[-1])
        return float(lows[index]), float(highs[index])

    one_sided = rule.symmetric or low == 0 or high == 0
    shares = np.geomspace(_NARROWEST, 1.0, _JOINT if one_sided else _EACH)
    if one_sided:
        a, b = least(low * shares, high * shares)
    else:
        pairs = low * np.tile(shares, _EACH), high * np.repeat(shares, _EACH)
        a, b = least(*pairs, bins=_coarser(edges, counts))
    for reach in _REFINEMENTS:
        factors = np.linspace(1 - reach, 1 + reach, _ONE_SIDED)
        if one_sided:
            a, b = least(np.maximum(a * factors, low), np.minimum(b * factors, high))
            continue
        highs = np.minimum(b * factors, high)
        a, b = least(np.full_like(highs, a), highs)
        lows = np.maximum(a * factors, low)
        a, b = least(lows, np.full_like(lows, b))
    return Range(max(a, seen.low), min(b, seen.high))


def _coarser(edges: Array, counts: Array) -> tuple[Array, Array]:
    """Several bins in one."""
    first = np.arange(0, len(counts), _COARSER)
    return np.append(edges[first], edges[-1]), np.add.reduceat(counts, first)


def total_errors(
    edges: Array, counts: Array, ranges: Sequence[Range], rule: Rule, power: float = 2.0
) -> Array:
    """Sums of the errors, raised to a power, that quantization to each of these ranges makes: float64 [len(ranges)].

    Args:
        edges: Bounds of bins [n + 1], ascending.
        counts: Numbers in each [n], taken as evenly spread.
    """
    found = [affine(entry, rule.limits, symmetric=rule.symmetric) for entry in ranges]
    scales = np.array([entry.scale for entry in found])[:, None]
    least = np.array([rule.limits[0] - entry.zero_point for entry in found])[:, None]
    largest = np.array([rule.limits[1] - entry.zero_point for entry in found])[:, None]
    at = edges / scales
    nearest = np.clip(np.rint(at), least, largest)
    # An antiderivative of the distance to the nearest integer within the limits, raised to the power.
    off = at - nearest
    raised = np.abs(off * off * off) if power == 2 else np.abs(off) ** (power + 1)
    integral = (nearest * 2 * 0.5 ** (power + 1) + np.copysign(raised, off)) / (power + 1)
    lengths = np.diff(at, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        means = np.diff(integral, axis=1) / lengths
    short = lengths < _POINT
    if short.any():
        middles = (at[:, 1:] + at[:, :-1]) / 2
        points = np.abs(middles - np.clip(np.rint(middles), least, largest)) ** power
        means = np.where(short, points, means)
    return np.asarray((means @ counts) * scales[:, 0] ** power)


__all__ = ["AUTO", "METHODS", "PERCENTILE", "Method", "Rule", "clipped", "total_errors"]
