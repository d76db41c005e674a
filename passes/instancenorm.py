"""(x - mean(x)) / sqrt(var(x) + eps) * gamma + beta over H and W  ==>  InstanceNormalization(x, gamma, beta)

Forms: instance normalisation (https://arxiv.org/abs/1607.08022) written out with ReduceMean over all the spatial axes
of an [N, C, ...] tensor, in each form that layer normalisation has; group normalisation
(https://arxiv.org/abs/1803.08494) written out after a Reshape to [N, groups, ...]. A constant Mul or Add of one number
for each channel behind the operator joins gamma and beta.

Refuses: a number of channels that is not known; gamma or beta that differ within a channel; an inner value
that something else reads. Not matched: float64 (no kernel in ONNX Runtime); a tensor of rank 3, which is taken for
a sequence with layer normalisation, unless it lies between two Reshapes, from and to a higher rank.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt.ir import facts
from graphopt.passes import _normalize as normalize
from graphopt.passes._elementwise import SINGLE_OR_HALF
from graphopt.rewrite import Builder, Match, PatternRewrite, const, op, var

_operator = op("InstanceNormalization", var("x"), const(name="scale"), const(name="bias"), name="inner")


class InstanceNorm(PatternRewrite):
    """InstanceNormalization."""

    name = "instancenorm"
    patterns = (
        *normalize.STANDARDISED,
        op("Mul", _operator, const(name="factor")),
        op("Add", _operator, const(name="summand")),
    )

    def build(self, match: Match, build: Builder) -> ir.Value | None:
        if "inner" in match:
            return _affine(match, build)
        x, root = match.value("x"), match.root.outputs[0]
        reduced, epsilon = normalize.axes(match), normalize.epsilon(match)
        shape = facts.dims(x)
        if reduced is None or epsilon is None or shape is None or reduced != tuple(range(2, len(shape))):
            return None
        if len(shape) == 3 and not (_is_flattened(x) and _is_unflattened(root)):
            return None
        channels = shape[1]
        if channels is None:
            raise match.refuse("the number of channels is not known")
        scale: facts.Array | None = np.ones(channels)
        bias: facts.Array | None = np.zeros(channels)
        if "beta" in match:
            bias = normalize.by_channel(match.array("beta"), channels, len(shape))
            if "gamma" in match:
                scale = normalize.by_channel(match.array("gamma"), channels, len(shape))
        if scale is None or bias is None:
            raise match.refuse("gamma or beta differ within a channel")
        constants = [normalize.rounded(array, root) for array in (scale, bias)]
        return build.op("InstanceNormalization", x, *constants, like=root, epsilon=epsilon)


def _affine(match: Match, build: Builder) -> ir.Value | None:
    """A constant factor or summand behind the operator, taken into gamma and beta."""
    inner, root, x = match.node("inner"), match.root.outputs[0], match.value("x")
    rank = facts.rank(x)
    if rank is None or x.dtype not in SINGLE_OR_HALF:
        return None
    scale, bias = (match.array(name).astype(np.float64) for name in ("scale", "bias"))
    other = match.array("factor" if "factor" in match else "summand").astype(np.float64)
    spread = normalize.by_channel(other, scale.size, rank)
    if spread is None:
        return None
    scale, bias = (scale * spread, bias * spread) if "factor" in match else (scale, bias + spread)
    constants = [normalize.rounded(array, root) for array in (scale, bias)]
    epsilon = facts.attribute(inner, "epsilon")
    return build.op("InstanceNormalization", x, *constants, like=root, epsilon=epsilon)


def _is_flattened(x: ir.Value) -> bool:
    producer = x.producer()
    return (
        producer is not None
        and producer.op_type == "Reshape"
        and producer.domain == ""
        and (facts.rank(producer.inputs[0]) or 0) > 3
    )


def _is_unflattened(result: ir.Value) -> bool:
    readers = {use.node for use in result.uses()}
    return bool(readers) and all(
        reader.op_type == "Reshape" and reader.domain == "" and (facts.rank(reader.outputs[0]) or 0) > 3
        for reader in readers
    )
