"""Example, calibration and evaluation data from files or Python.

Accepted forms:

- ``data.npz``: one array for each input, by name. An array with one more dimension than the input holds one
  sample for each index of its first axis; otherwise all arrays together are one sample.
- a folder of ``.npz`` files: each as above, in the order of their names;
- a folder of ``.npy`` files named after the inputs (``x.npy``, ``mask.npy``): as one ``.npz``;
- a folder of folders of such ``.npy`` files: each inner folder as one sample;
- in Python, a mapping of arrays (one sample) or an iterable of mappings.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from graphopt.data.interface import Feeds, TensorSpec, check_feeds
from graphopt.errors import DataError, UnknownNameError


def samples(
    source: str | Path | Mapping[str, Any] | Iterable[Mapping[str, Any]],
    specs: tuple[TensorSpec, ...],
    *,
    optional: frozenset[str] = frozenset(),
) -> Iterator[Feeds]:
    """Samples from ``source``, each checked against the model's inputs ``specs``.

    Raises:
        DataError: The source does not exist, cannot be read, is empty or does not fit.
    """
    count = 0
    for origin, raw in _raw(source):
        for feeds in _split(raw, specs, origin):
            count += 1
            yield check_feeds(feeds, specs, optional=optional, origin=origin)
    if count == 0:
        raise DataError("the data hold no sample", hint="give at least one array for each input of the model")


def _raw(
    source: str | Path | Mapping[str, Any] | Iterable[Mapping[str, Any]],
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if isinstance(source, Mapping):
        yield "the data", source
        return
    if not isinstance(source, str | Path):
        for index, sample in enumerate(source):
            if not isinstance(sample, Mapping):
                raise DataError(
                    f"sample {index} of the data is a {type(sample).__name__}",
                    hint="yield a mapping from input name to array",
                )
            yield f"sample {index} of the data", sample
        return
    path = Path(source)
    if path.is_dir():
        yield from _folder(path)
    elif path.exists() and path.suffix == ".npz":
        yield str(path), _read_npz(path)
    elif path.exists():
        raise DataError(f"{path} is neither a .npz file nor a folder", hint="save it with numpy.savez")
    else:
        raise DataError(f"no data at {path}", hint="check the path given as --data")


def _folder(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    archives = sorted(path.glob("*.npz"))
    arrays = sorted(path.glob("*.npy"))
    folders = sorted(child for child in path.iterdir() if child.is_dir())
    if archives:
        for archive in archives:
            yield str(archive), _read_npz(archive)
    elif arrays:
        yield str(path), {file.stem: _read_npy(file) for file in arrays}
    elif folders:
        for folder in folders:
            inner = sorted(folder.glob("*.npy"))
            if inner:
                yield str(folder), {file.stem: _read_npy(file) for file in inner}
    else:
        raise DataError(
            f"the folder {path} holds no .npz and no .npy files",
            hint="name .npy files after the model's inputs",
        )


def _read_npz(path: Path) -> Mapping[str, Any]:
    try:
        # Opened here: numpy leaves the file open where it is no archive.
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise DataError(f"cannot read {path}: {error}", hint="save it again with numpy.savez") from error


def _read_npy(path: Path) -> Any:
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"cannot read {path}: {error}", hint="save it again with numpy.save") from error


def _split(raw: Mapping[str, Any], specs: tuple[TensorSpec, ...], origin: str) -> Iterator[Mapping[str, Any]]:
    ranks = {spec.name: None if spec.dims is None else len(spec.dims) for spec in specs}
    for name in raw:
        if name not in ranks:
            raise UnknownNameError("input", name, ranks, hint=f"found in {origin}")
    stacked = [
        name
        for name, array in raw.items()
        if ranks[name] is not None and np.ndim(array) == (ranks[name] or 0) + 1
    ]
    if not stacked or len(stacked) != len(raw):
        yield raw
        return
    lengths = {name: len(raw[name]) for name in stacked}
    if len(set(lengths.values())) != 1:
        raise DataError(
            f"{origin} hold different numbers of samples: {lengths}",
            hint="stack the same number of samples for each input",
        )
    for index in range(next(iter(lengths.values()))):
        yield {name: raw[name][index] for name in stacked}
