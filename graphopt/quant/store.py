"""What calibration has seen, on disk: an interrupted one goes on where it stopped, and a repeated one is not run again.

One ``.npz`` for each graph and data, in the folder ``calibration`` of the cache; nothing is pickled. The key is the
content of the graph, the names of what is observed, and the content of all samples, so a file is never out of date;
ranges are not in it, since every rule for them reads the same histograms. The oldest files go when there are too many.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from graphopt.cache import cache_folder, read_archive, write_archive
from graphopt.ir.facts import Array
from graphopt.quant.histogram import Histogram

FORMAT = 2
"""Raised when the same data would be counted in another way."""

_NUMBERS = ("low", "high", "elements", "zeros", "is_finite", "largest", "exponent")

Seen = dict[str, tuple[Histogram, int]]
"""Histogram and number of samples in it, by tensor name."""


def default_folder() -> Path:
    """Under ``GRAPHOPT_CACHE``, else under the user's cache folder."""
    return cache_folder("calibration")


class Store:
    """One calibration's file.

    Args:
        folder: None keeps nothing.
        key: Of graph and data, as hexadecimal digits.
    """

    def __init__(self, folder: Path | None, key: str) -> None:
        self._path = None if folder is None else folder / f"{key}.npz"

    def load(self) -> Seen:
        """What was kept; nothing where there is no such file or it cannot be read."""
        return read_archive(self._path, _unpack) or {}

    def save(self, seen: Mapping[str, tuple[Histogram, int]]) -> str:
        """Keep this in place of what was kept before; where the folder cannot be written, the reason comes back."""
        if self._path is None:
            return ""
        try:
            write_archive(self._path, _pack(seen), compressed=True)
        except OSError as error:
            return f"what was observed cannot be kept in {self._path.parent}: {error.strerror or error}"
        return ""


def _pack(seen: Mapping[str, tuple[Histogram, int]]) -> dict[str, Array]:
    packed: dict[str, Array] = {
        "names": np.array(json.dumps([FORMAT, list(seen)])),
        "samples": np.array([samples for _, samples in seen.values()], np.int64),
    }
    histograms = [histogram for histogram, _ in seen.values()]
    for name in _NUMBERS:
        packed[name] = np.array([getattr(histogram, name) for histogram in histograms])
    places = [np.flatnonzero(histogram.counts) for histogram in histograms]
    packed["lengths"] = np.array([len(found) for found in places], np.int64)
    packed["places"] = np.concatenate([*places, []]).astype(np.int64)
    counts = [histogram.counts[found] for histogram, found in zip(histograms, places, strict=True)]
    packed["counts"] = np.concatenate([*counts, []]).astype(np.int64)
    return packed


def _unpack(archive: Mapping[str, Any]) -> Seen:
    version, names = json.loads(str(archive["names"]))
    if version != FORMAT:
        return {}
    columns = {name: archive[name].tolist() for name in _NUMBERS}
    ends = np.cumsum(archive["lengths"])[:-1]
    places, counts = np.split(archive["places"], ends), np.split(archive["counts"], ends)
    found: Seen = {}
    for index, (name, samples) in enumerate(zip(names, archive["samples"].tolist(), strict=True)):
        histogram = Histogram(**{column: values[index] for column, values in columns.items()})
        histogram.counts[places[index]] = counts[index]
        found[name] = (histogram, samples)
    return found


__all__ = ["Seen", "Store", "default_folder"]
