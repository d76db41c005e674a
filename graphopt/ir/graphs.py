"""Walks over all graphs and tensors of a model, and copies of models."""

from __future__ import annotations

import collections
import contextlib
import mmap
from collections.abc import Callable, Container, Iterator, Sequence

import numpy as np
import onnx_ir as ir

_SHARED_FROM = 64 * 1024
_HOLDS_GRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


def all_graphs(model: ir.Model) -> list[ir.Graph]:
    """The graph, its subgraphs, and those of the model's functions."""
    found = with_subgraphs(model.graph)
    for function in model.functions.values():
        found += with_subgraphs(function.graph)
    return found


def with_subgraphs(graph: ir.Graph) -> list[ir.Graph]:
    """``graph`` and all graphs inside it, outer ones first."""
    found = [graph]
    for node in graph:
        for inner in subgraphs_of(node):
            found += with_subgraphs(inner)
    return found


def subgraphs_of(node: ir.Node) -> tuple[ir.Graph, ...]:
    """The graphs that are attributes of ``node``."""
    if not node.attributes:
        return ()
    found: list[ir.Graph] = []
    for attribute in node.attributes.values():
        if attribute.type in _HOLDS_GRAPHS:
            found += subgraphs_of_attribute(attribute)
    return tuple(found)


def subgraphs_of_attribute(attribute: ir.Attr) -> tuple[ir.Graph, ...]:
    """The graphs that an attribute holds."""
    if attribute.type not in _HOLDS_GRAPHS or attribute.is_ref():
        return ()
    if attribute.type == ir.AttributeType.GRAPH:
        return (attribute.as_graph(),)
    return tuple(attribute.as_graphs())


def inner_nodes(node: ir.Node) -> Iterator[ir.Node]:
    """The nodes of the subgraphs of ``node``, at any depth."""
    for graph in subgraphs_of(node):
        yield from graph.all_nodes()


def scopes(graph: ir.Graph) -> list[tuple[ir.Graph, ir.Graph | None]]:
    """Each graph with the one around it, outer ones first."""
    found: list[tuple[ir.Graph, ir.Graph | None]] = []
    pending: list[tuple[ir.Graph, ir.Graph | None]] = [(graph, None)]
    while pending:
        current, parent = pending.pop()
        found.append((current, parent))
        inner = [subgraph for node in current for subgraph in subgraphs_of(node)]
        pending += [(subgraph, current) for subgraph in reversed(inner)]
    return found


@contextlib.contextmanager
def paused_collection() -> Iterator[None]:
    """Without Python's cyclic garbage collector, which walks all of a growing graph again and again."""
    import gc

    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def all_tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """Every tensor that the model holds, in initializers and in attributes."""
    for graph in all_graphs(model):
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value.const_value
        for node in graph:
            yield from _attribute_tensors(node)


def _attribute_tensors(node: ir.Node) -> Iterator[ir.TensorProtocol]:
    for attribute in node.attributes.values():
        if attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.TENSOR:
            yield attribute.as_tensor()
        elif attribute.type == ir.AttributeType.TENSORS:
            yield from attribute.as_tensors()


def replace_tensors(
    model: ir.Model, replacement: Callable[[ir.TensorProtocol, bool], ir.TensorProtocol]
) -> None:
    """Put another tensor in the place of each that the model holds.

    Args:
        replacement: Of a tensor; told whether it is an initializer of the main graph.
    """
    for graph in all_graphs(model):
        for value in graph.initializers.values():
            if value.const_value is not None:
                value.const_value = replacement(value.const_value, graph is model.graph)
        for node in graph:
            for name, attribute in list(node.attributes.items()):
                if attribute.is_ref():
                    continue
                if attribute.type == ir.AttributeType.TENSOR:
                    node.attributes[name] = ir.AttrTensor(name, replacement(attribute.as_tensor(), False))
                elif attribute.type == ir.AttributeType.TENSORS:
                    tensors = [replacement(tensor, False) for tensor in attribute.as_tensors()]
                    node.attributes[name] = ir.AttrTensors(name, tensors)


def is_shareable(tensor: ir.TensorProtocol) -> bool:
    """Whether a tensor is worth handing to a backend as an array of NumPy, rather than inside a message."""
    if tensor.nbytes < _SHARED_FROM or tensor.dtype == ir.DataType.STRING:
        return False
    return tensor.dtype.bitwidth >= 8 and tensor.dtype.numpy().kind in "fiub"


def hold_small(model: ir.Model) -> None:
    """Read what lies in files into memory, but for the large weights of the main graph.

    Whatever goes into a message then goes there whole: a message that is written to another folder would not find the
    files.
    """
    replace_tensors(
        model, lambda tensor, weight: tensor if weight and is_shareable(tensor) else in_memory(tensor)
    )


def in_memory(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """The tensor itself, or a copy of what it has in a file."""
    if not isinstance(tensor, ir.ExternalTensor):
        return tensor
    return ir.Tensor(
        np.array(tensor.numpy()), dtype=tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=tensor.name
    )


def external_tensors(model: ir.Model) -> Iterator[ir.ExternalTensor]:
    """Tensors whose data are in a file."""
    for tensor in all_tensors(model):
        if isinstance(tensor, ir.ExternalTensor):
            yield tensor


def release_pages(model: ir.Model) -> None:
    """Take what has been read of mapped weights out of memory; whoever reads them again gets them from the file."""
    for tensor in external_tensors(model):
        if tensor.raw is not None and hasattr(mmap, "MADV_DONTNEED"):
            tensor.raw.madvise(mmap.MADV_DONTNEED)


def clone(model: ir.Model) -> ir.Model:
    """A copy with nodes and values of its own that shares the weights.

    As ``Model.clone``, in half the time; types are copied as well, so that setting a value's ``dtype`` in one of the
    two leaves the other alone. Nodes must be in topological order.
    """
    with paused_collection():
        copy = ir.Model(
            _clone_graph(model.graph, {}),
            ir_version=model.ir_version,
            producer_name=model.producer_name,
            producer_version=model.producer_version,
            domain=model.domain,
            model_version=model.model_version,
            doc_string=model.doc_string,
            functions=[function.clone() for function in model.functions.values()],
            metadata_props=dict(model.metadata_props),
            device_configurations=model.device_configurations,
        )
    return copy


def _clone_graph(graph: ir.Graph, values: dict[ir.Value, ir.Value]) -> ir.Graph:
    for value in graph.inputs:
        values[value] = _describe_as(value, ir.Value(name=value.name))
    for value in graph.initializers.values():
        if value not in values:
            values[value] = _describe_as(value, ir.Value(name=value.name))
    nodes: list[ir.Node] = []
    for node in graph:
        attributes: list[ir.Attr] = []
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH and not attribute.is_ref():
                inner = _clone_graph(attribute.as_graph(), values)
                attribute = ir.AttrGraph(attribute.name, inner, doc_string=attribute.doc_string)
            elif attribute.type == ir.AttributeType.GRAPHS and not attribute.is_ref():
                inners = [_clone_graph(inner, values) for inner in attribute.as_graphs()]
                attribute = ir.AttrGraphs(attribute.name, inners, doc_string=attribute.doc_string)
            attributes.append(attribute)
        outputs = [_describe_as(value, ir.Value(name=value.name)) for value in node.outputs]
        values.update(zip(node.outputs, outputs, strict=True))
        made = ir.Node(
            node.domain,
            node.op_type,
            [None if value is None else values[value] for value in node.inputs],
            attributes,
            overload=node.overload,
            outputs=outputs,
            version=node.version,
            name=node.name,
            doc_string=node.doc_string,
            metadata_props=dict(node.metadata_props) if node.metadata_props else None,
            device_configurations=node.device_configurations,
        )
        if node.meta:
            made.meta.update(node.meta)
        nodes.append(made)
    return ir.Graph(
        [values[value] for value in graph.inputs],
        [values[value] for value in graph.outputs],
        nodes=nodes,
        initializers=[values[value] for value in graph.initializers.values()],
        doc_string=graph.doc_string,
        opset_imports=dict(graph.opset_imports),
        name=graph.name,
        metadata_props=dict(graph.metadata_props),
    )


def _describe_as(value: ir.Value, copy: ir.Value) -> ir.Value:
    """Give ``copy`` what is known of ``value``."""
    type_, shape = value.type, value.shape
    copy.type = ir.TensorType(type_.dtype) if type(type_) is ir.TensorType else type_
    if shape is not None:
        copy.shape = shape if shape.frozen else shape.copy()
    copy.const_value = value.const_value
    copy.doc_string = value.doc_string
    if value.metadata_props:
        copy.metadata_props.update(value.metadata_props)
    if value.meta:
        copy.meta.update(value.meta)
    return copy


def free_name(wanted: str, taken: Container[str | None], separator: str = "_") -> str:
    """``wanted``, with the first number behind it that makes it a name of its own where it is taken."""
    name, number = wanted, 0
    while name in taken:
        number += 1
        name = f"{wanted}{separator}{number}"
    return name


def add_constant(graph: ir.Graph, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    """Register a constant under a name that the graph does not have yet."""
    tensor.name = name
    value = ir.Value(
        name=name,
        type=ir.TensorType(tensor.dtype),
        shape=ir.Shape(tensor.shape.numpy()),
        const_value=tensor,
    )
    graph.register_initializer(value)
    return value


def nbytes(model: ir.Model) -> int:
    """Total size of initializers and constants in bytes; a tensor that several of them share counts once."""
    tensors = {id(tensor): tensor for tensor in all_tensors(model)}
    return sum(tensor.nbytes for tensor in tensors.values() if tensor.dtype != ir.DataType.STRING)


def count_nodes(model: ir.Model) -> int:
    """Nodes in the graph and its subgraphs."""
    return sum(len(graph) for graph in with_subgraphs(model.graph))


def op_counts(model: ir.Model) -> dict[str, int]:
    """Number of nodes by op type, subgraphs included, most frequent first; other domains as ``domain.Op``."""
    counts = collections.Counter(
        f"{node.domain}.{node.op_type}" if node.domain else node.op_type for node in model.graph.all_nodes()
    )
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def leading_to(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """A copy of ``model`` whose outputs are the tensors of these names, without what does not lead to them."""
    from onnx_ir.passes import common

    copy = clone(model)
    values = _values(copy)
    copy.graph.outputs[:] = [values[name] for name in names]
    common.RemoveUnusedNodesPass()(copy)
    return copy


def tapped(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """A copy of ``model`` whose outputs also include the tensors of these names."""
    copy = clone(model)
    values = _values(copy)
    shown = {output.name for output in copy.graph.outputs}
    copy.graph.outputs.extend(values[name] for name in names if name not in shown)
    return copy


def _values(model: ir.Model) -> dict[str, ir.Value]:
    values = {value.name or "": value for node in model.graph for value in node.outputs}
    values.update({value.name or "": value for value in model.graph.inputs})
    return values
