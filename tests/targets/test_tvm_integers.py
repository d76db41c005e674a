"""Quantized models on tvm-llvm: which rewrites fire, and that whole models keep their numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import graphopt
from graphopt import artifact
from graphopt.ir.facts import Array
from graphopt.models import builders
from graphopt.targets.tvm.executable import dot_products, vector_extension
from graphopt.targets.tvm.legalize.integers import IntegerProduct
from graphopt.targets.tvm.legalize.requantize import QuantizeFirst
from graphopt.targets.tvm.legalize.table import ByteTable
from graphopt.testing import check, check_ignores, check_refuses

RNG = np.random.default_rng(3)
TYPES = {"uint8": "uint8", "int8": "int8", "int32": "int32", "float32": "float", "int64": "int64"}


def constant(name: str, array: Any) -> str:
    """As the text of a graph declares it."""
    array = np.asarray(array)
    sizes = f"[{','.join(map(str, array.shape))}]" if array.ndim else ""
    return f"{TYPES[str(array.dtype)]}{sizes} {name} = {{{', '.join(map(str, array.reshape(-1).tolist()))}}}"


def constants(**arrays: Any) -> str:
    return "<" + ", ".join(constant(name, array) for name, array in arrays.items()) + ">"


def operators(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def scaled(kind: type[np.integer[Any]], shape: tuple[int, ...], count: int = 1) -> dict[str, Array]:
    """Integer weights around the middle of their type, with their scales and zero points."""
    limits = np.iinfo(kind)
    return {
        "wq": RNG.integers(limits.min, limits.max + 1, shape).astype(kind),
        "sw": RNG.uniform(0.001, 0.01, count).astype(np.float32),
        "zw": np.full(count, (limits.min + limits.max + 1) // 2, kind),
    }


def conv_text(*, data: str = "uint8", groups: int = 1, bias: str = "", **weights: Array) -> str:
    zero = {"uint8": np.uint8(113), "int8": np.int8(-7)}[data]
    return (
        f"g ({data}[1,8,9,9] q) => (float[1,6,5,5] y) {constants(sx=np.float32(0.02), zx=zero, **weights)} {{\n"
        "  x = DequantizeLinear(q, sx, zx)\n"
        "  w = DequantizeLinear<axis=0>(wq, sw, zw)\n"
        + {"": "", "float": "", "integer": "  b = DequantizeLinear<axis=0>(bq, sb, zb)\n"}[bias]
        + f"  y = Conv<strides=[2,2], pads=[1,1,1,1], group={groups}>(x, w{', b' if bias else ''})\n}}"
    )


@pytest.mark.parametrize("data", ["uint8", "int8"])
@pytest.mark.parametrize("kind", [np.int8, np.uint8])
@pytest.mark.parametrize("bias", ["", "float", "integer"])
def test_a_convolution_between_q_and_dq_adds_up_integers(data: str, kind: Any, bias: str) -> None:
    weights = scaled(kind, (6, 8, 3, 3), 6)
    more: dict[str, Any] = {}
    if bias == "float":
        more = {"b": RNG.standard_normal(6).astype(np.float32)}
    elif bias == "integer":
        more = {
            "bq": RNG.integers(-900, 900, 6).astype(np.int32),
            "sb": weights["sw"],
            "zb": np.zeros(6, np.int32),
        }
    made = check(IntegerProduct(), conv_text(data=data, bias=bias, **weights, **more), feeds=byte_feeds(data))
    assert operators(made) == Counter({"ConvInteger": 1, "Cast": 1, "Mul": 1, **({"Add": 1} if bias else {})})


def byte_feeds(kind: str, shape: tuple[int, ...] = (1, 8, 9, 9)) -> dict[str, Array]:
    limits = np.iinfo(kind)
    return {"q": RNG.integers(limits.min, limits.max + 1, shape).astype(kind)}


def test_weights_with_a_zero_point_elsewhere_stay_in_float() -> None:
    weights = scaled(np.int8, (6, 8, 3, 3), 6)
    weights["zw"][2] = 3
    check_refuses(IntegerProduct(), conv_text(**weights), "the zero point of its weights")


def test_groups_whose_channels_do_not_come_in_fours_stay_in_float() -> None:
    weights = scaled(np.int8, (6, 4, 3, 3), 6)
    check(IntegerProduct(), conv_text(groups=2, **weights), feeds=byte_feeds("uint8"))
    weights = scaled(np.int8, (8, 2, 3, 3), 8)
    text = conv_text(groups=4, **weights).replace("float[1,6,5,5]", "float[1,8,5,5]")
    check_refuses(IntegerProduct(), text, "do not come in fours")


@pytest.mark.parametrize("transposed", [0, 1])
def test_a_gemm_between_q_and_dq_adds_up_integers(transposed: int) -> None:
    weights = scaled(np.int8, (5, 12) if transposed else (12, 5), 5)
    more = {"c": RNG.standard_normal(5).astype(np.float32)}
    text = (
        "g (uint8[3,12] q) => (float[3,5] y) "
        f"{constants(sx=np.float32(0.02), zx=np.uint8(9), **weights, **more)} {{\n"
        "  x = DequantizeLinear(q, sx, zx)\n"
        f"  w = DequantizeLinear<axis={0 if transposed else 1}>(wq, sw, zw)\n"
        f"  y = Gemm<alpha=0.5, beta=2.0, transB={transposed}>(x, w, c)\n}}"
    )
    # Below 128: ONNX Runtime's kernels of processors without VNNI add two products in 16 bits.
    feeds = {name: array // 2 for name, array in byte_feeds("uint8", (3, 12)).items()}
    made = check(IntegerProduct(), text, feeds=feeds)
    assert operators(made)["MatMulInteger"] == 1


def test_scales_along_another_axis_stay_in_float() -> None:
    weights = scaled(np.int8, (12, 5), 12)
    text = (
        f"g (uint8[3,12] q) => (float[3,5] y) {constants(sx=np.float32(0.02), zx=np.uint8(9), **weights)} {{\n"
        "  x = DequantizeLinear(q, sx, zx)\n  w = DequantizeLinear<axis=0>(wq, sw, zw)\n  y = MatMul(x, w)\n}"
    )
    check_refuses(IntegerProduct(), text, "another axis")


QUANTIZE = constants(s=np.float32(0.05), z=np.uint8(120), t=np.float32(0.07), o=np.uint8(3))


@pytest.mark.parametrize(
    ("move", "shape"),
    [
        ("MaxPool<kernel_shape=[3,3], pads=[1,1,1,1], strides=[2,2]>(x)", "1,4,3,3"),
        ("Transpose<perm=[0,2,3,1]>(x)", "1,5,5,4"),
        ("Flatten(x)", "1,100"),
        ("Concat<axis=1>(x, x)", "1,8,5,5"),
    ],
)
def test_what_moves_elements_moves_bytes(move: str, shape: str) -> None:
    text = (
        f"g (float[1,4,5,5] x) => (uint8[{shape}] y) {QUANTIZE} {{ m = {move}  y = QuantizeLinear(m, s, z) }}"
    )
    made = check(QuantizeFirst(), text, exact=True)
    last = made.graph.outputs[0].producer()
    assert last is not None and last.op_type == move.partition("<")[0].partition("(")[0]


def test_bytes_that_are_quantized_as_they_were_stay_what_they_are() -> None:
    head = "g (uint8[7] q) => (uint8[7] y) "
    text = (
        f"{head} {QUANTIZE} {{ x = DequantizeLinear(q, s, z)  m = QuantizeLinear(x, s, z)  y = Identity(m) }}"
    )
    made = check(QuantizeFirst(), text, exact=True, feeds=byte_feeds("uint8", (7,)))
    assert set(operators(made)) == {"Identity"}
    other = f"{head} {QUANTIZE} {{ x = DequantizeLinear(q, s, z)  y = QuantizeLinear(x, t, z) }}"
    check_ignores(QuantizeFirst(), other)


def test_what_others_read_too_is_not_moved() -> None:
    text = (
        f"g (float[1,4,5,5] x) => (uint8[1,100] y, float[1,100] m) {QUANTIZE} "
        "{ m = Flatten(x)  y = QuantizeLinear(m, s, z) }"
    )
    check_ignores(QuantizeFirst(), text)


SILU = """
  x = DequantizeLinear(q, s, z)
  a = Sigmoid(x)
  b = QuantizeLinear(a, t, o)
  c = DequantizeLinear(b, t, o)
  d = Mul(x, c)
  y = QuantizeLinear(d, t, o)
"""


@pytest.mark.parametrize("kind", ["uint8", "int8"])
def test_a_function_of_a_byte_is_a_table(kind: str) -> None:
    known = QUANTIZE if kind == "uint8" else QUANTIZE.replace("uint8 z = {120}", "int8 z = {-4}")
    text = f"g ({kind}[2,128] q) => (uint8[2,128] y) {known} {{{SILU}}}"
    every = {"q": np.arange(256).astype(np.uint8).view(kind).reshape(2, 128)}
    made = check(ByteTable(), text, exact=True, feeds=every)
    assert operators(made) == Counter({"Cast": 1, "Gather": 1, **({"Add": 1} if kind == "int8" else {})})


def test_a_function_of_two_bytes_is_no_table() -> None:
    text = f"g (uint8[9] q, uint8[9] r) => (uint8[9] y) {QUANTIZE} {{{SILU}}}".replace(
        "Mul(x, c)", "Mul(e, c)"
    ).replace("  d = ", "  e = DequantizeLinear(r, s, z)\n  d = ")
    made = check(
        ByteTable(), text, exact=True, feeds={**byte_feeds("uint8", (9,)), "r": np.arange(9, dtype=np.uint8)}
    )
    # What is made of one of them still is.
    assert operators(made)["Gather"] == 1 and operators(made)["Mul"] == 1


def test_little_work_is_no_table() -> None:
    text = (
        f"g (uint8[9] q) => (uint8[9] y) {QUANTIZE} "
        "{ x = DequantizeLinear(q, s, z)  a = Relu(x)  y = QuantizeLinear(a, t, o) }"
    )
    check_ignores(ByteTable(), text)


def test_a_constant_of_more_axes_is_no_part_of_a_table() -> None:
    known = QUANTIZE.replace(">", ", float[1,1] k = {0.5}>")
    text = (
        f"g (uint8[9] q) => (uint8[1,9] y) {known} "
        "{ x = DequantizeLinear(q, s, z)  a = Mul(x, k)  b = Sigmoid(a)  y = QuantizeLinear(b, t, o) }"
    )
    check_refuses(ByteTable(), text, "more axes")


def test_numbers_in_another_order_are_not_moved() -> None:
    head = "g (float[1,4,5,5] x) => (uint8[1,4,3,3] y)"
    pool = "m = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1], strides=[2,2]>(x)  y = QuantizeLinear(m, s, z)"
    negative = QUANTIZE.replace("s = {0.05", "s = {-0.05")
    check_refuses(QuantizeFirst(), f"{head} {negative} {{ {pool} }}", "another order")
    wide = QUANTIZE.replace("uint8 z", "uint16 z")
    check_refuses(
        QuantizeFirst(), f"{head} {wide} {{ {pool} }}".replace("(uint8[", "(uint16["), "not of 8 bits"
    )


def test_a_dequantized_bias_that_is_a_matrix_stays() -> None:
    weights = scaled(np.int8, (12, 3), 3)
    more = {"cq": RNG.integers(-99, 99, (3, 3)).astype(np.int32), "cs": np.float32([0.1, 0.2, 0.3])}
    text = (
        "g (uint8[3,12] q) => (float[3,3] y) "
        f"{constants(sx=np.float32(0.02), zx=np.uint8(9), **weights, **more)} {{\n"
        "  x = DequantizeLinear(q, sx, zx)\n  w = DequantizeLinear<axis=1>(wq, sw, zw)\n"
        "  c = DequantizeLinear<axis=0>(cq, cs)\n  y = Gemm(x, w, c)\n}"
    )
    check_refuses(IntegerProduct(), text, "no vector")


class Samples:
    """What ONNX Runtime's quantization calibrates with."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._left: Iterator[dict[str, Array]] = iter(
            [{"x": RNG.standard_normal(shape).astype(np.float32)} for _ in range(4)]
        )

    def get_next(self) -> dict[str, Array] | None:
        return next(self._left, None)


def quantized_by_onnxruntime(
    proto: onnx.ModelProto, path: Path, shape: tuple[int, ...], **options: Any
) -> Path:
    from onnxruntime.quantization import quantize_static

    source = path.with_suffix(".float.onnx")
    onnx.save(onnx.shape_inference.infer_shapes(proto), source)
    quantize_static(source, path, Samples(shape), **options)
    return path


@pytest.mark.skipif(not dot_products(vector_extension()), reason="no instruction for products of bytes")
@pytest.mark.parametrize("kind", ["QUInt8", "QInt8"])
def test_a_quantized_net_computes_on_integers_and_keeps_its_numbers(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("tvm")
    from onnxruntime.quantization import QuantType

    shape = (1, 3, 16, 16)
    path = quantized_by_onnxruntime(
        builders.conv_net(channels=24, blocks=3, size=16), tmp_path / "net.onnx", shape,
        per_channel=True, activation_type=getattr(QuantType, kind), weight_type=QuantType.QInt8,
    )  # fmt: skip
    data = [{"x": RNG.standard_normal(shape).astype(np.float32)} for _ in range(4)]
    compiled = graphopt.compile(path, target="tvm-llvm", data=data, tune=0.1, input_shapes={"x": shape})
    report = compiled.report.as_dict()
    fired = next(entry["rewrites"] for entry in report["passes"] if entry["name"] == "tvm-llvm")
    assert fired["integer-product"] >= 3 and report["verify"]["status"] == "verified"
    loaded = graphopt.load(compiled.save(tmp_path / "net.gopt"))
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for feeds in data:
        (wanted,) = session.run(None, feeds)
        (got,) = loaded.run(feeds).values()
        # A few steps of the last scale: rounding between the kernels differs.
        assert float(np.abs(got - wanted).max()) <= 0.03 * float(np.abs(wanted).max())


@pytest.mark.skipif(not dot_products(vector_extension()), reason="no instruction for products of bytes")
def test_dynamically_quantized_products_are_taken(tmp_path: Path) -> None:
    pytest.importorskip("tvm")
    from onnxruntime.quantization import quantize_dynamic

    source, path = tmp_path / "float.onnx", tmp_path / "mlp.onnx"
    onnx.save(builders.mlp(width=32, layers=3, batch=5), source)
    quantize_dynamic(source, path)
    operators_there = {node.op_type for node in onnx.load(path).graph.node}
    assert "MatMulInteger" in operators_there
    compiled = graphopt.compile(path, target="tvm-llvm", tune=0.1)
    assert compiled.report.as_dict()["verify"]["status"] == "verified"
    # In loops of graphopt's own, not in TVM's plain ones.
    assert artifact.read_manifest(compiled.save(tmp_path / "mlp.gopt")).config["products"] >= 1


@pytest.mark.skipif(not dot_products(vector_extension()), reason="no instruction for products of bytes")
def test_quantize_finds_what_is_faster_on_integers(tmp_path: Path) -> None:
    pytest.importorskip("tvm")
    source, shape = tmp_path / "net.onnx", (1, 3, 48, 48)
    onnx.save(builders.conv_net(channels=64, blocks=3, size=48), source)
    data = [{"x": RNG.standard_normal(shape).astype(np.float32)} for _ in range(12)]
    compiled = graphopt.compile(
        source, target="tvm-llvm", passes="fuse,quantize", data=data, tune=60.0, input_shapes={"x": shape}
    )
    report = compiled.report.as_dict()
    quantize = next(entry for entry in report["passes"] if entry["name"] == "quantize")
    layers = [layer for layer in quantize["details"]["layers"] if layer["op"] == "Conv"]
    # Every convolution was timed in both forms, each by its own kernel.
    assert len(layers) >= 3 and all(layer["float_ms"] and layer["int8_ms"] for layer in layers)
    assert any(layer["precision"] == "int8" for layer in layers)
    # Whether a mix is judged in time and handed out depends on the machine's other work.
    budget = report["verify"]["budget"]
    assert budget is None or budget["drop"] <= budget["allowed"]
