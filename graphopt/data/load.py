"""Example, calibration and evaluation data from files or Python.

Accepted forms:

- ``data.npz``: one array for each input, by name. An array with one more dimension than the input holds one
  sample for each index of its first axis. So do batches of several rows where the model takes one row at a time, or
  where every label beside the inputs has a row for each. Otherwise all arrays together are one sample.
- a folder of ``.npz`` files: each as above, in the order of their names;
- a folder of ``.npy`` files named after the inputs (``x.npy``, ``mask.npy``): as one ``.npz``;
- a folder of folders of such ``.npy`` files: each inner folder as one sample;
- in Python, a mapping of arrays (one sample) or an iterable of mappings;
- for a model of one input also a ``.npy`` file, a folder of such with any names (a sample each), and in Python an array
  (one sample) or an iterable of arrays;
- an iterable of tuples, as PyTorch's DataLoader gives them: arrays in the order of the inputs, then labels, which are
  called ``labels``, ``labels_1`` and so on.

What lies beside a model's inputs are labels, for metrics (``graphopt.data.dataset``); here they are passed over.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.data.interface import Feeds, TensorSpec, check_feeds
from graphopt.data.rows import rows_of
from graphopt.errors import DataError, UnknownNameError

if TYPE_CHECKING:
    import onnx_ir as ir

_NPY_MAGIC = b"\x93NUMPY"
_NPZ_HINT = (
    "expected: numpy.savez(path, INPUT=array, ...), one array for each input of the model, by its name"
)

_IN_PYTHON = "give a mapping from input name to array, or an iterable of them"


def samples(
    source: str | Path | Mapping[str, Any] | Iterable[Any],
    specs: tuple[TensorSpec, ...],
    *,
    fixed: Mapping[str, ir.TensorProtocol] = MappingProxyType({}),
) -> Iterator[Feeds]:
    """Samples from ``source``, each checked against the model's inputs ``specs``.

    Args:
        fixed: Inputs that are constants now, with their value.

    Raises:
        DataError: The source does not exist, cannot be read, is empty or does not fit.
    """
    count = 0
    for origin, raw in entries(source, specs):
        check_fixed(raw, fixed, origin)
        for feeds in _split(raw, specs, origin):
            count += 1
            yield check_feeds(feeds, specs, origin=origin)
    if count == 0:
        raise DataError("the data hold no sample", hint="give at least one array for each input of the model")


def _split(raw: Mapping[str, Any], specs: tuple[TensorSpec, ...], origin: str) -> Iterator[Mapping[str, Any]]:
    """The samples that an entry holds, one by one, without labels."""
    inputs = _without_labels(raw, specs)
    labels = {name: array for name, array in raw.items() if name not in inputs}
    stack = stack_of(inputs, labels, specs, origin)
    if stack is None:
        yield inputs
        return
    for index in range(stack.rows):
        yield stack.sample(inputs, index)


def _without_labels(raw: Mapping[str, Any], specs: tuple[TensorSpec, ...]) -> Mapping[str, Any]:
    """The inputs of an entry that has them all; another one as it is, since an unknown name may be meant for one."""
    inputs = {spec.name: raw[spec.name] for spec in specs if spec.name in raw}
    return inputs if len(inputs) == len(specs) else raw


def check_fixed(raw: Mapping[str, Any], fixed: Mapping[str, ir.TensorProtocol], origin: str) -> None:
    """Hold what an entry says of inputs that are constants now to their value; one row or many.

    Raises:
        DataError: The compiled model would compute with another value.
    """
    for name in raw.keys() & fixed.keys():
        given, value = np.asarray(raw[name]), fixed[name].numpy()
        same_shape = given.shape[max(0, given.ndim - value.ndim) :] == value.shape
        if not same_shape or not (given == value).all():
            raise DataError(
                f"{origin}: {name!r} is an input with a default value, which is compiled as a constant, and the data "
                "hold another value of it",
                hint="leave it out of the data, or take the default out of the model to compile it as an input",
            )


def entries(
    source: str | Path | Mapping[str, Any] | Iterable[Any], specs: Sequence[TensorSpec]
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """What a source holds, entry by entry, and where each comes from.

    Args:
        specs: The model's inputs, in order, for what holds arrays without names.

    Raises:
        DataError: It does not exist, cannot be read, or holds something else.
    """
    names = [spec.name for spec in specs]
    if isinstance(source, Mapping):
        yield "the data", source
    elif isinstance(source, str | Path):
        yield from _files(Path(source), names)
    elif _is_array(source):
        yield "the data", _named((source,), names, "the data")
    elif isinstance(source, Iterable):
        for index, sample in enumerate(source):
            origin = f"sample {index} of the data"
            if not isinstance(sample, Mapping):
                sample = _named(sample if isinstance(sample, tuple | list) else (sample,), names, origin)
            yield origin, sample
    else:
        raise DataError(f"the data are of type {type(source).__name__}", hint=_IN_PYTHON)


def _is_array(value: object) -> bool:
    return hasattr(value, "__array__")


def _named(arrays: Sequence[Any], names: Sequence[str], origin: str) -> Mapping[str, Any]:
    """Arrays in the order of the inputs, and labels behind them."""
    other = next((array for array in arrays if not _is_array(array)), None)
    if other is not None:
        raise DataError(f"{origin} is a {type(other).__name__}", hint=_IN_PYTHON)
    if len(arrays) < len(names):
        raise DataError(
            f"{origin} holds {len(arrays)} arrays, and the model has {len(names)} inputs: {', '.join(names)}",
            hint="yield mappings from input name to array",
        )
    labels = [f"labels_{index}" if index else "labels" for index in range(len(arrays) - len(names))]
    return dict(zip((*names, *labels), arrays, strict=True))


def _files(path: Path, names: Sequence[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if path.is_dir():
        yield from _folder(path, names)
    elif path.exists() and path.suffix == ".npz":
        yield str(path), _read_npz(path)
    elif path.exists() and path.suffix == ".npy" and len(names) == 1:
        yield str(path), {names[0]: _read_npy(path)}
    elif path.exists():
        one_array = "put it in a folder, named after the input, and give the folder"
        raise DataError(
            f"{path} is neither a .npz file nor a folder",
            hint=one_array if path.suffix == ".npy" else _NPZ_HINT,
        )
    else:
        raise DataError(f"no data at {path}", hint="check the path given as --data")


def _folder(path: Path, names: Sequence[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    archives = sorted(path.glob("*.npz"))
    arrays = sorted(path.glob("*.npy"))
    folders = sorted(child for child in path.iterdir() if child.is_dir() and any(child.glob("*.npy")))
    if archives:
        for archive in archives:
            yield str(archive), _read_npz(archive)
    elif arrays and len(names) == 1 and names[0] not in {file.stem for file in arrays}:
        for file in arrays:
            yield str(file), {names[0]: _read_npy(file)}
    elif arrays:
        yield str(path), {file.stem: _read_npy(file) for file in arrays}
    elif folders:
        for folder in folders:
            yield str(folder), {file.stem: _read_npy(file) for file in sorted(folder.glob("*.npy"))}
    else:
        raise DataError(
            f"the folder {path} holds no .npz and no .npy files",
            hint="name .npy files after the model's inputs; of other files --transform FILE.py:FUNCTION makes arrays",
        )


def _read_npz(path: Path) -> Mapping[str, Any]:
    try:
        # Opened here: numpy leaves the file open where it is no archive.
        with open(path, "rb") as file:
            if not zipfile.is_zipfile(file):
                raise DataError(f"cannot read {path}: it is not a .npz file, or is cut off", hint=_NPZ_HINT)
            file.seek(0)
            with np.load(file, allow_pickle=False) as archive:
                return {name: rows_of(path, name) or _array(archive, name, path) for name in archive.files}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError, zlib.error) as error:
        raise DataError(f"cannot read {path}: {error}", hint=_NPZ_HINT) from error


def _array(archive: Any, name: str, path: Path) -> Any:
    """One member of the archive; numpy returns bytes for a file that is no array."""
    try:
        array = archive[name]
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise
        raise DataError(
            f"cannot read {path}: {name!r} is an array of Python objects",
            hint="save numbers, booleans or text: array.astype('float32')",
        ) from error
    if not isinstance(array, np.ndarray):
        raise DataError(f"cannot read {path}: {name!r} is no array", hint=_NPZ_HINT)
    return array


def _read_npy(path: Path) -> Any:
    try:
        with open(path, "rb") as file:
            if file.read(len(_NPY_MAGIC)) != _NPY_MAGIC:
                raise DataError(
                    f"cannot read {path}: it is not a .npy file", hint="expected: numpy.save(path, array)"
                )
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        what = "it holds Python objects" if "allow_pickle" in str(error) else error
        raise DataError(f"cannot read {path}: {what}", hint="save it again with numpy.save") from error


@dataclass(frozen=True)
class Stack:
    """How the samples of an entry lie in its arrays.

    Attributes:
        rows: How many there are.
        keeps_axis: Whether each is a batch of one, cut out of the first axis that the inputs have anyway.
        by_labels: Whether it is known from labels alone that rows are samples.
    """

    rows: int
    keeps_axis: bool = False
    by_labels: bool = False

    def sample(self, inputs: Mapping[str, Any], index: int) -> dict[str, Any]:
        """The inputs of one sample."""
        return {
            name: np.asarray(array[index])[None] if self.keeps_axis else array[index]
            for name, array in inputs.items()
        }


def stack_of(
    inputs: Mapping[str, Any], labels: Mapping[str, Any], specs: tuple[TensorSpec, ...], origin: str
) -> Stack | None:
    """How the samples of an entry are stacked; None where it is one sample.

    Args:
        labels: What lies beside the inputs. Where each has a row for each row of a batch, the rows are the samples.

    Raises:
        UnknownNameError: An array is no input.
        DataError: The arrays hold different numbers of samples.
    """
    known = {spec.name: spec.dims for spec in specs}
    for name in inputs:
        if name not in known:
            in_folder = "; files are named after inputs, and several samples are a folder for each"
            raise UnknownNameError(
                "input", name, known, hint=f"found in {origin}{in_folder if Path(origin).is_dir() else ''}"
            )
    shapes = {name: (np.shape(array), known[name]) for name, array in inputs.items()}
    more = [dims is not None and len(shape) == len(dims) + 1 for shape, dims in shapes.values()]
    if more and all(more):
        lengths = {name: shape[0] for name, (shape, _) in shapes.items()}
        if len(set(lengths.values())) != 1:
            raise DataError(
                f"{origin}: the inputs have different numbers of samples: {lengths}",
                hint="stack the same number of samples for each input",
            )
        return Stack(next(iter(lengths.values())))
    return _batch_of(list(shapes.values()), [np.shape(array) for array in labels.values()])


def _batch_of(
    inputs: list[tuple[tuple[int, ...], tuple[int | str | None, ...] | None]], labels: list[tuple[int, ...]]
) -> Stack | None:
    """Batches whose rows are taken for samples: the model takes one at a time, or each row has labels."""
    if not inputs or any(not dims or len(shape) != len(dims) for shape, dims in inputs):
        return None
    lengths, sizes = {shape[0] for shape, _ in inputs}, [dims[0] for _, dims in inputs if dims]
    if len(lengths) != 1 or any(isinstance(size, int) and size != 1 for size in sizes):
        return None
    (rows,) = lengths
    is_labelled = bool(labels) and all(shape[:1] == (rows,) for shape in labels)
    if rows < 2 or not (1 in sizes or is_labelled):
        return None
    return Stack(rows, keeps_axis=True, by_labels=1 not in sizes)
