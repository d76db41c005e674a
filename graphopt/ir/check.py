"""The structural verifier: every rule that a graph must keep, checked in one linear walk.

    check(model)                 raises InvalidGraphError: the rule, the node, its neighbourhood
    neighbourhood(node)          the node with its producers and consumers, as text

Checked: order and acyclicity, scope, unique names, outputs, opset imports, and for each operator that ``onnx.defs``
knows its arity, attributes and element types (ONNX IR specification,
https://github.com/onnx/onnx/blob/main/docs/IR.md). Written in Python over the IR, because the C++ checker needs a
serialized model and names neither the node nor what is around it.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import onnx_ir as ir

from graphopt.errors import InvalidGraphError
from graphopt.ir.describe import (
    all_reads,
    describe,
    describe_cycle,
    find_cycle,
    neighbourhood,
)
from graphopt.ir.graphs import subgraphs_of

__all__ = [
    "RUNTIME_DOMAINS",
    "all_reads",
    "check",
    "describe",
    "describe_cycle",
    "find_cycle",
    "neighbourhood",
    "schema_of",
    "type_text",
]

RUNTIME_DOMAINS = frozenset(
    {"com.microsoft", "com.microsoft.nchwc", "com.ms.internal.nhwc", "ai.onnx.preview.training"}
)
"""Domains other than ONNX's own that ONNX Runtime implements."""


def check(
    model: ir.Model,
    *,
    allow_domains: Collection[str] = frozenset(),
    unique_node_names: bool = True,
    allow_withdrawn: bool = False,
) -> None:
    """Verify the structure of ``model``, its subgraphs and its functions.

    Args:
        allow_domains: Domains whose operators are accepted though ``onnx.defs`` does not know them.
        unique_node_names: Demand that no two nodes of the model have the same name, as in the internal form.
        allow_withdrawn: Accept operators that the model's opset has marked as deprecated.

    Raises:
        InvalidGraphError: Names the first broken rule and shows the node and what is around it.
    """
    checker = _Checker(model, frozenset(allow_domains), unique_node_names, allow_withdrawn)
    checker.graph(model.graph, {}, is_main=True)
    for function in model.functions.values():
        checker.opsets = {**function.opset_imports}
        checker.graph(function.graph, {}, is_main=False, typed=False)


@dataclass(frozen=True)
class _Formal:
    """A formal parameter of an operator: what ``onnx.defs`` says, in Python once and not in C++ each time."""

    name: str
    required: bool
    variadic: bool
    homogeneous: bool
    type_var: str
    allowed: frozenset[str]


@dataclass(frozen=True)
class _Schema:
    inputs: tuple[_Formal, ...]
    outputs: tuple[_Formal, ...]
    least_inputs: int
    most_inputs: int
    least_outputs: int
    most_outputs: int
    attributes: dict[str, str]
    required_attributes: tuple[str, ...]
    deprecated: bool
    since_version: int


@functools.cache
def schema_of(domain: str, op_type: str, version: int) -> _Schema | None:
    """The schema of an operator at an opset version, or None where ``onnx.defs`` has none."""
    from onnx import defs

    try:
        schema = defs.get_schema(op_type, version, domain)
    except defs.SchemaError:
        return None
    constraints = {
        constraint.type_param_str: frozenset(constraint.allowed_type_strs)
        for constraint in schema.type_constraints
    }
    options = defs.OpSchema.FormalParameterOption

    def formals(parameters: Iterable[defs.OpSchema.FormalParameter]) -> tuple[_Formal, ...]:
        return tuple(
            _Formal(
                parameter.name,
                parameter.option == options.Single,
                parameter.option == options.Variadic,
                parameter.is_homogeneous,
                parameter.type_str,
                constraints.get(parameter.type_str, frozenset({parameter.type_str})),
            )
            for parameter in parameters
        )

    return _Schema(
        formals(schema.inputs),
        formals(schema.outputs),
        schema.min_input,
        schema.max_input,
        schema.min_output,
        schema.max_output,
        {name: str(attribute.type).rpartition(".")[2] for name, attribute in schema.attributes.items()},
        tuple(name for name, attribute in schema.attributes.items() if attribute.required),
        schema.deprecated,
        schema.since_version,
    )


@functools.cache
def _known_domains() -> frozenset[str]:
    from onnx import defs

    return frozenset(schema.domain for schema in defs.get_all_schemas())


class _Checker:
    def __init__(
        self, model: ir.Model, allow_domains: frozenset[str], unique_node_names: bool, allow_withdrawn: bool
    ) -> None:
        self.model = model
        self.allow_withdrawn = allow_withdrawn
        self.allow_domains = allow_domains
        self.unique_node_names = unique_node_names
        self.opsets: dict[str, int] = dict(model.graph.opset_imports)
        self.node_names: dict[str, ir.Node] = {}
        self.visible: set[ir.Value] = set()

    def graph(
        self, graph: ir.Graph, names: dict[str, ir.Value], *, is_main: bool, typed: bool = True
    ) -> None:
        """Check one graph; ``names`` are those of the enclosing scopes and are left as they were."""
        entered: list[ir.Value] = []
        own_names: list[str] = []

        def define(value: ir.Value, what: str, node: ir.Node | None = None) -> None:
            name = value.name
            if not name:
                raise _error(f"{what} of graph {graph.name!r} has no name", node)
            if name in names:
                if names[name] is value:
                    raise _error(f"the value {name!r} is defined twice", node)
                raise _error(f"two values have the name {name!r}", node)
            names[name] = value
            own_names.append(name)
            self.visible.add(value)
            entered.append(value)

        for value in graph.inputs:
            define(value, "an input")
            if value.producer() is not None:
                raise _error(f"input {value.name!r} is also the output of a node", value.producer())
            if is_main and value.type is None:
                raise _error(f"input {value.name!r} has no type")
        for name, value in graph.initializers.items():
            if value.name != name:
                raise _error(f"initializer {name!r} holds a value named {value.name!r}")
            if value.const_value is None:
                raise _error(f"initializer {name!r} has no content")
            if value.producer() is not None:
                raise _error(f"initializer {name!r} is also the output of a node", value.producer())
            if not value.is_graph_input():
                define(value, "an initializer")
            if typed and value.dtype is not None and value.dtype != value.const_value.dtype:
                raise _error(
                    f"initializer {name!r} is declared {value.dtype}, but its content is "
                    f"{value.const_value.dtype}"
                )
        for node in graph:
            self.inputs_in_scope(node, graph)
            self.operator(node, typed)
            for inner in subgraphs_of(node):
                self.graph(inner, names, is_main=False, typed=typed)
            for value in node.outputs:
                if value.name:
                    define(value, "an output", node)
                elif value.uses() or value.is_graph_output():
                    raise _error("a used output of the node has no name", node)
        own = set(entered)
        for value in graph.outputs:
            if value not in self.visible:
                producer = value.producer()
                if producer is not None and producer.graph is not graph:
                    raise _error(f"output {value.name!r} is computed by a node of another graph", producer)
                raise _error(f"nothing computes the output {value.name!r} of graph {graph.name!r}")
            if value not in own:
                raise _error(
                    f"the subgraph {graph.name!r} returns {value.name!r}, a value of an outer graph, directly"
                )
        self.visible.difference_update(entered)
        for name in own_names:
            del names[name]

    def inputs_in_scope(self, node: ir.Node, graph: ir.Graph) -> None:
        if node.graph is not graph:
            raise _error("the node is listed in a graph that it does not belong to", node)
        for index, value in enumerate(node.inputs):
            if value is None or value in self.visible:
                continue
            producer = value.producer()
            if producer is None:
                raise _error(f"nothing defines {value.name!r}, its input {index}", node)
            if producer is node:
                raise _error(f"cycle: the node reads its own output {value.name!r}", node)
            if producer.graph is graph:
                cycle = find_cycle(graph)
                if cycle:
                    raise _error(f"cycle: {describe_cycle(cycle)}", node)
                raise _error(
                    f"not in topological order: input {value.name!r} is computed by a later node", node
                )
            raise _error(
                f"its input {value.name!r} is computed in a graph that it cannot see, or was removed", node
            )

    def operator(self, node: ir.Node, typed: bool) -> None:
        if self.unique_node_names and node.name:
            other = self.node_names.setdefault(node.name, node)
            if other is not node:
                raise _error(f"two nodes have the name {node.name!r}", node)
        if (node.domain, node.op_type, node.overload) in self.model.functions:
            return
        domain = "" if node.domain == "ai.onnx" else node.domain
        version = self.opsets.get(domain)
        if version is None and domain == "":
            version = self.opsets.get("ai.onnx")
        if version is None:
            raise _error(f"the model imports no opset for domain {node.domain or 'ai.onnx'!r}", node)
        schema = schema_of(domain, node.op_type, version)
        if schema is None:
            if domain in self.allow_domains:
                return
            if domain in _known_domains():
                raise _error(
                    f"opset {version} of domain {domain or 'ai.onnx'!r} has no operator {node.op_type!r}",
                    node,
                )
            raise _error(f"unknown domain {domain!r} of operator {node.op_type!r}", node)
        if schema.deprecated and not self.allow_withdrawn:
            raise _error(f"{node.op_type} was withdrawn from ONNX in opset {schema.since_version}", node)
        self.arity(node, schema)
        self.attributes(node, schema)
        if typed:
            self.types(node, schema)

    def arity(self, node: ir.Node, schema: _Schema) -> None:
        count = len(node.inputs)
        while count and node.inputs[count - 1] is None:
            count -= 1
        if not schema.least_inputs <= count <= schema.most_inputs:
            raise _error(
                f"{node.op_type} takes {_span(schema.least_inputs, schema.most_inputs)} inputs, not {count}",
                node,
            )
        for formal, value in zip(schema.inputs, node.inputs, strict=False):
            if formal.required and value is None:
                raise _error(f"{node.op_type} needs its input {formal.name!r}", node)
        count = len(node.outputs)
        while count and not node.outputs[count - 1].name:
            count -= 1
        if not (count <= schema.most_outputs and len(node.outputs) >= schema.least_outputs):
            raise _error(
                f"{node.op_type} gives {_span(schema.least_outputs, schema.most_outputs)} outputs, not {count}",
                node,
            )

    def attributes(self, node: ir.Node, schema: _Schema) -> None:
        for name, attribute in node.attributes.items():
            wanted = schema.attributes.get(name)
            if wanted is None:
                raise _error(f"{node.op_type} has no attribute {name!r}", node)
            if attribute.type.name != wanted:
                raise _error(
                    f"attribute {name!r} of {node.op_type} must be {wanted}, not {attribute.type.name}", node
                )
        for name in schema.required_attributes:
            if name not in node.attributes:
                raise _error(f"{node.op_type} needs the attribute {name!r}", node)

    def types(self, node: ir.Node, schema: _Schema) -> None:
        bound: dict[str, tuple[str, str]] = {}
        for formals, values, kind in (
            (schema.inputs, node.inputs, "input"),
            (schema.outputs, node.outputs, "output"),
        ):
            if not formals:
                continue
            last = len(formals) - 1
            for index, value in enumerate(values):
                if value is None or value.type is None:
                    continue
                actual = type_text(value.type)
                if actual is None:
                    continue
                formal = formals[min(index, last)]
                if actual not in formal.allowed:
                    raise _error(
                        f"type clash: {node.op_type} takes no {actual} as {kind} {formal.name!r} "
                        f"({value.name!r})",
                        node,
                    )
                if not formal.homogeneous and formal.variadic:
                    continue
                seen = bound.setdefault(formal.type_var, (actual, value.name or "?"))
                if seen[0] != actual:
                    raise _error(
                        f"type clash: {node.op_type} wants one type for {seen[1]!r} ({seen[0]}) "
                        f"and {value.name!r} ({actual})",
                        node,
                    )


def _span(least: int, most: int) -> str:
    if most > 1 << 20:
        return f"at least {least}"
    return str(least) if least == most else f"{least} to {most}"


@functools.cache
def _tensor_text(dtype: ir.DataType) -> str | None:
    if dtype == ir.DataType.UNDEFINED:
        return None
    return f"tensor({dtype.name.lower()})"


def type_text(type_: ir.TypeProtocol) -> str | None:
    """A type as schemas write it, ``tensor(float)`` or ``seq(tensor(int64))``; None where it is not known."""
    if isinstance(type_, ir.TensorType):
        return _tensor_text(type_.dtype)
    if isinstance(type_, ir.SparseTensorType):
        return None if type_.dtype == ir.DataType.UNDEFINED else f"sparse_tensor({type_.dtype.name.lower()})"
    if isinstance(type_, ir.SequenceType | ir.OptionalType):
        inner = type_text(type_.elem_type)
        prefix = "seq" if isinstance(type_, ir.SequenceType) else "optional"
        return None if inner is None else f"{prefix}({inner})"
    return None


def _error(message: str, node: ir.Node | None = None) -> InvalidGraphError:
    if node is None:
        return InvalidGraphError(message)
    return InvalidGraphError(f"{message}\n  in {describe(node)}", neighbourhood=neighbourhood(node))
