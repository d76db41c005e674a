"""What of a graph can be removed together: classes of indices, in groups that share an axis of some layer."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graphopt.ir import facts
from graphopt.ir import model as ir_model
from graphopt.ir.symbolic import refine
from graphopt.prune.flow import Flow, follow
from graphopt.prune.labels import PINNED, Axis, Indices, Labels

Mask = npt.NDArray[np.bool_]
RECURRENT = frozenset({"LSTM", "GRU", "RNN"})
RECURRENT_AXIS = 2
W, R = 1, 2
"""Operands of these: weights of the data and of the hidden state, whose last axis is summed over."""


@dataclass(frozen=True)
class Layer:
    """A product with a constant weight.

    Attributes:
        node: Conv, ConvTranspose, MatMul or Gemm.
        weight: Its weight.
        out: The weight's axis of outputs.
        inner: The weight's axis of inputs.
        data: What it multiplies with the weight.
        channel: The axis of ``data`` that is multiplied away.
        groups: Of a convolution.
    """

    node: ir.Node
    weight: ir.Value
    out: int
    inner: int
    data: ir.Value
    channel: int
    groups: int = 1

    @property
    def name(self) -> str:
        """Of the node."""
        return name_of(self.node)

    @property
    def is_depthwise(self) -> bool:
        """Whether each output has one input."""
        return self.groups > 1 and facts.dims(self.weight)[self.inner] == 1  # type: ignore[index]


def name_of(node: ir.Node) -> str:
    """What a node is called in reports."""
    return node.name or node.op_type


def layers_of(graph: ir.Graph) -> list[Layer]:
    """The layers of a graph, in order."""
    return [layer for node in graph if (layer := _layer(node)) is not None]


def recurrent_of(graph: ir.Graph) -> list[ir.Node]:
    """LSTM, GRU and RNN of a graph, in order."""
    return [node for node in graph if node.op_type in RECURRENT and not node.domain]


def _layer(node: ir.Node) -> Layer | None:
    if node.domain not in ("", "ai.onnx") or len(node.inputs) < 2:
        return None
    data, weight = node.inputs[0], node.inputs[1]
    if data is None or weight is None:
        return None
    groups = facts.attribute(node, "group", 1)
    if node.op_type in ("Conv", "ConvTranspose"):
        out, inner = (0, 1) if node.op_type == "Conv" else (1, 0)
        found = Layer(node, weight, out, inner, data, 1, groups)
    elif node.op_type == "Gemm":
        out, inner = (0, 1) if facts.attribute(node, "transB", 0) else (1, 0)
        found = Layer(node, weight, out, inner, data, 0 if facts.attribute(node, "transA", 0) else 1)
    elif node.op_type == "MatMul" and facts.rank(weight) == 2:
        found = Layer(node, weight, 1, 0, data, (facts.rank(data) or 1) - 1)
    else:
        return None
    return (
        found
        if facts.is_constant(weight) and facts.is_float(weight) and not facts.is_constant(data)
        else None
    )


@dataclass(frozen=True)
class Group:
    """Classes that share an axis: the channels of a layer, the heads of an attention, the neurons of a gated unit.

    Attributes:
        name: Of its first layer.
        classes: Smallest first.
        size: How many indices of that layer's axis one class takes.
        readers: Layers that read them.
        width: Channels of the first layer.
    """

    name: str
    classes: tuple[int, ...]
    size: int
    readers: tuple[Layer, ...]
    width: int


@dataclass
class Structure:
    """What can be removed from a graph.

    Attributes:
        flow: Labels of all tensors.
        classes: Of each label.
        groups: What can be removed, in the order of the graph.
        refused: Layers of which nothing can be removed, by name, each with the node that prevents it and the reason.
        layers: All of them.
        recurrent: LSTM, GRU and RNN.
    """

    flow: Flow
    classes: Indices
    groups: list[Group] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    layers: list[Layer] = field(default_factory=list)
    recurrent: list[ir.Node] = field(default_factory=list)

    @property
    def labels(self) -> Labels:
        """Of all tensors."""
        return self.flow.labels

    @functools.cached_property
    def axes(self) -> tuple[tuple[int, ...], ...]:
        """The classes on each axis that could lose all it has, each set once; groups of convolutions count as axes."""
        found = {
            tuple(np.unique(self.classes[labels]).tolist())
            for labels in (*self.labels.all_axes(), *(row for rows in self.flow.balanced for row in rows))
        }
        return tuple(sorted(classes for classes in found if PINNED not in classes))

    def outputs_of(self, node: ir.Node) -> frozenset[int]:
        """The classes that a node's outputs have."""
        found: set[int] = set()
        for value in node.outputs:
            for axis in range(facts.rank(value) or 0):
                classes = self.class_of(value, axis)
                found.update(() if classes is None else classes.tolist())
        return frozenset(found)

    def class_of(self, value: ir.Value | None, axis: int) -> Axis:
        """The class of each index of an axis; None where nothing of it may be removed.

        Of an axis of unknown size along which classes repeat: those that repeat.
        """
        labels = self.labels.of(value, axis)
        if labels is None:
            labels = self.labels.merged(value).get(axis % (facts.rank(value) or 1))
        return None if labels is None else self.classes[labels]

    def read_by_recurrent(self) -> list[tuple[ir.Value, Indices]]:
        """Weights of LSTM, GRU and RNN with the class of each number that goes into their sums (their last axis)."""
        return [
            (value, self.classes[labels])
            for value, axis, labels in self.labels.constants()
            if axis == RECURRENT_AXIS
            and any(use.node.op_type in RECURRENT and use.idx in (W, R) for use in value.uses())
        ]

    def keeper(self, removed: Iterable[int]) -> Callable[[ir.Value | None, int], Mask | None]:
        """From an axis of a value to what is kept of it where these classes are removed; None where all is."""
        gone = np.zeros(len(self.classes), bool)
        gone[list(removed)] = True
        gone[PINNED] = False

        def keep(value: ir.Value | None, axis: int) -> Mask | None:
            found = self.class_of(value, axis)
            if found is None:
                return None
            mask: Mask = ~gone[found]
            return None if mask.all() else mask

        return keep


def separate(model: ir.Model) -> ir.Model:
    """A copy in which no two nodes read the same float constant: what they share would tie their channels.

    The numbers themselves stay shared.
    """
    copy = ir_model.clone(model)
    graph = copy.graph
    for value in list(graph.initializers.values()):
        uses = list(value.uses())
        if len(uses) < 2 or not facts.is_constant(value) or not facts.is_float(value):
            continue
        for number, use in enumerate(uses[1:], 1):
            if use.node.graph is not graph or value.const_value is None:
                continue
            name = f"{value.name}/copy_{number}"
            own = ir.Value(name=name, type=value.type, shape=value.shape, const_value=value.const_value)
            graph.register_initializer(own)
            use.node.replace_input_with(use.idx, own)
    return copy


def analyse(model: ir.Model) -> Structure:
    """Find what can be removed from a model; shapes have been inferred, and are made more precise."""
    refine(model.graph)
    flow = follow(model.graph)
    layers = layers_of(model.graph)
    for layer in layers:
        # Asked for here, so that a layer whose outputs nothing may remove has labels as well.
        flow.labels.of(layer.weight, layer.out)
    structure = Structure(flow, flow.labels.classes(), layers=layers, recurrent=recurrent_of(model.graph))
    structure.groups = _groups(structure)
    structure.refused = _refused(structure)
    return structure


def _makes(structure: Structure, layer: Layer) -> Indices:
    """Classes of a layer's outputs that may be removed, one for each index; pinned ones left out."""
    found = structure.class_of(layer.weight, layer.out)
    if found is None or layer.is_depthwise:
        return np.empty(0, np.int64)
    if layer.node.op_type == "ConvTranspose" and layer.groups > 1:
        return np.empty(0, np.int64)
    open_: Indices = found[found != PINNED]
    return open_


def _groups(structure: Structure) -> list[Group]:
    import networkx

    together: networkx.Graph[int] = networkx.Graph()
    makers: list[tuple[Layer, Indices]] = []
    for layer in structure.layers:
        made = _makes(structure, layer)
        if len(made):
            makers.append((layer, made))
            networkx.add_path(together, dict.fromkeys(made.tolist()))
    recurrent = recurrent_units(structure)
    for _, made in recurrent.values():
        networkx.add_path(together, dict.fromkeys(made.tolist()))
    number: dict[int, int] = {}
    for index, component in enumerate(networkx.connected_components(together)):
        number.update(dict.fromkeys(component, index))
    own: dict[int, list[tuple[Layer, Indices]]] = {}
    for layer, made in makers:
        own.setdefault(number[int(made[0])], []).append((layer, made))
    readers: dict[int, list[Layer]] = {}
    for layer in structure.layers:
        read = structure.class_of(layer.data, layer.channel)
        for index in dict.fromkeys(
            number[one] for one in (() if read is None else read.tolist()) if one in number
        ):
            if not layer.is_depthwise:
                readers.setdefault(index, []).append(layer)
    members: dict[int, list[int]] = {}
    for one, index in number.items():
        members.setdefault(index, []).append(one)
    names = {number[int(made[0])]: name for name, (_, made) in recurrent.items()}
    found = []
    for index, classes in members.items():
        layers = own.get(index, [])
        first = layers[0][1] if layers else np.asarray(sorted(classes))
        name = layers[0][0].name if layers else names[index]
        found.append(
            Group(
                name,
                tuple(sorted(classes)),
                len(first) // len(np.unique(first)),
                tuple(readers.get(index, ())),
                len(first),
            )
        )
    return found


def recurrent_units(structure: Structure) -> dict[str, tuple[str, Indices]]:
    """The operator and the classes of hidden units that may be removed, by the name of the node."""
    found = {}
    for value, classes in structure.read_by_recurrent():
        for use in value.uses():
            # W reads the data, R the units themselves.
            if use.idx == R and (classes != PINNED).any():
                found[name_of(use.node)] = use.node.op_type, classes[classes != PINNED]
    return found


def _refused(structure: Structure) -> dict[str, str]:
    """Why layers lose nothing: the pin that their outputs are tied to."""
    pinned_by = np.full(len(structure.classes), -1, np.int64)
    for index, pin in enumerate(structure.labels.pins):
        fresh = pin.labels[pinned_by[pin.labels] < 0]
        pinned_by[fresh] = index
    found = {}
    ties = _near_pins(structure, pinned_by)
    for layer in structure.layers:
        labels = structure.labels.of(layer.weight, layer.out)
        if labels is None or (structure.classes[labels] != PINNED).any():
            continue
        index = next((int(ties[label]) for label in labels.tolist() if ties[label] >= 0), -1)
        if index < 0:
            found[layer.name] = "nothing of it may be removed"
            continue
        pin = structure.labels.pins[index]
        found[layer.name] = f"{pin.node!r}: {pin.reason}" if pin.node else pin.reason
    return found


def _near_pins(structure: Structure, pinned_by: Indices) -> Indices:
    """For each label the pin that it is tied to over other labels; -1 where there is none."""
    found = pinned_by.copy()
    ties = structure.labels.ties()
    changed = True
    while changed:
        changed = False
        for left, right in ties:
            real = (left != PINNED) & (right != PINNED)
            a, b = left[real], right[real]
            for source, goal in ((a, b), (b, a)):
                waiting = (found[goal] < 0) & (found[source] >= 0)
                if waiting.any():
                    found[goal[waiting]] = found[source[waiting]]
                    changed = True
    near: Indices = found
    return near


__all__ = ["Group", "Layer", "Mask", "Structure", "analyse", "layers_of", "recurrent_units", "separate"]
