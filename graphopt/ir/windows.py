"""Windows that convolutions and pools move over their data, as the ONNX specification tells them (Conv, MaxPool)."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from graphopt.ir import facts

_WITH_WEIGHT = frozenset({"Conv", "ConvTranspose"})
SAME = ("SAME_UPPER", "SAME_LOWER")


def kernel(node: ir.Node) -> tuple[int, ...] | None:
    """The window's shape; None where neither an attribute nor a weight of known shape tells it."""
    shape: Sequence[int] | None = facts.attribute(node, "kernel_shape")
    if shape is None and node.op_type in _WITH_WEIGHT:
        weight = facts.static_dims(node.inputs[1])
        shape = None if weight is None else weight[2:]
    return None if shape is None else tuple(shape)


def steps(node: ir.Node, name: str, rank: int) -> tuple[int, ...]:
    """``strides`` or ``dilations``; 1 where the node leaves them out."""
    return tuple(facts.attribute(node, name) or (1,) * rank)


def pads(node: ir.Node) -> tuple[int, ...] | None:
    """What is padded, all beginnings and then all ends, in places of the data; ``auto_pad`` resolved.

    None where that depends on sizes that are not known, or no kernel is told; for a ConvTranspose whose output's size
    tells it (SAME, ``output_shape``); and for SAME with dilations, which ONNX Runtime pads as if there were none.
    """
    if "output_shape" in node.attributes:
        return None
    mode = facts.attribute(node, "auto_pad", "NOTSET")
    window = kernel(node)
    if mode == "NOTSET":
        told: Sequence[int] | None = facts.attribute(node, "pads")
        return tuple(told) if told else None if window is None else (0,) * (2 * len(window))
    if window is None:
        return None
    if mode == "VALID":
        return (0,) * (2 * len(window))
    if node.op_type == "ConvTranspose":
        return None
    totals = _same(node, window)
    if totals is None:
        return None
    smaller = [total // 2 for total in totals]
    larger = [total - half for total, half in zip(totals, smaller, strict=True)]
    return (*smaller, *larger) if mode == "SAME_UPPER" else (*larger, *smaller)


def _same(node: ir.Node, window: Sequence[int]) -> list[int] | None:
    """How much is padded on each axis, so that the output has the input's size over the stride, rounded up."""
    rank = len(window)
    if any(step != 1 for step in steps(node, "dilations", rank)):
        return None
    dims = facts.dims(node.inputs[0])
    sizes = dims[2:] if dims is not None and len(dims) == rank + 2 else (None,) * rank
    totals: list[int] = []
    for size, length, stride in zip(sizes, window, steps(node, "strides", rank), strict=True):
        if stride == 1:
            totals.append(length - 1)
        elif size is None:
            return None
        else:
            totals.append(max((-(-size // stride) - 1) * stride + length - size, 0))
    return totals


def is_padded(node: ir.Node) -> bool:
    """Whether anything is padded, as far as can be told: what depends on sizes that are not known may be."""
    known = pads(node)
    if known is None:
        return facts.attribute(node, "auto_pad", "NOTSET") in SAME or "output_shape" in node.attributes
    return any(known)


__all__ = ["SAME", "is_padded", "kernel", "pads", "steps"]
