"""What the report says of zeros: layer by layer, what was judged, and what the weights compress to."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from graphopt.ir.facts import Array
from graphopt.prune.sparse import Pattern
from graphopt.prune.sparse_weights import contents_of
from graphopt.prune.sparsifier import Sparse, Sparsifier
from graphopt.verify.budget import judged_of

_DEFLATED_BYTES = 1 << 20
"""Of each weight, to see what it deflates to."""


def details(
    sparsifier: Sparsifier, chosen: Sparse | None = None, tried: Sequence[Sparse] = ()
) -> dict[str, Any]:
    """For the report: plain JSON."""
    contents = contents_of(sparsifier.model if chosen is None else chosen.model)
    outcomes = {} if chosen is None else chosen.outcomes
    of = {layer.name: outcomes.get(part.name) for part in sparsifier.parts for layer in part.readers}
    left = "its zeros would break the budget" if sparsifier.pattern.block else "those of others cost less"
    rows = []
    for layer in sparsifier.layers:
        content = contents[layer.weight.name or ""]
        outcome = of.get(layer.name)
        rows.append(
            {
                "node": layer.name,
                "op": layer.node.op_type,
                "weights": content.size,
                "zeros": float(np.mean(content == 0)) if content.size else 0.0,
                "criterion": "" if outcome is None else outcome.criterion,
                "error_before": None if outcome is None else outcome.before,
                "error_after": None if outcome is None else outcome.after,
                "reason": outcome.note
                if outcome
                else sparsifier.refused.get(layer.name, left if chosen else ""),
            }
        )
    return {
        "pattern": str(sparsifier.pattern),
        "criterion": sparsifier.criterion,
        "zeros": None if chosen is None else chosen.zeros,
        "size": None if chosen is None else _sizes(sparsifier, chosen),
        "sparsified": rows,
        "judged": [{"label": one.label, **judged_of(one.judgement)} for one in tried],
    }


def _sizes(sparsifier: Sparsifier, chosen: Sparse) -> dict[str, int | None]:
    """Bytes of the weights of all layers: as they are, deflated before and after, and in the form of 2:4."""
    before, after = contents_of(sparsifier.model), contents_of(chosen.model)
    given = {part.layer.weight.name for part in sparsifier.parts if part.name in chosen.outcomes}
    compressed = sum(
        # Half of the numbers, and four bits for each four.
        content.nbytes // 2 + content.size // 8 if name in given else content.nbytes
        for name, content in after.items()
    )
    return {
        "bytes": sum(content.nbytes for content in before.values()),
        "deflated_before": sum(map(_deflated, before.values())),
        "deflated": sum(map(_deflated, after.values())),
        "compressed": compressed if sparsifier.pattern == Pattern(2, 4) else None,
    }


def _deflated(content: Array) -> int:
    """Bytes that a weight deflates to (RFC 1951, zlib's default effort), by its first megabyte."""
    flat = content.reshape(-1)
    part = flat[: max(_DEFLATED_BYTES // max(content.itemsize, 1), 1)]
    if not part.nbytes:
        return 0
    return round(len(zlib.compress(np.ascontiguousarray(part).tobytes())) / part.nbytes * content.nbytes)


__all__ = ["details"]
