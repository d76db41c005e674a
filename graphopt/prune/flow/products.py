"""Products with weights: convolutions, matrix products."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from graphopt.ir import facts
from graphopt.prune.flow.base import Flow, Rule
from graphopt.prune.flow.elementwise import broadcast
from graphopt.prune.labels import Axis


def _conv(flow: Flow, node: ir.Node) -> None:
    data, weight = node.inputs[0], node.inputs[1]
    channels, out = flow.labels.of(data, 1), flow.labels.of(weight, 0)
    groups = facts.attribute(node, "group", 1)
    dims = facts.static_dims(weight)
    if facts.is_constant(weight):
        flow.use(channels)
    if dims is None:
        flow.refuse(node, "its weights are not known")
        return
    if groups == 1:
        flow.tie(node, channels, flow.labels.of(weight, 1), "it reads channels that may not be removed")
    elif out is not None and channels is not None and len(channels) == groups:
        for row in out.reshape(groups, -1).T:
            flow.tie(node, channels, row, "")
    elif out is not None and len(out) > groups and len(weight.uses()) == 1:  # type: ignore[union-attr]
        # Channels that may not be removed are all there for the groups to read.
        if channels is not None:
            flow.balanced.append(channels.reshape(groups, -1))
        flow.balanced.append(out.reshape(groups, -1))
    else:
        flow.labels.pin(out, node.name or "", "it has groups of channels that may not be removed")
        flow.labels.pin(channels, node.name or "", "its weights are not constant, or shared")
    _bias(flow, node, out, 2)
    _image(flow, node, out)


def _conv_transpose(flow: Flow, node: ir.Node) -> None:
    weight = node.inputs[1]
    groups = facts.attribute(node, "group", 1)
    channels, of_weight = flow.labels.of(node.inputs[0], 1), flow.labels.of(weight, 0)
    if facts.is_constant(weight):
        flow.use(channels)
    flow.tie(node, channels, of_weight, "it reads channels that may not be removed")
    out = flow.labels.of(weight, 1)
    if groups > 1 and channels is not None and out is not None and len(channels) == groups and len(out) == 1:
        out = channels
    elif groups > 1:
        flow.labels.pin(channels, node.name or "", "its channels are in groups")
        out = None
    _bias(flow, node, out, 2)
    _image(flow, node, out)


def _bias(flow: Flow, node: ir.Node, out: Axis, slot: int) -> None:
    bias = node.inputs[slot] if slot < len(node.inputs) else None
    if bias is not None:
        flow.tie(node, out, flow.labels.of(bias, 0), "its bias is computed")


def _image(flow: Flow, node: ir.Node, channels: Axis) -> None:
    rank = facts.rank(node.outputs[0])
    if rank is not None:
        flow.labels.put(node.outputs[0], [flow.labels.of(node.inputs[0], 0), channels, *(None,) * (rank - 2)])


def _matmul(flow: Flow, node: ir.Node) -> None:
    left, right = node.inputs[0], node.inputs[1]
    if min(facts.rank(left) or 0, facts.rank(right) or 0) < 2:
        flow.refuse(node, "it multiplies a vector")
        return
    reason = "it multiplies with what may not be removed"
    flow.tie(node, flow.labels.of(left, -1), flow.labels.of(right, -2), reason)
    if facts.is_constant(right) and facts.rank(right) == 2:
        flow.use(flow.labels.of(left, -1))
    batch = broadcast(flow, node, [value for value in (left, right) if value is not None], batch=2)
    flow.labels.put(node.outputs[0], [*batch, flow.labels.of(left, -2), flow.labels.of(right, -1)])


def _gemm(flow: Flow, node: ir.Node) -> None:
    left, right = node.inputs[0], node.inputs[1]
    turned_left, turned_right = (facts.attribute(node, name, 0) for name in ("transA", "transB"))
    rows, inner = (flow.labels.of(left, axis) for axis in ((1, 0) if turned_left else (0, 1)))
    also, columns = (flow.labels.of(right, axis) for axis in ((1, 0) if turned_right else (0, 1)))
    flow.tie(node, inner, also, "it multiplies with what may not be removed")
    if facts.is_constant(right):
        flow.use(inner)
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    dims = facts.dims(bias)
    if bias is not None and dims and dims[-1] != 1:
        columns = flow.tie(node, columns, flow.labels.of(bias, -1), "its bias is computed")
    if bias is not None and dims and len(dims) > 1 and dims[0] != 1:
        rows = flow.tie(node, rows, flow.labels.of(bias, 0), "its bias is computed")
    flow.labels.put(node.outputs[0], [rows, columns])


RULES: Mapping[str, Rule] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
}
"""By operator of ONNX."""

__all__ = ["RULES"]
