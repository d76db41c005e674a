"""Labels on the indices of tensors' axes: indices with one label can only be removed together.

Each index of an axis that may shrink carries a label, an integer. Operators hand labels on, rearrange them, or say
that two of them are one (:mod:`graphopt.prune.flow`); what may not shrink is tied to the label :data:`PINNED`. At the
end the connected components of all that was tied are the *classes*: an index set over many tensors that is removed as a
whole (the dependency graph of Fang et al., DepGraph: Towards Any Structural Pruning, CVPR 2023, index by index).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graphopt.ir import facts

Indices = npt.NDArray[np.int64]
Axis = Indices | None
"""The labels of one axis; None where nothing of it may be removed."""
PINNED = 0


@dataclass(frozen=True)
class Pin:
    """Why some labels may not be removed.

    Attributes:
        labels: These.
        node: Name of the node that prevents it; "" for the model's own inputs and outputs.
        reason: In words.
    """

    labels: Indices
    node: str
    reason: str


class Labels:
    """The labels of a graph's tensors."""

    def __init__(self) -> None:
        self._count = PINNED + 1
        self._of: dict[ir.Value, list[Axis]] = {}
        self._fresh: dict[tuple[ir.Value, int], Indices] = {}
        self._ties: list[tuple[Indices, Indices]] = []
        self.pins: list[Pin] = []
        self._closed = False
        self._copies: set[int] = set()
        self._merged: dict[ir.Value, dict[int, Indices]] = {}

    def of(self, value: ir.Value | None, axis: int) -> Axis:
        """The labels of an axis, those of a constant made when they are first asked for.

        Args:
            axis: From the front, or below zero from the back.
        """
        rank = facts.rank(value)
        if value is None or rank is None or not -rank <= axis < rank:
            return None
        axis %= rank
        if value in self._of:
            return self._of[value][axis]
        if not facts.is_constant(value) or not facts.is_float(value):
            return None
        key = (value, axis)
        if key not in self._fresh:
            if self._closed:
                return None
            self._fresh[key] = self._new(int(value.shape[axis]))  # type: ignore[index, arg-type]
        return self._fresh[key]

    def _new(self, count: int) -> Indices:
        made = np.arange(self._count, self._count + count, dtype=np.int64)
        self._count += count
        return made

    def put_merged(self, value: ir.Value, axis: int, labels: Indices) -> None:
        """Say that along an axis of unknown size labels repeat: heads of all samples, one behind the other.

        :meth:`of` gives nothing for such an axis.
        """
        self._merged.setdefault(value, {})[axis] = labels

    def merged(self, value: ir.Value | None) -> Mapping[int, Indices]:
        """The labels that repeat along axes of a value."""
        return {} if value is None else self._merged.get(value, {})

    def copies(self, count: int) -> Indices:
        """New labels for an axis along which one thing is repeated, so that it may be repeated less often."""
        made = self._new(count)
        self._copies.update(made.tolist())
        return made

    def are_copies(self, labels: Axis) -> bool:
        """Whether an axis repeats one thing, as far as was said."""
        return labels is not None and self._copies.issuperset(labels.tolist())

    def put(self, value: ir.Value, axes: Sequence[Axis]) -> None:
        """Say what the labels of a computed tensor are, axis by axis; a length that does not fit pins the axis."""
        dims = facts.dims(value)
        if dims is None or len(dims) != len(axes):
            for labels in axes:
                self.pin(labels, "", f"the shape of {value.name!r} is not known")
            return
        kept: list[Axis] = []
        for size, labels in zip(dims, axes, strict=True):
            if labels is not None and size != len(labels):
                self.pin(labels, "", f"the shape of {value.name!r} is not known")
                labels = None
            kept.append(labels)
        self._of[value] = kept

    def tie(self, left: Axis, right: Axis, node: str, reason: str) -> Axis:
        """Say that the labels of two axes are the same one by one; returns what they are from now on.

        Args:
            node: Who says so.
            reason: Why neither may be removed, where the other one may not.
        """
        if left is None or right is None or len(left) != len(right):
            self.pin(left, node, reason)
            self.pin(right, node, reason)
            return None
        if left is not right:
            self._ties.append((left, right))
        return left

    def pin(self, labels: Axis, node: str, reason: str) -> None:
        """Say that nothing of an axis may be removed."""
        if labels is not None and len(labels):
            self._ties.append((labels, np.full(len(labels), PINNED, np.int64)))
            self.pins.append(Pin(labels, node, reason))

    def classes(self) -> Indices:
        """The class of each label: the smallest label that it is tied to. After it no constant gets labels any more."""
        import networkx

        self._closed = True
        graph: networkx.Graph[int] = networkx.Graph()
        for left, right in self._ties:
            graph.add_edges_from(zip(left.tolist(), right.tolist(), strict=True))
        found = np.arange(self._count, dtype=np.int64)
        for component in networkx.connected_components(graph):
            members = np.fromiter(component, np.int64, len(component))
            found[members] = members.min()
        return found

    @property
    def tied(self) -> int:
        """How often labels were said to be one."""
        return len(self._ties)

    def ties(self, first: int = 0) -> list[tuple[Indices, Indices]]:
        """What was said to be one, from one of these times on."""
        return self._ties[first:]

    def all_axes(self) -> list[Indices]:
        """The labels of every axis that has any."""
        computed = [
            labels for axes in self._of.values() for labels in axes if labels is not None and len(labels)
        ]
        return [*computed, *self._fresh.values()]

    def constants(self) -> list[tuple[ir.Value, int, Indices]]:
        """Constants with labels: value, axis, labels."""
        return [(value, axis, labels) for (value, axis), labels in self._fresh.items()]


__all__ = ["PINNED", "Axis", "Indices", "Labels", "Pin"]
