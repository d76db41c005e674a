"""Ranges of a graph's tensors, from running data through it.

The samples are looked at twice. First without running anything: how many there are, which is the largest, whether they
differ at all, and a hash of their content. Then the graph runs on each, with as many tensors as outputs as fit into the
memory that may be used at once; where they do not all fit, groups of them take turns, each over all samples. Every
tensor is counted into a histogram (:mod:`graphopt.quant.histogram`), from which any rule takes its range
(:mod:`graphopt.quant.clipping`). No activation outlives its sample.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnx_ir as ir

from graphopt.data.interface import Feeds
from graphopt.errors import DataError, UsageError
from graphopt.ir import model as ir_model
from graphopt.ir.facts import Array
from graphopt.ir.hash import content_hash
from graphopt.quant.clipping import Rule, clipped
from graphopt.quant.histogram import Histogram
from graphopt.quant.ranges import Range
from graphopt.quant.store import Seen, Store
from graphopt.verify.session import Session

MEMORY = 2_000_000_000
"""Bytes beyond the model that calibration may take, where nothing else is said."""

LEAST_MEMORY = 64_000_000

# Activations that are not observed, a sample and the histograms take the rest.
_TAPPED_SHARE = 0.4
_LEAST_SAMPLES = 24
_LEAST_IN_TIME = 8
_WORK_OF_TENSOR = 1 << 19
"""Counting a tensor takes as long as so many bytes, however small it is."""
_SAVED_EVERY = 15.0
_WORTH_KEEPING = 2.0
_MOST_NAMED = 3
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?", re.IGNORECASE)
_UNITS = ("", "K", "M", "G", "T")


def parse_memory(given: str | int | None) -> int:
    """Bytes from ``"512M"``, ``"2G"``, ``"1.5GiB"`` or a number; decimal units but for those with an i.

    Raises:
        UsageError: It is none, or too little to observe anything.
    """
    if given is None:
        return MEMORY
    found = _SIZE.fullmatch(str(given).strip())
    if found is None:
        raise UsageError(f"cannot read the size {given!r}", hint="write --max-memory as 512M or 2G")
    number, unit, binary = found.groups()
    size = int(float(number) * (1024 if binary else 1000) ** _UNITS.index((unit or "").upper()))
    if size < LEAST_MEMORY:
        raise UsageError(
            f"{given} is too little memory to calibrate in", hint=f"give at least {LEAST_MEMORY // 10**6}M"
        )
    return size


T = TypeVar("T")


@dataclass(frozen=True)
class Calibration:
    """What was observed.

    Attributes:
        ranges: By tensor name.
        sizes: Most elements that a sample had, by tensor name.
        samples: Number of samples seen.
        method: Of choosing a range, with its parameter.
        notes: What the method could not be used for, and what was taken over from an earlier run.
        warnings: What is suspicious about the data.
        groups: Turns that the tensors took, so that they fit into memory.
        observed: What the ranges were taken from; None where they are given.
    """

    ranges: Mapping[str, Range] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    samples: int = 0
    method: str = "minmax"
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    groups: int = 1
    observed: Observed | None = None

    def by(self, rule: Rule) -> Calibration:
        """The same with ranges by another rule."""
        return self if self.observed is None else self.observed.calibration(rule)


@dataclass
class Observed:
    """Histograms of tensors over all samples.

    Attributes:
        histograms: By tensor name.
        samples: Number of samples.
        notes, warnings, groups: As of :class:`Calibration`.
    """

    histograms: dict[str, Histogram]
    samples: int
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    groups: int = 1

    def calibration(self, rule: Rule) -> Calibration:
        """The ranges that a rule takes from them."""
        ranges: dict[str, Range] = {}
        few: list[str] = []
        for name, seen in self.histograms.items():
            ranges[name], enough = clipped(seen, rule)
            if not enough:
                few.append(name)
        notes = list(self.notes)
        if few:
            named = ", ".join(few[:_MOST_NAMED]) + (", ..." if len(few) > _MOST_NAMED else "")
            notes.append(
                f"{len(few)} of {len(ranges)} tensors have too few elements for {rule}, so minmax was taken: {named}"
            )
        sizes = {name: seen.largest for name, seen in self.histograms.items()}
        return Calibration(
            ranges, sizes, self.samples, str(rule), tuple(notes), tuple(self.warnings), self.groups, self
        )


def calibrate(
    model: ir.Model,
    names: Sequence[str],
    data: Iterable[Feeds],
    *,
    rule: Rule | None = None,
    memory: int = MEMORY,
    threads: int = 0,
    cache: Path | None = None,
    known: Observed | None = None,
    progress: Callable[[str], None] = lambda text: None,
    work: int = 0,
    seconds: float = math.inf,
) -> Calibration:
    """Observe tensors and take ranges; arguments and errors as of :func:`observe`.

    Args:
        known: Of tensors that need not be observed any more.
    """
    kept = (
        {} if known is None else {name: known.histograms[name] for name in names if name in known.histograms}
    )
    fresh = [name for name in names if name not in kept]
    if known is not None and not fresh:
        return replace(known, histograms=kept).calibration(rule or Rule())
    seen = observe(
        model, fresh, data,
        memory=memory, threads=threads, cache=cache, progress=progress, work=work, seconds=seconds,
    )  # fmt: skip
    if known is not None:
        histograms = {name: kept.get(name) or seen.histograms[name] for name in names}
        seen = replace(known, histograms=histograms)
    return seen.calibration(rule or Rule())


def observe(
    model: ir.Model,
    names: Sequence[str],
    data: Iterable[Feeds],
    *,
    memory: int = MEMORY,
    threads: int = 0,
    cache: Path | None = None,
    progress: Callable[[str], None] = lambda text: None,
    work: int = 0,
    seconds: float = math.inf,
) -> Observed:
    """Count the numbers in tensors over all samples.

    Args:
        model: The float graph; left as it was.
        names: Of tensors of the main graph.
        data: Samples, iterated anew more than once.
        memory: Bytes beyond the model that this may take.
        cache: Folder where histograms are kept, for going on after an interruption and for the next time.
        work: Bytes of activations that are looked at, after which the rest of the samples is passed over: every n-th
            is taken, at least 24. 0 takes all.
        seconds: As ``work``, where samples take longer than their activations let expect; at least 8 are taken.

    Raises:
        DataError: There are no samples.
        TargetError: The graph does not run on one.
    """
    survey = _survey(data, hashed=cache is not None, progress=progress)
    key = "" if cache is None else graph_key(model, f"{survey.digest} {work} {math.isfinite(seconds)}")
    store = Store(cache, key)
    return _Observation(model, names, data, survey, store, memory, threads, progress, work, seconds).run()


def data_key(data: Iterable[Feeds], progress: Callable[[str], None] = lambda text: None) -> str:
    """Hexadecimal digits of the content of all samples.

    Raises:
        DataError: There are no samples.
    """
    return _survey(data, hashed=True, progress=progress).digest


def suspicions(data: Iterable[Feeds]) -> list[str]:
    """What is suspicious about samples, without running anything; as in the warnings of :func:`calibrate`.

    Raises:
        DataError: There are no samples.
    """
    return _survey(data, hashed=False, progress=lambda text: None).warnings


@dataclass
class _Survey:
    count: int
    largest: Feeds
    digest: str
    warnings: list[str]


def _survey(data: Iterable[Feeds], *, hashed: bool, progress: Callable[[str], None]) -> _Survey:
    whole = hashlib.sha256()
    largest: Feeds = {}
    most = -1
    count = 0
    first: Feeds = {}
    differ = False
    constants: dict[str, float | None] = {}
    for count, feeds in enumerate(data, 1):
        progress(f"looking at sample {count}")
        size = sum(np.size(array) for array in feeds.values())
        if size > most:
            most, largest = size, feeds
        if hashed:
            whole.update(_hash(feeds))
        if count > 1 and not differ:
            differ = not _same(first, feeds)
        elif count == 1:
            first = feeds
        for name, array in feeds.items():
            if constants.get(name, 0.0) is not None:
                constants[name] = _constant(array, constants.get(name))
    if count == 0:
        raise DataError("there is no sample to calibrate on", hint="give at least one with --data")
    warnings = []
    if count > 1 and not differ:
        warnings.append(f"all {count} samples of the calibration data are the same")
    warnings += [
        f"the input {name!r} is {number:g} throughout the calibration data"
        for name, number in constants.items()
        if number is not None
    ]
    return _Survey(count, largest, whole.hexdigest(), warnings)


def _hash(value: Any) -> bytes:
    """Of arrays, text, and mappings and sequences of these."""
    if isinstance(value, np.ndarray) and value.dtype != object:
        digest = hashlib.sha256(f"{value.dtype.str}{value.shape}".encode())
        digest.update(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
        return digest.digest()
    if isinstance(value, Mapping):
        parts = [_hash(part) for entry in sorted(value.items()) for part in entry]
    elif isinstance(value, list | tuple | np.ndarray):
        parts = [_hash(entry) for entry in value]
    else:
        parts = [repr(value).encode()]
    return hashlib.sha256(b"".join([type(value).__name__.encode(), *parts])).digest()


def _same(first: Feeds, second: Feeds) -> bool:
    return first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)


def _constant(array: Array, known: float | None) -> float | None:
    """The one number of a float array, where it is also the known one; None for any other."""
    if not isinstance(array, np.ndarray) or array.dtype.kind != "f" or array.size < 2:
        return None
    number = float(array.flat[0])
    return number if known in (None, number) and bool((array == array.flat[0]).all()) else None


def graph_key(model: ir.Model, data: str = "") -> str:
    """Of everything that histograms depend on: a content hash leaves out inner names, by which they are kept."""
    digest = hashlib.sha256(f"{content_hash(model)} {data}".encode())
    for node in model.graph:
        named = [value.name if value is not None else None for value in (*node.inputs, *node.outputs)]
        digest.update(repr((node.op_type, named)).encode())
    return digest.hexdigest()


@dataclass
class _Observation:
    model: ir.Model
    names: Sequence[str]
    data: Iterable[Feeds]
    survey: _Survey
    store: Store
    memory: int
    threads: int
    progress: Callable[[str], None]
    work: int = 0
    seconds: float = math.inf
    stride: int = 1
    paced: bool = False
    looked: int = 0
    kept: Seen = field(default_factory=dict)
    seen: Seen = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def run(self) -> Observed:
        self.kept = self.store.load()
        self.seen = {name: self.kept.get(name, (Histogram(), 0)) for name in self.names}
        todo = [name for name in self.names if self._done(name) < self.survey.count]
        sizes = self._sizes() if todo or self.work else {}
        if self.work:
            wanted = max(
                _LEAST_SAMPLES, self.work // (sum(sizes.values()) + _WORK_OF_TENSOR * len(sizes) + 1)
            )
            self.stride = max(1, self.survey.count // wanted)
        self._note_what_was_kept(len(todo))
        groups = self._groups(todo, sizes)
        started = time.monotonic()
        try:
            for number, group in enumerate(groups):
                self._watch(group, _Clock(number, len(groups), self.survey.count, self.progress), started)
        finally:
            # Also where the user stops it: the same command goes on from here.
            if groups:
                self._keep(started)
        histograms = {name: self.seen[name][0] for name in self.names}
        taken = self.looked if self.paced else -(-self.survey.count // self.stride)
        if self.stride > 1:
            self.notes.append(
                f"{taken} of {self.survey.count} samples were looked at, evenly spread: "
                "the option 'samples' takes more"
            )
        return Observed(histograms, taken, self.notes, self.survey.warnings, max(1, len(groups)))

    def _done(self, name: str) -> int:
        return self.seen[name][1]

    def _note_what_was_kept(self, todo: int) -> None:
        samples = max((samples for _, samples in self.seen.values()), default=0)
        if not todo and self.names:
            self.notes.append("taken over from an earlier run on the same graph and data")
        elif samples:
            whole = self.survey.count
            self.notes.append(f"an earlier run stopped after {samples} of {whole} samples; this one went on")

    def _sizes(self) -> dict[str, int]:
        """Bytes of each tensor, of those that an earlier run has seen too: which samples are taken depends on all."""
        self.progress("sizes of the activations")
        return activation_bytes(self.model, self.names, self.survey.largest, threads=self.threads)

    def _groups(self, names: Sequence[str], sizes: Mapping[str, int]) -> list[list[str]]:
        """Names in graph order, in turns that fit into memory on the largest sample."""
        return in_turns(names, lambda name: sizes[name], int(self.memory * _TAPPED_SHARE))

    def _watch(self, group: Sequence[str], clock: _Clock, started: float) -> None:
        """Add to the histograms of a group all samples that they lack."""
        done = min(map(self._done, group))
        taps = Taps(self.model, group, threads=self.threads)
        saved = time.monotonic()
        taken, began = 0, saved
        for index, feeds in enumerate(itertools.islice(self.data, done, self.survey.count), done + 1):
            if (index - 1) % self.stride:
                continue
            for name, array in taps.run(feeds):
                histogram, samples = self.seen[name]
                if samples < index:
                    # The old one stays in place until the new one is whole: an interruption may come at any point.
                    counted = histogram.copy()
                    counted.add(array)
                    self.seen[name] = (counted, index)
            taken += 1
            if clock.group == 0:
                # Reading a sample and passing others over takes time too; the first one allocates.
                if taken == 1:
                    began = time.monotonic()
                else:
                    self._pace((time.monotonic() - began) / (taken - 1) * clock.groups)
                self.looked = taken
            clock.tick(index - done, self.survey.count - done)
            if time.monotonic() - saved > _SAVED_EVERY:
                self._keep(started)
                saved = time.monotonic()
        for name in group:
            self.seen[name] = (self.seen[name][0], self.survey.count)

    def _pace(self, each: float) -> None:
        """Pass samples over where all of them would take too long, each so many seconds."""
        while each * self.survey.count / self.stride > self.seconds:
            if self.survey.count // (2 * self.stride) < _LEAST_IN_TIME:
                return
            self.stride *= 2
            self.paced = True

    def _keep(self, started: float) -> None:
        # With more time more would be looked at: what was paced is not kept as if it were all.
        if time.monotonic() - started > _WORTH_KEEPING and not self.paced:
            problem = self.store.save({**self.kept, **self.seen})
            if problem and problem not in self.notes:
                self.notes.append(problem)


def in_turns(items: Iterable[T], size: Callable[[T], int], most: int) -> list[list[T]]:
    """Items in their order, in groups whose sizes add up to at most ``most``; one that is larger stands alone."""
    groups: list[list[T]] = []
    room = 0
    for item in items:
        if not groups or size(item) > room:
            groups.append([])
            room = most
        groups[-1].append(item)
        room -= size(item)
    return groups


@dataclass
class _Clock:
    """Says which sample it is, of how many, and how long the rest will take."""

    group: int
    groups: int
    count: int
    progress: Callable[[str], None]
    started: float = field(default_factory=time.monotonic)

    def tick(self, done: int, todo: int) -> None:
        """After so many samples of those that there were to do."""
        rest = todo - done + (self.groups - self.group - 1) * self.count
        seconds = round((time.monotonic() - self.started) / done * rest)
        turn = f"part {self.group + 1} of {self.groups}, " if self.groups > 1 else ""
        left = f", {seconds // 60}:{seconds % 60:02d} left" if rest else ""
        self.progress(f"{turn}sample {self.count - todo + done} of {self.count}{left}")


class Taps:
    """A graph cut down to some of its tensors, in a session.

    Args:
        model: Left as it was.
        names: Of tensors of the main graph, inputs among them.
    """

    def __init__(self, model: ir.Model, names: Sequence[str], *, threads: int = 0) -> None:
        inputs = {value.name: value for value in model.graph.inputs}
        self._inputs = [name for name in names if name in inputs]
        # An input that has a default may be left out.
        self._defaults = {
            name: found.numpy() for name in self._inputs if (found := inputs[name].const_value) is not None
        }
        self._names = [name for name in names if name not in inputs]
        self._session: Session | None = None
        if self._names:
            self._session = Session(ir_model.leading_to(model, self._names), optimize="all", threads=threads)

    def run(self, feeds: Feeds) -> Iterator[tuple[str, Array]]:
        """The tensors of one sample by name, one after the other; they are views that may not be kept.

        Raises:
            TargetError: The graph does not run on it.
        """
        for name in self._inputs:
            yield name, feeds[name] if name in feeds else self._defaults[name]
        if self._session is not None:
            yield from self._session.run_one_by_one(feeds, self._names)


def activation_bytes(
    model: ir.Model, names: Sequence[str], feeds: Feeds, *, threads: int = 0
) -> dict[str, int]:
    """Size of each tensor on one sample, without holding them: the graph counts their elements itself."""
    copy = ir_model.leading_to(model, names)
    graph = copy.graph
    counters: dict[str, str] = {}
    for index, value in enumerate(list(graph.outputs)):
        node = ir.node("Size", [value], name=f"graphopt_size/{index}")
        node.outputs[0].name = f"graphopt_size_{index}"
        node.outputs[0].type = ir.TensorType(ir.DataType.INT64)
        node.outputs[0].shape = ir.Shape([])
        graph.append(node)
        graph.outputs[index] = node.outputs[0]
        counters[value.name or ""] = node.outputs[0].name
    found = Session(copy, threads=threads).run(feeds)
    return {name: 4 * int(found[counters[name]]) for name in names}


__all__ = [
    "MEMORY",
    "Calibration",
    "Observed",
    "Taps",
    "activation_bytes",
    "calibrate",
    "data_key",
    "graph_key",
    "in_turns",
    "observe",
    "parse_memory",
    "suspicions",
]
