"""Rewrites: local changes to the graph, each one a file in ``passes/``.

A rewrite looks at one root node, and either does not match (returns None), refuses with a reason
(raises :class:`Refuse`), or returns the values that take the place of the root's outputs, built with the
:class:`Builder` that it is handed. Nothing in the graph changes before the driver commits the result, so
a rewrite that stops half-way leaves no trace.
"""

from __future__ import annotations

import abc
import enum
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from graphopt.ir import facts
from graphopt.rewrite.pattern import Bindings, Op, Pattern


class Numerics(enum.Enum):
    """What a pass may do to the numbers.

    EXACT: the arithmetic stays bit for bit (a kernel that a constant operand selects may still round
    differently, so the model's noise floor bounds it). REASSOCIATES: rounding may change, within a small
    multiple of the noise floor. LOSSY: the user's budget applies.
    """

    EXACT = "exact"
    REASSOCIATES = "reassociates"
    LOSSY = "lossy"


class Refuse(Exception):
    """The pattern is there, but rewriting it would be wrong or not worth it. The reason goes into the report."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def check_private(root: ir.Node, covered: Collection[ir.Node]) -> None:
    """Raise where something else sees what is inside a pattern, which goes away with it.

    Args:
        root: The node whose outputs are replaced.
        covered: The nodes that go away with it.

    Raises:
        Refuse: Says which value is read elsewhere, or that a node is part of another graph.
    """
    inside = {root, *covered}
    if any(node.graph is not root.graph for node in covered):
        raise Refuse("the pattern crosses into a subgraph")
    for node in covered:
        for output in node.outputs:
            if output.is_graph_output() or any(use.node not in inside for use in output.uses()):
                raise Refuse(f"the inner value {output.name!r} is used elsewhere")


class Match(Mapping[str, "ir.Value | None"]):
    """A pattern found in the graph: its named values, and the nodes that it covers."""

    def __init__(self, root: ir.Node, bound: Bindings) -> None:
        self.root = root
        self.nodes: tuple[ir.Node, ...] = tuple(bound.nodes)
        self._values = dict(bound.values)

    def __getitem__(self, name: str) -> ir.Value | None:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def value(self, name: str) -> ir.Value:
        """The value bound to ``name``, which must be present."""
        value = self._values[name]
        if value is None:
            raise KeyError(f"{name} is an absent optional input")
        return value

    def node(self, name: str) -> ir.Node:
        """The node whose output is bound to ``name``."""
        node = self.value(name).producer()
        if node is None:
            raise KeyError(f"{name} is not the output of a node")
        return node

    def array(self, name: str) -> facts.Array:
        """Content of the constant bound to ``name``."""
        array = facts.constant(self.value(name))
        if array is None:
            raise KeyError(f"{name} is not a constant")
        return array

    def scalar(self, name: str) -> float | None:
        """The single element of the constant bound to ``name``, or None."""
        return facts.scalar(self._values.get(name))

    def refuse(self, reason: str) -> Refuse:
        """The refusal to raise, with ``reason``."""
        return Refuse(reason)


def site_of(node: ir.Node) -> str:
    """The name by which people find ``node``: that of its first output, where it has one."""
    return node.outputs[0].name or node.name or node.op_type


class Builder:
    """Collects the nodes and constants that a rewrite wants, off the graph.

    Args:
        root: The node that is being rewritten; new nodes go before it unless :meth:`place_before` says otherwise.
        rewrite: Name of the rewrite, for the names of new values.
        serial: Distinguishes the values of one rewrite from those of the next at the same root.
    """

    def __init__(self, root: ir.Node, rewrite: str, serial: int = 0) -> None:
        self.root = root
        self.anchor = root
        self.nodes: list[ir.Node] = []
        self.initializers: list[ir.Value] = []
        self.extra_replacements: list[tuple[ir.Value, ir.Value]] = []
        self._rewrite = rewrite
        self._serial = serial
        self._count = 0

    def _name(self) -> str:
        self._count += 1
        return f"{site_of(self.root)}/{self._rewrite}_{self._serial}_{self._count}"

    def op(
        self,
        op_type: str,
        *inputs: ir.Value | facts.Array | None,
        domain: str = "",
        outputs: int = 1,
        like: ir.Value | None = None,
        dtype: ir.DataType | None = None,
        shape: ir.Shape | Sequence[int | str | None] | None = None,
        **attrs: Any,
    ) -> ir.Value:
        """A new node; returns its first output (the node is that value's ``producer()``).

        Args:
            inputs: Values; NumPy arrays become constants; None is an absent input.
            like: Copy type and shape of the output from this value.
            dtype: Type of the output; else that of ``like``, else that of the first input.
            shape: Shape of the output, where ``like`` does not give it.
            attrs: Attributes of the node as plain Python; None leaves an attribute out.
        """
        operands = [
            self.constant(value) if isinstance(value, np.ndarray | np.generic) else value for value in inputs
        ]
        node = ir.node(
            op_type,
            operands,
            attributes={key: value for key, value in attrs.items() if value is not None},
            domain=domain,
            num_outputs=outputs,
            name=self._name(),
        )
        first = node.outputs[0]
        if like is not None:
            first.type = like.type
            first.shape = like.shape.copy() if like.shape is not None else None
        elif operands and operands[0] is not None:
            first.type = operands[0].type
        if dtype is not None:
            # A type of its own: that of ``like`` or of the input is shared with that value.
            first.type = ir.TensorType(dtype)
        if shape is not None:
            first.shape = shape if isinstance(shape, ir.Shape) else ir.Shape(shape)
        for index, output in enumerate(node.outputs):
            output.name = f"{node.name}:{index}" if index else node.name
        self.nodes.append(node)
        return first

    def constant(self, content: facts.Array | np.generic, name: str | None = None) -> ir.Value:
        """A new constant with this content."""
        array = np.ascontiguousarray(content).reshape(np.shape(content))
        name = name or self._name()
        tensor = ir.tensor(array, name=name)
        value = ir.Value(
            name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor
        )
        self.initializers.append(value)
        return value

    def replace(self, old: ir.Value, new: ir.Value) -> None:
        """Also let ``new`` take the place of ``old``, a value that the root does not produce."""
        self.extra_replacements.append((old, new))

    def discard(self) -> None:
        """Forget everything built so far, leaving no uses behind."""
        for node in reversed(self.nodes):
            for index in range(len(node.inputs)):
                node.replace_input_with(index, None)
        self.nodes.clear()
        self.initializers.clear()
        self.extra_replacements.clear()
        self.anchor = self.root

    def place_before(self, node: ir.Node) -> None:
        """Insert the new nodes before ``node`` (which must come after everything that they read)."""
        self.anchor = node


class Rewrite(abc.ABC):
    """One local change.

    Class attributes:
        name: As on the command line (``fuse{disable=[gelu]}``).
        roots: Op types at which it may apply ("" domain, or ``domain::Type``).
        numerics: What it may do to the numbers.
    """

    name: ClassVar[str]
    roots: ClassVar[tuple[str, ...]]
    numerics: ClassVar[Numerics] = Numerics.REASSOCIATES

    @abc.abstractmethod
    def apply(self, node: ir.Node, build: Builder) -> Sequence[ir.Value | None] | ir.Value | None:
        """Values for the outputs of ``node``, or None where the rewrite does not match.

        Raises:
            Refuse: It matches, but must not be done.
        """


class PatternRewrite(Rewrite):
    """A rewrite whose left side is a pattern.

    Class attributes:
        patterns: Alternatives, tried in order; each is an :class:`~graphopt.rewrite.pattern.Op`.
        allow_shared: Names bound in the pattern whose values may have readers outside the match (the nodes
            that make them stay). Any other covered value that is read elsewhere makes the rewrite refuse.
    """

    patterns: ClassVar[tuple[Pattern, ...]]
    allow_shared: ClassVar[frozenset[str]] = frozenset()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "patterns" in cls.__dict__ and "roots" not in cls.__dict__:
            types: set[str] = set()
            for pattern in cls.patterns:
                if not isinstance(pattern, Op):
                    raise TypeError(f"{cls.__name__}: the outermost pattern must be an op")
                types |= {f"{pattern.domain}::{t}" if pattern.domain else t for t in pattern.types}
            cls.roots = tuple(sorted(types))

    @abc.abstractmethod
    def build(self, match: Match, build: Builder) -> Sequence[ir.Value | None] | ir.Value | None:
        """Values for the outputs of the root; None to try the next way of matching.

        Raises:
            Refuse: The pattern is there, but must not be rewritten.
        """

    def apply(self, node: ir.Node, build: Builder) -> Sequence[ir.Value | None] | ir.Value | None:
        refusal: Refuse | None = None
        for pattern in self.patterns:
            bound = Bindings(node.graph)
            for _ in pattern.solutions(node.outputs[0], bound):
                match = Match(node, bound)
                try:
                    self._check_not_shared(match)
                    result = self.build(match, build)
                except Refuse as reason:
                    refusal = refusal or reason
                    build.discard()
                    continue
                if result is not None:
                    return result
                build.discard()
        if refusal is not None:
            raise refusal
        return None

    def _check_not_shared(self, match: Match) -> None:
        covered = set(match.nodes)
        shared = {match[name] for name in self.allow_shared if name in match}
        for node in match.nodes:
            if node is match.root:
                continue
            for output in node.outputs:
                if output in shared:
                    continue
                if output.is_graph_output():
                    raise Refuse(f"the inner value {output.name!r} is an output of the graph")
                if any(use.node not in covered for use in output.uses()):
                    raise Refuse(f"the inner value {output.name!r} is used elsewhere")
