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
    from graphopt.verify.budget import Evaluation
    from graphopt.verify.session import Session

_TRIED_SAMPLES = 4
_SAME = 1e-5
"""Of the largest magnitude: what other orders of a sum may change."""


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

    def places(self, feeds: Feeds, shape: tuple[int, ...]) -> Array | None:
        """Which elements along its first axes count of what comes of a sample: booleans that index it; None where its
        axes are others than the mask's.

        Args:
            feeds: The sample.
            shape: Of what comes of it: the mask's axes first, or all of them as one.
        """
        real = self.real(feeds)
        if tuple(shape[: real.ndim]) == real.shape:
            return real
        return real.ravel() if shape and shape[0] == real.size else None

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
        scale = float(np.abs(one).max(initial=0.0))
        return bool(np.allclose(one, other, rtol=0.0, atol=_SAME * scale, equal_nan=True))


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
    for name, array in feeds[0].items():
        arrays = [np.asarray(sample[name]) for sample in feeds]
        if array.ndim < 1 or array.dtype.kind not in "biuf" or not all(map(_is_binary, arrays)):
            continue
        for marks in (0, 1):
            if any((array == marks).any() for array in arrays) and any(
                (array != marks).any() for array in arrays
            ):
                yield name, marks


def _is_binary(array: Array) -> bool:
    return bool(((array == 0) | (array == 1)).all())


def _is_ignored(evaluation: Evaluation, mask: str, marks: int) -> bool:
    """Whether the metric is the same whatever the original's outputs are where the mask says padding."""
    rng = np.random.default_rng(0)

    def spoiled(feeds: Feeds, outputs: Feeds) -> Feeds:
        padding = Padding(mask, marks, feeds, feeds)
        found = {}
        for name, array in outputs.items():
            is_float = isinstance(array, np.ndarray) and array.dtype.kind == "f"
            places = padding.places(feeds, array.shape) if is_float else None
            if places is not None:
                array = array.copy()
                # Larger than all that is real.
                noise = rng.standard_normal(array[~places].shape) * 10 * (np.abs(array).max(initial=0.0) + 1)
                array[~places] = noise.astype(array.dtype)
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


def _altered(feeds: Feeds, mask: str, marks: int) -> Feeds:
    """The sample with what other inputs hold at real positions in place of what they hold at padding."""
    rng = np.random.default_rng(0)
    real = np.asarray(feeds[mask] != marks)
    found = dict(feeds)
    for name, array in feeds.items():
        if name != mask and array.shape[: real.ndim] == real.shape:
            changed = array.copy()
            changed[~real] = array[real][rng.integers(0, int(real.sum()), int((~real).sum()))]
            found[name] = changed
    return found


def _is_independent(session: Session, padding: Padding) -> bool:
    """Whether the model's outputs at real positions are the same whatever the inputs hold at padding."""
    if all(
        padding.altered[name] is array or (padding.altered[name] == array).all()
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
