"""Models on disk and in memory, in one place: load, save, clone, count, and the skeleton for C++ functions."""

from __future__ import annotations

import collections

import onnx_ir as ir

from graphopt.ir.graphs import (
    all_graphs,
    all_tensors,
    clone,
    external_tensors,
    paused_collection,
    subgraphs_of,
    with_subgraphs,
)
from graphopt.ir.load import check_external, from_proto, load
from graphopt.ir.outline import skeleton
from graphopt.ir.save import EXTERNAL_THRESHOLD, save

__all__ = [
    "EXTERNAL_THRESHOLD",
    "all_graphs",
    "all_tensors",
    "check_external",
    "clone",
    "external_tensors",
    "from_proto",
    "load",
    "nbytes",
    "op_counts",
    "paused_collection",
    "save",
    "skeleton",
    "subgraphs_of",
    "with_subgraphs",
]


def nbytes(model: ir.Model) -> int:
    """Total size of initializers and constants in bytes; a tensor that several of them share counts once."""
    tensors = {id(tensor): tensor for tensor in all_tensors(model)}
    return sum(tensor.nbytes for tensor in tensors.values() if tensor.dtype != ir.DataType.STRING)


def op_counts(model: ir.Model) -> dict[str, int]:
    """Number of nodes by op type, subgraphs included, most frequent first; other domains as ``domain.Op``."""
    counts = collections.Counter(
        f"{node.domain}.{node.op_type}" if node.domain else node.op_type for node in model.graph.all_nodes()
    )
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
