"""A histogram of numbers that come in pieces: one pass, bounded memory, and the same result in any order.

Bins are as wide as a power of two and bounded by its multiples. Where a number lies beyond them, the width doubles and
neighbours are merged (as the range of PyTorch's ``HistogramObserver`` grows, but here without splitting a bin, so that
nothing is approximated): what results is what the final width would have given from the start, whatever came first.
The least and the largest number are kept exactly, and zeros are counted apart, since they are quantized without error
and are often most of a tensor. Of an array of more than 2 ** 16 numbers one in n is counted, n times, and all that lie
far out.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field

import numpy as np

from graphopt.ir.facts import Array

LOG_BINS = 12
BINS = 1 << LOG_BINS
"""Bins on each side of zero: the one around zero belongs to both."""

_SLOTS = 2 * BINS - 1
# Scaling by a power of two must stay within the normal numbers of float32 to be exact.
_LEAST_EXPONENT = -100
_PIECE = 1 << 16
# Counting takes a few times as long as computing: all of a large activation would be most of calibration's time.
_MOST_COUNTED = 1 << 16
_FAR_OUT = (0.25, 0.5)


@dataclass
class Histogram:
    """What is known of the numbers of a tensor.

    Attributes:
        low, high: Least and largest number; infinite the other way round before the first.
        elements: How many were counted.
        zeros: How many of them were zero; these are not in ``counts``.
        is_finite: Whether all were finite; after the first that is not, nothing more is counted.
        largest: Most elements that came at once.
        exponent: All numbers lie within ``2 ** exponent`` of zero.
        counts: int64 [2 * BINS - 1]; of index i the numbers x with ``trunc(x / width) == i - BINS + 1``.
    """

    low: float = math.inf
    high: float = -math.inf
    elements: int = 0
    zeros: int = 0
    is_finite: bool = True
    largest: int = 0
    exponent: int = _LEAST_EXPONENT
    counts: Array = field(default_factory=lambda: np.zeros(_SLOTS, np.int64))

    @property
    def width(self) -> float:
        """Of a bin; the one around zero is twice as wide."""
        return math.ldexp(1.0, self.exponent - LOG_BINS)

    def copy(self) -> Histogram:
        """An independent one with the same content."""
        return dataclasses.replace(self, counts=self.counts.copy())

    def add(self, array: Array) -> None:
        """Count the numbers of an array of any shape (float32; other types are converted)."""
        flat = np.ascontiguousarray(array, np.float32).reshape(-1)
        self.largest = max(self.largest, flat.size)
        if flat.size == 0 or not self.is_finite:
            return
        low, high = float(flat.min()), float(flat.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            self.is_finite = False
            return
        self.low, self.high = min(self.low, low), max(self.high, high)
        if low or high:
            self._widen(math.frexp(max(-low, high))[1])
        if flat.size <= _MOST_COUNTED:
            self._count(flat)
        else:
            self._count_some(flat, max(-low, high))

    def edges(self) -> Array:
        """Bounds of the bins, float64 [2 * BINS]."""
        positive = np.arange(1, BINS + 1, dtype=np.float64) * self.width
        return np.concatenate([-positive[::-1], positive])

    def _count_some(self, flat: Array, largest: float) -> None:
        """Count all numbers that lie far out, which weigh most in an error, and some of the others."""
        step = -(-flat.size // _MOST_COUNTED)
        # Of each square of numbers its diagonal: in every n-th number a column may come again and again.
        whole = flat.size // step**2 * step**2
        some = flat[:whole].reshape(-1, step, step).diagonal(0, 1, 2).reshape(-1)
        for share in _FAR_OUT:
            far = largest * share
            beyond = np.flatnonzero((flat > far) | (flat < -far))
            if beyond.size <= _MOST_COUNTED:
                self._count(flat[beyond])
                some = some[np.abs(some) <= far]
                break
        self._count(some, step)

    def _count(self, flat: Array, times: int = 1) -> None:
        scale = np.float32(1.0 / self.width)
        # In pieces that stay in the cache; np.histogram takes three times as long.
        scaled = np.empty(min(_PIECE, flat.size), np.float32)
        slots = np.empty(scaled.size, np.intp)
        for start in range(0, flat.size, _PIECE):
            piece = flat[start : start + _PIECE]
            at, into = scaled[: piece.size], slots[: piece.size]
            np.multiply(piece, scale, out=at)
            into[...] = at
            into += BINS - 1
            found = np.bincount(into, minlength=_SLOTS)
            self.counts += found if times == 1 else found * times
        zeros = (flat.size - int(np.count_nonzero(flat))) * times
        self.elements += flat.size * times
        self.zeros += zeros
        self.counts[BINS - 1] -= zeros

    def _widen(self, exponent: int) -> None:
        doublings = min(exponent - self.exponent, LOG_BINS)
        if exponent <= self.exponent:
            return
        self.exponent = exponent
        if not self.counts.any():
            return
        negative, middle, positive = self.counts[BINS - 2 :: -1], self.counts[BINS - 1], self.counts[BINS:]
        self.counts = np.zeros(_SLOTS, np.int64)
        for side, step in ((negative, -1), (positive, 1)):
            merged = np.concatenate([[0], side]).reshape(-1, 1 << doublings).sum(axis=1)
            middle += merged[0]
            self.counts[BINS - 1 + step : BINS - 1 + step * len(merged) : step] = merged[1:]
        self.counts[BINS - 1] = middle


__all__ = ["BINS", "LOG_BINS", "Histogram"]
