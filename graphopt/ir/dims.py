"""Dimensions as symbolic products of an integer and names, and arithmetic on them."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple


class Dim(NamedTuple):
    """``factor`` times the product of ``symbols`` (sorted)."""

    factor: int
    symbols: tuple[str, ...] = ()

    @property
    def known(self) -> int | None:
        """The dimension as a number where it is one."""
        return None if self.symbols else self.factor

    def times(self, other: Dim) -> Dim:
        return Dim(self.factor * other.factor, tuple(sorted(self.symbols + other.symbols)))

    def over(self, other: Dim) -> Dim | None:
        """The quotient where it is a product again."""
        left, right = Counter(self.symbols), Counter(other.symbols)
        if other.factor == 0 or self.factor % other.factor or right - left:
            return None
        return Dim(self.factor // other.factor, tuple(sorted((left - right).elements())))


Dims = tuple[Dim, ...]
ONE = Dim(1)


def least(end: Dim, size: int) -> Dim:
    """The smaller of a dynamic dimension and a number: the length of ``table[:end]``, under a name of its own."""
    return Dim(1, (f"{_least_of(end)}{size})",))


def _least_of(end: Dim) -> str:
    return f"min({'*'.join((str(end.factor), *end.symbols))},"


def _without_least(candidates: set[Dim]) -> set[Dim]:
    """Without the smaller of one of them and a number.

    Where both are broadcast, the result has the other one's length: if the number is the smaller one they differ, and
    then it has to be 1.
    """
    covered = tuple(_least_of(dim) for dim in candidates)
    return {dim for dim in candidates if not (dim.symbols and dim.symbols[0].startswith(covered))}


def product(dims: Dims) -> Dim:
    """The number of elements."""
    total = ONE
    for dim in dims:
        total = total.times(dim)
    return total


def broadcast(shapes: list[Dims | None]) -> Dims | None:
    """The common shape; None where one is unknown, or two dynamic dimensions meet of which either may be 1."""
    known = [shape for shape in shapes if shape is not None]
    if len(known) < len(shapes):
        return None
    result: list[Dim] = []
    for axis in range(-max(map(len, known), default=0), 0):
        candidates = {shape[axis] for shape in known if len(shape) >= -axis}
        candidates.discard(ONE)
        if len(candidates) > 1:
            candidates = _without_least(candidates)
        numbers = [dim for dim in candidates if dim.known is not None]
        if len(candidates) > 1 and not numbers:
            return None
        result.append(numbers[0] if numbers else next(iter(candidates), ONE))
    return tuple(result)


def expanded(source: Dims, target: Dims | None) -> Dims | None:
    if target is None:
        return None
    rank = max(len(source), len(target))
    left = (ONE,) * (rank - len(source)) + source
    right = (ONE,) * (rank - len(target)) + target
    return broadcast([left, right]) if all(map(_meets, left, right)) else None


def _meets(left: Dim, right: Dim) -> bool:
    """Whether two dimensions are one, or one of them gives way to the other."""
    return ONE in (left, right) or left == right or len(_without_least({left, right})) == 1


def squeezed(source: Dims, axes: tuple[int, ...] | None, kind: str) -> Dims | None:
    if axes is None:
        return None
    if kind == "Squeeze":
        dropped = {axis % len(source) for axis in axes}
        return tuple(dim for axis, dim in enumerate(source) if axis not in dropped)
    rank = len(source) + len(axes)
    added = {axis % rank for axis in axes}
    rest = iter(source)
    return tuple(ONE if axis in added else next(rest) for axis in range(rank))


def combine(kind: str, dims: Dims) -> Dim | None:
    if kind == "Where":
        return None if dims[0].known is None else dims[1] if dims[0].known else dims[2]
    left, right = dims
    if kind == "Mul":
        return left.times(right)
    if kind == "Equal" and left == right:
        return ONE
    if left.known is not None and right.known is not None:
        if kind == "Equal":
            return Dim(int(left.known == right.known))
        if kind == "Div":
            return Dim(left.known // right.known) if left.known >= 0 < right.known else None
        return Dim(left.known + right.known if kind == "Add" else left.known - right.known)
    # A dimension is never negative, so it never equals -1.
    negative = (left.known or 0) < 0 or (right.known or 0) < 0
    return Dim(0) if kind == "Equal" and negative and left.factor * right.factor < 0 else None
