"""Ranges of a graph's tensors, from running data through it. Streams: no activation outlives its sample."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import onnx_ir as ir

from graphopt.data.interface import Feeds
from graphopt.errors import DataError
from graphopt.ir import model as ir_model
from graphopt.ir.facts import Array
from graphopt.quant.ranges import Range
from graphopt.verify.session import Session


class Observer(Protocol):
    """Looks at one tensor, sample by sample."""

    def add(self, array: Array) -> None:
        """Take note of one sample's values (float32, any shape)."""

    def range(self) -> Range:
        """The range to quantize."""


@dataclass
class MinMax:
    """Everything that was seen."""

    low: float = np.inf
    high: float = -np.inf

    def add(self, array: Array) -> None:
        """As :class:`Observer`."""
        if array.size:
            self.low = min(self.low, float(array.min()))
            self.high = max(self.high, float(array.max()))

    def range(self) -> Range:
        """As :class:`Observer`."""
        return Range(self.low, self.high) if self.low <= self.high else Range(0.0, 0.0)


@dataclass(frozen=True)
class Calibration:
    """What was observed.

    Attributes:
        ranges: By tensor name.
        sizes: Most elements that a sample had, by tensor name.
        samples: Number of samples seen.
        method: Of choosing a range.
    """

    ranges: Mapping[str, Range] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    samples: int = 0
    method: str = "minmax"


def calibrate(
    model: ir.Model,
    names: Sequence[str],
    data: Iterable[Feeds],
    *,
    observer: Callable[[], Observer] = MinMax,
    method: str = "minmax",
    threads: int = 0,
    progress: Callable[[str], None] = lambda text: None,
) -> Calibration:
    """Observe tensors over all samples.

    Args:
        model: The float graph; left as it was.
        names: Of tensors of the main graph.

    Raises:
        DataError: There are no samples, or a sample makes NaN.
    """
    session = Session(tapped(model, names), optimize="all", threads=threads)
    observers = {name: observer() for name in names}
    sizes = dict.fromkeys(names, 0)
    count = 0
    for feeds in data:
        _check(feeds, count)
        for name, array in session.run(feeds, list(names)).items():
            observers[name].add(array)
            sizes[name] = max(sizes[name], int(array.size))
        count += 1
        progress(f"sample {count}")
    if count == 0:
        raise DataError("there is no sample to calibrate on", hint="give at least one with --data")
    return Calibration({name: seen.range() for name, seen in observers.items()}, sizes, count, method)


def _check(feeds: Feeds, index: int) -> None:
    for name, array in feeds.items():
        if isinstance(array, np.ndarray) and array.dtype.kind == "f" and not np.isfinite(array).all():
            raise DataError(
                f"sample {index} of the calibration data holds NaN or infinity in {name!r}",
                hint="leave it out, or clean the data",
            )


def tapped(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """A copy of ``model`` whose outputs also include the tensors of these names."""
    copy = ir_model.clone(model)
    values = {value.name: value for node in copy.graph for value in node.outputs}
    values.update({value.name: value for value in copy.graph.inputs})
    shown = {output.name for output in copy.graph.outputs}
    copy.graph.outputs.extend(values[name] for name in names if name not in shown)
    return copy
