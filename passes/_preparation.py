"""What the passes that quantize, and those that prepare for it, have in common: calibration, and one step as a pass."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import onnx_ir as ir

from graphopt.data.interface import Feeds
from graphopt.errors import UsageError
from graphopt.lossy import Candidate, Context, LossyPass, Proposal
from graphopt.quant import decisions
from graphopt.quant.clipping import AUTO, PERCENTILE, Rule
from graphopt.quant.decisions import Decisions
from graphopt.quant.kernels import IntegerKernels
from graphopt.quant.observe import Calibration, Observed, calibrate, data_key, graph_key
from graphopt.quant.place import tensors_to_observe
from graphopt.quant.prepare import Prepared, StepName, prepare
from graphopt.quant.store import default_folder
from graphopt.quant.units import integer_nodes, units_of

_WORK = 10 << 30
"""Work of calibrating by default, in bytes of activations."""
_SECONDS = 10.0
_SHARE_OF_LOOKING = 0.2
"""Of the time that is left, for looking at samples."""
_QUICK_SAMPLES = 8
_MOST_OTHERS = 0.1
"""Share of products that may be another target's alone, for what prepares the graph to be taken over."""
_SHARE = 0.5
"""Of the time that is left, for preparing; the rest is for the search."""


@dataclass(frozen=True)
class CalibrationOptions:
    """How ranges are taken.

    Attributes:
        calibration: How a tensor's range is chosen (docs/quantization.md); "auto" takes what is measured to lose least.
        percentile: Percent of a tensor's elements that its range keeps, for ``calibration=percentile``.
        samples: Most samples to calibrate on; 0 takes all of a light model, and of a heavy one so many, evenly spread,
            that calibrating takes seconds.
        cache: Folder where observations are kept, so that they are neither lost nor repeated; "none" keeps nothing, ""
            is the folder ``calibration`` of the user's cache.
    """

    calibration: Literal["auto", "minmax", "percentile", "entropy", "mse", "norm"] = "auto"
    percentile: float = PERCENTILE
    samples: int = 0
    cache: str = ""

    def __post_init__(self) -> None:
        if self.samples < 0:
            raise UsageError(
                f"{self.samples} is no number of samples", hint="write samples=0 for all, or how many"
            )
        if not 50 < self.percentile <= 100:
            raise UsageError(
                f"the percentile of a range is {self.percentile:g}", hint="write one above 50 and up to 100"
            )

    def rules(self, kernels: IntegerKernels) -> list[Rule]:
        """How ranges are taken: the first, and what is tried in its place."""
        if self.calibration != "auto":
            return [Rule(self.calibration, self.percentile, kernels.limits, kernels.symmetric)]
        return [replace(rule, limits=kernels.limits, symmetric=kernels.symmetric) for rule in AUTO]

    def folder(self, default: Path) -> Path | None:
        """Where something is kept that lies in ``default`` where nothing else is said; None where nothing is."""
        return None if self.cache == "none" else Path(self.cache or default)

    def data(self, context: Context, most: int) -> Iterable[Feeds]:
        """Calibration samples, at most so many."""
        return context.dataset.calibration(min(most, self.samples or most))

    def observe(
        self, model: ir.Model, kernels: IntegerKernels, context: Context, known: Observed | None = None, *,
        quick: bool = False,
    ) -> Calibration:  # fmt: skip
        """Ranges of all tensors of all units of a graph.

        Args:
            known: What was observed of tensors that are as they were.
            quick: On a few samples, to see whether it is worth more.
        """
        names = tensors_to_observe(units_of(model, kernels)[0])
        left = max(context.deadline - time.monotonic(), 0.0)
        samples = min(self.samples or _QUICK_SAMPLES, _QUICK_SAMPLES) if quick else self.samples
        return calibrate(
            model, names, context.dataset.calibration(samples),
            rule=self.rules(kernels)[0], memory=context.memory, threads=context.threads,
            cache=None if quick else self.folder(default_folder()), known=known,
            work=0 if self.samples else _WORK,
            seconds=math.inf if self.samples else min(_SECONDS, _SHARE_OF_LOOKING * left),
            progress=lambda text: context.progress(f"calibrating, {text}"),
        )  # fmt: skip

    def prepare(
        self, model: ir.Model, kernels: IntegerKernels, context: Context, steps: tuple[StepName, ...],
        rules: list[Rule],
    ) -> Prepared:  # fmt: skip
        """The graph after these steps, each kept where it helps."""

        now = time.monotonic()
        seconds = _SHARE * max(context.deadline - now, 0.0)
        if not context.weights.is_empty:
            # Weights that an earlier pass found are this target's own.
            return self._measured(model, kernels, context, steps, rules, now + seconds)
        limits = (kernels.limits, kernels.symmetric, kernels.weight_bits)
        # Decisions are kept by the names of nodes, which the graph's key leaves out.
        names = tuple(node.name for node in model.graph)
        key = (self, steps, tuple(rules), limits, graph_key(model), names)
        kept = self._decisions((context.target, *key), context)
        prepared = kept.replayed(model, kernels, seconds)
        products = frozenset(unit.name for unit in units_of(model, kernels)[0] if unit.kind == "compute")
        if prepared is None:
            before: tuple[Prepared, frozenset[str]] | None = context.shared.get(key)
            if before is not None and len(products - before[1]) <= _MOST_OTHERS * len(products):
                # Another target with such kernels was prepared for; its units may read other tensors.
                known = before[0]
                seen = self.observe(known.model, kernels, context, known.calibration.observed)
                prepared = replace(known, calibration=known.ranged(seen))
                kept.keep(prepared, seconds)
                return prepared
            prepared = self._measured(model, kernels, context, steps, rules, now + seconds)
            kept.keep(prepared, seconds)
        context.shared[key] = prepared, products
        return prepared

    def _measured(
        self, model: ir.Model, kernels: IntegerKernels, context: Context, steps: tuple[StepName, ...],
        rules: list[Rule], deadline: float,
    ) -> Prepared:  # fmt: skip
        def observe(graph: ir.Model, known: Observed | None = None, quick: bool = False) -> Calibration:
            return self.observe(graph, kernels, context, known, quick=quick)

        prepared = prepare(
            model, kernels, observe, lambda most: self.data(context, most),
            steps=steps, rules=rules, weights=context.weights, threads=context.threads,
            deadline=deadline, progress=context.progress,
        )  # fmt: skip
        prepared.target = context.target
        return prepared

    def _decisions(self, key: tuple[object, ...], context: Context) -> Decisions:
        folder = self.folder(decisions.default_folder())
        if folder is None:
            return Decisions(None, "")
        # All targets have the same samples.
        of_data = ("data", self.samples)
        if of_data not in context.shared:
            context.shared[of_data] = data_key(context.dataset.calibration(self.samples), context.progress)
        return Decisions(folder, decisions.key_of(*key, context.shared[of_data]))


def preparation_details(prepared: Prepared) -> dict[str, Any]:
    """What was tried, and what it did, for the report."""
    return {
        "calibration": {
            "method": prepared.calibration.method,
            "samples": prepared.calibration.samples,
            "notes": list(prepared.calibration.notes),
            "warnings": list(prepared.calibration.warnings),
        },
        "steps": [vars(step) for step in prepared.steps],
        "prepared_for": prepared.target,
        "replayed": prepared.replayed,
        "equalized": [entry.describe() for entry in prepared.equalized],
    }


class StepPass(LossyPass):
    """One step of preparation as a pass of its own, before ``quantize``."""

    Options = CalibrationOptions
    step: ClassVar[StepName]
    label: ClassVar[str]

    def propose(self, model: ir.Model, context: Context) -> Proposal:
        """The graph with this step taken, where it lowers the noise of int8 in all products."""
        options: CalibrationOptions = self.options
        if context.kernels is None:
            return Proposal(
                reason=f"{context.target} has no int8 kernels: there is nothing to prepare the graph for"
            )
        if integer_nodes(model):
            return Proposal(reason="the model is quantized already and keeps its precision")
        if not any(unit.kind == "compute" for unit in units_of(model, context.kernels)[0]):
            return Proposal(reason="it holds no Conv, MatMul or Gemm with constant weights")
        if self.step in ("equalize", "smooth") and not context.weights.is_empty:
            return Proposal(reason=f"weights were rounded or biases corrected before: put {self.name} first")
        first = options.rules(context.kernels)[:1]
        prepared = options.prepare(model, context.kernels, context, (self.step,), first)
        details = preparation_details(prepared)
        if not any(step.kept for step in prepared.steps):
            tried = "".join(
                f": {step.before:.1f} dB without it, {step.decibels:.1f} dB with it"
                for step in prepared.steps
            )
            return Proposal(details=details, reason=f"it does not lower the noise of int8{tried}")
        candidate = Candidate(self.label, prepared.model, weights=prepared.weights, prepares=True)
        return Proposal([candidate], details, warnings=prepared.calibration.warnings)
