"""Questions about shapes that several rewrites of the ``fold`` group ask."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from graphopt.ir import facts
from graphopt.ir.facts import Dim, known_dims

VIEWS = ("Flatten", "Reshape", "Squeeze", "Unsqueeze")
"""Operators that give the same elements in the same order in another shape."""


def reshape_target(source: ir.Value, wanted: Sequence[Dim]) -> list[int] | None:
    """The shape operand of a Reshape (``allowzero`` unset) of ``source`` to ``wanted``, or None where there is none.

    A dynamic dimension that is the same one as that of ``source`` at the same index becomes 0; at most one other
    becomes -1. Where both occur, ONNX Runtime rejects an empty ``source``, as it does for what exporters write.
    """
    given = known_dims(source) or ()
    target: list[int] = []
    for index, dim in enumerate(wanted):
        if isinstance(dim, int):
            if dim <= 0:
                return None
            target.append(dim)
        elif dim is not None and index < len(given) and given[index] == dim:
            target.append(0)
        else:
            target.append(-1)
    return target if target.count(-1) <= 1 else None


def broadcasts_into(constant: ir.Value, x: ir.Value) -> bool:
    """Whether an elementwise operation of ``x`` with ``constant`` surely has the shape of ``x``."""
    shape, wanted = facts.static_dims(constant), facts.dims(x)
    if shape is None:
        return False
    if wanted is None:
        return not shape
    if len(shape) > len(wanted):
        return False
    aligned = wanted[len(wanted) - len(shape) :]
    return all(dim in (1, other) for dim, other in zip(shape, aligned, strict=True))
