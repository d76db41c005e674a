"""What brings older forms of operators to the internal opset: one function an operator, and the table of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from graphopt.errors import UnsupportedModelError
from graphopt.ir import facts, opset
from graphopt.ir.describe import describe
from graphopt.ir.graphs import free_name

INTERNAL_OPSET = opset.limits().opset
"""What graphs are brought to; see :mod:`graphopt.ir.opset`."""

RUNTIME_OPSET = opset.limits().newest_opset
"""The newest that ONNX Runtime takes."""


class Site:
    """The node that an adapter works on, and the few edits that adapters need."""

    def __init__(self, main: ir.Graph, graph: ir.Graph, node: ir.Node, version: int) -> None:
        self.main = main
        self.graph = graph
        self.node = node
        self.version = version

    def value(self, index: int) -> ir.Value | None:
        return self.node.inputs[index] if index < len(self.node.inputs) else None

    def pop_ints(self, name: str) -> tuple[int, ...] | None:
        attribute = self.node.attributes.pop(name, None)
        return None if attribute is None else tuple(attribute.as_ints())

    def pop_int(self, name: str, default: int) -> int:
        attribute = self.node.attributes.pop(name, None)
        return default if attribute is None else attribute.as_int()

    def set(self, **attributes: int | str | Sequence[int]) -> None:
        for name, value in attributes.items():
            self.node.attributes[name] = ir.convenience.convert_attribute(name, value)

    def constant(self, array: facts.Array, name: str, dtype: ir.DataType | None = None) -> ir.Value:
        """An initializer of the main graph, named after the node."""
        unique = free_name(f"{self.node.name or self.node.op_type}/{name}", self.main.initializers)
        tensor = ir.Tensor(array, dtype=dtype, name=unique)
        value = ir.Value(
            name=unique, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor
        )
        self.main.register_initializer(value)
        return value

    def ints(self, values: Sequence[int], name: str) -> ir.Value:
        return self.constant(np.array(values, dtype=np.int64), name)

    def set_input(self, index: int, value: ir.Value | None) -> None:
        if index >= len(self.node.inputs):
            self.node.resize_inputs(index + 1)
        self.node.replace_input_with(index, value)

    def before(
        self, op_type: str, inputs: Sequence[ir.Value | None], **attributes: int | str | Sequence[int]
    ) -> ir.Value:
        """A new node before this one; its output."""
        node = ir.node(op_type, list(inputs), attributes=attributes)
        node.metadata_props.update(self.node.metadata_props)
        self.graph.insert_before(self.node, node)
        return self._named(node)

    def _named(self, node: ir.Node) -> ir.Value:
        base = self.node.name or self.node.op_type
        node.name = f"{base}/{node.op_type}_{self._count()}"
        node.outputs[0].name = node.name
        return node.outputs[0]

    def _count(self) -> int:
        self._made = getattr(self, "_made", -1) + 1
        return self._made

    def replace_by(self, value: ir.Value) -> None:
        """Let ``value``, made by a new node, take the place and name of the node's first output."""
        old = self.node.outputs[0]
        name = old.name
        value.type, value.shape = old.type, old.shape
        old.replace_all_uses_with(value, replace_graph_outputs=True)
        old.name = f"{name}/old"
        value.name = name
        producer = value.producer()
        assert producer is not None
        producer_name, producer.name = producer.name, self.node.name
        self.node.name = producer_name
        self.graph.remove(self.node, safe=True)

    def unsupported(self, why: str) -> UnsupportedModelError:
        return UnsupportedModelError(
            f"cannot bring {self.node.op_type} of opset {self.version} to opset {INTERNAL_OPSET}: {why} "
            f"(node {self.node.name!r}: {describe(self.node)})",
            hint="export the model with a newer opset_version",
        )


Adapter = Callable[[Site], None]


def _axes_to_input(site: Site) -> None:
    """Squeeze-13, Unsqueeze-13, ReduceSum-13, Reduce*-18: the attribute ``axes`` became an input."""
    axes = site.pop_ints("axes")
    if axes:
        site.set_input(1, site.ints(axes, "axes"))


def _clip(site: Site) -> None:
    """Clip-11: the attributes ``min`` and ``max`` became inputs of the element type."""
    data = site.value(0)
    for index, name in ((1, "min"), (2, "max")):
        attribute = site.node.attributes.pop(name, None)
        if attribute is not None:
            site.set_input(index, _scalar_like(site, data, attribute.as_float(), name))


def _scalar_like(site: Site, like: ir.Value | None, number: float, name: str) -> ir.Value:
    dtype = like.dtype if like is not None and like.dtype is not None else ir.DataType.FLOAT
    with np.errstate(over="ignore"):
        array = np.array(number, dtype=np.float32).astype(dtype.numpy())
    return site.constant(array, name, dtype)


def _dropout(site: Site) -> None:
    """Dropout-12: ``ratio`` became an input and training a mode; up to opset 11 inference is all there is."""
    site.node.attributes.pop("ratio", None)
    mask = site.node.outputs[1] if len(site.node.outputs) > 1 else None
    if mask is not None and site.version < 10 and (mask.uses() or mask.is_graph_output()):
        data = site.value(0)
        if data is None or data.dtype is None:
            raise site.unsupported("the type of its mask is unknown")
        cast = ir.node("Cast", [mask], attributes={"to": data.dtype.value}, name=f"{site.node.name}/mask")
        site.graph.insert_after(site.node, cast)
        name = mask.name
        mask.replace_all_uses_with(cast.outputs[0], replace_graph_outputs=True)
        cast.replace_input_with(0, mask)
        cast.outputs[0].type, cast.outputs[0].shape = ir.TensorType(data.dtype), mask.shape
        mask.name = f"{name}/bool"
        mask.type = ir.TensorType(ir.DataType.BOOL)
        cast.outputs[0].name = name


def _pad(site: Site) -> None:
    """Pad-11: the attributes ``pads`` and ``value`` became inputs."""
    pads = site.pop_ints("pads")
    site.set_input(1, site.ints(pads or (), "pads"))
    value = site.node.attributes.pop("value", None)
    if value is not None and value.as_float() != 0.0:
        site.set_input(2, _scalar_like(site, site.value(0), value.as_float(), "value"))


def _slice(site: Site) -> None:
    """Slice-10: the attributes ``starts``, ``ends`` and ``axes`` became inputs."""
    for index, name in ((1, "starts"), (2, "ends"), (3, "axes")):
        values = site.pop_ints(name)
        if values is not None:
            site.set_input(index, site.ints(values, name))


def _split_sizes(site: Site) -> None:
    """Split-13: the attribute ``split`` became an input."""
    sizes = site.pop_ints("split")
    if sizes:
        site.set_input(1, site.ints(sizes, "split"))


def _split_count(site: Site) -> None:
    """Split-18: without sizes, the number of equal parts is the attribute ``num_outputs``."""
    if site.value(1) is None and "num_outputs" not in site.node.attributes:
        site.set(num_outputs=len(site.node.outputs))


def _top_k(site: Site) -> None:
    """TopK-10: the attribute ``k`` became an input."""
    site.set_input(1, site.ints([site.pop_int("k", 1)], "k"))


def _batch_normalization_spatial(site: Site) -> None:
    """BatchNormalization-9 dropped ``spatial=0``: statistics for each element of a sample, not for each channel."""
    if site.pop_int("spatial", 1) != 0:
        return
    epsilon = facts.attribute(site.node, "epsilon", 1e-5)
    x, scale, bias, mean, variance = (site.value(index) for index in range(5))
    shifted = site.before("Add", [variance, _scalar_like(site, variance, float(epsilon), "epsilon")])
    deviation = site.before("Sqrt", [shifted])
    centred = site.before("Div", [site.before("Sub", [x, mean]), deviation])
    site.replace_by(site.before("Add", [site.before("Mul", [centred, scale]), bias]))


def _batch_normalization_outputs(site: Site) -> None:
    """BatchNormalization-14: training is an attribute; before, more than one output meant it."""
    outputs = site.node.outputs
    if not any(output.name for output in outputs[1:]):
        return
    for output in outputs[3:]:
        if output.uses() or output.is_graph_output():
            raise site.unsupported("it trains (its saved statistics are used)")
    site.node.resize_outputs(3)
    site.set(training_mode=1)


def _softmax(site: Site) -> None:
    """Softmax-13, LogSoftmax-13, Hardmax-13: from the flattened trailing axes to one axis, and another default.

    Up to opset 12 the input is coerced to a matrix of all axes before ``axis`` times all from it on.
    """
    axis = site.pop_int("axis", 1)
    x = site.value(0)
    rank = facts.rank(x)
    if axis == -1 or (rank is not None and axis in (rank - 1, -1)):
        site.set(axis=-1)
        return
    dims = facts.dims(x)
    if dims is not None:
        start = axis % len(dims) if dims else 0
        if all(dim == 1 for dim in dims[start + 1 :]):
            site.set(axis=start)
            return
        axis = start
    shape = site.before("Shape", [x])
    matrix = site.before("Flatten", [x], axis=axis)
    flat = site.before(site.node.op_type, [matrix], axis=-1)
    site.replace_by(site.before("Reshape", [flat, shape]))


def _upsample(site: Site) -> None:
    """Upsample-10 was withdrawn; Resize-11 with asymmetric coordinates and rounding down is the same."""
    scales = site.node.attributes.pop("scales", None)
    scale_input = (
        site.constant(np.array(scales.as_floats(), dtype=np.float32), "scales")
        if scales is not None
        else site.value(1)
    )
    _to_resize(site, scale_input)


def _resize(site: Site) -> None:
    """Resize-11: region of interest and sizes as inputs, coordinates and rounding as attributes."""
    _to_resize(site, site.value(1))


def _to_resize(site: Site, scales: ir.Value | None) -> None:
    mode = facts.attribute(site.node, "mode", "nearest")
    known = facts.constant(scales)
    x = site.value(0)
    steps: list[tuple[ir.Value | None, str]] = [(scales, "floor")]
    if mode == "nearest" and known is not None and (known < 1).any():
        # ONNX Runtime, and the reference implementation of opset 10, round up where they shrink.
        if (known > 1).any():
            shrink = site.constant(np.minimum(known, 1).astype(np.float32), "shrink")
            grow = site.constant(np.maximum(known, 1).astype(np.float32), "grow")
            steps = [(shrink, "ceil"), (grow, "floor")]
        else:
            steps = [(scales, "ceil")]
    for step, rounding in steps:
        attributes: dict[str, str] = {"mode": str(mode), "coordinate_transformation_mode": "asymmetric"}
        if mode == "nearest":
            attributes["nearest_mode"] = rounding
        x = site.before("Resize", [x, None, step], **attributes)
    assert x is not None
    site.replace_by(x)


def _resize_empty_inputs(site: Site) -> None:
    """Resize-13: absent inputs are absent, where Resize-11 took empty tensors."""
    for index in (1, 2):
        value = site.value(index)
        array = facts.constant(value)
        if array is not None and array.size == 0:
            site.set_input(index, None)
    if site.value(1) is not None:
        mode = facts.attribute(site.node, "coordinate_transformation_mode", "half_pixel")
        if mode != "tf_crop_and_resize":
            site.set_input(1, None)


def _roi_align(site: Site) -> None:
    """RoiAlign-16: pixel centres by default; before there was no shift by half a pixel."""
    if "coordinate_transformation_mode" not in site.node.attributes:
        site.set(coordinate_transformation_mode="output_half_pixel")


def _grid_sample(site: Site) -> None:
    """GridSample-20 renamed its modes."""
    mode = facts.attribute(site.node, "mode", "bilinear")
    site.set(mode={"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode))


def _dft(site: Site) -> None:
    """DFT-20: the attribute ``axis`` (default 1) became an input (default -2)."""
    axis = site.pop_int("axis", 1)
    site.set_input(2, site.constant(np.array(axis, dtype=np.int64), "axis"))


def _group_normalization(site: Site) -> None:
    """GroupNormalization-21: scale and bias for each channel; before, for each group."""
    groups = facts.attribute(site.node, "num_groups")
    x = site.value(0)
    dims = facts.dims(x)
    for index, name in ((1, "scale"), (2, "bias")):
        value = site.value(index)
        array = facts.constant(value)
        if array is not None and dims is not None and len(dims) > 1 and dims[1] is not None:
            site.set_input(
                index,
                site.constant(np.repeat(array, dims[1] // groups), name, value.dtype if value else None),
            )
            continue
        channels = site.before("Shape", [x], start=1, end=2)
        each = site.before("Div", [channels, site.ints([groups], f"{name}_groups")])
        target = site.before("Concat", [site.ints([1], f"{name}_one"), each], axis=0)
        column = site.before("Reshape", [value, site.ints([-1, 1], f"{name}_column")])
        spread = site.before("Expand", [column, target])
        site.set_input(index, site.before("Reshape", [spread, site.ints([-1], f"{name}_flat")]))


def _scatter(site: Site) -> None:
    """Scatter-11 was renamed ScatterElements."""
    site.node.op_type = "ScatterElements"


def _scan(site: Site) -> None:
    """Scan-9 has no batch axis."""
    raise site.unsupported("it scans over a batch, which newer opsets do not")


def _swish(site: Site) -> None:
    """Swish-24, y = x * sigmoid(alpha * x): ONNX Runtime 1.31 has no kernel and does not expand it at opset 26."""
    x = site.value(0)
    alpha = float(facts.attribute(site.node, "alpha", 1.0))
    scaled = x
    if alpha != 1.0:
        scaled = site.before("Mul", [x, _scalar_like(site, x, alpha, "alpha")])
    site.replace_by(site.before("Mul", [x, site.before("Sigmoid", [scaled])]))


WITHOUT_KERNEL: dict[str, Adapter] = {"Swish": _swish}
"""Operators of the internal opset that ONNX Runtime, the reference, cannot run; written out by their definition."""

ADAPTERS: dict[str, tuple[tuple[int, Adapter], ...]] = {
    "BatchNormalization": ((9, _batch_normalization_spatial), (14, _batch_normalization_outputs)),
    "Clip": ((11, _clip),),
    "DFT": ((20, _dft),),
    "Dropout": ((12, _dropout),),
    "GridSample": ((20, _grid_sample),),
    "GroupNormalization": ((21, _group_normalization),),
    "Hardmax": ((13, _softmax),),
    "LogSoftmax": ((13, _softmax),),
    "Pad": ((11, _pad),),
    **{
        name: ((18, _axes_to_input),)
        for name in (
            "ReduceL1",
            "ReduceL2",
            "ReduceLogSum",
            "ReduceLogSumExp",
            "ReduceMax",
            "ReduceMean",
            "ReduceMin",
            "ReduceProd",
            "ReduceSumSquare",
        )
    },
    "ReduceSum": ((13, _axes_to_input),),
    "Resize": ((11, _resize), (13, _resize_empty_inputs)),
    "RoiAlign": ((16, _roi_align),),
    "Scan": ((9, _scan),),
    "Scatter": ((11, _scatter),),
    "Slice": ((10, _slice),),
    "Softmax": ((13, _softmax),),
    "Split": ((13, _split_sizes), (18, _split_count)),
    "Squeeze": ((13, _axes_to_input),),
    "TopK": ((10, _top_k),),
    "Unsqueeze": ((13, _axes_to_input),),
    "Upsample": ((10, _upsample),),
}
"""For each operator, the opsets that changed its form and what brings an older node over."""
