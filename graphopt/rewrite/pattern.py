"""Patterns: the declarative left side of a rewrite.

A pattern is a tree (or, where a variable occurs twice, a DAG) of operators that is matched upwards from the
value that a rewrite replaces::

    x = var("x")
    HARD_SWISH = op("Div", op("Mul", x, op("Clip", op("Add", x, const(3.0)), const(0.0), const(6.0))), const(6.0))

Operands of commutative operators match in either order, with full backtracking. A variable that occurs
twice must be the same value both times. The cost of one match is bounded by the size of the pattern, not
of the graph.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import onnx_ir as ir

from graphopt.ir import facts

COMMUTATIVE = frozenset({"Add", "Mul", "Max", "Min", "Sum", "And", "Or", "Xor", "Equal"})


class Bindings:
    """What a partial match has bound so far. Undone step by step when the matcher backtracks."""

    __slots__ = ("graph", "nodes", "values")

    def __init__(self, graph: ir.Graph | None) -> None:
        self.values: dict[str, ir.Value | None] = {}
        self.nodes: dict[ir.Node, str | None] = {}
        self.graph = graph

    def bind(self, name: str, value: ir.Value | None) -> Iterator[None]:
        """Yield once with ``name`` bound to ``value``; not at all where it is bound to another."""
        if name in self.values:
            if self.values[name] is value:
                yield
            return
        self.values[name] = value
        yield
        del self.values[name]


class Pattern(abc.ABC):
    """Something that a value may or may not match."""

    @abc.abstractmethod
    def solutions(self, value: ir.Value | None, bound: Bindings) -> Iterator[None]:
        """Yield once for each way in which ``value`` matches, with ``bound`` extended while suspended."""


PatternLike: TypeAlias = "Pattern | float | int | None"


class Var(Pattern):
    """Any value; the same one wherever the name occurs again."""

    def __init__(self, name: str, *, optional: bool = False) -> None:
        self.name = name
        self.optional = optional

    def solutions(self, value: ir.Value | None, bound: Bindings) -> Iterator[None]:
        if value is None and not self.optional:
            return
        yield from bound.bind(self.name, value)


class Const(Pattern):
    """A constant; with ``number``, a single-element one of that content.

    The content is compared after rounding to the precision of float16 where the constant is one, else with a
    relative tolerance of ``rtol`` (exporters write 1.4142135 as well as 1.41421354).
    """

    def __init__(self, number: float | None = None, *, name: str | None = None, rtol: float = 1e-6) -> None:
        self.number = number
        self.name = name
        self.rtol = rtol

    def solutions(self, value: ir.Value | None, bound: Bindings) -> Iterator[None]:
        if value is None or not facts.is_constant(value):
            return
        if self.number is not None:
            content = facts.scalar(value)
            if content is None:
                return
            rtol = 2e-3 if value.dtype == ir.DataType.FLOAT16 else self.rtol
            if content != self.number and not abs(content - self.number) <= rtol * abs(self.number):
                return
        if self.name is None:
            yield
            return
        yield from bound.bind(self.name, value)


class Op(Pattern):
    """A node of the default domain (or ``domain``) with one of the given op types.

    Args:
        types: Op types that match, separated by ``|``.
        inputs: Patterns of the inputs. Trailing inputs that the pattern does not name must be absent,
            unless ``open_inputs`` is set; a pattern of None demands an absent input.
        name: Binds the node's output value (and through ``Match.node`` the node).
        attrs: Attributes that must have these values (an absent attribute counts as None).
        output: Which output of the node the matched value must be.
    """

    def __init__(
        self,
        types: str,
        *inputs: PatternLike,
        name: str | None = None,
        attrs: Mapping[str, Any] | None = None,
        output: int = 0,
        domain: str = "",
        open_inputs: bool = False,
    ) -> None:
        self.types = frozenset(types.split("|"))
        self.inputs = tuple(as_pattern(pattern) for pattern in inputs)
        self.name = name
        self.attrs = dict(attrs or {})
        self.output = output
        self.domain = domain
        self.open_inputs = open_inputs
        self._commutes = bool(self.types & COMMUTATIVE) and len(self.inputs) == 2

    def solutions(self, value: ir.Value | None, bound: Bindings) -> Iterator[None]:
        node = None if value is None else value.producer()
        if node is None or node.op_type not in self.types or node.domain != self.domain:
            return
        if node.graph is not bound.graph or value is not node.outputs[self.output]:
            return
        if any(facts.attribute(node, key) != wanted for key, wanted in self.attrs.items()):
            return
        given = list(node.inputs)
        while given and given[-1] is None:
            given.pop()
        if len(given) > len(self.inputs) and not self.open_inputs:
            return
        given += [None] * (len(self.inputs) - len(given))

        if self.name is not None:
            if self.name in bound.values:
                if bound.values[self.name] is value:
                    yield
                return
            bound.values[self.name] = value
        entered = node not in bound.nodes
        if entered:
            bound.nodes[node] = self.name
        yield from self._match_inputs(0, given, bound)
        if self._commutes and node.op_type in COMMUTATIVE and given[0] is not given[1]:
            yield from self._match_inputs(0, [given[1], given[0]], bound)
        if entered:
            del bound.nodes[node]
        if self.name is not None:
            del bound.values[self.name]

    def _match_inputs(self, index: int, given: list[ir.Value | None], bound: Bindings) -> Iterator[None]:
        if index == len(self.inputs):
            yield
            return
        pattern = self.inputs[index]
        if pattern is None:
            if given[index] is None:
                yield from self._match_inputs(index + 1, given, bound)
            return
        for _ in pattern.solutions(given[index], bound):
            yield from self._match_inputs(index + 1, given, bound)


class AnyOf(Pattern):
    """The first of several patterns that matches (the others are tried on backtracking)."""

    def __init__(self, *choices: PatternLike) -> None:
        self.choices = tuple(as_pattern(choice) for choice in choices)

    def solutions(self, value: ir.Value | None, bound: Bindings) -> Iterator[None]:
        for choice in self.choices:
            if choice is None:
                if value is None:
                    yield
            else:
                yield from choice.solutions(value, bound)


def as_pattern(pattern: PatternLike) -> Pattern | None:
    """A number stands for the constant of that content; None for an absent input."""
    if pattern is None or isinstance(pattern, Pattern):
        return pattern
    return Const(float(pattern))


def var(name: str, *, optional: bool = False) -> Var:
    """Any value (``optional``: also an absent one), bound to ``name``."""
    return Var(name, optional=optional)


def const(number: float | None = None, *, name: str | None = None, rtol: float = 1e-6) -> Const:
    """A constant; see :class:`Const`."""
    return Const(number, name=name, rtol=rtol)


def op(
    types: str,
    *inputs: PatternLike,
    name: str | None = None,
    attrs: Mapping[str, Any] | None = None,
    output: int = 0,
    domain: str = "",
    open_inputs: bool = False,
) -> Op:
    """A node; see :class:`Op`."""
    return Op(types, *inputs, name=name, attrs=attrs, output=output, domain=domain, open_inputs=open_inputs)


def any_of(*choices: PatternLike) -> AnyOf:
    """One of several patterns; None among them allows an absent input."""
    return AnyOf(*choices)


def maybe(types: str, inner: Pattern, *more: PatternLike, attrs: Mapping[str, Any] | None = None) -> AnyOf:
    """``inner``, or a node of ``types`` over ``inner`` (an optional Cast, Reshape, Identity, ...)."""
    return AnyOf(Op(types, inner, *more, attrs=attrs), inner)
