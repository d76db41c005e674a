"""Models that others quantized: integers stay integers, whatever form they are written in."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.version_converter
import onnx_ir as ir
import onnxruntime.quantization as quantization
import pytest
from onnx import helper, numpy_helper

import graphopt
from graphopt import catalog, zoo
from graphopt.capture import capture
from graphopt.pipeline.manager import PassManager
from graphopt.pipeline.spec import parse
from graphopt.targets.ort.target import OrtTarget
from graphopt.verify.reference import build_reference

SIGNED, UNSIGNED = quantization.QuantType.QInt8, quantization.QuantType.QUInt8
KINDS = ("qdq-signed", "qdq-unsigned", "qoperator", "dynamic")
_INTEGER_KERNELS = ("QLinear", "Integer")


class Noise(quantization.CalibrationDataReader):  # type: ignore[misc]
    """A few normal samples."""

    def __init__(self, name: str, shape: tuple[int, ...]) -> None:
        rng = np.random.default_rng(0)
        self._samples = iter([{name: rng.standard_normal(shape).astype(np.float32)} for _ in range(4)])

    def get_next(self) -> Any:
        return next(self._samples, None)


def quantize(source: Path, kind: str, name: str, shape: tuple[int, ...]) -> Path:
    """What ONNX Runtime's quantizer makes of a float model."""
    result = source.with_name(f"{kind}.onnx")
    if kind == "dynamic":
        quantization.quantize_dynamic(source, result, weight_type=UNSIGNED)
        return result
    form = quantization.QuantFormat.QOperator if kind == "qoperator" else quantization.QuantFormat.QDQ
    quantization.quantize_static(
        source, result, Noise(name, shape), quant_format=form, weight_type=SIGNED,
        activation_type=SIGNED if kind == "qdq-signed" else UNSIGNED, per_channel=kind != "qoperator",
    )  # fmt: skip
    return result


def conv_net(path: Path, opset: int) -> Path:
    """Convolutions, a pool that a product with a constant follows, a residual, a linear layer."""
    rng = np.random.default_rng(0)
    shapes = {"w1": (16, 3, 3, 3), "b1": (16,), "w2": (16, 16, 1, 1), "w3": (16, 10), "b3": (10,)}
    weights = [
        numpy_helper.from_array((rng.standard_normal(shape) / 5).astype(np.float32), name)
        for name, shape in shapes.items()
    ]
    weights.append(numpy_helper.from_array(np.array(1.7, dtype=np.float32), "half"))
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], pads=[1] * 4),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Div", ["r1", "half"], ["d1"]),
        helper.make_node("MaxPool", ["d1"], ["p1"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["p1", "w2"], ["c2"]),
        helper.make_node("Add", ["c2", "p1"], ["a1"]),
        helper.make_node("GlobalAveragePool", ["a1"], ["g1"]),
        helper.make_node("Flatten", ["g1"], ["f1"]),
        helper.make_node("MatMul", ["f1", "w3"], ["m1"]),
        helper.make_node("Add", ["m1", "b3"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", 1, ["n", 3, 16, 16])],
        [helper.make_tensor_value_info("y", 1, ["n", 10])],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), path)
    return path


def integer_work(model: ir.Model) -> Counter[str]:
    """Nodes that compute on integers: those with integer kernels, and convolutions and products between DQs."""
    found: Counter[str] = Counter()
    for node in model.graph:
        if any(part in node.op_type for part in _INTEGER_KERNELS):
            found[node.op_type] += 1
        elif node.op_type in ("Conv", "MatMul", "Gemm"):
            makers = [value.producer() for value in node.inputs[:2] if value is not None]
            if all(maker is not None and maker.op_type == "DequantizeLinear" for maker in makers):
                found[f"{node.op_type} between DQs"] += 1
    return found


def integer_weights(model: ir.Model) -> int:
    """Elements of 8-bit constants that are larger than a zero point."""
    tensors = [value.const_value for value in model.graph.initializers.values()]
    eight = (ir.DataType.INT8, ir.DataType.UINT8)
    return sum(
        tensor.size for tensor in tensors if tensor is not None and tensor.dtype in eight and tensor.size > 64
    )


def assert_integers_stay(path: Path, folder: Path) -> None:
    """Compile, and compare the integers of the last rewritten form with the original's, before any choice by time."""
    before = capture(path)
    reference = build_reference(before.original_model, interface=before.model)
    passes = [*catalog.expand(parse("fold,fuse")), *OrtTarget("ort-cpu").legalization()]
    manager = PassManager(passes, reference=reference, allow_domains=frozenset({"com.microsoft"}))
    rewritten, records = manager.run(before.model)
    assert not any(record.undone for record in records)
    assert integer_work(rewritten) == integer_work(before.model) and integer_work(rewritten).total() >= 3
    # Weights that were quantized while running are stored as integers; none becomes float.
    assert integer_weights(rewritten) >= max(integer_weights(before.model), 1)

    compiled = graphopt.compile(path, target="ort-cpu", passes="fold,fuse", threads=1, tune="0.5s")
    report = compiled.report
    assert report.forms[-1].label != "original" and report.forms[-1].verified, report.forms
    assert report.verification.status == "verified" and report.speedup is not None and report.speedup >= 1.0
    # Where nothing is as fast as the original, that is what is written, under its own name.
    bundle = compiled.save(folder / "result.gopt")
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    result = ir.load(bundle / manifest["config"]["file"])
    assert integer_work(result) == integer_work(before.model)


@pytest.mark.parametrize("opset", [13, 21])
@pytest.mark.parametrize("kind", KINDS)
def test_a_quantized_network_keeps_its_integers(kind: str, opset: int, tmp_path: Path) -> None:
    source = conv_net(tmp_path / "net.onnx", opset)
    assert_integers_stay(quantize(source, kind, "x", (2, 3, 16, 16)), tmp_path)


@pytest.mark.zoo
@pytest.mark.parametrize("kind", KINDS)
def test_a_real_quantized_network_keeps_its_integers(kind: str, tmp_path: Path) -> None:
    source = tmp_path / "cls.onnx"
    # One scale for each channel needs opset 13.
    onnx.save(onnx.version_converter.convert_version(onnx.load(zoo.fetch("ppocr-cls")), 13), source)
    assert_integers_stay(quantize(source, kind, "x", (1, 3, 48, 192)), tmp_path)
