"""A product with a weight as two smaller ones, whose outputs are nearest to the original's on data.

Cutting off the singular values of a weight loses least of the weight. What matters is what a layer makes of its
inputs: with the Cholesky factor L of their second moments, W L is cut off instead (Chen et al., DRONE: Data-aware
Low-rank Compression for Large NLP Models, NeurIPS 2021; Wang et al., SVD-LLM: Truncation-aware Singular Value
Decomposition for Large Language Model Compression, ICLR 2025), and what is lost is known of each rank: the singular
values that are left out. Where a layer has a bias, the mean of what is lost goes into it, and the moments are those
around the mean. A convolution is the product of its unfolded weight and the patches it sees: a convolution to ``rank``
channels with the window of the original, and one of 1x1 behind it (Zhang et al., Accelerating Very Deep Convolutional
Networks for Classification and Detection, TPAMI 2016).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from graphopt.ir import facts, provenance
from graphopt.ir.facts import Array
from graphopt.ir.graphs import add_constant, free_name
from graphopt.prune.bias import add_to_bias
from graphopt.prune.moments import MOST_INPUTS, matrices, why_no_rows
from graphopt.prune.structure import Layer

MAKER = "low-rank"
_DAMPING = 1e-3
"""Of the mean square of what a layer reads, in directions that the data do not show."""
_LEAST_ROWS = 2.0
"""Rows for each number of a second moment's side, below which the data say little of it."""
_ROWS_AT_A_TIME = 1024
_NOTHING = 1e-9
"""Of the largest singular value: what is smaller is rounding."""
_TYPES = (ir.DataType.FLOAT, ir.DataType.DOUBLE)


def why_not(layer: Layer) -> str:
    """Why a layer cannot become two products; empty where it can."""
    if layer.groups > 1 and layer.node.op_type == "Conv":
        return "its channels are in groups"
    if reason := why_no_rows(layer):
        return reason
    if layer.weight.dtype not in _TYPES:
        return f"its weight is {layer.weight.dtype}"
    if len(layer.weight.uses()) > 1 or layer.weight.is_graph_output():
        return "its weight is shared with other nodes"
    weight = facts.constant(layer.weight)
    assert weight is not None
    if not weight.size or not np.isfinite(weight).all():
        return "its weight holds NaN or infinity, or nothing"
    if layer.node.op_type == "Gemm" and not facts.attribute(layer.node, "alpha", 1.0):
        return "its weight is multiplied by zero"
    if side(layer) > MOST_INPUTS:
        return f"more than {MOST_INPUTS} numbers go in and come out"
    return ""


def sizes(layer: Layer) -> tuple[int, int]:
    """How many outputs a product has, and how many numbers go into each sum."""
    weight = facts.static_dims(layer.weight)
    assert weight is not None
    outputs = weight[layer.out]
    return outputs, int(np.prod(weight)) // max(outputs, 1)


def side(layer: Layer) -> int:
    """Of the second moments: outputs or numbers of a sum, whichever are fewer; the full rank."""
    return min(sizes(layer))


def nbytes(layer: Layer) -> int:
    """Of what :class:`Moments` holds."""
    outputs, numbers = sizes(layer)
    return 8 * (outputs * numbers + side(layer) ** 2)


@dataclass
class Moments:
    """Sums over rows of what a layer reads: of the rows themselves or of what the weight makes of them.

    Attributes:
        weight: [outputs, numbers of a sum]; a Gemm's alpha included.
        square: Second moments [side, side] of whichever has fewer numbers.
        total: Of the same [side].
        power: Sum of the squares of what is read.
        rows: How many.
        finite: Whether all of them were.
    """

    weight: Array
    square: Array = field(init=False)
    total: Array = field(init=False)
    power: float = field(default=0.0, init=False)
    rows: int = field(default=0, init=False)
    finite: bool = field(default=True, init=False)
    _waiting: list[Array] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self.weight = self.weight.astype(np.float64)
        size = min(self.weight.shape)
        self.square, self.total = np.zeros((size, size)), np.zeros(size)

    @classmethod
    def of(cls, layer: Layer) -> Moments:
        """None seen yet."""
        weight = facts.constant(layer.weight)
        assert weight is not None
        return cls(matrices(layer, weight)[0])

    @property
    def of_outputs(self) -> bool:
        """Whether the sums are of what the weight makes."""
        outputs, numbers = self.weight.shape
        return bool(outputs < numbers)

    def add(self, rows: Array) -> None:
        """Add rows [count, numbers of a sum]."""
        self._waiting.append(rows)
        self.rows += len(rows)
        if sum(map(len, self._waiting)) >= _ROWS_AT_A_TIME:
            self.finish()

    def finish(self) -> None:
        """Sum up the rows that were added: many at a time, since small products take long for what they are."""
        if not self._waiting:
            return
        read = np.concatenate(self._waiting).astype(np.float64)
        self._waiting.clear()
        if not np.isfinite(read).all():
            self.finite = False
            return
        self.power += float(np.square(read).sum())
        seen = read @ self.weight.T if self.of_outputs else read
        self.square += seen.T @ seen
        self.total += seen.sum(axis=0)

    @property
    def why_few(self) -> str:
        """Why they say too little; empty where they do not."""
        if not self.finite:
            return "what it reads is not finite on the data"
        if self.rows < _LEAST_ROWS * len(self.total):
            return f"{self.rows} inputs were seen, too few for second moments of {len(self.total)} numbers"
        return ""


@dataclass(frozen=True)
class Factors:
    """A weight as the product of two, cut off at any rank up to one.

    Attributes:
        inner: [rank, numbers of a sum], largest singular value first; what it makes of the data has the variance 1,
            so what lies between the two products is quantized well.
        outer: [outputs, rank].
        lost: Power of what is wrong with the outputs at each rank from 0 on, relative to their own, on the data.
        plain: The same for the singular values of the weight alone.
        mean: What the weight makes of the mean of what is read [outputs]; zeros where it goes into no bias.
        passed: What ``inner`` makes of it [rank].
        note: Why the data are not looked at, where they are not; then ``lost`` is ``plain``.
    """

    inner: Array
    outer: Array
    lost: Array
    plain: Array
    mean: Array
    passed: Array
    note: str = ""

    def shift(self, rank: int) -> Array:
        """What the bias gains [outputs]."""
        return np.asarray(self.mean - self.outer[:, :rank].astype(np.float64) @ self.passed[:rank])


def factorize(moments: Moments, most: int, *, centred: bool, damping: float = _DAMPING) -> Factors:
    """The factors of a weight.

    Args:
        moments: Of what the layer reads.
        most: The largest rank that is asked for.
        centred: Whether a bias takes up the mean of what is lost.
        damping: Relative to the mean square of what is read.
    """
    moments.finish()
    weight, note = moments.weight, moments.why_few
    outputs, numbers = weight.shape
    plain = _plain(moments)
    mean = moments.total / max(moments.rows, 1)
    second = moments.square / max(moments.rows, 1)
    if note:
        # As if all that is read were noise: the singular values of the weight itself.
        centred, mean, second, damping = False, np.zeros_like(mean), np.zeros_like(second), 1.0
    else:
        damping *= max(moments.power / (moments.rows * numbers), 1e-30)
    around = second - np.outer(mean, mean) if centred else second
    if moments.of_outputs:
        values, vectors = np.linalg.eigh(around + damping * (weight @ weight.T))
        values, vectors = np.maximum(values[::-1], 0.0), vectors[:, ::-1]
        scales = np.sqrt(values)
        inner = vectors.T @ weight / _safe(scales)[:, None]
        inner[scales <= _NOTHING * scales[0]] = 0.0
        outer = vectors * scales
        made, passed = mean, vectors.T @ mean / _safe(scales)
    else:
        root = np.linalg.cholesky(around + damping * np.eye(numbers))
        product = weight @ root
        values, vectors = np.linalg.eigh(product.T @ product)
        values, vectors = np.maximum(values[::-1], 0.0), vectors[:, ::-1]
        inner = np.linalg.solve(root.T, vectors).T
        outer = product @ vectors
        made, passed = weight @ mean, inner @ mean
    # What the damping stands for is no loss on the data.
    each = values * np.maximum(1 - damping * np.square(inner).sum(axis=1), 0.0)
    lost = plain if note else _tails(each) / (_power(moments) or 1.0)
    if not centred:
        made, passed = np.zeros(outputs), np.zeros(len(values))
    return Factors(
        inner[:most].astype(np.float32), outer[:, :most].astype(np.float32), lost, plain, made, passed[:most],
        note,
    )  # fmt: skip


def _safe(scales: Array) -> Array:
    return np.where(scales > 0, scales, 1.0)


def _tails(each: Array) -> Array:
    """What is left out at each rank, from 0 to the full one."""
    return np.concatenate([np.cumsum(each[::-1])[::-1], [0.0]])


def _power(moments: Moments) -> float:
    """Mean power of what the weight makes of what is read."""
    if moments.of_outputs:
        return float(np.trace(moments.square)) / max(moments.rows, 1)
    made = moments.weight @ moments.square
    return float(np.sum(made * moments.weight)) / max(moments.rows, 1)


def _plain(moments: Moments) -> Array:
    """What cutting off the singular values of the weight loses at each rank, on the data as far as there are any."""
    weight = moments.weight
    gram = weight @ weight.T if moments.of_outputs else weight.T @ weight
    values, vectors = np.linalg.eigh(gram)
    values, vectors = np.maximum(values[::-1], 0.0), vectors[:, ::-1]
    whole = _power(moments)
    if not whole:
        return np.asarray(_tails(values) / (float(values.sum()) or 1.0))
    seen = np.einsum("ki,ki->i", vectors, moments.square / moments.rows @ vectors)
    return np.asarray(_tails(np.maximum(seen if moments.of_outputs else values * seen, 0.0)) / whole)


@dataclass(frozen=True)
class Split:
    """A layer that became two products.

    Attributes:
        first: The product that reads the data.
        second: The one behind it, which has the name and the outputs of the layer.
        shift: What its bias gained [outputs].
    """

    first: ir.Node
    second: Layer
    shift: Array

    @property
    def nodes(self) -> tuple[ir.Node, ...]:
        """Both."""
        return self.first, self.second.node


def split(graph: ir.Graph, layer: Layer, factors: Factors, rank: int) -> Split:
    """Make two products of a layer; in place."""
    node, weight = layer.node, layer.weight
    dtype = facts.numpy_dtype(weight) or np.dtype(np.float32)
    dims = facts.static_dims(weight)
    name = node.name or node.op_type
    out = node.outputs[0]
    assert dims is not None
    inner, outer = factors.inner[:rank], factors.outer[:, :rank]
    shift = factors.shift(rank)
    kept = dict(node.attributes)
    if node.op_type == "Conv":
        first, second = (
            inner.reshape(rank, *dims[1:]),
            outer.reshape(len(outer), rank, *(1 for _ in dims[2:])),
        )
        node.attributes.clear()
        node.attributes["kernel_shape"] = ir.AttrInt64s("kernel_shape", [1] * (len(dims) - 2))
    elif node.op_type == "Gemm":
        first, second, kept = inner.T, outer.T, {}
        for attribute in ("alpha", "transB"):
            node.attributes.pop(attribute, None)
    else:
        first, second = inner.T, outer.T
    made = ir.Node(
        node.domain, node.op_type,
        [layer.data, _constant(graph, f"{name}/low_rank_inner", first.astype(dtype))],
        list(kept.values()), version=node.version,
        name=free_name(f"{name}/low_rank", {other.name for other in graph}),
    )  # fmt: skip
    between = made.outputs[0]
    between.name = free_name(f"{name}/low_rank", _names(graph))
    between.type = None if out.dtype is None else ir.TensorType(out.dtype)
    if out.shape is not None:
        shape = list(out.shape)
        shape[1 if node.op_type == "Conv" else -1] = rank
        between.shape = ir.Shape(shape)
    graph.insert_before(node, made)
    provenance.record(made, MAKER, [node])
    provenance.record(node, MAKER, [node])
    node.replace_input_with(0, between)
    node.replace_input_with(1, _constant(graph, f"{name}/low_rank_outer", second.astype(dtype)))
    if weight.name and not weight.uses() and weight.name in graph.initializers:
        del graph.initializers[weight.name]
    last = node.inputs[1]
    assert last is not None
    out_axis, inner_axis = (0, 1) if node.op_type == "Conv" else (1, 0)
    made_layer = Layer(node, last, out_axis, inner_axis, between, layer.channel)
    if shift.any():
        add_to_bias(graph, made_layer, shift, MAKER)
    return Split(made, made_layer, shift)


def _constant(graph: ir.Graph, wanted: str, array: Array) -> ir.Value:
    return add_constant(graph, free_name(wanted, _names(graph)), ir.tensor(np.ascontiguousarray(array)))


def _names(graph: ir.Graph) -> set[str | None]:
    """Of all values of a graph."""
    made = (value.name for node in graph for value in node.outputs)
    return {*graph.initializers, *(value.name for value in graph.inputs), *made}


__all__ = [
    "Factors",
    "Moments",
    "Split",
    "factorize",
    "nbytes",
    "side",
    "sizes",
    "split",
    "why_not",
]
