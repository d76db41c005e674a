"""Operators that work on images channel by channel: pools, normalizations of channels, resizing, pixel shuffles."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from graphopt.ir import facts
from graphopt.prune.flow.base import Flow, Rule
from graphopt.prune.flow.sizes import target_of


def _spatial(flow: Flow, node: ir.Node) -> None:
    """Pools and the like: rows and channels go on, places do not."""
    value = node.inputs[0]
    axes = flow.axes(value)
    if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        flow.refuse(node, "its indices count channels")
        return
    flow.labels.put(node.outputs[0], [*axes[:2], *(None for _ in axes[2:])])


def _per_channel(flow: Flow, node: ir.Node) -> None:
    """Normalization of each channel by itself: its parameters go with the channels."""
    axes = flow.axes(node.inputs[0])
    if len(axes) < 2:
        flow.refuse(node, "it has no channels")
        return
    for value in node.inputs[1:]:
        if value is not None:
            axes[1] = flow.tie(node, axes[1], flow.labels.of(value, 0), "its parameters are computed")
    spatial = axes[2:] if node.op_type == "BatchNormalization" else [None for _ in axes[2:]]
    flow.labels.put(node.outputs[0], [*axes[:2], *spatial])


def _group_normalization(flow: Flow, node: ir.Node) -> None:
    axes = flow.axes(node.inputs[0])
    groups = facts.attribute(node, "num_groups", 1)
    if len(axes) > 1 and axes[1] is not None and len(axes[1]) % groups == 0:
        # A group is normalized as a whole, so it goes as a whole.
        flow.tie_rows(node, np.ascontiguousarray(axes[1].reshape(groups, -1).T))
    _per_channel(flow, node)


def _resize(flow: Flow, node: ir.Node) -> None:
    """Places of an image, or a volume; what channels are is kept."""
    value, out = node.inputs[0], node.outputs[0]
    axes, before, after = flow.axes(value), facts.dims(value) or (), facts.dims(out)
    sizes = target_of(node.inputs[3], flow.shapes) if len(node.inputs) > 3 else None
    if sizes is None and len(node.inputs) > 3:
        flow.refuse(node, "its sizes are computed")
        return
    named = facts.attribute(node, "axes", None) or range(len(axes))
    written = dict(zip((axis % len(axes) for axis in named), sizes or (), strict=False))
    for axis, labels in enumerate(axes):
        is_kept = after is not None and before[axis] == after[axis]
        # A size that is written is mended, so it has to be known.
        if labels is not None and (
            axis > 1 or not is_kept or written.get(axis, before[axis]) != before[axis]
        ):
            flow.labels.pin(labels, node.name or node.op_type, "it is resized, or its size is computed")
            axes[axis] = None
    flow.labels.put(out, axes)


def _depth_to_space(flow: Flow, node: ir.Node) -> None:
    axes = flow.axes(node.inputs[0])
    squared = int(facts.attribute(node, "blocksize", 1)) ** 2
    labels = axes[1] if len(axes) > 1 else None
    if labels is not None:
        depth_first = facts.attribute(node, "mode", "DCR") == "DCR"
        rows = labels.reshape(squared, -1) if depth_first else labels.reshape(-1, squared).T
        axes[1] = flow.tie_rows(node, np.ascontiguousarray(rows))
    flow.labels.put(node.outputs[0], [*axes[:2], *(None for _ in axes[2:])])


def _space_to_depth(flow: Flow, node: ir.Node) -> None:
    axes = flow.axes(node.inputs[0])
    squared = int(facts.attribute(node, "blocksize", 1)) ** 2
    if len(axes) > 1 and axes[1] is not None:
        axes[1] = np.tile(axes[1], squared)
    flow.labels.put(node.outputs[0], [*axes[:2], *(None for _ in axes[2:])])


def _sampled(flow: Flow, node: ir.Node) -> None:
    """Channels of an image, at places that are computed."""
    rank = facts.rank(node.outputs[0])
    if rank is not None:
        flow.labels.put(node.outputs[0], [None, flow.labels.of(node.inputs[0], 1), *(None,) * (rank - 2)])


_POOLS = (
    "AveragePool", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "LpPool", "MaxPool",
)  # fmt: skip

RULES: Mapping[str, Rule] = {
    **dict.fromkeys(_POOLS, _spatial),
    "BatchNormalization": _per_channel,
    "DepthToSpace": _depth_to_space,
    "GridSample": _sampled,
    "GroupNormalization": _group_normalization,
    "InstanceNormalization": _per_channel,
    "Resize": _resize,
    "RoiAlign": _sampled,
    "SpaceToDepth": _space_to_depth,
}
"""By operator of ONNX."""

__all__ = ["RULES"]
