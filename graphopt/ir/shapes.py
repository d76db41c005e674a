"""Element types and shapes: inference over the whole model, and specialisation to given input shapes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

import onnx_ir as ir

from graphopt.errors import SpecError, UnknownNameError, UsageError
from graphopt.ir.graphs import paused_collection, subgraphs_of_attribute
from graphopt.ir.outline import skeleton

if TYPE_CHECKING:
    import onnx

Dims: TypeAlias = "tuple[int | None, ...]"
_LARGEST_SIZE = 2**31 - 1
_NOT_INFERRED = frozenset({"GroupNormalization", "MeanVarianceNormalization"})
"""Functions of ONNX whose inference gives nothing, though their result is like their first operand."""
_PLACEHOLDERS = frozenset({"", "None", "none", "?", "-1", "unk", "unknown", "dynamic"})


_INVENTED = re.compile(r"unk__\d+")


def is_invented(name: str) -> bool:
    """Whether ONNX's shape inference named a dimension so, of which it knows nothing."""
    return _INVENTED.fullmatch(name) is not None


def size_or_name(dim: int | ir.SymbolicDim) -> int | str | None:
    """A size, or the name of a dynamic dimension; None where it is unknown, for which exporters write -1 or "None"."""
    if isinstance(dim, int):
        return dim if dim >= 0 else None
    return None if dim.value in _PLACEHOLDERS else dim.value


def shown(shape: ir.Shape) -> str:
    """A shape for people: ``[n,3,?]``."""
    dims = map(size_or_name, shape)
    return f"[{','.join('?' if dim is None else str(dim) for dim in dims)}]"


def infer(model: ir.Model) -> bool:
    """Infer element types and shapes of all values, subgraphs included, in place.

    Runs ONNX's own inference with data propagation on the model without its large weights. What was known and is
    more precise stays. Never raises: where inference fails, what is known stays as it is.

    Returns:
        Whether inference ran through.
    """
    import onnx

    with paused_collection():
        try:
            proto, _ = skeleton(model)
            for node in proto.graph.node:
                if node.op_type in _NOT_INFERRED and node.domain == "":
                    # Identity says the same of its result.
                    node.op_type = "Identity"
                    del node.attribute[:], node.input[1:]
            inferred = onnx.shape_inference.infer_shapes(
                proto, check_type=False, strict_mode=False, data_prop=True
            )
        except Exception:  # the C++ side raises several unrelated classes; by contract nothing is lost
            return False
        del proto
        _Merge().graph(model.graph, inferred.graph)
    return True


def infer_anew(model: ir.Model) -> bool:
    """As :func:`infer`, from inputs and constants alone: what is declared within stands only where that says less.

    Exporters declare what an example had, so a size within may contradict the inputs, whose sizes are open.
    """
    symbols = {name for value in model.graph.inputs for name in map(size_or_name, value.shape or ()) if name}
    declared = _drop_inner_shapes(model)
    inferred = infer(model)
    restored = False
    for value, shape in declared:
        known = value.shape
        if known is None:
            value.shape = shape
        elif len(known) == len(shape):
            value.shape = ir.Shape(
                [
                    new if isinstance(new, int) or new.value in symbols or size_or_name(old) is None else old
                    for old, new in zip(shape, known, strict=True)
                ]
            )
        restored |= value.shape != known
    return infer(model) if restored else inferred


class _Merge:
    """Takes over what was inferred. Nodes are in the same order on both sides, so subgraphs pair up."""

    def __init__(self) -> None:
        self._shapes: dict[tuple[int | str | None, ...], ir.Shape] = {}

    def graph(self, graph: ir.Graph, proto: onnx.GraphProto) -> None:
        infos = {info.name: info.type for info in proto.value_info}
        infos.update((info.name, info.type) for info in proto.output)
        for node, message in zip(graph, proto.node, strict=True):
            for value in node.outputs:
                info = infos.get(value.name or "")
                if info is not None:
                    self.value(value, info)
            if node.attributes:
                self.subgraphs(node, message)

    def subgraphs(self, node: ir.Node, message: onnx.NodeProto) -> None:
        for attribute in message.attribute:
            mine = node.attributes.get(attribute.name)
            inner = () if mine is None else subgraphs_of_attribute(mine)
            if not inner:
                continue
            protos = [attribute.g] if attribute.HasField("g") else list(attribute.graphs)
            for graph, proto in zip(inner, protos, strict=True):
                for value, info in zip(graph.inputs, proto.input, strict=True):
                    self.value(value, info.type)
                self.graph(graph, proto)

    def value(self, value: ir.Value, inferred: onnx.TypeProto) -> None:
        if not inferred.HasField("tensor_type"):
            type_ = ir.serde.deserialize_type_proto_for_type(inferred)
            if type_ is not None and value.type is None:
                value.type = type_
            return
        tensor = inferred.tensor_type
        if tensor.elem_type and (value.dtype is None or value.dtype != tensor.elem_type):
            known = value.dtype not in (None, ir.DataType.UNDEFINED)
            # What the model's caller was promised stays, even where it is wrong: the verifier reports the clash.
            if not (known and value.is_graph_output()):
                value.type = ir.TensorType(ir.DataType(tensor.elem_type))
        if not tensor.HasField("shape"):
            return
        dims = tuple(
            dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None for dim in tensor.shape.dim
        )
        new = self._shapes.get(dims)
        if new is None:
            new = self._shapes[dims] = ir.Shape(dims, frozen=True)
        old = value.shape
        if old is None or len(old) != len(new):
            value.shape = new
        elif old.dims != new.dims:
            value.shape = _better(old, new)


def _better(known: ir.Shape, inferred: ir.Shape) -> ir.Shape:
    """Each dimension as precisely as either side knows it; inference wins where both name a size."""
    return ir.Shape(
        [
            new if isinstance(new, int) or (not isinstance(old, int) and old.value is None) else old
            for old, new in zip(known, inferred, strict=True)
        ]
    )


def parse_input_shape(text: str) -> tuple[str, Dims]:
    """Parse ``name:1,3,224,224``. The name may contain colons; ``?`` leaves a dimension as it is.

    Raises:
        SpecError: Not of that form, or a size that is no positive integer.
    """
    name, colon, sizes = text.rpartition(":")
    example = "for example --input-shape x:1,3,224,224"
    if not colon or not name:
        raise SpecError(f"cannot read the input shape {text!r}: expected NAME:SIZE,SIZE,...", hint=example)
    dims: list[int | None] = []
    for position, part in enumerate(sizes.split(",") if sizes.strip() else []):
        word = part.strip()
        if word == "?":
            dims.append(None)
            continue
        try:
            size = int(word)
        except ValueError:
            raise SpecError(
                f"cannot read the input shape {text!r}: {word!r} at position {position} is no integer",
                hint=f"{example}; ? leaves a dimension as it is",
            ) from None
        if size <= 0:
            raise SpecError(
                f"in the input shape {text!r} the size at position {position} is {size}, but sizes are positive",
                hint=f"{example}; ? leaves a dimension as it is",
            )
        if size > _LARGEST_SIZE:
            raise SpecError(
                f"in the input shape {text!r} the size at position {position} is {size}, which is too large",
                hint=example,
            )
        dims.append(size)
    return name, tuple(dims)


def specialize(model: ir.Model, shapes: Mapping[str, Sequence[int | None]]) -> None:
    """Fix the shapes of inputs, in place, and infer everything that follows from them.

    A symbolic dimension that gets a size gets it everywhere it occurs, in the other inputs too. Inner shapes that the
    file declared are dropped first: they were true for the old shapes.

    Args:
        shapes: Sizes for each input; None leaves a dimension as it is.

    Raises:
        UnknownNameError: No such input.
        UsageError: Another rank, another size than the model fixes, a size that is not positive, or two sizes for
            one symbolic dimension.
    """
    inputs = {
        value.name: value
        for value in model.graph.inputs
        if value.name is not None and value.name not in model.graph.initializers
    }
    sizes: dict[str, tuple[int, str]] = {}
    for name, dims in shapes.items():
        if name not in inputs:
            raise UnknownNameError("input", name, inputs, hint="see the inputs with: graphopt inspect MODEL")
        _check_shape(inputs[name], dims, sizes)
    for name, dims in shapes.items():
        old = inputs[name].shape
        inputs[name].shape = ir.Shape(
            [
                size if size is not None else (None if old is None else old[axis])
                for axis, size in enumerate(dims)
            ]
        )
    bindings = {symbol: size for symbol, (size, _) in sizes.items()}
    for value in model.graph.inputs:
        _bind(value, bindings)
    dropped = _drop_inner_shapes(model)
    inferred = infer(model)
    # Inference knows nothing of other domains; what the file declared for those is better than nothing.
    restored = False
    for value, shape in dropped:
        producer = value.producer()
        foreign = producer is not None and producer.domain not in ("", "ai.onnx")
        if value.shape is None and (foreign or not inferred):
            value.shape = shape
            _bind(value, bindings)
            restored = True
    if restored and inferred:
        infer(model)


def _check_shape(value: ir.Value, dims: Sequence[int | None], sizes: dict[str, tuple[int, str]]) -> None:
    name = value.name
    for axis, size in enumerate(dims):
        if size is not None and size <= 0:
            raise UsageError(f"input {name!r}: dimension {axis} cannot be {size}", hint="sizes are positive")
    if value.shape is None:
        return
    text = shown(value.shape)
    if len(dims) != len(value.shape):
        raise UsageError(
            f"input {name!r} has {len(value.shape)} dimensions {text}, but {len(dims)} sizes are given",
            hint=f"write {name}:"
            + ",".join(str(dim) if isinstance(dim, int) else "?" for dim in value.shape)
            + ("" if value.shape.is_static() else " with a size in place of each ?"),
        )
    for axis, (size, dim) in enumerate(zip(dims, value.shape, strict=True)):
        if size is None:
            continue
        if isinstance(dim, int):
            if dim != size:
                raise UsageError(
                    f"input {name!r} is fixed to {text}: dimension {axis} is {dim} and cannot become {size}",
                    hint="export the model with this dimension dynamic, or leave it as it is with ?",
                )
        elif dim.value is not None:
            seen = sizes.setdefault(dim.value, (size, f"input {name!r}"))
            if seen[0] != size:
                raise UsageError(
                    f"dimension {dim.value!r} would be {seen[0]} in {seen[1]} and {size} in input {name!r}",
                    hint="the model names it as one dimension: give it one size",
                )


def _bind(value: ir.Value, bindings: Mapping[str, int]) -> None:
    if value.shape is None or not bindings or value.shape.is_static():
        return
    value.shape = ir.Shape([dim if isinstance(dim, int) else _evaluate(dim, bindings) for dim in value.shape])


def _evaluate(dim: ir.SymbolicDim, bindings: Mapping[str, int]) -> int | ir.SymbolicDim:
    if dim.value is None:
        return dim
    if dim.value in bindings:
        return bindings[dim.value]
    if not dim.value.isidentifier():
        try:
            return dim.evaluate(bindings)
        except (ValueError, TypeError):  # a name that only looks like an expression
            return dim
    return dim


def _inner_values(graph: ir.Graph) -> Iterator[ir.Value]:
    for node in graph.all_nodes():
        yield from node.outputs
    for inner in graph.subgraphs():
        if inner is not graph:
            yield from inner.inputs


def forget_names(graph: ir.Graph) -> None:
    """Make dimensions within that have a name, and no size, unknown."""
    for value in _inner_values(graph):
        if value.shape is not None and not value.shape.is_static():
            value.shape = ir.Shape([dim if isinstance(dim, int) else None for dim in value.shape])


def _drop_inner_shapes(model: ir.Model) -> list[tuple[ir.Value, ir.Shape]]:
    dropped = []
    for value in _inner_values(model.graph):
        if value.shape is not None:
            dropped.append((value, value.shape))
            value.shape = None
    return dropped
