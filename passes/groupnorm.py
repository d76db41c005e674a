"""GroupNormalization(x, gamma, beta)  ==>  Reshape, InstanceNormalization, Reshape, Mul gamma, Add beta

Forms: the operator of opset 21 for group normalisation (https://arxiv.org/abs/1803.08494). The right side is what
PyTorch's exporters write for ``torch.nn.GroupNorm``, and the normal form here: ONNX Runtime has no kernel for the
operator and inlines it as 29 nodes, which take longer. Times as fast (``benchmarks/rewrites.py``, 2 threads, AMD
EPYC with AVX-512): 1.47 on [1, 64, 56, 56]. Group normalisation that is written out with means and variances
reaches the same form through the pass ``instancenorm``.

Refuses: an unknown rank or number of channels. Not matched: float64 (InstanceNormalization has no kernel for it in
ONNX Runtime).
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt.ir import facts
from graphopt.passes._elementwise import SINGLE_OR_HALF
from graphopt.rewrite import Builder, Refuse, Rewrite


class GroupNorm(Rewrite):
    """Group normalisation by way of InstanceNormalization."""

    name = "groupnorm"
    roots = ("GroupNormalization",)

    def apply(self, node: ir.Node, build: Builder) -> ir.Value | None:
        x, gamma, beta = node.inputs
        root = node.outputs[0]
        if x is None or gamma is None or beta is None or x.dtype not in SINGLE_OR_HALF:
            return None
        shape, rank = x.shape, facts.rank(x)
        channels = (facts.dims(gamma) or (None,))[0]
        groups = facts.attribute(node, "num_groups")
        if shape is None or rank is None or rank < 3 or channels is None:
            raise Refuse("the rank or the number of channels is not known")
        dtype = facts.numpy_dtype(x)
        assert dtype is not None
        grouped = build.op(
            "Reshape", x, np.array([0, groups, -1]), dtype=x.dtype, shape=ir.Shape([shape[0], groups, None])
        )
        normalised = build.op(
            "InstanceNormalization",
            grouped,
            np.ones(groups, dtype),
            np.zeros(groups, dtype),
            like=grouped,
            epsilon=facts.attribute(node, "epsilon", 1e-5),
        )
        static = facts.static_dims(x)
        target = (
            build.constant(np.array(static))
            if static is not None
            else build.op("Shape", x, dtype=ir.DataType.INT64, shape=[rank])
        )
        restored = build.op("Reshape", normalised, target, like=root)
        by_channel = [channels] + [1] * (rank - 2)
        scaled = build.op("Mul", restored, _reshaped(gamma, by_channel, build), like=root)
        return build.op("Add", scaled, _reshaped(beta, by_channel, build), like=root)


def _reshaped(parameter: ir.Value, shape: list[int], build: Builder) -> ir.Value:
    content = facts.constant(parameter)
    if content is not None:
        return build.constant(content.reshape(shape))
    return build.op("Reshape", parameter, np.array(shape), dtype=parameter.dtype, shape=shape)
