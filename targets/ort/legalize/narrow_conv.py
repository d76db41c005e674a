"""Conv to few channels  ==>  DepthToSpace(Conv to four times as many, stride 2)

Four neighbouring output pixels (2 x 2) become channels of one: the kernel [k, k] is laid into [k + 1, k + 1] at each
of the four places, and DepthToSpace in DCR order puts the pixels back (Shi et al., https://arxiv.org/abs/1609.05158).
ONNX Runtime's blocked convolutions compute channels by eight and use a value that they have loaded for up to four such
blocks, so that a convolution to one or three channels throws most of that away.

Forms: the last layer of super-resolution, denoising, style transfer, depth estimation and segmentation: float32, 2-D,
stride 1, no groups, up to three channels, a kernel of 3 x 3 and more. Where height or width may be odd, padding makes
them even and Slice cuts the rest off. ``benchmarks/rewrites.py narrow-conv`` tells the gain (docs/onnxruntime.md).

Refuses: weights that something else reads; fewer than 16 channels in, of which little is thrown away.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt.ir import facts, windows
from graphopt.rewrite import Builder, Refuse, Rewrite

_SIDE = 2
_LEAST_KERNEL, _MOST_OUTPUTS, _LEAST_INPUTS = 3, 3, 16


class NarrowConv(Rewrite):
    """A convolution to few channels computes four pixels as channels of one."""

    name = "narrow-conv"
    roots = ("Conv",)

    def apply(self, node: ir.Node, build: Builder) -> ir.Value | None:
        """The wider kernel, and the pixels back in their places."""
        x, weight = node.inputs[0], node.inputs[1]
        shape, sizes = facts.static_dims(weight), facts.dims(node.outputs[0])
        content = facts.constant(weight)
        if x is None or weight is None or content is None or shape is None or len(shape) != 4:
            return None
        outputs, inputs, *kernel = shape
        if outputs > _MOST_OUTPUTS or min(kernel) < _LEAST_KERNEL or content.dtype != np.float32:
            return None
        steps = (*facts.attribute(node, "strides", ()), *facts.attribute(node, "dilations", ()))
        if facts.attribute(node, "group", 1) != 1 or any(step != 1 for step in steps):
            return None
        pads = _pads(node, kernel)
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if pads is None or (bias is not None and not facts.is_constant(bias)):
            return None
        even = sizes is not None and all(size is not None and size % _SIDE == 0 for size in sizes[2:])
        keeps = [
            first + last + 1 == side for first, last, side in zip(pads[:2], pads[2:], kernel, strict=True)
        ]
        if not even and not all(keeps):
            return None
        if inputs < _LEAST_INPUTS:
            raise Refuse(f"{inputs} channels in")
        if len(weight.uses()) != 1:
            raise Refuse(f"the weight {weight.name!r} is shared")
        wide = np.zeros((_SIDE, _SIDE, outputs, inputs, *(side + _SIDE - 1 for side in kernel)), np.float32)
        for row in range(_SIDE):
            for column in range(_SIDE):
                wide[row, column, :, :, row : row + kernel[0], column : column + kernel[1]] = content
        offsets = facts.constant(bias)
        more = [] if offsets is None else [np.tile(offsets, _SIDE**2)]
        # One more row and column where there may be an odd number, which are cut off again.
        ends = pads[2:] if even else [pad + 1 for pad in pads[2:]]
        coarse = build.op(
            "Conv", x, wide.reshape(-1, *wide.shape[3:]), *more,
            strides=[_SIDE, _SIDE], pads=[*pads[:2], *ends], kernel_shape=list(wide.shape[4:]),
            shape=_coarse_shape(node, outputs),
        )  # fmt: skip
        fine = build.op("DepthToSpace", coarse, like=node.outputs[0], blocksize=_SIDE, mode="DCR")
        if even:
            return fine
        fine.shape = None
        size = build.op("Shape", x, dtype=ir.DataType.INT64, shape=[2], start=2, end=4)
        start, axes = np.zeros(2, np.int64), np.array([2, 3], np.int64)
        return build.op("Slice", fine, start, size, axes, like=node.outputs[0])


def _pads(node: ir.Node, kernel: list[int]) -> list[int] | None:
    """Rows before, columns before, rows after, columns after; None where they are not told or negative."""
    pads = windows.pads(node)
    return list(pads) if pads is not None and len(pads) == 2 * len(kernel) and min(pads) >= 0 else None


def _coarse_shape(node: ir.Node, outputs: int) -> list[int | None] | None:
    sizes = facts.dims(node.outputs[0])
    if sizes is None:
        return None
    halves = [None if size is None else -(-size // _SIDE) for size in sizes[2:]]
    return [sizes[0], outputs * _SIDE**2, *halves]
