"""Where what is fetched or measured is kept for the next time, in files that are whole, and leave when others come."""

from __future__ import annotations

import os
import re
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import numpy.typing as npt

_MOST_BYTES = 500_000_000
_KEY = re.compile("[0-9a-f]{40,}")
"""What names a file of the cache, before its suffix."""

T = TypeVar("T")


def cache_folder(name: str) -> Path:
    """The folder ``name`` under ``GRAPHOPT_CACHE``, else under the user's cache folder."""
    override = os.environ.get("GRAPHOPT_CACHE")
    if override:
        return Path(override) / name
    import platformdirs

    return Path(platformdirs.user_cache_dir("graphopt")) / name


def write_file(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Put a file into the cache, whole or not at all; the files used longest ago make room.

    Args:
        path: A key, as hexadecimal digits, and a suffix, in a folder that may hold files of others.

    Raises:
        OSError: The folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
        try:
            write(file)
            file.close()
            os.replace(file.name, path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise
    _make_room(path)


def read_archive(path: Path | None, unpack: Callable[[Mapping[str, Any]], T]) -> T | None:
    """What a ``.npz`` file holds, which is the last used then; None where there is none, or a damaged one."""
    if path is None or not path.is_file():
        return None
    import numpy as np

    try:
        # Opened here: numpy leaves the file open where it is no archive.
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            found = unpack(archive)
        path.touch()
        return found
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile, zlib.error, EOFError):
        # Cut off by a full disk or a power failure: made again, and overwritten.
        return None


def write_archive(path: Path, arrays: Mapping[str, npt.NDArray[Any]], *, compressed: bool) -> None:
    """Put a ``.npz`` file into the cache, as :func:`write_file`.

    Raises:
        OSError: The folder cannot be written.
    """
    import numpy as np

    save = np.savez_compressed if compressed else np.savez
    write_file(path, lambda file: save(file, allow_pickle=False, **arrays))


def _make_room(path: Path) -> None:
    """Leave the files that were used last, as far as they take 500 MB together, of those of the kind of ``path``.

    It stays itself, and so does everything that the cache has not named.
    """
    own = [file for file in path.parent.glob(f"*{path.suffix}") if _KEY.fullmatch(file.stem)]
    files = sorted(own, key=lambda file: file.stat().st_mtime, reverse=True)
    total = 0
    for file in files:
        total += file.stat().st_size
        if file != path and total > _MOST_BYTES:
            file.unlink(missing_ok=True)
