"""What outputs lose to first order without each class, by gradients.

Zeroing the weights that read a channel changes an output by the sum of these weights times its gradient by them, to
first order (Molchanov et al., Importance Estimation for Neural Network Pruning, CVPR 2019). Without labels there is no
loss to take the gradient of; so outputs are projected on random signs, and the square of what the projection changes by
is expected to be that of what all outputs change by (Hutchinson 1990). Each output counts relative to its power.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from graphopt.data.interface import Feeds
from graphopt.errors import MissingExtraError
from graphopt.ir.facts import Array
from graphopt.prune.labels import PINNED, Indices
from graphopt.prune.structure import RECURRENT_AXIS, Structure
from graphopt.quant.positions import Positions
from graphopt.train.module import Weight, to_module
from graphopt.verify.padding import Padding

if TYPE_CHECKING:
    from torch import Tensor

_MOST_SAMPLES = 64
_LEAST_SAMPLES = 4
_SIGNS = np.array([-1, 1], np.float32)


def reading(structure: Structure) -> Iterator[tuple[ir.Value, int, Indices, int]]:
    """Weights that read what may be removed: the weight, its axis, the class of each index, and groups.

    In groups of a convolution the axis is that of one group, and the classes are those of all groups.
    """
    for layer in structure.layers:
        classes = structure.class_of(layer.data, layer.channel)
        if classes is not None and not layer.is_depthwise:
            yield layer.weight, layer.inner, classes, layer.groups
    for value, classes in structure.read_by_recurrent():
        yield value, RECURRENT_AXIS, classes, 1


def first_order(
    model: ir.Model,
    structure: Structure,
    samples: Sequence[Feeds],
    *,
    seed: int = 0,
    seconds: float = float("inf"),
    padding: Padding | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> Array:
    """The square of what outputs change by without each class, relative to their power: float64, one for each class.

    Args:
        padding: Positions that count nothing; None where all count.
        samples: As many of them as there is time for, a few at least.

    Raises:
        NotTrainableError: The graph has no differentiable form; names the node.
        MissingExtraError: PyTorch is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError("torch", "torch") from error
    module = to_module(model)
    positions = Positions(model, module.outputs, padding)
    parts = [entry for entry in reading(structure) if entry[0].name in module.weights]
    generator = np.random.default_rng(seed)
    found = np.zeros(len(structure.classes))
    started, count = time.monotonic(), 0
    for feeds in samples[:_MOST_SAMPLES]:
        if count >= _LEAST_SAMPLES and time.monotonic() - started > seconds:
            break
        progress(f"gradients of sample {count + 1}")
        outputs = [
            _at(tensor, positions.places(name, feeds, tuple(tensor.shape)))
            for name, tensor in zip(module.outputs, module(feeds), strict=True)
            if tensor.is_floating_point() and tensor.requires_grad
        ]
        if not outputs:
            break
        module.module.zero_grad()
        projected = [
            (tensor * torch.from_numpy(generator.choice(_SIGNS, tensor.shape))).sum()
            / tensor.detach().square().sum().sqrt().clamp_min(1e-30)
            for tensor in outputs
        ]
        torch.autograd.backward(torch.stack(projected).sum())
        found += np.square(_changes(module.weights, parts, len(found)))
        count += 1
    found[PINNED] = 0.0
    return found / max(count, 1)


def _at(tensor: Tensor, places: Array | None) -> Tensor:
    import torch

    return tensor if places is None else tensor[torch.from_numpy(places)]


def _changes(
    weights: Mapping[str, Weight], parts: Sequence[tuple[ir.Value, int, Indices, int]], size: int
) -> Array:
    """How the projected outputs change without each class, to first order."""
    change = np.zeros(size)
    for value, axis, classes, groups in parts:
        weight = weights[value.name or ""]
        gradient = weight.parameter.grad
        if gradient is None:
            continue
        products = (weight.parameter.detach() * gradient).numpy().astype(np.float64)
        blocks = np.split(products, groups) if groups > 1 else [products]
        for block, own in zip(blocks, classes.reshape(groups, -1), strict=True):
            others = tuple(place for place in range(block.ndim) if place != axis)
            np.add.at(change, own, block.sum(axis=others))
    return change


__all__ = ["first_order", "reading"]
