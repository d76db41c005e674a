"""Models on disk and in memory, in one place: load, save, clone, count, and the skeleton for C++ functions."""

from __future__ import annotations

from graphopt.ir.graphs import (
    add_constant,
    all_graphs,
    all_tensors,
    clone,
    count_nodes,
    external_tensors,
    hold_small,
    is_shareable,
    leading_to,
    nbytes,
    op_counts,
    paused_collection,
    release_pages,
    scopes,
    subgraphs_of,
    tapped,
    with_subgraphs,
)
from graphopt.ir.load import check_external, from_proto, load
from graphopt.ir.outline import skeleton
from graphopt.ir.save import EXTERNAL_THRESHOLD, save

__all__ = [
    "EXTERNAL_THRESHOLD",
    "add_constant",
    "all_graphs",
    "all_tensors",
    "check_external",
    "clone",
    "count_nodes",
    "external_tensors",
    "from_proto",
    "hold_small",
    "is_shareable",
    "leading_to",
    "load",
    "nbytes",
    "op_counts",
    "paused_collection",
    "release_pages",
    "save",
    "scopes",
    "skeleton",
    "subgraphs_of",
    "tapped",
    "with_subgraphs",
]
