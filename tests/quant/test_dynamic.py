"""Products and LSTMs whose activations are quantized as they come."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

from graphopt.pipeline.base import RewritePass
from graphopt.quant.dynamic import DynamicForms, layers_of
from graphopt.quant.layers import noise_of_forms, replaced
from graphopt.quant.ranges import quantize_weight, weight_scales
from graphopt.rewrite import RewriteLog
from graphopt.targets.ort.integers import kernels as kernels_here
from graphopt.targets.ort.legalize.dynamic_lstm import DynamicLstm
from graphopt.testing import OPSET
from graphopt.verify.session import Session

Array = np.ndarray[Any, Any]
LIMIT = kernels_here().weight_limit
"""Of a weight: with larger ones, kernels of a processor without VNNI overflow."""


def model_of(
    nodes: list[onnx.NodeProto], x: list[Any], constants: dict[str, Array], outputs: dict[str, int]
) -> ir.Model:
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", 1, x)],
        [helper.make_tensor_value_info(name, 1, [None] * rank) for name, rank in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", OPSET)]
    return ir.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=10))


def on_integers(model: ir.Model, limit: int = LIMIT) -> ir.Model:
    nodes, refused = layers_of(model)
    assert not refused
    form = DynamicForms(limit)
    copy = replaced(model, {node.name or "": form for node in nodes}, "quantize-dynamic")
    log = RewriteLog()
    RewritePass("ort", [DynamicLstm()]).run(copy, log)
    assert not log.failed, log.failed
    return copy


def kernels(model: ir.Model, folder: Path) -> Counter[str]:
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 4
    ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)


def quantized(x: Array) -> Array:
    """What DynamicQuantizeLinear and its inverse leave of ``x`` (ONNX specification of the operator)."""
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    scale = np.float32((high - low) / 255) or np.float32(1)
    zero = np.clip(np.rint(-low / scale), 0, 255)
    return ((np.clip(np.rint(x / scale) + zero, 0, 255) - zero) * scale).astype(np.float32)


def restored(weight: Array, axis: int, limit: int = LIMIT) -> Array:
    scales = weight_scales(weight, axis, limit)
    shape = [1] * weight.ndim
    shape[axis] = -1
    return quantize_weight(weight, scales, axis, limit).astype(np.float32) * scales.reshape(shape)


def assert_close(got: Array, wanted: Array, tolerance: float = 2e-5) -> None:
    assert got.shape == wanted.shape
    np.testing.assert_allclose(got, wanted, rtol=0, atol=tolerance * np.abs(wanted).max(initial=1e-30))


@pytest.mark.parametrize("limit", sorted({LIMIT, 63}))
@pytest.mark.parametrize("batch", [(5,), (2, 3), (2, 1, 4)])
@pytest.mark.parametrize(("rows", "columns"), [(96, 40), (7, 1), (1, 64)])
def test_a_product(batch: tuple[int, ...], rows: int, columns: int, limit: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(rows)
    weight = rng.standard_normal((rows, columns)).astype(np.float32)
    weight[:, 0] *= 1e-3
    weight[0] = 0
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="layer")
    model = model_of([node], [*["B", "C", "M"][: len(batch)], rows], {"w": weight}, {"y": len(batch) + 1})
    result = on_integers(model, limit)
    for shift in (0.0, 3.0, -3.0):
        x = (rng.standard_normal((*batch, rows)) + shift).astype(np.float32)
        wanted = quantized(x) @ restored(weight, 1, limit)
        for level in ("off", "all"):
            assert_close(Session(result, optimize=level).run({"x": x})["y"], wanted, 1e-4)
    assert kernels(result, tmp_path) == {"DynamicQuantizeMatMul": 1}
    zeros = np.zeros((*batch, rows), np.float32)
    assert not Session(result, optimize="all").run({"x": zeros})["y"].any()


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize(("bias", "beta"), [(None, 1.0), ((40,), 1.0), ((40,), -2.0), ((1, 1), 0.5)])
def test_a_gemm(transposed: int, bias: tuple[int, ...] | None, beta: float, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((110, 40)).astype(np.float32)
    offset = None if bias is None else rng.standard_normal(bias).astype(np.float32)
    names = ["x", "w"] if offset is None else ["x", "w", "b"]
    node = helper.make_node("Gemm", names, ["y"], name="layer", transB=transposed, alpha=0.5, beta=beta)
    constants = {"w": weight.T.copy() if transposed else weight}
    constants.update({} if offset is None else {"b": offset})
    result = on_integers(model_of([node], ["M", 110], constants, {"y": 2}))
    x = rng.standard_normal((5, 110)).astype(np.float32)
    wanted = 0.5 * (quantized(x) @ restored(weight, 1)) + (0 if offset is None else beta * offset)
    assert_close(Session(result, optimize="all").run({"x": x})["y"], wanted, 1e-4)
    assert kernels(result, tmp_path)["DynamicQuantizeMatMul"] == 1


def test_layers_that_read_the_same_share_its_integers(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal((32, 32)).astype(np.float32) for name in ("q", "k")}
    nodes = [helper.make_node("MatMul", ["x", name], [f"y{name}"], name=name) for name in weights]
    result = on_integers(model_of(nodes, ["M", 32], weights, {"yq": 2, "yk": 2}))
    assert kernels(result, tmp_path) == {"DynamicQuantizeLinear": 1, "MatMulIntegerToFloat": 2}


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("present", [("y", "h", "c"), ("y",), ("h",)])
def test_an_lstm_becomes_one_kernel(direction: str, present: tuple[str, ...], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    count, hidden, width, steps, batch = 2 if direction == "bidirectional" else 1, 16, 12, 9, 3
    constants = {
        "w": rng.standard_normal((count, 4 * hidden, width)) / 3,
        "r": rng.standard_normal((count, 4 * hidden, hidden)) / 4,
        "b": rng.standard_normal((count, 8 * hidden)),
        "h0": rng.standard_normal((count, batch, hidden)) / 2,
        "c0": rng.standard_normal((count, batch, hidden)) / 2,
    }
    outputs = [name if name in present else "" for name in ("y", "h", "c")]
    node = helper.make_node(
        "LSTM",
        ["x", "w", "r", "b", "", "h0", "c0"],
        outputs,
        name="layer",
        hidden_size=hidden,
        direction=direction,
    )
    model = model_of(
        [node], ["T", batch, width], {name: array.astype(np.float32) for name, array in constants.items()},
        {name: 4 if name == "y" else 3 for name in present},
    )  # fmt: skip
    result = on_integers(model)
    assert kernels(result, tmp_path) == {"DynamicQuantizeLSTM": 1}
    x = rng.standard_normal((steps, batch, width)).astype(np.float32)
    got, wanted = Session(result, optimize="all").run({"x": x}), Session(model).run({"x": x})
    for name in present:
        noise = np.square(got[name] - wanted[name]).sum() / np.square(wanted[name]).sum()
        assert 1e-7 < noise < 1e-3, "25 to 40 dB are what 8 bits give"


def test_the_form_of_an_lstm_without_such_a_kernel_computes_the_same_but_for_the_hidden_state() -> None:
    rng = np.random.default_rng(0)
    constants = {
        "w": (rng.standard_normal((1, 64, 12)) / 3).astype(np.float32),
        "r": (rng.standard_normal((1, 64, 16)) / 4).astype(np.float32),
    }
    node = helper.make_node("LSTM", ["x", "w", "r"], ["y"], name="layer", hidden_size=16)
    model = model_of([node], ["T", "B", 12], constants, {"y": 4})
    plain = replaced(model, {"layer": DynamicForms(LIMIT)}, "quantize-dynamic")
    rounded = {name: restored(array[0], 0)[None] for name, array in constants.items()}
    x = rng.standard_normal((9, 2, 12)).astype(np.float32)
    wanted = Session(model_of([node], ["T", "B", 12], rounded, {"y": 4})).run({"x": quantized(x)})["y"]
    assert_close(Session(plain).run({"x": x})["y"], wanted)


def test_the_loud_layer_is_found_in_few_runs_where_time_is_short() -> None:
    """Of 48 layers two add most: halving what adds most comes to them, whatever the others add."""
    rng = np.random.default_rng(0)
    names = [f"layer{index}" for index in range(48)]
    weights = {f"w{index}": rng.standard_normal((32, 8)).astype(np.float32) for index in range(48)}
    for loud in (17, 30):
        weights[f"w{loud}"][0, :] = 300.0
    nodes = [
        *(
            helper.make_node("MatMul", ["x", f"w{index}"], [f"a{index}"], name=name)
            for index, name in enumerate(names)
        ),
        helper.make_node("Concat", [f"a{index}" for index in range(48)], ["y"], name="last", axis=1),
    ]
    model = model_of(nodes, ["M", 32], weights, {"y": 2})
    form = DynamicForms(LIMIT)
    told: list[str] = []
    found = noise_of_forms(
        model, dict.fromkeys(names, form), [{"x": rng.standard_normal((64, 32)).astype(np.float32)}],
        deadline=time.monotonic(), progress=told.append,
    )  # fmt: skip
    assert len(told) <= 12 and set(found) == set(names)
    assert set(sorted(found, key=lambda name: found[name])[-2:]) == {"layer17", "layer30"}


def test_switches_of_layers_that_share_an_input() -> None:
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal((32, 32)).astype(np.float32) for name in ("q", "k")}
    nodes = [
        helper.make_node("MatMul", ["x", "q"], ["a"], name="first"),
        helper.make_node("MatMul", ["x", "k"], ["b"], name="second"),
        helper.make_node("Mul", ["a", "b"], ["y"], name="last"),
    ]
    model = model_of(nodes, ["M", 32], weights, {"y": 2})
    form = DynamicForms(LIMIT)
    x = rng.standard_normal((9, 32)).astype(np.float32)
    found = noise_of_forms(model, {"first": form, "second": form}, [{"x": x}])
    wanted = (x @ weights["q"]) * (x @ weights["k"])
    alone = (quantized(x) @ restored(weights["q"], 1)) * (x @ weights["k"])
    assert found["first"] == pytest.approx(
        np.square(alone - wanted).sum() / np.square(wanted).sum(), rel=0.01
    )
    assert found["second"] > 0


@pytest.mark.parametrize(
    ("node", "weight", "reason"),
    [
        (helper.make_node("MatMul", ["x", "w"], ["y"], name="n"), np.zeros((2, 8, 8)), "3 dimensions"),
        (helper.make_node("Gemm", ["x", "w"], ["y"], name="n", transA=1), np.zeros((8, 8)), "transposed"),
        (helper.make_node("MatMul", ["x", "x"], ["y"], name="n"), np.zeros((8, 8)), "no constant"),
        (helper.make_node("MatMul", ["x", "w"], ["y"], name="n"), np.full((8, 8), np.inf), "infinity"),
    ],
)
def test_says_why_a_layer_stays(node: onnx.NodeProto, weight: Array, reason: str) -> None:
    found, refused = layers_of(model_of([node], ["M", 8], {"w": weight.astype(np.float32)}, {"y": 2}))
    assert not found and reason in refused["n"]
