"""The labels of a graph while they are handed from node to node, and what the rules of all operators share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from graphopt.ir import facts
from graphopt.ir.describe import all_reads
from graphopt.ir.symbolic import Shapes
from graphopt.prune.labels import PINNED, Axis, Indices, Labels


@dataclass
class Flow:
    """The labels of a graph.

    Attributes:
        labels: Of its tensors.
        balanced: Labels [groups, channels] of which each group has to lose as many as the others.
        shapes: Sizes of axes that are computed.
    """

    labels: Labels = field(default_factory=Labels)
    balanced: list[Indices] = field(default_factory=list)
    shapes: Shapes = field(default_factory=Shapes)
    _used: list[Indices] = field(default_factory=list, repr=False)

    def begin(self) -> int:
        """Forget what the last node used; returns the number of the first tie that the next one makes."""
        self._used = []
        self.shapes.renew()
        return self.labels.tied

    def use(self, labels: Axis) -> None:
        """Say that a node needs no more of an axis than what is left of it."""
        if labels is not None:
            self._used.append(labels)

    def pin_rest(self, node: ir.Node, first: int) -> None:
        """Pin what a node reads, neither hands on nor is known to need no more of: it is mixed with the rest.

        Args:
            first: Of the ties that the node's own rule made.
        """
        handed = [labels for value in node.outputs for labels in self.axes(value) if labels is not None]
        known = {id(labels) for labels in (*handed, *self._used)}
        computed = [value for value in node.inputs if value is not None and not facts.is_constant(value)]
        read = [labels for value in computed for labels in self.axes(value) if labels is not None]
        open_ = [labels for labels in read if id(labels) not in known]
        if not open_:
            return
        covered = {PINNED}.union(*(labels.tolist() for labels in (*handed, *self._used)))
        ties = self.labels.ties(first)
        changed = True
        while changed:
            size = len(covered)
            for left, right in ties:
                for a, b in zip(left.tolist(), right.tolist(), strict=True):
                    if (a in covered or b in covered) and PINNED not in (a, b):
                        covered.update((a, b))
            changed = len(covered) > size
        for labels in open_:
            rest = np.array([label for label in labels.tolist() if label not in covered], np.int64)
            self.labels.pin(rest, node.name or node.op_type, f"{node.op_type} mixes them")

    def refuse(self, node: ir.Node, reason: str) -> None:
        """Pin everything that a node reads, its constants too."""
        for value in all_reads(node):
            for axis in range(facts.rank(value) or 0):
                self.labels.pin(self.labels.of(value, axis), node.name or node.op_type, reason)
            for labels in self.labels.merged(value).values():
                self.labels.pin(labels, node.name or node.op_type, reason)

    def pin_axes(self, node: ir.Node, value: ir.Value | None, axes: Iterable[int], reason: str) -> None:
        """Pin axes of a computed value; a constant that nothing else has labelled needs none."""
        if value is None or facts.is_constant(value):
            return
        for axis in axes:
            self.labels.pin(self.labels.of(value, axis), node.name or node.op_type, reason)

    def axes(self, value: ir.Value | None) -> list[Axis]:
        """The labels of every axis of a computed value."""
        return [self.labels.of(value, axis) for axis in range(facts.rank(value) or 0)]

    def tie(self, node: ir.Node, left: Axis, right: Axis, reason: str) -> Axis:
        """Tie two axes on behalf of a node."""
        return self.labels.tie(left, right, node.name or node.op_type, reason)

    def tie_rows(self, node: ir.Node, labels: Indices) -> Indices:
        """Tie the rows of labels [n, m] to the first one; returns that."""
        for row in labels[1:]:
            self.tie(node, labels[0], row, "")
        first: Indices = labels[0]
        return first


Rule = Callable[[Flow, ir.Node], None]
"""What an operator does with labels."""

__all__ = ["Flow", "Rule"]
