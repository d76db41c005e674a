"""Cast(Cast(x, A), B)  ==>  Cast(x, B);    CastLike(x, y)  ==>  Cast(x, type of y);    Cast(x, type of x)  ==>  x

Forms: autocast in PyTorch (half -> float -> half), masks in exported transformers (bool -> int64 -> float,
bool -> bool), shape arithmetic of tf2onnx (int64 -> int32 -> int64). The first Cast may be left out only
where A holds every value of the type of x.

Refuses: a first Cast that loses values, which is the rounding that the model asks for.
"""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from graphopt.ir import facts
from graphopt.rewrite import Builder, Numerics, Refuse, Rewrite

# Bits of a signed integer that a type holds exactly, lowest number of all, and float format (precision, exponent bits).
_INTEGERS: dict[ir.DataType, tuple[bool, int]] = {
    ir.DataType.BOOL: (False, 1),
    ir.DataType.UINT8: (False, 8),
    ir.DataType.UINT16: (False, 16),
    ir.DataType.UINT32: (False, 32),
    ir.DataType.UINT64: (False, 64),
    ir.DataType.INT8: (True, 7),
    ir.DataType.INT16: (True, 15),
    ir.DataType.INT32: (True, 31),
    ir.DataType.INT64: (True, 63),
}
_FLOATS: dict[ir.DataType, tuple[int, int]] = {
    ir.DataType.FLOAT16: (11, 5),
    ir.DataType.BFLOAT16: (8, 8),
    ir.DataType.FLOAT: (24, 8),
    ir.DataType.DOUBLE: (53, 11),
}


def holds_every_value(wide: ir.DataType, narrow: ir.DataType) -> bool:
    """Whether a Cast from ``narrow`` to ``wide`` loses nothing."""
    if wide == narrow:
        return True
    if narrow in _INTEGERS:
        signed, bits = _INTEGERS[narrow]
        if wide in _INTEGERS:
            return _INTEGERS[wide][1] >= bits and (_INTEGERS[wide][0] or not signed)
        # A 16-bit float of 11 bits of precision also reaches far enough for integers of that many bits.
        return wide in _FLOATS and _FLOATS[wide][0] >= bits + int(signed)
    if narrow in _FLOATS and wide in _FLOATS:
        return all(w >= n for w, n in zip(_FLOATS[wide], _FLOATS[narrow], strict=True))
    return False


def _skippable(source: ir.DataType, middle: ir.DataType, target: ir.DataType) -> bool:
    if middle == ir.DataType.BOOL or not holds_every_value(middle, source):
        return False
    # Out of range, a float converts to an integer in an undefined way, an integer wraps around: not the same thing.
    through_float = source in _INTEGERS and middle in _FLOATS
    return not (through_float and target in _INTEGERS and target != ir.DataType.BOOL) or holds_every_value(
        target, source
    )


class CastChain(Rewrite):
    """Casts whose first step loses nothing."""

    name: ClassVar[str] = "cast-chain"
    roots: ClassVar[tuple[str, ...]] = ("Cast", "CastLike")
    numerics: ClassVar[Numerics] = Numerics.EXACT

    def apply(self, node: ir.Node, build: Builder) -> ir.Value | None:
        """One Cast, or none."""
        x, out = node.inputs[0], node.outputs[0]
        if x is None or x.dtype is None:
            return None
        if node.op_type == "CastLike":
            like = node.inputs[1]
            if like is None or like.dtype is None:
                return None
            if like.dtype == x.dtype:
                return x
            saturate = facts.attribute(node, "saturate")
            return build.op("Cast", x, like=out, dtype=like.dtype, to=int(like.dtype), saturate=saturate)
        target = ir.DataType(facts.attribute(node, "to"))
        if target == x.dtype:
            return x
        inner = x.producer()
        if inner is None or inner.domain != "" or inner.op_type != "Cast":
            return None
        source = inner.inputs[0]
        known = {**_INTEGERS, **_FLOATS}
        if source is None or source.dtype not in known or x.dtype not in known or target not in known:
            return None
        if not _skippable(source.dtype, x.dtype, target):
            raise Refuse(f"{source.dtype.name} -> {x.dtype.name} -> {target.name} loses values on the way")
        if target == source.dtype:
            return source
        return build.op("Cast", source, like=out, dtype=target, to=int(target))
