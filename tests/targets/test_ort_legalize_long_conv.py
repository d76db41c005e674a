"""Long convolutions through the frequency domain."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnx_ir.passes.common
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.rewrite import RewriteLog
from graphopt.targets.ort.legalize.long_conv import LegalizeLongConv, _Line, transforms
from graphopt.testing import apply, assert_same_numbers, text_of

Array = npt.NDArray[Any]


def conv(
    dims: list[int | str], weight: Array, pads: list[int], bias: bool = True, **attrs: object
) -> ir.Model:
    """One Conv with these weights."""
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(dims))
    tensors = {"w": weight}
    if bias:
        tensors["b"] = np.linspace(-1, 1, weight.shape[0], dtype=np.float32)
    values = [
        ir.Value(
            name=name,
            type=ir.TensorType(ir.DataType.FLOAT),
            shape=ir.Shape(array.shape),
            const_value=ir.tensor(array, name=name),
        )
        for name, array in tensors.items()
    ]
    node = ir.node("Conv", [x, *values], {"pads": pads, **attrs}, name="conv")
    node.outputs[0].name = "y"
    node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph([x], node.outputs, nodes=[node], initializers=values, opset_imports={"": 22}, name="g")
    model = ir.Model(graph, ir_version=10)
    ir.passes.common.ShapeInferencePass()(model)
    return model


def weights(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    length=st.integers(1, 40),
    kernel=st.integers(1, 40),
    before=st.integers(0, 40),
    after=st.integers(0, 40),
    seed=st.integers(0, 9),
)
def test_transforms_give_the_direct_sum(length: int, kernel: int, before: int, after: int, seed: int) -> None:
    line = _Line(length, kernel, before, after)
    if line.out_length < 1:
        return
    rng = np.random.default_rng(seed)
    x, w = rng.standard_normal((2, length)), rng.standard_normal((3, 2, kernel))
    forward, of_kernel, inverse = transforms(line)
    padded = np.pad(x, ((0, 0), (before, after)))
    direct = np.array(
        [[np.sum(padded[:, t : t + kernel] * w[o]) for o in range(3)] for t in range(line.out_length)]
    )
    count = line.frequencies
    spectrum = (of_kernel @ w.transpose(2, 1, 0).reshape(kernel, -1)).reshape(2, count, 2, 3)
    spectrum = spectrum.transpose(1, 2, 0, 3).reshape(count, 2, 6)
    parts = (forward @ x.T).reshape(2, count, 2).transpose(1, 0, 2)
    product = (parts @ spectrum).reshape(count, 2, 2, 3).reshape(4 * count, 3)
    np.testing.assert_allclose(inverse @ product, direct, atol=2e-5 * max(1.0, np.abs(direct).max()))


@pytest.mark.parametrize(
    ("dims", "weight", "pads"),
    [
        (["N", 32, 64], (48, 32, 64), [31, 32]),
        (["N", 32, 64, 1], (48, 32, 64, 1), [31, 0, 32, 0]),
        (["N", 32, 1, 96], (32, 32, 1, 64), [0, 0, 0, 0]),
        ([2, 32, 80], (32, 32, 64), [0, 63]),
    ],
)
@pytest.mark.parametrize("bias", [True, False])
def test_fires(dims: list[int | str], weight: tuple[int, ...], pads: list[int], bias: bool) -> None:
    before = conv(dims, weights(*weight), pads, bias)
    after, log = apply(LegalizeLongConv(), before)
    assert log.counts() == {"long-conv-to-dft": 1}
    assert_same_numbers(before, after)


def test_the_spectrum_is_made_when_the_graph_is_loaded(tmp_path: Path) -> None:
    after, _ = apply(LegalizeLongConv(), conv(["N", 32, 64], weights(48, 32, 64), [31, 32]))
    held = max(value.const_value.size for value in after.graph.initializers.values() if value.const_value)
    assert held == 48 * 32 * 64
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "loaded.onnx")
    onnxruntime.InferenceSession(ir.to_proto(after).SerializeToString(), options, ["CPUExecutionProvider"])
    loaded = [node.op_type for node in onnx.load(tmp_path / "loaded.onnx").graph.node]
    assert [op for op in loaded if "MatMul" in op or "Gemm" in op] == ["FusedMatMul", "MatMul", "MatMul"]


@pytest.mark.parametrize(
    ("attrs", "kernel", "reason"),
    [
        ({"strides": [2]}, 64, "strides"),
        ({"dilations": [2]}, 24, "dilations"),
        ({}, 17, "not halve"),
    ],
)
def test_refuses(attrs: dict[str, list[int]], kernel: int, reason: str) -> None:
    model = conv(["N", 32, 64], weights(48, 32, kernel), [0, 0], **attrs)
    after, log = apply(LegalizeLongConv(), model)
    assert text_of(after) == text_of(model)
    assert reason in log.refused[0].reason


@pytest.mark.parametrize("dims", [["N", 32, "L"], ["N", 32, 64, 2]])
def test_ignores_unknown_length_and_images(dims: list[int | str]) -> None:
    weight = weights(48, 32, 64) if len(dims) == 3 else weights(48, 32, 64, 1)
    model = conv(dims, weight, [0] * 2 * (len(dims) - 2))
    log = RewriteLog()
    after, log = apply(LegalizeLongConv(), model)
    assert text_of(after) == text_of(model) and not log.refused
