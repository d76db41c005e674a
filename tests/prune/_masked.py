"""The original with zeros in place of what was removed: what a pruned model is to equal."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from graphopt.ir import model as ir_model
from graphopt.prune.structure import Structure

RECURRENT = ("LSTM", "GRU", "RNN")


def masked(model: ir.Model, structure: Structure, removed: Iterable[int]) -> ir.Model:
    """A copy of a model whose weights are zero wherever a layer reads what was removed."""
    copy = ir_model.clone(model)
    gone = np.zeros(len(structure.classes), bool)
    gone[list(removed)] = True

    def zero(value: ir.Value, axis: int, mask: np.ndarray, groups: int = 1) -> None:
        own = copy.graph.initializers[value.name or ""]
        assert own.const_value is not None
        array = own.const_value.numpy().copy()
        if groups == 1:
            array[(slice(None),) * axis + (mask,)] = 0
        else:
            for part, chosen in zip(np.split(array, groups), mask.reshape(groups, -1), strict=True):
                part[:, chosen] = 0
        own.const_value = ir.tensor(array, name=value.name)

    for layer in structure.layers:
        classes = structure.class_of(layer.data, layer.channel)
        if classes is not None and not layer.is_depthwise:
            zero(layer.weight, layer.inner, gone[classes], layer.groups)
    for value, axis, labels in structure.labels.constants():
        if axis == 2 and any(use.node.op_type in RECURRENT for use in value.uses()):
            zero(value, 2, gone[structure.classes[labels]])
    return copy
