"""Positions of samples that are padding: what a model makes there is nobody's business.

Texts of different lengths are brought to one length, and a mask says which positions are real. What a layer computes
at the others takes as many rows as what matters, often more: weights that are fitted to all rows are fitted to padding,
and noise that is measured on all of an output is mostly noise of padding. Nothing here goes by names: an input is taken
for a mask where the metric does not move whatever the outputs are where it says padding, and the model makes the same
of all other positions whatever the inputs are there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from graphopt.data.interface import Array, Feeds
from graphopt.errors import TargetError, UsageError

if TYPE_CHECKING:
    from graphopt.verify.evaluation import Evaluation
    from graphopt.verify.session import Session

_TRIED_SAMPLES = 4
_SAME = 1e-5
"""Of the largest magnitude: what other orders of a sum may change."""
_SENTINEL = 1e10
"""Magnitude from which a number stands for minus or plus infinity, and tells nothing of that of others."""


@dataclass(frozen=True)
class Padding:
    """An input that marks positions which nothing depends on.

    Attributes:
        mask: Its name.
        marks: What it holds where a position is padding: 0 or 1.
        feeds: A sample that has padding.
        altered: The same with something else where the padding is.
    """

    mask: str
    marks: int
    feeds: Feeds
    altered: Feeds

    def real(self, feeds: Feeds) -> Array:
        """Which positions are no padding: booleans of the mask's shape."""
        return np.asarray(feeds[self.mask] != self.marks)

    def places(self, feeds: Feeds, shape: tuple[int, ...], flat: bool | None = None) -> Array | None:
        """Which elements along its first axes count of what comes of a sample: booleans that index it; None where its
        axes are others than the mask's.

        Args:
            feeds: The sample.
            shape: Of what comes of it: the mask's axes first, or all of them as one.
            flat: Which of the two; None for whichever fits.
        """
        if self.mask not in feeds:
            return None
        real = self.real(feeds)
        if not flat and tuple(shape[: real.ndim]) == real.shape:
            return real
        return real.ravel() if flat is not False and shape and shape[0] == real.size else None

    def without(self, feeds: Feeds, array: Array) -> Array:
        """What an array holds at real positions, [positions, ...]; the array itself where its axes are others."""
        places = self.places(feeds, array.shape)
        return array if places is None else np.asarray(array[places])

    def outputs(self, feeds: Feeds, outputs: Feeds) -> Feeds:
        """Outputs at real positions."""
        return {
            name: self.without(feeds, array) if isinstance(array, np.ndarray) else array
            for name, array in outputs.items()
        }

    def is_same(self, plain: Array, altered: Array) -> bool:
        """Whether what comes of the two samples differs at padding alone, if at all."""
        one, other = self.without(self.feeds, plain), self.without(self.altered, altered)
        if one.shape != other.shape:
            return False
        if one.dtype.kind != "f":
            return bool((one == other).all())
        usual = np.isfinite(one) & (np.abs(np.where(np.isfinite(one), one, 0.0)) < _SENTINEL)
        if not np.array_equal(one[~usual], other[~usual], equal_nan=True):
            return False
        scale = float(np.abs(one[usual]).max(initial=0.0))
        return bool(np.allclose(one[usual], other[usual], rtol=0.0, atol=_SAME * scale))

    def differs(self, plain: Array, altered: Array) -> bool:
        """Whether what comes of the two samples differs at some padding, where its axes are the mask's."""
        places = self.places(self.feeds, plain.shape)
        return places is not None and not np.array_equal(plain[~places], altered[~places], equal_nan=True)


def find_padding(session: Session, evaluation: Evaluation) -> Padding | None:
    """The input that marks padding; None where none does, or the metric looks at what is there.

    Args:
        session: The original.
    """
    if evaluation.metric.task is None:
        # Those built in count every element of an output.
        return None
    for mask, marks in _candidates(evaluation.feeds):
        index = next(place for place, feeds in enumerate(evaluation.feeds) if (feeds[mask] == marks).any())
        if not _is_ignored(evaluation, mask, marks):
            continue
        found = [
            Padding(mask, marks, feeds, _altered(feeds, mask, marks))
            for feeds in evaluation.feeds[index : index + _TRIED_SAMPLES]
            if (feeds[mask] == marks).any() and (feeds[mask] != marks).any()
        ]
        if found and all(_is_independent(session, padding) for padding in found):
            return found[0]
    return None


def _candidates(feeds: Sequence[Feeds]) -> Iterator[tuple[str, int]]:
    """Inputs that hold zeros and ones alone, some of either, with what may mark padding in them."""
    for name in feeds[0]:
        # An input may be a sequence, or left out.
        arrays = [array for sample in feeds if isinstance(array := sample.get(name), np.ndarray)]
        if len(arrays) < len(feeds) or not all(map(_is_binary, arrays)):
            continue
        for marks in (0, 1):
            if any((array == marks).any() for array in arrays) and any(
                (array != marks).any() for array in arrays
            ):
                yield name, marks


def _is_binary(array: Array) -> bool:
    return array.ndim > 0 and array.dtype.kind in "biuf" and bool(((array == 0) | (array == 1)).all())


def _is_ignored(evaluation: Evaluation, mask: str, marks: int) -> bool:
    """Whether the metric is the same whatever the original's outputs are where the mask says padding."""
    rng = np.random.default_rng(0)

    def spoiled(feeds: Feeds, outputs: Feeds) -> Feeds:
        padding = Padding(mask, marks, feeds, feeds)
        found = {}
        for name, array in outputs.items():
            is_known = isinstance(array, np.ndarray) and array.dtype.kind in "biuf"
            places = padding.places(feeds, array.shape) if is_known else None
            if places is not None:
                array = array.copy()
                array[~places] = _other(array[~places], rng)
            found[name] = array
        return found

    outputs = [
        spoiled(feeds, given) for feeds, given in zip(evaluation.feeds, evaluation.references, strict=True)
    ]
    try:
        score = evaluation.metric.score(outputs, evaluation.references, evaluation.labels)
    except UsageError:
        return False
    return bool(score == evaluation.original)


def _other(array: Array, rng: np.random.Generator) -> Array:
    """Other numbers than these, each of them."""
    if array.dtype.kind == "f":
        largest = np.abs(np.where(np.isfinite(array), array, 0.0)).max(initial=0.0)
        return np.asarray(rng.standard_normal(array.shape) * 10 * (largest + 1)).astype(array.dtype)
    return np.asarray(~array if array.dtype.kind == "b" else array + np.ones((), array.dtype))


def _altered(feeds: Feeds, mask: str, marks: int) -> Feeds:
    """The sample with what other inputs hold at real positions in place of what they hold at padding."""
    rng = np.random.default_rng(0)
    real = np.asarray(feeds[mask] != marks)
    found = dict(feeds)
    for name, array in feeds.items():
        if name != mask and isinstance(array, np.ndarray) and array.shape[: real.ndim] == real.shape:
            changed = array.copy()
            changed[~real] = array[real][rng.integers(0, int(real.sum()), int((~real).sum()))]
            found[name] = changed
    return found


def _is_independent(session: Session, padding: Padding) -> bool:
    """Whether the model's outputs at real positions are the same whatever the inputs hold at padding."""
    if not any(
        isinstance(array, np.ndarray) and padding.differs(array, padding.altered[name])
        for name, array in padding.feeds.items()
    ):
        return False
    try:
        plain, altered = (session.run(feeds) for feeds in (padding.feeds, padding.altered))
    except TargetError:
        return False
    return all(
        padding.is_same(array, altered[name])
        for name, array in plain.items()
        if isinstance(array, np.ndarray)
    )


__all__ = ["Padding", "find_padding"]
