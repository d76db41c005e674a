"""Shapes, types, and what moves elements."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from graphopt.ir import facts

TYPES: Mapping[int, torch.dtype] = {
    1: torch.float32, 2: torch.uint8, 3: torch.int8, 5: torch.int16, 6: torch.int32, 7: torch.int64, 9: torch.bool,
    10: torch.float16, 11: torch.float64, 16: torch.bfloat16,
}  # fmt: skip
"""By number of ``TensorProto.DataType``."""


def _type(number: int) -> torch.dtype:
    if number not in TYPES:
        raise NotImplementedError(f"the type {number} of ONNX")
    return TYPES[number]


def cast(x: Tensor, *, to: int, saturate: int = 1, round_mode: str = "up") -> Tensor:
    """To another type (the last two attributes concern types of 8 bits, which are refused)."""
    del saturate, round_mode
    return x.to(_type(to))


def cast_like(x: Tensor, like: Tensor, *, saturate: int = 1, round_mode: str = "up") -> Tensor:
    """To the type of another tensor."""
    del saturate, round_mode
    return x.to(like.dtype)


def identity(x: Tensor) -> Tensor:
    """As it is."""
    return x


def dropout(
    x: Tensor, ratio: Tensor | None = None, training: Tensor | None = None, *, seed: int = 0
) -> Tensor:
    """As it is: the graph is one of inference."""
    del ratio, seed
    if training is not None and bool(training):
        raise NotImplementedError("Dropout in training mode")
    return x


def shape(x: Tensor, *, start: int = 0, end: int | None = None) -> Tensor:
    """Sizes, int64."""
    return torch.tensor(list(x.shape)[start:end], dtype=torch.int64)


def size(x: Tensor) -> Tensor:
    """Number of elements, an int64 scalar."""
    return torch.tensor(x.numel(), dtype=torch.int64)


def reshape(x: Tensor, sizes: Tensor, *, allowzero: int = 0) -> Tensor:
    """0 copies a size unless ``allowzero``."""
    wanted = [int(entry) for entry in sizes]
    if not allowzero:
        wanted = [x.shape[place] if entry == 0 else entry for place, entry in enumerate(wanted)]
    return x.reshape(wanted)


def flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    """To a matrix; the axes before ``axis`` are its rows."""
    place = axis + x.ndim if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:place]), math.prod(x.shape[place:]))


def transpose(x: Tensor, *, perm: Sequence[int] | None = None) -> Tensor:
    """Axes in another order; reversed by default."""
    return x.permute(*(range(x.ndim - 1, -1, -1) if perm is None else perm))


def squeeze(x: Tensor, axes: Tensor | None = None) -> Tensor:
    """Without axes of size 1."""
    return x.squeeze() if axes is None else x.squeeze(tuple(int(axis) for axis in axes))


def unsqueeze(x: Tensor, axes: Tensor) -> Tensor:
    """With more axes of size 1."""
    rank = x.ndim + axes.numel()
    for axis in sorted(int(axis) % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


def concat(*operands: Tensor, axis: int) -> Tensor:
    """Behind one another."""
    return torch.cat(operands, axis)


def split(x: Tensor, sizes: Tensor | None = None, *, axis: int = 0, num_outputs: int | None = None) -> Any:
    """Parts of given sizes, or as many equal ones, the last one smaller."""
    if sizes is not None:
        return torch.split(x, [int(entry) for entry in sizes], axis)
    assert num_outputs is not None
    each = -(-x.shape[axis] // num_outputs)
    return torch.split(x, each, axis)


def slice_(
    x: Tensor, starts: Tensor, ends: Tensor, axes: Tensor | None = None, steps: Tensor | None = None
) -> Tensor:
    """By starts, ends and steps, clamped to the axis."""
    places = range(starts.numel()) if axes is None else [int(axis) for axis in axes]
    strides = [1] * starts.numel() if steps is None else [int(step) for step in steps]
    for axis, start, end, step in zip(places, starts.tolist(), ends.tolist(), strides, strict=True):
        found = facts.sliced(x.shape[axis], start, end, step)
        if found is None:
            raise NotImplementedError("a Slice that goes backwards to the end")
        if step > 0:
            x = torch.narrow(x, axis, found.start, max(found.stop - found.start, 0))
            x = x if step == 1 else x[(slice(None),) * (axis % x.ndim) + (slice(None, None, step),)]
        else:
            x = torch.index_select(x, axis, torch.tensor(list(found), dtype=torch.int64))
    return x


def _from_front(indices: Tensor, count: int) -> Tensor:
    """Indices that count from the end, counted from the front."""
    indices = indices.to(torch.int64)
    return torch.where(indices < 0, indices + count, indices)


def gather(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    """Slices of an axis."""
    places = _from_front(indices, x.shape[axis])
    axis = axis % x.ndim
    found = torch.index_select(x, axis, places.reshape(-1))
    return found.reshape(*x.shape[:axis], *places.shape, *x.shape[axis + 1 :])


def gather_elements(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    """Element by element along an axis."""
    return torch.gather(x, axis, _from_front(indices, x.shape[axis]))


def gather_nd(x: Tensor, indices: Tensor, *, batch_dims: int = 0) -> Tensor:
    """By tuples of indices."""
    depth = indices.shape[-1]
    leading = [
        torch.arange(count).reshape([-1 if at == place else 1 for at in range(indices.ndim - 1)])
        for place, count in enumerate(x.shape[:batch_dims])
    ]
    columns = [_from_front(indices[..., place], x.shape[batch_dims + place]) for place in range(depth)]
    return x[tuple([*leading, *columns])]


def scatter_elements(
    x: Tensor, indices: Tensor, updates: Tensor, *, axis: int = 0, reduction: str = "none"
) -> Tensor:
    """Replaces elements along an axis."""
    if reduction not in ("none", "add"):
        raise NotImplementedError(f"reduction={reduction!r}")
    places = _from_front(indices, x.shape[axis])
    return (
        torch.scatter(x, axis, places, updates)
        if reduction == "none"
        else torch.scatter_add(x, axis, places, updates)
    )


def scatter_nd(x: Tensor, indices: Tensor, updates: Tensor, *, reduction: str = "none") -> Tensor:
    """Replaces what tuples of indices name."""
    if reduction not in ("none", "add"):
        raise NotImplementedError(f"reduction={reduction!r}")
    columns = tuple(_from_front(indices[..., place], x.shape[place]) for place in range(indices.shape[-1]))
    return torch.index_put(x, columns, updates, accumulate=reduction == "add")


def expand(x: Tensor, sizes: Tensor) -> Tensor:
    """Broadcast against a shape."""
    wanted = torch.broadcast_shapes(x.shape, tuple(int(entry) for entry in sizes))
    return x.expand(wanted)


def tile(x: Tensor, repeats: Tensor) -> Tensor:
    """Repeated along each axis."""
    return x.repeat([int(entry) for entry in repeats])


_PLACES: Mapping[str, Callable[[Tensor, int], Tensor]] = {
    "edge": lambda at, count: at.clamp(0, count - 1),
    "wrap": lambda at, count: at % count,
    "reflect": lambda at, count: (
        (count - 1) - ((at % (2 * (count - 1))) - (count - 1)).abs() if count > 1 else at * 0
    ),
}


def pad(
    x: Tensor,
    pads: Tensor,
    value: Tensor | None = None,
    axes: Tensor | None = None,
    *,
    mode: str = "constant",
) -> Tensor:
    """Adds elements at both ends of axes; negative pads remove some."""
    places = range(x.ndim) if axes is None else [int(axis) % x.ndim for axis in axes]
    count = pads.numel() // 2
    ends = [int(entry) for entry in pads]
    if mode == "constant":
        flat = [0] * (2 * x.ndim)
        for index, axis in enumerate(places):
            flat[2 * (x.ndim - 1 - axis)], flat[2 * (x.ndim - 1 - axis) + 1] = (
                ends[index],
                ends[count + index],
            )
        filler = 0 if value is None or not value.numel() else value.item()
        return F.pad(x, flat, value=filler)
    for index, axis in enumerate(places):
        before, after = ends[index], ends[count + index]
        if before or after:
            at = torch.arange(-before, x.shape[axis] + after)
            x = torch.index_select(x, axis, _PLACES[mode](at, x.shape[axis]))
    return x


def depth_to_space(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    """Channels to places."""
    n, c, h, w = x.shape
    b, inner = blocksize, c // blocksize**2
    if mode == "CRD":
        return x.reshape(n, inner, b, b, h, w).permute(0, 1, 4, 2, 5, 3).reshape(n, inner, h * b, w * b)
    return x.reshape(n, b, b, inner, h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, inner, h * b, w * b)


def space_to_depth(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    """Places to channels."""
    if mode != "DCR":
        raise NotImplementedError(f"mode={mode!r}")
    n, c, h, w = x.shape
    b = blocksize
    return (
        x.reshape(n, c, h // b, b, w // b, b).permute(0, 3, 5, 1, 2, 4).reshape(n, c * b * b, h // b, w // b)
    )


def constant_of_shape(sizes: Tensor, *, value: Tensor | None = None) -> Tensor:
    """Filled with one number, float32 zero by default."""
    wanted = [int(entry) for entry in sizes]
    if value is None:
        return torch.zeros(wanted)
    return torch.full(wanted, value.item(), dtype=value.dtype)


def range_(start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    """Numbers from ``start`` up to ``limit``."""
    if (limit.item() - start.item()) * delta.item() <= 0:
        return torch.zeros(0, dtype=start.dtype)
    return torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype)


def trilu(x: Tensor, k: Tensor | None = None, *, upper: int = 1) -> Tensor:
    """One triangle of matrices."""
    offset = 0 if k is None else int(k)
    return torch.triu(x, offset) if upper else torch.tril(x, offset)


def one_hot(indices: Tensor, depth: Tensor, values: Tensor, *, axis: int = -1) -> Tensor:
    """Two values, the second one at indices."""
    count = int(depth)
    places = indices.to(torch.int64) % count
    inside = (indices >= -count) & (indices < count)
    hot = F.one_hot(places, count).to(torch.bool) & inside.unsqueeze(-1)
    return torch.where(hot, values[1], values[0]).movedim(-1, axis)


def top_k(x: Tensor, k: Tensor, *, axis: int = -1, largest: int = 1, sorted: int = 1) -> Any:
    """Largest elements and where they are; of equal ones the first."""
    del sorted
    values, places = torch.sort(x, dim=axis, descending=bool(largest), stable=True)
    return torch.narrow(values, axis, 0, int(k)), torch.narrow(places, axis, 0, int(k))


OPERATORS: Mapping[str, Callable[..., Any]] = {
    "Cast": cast, "CastLike": cast_like, "Concat": concat, "ConstantOfShape": constant_of_shape,
    "DepthToSpace": depth_to_space, "Dropout": dropout, "Expand": expand, "Flatten": flatten, "Gather": gather,
    "GatherElements": gather_elements, "GatherND": gather_nd, "Identity": identity, "OneHot": one_hot, "Pad": pad,
    "Range": range_, "Reshape": reshape, "ScatterElements": scatter_elements, "ScatterND": scatter_nd,
    "Shape": shape, "Size": size, "Slice": slice_, "SpaceToDepth": space_to_depth, "Split": split,
    "Squeeze": squeeze, "Tile": tile, "TopK": top_k, "Transpose": transpose, "Trilu": trilu,
    "Unsqueeze": unsqueeze,
}  # fmt: skip
"""By ONNX name."""
