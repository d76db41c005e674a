"""What quantization adds to the mean of each output channel, taken out of the bias.

The mean of a product of quantized weights and activations differs from that of the float ones by ``Wq E[q(x)] - W
E[x]`` (Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, ICCV 2019, section 4.2,
with the rounding of activations besides). The means are those seen on the calibration data; that borders of a
convolution see zeros instead is left out of account.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from graphopt.data.interface import Feeds
from graphopt.ir import facts
from graphopt.ir.facts import Array
from graphopt.ir.model import tapped
from graphopt.quant.channels import channel_dim, input_axis, is_depthwise
from graphopt.quant.kernels import IntegerKernels, channel_axis, weight_of
from graphopt.quant.ranges import Range, affine, along, quantize_weight, weight_scales
from graphopt.quant.units import Unit
from graphopt.verify.session import Session

_HAS_BIAS = frozenset({"Conv", "Gemm"})


def bias_shifts(
    model: ir.Model,
    units: Sequence[Unit],
    kernels: IntegerKernels,
    ranges: Mapping[str, Range],
    samples: Iterable[Feeds],
    *,
    rounded: Mapping[str, Array] | None = None,
    scales: Mapping[str, Array] | None = None,
    threads: int = 0,
) -> dict[str, Array]:
    """What to add to the bias of each Conv and Gemm: float64 [output channels], by node.

    Args:
        model: The float graph.
        units: Of it.
        rounded, scales: Integer weights in place of those that are rounded to nearest, by node.
    """
    found = [unit for unit in units if unit.node.op_type in _HAS_BIAS and weight_of(unit.node) is not None]
    found = [unit for unit in found if input_axis(unit.node) is not None]
    if not found:
        return {}
    means = _means(model, found, kernels, ranges, samples, threads)
    return {
        unit.name: _shift(unit.node, *means[unit.inputs[0].name or ""], kernels, rounded or {}, scales or {})
        for unit in found
    }


def _means(
    model: ir.Model, units: Sequence[Unit], kernels: IntegerKernels, ranges: Mapping[str, Range],
    samples: Iterable[Feeds], threads: int,
) -> dict[str, tuple[Array, Array]]:  # fmt: skip
    """The mean of each channel of what the units read, in float and quantized, by tensor."""
    axes = {unit.inputs[0].name or "": channel_dim(unit.node) for unit in units}
    steps = {name: affine(ranges[name], kernels.limits, symmetric=kernels.symmetric) for name in axes}
    least, largest = kernels.limits
    session = Session(tapped(model, list(axes)), optimize="all", threads=threads)
    sums: dict[str, tuple[Array, Array]] = {}
    count = 0
    for feeds in samples:
        count += 1
        for name, array in session.run(feeds, list(axes)).items():
            others = tuple(other for other in range(array.ndim) if other != axes[name] % array.ndim)
            step = steps[name]
            integers = np.clip(np.rint(array / np.float32(step.scale)) + step.zero_point, least, largest)
            quantized = (integers - step.zero_point) * np.float32(step.scale)
            now = array.mean(axis=others, dtype=np.float64), quantized.mean(axis=others, dtype=np.float64)
            known = sums.get(name, (np.float64(0), np.float64(0)))
            sums[name] = known[0] + now[0], known[1] + now[1]
    return {name: (plain / count, quantized / count) for name, (plain, quantized) in sums.items()}


def _shift(
    node: ir.Node, mean: Array, quantized_mean: Array, kernels: IntegerKernels,
    rounded: Mapping[str, Array], scales: Mapping[str, Array],
) -> Array:  # fmt: skip
    weight, axis = facts.constant(node.inputs[1]), channel_axis(node)
    assert weight is not None
    steps = scales.get(node.name or "")
    steps = weight_scales(weight, axis, kernels.weight_limit) if steps is None else steps
    integers = rounded.get(node.name or "")
    integers = quantize_weight(weight, steps, axis, kernels.weight_limit) if integers is None else integers
    restored = integers * along(steps, axis, weight.ndim).astype(np.float64)
    return _product(node, axis, weight.astype(np.float64), mean) - _product(
        node, axis, restored, quantized_mean
    )


def _product(node: ir.Node, axis: int | None, weight: Array, mean: Array) -> Array:
    """What a weight makes of a constant input, for each output channel."""
    if is_depthwise(node):
        return np.asarray(weight.reshape(len(weight), -1).sum(axis=1) * mean)
    by_output = np.moveaxis(weight, 0 if axis is None else axis, 0)
    return np.asarray(by_output.reshape(*by_output.shape[:2], -1).sum(axis=2) @ mean)
