"""LSTM(x, W, R, B, , h, c)  ==>  the products of all steps with W at once, then step by step: gates and states

Forms: ONNX's LSTM, GRU (the reset gate before or after the recurrent product) and RNN (specification: their
equations), forward, reverse and both, over a number of steps that is known, with their own activations or others that
have no parameters. TVM has no such operators; equal steps become the same kernels, so the library grows little with
their number.

Refuses: more than 512 steps or an unknown number, sequences of several lengths, peephole weights, activations with
parameters, clipping, coupled gates, layout 1.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graphopt.ir import facts
from graphopt.rewrite import Builder, Numerics, Refuse, Rewrite

_MOST_STEPS = 512
_PARAMETERS = ("activation_alpha", "activation_beta", "clip")
_ACTIVATIONS = frozenset({"Relu", "Sigmoid", "Softplus", "Softsign", "Tanh"})


@dataclass(frozen=True)
class _Layer:
    """One direction.

    Attributes:
        build: Of the nodes.
        activations: As ONNX orders them.
        recurrent: R, transposed: [units, gates x units].
        bias: What is added to the products with W: [gates x units].
        late_bias: What is added to the last gate's product with R before the reset gate is multiplied; None where the
            reset gate is multiplied before the product.
        hidden: Units.
    """

    build: Builder
    activations: tuple[str, ...]
    recurrent: facts.Array
    bias: facts.Array
    late_bias: facts.Array | None
    hidden: int

    def active(self, place: int, value: ir.Value) -> ir.Value:
        """An activation by its place."""
        return self.build.op(self.activations[place], value)

    def split(self, value: ir.Value, gates: int) -> list[ir.Value]:
        """Values [rows, gates x units] gate by gate."""
        return _split(self.build, value, np.full(gates, self.hidden, np.int64), axis=1)

    def product(self, state: ir.Value, first: int, last: int) -> ir.Value:
        """The product of a state with the columns of R that belong to the gates from ``first`` to before ``last``."""
        columns = self.recurrent[:, first * self.hidden : last * self.hidden]
        return self.build.op("MatMul", state, self.build.constant(np.ascontiguousarray(columns)))


class _Unroll(Rewrite):
    """What LSTM, GRU and RNN have in common.

    Class attributes:
        states: States that go from step to step, the hidden one first.
        defaults: Activations.
    """

    numerics = Numerics.REASSOCIATES
    states: ClassVar[int] = 1
    defaults: ClassVar[tuple[str, ...]]

    @abc.abstractmethod
    def step(self, layer: _Layer, inputs: ir.Value, states: Sequence[ir.Value]) -> tuple[ir.Value, ...]:
        """The states after one step.

        Args:
            layer: The direction.
            inputs: The products of this step with W and the bias: [rows, gates x units].
            states: Those before: [rows, units].
        """

    def apply(self, node: ir.Node, build: Builder) -> Sequence[ir.Value | None] | None:
        """Y, and the last states, each with its axis of directions."""
        data = node.inputs[0]
        assert data is not None
        if data.dtype != ir.DataType.FLOAT:
            return None
        sizes = _check(node)
        direction = facts.attribute(node, "direction", "forward")
        turns = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}[direction]
        made = [
            self._direction(node, build, data, index, backwards, sizes)
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

    def _direction(
        self,
        node: ir.Node,
        build: Builder,
        data: ir.Value,
        index: int,
        backwards: bool,
        sizes: tuple[int, int, int],
    ) -> tuple[ir.Value, ...]:
        """Y [steps, rows, units] and the last states [rows, units]."""
        steps, batch, hidden = sizes
        layer = self._layer(node, build, index, hidden)
        inputs = build.constant(np.ascontiguousarray(_constant(node, 1, index).T))
        products = build.op("Add", build.op("MatMul", data, inputs), build.constant(layer.bias))
        rows = _split(build, products, np.ones(steps, np.int64), axis=0)
        flat = np.array([batch, layer.bias.size], np.int64)
        states: tuple[ir.Value, ...] = tuple(
            _state(build, _optional(node, 5 + place), index, (batch, hidden)) for place in range(self.states)
        )
        outputs = []
        for row in reversed(rows) if backwards else rows:
            states = self.step(layer, build.op("Reshape", row, flat), states)
            outputs.append(states[0])
        front = np.array([0], np.int64)
        lined = [
            build.op("Unsqueeze", value, front) for value in (reversed(outputs) if backwards else outputs)
        ]
        return (build.op("Concat", *lined, axis=0) if steps > 1 else lined[0], *states)

    def _layer(self, node: ir.Node, build: Builder, index: int, hidden: int) -> _Layer:
        recurrent = np.ascontiguousarray(_constant(node, 2, index).T)
        size = recurrent.shape[1]
        biases = np.zeros(2 * size, np.float32) if _optional(node, 3) is None else _constant(node, 3, index)
        of_inputs, of_states = biases[:size], biases[size:].copy()
        late_bias = None
        if facts.attribute(node, "linear_before_reset", 0):
            late_bias = of_states[-hidden:].copy()
            of_states[-hidden:] = 0
        bias = (of_inputs + of_states).astype(np.float32)
        return _Layer(build, self._activations(node, index), recurrent, bias, late_bias, hidden)

    def _activations(self, node: ir.Node, index: int) -> tuple[str, ...]:
        given = facts.attribute(node, "activations", None)
        if not given:
            return self.defaults
        count = len(self.defaults)
        chosen = tuple(str(name).capitalize() for name in given[index * count : (index + 1) * count])
        if len(chosen) < count or not _ACTIVATIONS.issuperset(chosen):
            raise Refuse(f"its activations are {', '.join(map(str, given))}")
        return chosen


class UnrollLstm(_Unroll):
    """An LSTM in its steps."""

    name = "lstm-in-steps"
    roots = ("LSTM",)
    states, defaults = 2, ("Sigmoid", "Tanh", "Tanh")

    def step(self, layer: _Layer, inputs: ir.Value, states: Sequence[ir.Value]) -> tuple[ir.Value, ...]:
        build, (state, cell) = layer.build, states
        # ONNX's order: input, output, forget, cell.
        i, o, f, g = layer.split(build.op("Add", inputs, layer.product(state, 0, 4)), 4)
        kept = build.op("Mul", layer.active(0, f), cell)
        cell = build.op("Add", kept, build.op("Mul", layer.active(0, i), layer.active(1, g)))
        return build.op("Mul", layer.active(0, o), layer.active(2, cell)), cell


class UnrollGru(_Unroll):
    """A GRU in its steps."""

    name = "gru-in-steps"
    roots = ("GRU",)
    defaults = ("Sigmoid", "Tanh")

    def step(self, layer: _Layer, inputs: ir.Value, states: Sequence[ir.Value]) -> tuple[ir.Value, ...]:
        build, (state,) = layer.build, states
        # ONNX's order: update, reset, hidden.
        of_inputs = layer.split(inputs, 3)
        gates = 2 if layer.late_bias is None else 3
        products = layer.split(layer.product(state, 0, gates), gates)
        z, r = (layer.active(0, build.op("Add", of_inputs[gate], products[gate])) for gate in (0, 1))
        if layer.late_bias is None:
            product = layer.product(build.op("Mul", r, state), 2, 3)
        else:
            product = build.op("Mul", r, build.op("Add", products[2], build.constant(layer.late_bias)))
        new = layer.active(1, build.op("Add", of_inputs[2], product))
        # (1 - z) * new + z * state
        return (build.op("Add", new, build.op("Mul", z, build.op("Sub", state, new))),)


class UnrollRnn(_Unroll):
    """An RNN in its steps."""

    name = "rnn-in-steps"
    roots = ("RNN",)
    defaults = ("Tanh",)

    def step(self, layer: _Layer, inputs: ir.Value, states: Sequence[ir.Value]) -> tuple[ir.Value, ...]:
        return (layer.active(0, layer.build.op("Add", inputs, layer.product(states[0], 0, 1))),)


def _check(node: ir.Node) -> tuple[int, int, int]:
    """Steps, rows and units.

    Raises:
        Refuse: It is not of the form above.
    """
    dims = facts.dims(node.inputs[0])
    hidden = facts.attribute(node, "hidden_size", 0) or 0
    if dims is None or len(dims) != 3 or not isinstance(dims[0], int) or not isinstance(dims[1], int):
        raise Refuse("the number of its steps, or of its rows, is not known")
    if not 0 < dims[0] <= _MOST_STEPS or not hidden:
        raise Refuse(f"it has {dims[0]} steps")
    if not _all_steps(_optional(node, 4), dims[0]) or _optional(node, 7) is not None:
        raise Refuse("it has sequences of several lengths, or peephole weights")
    if any(facts.attribute(node, name, None) for name in _PARAMETERS):
        raise Refuse("it has activations with parameters, or clips")
    if facts.attribute(node, "input_forget", 0) or facts.attribute(node, "layout", 0):
        raise Refuse("its gates are coupled, or its batch comes first")
    return dims[0], dims[1], hidden


def _all_steps(lengths: ir.Value | None, steps: int) -> bool:
    """Whether each sequence has all steps."""
    array = None if lengths is None else facts.constant(lengths)
    return lengths is None or (array is not None and bool((array == steps).all()))


def _optional(node: ir.Node, slot: int) -> ir.Value | None:
    return node.inputs[slot] if slot < len(node.inputs) else None


def _constant(node: ir.Node, slot: int, index: int) -> facts.Array:
    """What a constant operand holds for one direction."""
    array = facts.constant(_optional(node, slot))
    if array is None:
        raise Refuse("its weights are no constants")
    return np.asarray(array[index])


def _split(build: Builder, value: ir.Value, sizes: facts.Array, axis: int) -> list[ir.Value]:
    if len(sizes) == 1:
        return [value]
    producer = build.op("Split", value, sizes, outputs=len(sizes), axis=axis).producer()
    assert producer is not None
    return list(producer.outputs)


def _state(build: Builder, value: ir.Value | None, index: int, shape: tuple[int, int]) -> ir.Value:
    if value is None:
        return build.constant(np.zeros(shape, np.float32))
    taken = build.op("Gather", value, np.array(index, np.int64), axis=0)
    return build.op("Reshape", taken, np.array(shape, np.int64))


__all__ = ["UnrollGru", "UnrollLstm", "UnrollRnn"]
