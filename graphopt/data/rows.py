"""A large array of a ``.npz`` file, read row by row, so that a file of many samples need not fit into memory."""

from __future__ import annotations

import math
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from graphopt.errors import DataError

LARGE = 32 << 20
"""Bytes from which on an array is read row by row."""


class Rows:
    """What an array looks like, and its rows; in order they are read once, without holding more than one.

    Args:
        path: The archive.
        name: Of the array in it.
        dtype, shape: As its header says; C order.
    """

    def __init__(self, path: Path, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        self.dtype = dtype
        self.shape = shape
        self.ndim = len(shape)
        self._path = path
        self._name = name
        self._next = 0
        self._archive: zipfile.ZipFile | None = None
        self._stream: Any = None

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int) -> npt.NDArray[Any]:
        """Row ``index``, from 0.

        Raises:
            DataError: The file cannot be read.
        """
        if not 0 <= index < len(self):
            raise IndexError(index)
        try:
            if self._stream is None or index < self._next:
                self._open()
            size = self.dtype.itemsize * math.prod(self.shape[1:])
            while self._next <= index:
                content = self._stream.read(size)
                self._next += 1
        except (OSError, ValueError, zipfile.BadZipFile, EOFError, zlib.error) as error:
            raise DataError(f"cannot read {self._path}: {error}", hint="write the file again") from error
        if len(content) != size:
            raise DataError(
                f"cannot read {self._path}: {self._name!r} is cut off", hint="write the file again"
            )
        if self._next == len(self):
            self._close()
        return np.frombuffer(content, self.dtype).reshape(self.shape[1:])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        """The whole array, for who needs it at once."""
        del copy
        return np.stack([self[index] for index in range(len(self))]).astype(dtype or self.dtype, copy=False)

    def _open(self) -> None:
        self._close()
        self._archive = zipfile.ZipFile(self._path)
        self._stream = self._archive.open(f"{self._name}.npy")
        read_header(self._stream)

    def _close(self) -> None:
        if self._archive is not None:
            self._stream.close()
            self._archive.close()
        self._archive = self._stream = None
        self._next = 0

    def __del__(self) -> None:
        self._close()


def read_header(stream: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether it is in Fortran order, and element type of the ``.npy`` file that begins here.

    Raises:
        ValueError: It is none.
    """
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(stream)
    return np.lib.format.read_array_header_2_0(stream)


def rows_of(path: Path, name: str) -> Rows | None:
    """The array ``name`` of an archive, where it is so large that it is better read row by row; else None."""
    with zipfile.ZipFile(path) as archive:
        try:
            member = archive.getinfo(f"{name}.npy")
            if member.file_size < LARGE:
                return None
            with archive.open(member) as stream:
                shape, fortran, dtype = read_header(stream)
        except (KeyError, ValueError):
            return None
    if fortran or dtype.hasobject or len(shape) < 2:
        return None
    return Rows(path, name, dtype, shape)
