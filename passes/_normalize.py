"""The core of a normalisation, ``(x - mean(x)) / sqrt(mean((x - mean(x))^2) + epsilon)``, and what surrounds it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from graphopt.ir import facts
from graphopt.passes._elementwise import SINGLE_OR_HALF
from graphopt.rewrite import Match, any_of, const, op, var
from graphopt.rewrite.pattern import AnyOf, Op, Pattern

X = var("x")
_MEAN = op("ReduceMean", X, const(name="mean_axes"), name="mean")
CENTRED = op("Sub", X, _MEAN, name="centred")
# torch.var recomputes the mean that the caller has already subtracted.
_CENTRED_AGAIN = op("Sub", X, op("ReduceMean", X, const(name="mean2_axes"), name="mean2"))


def _squared(value: Pattern) -> AnyOf:
    return any_of(op("Mul", value, value), op("Pow", value, const(2.0)))


def _spread(square: Pattern) -> tuple[AnyOf, AnyOf]:
    """Patterns of the root of the mean square, and of its reciprocal."""
    reduced = op("ReduceMean", square, const(name="square_axes"), name="mean_square")
    viewed = op("Reshape|Unsqueeze", reduced, var("view_shape"), name="view")
    stabilised = op("Add", any_of(reduced, viewed), const(name="epsilon"))
    root = any_of(op("Sqrt", stabilised), op("Pow", stabilised, const(0.5)))
    inverse = any_of(op("Reciprocal", root), op("Div", const(1.0), root), op("Pow", stabilised, const(-0.5)))
    return root, inverse


_STD, _INVERSE_STD = _spread(any_of(_squared(CENTRED), _squared(_CENTRED_AGAIN)))
_RMS, _INVERSE_RMS = _spread(_squared(X))

_GAIN = any_of(op("Mul", _INVERSE_STD, const(name="gamma")), _INVERSE_STD)
_AFFINE = op("Add", op("Mul", X, _GAIN), op("Sub", const(name="beta"), op("Mul", _MEAN, _GAIN)))
"""TensorFlow's ``x * inv + (beta - mean * inv)`` with ``inv = gamma * rsqrt(variance + epsilon)``."""

STANDARDISED: tuple[Op, ...] = (op("Div", CENTRED, _STD), op("Mul", CENTRED, _INVERSE_STD), _AFFINE)
ROOT_MEAN_SQUARE: tuple[Op, ...] = (op("Div", X, _RMS), op("Mul", X, _INVERSE_RMS))


def axes(match: Match) -> tuple[int, ...] | None:
    """The axes that all the reductions of the match share, ascending; None where they do not fit together.

    None of an empty tensor either, on which ONNX Runtime's kernels of normalisations may crash.
    """
    x = match.value("x")
    rank, shape = facts.rank(x), x.shape
    if rank is None or shape is None or 0 in shape.dims or x.dtype not in SINGLE_OR_HALF:
        return None
    if x.dtype != match.root.outputs[0].dtype or not _keeps_rank(match, rank):
        return None
    found: set[tuple[int, ...]] = set()
    for name in ("mean", "mean2", "square"):
        if f"{name}_axes" in match:
            given = facts.ints(match[f"{name}_axes"])
            if not given:
                return None
            found.add(tuple(sorted(axis % rank for axis in given)))
    if len(found) != 1:
        return None
    reduced = found.pop()
    if any(not facts.attribute(match.node(m), "keepdims", 1) for m in ("mean", "mean2") if m in match):
        return None
    if "view" in match:
        view = match.value("view").shape
        if view is None or len(view) != rank:
            return None
        for axis, (dim, wanted) in enumerate(zip(view, shape, strict=True)):
            known = isinstance(dim, int) or (isinstance(dim, ir.SymbolicDim) and dim.value is not None)
            if dim != (1 if axis in reduced else wanted) or not known:
                return None
    elif not facts.attribute(match.node("mean_square"), "keepdims", 1):
        return None
    return reduced


def epsilon(match: Match) -> float | None:
    """The number under the root, where it is one constant that is not negative."""
    number = match.scalar("epsilon")
    return None if number is None or number < 0 else number


def _keeps_rank(match: Match, rank: int) -> bool:
    """Whether no constant of the match, among them those that count as scalars, has more dimensions."""
    operands = (value for node in match.nodes for value in node.inputs)
    return all((facts.rank(value) or 0) <= rank for value in operands if facts.is_constant(value))


def trailing_axis(reduced: tuple[int, ...], rank: int) -> int | None:
    """The first of the axes where they are the last ones, else None."""
    return reduced[0] if reduced == tuple(range(reduced[0], rank)) else None


class Trailing(NamedTuple):
    """What is normalised: the last dimensions of a tensor.

    Attributes:
        axis: The first of them.
        rank: Of the tensor.
        sizes: Their sizes.
        epsilon: Added to the mean square.
    """

    axis: int
    rank: int
    sizes: tuple[int, ...]
    epsilon: float


def trailing(match: Match, x: ir.Value) -> Trailing | None:
    """What ``match`` normalises in ``x``; None where its axes or epsilon are not such.

    Raises:
        Refuse: The axes are not the last ones, or a size is not known.
    """
    reduced, small = axes(match), epsilon(match)
    if reduced is None or small is None:
        return None
    shape = facts.dims(x)
    assert shape is not None
    axis = trailing_axis(reduced, len(shape))
    if axis is None:
        raise match.refuse(f"the axes {reduced} are not the last ones")
    sizes = tuple(dim for dim in shape[axis:] if dim is not None)
    if len(sizes) != len(reduced):
        raise match.refuse("the size of a normalised dimension is not known")
    return Trailing(axis, len(shape), sizes, small)


def spread_to(array: facts.Array, wanted: tuple[int, ...], rank: int) -> facts.Array | None:
    """``array`` broadcast to the trailing shape ``wanted`` of a tensor of ``rank``; None where it reaches beyond."""
    if array.ndim > rank:
        return None
    extra = array.ndim - len(wanted)
    if extra > 0:
        if any(dim != 1 for dim in array.shape[:extra]):
            return None
        array = array.reshape(array.shape[extra:])
    try:
        return np.broadcast_to(array, wanted)
    except ValueError:
        return None


def by_channel(array: facts.Array, channels: int, rank: int) -> facts.Array | None:
    """``array`` as one number for each channel of an [N, C, ...] tensor of ``rank``; None where it is not that."""
    if array.ndim > rank:
        return None
    full: facts.Array = array.reshape([1] * (rank - array.ndim) + list(array.shape))
    if full.size not in (1, channels) or full.size != full.shape[1]:
        return None
    return np.broadcast_to(full.reshape(-1), (channels,))


def rounded(array: facts.Array, like: ir.Value) -> facts.Array:
    """``array`` (computed in float64) in the type of ``like``."""
    dtype = facts.numpy_dtype(like)
    assert dtype is not None
    return np.ascontiguousarray(array.astype(dtype))


def representable(array: facts.Array, dtype: np.dtype[np.generic]) -> bool:
    """Whether rounding ``array`` to ``dtype`` and back changes nothing."""
    with np.errstate(over="ignore"):
        return bool((array.astype(dtype).astype(np.float64) == array.astype(np.float64)).all())


def is_half_sandwich(match: Match) -> bool:
    """Whether ``inner`` normalises, in float32, what was cast from float16, for a root that casts back to it."""
    inner, half = match.node("inner"), ir.DataType.FLOAT16
    return (
        match.value("x").dtype == half
        and match.root.outputs[0].dtype == half
        and inner.outputs[0].dtype == ir.DataType.FLOAT
        and facts.attribute(inner, "stash_type", 1) == ir.DataType.FLOAT
    )
