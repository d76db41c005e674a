"""(x - mean(x)) / sqrt(var(x) + eps) * gamma + beta  ==>  LayerNormalization(x, gamma, beta)

Forms: layer normalisation (https://arxiv.org/abs/1607.06450) before opset 17: ReduceMean, Sub, a square as Pow or Mul,
ReduceMean, Add, then Sqrt and Div, or a reciprocal root (Reciprocal, Div of 1, Pow -0.5) and Mul; with the mean
computed twice and the variance reshaped, as torch.var is exported; TensorFlow's ``x * inv + (beta - mean * inv)``.
A constant Mul or Add behind joins gamma and beta. A computation in float32 between two Casts becomes one in
float16 with float32 statistics (``stash_type`` 1).

Refuses: axes that are not the last ones; normalised dimensions of unknown size; gamma or beta that reach beyond the
normalised dimensions; float16 between Casts where gamma or beta are not float16 numbers; an inner value that
something else reads. Not matched: float64 (``stash_type`` would keep its statistics in float32).
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt.ir import facts
from graphopt.passes import _normalize as normalize
from graphopt.rewrite import Builder, Match, PatternRewrite, any_of, const, op, var

_x, _scale, _bias = var("x"), const(name="scale"), const(name="bias")
_layer_norm = any_of(
    op("LayerNormalization", _x, _scale, name="inner"),
    op("LayerNormalization", _x, _scale, _bias, name="inner"),
)
_half_layer_norm = any_of(
    op("LayerNormalization", op("Cast", _x), _scale, name="inner"),
    op("LayerNormalization", op("Cast", _x), _scale, _bias, name="inner"),
)


class LayerNorm(PatternRewrite):
    """LayerNormalization, ONNX operator of opset 17."""

    name = "layernorm"
    patterns = (
        *normalize.STANDARDISED,
        op("Mul", _layer_norm, const(name="factor")),
        op("Add", _layer_norm, const(name="summand")),
        op("Cast", _half_layer_norm),
    )

    def build(self, match: Match, build: Builder) -> ir.Value | None:
        if "inner" in match:
            return _half(match, build) if match.root.op_type == "Cast" else _affine(match, build)
        x, root = match.value("x"), match.root.outputs[0]
        region = normalize.trailing(match, x)
        if region is None:
            return None
        scale = np.ones(region.sizes)
        bias: facts.Array | None = None
        if "beta" in match:
            bias = normalize.spread_to(match.array("beta"), region.sizes, region.rank)
            gamma = match.array("gamma") if "gamma" in match else scale
            spread = normalize.spread_to(gamma, region.sizes, region.rank)
            if spread is None or bias is None:
                raise match.refuse("gamma or beta reach beyond the normalised dimensions")
            scale = spread
        operands = [scale] if bias is None else [scale, bias]
        constants = [normalize.rounded(array, root) for array in operands]
        return build.op(
            "LayerNormalization",
            x,
            *constants,
            like=root,
            axis=region.axis - region.rank,
            epsilon=region.epsilon,
        )


def _affine(match: Match, build: Builder) -> ir.Value | None:
    """A constant factor or summand behind the operator, taken into gamma and beta."""
    inner, root, x = match.node("inner"), match.root.outputs[0], match.value("x")
    scale = match.array("scale").astype(np.float64)
    bias = match.array("bias").astype(np.float64) if "bias" in match else None
    shape = facts.dims(x)
    if shape is None or shape[facts.attribute(inner, "axis", -1) % len(shape) :] != scale.shape:
        return None
    other = match.array("factor" if "factor" in match else "summand").astype(np.float64)
    spread = normalize.spread_to(other, scale.shape, len(shape))
    if spread is None:
        return None
    if "factor" in match:
        scale, bias = scale * spread, None if bias is None else bias * spread
    else:
        bias = spread if bias is None else bias + spread
    operands = [scale] if bias is None else [scale, bias]
    constants = [normalize.rounded(array, root) for array in operands]
    attributes = {name: facts.attribute(inner, name) for name in ("axis", "epsilon", "stash_type")}
    return build.op("LayerNormalization", x, *constants, like=root, **attributes)


def _half(match: Match, build: Builder) -> ir.Value | None:
    """Cast to float32, normalise, Cast back: the operator does that by itself."""
    inner, root, x = match.node("inner"), match.root.outputs[0], match.value("x")
    if not normalize.is_half_sandwich(match):
        return None
    arrays = [match.array(name) for name in ("scale", "bias") if name in match]
    if not all(normalize.representable(array, np.dtype(np.float16)) for array in arrays):
        raise match.refuse("gamma or beta are not float16 numbers")
    constants = [normalize.rounded(array, root) for array in arrays]
    attributes = {name: facts.attribute(inner, name) for name in ("axis", "epsilon")}
    return build.op("LayerNormalization", x, *constants, like=root, **attributes)
