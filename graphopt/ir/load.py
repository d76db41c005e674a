"""Models from files and protobuf messages: what is wrong with one is found here and said in words."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from graphopt.errors import InvalidGraphError, ModelError, UnsupportedModelError
from graphopt.ir.graphs import external_tensors, replace_tensors

if TYPE_CHECKING:
    import onnx

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
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    if path.is_dir() and (path / "manifest.json").is_file():
        raise ModelError(f"{path} is a bundle, not a model", hint="give the model that it was compiled from")
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
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # onnx calls its text format experimental
                text = onnx.load(path, load_external_data=False)
        except Exception as error:  # each format's parser has errors of its own
            raise ModelError(
                f"{path} is not ONNX in the format of its suffix {path.suffix!r}: {_first_line(error)}",
                hint="check the syntax at that position",
            ) from error
        return _checked(text, path)
    for magic, what in _OTHER_FORMATS:
        if head.startswith(magic):
            is_pointer = magic.startswith(b"version https://git-lfs")
            raise ModelError(
                f"{path} is not an ONNX model: it is {what}",
                hint="fetch the file: git lfs pull" if is_pointer else "convert or export the model to ONNX",
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
    return _checked(proto, path)


def _checked(proto: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    if proto.ir_version == 0 or not (proto.graph.node or proto.graph.output):
        raise _not_a_model(path)
    return proto


def _not_a_model(path: Path) -> ModelError:
    return ModelError(
        f"{path} is not an ONNX model",
        hint="give an .onnx file, a .pt2 file, or pass a torch module to graphopt.compile",
    )


def _first_line(error: BaseException) -> str:
    # The parser of ONNX's text syntax raises bytes.
    said = error.args[0] if error.args else ""
    text = said.decode(errors="replace") if isinstance(said, bytes) else str(error)
    return " ".join(text.split())[:300]


def from_proto(proto: onnx.ModelProto, *, name: str = "the model") -> ir.Model:
    """A model from a protobuf message; its weights are copied out of the message, so that it can be freed.

    Sparse initializers become dense ones (the IR has no sparse tensors).

    Args:
        name: How messages call it.

    Raises:
        InvalidGraphError: A name is defined twice in one scope, or a node is malformed.
    """
    for info in (*proto.graph.input, *proto.graph.output):
        if _holds_map(info.type):
            raise UnsupportedModelError(
                f"{name} passes {info.name!r} as a map, and graphopt takes tensors and sequences of them",
                hint="a classifier of scikit-learn: export it with options={'zipmap': False}",
            )
    _repair_proto(proto.graph)
    for function in proto.functions:
        _repair_nodes(function.node)
    _check_unique_names(proto.graph, name)
    for tensor in proto.graph.initializer:
        _check_location(tensor, name)
    try:
        with _quiet_serde():
            model = ir.from_proto(proto)
    except Exception as error:  # onnx_ir wraps whatever is wrong in errors of its own
        raise InvalidGraphError(
            f"{name} is not a valid ONNX model: {_root_cause(error)}", hint="export the model again"
        ) from error
    # A view of one field would keep the whole message alive.
    replace_tensors(model, lambda tensor, _: _owned(tensor))
    return model


def _check_location(tensor: onnx.TensorProto, model: str) -> None:
    for entry in tensor.external_data:
        if entry.key in ("offset", "length") and not entry.value.isdecimal():
            raise ModelError(
                f"{model}: the data of tensor {tensor.name!r} have the {entry.key} {entry.value!r}, which is no number",
                hint="export the model again",
            )


def _holds_map(type_: onnx.TypeProto) -> bool:
    if type_.HasField("sequence_type"):
        return _holds_map(type_.sequence_type.elem_type)
    return bool(type_.HasField("map_type"))


@contextlib.contextmanager
def _quiet_serde() -> Iterator[None]:
    """What onnx_ir only warns of, the verifier reports as an error with more to say."""
    logger = logging.getLogger("onnx_ir.serde")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _root_cause(error: BaseException) -> str:
    while (
        cause := error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    ) is not None:
        error = cause
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
