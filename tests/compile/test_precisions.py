"""Weights in blocks, dynamic int8 and half precision end to end on small models."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper
from onnx_ir.passes.common import ShapeInferencePass

import graphopt
from graphopt import artifact
from graphopt.cli._lossy import points
from graphopt.errors import UsageError, VerificationError
from graphopt.machine import Form
from graphopt.passes._precisions import is_of_products, multiplications
from graphopt.passes.quantize import Quantize
from graphopt.report import Verdict
from graphopt.targets.ort.target import OrtTarget
from graphopt.testing import model_from_text
from graphopt.tune.kernels import kernels_of

WIDTH, STEPS = 256, 24
QUICK: dict[str, Any] = {"threads": 1, "tune": "2s", "target": "ort-cpu"}


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table, a product with a bias, an LSTM, a residual, a Gemm."""
    rng = np.random.default_rng(0)
    shapes = {
        "table": (500, WIDTH), "w1": (WIDTH, 4 * WIDTH), "b1": (4 * WIDTH,), "w2": (4 * WIDTH, WIDTH),
        "w": (1, 4 * WIDTH, WIDTH), "r": (1, 4 * WIDTH, WIDTH), "w3": (WIDTH, 64), "b3": (64,),
    }  # fmt: skip
    weights = [
        numpy_helper.from_array((rng.standard_normal(shape) / 16).astype(np.float32), name)
        for name, shape in shapes.items()
    ]
    weights.append(numpy_helper.from_array(np.array(0, np.int64), "last"))
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["e"]),
        helper.make_node("MatMul", ["e", "w1"], ["m"]),
        helper.make_node("Add", ["m", "b1"], ["a"]),
        helper.make_node("Relu", ["a"], ["h"]),
        helper.make_node("MatMul", ["h", "w2"], ["p"]),
        helper.make_node("Add", ["p", "e"], ["s"]),
        helper.make_node("LSTM", ["s", "w", "r"], ["", "hn"], hidden_size=WIDTH),
        helper.make_node("Gather", ["hn", "last"], ["f"]),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "net", [helper.make_tensor_value_info("ids", 7, [STEPS, "n"])],
        [helper.make_tensor_value_info("y", 1, ["n", 64])], weights,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("net") / "net.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def samples(count: int = 8, seed: int = 0) -> Iterator[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    for _ in range(count):
        yield {"ids": rng.integers(0, 500, (STEPS, 4))}


def lossy(report: Any) -> dict[str, Any]:
    return next(record for record in report.as_dict()["passes"] if record["numerics"] == "lossy")


def executed(path: Path, target: str = "ort-cpu") -> set[str]:
    config = json.loads((path / "manifest.json").read_text())["config"]
    return {
        kernel.op
        for kernel in kernels_of(Form("bundle", target, path, config), next(samples()), threads=1, runs=1)
    }


def test_dynamic_int8(net: Path, tmp_path: Path) -> None:
    compiled = graphopt.compile(net, data=samples(), passes="fuse,quantize-dynamic", **QUICK)
    record = lossy(compiled.report)
    assert record["status"] == "applied", record["reason"]
    layers = {layer["op"]: layer for layer in record["details"]["layers"]}
    assert {"MatMul", "LSTM"} <= layers.keys()
    assert all(layer["reason"] for layer in layers.values() if layer["precision"] == "float32")
    form = next(form for form in compiled.report.forms if form.label.startswith("dynamic int8"))
    assert form.verified, form.note
    if not compiled.report.chosen.startswith("dynamic int8"):
        pytest.skip("on this machine the float form is faster")
    found = record["details"]["executed"]
    assert found["integer"] >= 1 and not found["without_integer_kernel"]
    kinds = executed(compiled.save(tmp_path / "net.gopt"))
    lowered = {op for op, layer in layers.items() if layer["precision"] == "dynamic int8"}
    assert ("DynamicQuantizeLSTM" in kinds) == ("LSTM" in lowered)
    assert compiled.report.size_after < compiled.report.size_before


@pytest.mark.parametrize("bits", [4, 8])
def test_weights_in_blocks(net: Path, bits: int, tmp_path: Path) -> None:
    """The form holds whether it is chosen or not; its kernels are looked at without a race."""
    passes = f"fuse,quantize-weights{{bits={bits},accuracy_level=1}}"
    compiled = graphopt.compile(net, data=samples(), passes=passes, max_drop="5%", **QUICK)
    record = lossy(compiled.report)
    assert record["status"] == "applied", record["reason"]
    products = [layer for layer in record["details"]["layers"] if layer["precision"] == f"{bits}-bit weight"]
    assert {"MatMul", "Gather"} <= {layer["op"] for layer in products}
    assert all(layer["bytes_in_blocks"] < 0.3 * layer["bytes"] for layer in products)
    form = next(form for form in compiled.report.forms if form.label.startswith(f"{bits}-bit weights"))
    assert form.verified, form.note
    # As the terminal shows it.
    count = len(products)
    assert points(record["details"])[0].startswith(f"{count} of {count} weights  drop ")


def test_a_budget_keeps_some_weights(net: Path) -> None:
    options = {**QUICK, "passes": "fuse,quantize-weights{bits=4}"}
    all_of_it = graphopt.compile(net, data=samples(), max_drop="20%", **options)
    judged = lossy(all_of_it.report)["details"]["judged"]
    assert len(judged) == 1 and judged[0]["held"]
    half_of_it = graphopt.compile(net, data=samples(), max_drop=judged[0]["drop"] / 2, **options)
    record = lossy(half_of_it.report)
    kept = [layer for layer in record["details"]["layers"] if layer["precision"] == "float32"]
    assert record["status"] == "applied" and any("budget" in layer["reason"] for layer in kept)
    with pytest.raises(VerificationError, match=r"the nearest: drop"):
        graphopt.compile(net, data=samples(), max_drop=1e-9, **options)


@pytest.fixture(scope="module")
def on_cuda(net: Path) -> graphopt.CompiledModel:
    if OrtTarget("ort-cuda").probe().runnable:
        pytest.skip("this is for machines without a GPU")
    return graphopt.compile(net, data=samples(), passes="fuse,float16", **{**QUICK, "target": "ort-cuda"})


def test_half_precision_is_compiled_where_it_cannot_run(
    on_cuda: graphopt.CompiledModel, tmp_path: Path
) -> None:
    report = on_cuda.report
    assert report.chosen.startswith("float16") and report.verification.status == Verdict.NOT_RUN
    assert any("compiled, not run" in warning for warning in report.warnings)
    form = next(form for form in report.forms if form.label == report.chosen)
    assert "on the CPU drop" in form.note and form.milliseconds is None
    assert report.size_after < 0.55 * report.size_before
    path = on_cuda.save(tmp_path / "net.gopt")
    model = ir.load(path / "model.onnx")
    assert [value.dtype for value in model.graph.outputs] == [ir.DataType.FLOAT]
    assert sum(node.op_type == "Cast" for node in model.graph) == 1, "only that of the output"
    details = lossy(report)["details"]
    assert {layer["precision"] for layer in details["layers"]} == {"float16"}
    assert details["judged"][0]["decibels"] > 40
    assert points(details)[0].startswith(f"{len(details['layers'])} layers  drop ")


def test_an_interface_in_half_precision(net: Path, tmp_path: Path) -> None:
    if OrtTarget("ort-cuda").probe().runnable:
        pytest.skip("this is for machines without a GPU")
    compiled = graphopt.compile(
        net, data=samples(), passes="fuse,float16{keep_io=false}", **{**QUICK, "target": "ort-cuda"}
    )
    manifest = artifact.read_manifest(compiled.save(tmp_path / "net.gopt"))
    assert [tensor.dtype for tensor in manifest.outputs] == ["float16"]
    with pytest.raises(UsageError, match="bfloat16"):
        graphopt.compile(net, data=samples(), passes="fuse,float16{keep_io=false,dtype=bfloat16}", **QUICK)


def test_quantize_gives_cuda_what_it_has_kernels_for(net: Path) -> None:
    if OrtTarget("ort-cuda").probe().runnable:
        pytest.skip("this is for machines without a GPU")
    compiled = graphopt.compile(
        net, data=samples(), passes="fuse,quantize", **{**QUICK, "target": "ort-cuda"}
    )
    report = compiled.report
    assert "no int8 kernels" in lossy(report)["details"]["kernels"]
    labels = [form.label for form in report.forms]
    assert report.chosen == "float16" and "8-bit weights, float16" in labels
    assert report.verification.budget is not None and report.verification.budget["drop"] <= 0.01


def test_the_cpu_has_no_use_for_half_precision(net: Path) -> None:
    compiled = graphopt.compile(net, data=samples(), passes="fuse,float16", **QUICK)
    assert "ort-cpu has no float16 kernels" in lossy(compiled.report)["reason"]
    assert any("float16 is not part of the result" in warning for warning in compiled.report.warnings)


def _with_weights(text: str) -> ir.Model:
    """The graph of a text, whose inputs but ``x`` become constants, with shapes."""
    model = model_from_text(text)
    for value in list(model.graph.inputs)[1:]:
        assert value.shape is not None
        model.graph.inputs.remove(value)
        value.const_value = ir.tensor(np.ones(value.shape.numpy(), np.float32), name=value.name)
        model.graph.register_initializer(value)
    ShapeInferencePass()(model)
    return model


@pytest.mark.parametrize(
    ("text", "expected", "of_products"),
    [
        ("g (float[2,5,8] x, float[8,16] w) => (float[2,5,16] y) { y = MatMul(x, w) }", 5 * 128, True),
        ("g (float[N,8] x, float[8,16] w) => (float[N,16] y) { y = MatMul(x, w) }", 128, True),
        (
            "g (float[1,2,8,8] x, float[4,2,3,3] k, float[256,4] w) => (float[1,4] y) "
            "{ c = Conv<pads=[1,1,1,1]>(x, k) f = Flatten(c) y = Gemm(f, w) }",
            256 * 4,
            False,
        ),
    ],
)
def test_what_products_are_of_the_work(text: str, expected: int, of_products: bool) -> None:
    model = _with_weights(text)
    assert multiplications(model, ("MatMul", "Gemm")) == expected
    assert is_of_products(model) == of_products
    plain = OrtTarget("ort-cpu").integer_kernels()
    assert plain is not None
    kernels = [replace(plain, dynamic=frozenset(names)) for names in (("MatMul",), ())]
    assert [Quantize().suits(model, each) for each in kernels] == [of_products, not of_products]
    assert not Quantize().suits(model, None)
