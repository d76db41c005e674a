"""ONNX's own operator cases through TVM: what is not refused before is right, or an error."""

from __future__ import annotations

import contextlib
import io
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

pytest.importorskip("tvm")

from graphopt.errors import TargetError
from graphopt.targets.tvm import adapter
from graphopt.targets.tvm.executable import INSIDE, dot_products, vector_extension
from graphopt.targets.tvm.lower.importer import import_packed
from graphopt.targets.tvm.lower.pipeline import build_library, processor
from graphopt.targets.tvm.lower.tiles import Vectors
from graphopt.targets.tvm.operators import CHECKED, check

VECTORS = Vectors(8, 16)
LEAST_RIGHT = {
    "Resize": 0.25,
    "Pad": 0.5,
    "Shape": 0.0,
    "ConstantOfShape": 0.0,
    "Pow": 0.3,
    "EyeLike": 0.3,
    "Upsample": 0.0,
}
"""Share of the cases that are taken; of all other operators two thirds. The rest end in an error of TVM."""


@cache
def cases() -> dict[str, list[Any]]:
    """Cases of one node, by operator; what holds indices, sizes or flags is a constant, as it is in models."""
    from onnx.backend.test.case.node import collect_testcases

    found: dict[str, list[Any]] = {}
    for case in collect_testcases(None):
        nodes = case.model.graph.node
        tensors = [value for values in case.data_sets[0] for value in values]
        plain = all(isinstance(value, np.ndarray | np.generic) and value.dtype != object for value in tensors)
        if plain and len(nodes) == 1 and nodes[0].op_type in CHECKED and not nodes[0].domain:
            found.setdefault(nodes[0].op_type, []).append(case)
    return found


def with_constants(case: Any, *, floats: bool) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """The model with all inputs but the first (and floats, where these are to stay) as constants, and what is left."""
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    arrays = [np.asarray(array) for array in case.data_sets[0][0]]
    feeds = dict(zip([value.name for value in model.graph.input], arrays, strict=True))
    first = model.graph.node[0].input[0] if model.graph.node[0].input else ""
    kinds = "iubf" if floats else "iub"
    constant = {name for name, array in feeds.items() if array.dtype.kind in kinds and name != first}
    model.graph.initializer.extend(numpy_helper.from_array(feeds[name], name) for name in constant)
    kept = [value for value in model.graph.input if value.name not in constant]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    return model, {value.name: feeds[value.name] for value in kept}


def run(model: onnx.ModelProto, feeds: dict[str, Any], *, dots: bool = False) -> list[Any]:
    with contextlib.redirect_stdout(io.StringIO()):
        here = dot_products(vector_extension()) if dots else vector_extension()
        target, vectors = processor(here)
        vectors = vectors if dots else VECTORS
        library = build_library(import_packed(model, vectors, {})[0], target, vectors, INSIDE).compiled
    import tvm

    machine = tvm.relax.VirtualMachine(library, tvm.cpu())
    made = machine["main"](*(adapter.tensor(np.array(array, order="C")) for array in feeds.values()))
    return [made.numpy()] if hasattr(made, "numpy") else [array.numpy() for array in made]


def behind_convolutions(model: onnx.ModelProto, feeds: dict[str, Any]) -> onnx.ModelProto | None:
    """The model with its images, lines and columns made by convolutions that change nothing, so that they have their
    channels last; None where it has no image."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    (node,) = made.graph.node
    convolutions = []
    for place, name in enumerate(node.input):
        array = feeds.get(name)
        if array is None or array.dtype != np.float32 or array.ndim not in (3, 4) or not array.size:
            continue
        if not np.isfinite(array).all():
            continue
        channels = array.shape[1]
        same = np.eye(channels, dtype=np.float32).reshape(channels, channels, *(1,) * (array.ndim - 2))
        made.graph.initializer.append(numpy_helper.from_array(same, f"same_{place}"))
        convolutions.append(onnx.helper.make_node("Conv", [name, f"same_{place}"], [f"image_{place}"]))
        node.input[place] = f"image_{place}"
    if not convolutions:
        return None
    nodes = [*convolutions, node]
    del made.graph.node[:]
    made.graph.node.extend(nodes)
    return made


def check_cases(op: str, *, floats: bool, images: bool, dots: bool = False) -> tuple[set[str], set[str]]:
    """Which cases of an operator are right, and which end in an error of TVM; a wrong one fails the test."""
    right, failed = set(), set()
    for case in cases().get(op, ()):
        model, feeds = with_constants(case, floats=floats)
        changed = behind_convolutions(model, feeds) if images else model
        if changed is None:
            continue
        try:
            check(ir.from_proto(onnx.shape_inference.infer_shapes(changed)))
        except TargetError:
            continue
        try:
            made = run(changed, feeds, dots=dots)
        except Exception:  # whatever TVM raises becomes an error of the compilation
            failed.add(case.name)
            continue
        for got, wanted in zip(made, map(np.asarray, case.data_sets[0][1]), strict=False):
            assert got.shape == wanted.shape and got.dtype == wanted.dtype, case.name
            if wanted.dtype.kind == "f":
                tolerance = 1e-2 if wanted.dtype == np.float16 else 1e-5
                np.testing.assert_allclose(
                    got, wanted, rtol=max(1e-3, tolerance), atol=tolerance, err_msg=case.name
                )
            else:
                np.testing.assert_array_equal(got, wanted, err_msg=case.name)
        right.add(case.name)
    return right, failed


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("floats", [False, True], ids=["", "constants"])
@pytest.mark.parametrize("op", sorted(CHECKED))
def test_an_operator_is_right_or_refused(op: str, floats: bool) -> None:
    right, failed = check_cases(op, floats=floats, images=False)
    assert len(right) >= LEAST_RIGHT.get(op, 2 / 3) * (len(right) + len(failed))


@pytest.mark.skipif(not dot_products(vector_extension()), reason="no instruction for products of bytes")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("op", ["ConvInteger", "MatMulInteger"])
def test_products_of_integers_are_right_in_loops_of_bytes(op: str) -> None:
    right, failed = check_cases(op, floats=False, images=False, dots=True)
    assert right and not failed


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("floats", [False, True], ids=["", "constants"])
@pytest.mark.parametrize("op", sorted(CHECKED))
def test_an_operator_is_right_behind_convolutions(op: str, floats: bool) -> None:
    _, failed = check_cases(op, floats=floats, images=True)
    if failed:
        _, failed_alone = check_cases(op, floats=floats, images=False)
        assert failed <= failed_alone


def dynamic_conv(shape: tuple[int, ...], weight: Any, pads: list[int], kind: str) -> onnx.ModelProto:
    """ConvInteger whose zero point is an input."""
    from onnx import helper

    data = onnx.TensorProto.INT8 if kind == "int8" else onnx.TensorProto.UINT8
    node = helper.make_node("ConvInteger", ["x", "w", "z"], ["y"], pads=pads)
    graph = helper.make_graph(
        [node], "g",
        [helper.make_tensor_value_info("x", data, shape), helper.make_tensor_value_info("z", data, [])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.INT32, None)],
        [numpy_helper.from_array(weight, "w")],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)


@pytest.mark.skipif(not dot_products(vector_extension()), reason="no instruction for products of bytes")
@pytest.mark.parametrize("kind", ["uint8", "int8"])
@pytest.mark.parametrize("sizes", [(9, 7), (30,)], ids=["image", "line"])
def test_a_zero_point_that_is_computed_lies_beyond_the_edges_too(kind: str, sizes: tuple[int, ...]) -> None:
    rng = np.random.default_rng(1)
    limits = np.iinfo(kind)
    data = rng.integers(limits.min, limits.max + 1, (2, 5, *sizes)).astype(kind)
    weight = rng.integers(-128, 128, (6, 5, *(3,) * len(sizes))).astype(np.int8)
    model = dynamic_conv(data.shape, weight, [1] * (2 * len(sizes)), kind)
    feeds = {"x": data, "z": np.array(limits.max - 30, kind)}
    made = run(model, feeds, dots=True)[0]
    wide = data.astype(np.int64) - int(feeds["z"])
    wide = np.pad(wide, [(0, 0), (0, 0), *[(1, 1)] * len(sizes)])
    windows = np.lib.stride_tricks.sliding_window_view(wide, weight.shape[2:], tuple(range(2, wide.ndim)))
    if len(sizes) == 1:
        wanted = np.einsum("nclk,ock->nol", windows, weight.astype(np.int64))
    else:
        wanted = np.einsum("ncyxkl,ockl->noyx", windows, weight.astype(np.int64))
    np.testing.assert_array_equal(made, wanted)


@pytest.mark.skipif(not dot_products(vector_extension()), reason="no instruction for products of bytes")
@pytest.mark.parametrize("middle", [0, 3, 128, 255])
def test_weights_with_any_zero_point_are_multiplied_as_bytes(middle: int) -> None:
    from onnx import helper

    rng = np.random.default_rng(2)
    weight = rng.integers(0, 256, (37, 21)).astype(np.uint8)
    node = helper.make_node("MatMulInteger", ["x", "w", "z", "m"], ["y"])
    graph = helper.make_graph(
        [node], "g", [helper.make_tensor_value_info("x", onnx.TensorProto.UINT8, [5, 37])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.INT32, None)],
        [
            numpy_helper.from_array(array, name)
            for name, array in (("w", weight), ("z", np.uint8(200)), ("m", np.uint8(middle)))
        ],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
    data = rng.integers(0, 256, (5, 37)).astype(np.uint8)
    wanted = (data.astype(np.int64) - 200) @ (weight.astype(np.int64) - middle)
    np.testing.assert_array_equal(run(model, {"x": data}, dots=True)[0], wanted)


@pytest.mark.parametrize(
    "text",
    [
        "y = Softmax<axis=1>(c)",
        "s = Split<axis=1>(c, one)\n y = Relu(s)",
        "y = LogSoftmax(c)",
    ],
)
def test_older_forms_behind_a_convolution(text: str) -> None:
    """As they are before an upgrade to the internal opset, and what it never sees."""
    import onnxruntime

    opset = 13 if "Split" in text else 11
    header = f'<ir_version: 8, opset_import: ["" : {opset}]>'
    model = onnx.parser.parse_model(
        f"{header} g (float[2,3,4,5] x, float[6,3,1,1] w, int64[1] one) => (float[2,6,4,5] y) {{ c = Conv(x, w)\n {text} }}"
    )
    rng = np.random.default_rng(3)
    weight = numpy_helper.from_array(rng.standard_normal((6, 3, 1, 1)).astype(np.float32), "w")
    model.graph.initializer.extend([weight, numpy_helper.from_array(np.array([6]), "one")])
    del model.graph.input[1:]
    feeds = {"x": rng.standard_normal((2, 3, 4, 5)).astype(np.float32)}
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(run(model, feeds)[0], session.run(None, feeds)[0], rtol=1e-4, atol=1e-5)


def test_most_cases_are_of_operators_that_are_taken() -> None:
    assert sum(map(len, cases().values())) > 700


@pytest.mark.parametrize("automatic", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize(
    ("size", "kernel", "stride", "dilation"), [(7, 3, 2, 1), (8, 3, 2, 1), (8, 1, 2, 1), (9, 4, 1, 1)]
)
def test_a_convolution_finds_its_pads_as_onnx_says(
    automatic: str, size: int, kernel: int, stride: int, dilation: int
) -> None:
    import onnxruntime
    from onnx import helper

    rng = np.random.default_rng(0)
    weight = rng.standard_normal((6, 3, kernel, kernel)).astype(np.float32)
    node = helper.make_node(
        "Conv", ["x", "w"], ["y"], auto_pad=automatic, strides=[stride] * 2, dilations=[dilation] * 2
    )
    graph = helper.make_graph(
        [node], "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 3, size, size + 3])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "w")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
    feeds = {"x": rng.standard_normal((1, 3, size, size + 3)).astype(np.float32)}
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(run(model, feeds)[0], session.run(None, feeds)[0], rtol=1e-4, atol=1e-4)
