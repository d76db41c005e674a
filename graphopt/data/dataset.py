"""Samples that can be read more than once, with what lies beside the inputs (labels) kept apart.

What is read from files is read again each time, so memory does not grow with the number of samples. A Python iterator
can be read only once: its samples are written to a temporary folder as they come.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from graphopt.data import load
from graphopt.data.interface import Array, Feeds, TensorSpec, check_feeds, load_feeds, save_feeds
from graphopt.errors import DataError

Source = str | Path | Mapping[str, Any] | Iterable[Mapping[str, Any]]
Transform = Callable[[Mapping[str, Any]], Mapping[str, Any]]

EVALUATED = 4
"""One sample in so many is held out for judging, the others calibrate."""


@dataclass(frozen=True)
class Sample:
    """One sample.

    Attributes:
        feeds: Every input by name.
        labels: What else the data hold for it, by name.
    """

    feeds: Feeds
    labels: dict[str, Array] = field(default_factory=dict)


class Dataset:
    """Samples of a source, checked against the model's inputs; iterating reads them anew.

    Args:
        source: As for :func:`graphopt.data.load.samples`. Entries that are no input of the model are labels.
        specs: The model's inputs.
        optional: Inputs that may be left out.
        transform: Applied to each entry before it is checked (an image to an array, a rescaling).

    Raises:
        DataError: On iteration, where the source cannot be read, is empty or does not fit.
    """

    def __init__(
        self,
        source: Source,
        specs: tuple[TensorSpec, ...],
        *,
        optional: frozenset[str] = frozenset(),
        transform: Transform | None = None,
    ) -> None:
        self._source = source
        self._specs = specs
        self._optional = optional
        self._transform = transform
        self._spool: tempfile.TemporaryDirectory[str] | None = None
        self._count: int | None = None

    def __iter__(self) -> Iterator[Sample]:
        if isinstance(self._source, Iterator):
            self._spool_all(self._source)
        count = 0
        for sample in self._read():
            count += 1
            yield sample
        self._count = count
        if count == 0:
            raise DataError(
                "the data hold no sample", hint="give at least one array for each input of the model"
            )

    def __len__(self) -> int:
        if self._count is None:
            self._count = sum(1 for _ in self)
        return self._count

    def calibration(self) -> Iterator[Feeds]:
        """Inputs that calibrate: all that are not held out, or all where there are too few."""
        few = len(self) < EVALUATED
        return (
            sample.feeds for index, sample in enumerate(self) if few or index % EVALUATED != EVALUATED - 1
        )

    def evaluation(self, most: int) -> tuple[list[Sample], bool]:
        """Samples to judge on, at most ``most``, and whether they are held out from calibration."""
        few = len(self) < EVALUATED
        held = (sample for index, sample in enumerate(self) if few or index % EVALUATED == EVALUATED - 1)
        return list(itertools.islice(held, most)), not few

    def _read(self) -> Iterator[Sample]:
        if self._spool is not None:
            for path in sorted(Path(self._spool.name).glob("*.npz")):
                yield self._checked(load_feeds(path), str(path))
            return
        for origin, raw in load.entries(self._source):
            for entry in self._apart(self._transformed(raw), origin):
                yield self._checked(entry, origin)

    def _transformed(self, raw: Mapping[str, Any]) -> Mapping[str, Any]:
        if self._transform is None:
            return raw
        try:
            return self._transform(raw)
        except Exception as error:
            raise DataError(
                f"the transform of the data fails: {type(error).__name__}: {error}",
                hint="correct that function",
            ) from error

    def _apart(self, raw: Mapping[str, Any], origin: str) -> Iterator[Mapping[str, Any]]:
        names = {spec.name for spec in self._specs}
        inputs = {name: array for name, array in raw.items() if name in names}
        labels = {name: np.asarray(array) for name, array in raw.items() if name not in names}
        if labels and not inputs:
            # Nothing fits: the usual message, which names what does.
            yield from load.split(raw, self._specs, origin)
            return
        feeds = list(load.split(inputs, self._specs, origin))
        stacked = len(feeds) > 1 or any(feeds[0][name] is not array for name, array in inputs.items())
        for name, array in labels.items():
            if stacked and (array.ndim == 0 or len(array) != len(feeds)):
                raise DataError(
                    f"{origin}: {name!r} is no input of the model, and as a label it has not one row for each of the "
                    f"{len(feeds)} samples",
                    hint="the inputs are " + ", ".join(sorted(names)),
                )
        for index, entry in enumerate(feeds):
            yield {**entry, **{name: array[index] if stacked else array for name, array in labels.items()}}

    def _checked(self, entry: Mapping[str, Any], origin: str) -> Sample:
        names = {spec.name for spec in self._specs}
        feeds = {name: array for name, array in entry.items() if name in names}
        labels = {name: np.asarray(array) for name, array in entry.items() if name not in names}
        return Sample(check_feeds(feeds, self._specs, optional=self._optional, origin=origin), labels)

    def _spool_all(self, source: Iterator[Mapping[str, Any]]) -> None:
        spool = tempfile.TemporaryDirectory(prefix="graphopt-")
        index = 0
        for origin, raw in load.entries(source):
            for entry in self._apart(self._transformed(raw), origin):
                sample = self._checked(entry, origin)
                save_feeds(Path(spool.name) / f"{index:08d}.npz", {**sample.feeds, **sample.labels})
                index += 1
        self._source, self._spool, self._transform = [], spool, None
