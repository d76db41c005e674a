"""two nodes that compute the same, two constants with the same content  ==>  one

Forms: exporters write the constants of each call anew (a hundred zeros and ones), repeat Shape and Gather for
each reshape, and convert a shared weight or mask once for each use. Operands of commutative operators may be
in either order. A node in a branch or loop body may become one of the graphs around it, never the other way
round.

Refuses: nothing. Random operators, nodes with subgraphs and calls of local functions that may be random are
left alone; constants that are graph outputs, or inputs that a caller may override, keep their own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graphopt.ir import facts
from graphopt.ir.operators import RANDOM
from graphopt.pipeline.base import Pass
from graphopt.rewrite import Application, Builder, Gate, Numerics, RewriteLog, allow_all
from graphopt.rewrite.driver import commit
from graphopt.rewrite.pattern import COMMUTATIVE

_SAMPLE_BYTES = 1024
_CHUNK_BYTES = 1 << 22


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
            merger.constants(model, self.options.max_constant_bytes)
        merger.nodes(model.graph, [])
        return len(log.applied) > before


class _Merger:
    def __init__(self, name: str, log: RewriteLog, gate: Gate) -> None:
        self._name = name
        self._log = log
        self._gate = gate
        self._digests: dict[ir.Value, Hashable] = {}

    def _allowed(self, site: str | None) -> bool:
        application = Application(self._name, site or "")
        if not self._gate(application):
            return False
        self._log.applied.append(application)
        return True

    def _digest(self, value: ir.Value) -> Hashable:
        """Kept, since each is asked for twice."""
        if value not in self._digests:
            content = facts.constant(value)
            assert content is not None
            self._digests[value] = (_kind(value), _hash(content))
        return self._digests[value]

    def constants(self, model: ir.Model, most_bytes: int) -> None:
        """Only constants that agree in type, shape and a sample of their content are read as a whole."""
        candidates: list[ir.Value] = []
        parents: dict[ir.Graph, ir.Graph | None] = {}
        for graph, parent in _scopes(model.graph):
            parents[graph] = parent
            candidates += [
                value
                for value in graph.initializers.values()
                if facts.is_constant(value)
                and not value.is_graph_output()
                and (not most_bytes or _nbytes(value) <= most_bytes)
            ]
        for key in (_kind, _sample, self._digest):
            candidates = _with_twin(candidates, key)
        kept: dict[tuple[ir.Graph, Hashable], ir.Value] = {}
        for value in candidates:
            key_of_content = self._digest(value)
            home = value.graph
            assert home is not None and value.name is not None
            twin: ir.Value | None = None
            scope: ir.Graph | None = home
            while scope is not None and twin is None:
                twin = kept.get((scope, key_of_content))
                scope = parents[scope]
            if twin is None:
                kept[home, key_of_content] = value
            elif self._allowed(value.name):
                value.replace_all_uses_with(twin)
                home.initializers.pop(value.name)

    def nodes(self, graph: ir.Graph, outer: list[dict[Hashable, ir.Node]]) -> None:
        """A node is looked up among those before it in its own graph and in the graphs around it."""
        seen: dict[Hashable, ir.Node] = {}
        scopes = [*outer, seen]
        for node in graph:
            subgraphs = list(_subgraphs(node))
            for inner in subgraphs:
                self.nodes(inner, scopes)
            key = None if subgraphs else _key(node)
            if key is None:
                continue
            twin = next((scope[key] for scope in scopes if key in scope), None)
            if twin is None:
                seen[key] = node
            elif self._allowed(node.outputs[0].name):
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
    if node.op_type in RANDOM or node.domain not in ("", "ai.onnx.ml", "com.microsoft") or not node.outputs:
        return None
    if node.op_type == "Dropout" and len(node.inputs) > 2 and node.inputs[2] is not None:
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
            value = (tensor.dtype, tuple(tensor.shape), _hash(tensor.numpy()))
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


def _subgraphs(node: ir.Node) -> Iterator[ir.Graph]:
    for attr in node.attributes.values():
        if attr.type == ir.AttributeType.GRAPH and not attr.is_ref():
            yield attr.as_graph()
        elif attr.type == ir.AttributeType.GRAPHS and not attr.is_ref():
            yield from attr.as_graphs()


def _scopes(graph: ir.Graph) -> Iterator[tuple[ir.Graph, ir.Graph | None]]:
    """Each graph with the one around it, outer ones first."""
    pending: list[tuple[ir.Graph, ir.Graph | None]] = [(graph, None)]
    while pending:
        current, parent = pending.pop()
        yield current, parent
        inner = [subgraph for node in current for subgraph in _subgraphs(node)]
        pending += [(subgraph, current) for subgraph in reversed(inner)]


def _with_twin(values: Iterable[ir.Value], key: Callable[[ir.Value], Hashable]) -> list[ir.Value]:
    """Those of ``values`` whose key another one has too, in order."""
    keyed = [(value, key(value)) for value in values]
    count: dict[Hashable, int] = {}
    for _, found in keyed:
        count[found] = count.get(found, 0) + 1
    return [value for value, found in keyed if count[found] > 1]


def _nbytes(value: ir.Value) -> int:
    return 0 if value.dtype == ir.DataType.STRING else facts.constant_nbytes(value)


def _kind(value: ir.Value) -> Hashable:
    tensor = value.const_value
    assert tensor is not None
    return (tensor.dtype, tuple(tensor.shape))


def _sample(value: ir.Value) -> Hashable:
    content = facts.constant(value)
    assert content is not None
    if content.size * content.itemsize <= 3 * _SAMPLE_BYTES or content.dtype.kind == "O":
        return (_kind(value), _hash(content))
    flat, count = content.reshape(-1), max(1, _SAMPLE_BYTES // content.itemsize)
    middle = flat.size // 2
    return (
        _kind(value),
        *(_hash(part) for part in (flat[:count], flat[middle : middle + count], flat[-count:])),
    )


def _hash(content: npt.NDArray[Any]) -> bytes:
    """Of the bytes, so that -0.0 differs from 0.0, and NaN equals itself."""
    digest = hashlib.blake2b(digest_size=16)
    if content.dtype.kind in "OSU":
        for element in content.reshape(-1):
            encoded = element if isinstance(element, bytes) else str(element).encode()
            digest.update(len(encoded).to_bytes(8, "little") + encoded)
        return digest.digest()
    flat = content.reshape(-1)
    step = max(1, _CHUNK_BYTES // max(1, content.itemsize))
    for start in range(0, flat.size, step):
        digest.update(np.ascontiguousarray(flat[start : start + step]).view(np.uint8).data)
    return digest.digest()
