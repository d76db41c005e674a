"""What is known about a value without running the graph: constants, shapes, types, uses."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

Array = npt.NDArray[Any]
Dim = int | str | None

_UNBOUNDED = 2**31 - 1
"""From here on, the end of a Slice is that of the axis."""

SPARSITY = "graphopt.sparsity"
"""Key in the ``metadata_props`` of an initializer whose zeros are to stay: "2:4", another pattern, "unstructured"."""


def is_constant(value: ir.Value | None) -> bool:
    """Whether ``value`` is an initializer whose content is known and cannot be overridden by a caller."""
    return (
        value is not None
        and value.const_value is not None
        and value.is_initializer()
        and not value.is_graph_input()
    )


def constant(value: ir.Value | None) -> Array | None:
    """The content of a constant, or None where ``value`` is not one. Large weights are mapped, not copied."""
    if value is None or not is_constant(value):
        return None
    assert value.const_value is not None
    return value.const_value.numpy()


def constant_nbytes(value: ir.Value | None) -> int:
    """Size of a constant in bytes without reading it; 0 where ``value`` is no constant."""
    if value is None or value.const_value is None:
        return 0
    return value.const_value.nbytes


def sparsity(value: ir.Value | None) -> str:
    """The pattern of the zeros that a pass has put into a weight (:data:`SPARSITY`); empty where it has put none."""
    return "" if value is None else value.metadata_props.get(SPARSITY, "")


def scalar(value: ir.Value | None) -> float | None:
    """The one element of a single-element numeric constant, as a Python float; else None."""
    if value is None or not is_constant(value):
        return None
    tensor = value.const_value
    assert tensor is not None
    if tensor.size != 1 or tensor.dtype == ir.DataType.STRING:
        return None
    return float(tensor.numpy().reshape(()))


def ints(value: ir.Value | None) -> tuple[int, ...] | None:
    """The elements of a constant integer tensor of rank 0 or 1, else None."""
    array = constant(value)
    if array is None or array.dtype.kind not in "iu" or array.ndim > 1:
        return None
    return tuple(int(element) for element in array.reshape(-1))


def dims(value: ir.Value | None) -> tuple[int | None, ...] | None:
    """The shape of ``value`` with None for each dynamic dimension; None where the rank is unknown."""
    if value is None or value.shape is None:
        return None
    return tuple(dim if isinstance(dim, int) else None for dim in value.shape)


def known_dims(value: ir.Value | None) -> tuple[Dim, ...] | None:
    """The shape with the name of each dynamic dimension, None for an unnamed one; None where the rank is unknown."""
    if value is None or value.shape is None:
        return None
    return tuple(dim if isinstance(dim, int) else dim.value for dim in value.shape)


def static_dims(value: ir.Value | None) -> tuple[int, ...] | None:
    """The shape of ``value`` where every dimension is known, else None."""
    shape = dims(value)
    if shape is None or any(dim is None for dim in shape):
        return None
    return tuple(dim for dim in shape if dim is not None)


def rank(value: ir.Value | None) -> int | None:
    """Number of dimensions, or None where unknown."""
    return None if value is None or value.shape is None else len(value.shape)


def same_shape(left: ir.Value | None, right: ir.Value | None) -> bool:
    """Whether both shapes are known and equal, dynamic dimensions by name (an unnamed one equals nothing)."""
    if left is None or right is None or left.shape is None or right.shape is None:
        return False
    if len(left.shape) != len(right.shape):
        return False
    for a, b in zip(left.shape, right.shape, strict=True):
        if isinstance(a, int) or isinstance(b, int):
            if a != b:
                return False
        elif a.value is None or a != b:
            return False
    return True


def is_float(value: ir.Value | None) -> bool:
    """Whether ``value`` is known to be float16, bfloat16, float32 or float64."""
    return value is not None and value.dtype in _FLOATS


_FLOATS = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.FLOAT, ir.DataType.DOUBLE})


def sole_consumer(value: ir.Value) -> ir.Node | None:
    """The one node that reads ``value``, where there is just one and it is no graph output; else None."""
    if value.is_graph_output():
        return None
    consumers = {id(use.node): use.node for use in value.uses()}
    if len(consumers) != 1:
        return None
    return next(iter(consumers.values()))


def sliced(size: int, start: int, end: int, step: int = 1) -> range | None:
    """The places that Slice takes of an axis, as the ONNX specification clamps them (Slice, from version 10 on).

    Python's slices agree going forwards. Going backwards, a start before the first place means the first one here,
    and nothing there. None where ``step`` is 0, or leads backwards to "the end", which runtimes read in two ways.
    """
    if step == 0 or (step < 0 and end >= _UNBOUNDED):
        return None
    start, end = (bound + size if bound < 0 else bound for bound in (start, end))
    first, last = (0, size) if step > 0 else (-1, size - 1)
    return range(min(max(start, 0), last), min(max(end, first), last), step)


def attribute(node: ir.Node, name: str, default: Any = None) -> Any:
    """The value of an attribute of ``node`` as plain Python, or ``default`` where it is absent."""
    attr = node.attributes.get(name)
    if attr is None or attr.is_ref():
        return default
    if attr.type == ir.AttributeType.STRING:
        return attr.as_string()
    if attr.type == ir.AttributeType.INTS:
        return tuple(attr.as_ints())
    if attr.type == ir.AttributeType.FLOATS:
        return tuple(attr.as_floats())
    return attr.value


def numpy_dtype(value: ir.Value | None) -> np.dtype[Any] | None:
    """NumPy's type for the elements of ``value``, or None where the type is unknown."""
    if value is None or value.dtype is None:
        return None
    return value.dtype.numpy()


def producer_op(value: ir.Value | None) -> str | None:
    """The op type that makes ``value`` in the default domain, else None."""
    node = None if value is None else value.producer()
    return node.op_type if node is not None and node.domain == "" else None
