"""float32 constants of a graph  ==>  constants of 8 or 16 bits, which the backend widens when it loads the graph

What stays in float beside integers is most of such a file. ONNX Runtime and OpenVINO fold arithmetic on constants when
they load a graph, so kernels and times stay what they were; what changes is the file, and the numbers by what rounding
takes.

- 16 bits: a Cast of float16, for any large constant; 11 bits of precision in place of 24.
- 8 bits: integers in blocks of about 32 along the axis that is summed over (16 where one number of a block is far from
  the others), each block with a scale of its own in float16 (a Cast, a Mul and a Reshape), for weights of products,
  convolutions and recurrent layers and for tables. Not DequantizeLinear, which ONNX Runtime leaves as it is for its
  kernels on integers, to run each time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir

from graphopt.data.interface import Feeds
from graphopt.ir import facts, provenance
from graphopt.ir import model as ir_model
from graphopt.ir.facts import Array
from graphopt.quant.layers import choose
from graphopt.verify.agreement import noise_share
from graphopt.verify.budget import Judgement
from graphopt.verify.evaluation import Evaluation
from graphopt.verify.session import Session

Bits = Literal[8, 16]
Keeps = Callable[[ir.Node], bool]
"""Whether what a node reads is to stay as it is."""

MAKER = "storage"
_LEAST_ELEMENTS: Mapping[Bits, int] = {8: 256, 16: 1024}
"""What widens fewer takes in the file what they save."""
_MOST_NOISE: Mapping[Bits, float] = {8: 1e-4, 16: 1e-6}
"""Of a constant's power, that rounding it may add."""
_SCALED = frozenset({"QuantizeLinear", "DequantizeLinear"})
_BLOCKS = (32, 16)
"""Numbers of a block: about so many, where that loses little enough; with its scale, 8.5 or 9 bits for each. In blocks
of fewer than 19 rounding, as a rule, loses less than -40 dB, however far one number is from the others."""
_SMALLEST_BLOCK = 4
_LARGEST = 127
_HALF = np.finfo(np.float16)
_SWEEP_SAMPLES = 2


@dataclass(frozen=True)
class Storage:
    """What a pass allows.

    Attributes:
        bits: The fewest.
        keeps: Whether what a node reads is to stay as it is.
    """

    bits: Bits
    keeps: Keeps

    @classmethod
    def of(cls, bits: Literal[8, 16, 32], why_kept: Callable[[ir.Node], str]) -> Storage | None:
        """By a pass's option, and by why it leaves a node in float; None where nothing may be stored otherwise."""
        return None if bits == 32 else cls(bits, lambda node: bool(why_kept(node)))


@dataclass(frozen=True)
class Stored:
    """A constant that is stored in fewer bits.

    Attributes:
        name: Of the constant.
        nodes: Names of the nodes that read it.
        op: Of the first of them.
        bits: Of a number.
        nbytes: Before, and with its scales after.
        noise: Power of what rounding it takes, over its own.
    """

    name: str
    nodes: tuple[str, ...]
    op: str
    bits: Bits
    nbytes: tuple[int, int]
    noise: float


@dataclass(frozen=True)
class _Narrow:
    """A constant in fewer bits.

    Attributes:
        told: For the report.
        integers: int8 [before, blocks, numbers of a block, behind]; float16 in its own shape where there are no scales.
        scales: float16 or float32 [before, blocks, 1, behind].
        widened: What they stand for: float32 in the shape of the constant.
    """

    told: Stored
    integers: Array
    scales: Array | None
    widened: Array


def stored(
    model: ir.Model, bits: Bits, keeps: Keeps, wide: frozenset[str] = frozenset()
) -> tuple[ir.Model, list[Stored]]:
    """A copy of a model with its large float32 constants in fewer bits, as far as little is lost.

    Args:
        bits: 8 puts weights into 8 bits, and into 16 what loses more by that than -40 dB, or is no weight; 16 all. Less
            than -60 dB are to be lost by 16.
        wide: Names of constants that take 16 bits all the same.

    Returns:
        The copy, and what is stored otherwise in it; where that is nothing, ``model`` itself.
    """
    copy = ir_model.clone(model)
    found: list[Stored] = []
    writer = _Writer(copy)
    for graph in ir_model.all_graphs(copy):
        for name, value in list(graph.initializers.items()):
            narrow = _narrowed(value, 16 if name in wide else bits, keeps)
            if narrow is not None:
                found.append(narrow.told)
                writer.replace(graph, name, value, narrow)
    return (copy, found) if found else (model, [])


def as_many_as_hold(
    model: ir.Model,
    constants: Sequence[Stored],
    keeps: Keeps,
    evaluation: Evaluation,
    everything: Judgement,
    *,
    threads: int = 0,
    deadline: float = float("inf"),
    progress: Callable[[str], None] = lambda text: None,
) -> frozenset[str]:
    """Names of the constants not to store in 8 bits, so that the rest holds; found in ONNX Runtime's CPU provider.

    Args:
        constants: Of :func:`stored` with 8 bits.
        everything: What these lose together.
        deadline: ``time.monotonic()`` after which nothing new is begun.
    """
    gains = {one.name: float(_otherwise(one) - one.nbytes[1]) for one in constants if one.bits == 8}

    def judge(names: frozenset[str]) -> Judgement:
        graph, _ = stored(model, 8, keeps, frozenset(gains.keys() - names))
        session = Session(graph, optimize="all", threads=threads)
        return evaluation.judge_while_hopeful(session.run)

    def noise(until: float) -> dict[str, float]:
        return _noise_alone(model, list(gains), keeps, evaluation.feeds[:_SWEEP_SAMPLES], threads, until)

    choice = choose(gains, judge, noise, everything=everything, deadline=deadline, progress=progress)
    return frozenset(gains.keys() - (choice.best.chosen if choice.best is not None else frozenset()))


def _otherwise(constant: Stored) -> int:
    """Bytes that a constant takes where it is not stored in 8 bits."""
    before = constant.nbytes[0]
    return before // 2 if before >= _LEAST_ELEMENTS[16] * np.dtype(np.float32).itemsize else before


def _noise_alone(
    model: ir.Model,
    names: Sequence[str],
    keeps: Keeps,
    samples: Sequence[Feeds],
    threads: int,
    deadline: float,
) -> dict[str, float]:
    """Noise power over signal power, in the worst output, of each constant of the main graph in 8 bits alone.

    In one session that takes them as inputs: each stands as a default, and is given once as it would be stored.
    """
    tapped = ir_model.clone(model)
    values = {name: tapped.graph.initializers[name] for name in names if name in tapped.graph.initializers}
    narrow = {name: _narrowed(value, 8, keeps) for name, value in values.items()}
    tapped.graph.inputs.extend(values.values())
    session = Session(tapped, optimize="all", threads=threads)
    references = [session.run(feeds) for feeds in samples]
    found: dict[str, float] = {}
    for name, one in narrow.items():
        if found and time.monotonic() > deadline:
            break
        if one is not None:
            outputs = [session.run({**feeds, name: one.widened}) for feeds in samples]
            found[name] = noise_share(outputs, references)
    return found


def _narrowed(value: ir.Value, bits: Bits, keeps: Keeps) -> _Narrow | None:
    """A constant in fewer bits; None where it cannot be, or would lose too much."""
    tensor = value.const_value
    if tensor is None or tensor.dtype != ir.DataType.FLOAT or tensor.size < min(_LEAST_ELEMENTS.values()):
        return None
    uses = list(value.uses())
    if value.is_graph_output() or value.is_graph_input() or not uses:
        return None
    if any(use.node.op_type in _SCALED or keeps(use.node) for use in uses):
        return None
    array = facts.constant(value)
    if array is None or not np.isfinite(array).all():
        return None
    axes = {_summed(use.node, use.idx, array.ndim) for use in uses}
    summed = axes.pop() if bits == 8 and len(axes) == 1 else None
    for taken, (integers, scales, widened) in _ways(array, summed):
        size = integers.nbytes + (0 if scales is None else scales.nbytes)
        noise = rounding_noise(array, widened)
        if noise <= _MOST_NOISE[taken] and size < array.nbytes:
            readers = tuple(dict.fromkeys(use.node.name or "" for use in uses))
            sizes = (array.nbytes, size)
            told = Stored(value.name or "", readers, uses[0].node.op_type, taken, sizes, noise)
            return _Narrow(told, integers, scales, widened)
    return None


def _ways(
    array: Array, summed: tuple[int, int] | None
) -> Iterator[tuple[Bits, tuple[Array, Array | None, Array]]]:
    """Bits, and integers, scales and what they stand for; the fewest bits first.

    Args:
        summed: Axes that 8 bits take their blocks along; None where they may not.
    """
    if summed is not None:
        length = math.prod(array.shape[slice(*summed)])
        first, second = (_block_of(length, near) for near in _BLOCKS)
        for block in (first, second) if second < first else (first,):
            # With its scale a number of a smaller block takes 16 bits.
            if block >= _SMALLEST_BLOCK:
                yield 8, _in_blocks(array, *summed, block)
    if array.size >= _LEAST_ELEMENTS[16]:
        yield 16, _in_halves(array)


def _summed(node: ir.Node, slot: int, rank: int) -> tuple[int, int] | None:
    """Axes of a weight over which its node sums, from the first to behind the last; None where it is no weight."""
    place = _SUMMED.get(node.op_type)
    return None if place is None or rank < 2 else place(node, slot, rank)


def _of_product(node: ir.Node, slot: int, rank: int) -> tuple[int, int] | None:
    del node
    return {0: (rank - 1, rank), 1: (rank - 2, rank - 1)}.get(slot)


def _of_gemm(node: ir.Node, slot: int, rank: int) -> tuple[int, int] | None:
    del rank
    if slot > 1:
        return None
    transposed = bool(node.attributes.get_int("transB" if slot else "transA", 0))
    axis = int(transposed) if slot else 1 - int(transposed)
    return axis, axis + 1


def _at(slot: int, begin: int, end: int | None = None) -> Callable[..., tuple[int, int] | None]:
    return lambda node, given, rank: (begin, rank if end is None else end) if given == slot else None


def _of_recurrent(node: ir.Node, slot: int, rank: int) -> tuple[int, int] | None:
    del node
    return (rank - 1, rank) if slot in (1, 2) else None


_SUMMED: Mapping[str, Callable[[ir.Node, int, int], tuple[int, int] | None]] = {
    "Conv": _at(1, 1),
    "ConvTranspose": _at(1, 0, 1),
    "Gather": _at(0, 1),
    "Gemm": _of_gemm,
    "MatMul": _of_product,
    "LSTM": _of_recurrent,
    "GRU": _of_recurrent,
    "RNN": _of_recurrent,
}


def _in_halves(array: Array) -> tuple[Array, None, Array]:
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    return half, None, half.astype(np.float32)


def _in_blocks(array: Array, begin: int, end: int, block: int) -> tuple[Array, Array, Array]:
    """Integers and scales of blocks along the axes from ``begin`` to before ``end``, and what they stand for."""
    before, summed, behind = (
        math.prod(array.shape[part]) for part in (slice(begin), slice(begin, end), slice(end, None))
    )
    blocked = array.reshape(before, summed // block, block, behind)
    scales = np.abs(blocked).max(axis=2, keepdims=True) / np.float32(_LARGEST)
    # Beside the largest, a block that is below its last digit is rounding noise of what was computed to be zero.
    scales[scales < scales.max(initial=0.0) * np.finfo(np.float32).eps] = 0.0
    used = scales[scales > 0]
    halves = used.size == 0 or (used.min() >= _HALF.tiny and used.max() <= _HALF.max)
    scales = scales.astype(np.float16 if halves else np.float32)
    wide = scales.astype(np.float32)
    integers = np.rint(blocked / np.where(wide > 0, wide, np.float32(1.0)))
    integers = np.clip(integers, -_LARGEST, _LARGEST).astype(np.int8)
    return integers, scales, (integers.astype(np.float32) * wide).reshape(array.shape)


def _block_of(length: int, near: int) -> int:
    """Numbers that share a scale: a divisor of ``length``, so that no block is cut off."""
    divisors = [size for size in range(1, min(length, 2 * near) + 1) if length % size == 0]
    best = min(divisors, key=lambda size: abs(math.log(size / near)))
    # Of few numbers each, scales would take what the integers save.
    return best if best >= _BLOCKS[-1] // 2 else length


def rounding_noise(array: Array, widened: Array) -> float:
    """Power of the difference over that of the constant; infinity where it overflowed."""
    if not np.isfinite(widened).all():
        return math.inf
    signal = float(np.square(array, dtype=np.float64).sum())
    noise = float(np.square(widened - array, dtype=np.float64).sum())
    return noise / signal if signal else math.inf if noise else 0.0


class _Writer:
    """Puts constants in fewer bits, and what widens them, into a model that is written and not rewritten again.

    What it adds has short names, neither types nor shapes, and one constant for each shape, since all of that is told
    again for each of hundreds of constants.
    """

    def __init__(self, model: ir.Model) -> None:
        graphs = ir_model.all_graphs(model)
        self._taken = {
            value.name for graph in graphs for value in (*graph.inputs, *graph.initializers.values())
        }
        for node in model.graph.all_nodes():
            self._taken |= {node.name, *(value.name for value in node.outputs)}
        self._count = 0
        self._shapes: dict[tuple[ir.Graph, tuple[int, ...]], ir.Value] = {}

    def replace(self, graph: ir.Graph, name: str, value: ir.Value, narrow: _Narrow) -> None:
        """Widen ``narrow`` where ``value`` was read."""
        assert value.shape is not None
        nodes: list[ir.Node] = []

        def op(kind: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
            node = ir.node(kind, inputs, attributes, name=self._free())
            node.outputs[0].name = node.name
            provenance.record(node, MAKER, ())
            nodes.append(node)
            return node.outputs[0]

        def widened(array: Array) -> ir.Value:
            return op("Cast", self._constant(graph, array), to=ir.DataType.FLOAT.value)

        result = widened(narrow.integers)
        if narrow.scales is not None:
            halves = narrow.scales.dtype == np.float16
            scales = widened(narrow.scales) if halves else self._constant(graph, narrow.scales)
            scaled = op("Mul", result, scales)
            result = op("Reshape", scaled, self._shape(graph, tuple(value.shape.numpy())))
        del graph.initializers[name]
        value.replace_all_uses_with(result)
        result.name, result.type, result.shape = name, value.type, value.shape
        graph.insert_before(graph[0], nodes)

    def _free(self) -> str:
        while (name := f"{MAKER}_{self._count}") in self._taken:
            self._count += 1
        self._count += 1
        return name

    def _constant(self, graph: ir.Graph, array: Array) -> ir.Value:
        return ir_model.add_constant(graph, self._free(), ir.tensor(array))

    def _shape(self, graph: ir.Graph, shape: tuple[int, ...]) -> ir.Value:
        if (graph, shape) not in self._shapes:
            self._shapes[graph, shape] = self._constant(graph, np.array(shape, np.int64))
        return self._shapes[graph, shape]


__all__ = ["Bits", "Storage", "Stored", "as_many_as_hold", "rounding_noise", "stored"]
