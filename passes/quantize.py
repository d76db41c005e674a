"""float32 graph  ==>  int8 where it is faster and stays within the budget

Static quantization: QuantizeLinear and DequantizeLinear (QDQ) around the nodes that are to compute on integers; int8
weights with one scale for each output channel, activations as the target's kernels want them (Jacob et al., CVPR
2018; Nagel et al., A White Paper on Neural Network Quantization, 2021). Which nodes these are is searched for each
model, each target and each machine.

Refuses (in the report, node by node):
- a node whose weight is no constant, is not float32, or holds NaN or infinity;
- a node inside a subgraph (If, Loop): its values cannot be observed;
- a tensor that is not finite on the calibration data;
- a node for which no integer kernel forms on the target, or where integers are not faster.
"""

from __future__ import annotations

import fnmatch
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import onnx_ir as ir

from graphopt import interrupt
from graphopt.lossy import Candidate, Context, LossyPass, Proposal
from graphopt.passes._precisions import (
    dynamic_int8,
    is_of_products,
    kept_by,
    weight_bytes,
    with_small_tables,
    without_integers,
)
from graphopt.passes._preparation import CalibrationOptions, preparation_details
from graphopt.quant import memory, pareto
from graphopt.quant.kernels import IntegerKernels
from graphopt.quant.memory import Memory, key_of
from graphopt.quant.observe import suspicions
from graphopt.quant.prepare import STEPS, Prepared, StepName
from graphopt.quant.search import Found, Point, Search
from graphopt.quant.storage import Storage
from graphopt.quant.units import Unit, constant_bytes, integer_nodes, units_of

_MOST_CANDIDATES = 2
_SHARE_OF_DYNAMIC = 0.3


@dataclass(frozen=True)
class QuantizeOptions(CalibrationOptions):
    """Options of ``quantize``.

    Attributes:
        ops: Operators that may compute on integers; empty allows all that have kernels.
        keep: Names of nodes (wildcards allowed) that stay in float.
        equalize: Whether channels that convolutions read are equalized where that lowers the noise.
        smooth: Whether channels that products read are smoothed where that lowers the noise.
        round_weights: Whether weights are rounded by layer-wise reconstruction where that lowers the noise.
        correct_bias: Whether biases are corrected where that lowers the noise.
        again: Whether the float parts of a model that holds integer operators already are quantized too.
        storage: Least bits that a number left in float may take in the file; what loads it widens it.
    """

    ops: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    equalize: bool = True
    smooth: bool = True
    round_weights: bool = True
    correct_bias: bool = True
    again: bool = False
    storage: Literal[8, 16, 32] = 8

    @property
    def steps(self) -> tuple[StepName, ...]:
        """What prepares the graph, in order."""
        wanted = (self.equalize, self.smooth, self.round_weights, self.correct_bias)
        return tuple(name for name, taken in zip(STEPS, wanted, strict=True) if taken)


class Quantize(LossyPass):
    """Static int8 quantization, mixed with float by measurement; LOSSY."""

    name = "quantize"
    Options = QuantizeOptions

    @property
    def storage(self) -> Storage | None:
        """As the option says, except for nodes that are to stay in float."""
        return Storage.of(self.options.storage, kept_by((), self.options.keep))

    def suits(self, model: ir.Model, kernels: IntegerKernels | None) -> bool:
        """Products where activations are quantized as they come, convolutions where they are not: ONNX Runtime's are
        the faster ones of those, OpenVINO's of these (``benchmarks/quantize.py``)."""
        return kernels is not None and bool(kernels.dynamic) == is_of_products(model)

    def propose(self, model: ir.Model, context: Context) -> Proposal:
        """The fastest mix of int8 and float32 that stays within the budget; float16 where there is no int8."""
        options: QuantizeOptions = self.options
        present = integer_nodes(model)
        if present and not options.again:
            return Proposal(
                reason=f"the model is quantized already ({present} integer operators) and keeps its precision; "
                "quantize{again=true} goes on with what is in float"
            )
        allowed = kept_by(options.ops, options.keep)
        if context.kernels is None:
            return without_integers(model, context, allowed)
        unknown = _unknown(options, model)
        model, tables = with_small_tables(model, context, allowed)
        started = time.monotonic()
        quick = Proposal()
        if context.kernels.dynamic and is_of_products(model):
            quick = dynamic_int8(model, context, allowed)
        spent = time.monotonic() - started > _SHARE_OF_DYNAMIC * (context.deadline - started)
        if quick.candidates and spent and not weight_bytes(model, ("Conv", "ConvTranspose")):
            proposal = self._alone(quick, "not tried: dynamic int8 holds, and the time is spent", context)
        else:
            try:
                rival = min(context.rival, quick.milliseconds)
                proposal = _both(self._static(model, replace(context, rival=rival), context.kernels), quick)
            except KeyboardInterrupt:
                if not quick.candidates:
                    raise
                interrupt.taken()
                proposal = self._alone(quick, "stopped", context)
        if tables:
            proposal.details["tables"] = tables
        return replace(proposal, warnings=[*unknown, *proposal.warnings])

    def _alone(self, quick: Proposal, why: str, context: Context) -> Proposal:
        """Dynamic int8 without static int8 beside it, which would have looked at the data."""
        options: QuantizeOptions = self.options
        details = {**quick.details, "static": why}
        return replace(
            quick, details=details, warnings=suspicions(context.dataset.calibration(options.samples))
        )

    def _static(self, model: ir.Model, context: Context, kernels: IntegerKernels) -> Proposal:
        units, refused = units_of(model, kernels)
        if not any(unit.kind == "compute" for unit in units):
            return Proposal(reason=_why_none(refused), details={"refused": refused})
        options: QuantizeOptions = self.options
        prepared = options.prepare(model, kernels, context, options.steps, options.rules(kernels))
        search = Search(
            prepared.model, kernels, prepared.calibration, context.evaluation, context.profile,
            context.running, allowed=self._why_kept, weights=prepared.weights,
            memory=self._memory(prepared, kernels, context), rival=context.rival,
            deadline=context.deadline, threads=context.threads, progress=context.progress,
        )  # fmt: skip
        found = search.run()
        details = _details(found, kernels, prepared)
        warnings = list(prepared.calibration.warnings)
        if found.interrupted:
            warnings.append(
                "the search was stopped: the best so far is taken; the same command goes on with it"
            )
        if found.best is not None:
            return Proposal(
                [self._candidate(point, found, search) for point in _proposed(found.points)],
                details,
                warnings=warnings,
                milliseconds=found.best.milliseconds,
            )
        if not found.points and context.rival < found.fastest < float("inf"):
            return Proposal(
                reason=f"the fastest mix takes {found.fastest:.2f} ms, and {context.rival:.2f} ms on another target",
                details=details,
                warnings=warnings,
            )
        if not found.points:
            return Proposal(
                reason="integers are not faster for any part of it", details=details, warnings=warnings
            )
        nearest = min(found.points, key=_loss)
        assert nearest.judgement is not None
        return Proposal(
            details=details,
            reason="no mix of int8 and float is within the budget"
            + (" of those that there was time for (--tune gives more)" if found.hurried else "")
            + f"; the nearest: {nearest.judgement.describe()}",
            warnings=warnings,
            best_effort=replace(self._candidate(nearest, found, search), judgement=nearest.judgement),
        )

    def _memory(self, prepared: Prepared, kernels: IntegerKernels, context: Context) -> Memory:
        options: QuantizeOptions = self.options
        decides = (context.threads, options.ops, options.keep)
        key = key_of(
            prepared.model, context.target, kernels, prepared.calibration.ranges, prepared.weights,
            context.evaluation, decides,
        )  # fmt: skip
        return Memory(options.folder(memory.default_folder()), key)

    @staticmethod
    def _candidate(point: Point, found: Found, search: Search) -> Candidate:
        units = tuple(unit for unit in found.units if unit.name in point.chosen)
        return Candidate(_label(point, found), search.quantized(point.chosen), units=units)

    def _why_kept(self, unit: Unit) -> str:
        options: QuantizeOptions = self.options
        # What moves or adds elements goes with the products around it.
        return kept_by(options.ops if unit.kind == "compute" else (), options.keep)(unit.node)


def _unknown(options: QuantizeOptions, model: ir.Model) -> list[str]:
    """What is named in the options and not in the graph."""
    nodes = list(model.graph.all_nodes())
    names, operators = [node.name or "" for node in nodes], {node.op_type for node in nodes}
    found = [
        f"the option 'keep' names no node: {pattern!r} (names are in the report; operators go into 'ops')"
        for pattern in options.keep
        if not fnmatch.filter(names, pattern)
    ]
    return found + [
        f"the option 'ops' names {op!r}, which is not in the graph"
        for op in options.ops
        if op not in operators
    ]


def _both(static: Proposal, quick: Proposal) -> Proposal:
    """What is proposed on integers whose ranges are fixed, and on such that are taken as they come."""
    if not quick.details:
        return static
    return replace(
        static,
        candidates=[*static.candidates, *quick.candidates],
        details={**static.details, **quick.details},
        reason="" if static.candidates or quick.candidates else static.reason or quick.reason,
        best_effort=static.best_effort or quick.best_effort,
        milliseconds=min(static.milliseconds, quick.milliseconds),
    )


def _proposed(points: Sequence[Point]) -> list[Point]:
    """The fastest set that holds, and the next: on the target one may turn out over the budget or slower.

    Where the fastest holds without a margin, the next is the fastest that has one.
    """
    held = sorted(
        (point for point in points if point.judgement is not None and point.judgement.ok),
        key=lambda point: point.milliseconds,
    )
    clear = [point for point in held if point.judgement is not None and point.judgement.is_clear]
    if held and clear and held[0] is not clear[0]:
        return [held[0], clear[0]]
    return held[:_MOST_CANDIDATES]


def _loss(point: Point) -> float:
    return float("inf") if point.judgement is None else point.judgement.drop


def _why_none(refused: dict[str, str]) -> str:
    if not refused:
        return "it holds no Conv, MatMul or Gemm with constant weights"
    name, reason = next(iter(refused.items()))
    return f"none of its nodes can compute on integers; {name!r}: {reason}"


def _label(point: Point, found: Found) -> str:
    return f"int8 on {len(point.chosen)} of {len(found.units)} nodes"


def _details(found: Found, kernels: IntegerKernels, prepared: Prepared) -> dict[str, Any]:
    """Everything that was decided, for the report."""
    chosen: frozenset[str] = frozenset() if found.best is None else found.best.chosen
    costs = found.costs
    layers: list[dict[str, Any]] = []
    for unit in found.units:
        layers.append(
            {
                "node": unit.name,
                "op": unit.node.op_type,
                "precision": "int8" if unit.name in chosen else "float32",
                "reason": "" if unit.name in chosen else _why_float(unit, found),
                "float_ms": costs.floats.get(unit.name),
                "int8_ms": costs.integers.get(unit.name),
                "noise": None if found.guessed else found.noise.get(unit.name),
            }
        )
    for name, reason in {**found.refused, **found.slow}.items():
        layers.append({"node": name, "op": "", "precision": "float32", "reason": reason})
    return {
        "kernels": kernels.describe,
        **preparation_details(prepared),
        "layers": layers,
        "pareto": pareto.table(
            (
                len(point.chosen),
                point.milliseconds,
                constant_bytes(prepared.model, point.chosen),
                point.judgement,
            )
            for point in found.points
        ),
        "interrupted": found.interrupted,
    }


def _was_too_much(unit: Unit, found: Found) -> bool:
    """Whether a faster mix than the best one has this unit on integers, and is over the budget."""
    fastest = float("inf") if found.best is None else found.best.milliseconds
    return any(
        unit.name in point.chosen and point.judgement is not None and not point.judgement.ok
        for point in found.points
        if point.milliseconds < fastest
    )


def _why_float(unit: Unit, found: Found) -> str:
    costs = found.costs
    if costs.integers.get(unit.name, 0.0) >= costs.floats.get(unit.name, 0.0):
        return "int8 is no faster"
    if _was_too_much(unit, found):
        return "its noise would break the budget"
    return "int8 saves less than the conversions around it cost"
