"""AveragePool(x)  ==>  depthwise Conv(x) with 1/k, or GlobalAveragePool(x) where the window is the whole map

From opset 19 on, ONNX Runtime's AveragePool takes dilations and runs a scalar kernel in place of the vectorised one
of opset 18 and before, unless the blocked layout takes it: that needs a multiple of the block (8 or 16) of
channels. Times as fast (``benchmarks/rewrites.py``, 2 threads, AMD EPYC with AVX-512): 3.37 on [1, 24, 56, 56] with
window 3 and stride 2, 4.43 on [1, 10, 14, 14] with window 7. Forms: AveragePool as ONNX defines it, 4-D; where the
mean leaves padding out, a product with a constant map [1,1,H,W] of ``k / elements`` follows.

Refuses: dilations; ceil_mode where it adds a window; auto_pad SAME of sizes that are not known; padding left out of the
mean over a map of unknown size. Leaves alone: a multiple of 16 channels, unknown channels, other ranks than 4, types
other than float32.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt.ir import facts, windows
from graphopt.rewrite import Builder, Refuse, Rewrite
from graphopt.targets.ort.legalize._blocked import BLOCK


class PlainAveragePool(Rewrite):
    """Average pooling of few channels as a depthwise convolution."""

    name = "average-pool-to-conv"
    roots = ("AveragePool",)

    def apply(self, node: ir.Node, build: Builder) -> ir.Value | None:
        """One kernel of equal weights for every channel."""
        x, out = node.inputs[0], node.outputs[0]
        shape = facts.dims(x)
        if x is None or shape is None or len(shape) != 4 or shape[1] is None or x.dtype != ir.DataType.FLOAT:
            return None
        channels, extent = shape[1], shape[2:]
        if channels % BLOCK == 0:
            return None
        kernel = facts.attribute(node, "kernel_shape")
        strides = facts.attribute(node, "strides", (1, 1))
        pads = windows.pads(node)
        if any(step != 1 for step in facts.attribute(node, "dilations", ())):
            raise Refuse("dilations")
        if pads is None:
            raise Refuse("auto_pad SAME with a stride depends on sizes that are not known")
        padded = tuple(
            None if size is None else size + pads[axis] + pads[axis + 2] for axis, size in enumerate(extent)
        )
        if facts.attribute(node, "ceil_mode", 0):
            for size, window, stride in zip(padded, kernel, strides, strict=True):
                if size is None or (size - window) % stride:
                    raise Refuse("ceil_mode adds a window at the border")
        if not any(pads) and extent == kernel:
            return build.op("GlobalAveragePool", x, like=out)
        weight = np.full((channels, 1, *kernel), 1.0 / (kernel[0] * kernel[1]), np.float32)
        share = None
        if any(pads) and not facts.attribute(node, "count_include_pad", 0):
            share = _inverse_share(extent, pads, kernel, strides)
        result = build.op(
            "Conv", x, weight, like=out, kernel_shape=kernel, strides=strides, pads=pads, group=channels
        )
        return result if share is None else build.op("Mul", result, share, like=out)


def _inverse_share(
    extent: tuple[int | None, ...], pads: tuple[int, ...], kernel: tuple[int, ...], strides: tuple[int, ...]
) -> facts.Array:
    """Elements of the window over those of it that lie on the map [1, 1, out height, out width]."""
    factors = []
    for axis, size in enumerate(extent):
        if size is None:
            raise Refuse("the mean leaves padding out, and the size of the map is unknown")
        windows = (size + pads[axis] + pads[axis + 2] - kernel[axis]) // strides[axis] + 1
        start = np.arange(windows) * strides[axis] - pads[axis]
        inside = np.minimum(start + kernel[axis], size) - np.maximum(start, 0)
        if np.any(inside <= 0):
            raise Refuse("a window lies in the padding")
        factors.append(kernel[axis] / inside)
    share: facts.Array = np.multiply.outer(*factors).astype(np.float32)
    return share[None, None]
