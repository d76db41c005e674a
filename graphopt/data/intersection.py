"""The inputs that two models both take, of which one may fix sizes that the other leaves open."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from graphopt.data.interface import TensorSpec

Sizes = dict[str, list["int | None"]]


def differences(
    first: Sequence[TensorSpec], second: Sequence[TensorSpec], names: tuple[str, str], *, shapes: bool = True
) -> list[str]:
    """In words, each tensor that only one side has, or that clashes in element type, rank or a fixed size.

    Args:
        names: How the two sides are called.
        shapes: Without it rank and sizes may clash: of outputs they are only what a file says of itself.
    """
    mine, theirs = ({spec.name: spec for spec in specs} for specs in (first, second))
    found = [
        f"{name!r} is {spec.type_text} in {names[0]} and {theirs[name].type_text} in {names[1]}"
        for name, spec in mine.items()
        if name in theirs and _clash(spec, theirs[name], shapes)
    ]
    found += [
        f"{name!r} ({spec.type_text}) is only in {names[0]}"
        for name, spec in mine.items()
        if name not in theirs
    ]
    found += [
        f"{name!r} ({spec.type_text}) is only in {names[1]}"
        for name, spec in theirs.items()
        if name not in mine
    ]
    return found


def intersection(first: Sequence[TensorSpec], second: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    """What both accept, in the order and with the names of ``first``.

    A dimension that one of them fixes is fixed; a dynamic one gets the size that its name has elsewhere.

    Args:
        second: Of the same tensors: :func:`differences` finds none.
    """
    others = {spec.name: spec for spec in second}
    known = [spec if spec.dims is not None else others[spec.name] for spec in first]
    sides = (known, [others[spec.name] for spec in known])
    sizes: Sizes = {spec.name: [None] * len(spec.dims or ()) for spec in known}
    for spec in (*sides[0], *sides[1]):
        for axis, dim in enumerate(spec.dims or ()):
            if isinstance(dim, int):
                sizes[spec.name][axis] = dim
    # A size found for a name may fix a dimension that goes by another name on the other side, and so on.
    while any([_spread(sizes, side) for side in sides]):
        pass
    return tuple(narrowed(spec, sizes[spec.name]) for spec in known)


def narrowed(spec: TensorSpec, sizes: Sequence[int | None]) -> TensorSpec:
    """The specification with these sizes; None leaves a dimension as it is."""
    if spec.dims is None:
        return spec
    pairs = zip(spec.dims, sizes, strict=True)
    return replace(spec, dims=tuple(dim if size is None else size for dim, size in pairs))


def _clash(one: TensorSpec, other: TensorSpec, shapes: bool) -> bool:
    if one.dtype != other.dtype:
        return True
    if not shapes or one.dims is None or other.dims is None:
        return False
    return len(one.dims) != len(other.dims) or any(
        isinstance(own, int) and isinstance(theirs, int) and own != theirs
        for own, theirs in zip(one.dims, other.dims, strict=True)
    )


def _spread(sizes: Sizes, specs: Sequence[TensorSpec]) -> bool:
    """Give a named dimension without a size the one that its name has elsewhere; whether there was any."""
    places = [
        (sizes[spec.name], axis, dim)
        for spec in specs
        for axis, dim in enumerate(spec.dims or ())
        if isinstance(dim, str)
    ]
    found = {dim: size for own, axis, dim in places if (size := own[axis]) is not None}
    todo = [(own, axis, found[dim]) for own, axis, dim in places if own[axis] is None and dim in found]
    for own, axis, size in todo:
        own[axis] = size
    return bool(todo)
