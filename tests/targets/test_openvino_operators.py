"""OpenVINO beside ONNX Runtime on single nodes: attributes and numbers that ONNX's own suite leaves out."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from graphopt.errors import TargetError
from graphopt.targets.openvino.convert import keep_order_of_equals
from graphopt.targets.openvino.executable import properties
from graphopt.targets.openvino.operators import check

openvino = pytest.importorskip("openvino")
RNG = np.random.default_rng(0)


@dataclass
class Case:
    op: str
    inputs: list[Any]
    constant: tuple[int, ...] = ()
    outputs: int = 1
    attributes: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        types = [None if value is None else f"{value.dtype}{list(value.shape)}" for value in self.inputs]
        return f"{self.op} {self.attributes} of {types}"

    def model(self) -> tuple[onnx.ModelProto, dict[str, Any]]:
        names = ["" if value is None else f"i{k}" for k, value in enumerate(self.inputs)]
        given = [
            (k, name, value) for k, (name, value) in enumerate(zip(names, self.inputs, strict=True)) if name
        ]
        outputs = [f"o{k}" for k in range(self.outputs)]
        graph = helper.make_graph(
            [helper.make_node(self.op, names, outputs, name="n", **self.attributes)],
            "g",
            [
                helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
                for k, name, value in given
                if k not in self.constant
            ],
            [onnx.ValueInfoProto(name=name) for name in outputs],
            [onnx.numpy_helper.from_array(value, name) for k, name, value in given if k in self.constant],
        )
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
        feeds = {name: value for k, name, value in given if k not in self.constant}
        return onnx.shape_inference.infer_shapes(proto), feeds


def case(op: str, *inputs: Any, constant: tuple[int, ...] = (), outputs: int = 1, **attributes: Any) -> Case:
    return Case(op, list(inputs), constant, outputs, attributes)


def normal(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(np.float32)


def recurrent() -> Iterator[Case]:
    steps, batch, size, hidden = 5, 3, 4, 6
    for (op, gates), direction in itertools.product(
        (("LSTM", 4), ("GRU", 3), ("RNN", 1)), ("forward", "reverse", "bidirectional")
    ):
        n = 1 + (direction == "bidirectional")
        state = [normal(n, batch, hidden) for _ in range(2 if op == "LSTM" else 1)]
        weights = [
            normal(n, gates * hidden, size),
            normal(n, gates * hidden, hidden),
            normal(n, 2 * gates * hidden),
        ]
        x, lengths = normal(steps, batch, size), np.array([5, 2, 3], np.int32)
        common: dict[str, Any] = {"hidden_size": hidden, "direction": direction, "outputs": 1 + len(state)}
        plain = [x, *weights, None, *state]
        yield case(op, *plain, constant=(1, 2, 3), **common)
        yield case(op, x, *weights, lengths, *state, constant=(1, 2, 3), **common)
        yield case(op, *plain, constant=(1, 2, 3), clip=0.5, **common)
        yield case(op, x, *weights[:2], constant=(1, 2), **common)
        if op == "LSTM":
            yield case(op, *plain, normal(n, 3 * hidden), constant=(1, 2, 3, 7), **common)
            yield case(op, *plain, constant=(1, 2, 3), input_forget=1, **common)
        if op == "GRU":
            yield case(op, *plain, constant=(1, 2, 3), linear_before_reset=1, **common)
        if op == "RNN":
            yield case(op, *plain, constant=(1, 2, 3), activations=["Relu"] * n, **common)


def integers() -> Iterator[Case]:
    for dtype in (np.int64, np.int32):
        a, b = RNG.integers(-20, 20, (4, 50)).astype(dtype), RNG.integers(1, 6, (4, 50)).astype(dtype)
        b *= np.where(RNG.random(b.shape) < 0.5, -1, 1).astype(dtype)
        for op in ("Add", "Sub", "Mul", "Div", "Mod", "Max", "Min", "Less", "Equal"):
            yield case(op, a, b)
        yield case("Mod", a, b, fmod=1)
        yield case("Div", a, np.array(3, dtype), constant=(1,))
        yield case("Mul", a, np.array(3, dtype), constant=(1,))
        yield case("Mul", np.array([100000], dtype), np.array([100000], dtype))
        for op in ("ReduceSum", "ReduceProd", "ReduceMax", "ReduceMean"):
            yield case(op, a[:, :5] % 7, np.array([1]), constant=(1,))
        yield case("CumSum", a, np.array(1), constant=(1,))
        yield case("Clip", a, np.array(-3, dtype), np.array(5, dtype), constant=(1, 2))
        for op in ("Neg", "Abs", "Sign"):
            yield case(op, a)
    for dtype in (np.uint8, np.int8):
        small = RNG.integers(1, 127, (2, 9)).astype(dtype)
        for op in ("Add", "Sub", "Mul", "Div"):
            yield case(op, small[0], small[1])
    for to in (np.int32, np.int64, np.uint8, np.int8, np.bool_, np.float16):
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(to))
        yield case("Cast", np.array([0.4, 0.5, 0.9, 1.5, 2.5, 100.7, 0.1], np.float32), to=kind)
        yield case("Cast", np.array([0, 1, 2, 5, 100], np.int64), to=kind)


def elementwise() -> Iterator[Case]:
    x = normal(1000) * 6
    for op in (
        *(
            "Exp",
            "Sigmoid",
            "Tanh",
            "Erf",
            "Softplus",
            "Softsign",
            "Elu",
            "Selu",
            "HardSwish",
            "HardSigmoid",
            "Gelu",
        ),
        *(
            "Mish",
            "Celu",
            "Sin",
            "Cos",
            "Tan",
            "Atan",
            "Sinh",
            "Cosh",
            "Asinh",
            "Round",
            "Floor",
            "Ceil",
            "Sign",
            "Relu",
        ),
    ):
        yield case(op, x)
    yield case("Gelu", x, approximate="tanh")
    yield case("Round", np.arange(-5, 6).astype(np.float32) / 2)
    for exponent in (0.5, 2.0, 3.0, -1.0):
        yield case("Pow", x, np.array(exponent, np.float32), constant=(1,))
    yield case("Mod", x, np.array(2.5, np.float32), fmod=1)
    yield case("Clip", x, np.array(1, np.float32), np.array(-1, np.float32), constant=(1, 2))
    for shape in ((3, 1), (1,), (3, 4), (4,)):
        yield case("PRelu", normal(2, 3, 4), normal(*shape), constant=(1,))
    yield case("Where", normal(3, 1) > 0, normal(1, 4), normal(3, 4))


def reductions() -> Iterator[Case]:
    a = np.abs(normal(3, 4, 5)) + 0.1
    for op in (
        *("ReduceMax", "ReduceMin", "ReduceSum", "ReduceMean", "ReduceL1", "ReduceL2", "ReduceProd"),
        *("ReduceLogSumExp", "ReduceLogSum", "ReduceSumSquare"),
    ):
        yield case(op, a)
        yield case(op, a, np.array([0, 2]), constant=(1,), keepdims=0)
        yield case(op, a, noop_with_empty_axes=1)
        yield case(op, a * 80, np.array([1]), constant=(1,))
        yield case(op, np.zeros((0, 3), np.float32), np.array([0]), constant=(1,))
    ties = np.array([[1, 3, 3, 2, 3], [5, 5, 1, 5, 0]], np.float32)
    for op, last in itertools.product(("ArgMax", "ArgMin"), (0, 1)):
        yield case(op, ties, axis=1, select_last_index=last)
    for largest in (0, 1):
        yield case("TopK", np.round(normal(4, 20)), np.array([7]), constant=(1,), outputs=2, largest=largest)
    yield case("Hardmax", ties)
    for op in ("Softmax", "LogSoftmax"):
        yield case(op, normal(3, 40) * 200)
        yield case(op, normal(3, 4, 5), axis=1)
    yield case("LayerNormalization", normal(2, 3, 4, 5), normal(4, 5), normal(4, 5), constant=(1, 2), axis=-2)
    yield case("LayerNormalization", normal(2, 3, 4) * 1e-6, normal(4), constant=(1,))
    yield case("InstanceNormalization", normal(2, 3, 4, 5), normal(3), normal(3), constant=(1, 2))
    yield case("GroupNormalization", normal(2, 6, 4, 5), normal(6), normal(6), constant=(1, 2), num_groups=3)
    yield case("LRN", normal(2, 7, 4, 5), size=3)


def windows() -> Iterator[Case]:
    for (kernel, stride, pad), size in itertools.product(
        ((3, 2, 0), (3, 2, 1), (2, 2, 0), (3, 3, 1), (1, 2, 0)), (5, 6, 7, 8)
    ):
        shared = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [pad] * 4, "ceil_mode": 1}
        yield case("MaxPool", normal(1, 2, size, size), **shared)
        yield case("AveragePool", normal(1, 2, size, size), **shared)
        yield case("AveragePool", normal(1, 2, size, size), count_include_pad=1, **shared)
    for order in (0, 1):
        yield case(
            "MaxPool", normal(1, 2, 6, 6), outputs=2, kernel_shape=[2, 2], strides=[2, 2], storage_order=order
        )
    for pad, op in itertools.product(("SAME_UPPER", "SAME_LOWER", "VALID"), ("MaxPool", "AveragePool")):
        yield case(op, normal(1, 2, 8, 7), kernel_shape=[3, 3], strides=[2, 2], auto_pad=pad)
    for attributes in (
        {"strides": [2, 2], "output_padding": [1, 1]}, {"strides": [3, 3], "output_shape": [10, 8]},
        {"strides": [2, 2], "auto_pad": "SAME_UPPER"}, {"strides": [2, 2], "auto_pad": "SAME_LOWER"},
        {"dilations": [2, 2]}, {"strides": [2, 2], "pads": [1, 0, 0, 1]}, {"group": 2, "strides": [2, 2]},
    ):  # fmt: skip
        channels = 3 * attributes.get("group", 1)  # type: ignore[call-overload]
        yield case(
            "ConvTranspose",
            normal(1, 4, 5, 4),
            normal(4, 3, 3, 3),
            normal(channels),
            constant=(1, 2),
            **attributes,
        )
    for attributes in (
        {"pads": [1, 0, 2, 1]},
        {"dilations": [2, 3]},
        {"group": 4},
        {"strides": [2, 1], "group": 2},
    ):
        inner = 4 // attributes.get("group", 1)  # type: ignore[call-overload]
        yield case("Conv", normal(2, 4, 9, 8), normal(8, inner, 3, 2), constant=(1,), **attributes)
    yield case("Conv", normal(2, 4, 9), normal(8, 4, 3), constant=(1,))
    yield case("Conv", normal(1, 4, 5, 6, 7), normal(8, 4, 3, 3, 3), constant=(1,))
    yield case("Conv", normal(2, 4, 9, 8), normal(8, 4, 3, 3))
    for mode, place, scale in itertools.product(
        ("nearest", "linear", "cubic"),
        ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel", "half_pixel_symmetric"),
        (2.0, 0.5, 1.5, 0.7),
    ):
        scales = np.array([1, 1, scale, scale], np.float32)
        for rounding in ("round_prefer_floor", "floor", "ceil", "round_prefer_ceil")[
            : 4 if mode == "nearest" else 1
        ]:
            yield case(
                "Resize", normal(1, 2, 7, 6), None, scales, constant=(2,), mode=mode, nearest_mode=rounding,
                coordinate_transformation_mode=place,
            )  # fmt: skip
    for mode, pad, corners in itertools.product(
        ("linear", "nearest"), ("zeros", "border", "reflection"), (0, 1)
    ):
        yield case(
            "GridSample",
            normal(1, 2, 5, 6),
            normal(1, 4, 4, 2) * 0.8,
            mode=mode,
            padding_mode=pad,
            align_corners=corners,
        )


def movements() -> Iterator[Case]:
    for mode in ("constant", "reflect", "edge"):
        yield case("Pad", normal(3, 4, 5), np.array([0, 1, 2, 0, 2, 1]), constant=(1,), mode=mode)
        yield case("Pad", normal(3, 4, 5), np.array([0, -1, 2, 0, 0, -1]), constant=(1,), mode=mode)
    yield case("Gather", normal(5, 3), np.array([-1, 0, -5]))
    yield case("GatherElements", normal(5, 3), np.array([[-1, 0, -5]]))
    yield case("GatherND", normal(5, 3, 2), np.array([[0, 1], [4, -1]]))
    for reduction in ("none", "add", "mul", "max", "min"):
        yield case("ScatterND", normal(5, 3), np.array([[0], [4]]), normal(2, 3), reduction=reduction)
        yield case("ScatterElements", normal(5, 3), np.array([[0, 1, -1]]), normal(1, 3), reduction=reduction)
    most = np.iinfo(np.int64).max
    yield case("Slice", normal(5, 6), np.array([1]), np.array([most]), np.array([0]), constant=(1, 2, 3))
    backwards = [np.array([value]) for value in (-1, -9, 1, -2)]
    yield case("Slice", normal(5, 6), *backwards, constant=(1, 2, 3, 4))
    yield case("Split", normal(7, 3), outputs=3, num_outputs=3)
    yield case("Tile", normal(2, 3), np.array([2, 2]), constant=(1,))
    yield case("Tile", normal(2, 3, 4, 5), np.array([7, 6, 4, 9]))
    yield case("Expand", normal(1, 3), np.array([4, 1]), constant=(1,))
    yield case("OneHot", np.array([0, -1, 7, 2]), np.array(5), np.array([0, 1], np.float32), constant=(1, 2))
    yield case("Trilu", normal(3, 4, 4), np.array(-1), constant=(1,), upper=0)
    yield case("DepthToSpace", normal(1, 8, 2, 3), blocksize=2, mode="CRD")
    yield case("Concat", np.zeros((0, 3), np.float32), normal(2, 3), axis=0)
    yield case("Reshape", np.zeros((0, 3), np.float32), np.array([3, 0]), constant=(1,), allowzero=1)
    for shape in ((5,), (3, 5), (3, 1), (1,), ()):
        yield case("Gemm", normal(3, 4), normal(4, 5), normal(*shape), alpha=0.5, beta=2.0)
    yield case("Gemm", normal(4, 3), normal(5, 4), transA=1, transB=1)
    yield case("MatMul", normal(4), normal(2, 4, 5))
    yield case("MatMul", np.zeros((2, 0), np.float32), np.zeros((0, 3), np.float32))


def quantization() -> Iterator[Case]:
    for zero, dtype in ((128, np.uint8), (0, np.int8), (0, np.uint8)):
        scale, zero_point = np.array(0.5, np.float32), np.array(zero, dtype)
        halves = np.arange(-20, 20, dtype=np.float32) / 4
        for x in (halves, np.array([1e30, -1e30, np.inf, -np.inf], np.float32)):
            yield case("QuantizeLinear", x, scale, zero_point, constant=(1, 2))
        yield case("DequantizeLinear", np.arange(0, 100, 9).astype(dtype), scale, zero_point, constant=(1, 2))
        yield case("QuantizeLinear", normal(10), scale, zero_point)
    scales, zeros = np.array([0.1, 0.2, 0.05], np.float32), np.array([0, 3, 250], np.uint8)
    yield case("QuantizeLinear", normal(2, 3, 4), scales, zeros, constant=(1, 2), axis=1)
    # Below 128: two products of larger bytes overflow 16 bits in kernels of processors without VNNI.
    a, b = RNG.integers(0, 128, (3, 4)).astype(np.uint8), RNG.integers(-127, 127, (4, 5)).astype(np.int8)
    yield case("MatMulInteger", a, b, np.array(7, np.uint8), constant=(1, 2))


GROUPS = (recurrent, integers, elementwise, reductions, windows, movements, quantization)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.__name__)
def test_computed_as_by_onnxruntime_or_refused(group: Any) -> None:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    wrong, computed, refused = [], 0, 0
    for one in group():
        proto, feeds = one.model()
        wanted = ort.InferenceSession(proto.SerializeToString(), options).run(None, feeds)
        try:
            check(ir.from_proto(proto))
        except TargetError:
            refused += 1
            continue
        core = openvino.Core()
        model = core.read_model(proto.SerializeToString())
        keep_order_of_equals(model)
        compiled = core.compile_model(model, "CPU", properties({}, 1))
        names = [parameter.get_friendly_name() for parameter in model.get_parameters()]
        results = compiled.create_infer_request().infer([feeds[name] for name in names])
        computed += 1
        for index, expected in enumerate(wanted):
            found = results[index]
            if found.shape != expected.shape or found.dtype != expected.dtype:
                wrong.append(f"{one}: {found.dtype}{found.shape} for {expected.dtype}{expected.shape}")
            elif not np.allclose(found.astype(float), expected.astype(float), 1e-4, 1e-5, equal_nan=True):
                wrong.append(f"{one}: {found.reshape(-1)[:6]} for {expected.reshape(-1)[:6]}")
    assert not wrong, "\n".join(wrong)
    assert computed > 3 * refused, (computed, refused)
