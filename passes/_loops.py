"""What the passes over loop bodies share: which values come from outside, and which count iterations."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import onnx_ir as ir

from graphopt.ir import facts
from graphopt.ir.facts import Dim
from graphopt.ir.graphs import free_name, subgraphs_of
from graphopt.ir.operators import BROADCAST, SOFTMAX, UNARY, is_random
from graphopt.ir.shapes import is_invented
from graphopt.ir.views import is_made_of

_LOOPS = frozenset(("Loop", "Scan"))
_DIVISIONS = frozenset(("Div", "Mod"))
_MOVABLE = UNARY | SOFTMAX | BROADCAST | {"MatMul", "Gemm", "Transpose", "Shape", "Size"}
"""Operators that fail on nothing but what :func:`may_fail` tells."""
STATES, CARRIED = 2, 1
"""Where the states begin among a Loop's inputs (as among its body's), and among its body's outputs."""


def loops(graph: ir.Graph) -> Iterator[tuple[ir.Graph, ir.Node, ir.Graph]]:
    """Each Loop and Scan with the graph around it and its body, inner ones first."""
    for node in list(graph):
        for inner in subgraphs_of(node):
            yield from loops(inner)
        if not node.domain and node.op_type in _LOOPS:
            yield graph, node, node.attributes["body"].as_graph()


def may_fail(node: ir.Node) -> bool:
    """Whether a node may fail where a loop would not have come to it: by dividing integers by zero, or by its shapes.

    A loop may run only where shapes are equal, as a comparison before it tells.
    """
    if node.op_type in _DIVISIONS and not facts.is_float(node.outputs[0]):
        return True
    shapes = [facts.known_dims(value) for value in node.inputs if value is not None]
    known = [shape for shape in shapes if shape is not None]
    if len(known) < 2:
        return False
    if node.op_type in BROADCAST:
        return any(_may_differ(a, b, broadcast=True) for a, b in itertools.combinations(known, 2))
    if node.op_type == "Gemm":
        left, right = (
            shape[:: -1 if facts.attribute(node, trans, 0) else 1]
            for shape, trans in zip(known[:2], ("transA", "transB"), strict=True)
        )
        return _may_differ(left[-1:], right[:1])
    if node.op_type == "MatMul":
        left, right = known
        return _may_differ(left[-1:], right[-2:][:1]) or _may_differ(left[:-2], right[:-2], broadcast=True)
    return False


def _may_differ(left: Sequence[Dim], right: Sequence[Dim], *, broadcast: bool = False) -> bool:
    """Whether sizes are told apart by what is known of them; ones fit all where they broadcast."""

    def says(dim: Dim) -> bool:
        return dim is not None and not (isinstance(dim, str) and is_invented(dim))

    return any(
        a != b and says(a) and says(b) and not (broadcast and 1 in (a, b))
        for a, b in zip(reversed(left), reversed(right), strict=False)
    )


class Body:
    """A loop's body: what belongs to it, and what to the graphs around it.

    Args:
        graph: The body.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self._inputs = set(graph.inputs)

    def is_outside(self, value: ir.Value | None) -> bool:
        """Whether a value that the body reads is the same in all iterations: a constant, or from around it."""
        if value is None or value.is_initializer():
            return True
        producer = value.producer()
        return value not in self._inputs and (producer is None or producer.graph is not self.graph)

    def is_movable(self, node: ir.Node) -> bool:
        """Whether a node may run before the loop, however often that runs."""
        return (
            not node.domain
            and node.op_type in _MOVABLE
            and not may_fail(node)
            and not is_random(node)
            and not any(output.is_graph_output() for output in node.outputs)
        )

    def export(self, value: ir.Value | None, around: ir.Graph) -> None:
        """Let a constant of the body be one of the graph around it."""
        if value is not None and value.is_initializer() and value.graph is self.graph:
            assert value.name is not None
            self.graph.initializers.pop(value.name)
            value.name = free_name(value.name, around.initializers, ".")
            around.register_initializer(value)

    def counters(self, loop: ir.Node) -> set[ir.Value]:
        """Values that count a Loop's iterations: the first input of its body, and states that grow by one."""
        found = {self.graph.inputs[0]}
        for place, state in enumerate(self.graph.inputs[STATES:]):
            start = facts.scalar(loop.inputs[STATES + place])
            final = unnamed(self.graph.outputs[CARRIED + place])
            step = final.producer()
            if start is None or step is None or step.op_type != "Add" or step.domain or len(step.inputs) != 2:
                continue
            first, second = step.inputs
            other = second if first is state else first if second is state else None
            if other is not None and facts.scalar(other) == 1:
                found.add(state)
        return found

    def ends_by_counting(self, counters: set[ir.Value]) -> bool:
        """Whether how often a Loop runs follows from counters and from what is outside, not from what it computes."""
        known = counters | {self.graph.inputs[1]}
        return is_made_of(
            self.graph.outputs[0],
            lambda value: value in known or self.is_outside(value),
            lambda node: not is_random(node) and not subgraphs_of(node),
        )


def unnamed(value: ir.Value) -> ir.Value:
    """The value behind Identity nodes that only give it a name."""
    node = value.producer()
    while node is not None and node.op_type == "Identity" and not node.domain and node.inputs[0] is not None:
        value = node.inputs[0]
        node = value.producer()
    return value


__all__ = ["CARRIED", "STATES", "Body", "loops", "unnamed"]
