"""Constants with the same content, stored once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterable

import numpy as np
import onnx_ir as ir

from graphopt.ir import facts
from graphopt.ir.facts import Array
from graphopt.ir.graphs import scopes

_SAMPLE_BYTES = 1024
_CHUNK_BYTES = 1 << 22


def share_constants(
    model: ir.Model,
    allowed: Callable[[str], bool] = lambda name: True,
    *,
    least_bytes: int = 0,
    most_bytes: int = 0,
) -> int:
    """Let the readers of equal constants read one of them; in place.

    Equal are those of the same type, shape and bytes (so -0.0 differs from 0.0, and NaN equals itself). A constant of
    a branch or loop body may become one of the graphs around it, never the other way round. Graph outputs and inputs
    that a caller may override keep their own. Only constants that agree in type, shape and a sample of their content
    are read as a whole, a few MB at a time: external data are not loaded.

    Args:
        allowed: Told the name of each constant that is to go.
        least_bytes, most_bytes: Smaller and larger constants are left alone (0: no limit).

    Returns:
        How many are gone.
    """
    candidates: list[ir.Value] = []
    parents: dict[ir.Graph, ir.Graph | None] = {}
    for graph, parent in scopes(model.graph):
        parents[graph] = parent
        candidates += [
            value
            for value in graph.initializers.values()
            if facts.is_constant(value)
            and not value.is_graph_output()
            and least_bytes <= _nbytes(value) <= (most_bytes or _nbytes(value))
        ]
    digest = _Digests()
    for key in (_kind, _sample, digest):
        candidates = _with_twin(candidates, key)
    kept: dict[tuple[ir.Graph, Hashable], ir.Value] = {}
    gone = 0
    for value in candidates:
        content, home = digest(value), value.graph
        assert home is not None and value.name is not None
        twin: ir.Value | None = None
        scope: ir.Graph | None = home
        while scope is not None and twin is None:
            twin = kept.get((scope, content))
            scope = parents[scope]
        if twin is None:
            kept[home, content] = value
        elif allowed(value.name):
            value.replace_all_uses_with(twin)
            home.initializers.pop(value.name)
            gone += 1
    return gone


def content_digest(content: Array) -> bytes:
    """Of the bytes of an array, read a few MB at a time."""
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


class _Digests:
    """Each tensor's digest, once: it is asked for twice, and several values may hold the same tensor."""

    def __init__(self) -> None:
        self._known: dict[int, bytes] = {}

    def __call__(self, value: ir.Value) -> Hashable:
        content = facts.constant(value)
        assert content is not None and value.const_value is not None
        found = self._known.get(id(value.const_value))
        if found is None:
            found = self._known[id(value.const_value)] = content_digest(content)
        return (_kind(value), found)


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
        return (_kind(value), content_digest(content))
    flat, count = content.reshape(-1), max(1, _SAMPLE_BYTES // content.itemsize)
    middle = flat.size // 2
    return (
        _kind(value),
        *(content_digest(part) for part in (flat[:count], flat[middle : middle + count], flat[-count:])),
    )


__all__ = ["content_digest", "share_constants"]
