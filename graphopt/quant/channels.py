"""What is seen of each channel of a tensor, and where the channels lie in weights."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.data.interface import Feeds
from graphopt.ir import facts
from graphopt.ir.facts import Array
from graphopt.ir.model import tapped
from graphopt.verify.session import Session

_LEAST_SAMPLES = 4


@dataclass(frozen=True)
class Channels:
    """What was seen of each channel of a tensor: least, largest, mean, mean square; float64 arrays [channels]."""

    low: Array
    high: Array
    mean: Array
    power: Array


def observe_channels(
    model: ir.Model, axes: Mapping[str, int], samples: Iterable[Feeds], *, threads: int = 0,
    seconds: float = math.inf,
) -> dict[str, Channels]:  # fmt: skip
    """Look at the channels of tensors over all samples.

    Args:
        model: Left as it was.
        axes: The axis of the channels, by tensor name.
        seconds: After which the rest of the samples is left out; a few are always looked at.
    """
    names = list(axes)
    session = Session(tapped(model, names), optimize="all", threads=threads)
    found: dict[str, Channels] = {}
    started = time.monotonic()
    for count, feeds in enumerate(samples, 1):
        if count > _LEAST_SAMPLES and time.monotonic() - started > seconds:
            break
        for name, array in session.run(feeds, names).items():
            now = _channels(array, axes[name] % array.ndim)
            known = found.get(name)
            found[name] = now if known is None else _merged(known, now, count)
    return found


def _channels(array: Array, axis: int) -> Channels:
    others = tuple(other for other in range(array.ndim) if other != axis)
    return Channels(
        array.min(axis=others).astype(np.float64),
        array.max(axis=others).astype(np.float64),
        array.mean(axis=others, dtype=np.float64),
        np.square(array, dtype=np.float64).mean(axis=others),
    )


def _merged(known: Channels, now: Channels, count: int) -> Channels:
    return Channels(
        np.minimum(known.low, now.low),
        np.maximum(known.high, now.high),
        known.mean + (now.mean - known.mean) / count,
        known.power + (now.power - known.power) / count,
    )


def is_depthwise(node: ir.Node) -> bool:
    """Whether a convolution reads one input channel for each output channel."""
    weight = facts.dims(node.inputs[1])
    return (
        node.op_type == "Conv"
        and weight is not None
        and facts.attribute(node, "group", 1) > 1
        and weight[1] == 1
    )


def input_axis(node: ir.Node) -> int | None:
    """The axis of a weight that counts input channels (of a depthwise convolution: its channels); None without one."""
    if node.op_type == "Conv":
        if is_depthwise(node):
            weight = facts.dims(node.inputs[1])
            return 0 if weight is not None and weight[0] == facts.attribute(node, "group", 1) else None
        return 1 if facts.attribute(node, "group", 1) == 1 else None
    if node.op_type == "MatMul":
        return 0 if facts.rank(node.inputs[1]) == 2 else None
    if node.op_type == "Gemm":
        return 1 if facts.attribute(node, "transB", 0) else 0
    return None


def channel_dim(node: ir.Node) -> int:
    """The axis of an activation that counts the input channels of a Conv, MatMul or Gemm."""
    return 1 if node.op_type == "Conv" else -1


def by_input(node: ir.Node) -> Array:
    """A weight as [input channels, everything else]; of a depthwise convolution [channels, window]."""
    array, axis = facts.constant(node.inputs[1]), input_axis(node)
    assert array is not None and axis is not None
    return np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)
