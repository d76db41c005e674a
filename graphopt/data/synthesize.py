"""Inputs made up from what the graph says about them, for verification without data.

Element types give normal floats and random booleans. Integers are harder: an index must stay within the table
that it selects from, and a mode or sample rate must be one of the values that the graph compares it with. Both
are read off the graph by following each integer input through operators that do not change its values.
What is made up this way shows rounding and structure; it says nothing about accuracy on real data, and every
report that rests on it says so.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.data.interface import Array, Feeds, TensorSpec, inputs_of, spec_of
from graphopt.ir import facts

_KEEPS_VALUES = frozenset(
    {
        "Cast",
        "Reshape",
        "Squeeze",
        "Unsqueeze",
        "Flatten",
        "Transpose",
        "Identity",
        "Expand",
        "Slice",
        "Concat",
        "Split",
    }
)
_MOST_VISITED = 400
_SEQUENCE_LENGTH = 3
GRAINS = (1, 8, 16)
"""Sizes of the patches that made-up floats are alike in, in the order in which they are tried: a detector may make
nothing of noise that has no edges longer than an element."""
_LEAST_PATCHES = 4
_BATCH_NAMES = ("batch", "n", "b", "bs")


@dataclass(frozen=True)
class IntegerRange:
    """Values that an integer input may take.

    Attributes:
        upper: Exclusive upper bound (from the tables it indexes), or None.
        choices: Values that the graph compares it with.
    """

    upper: int | None
    choices: tuple[int, ...]


def integer_range(value: ir.Value) -> IntegerRange:
    """What the readers of an integer input say about its values."""
    upper: int | None = None
    choices: dict[int, None] = {}
    seen: set[ir.Value] = set()
    stack = [value]
    while stack and len(seen) < _MOST_VISITED:
        current = stack.pop()
        if current in seen:
            continue
        seen.add(current)
        for node, index in current.uses():
            if node.op_type in ("Gather", "GatherElements", "GatherND") and index == 1:
                shape = facts.dims(node.inputs[0])
                axis = facts.attribute(node, "axis", 0)
                if shape and shape[axis] is not None:
                    upper = min(upper or shape[axis] or 1, shape[axis] or 1)
            elif node.op_type == "Equal":
                other = facts.constant(node.inputs[1 - index])
                depth = _one_hot_depth(other)
                if depth is not None:
                    upper = min(upper or depth, depth)
                elif other is not None and other.dtype.kind in "iu" and other.size <= 16:
                    choices |= dict.fromkeys(int(element) for element in other.reshape(-1))
            elif node.op_type == "OneHot" and index == 0:
                classes = facts.scalar(node.inputs[1])
                if classes is not None:
                    upper = min(upper or int(classes), int(classes))
            if node.op_type in _KEEPS_VALUES:
                stack += node.outputs
    return IntegerRange(upper, tuple(choices))


def _one_hot_depth(constant: Array | None) -> int | None:
    """The number of classes where a constant counts them: comparing with 0, 1, 2, ... is how one-hot codes are made."""
    if constant is None or constant.dtype.kind not in "iu" or constant.size < 2:
        return None
    return constant.size if np.array_equal(constant.reshape(-1), np.arange(constant.size)) else None


def array_for(
    value: ir.Value, shape: tuple[int, ...], rng: np.random.Generator, *, plain: bool = False, grain: int = 1
) -> Array:
    """A made-up array for one input.

    Args:
        grain: Of floats: how many neighbours are alike, along each axis but the first that holds several such patches.
        plain: Take zeros for integers and ones for everything else, where random values are not accepted.
    """
    dtype = value.dtype
    if dtype == ir.DataType.STRING:
        words = np.array(["a", "the model", "", "42"], dtype=object)
        return words[rng.integers(0, len(words), shape)] if shape else np.array("a", dtype=object)
    numpy_dtype = facts.numpy_dtype(value) or np.dtype(np.float32)
    if numpy_dtype.kind == "b":
        if plain:
            return np.ones(shape, dtype=bool)
        return np.asarray(rng.integers(0, 2, shape), dtype=bool)
    if numpy_dtype.kind in "iu":
        found = integer_range(value)
        if _is_flags(found, shape):
            return np.ones(shape, numpy_dtype) if plain else rng.integers(0, 2, shape).astype(numpy_dtype)
        if found.choices:
            return np.full(shape, found.choices[0] if plain else rng.choice(found.choices), numpy_dtype)
        if plain:
            return np.zeros(shape, numpy_dtype) if found.upper else np.ones(shape, numpy_dtype)
        if numpy_dtype.itemsize == 1 and found.upper is None:
            info = np.iinfo(numpy_dtype)
            return rng.integers(info.min, info.max, shape, dtype=numpy_dtype, endpoint=True)
        return np.asarray(rng.integers(0, found.upper or 2, shape), dtype=numpy_dtype)
    if plain:
        return np.ones(shape, numpy_dtype)
    return _patches(shape, rng, grain).astype(numpy_dtype)


def _patches(shape: tuple[int, ...], rng: np.random.Generator, grain: int) -> Array:
    """Normal numbers, alike in patches of ``grain`` elements along the axes that are long enough."""
    patched = [axis > 0 and size >= _LEAST_PATCHES * grain for axis, size in enumerate(shape)]
    coarse = [-(-size // grain) if long else size for size, long in zip(shape, patched, strict=True)]
    array = np.asarray(rng.standard_normal(coarse))
    if grain > 1:
        for axis in (axis for axis, long in enumerate(patched) if long):
            array = np.take(array, np.arange(shape[axis]) // grain, axis=axis)
    return array


def feeds_for(
    model: ir.Model,
    sizes: Mapping[str, int],
    seed: int,
    *,
    plain: bool = False,
    edge: bool = False,
    grain: int = 1,
) -> Feeds:
    """One set of inputs.

    Args:
        grain: As for :func:`array_for`.
        edge: Let the first row of what looks like a mask be zero throughout (a sample that is all padding), a case in
            which fused attention easily differs from what it stands for.
        sizes: Size of each dynamic dimension, by :func:`dimension_key`.
        seed: Of the random numbers; the same seed gives the same inputs.
    """
    rng = np.random.default_rng(seed)
    feeds: Feeds = {}
    for value in model.graph.inputs:
        assert value.name is not None
        if value.name in model.graph.initializers:
            continue
        shape = tuple(
            dim if isinstance(dim, int) else sizes[dimension_key(value.name, axis, dim)]
            for axis, dim in enumerate(spec_of(value).dims or ())
        )
        array = array_for(value, shape, rng, plain=plain, grain=grain)
        if edge and array.ndim >= 2 and _looks_like_mask(value):
            array[0] = 0
        if isinstance(value.type, ir.SequenceType):
            more = [array_for(value, shape, rng, plain=plain) for _ in range(_SEQUENCE_LENGTH - 1)]
            feeds[value.name] = [array, *more]  # type: ignore[assignment]
        else:
            feeds[value.name] = array
    return feeds


def _is_flags(found: IntegerRange, shape: Sequence[object]) -> bool:
    """Whether an array is compared with zero or one: a mask, of which comparing it names one value of the two."""
    return len(shape) >= 2 and bool(found.choices) and set(found.choices) <= {0, 1}


def _looks_like_mask(value: ir.Value) -> bool:
    if value.dtype == ir.DataType.BOOL:
        return True
    if value.dtype not in (ir.DataType.INT64, ir.DataType.INT32):
        return False
    found = integer_range(value)
    return _is_flags(found, spec_of(value).dims or ()) or (found.upper is None and not found.choices)


def dimension_key(name: str, axis: int, symbol: str | None) -> str:
    """How a dynamic dimension is called here: its own name, or input and axis where it has none."""
    return symbol if symbol is not None else f"{name}[{axis}]"


def dynamic_dimensions(specs: tuple[TensorSpec, ...]) -> dict[str, tuple[str, int, int]]:
    """The dynamic dimensions: key -> (input, axis, rank of that input), first occurrence."""
    found: dict[str, tuple[str, int, int]] = {}
    for spec in specs:
        for axis, dim in enumerate(spec.dims or ()):
            if not isinstance(dim, int):
                found.setdefault(dimension_key(spec.name, axis, dim), (spec.name, axis, len(spec.dims or ())))
    return found


def sizes_of(feeds: Feeds, specs: Sequence[TensorSpec]) -> dict[str, int]:
    """Size of each dynamic dimension in these inputs, by :func:`dimension_key`; inputs that are no arrays left out."""
    return {
        dimension_key(spec.name, axis, dim): feeds[spec.name].shape[axis]
        for spec in specs
        if isinstance(feeds.get(spec.name), np.ndarray)
        for axis, dim in enumerate(spec.dims or ())
        if not isinstance(dim, int)
    }


def resized(feeds: Feeds, specs: Sequence[TensorSpec], sizes: Mapping[str, int]) -> Feeds:
    """The same inputs with other sizes of dynamic dimensions: cut off, or begun again from the start.

    Args:
        sizes: By :func:`dimension_key`; dimensions that are not named stay as they are.
    """
    found = dict(feeds)
    for spec in specs:
        for axis, dim in enumerate(spec.dims or ()):
            size = None if isinstance(dim, int) else sizes.get(dimension_key(spec.name, axis, dim))
            array = found.get(spec.name)
            if size is not None and isinstance(array, np.ndarray) and array.shape[axis]:
                found[spec.name] = np.take(array, np.arange(size) % array.shape[axis], axis=axis)
    return found


def _stated_space(model: ir.Model) -> tuple[int, ...]:
    """Height and width of images by the metadata of the file (``imgsz``, as Ultralytics writes it); empty without."""
    try:
        stated = json.loads(model.metadata_props.get("imgsz", ""))
    except ValueError:
        return ()
    sides = stated if isinstance(stated, list) else [stated, stated]
    return (
        tuple(sides) if len(sides) == 2 and all(isinstance(side, int) and side > 0 for side in sides) else ()
    )


def size_candidates(model: ir.Model) -> Iterator[dict[str, int]]:
    """Sizes of the dynamic dimensions worth trying, the most likely first.

    A model may accept only some sizes (a multiple of its stride, at most its number of positions), which is
    found by running it. The first that runs is used for timing too, so it is of a usual size, or of the one that the
    model was trained for, where its metadata say so.
    """
    specs = inputs_of(model)
    dynamic = dynamic_dimensions(specs)
    if not dynamic:
        yield {}
        return

    dims_of = {
        spec.name: [dim if isinstance(dim, int) else None for dim in spec.dims or ()] for spec in specs
    }

    def kind(key: str) -> str:
        name, axis, of_rank = dynamic[key]
        if axis == 0 and (of_rank > 1 or key.lower().startswith(_BATCH_NAMES)):
            return "batch"
        if of_rank >= 4 and axis == 1:
            return "channel"
        if of_rank >= 4:
            return "space"
        if of_rank == 3 and axis == 1 and dims_of[name][2] is not None:
            return "middle"
        return "length"

    kinds = {key: kind(key) for key in dynamic}
    tables: tuple[dict[str, tuple[int, ...]], ...] = (
        {"batch": (1,), "channel": (3,), "space": _stated_space(model) or (224, 224), "length": (32,)},
        # What has a name of its own may have a size of its own, and something may hold only while sizes are equal.
        {"batch": (2, 3, 5), "channel": (3,), "space": (160, 96, 128, 192), "length": (19, 23, 13, 29, 17)},
        {"batch": (3,), "channel": (3,), "space": (64, 256), "length": (64, 48, 80, 40, 56)},
        {"batch": (2,), "channel": (3,), "space": (160, 96), "length": (19,)},
        {"batch": (3,), "channel": (3,), "space": (64, 256), "length": (64,)},
        {"batch": (1,), "channel": (1,), "space": (48, 320), "length": (128,)},
        {"batch": (1,), "channel": (3,), "space": (32, 32), "length": (7,)},
        {"batch": (1,), "channel": (3,), "space": (299, 299), "length": (512,)},
        {"batch": (2,), "channel": (4,), "space": (16, 24), "length": (160,)},
        {"batch": (1,), "channel": (1,), "space": (28, 28), "length": (1024,)},
        {"batch": (1,), "channel": (80,), "space": (80, 100), "length": (16000,)},
        {"batch": (1,), "channel": (1,), "space": (1, 1), "length": (1,)},
        {"batch": (4,), "channel": (2,), "space": (5, 6), "length": (3,)},
    )
    # The middle of three dimensions is a sequence's length, or the batch of a recurrent state [layers, batch, hidden].
    readings = ("length", "batch") if "middle" in kinds.values() else ("length",)
    tried: list[dict[str, int]] = []
    for table in tables:
        for reading in readings:
            turn = {name: itertools.cycle(values) for name, values in table.items()}
            turn["middle"] = turn["length"] if reading == "length" else itertools.cycle(table["batch"])
            sizes = {key: next(turn[kinds[key]]) for key in dynamic}
            if sizes not in tried:
                tried.append(sizes)
                yield sizes
