"""Models on disk and in memory: load, save, clone, count, and the skeleton that ONNX's C++ functions run on."""

from __future__ import annotations

import collections
import contextlib
import os
import re
import tempfile
from collections.abc import Container, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from graphopt.errors import BundleError, InvalidGraphError, ModelError, UnsupportedModelError

if TYPE_CHECKING:
    import onnx

EXTERNAL_THRESHOLD = 1_500_000_000
"""Weights of more bytes than this go beside the file: a protobuf message ends at 2 GiB."""

_LARGEST_MESSAGE = (1 << 31) - 1
_LARGEST_DENSE = 1 << 28
_TEXT_SUFFIXES = frozenset(
    {".onnxtxt", ".onnxtext", ".textproto", ".prototxt", ".pbtxt", ".json", ".onnxjson"}
)
_OTHER_FORMATS = (
    (b"PK\x03\x04", "a zip archive (a PyTorch checkpoint?)"),
    (b"\x89HDF", "an HDF5 file (Keras?)"),
    (b"GGUF", "a GGUF file"),
    (b"ORTM", "an ONNX Runtime .ort file"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself"),
    (b"\x80\x02", "a Python pickle"),
    (b"\x80\x04", "a Python pickle"),
    (b"<!DOCTYPE", "a web page"),
    (b"<html", "a web page"),
)


def load(path: str | os.PathLike[str]) -> ir.Model:
    """Load an ONNX model; weights in external files are mapped, not read.

    Args:
        path: ``.onnx``, or ONNX as text (``.onnxtxt``), ``.textproto`` or ``.json``.

    Raises:
        ModelError: No such file, not a model, empty, damaged, or its external data is missing, too short or outside
            the model's folder.
        InvalidGraphError: A name is defined twice.
    """
    path = Path(path)
    model = from_proto(_read_proto(path), name=str(path))
    base = path.resolve().parent if path.is_symlink() and not _has_external(path, model) else path.parent
    for tensor in external_tensors(model):
        tensor.base_dir = str(base) or "."
        check_external(tensor, path)
    return model


def _has_external(path: Path, model: ir.Model) -> bool:
    """Whether all external data lie beside ``path`` itself rather than beside what it links to."""
    return all((path.parent / tensor.location).exists() for tensor in external_tensors(model))


def _read_proto(path: Path) -> onnx.ModelProto:
    import onnx
    from google.protobuf.message import DecodeError

    if path.is_dir():
        raise ModelError(f"{path} is a folder, not a model", hint="give the .onnx file in it")
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            head = file.read(64)
    except FileNotFoundError:
        near = sorted(entry.name for entry in path.parent.glob("*.onnx")) if path.parent.is_dir() else []
        hint = f"models in that folder: {', '.join(near[:5])}" if near else "check the path"
        raise ModelError(f"there is no file {path}", hint=hint) from None
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}", hint="check its permissions") from error
    if size == 0:
        raise ModelError(f"{path} is empty", hint="export or download the model again")
    if size > _LARGEST_MESSAGE:
        raise ModelError(
            f"{path} has {size / 1e9:.1f} GB, but an ONNX file ends at 2 GiB",
            hint="save it with its weights as external data: onnx.save(model, path, save_as_external_data=True)",
        )
    if path.suffix in _TEXT_SUFFIXES:
        try:
            return onnx.load(path, load_external_data=False)
        except Exception as error:  # each format's parser has errors of its own
            raise ModelError(
                f"{path} is not ONNX in the format of its suffix {path.suffix!r}: {_first_line(error)}",
                hint="check the syntax at that position",
            ) from error
    for magic, what in _OTHER_FORMATS:
        if head.startswith(magic):
            raise ModelError(
                f"{path} is not an ONNX model: it is {what}", hint="convert or export the model to ONNX"
            )
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
    except DecodeError as error:
        # A model file begins with field 1, ir_version, a small integer.
        if head[0] == 0x08 and len(head) > 1 and 0 < head[1] < 64:
            raise ModelError(
                f"{path} is damaged or cut off: its {size:,} bytes do not decode as a whole ONNX model",
                hint="copy, download or export it again and compare its size with the source",
            ) from error
        raise _not_a_model(path) from error
    if proto.ir_version == 0 or not (proto.graph.node or proto.graph.output):
        raise _not_a_model(path)
    return proto


def _not_a_model(path: Path) -> ModelError:
    return ModelError(
        f"{path} is not an ONNX model",
        hint="give an .onnx file, a .pt2 file, or pass a torch module to graphopt.compile",
    )


def _first_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


def from_proto(proto: onnx.ModelProto, *, name: str = "the model") -> ir.Model:
    """A model from a protobuf message; its weights are copied out of the message, so that it can be freed.

    Sparse initializers become dense ones (the IR has no sparse tensors).

    Args:
        name: How messages call it.

    Raises:
        InvalidGraphError: A name is defined twice in one scope, or a node is malformed.
    """
    _repair_proto(proto.graph)
    for function in proto.functions:
        _repair_nodes(function.node)
    _check_unique_names(proto.graph, name)
    try:
        with _quiet_serde():
            model = ir.from_proto(proto)
    except Exception as error:  # onnx_ir wraps whatever is wrong in errors of its own
        raise InvalidGraphError(
            f"{name} is not a valid ONNX model: {_root_cause(error)}", hint="export the model again"
        ) from error
    _own_tensors(model)
    return model


@contextlib.contextmanager
def _quiet_serde() -> Iterator[None]:
    """What onnx_ir only warns of, the verifier reports as an error with more to say."""
    import logging

    logger = logging.getLogger("onnx_ir.serde")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _root_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return _first_line(error)


def _repair_proto(graph: onnx.GraphProto) -> None:
    """Make dense what is sparse; fill in attribute types that files of IR version 1 leave out."""
    for sparse in graph.sparse_initializer:
        graph.initializer.append(_dense(sparse, sparse.values.name))
    graph.ClearField("sparse_initializer")
    _repair_nodes(graph.node)


def _repair_nodes(nodes: Any) -> None:
    import onnx

    kinds = onnx.AttributeProto
    for node in nodes:
        for attribute in node.attribute:
            if attribute.type == kinds.UNDEFINED and not attribute.ref_attr_name:
                for field, kind in _ATTRIBUTE_FIELDS.items():
                    present = getattr(attribute, field)
                    if (attribute.HasField(field) if field in _SINGULAR else len(present)) != 0:
                        attribute.type = kinds.AttributeType.Value(kind)
                        break
            if attribute.type == kinds.SPARSE_TENSOR:
                attribute.t.CopyFrom(_dense(attribute.sparse_tensor, ""))
                attribute.ClearField("sparse_tensor")
                attribute.type = kinds.TENSOR
                if attribute.name == "sparse_value":
                    attribute.name = "value"
            elif attribute.type == kinds.GRAPH:
                _repair_proto(attribute.g)
            elif attribute.type == kinds.GRAPHS:
                for graph in attribute.graphs:
                    _repair_proto(graph)


_ATTRIBUTE_FIELDS = {
    "f": "FLOAT",
    "i": "INT",
    "s": "STRING",
    "t": "TENSOR",
    "g": "GRAPH",
    "floats": "FLOATS",
    "ints": "INTS",
    "strings": "STRINGS",
    "tensors": "TENSORS",
    "graphs": "GRAPHS",
}
_SINGULAR = frozenset({"f", "i", "s", "t", "g"})


def _dense(sparse: onnx.SparseTensorProto, name: str) -> onnx.TensorProto:
    """ONNX IR specification, SparseTensorProto: indices are linear, or one row of coordinates for each value."""
    from onnx import numpy_helper

    dims = tuple(sparse.dims)
    values = numpy_helper.to_array(sparse.values)
    indices = numpy_helper.to_array(sparse.indices)
    if int(np.prod(dims, dtype=np.int64)) * values.dtype.itemsize > _LARGEST_DENSE:
        raise UnsupportedModelError(
            f"the sparse tensor {name!r} of shape {list(dims)} is too large to be made dense",
            hint="store it as a dense tensor, or split it",
        )
    array = np.zeros(dims, dtype=values.dtype)
    if indices.ndim == 1:
        array.reshape(-1)[indices] = values
    else:
        array[tuple(indices.T)] = values
    return numpy_helper.from_array(array, name)


def _check_unique_names(graph: onnx.GraphProto, model: str) -> None:
    """The rule of single assignment, on the message: the IR would merge two definitions or fail in its own words."""
    seen: dict[str, str] = {}

    def define(name: str, what: str) -> None:
        if name in seen:
            raise InvalidGraphError(
                f"{model}: the name {name!r} is defined twice, by {seen[name]} and by {what}",
                hint="export the model again, or rename one of the two",
            )
        seen[name] = what

    inputs: set[str] = set()
    for value in graph.input:
        define(value.name, "an input")
        inputs.add(value.name)
    named: set[str] = set()
    for tensor in graph.initializer:
        if tensor.name in inputs and tensor.name not in named:
            named.add(tensor.name)
            continue
        define(tensor.name, "an initializer")
        if not tensor.name:
            raise InvalidGraphError(f"{model}: an initializer has no name", hint="export the model again")
    for node in graph.node:
        for output in node.output:
            if output:
                define(output, f"node {node.name!r} ({node.op_type})")
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _check_unique_names(attribute.g, model)
            for inner in attribute.graphs:
                _check_unique_names(inner, model)


def _own_tensors(model: ir.Model) -> None:
    """Copy tensors out of the protobuf message. A view of one field would keep the whole message alive."""
    for graph in all_graphs(model):
        for value in graph.initializers.values():
            value.const_value = _own(value.const_value)
        for node in graph:
            for name, attribute in list(node.attributes.items()):
                if attribute.is_ref():
                    continue
                if attribute.type == ir.AttributeType.TENSOR:
                    node.attributes[name] = ir.AttrTensor(name, _owned(attribute.as_tensor()))
                elif attribute.type == ir.AttributeType.TENSORS:
                    node.attributes[name] = ir.AttrTensors(
                        name, [_owned(tensor) for tensor in attribute.as_tensors()]
                    )


def _own(tensor: ir.TensorProtocol | None) -> ir.TensorProtocol | None:
    return None if tensor is None else _owned(tensor)


def _owned(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    if not isinstance(tensor, ir.TensorProtoTensor):
        return tensor
    try:
        array = tensor.numpy()
    except Exception as error:  # wrong sizes surface as one of several errors of NumPy
        raise ModelError(
            f"the tensor {tensor.name!r} is damaged: {_first_line(error)}",
            hint="export or download the model again",
        ) from error
    if tensor.dtype == ir.DataType.STRING:
        return ir.StringTensor(array, shape=ir.Shape(tensor.shape.numpy()), name=tensor.name)
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("="))
    return ir.Tensor(array, dtype=tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=tensor.name)


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
        if attribute.type == ir.AttributeType.GRAPH and not attribute.is_ref():
            found.append(attribute.as_graph())
        elif attribute.type == ir.AttributeType.GRAPHS and not attribute.is_ref():
            found += attribute.as_graphs()
    return tuple(found)


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


def external_tensors(model: ir.Model) -> Iterator[ir.ExternalTensor]:
    """Tensors whose data are in a file."""
    for tensor in all_tensors(model):
        if isinstance(tensor, ir.ExternalTensor):
            yield tensor


def check_external(tensor: ir.ExternalTensor, model: Path) -> None:
    """Refuse data that are missing, too short, or outside the folder of ``model``."""
    location = os.fspath(tensor.location)
    where = f"{model}: the data of tensor {tensor.name!r}"
    base = Path(tensor.base_dir)
    file = base / location
    inside = _is_inside(os.path.abspath(file), os.path.abspath(base))
    if not inside or re.match(r"^([A-Za-z]:)?[\\/]", location):
        raise ModelError(
            f"{where} would be read from {location!r}, outside the model's folder {base}",
            hint="put the data file beside the model and correct its location; paths that leave it are refused",
        )
    if not file.is_file():
        raise ModelError(
            f"{where} are in {location!r}, which is missing from {base}",
            hint=f"copy {Path(location).name} into that folder: the weights are a file of their own",
        )
    if not _is_inside(os.path.realpath(file), os.path.realpath(base)):
        raise ModelError(
            f"{where} are in {location!r}, a link to {os.path.realpath(file)} outside the model's folder",
            hint="copy the file itself into the model's folder",
        )
    if os.stat(file).st_nlink > 1:
        raise ModelError(
            f"{where} are in {location!r}, which has several hard links",
            hint="a hard link could expose a file from elsewhere: put a copy of the file in its place",
        )
    length = tensor.length if tensor.length is not None else tensor.nbytes
    if length != tensor.nbytes:
        raise ModelError(
            f"{where} have {length:,} bytes by the model, but its shape and type need {tensor.nbytes:,}",
            hint="export the model again",
        )
    end = (tensor.offset or 0) + tensor.nbytes
    if os.path.getsize(file) < end:
        raise ModelError(
            f"{where} end at byte {end:,} of {location!r}, but that file has {os.path.getsize(file):,} bytes",
            hint="the file is cut off: copy or download it again",
        )


def _is_inside(path: str, folder: str) -> bool:
    return os.path.commonpath([path, folder]) == folder


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


def nbytes(model: ir.Model) -> int:
    """Total size of initializers and constants in bytes; a tensor that several of them share counts once."""
    tensors = {id(tensor): tensor for tensor in all_tensors(model)}
    return sum(tensor.nbytes for tensor in tensors.values() if tensor.dtype != ir.DataType.STRING)


def op_counts(model: ir.Model) -> dict[str, int]:
    """Number of nodes by op type, subgraphs included, most frequent first; other domains as ``domain.Op``."""
    counts = collections.Counter(
        f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        for node in model.graph.all_nodes()
    )
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def skeleton(model: ir.Model, limit_bytes: int = 1024) -> tuple[onnx.ModelProto, frozenset[str]]:
    """The model without its large weights, for ONNX's C++ functions.

    Documentation and metadata are left out as well.

    Args:
        limit_bytes: Initializers of more bytes become inputs of the same name, type and shape.

    Returns:
        The message, and the names of the initializers that became inputs. ``model`` stays as it was.
    """
    import onnx

    left_out = {
        name
        for name, value in model.graph.initializers.items()
        if value.const_value is None or value.const_value.nbytes > limit_bytes
    }
    proto = onnx.ModelProto(ir_version=model.ir_version or 8)
    for domain, version in model.graph.opset_imports.items():
        proto.opset_import.add(domain=domain, version=version)
    for function in model.functions.values():
        proto.functions.append(ir.to_proto(function))
    _Outline().graph(model.graph, proto.graph, left_out)
    return proto, frozenset(left_out)


class _Outline:
    """Writes graphs into messages: operators, names, types, shapes and small constants."""

    def __init__(self) -> None:
        self._types: dict[tuple[object, ...], onnx.TypeProto] = {}

    def graph(self, graph: ir.Graph, proto: onnx.GraphProto, left_out: Container[str]) -> None:
        proto.name = graph.name or "graph"
        given = set(graph.inputs)
        for value in graph.inputs:
            self.value(value, proto.input.add())
        for name, value in graph.initializers.items():
            if name in left_out:
                if value not in given:
                    self.value(_as_input(value), proto.input.add())
            else:
                _add_tensor(value, proto)
        for node in graph:
            message = proto.node.add()
            message.op_type = node.op_type
            if node.domain:
                message.domain = node.domain
            if node.overload:
                message.overload = node.overload
            message.name = node.name or ""
            message.input.extend([value.name or "" if value is not None else "" for value in node.inputs])
            message.output.extend([value.name or "" for value in node.outputs])
            if node.attributes:
                self.attributes(node, message)
            for value in node.outputs:
                if value.type is not None and value.name and not value.is_graph_output():
                    self.value(value, proto.value_info.add())
        for value in graph.outputs:
            self.value(value, proto.output.add())

    def attributes(self, node: ir.Node, message: onnx.NodeProto) -> None:
        for attribute in node.attributes.values():
            target = message.attribute.add()
            inner = subgraphs_of_attribute(attribute)
            if not inner:
                target.CopyFrom(_attribute_message(attribute))
                continue
            target.name = attribute.name
            if attribute.type == ir.AttributeType.GRAPH:
                target.type = target.GRAPH
                self.graph(inner[0], target.g, ())
            else:
                target.type = target.GRAPHS
                for graph in inner:
                    self.graph(graph, target.graphs.add(), ())

    def value(self, value: ir.Value, proto: onnx.ValueInfoProto) -> None:
        proto.name = value.name or ""
        if value.type is None:
            return
        key = (value.type, None if value.shape is None else value.shape.dims)
        known = self._types.get(key)
        if known is None:
            message = ir.to_proto(ir.Value(name="v", type=value.type, shape=value.shape))
            known = self._types[key] = message.type
        proto.type.CopyFrom(known)


def subgraphs_of_attribute(attribute: ir.Attr) -> tuple[ir.Graph, ...]:
    """The graphs that an attribute holds."""
    if attribute.is_ref():
        return ()
    if attribute.type == ir.AttributeType.GRAPH:
        return (attribute.as_graph(),)
    return tuple(attribute.as_graphs()) if attribute.type == ir.AttributeType.GRAPHS else ()


def _attribute_message(attribute: ir.Attr) -> onnx.AttributeProto:
    if attribute.is_ref():
        return ir.serde.serialize_reference_attribute(attribute)
    return ir.serde.serialize_attribute(attribute)


def _add_tensor(value: ir.Value, proto: onnx.GraphProto) -> None:
    tensor = value.const_value
    if tensor is None:
        return
    if tensor.dtype == ir.DataType.STRING:
        message = ir.serde.serialize_tensor(tensor)
        message.name = value.name or ""
    else:
        message = _tensor_header(value)
        message.raw_data = tensor.tobytes()
    proto.initializer.append(message)


def _as_input(value: ir.Value) -> ir.Value:
    tensor = value.const_value
    if tensor is None:
        return ir.Value(name=value.name, type=value.type, shape=value.shape)
    return ir.Value(
        name=value.name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape.numpy())
    )


def _serialize(model: ir.Model, inputs: list[ir.Value], initializers: list[ir.Value]) -> onnx.ModelProto:
    """The message of ``model`` with other inputs and initializers, without touching the graph."""
    graph = model.graph
    view = ir.GraphView(
        inputs,
        list(graph.outputs),
        nodes=list(graph),
        initializers=initializers,
        doc_string=graph.doc_string,
        opset_imports=graph.opset_imports,
        name=graph.name,
        metadata_props=graph.metadata_props,
    )
    shell = ir.Model(
        ir.Graph([], [], nodes=[], opset_imports=dict(graph.opset_imports), name=graph.name),
        ir_version=model.ir_version,
        producer_name=model.producer_name,
        producer_version=model.producer_version,
        domain=model.domain,
        model_version=model.model_version,
        doc_string=model.doc_string,
        functions=tuple(model.functions.values()),
        metadata_props=dict(model.metadata_props),
        device_configurations=model.device_configurations,
    )
    proto = ir.to_proto(shell)
    proto.graph.Clear()
    ir.serde.serialize_graph_into(proto.graph, view, model_ir_version=model.ir_version)
    return proto


def save(
    model: ir.Model, path: str | os.PathLike[str], *, external_threshold: int = EXTERNAL_THRESHOLD
) -> Path:
    """Write a model as one ``.onnx`` file, or with its weights beside it in ``<name>.data``.

    Weights are streamed one by one, so that memory hardly grows. Files appear under their names only when they are
    complete; what was there before stays until then.

    Args:
        external_threshold: More bytes of weights than this go into the file beside it (0: all go there).

    Returns:
        The path of the ``.onnx`` file.

    Raises:
        BundleError: The place cannot be written.
    """
    path = Path(path)
    for tensor in external_tensors(model):
        tensor.numpy()  # Map it now: the file that is about to be replaced may be the one it lies in.
    if any(isinstance(tensor, ir.ExternalTensor) for tensor in _inner_tensors(model)):
        model = _with_inner_tensors_loaded(model)
    external = nbytes(model) > external_threshold
    data_path = path.with_name(path.name + ".data")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            temporary = Path(folder) / path.name
            if external:
                with open(Path(folder) / data_path.name, "wb") as data, open(temporary, "wb") as file:
                    _write_external(model, file, data, data_path.name)
                os.replace(Path(folder) / data_path.name, data_path)
            else:
                with open(temporary, "wb") as file:
                    _write_inline(model, file)
            os.replace(temporary, path)
    except OSError as error:
        raise BundleError(
            f"cannot write {path}: {error.strerror or error}", hint="choose another place with -o"
        ) from error
    return path


def _inner_tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """Tensors other than the main graph's initializers."""
    main = {id(value.const_value) for value in model.graph.initializers.values()}
    for tensor in all_tensors(model):
        if id(tensor) not in main:
            yield tensor


def _with_inner_tensors_loaded(model: ir.Model) -> ir.Model:
    """A copy in which tensors in attributes and subgraphs are in memory: they are written inline."""
    model = model.clone()

    def loaded(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
        if not isinstance(tensor, ir.ExternalTensor):
            return tensor
        return ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=tensor.name)

    for graph in all_graphs(model):
        if graph is not model.graph:
            for value in graph.initializers.values():
                if value.const_value is not None:
                    value.const_value = loaded(value.const_value)
        for node in graph:
            for name, attribute in list(node.attributes.items()):
                if not attribute.is_ref() and attribute.type == ir.AttributeType.TENSOR:
                    node.attributes[name] = ir.AttrTensor(name, loaded(attribute.as_tensor()))
    return model


def _split_strings(model: ir.Model) -> tuple[list[ir.Value], list[ir.Value]]:
    """Initializers that only a protobuf field can hold (strings), and the others."""
    strings, others = [], []
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is not None:
            (strings if tensor.dtype == ir.DataType.STRING else others).append(value)
    return strings, others


def _write_external(model: ir.Model, file: IO[bytes], data: IO[bytes], location: str) -> None:
    import onnx

    strings, others = _split_strings(model)
    proto = _serialize(model, list(model.graph.inputs), strings)
    for value in others:
        tensor = value.const_value
        assert tensor is not None
        message = _tensor_header(value)
        if tensor.nbytes < 1024:
            # Shapes and axes stay in the file, where shape inference can read them.
            message.raw_data = tensor.tobytes()
        else:
            message.data_location = onnx.TensorProto.EXTERNAL
            offset = -(-data.tell() // 4096) * 4096
            data.write(b"\0" * (offset - data.tell()))
            _stream(tensor, data)
            for key, content in (("location", location), ("offset", offset), ("length", tensor.nbytes)):
                entry = message.external_data.add()
                entry.key, entry.value = key, str(content)
        proto.graph.initializer.append(message)
    file.write(proto.SerializeToString(deterministic=True))


def _write_inline(model: ir.Model, file: IO[bytes]) -> None:
    """Write the message piece by piece: what it holds besides weights, then each weight.

    Protocol Buffers encoding, https://protobuf.dev/programming-guides/encoding: a field is a key (number and wire
    type 2 for bytes), a length and the content, in any order.
    """
    strings, others = _split_strings(model)
    proto = _serialize(model, list(model.graph.inputs), strings)
    graph = proto.graph.SerializeToString(deterministic=True)
    proto.ClearField("graph")
    heads: list[tuple[bytes, ir.TensorProtocol]] = []
    total = len(graph)
    for value in others:
        tensor = value.const_value
        assert tensor is not None
        head = _tensor_header(value).SerializeToString(deterministic=True)
        head += _key(_RAW_DATA) + _varint(tensor.nbytes)
        head = _key(_INITIALIZER) + _varint(len(head) + tensor.nbytes) + head
        heads.append((head, tensor))
        total += len(head) + tensor.nbytes
    if total > _LARGEST_MESSAGE:
        raise BundleError(
            f"the model has {total / 1e9:.1f} GB, but an ONNX file ends at 2 GiB",
            hint="save it with external data: a lower external_threshold",
        )
    file.write(proto.SerializeToString(deterministic=True))
    file.write(_key(_GRAPH) + _varint(total) + graph)
    for head, tensor in heads:
        file.write(head)
        _stream(tensor, file)


# Field numbers of onnx.proto: ModelProto.graph, GraphProto.initializer, TensorProto.raw_data.
_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9


def _tensor_header(value: ir.Value) -> onnx.TensorProto:
    import onnx

    tensor = value.const_value
    assert tensor is not None and value.name is not None
    return onnx.TensorProto(name=value.name, data_type=tensor.dtype.value, dims=tensor.shape.numpy())


def _stream(tensor: ir.TensorProtocol, file: IO[bytes]) -> None:
    before = file.tell()
    if isinstance(tensor, ir.ExternalTensor) and tensor.raw is not None:
        # From the mapping, not from the path: another file may lie there by now.
        start = tensor.offset or 0
        view = memoryview(tensor.raw)
        for position in range(start, start + tensor.nbytes, 1 << 24):
            file.write(view[position : min(position + (1 << 24), start + tensor.nbytes)])
        view.release()
    elif hasattr(tensor, "tofile"):
        tensor.tofile(file)
    else:
        file.write(tensor.tobytes())
    if file.tell() - before != tensor.nbytes:
        raise ModelError(
            f"tensor {tensor.name!r} gave {file.tell() - before} bytes instead of {tensor.nbytes}",
            hint="its file may have changed while it was read: try again",
        )


def _key(field: int) -> bytes:
    return _varint(field << 3 | 2)


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
