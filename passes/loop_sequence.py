"""Loop(i) { MatMul(Gather(x, i), w) }  ==>  p = MatMul(x, w), Loop(i) { Gather(p, i) }

What a loop computes of one row of a sequence after the other, without what it carried from the row before, is computed
of all rows at once: a product with many rows in place of many with one, which reads its weight once. Forms: the input
projection, bias and mask of a recurrent cell in a TensorFlow ``while`` loop, as tf2onnx writes it.

Refuses:
- a sequence that is a constant (a table of embeddings): more rows than are looked up would be computed.

A loop that ends by what it computes (a decoder), an index that does not count iterations, rows of unknown rank, and
what may fail on a row that the loop does not reach (integer division) do not match.
"""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from graphopt.ir import facts, provenance
from graphopt.ir.operators import BROADCAST, UNARY
from graphopt.passes._loops import Body, loops, may_fail
from graphopt.pipeline.base import Pass
from graphopt.rewrite import Builder, Gate, Numerics, RewriteLog, allow_all
from graphopt.rewrite.driver import Refusal, commit

_INTEGERS = (ir.DataType.INT32, ir.DataType.INT64)


class LoopSequence(Pass):
    """What a loop computes row by row is computed of all rows at once."""

    name: ClassVar[str] = "loop-sequence"
    numerics: ClassVar[Numerics] = Numerics.REASSOCIATES

    def run(self, model: ir.Model, log: RewriteLog, gate: Gate = allow_all) -> bool:
        """Visit each loop once, inner ones first, and in it each row that is read."""
        before = len(log.applied)
        for around, loop, graph in loops(model.graph):
            if loop.op_type != "Loop":
                continue
            body = Body(graph)
            counters = body.counters(loop)
            if not body.ends_by_counting(counters):
                continue
            rows = [node for node in graph if _reads_row(node, body, counters)]
            while rows:
                row = rows.pop()
                if facts.is_constant(row.inputs[0]):
                    if any(reader.op_type == "MatMul" for reader in row.outputs[0].consumers()):
                        log.refused.append(
                            Refusal(self.name, row.outputs[0].name or "", "the sequence is a constant")
                        )
                    continue
                for reader in _readers(row, body):
                    if log.admit(gate, self.name, reader.outputs[0].name):
                        rows.append(self._moved(around, loop, body, row, reader))
        return len(log.applied) > before

    def _moved(self, around: ir.Graph, loop: ir.Node, body: Body, row: ir.Node, reader: ir.Node) -> ir.Node:
        """Compute what ``reader`` does of one row of all of them; returns the node that reads a row of that."""
        sequence, index = row.inputs
        assert sequence is not None
        for value in reader.inputs:
            body.export(value, around)
        old = reader.outputs[0]
        build = Builder(loop, f"{self.name}/{old.name}")
        length = None if sequence.shape is None else sequence.shape[0]
        whole = build.op(
            reader.op_type,
            *(sequence if value is row.outputs[0] else value for value in reader.inputs),
            dtype=old.dtype,
            shape=None if old.shape is None else ir.Shape([length, *old.shape]),
            **{name: attr.value for name, attr in reader.attributes.items()},
        )
        around.insert_before(loop, build.nodes)
        for node in build.nodes:
            provenance.record(node, self.name, [reader])
        inner = Builder(reader, self.name)
        taken = inner.op("Gather", whole, index, like=old, axis=0)
        commit(body.graph, reader, [taken], inner, self.name)
        found = taken.producer()
        assert found is not None
        return found


def _reads_row(node: ir.Node, body: Body, counters: set[ir.Value]) -> bool:
    """Whether a node takes the row of a sequence from outside that a counter tells."""
    if node.op_type != "Gather" or node.domain or facts.attribute(node, "axis", 0) != 0:
        return False
    sequence, index = node.inputs
    while index is not None and (cast := index.producer()) is not None and cast.op_type == "Cast":
        index = cast.inputs[0]
    return (
        index in counters
        and facts.rank(node.inputs[1]) == 0
        and index is not None
        and index.dtype in _INTEGERS
        and body.is_outside(sequence)
        and facts.rank(sequence) is not None
    )


def _readers(row: ir.Node, body: Body) -> list[ir.Node]:
    """What computes of the row alone: a product by itself, something cheap where nothing else reads the row."""
    value = row.outputs[0]
    rank = (facts.rank(row.inputs[0]) or 0) - 1
    consumers = list(dict.fromkeys(value.consumers()))
    found = [reader for reader in consumers if _is_of_row(reader, value, rank, body)]
    if len(found) == len(consumers) and not value.is_graph_output():
        return found
    return [reader for reader in found if reader.op_type == "MatMul"]


def _is_of_row(node: ir.Node, row: ir.Value, rank: int, body: Body) -> bool:
    """Whether a node computes of each row what it would of all: then rows may become an axis in front."""
    if node.domain or node.graph is not body.graph or may_fail(node):
        return False
    others = [value for value in node.inputs if value is not row]
    if not all(map(body.is_outside, others)) or len(others) == len(node.inputs):
        return False
    if node.op_type == "MatMul":
        # Of a matrix with a matrix: with a vector on either side, axes would be other ones.
        return rank >= 2 and node.inputs[0] is row and facts.rank(node.inputs[1]) == 2
    if node.op_type in UNARY:
        return node.inputs[0] is row
    ranks = [facts.rank(value) for value in others]
    return node.op_type in BROADCAST and all(found is not None and found <= rank for found in ranks)
