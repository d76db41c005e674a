"""What makes a graph lose less when it is quantized, each step kept where it is measured to help.

The order is that of measurement: how ranges are taken decides most. Most of the noise that is left comes from few
units; one sweep (:mod:`graphopt.quant.sweep`) finds these, ranges of what they read and write are tried tensor by
tensor, and the channels of what they read are equalized where that helps them. Then weights are rounded for the inputs
that result, and means are corrected for ranges and weights. A step is judged with every product of the graph on
integers, on calibration samples, by the noise in what goes into the outputs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol, TypeAlias

import numpy as np
import onnx_ir as ir

from graphopt.data.interface import Feeds
from graphopt.ir import model as ir_model
from graphopt.ir.model import tapped
from graphopt.quant.channels import Channels
from graphopt.quant.clipping import Rule
from graphopt.quant.correct import bias_shifts
from graphopt.quant.equalize import Equalized, equalize
from graphopt.quant.kernels import CONVOLUTIONS, PRODUCTS, IntegerKernels
from graphopt.quant.observe import Calibration, Observed
from graphopt.quant.place import Weights, place
from graphopt.quant.ranges import Range
from graphopt.quant.rounding import round_weight, rounded_weights
from graphopt.quant.sweep import Noise, SweepTooLongError, noise_of_units, ranges_by_tensor
from graphopt.quant.switched import smooth_outputs
from graphopt.quant.units import Unit, units_of
from graphopt.verify.agreement import noise_share
from graphopt.verify.session import Session

_LEAST_SAMPLES = 4
_MOST_SAMPLES = 32
_SAMPLE_SECONDS = 0.25
_LEAST_GAIN = 0.5
_QUIET = 45.0
_SWEEP_SECONDS = 3.0
_LEAST_SHARE = 0.005
_MOST_NOISY = 24
_HELPED = 0.7
_RULE_SECONDS = 4.0
_MOST_CHOSEN = 12
_CHOOSE_SAMPLES = 8
_CHOOSE_SECONDS = 8.0
_ROUND_SECONDS = 5.0
_WEIGHTS_COUNT = 6.0
_ROUND_SAMPLES = 8
_EQUALIZE_SAMPLES = 32
_EQUALIZE_SECONDS = 2.0
_MOST_OVERRUN = 2.5
_FLOOR = 1e-12

StepName = Literal["equalize", "smooth", "round-weights", "correct-bias"]
STEPS: tuple[StepName, ...] = ("equalize", "smooth", "round-weights", "correct-bias")
"""In the order in which they run."""
_EQUALIZED: dict[StepName, frozenset[str]] = {"equalize": CONVOLUTIONS, "smooth": PRODUCTS}


Samples: TypeAlias = Callable[[int], Iterable[Feeds]]
"""Gives at most so many calibration samples."""


class Calibrate(Protocol):
    """Observes all tensors of all units of a graph."""

    def __call__(self, model: ir.Model, known: Observed | None = None, quick: bool = False, /) -> Calibration:
        """Ranges.

        Args:
            known: What was observed of tensors that are as they were.
            quick: On a few samples, to see whether it is worth more.
        """


@dataclass
class Step:
    """One step, as it went.

    Attributes:
        name: Of the step.
        decibels: Signal-to-noise ratio with it, every product on integers.
        before: The same without it.
        kept: Whether it stays.
    """

    name: str
    decibels: float
    before: float
    kept: bool


@dataclass
class Prepared:
    """A float graph that is ready to be quantized.

    Attributes:
        model: Computes the same as the one that was given, to the bit but for the sign of zeros.
        calibration: Ranges of all tensors of all units of ``model``.
        weights: Rounding and corrections.
        equalized: Tensors whose channels were scaled.
        steps: What was tried.
        rule: By which ranges are taken; None for the one that they were taken by first.
        own: Ranges that were found for single tensors.
        target: On whose kernels the steps were measured; others with such kernels take them over.
        replayed: Whether this is what an earlier run decided, done again without measuring.
    """

    model: ir.Model
    calibration: Calibration
    weights: Weights = field(default_factory=Weights)
    equalized: list[Equalized] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    rule: Rule | None = None
    own: Mapping[str, Range] = field(default_factory=dict)
    target: str = ""
    replayed: bool = False

    def ranged(self, calibration: Calibration) -> Calibration:
        """What was observed with ranges as they were found to be best."""
        found = calibration if self.rule is None else calibration.by(self.rule)
        return replace(found, ranges={**found.ranges, **self.own})


def prepare(
    model: ir.Model,
    kernels: IntegerKernels,
    calibrate: Calibrate,
    data: Samples,
    *,
    steps: Sequence[StepName] = STEPS,
    rules: Sequence[Rule] = (),
    weights: Weights | None = None,
    threads: int = 0,
    deadline: float = float("inf"),
    progress: Callable[[str], None] = lambda text: None,
) -> Prepared:
    """Take the steps, each where it helps.

    Args:
        model: Left as it was.
        calibrate: Observes all tensors of all units of a graph.
        data: Calibration samples.
        steps: Those that may be taken.
        rules: For ranges: the one that ``calibrate`` takes, and those to be tried in its place.
        weights: Found before for ``model``; where there are some, channels are not scaled any more.
        deadline: ``time.monotonic()`` after which no step is begun.
    """
    given = weights or Weights()
    prepared = Prepared(model, calibrate(model), given)
    if not steps and len(rules) < 2:
        return prepared
    return _Preparation(kernels, calibrate, data, threads, deadline, progress, prepared).run(steps, rules)


class _Preparation:
    def __init__(
        self, kernels: IntegerKernels, calibrate: Calibrate, data: Samples, threads: int,
        deadline: float, progress: Callable[[str], None], prepared: Prepared,
    ) -> None:  # fmt: skip
        self.kernels = kernels
        self.calibrate = calibrate
        self.data = data
        self.threads = threads
        self.deadline = deadline
        self.progress = progress
        self.noise = _Noise(prepared.model, kernels, data, threads)
        self.samples = self.noise.samples[:_LEAST_SAMPLES]
        self.prepared = prepared
        self.decibels = self.noise.of(prepared)
        self.channels: dict[tuple[str, int], Channels] = {}

    def run(self, steps: Sequence[StepName], rules: Sequence[Rule]) -> Prepared:
        self.prepared.rule = rules[0] if rules else None
        started = time.monotonic()
        for rule in rules[1:]:
            if self._is_late() or time.monotonic() - started > _RULE_SECONDS:
                break
            self.progress(f"ranges by {rule}")
            calibration = self.prepared.calibration.by(rule)
            self._try(f"ranges by {rule}", replace(self.prepared, calibration=calibration, rule=rule))
        scaling = [name for name in _EQUALIZED if name in steps and self.prepared.weights.is_empty]
        by_tensor = len(rules) > 1
        if (scaling or by_tensor) and self.decibels < _QUIET and not self._is_late():
            noisy = self._noisy()
            if by_tensor and noisy and not self._is_late():
                self._choose_ranges(noisy, rules)
            for name in scaling:
                if noisy and not self._is_late():
                    self._equalize(name, noisy)
        if "round-weights" in steps and not self._is_late():
            self._round()
        if "correct-bias" in steps and not self._is_late():
            self._correct()
        return self.prepared

    def _is_late(self) -> bool:
        return time.monotonic() > self.deadline

    def _try(self, name: str, candidate: Prepared) -> bool:
        found = self.noise.of(candidate)
        kept = found > self.decibels + _LEAST_GAIN
        self.prepared.steps.append(Step(name, found, self.decibels, kept))
        if kept:
            self.prepared, self.decibels = candidate, found
        return kept

    def _sweep(self, prepared: Prepared, names: Sequence[str], samples: int = 0) -> Noise:
        """Noise of each unit alone.

        Args:
            samples: As many, to be compared with an earlier sweep; 0 for as many as there is time for.

        Raises:
            SweepTooLongError: There is no time for it.
        """
        left = max(self.deadline - time.monotonic(), 0.0)
        seconds, most = (math.inf, math.inf) if samples else (min(_SWEEP_SECONDS, left / 2), _MOST_OVERRUN)
        return noise_of_units(
            prepared.model, names, prepared.calibration.ranges, self.kernels,
            self.samples[:samples] if samples else self.samples,
            company=False, threads=self.threads, seconds=seconds, most=most,
        )  # fmt: skip

    def _noisy(self) -> list[str]:
        """Units that make most of the noise; none where there is no time to find out."""
        self.progress("noise of each unit")
        names = [unit.name for unit in self._units()]
        try:
            found = self._sweep(self.prepared, names).alone
        except SweepTooLongError:
            return []
        least = sum(found.values()) * _LEAST_SHARE
        loudest = sorted(found, key=lambda name: found[name], reverse=True)[:_MOST_NOISY]
        return [name for name in loudest if found[name] >= least]

    def _choose_ranges(self, noisy: Sequence[str], rules: Sequence[Rule]) -> None:
        """Ranges of tensors of noisy units by other rules, each where that lowers the noise."""
        self.progress("ranges by tensor")
        units = {unit.name: unit for unit in self._units()}
        others = [self.prepared.calibration.by(rule).ranges for rule in rules]
        now = self.prepared.calibration.ranges
        choices: dict[str, list[Range]] = {}
        for unit in (units[name] for name in noisy[:_MOST_CHOSEN]):
            for value in (unit.inputs[0], unit.output):
                name = value.name or ""
                found = dict.fromkeys(ranges[name] for ranges in others)
                choices.setdefault(name, [range_ for range_ in found if range_ != now[name]])
        samples = self.noise.samples[:_CHOOSE_SAMPLES]
        left = max(self.deadline - time.monotonic(), 0.0)
        own = ranges_by_tensor(
            self.prepared.model, list(units), now, choices, self.kernels, samples,
            weights=self.prepared.weights, threads=self.threads, seconds=min(_CHOOSE_SECONDS, left / 2),
        )  # fmt: skip
        if own:
            calibration = replace(self.prepared.calibration, ranges={**now, **own})
            self._try("ranges by tensor", replace(self.prepared, calibration=calibration, own=own))

    def _equalize(self, name: StepName, noisy: Sequence[str]) -> None:
        """Scale the channels of what noisy units read, where that lowers the noise of these units."""
        self.progress("equalizing channels" if name == "equalize" else "smoothing channels")
        readers = {unit.name: unit.inputs[0].name or "" for unit in self._units() if unit.name in noisy}
        operators = _EQUALIZED[name]
        found, everything = self._scaled(operators, set(readers.values()), quick=True)
        if not found:
            return
        helped = self._helped(found, readers, everything)
        if not helped:
            self.prepared.steps.append(Step(name, self.noise.of(everything), self.decibels, False))
            return
        found, everything = self._scaled(operators, helped)
        if self._try(name, everything):
            changed = {tensor for entry in found for tensor in entry.changed}
            self.channels = {key: seen for key, seen in self.channels.items() if key[0] not in changed}

    def _helped(
        self, found: Sequence[Equalized], readers: Mapping[str, str], everything: Prepared
    ) -> set[str]:
        """Tensors the readers of which make less noise; where there is no time to find out, those without a Mul."""
        try:
            first = self._sweep(self.prepared, list(readers))
            before, after = first.alone, self._sweep(everything, list(readers), first.samples).alone
        except SweepTooLongError:
            return {entry.tensor for entry in found if entry.folded}
        return {
            tensor
            for tensor in {entry.tensor for entry in found}
            if sum(after.get(unit, 0.0) for unit, read in readers.items() if read == tensor)
            < sum(before[unit] for unit, read in readers.items() if read == tensor) * _HELPED
        }

    def _scaled(
        self, operators: frozenset[str], only: set[str], *, quick: bool = False
    ) -> tuple[list[Equalized], Prepared]:
        scaled = ir_model.clone(self.prepared.model)
        samples = self.data(_EQUALIZE_SAMPLES)
        found = equalize(
            scaled, self.kernels, samples,
            operators=operators, only=only, seen=self.channels, seconds=_EQUALIZE_SECONDS, threads=self.threads,
        )  # fmt: skip
        if not found:
            return found, self.prepared
        observed, own = self.prepared.calibration.observed, self.prepared.own
        changed = {tensor for entry in found for tensor in entry.changed}
        own = {name: chosen for name, chosen in own.items() if name not in changed}
        if observed is not None:
            kept = {name: seen for name, seen in observed.histograms.items() if name not in changed}
            observed = replace(observed, histograms=kept)
        everything = replace(
            self.prepared, model=scaled, equalized=[*self.prepared.equalized, *found], own=own
        )
        everything.calibration = everything.ranged(self.calibrate(scaled, observed, quick))
        return found, everything

    def _round(self) -> None:
        # Nothing is gained where the noise is that of activations: weights would have to be exact to lower it so much.
        if self.noise.of_weights(self.prepared) > self.decibels + _WEIGHTS_COUNT:
            return
        rounded, scales = rounded_weights(
            self.prepared.model, self._units(), self.kernels, self.data(_ROUND_SAMPLES),
            threads=self.threads, deadline=time.monotonic() + _ROUND_SECONDS, progress=self.progress,
        )  # fmt: skip
        if rounded:
            weights = replace(self.prepared.weights, rounded=rounded, scales=scales)
            self._try("round-weights", replace(self.prepared, weights=weights))

    def _correct(self) -> None:
        self.progress("correcting biases")
        weights = self.prepared.weights
        shifts = bias_shifts(
            self.prepared.model, self._units(), self.kernels, self.prepared.calibration.ranges, self.samples,
            rounded=weights.rounded, scales=weights.scales, threads=self.threads,
        )  # fmt: skip
        if shifts:
            self._try("correct-bias", replace(self.prepared, weights=replace(weights, bias=shifts)))

    def _units(self) -> list[Unit]:
        return _products(self.prepared.model, self.kernels, self.prepared.calibration)


def _products(model: ir.Model, kernels: IntegerKernels, calibration: Calibration) -> list[Unit]:
    """Units that compute products, all tensors of which have a range."""

    def has_ranges(unit: Unit) -> bool:
        ranges = [calibration.ranges.get(value.name or "") for value in (*unit.inputs, unit.output)]
        return all(found is not None and not found.why_not for found in ranges)

    units, _ = units_of(model, kernels)
    return [unit for unit in units if unit.kind == "compute" and has_ranges(unit)]


class _Noise:
    """Measures the noise of a graph with every product on integers against the float graph, on samples as many as run
    in a moment: the mean of their decibels, since a single sample that goes wrong would hide all others."""

    def __init__(self, model: ir.Model, kernels: IntegerKernels, data: Samples, threads: int) -> None:
        self.names = smooth_outputs(model)
        self.kernels = kernels
        self.threads = threads
        self.samples: list[Feeds] = []
        self.references: list[Feeds] = []
        session = Session(tapped(model, self.names), optimize="all", threads=threads)
        started = time.monotonic()
        for feeds in data(_MOST_SAMPLES):
            if len(self.samples) >= _LEAST_SAMPLES and time.monotonic() - started > _SAMPLE_SECONDS:
                break
            self.samples.append(feeds)
            self.references.append(session.run(feeds, self.names))

    def of(self, prepared: Prepared) -> float:
        """Decibels."""
        copy = ir_model.clone(prepared.model)
        chosen = frozenset(unit.name for unit in _products(copy, self.kernels, prepared.calibration))
        place(copy, chosen, prepared.calibration.ranges, self.kernels, prepared.weights)
        present = {value.name for node in copy.graph for value in node.outputs}
        present.update(value.name for value in copy.graph.inputs)
        # An output that integers make carries its name behind the DQ.
        return self._decibels(copy, [name if name in present else f"{name}_float" for name in self.names])

    def of_weights(self, prepared: Prepared) -> float:
        """Decibels with weights on integers and activations in float."""
        copy = ir_model.clone(prepared.model)
        for unit in _products(copy, self.kernels, prepared.calibration):
            round_weight(copy.graph, unit.node, self.kernels.weight_limit)
        return self._decibels(copy, self.names)

    def _decibels(self, model: ir.Model, names: Sequence[str]) -> float:
        session = Session(tapped(model, names), optimize="all", threads=self.threads)
        found = []
        for feeds, reference in zip(self.samples, self.references, strict=True):
            outputs = dict(zip(self.names, session.run(feeds, names).values(), strict=True))
            found.append(-10 * np.log10(max(noise_share([outputs], [reference]), _FLOOR)))
        return float(np.mean(found))


__all__ = ["STEPS", "Prepared", "Step", "StepName", "prepare"]
