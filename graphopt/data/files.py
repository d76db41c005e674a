"""A folder of files that a transform reads: images, sound, text.

Each file becomes ``{"path": ..., "image": ...}``. The image is decoded by Pillow, to uint8 [height, width, 3], when the
transform asks for it; a transform that opens the path itself needs no Pillow.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from graphopt.errors import DataError

_ARRAYS = frozenset({".npz", ".npy"})
_KEYS = ("path", "image")


def is_folder(source: str | Path) -> bool:
    """Whether ``source`` is a folder of files other than arrays."""
    path = Path(source)
    return path.is_dir() and any(_files(path)) and not any(file.suffix in _ARRAYS for file in _files(path))


def entries(folder: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every file below ``folder``, by name, hidden ones left out."""
    for file in sorted(_files(folder)):
        yield str(file), File(file)


class File(Mapping[str, Any]):
    """A file as a transform sees it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __getitem__(self, name: str) -> Any:
        """The path as text, or the image.

        Raises:
            DataError: It is no image, or Pillow is not installed.
        """
        if name == "path":
            return str(self._path)
        if name == "image":
            return _image(self._path)
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(_KEYS)

    def __len__(self) -> int:
        return len(_KEYS)


def _files(folder: Path) -> Iterator[Path]:
    return (
        path
        for path in folder.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def _image(path: Path) -> Any:
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise DataError(
            f"cannot decode {path}: Pillow is not installed",
            hint="pip install pillow, or let the transform open the file at 'path' itself",
        ) from error
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise DataError(
            f"cannot decode {path} as an image: {error}",
            hint="take the file out of the folder, or correct it",
        ) from error
