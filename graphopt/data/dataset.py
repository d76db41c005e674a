"""Samples that can be read more than once, with what lies beside the inputs (labels) kept apart.

What is read from files is read again each time, so memory does not grow with the number of samples. A Python iterator
can be read only once: its samples are written to a temporary folder as they come.
"""

from __future__ import annotations

import itertools
import shutil
import tempfile
import time
import weakref
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.data import files, load
from graphopt.data.functions import user_code
from graphopt.data.interface import Array, Feeds, TensorSpec, check_feeds, load_feeds, save_feeds
from graphopt.data.rows import Rows
from graphopt.errors import DataError, GraphoptError

if TYPE_CHECKING:
    import onnx_ir as ir

Source = str | Path | Mapping[str, Any] | Iterable[Any]
Transform = Callable[[Mapping[str, Any]], Mapping[str, Any]]

HELD_OUT = 4
"""One sample in so many is held out for judging, the others calibrate."""
HELD_OUT_TO_COUNT = 2
"""The same for a metric that counts: each sample held out makes it finer, while ranges settle on a few dozen."""
_COUNTING_SECONDS = 10.0
"""For finding out how many samples there are; of those beyond it none is picked."""


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
        fixed: Inputs that are constants now, with their value.
        transform: Applied to each entry before it is checked (an image to an array, a rescaling).
        held_out: One sample in so many is held out for judging.

    Attributes:
        cuts_batches: Whether rows of a batch were taken for samples, as far as was read, because labels have as many.

    Raises:
        DataError: On iteration, where the source cannot be read, is empty or does not fit.
    """

    def __init__(
        self,
        source: Source,
        specs: tuple[TensorSpec, ...],
        *,
        fixed: Mapping[str, ir.TensorProtocol] = MappingProxyType({}),
        transform: Transform | None = None,
        held_out: int = HELD_OUT,
    ) -> None:
        self.held_out = held_out
        self._source = source
        self._specs = specs
        self._fixed = fixed
        self._transform = transform
        self._spool: Path | None = None
        self._few: bool | None = None
        self._count: int | None = None
        self.cuts_batches = False

    def __iter__(self) -> Iterator[Sample]:
        if isinstance(self._source, Iterator):
            self._spool_all(self._source)
        count = 0
        for sample in self._read():
            count += 1
            yield sample
        if count == 0:
            raise DataError(
                "the data hold no sample", hint="give at least one array for each input of the model"
            )

    def calibration(self, most: int = 0) -> Calibrating:
        """Inputs that calibrate: all that are not held out, or all where there are too few.

        Args:
            most: How many at most, picked from all over the data; 0 for all.
        """
        return Calibrating(self, most)

    def evaluation(self, most: int) -> tuple[Iterator[Sample], bool]:
        """Samples to judge on, read as they are asked for, and whether they are held out.

        Args:
            most: How many at most, picked from all over the data.
        """
        return self.chosen(most, judging=True), not self.are_few

    def chosen(self, most: int, *, judging: bool) -> Iterator[Sample]:
        """Samples that judge, or that calibrate: those of a random choice where there are more than ``most``.

        Data often come class by class, or recording by recording: the first of them would stand for one alone.
        """
        if not most:
            yield from (sample for index, sample in enumerate(self) if self._is_for(index, judging=judging))
            return
        picked = self._picked(most, judging=judging)
        read = itertools.islice(self, max(picked, default=-1) + 1)
        yield from (sample for index, sample in enumerate(read) if index in picked)

    def number(self, *, judging: bool) -> int:
        """How many samples judge, or calibrate, as far as they are read in ten seconds."""
        return len(self._indices(judging=judging))

    def _indices(self, *, judging: bool) -> list[int]:
        return [index for index in range(self._size) if self._is_for(index, judging=judging)]

    def _picked(self, most: int, *, judging: bool) -> frozenset[int]:
        found = self._indices(judging=judging)
        if len(found) <= most:
            return frozenset(found)
        return frozenset(np.random.default_rng(0).choice(found, most, replace=False).tolist())

    def _is_for(self, index: int, *, judging: bool) -> bool:
        return self.are_few or self.is_held_out(index) == judging

    @property
    def _size(self) -> int:
        """Number of samples, as far as they are read in ten seconds."""
        if self._count is None:
            started = time.monotonic()
            for count, _ in enumerate(self, 1):
                self._count = count
                if time.monotonic() - started > _COUNTING_SECONDS:
                    break
        return self._count or 0

    @property
    def are_few(self) -> bool:
        """Whether there are too few samples to hold some out."""
        if self._few is None:
            self._few = sum(1 for _ in itertools.islice(self, HELD_OUT)) < HELD_OUT
        return self._few

    def is_held_out(self, index: int) -> bool:
        """Whether the sample of this number judges, where there are enough: any one of each ``held_out`` in a row.

        Always the last of them would be always of one class, where classes take turns.
        """
        turn, place = divmod(index, self.held_out)
        return place == zlib.crc32(turn.to_bytes(8, "little")) % self.held_out

    def _read(self) -> Iterator[Sample]:
        if self._spool is not None:
            for path in sorted(self._spool.glob("*.npz")):
                yield self._checked(load_feeds(path), str(path))
            return
        for origin, raw in self._entries():
            for place, entry in self._apart(self._transformed(raw, origin), origin):
                yield self._checked(entry, place)

    def _entries(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """What the transform is to be given, or what holds arrays already."""
        if (
            self._transform is not None
            and isinstance(self._source, str | Path)
            and files.is_folder(self._source)
        ):
            return files.entries(Path(self._source))
        return load.entries(self._source, self._specs)

    def _transformed(self, raw: Mapping[str, Any], origin: str) -> Mapping[str, Any]:
        if self._transform is None:
            return raw
        if not isinstance(raw, files.File):
            raw = {
                name: np.asarray(array) if isinstance(array, Rows) else array for name, array in raw.items()
            }
        try:
            with user_code():
                made = self._transform(raw)
        except GraphoptError:
            raise
        except (Exception, SystemExit) as error:
            raise DataError(
                f"{origin}: the transform of the data fails: {type(error).__name__}: {error}",
                hint="correct that function",
            ) from error
        if not isinstance(made, Mapping):
            raise DataError(
                f"{origin}: the transform of the data gave a {type(made).__name__}",
                hint="let it return a mapping from input name to array",
            )
        return made

    def _apart(self, raw: Mapping[str, Any], origin: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """The samples of an entry with their labels, and where each comes from."""
        load.check_fixed(raw, self._fixed, origin)
        names = {spec.name for spec in self._specs}
        inputs = {name: array for name, array in raw.items() if name in names}
        labels = {name: np.asarray(array) for name, array in raw.items() if name not in names}
        # Where nothing fits, the usual message names what does.
        stack = load.stack_of(inputs or raw, labels, self._specs, origin)
        if stack is None:
            yield origin, raw
            return
        self.cuts_batches = self.cuts_batches or stack.by_labels
        for name, array in labels.items():
            if array.ndim == 0 or len(array) != stack.rows:
                raise DataError(
                    f"{origin}: {name!r} is no input of the model, and as a label it has not one row for each of the "
                    f"{stack.rows} samples",
                    hint="the inputs are " + ", ".join(sorted(names)),
                )
        for index in range(stack.rows):
            rows = {name: array[index] for name, array in labels.items()}
            yield f"{origin}, row {index}", {**stack.sample(inputs, index), **rows}

    def _checked(self, entry: Mapping[str, Any], origin: str) -> Sample:
        names = {spec.name for spec in self._specs}
        feeds = {name: array for name, array in entry.items() if name in names}
        labels = {name: np.asarray(array) for name, array in entry.items() if name not in names}
        sample = Sample(check_feeds(feeds, self._specs, origin=origin), labels)
        for name, array in sample.feeds.items():
            if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
                continue
            if array.size == 0:
                raise DataError(f"{origin}: the input {name!r} is empty", hint="leave that sample out")
            if not np.isfinite(array).all():
                what = "NaN" if np.isnan(array).any() else "infinity"
                raise DataError(
                    f"{origin}: the input {name!r} holds {what}", hint="leave that sample out, or clean it"
                )
        return sample

    def _spool_all(self, source: Iterator[Mapping[str, Any]]) -> None:
        spool = Path(tempfile.mkdtemp(prefix="graphopt-"))
        weakref.finalize(self, shutil.rmtree, spool, ignore_errors=True)
        index = 0
        for origin, raw in load.entries(source, self._specs):
            for place, entry in self._apart(self._transformed(raw, origin), origin):
                sample = self._checked(entry, place)
                save_feeds(spool / f"{index:08d}.npz", {**sample.feeds, **sample.labels})
                index += 1
        self._source, self._spool, self._transform = [], spool, None


@dataclass(frozen=True)
class Calibrating:
    """The inputs that calibrate; iterating reads them anew.

    Attributes:
        dataset: Where they come from.
        most: How many at most, picked from all over the data; 0 for all.
    """

    dataset: Dataset
    most: int = 0

    def __iter__(self) -> Iterator[Feeds]:
        return (sample.feeds for sample in self.dataset.chosen(self.most, judging=False))
