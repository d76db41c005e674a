"""What makes a graph lose less when it is quantized, each step kept where it is measured to help.

The order is that of the literature and of measurement: channels are equalized before ranges are taken, and means are
corrected for the ranges and weights that result. A step is judged with every product of the graph on integers, on
calibration samples, by the noise in what goes into the outputs.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from graphopt.data.interface import Feeds
from graphopt.ir import model as ir_model
from graphopt.quant.clipping import Rule
from graphopt.quant.correct import bias_shifts
from graphopt.quant.equalize import Equalized, equalize
from graphopt.quant.kernels import IntegerKernels
from graphopt.quant.observe import Calibration, tapped
from graphopt.quant.place import Weights, place
from graphopt.quant.sweep import smooth_outputs
from graphopt.quant.units import Unit, units_of
from graphopt.verify.budget import noise_share
from graphopt.verify.session import Session

_SAMPLES = 8
_LEAST_GAIN = 0.5
_RULE_SECONDS = 6.0
_FLOOR = 1e-12

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
        weights: Corrections.
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
    equalization: bool = True,
    correction: bool = True,
    rules: Sequence[Rule] = (),
    threads: int = 0,
    progress: Callable[[str], None] = lambda text: None,
) -> Prepared:
    """Equalize channels, choose how ranges are taken, and correct biases, each where that helps.

    Args:
        model: Left as it was.
        calibrate: Observes all tensors of all units of a graph.
        data: Calibration samples, from the start.
        rules: For ranges, to be tried in place of the one that ``calibrate`` takes.
    """
    prepared = Prepared(model, calibrate(model))
    if not equalization and not correction and not rules:
        return prepared
    samples = list(itertools.islice(data(), _SAMPLES))
    noise = _Noise(model, kernels, samples, threads)
    decibels = noise.of(prepared)
    if equalization:
        progress("equalizing channels")
        scaled = ir_model.clone(model)
        equalized = equalize(scaled, kernels, data(), threads=threads)
        if equalized:
            candidate = Prepared(scaled, calibrate(scaled), equalized=equalized, steps=prepared.steps)
            prepared, decibels = _better("equalize", prepared, candidate, decibels, noise)
    started = time.monotonic()
    for rule in rules:
        if time.monotonic() - started > _RULE_SECONDS:
            break
        progress(f"ranges by {rule}")
        candidate = replace(prepared, calibration=prepared.calibration.by(rule))
        prepared, decibels = _better(f"ranges by {rule}", prepared, candidate, decibels, noise)
    if correction:
        progress("correcting biases")
        units = [unit for unit in units_of(prepared.model, kernels)[0] if unit.kind == "compute"]
        units = [unit for unit in units if _has_range(unit, prepared.calibration)]
        shifts = bias_shifts(
            prepared.model, units, kernels, prepared.calibration.ranges, samples, threads=threads
        )
        if shifts:
            candidate = Prepared(
                prepared.model, prepared.calibration, Weights(bias=shifts), prepared.equalized, prepared.steps
            )
            prepared, decibels = _better("correct biases", prepared, candidate, decibels, noise)
    return prepared


def _better(
    name: str, now: Prepared, candidate: Prepared, decibels: float, noise: _Noise
) -> tuple[Prepared, float]:
    found = noise.of(candidate)
    kept = found > decibels + _LEAST_GAIN
    now.steps.append(Step(name, found, decibels, kept))
    return (candidate, found) if kept else (now, decibels)


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


__all__ = ["Prepared", "Step", "prepare"]
