"""x + a + b,  x * a * b,  (x * a + b) * c,  -(x - a) / b, ...  ==>  x * m + k

Forms: normalisation of images written in steps (subtract, divide, scale), affine layers of Paddle next to
BatchNormalization, scale and shift of attention scores, detection heads that scale and offset boxes. A chain
of Add, Sub, Mul, Div and Neg with constants becomes at most one Mul and one Add where that is fewer nodes.
Constants are combined in float64 and rounded once. Integers (32 and 64 bit, no Div) wrap around the same way
in any order, so they are exact.

Refuses: a combined constant beyond the range of the type; constants that nearly cancel while being large,
which is how models round on purpose (x + 12582912 - 12582912); a combined constant larger than each of its
parts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graphopt.ir import facts
from graphopt.passes._shapes import broadcasts_into
from graphopt.rewrite import Builder, Numerics, Refuse, Rewrite

_OPS = ("Add", "Div", "Mul", "Neg", "Sub")
_LONGEST = 16
_INTEGERS = frozenset({ir.DataType.INT32, ir.DataType.INT64, ir.DataType.UINT32, ir.DataType.UINT64})
Wide = npt.NDArray[Any]


@dataclass(frozen=True)
class _Step:
    """``x * factor + offset``, either of which may be absent."""

    x: ir.Value
    factor: ir.Value | None = None
    offset: ir.Value | None = None
    divides: bool = False
    subtracts: bool = False
    negates: bool = False


def _step(node: ir.Node | None) -> _Step | None:
    """What a node adds and multiplies with; None where it is no such operation with one constant."""
    if node is None or node.domain != "" or node.op_type not in _OPS or node.inputs[0] is None:
        return None
    if node.op_type == "Neg":
        return _Step(node.inputs[0], negates=True)
    x, constant = node.inputs
    first = facts.is_constant(x)
    if first:
        x, constant = constant, x
    if x is None or constant is None or not facts.is_constant(constant) or facts.is_constant(x):
        return None
    if first and node.op_type == "Div":
        return None
    if node.op_type in ("Mul", "Div"):
        return _Step(x, factor=constant, divides=node.op_type == "Div")
    if node.op_type == "Sub" and first:
        return _Step(x, offset=constant, negates=True)
    return _Step(x, offset=constant, subtracts=node.op_type == "Sub")


def _chain(node: ir.Node) -> list[_Step]:
    """The steps up to ``node``, first one first; inner ones only where nothing else reads their results."""
    steps: list[_Step] = []
    current: ir.Node | None = node
    while current is not None and len(steps) < _LONGEST:
        step = _step(current)
        if step is None:
            break
        steps.append(step)
        current = None
        if facts.sole_consumer(step.x) is not None:
            maker = step.x.producer()
            current = maker if maker is not None and maker.graph is node.graph else None
    return steps[::-1]


class _Affine:
    """A chain of steps folded into one factor and one offset."""

    def __init__(self, integer: bool, dtype: np.dtype[Any]) -> None:
        self._wide = dtype if integer else np.dtype(np.float64)
        self._dtype = dtype
        self._integer = integer
        self.factor: Wide | None = None
        self.offset: Wide | None = None
        self._terms: Wide | None = None
        self._largest = 1

    def _read(self, value: ir.Value) -> Wide:
        content = facts.constant(value)
        assert content is not None
        self._largest = max(self._largest, content.size)
        return content.astype(self._wide)

    def add(self, step: _Step) -> None:
        """Take one more step: first the factor, then the offset."""
        if step.factor is not None or step.negates:
            factor = self._read(step.factor) if step.factor is not None else np.array(-1, self._wide)
            if step.divides:
                if not factor.all():
                    raise Refuse("divides by zero")
                factor = 1.0 / factor
            self.factor = factor if self.factor is None else self.factor * factor
            if self.offset is not None and self._terms is not None:
                self.offset = self.offset * factor
                self._terms = self._terms * np.abs(factor)
        if step.offset is not None:
            offset = self._read(step.offset)
            if step.subtracts:
                offset = np.negative(offset)
            self.offset = offset if self.offset is None else self.offset + offset
            self._terms = np.abs(offset) if self._terms is None else self._terms + np.abs(offset)

    def rounded(self, x: ir.Value) -> tuple[Wide | None, Wide | None]:
        """Factor and offset in the type of the tensor, None for a neutral one.

        Raises:
            Refuse: They cannot stand for the chain.
        """
        for combined in (self.factor, self.offset):
            if combined is not None and combined.size > self._largest:
                raise Refuse("the combined constant is larger than its parts")
        if not self._integer:
            self._check_floats()
        factor = None if self.factor is None else np.asarray(self.factor).astype(self._dtype)
        offset = None if self.offset is None else np.asarray(self.offset).astype(self._dtype)
        if factor is not None and (factor == 1).all() and _keeps_shape(factor, x):
            factor = None
        if offset is not None and (offset == 0).all() and _keeps_shape(offset, x):
            offset = None
        return factor, offset

    def _check_floats(self) -> None:
        info = ml_dtypes.finfo(self._dtype)  # type: ignore[no-untyped-call]
        for combined in (self.factor, self.offset):
            if combined is None:
                continue
            size = np.abs(combined[combined != 0])
            if not np.isfinite(combined).all() or (size > float(info.max)).any():
                raise Refuse(f"the combined constant leaves the range of {self._dtype}")
            if (size < float(info.tiny)).any():
                raise Refuse(f"the combined constant is below the range of {self._dtype}")
        if self.offset is not None and self._terms is not None:
            large = float(2 ** (int(info.nmant) // 2))
            if ((self._terms > large) & (self._terms > large * np.abs(self.offset))).any():
                raise Refuse("large constants cancel, which rounds on purpose")


def _keeps_shape(constant: Wide, x: ir.Value) -> bool:
    return broadcasts_into(ir.Value(name="constant", shape=ir.Shape(constant.shape)), x)


class ElementwiseConstants(Rewrite):
    """A chain of sums and products with constants becomes one product and one sum."""

    name: ClassVar[str] = "elementwise-constants"
    roots: ClassVar[tuple[str, ...]] = _OPS
    numerics: ClassVar[Numerics] = Numerics.REASSOCIATES

    def apply(self, node: ir.Node, build: Builder) -> ir.Value | None:
        """Fewer nodes, or no change."""
        steps = _chain(node)
        if len(steps) < 2:
            return None
        out = node.outputs[0]
        x, dtype = steps[0].x, out.dtype
        integer = dtype in _INTEGERS
        if dtype is None or x.dtype != dtype or not (integer or facts.is_float(x)):
            return None
        if integer and any(step.divides for step in steps):
            return None
        combined = _Affine(integer, dtype.numpy())
        with np.errstate(all="ignore"):
            for step in steps:
                combined.add(step)
            factor, offset = combined.rounded(x)
        negates = factor is not None and offset is not None and factor.ndim == 0 and bool(factor == -1)
        needed = 1 if negates else int(factor is not None) + int(offset is not None)
        if needed >= len(steps):
            return None
        if negates and offset is not None:
            return build.op("Sub", offset, x, like=out)
        value = x
        if factor is not None:
            inner = (
                x if offset is not None and _keeps_shape(factor, x) else None if offset is not None else out
            )
            value = build.op("Mul", value, factor, like=inner, dtype=dtype)
        if offset is not None:
            value = build.op("Add", value, offset, like=out)
        return value
