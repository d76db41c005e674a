"""x / sqrt(mean(x^2) + eps) * gamma  ==>  RMSNormalization(x, gamma)

Forms: RMS normalisation (https://arxiv.org/abs/1910.07467) as ``torch.nn.RMSNorm`` and the T5, Llama and Qwen families
are exported: Pow or Mul, ReduceMean, Add, then Sqrt and Div, or a reciprocal root (Reciprocal, Div of 1, Pow -0.5) and
Mul. A constant Mul behind joins gamma. A computation in float32 between two Casts becomes one in float16 with
float32 statistics (``stash_type`` 1). ONNX operator of opset 23.

Refuses: axes that are not the last ones; normalised dimensions of unknown size; float16 between Casts where
gamma is not made of float16 numbers; an inner value that something else reads. Not matched: gamma that reaches beyond
the normalised dimensions, and float64 (``stash_type`` would keep its statistics in float32).
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt.ir import facts
from graphopt.passes import _normalize as normalize
from graphopt.rewrite import Builder, Match, PatternRewrite, const, op, var

_x, _scale = var("x"), const(name="scale")


class RmsNorm(PatternRewrite):
    """RMSNormalization, ONNX operator of opset 23."""

    name = "rmsnorm"
    patterns = (
        *normalize.ROOT_MEAN_SQUARE,
        op("Mul", op("RMSNormalization", _x, _scale, name="inner"), const(name="factor")),
        op("Cast", op("RMSNormalization", op("Cast", _x), _scale, name="inner")),
    )

    def build(self, match: Match, build: Builder) -> ir.Value | None:
        if "inner" in match:
            return _half(match, build) if match.root.op_type == "Cast" else _scaled(match, build)
        x, root = match.value("x"), match.root.outputs[0]
        region = normalize.trailing(match, x)
        if region is None:
            return None
        scale = normalize.rounded(np.ones(region.sizes), root)
        return build.op(
            "RMSNormalization", x, scale, like=root, axis=region.axis - region.rank, epsilon=region.epsilon
        )


def _scaled(match: Match, build: Builder) -> ir.Value | None:
    """A constant factor behind the operator, taken into gamma."""
    root, x, scale = match.root.outputs[0], match.value("x"), match.array("scale")
    shape = facts.dims(x)
    if shape is None or shape[facts.attribute(match.node("inner"), "axis", -1) % len(shape) :] != scale.shape:
        return None
    factor = normalize.spread_to(match.array("factor").astype(np.float64), scale.shape, len(shape))
    if factor is None:
        return None
    return _rebuilt(match, build, x, normalize.rounded(scale.astype(np.float64) * factor, root))


def _half(match: Match, build: Builder) -> ir.Value | None:
    """Cast to float32, normalise, Cast back: the operator does that by itself."""
    scale = match.array("scale")
    if not normalize.is_half_sandwich(match):
        return None
    if not normalize.representable(scale, np.dtype(np.float16)):
        raise match.refuse("gamma is not made of float16 numbers")
    return _rebuilt(match, build, match.value("x"), normalize.rounded(scale, match.root.outputs[0]))


def _rebuilt(match: Match, build: Builder, x: ir.Value, scale: facts.Array) -> ir.Value:
    inner = match.node("inner")
    attributes = {name: facts.attribute(inner, name) for name in ("axis", "epsilon", "stash_type")}
    return build.op("RMSNormalization", x, scale, like=match.root.outputs[0], **attributes)
