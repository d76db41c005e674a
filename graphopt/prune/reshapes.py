"""Which axes of a tensor become which when it is reshaped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

Size = int | str


@dataclass(frozen=True)
class Move:
    """Neighbouring axes that hold the same elements as neighbouring axes of the result, and no fewer would.

    Attributes:
        before: Axes of the operand.
        after: Axes of the result.
        sizes_before, sizes_after: Their sizes; None where one of them is not known.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]
    sizes_before: tuple[int, ...] | None
    sizes_after: tuple[int, ...] | None


def moves(data: ir.Value | None, out: ir.Value, kept: Sequence[bool] = ()) -> list[Move]:
    """The moves of a reshape, in order.

    Args:
        kept: Whether an axis of the result is said to have the size that the operand has there.
    """
    before = _sizes(data)
    after = _sizes(out)
    for axis, is_kept in enumerate(kept):
        if is_kept and axis < len(before):
            after[axis] = before[axis]
    found: list[Move] = []
    last: list[Move] = []
    # The last axes are the same where their sizes are, whatever lies before them; ones between them belong to nobody.
    while before and after and len(before) + len(after) > 2:
        if before[-1] == after[-1]:
            last.insert(0, _single(len(before) - 1, len(after) - 1, before[-1]))
            before, after = before[:-1], after[:-1]
        elif after[-1] == 1 and len(after) > 1:
            after = after[:-1]
        elif before[-1] == 1 and len(before) > 1:
            before = before[:-1]
        else:
            break
    i = j = 0
    while i < len(before) or j < len(after):
        end_i, end_j = _end(before, after, i, j)
        found.append(
            Move(
                tuple(range(i, end_i)),
                tuple(range(j, end_j)),
                _known(before[i:end_i]),
                _known(after[j:end_j]),
            )
        )
        i, j = end_i, end_j
    return found + last


def _single(before: int, after: int, size: Size) -> Move:
    sizes = _known([size])
    return Move((before,), (after,), sizes, sizes)


def _end(before: Sequence[Size], after: Sequence[Size], i: int, j: int) -> tuple[int, int]:
    """Where the move that begins here ends."""
    end_i, end_j = min(i + 1, len(before)), min(j + 1, len(after))
    while True:
        left, right = _product(before[i:end_i]), _product(after[j:end_j])
        if left == right and end_i > i and end_j > j:
            break
        if end_i == len(before) and end_j == len(after):
            return end_i, end_j
        if end_j == len(after) or (end_i < len(before) and _is_smaller(left, right)):
            end_i += 1
        else:
            end_j += 1
    # Ones at the end belong to nobody else.
    rest_i, rest_j = before[end_i:], after[end_j:]
    if not rest_j and all(size == 1 for size in rest_i):
        end_i = len(before)
    if not rest_i and all(size == 1 for size in rest_j):
        end_j = len(after)
    return end_i, end_j


def _is_smaller(left: tuple[int, Counter[str]], right: tuple[int, Counter[str]]) -> bool:
    if left[1] != right[1]:
        return not left[1] >= right[1]
    return left[0] < right[0]


def _product(sizes: Sequence[Size]) -> tuple[int, Counter[str]]:
    number, names = 1, Counter[str]()
    for size in sizes:
        if isinstance(size, int):
            number *= size
        else:
            names[size] += 1
    return number, names


def _sizes(value: ir.Value | None) -> list[Size]:
    shape = () if value is None or value.shape is None else tuple(value.shape)
    return [
        size if isinstance(size, int) else f"{size.value or f'{id(value)}/{axis}'}"
        for axis, size in enumerate(shape)
    ]


def _known(sizes: Sequence[Size]) -> tuple[int, ...] | None:
    known = tuple(size for size in sizes if isinstance(size, int))
    return known if len(known) == len(sizes) else None


__all__ = ["Move", "moves"]
