"""Raises a model to the internal opset, operator by operator.

An operator whose schema only gained element types or optional parts since the source opset is relabelled. One whose
meaning or form changed has an adapter here, which writes it in the form of the internal opset at once. A test reads
the history of all schemas in ``onnx.defs`` and demands that each change of form is listed in this file.

ONNX's own version converter is not used: it needs serialized weights, drops node names, skips subgraphs for some
operators, and lacks adapters for others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from graphopt.errors import InvalidGraphError, UnsupportedModelError
from graphopt.ir import check, facts
from graphopt.ir.check import RUNTIME_DOMAINS, describe, schema_of
from graphopt.ir.model import with_subgraphs

INTERNAL_OPSET = 26
"""The newest opset that ONNX Runtime 1.31 takes."""
OLDEST_OPSET = 7

NEWEST_WITH_KERNEL = {
    "GlobalLpPool": 21,
    "MaxRoiPool": 21,
    "Multinomial": 21,
    "RandomNormal": 21,
    "RandomNormalLike": 21,
    "RandomUniform": 21,
    "RandomUniformLike": 21,
    "RoiAlign": 21,
}
"""Operators that ONNX Runtime 1.31 implements up to this opset only. A model with one of them stays there."""

STANDARD_DOMAINS = frozenset({"", "ai.onnx.ml"}) | RUNTIME_DOMAINS


def source_opset(model: ir.Model) -> int:
    """The opset of ONNX's own domain that the model was written in; the internal one where it uses none."""
    return int(model.graph.opset_imports.get("", INTERNAL_OPSET))


def require_known(model: ir.Model) -> None:
    """Refuse what neither the upgrade nor ONNX Runtime knows, before anything is changed.

    Raises:
        UnsupportedModelError: Names the operator, its domain and the node.
    """
    opset = source_opset(model)
    if opset < OLDEST_OPSET:
        raise UnsupportedModelError(
            f"the model is written in opset {opset}; graphopt takes {OLDEST_OPSET} and newer",
            hint="export it again with a newer opset_version",
        )
    microsoft = _runtime_operators()
    for node in model.graph.all_nodes():
        if (node.domain, node.op_type, node.overload) in model.functions:
            continue
        if node.domain not in STANDARD_DOMAINS:
            raise UnsupportedModelError(
                f"unknown domain {node.domain!r} of operator {node.op_type!r}, node {node.name!r}",
                hint="graphopt takes ONNX's operators, ai.onnx.ml and com.microsoft; export the operator as an ONNX "
                "function, or leave it out of the model",
            )
        if node.domain in RUNTIME_DOMAINS:
            if microsoft and (node.domain, node.op_type) not in microsoft:
                raise UnsupportedModelError(
                    f"domain {node.domain!r} of ONNX Runtime has no operator {node.op_type!r} (node {node.name!r})",
                    hint="the installed ONNX Runtime may be too old, or the operator comes from a library of its own",
                )
            continue
        version = node.version or model.graph.opset_imports.get(node.domain)
        if version is None:
            version = opset if node.domain == "" else 1
        if schema_of(node.domain, node.op_type, version) is None:
            raise UnsupportedModelError(
                f"opset {version} of domain {node.domain or 'ai.onnx'!r} has no operator {node.op_type!r} "
                f"(node {node.name!r})",
                hint="the operator is misspelt, newer than the model's opset, or not part of ONNX",
            )


def _runtime_operators() -> frozenset[tuple[str, str]]:
    """Operators of ONNX Runtime's own domains; empty where it is not installed."""
    try:
        from onnxruntime.capi import onnxruntime_pybind11_state as state

        schemas = state.get_all_operator_schema()
    except (ImportError, AttributeError):
        return frozenset()
    return frozenset((schema.domain, schema.name) for schema in schemas if schema.domain in RUNTIME_DOMAINS)


def relabel_down(model: ir.Model) -> bool:
    """Give a model newer than the internal opset that opset, where each node means the same in both.

    That is so for operators that did not change since, or that only gained element types and attributes which the
    node does not use; ``check`` then verifies the types against the older schema.

    Raises:
        UnsupportedModelError: A node that needs the newer opset; names it.
    """
    opset = source_opset(model)
    if opset <= INTERNAL_OPSET:
        return False
    for node in model.graph.all_nodes():
        if node.domain != "":
            continue
        older = schema_of("", node.op_type, INTERNAL_OPSET)
        if older is None or not all(name in older.attributes for name in node.attributes):
            raise _too_new(node, opset)
    model.graph.opset_imports[""] = INTERNAL_OPSET
    try:
        check.check(model, allow_domains=STANDARD_DOMAINS, unique_node_names=False)
    except InvalidGraphError as error:
        raise UnsupportedModelError(
            f"the model needs opset {opset}, and opset {INTERNAL_OPSET} is the newest that ONNX Runtime takes: "
            f"{error.message}",
            hint=f"export the model with opset_version={INTERNAL_OPSET}",
        ) from error
    return True


def _too_new(node: ir.Node, opset: int) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{node.op_type} of opset {opset} (node {node.name!r}) is newer than opset {INTERNAL_OPSET}, the newest that "
        "ONNX Runtime takes",
        hint=f"export the model with opset_version={INTERNAL_OPSET}",
    )


def target_opset(model: ir.Model) -> int:
    """The opset to raise ``model`` to: the internal one, or the newest at which the reference can run it."""
    limits = [
        NEWEST_WITH_KERNEL[node.op_type]
        for node in model.graph.all_nodes()
        if node.domain == "" and node.op_type in NEWEST_WITH_KERNEL
    ]
    newest_node = max(
        (node.version for node in model.graph.all_nodes() if node.version is not None), default=0
    )
    return max(source_opset(model), newest_node, min(limits)) if limits else INTERNAL_OPSET


def upgrade(model: ir.Model) -> dict[str, int]:
    """Raise ``model`` to its target opset, in place. Constants must be initializers already.

    Returns:
        How many nodes of each operator were rewritten.

    Raises:
        UnsupportedModelError: A node whose old meaning has no form in the internal opset.
    """
    opset = source_opset(model)
    target = target_opset(model)
    rewritten: dict[str, int] = {}
    for graph in with_subgraphs(model.graph):
        for node in list(graph):
            if node.domain != "":
                continue
            version = node.version or opset
            node.version = None
            if node.op_type in WITHOUT_KERNEL:
                WITHOUT_KERNEL[node.op_type](_Site(model.graph, graph, node, version))
                continue
            for changed_in, adapter in ADAPTERS.get(node.op_type, ()):
                if version < changed_in <= target:
                    before = node.op_type
                    adapter(_Site(model.graph, graph, node, version))
                    rewritten[before] = rewritten.get(before, 0) + 1
                    if node.graph is None:
                        break
    model.graph.opset_imports[""] = target
    return rewritten


class _Site:
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

    def constant(self, array: np.ndarray, name: str, dtype: ir.DataType | None = None) -> ir.Value:
        """An initializer of the main graph, named after the node."""
        base = f"{self.node.name or self.node.op_type}/{name}"
        unique, suffix = base, 0
        while unique in self.main.initializers:
            suffix += 1
            unique = f"{base}_{suffix}"
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

    def before(self, op_type: str, inputs: Sequence[ir.Value | None], **attributes: int | str | Sequence[int]) -> ir.Value:
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


Adapter = Callable[[_Site], None]


def _axes_to_input(site: _Site) -> None:
    """Squeeze-13, Unsqueeze-13, ReduceSum-13, Reduce*-18: the attribute ``axes`` became an input."""
    axes = site.pop_ints("axes")
    if axes:
        site.set_input(1, site.ints(axes, "axes"))


def _clip(site: _Site) -> None:
    """Clip-11: the attributes ``min`` and ``max`` became inputs of the element type."""
    data = site.value(0)
    for index, name in ((1, "min"), (2, "max")):
        attribute = site.node.attributes.pop(name, None)
        if attribute is not None:
            site.set_input(index, _scalar_like(site, data, attribute.as_float(), name))


def _scalar_like(site: _Site, like: ir.Value | None, number: float, name: str) -> ir.Value:
    dtype = like.dtype if like is not None and like.dtype is not None else ir.DataType.FLOAT
    with np.errstate(over="ignore"):
        array = np.array(number, dtype=np.float32).astype(dtype.numpy())
    return site.constant(array, name, dtype)


def _dropout(site: _Site) -> None:
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


def _pad(site: _Site) -> None:
    """Pad-11: the attributes ``pads`` and ``value`` became inputs."""
    pads = site.pop_ints("pads")
    site.set_input(1, site.ints(pads or (), "pads"))
    value = site.node.attributes.pop("value", None)
    if value is not None and value.as_float() != 0.0:
        site.set_input(2, _scalar_like(site, site.value(0), value.as_float(), "value"))


def _slice(site: _Site) -> None:
    """Slice-10: the attributes ``starts``, ``ends`` and ``axes`` became inputs."""
    for index, name in ((1, "starts"), (2, "ends"), (3, "axes")):
        values = site.pop_ints(name)
        if values is not None:
            site.set_input(index, site.ints(values, name))


def _split_sizes(site: _Site) -> None:
    """Split-13: the attribute ``split`` became an input."""
    sizes = site.pop_ints("split")
    if sizes:
        site.set_input(1, site.ints(sizes, "split"))


def _split_count(site: _Site) -> None:
    """Split-18: without sizes, the number of equal parts is the attribute ``num_outputs``."""
    if site.value(1) is None and "num_outputs" not in site.node.attributes:
        site.set(num_outputs=len(site.node.outputs))


def _top_k(site: _Site) -> None:
    """TopK-10: the attribute ``k`` became an input."""
    site.set_input(1, site.ints([site.pop_int("k", 1)], "k"))


def _batch_normalization_spatial(site: _Site) -> None:
    """BatchNormalization-9 dropped ``spatial=0``: statistics for each element of a sample, not for each channel."""
    if site.pop_int("spatial", 1) != 0:
        return
    epsilon = facts.attribute(site.node, "epsilon", 1e-5)
    x, scale, bias, mean, variance = (site.value(index) for index in range(5))
    shifted = site.before(
        "Add", [variance, _scalar_like(site, variance, float(epsilon), "epsilon")]
    )
    deviation = site.before("Sqrt", [shifted])
    centred = site.before("Div", [site.before("Sub", [x, mean]), deviation])
    site.replace_by(site.before("Add", [site.before("Mul", [centred, scale]), bias]))


def _batch_normalization_outputs(site: _Site) -> None:
    """BatchNormalization-14: training is an attribute; before, more than one output meant it."""
    outputs = site.node.outputs
    for output in outputs[1:]:
        if output.uses() or output.is_graph_output():
            raise site.unsupported("it trains (its batch statistics are used)")
    if len(outputs) > 1:
        # What ONNX Runtime does with statistics that nothing reads: it normalises by the stored ones.
        site.node.resize_outputs(1)


def _softmax(site: _Site) -> None:
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


def _upsample(site: _Site) -> None:
    """Upsample-10 was withdrawn; Resize-11 with asymmetric coordinates and rounding down is the same."""
    scales = site.node.attributes.pop("scales", None)
    scale_input = (
        site.constant(np.array(scales.as_floats(), dtype=np.float32), "scales")
        if scales is not None
        else site.value(1)
    )
    _to_resize(site, scale_input)


def _resize(site: _Site) -> None:
    """Resize-11: region of interest and sizes as inputs, coordinates and rounding as attributes."""
    _to_resize(site, site.value(1))


def _to_resize(site: _Site, scales: ir.Value | None) -> None:
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


def _resize_empty_inputs(site: _Site) -> None:
    """Resize-13: absent inputs are absent, where Resize-11 took empty tensors."""
    for index in (1, 2):
        value = site.value(index)
        if value is not None and facts.constant(value) is not None and value.const_value is not None:
            if value.const_value.size == 0:
                site.set_input(index, None)
    if site.value(1) is not None:
        mode = facts.attribute(site.node, "coordinate_transformation_mode", "half_pixel")
        if mode != "tf_crop_and_resize":
            site.set_input(1, None)


def _roi_align(site: _Site) -> None:
    """RoiAlign-16: pixel centres by default; before there was no shift by half a pixel."""
    if "coordinate_transformation_mode" not in site.node.attributes:
        site.set(coordinate_transformation_mode="output_half_pixel")


def _grid_sample(site: _Site) -> None:
    """GridSample-20 renamed its modes."""
    mode = facts.attribute(site.node, "mode", "bilinear")
    site.set(mode={"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode))


def _dft(site: _Site) -> None:
    """DFT-20: the attribute ``axis`` (default 1) became an input (default -2)."""
    axis = site.pop_int("axis", 1)
    site.set_input(2, site.constant(np.array(axis, dtype=np.int64), "axis"))


def _group_normalization(site: _Site) -> None:
    """GroupNormalization-21: scale and bias for each channel; before, for each group."""
    groups = facts.attribute(site.node, "num_groups")
    x = site.value(0)
    dims = facts.dims(x)
    for index, name in ((1, "scale"), (2, "bias")):
        value = site.value(index)
        array = facts.constant(value)
        if array is not None and dims is not None and len(dims) > 1 and dims[1] is not None:
            site.set_input(
                index, site.constant(np.repeat(array, dims[1] // groups), name, value.dtype if value else None)
            )
            continue
        channels = site.before("Shape", [x], start=1, end=2)
        each = site.before("Div", [channels, site.ints([groups], f"{name}_groups")])
        target = site.before("Concat", [site.ints([1], f"{name}_one"), each], axis=0)
        column = site.before("Reshape", [value, site.ints([-1, 1], f"{name}_column")])
        spread = site.before("Expand", [column, target])
        site.set_input(index, site.before("Reshape", [spread, site.ints([-1], f"{name}_flat")]))


def _scatter(site: _Site) -> None:
    """Scatter-11 was renamed ScatterElements."""
    site.node.op_type = "ScatterElements"


def _scan(site: _Site) -> None:
    """Scan-9 has no batch axis."""
    raise site.unsupported("it scans over a batch, which newer opsets do not")


def _swish(site: _Site) -> None:
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
