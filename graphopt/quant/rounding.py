"""Integer weights that lose least in what a product makes of its inputs, instead of rounding each number to nearest.

Layer-wise reconstruction: the rows of a weight are rounded one after the other, and what a row loses is made up for by
the rows after it, by the second moments of the inputs (Frantar et al., GPTQ: Accurate Post-Training Quantization for
Generative Pre-trained Transformers, 2022; Optimal Brain Surgeon before it). A convolution is the product of its
unfolded weight and the patches that it sees; each group of a grouped one is a product of its own.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.data.interface import Feeds
from graphopt.ir import facts, windows
from graphopt.ir import model as ir_model
from graphopt.ir.facts import Array
from graphopt.ir.model import tapped
from graphopt.quant.blocks import Scheme, gptq
from graphopt.quant.kernels import IntegerKernels, channel_axis, weight_of
from graphopt.quant.observe import in_turns
from graphopt.quant.ranges import along, quantize_weight, weight_scales
from graphopt.quant.units import Unit
from graphopt.verify.session import Session

_ROWS = 2048
_MOST_INPUTS = 1536
_GROUP_BYTES = 256 << 20
_LEAST_ROWS = 4
"""So many inputs of a product are asked for each number of one, or the moments would be those of the samples alone."""


def why_not(node: ir.Node) -> str:
    """Why the weight of a unit's node is rounded to nearest; empty where it need not."""
    weight = facts.static_dims(node.inputs[1])
    if weight_of(node) is None or weight is None:
        return "its weight is no constant"
    if node.op_type == "ConvTranspose":
        return "it is a transposed convolution"
    if node.op_type == "MatMul" and len(weight) != 2:
        return "its weight has other than two dimensions"
    if node.op_type == "Conv" and windows.pads(node) is None:
        return "its padding follows the input's size"
    inputs = inputs_of(node)
    return "" if inputs <= _MOST_INPUTS else f"{inputs} numbers go into each sum"


def round_weight(graph: ir.Graph, node: ir.Node, limit: int) -> None:
    """Round the weight of a node to nearest and leave it in float; in place.

    Args:
        limit: Largest magnitude of an integer weight.
    """
    weight = weight_of(node)
    array = facts.constant(weight)
    if weight is None or array is None:
        return
    axis = channel_axis(node)
    scales = weight_scales(array, axis, limit)
    restored = quantize_weight(array, scales, axis, limit) * along(scales, axis, array.ndim)
    tensor = ir.tensor(restored.astype(np.float32))
    node.replace_input_with(1, ir_model.add_constant(graph, f"{weight.name}/rounded_for_{node.name}", tensor))


def rounded_weights(
    model: ir.Model,
    units: Sequence[Unit],
    kernels: IntegerKernels,
    samples: Iterable[Feeds],
    *,
    threads: int = 0,
    deadline: float = float("inf"),
    progress: Callable[[str], None] = lambda text: None,
) -> tuple[dict[str, Array], dict[str, Array]]:
    """int8 weights of the float weight's shape, and float32 scales for each output channel, by node.

    Args:
        model: The float graph.
        units: Of it; those of which :func:`why_not` gives a reason are left out, as are those that too few inputs are
            seen of.
        samples: Second moments are those seen on them.
        deadline: ``time.monotonic()`` after which the rest is left to rounding to nearest.
    """
    units = [unit for unit in units if unit.kind == "compute" and not why_not(unit.node)]
    kept = list(samples)
    rounded: dict[str, Array] = {}
    scales: dict[str, Array] = {}
    for group in in_turns(units, _moment_bytes, _GROUP_BYTES):
        if time.monotonic() > deadline:
            break
        progress(f"second moments of the inputs of {len(group)} products")
        found = _moments(model, group, kept, threads, deadline)
        for unit in [unit for unit in group if unit.name in found]:
            if time.monotonic() > deadline:
                break
            progress(f"rounding weight {len(rounded) + 1} of {len(units)}")
            rounded[unit.name], scales[unit.name] = _rounded(unit.node, found[unit.name], kernels.weight_bits)
    return rounded, scales


def inputs_of(node: ir.Node) -> int:
    """How many numbers go into one sum of a product with a constant weight."""
    weight = facts.static_dims(node.inputs[1])
    assert weight is not None
    if node.op_type == "Conv":
        return int(np.prod(weight[1:]))
    return weight[1] if node.op_type == "Gemm" and facts.attribute(node, "transB", 0) else weight[0]


def _count(node: ir.Node) -> int:
    return int(facts.attribute(node, "group", 1)) if node.op_type == "Conv" else 1


def _moment_bytes(unit: Unit) -> int:
    return 8 * _count(unit.node) * inputs_of(unit.node) ** 2


def _moments(
    model: ir.Model, units: Sequence[Unit], samples: Sequence[Feeds], threads: int, deadline: float
) -> Mapping[str, Array]:
    """The sum of x x' over the inputs x of each product, float64 [groups, K, K] by node, where enough were seen."""
    names = list(dict.fromkeys(unit.inputs[0].name or "" for unit in units))
    session = Session(tapped(model, names), optimize="all", threads=threads)
    rng = np.random.default_rng(0)
    sums: dict[str, Array] = {}
    counts: dict[str, int] = {}
    for feeds in samples:
        if time.monotonic() > deadline:
            break
        seen = session.run(feeds, names)
        for unit in units:
            rows = rows_of(unit.node, seen[unit.inputs[0].name or ""], lambda count: _some(count, rng))
            found = (rows.swapaxes(1, 2) @ rows).astype(np.float64)
            sums[unit.name] = sums.get(unit.name, 0.0) + found
            counts[unit.name] = counts.get(unit.name, 0) + rows.shape[1]
    least = {unit.name: _LEAST_ROWS * inputs_of(unit.node) for unit in units}
    return {name: found for name, found in sums.items() if counts[name] >= least[name]}


def rows_of(node: ir.Node, array: Array, some: Callable[[int], Array]) -> Array:
    """What goes into some sums of a product with a constant weight, float32 [groups, rows, numbers of a sum].

    Args:
        array: Its data; a matrix is not transposed.
        some: Which of so many sums are taken.
    """
    if node.op_type == "Conv":
        return patches(node, array, some)
    rows = array.reshape(-1, array.shape[-1])
    return rows[some(len(rows))][None].astype(np.float32)


def patches(node: ir.Node, array: Array, some: Callable[[int], Array]) -> Array:
    """Patches that a convolution sees, float32 [groups, patches, channels of a group * window].

    Args:
        array: Its input [batch, channels, ...].
        some: Which of so many positions are taken.
    """
    weight = facts.static_dims(node.inputs[1])
    assert weight is not None
    window = weight[2:]
    rank = len(window)
    strides, dilations = windows.steps(node, "strides", rank), windows.steps(node, "dilations", rank)
    pads = windows.pads(node)
    assert pads is not None
    padded = np.pad(array, [(0, 0), (0, 0), *((pads[axis], pads[axis + rank]) for axis in range(rank))])
    places = [
        (size - dilation * (length - 1) - 1) // stride + 1
        for size, length, stride, dilation in zip(padded.shape[2:], window, strides, dilations, strict=True)
    ]
    batch = array.shape[0]
    chosen = np.unravel_index(some(int(np.prod([batch, *places]))), (batch, *places))
    columns = []
    for offset in itertools.product(*(range(length) for length in window)):
        spatial = [chosen[axis + 1] * strides[axis] + offset[axis] * dilations[axis] for axis in range(rank)]
        place: tuple[Any, ...] = (chosen[0], slice(None), *spatial)
        columns.append(padded[place])
    # [patches, channels, window] -> [groups, patches, channels of a group * window]
    stacked = np.stack(columns, axis=-1).astype(np.float32)
    groups = _count(node)
    split = stacked.reshape(len(stacked), groups, -1)
    return np.ascontiguousarray(np.moveaxis(split, 1, 0))


def _some(count: int, rng: np.random.Generator) -> Array:
    return np.arange(count) if count <= _ROWS else np.sort(rng.choice(count, _ROWS, replace=False))


def _rounded(node: ir.Node, moments: Array, bits: int) -> tuple[Array, Array]:
    weight = facts.constant(node.inputs[1])
    assert weight is not None
    # One scale for all that is summed over.
    scheme = Scheme(bits, inputs_of(node), True)
    keeps = bool(facts.sparsity(node.inputs[1]))
    if node.op_type == "Conv":
        groups = _count(node)
        split = weight.reshape(groups, len(weight) // groups, -1)
        made = [
            gptq(part.T, found, scheme, keep_zeros=keeps) for part, found in zip(split, moments, strict=True)
        ]
        integers = np.concatenate([blocks.integers.T for blocks in made]).reshape(weight.shape)
        return integers, np.concatenate([blocks.scales[0] for blocks in made])
    transposed = node.op_type == "Gemm" and bool(facts.attribute(node, "transB", 0))
    blocks = gptq(weight.T if transposed else weight, moments[0], scheme, keep_zeros=keeps)
    return np.ascontiguousarray(blocks.integers.T if transposed else blocks.integers), blocks.scales[0]


__all__ = ["patches", "round_weight", "rounded_weights", "why_not"]
