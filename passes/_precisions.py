"""What ``quantize`` proposes besides static int8: dynamic int8 for products, and what a GPU has kernels for."""

from __future__ import annotations

import fnmatch
import itertools
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import onnx_ir as ir

from graphopt.ir import facts
from graphopt.lossy import Candidate, Context, Proposal
from graphopt.quant import dynamic, half, weight_only

_CONVOLUTIONS = ("Conv", "ConvTranspose")
_SAMPLES = 64

Allowed = Callable[[ir.Node], str]


def kept_by(ops: tuple[str, ...], keep: tuple[str, ...]) -> Allowed:
    """Why a node is to stay in float by the options ``ops`` and ``keep``; empty where it need not."""

    def reason(node: ir.Node) -> str:
        if ops and node.op_type not in ops:
            return "its operator is not among the option 'ops'"
        if any(fnmatch.fnmatchcase(node.name or "", pattern) for pattern in keep):
            return "the option 'keep' names it"
        return ""

    return reason


def weight_bytes(model: ir.Model, operators: tuple[str, ...]) -> int:
    """Bytes of the float32 constants that nodes of these operators read."""
    values = {
        value
        for node in model.graph.all_nodes()
        if node.op_type in operators
        for value in node.inputs
        if value is not None and facts.is_constant(value) and value.dtype == ir.DataType.FLOAT
    }
    return sum(facts.constant_nbytes(value) for value in values)


def with_dynamic(proposal: Proposal, model: ir.Model, context: Context, allowed: Allowed) -> Proposal:
    """``proposal`` with dynamic int8 as one more candidate, for a model whose weights are mostly those of products."""
    kernels = context.kernels
    if kernels is None or not kernels.dynamic or time.monotonic() > context.deadline:
        return proposal
    if weight_bytes(model, dynamic.OPERATORS) <= weight_bytes(model, _CONVOLUTIONS):
        return proposal
    found = dynamic.find(
        model, context, weight_limit=kernels.weight_limit, operators=kernels.dynamic, allowed=allowed
    )
    details = {
        **proposal.details,
        "dynamic": {"label": found.label, "reason": found.reason, **found.details},
    }
    if found.model is None:
        return replace(proposal, details=details)
    candidate = Candidate(found.label, found.model, units=found.units, judgement=found.judgement)
    return replace(proposal, candidates=[*proposal.candidates, candidate], details=details, reason="")


def without_integers(model: ir.Model, context: Context, allowed: Allowed) -> Proposal:
    """float16, and with it weights of 8 and 4 bits in products, for a target that has no kernels on integers."""
    operators = context.halves.get("float16")
    why = f"{context.target} has no int8 kernels for quantized graphs: they would run on the CPU"
    if not operators:
        return Proposal(reason=f"{context.target} has no int8 kernels that are faster than float")
    details: dict[str, Any] = {
        "kernels": f"{why}; it has kernels for float16 and for products with weights of 4 or 8 bits"
    }
    data = [
        feeds
        for source in (context.dataset.calibration(), context.evaluation.feeds)
        for feeds in itertools.islice(source, _SAMPLES)
    ]
    plain = half.find(model, context, operators, data, allowed=allowed)
    details.update(plain.details)
    candidates = (
        [] if plain.model is None else [Candidate(plain.label, plain.model, judgement=plain.judgement)]
    )
    products = weight_bytes(model, ("MatMul", "Gemm", "Gather"))
    if 2 * products > products + weight_bytes(model, _CONVOLUTIONS):
        for bits in (8, 4):
            if time.monotonic() > context.deadline:
                break
            small = weight_only.find(model, context, weight_only.scheme_of(bits), allowed=allowed)
            details[f"weights_{bits}"] = {"label": small.label, "reason": small.reason, **small.details}
            if small.model is None:
                continue
            both = half.find(small.model, context, operators, data, allowed=allowed)
            if both.model is not None:
                label = f"{small.label}, {both.label}"
                candidates.append(Candidate(label, both.model, judgement=both.judgement))
    else:
        details["weights"] = (
            "most weights are those of convolutions, for which there are no kernels with small weights"
        )
    if candidates:
        return Proposal(candidates, details)
    best_effort = None
    if plain.nearest is not None:
        best_effort = Candidate(plain.label, plain.nearest, judgement=plain.judgement)
    return Proposal(details=details, reason=f"{why}; {plain.reason}", best_effort=best_effort)
