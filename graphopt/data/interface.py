"""A model's inputs and outputs as the caller sees them."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from graphopt.errors import DataError, UnknownNameError

if TYPE_CHECKING:
    import onnx_ir as ir

Array = npt.NDArray[Any]
Feeds = dict[str, Array]

_INNER = "graphopt:"
_OUTLINES = f"{_INNER}outlines"
_NOT_TENSORS = frozenset({"sequencetype", "optionaltype"})
_NUMPY_NAMES = {"float": "float32", "double": "float64", "string": "object"}


@dataclass(frozen=True)
class TensorSpec:
    """Name, element type and shape of one input or output.

    Attributes:
        name: As in the user's model.
        dtype: ONNX element type name in lower case ("float", "int64", "string", ...).
        dims: Sizes; a string names a dynamic dimension, None is a dynamic one without a name. None in
            place of the tuple: rank unknown.
    """

    name: str
    dtype: str
    dims: tuple[int | str | None, ...] | None

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """NumPy's element type (object for strings)."""
        try:
            return np.dtype(_NUMPY_NAMES.get(self.dtype, self.dtype))
        except TypeError:
            # bfloat16, the float8 and 4-bit types: known to ml_dtypes, through onnx-ir.
            import onnx_ir as ir

            return ir.DataType[self.dtype.upper()].numpy()

    @property
    def type_text(self) -> str:
        """Element type and shape for people: ``float[n,3,?]``; ``[...]`` where the rank is unknown."""
        if self.dims is None:
            return f"{self.dtype}[...]"
        return f"{self.dtype}[{','.join('?' if dim is None else str(dim) for dim in self.dims)}]"

    def __str__(self) -> str:
        return f"{self.name}: {self.type_text}"


def spec_of(value: ir.Value) -> TensorSpec:
    """The specification of a graph input or output."""
    import onnx_ir as ir

    from graphopt.ir.shapes import size_or_name

    dtype = "undefined" if value.dtype is None else value.dtype.name.lower()
    if not isinstance(value.type, ir.TensorType):
        dtype = "undefined" if value.type is None else type(value.type).__name__.lower()
    dims: tuple[int | str | None, ...] | None = None
    if value.shape is not None:
        dims = tuple(map(size_or_name, value.shape))
    return TensorSpec(value.name or "", dtype, dims)


def inputs_of(model: ir.Model) -> tuple[TensorSpec, ...]:
    """The inputs that a caller feeds, in order."""
    return tuple(spec_of(value) for value in model.graph.inputs)


def is_static(model: ir.Model) -> bool:
    """Whether each input has one size only."""
    return all(
        spec.dims is not None and all(isinstance(dim, int) for dim in spec.dims) for spec in inputs_of(model)
    )


def optional_inputs_of(model: ir.Model) -> frozenset[str]:
    """Inputs that have a default value (an initializer of the same name)."""
    return frozenset(
        value.name for value in model.graph.inputs if value.name in model.graph.initializers and value.name
    )


def outputs_of(model: ir.Model) -> tuple[TensorSpec, ...]:
    """The outputs, in order; a name that ONNX's shape inference made up for a dimension is no name."""
    from graphopt.ir.shapes import is_invented

    known = {dim for spec in inputs_of(model) for dim in spec.dims or () if isinstance(dim, str)}

    def named(dim: int | str | None) -> int | str | None:
        made_up = isinstance(dim, str) and is_invented(dim) and dim not in known
        return None if made_up else dim

    return tuple(
        spec if spec.dims is None else replace(spec, dims=tuple(map(named, spec.dims)))
        for spec in map(spec_of, model.graph.outputs)
    )


def check_feeds(
    feeds: Mapping[str, Any],
    specs: tuple[TensorSpec, ...],
    *,
    origin: str = "the inputs",
) -> Feeds:
    """``feeds`` as arrays that fit ``specs``.

    Raises:
        DataError: A missing input, a wrong element type, rank or size; dynamic dimensions of one name must agree.
        UnknownNameError: A name that is no input.
    """
    known = {spec.name for spec in specs}
    for name in feeds:
        if name not in known:
            raise UnknownNameError("input", name, known, hint=f"found in {origin}")
    checked: Feeds = {}
    sizes: dict[str, tuple[int, str]] = {}
    for spec in specs:
        if spec.name not in feeds:
            raise DataError(f"{origin}: no array for input {spec.name!r}", hint=f"the model expects {spec}")
        if spec.dtype in _NOT_TENSORS:
            checked[spec.name] = feeds[spec.name]
            continue
        array = np.asarray(feeds[spec.name])
        if spec.dtype == "string":
            array = array.astype(object)
        elif array.dtype != spec.numpy_dtype:
            raise DataError(
                f"input {spec.name!r} has type {array.dtype}, but the model expects {spec.numpy_dtype}",
                hint=f"convert it in {origin}: array.astype({str(spec.numpy_dtype)!r})",
            )
        if spec.dims is not None:
            if array.ndim != len(spec.dims):
                raise DataError(
                    f"input {spec.name!r} has shape {list(array.shape)}, but the model expects {spec}",
                    hint=f"give it {len(spec.dims)} dimensions in {origin}",
                )
            for axis, (have, want) in enumerate(zip(array.shape, spec.dims, strict=True)):
                if isinstance(want, int) and have != want:
                    raise DataError(
                        f"input {spec.name!r} has shape {list(array.shape)}, but the model expects {spec}: "
                        f"dimension {axis} is {have}, not {want}",
                        hint=f"correct it in {origin}; another size needs a model that leaves it open (torch: "
                        "dynamic_shapes), compiled with it open or for that size (--input-shape)",
                    )
                if isinstance(want, str):
                    seen = sizes.setdefault(want, (have, spec.name))
                    if seen[0] != have:
                        raise DataError(
                            f"dimension {want!r} is {seen[0]} in input {seen[1]!r} but {have} in {spec.name!r}",
                            hint=f"make them equal in {origin}",
                        )
        checked[spec.name] = array
    return checked


def save_feeds(path: Path, feeds: Mapping[str, Any]) -> None:
    """Write arrays by name to a ``.npz`` file; strings as fixed-width text, since nothing is pickled.

    What is no array (a sequence, a map, a missing optional) is written as an outline in JSON and the arrays in it.
    """
    # By hand, since numpy.savez takes the names as arguments and has some of its own ("file").
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name, array in _as_arrays(feeds).items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)


def load_feeds(path: Path) -> Feeds:
    """Read what :func:`save_feeds` wrote."""
    with np.load(path, allow_pickle=False) as archive:
        return _from_arrays({name: archive[name] for name in archive.files})


def send_feeds(path: Path, feeds: Mapping[str, Any]) -> None:
    """Write arrays for another process to read, several times as fast as :func:`save_feeds`: a ``.npy`` file behind the
    other, the first of which has the names."""
    arrays = _as_arrays(feeds)
    with open(path, "wb") as file:
        for array in (np.array(json.dumps(list(arrays))), *arrays.values()):
            np.lib.format.write_array(file, np.asanyarray(array), allow_pickle=False)


def receive_feeds(path: Path) -> Feeds:
    """Read what :func:`send_feeds` wrote."""
    with open(path, "rb") as file:
        names = json.loads(str(np.lib.format.read_array(file, allow_pickle=False)))
        return _from_arrays({name: np.lib.format.read_array(file, allow_pickle=False) for name in names})


def _as_arrays(feeds: Mapping[str, Any]) -> dict[str, Array]:
    plain: dict[str, Any] = {}
    outlines: dict[str, Any] = {}
    for name, value in feeds.items():
        if isinstance(value, np.ndarray | np.generic):
            plain[name] = _without_objects(np.asarray(value))
        else:
            outlines[name] = _outline(value, plain)
    if outlines:
        plain[_OUTLINES] = np.array(json.dumps(outlines))
    return plain


def _from_arrays(arrays: Mapping[str, Array]) -> Feeds:
    found = {name: _with_objects(array) for name, array in arrays.items() if name != _OUTLINES}
    outlines = json.loads(str(arrays[_OUTLINES])) if _OUTLINES in arrays else {}
    feeds = {name: array for name, array in found.items() if not name.startswith(_INNER)}
    feeds.update((name, _from_outline(outline, found)) for name, outline in outlines.items())
    return feeds


def _without_objects(array: Array) -> Array:
    return array.astype(str) if array.dtype == object else array


def _with_objects(array: Array) -> Array:
    return array.astype(object) if array.dtype.kind == "U" else array


def _outline(value: Any, arrays: dict[str, Any]) -> Any:
    if isinstance(value, np.ndarray):
        name = f"{_INNER}{len(arrays)}"
        arrays[name] = _without_objects(value)
        return {"array": name}
    if isinstance(value, list | tuple):
        return {"list": [_outline(element, arrays) for element in value]}
    if isinstance(value, dict):
        return {"map": [[_scalar(key), _outline(element, arrays)] for key, element in value.items()]}
    return {"value": _scalar(value)}


def _scalar(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _from_outline(outline: dict[str, Any], arrays: Mapping[str, Array]) -> Any:
    kind, content = next(iter(outline.items()))
    if kind == "array":
        return arrays[content]
    if kind == "list":
        return [_from_outline(element, arrays) for element in content]
    if kind == "map":
        return {key: _from_outline(element, arrays) for key, element in content}
    return content


def spread(samples: Sequence[Feeds], most: int) -> list[Feeds]:
    """At most so many of these samples, evenly from the first to the last."""
    if len(samples) <= most:
        return list(samples)
    return [samples[index * len(samples) // most] for index in range(most)]
