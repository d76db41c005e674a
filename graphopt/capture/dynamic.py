"""Which dimensions a caller of a torch module asks to stay dynamic, and whether the exported graph grants it.

``torch.onnx.export`` tries several ways of tracing. Where the module specialises a dimension that was declared dynamic,
the last of them drops the declaration without a word, and the graph takes the example's size only.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from graphopt.errors import UsageError
from graphopt.ir import facts

if TYPE_CHECKING:
    import torch

_NOT_ASKED = ("AUTO", "STATIC")


def require_granted(
    model: ir.Model,
    module: torch.nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    dynamic_shapes: Any,
) -> None:
    """Check that each dimension declared dynamic is dynamic in the exported ``model``.

    Args:
        dynamic_shapes: As for ``torch.export.export``.

    Raises:
        UsageError: One is not; names the input, the axis and the name that was given to it.
    """
    bound = inspect.signature(module.forward).bind(*args, **kwargs).arguments
    specs = (
        dynamic_shapes
        if isinstance(dynamic_shapes, Mapping)
        else dict(zip(bound, dynamic_shapes, strict=False))
    )
    leaves = [leaf for name, value in bound.items() for leaf in _leaves(value, specs.get(name), name)]
    inputs = list(model.graph.inputs)
    if len(leaves) != len(inputs):
        asked = ", ".join(path for path, spec in leaves if any(_is_asked(dim) for _, dim in _dims(spec)))
        if asked:
            raise UsageError(
                f"the exported graph has {len(inputs)} inputs for {len(leaves)} tensors, so the dynamic dimensions of "
                f"{asked} cannot be found in it",
                hint="export it yourself and pass the program: torch.export.export(module, args, dynamic_shapes=...)",
            )
        return
    for value, (path, spec) in zip(inputs, leaves, strict=True):
        shape = facts.dims(value)
        for axis, dim in _dims(spec):
            if shape is not None and _is_asked(dim) and shape[axis] is not None:
                name = getattr(dim, "__name__", dim)
                label = f" ({name!r})" if isinstance(name, str) else ""
                raise UsageError(
                    f"dimension {axis} of input {path!r}{label} is declared dynamic, but the module works for size "
                    f"{shape[axis]} only: its code specialises it",
                    hint="leave it out of dynamic_shapes, or make the code independent of that size; "
                    "torch.export.export(module, args, dynamic_shapes=...) by itself tells where it is specialised",
                )


def _leaves(value: Any, spec: Any, path: str) -> Iterator[tuple[str, Any]]:
    """The tensors in an argument, in the exporter's order, each with the specification of its dimensions."""
    import torch

    if isinstance(value, torch.Tensor):
        yield path, spec
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(
                inner, spec.get(key) if isinstance(spec, Mapping) else None, f"{path}[{key!r}]"
            )
    elif isinstance(value, list | tuple):
        known = isinstance(spec, list | tuple) and len(spec) == len(value)
        for index, inner in enumerate(value):
            yield from _leaves(inner, spec[index] if known else None, f"{path}[{index}]")


def _dims(spec: Any) -> list[tuple[int, Any]]:
    """Axis and declaration of each dimension that ``spec`` of one tensor speaks of."""
    if isinstance(spec, Mapping):
        return list(spec.items())
    return list(enumerate(spec)) if isinstance(spec, list | tuple) else []


def _is_asked(dim: Any) -> bool:
    """Whether a declaration demands a dynamic dimension; ``Dim.AUTO`` leaves it to the exporter."""
    hint = getattr(getattr(dim, "type", None), "name", "")
    return dim is not None and not isinstance(dim, int) and hint not in _NOT_ASKED
