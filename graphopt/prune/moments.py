"""What goes into the sums of layers on data, as rows of numbers, and their weights as matrices."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from graphopt.data.interface import Feeds
from graphopt.ir import facts, windows
from graphopt.ir.facts import Array
from graphopt.ir.model import leading_to
from graphopt.prune.structure import Layer
from graphopt.quant import rounding
from graphopt.quant.positions import Positions
from graphopt.verify.padding import Padding
from graphopt.verify.session import Session

MOST_INPUTS = 4096
"""Numbers that go into one sum, beyond which second moments would take too much memory and time."""
ROWS = 768
"""Places of one sample, at most."""
_ROWS_A_NUMBER = 48.0
_LEAST_ROWS = 32
_PRODUCTS = frozenset({"MatMul", "Gemm"})


def why_no_rows(layer: Layer) -> str:
    """Why the inputs of a layer cannot be written as rows; empty where they can."""
    if layer.node.op_type == "ConvTranspose":
        return "the sums of a transposed convolution overlap"
    if layer.node.op_type == "Conv" and windows.pads(layer.node) is None:
        return "its pads are not known"
    if layer.node.op_type == "Gemm" and facts.attribute(layer.node, "transA", 0):
        return "its data are transposed"
    return ""


def why_not(layer: Layer) -> str:
    """Why there are no second moments of what a layer reads; empty where there can be."""
    large = rounding.inputs_of(layer.node) > MOST_INPUTS
    return why_no_rows(layer) or (f"more than {MOST_INPUTS} numbers go into one sum" if large else "")


def rows_a_sample(numbers: int, samples: int) -> int:
    """Places of each sample, so that there are several for each number of a sum in all."""
    wanted = _ROWS_A_NUMBER * numbers / max(samples, 1)
    return int(min(max(wanted, _LEAST_ROWS), ROWS))


class Batches:
    """Rows of several samples, put together until they are as many as the numbers in a row.

    A product of few rows takes less time than adding what comes of it to sums of numbers times numbers.
    """

    def __init__(self) -> None:
        self._waiting: list[tuple[Array, ...]] = []
        self._rows = 0

    def add(self, *rows: Array) -> tuple[Array, ...] | None:
        """Rows that belong together, each [groups, rows, numbers]; gives all that wait once they are enough."""
        self._waiting.append(rows)
        self._rows += rows[0].shape[1]
        return self.rest() if self._rows >= rows[-1].shape[2] else None

    def rest(self) -> tuple[Array, ...] | None:
        """All that still wait; None where there are none."""
        if not self._waiting:
            return None
        found = tuple(np.concatenate(parts, axis=1) for parts in zip(*self._waiting, strict=True))
        self._waiting, self._rows = [], 0
        return found


class Squares:
    """Second moments of rows, float64 [groups, numbers, numbers]."""

    def __init__(self) -> None:
        self._waiting = Batches()
        self._sums: Array | float = 0.0
        self._count = 0

    def add(self, rows: Array) -> None:
        """Rows [groups, rows, numbers]."""
        self._enter(self._waiting.add(rows))

    def mean(self) -> tuple[Array, int]:
        """The mean over all rows, and how many they are."""
        self._enter(self._waiting.rest())
        return np.asarray(self._sums / self._count), self._count

    def _enter(self, batch: tuple[Array, ...] | None) -> None:
        if batch is not None:
            (rows,) = batch
            # Numbers beyond float32 are found where the sums are used.
            with np.errstate(over="ignore", invalid="ignore"):
                self._sums = self._sums + (rows.swapaxes(1, 2) @ rows).astype(np.float64)
            self._count += rows.shape[1]


def matrices(layer: Layer, weight: Array) -> Array:
    """A weight as [groups, outputs of a group, numbers of a sum]; a Gemm's alpha included."""
    if layer.node.op_type == "Conv":
        return weight.reshape(layer.groups, len(weight) // layer.groups, -1)
    turned = weight if layer.inner == 1 else weight.T
    return np.asarray(turned * np.float32(facts.attribute(layer.node, "alpha", 1.0)))[None]


def restored(layer: Layer, matrix: Array, like: Array) -> Array:
    """The weight that :func:`matrices` made this of; ``like`` has its shape."""
    if layer.node.op_type == "Conv":
        return matrix.reshape(like.shape).astype(like.dtype)
    plain = matrix[0] / np.float32(facts.attribute(layer.node, "alpha", 1.0))
    return np.ascontiguousarray(plain if layer.inner == 1 else plain.T).astype(like.dtype)


def rows_of(layer: Layer, array: Array, seed: int, most: int = ROWS) -> Array:
    """What goes into some sums of a layer, float32 [groups, rows, numbers of a sum].

    Args:
        array: What the layer reads.
        seed: The same rows are taken wherever this and the number of places are the same.
        most: Rows.
    """

    return rounding.rows_of(layer.node, array, lambda count: _some(count, seed, most))


def outputs_of(layer: Layer, array: Array, seed: int, most: int = ROWS) -> Array:
    """What belongs to the same sums of a layer as :func:`rows_of` takes, float32 [groups, rows, outputs of a group].

    Args:
        array: Of the shape of what the layer makes.
        seed, most: As there.
    """
    if layer.node.op_type == "Conv":
        array = np.moveaxis(array, 1, -1)
    rows = array.reshape(-1, array.shape[-1])
    rows = rows[_some(len(rows), seed, most)].astype(np.float32)
    return np.moveaxis(rows.reshape(len(rows), layer.groups, -1), 1, 0)


def _some(count: int, seed: int, most: int) -> Array:
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, most, replace=False))


def real_rows(
    model: ir.Model, layers: Sequence[Layer], padding: Padding | None, threads: int = 0
) -> Positions:
    """What products read without padding, where it is one row of numbers a position.

    Args:
        model: Whose layers they are.
        layers: Those that are looked at.
        padding: Of the samples; None where there is none.
        threads: Of an operator.
    """
    others = {layer.data.name for layer in layers if layer.node.op_type not in _PRODUCTS}
    names = [name for name in _read(layers) if name not in others]
    return Positions(model, names, padding, threads, whole=names)


def _read(layers: Sequence[Layer]) -> list[str]:
    return list(dict.fromkeys(layer.data.name or "" for layer in layers))


def read_by(
    model: ir.Model,
    layers: Sequence[Layer],
    samples: Iterable[Feeds],
    threads: int = 0,
    padding: Padding | None = None,
) -> Iterator[Mapping[str, Array]]:
    """For each sample what these layers read, by name of the value; rows of padding are left out."""
    inputs = {value.name for value in model.graph.inputs}
    real = real_rows(model, layers, padding, threads)
    names = [name for name in _read(layers) if name not in inputs]
    session = Session(leading_to(model, names), optimize="all", threads=threads) if names else None
    for feeds in samples:
        found = {} if session is None else session.run(feeds, names)
        yield {**feeds, **{name: real.of(name, feeds, array) for name, array in found.items()}}


__all__ = [
    "MOST_INPUTS",
    "Batches",
    "Squares",
    "matrices",
    "outputs_of",
    "read_by",
    "real_rows",
    "restored",
    "rows_a_sample",
    "rows_of",
    "why_no_rows",
    "why_not",
]
