"""x * 1, x / 1, x - 0, x ** 1, and(x, true), or(x, false), neg(neg(x)), not(not(x)), max(x)  ==>  x

Forms: exporters write these for parameters that happen to be neutral (a scale of 1, a bias of 0), for ``Sum``
or ``Max`` of a list of one, for double negation in masks. The constant may have any shape that does not
enlarge the result. ``x + 0.0`` turns -0.0 into +0.0, so it is a rewrite of its own, ``add-zero``, which may
change rounding; for integers, and for ``x + -0.0``, it is here.

Refuses: nothing; a constant that might enlarge the result does not match.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graphopt.ir import facts
from graphopt.passes._shapes import broadcasts_into
from graphopt.rewrite import Builder, Numerics, Rewrite

# Larger constants are real weights; looking for a neutral one among them would read them all.
_MOST_ELEMENTS = 65536
_LISTS = ("Max", "Mean", "Min", "Sum")
_INVOLUTIONS = ("BitwiseNot", "Neg", "Not")
# Op type -> the neutral second operand, and whether it is neutral as the first one too.
_NEUTRAL: dict[str, tuple[float, bool]] = {
    "Add": (0.0, True),
    "And": (1.0, True),
    "Div": (1.0, False),
    "Mul": (1.0, True),
    "Or": (0.0, True),
    "Pow": (1.0, False),
    "Sub": (0.0, False),
    "Xor": (0.0, True),
}


def _all_equal(constant: facts.Array, number: float) -> bool:
    return constant.size > 0 and bool((constant == number).all())


def _without_neutral_operand(node: ir.Node, *, positive_zero: bool) -> ir.Value | None:
    number, commutes = _NEUTRAL[node.op_type]
    for index in (1, 0) if commutes else (1,):
        operand, x = node.inputs[index], node.inputs[1 - index]
        if operand is None or x is None or not facts.is_constant(operand):
            continue
        shape = facts.static_dims(operand)
        if shape is None or int(np.prod(shape)) > _MOST_ELEMENTS or not broadcasts_into(operand, x):
            continue
        content = facts.constant(operand)
        if content is None or content.dtype.kind in "OSU" or not _all_equal(content, number):
            continue
        if facts.is_float(operand) and node.op_type in ("Add", "Sub"):
            # x + -0.0 and x - +0.0 are x for every x; the other two lose the sign of -0.0.
            signs = np.signbit(content.astype(np.float64))
            exact = bool(signs.all()) if node.op_type == "Add" else not bool(signs.any())
            if exact == positive_zero:
                continue
        elif positive_zero:
            continue
        return x
    return None


class NoOpArithmetic(Rewrite):
    """Arithmetic and logic with neutral operands, bit for bit."""

    name: ClassVar[str] = "no-op-arithmetic"
    roots: ClassVar[tuple[str, ...]] = (*_NEUTRAL, *_LISTS, *_INVOLUTIONS)
    numerics: ClassVar[Numerics] = Numerics.EXACT

    def apply(self, node: ir.Node, build: Builder) -> ir.Value | None:
        """The operand that is not neutral takes the place of the result."""
        del build
        if node.op_type in _NEUTRAL:
            return _without_neutral_operand(node, positive_zero=False)
        if node.op_type in _LISTS:
            return node.inputs[0] if len(node.inputs) == 1 else None
        inner = None if node.inputs[0] is None else node.inputs[0].producer()
        if inner is None or inner.domain != "" or inner.op_type != node.op_type:
            return None
        return inner.inputs[0]


class AddZero(Rewrite):
    """x + 0.0, x - -0.0  ==>  x, up to the sign of a zero"""

    name: ClassVar[str] = "add-zero"
    roots: ClassVar[tuple[str, ...]] = ("Add", "Sub")
    numerics: ClassVar[Numerics] = Numerics.REASSOCIATES

    def apply(self, node: ir.Node, build: Builder) -> ir.Value | None:
        """The other operand takes the place of the sum."""
        del build
        return _without_neutral_operand(node, positive_zero=True)
