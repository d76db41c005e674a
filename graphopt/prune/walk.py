"""Runs a graph on samples piece by piece: what a piece needs of those before it is kept, all else forgotten.

Refitting layer after layer runs every node once, and not once for each layer behind it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import onnx_ir as ir

from graphopt.data.interface import Feeds
from graphopt.ir.describe import all_reads
from graphopt.ir.facts import Array
from graphopt.ir.views import part_of
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

    def keep(self, count: int) -> None:
        """Go on with the first so many samples."""
        del self._values[count:]

    def holds(self, name: str) -> bool:
        """Whether a tensor has been made, or given, and is still to be read."""
        return bool(self._values) and name in self._values[0]

    def to(self, name: str) -> Iterator[Array]:
        """Run all nodes up to the one that makes this tensor; gives it for each sample, which may be read once."""
        if not self.holds(name):
            self._advance(name)
        return (values[name] for values in self._values)

    def _advance(self, name: str) -> None:
        nodes = list(self._model.graph)
        last = next(
            index for index, node in enumerate(nodes) if any(value.name == name for value in node.outputs)
        )
        piece = [node for node in nodes[: last + 1] if _key(node) not in self._done]
        still = {value.name for node in nodes[last + 1 :] for value in all_reads(node)} | {name}
        session = Session(part_of(self._model, piece)[0], optimize="all", threads=self._threads)
        names = [output for output in session.output_names if output in still]
        for values in self._values:
            found = session.run({key: values[key] for key in session.input_names}, names)
            for key in [key for key in values if key not in still]:
                del values[key]
            values.update(found)
        self._done.update(map(_key, piece))


def most_kept(model: ir.Model, sizes: Mapping[str, int]) -> int:
    """Bytes of one sample that a walk keeps at most: what has been made, or given, and is still to be read.

    Args:
        sizes: Of tensors, by name; others count nothing.
    """
    last = {value.name: index for index, node in enumerate(model.graph) for value in all_reads(node)}
    live = {value.name for value in model.graph.inputs if value.name in last}
    most = 0
    for index, node in enumerate(model.graph):
        live |= {value.name for value in node.outputs if value.name in last}
        most = max(most, sum(sizes.get(name or "", 0) for name in live))
        live -= {value.name for value in all_reads(node) if last[value.name] == index}
    return most


def _key(node: ir.Node) -> str:
    return next(value.name or "" for value in node.outputs if value.name)


__all__ = ["Walk", "most_kept"]
