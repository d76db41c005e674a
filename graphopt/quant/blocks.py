"""Weights as small integers with one scale for each block of them; the arithmetic around them stays in float.

A product reads its weight [K, N] through ``DequantizeLinear(axis, block_size)`` (ONNX operator DequantizeLinear,
opset 21): ``block`` numbers along K share a scale, and a zero point where they are not symmetric. A target that has
products with such weights takes the pair as one. Rounding is to nearest with the scale of least squared error among a
few, or GPTQ (Frantar et al., GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers,
2022), which moves what rounding a row loses to the rows that are still to be rounded, by the second moments of the
inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.data.interface import Feeds
from graphopt.ir import facts
from graphopt.ir.facts import Array
from graphopt.ir.model import tapped
from graphopt.quant.layers import Beside
from graphopt.quant.observe import in_turns
from graphopt.quant.ranges import TINY
from graphopt.verify.session import Session

OPERATORS = ("MatMul", "Gemm", "Gather")
LEAST_ELEMENTS = 4096
"""Below it a weight saves less than its scales and its node are worth."""
_SHRINK = (1.0, 0.95, 0.9, 0.85, 0.8, 0.72)
_CHUNK = 1 << 22
_DAMPINGS = (0.01, 0.1, 1.0)
_STEP = 128
_HESSIAN_BYTES = 512 << 20


@dataclass(frozen=True)
class Scheme:
    """How a weight is written.

    Attributes:
        bits: 4 or 8; 7 for kernels whose sums of two products saturate.
        block: Numbers that share a scale; of a weight that is stored in blocks a power of two, at least 16.
        symmetric: Without a zero point.
    """

    bits: int
    block: int
    symmetric: bool

    @property
    def limits(self) -> tuple[int, int]:
        """Least and largest integer."""
        if not self.symmetric:
            return 0, 2**self.bits - 1
        # The most negative number of 7 or 8 bits is left out: it would buy nothing.
        largest = 2 ** (self.bits - 1) - 1
        return (-8, 7) if self.bits == 4 else (-largest, largest)

    @property
    def dtype(self) -> ir.DataType:
        """Of the integers."""
        types = {
            (4, True): ir.DataType.INT4,
            (4, False): ir.DataType.UINT4,
            (8, True): ir.DataType.INT8,
            (8, False): ir.DataType.UINT8,
        }
        return types[self.bits, self.symmetric]

    @property
    def describe(self) -> str:
        """For people."""
        return f"{self.bits} bits, blocks of {self.block}, {'symmetric' if self.symmetric else 'with zero points'}"


@dataclass(frozen=True)
class Blocks:
    """A weight [K, N] as integers.

    Attributes:
        integers: int8 or uint8 [K, N] (the numbers, whatever type they are stored in).
        scales: float32 [ceil(K / block), N].
        zero_points: uint8 like ``scales``; None where symmetric.
    """

    integers: Array
    scales: Array
    zero_points: Array | None

    def restored(self, block: int) -> Array:
        """The float32 weight [K, N] that the integers stand for."""
        rows = self.integers.shape[0]

        def spread(array: Array) -> Array:
            return np.repeat(array, block, axis=0)[:rows]

        zero = np.float32(0.0) if self.zero_points is None else spread(self.zero_points).astype(np.float32)
        return ((self.integers.astype(np.float32) - zero) * spread(self.scales)).astype(np.float32)


def quantize_blocks(weight: Array, scheme: Scheme) -> Blocks:
    """Round to nearest, each block with the scale of least squared error among a few.

    Args:
        weight: float32 [K, N], finite.
    """
    rows, columns = weight.shape
    count = -(-rows // scheme.block)
    integers = np.empty((rows, columns), np.int8 if scheme.symmetric else np.uint8)
    scales = np.empty((count, columns), np.float32)
    zeros = None if scheme.symmetric else np.empty((count, columns), np.uint8)
    step = max(1, _CHUNK // max(count * scheme.block, 1))
    for start in range(0, columns, step):
        part = slice(start, start + step)
        blocked = _blocked(weight[:, part], scheme.block)
        scale, zero = _grid(blocked, scheme)
        rounded = _round(blocked, scale[:, None], None if zero is None else zero[:, None], scheme)
        integers[:, part] = rounded.reshape(-1, rounded.shape[-1])[:rows]
        scales[:, part] = scale
        if zeros is not None and zero is not None:
            zeros[:, part] = zero
    return Blocks(integers, scales, zeros)


def gptq(weight: Array, moments: Array, scheme: Scheme, *, keep_zeros: bool = False) -> Blocks:
    """Round row by row; what a row loses is made up for by the rows after it.

    Where the moments are so close to singular that no damping helps, rows are rounded to nearest.

    Args:
        weight: float32 [K, N], finite.
        moments: float64 [K, K], the sum of x x' over the inputs x of the product.
        keep_zeros: Whether numbers that are zero stay so, and make up for nothing.
    """
    rows, columns = weight.shape
    count = -(-rows // scheme.block)
    work = weight.astype(np.float64)
    fixed = (weight == 0) & keep_zeros
    hessian = moments.astype(np.float64).copy()
    dead = np.diag(hessian) <= 0
    hessian[dead, dead] = 1.0
    upper = inverse_factor(hessian)
    if upper is None:
        return quantize_blocks(weight, scheme)
    integers = np.empty((rows, columns), np.int8 if scheme.symmetric else np.uint8)
    scales = np.empty((count, columns), np.float32)
    zeros = None if scheme.symmetric else np.empty((count, columns), np.uint8)
    scale: Array = np.empty(0)
    zero: Array | None = None
    for begin in range(0, rows, _STEP):
        end = min(begin + _STEP, rows)
        errors = np.zeros((end - begin, columns))
        for row in range(begin, end):
            if row % scheme.block == 0:
                index = row // scheme.block
                part = slice(row, row + scheme.block)
                ahead = np.where(fixed[part], 0.0, work[part])
                found, offsets = _grid(_blocked(ahead.astype(np.float32), scheme.block), scheme)
                scale, zero = found[0], None if offsets is None else offsets[0]
                scales[index] = scale
                if zeros is not None and zero is not None:
                    zeros[index] = zero
            rounded = _round(np.where(fixed[row], 0.0, work[row]), scale, zero, scheme)
            integers[row] = rounded
            offset = 0.0 if zero is None else zero.astype(np.float64)
            error = (work[row] - (rounded - offset) * scale) / upper[row, row]
            work[row + 1 : end] -= np.outer(upper[row, row + 1 : end], error)
            errors[row - begin] = error
        work[end:] -= upper[begin:end, end:].T @ errors
    return Blocks(integers, scales, zeros)


def inverse_factor(hessian: Array, dampings: Sequence[float] = _DAMPINGS) -> Array | None:
    """The upper Cholesky factor of the inverse, with as much damping as it takes; None where none helps.

    Args:
        hessian: float64 [K, K], symmetric, none of its diagonal below zero.
        dampings: Shares of the diagonal's mean that are added to it, tried in order.
    """
    middle = float(np.mean(np.diag(hessian)))
    for damping in dampings:
        damped = hessian + damping * middle * np.eye(len(hessian))
        try:
            upper = np.linalg.cholesky(np.linalg.inv(damped)).T
        except np.linalg.LinAlgError:
            continue
        if np.isfinite(upper).all() and (np.diag(upper) > 0).all():
            return np.asarray(upper)
    return None


def _blocked(weight: Array, block: int) -> Array:
    """[blocks, block, N], filled up with zeros."""
    rows, columns = weight.shape
    count = -(-rows // block)
    if count * block != rows:
        weight = np.concatenate([weight, np.zeros((count * block - rows, columns), weight.dtype)])
    return weight.reshape(count, block, columns)


def _grid(blocked: Array, scheme: Scheme) -> tuple[Array, Array | None]:
    """Scales float32 [blocks, N] and zero points uint8 of least squared error."""
    low = np.minimum(blocked.min(axis=1), 0).astype(np.float64)
    high = np.maximum(blocked.max(axis=1), 0).astype(np.float64)
    least, largest = scheme.limits
    shrink = _SHRINK if scheme.bits < 8 else _SHRINK[:1]
    best: Array | None = None
    chosen: tuple[Array, Array | None] | None = None
    for factor in shrink:
        for scale, zero in _proposals(low * factor, high * factor, least, largest, scheme.symmetric):
            if len(shrink) == 1:
                return scale, zero
            zeros = None if zero is None else zero[:, None]
            rounded = _round(blocked, scale[:, None], zeros, scheme).astype(np.float32)
            restored = (rounded - (0 if zeros is None else zeros.astype(np.float32))) * scale[:, None]
            error = np.square(restored - blocked).sum(axis=1)
            if best is None or chosen is None:
                best, chosen = error, (scale, zero)
                continue
            better = error < best
            best = np.where(better, error, best)
            chosen = (
                np.where(better, scale, chosen[0]),
                None if zero is None or chosen[1] is None else np.where(better, zero, chosen[1]),
            )
    assert chosen is not None
    return chosen


def _proposals(
    low: Array, high: Array, least: int, largest: int, symmetric: bool
) -> list[tuple[Array, Array | None]]:
    if symmetric:
        magnitude = np.maximum(-low, high)
        divisors = (largest,) if largest == -least else (largest, -least)
        return [(_positive(magnitude / divisor), None) for divisor in divisors]
    scale = _positive((high - low) / (largest - least))
    zero = np.clip(np.rint(least - low / scale), least, largest)
    return [(scale, zero.astype(np.uint8))]


def _positive(scale: Array) -> Array:
    """float32 scales; that of a block of zeros is 1."""
    return np.where(scale > 0, np.maximum(scale, TINY), 1.0).astype(np.float32)


def _round(weight: Array, scale: Array, zero: Array | None, scheme: Scheme) -> Array:
    least, largest = scheme.limits
    rounded = np.rint(weight / scale)
    if zero is not None:
        rounded = rounded + zero
    return np.clip(rounded, least, largest).astype(np.int8 if scheme.symmetric else np.uint8)


def layers_of(model: ir.Model) -> tuple[list[ir.Node], dict[str, str]]:
    """Nodes of the main graph whose weight can be written in blocks, and why others of their operators cannot."""
    found: list[ir.Node] = []
    refused: dict[str, str] = {}
    for node in model.graph.all_nodes():
        if node.domain != "" or node.op_type not in OPERATORS:
            continue
        reason = "it is part of a subgraph" if node.graph is not model.graph else _why_not(node)
        if not reason and _is_small(node):
            if node.op_type == "Gather":
                # Nothing is to be had of a small table, and nobody asks for it.
                continue
            reason = "its weight is small"
        if not reason and not _is_finite(node):
            reason = "its weight holds NaN or infinity"
        if reason:
            refused[node.name or ""] = reason
        else:
            found.append(node)
    return found, refused


def _why_not(node: ir.Node) -> str:
    """Why the weight of a node of one of these operators is none that blocks could hold; empty where it is."""
    weight = _weight(node)
    if not facts.is_constant(weight):
        return "its weight is no constant"
    if weight is None or weight.dtype != ir.DataType.FLOAT:
        return "its weight is not float32"
    if facts.rank(weight) != 2:
        return f"its weight has {facts.rank(weight)} dimensions"
    if node.op_type == "Gather" and facts.attribute(node, "axis", 0) not in (0, -2):
        return "it gathers along the axis of the blocks"
    return ""


def _is_small(node: ir.Node) -> bool:
    weight = _weight(node)
    assert weight is not None and weight.const_value is not None
    return weight.const_value.size < LEAST_ELEMENTS


def _is_finite(node: ir.Node) -> bool:
    array = facts.constant(_weight(node))
    assert array is not None
    return bool(np.isfinite(array).all())


def _weight(node: ir.Node) -> ir.Value | None:
    return node.inputs[weight_slot(node)]


def weight_slot(node: ir.Node) -> int:
    """The input that is the weight: of Gather the table."""
    return 0 if node.op_type == "Gather" else 1


def block_axis(node: ir.Node) -> int:
    """The axis of the weight along which blocks lie: the one that is summed over, of a table the row."""
    if node.op_type == "Gather":
        return 1
    return 1 if node.op_type == "Gemm" and facts.attribute(node, "transB", 0) else 0


@dataclass
class BlockForms:
    """Builds the form of each layer with its weight in blocks; a weight is quantized once.

    Attributes:
        scheme: How weights are written.
        moments: Of the input of each product, by node; those that have some are rounded by GPTQ.
        hints: Kept with each node for the target's legalisation.
    """

    scheme: Scheme
    moments: Mapping[str, Array]
    hints: Mapping[str, str]

    def __post_init__(self) -> None:
        self._made: dict[tuple[str, int, str], Blocks] = {}

    def __call__(self, node: ir.Node, build: Beside) -> list[ir.Value | None]:
        """The node with a DequantizeLinear before its weight."""
        slot, axis = weight_slot(node), block_axis(node)
        weight = node.inputs[slot]
        assert weight is not None
        moments = self.moments.get(node.name or "")
        key = f"{weight.name}/blocks" if moments is None else f"{weight.name}/blocks/{node.name}"
        blocks = self.blocks(node)

        def oriented(array: Array) -> Array:
            return np.ascontiguousarray(array if axis == 0 else array.T)

        def constant(suffix: str, array: Array) -> ir.Value:
            return build.shared(f"{key}{axis}_{suffix}", stored(oriented(array), self.scheme))

        scales = build.shared(f"{key}{axis}_scales", oriented(blocks.scales))
        operands = [constant("integers", blocks.integers), scales]
        if blocks.zero_points is not None:
            operands.append(constant("zero_points", blocks.zero_points))
        restored = build.op(
            "DequantizeLinear", *operands, like=weight, axis=axis, block_size=self.scheme.block
        )
        inputs = list(node.inputs)
        inputs[slot] = restored
        attributes: dict[str, Any] = dict(node.attributes)
        value = build.op(node.op_type, *inputs, like=node.outputs[0], **attributes)
        producer = value.producer()
        assert producer is not None
        producer.metadata_props.update(self.hints)
        return [value]

    def blocks(self, node: ir.Node) -> Blocks:
        """The weight of a node, [K, N], as integers."""
        weight = node.inputs[weight_slot(node)]
        assert weight is not None
        moments = self.moments.get(node.name or "")
        axis = block_axis(node)
        key = (weight.name or "", axis, "" if moments is None else node.name or "")
        if key not in self._made:
            array = facts.constant(weight)
            assert array is not None
            matrix = array if axis == 0 else array.T
            self._made[key] = (
                quantize_blocks(matrix, self.scheme)
                if moments is None
                else gptq(matrix, moments, self.scheme, keep_zeros=bool(facts.sparsity(weight)))
            )
        return self._made[key]

    def nbytes(self, node: ir.Node) -> int:
        """Bytes of the weight as integers, with scales and zero points."""
        blocks = self.blocks(node)
        share = self.scheme.bits / 8
        zeros = 0 if blocks.zero_points is None else blocks.zero_points.size
        return int(blocks.integers.size * share) + blocks.scales.nbytes + int(zeros * share)


def stored(array: Array, scheme: Scheme) -> ir.TensorProtocol:
    """Integers as the tensor that holds them: two to a byte where they have 4 bits."""
    if scheme.bits == 8:
        return ir.tensor(array)
    return ir.tensor(array.astype(scheme.dtype.numpy()), dtype=scheme.dtype)


def moments_of(
    model: ir.Model,
    nodes: Sequence[ir.Node],
    data: Callable[[int], Iterable[Feeds]],
    *,
    most: int,
    threads: int = 0,
    progress: Callable[[str], None] = lambda text: None,
) -> dict[str, Array]:
    """The sum of x x' over the inputs x of each product, float64 [K, K] by node, with bounded memory.

    Args:
        nodes: MatMul and Gemm with constant weights, of the main graph.
        data: Gives so many samples at most, anew each time it is called.
        most: Samples.
    """
    by_input: dict[str, list[ir.Node]] = {}
    for node in nodes:
        source = node.inputs[0]
        if node.op_type != "Gather" and source is not None and not facts.attribute(node, "transA", 0):
            by_input.setdefault(source.name or "", []).append(node)
    found: dict[str, Array] = {}
    for group in in_turns(by_input, lambda name: _moment_bytes(by_input[name][0]), _HESSIAN_BYTES):
        sums: dict[str, Array] = {}
        session = Session(tapped(model, group), optimize="all", threads=threads)
        for index, feeds in enumerate(data(most)):
            for name, array in session.run(feeds, group).items():
                rows = array.reshape(-1, array.shape[-1]).astype(np.float32)
                sums[name] = sums.get(name, 0.0) + (rows.T @ rows).astype(np.float64)
            progress(f"second moments, sample {index + 1}")
        found.update({node.name or "": sums[name] for name in group for node in by_input[name]})
    return found


def _moment_bytes(node: ir.Node) -> int:
    weight = facts.static_dims(node.inputs[1])
    assert weight is not None
    return 8 * weight[block_axis(node)] ** 2
