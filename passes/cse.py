"""two nodes that compute the same, two constants with the same content  ==>  one

Forms: exporters write the constants of each call anew (a hundred zeros and ones), repeat Shape and Gather for
each reshape, and convert a shared weight or mask once for each use. Operands of commutative operators may be
in either order. A node in a branch or loop body may become one of the graphs around it, never the other way
round.

Refuses: nothing. Random operators, nodes with subgraphs and calls of local functions that may be random are
left alone; constants that are graph outputs, or inputs that a caller may override, keep their own.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, ClassVar

import onnx_ir as ir

from graphopt.ir.graphs import subgraphs_of
from graphopt.ir.operators import is_random
from graphopt.ir.share import content_digest, share_constants
from graphopt.pipeline.base import Pass
from graphopt.rewrite import Builder, Gate, Numerics, RewriteLog, allow_all
from graphopt.rewrite.driver import commit
from graphopt.rewrite.pattern import COMMUTATIVE


@dataclass(frozen=True)
class CseOptions:
    """What is merged.

    Args:
        constants: Also merge constants with equal content.
        max_constant_bytes: Constants above this size are not compared (0: no limit).
    """

    constants: bool = True
    max_constant_bytes: int = 0


class CommonSubexpressions(Pass):
    """Common subexpression elimination by value numbering, scope by scope."""

    name: ClassVar[str] = "cse"
    numerics: ClassVar[Numerics] = Numerics.EXACT
    Options: ClassVar[type[Any]] = CseOptions

    def run(self, model: ir.Model, log: RewriteLog, gate: Gate = allow_all) -> bool:
        """Constants first, since nodes that read equal ones are equal then."""
        before = len(log.applied)
        merger = _Merger(self.name, log, gate)
        if self.options.constants:
            share_constants(model, merger.allowed, most_bytes=self.options.max_constant_bytes)
        merger.nodes(model.graph, [])
        return len(log.applied) > before


class _Merger:
    def __init__(self, name: str, log: RewriteLog, gate: Gate) -> None:
        self._name = name
        self._log = log
        self._gate = gate

    def allowed(self, site: str | None) -> bool:
        """Whether a change may be made, which is then on record."""
        return self._log.admit(self._gate, self._name, site)

    def nodes(self, graph: ir.Graph, outer: list[dict[Hashable, ir.Node]]) -> None:
        """A node is looked up among those before it in its own graph and in the graphs around it."""
        seen: dict[Hashable, ir.Node] = {}
        scopes = [*outer, seen]
        for node in graph:
            subgraphs = subgraphs_of(node)
            for inner in subgraphs:
                self.nodes(inner, scopes)
            key = None if subgraphs else _key(node)
            if key is None:
                continue
            twin = next((scope[key] for scope in scopes if key in scope), None)
            if twin is None:
                seen[key] = node
            elif self.allowed(node.outputs[0].name):
                _replace(graph, node, twin, self._name)


def _replace(graph: ir.Graph, node: ir.Node, twin: ir.Node, maker: str) -> None:
    """Let the outputs of ``twin`` take the place of those of ``node``; names of graph outputs stay."""
    for old, new in zip(node.outputs, twin.outputs, strict=True):
        if new.shape is None and old.shape is not None:
            new.shape = old.shape.copy()
        if old.is_graph_output() and twin.graph is graph and not new.is_graph_output():
            name = old.name
            old.replace_all_uses_with(new, replace_graph_outputs=True)
            old.name = f"{name}/dead"
            new.name = name
    # What is left are plain uses, and graph outputs that need an Identity.
    commit(graph, node, twin.outputs, Builder(node, maker), maker)


def _key(node: ir.Node) -> Hashable | None:
    if is_random(node) or node.domain not in ("", "ai.onnx.ml", "com.microsoft") or not node.outputs:
        return None
    if node.op_type == "Identity" and node.outputs[0].is_graph_output():
        return None  # Only there to carry the name.
    attributes = []
    for name, attr in sorted(node.attributes.items()):
        if attr.is_ref():
            return None
        value: Hashable
        if attr.type == ir.AttributeType.TENSOR:
            tensor = attr.as_tensor()
            value = (tensor.dtype, tuple(tensor.shape), content_digest(tensor.numpy()))
        elif attr.type in _PLAIN:
            value = repr(attr.value)  # so that -0.0 differs from 0.0
        else:
            return None
        attributes.append((name, attr.type, value))
    inputs = [id(value) if value is not None else 0 for value in node.inputs]
    while inputs and not inputs[-1]:
        inputs.pop()
    if node.domain == "" and node.op_type in COMMUTATIVE and len(inputs) == 2:
        inputs.sort()
    present = tuple(bool(value.name) for value in node.outputs)
    return (node.domain, node.op_type, node.overload, tuple(inputs), tuple(attributes), present)


_PLAIN = frozenset(
    {
        ir.AttributeType.FLOAT,
        ir.AttributeType.FLOATS,
        ir.AttributeType.INT,
        ir.AttributeType.INTS,
        ir.AttributeType.STRING,
        ir.AttributeType.STRINGS,
    }
)
