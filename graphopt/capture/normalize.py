"""Brings a model into the internal form: one graph, constants as initializers, unique names, sorted.

``repair`` keeps the model as it was given and only makes it well formed (sorted, one name for each value), since
the result is what the reference runs. ``normalize`` rewrites it.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from graphopt.errors import InvalidGraphError, listed
from graphopt.ir import names, opset, shapes
from graphopt.ir.describe import all_reads, describe_cycle, find_cycle, neighbourhood
from graphopt.ir.graphs import all_graphs, clone, free_name, subgraphs_of, with_subgraphs

_OVERRIDABLE = 4
"""From this IR version on, an initializer that is an input too is its default."""

MAX_IR_VERSION = opset.limits().ir_version
_STACK_TRACE = "pkg.torch.onnx.stack_trace"
"""What torch.onnx notes on each node: lines of the exporting program, of a small model as long as its weights."""


def repair(model: ir.Model) -> list[str]:
    """Make a model well formed without changing what it computes; returns warnings for the user.

    Raises:
        InvalidGraphError: The graph has a cycle.
    """
    warnings: list[str] = []
    for graph in all_graphs(model):
        if "ai.onnx" in graph.opset_imports:
            version = graph.opset_imports.pop("ai.onnx")
            graph.opset_imports.setdefault("", version)
        for node in graph:
            if node.domain == "ai.onnx":
                node.domain = ""
        _forget_placeholder_dims(graph)
    _sort(model)
    _return_outer_values_by_identity(model)
    warnings += _fix_default_inputs(model)
    if _has_duplicate_names(model):
        names.make_unique(model)
    model.ir_version = min(max(model.ir_version or 0, 8), MAX_IR_VERSION)
    return warnings


def _forget_placeholder_dims(graph: ir.Graph) -> None:
    """Sizes of -1 and names such as "None" mean "unknown"; taken as they stand, two of them would be equal."""
    values = [*graph.inputs, *graph.outputs]
    values += [value for node in graph for value in node.outputs]
    for value in values:
        if value.shape is not None:
            dims = [shapes.size_or_name(dim) for dim in value.shape]
            if dims != [dim if isinstance(dim, int) else dim.value for dim in value.shape]:
                value.shape = ir.Shape(dims)


def clone_unsorted(model: ir.Model) -> ir.Model:
    """A copy of a model whose nodes may be in any order (``Model.clone`` needs them sorted)."""
    if all(_is_sorted(graph) for graph in (model.graph, *(each.graph for each in model.functions.values()))):
        return clone(model)
    copy = ir.from_proto(ir.to_proto(model))
    for name, value in copy.graph.initializers.items():
        value.const_value = model.graph.initializers[name].const_value
    return copy


def _sort(model: ir.Model) -> None:
    for graph in [model.graph, *(function.graph for function in model.functions.values())]:
        if _is_sorted(graph):
            continue
        for inner in with_subgraphs(graph):
            cycle = find_cycle(inner)
            if cycle:
                raise InvalidGraphError(
                    f"the graph has a cycle: {describe_cycle(cycle)}",
                    neighbourhood=neighbourhood(cycle[0]),
                    hint="a value can only depend on values computed before it: export the model again",
                )
        graph.sort()


def _is_sorted(graph: ir.Graph) -> bool:
    """Whether each node comes after the producers of all that it and its subgraphs read."""
    for inner in with_subgraphs(graph):
        members = set(inner)
        seen: set[ir.Node] = set()
        for node in inner:
            for value in all_reads(node):
                producer = value.producer()
                if producer is not None and producer in members and producer not in seen:
                    return False
            seen.add(node)
    return True


def _return_outer_values_by_identity(model: ir.Model) -> None:
    """A subgraph may not return a value of an outer graph directly (ONNX IR specification, "Graphs")."""

    def visit(graph: ir.Graph, scope: dict[str, ir.Value], is_main: bool) -> None:
        scope = dict(scope)
        own: set[ir.Value] = set(graph.inputs) | set(graph.initializers.values())
        for value in own:
            scope[value.name or ""] = value
        for node in graph:
            for inner in subgraphs_of(node):
                visit(inner, scope, False)
            for value in node.outputs:
                own.add(value)
                scope[value.name or ""] = value
        if is_main:
            return
        for index, value in enumerate(list(graph.outputs)):
            if value in own:
                continue
            source = scope.get(value.name or "")
            if source is None:
                continue
            node = ir.node("Identity", [source])
            node.outputs[0].name = f"{source.name}/returned"
            node.outputs[0].type, node.outputs[0].shape = source.type, source.shape
            graph.append(node)
            graph.outputs[index] = node.outputs[0]

    if len(with_subgraphs(model.graph)) > 1:
        visit(model.graph, {}, True)


def defaults(model: ir.Model) -> dict[str, ir.TensorProtocol]:
    """Inputs that a caller may override, with the value that they have where nobody does."""
    if (model.ir_version or 0) < _OVERRIDABLE:
        return {}
    return {
        value.name: value.const_value
        for value in model.graph.inputs
        if value.is_initializer() and value.name and value.const_value is not None
    }


def _fix_default_inputs(model: ir.Model) -> list[str]:
    """Inputs that have an initializer are constants from here on.

    Up to IR version 3 every initializer had to be listed as an input.
    """
    inputs = model.graph.inputs
    overridable = defaults(model)
    kept = [value for value in inputs if not value.is_initializer()]
    if len(kept) < len(inputs):
        inputs.clear()
        inputs.extend(kept)
    if not overridable:
        return []
    return [f"inputs with a default value are treated as constants: {listed(overridable)}"]


def _has_duplicate_names(model: ir.Model) -> bool:
    """Whether a name is used twice or missing: of values by the scoping rules of ONNX, of nodes anywhere.

    ONNX lets nodes share a name; ONNX Runtime does not.
    """
    named = [node.name for graph in with_subgraphs(model.graph) for node in graph if node.name]
    if len(set(named)) != len(named):
        return True

    def visit(graph: ir.Graph, scope: set[str]) -> bool:
        scope = set(scope) if graph is not model.graph else scope
        values = [*graph.inputs, *(v for v in graph.initializers.values() if not v.is_graph_input())]
        for value in values:
            if not value.name or value.name in scope:
                return True
            scope.add(value.name)
        for node in graph:
            for inner in subgraphs_of(node):
                if visit(inner, scope):
                    return True
            for value in node.outputs:
                if value.name:
                    if value.name in scope:
                        return True
                    scope.add(value.name)
                elif value.uses() or value.is_graph_output():
                    return True
        return False

    return visit(model.graph, set())


def normalize(model: ir.Model) -> None:
    """Inline functions, turn constants into initializers of the main graph, resolve copies of them, name everything,
    forget exporters' stack traces.

    Expects what ``repair`` leaves. The opset stays as it is; nodes from functions of another opset carry theirs in
    ``node.version``.
    """
    if model.functions:
        _inline_functions(model)
    names.make_unique(model)
    _lift_constants(model)
    _return_constants_by_identity(model)
    names.make_unique(model)
    for node in model.graph.all_nodes():
        node.metadata_props.pop(_STACK_TRACE, None)


def _inline_functions(model: ir.Model) -> None:
    for function in model.functions.values():
        # A dimension named in it is another one in each call.
        shapes.forget_names(function.graph)
        for graph in with_subgraphs(function.graph):
            for node in graph:
                version = function.opset_imports.get(node.domain)
                if version is not None and node.version is None:
                    node.version = version
                if node.domain and version is not None:
                    model.graph.opset_imports.setdefault(node.domain, version)
        if "" in function.opset_imports:
            model.graph.opset_imports.setdefault("", function.opset_imports[""])
    for function in model.functions.values():
        # The inliner wants equal opsets; from here on each node carries its own.
        for domain in function.opset_imports:
            function.opset_imports[domain] = model.graph.opset_imports.get(
                domain, function.opset_imports[domain]
            )
    common_passes.InlinePass()(model)
    model.functions.clear()


def _lift_constants(model: ir.Model) -> None:
    """Constant nodes and initializers of subgraphs become initializers of the main graph; Identity of one goes away."""
    main = model.graph
    for graph in with_subgraphs(main)[1:]:
        for name, value in list(graph.initializers.items()):
            if value.is_graph_input():
                continue
            graph.initializers.pop(name)
            if value.is_graph_output():
                replacement = ir.Value(
                    name=f"{name}/value", type=value.type, shape=value.shape, const_value=value.const_value
                )
                _return_by_identity(graph, value, replacement)
                value = replacement
            _register(main, value)
    for graph in with_subgraphs(main):
        for node in list(graph):
            if node.domain != "":
                continue
            if node.op_type == "Constant":
                _lift_constant_node(main, graph, node)
            elif node.op_type == "Identity" and node.inputs and node.inputs[0] is not None:
                source = node.inputs[0]
                copy = node.outputs[0]
                if not source.is_initializer() or source.is_graph_input() or copy.is_graph_output():
                    continue
                copy.replace_all_uses_with(source)
                graph.remove(node, safe=True)


def _lift_constant_node(main: ir.Graph, graph: ir.Graph, node: ir.Node) -> None:
    tensor = constant_of(node)
    if tensor is None:
        return
    old = node.outputs[0]
    name = old.name or node.name or "constant"
    value = ir.Value(
        name=name,
        type=ir.TensorType(tensor.dtype),
        shape=ir.Shape(tensor.shape.numpy()),
        const_value=tensor,
        doc_string=old.doc_string,
    )
    tensor.name = name
    if old.is_graph_output():
        value.name = f"{name}/value"
        identity = ir.node("Identity", [value], name=node.name)
        identity.metadata_props.update(node.metadata_props)
        graph.insert_before(node, identity)
        copy = identity.outputs[0]
        copy.type, copy.shape = value.type, value.shape
        old.replace_all_uses_with(copy, replace_graph_outputs=True)
        old.name = None
        copy.name = name
    else:
        old.replace_all_uses_with(value)
        old.name = None
    graph.remove(node, safe=True)
    _register(main, value)


def constant_of(node: ir.Node) -> ir.TensorProtocol | None:
    """The tensor of a Constant node in any of its forms (ONNX operator Constant, opset 1 to 26)."""
    for name, attribute in node.attributes.items():
        if attribute.is_ref():
            return None
        if name == "value":
            return attribute.as_tensor()
        if name == "value_float":
            return ir.Tensor(np.array(attribute.as_float(), dtype=np.float32))
        if name == "value_floats":
            return ir.Tensor(np.array(attribute.as_floats(), dtype=np.float32))
        if name == "value_int":
            return ir.Tensor(np.array(attribute.as_int(), dtype=np.int64))
        if name == "value_ints":
            return ir.Tensor(np.array(attribute.as_ints(), dtype=np.int64))
        if name == "value_string":
            return ir.StringTensor([attribute.as_string().encode()], shape=ir.Shape([]))
        if name == "value_strings":
            strings = [text.encode() for text in attribute.as_strings()]
            return ir.StringTensor(strings, shape=ir.Shape([len(strings)]))
    return None


def _register(main: ir.Graph, value: ir.Value) -> None:
    value.name = free_name(value.name or "constant", main.initializers)
    main.register_initializer(value)


def _return_by_identity(graph: ir.Graph, output: ir.Value, source: ir.Value) -> None:
    """Compute the output ``output`` as a copy of ``source``, which takes its place everywhere else."""
    name = output.name
    node = ir.node("Identity", [source])
    copy = node.outputs[0]
    copy.type, copy.shape = output.type, output.shape
    graph.append(node)
    for index, value in enumerate(list(graph.outputs)):
        if value is output:
            graph.outputs[index] = copy
    for user, index in output.uses():
        if user is not node:
            user.replace_input_with(index, source)
    copy.name = name


def _return_constants_by_identity(model: ir.Model) -> None:
    """An initializer that is an output stays valid when passes remove or share it: it is returned as a copy."""
    graph = model.graph
    for value in dict.fromkeys(graph.outputs):
        if value.is_initializer() and not value.is_graph_input():
            name = value.name
            value.name = f"{name}/value"
            node = ir.node("Identity", [value])
            copy = node.outputs[0]
            copy.type, copy.shape = value.type, value.shape
            graph.append(node)
            for index, output in enumerate(list(graph.outputs)):
                if output is value:
                    graph.outputs[index] = copy
            copy.name = name
