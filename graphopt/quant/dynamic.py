"""Products and LSTMs on integers whose activations are quantized as they come: no calibration, a range for each run.

    q, scale, zero = DynamicQuantizeLinear(x)
    MatMul(x, W)   ==>  Cast(MatMulInteger(q, Wq, zero)) * (scale * scales)
    LSTM(x, W, R)  ==>  LSTM(DequantizeLinear(q, scale, zero), DequantizeLinear(Wq), DequantizeLinear(Rq))

Weights are int8, symmetric, one scale for each output channel. An LSTM has no integer form in ONNX: what stands there
restores its operands, and a target that has such a kernel takes it as a whole (and rounds the hidden state as well).
Which nodes have this form is decided by the kernels' measured times and by the budget.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.ir import facts
from graphopt.ir.facts import Array
from graphopt.quant import pareto
from graphopt.quant.attribution import attribute
from graphopt.quant.layers import (
    Beside,
    Choice,
    Found,
    Setting,
    choose,
    judge,
    noise_of_forms,
    refusals,
    replaced,
)
from graphopt.quant.ranges import quantize_weight, weight_scales
from graphopt.quant.units import Unit, constant_bytes

MAKER = "quantize-dynamic"
OPERATORS = ("MatMul", "Gemm", "LSTM")
PRECISION = "dynamic int8"
_LEAST_GAIN = 0.02
_SWEEP_SAMPLES = 1


def find(
    model: ir.Model,
    setting: Setting,
    *,
    weight_limit: int = 127,
    operators: frozenset[str] = frozenset(OPERATORS),
    allowed: Callable[[ir.Node], str] = lambda node: "",
) -> Found:
    """The layers that gain on integers, as many as the budget allows.

    Args:
        weight_limit: Largest magnitude of an integer weight.
        operators: That the target has such kernels for.
        allowed: Why a node is to stay in float; empty where it need not.
    """
    nodes, refused = layers_of(model)
    for node in nodes:
        missing = "" if node.op_type in operators else "the target has no such kernel for it"
        if reason := missing or allowed(node):
            refused[node.name or ""] = reason
    nodes = [node for node in nodes if node.name not in refused]
    if not nodes:
        return Found(PRECISION, details={"layers": refusals(refused)}, reason=_why_none(refused))
    form = DynamicForms(weight_limit)
    forms = {node.name or "": form for node in nodes}
    floats, integers, total = _times(model, nodes, forms, setting)
    gains = {name: floats.get(name, 0.0) - integers.get(name, 0.0) for name in forms}
    slow = {
        name: f"int8 takes {integers.get(name, 0.0):.3f} ms, float32 {floats.get(name, 0.0):.3f} ms"
        for name, gain in gains.items()
        if setting.runnable and gain <= _LEAST_GAIN * floats.get(name, 0.0)
    }
    usable = {name: gain for name, gain in gains.items() if name not in slow}

    def built(names: frozenset[str]) -> ir.Model:
        return replaced(model, {name: form for name in names}, MAKER)

    choice = choose(
        usable,
        lambda names: judge(built(names), setting),
        lambda until: noise_of_forms(
            model, {name: form for name in usable}, setting.evaluation.feeds[:_SWEEP_SAMPLES],
            threads=setting.threads, deadline=until, progress=setting.progress,
        ),
        deadline=setting.deadline,
        limit=setting.limit,
        progress=setting.progress,
    )  # fmt: skip
    best = choice.best
    chosen = frozenset() if best is None else best.chosen
    kept = len(nodes) - len(chosen)
    found = Found(
        f"{PRECISION}, {kept} kept float" if kept else PRECISION,
        None if best is None else built(best.chosen),
        units=tuple(Unit((node,), "compute") for node in nodes if node.name in chosen),
        details=_details(model, nodes, chosen, choice, refused, slow, floats, integers, total),
    )
    if best is not None and setting.runnable:
        found.milliseconds = total - sum(usable[name] for name in chosen)
    if choice.points:
        found.judgement = (best or choice.nearest).judgement
    if not choice.points:
        found.reason = "int8 is no faster for any of its products"
    elif best is None:
        nearest = choice.nearest
        found.nearest = built(nearest.chosen)
        found.units = tuple(Unit((node,), "compute") for node in nodes if node.name in nearest.chosen)
        found.reason = (
            f"no choice of layers is within the budget; the nearest: {nearest.judgement.describe()}"
        )
    return found


def layers_of(model: ir.Model) -> tuple[list[ir.Node], dict[str, str]]:
    """Nodes of the main graph that could be on integers, in order, and why others of their operators cannot."""
    found: list[ir.Node] = []
    refused: dict[str, str] = {}
    for node in model.graph.all_nodes():
        if node.domain != "" or node.op_type not in OPERATORS:
            continue
        reason = "it is part of a subgraph" if node.graph is not model.graph else why_not(node)
        if reason:
            refused[node.name or ""] = reason
        else:
            found.append(node)
    return found, refused


def why_not(node: ir.Node) -> str:
    """Why a node of one of these operators stays in float; empty where it need not."""
    x = node.inputs[0]
    weights = node.inputs[1:3] if node.op_type == "LSTM" else node.inputs[1:2]
    if x is None or x.dtype != ir.DataType.FLOAT:
        return "it does not compute in float32"
    if any(not facts.is_constant(weight) for weight in weights):
        return "its weight is no constant"
    wanted = 3 if node.op_type == "LSTM" else 2
    if any(facts.rank(weight) != wanted for weight in weights):
        return f"its weight has {facts.rank(weights[0])} dimensions"
    if node.op_type == "MatMul" and (facts.rank(x) or 0) < 2:
        return "its first operand is a vector, or of unknown rank"
    if node.op_type == "Gemm" and facts.attribute(node, "transA", 0):
        return "its first operand is transposed"
    if node.op_type == "LSTM" and facts.attribute(node, "layout", 0):
        return "its batch comes first"
    arrays = [facts.constant(weight) for weight in weights]
    if any(array is None or array.size == 0 or not np.isfinite(array).all() for array in arrays):
        return "its weight is empty, or holds NaN or infinity"
    return ""


class DynamicForms:
    """Builds the integer form of each layer; a weight is quantized once.

    Args:
        weight_limit: Largest magnitude of an integer weight: 127, or 63 where sums of two products saturate.
    """

    def __init__(self, weight_limit: int = 127) -> None:
        self._limit = weight_limit
        self._made: dict[tuple[str, int], tuple[Array, Array]] = {}

    def __call__(self, node: ir.Node, build: Beside) -> list[ir.Value | None]:
        """The outputs, from integers."""
        return self._lstm(node, build) if node.op_type == "LSTM" else [self._product(node, build)]

    def _product(self, node: ir.Node, build: Beside) -> ir.Value:
        axis = 0 if node.op_type == "Gemm" and facts.attribute(node, "transB", 0) else 1
        weight = node.inputs[1]
        assert weight is not None
        key = f"{weight.name}/int8_{axis}"
        if (key, axis) not in self._made:
            array = facts.constant(weight)
            assert array is not None
            scales = weight_scales(array, axis, self._limit)
            rounded = quantize_weight(array, scales, axis, self._limit)
            self._made[key, axis] = (np.ascontiguousarray(rounded if axis else rounded.T), scales)
        rounded, scales = self._made[key, axis]
        alpha = facts.attribute(node, "alpha", 1.0) if node.op_type == "Gemm" else 1.0
        integers, scale, zero = _quantized(node, build)
        steps = build.shared(f"{key}_scales_{alpha:g}", (scales * np.float32(alpha)).astype(np.float32))
        sums = build.op(
            "MatMulInteger", integers, build.shared(key, rounded), zero,
            like=node.outputs[0], dtype=ir.DataType.INT32,
        )  # fmt: skip
        floats = build.op("Cast", sums, like=node.outputs[0], to=ir.DataType.FLOAT.value)
        product = build.op("Mul", scale, steps, dtype=ir.DataType.FLOAT, shape=[scales.size])
        result = build.op("Mul", floats, product, like=node.outputs[0])
        bias = node.inputs[2] if node.op_type == "Gemm" and len(node.inputs) > 2 else None
        if bias is None:
            return result
        beta = facts.attribute(node, "beta", 1.0)
        constant = facts.constant(bias)
        if beta != 1.0 and constant is not None:
            bias = build.shared(
                f"{bias.name}_times_{beta:g}", (constant * np.float32(beta)).astype(np.float32)
            )
        elif beta != 1.0:
            bias = build.op("Mul", bias, np.asarray(beta, np.float32), like=bias)
        return build.op("Add", result, bias, like=node.outputs[0])

    def _lstm(self, node: ir.Node, build: Beside) -> list[ir.Value | None]:
        integers, scale, zero = _quantized(node, build)
        x = node.inputs[0]
        operands = list(node.inputs)
        operands[0] = build.op("DequantizeLinear", integers, scale, zero, like=x)
        for slot in (1, 2):
            weight = node.inputs[slot]
            assert weight is not None
            rounded, scales = self._gates(weight)
            key = f"{weight.name}/int8"
            operands[slot] = build.op(
                "DequantizeLinear", build.shared(key, rounded), build.shared(f"{key}_scales", scales),
                like=weight, axis=2, block_size=rounded.shape[2],
            )  # fmt: skip
        attributes: dict[str, Any] = dict(node.attributes)
        first = build.op("LSTM", *operands, like=node.outputs[0], outputs=len(node.outputs), **attributes)
        made = first.producer()
        assert made is not None
        for old, new in zip(node.outputs, made.outputs, strict=True):
            new.type, new.shape = old.type, old.shape.copy() if old.shape is not None else None
            if not old.name:
                new.name = ""
        return [new if old.name else None for old, new in zip(node.outputs, made.outputs, strict=True)]

    def _gates(self, weight: ir.Value) -> tuple[Array, Array]:
        """int8 [directions, 4 * hidden, inputs] and float32 scales [directions, 4 * hidden, 1]."""
        key = (weight.name or "", 2)
        if key not in self._made:
            array = facts.constant(weight)
            assert array is not None
            rows = array.reshape(-1, array.shape[2])
            scales = weight_scales(rows, 0, self._limit)
            rounded = quantize_weight(rows, scales, 0, self._limit)
            self._made[key] = rounded.reshape(array.shape), scales.reshape(*array.shape[:2], 1)
        return self._made[key]


def _quantized(node: ir.Node, build: Beside) -> tuple[ir.Value, ir.Value, ir.Value]:
    """The first operand as uint8, its scale and zero point; made once for all layers that read it."""
    x = node.inputs[0]
    assert x is not None
    if x not in build.common.values:
        integers = build.op("DynamicQuantizeLinear", x, outputs=3, like=x, dtype=ir.DataType.UINT8)
        producer = integers.producer()
        assert producer is not None
        _, scale, zero = producer.outputs
        scale.type, zero.type = ir.TensorType(ir.DataType.FLOAT), ir.TensorType(ir.DataType.UINT8)
        scale.shape, zero.shape = ir.Shape([]), ir.Shape([])
        build.common.values[x] = producer.outputs
    integers, scale, zero = build.common.values[x]
    return integers, scale, zero


def _times(
    model: ir.Model, nodes: Sequence[ir.Node], forms: Mapping[str, DynamicForms], setting: Setting
) -> tuple[Mapping[str, float], Mapping[str, float], float]:
    """Milliseconds of each layer in float and on integers, and of the whole graph in float.

    Where the target cannot run here, the size of a weight stands for the time of its layer.
    """
    if not setting.runnable:
        sizes = {node.name or "": facts.constant_nbytes(node.inputs[1]) / 1e6 for node in nodes}
        return sizes, {}, 0.0
    units = [Unit((node,), "compute") for node in nodes]
    setting.progress("times in float")
    floats = attribute(setting.profile(model, "float"), units, model)
    setting.progress("times on integers")
    everything = replaced(model, forms, MAKER)
    integers = attribute(setting.profile(everything, "integers"), units, everything)
    # A layer that no kernel on integers computes cannot gain by being there.
    times = {
        name: milliseconds if name in integers.integer else float("inf")
        for name, milliseconds in integers.milliseconds.items()
    }
    total = sum(floats.milliseconds.values()) + floats.other
    return _typical(nodes, floats.milliseconds, 0.0), _typical(nodes, times, float("inf")), total


def _typical(nodes: Sequence[ir.Node], times: Mapping[str, float], unknown: float) -> dict[str, float]:
    """The median time of layers of the same operator and sizes, since a busy machine spoils single ones.

    Args:
        unknown: Of a layer that no kernel could be told to be.
    """
    alike: dict[object, list[str]] = {}
    for node in nodes:
        key = (node.op_type, facts.dims(node.inputs[0]), facts.dims(node.inputs[1]))
        alike.setdefault(key, []).append(node.name or "")
    return {
        name: float(np.median([times.get(other, unknown) for other in names]))
        for names in alike.values()
        for name in names
    }


def _details(
    model: ir.Model,
    nodes: Sequence[ir.Node],
    chosen: frozenset[str],
    choice: Choice,
    refused: Mapping[str, str],
    slow: Mapping[str, str],
    floats: Mapping[str, float],
    integers: Mapping[str, float],
    total: float,
) -> dict[str, Any]:
    layers: list[dict[str, Any]] = []
    for node in nodes:
        name = node.name or ""
        inside = name in chosen
        layers.append(
            {
                "node": name,
                "op": node.op_type,
                "precision": PRECISION if inside else "float32",
                "reason": "" if inside else slow.get(name, "its noise would break the budget"),
                "float_ms": floats.get(name),
                "int8_ms": integers.get(name) if np.isfinite(integers.get(name, 0.0)) else None,
                "noise": choice.noise.get(name),
            }
        )

    judged = [
        (len(entry.chosen), total - entry.gain, constant_bytes(model, entry.chosen), entry.judgement)
        for entry in choice.points
    ]
    return {"layers": layers + refusals(refused), "pareto": pareto.table(judged)}


def _why_none(refused: Mapping[str, str]) -> str:
    if not refused:
        return "it holds no MatMul, Gemm or LSTM"
    name, reason = next(iter(refused.items()))
    return f"none of its products can be on integers; {name!r}: {reason}"
