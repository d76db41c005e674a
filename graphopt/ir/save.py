"""Models to files, their weights streamed one by one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

import onnx_ir as ir

from graphopt.errors import BundleError, ModelError
from graphopt.ir.graphs import all_tensors, external_tensors, in_memory, nbytes, replace_tensors
from graphopt.ir.outline import tensor_header

if TYPE_CHECKING:
    import onnx

EXTERNAL_THRESHOLD = 1_500_000_000
"""Weights of more bytes than this go beside the file: a protobuf message ends at 2 GiB."""

_LARGEST_MESSAGE = (1 << 31) - 1


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
    replace_tensors(model, lambda tensor, weight: tensor if weight else in_memory(tensor))
    return model


def _split_strings(model: ir.Model) -> tuple[list[ir.Value], list[ir.Value]]:
    """Initializers that only a protobuf field can hold (strings), and the others."""
    strings: list[ir.Value] = []
    others: list[ir.Value] = []
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
        message = tensor_header(value)
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
        head = tensor_header(value).SerializeToString(deterministic=True)
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
    ir.serde.serialize_graph_into(proto.graph, view, model_ir_version=model.ir_version)  # type: ignore[arg-type]
    # As onnx-ir does: what is recorded of an initializer lies with its type.
    proto.graph.value_info.extend(
        ir.to_proto(value)
        for value in graph.initializers.values()
        if value.metadata_props
        and value not in initializers
        and not (value.is_graph_input() or value.is_graph_output())
    )
    return proto


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
