"""A hash of what a model computes: equal for equal graphs, on any machine.

The hash of a value is made of the hash of the node that computes it, and that of a node of its operator, attributes and
inputs (a Merkle tree, in the sense of hash-consing). So it does not depend on the order of nodes or initializers, on
inner names, on documentation, or on where weights are stored. A second walk from the outputs back to the inputs adds
who reads each node, so that it does depend on what is shared.

It depends on: names, order, types and shapes of inputs and outputs; operators, domains, opsets and attributes; the
bytes of all constants; which nodes and constants are shared.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from graphopt.ir.check import type_text
from graphopt.ir.graphs import subgraphs_of_attribute

_CHUNK = 1 << 23
_CACHED = "graphopt.sha256"


def content_hash(model: ir.Model) -> str:
    """SHA-256 of the content of ``model`` as 64 hexadecimal digits.

    Weights are read in pieces of 8 MB, and each tensor's hash is kept with it, so hashing again is quick.
    """
    opsets = _opsets(model)
    functions = sorted(
        _digest(
            "function",
            identifier,
            [f"{domain}:{version}" for domain, version in sorted(function.opset_imports.items())],
            sorted(function.attributes),
            _graph(function.graph, function.opset_imports, {}),
        )
        for identifier, function in model.functions.items()
    )
    return _digest("model", opsets, functions, _graph(model.graph, model.graph.opset_imports, {})).hex()


def _opsets(model: ir.Model) -> list[str]:
    """Opset imports that some node uses."""
    used = {node.domain for node in model.graph.all_nodes()}
    return sorted(
        f"{domain}:{version}" for domain, version in model.graph.opset_imports.items() if domain in used
    )


def tensor_hash(tensor: ir.TensorProtocol) -> bytes:
    """SHA-256 of a tensor's type, shape and content; kept with the tensor."""
    store = getattr(tensor, "meta", None)
    if store is not None and _CACHED in store:
        cached: bytes = store[_CACHED]
        return cached
    digest = hashlib.sha256(f"{tensor.dtype.name}{list(tensor.shape.numpy())}".encode())
    if isinstance(tensor, ir.ExternalTensor):
        _hash_file(digest, tensor)
    elif tensor.dtype == ir.DataType.STRING:
        for text in np.asarray(tensor.numpy(), dtype=object).reshape(-1):
            content = text if isinstance(text, bytes) else str(text).encode()
            digest.update(len(content).to_bytes(8, "little") + content)
    elif tensor.dtype.bitwidth < 8:
        digest.update(tensor.tobytes())
    else:
        array = np.ascontiguousarray(tensor.numpy())
        if array.dtype.byteorder == ">" or (array.dtype.byteorder == "=" and not np.little_endian):
            array = array.byteswap()
        flat = array.reshape(-1).view(np.uint8)
        for start in range(0, flat.size, _CHUNK):
            digest.update(flat[start : start + _CHUNK].data)
    result = digest.digest()
    if store is not None:
        store[_CACHED] = result
    return result


def _hash_file(digest: hashlib._Hash, tensor: ir.ExternalTensor) -> None:
    """From the file in pieces: pages of a mapping would count as this process's memory."""
    left = tensor.nbytes
    if left == 0:
        return
    with open(tensor.path, "rb") as file:
        file.seek(tensor.offset or 0)
        while left:
            piece = file.read(min(_CHUNK, left))
            if not piece:
                raise OSError(f"{tensor.path} ends before tensor {tensor.name!r} does")
            digest.update(piece)
            left -= len(piece)


def _digest(*parts: object) -> bytes:
    """SHA-256 over parts of any shape, each with its length, so that no two lists of parts run together."""
    digest = hashlib.sha256()
    _feed(digest, parts)
    return digest.digest()


def _feed(digest: hashlib._Hash, part: object) -> None:
    if isinstance(part, list | tuple):
        digest.update(b"l%d:" % len(part))
        for element in part:
            _feed(digest, element)
    elif isinstance(part, bytes):
        digest.update(b"b%d:" % len(part) + part)
    else:
        text = repr(part).encode()
        digest.update(b"r%d:" % len(text) + text)


def _interface(value: ir.Value) -> tuple[object, ...]:
    shape = None if value.shape is None else [str(dim) for dim in value.shape]
    return (value.name, None if value.type is None else type_text(value.type), shape)


def _graph(
    graph: ir.Graph, opsets: Mapping[str, int], outer: Mapping[ir.Value, bytes], *, names: bool = True
) -> bytes:
    """The hash of a graph, given those of the outer values that it reads.

    Args:
        names: Whether input and output names are part of it (they are positional in subgraphs).
    """
    known: dict[ir.Value, bytes] = {}
    scope = _Scope(known, outer)
    for index, value in enumerate(graph.inputs):
        known[value] = _digest("input", index, _interface(value) if names else ())
    defaults = []
    for value in graph.initializers.values():
        assert value.const_value is not None
        content = tensor_hash(value.const_value)
        if value in known:
            defaults.append((known[value], content))
        else:
            known[value] = _digest("constant", content)
    nodes: list[tuple[ir.Node, bytes]] = []
    reads: dict[ir.Node, list[ir.Value]] = {}
    for node in graph:
        own, inner = _node(node, opsets, scope)
        reads[node] = inner
        nodes.append((node, own))
        for index, value in enumerate(node.outputs):
            known[value] = _digest("output", own, index, bool(value.name))
    used = _uses(graph, nodes, reads)
    everything = sorted(_digest(own, used[node]) for node, own in nodes)
    constants = sorted(
        _digest(known[value], sorted(used.get(value, ()))) for value in graph.initializers.values()
    )
    outputs = [
        (_interface(value) if names else (), scope.get(value) or b"undefined") for value in graph.outputs
    ]
    inputs = [(known[value], sorted(used.get(value, ()))) for value in graph.inputs]
    return _digest("graph", inputs, sorted(defaults), constants, everything, outputs)


class _Scope:
    """Hashes of values of this graph, then of the graphs around it."""

    def __init__(self, known: Mapping[ir.Value, bytes], outer: Mapping[ir.Value, bytes] | _Scope) -> None:
        self._known = known
        self._outer = outer

    def get(self, value: ir.Value) -> bytes | None:
        found = self._known.get(value)
        return found if found is not None else self._outer.get(value)


def _node(node: ir.Node, opsets: Mapping[str, int], scope: _Scope) -> tuple[bytes, list[ir.Value]]:
    """The hash of a node, and the values of this graph that its subgraphs read."""
    inner: list[ir.Value] = []
    attributes: list[tuple[object, ...]] = []
    for name, attribute in sorted(node.attributes.items()):
        if attribute.is_ref():
            attributes.append((name, "reference", attribute.ref_attr_name))
            continue
        attributes.append((name, attribute.type.name, _attribute(attribute, opsets, scope, inner)))
    inputs = [b"" if value is None else scope.get(value) or b"undefined" for value in node.inputs]
    while inputs and not inputs[-1]:
        inputs.pop()
    version = opsets.get(node.domain)
    own = _digest("node", node.domain, node.op_type, node.overload, version, attributes, inputs)
    return own, inner


def _attribute(attribute: ir.Attr, opsets: Mapping[str, int], scope: _Scope, inner: list[ir.Value]) -> object:
    kind = attribute.type
    if kind == ir.AttributeType.TENSOR:
        return tensor_hash(attribute.as_tensor())
    if kind == ir.AttributeType.TENSORS:
        return [tensor_hash(tensor) for tensor in attribute.as_tensors()]
    if kind in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
        hashes = []
        for graph in subgraphs_of_attribute(attribute):
            for node in graph.all_nodes():
                inner += [value for value in node.inputs if value is not None]
            hashes.append(_graph(graph, opsets, scope, names=False))  # type: ignore[arg-type]
        return hashes
    if kind == ir.AttributeType.FLOAT:
        return np.float32(attribute.as_float()).tobytes()
    if kind == ir.AttributeType.FLOATS:
        return np.array(attribute.as_floats(), dtype=np.float32).tobytes()
    if kind in (ir.AttributeType.INTS, ir.AttributeType.STRINGS):
        return [str(element) for element in attribute.value]
    return str(attribute.value)


def _uses(
    graph: ir.Graph, nodes: list[tuple[ir.Node, bytes]], reads: Mapping[ir.Node, list[ir.Value]]
) -> dict[ir.Node | ir.Value, list[bytes]]:
    """For each node a hash of all that reads it, directly or not; for each input and initializer, of its readers."""
    readers: dict[ir.Value, list[bytes]] = {}
    for index, value in enumerate(graph.outputs):
        readers.setdefault(value, []).append(_digest("returned", index))
    below: dict[ir.Node | ir.Value, list[bytes]] = {}
    for node, own in reversed(nodes):
        uses = [(index, sorted(readers.get(value, ()))) for index, value in enumerate(node.outputs)]
        summary = _digest("uses", uses)
        below[node] = [summary]
        mine = _digest(own, summary)
        for index, source in enumerate(node.inputs):
            if source is not None:
                readers.setdefault(source, []).append(_digest("read", mine, index))
        for source in dict.fromkeys(reads[node]):
            readers.setdefault(source, []).append(_digest("captured", mine))
    for value in (*graph.inputs, *graph.initializers.values()):
        below[value] = readers.get(value, [])
    return below
