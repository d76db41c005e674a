"""relu(x) - a * relu(-x)  ==>  LeakyRelu(x, alpha=a), or max(x, a * x) where a differs by channel

Forms: Keras, TensorFlow and MXNet spell PReLU (https://arxiv.org/abs/1502.01852) as ``Relu(x) - a * Relu(-x)``,
``Relu(x) + (-a) * Relu(-x)``, ``Relu(x) + a * Min(x, 0)`` or ``Relu(x) + a * (x - |x|) * 0.5``; hand-written layers
as ``Where(x > 0, x, a * x)`` or ``Max(x, a * x)``; and a ``PRelu`` operator may hold one slope for all channels.
Slopes by channel become ``Max(x, a * x)``, which is the same for a <= 1, and not ``PRelu``: ONNX Runtime's PRelu
kernel takes longer than the decomposed form (``prelu-to-max`` in ``benchmarks/rewrites.py``). Times as fast
(``benchmarks/rewrites.py``, 2 threads, AMD EPYC with AVX-512): 1.65 for slopes by channel on [1, 64, 56, 56].

Refuses: slopes by channel above 1, or of 0 (0 * inf is NaN); a slope whose shape may enlarge x; an inner value
that something else reads. Not matched: float64 (no kernel in ONNX Runtime); slopes that are not constant;
``Max(x, a * x)`` with a > 1; a PRelu operator with slopes by channel.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt.ir import facts
from graphopt.passes._elementwise import SINGLE_OR_HALF
from graphopt.rewrite import Builder, Match, PatternRewrite, any_of, const, op, var

_x = var("x")
_slope = const(name="slope")
_minus_slope = const(name="minus_slope")
_leak = op("Mul", _x, _slope)
_positive = op("Relu", _x)
_minus_negative = op("Relu", op("Neg", _x))
_negative = any_of(op("Min", _x, const(0.0)), op("Neg", _minus_negative))
_twice_negative = op("Sub", _x, op("Abs", _x))


class PRelu(PatternRewrite):
    """Leaky and parametric ReLU."""

    name = "prelu"
    patterns = (
        op("Sub", _positive, op("Mul", _minus_negative, _slope)),
        op("Add", _positive, op("Mul", _minus_negative, _minus_slope)),
        op("Add", _positive, op("Mul", _negative, _slope)),
        op("Add", _positive, op("Mul", op("Mul", _twice_negative, _slope), const(0.5))),
        op("Add", _positive, op("Mul", op("Mul", _twice_negative, const(0.5)), _slope)),
        op("Where", op("Greater|GreaterOrEqual", _x, const(0.0)), _x, _leak),
        op("Where", op("Less|LessOrEqual", _x, const(0.0)), _leak, _x),
        op("Max", _x, _leak, name="maximum"),
        op("PRelu", _x, _slope, name="operator"),
    )

    def build(self, match: Match, build: Builder) -> ir.Value | None:
        x, root = match.value("x"), match.root.outputs[0]
        if x.dtype not in SINGLE_OR_HALF:
            return None
        slopes = -match.array("minus_slope") if "minus_slope" in match else match.array("slope")
        wide = slopes.astype(np.float64)
        if slopes.size == 0 or not np.isfinite(wide).all():
            return None
        uniform = float(wide.flat[0]) if (wide == wide.flat[0]).all() else None
        if "maximum" in match and (uniform is None or uniform > 1):
            return None
        if uniform == 0 or ("operator" in match and uniform is None):
            return None
        # The shape of every constant counts: those that stand for a number, too.
        constants = {value for node in match.nodes for value in node.inputs if facts.is_constant(value)}
        if not all(_fits(facts.static_dims(value), facts.dims(x)) for value in constants):
            raise match.refuse("the slope may enlarge the shape")
        if uniform is not None:
            return build.op("LeakyRelu", x, like=root, alpha=uniform)
        if wide.max() > 1:
            raise match.refuse("max(x, a x) is not PReLU for slopes above 1")
        if (wide == 0).any():
            raise match.refuse("a slope is 0, and 0 times infinity is NaN")
        return build.op("Max", x, build.op("Mul", x, slopes, like=x), like=root)


def _fits(constant: tuple[int, ...] | None, shape: tuple[int | None, ...] | None) -> bool:
    if constant == ():
        return True
    if constant is None or shape is None or len(constant) > len(shape):
        return False
    trailing = shape[len(shape) - len(constant) :]
    return all(dim in (1, wanted) for dim, wanted in zip(constant, trailing, strict=True))
