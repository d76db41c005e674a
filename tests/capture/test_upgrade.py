"""The upgrade to the internal opset: each adapter against ONNX Runtime on the original, and the list of adapters
against the history of ONNX's schemas."""

from __future__ import annotations

import itertools
from collections import defaultdict
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, defs, helper

from graphopt.capture import capture
from graphopt.capture.upgrade import (
    ADAPTERS,
    INTERNAL_OPSET,
    OLDEST_OPSET,
    RUNTIME_OPSET,
    WITHOUT_KERNEL,
)
from graphopt.errors import UnsupportedModelError
from graphopt.ir import kernels
from graphopt.testing import run

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def make(
    opset: int,
    nodes: list[onnx.NodeProto],
    inputs: dict[str, tuple[int, Any]],
    outputs: dict[str, int],
    constants: dict[str, np.ndarray] | None = None,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "old",
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()],
        [helper.make_tensor_value_info(name, kind, None) for name, kind in outputs.items()],
        [onnx.numpy_helper.from_array(array, name) for name, array in (constants or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=4)


def feeds_of(model: onnx.ModelProto, sizes: int = 3) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    feeds = {}
    for value in model.graph.input:
        shape = [dim.dim_value or sizes for dim in value.type.tensor_type.shape.dim]
        if value.type.tensor_type.elem_type == FLOAT:
            feeds[value.name] = rng.standard_normal(shape).astype(np.float32)
        else:
            feeds[value.name] = rng.integers(0, 2, shape)
    return feeds


def assert_upgrade_agrees(model: onnx.ModelProto, sizes: int = 3) -> ir.Model:
    captured = capture(model)
    feeds = feeds_of(model, sizes)
    wanted = run(ir.from_proto(model), feeds)
    got = run(captured.model, feeds)
    assert list(wanted) == list(got)
    for name, reference in wanted.items():
        assert got[name].dtype == reference.dtype
        np.testing.assert_allclose(got[name], reference, rtol=1e-6, atol=1e-6, err_msg=name)
    ends = kernels.preferred_opsets()
    newest = min(ends.get(node.op_type, INTERNAL_OPSET) for node in model.graph.node)
    assert captured.model.graph.opset_imports[""] == newest
    return captured.model


def one(
    opset: int,
    op_type: str,
    shape: list[Any],
    constants: dict[str, np.ndarray] | None = None,
    outputs: int = 1,
    **attributes: Any,
) -> onnx.ModelProto:
    names = [f"y{index}" for index in range(outputs)]
    node = helper.make_node(op_type, ["x", *(constants or {})], names, **attributes)
    kinds = [FLOAT] + [INT64 if op_type == "TopK" else FLOAT] * (outputs - 1)
    return make(opset, [node], {"x": (FLOAT, shape)}, dict(zip(names, kinds, strict=True)), constants)


ONES = {"scales": np.array([1, 1, 2, 2], dtype=np.float32)}
CASES = {
    "squeeze": one(11, "Squeeze", [1, 3, 1], axes=[0]),
    "squeeze-all": one(9, "Squeeze", [1, 3, 1]),
    "unsqueeze": one(9, "Unsqueeze", [2, 3], axes=[0, 3]),
    "unsqueeze-negative": one(11, "Unsqueeze", [2, 3], axes=[-1]),
    "reduce-sum": one(11, "ReduceSum", [2, 3, 4], axes=[1, -1], keepdims=0),
    "reduce-sum-all": one(9, "ReduceSum", [2, 3, 4]),
    "reduce-mean": one(13, "ReduceMean", [2, 3, 4], axes=[-1]),
    "reduce-mean-all": one(8, "ReduceMean", [2, 3, 4], keepdims=0),
    "reduce-max": one(12, "ReduceMax", [2, 3, 4], axes=[0], keepdims=0),
    "reduce-min": one(13, "ReduceMin", [2, 3, 4], axes=[0]),
    "reduce-prod": one(9, "ReduceProd", [2, 3, 4], axes=[2]),
    "reduce-l1": one(11, "ReduceL1", [2, 3, 4], axes=[1]),
    "reduce-l2": one(11, "ReduceL2", [2, 3, 4], axes=[1]),
    "reduce-log-sum": one(9, "ReduceLogSumExp", [2, 3, 4], axes=[1]),
    "reduce-sum-square": one(9, "ReduceSumSquare", [2, 3, 4], axes=[1]),
    "clip": one(7, "Clip", [2, 3], min=-0.5, max=0.25),
    "clip-upper": one(10, "Clip", [2, 3], max=0.25),
    "clip-none": one(7, "Clip", [2, 3]),
    "dropout-7": one(7, "Dropout", [2, 3], ratio=0.9),
    "dropout-10": one(10, "Dropout", [2, 3], ratio=0.9),
    "pad": one(10, "Pad", [2, 3], pads=[0, 1, 0, 2], value=1.5),
    "pad-reflect": one(7, "Pad", [2, 3], pads=[0, 1, 0, 2], mode="reflect"),
    "pad-edge": one(2 + 5, "Pad", [2, 3], pads=[0, 1, 0, 2], mode="edge"),
    "slice": one(9, "Slice", [4, 5], axes=[1], starts=[1], ends=[-1]),
    "slice-no-axes": one(7, "Slice", [4, 5], starts=[1, 0], ends=[100, 3]),
    "split": one(11, "Split", [2, 6], outputs=2, split=[2, 4], axis=1),
    "split-equal": one(7, "Split", [6, 2], outputs=3),
    "split-13": one(13, "Split", [2, 6], outputs=2, axis=-1),
    "split-13-sizes": one(13, "Split", [2, 6], {"sizes": np.array([5, 1])}, outputs=2, axis=1),
    "top-k-7": one(7, "TopK", [2, 6], outputs=2, k=2),
    "top-k-10": one(10, "TopK", [2, 6], {"k": np.array([3])}, outputs=2, axis=0 + 1),
    "batch-norm": one(
        7, "BatchNormalization", [2, 3, 4], {n: np.array([1, 2, 3], dtype=np.float32) for n in "sbmv"}
    ),
    "batch-norm-spatial-1": one(
        7,
        "BatchNormalization",
        [2, 3, 4],
        {n: np.array([1, 2, 3], dtype=np.float32) for n in "sbmv"},
        spatial=1,
    ),
    "batch-norm-9": one(
        9,
        "BatchNormalization",
        [2, 3, 4],
        {n: np.array([1, 2, 3], dtype=np.float32) for n in "sbmv"},
        epsilon=0.1,
    ),
    "softmax-default": one(9, "Softmax", [2, 3, 4]),
    "softmax-last": one(11, "Softmax", [2, 3, 4], axis=2),
    "softmax-negative": one(11, "Softmax", [2, 3, 4], axis=-1),
    "softmax-negative-flat": one(11, "Softmax", [2, 3, 4], axis=-2),
    "softmax-ones": one(7, "Softmax", [2, 3, 1, 1]),
    "softmax-0": one(7, "Softmax", [2, 3, 4], axis=0),
    "softmax-dynamic": one(9, "Softmax", ["n", "c", "w"]),
    "softmax-vector": one(9, "Softmax", [4], axis=0),
    "log-softmax": one(9, "LogSoftmax", [2, 3, 4]),
    "hardmax": one(11, "Hardmax", [2, 3, 4]),
    "upsample-7": one(7, "Upsample", [1, 2, 3, 4], scales=[1.0, 1.0, 2.0, 3.0]),
    "upsample-7-linear": one(7, "Upsample", [1, 2, 3, 4], scales=[1.0, 1.0, 2.0, 3.0], mode="linear"),
    "upsample-9": one(9, "Upsample", [1, 2, 3, 4], ONES),
    "upsample-fraction": one(
        9, "Upsample", [1, 2, 3, 4], {"s": np.array([1, 1, 1.3, 1.7], dtype=np.float32)}
    ),
    "resize-10": one(10, "Resize", [1, 2, 3, 4], ONES),
    "resize-10-linear": one(10, "Resize", [1, 2, 3, 4], ONES, mode="linear"),
    "resize-10-shrink": one(10, "Resize", [1, 2, 7, 9], {"s": np.array([1, 1, 0.4, 0.6], dtype=np.float32)}),
    "resize-10-both": one(10, "Resize", [1, 2, 7, 9], {"s": np.array([1, 1, 0.4, 1.6], dtype=np.float32)}),
    "resize-11": one(
        11, "Resize", [1, 2, 3, 4], {"roi": np.array([], dtype=np.float32), **ONES}, mode="cubic"
    ),
    "resize-11-sizes": one(
        11,
        "Resize",
        [1, 2, 3, 4],
        {
            "roi": np.array([], dtype=np.float32),
            "scales": np.array([], dtype=np.float32),
            "sizes": np.array([1, 2, 5, 7]),
        },
        coordinate_transformation_mode="align_corners",
        mode="linear",
    ),
    "resize-11-tf": one(
        11,
        "Resize",
        [1, 2, 3, 4],
        {"roi": np.array([], dtype=np.float32), **ONES},
        coordinate_transformation_mode="tf_half_pixel_for_nn",
        nearest_mode="floor",
    ),
    "resize-11-crop": one(
        11,
        "Resize",
        [1, 1, 4, 4],
        {
            "roi": np.array([0, 0, 0.4, 0.6, 1, 1, 0.6, 0.8], dtype=np.float32),
            "scales": np.array([], dtype=np.float32),
            "sizes": np.array([1, 1, 3, 3]),
        },
        coordinate_transformation_mode="tf_crop_and_resize",
        mode="linear",
    ),
    "roi-align": one(
        10,
        "RoiAlign",
        [1, 2, 8, 8],
        {"rois": np.array([[0.5, 0.5, 6, 7]], dtype=np.float32), "batch": np.array([0])},
        output_height=3,
        output_width=3,
        sampling_ratio=2,
    ),
    "grid-sample": make(
        16,
        [helper.make_node("GridSample", ["x", "g"], ["y"])],
        {"x": (FLOAT, [1, 2, 4, 4]), "g": (FLOAT, [1, 3, 3, 2])},
        {"y": FLOAT},
    ),
    "grid-sample-cubic": make(
        16,
        [helper.make_node("GridSample", ["x", "g"], ["y"], mode="bicubic", align_corners=1)],
        {"x": (FLOAT, [1, 2, 4, 4]), "g": (FLOAT, [1, 3, 3, 2])},
        {"y": FLOAT},
    ),
    "dft": one(17, "DFT", [2, 5, 6, 1], axis=2),
    "dft-default-axis": one(19, "DFT", [2, 5, 1]),
    "group-norm": one(
        18,
        "GroupNormalization",
        [2, 4, 3],
        {"s": np.array([1, 2], dtype=np.float32), "b": np.array([3, 4], dtype=np.float32)},
        num_groups=2,
    ),
    "group-norm-dynamic": one(
        18,
        "GroupNormalization",
        [2, "c", 3],
        {"s": np.array([1, 2, 3], dtype=np.float32), "b": np.array([3, 4, 5], dtype=np.float32)},
        num_groups=3,
    ),
    "scatter": one(
        9,
        "Scatter",
        [3, 3],
        {"i": np.array([[0, 1, 2]]), "u": np.array([[1, 2, 3]], dtype=np.float32)},
    ),
    "swish": one(24, "Swish", [2, 3], alpha=1.5),
}


NEEDS_24 = pytest.mark.onnxruntime("1.24", "takes opset 24")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=NEEDS_24) if name == "swish" else name for name in CASES]
)
def test_an_older_operator_computes_the_same(name: str) -> None:
    assert_upgrade_agrees(CASES[name])


def test_every_adapter_has_a_case() -> None:
    covered = {node.op_type for model in CASES.values() for node in model.graph.node}
    missing = (set(ADAPTERS) | set(WITHOUT_KERNEL)) - covered - {"Scan", "ReduceLogSum"}
    assert not missing


def _form(schema: defs.OpSchema) -> tuple[Any, ...]:
    """What a node of this schema looks like: parameters without their types, attributes with their defaults."""
    return (
        tuple(str(parameter.option) for parameter in schema.inputs),
        {
            name: (str(attribute.type), attribute.required, attribute.default_value.SerializeToString())
            for name, attribute in schema.attributes.items()
        },
    )


def test_every_change_of_form_since_the_oldest_opset_has_an_adapter() -> None:
    """An operator may gain optional inputs and attributes whose default means what it was; all else is listed."""
    history: dict[str, list[defs.OpSchema]] = defaultdict(list)
    for schema in defs.get_all_schemas_with_history():
        if schema.domain == "":
            history[schema.name].append(schema)
    unlisted = []
    for name, schemas in history.items():
        schemas.sort(key=lambda schema: schema.since_version)
        for old, new in itertools.pairwise(schemas):
            if not OLDEST_OPSET < new.since_version <= INTERNAL_OPSET:
                continue
            old_inputs, old_attributes = _form(old)
            new_inputs, new_attributes = _form(new)
            gained = new_inputs[: len(old_inputs)] == old_inputs and all(
                "Optional" in option for option in new_inputs[len(old_inputs) :]
            )
            kept = all(new_attributes.get(key) == value for key, value in old_attributes.items())
            safe = (
                gained
                and kept
                and all(
                    not required
                    for key, (_, required, _) in new_attributes.items()
                    if key not in old_attributes
                )
            )
            if (not safe or new.deprecated) and not any(
                changed == new.since_version for changed, _ in ADAPTERS.get(name, ())
            ):
                unlisted.append(f"{name}-{new.since_version}")
    # Constants become initializers; an optional parameter in place of a required one accepts all that was valid.
    # Upsample-9 takes its scales as an input: the adapter for 10 reads either form.
    harmless = {"Constant-11", "Gemm-11", "Upsample-9", "OptionalHasElement-18"}
    assert set(unlisted) == harmless


def test_constants_are_upgraded_inside_subgraphs() -> None:
    """Both branches use the form of opset 11 and the attribute form of Constant."""

    def branch(name: str, axis: int) -> onnx.GraphProto:
        return helper.make_graph(
            [helper.make_node("Unsqueeze", ["x"], [name], axes=[axis])],
            name,
            [],
            [helper.make_tensor_value_info(name, FLOAT, None)],
        )

    node = helper.make_node("If", ["c"], ["y"], then_branch=branch("t", 0), else_branch=branch("e", 1))
    model = make(11, [node], {"c": (TensorProto.BOOL, []), "x": (FLOAT, [3])}, {"y": FLOAT})
    captured = capture(model)
    for condition in (True, False):
        feeds = {"c": np.array(condition), "x": np.arange(3, dtype=np.float32)}
        wanted = run(ir.from_proto(model), feeds)
        np.testing.assert_array_equal(run(captured.model, feeds)["y"], wanted["y"])


def test_dropout_mask_keeps_its_old_type() -> None:
    model = one(7, "Dropout", [2, 3], outputs=2)
    captured = capture(model)
    mask = captured.model.graph.outputs[1]
    assert mask.name == "y1" and mask.dtype == ir.DataType.FLOAT


def test_training_batch_normalization_is_refused() -> None:
    constants = {name: np.ones(3, dtype=np.float32) for name in "sbmv"}
    model = one(9, "BatchNormalization", [2, 3, 4], constants, outputs=5)
    with pytest.raises(
        UnsupportedModelError, match=r"BatchNormalization of opset 9.*saved statistics are used"
    ):
        capture(model)


def test_batch_normalization_with_statistics_as_outputs_trains() -> None:
    """Up to opset 13 the number of outputs chose the mode, whether anything reads them or not."""
    constants = {name: np.ones(3, dtype=np.float32) for name in "sbmv"}
    model = one(9, "BatchNormalization", [2, 3, 4], constants, outputs=5)
    del model.graph.output[1:]
    upgraded = assert_upgrade_agrees(model)
    (node,) = upgraded.graph
    assert node.attributes["training_mode"].as_int() == 1 and len(node.outputs) == 3


def test_batched_scan_is_refused_by_name() -> None:
    body = helper.make_graph(
        [helper.make_node("Add", ["s", "i"], ["t"]), helper.make_node("Identity", ["t"], ["o"])],
        "body",
        [helper.make_tensor_value_info(name, FLOAT, [2]) for name in "si"],
        [helper.make_tensor_value_info(name, FLOAT, [2]) for name in "to"],
    )
    node = helper.make_node("Scan", ["", "a", "x"], ["f", "y"], num_scan_inputs=1, body=body, name="the_scan")
    model = make(8, [node], {"a": (FLOAT, [1, 2]), "x": (FLOAT, [1, 3, 2])}, {"f": FLOAT, "y": FLOAT})
    with pytest.raises(UnsupportedModelError, match=r"Scan of opset 8.*the_scan"):
        capture(model)


@pytest.mark.parametrize("opset", [27, 28])
def test_newer_opsets_are_read_as_the_internal_one(opset: int) -> None:
    model = one(opset, "Relu", [2, 3])
    captured = capture(model)
    assert captured.source_opset == opset
    assert captured.model.graph.opset_imports[""] == INTERNAL_OPSET
    assert captured.original_model.graph.opset_imports[""] == RUNTIME_OPSET
    assert captured.warnings == [f"opset {opset} is read as {RUNTIME_OPSET}: no operator in it changed since"]


def test_an_operator_whose_kernel_ends_is_read_as_the_last_opset_that_has_one() -> None:
    captured = capture(one(22, "GlobalLpPool", [1, 2, 3, 4], p=2))
    assert captured.original_model.graph.opset_imports[""] == captured.model.graph.opset_imports[""] == 21
    assert captured.warnings == ["opset 22 is read as 21: no operator in it changed since"]
    x = np.ones((1, 2, 3, 4), np.float32)
    np.testing.assert_allclose(run(captured.model, {"x": x})["y0"], np.full((1, 2, 1, 1), 12**0.5), rtol=1e-6)


def test_convolutions_stay_at_an_opset_at_which_onnxruntime_fuses_them() -> None:
    weight = {"w": np.ones((2, 2, 1, 1), np.float32)}
    captured = capture(one(22, "Conv", [1, 2, 3, 4], weight))
    assert captured.original_model.graph.opset_imports[""] == 22, "the original is measured as it was given"
    wanted = min(kernels.preferred_opsets().get("Conv", INTERNAL_OPSET), INTERNAL_OPSET)
    assert captured.model.graph.opset_imports[""] == wanted


def test_an_operator_newer_than_the_internal_opset_is_refused_by_name() -> None:
    node = helper.make_node("SpaceToDepth", ["x"], ["y"], blocksize=2, mode="CRD", name="rearrange")
    model = make(28, [node], {"x": (FLOAT, [1, 1, 4, 4])}, {"y": FLOAT})
    with pytest.raises(UnsupportedModelError, match=r"SpaceToDepth of opset 28 \(node 'rearrange'\)"):
        capture(model)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    axis=st.integers(-4, 3),
    op_type=st.sampled_from(["Softmax", "LogSoftmax", "Hardmax"]),
    dynamic=st.booleans(),
)
def test_softmax_of_any_axis(shape: list[int], axis: int, op_type: str, dynamic: bool) -> None:
    axis = max(-len(shape), min(axis, len(shape) - 1))
    declared = [f"d{index}" for index in range(len(shape))] if dynamic else shape
    model = one(11, op_type, declared, axis=axis)
    feeds = {"x": np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
    wanted = run(ir.from_proto(model), feeds)["y0"]
    got = run(capture(model).model, feeds)["y0"]
    assert got.shape == wanted.shape
    np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-6)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    scales=st.tuples(*[st.sampled_from([0.3, 0.5, 0.75, 1.0, 1.25, 2.0, 3.0])] * 2),
    size=st.tuples(st.integers(2, 9), st.integers(2, 9)),
    mode=st.sampled_from(["nearest", "linear"]),
)
def test_resize_of_opset_10_at_any_scale(
    scales: tuple[float, float], size: tuple[int, int], mode: str
) -> None:
    constants = {"s": np.array([1, 1, *scales], dtype=np.float32)}
    grown = [int(edge * scale) for edge, scale in zip(size, scales, strict=True)]
    # Where a scale above 1 leaves the size as it is, ONNX Runtime copies that axis or not, depending on the other.
    unchanged = any(new == edge and scale > 1 for new, edge, scale in zip(grown, size, scales, strict=True))
    assume(min(grown) > 0 and not (mode == "nearest" and unchanged))
    assert_upgrade_agrees(one(10, "Resize", [1, 1, *size], constants, mode=mode))


def test_batch_normalization_with_statistics_for_each_element() -> None:
    """``spatial=0`` of opset 7, against its formula: ONNX Runtime does not take it."""
    rng = np.random.default_rng(0)
    scale, bias, mean = (rng.standard_normal((3, 4)).astype(np.float32) for _ in range(3))
    variance = rng.uniform(0.5, 2, (3, 4)).astype(np.float32)
    constants = {"s": scale, "b": bias, "m": mean, "v": variance}
    x = rng.standard_normal((2, 3, 4)).astype(np.float32)
    model = capture(one(7, "BatchNormalization", [2, 3, 4], constants, spatial=0, epsilon=0.25)).model
    wanted = (x - mean) / np.sqrt(variance + np.float32(0.25)) * scale + bias
    np.testing.assert_allclose(run(model, {"x": x})["y0"], wanted, rtol=1e-5, atol=1e-6)
