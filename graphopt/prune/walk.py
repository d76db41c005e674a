"""Runs a graph on samples piece by piece: what a piece needs of those before it is kept, all else forgotten.

Refitting layer after layer runs every node once, and not once for each layer behind it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import onnx_ir as ir

from graphopt.data.interface import Feeds
from graphopt.ir import model as ir_model
from graphopt.ir.describe import all_reads
from graphopt.ir.facts import Array
from graphopt.prune.moments import remove
from graphopt.verify.session import Session


class Walk:
    """A graph that is run from its inputs towards its outputs.

    Args:
        model: Its nodes are in topological order; weights of nodes that have not run yet may be changed meanwhile.
        samples: Inputs.
        threads: Of an operator.
    """

    def __init__(self, model: ir.Model, samples: Sequence[Feeds], threads: int = 0) -> None:
        self._model = model
        self._threads = threads
        self._values: list[dict[str, Array]] = [dict(feeds) for feeds in samples]
        self._done: set[str] = set()

    def to(self, name: str) -> Iterator[Array]:
        """Run all nodes up to the one that makes this tensor; gives it for each sample, which may be read once."""
        known = self._values[0] if self._values else {}
        if name not in known:
            self._advance(name)
        return (values[name] for values in self._values)

    @property
    def nbytes(self) -> int:
        """Of what is kept."""
        return sum(array.nbytes for values in self._values for array in values.values())

    def _advance(self, name: str) -> None:
        nodes = list(self._model.graph)
        last = next(
            index for index, node in enumerate(nodes) if any(value.name == name for value in node.outputs)
        )
        piece = [node for node in nodes[: last + 1] if _key(node) not in self._done]
        rest = [node for node in nodes[last + 1 :]]
        made = {value for node in piece for value in node.outputs}
        later = {value for node in rest for value in all_reads(node)}
        wanted = [value for value in made if value.name and (value in later or value.name == name)]
        session = Session(_piece(self._model, piece, wanted), optimize="all", threads=self._threads)
        names = [value.name or "" for value in wanted]
        still = {value.name for value in later} | {name}
        for values in self._values:
            found = session.run({key: values[key] for key in session.input_names}, names)
            for key in [key for key in values if key not in still]:
                del values[key]
            values.update(found)
        self._done.update(map(_key, piece))


def _key(node: ir.Node) -> str:
    return next(value.name or "" for value in node.outputs if value.name)


def _piece(model: ir.Model, nodes: Sequence[ir.Node], wanted: Sequence[ir.Value]) -> ir.Model:
    """A model of some nodes, which gives some of what they make."""
    copy = ir_model.clone(model)
    graph = copy.graph
    kept = {_key(node) for node in nodes}
    values: Mapping[str, ir.Value] = {
        value.name: value
        for value in (*graph.inputs, *(value for node in graph for value in node.outputs))
        if value.name
    }
    graph.outputs.clear()
    graph.outputs.extend(values[value.name or ""] for value in wanted)
    inside = [node for node in graph if _key(node) in kept]
    made = {value for node in inside for value in node.outputs}
    reads = {value for node in inside for value in all_reads(node)}
    outside = [value for value in values.values() if value in reads and value not in made]
    for node in reversed(list(graph)):
        if _key(node) not in kept:
            for value in node.outputs:
                # What a piece reads of it becomes an input.
                if value in reads:
                    own = ir.Value(name=value.name, type=value.type, shape=value.shape)
                    value.name = f"{value.name}/outside"
                    value.replace_all_uses_with(own)
                    outside[outside.index(value)] = own
            remove(graph, node)
    for name, value in list(graph.initializers.items()):
        if value not in reads:
            del graph.initializers[name]
    graph.inputs.clear()
    graph.inputs.extend(outside)
    return copy


__all__ = ["Walk"]
