"""LSTM(x, W, R, B, , h, c)  ==>  the products of all steps with W at once, then step by step: gates, cell, hidden state

Forms: ONNX's LSTM (specification: LSTM, equations with the default activations), forward, reverse and both, over a
number of steps that is known. TVM has no such operator; equal steps become the same kernels, so the library grows
little with their number.

Refuses: more than 512 steps or an unknown number, sequence lengths, peephole weights, activations of its own, clipping,
coupled gates, layout 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from graphopt.ir import facts
from graphopt.rewrite import Builder, Numerics, Refuse, Rewrite

_MOST_STEPS = 512
_ATTRIBUTES = ("activations", "activation_alpha", "activation_beta", "clip")


class UnrollLstm(Rewrite):
    """An LSTM in its steps."""

    name = "lstm-in-steps"
    roots = ("LSTM",)
    numerics = Numerics.REASSOCIATES

    def apply(self, node: ir.Node, build: Builder) -> Sequence[ir.Value | None] | None:
        """Y, and the last hidden and cell states, each with its axis of directions."""
        data = node.inputs[0]
        assert data is not None
        if data.dtype != ir.DataType.FLOAT:
            return None
        steps, batch, hidden = _check(node)
        weights = [_optional(node, slot) for slot in range(1, 7)]
        direction = facts.attribute(node, "direction", "forward")
        turns = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}[direction]
        made = [
            _direction(build, data, weights, index, backwards, (steps, batch, hidden))
            for index, backwards in enumerate(turns)
        ]
        results: list[ir.Value | None] = []
        for place, (like, values) in enumerate(zip(node.outputs, zip(*made, strict=True), strict=False)):
            if not like.name:
                # An output that is left out.
                results.append(None)
                continue
            axis = 1 if place == 0 else 0
            parts = [build.op("Unsqueeze", value, np.array([axis], np.int64)) for value in values]
            results.append(build.op("Concat", *parts, axis=axis, like=like))
        return results


def _check(node: ir.Node) -> tuple[int, int, int]:
    """Steps, batch and units.

    Raises:
        Refuse: It is not of the form above.
    """
    dims = facts.dims(node.inputs[0])
    hidden = facts.attribute(node, "hidden_size", 0) or 0
    if dims is None or len(dims) != 3 or not isinstance(dims[0], int) or not isinstance(dims[1], int):
        raise Refuse("the number of its steps, or of its rows, is not known")
    if dims[0] > _MOST_STEPS or not hidden:
        raise Refuse(f"it has {dims[0]} steps")
    if _optional(node, 4) is not None or _optional(node, 7) is not None:
        raise Refuse("it has sequence lengths or peephole weights")
    if any(facts.attribute(node, name, None) for name in _ATTRIBUTES):
        raise Refuse("it has activations of its own, or clips")
    if facts.attribute(node, "input_forget", 0) or facts.attribute(node, "layout", 0):
        raise Refuse("its gates are coupled, or its batch comes first")
    return dims[0], dims[1], hidden


def _optional(node: ir.Node, slot: int) -> ir.Value | None:
    return node.inputs[slot] if slot < len(node.inputs) else None


def _direction(
    build: Builder, data: ir.Value, weights: Sequence[ir.Value | None], index: int, backwards: bool,
    sizes: tuple[int, int, int],
) -> tuple[ir.Value, ir.Value, ir.Value]:  # fmt: skip
    """Y [steps, batch, units] and the last states [batch, units] of one direction."""
    steps, batch, hidden = sizes
    w, r, bias, _, h, c = weights
    arrays = [facts.constant(value) for value in (w, r)]
    biases = np.zeros(8 * hidden, np.float32) if bias is None else _row(bias, index)
    if any(array is None for array in arrays):
        raise Refuse("its weights are no constants")
    inputs, recurrent = (np.ascontiguousarray(array[index].T) for array in arrays)  # type: ignore[index]
    # Both biases are added to every gate.
    both = (biases[: 4 * hidden] + biases[4 * hidden :]).astype(np.float32)
    gates = build.op("Add", build.op("MatMul", data, build.constant(inputs)), build.constant(both))
    each = build.op("Split", gates, np.ones(steps, np.int64), outputs=steps, axis=0) if steps > 1 else gates
    producer = each.producer()
    assert producer is not None
    rows = list(producer.outputs) if steps > 1 else [gates]
    flat = np.array([batch, 4 * hidden], np.int64)
    kernel = build.constant(recurrent)
    hidden_state = _state(build, h, index, (batch, hidden))
    cell = _state(build, c, index, (batch, hidden))
    outputs: list[ir.Value] = []
    sizes_of_gates = np.full(4, hidden, np.int64)
    for step in range(steps):
        row = build.op("Reshape", rows[steps - 1 - step if backwards else step], flat)
        total = build.op("Add", row, build.op("MatMul", hidden_state, kernel))
        first = build.op("Split", total, sizes_of_gates, outputs=4, axis=1)
        splitting = first.producer()
        assert splitting is not None
        # ONNX's order: input, output, forget, cell.
        i, o, f, g = splitting.outputs
        kept = build.op("Mul", build.op("Sigmoid", f), cell)
        cell = build.op("Add", kept, build.op("Mul", build.op("Sigmoid", i), build.op("Tanh", g)))
        hidden_state = build.op("Mul", build.op("Sigmoid", o), build.op("Tanh", cell))
        outputs.append(hidden_state)
    front = np.array([0], np.int64)
    lined = [build.op("Unsqueeze", value, front) for value in (reversed(outputs) if backwards else outputs)]
    whole = build.op("Concat", *lined, axis=0) if steps > 1 else lined[0]
    return whole, hidden_state, cell


def _row(value: ir.Value, index: int) -> facts.Array:
    array = facts.constant(value)
    if array is None:
        raise Refuse("its biases are no constants")
    return np.asarray(array[index])


def _state(build: Builder, value: ir.Value | None, index: int, shape: tuple[int, int]) -> ir.Value:
    if value is None:
        return build.constant(np.zeros(shape, np.float32))
    taken = build.op("Gather", value, np.array(index, np.int64), axis=0)
    return build.op("Reshape", taken, np.array(shape, np.int64))


__all__ = ["UnrollLstm"]
