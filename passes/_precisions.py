"""What ``quantize`` proposes besides static int8: dynamic int8 for products, and what a GPU has kernels for."""

from __future__ import annotations

import fnmatch
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import onnx_ir as ir

from graphopt.data.interface import spread
from graphopt.ir import facts
from graphopt.ir import model as ir_model
from graphopt.lossy import Candidate, Context, Proposal
from graphopt.quant import dynamic, half, weight_only
from graphopt.quant.blocks import BlockForms, layers_of
from graphopt.quant.equalize import equalize
from graphopt.quant.kernels import PRODUCTS
from graphopt.quant.layers import Found, replaced
from graphopt.quant.storage import rounding_noise

_CONVOLUTIONS = ("Conv", "ConvTranspose")
_LEAST_WORK = 0.5
_POSITIONS = {
    "Conv": slice(2, None),
    "ConvTranspose": slice(2, None),
    "Gemm": slice(1, -1),
    "MatMul": slice(1, -1),
    "LSTM": slice(1),
}
"""The sizes of a result that say how often a weight is used for one sample."""
_SAMPLES = 64
_WEIGHT_BITS = 8
_LEAST_SHARE = 0.1
_MOST_NOISE = 1e-4
_SMOOTHED_SAMPLES, _SMOOTHING_SECONDS = 16, 1.5
_SMOOTHING_GAIN = 4.0
"""A factor that cannot go into a node before is a Mul for each product, so much has to be gained."""

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


def proposal_of(found: Found) -> Proposal:
    """What was found as a candidate, or as the best effort where it did not hold."""

    def candidates(graph: ir.Model | None) -> list[Candidate]:
        if graph is None:
            return []
        return [Candidate(found.label, graph, units=found.units, judgement=found.judgement)]

    nearest = candidates(found.nearest)
    return Proposal(
        candidates(found.model),
        found.details,
        "" if found.model is not None else found.reason,
        best_effort=nearest[0] if nearest else None,
        milliseconds=found.milliseconds,
    )


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


def with_small_tables(
    model: ir.Model, context: Context, allowed: Allowed
) -> tuple[ir.Model, list[dict[str, Any]]]:
    """``model`` with large tables in 8-bit blocks, and what was done to each for the report.

    Rounding a table adds so little noise (40 dB at least are asked for) that it comes before the search for a mix, the
    judgements of which include it. It makes a model smaller and costs no time.
    """
    kernels = context.kernels
    if kernels is None or not kernels.tables:
        return model, []
    least = _LEAST_SHARE * sum(facts.constant_nbytes(value) for value in model.graph.initializers.values())
    form = BlockForms(weight_only.scheme_of(8), {}, {})
    forms: dict[str, BlockForms] = {}
    details: list[dict[str, Any]] = []
    for node in layers_of(model)[0]:
        table = node.inputs[0]
        if node.op_type != "Gather" or table is None or facts.constant_nbytes(table) < least or allowed(node):
            continue
        array = facts.constant(table)
        if array is None or any(use.node.op_type != "Gather" for use in table.uses()):
            continue
        share = rounding_noise(array, form.blocks(node).restored(form.scheme.block).T)
        if share > _MOST_NOISE:
            continue
        forms[node.name or ""] = form
        details.append(
            {"node": node.name, "scheme": form.scheme.describe, "bytes": table.const_value.nbytes,  # type: ignore[union-attr]
             "bytes_in_blocks": form.nbytes(node), "noise": share}
        )  # fmt: skip
    return (replaced(model, forms, weight_only.MAKER) if forms else model), details


def is_of_products(model: ir.Model) -> bool:
    """Whether products are most of the weights, and a third of the work: then they are worth int8 for themselves.

    In VGG-19 nine tenths of the weights are those of products, and a hundredth of the multiplications: what is gained
    there static int8 gains as well, and the convolutions with it.
    """
    return weight_bytes(model, dynamic.OPERATORS) > weight_bytes(model, _CONVOLUTIONS) and (
        multiplications(model, dynamic.OPERATORS) > _LEAST_WORK * multiplications(model, _CONVOLUTIONS)
    )


def multiplications(model: ir.Model, operators: tuple[str, ...]) -> int:
    """By the constant weights of nodes of these operators, for one sample; a size that is not known counts as one."""
    total = 0
    for node in model.graph.all_nodes():
        if node.op_type not in operators:
            continue
        sizes = [facts.dims(value) or () for value in node.inputs[1:3] if facts.is_constant(value)]
        weights = sum(_product(dims) for dims in sizes if len(dims) > 1)
        made = facts.dims(node.outputs[0]) or ()
        total += weights * _product(made[_POSITIONS[node.op_type]])
    return total


def _product(sizes: Iterable[int | None]) -> int:
    return math.prod(size or 1 for size in sizes)


def dynamic_int8(model: ir.Model, context: Context, allowed: Allowed) -> Proposal:
    """Products on int8 with activations quantized as they come, outlier channels smoothed where much is gained."""
    kernels = context.kernels
    assert kernels is not None
    smoothed = ir_model.clone(model)
    context.progress("smoothing channels")
    scaled = equalize(
        smoothed, kernels, context.dataset.calibration(_SMOOTHED_SAMPLES),
        operators=PRODUCTS & kernels.dynamic, least_gain=_SMOOTHING_GAIN, seconds=_SMOOTHING_SECONDS,
        threads=context.threads,
    )  # fmt: skip
    found = dynamic.find(
        smoothed if scaled else model, context,
        weight_limit=kernels.weight_limit, operators=kernels.dynamic, allowed=allowed,
    )  # fmt: skip
    equalized = [entry.describe() for entry in scaled]
    details = {"label": found.label, "reason": found.reason, **found.details, "equalized": equalized}
    return replace(proposal_of(found), details={"dynamic": details})


def without_integers(model: ir.Model, context: Context, allowed: Allowed) -> Proposal:
    """float16, and with it weights of 8 bits in products, for a target that has no kernels on integers."""
    operators = context.halves.get("float16")
    why = f"{context.target} has no int8 kernels for quantized graphs: they would run on the CPU"
    if not operators:
        return Proposal(reason=f"{context.target} has no int8 kernels that are faster than float")
    details: dict[str, Any] = {
        "kernels": f"{why}; it has kernels for float16 and for products with weights of 4 or 8 bits"
    }
    data = [*context.dataset.calibration(_SAMPLES), *spread(context.evaluation.feeds, _SAMPLES)]
    plain = half.find(model, context, operators, data, allowed=allowed)
    details.update(plain.details)
    first = proposal_of(plain)
    candidates = first.candidates
    products = weight_bytes(model, ("MatMul", "Gemm", "Gather"))
    if 2 * products > products + weight_bytes(model, _CONVOLUTIONS):
        small = weight_only.find(model, context, weight_only.scheme_of(_WEIGHT_BITS), allowed=allowed)
        details["weights"] = {"label": small.label, "reason": small.reason, **small.details}
        if small.model is not None and time.monotonic() < context.deadline:
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
    return replace(first, details=details, reason=f"{why}; {plain.reason}")
