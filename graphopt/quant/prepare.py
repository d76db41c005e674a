"""What makes a graph lose less when it is quantized, each step kept where it is measured to help.

The order is that of the literature and of measurement: channels are equalized before ranges are taken, weights are
rounded for the inputs that result, and means are corrected for ranges and weights. A step is judged with every product
of the graph on integers, on calibration samples, by the noise in what goes into the outputs.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import onnx_ir as ir

from graphopt.data.interface import Feeds
from graphopt.ir import model as ir_model
from graphopt.quant.clipping import Rule
from graphopt.quant.correct import bias_shifts
from graphopt.quant.equalize import Equalized, equalize
from graphopt.quant.kernels import CONVOLUTIONS, PRODUCTS, IntegerKernels
from graphopt.quant.observe import Calibration, tapped
from graphopt.quant.place import Weights, place
from graphopt.quant.rounding import rounded_weights
from graphopt.quant.sweep import smooth_outputs
from graphopt.quant.units import Unit, units_of
from graphopt.verify.budget import noise_share
from graphopt.verify.session import Session

_SAMPLES = 8
_LEAST_GAIN = 0.5
_RULE_SECONDS = 6.0
_ROUND_SECONDS = 8.0
_ROUND_SAMPLES = 16
_FLOOR = 1e-12

StepName = Literal["equalize", "smooth", "round-weights", "correct-bias"]
STEPS: tuple[StepName, ...] = ("equalize", "smooth", "round-weights", "correct-bias")
"""In the order in which they run."""
_EQUALIZED: dict[StepName, frozenset[str]] = {"equalize": CONVOLUTIONS, "smooth": PRODUCTS}

Calibrate = Callable[[ir.Model], Calibration]


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
    """

    model: ir.Model
    calibration: Calibration
    weights: Weights = field(default_factory=Weights)
    equalized: list[Equalized] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)


def prepare(
    model: ir.Model,
    kernels: IntegerKernels,
    calibrate: Calibrate,
    data: Callable[[], Iterator[Feeds]],
    *,
    steps: Sequence[StepName] = STEPS,
    rules: Sequence[Rule] = (),
    weights: Weights | None = None,
    threads: int = 0,
    progress: Callable[[str], None] = lambda text: None,
) -> Prepared:
    """Take the steps, each where it helps.

    Args:
        model: Left as it was.
        calibrate: Observes all tensors of all units of a graph.
        data: Calibration samples, from the start.
        steps: Those that may be taken.
        rules: For ranges, to be tried in place of the one that ``calibrate`` takes.
        weights: Found before for ``model``; where there are some, channels are not scaled any more.
    """
    given = weights or Weights()
    prepared = Prepared(model, calibrate(model), given)
    if not steps and not rules:
        return prepared
    return _Preparation(kernels, calibrate, data, threads, progress, prepared).run(steps, rules)


class _Preparation:
    def __init__(
        self, kernels: IntegerKernels, calibrate: Calibrate, data: Callable[[], Iterator[Feeds]], threads: int,
        progress: Callable[[str], None], prepared: Prepared,
    ) -> None:  # fmt: skip
        self.kernels = kernels
        self.calibrate = calibrate
        self.data = data
        self.threads = threads
        self.progress = progress
        self.samples = list(itertools.islice(data(), _SAMPLES))
        self.noise = _Noise(prepared.model, kernels, self.samples, threads)
        self.prepared = prepared
        self.decibels = self.noise.of(prepared)

    def run(self, steps: Sequence[StepName], rules: Sequence[Rule]) -> Prepared:
        for name, operators in _EQUALIZED.items():
            if name in steps and self.prepared.weights.is_empty:
                self._equalize(name, operators)
        started = time.monotonic()
        for rule in rules:
            if time.monotonic() - started > _RULE_SECONDS:
                break
            self.progress(f"ranges by {rule}")
            self._try(f"ranges by {rule}", calibration=self.prepared.calibration.by(rule))
        if "round-weights" in steps:
            self._round()
        if "correct-bias" in steps:
            self._correct()
        return self.prepared

    def _try(self, name: str, **changes: object) -> None:
        candidate = replace(self.prepared, **changes)  # type: ignore[arg-type]
        found = self.noise.of(candidate)
        kept = found > self.decibels + _LEAST_GAIN
        self.prepared.steps.append(Step(name, found, self.decibels, kept))
        if kept:
            self.prepared, self.decibels = candidate, found

    def _equalize(self, name: StepName, operators: frozenset[str]) -> None:
        self.progress("equalizing channels" if name == "equalize" else "smoothing channels")
        scaled = ir_model.clone(self.prepared.model)
        found = equalize(scaled, self.kernels, self.data(), operators=operators, threads=self.threads)
        if found:
            equalized = [*self.prepared.equalized, *found]
            self._try(name, model=scaled, calibration=self.calibrate(scaled), equalized=equalized)

    def _round(self) -> None:
        rounded, scales = rounded_weights(
            self.prepared.model, self._units(), self.kernels, itertools.islice(self.data(), _ROUND_SAMPLES),
            threads=self.threads, deadline=time.monotonic() + _ROUND_SECONDS, progress=self.progress,
        )  # fmt: skip
        if rounded:
            self._try("round-weights", weights=replace(self.prepared.weights, rounded=rounded, scales=scales))

    def _correct(self) -> None:
        self.progress("correcting biases")
        weights = self.prepared.weights
        shifts = bias_shifts(
            self.prepared.model, self._units(), self.kernels, self.prepared.calibration.ranges, self.samples,
            rounded=weights.rounded, scales=weights.scales, threads=self.threads,
        )  # fmt: skip
        if shifts:
            self._try("correct-bias", weights=replace(weights, bias=shifts))

    def _units(self) -> list[Unit]:
        units = units_of(self.prepared.model, self.kernels)[0]
        return [
            unit for unit in units if unit.kind == "compute" and _has_range(unit, self.prepared.calibration)
        ]


def _has_range(unit: Unit, calibration: Calibration) -> bool:
    ranges = [calibration.ranges.get(value.name or "") for value in (*unit.inputs, unit.output)]
    return all(found is not None and not found.why_not for found in ranges)


class _Noise:
    """Measures the noise of a graph with every product on integers against the float graph."""

    def __init__(
        self, model: ir.Model, kernels: IntegerKernels, samples: Sequence[Feeds], threads: int
    ) -> None:
        self.names = smooth_outputs(model)
        self.kernels = kernels
        self.samples = samples
        self.threads = threads
        self.references = self._run(model, self.names)

    def of(self, prepared: Prepared) -> float:
        """Decibels."""
        copy = ir_model.clone(prepared.model)
        units = [unit for unit in units_of(copy, self.kernels)[0] if unit.kind == "compute"]
        chosen = frozenset(unit.name for unit in units if _has_range(unit, prepared.calibration))
        place(copy, chosen, prepared.calibration.ranges, self.kernels, prepared.weights)
        present = {value.name for node in copy.graph for value in node.outputs}
        # An output that integers make carries its name behind the DQ.
        names = [name if name in present else f"{name}_float" for name in self.names]
        return float(-10 * np.log10(max(noise_share(self._run(copy, names), self.references), _FLOOR)))

    def _run(self, model: ir.Model, names: Sequence[str]) -> list[Feeds]:
        session = Session(tapped(model, names), optimize="all", threads=self.threads)
        results = [session.run(feeds, names) for feeds in self.samples]
        return [dict(zip(self.names, found.values(), strict=True)) for found in results]


__all__ = ["STEPS", "Prepared", "Step", "StepName", "prepare"]
