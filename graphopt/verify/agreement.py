"""How far outputs agree with the original's: the built-in metrics of a budget, and the noise in outputs.

Every output counts. Floats, and integers of 8 and 16 bits, are numbers: an error has a size. What else there is (the
classes of ArgMax, indices, booleans, strings) are categories, of which the share that is the same counts. Sequences and
maps count element by element. What a metric cannot read (a cosine of one number) counts by noise over signal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from graphopt.data.interface import Array, Feeds
from graphopt.errors import UsageError
from graphopt.verify.parts import quiet_parts

Scores = dict[str, float]
"""Of each output that a metric can read, by its name."""
Reading = Callable[[Sequence[Feeds], Sequence[Feeds]], Scores]
"""From results and references, one mapping for each sample, all of numbers and of equal shapes."""
_NARROW = 2
"""Bytes of integers up to which they are numbers."""


def agreement(metric: str, outputs: Sequence[Feeds], references: Sequence[Feeds]) -> float:
    """What the worst output scores by one of :data:`METRICS`; 1 where all are as the original's.

    Args:
        outputs: Each alike to its reference (:func:`is_alike`).

    Raises:
        UsageError: The metric can read none of the outputs.
    """
    ours, theirs = ([numbers(sample) for sample in samples] for samples in (outputs, references))
    read = METRICS[metric](ours, theirs)
    names = list(dict.fromkeys(name for sample in theirs for name in sample))
    same = shares_of_categories(outputs, references)
    if not read and (names or not same):
        raise UsageError(
            f"the metric {metric!r} reads none of the outputs ({', '.join(map(repr, names)) or 'none'}): "
            f"it needs {_NEEDS[metric]}",
            hint="choose another --metric, or give a function of your own: --metric FILE.py:FUNCTION",
        )
    unread = [name for name in names if name not in read]
    if unread:
        rest = [
            [{name: sample[name] for name in unread if name in sample} for sample in side]
            for side in (ours, theirs)
        ]
        read = {**_signal_shares(*rest), **read}
    return min([*read.values(), *same.values()])


def _signal_shares(outputs: Sequence[Feeds], references: Sequence[Feeds]) -> Scores:
    """1 minus noise power over signal power, of an output or its worst part (:mod:`graphopt.verify.parts`): 0.99 is a
    signal-to-noise ratio of 20 dB."""
    return {
        name: min(1.0 - noise / signal if signal > 0 else float(noise == 0) for noise, signal in found)
        for name, found in _powers(outputs, references).items()
    }


def _cosines(outputs: Sequence[Feeds], references: Sequence[Feeds]) -> Scores:
    """Mean cosine of the last axis with the original's; of a single number it would be 1 or -1."""
    means: dict[str, list[float]] = {}
    for name, got, wanted in _rows(outputs, references):
        a, b = (side.reshape(-1, side.shape[-1]).astype(np.float64) for side in (got, wanted))
        norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        known = norms > 0
        values = np.where(known, (a * b).sum(axis=1) / np.where(known, norms, 1.0), 1.0)
        means.setdefault(name, []).extend(values.tolist())
    return {name: float(np.mean(values)) for name, values in means.items()}


def _top1(outputs: Sequence[Feeds], references: Sequence[Feeds]) -> Scores:
    """Share of rows whose largest element along the last axis is where the original's is."""
    equal: dict[str, list[float]] = {}
    for name, got, wanted in _rows(outputs, references):
        equal.setdefault(name, []).append(float((got.argmax(axis=-1) == wanted.argmax(axis=-1)).mean()))
    return {name: float(np.mean(shares)) for name, shares in equal.items()}


def _ctc(outputs: Sequence[Feeds], references: Sequence[Feeds]) -> Scores:
    """Share of sequences [N, T, classes] whose greedy CTC decoding (Graves et al. 2006) is the original's.

    Class 0 is the blank.
    """
    equal: dict[str, list[bool]] = {}
    for name, got, wanted in _rows(outputs, references):
        if wanted.ndim == 3:
            pairs = zip(got.argmax(axis=-1), wanted.argmax(axis=-1), strict=True)
            equal.setdefault(name, []).extend(_decoded(left) == _decoded(right) for left, right in pairs)
    return {name: float(np.mean(found)) for name, found in equal.items()}


def _f1(outputs: Sequence[Feeds], references: Sequence[Feeds]) -> Scores:
    """F1 score of what lies above 0.5 against what does in the original; only of outputs in which something does."""
    counts: dict[str, list[int]] = {}
    for got, wanted in zip(outputs, references, strict=True):
        for name, array in wanted.items():
            ours, theirs = got[name] > 0.5, array > 0.5
            count = counts.setdefault(name, [0, 0, 0])
            for place, found in enumerate((ours & theirs, ours ^ theirs, theirs)):
                count[place] += int(found.sum())
    return {name: 2 * hit / (2 * hit + miss) for name, (hit, miss, there) in counts.items() if there}


METRICS: Mapping[str, Reading] = {
    "sqnr": _signal_shares,
    "cosine": _cosines,
    "top1": _top1,
    "ctc": _ctc,
    "f1": _f1,
}
"""By name; each gives a score for each output that it can read, 1 where that is the original's."""
_NEEDS = {
    "sqnr": "numbers",
    "cosine": "numbers of which the last axis holds more than one",
    "top1": "numbers of which the last axis holds more than one",
    "ctc": "numbers [batch, time, classes]",
    "f1": "numbers of which some are above 0.5 in the original",
}


def numbers(outputs: Feeds) -> dict[str, Array]:
    """The outputs, and elements of outputs, of which an error has a size."""
    return {name: array for name, array in elements(outputs) if _is_number(array)}


def categories(outputs: Feeds) -> dict[str, Array]:
    """The outputs, and elements of outputs, that are equal or not."""
    return {name: array for name, array in elements(outputs) if not _is_number(array)}


def elements(outputs: Mapping[str, Any]) -> Iterator[tuple[str, Array]]:
    """Every array in the outputs, with a name: sequences and maps are taken apart, what is absent is left out."""
    for name, value in outputs.items():
        if isinstance(value, np.ndarray):
            yield name, value
        elif isinstance(value, list | tuple):
            yield from elements({f"{name}[{index}]": element for index, element in enumerate(value)})
        elif isinstance(value, Mapping):
            yield from elements({f"{name}[{key!r}]": element for key, element in value.items()})
        elif value is not None:
            yield name, np.asarray(value)


def is_alike(got: Feeds, wanted: Feeds) -> bool:
    """Whether a result has a number for each of the original's, and a finite one for each finite one."""
    ours = numbers(got)
    return all(
        name in ours
        and ours[name].shape == array.shape
        and bool(np.isfinite(ours[name][np.isfinite(array)]).all())
        for name, array in numbers(wanted).items()
    )


def shares_of_categories(outputs: Sequence[Feeds], references: Sequence[Feeds]) -> Scores:
    """The share of elements that are the original's, of each output that holds categories."""
    shares: dict[str, list[float]] = {}
    for got, wanted in zip(outputs, references, strict=True):
        ours = categories(got)
        for name, array in categories(wanted).items():
            mine = ours.get(name)
            if mine is None or mine.shape != array.shape:
                # As many indices as a threshold lets through: another number of them is another result.
                shares.setdefault(name, []).append(0.0)
            elif array.size:
                shares.setdefault(name, []).append(float(np.mean(mine == array)))
    return {name: float(np.mean(found)) for name, found in shares.items()}


def noise_share(outputs: Sequence[Feeds], references: Sequence[Feeds]) -> float:
    """Noise power over signal power of the worst output of numbers, or part of one."""
    ours, theirs = ([numbers(sample) for sample in samples] for samples in (outputs, references))
    return max(
        (
            noise / signal if signal > 0 else noise
            for found in _powers(ours, theirs).values()
            for noise, signal in found
        ),
        default=0.0,
    )


def signals(references: Sequence[Feeds]) -> list[float]:
    """Signal power of each output of numbers over all samples, and of what is quiet in it beside the rest."""
    found = [numbers(sample) for sample in references]
    return [signal for powers in _powers(found, found).values() for _, signal in powers]


def _powers(outputs: Sequence[Feeds], references: Sequence[Feeds]) -> dict[str, list[tuple[float, float]]]:
    """Noise and signal power over all samples of each output, and of what is quiet in it beside the rest."""
    found: dict[str, list[tuple[float, float]]] = {}
    for name in dict.fromkeys(name for wanted in references for name in wanted):
        pairs = [
            (got.get(name), np.asarray(wanted[name]))
            for got, wanted in zip(outputs, references, strict=True)
            if name in wanted
        ]
        # As many boxes as a threshold lets through: another number of them is all noise.
        if any(got is None or np.shape(got) != wanted.shape for got, wanted in pairs):
            found[name] = [(float("inf"), 1.0)]
            continue
        parts = quiet_parts([wanted for _, wanted in pairs])
        powers = np.zeros((1 + len(parts), 2))
        for got, wanted in pairs:
            finite = np.isfinite(wanted)
            reference = np.where(finite, wanted, 0).astype(np.float64)
            error = np.where(finite, np.asarray(got), 0).astype(np.float64) - reference
            powers[0] += _power(error), _power(reference)
            for place, (axis, indices) in enumerate(parts, 1):
                powers[place] += _power(error.take(indices, axis)), _power(reference.take(indices, axis))
        found[name] = [(float(noise), float(signal)) for noise, signal in powers]
    return found


def _power(array: Array) -> float:
    flat = array.reshape(-1)
    return float(flat @ flat)


def _rows(outputs: Sequence[Feeds], references: Sequence[Feeds]) -> Iterator[tuple[str, Array, Array]]:
    """Results and references whose last axis holds more than one number."""
    for got, wanted in zip(outputs, references, strict=True):
        for name, array in wanted.items():
            if array.ndim and array.shape[-1] > 1 and array.size:
                yield name, got[name], array


def _decoded(classes: Array) -> list[int]:
    changes = np.concatenate([[True], classes[1:] != classes[:-1]])
    return [int(label) for label in classes[changes] if label != 0]


def _is_number(array: Array) -> bool:
    return array.dtype.kind == "f" or (array.dtype.kind in "iu" and array.dtype.itemsize <= _NARROW)
