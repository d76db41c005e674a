"""What a model loses on held-out samples, by a metric and against a budget."""

from __future__ import annotations

import functools
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import numpy as np
import onnx_ir as ir

from graphopt.data.dataset import HELD_OUT, HELD_OUT_TO_COUNT, Dataset, Sample, Source, Transform
from graphopt.data.interface import Feeds, inputs_of
from graphopt.data.synthesize import feeds_for
from graphopt.errors import DataError, UsageError
from graphopt.verify.agreement import (
    categories,
    is_alike,
    noise_share,
    numbers,
    shares_of_categories,
    signals,
)
from graphopt.verify.budget import DEFAULT_DROP, Judgement
from graphopt.verify.metrics import Labels, Metric
from graphopt.verify.padding import Padding, find_padding
from graphopt.verify.reference import Reference
from graphopt.verify.session import Session

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
_FIRST = 8
_GROUPS = 10
EVALUATED = 48
EVALUATED_TO_COUNT = 1024
_EVALUATED_BYTES = 256 << 20
_WHOLE_BYTES = 2 << 30
"""Of samples with their outputs, where all are to be judged on."""
_EVALUATED_SECONDS = 2.0
_SECONDS_TO_COUNT = 4.0
_LEAST_EVALUATED = 12
_OVERRUN = 1.5
"""Of the room, where samples are larger than those by which it was counted how many fit."""
_SYNTHETIC = 16
TELLS_NOTHING = (
    "the original's outputs are one and the same number on all samples: what is lost hardly shows in them (give other "
    "inputs with --data)"
)


class TooSlowError(Exception):
    """Judging a model would take longer than there is time for; told to the search, never to a user."""


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


def dataset_for(
    source: Source | None,
    model: ir.Model,
    reference: Reference | None,
    metric: Metric,
    *,
    synthetic: bool,
    seed: int,
    transform: Transform | None = None,
    fixed: Mapping[str, ir.TensorProtocol] = MappingProxyType({}),
    whole: bool = False,
) -> Dataset:
    """The samples of a compilation with lossy passes.

    Args:
        source: The user's; None where there are none.
        model: Whose inputs they are.
        reference: Whose sizes and grain made-up inputs take.
        metric: By which they are judged; one that counts wants more of them held out.
        synthetic: Whether made-up inputs may stand in for data.
        transform: Applied to each entry of the source.
        fixed: Inputs of the model as given that are constants now, with their value.
        whole: Whether all samples judge, and none calibrates.

    Raises:
        DataError: There are no data, and made-up ones were not allowed.
    """
    specs = inputs_of(model)
    held_out = 1 if whole else HELD_OUT_TO_COUNT if metric.counts else HELD_OUT
    if source is not None:
        return Dataset(source, specs, fixed=fixed, transform=transform, held_out=held_out)
    if not synthetic:
        raise DataError(
            "lossy passes are calibrated and judged on data, and there are none",
            hint="give some with --data, or accept made-up inputs with --synthetic-calibration",
        )
    sizes = {} if reference is None else reference.trials[0].sizes
    grain = 1 if reference is None else reference.grain
    made: list[Feeds] = [
        feeds_for(model, sizes, seed + 100 + index, grain=grain) for index in range(_SYNTHETIC)
    ]
    return Dataset(made, specs, held_out=held_out)


def evaluate(
    original: ir.Model,
    dataset: Dataset,
    metric: Metric,
    allowed: float,
    *,
    threads: int = 0,
    whole: bool = False,
) -> Evaluation:
    """Held-out samples from all over the data, with what the original makes of them; as many as fit into memory with
    their outputs and run in a few seconds.

    Args:
        metric: What the budget is of.
        allowed: The budget.
        whole: Take all that fit into memory, however long they run.

    Raises:
        DataError: There are no samples, or the original makes zeros of all of them.
        TargetError: The original does not run on one.
    """
    if whole:
        most, seconds, room = sys.maxsize, math.inf, _WHOLE_BYTES
    elif metric.counts or holds_categories(original):
        most, seconds, room = EVALUATED_TO_COUNT, _SECONDS_TO_COUNT, _EVALUATED_BYTES
    else:
        most, seconds, room = EVALUATED, _EVALUATED_SECONDS, _EVALUATED_BYTES
    session = Session(original, optimize="all", threads=threads)
    fitting = _fitting(session, dataset, seconds, room)
    available = dataset.number(judging=True)
    is_cut = whole and fitting < available
    samples, held_out = dataset.evaluation(0 if whole and not is_cut else min(most, fitting))
    kept: list[Sample] = []
    references: list[Feeds] = []
    total = 0
    for sample in samples:
        outputs = session.run(sample.feeds)
        total += _bytes(sample, outputs)
        if kept and total > _OVERRUN * room:
            is_cut = True
            break
        kept.append(sample)
        references.append(outputs)
    evaluation = Evaluation(
        [sample.feeds for sample in kept],
        references,
        [sample.labels for sample in kept],
        metric,
        allowed,
        held_out,
        is_cut=is_cut,
        available=max(available, len(kept)),
    )
    if metric.task is None and evaluation.is_silent:
        raise DataError(
            "the original's outputs hold nothing but zeros on the samples to judge on: what is lost cannot be told",
            hint="give other inputs with --data",
        )
    evaluation.padding = find_padding(session, evaluation)
    return evaluation


def _fitting(session: Session, dataset: Dataset, seconds: float, room: int) -> int:
    """How many samples run in so many seconds, and fit into memory with their outputs, by two of them."""
    taken, each = math.inf, 1
    for sample in dataset.evaluation(2)[0]:
        started = time.monotonic()
        outputs = session.run(sample.feeds)
        taken = min(taken, time.monotonic() - started)
        each = max(each, _bytes(sample, outputs))
    in_time = seconds / max(taken, 1e-6) if math.isfinite(seconds) else math.inf
    return int(min(max(in_time, _LEAST_EVALUATED), max(room // each, 1)))


def _bytes(sample: Sample, outputs: Feeds) -> int:
    return sum(getattr(array, "nbytes", 0) for array in (*sample.feeds.values(), *outputs.values()))


def holds_categories(model: ir.Model) -> bool:
    """Whether an output of a model holds what is equal or not (:mod:`graphopt.verify.agreement`)."""
    wide = (ir.DataType.INT32, ir.DataType.INT64, ir.DataType.UINT32, ir.DataType.UINT64)
    others = (ir.DataType.BOOL, ir.DataType.STRING)
    return any(value.dtype in (*wide, *others) for value in model.graph.outputs)
