"""Which parts of an output are quantities of their own: boxes (0 to 640) and scores (0 to 1) of a detector share one.

Noise that is nothing beside the boxes may be all there is of the scores. A part is told by its power: along some axis a
few slices are 30 dB above all others, in every sample. So neither frames of silence nor an empty border make a part
(they lie elsewhere in the next sample), nor channels that grow quieter one by one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from graphopt.data.interface import Array

_APART = 1e3
"""Ratio of mean powers, 30 dB."""
_LEAST_SAMPLES, _MOST_SAMPLES = 3, 8
_LONGEST_AXIS = 1 << 14

Part = tuple[int, Array]
"""An axis and the indices along it."""


def quiet_parts(references: Sequence[Array]) -> list[Part]:
    """The slices that are quiet beside the others, for each axis along which some are.

    Args:
        references: One output of the original, for each sample; floats of one rank.
    """
    first = references[0]
    if len(references) < _LEAST_SAMPLES or any(array.ndim != first.ndim for array in references):
        return []
    looked_at = references[:: -(-len(references) // _MOST_SAMPLES)]
    squares = [np.square(np.where(np.isfinite(array), array, 0), dtype=np.float64) for array in looked_at]
    found: list[Part] = []
    for axis in range(first.ndim):
        length = first.shape[axis]
        if not 1 < length <= _LONGEST_AXIS or any(array.shape[axis] != length for array in references):
            continue
        others = tuple(other for other in range(first.ndim) if other != axis)
        quiet = _quiet(np.stack([square.mean(axis=others) for square in squares]))
        if len(quiet):
            found.append((axis, quiet))
    return found


def _quiet(powers: Array) -> Array:
    """Indices of what lies far below the loudest in each sample; of powers [samples, slices]."""
    least, most = powers.min(axis=0), powers.max(axis=0)
    order = np.argsort(-most)
    above, below = np.minimum.accumulate(least[order])[:-1], most[order][1:]
    apart = np.flatnonzero((below > 0) & (above >= _APART * below))
    if not len(apart):
        return np.empty(0, np.int64)
    rest = order[apart[0] + 1 :]
    return np.sort(rest[most[rest] > 0])


__all__ = ["Part", "quiet_parts"]
