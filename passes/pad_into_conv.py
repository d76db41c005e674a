"""Conv(Pad(x, p), W)  ==>  Conv<pads = pads + p>(x, W), and the same for AveragePool and MaxPool

Forms: TensorFlow, Keras and PyTorch (``ZeroPad2d``, "same" padding with a stride) write asymmetric or explicit
padding as a Pad of its own. AveragePool over padded data divides by the whole window, so it gets
``count_include_pad = 1``. MaxPool pads with minus infinity: it takes in a Pad of that value, or of one that is not
above 0 where the data cannot be negative.

Refuses: pads of batch or channels, or negative; modes other than constant; another value than 0 (MaxPool: see
above); ``auto_pad`` SAME with a stride over sizes that are not known; ``ceil_mode``; an AveragePool that pads by itself
without counting; pads as wide as the window of a pool; a Pad that something else reads; an AveragePool whose padding is
not equal on all sides in ONNX Runtime 1.24 and older, which counts it wrongly.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from graphopt.ir import facts, kernels, windows
from graphopt.rewrite import Builder, Refuse, Rewrite

_NON_NEGATIVE = frozenset(("Abs", "Exp", "HardSigmoid", "Relu", "Sigmoid", "Softmax", "Softplus"))


class PadIntoConv(Rewrite):
    """Explicit padding becomes the padding of the convolution or pool that reads it."""

    name = "pad-into-conv"
    roots = ("AveragePool", "Conv", "MaxPool")

    def apply(self, node: ir.Node, build: Builder) -> ir.Value | None:
        """The op over the unpadded data, with the sums of both pads."""
        padded = node.inputs[0]
        pad = None if padded is None else padded.producer()
        if padded is None or pad is None or pad.op_type != "Pad" or pad.domain or pad.graph is not node.graph:
            return None
        window = _window(node)
        if window is None or pad.inputs[0] is None:
            return None
        if facts.attribute(pad, "mode", "constant") != "constant":
            raise Refuse("it does not pad with a constant")
        added = _pads(pad, len(window) + 2)
        if added is None:
            return None
        outer = added[0][:2] + added[1][:2]
        if any(outer) or min(added[0] + added[1]) < 0:
            raise Refuse("it pads the batch or the channels, or crops")
        own = windows.pads(node)
        if own is None:
            raise Refuse("auto_pad SAME with a stride depends on the size of the padded data")
        attributes: dict[str, Any] = dict(node.attributes)
        attributes.pop("auto_pad", None)
        pads = [a + b for a, b in zip(added[0][2:] + added[1][2:], own, strict=True)]
        value = facts.scalar(pad.inputs[2]) if len(pad.inputs) > 2 and pad.inputs[2] is not None else 0.0
        if value is None:
            return None
        if node.op_type == "MaxPool":
            _check_maximum(node, pad.inputs[0], value)
        elif value != 0:
            raise Refuse("it pads with another value than 0")
        if node.op_type == "AveragePool":
            if any(own) and not facts.attribute(node, "count_include_pad", 0):
                raise Refuse("the pool leaves its own padding out of the average")
            attributes["count_include_pad"] = 1
        if node.op_type != "Conv":
            if facts.attribute(node, "ceil_mode", 0):
                raise Refuse("with ceil_mode the windows at the end depend on who pads")
            if any(width >= size for width, size in zip(pads, window + window, strict=True)):
                raise Refuse("pads must be narrower than the window of a pool")
        unequal = node.op_type == "AveragePool" and len(set(pads)) > 1
        if unequal and not kernels.average_pool_counts_all_padding():
            raise Refuse("the installed ONNX Runtime counts padding wrongly that is not equal on all sides")
        if not all(use.node.op_type == node.op_type and use.idx == 0 for use in padded.uses()):
            raise Refuse("something else reads the padded value")
        if padded.is_graph_output():
            raise Refuse("the padded value is an output of the graph")
        attributes["pads"] = pads
        return build.op(node.op_type, pad.inputs[0], *node.inputs[1:], like=node.outputs[0], **attributes)


def _window(node: ir.Node) -> tuple[int, ...] | None:
    """The kernel's shape; None for a MaxPool whose indices (of padded data) are read."""
    if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        return None
    return windows.kernel(node)


def _pads(pad: ir.Node, rank: int) -> tuple[list[int], list[int]] | None:
    """What Pad adds before and after each axis; None where that is not constant."""
    widths = facts.ints(pad.inputs[1])
    axes: tuple[int, ...] | None = tuple(range(rank))
    if len(pad.inputs) > 3 and pad.inputs[3] is not None:
        axes = facts.ints(pad.inputs[3])
    if widths is None or axes is None or len(widths) != 2 * len(axes):
        return None
    before, after = [0] * rank, [0] * rank
    for index, axis in enumerate(axes):
        before[axis % rank] += widths[index]
        after[axis % rank] += widths[len(axes) + index]
    return before, after


def _check_maximum(node: ir.Node, data: ir.Value, value: float) -> None:
    """Refuse where padding could win over the data, or where a window could lie in padding alone."""
    if any(step != 1 for step in facts.attribute(node, "dilations", ())):
        raise Refuse("a dilated window could see padding only")
    if value == float("-inf"):
        return
    if value > 0 or facts.producer_op(data) not in _NON_NEGATIVE:
        raise Refuse("the padding could be the maximum")
