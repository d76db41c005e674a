"""A graph as a torch.fx module whose weights can be trained, and the way back.

Every node becomes one call of a plain function (:mod:`graphopt.train.operators`); every constant that is a weight
becomes a parameter, the others are buffers. Nothing of the graph's structure changes, so the way back writes the
parameters into the initializers they came from. Weights that the graph holds as integers (QDQ) are trained as float
numbers that each forward pass rounds as the integers will (quantization-aware training: Jacob et al., CVPR 2018), and
go back as integers.
"""

from __future__ import annotations

import hashlib
import inspect
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from graphopt.errors import GraphoptError
from graphopt.ir import facts
from graphopt.ir.facts import Array

if TYPE_CHECKING:
    from torch import Tensor, fx, nn

_WEIGHTS: Mapping[str, tuple[int, ...]] = {
    "BatchNormalization": (1, 2),
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "GRU": (1, 2, 3),
    "Gather": (0,),
    "Gemm": (1, 2),
    "GroupNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "LSTM": (1, 2, 3),
    "LayerNormalization": (1, 2),
    "MatMul": (0, 1),
    "PRelu": (1,),
    "RMSNormalization": (1,),
    "RNN": (1, 2, 3),
}
"""Operands that are weights where they are constant."""
_BESIDE = frozenset({"Add", "Div", "Mul", "Sub"})
"""Arithmetic whose constant is a weight where it holds one number for each channel of a layer."""
_IMAGES = frozenset(
    {
        "AveragePool",
        "BatchNormalization",
        "Conv",
        "ConvTranspose",
        "GroupNormalization",
        "InstanceNormalization",
        "MaxPool",
    }
)
_GIVE_CHANNELS = _IMAGES | {"Add", "Gemm", "LayerNormalization", "MatMul", "Mul", "RMSNormalization"}
_LARGEST = 1e4
"""Beyond which a constant is a mask and no weight."""


class NotTrainableError(GraphoptError):
    """A graph holds something that there is no differentiable form of; names the node."""


@dataclass(frozen=True)
class Rounding:
    """How a weight becomes integers.

    Attributes:
        scale, zero_point: As the DequantizeLinear has them.
        axis: Along which they lie.
        low, high: Range of the integers.
        dtype: Of the integers.
    """

    scale: Array
    zero_point: Array | None
    axis: int
    low: int
    high: int
    dtype: np.dtype[Any]

    def dequantized(self, integers: Array) -> Array:
        """The float numbers that integers stand for."""
        steps: Array = integers.astype(np.float64) - self._zero(integers)
        return np.asarray(steps * self._along(self.scale, integers))

    def quantized(self, weight: Array) -> Array:
        """The nearest integers."""
        exact = np.rint(weight.astype(np.float64) / self._along(self.scale, weight)) + self._zero(weight)
        found: Array = np.clip(exact, self.low, self.high).astype(self.dtype)
        return found

    def _zero(self, like: Array) -> Array:
        return np.zeros(()) if self.zero_point is None else self._along(self.zero_point, like)

    def _along(self, parameter: Array, like: Array) -> Array:
        whole = parameter.astype(np.float64)
        if whole.size == 1:
            return np.asarray(whole.reshape(()))
        return np.asarray(
            whole.reshape([-1 if place == self.axis % like.ndim else 1 for place in range(like.ndim)])
        )


@dataclass
class Weight:
    """A parameter and the constant that it came from.

    Attributes:
        name: Of the initializer.
        parameter: float32.
        rounding: Where the constant holds integers.
        mask: Where it may differ from zero; None where it may anywhere.
    """

    name: str
    parameter: nn.Parameter
    rounding: Rounding | None = None
    mask: Tensor | None = None


@dataclass
class Module:
    """A graph that can be trained.

    Attributes:
        module: Called with inputs in the order of ``inputs``; gives a tuple in the order of ``outputs``.
        inputs: Names.
        outputs: Names.
        weights: What is trained, by name of the initializer.
    """

    module: fx.GraphModule
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weights: dict[str, Weight] = field(default_factory=dict)

    def __call__(self, feeds: Mapping[str, Array]) -> tuple[Tensor, ...]:
        """Outputs as tensors.

        Raises:
            NotTrainableError: An operator does not cover what it is given.
        """
        import torch

        given = [torch.from_numpy(np.array(feeds[name], order="C")) for name in self.inputs]
        try:
            found: tuple[Tensor, ...] = self.module(*given)
        except (
            NotImplementedError,
            RuntimeError,
            IndexError,
            ValueError,
            TypeError,
            AssertionError,
        ) as error:
            raise NotTrainableError(f"there is no differentiable form of {error}") from error
        return found

    def mask(self) -> None:
        """Set weights to zero where they are to be."""
        import torch

        with torch.no_grad():
            for weight in self.weights.values():
                if weight.mask is not None:
                    weight.parameter.mul_(weight.mask)

    def write(self, model: ir.Model) -> None:
        """Put the weights into a model with the same initializers."""
        for name, weight in self.weights.items():
            value = model.graph.initializers[name]
            own = weight.parameter.detach().numpy()
            if weight.rounding is not None:
                array = weight.rounding.quantized(own)
            else:
                array = own.astype(facts.numpy_dtype(value) or np.float32)
            # A copy, since the parameter may go on changing.
            value.const_value = ir.tensor(np.array(array), name=name)


def to_module(model: ir.Model, outputs: Sequence[str] = ()) -> Module:
    """A graph as a module.

    Args:
        model: Types of its constants are known; left as it was.
        outputs: Names of values to give; those of the graph by default.

    Raises:
        NotTrainableError: A node has no differentiable form here; says which and why.
    """
    return _Builder(model).build(outputs or [value.name or "" for value in model.graph.outputs])


def zeros_of(value: ir.Value) -> str:
    """Hexadecimal digits of where the zeros of a constant are that are to stay; empty where none are."""
    content = facts.constant(value) if facts.SPARSITY in value.metadata_props else None
    return "" if content is None else hashlib.sha256(np.packbits(content == 0).tobytes()).hexdigest()


def weights_of(graph: ir.Graph) -> list[ir.Value]:
    """Constants that are weights, float or integer ones behind a DequantizeLinear, in the order of their first use."""
    found: dict[ir.Value, None] = {}
    for node in graph:
        if node.domain not in ("", "ai.onnx"):
            continue
        for place, value in enumerate(node.inputs):
            source = _integers_of(value) or value
            if source is None or not facts.is_constant(source):
                continue
            if _is_weight(node, place, source):
                found[source] = None
    return list(found)


def _integers_of(value: ir.Value | None) -> ir.Value | None:
    """The constant behind a DequantizeLinear, whose result this is."""
    node = None if value is None else value.producer()
    if node is None or node.op_type != "DequantizeLinear" or not facts.is_constant(node.inputs[0]):
        return None
    return node.inputs[0]


def _is_weight(node: ir.Node, place: int, value: ir.Value) -> bool:
    dims = facts.static_dims(value)
    integers = _integers_of(node.inputs[place]) is value
    if dims is None or not (facts.is_float(value) or integers):
        return False
    beside = node.op_type in _BESIDE and _is_by_channel(node, place, dims)
    if not beside and (
        place not in _WEIGHTS.get(node.op_type, ()) or (node.op_type == "Gather" and len(dims) != 2)
    ):
        return False
    content = facts.constant(value)
    # Masks and tables of positions are no weights.
    return content is not None and (integers or bool(np.abs(content).max(initial=0.0) < _LARGEST))


def _is_by_channel(node: ir.Node, place: int, dims: tuple[int, ...]) -> bool:
    """Whether what is added or multiplied is one number for each channel of what a layer gives."""
    if sum(size != 1 for size in dims) != 1:
        return False
    other = node.inputs[1 - place]
    maker = None if other is None else other.producer()
    if maker is None or maker.op_type not in _GIVE_CHANNELS:
        return False
    axis = next(index for index, size in enumerate(dims) if size != 1) - len(dims)
    rank = facts.rank(other) or 0
    return axis == (1 - rank if maker.op_type in _IMAGES else -1)


class _Builder:
    def __init__(self, model: ir.Model) -> None:
        import torch
        from torch import fx

        self._model = model
        self._torch = torch
        self._graph = fx.Graph()
        self._root = torch.nn.Module()
        self._known: dict[ir.Value, Any] = {}
        self._weights: dict[str, Weight] = {}
        # What branches and functions read is not run here.
        self._trained = frozenset(weights_of(model.graph))

    def build(self, outputs: Sequence[str]) -> Module:
        from torch import fx

        inputs = [value for value in self._model.graph.inputs if not value.is_initializer()]
        for index, value in enumerate(inputs):
            self._known[value] = self._graph.placeholder(f"input_{index}")
        wanted = set(outputs)
        by_name: dict[str, ir.Value] = {value.name or "": value for value in inputs}
        for node in _leading_to(self._model.graph, wanted):
            self._call(node)
            by_name |= {value.name or "": value for value in node.outputs}
        for name, value in self._model.graph.initializers.items():
            by_name.setdefault(name, value)
        self._graph.output(tuple(self._operand(by_name[name]) for name in outputs))
        self._graph.lint()
        module = fx.GraphModule(self._root, self._graph)
        return Module(module, tuple(value.name or "" for value in inputs), tuple(outputs), self._weights)

    def _call(self, node: ir.Node) -> None:
        from graphopt.train.operators import OPERATORS, SEVERAL, quantized

        name = node.name or node.op_type
        function = OPERATORS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        if function is None:
            raise NotTrainableError(
                f"there is no differentiable form of {'.'.join(filter(None, (node.domain, node.op_type)))} ({name!r})"
            )
        attributes = {key: self._attribute(attribute, name) for key, attribute in node.attributes.items()}
        self._check(function, attributes, node)
        source = _integers_of(node.outputs[0]) if node.op_type == "DequantizeLinear" else None
        if source is not None and source in self._trained:
            self._known[node.outputs[0]] = self._requantized(node, source, quantized.requantize)
            return
        operands = [None if value is None else self._operand(value) for value in node.inputs]
        while operands and operands[-1] is None:
            operands.pop()
        made = self._graph.call_function(function, tuple(operands), attributes)
        if node.op_type not in SEVERAL:
            self._known[node.outputs[0]] = made
            return
        for index, value in enumerate(node.outputs):
            if value.name:
                self._known[value] = self._graph.call_function(operator.getitem, (made, index))

    def _check(self, function: Callable[..., Any], attributes: Mapping[str, Any], node: ir.Node) -> None:
        try:
            parameters: Mapping[str, inspect.Parameter] = inspect.signature(function).parameters
        except ValueError:
            # A function of PyTorch itself takes operands alone.
            parameters = {}
        unknown = [key for key in attributes if key not in parameters]
        if unknown:
            raise NotTrainableError(
                f"the attribute {unknown[0]!r} of {node.op_type} ({node.name!r}) has no differentiable form"
            )

    def _attribute(self, attribute: ir.Attr, name: str) -> Any:
        value = attribute.value
        if attribute.type == ir.AttributeType.TENSOR:
            return self._buffer(attribute.as_tensor().numpy())
        if attribute.type in (ir.AttributeType.INT, ir.AttributeType.FLOAT, ir.AttributeType.STRING):
            return value
        if attribute.type in (ir.AttributeType.INTS, ir.AttributeType.FLOATS, ir.AttributeType.STRINGS):
            return list(value)
        raise NotTrainableError(f"{name!r} holds a graph or another attribute without a differentiable form")

    def _operand(self, value: ir.Value) -> Any:
        """What stands for a value in the module; constants are brought in when they are met."""
        if value not in self._known:
            content = facts.constant(value)
            if content is None:
                maker = value.producer()
                what = "what a branch reads" if maker is None else f"but the first output of {maker.op_type}"
                raise NotTrainableError(f"there is no differentiable form of {what} ({value.name!r})")
            self._known[value] = (
                self._parameter(value, content) if value in self._trained else self._buffer(content)
            )
        return self._known[value]

    def _parameter(self, value: ir.Value, content: Array, rounding: Rounding | None = None) -> Any:
        torch = self._torch
        mask = None
        if facts.SPARSITY in value.metadata_props:
            mask = torch.from_numpy(
                content != (0 if rounding is None else rounding.quantized(np.zeros_like(content, float)))
            )
        whole = (
            content.astype(np.float32)
            if rounding is None
            else rounding.dequantized(content).astype(np.float32)
        )
        parameter = torch.nn.Parameter(torch.from_numpy(np.array(whole)))
        name = f"weight_{len(self._weights)}"
        self._root.register_parameter(name, parameter)
        self._weights[value.name or ""] = Weight(value.name or "", parameter, rounding, mask)
        return self._graph.get_attr(name)

    def _buffer(self, content: Array) -> Any:
        torch = self._torch
        name = f"constant_{sum(1 for _ in self._root.buffers())}"
        try:
            tensor = torch.from_numpy(np.array(content))
        except TypeError as error:
            raise NotTrainableError(f"a constant of {content.dtype} has no form in PyTorch") from error
        self._root.register_buffer(name, tensor)
        return self._graph.get_attr(name)

    def _requantized(self, node: ir.Node, source: ir.Value, function: Callable[..., Any]) -> Any:
        """A weight that each pass rounds as its integers will."""
        content, scale = facts.constant(source), facts.constant(node.inputs[1])
        zero_point = facts.constant(node.inputs[2]) if len(node.inputs) > 2 else None
        if content is None or scale is None or facts.attribute(node, "block_size", 0):
            raise NotTrainableError(f"the scales of {node.name!r} are computed, or in blocks")
        axis = int(facts.attribute(node, "axis", 1))
        if content.dtype.kind not in "iu":
            raise NotTrainableError(f"{node.name!r} dequantizes {content.dtype}")
        if len(source.uses()) > 1:
            raise NotTrainableError(f"the integers {source.name!r} are read by more than one node")
        low, high = _range_of(content, zero_point)
        rounding = Rounding(scale, zero_point, axis, low, high, content.dtype)
        weight = self._known.get(source)
        if weight is None:
            weight = self._known[source] = self._parameter(source, content, rounding)
        zero = None if zero_point is None or not zero_point.any() else self._buffer(zero_point)
        return self._graph.call_function(
            function,
            (weight, self._buffer(scale), zero),
            {"axis": axis, "low": rounding.low, "high": rounding.high},
        )


def _range_of(content: Array, zero_point: Array | None) -> tuple[int, int]:
    """What integers of a weight may be: those of their type; symmetric ones no larger than they are, since kernels
    without room for more were given fewer bits (AVX2 adds products of bytes in 16 bits)."""
    info = np.iinfo(content.dtype)
    if info.min == 0 or info.bits > 8 or (zero_point is not None and zero_point.any()):
        return int(info.min), int(info.max)
    most = max(int(np.abs(content.astype(np.int64)).max(initial=0)), 1)
    return -most, min(most, int(info.max))


def _leading_to(graph: ir.Graph, names: Iterable[str]) -> list[ir.Node]:
    """Nodes that these values depend on, in order."""
    wanted = set(names)
    found: list[ir.Node] = []
    for node in reversed(list(graph)):
        if any(value.name in wanted for value in node.outputs):
            found.append(node)
            wanted.update(value.name or "" for value in node.inputs if value is not None)
    return found[::-1]


__all__ = ["Module", "NotTrainableError", "Rounding", "Weight", "to_module", "weights_of", "zeros_of"]
