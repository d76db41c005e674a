"""Which axes of a tensor become which when it is reshaped."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from graphopt.ir.dims import ONE, Dim, Dims, product


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


def moves(before: Dims, after: Dims) -> list[Move]:
    """The moves of a reshape, in order.

    Args:
        before: Sizes of the operand's axes, equal ones by equal names.
        after: Those of the result.
    """
    found: list[Move] = []
    last: list[Move] = []
    # What lies behind holds the same elements wherever the last axes do, whatever is known of those before them.
    while before and after and len(before) + len(after) > 2:
        ends = _suffixes(before, after)
        if ends is not None:
            i, j = len(before) - ends[0], len(after) - ends[1]
            last.insert(0, _move(before, after, (i, len(before)), (j, len(after))))
            before, after = before[:i], after[:j]
        elif after[-1] == ONE and len(after) > 1:
            after = after[:-1]
        elif before[-1] == ONE and len(before) > 1:
            before = before[:-1]
        else:
            break
    i = j = 0
    while i < len(before) or j < len(after):
        end_i, end_j = _end(before, after, i, j)
        found.append(_move(before, after, (i, end_i), (j, end_j)))
        i, j = end_i, end_j
    return found + last


def _suffixes(before: Dims, after: Dims) -> tuple[int, int] | None:
    """How many of the last axes hold the same elements, as few as may be; None where only all do, or ones."""
    i = j = 1
    if ONE in (before[-1], after[-1]) and before[-1] != after[-1]:
        return None
    while i < len(before) or j < len(after):
        left, right = product(before[-i:]), product(after[-j:])
        if left == right:
            return i, j
        if j == len(after) or (i < len(before) and _is_smaller(left, right)):
            i += 1
        else:
            j += 1
    return None


def _move(before: Dims, after: Dims, old: tuple[int, int], new: tuple[int, int]) -> Move:
    return Move(
        tuple(range(*old)), tuple(range(*new)), _known(before[slice(*old)]), _known(after[slice(*new)])
    )


def _end(before: Dims, after: Dims, i: int, j: int) -> tuple[int, int]:
    """Where the move that begins here ends."""
    end_i, end_j = min(i + 1, len(before)), min(j + 1, len(after))
    while True:
        left, right = product(before[i:end_i]), product(after[j:end_j])
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
    if not rest_j and all(size == ONE for size in rest_i):
        end_i = len(before)
    if not rest_i and all(size == ONE for size in rest_j):
        end_j = len(after)
    return end_i, end_j


def _is_smaller(left: Dim, right: Dim) -> bool:
    if left.symbols != right.symbols:
        return not Counter(left.symbols) >= Counter(right.symbols)
    return left.factor < right.factor


def _known(sizes: Dims) -> tuple[int, ...] | None:
    known = tuple(size.known for size in sizes)
    return None if None in known else tuple(size for size in known if size is not None)


__all__ = ["Move", "moves"]
