"""The budget of lossy passes: what a metric may lose against the original model on held-out data.

A metric is a number of which more is better. Those built in compare with the original's outputs, so the original
itself scores 1 and a drop of 1 % is a hundredth; a metric of the user's own gets the labels that lie beside the inputs,
and its drop is relative to what the original scores.
"""

from __future__ import annotations

import copy
import functools
import inspect
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from graphopt.data.functions import load_function, user_code
from graphopt.data.interface import Array, Feeds
from graphopt.errors import DataError, UnknownNameError, UsageError
from graphopt.verify.agreement import (
    METRICS,
    agreement,
    categories,
    is_alike,
    noise_share,
    numbers,
    shares_of_categories,
    signals,
)
from graphopt.verify.padding import Padding

Labels = Mapping[str, Array]

DEFAULT_METRIC = "sqnr"
DEFAULT_DROP = 0.01
LEAST_DECIBELS = 20.0
HOPELESS_DECIBELS = 1.0
_SURE = 3.0
"""Standard errors by which some of the samples may differ from all of them."""
_SURE_DECIBELS = 1.0
"""By which the signal-to-noise ratio may differ from what the first of the samples tell of all of them."""
_RESOLVED = 0.5
"""Share of the budget up to which a standard error shows that the samples tell drops as small as the budget."""
_ROWS_OF_NONE = 3.0
"""Rows that are expected to differ, of which hardly ever none does."""
_CLEAR_SHARE = 0.8
_CLEAR_DECIBELS = 0.5
"""Of the budget, and above what is needed: with that much in hand it holds where numbers are rounded otherwise."""
_FIRST = 8
_GROUPS = 10
_READABLE = 5e-4
CONTINUOUS = frozenset({"sqnr", "cosine"})
"""Metrics that move with every number in an output."""


class TooSlowError(Exception):
    """Judging a model would take longer than there is time for; told to the search, never to a user."""


@dataclass(frozen=True)
class Metric:
    """What the budget is of.

    Attributes:
        name: In reports; one of :data:`graphopt.verify.agreement.METRICS` where there is no task.
        task: ``(outputs, labels) -> score`` of the user's own: one mapping of outputs for each sample, and each label
            as an array with one row for each sample.
    """

    name: str
    task: Callable[..., float] | None = None

    @property
    def counts(self) -> bool:
        """Whether it may move in steps, a sample more or less, as a user's own is taken to do."""
        return self.task is not None or self.name not in CONTINUOUS

    def score(self, outputs: Sequence[Feeds], references: Sequence[Feeds], labels: Sequence[Labels]) -> float:
        """More is better.

        Raises:
            UsageError: The user's function raises, or gives no number; a metric of ours can read none of the outputs.
        """
        if self.task is None:
            return agreement(self.name, outputs, references)
        # Copies, for a function may work in place.
        given = copy.deepcopy([dict(sample) for sample in outputs])
        try:
            takes_labels = len(inspect.signature(self.task).parameters) > 1
            with user_code():
                return float(self.task(given, _stacked(labels)) if takes_labels else self.task(given))
        except DataError:
            raise
        except (Exception, SystemExit) as error:
            raise UsageError(
                f"the metric {self.name!r} fails: {type(error).__name__}: {error}",
                hint=_received(outputs, labels),
            ) from error


def _received(outputs: Sequence[Feeds], labels: Sequence[Labels]) -> str:
    """What a metric of the user's own is called with, with the names that there are."""
    made = ", ".join(map(repr, outputs[0] if outputs else ())) or "none"
    known = ", ".join(map(repr, labels[0] if labels else ())) or "none: give labelled data with --data"
    return (
        f"it gets a list of one mapping, output name to array, for each sample (outputs: {made}) and, if it takes two "
        f"arguments, a mapping, label name to an array with one row for each sample (labels: {known})"
    )


def _stacked(labels: Sequence[Labels]) -> dict[str, Array]:
    """Labels with a row for each sample.

    Raises:
        DataError: Those of some samples have another shape.
    """
    made = {}
    for name in labels[0] if labels else ():
        arrays = [np.asarray(sample[name]) for sample in labels]
        shapes = sorted({array.shape for array in arrays})
        if len(shapes) > 1:
            raise DataError(
                f"the labels {name!r} have different shapes: {shapes[0]} and {shapes[1]}",
                hint="give them one shape; a file of one sample has its labels without an axis of samples",
            )
        made[name] = np.stack(arrays)
    return made


TELLS_NOTHING = (
    "the original's outputs are one and the same number on all samples: what is lost hardly shows in them (give other "
    "inputs with --data)"
)


def find_metric(given: str | Callable[..., float] | None) -> Metric:
    """A metric by its name, by ``FILE.py:FUNCTION`` or ``MODULE:FUNCTION``, or a Python callable.

    Raises:
        UnknownNameError: No metric of this name.
        UsageError: The file or function cannot be loaded.
    """
    if given is None:
        return Metric(DEFAULT_METRIC)
    if callable(given):
        name = getattr(given, "__name__", "metric")
        # The name goes into the bundle, where it must not be taken for one of ours.
        return Metric(f"{name}()" if name in METRICS else name, task=given)
    if given in METRICS:
        return Metric(given)
    if ":" not in given:
        raise UnknownNameError(
            "metric", given, METRICS, hint="or give a function of your own: --metric file.py:function"
        )
    return Metric(given, task=load_function(given, "metric"))


def parse_drop(given: str | float | None) -> float:
    """A share from ``"1%"``, ``"0.01"`` or ``0.01``.

    Raises:
        UsageError: It is none, or not from 0 to 1.
    """
    if given is None:
        return DEFAULT_DROP
    try:
        share = float(given) if not isinstance(given, str) else _share(given.strip())
    except ValueError:
        raise UsageError(f"cannot read the budget {given!r}", hint="write --max-drop as 1% or 0.01") from None
    if not 0 <= share < 1:
        raise UsageError(
            f"the budget {given!r} is not a share of the metric from 0 to below 1",
            hint="write --max-drop as 1% or 0.01",
        )
    return share


def percent(share: float) -> str:
    """A share for people: two places, or two digits where that would read as nothing."""
    if not np.isfinite(share):
        return "all"
    return f"{share:.2%}" if share == 0 or not abs(share) < _READABLE else f"{100 * share:.2g}%"


def _share(text: str) -> float:
    return float(text[:-1]) / 100 if text.endswith("%") else float(text)


@dataclass(frozen=True)
class Judgement:
    """What a model scores against its budget.

    Attributes:
        value: Of the metric.
        original: What the original scores.
        drop: What is lost, relative to the original's score.
        allowed: The budget.
        decibels: Signal-to-noise ratio of the worst output of numbers, whatever the metric; where there is none, of
            what may differ between categories.
        needed: Decibels that are asked for besides, where the samples are too few to show a drop as small as the
            budget: on 24 lines of text a metric moves in steps of 4 %, and a budget of 1 % would hold by luck.
        error: Standard error of the drop over the samples, where the metric counts.
        some: Number of samples, where not all were run since these were enough to tell; else 0.
    """

    value: float
    original: float
    drop: float
    allowed: float
    decibels: float
    needed: float = 0.0
    error: float = 0.0
    some: int = 0

    @property
    def ok(self) -> bool:
        """Whether the budget holds."""
        holds = self.drop <= self.allowed and np.isfinite(self.value) and self.decibels >= self.needed
        return bool(holds and not self.some)

    @property
    def excess(self) -> tuple[float, float]:
        """How far it is over the budget: by the metric, then in decibels; the least is the nearest."""
        drop = self.drop - self.allowed if np.isfinite(self.drop) else float("inf")
        decibels = self.needed - self.decibels if np.isfinite(self.decibels) else float("-inf")
        return max(drop, 0.0), max(decibels, 0.0)

    @property
    def is_clear(self) -> bool:
        """Whether it holds with a margin, so that it holds on a backend that rounds otherwise."""
        enough = not self.needed or self.decibels >= self.needed + _CLEAR_DECIBELS
        return self.ok and self.drop <= _CLEAR_SHARE * self.allowed and enough

    def describe(self) -> str:
        """For people."""
        if not np.isfinite(self.drop):
            return f"no usable outputs, {self.decibels:.1f} dB"
        spread = f" (standard error {percent(self.error)})" if self.error and np.isfinite(self.error) else ""
        also = f" (of {self.needed:.0f}, since the samples are few)" if self.needed else ""
        on = f" on {self.some} samples" if self.some else ""
        return (
            f"drop {percent(self.drop)} of {percent(self.allowed)}{spread}{on}, {self.decibels:.1f} dB{also}"
        )


def judged_of(judgement: Judgement | None) -> dict[str, Any]:
    """What one that was judged loses, for the report: plain JSON."""
    return {
        "value": None if judgement is None else judgement.value,
        "drop": None if judgement is None else judgement.drop,
        "decibels": None if judgement is None else judgement.decibels,
        "held": judgement is not None and judgement.ok,
    }


@dataclass
class Evaluation:
    """Held-out samples, what the original makes of them, and the budget.

    Attributes:
        feeds: Inputs.
        references: The original's outputs.
        labels: Beside the inputs, one mapping for each sample.
        metric: What the budget is of.
        allowed: The largest drop, as a share.
        held_out: Whether calibration saw none of these samples.
        is_cut: Whether samples were left out for want of memory.
        available: How many samples there are to judge on, of which these were picked; 0 where that is not known.
        padding: Positions of samples that neither the metric nor the model looks at; None where all count.
    """

    feeds: Sequence[Feeds]
    references: Sequence[Feeds]
    labels: Sequence[Labels]
    metric: Metric
    allowed: float = DEFAULT_DROP
    held_out: bool = True
    padding: Padding | None = None
    is_cut: bool = False
    available: int = 0
    original: float = field(init=False)
    _parts: list[float] | None = field(default=None, init=False, repr=False)
    _unresolved: bool | None = field(default=None, init=False, repr=False)
    """Whether the samples cannot tell a drop as small as the budget, by what was judged last; None before that."""
    _offset: float | None = field(default=None, init=False, repr=False)
    """Decibels of all samples over those of the first, as judged last; None before that."""

    def __post_init__(self) -> None:
        if not self.feeds:
            raise DataError("there is no sample to judge the result on", hint="give more with --data")
        self.original = self.metric.score(self.references, self.references, self.labels)
        if not np.isfinite(self.original):
            raise UsageError(
                f"the original scores {self.original} by the metric {self.metric.name!r}",
                hint="choose another --metric",
            )

    @property
    def is_silent(self) -> bool:
        """Whether the original's numbers are zero, or none, on all samples: then noise has no measure."""
        found = signals(self.references)
        return bool(found) and not any(found)

    @property
    def tells(self) -> bool:
        """Whether the original's outputs hold more than one number: what does not move by itself hides what is lost."""
        seen: dict[str, float] = {}
        for outputs in self.references:
            for name, array in outputs.items():
                if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiub":
                    return True
                known = array[np.isfinite(array)] if array.dtype.kind == "f" else array.reshape(-1)
                if known.size and (known != seen.setdefault(name, known[0])).any():
                    return True
        return not seen

    @property
    def counts(self) -> bool:
        """Whether the score may move in steps: by the metric, or because outputs hold categories."""
        return self.metric.counts or (self.metric.task is None and bool(self._categories))

    @property
    def is_coarse(self) -> bool:
        """Whether the score counts, and what is counted is so little that a drop as large as the budget may not show.

        Where n rows show no difference, the share that differs is below 3/n with 95 % (Hanley & Lippman-Hand, If
        Nothing Goes Wrong, Is Everything All Right?, JAMA 1983).
        """
        return self.counts and self._counted() * self.allowed < _ROWS_OF_NONE

    def _counted(self) -> int:
        """Rows, or what else counts, in the output that has least of it."""
        found = list(self._categories.values()) if self.metric.task is None else []
        if self.metric.task is None and self.metric.name == "f1":
            above: dict[str, int] = {}
            for outputs in self.references:
                for name, array in numbers(outputs).items():
                    above[name] = above.get(name, 0) + int((array > 0.5).sum())
            found += [count for count in above.values() if count]
        elif self.metric.counts:
            found.append(
                sum(
                    max(
                        (array.shape[0] for array in outputs.values() if getattr(array, "ndim", 0)), default=1
                    )
                    for outputs in self.references
                )
            )
        return min(found, default=0)

    @functools.cached_property
    def _categories(self) -> dict[str, int]:
        """How many elements each output has that holds categories."""
        found: dict[str, int] = {}
        for outputs in self.references:
            for name, array in categories(outputs).items():
                found[name] = found.get(name, 0) + array.size
        return found

    def unusable(self, decibels: float = float("-inf")) -> Judgement:
        """Of outputs that cannot be scored, or of none at all."""
        return Judgement(float("nan"), self.original, float("inf"), self.allowed, decibels)

    def judge_while_hopeful(self, run: Callable[[Feeds], Feeds], deadline: float = float("inf")) -> Judgement:
        """As :meth:`judge`; a model that has no chance on some samples is not run on the others.

        Args:
            deadline: ``time.monotonic()`` by which it is to end.

        Raises:
            TooSlowError: The first samples show that it would end later.
        """
        step = max(1, len(self.feeds) // _FIRST)
        started = time.monotonic()
        outputs = {index: run(self.feeds[index]) for index in range(0, len(self.feeds), step)}
        seconds = (time.monotonic() - started) / len(outputs)
        decibels = self._decibels(list(outputs), list(outputs.values()))
        if decibels < HOPELESS_DECIBELS:
            return self.unusable(decibels)
        if len(outputs) < len(self.feeds):
            some = self._on_some(outputs, decibels)
            if some is not None:
                return some
        rest = [index for index in range(len(self.feeds)) if index not in outputs]
        if rest and time.monotonic() + seconds * len(rest) > deadline:
            raise TooSlowError("there is no time to judge it")
        outputs.update({index: run(self.feeds[index]) for index in rest})
        judgement = self.judge([outputs[index] for index in range(len(self.feeds))])
        self._offset = judgement.decibels - decibels if np.isfinite(decibels) else None
        return judgement

    def _on_some(self, outputs: Mapping[int, Feeds], decibels: float) -> Judgement | None:
        """What a model loses on the samples of these indices, where it is far beyond the budget; else None.

        Args:
            decibels: On these samples.
        """
        kept = list(outputs)
        results = list(outputs.values())
        try:
            some = Evaluation(
                [self.feeds[index] for index in kept], [self.references[index] for index in kept],
                [self.labels[index] for index in kept], self.metric, self.allowed, self.held_out, self.padding,
            )  # fmt: skip
            judgement = some.judge(results, with_error=False)
        except UsageError:
            # A metric that needs all samples.
            return None
        if self._unresolved and decibels + (self._offset or 0.0) < LEAST_DECIBELS - _SURE_DECIBELS:
            return replace(judgement, needed=LEAST_DECIBELS, some=len(kept))
        if judgement.drop <= self.allowed:
            return None
        spread = _SURE * some._error(results) if self.counts else _SURE * self.allowed
        far = judgement.drop - spread > self.allowed
        return replace(judgement, some=len(kept)) if far else None

    def judge(self, outputs: Sequence[Feeds], *, with_error: bool = True) -> Judgement:
        """What a model that makes these outputs loses.

        Args:
            with_error: Whether the drop's standard error is asked for, which takes many times as long as the metric.
        """
        decibels = self._decibels(range(len(self.feeds)), outputs)
        if not all(map(is_alike, outputs, self.references)):
            return self.unusable(decibels)
        value = self.metric.score(outputs, self.references, self.labels)
        drop = float((self.original - value) / (abs(self.original) or 1.0))
        asked = with_error and self.counts and (drop <= self.allowed or self._unresolved is None)
        error = self._error(outputs) if asked else 0.0
        # What a drop as large as the budget would have: an error grows with the root of what is counted.
        near = error if drop <= self.allowed else error * math.sqrt(self.allowed / drop)
        # Without any difference there is no error either: then rows are counted. An error that is no number is none.
        coarse = self.is_coarse and not 0 < near <= _RESOLVED * self.allowed
        unresolved = coarse or not near <= self.allowed
        if asked:
            self._unresolved = unresolved
        elif drop > self.allowed:
            unresolved = unresolved or bool(self._unresolved)
        needed = LEAST_DECIBELS if unresolved else 0.0
        return Judgement(float(value), self.original, drop, self.allowed, decibels, needed, error)

    def counted(self, feeds: Feeds, outputs: Feeds) -> Feeds:
        """What counts of a sample's outputs: all that is no padding."""
        return outputs if self.padding is None else self.padding.outputs(feeds, outputs)

    def _decibels(self, indices: Sequence[int], outputs: Sequence[Feeds]) -> float:
        """Of the outputs for the samples of these indices."""
        got, wanted = (
            [self.counted(self.feeds[index], one) for index, one in zip(indices, given, strict=True)]
            for given in (outputs, [self.references[index] for index in indices])
        )
        if any(map(numbers, wanted)):
            share = noise_share(got, wanted)
        else:
            # Where no element differs, as many may as hardly ever leave no trace in so few.
            fewest = min(self._categories.values(), default=0) * len(got) / len(self.references)
            differ = 1 - min(shares_of_categories(got, wanted).values(), default=1.0)
            share = max(differ, min(_ROWS_OF_NONE / fewest, 1.0)) if fewest else 0.0
        return float("inf") if share == 0 else float(-10 * np.log10(share))

    def _error(self, outputs: Sequence[Feeds]) -> float:
        """Standard error of the drop, by the jackknife over groups of samples (Efron & Tibshirani, ch. 11)."""
        groups = min(_GROUPS, len(self.feeds))
        if groups < 2:
            return float("inf")
        try:
            if self._parts is None:
                self._parts = [self._without(self.references, group, groups) for group in range(groups)]
            ours = [self._without(outputs, group, groups) for group in range(groups)]
        except UsageError:
            # A metric that needs all samples.
            return float("inf")
        drops = (np.asarray(self._parts) - np.asarray(ours)) / (abs(self.original) or 1.0)
        return float(np.sqrt((groups - 1) / groups * np.square(drops - drops.mean()).sum()))

    def _without(self, outputs: Sequence[Feeds], group: int, groups: int) -> float:
        # In an order of their own: samples may come class by class.
        order = np.random.default_rng(0).permutation(len(self.feeds)) % groups
        kept = [index for index in range(len(self.feeds)) if order[index] != group]
        return self.metric.score(
            [outputs[index] for index in kept],
            [self.references[index] for index in kept],
            [self.labels[index] for index in kept],
        )
