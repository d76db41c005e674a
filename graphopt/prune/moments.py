"""What goes into the sums of layers on data, as rows of numbers, and their weights as matrices."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from graphopt.data.interface import Feeds
from graphopt.ir import facts
from graphopt.ir.describe import all_reads
from graphopt.ir.facts import Array
from graphopt.ir.graphs import subgraphs_of
from graphopt.prune.structure import Layer
from graphopt.quant.observe import tapped
from graphopt.quant.rounding import patches
from graphopt.verify.session import Session

MOST_INPUTS = 4096
"""Numbers that go into one sum, beyond which second moments would take too much memory and time."""
ROWS = 256
"""Places of one sample."""


def inputs_of(layer: Layer) -> int:
    """How many numbers go into one sum of a layer."""
    dims = facts.static_dims(layer.weight)
    assert dims is not None
    if layer.node.op_type == "Conv":
        return int(np.prod(dims[1:]))
    return dims[layer.inner]


def why_not(layer: Layer) -> str:
    """Why the inputs of a layer cannot be written as rows; empty where they can."""
    if layer.node.op_type == "ConvTranspose":
        return "the sums of a transposed convolution overlap"
    if layer.node.op_type == "Conv" and facts.attribute(layer.node, "auto_pad", "NOTSET") not in (
        "NOTSET",
        "VALID",
    ):
        return "its pads are not known"
    if layer.node.op_type == "Gemm" and facts.attribute(layer.node, "transA", 0):
        return "its data are transposed"
    if inputs_of(layer) > MOST_INPUTS:
        return f"more than {MOST_INPUTS} numbers go into one sum"
    return ""


def matrices(layer: Layer, weight: Array) -> Array:
    """A weight as [groups, outputs of a group, numbers of a sum]; a Gemm's alpha included."""
    if layer.node.op_type == "Conv":
        return weight.reshape(layer.groups, len(weight) // layer.groups, -1)
    turned = weight if layer.inner == 1 else weight.T
    return np.asarray(turned * np.float32(facts.attribute(layer.node, "alpha", 1.0)))[None]


def restored(layer: Layer, matrix: Array, like: Array) -> Array:
    """The weight that :func:`matrices` made this of; ``like`` has its shape."""
    if layer.node.op_type == "Conv":
        return matrix.reshape(like.shape).astype(like.dtype)
    plain = matrix[0] / np.float32(facts.attribute(layer.node, "alpha", 1.0))
    return np.ascontiguousarray(plain if layer.inner == 1 else plain.T).astype(like.dtype)


def rows_of(layer: Layer, array: Array, seed: int, most: int = ROWS) -> Array:
    """What goes into some sums of a layer, float32 [groups, rows, numbers of a sum].

    Args:
        array: What the layer reads.
        seed: The same rows are taken wherever this and the number of places are the same.
        most: Rows.
    """

    def some(count: int) -> Array:
        if count <= most:
            return np.arange(count)
        return np.sort(np.random.default_rng(seed).choice(count, most, replace=False))

    if layer.node.op_type == "Conv":
        return patches(layer.node, array, some)
    rows = np.moveaxis(array, layer.channel, -1).reshape(-1, array.shape[layer.channel])
    return rows[some(len(rows))][None].astype(np.float32)


def read_by(
    model: ir.Model, layers: Sequence[Layer], samples: Iterable[Feeds], threads: int = 0
) -> Iterator[Mapping[str, Array]]:
    """For each sample what these layers read, by name of the value."""
    names = list(dict.fromkeys(layer.data.name or "" for layer in layers))
    inputs = {value.name for value in model.graph.inputs}
    session = Session(
        only(model, [name for name in names if name not in inputs]), optimize="all", threads=threads
    )
    for feeds in samples:
        wanted = [name for name in names if name not in inputs]
        needed = {name: array for name, array in feeds.items() if name in session.input_names}
        yield {**feeds, **(session.run(needed, wanted) if wanted else {})}


def only(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """A copy that computes these tensors and nothing else."""
    copy = tapped(model, names)
    wanted = {value.name: value for value in copy.graph.outputs}
    if names:
        copy.graph.outputs.clear()
        copy.graph.outputs.extend(wanted[name] for name in dict.fromkeys(names))
    needed = set(copy.graph.outputs)
    for node in reversed(list(copy.graph)):
        if any(value in needed for value in node.outputs):
            needed.update(all_reads(node))
        else:
            remove(copy.graph, node)
    for name, value in list(copy.graph.initializers.items()):
        if value not in needed:
            del copy.graph.initializers[name]
    kept = [value for value in copy.graph.inputs if value in needed]
    copy.graph.inputs.clear()
    copy.graph.inputs.extend(kept)
    return copy


def remove(graph: ir.Graph, node: ir.Node) -> None:
    """Remove a node whose outputs nothing reads any more, with what its branches read."""
    for inner in subgraphs_of(node):
        inner.outputs.clear()
        for other in inner.all_nodes():
            for slot in range(len(other.inputs)):
                other.replace_input_with(slot, None)
    graph.remove(node, safe=True)


__all__ = [
    "MOST_INPUTS",
    "inputs_of",
    "matrices",
    "only",
    "read_by",
    "remove",
    "restored",
    "rows_of",
    "why_not",
]
