"""Weights in blocks: the integers, the graph, and the kernels that ONNX Runtime runs for it."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from graphopt.ir import facts
from graphopt.pipeline.base import RewritePass
from graphopt.quant.blocks import BlockForms, Blocks, Scheme, gptq, layers_of, quantize_blocks
from graphopt.quant.layers import noise_of_forms, replaced
from graphopt.rewrite import RewriteLog
from graphopt.targets.ort.legalize.block_gather import BlockGather
from graphopt.targets.ort.legalize.block_product import BlockProduct
from graphopt.testing import OPSET
from graphopt.verify.session import Session

SCHEMES = [
    Scheme(bits, block, symmetric)
    for bits, block, symmetric in itertools.product((4, 8), (16, 32, 128), (True, False))
]


def model_of(
    node: onnx.NodeProto, inputs: dict[str, tuple[int, list[Any]]], constants: dict[str, Any], rank: int
) -> ir.Model:
    """One node, ``y`` its output."""
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info(name, *described) for name, described in inputs.items()],
        [helper.make_tensor_value_info("y", 1, [None] * rank)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", OPSET)]
    return ir.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=10))


def matmul(weight: Any, batch: tuple[int, ...] = ()) -> ir.Model:
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="layer")
    return model_of(node, {"x": (1, [*batch, "M", weight.shape[0]])}, {"w": weight}, len(batch) + 2)


def gemm(weight: Any, bias: Any = None, **attributes: Any) -> ir.Model:
    names = ["x", "w"] if bias is None else ["x", "w", "b"]
    node = helper.make_node("Gemm", names, ["y"], name="layer", **attributes)
    width = weight.shape[1] if attributes.get("transB") else weight.shape[0]
    constants = {"w": weight} if bias is None else {"w": weight, "b": bias}
    return model_of(node, {"x": (1, ["M", width])}, constants, 2)


def gather(table: Any) -> ir.Model:
    node = helper.make_node("Gather", ["w", "i"], ["y"], name="layer")
    return model_of(node, {"i": (7, ["A", "B"])}, {"w": table}, 3)


def in_blocks(model: ir.Model, scheme: Scheme, moments: Any = None) -> tuple[ir.Model, Blocks]:
    forms = BlockForms(scheme, {} if moments is None else {"layer": moments}, {})
    node = next(node for node in model.graph if node.name == "layer")
    return replaced(model, {"layer": forms}, "quantize-weights"), forms.blocks(node)


def legalized(model: ir.Model) -> ir.Model:
    copy = model.clone()
    log = RewriteLog()
    RewritePass("ort", [BlockProduct(), BlockGather()]).run(copy, log)
    assert not log.failed, log.failed
    return copy


def kernels(model: ir.Model, folder: Path) -> Counter[str]:
    """Operators of the graph that ONNX Runtime runs."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 4
    ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)


def outputs(model: ir.Model, **feeds: Any) -> Any:
    return Session(model).run(feeds)["y"]


def assert_close(got: Any, wanted: Any, tolerance: float = 2e-5) -> None:
    scale = np.abs(wanted).max(initial=1e-30)
    assert got.shape == wanted.shape
    np.testing.assert_allclose(got, wanted, rtol=0, atol=tolerance * scale)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 70), st.integers(1, 9), st.integers(0, 2**31),
    st.sampled_from(SCHEMES), st.sampled_from([1.0, 1e-30, 1e-39, 1e6]),
)  # fmt: skip
def test_each_number_is_within_its_block(
    rows: int, columns: int, seed: int, scheme: Scheme, size: float
) -> None:
    rng = np.random.default_rng(seed)
    weight = (rng.standard_normal((rows, columns)) * size).astype(np.float32)
    weight[:, rng.integers(columns)] = 0
    weight[rng.integers(rows)] = 0
    blocks = quantize_blocks(weight, scheme)
    least, largest = scheme.limits
    assert blocks.integers.min() >= least and blocks.integers.max() <= largest
    assert blocks.scales.shape == (-(-rows // scheme.block), columns) and (blocks.scales > 0).all()
    restored = blocks.restored(scheme.block)
    assert (restored[:, ~weight.any(axis=0)] == 0).all(), "zeros stay zero"
    # Half a step of the largest scale in use; with 4 bits the ends may be cut off, which least squares allows.
    for index in range(blocks.scales.shape[0]):
        part = slice(index * scheme.block, (index + 1) * scheme.block)
        error = np.abs(restored[part].astype(np.float64) - weight[part]).max(axis=0)
        magnitude = np.abs(weight[part]).max(axis=0).astype(np.float64)
        step = 2 * magnitude / (2**scheme.bits - 2) + 1.2e-38
        assert (error <= step * (0.51 if scheme.bits == 8 else 4.6)).all()


@pytest.mark.parametrize("symmetric", [True, False])
def test_four_bits_are_no_worse_than_rounding_at_the_maximum(symmetric: bool) -> None:
    weight = np.random.default_rng(0).standard_t(4, (128, 64)).astype(np.float32)
    blocks = quantize_blocks(weight, Scheme(4, 32, symmetric))
    by_block = weight.reshape(4, 32, 64)
    scale = np.abs(by_block).max(axis=1, keepdims=True) / 7
    plain = (np.clip(np.rint(by_block / scale), -8, 7) * scale).reshape(128, 64)
    assert np.square(blocks.restored(32) - weight).sum() < np.square(plain - weight).sum()


def test_gptq_loses_less_on_the_outputs() -> None:
    rng = np.random.default_rng(1)
    weight = rng.standard_normal((96, 40)).astype(np.float32)
    inputs = (
        rng.standard_normal((500, 12)) @ rng.standard_normal((12, 96)) + 0.3 * rng.standard_normal((500, 96))
    ).astype(np.float32)
    scheme = Scheme(4, 32, False)

    def loss(blocks: Blocks) -> float:
        return float(np.square(inputs @ (blocks.restored(32) - weight)).sum())

    nearest, moved = (
        loss(quantize_blocks(weight, scheme)),
        loss(gptq(weight, inputs.T.astype(np.float64) @ inputs, scheme)),
    )
    assert moved < 0.6 * nearest


@pytest.mark.parametrize(
    "moments", [np.full((64, 64), 1e30), np.full((64, 64), np.nan)], ids=["singular", "nan"]
)
def test_gptq_without_usable_moments_rounds_to_nearest_or_damps(moments: Any) -> None:
    weight = np.random.default_rng(0).standard_normal((64, 8)).astype(np.float32)
    scheme = Scheme(8, 64, True)
    found = gptq(weight, moments, scheme).restored(64)
    assert np.isfinite(found).all()
    assert np.abs(found - weight).max() < 0.2


def test_gptq_takes_inputs_that_are_always_zero() -> None:
    weight = np.random.default_rng(1).standard_normal((40, 3)).astype(np.float32)
    blocks = gptq(weight, np.zeros((40, 40)), Scheme(8, 16, True))
    assert_close(blocks.restored(16), weight, 5e-3)


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.describe)
@pytest.mark.parametrize(("rows", "columns"), [(96, 40), (70, 64), (4096, 1), (33, 130)])
@pytest.mark.parametrize("batch", [(), (3,), (2, 1)])
def test_a_product_computes_with_the_restored_weight(
    scheme: Scheme, rows: int, columns: int, batch: tuple[int, ...], tmp_path: Path
) -> None:
    rng = np.random.default_rng(rows)
    weight = rng.standard_normal((rows, columns)).astype(np.float32)
    weight[:, 0] = 0
    model = matmul(weight, batch)
    quantized, blocks = in_blocks(model, scheme)
    x = rng.standard_normal((*batch, 5, rows)).astype(np.float32)
    wanted = x @ blocks.restored(scheme.block)
    assert_close(outputs(quantized, x=x), wanted)
    legal = legalized(quantized)
    assert_close(outputs(legal, x=x), wanted)
    assert kernels(legal, tmp_path)["MatMulNBits"] == 1
    assert_close(outputs(legal, x=x[..., :0, :]), wanted[..., :0, :])


@pytest.mark.parametrize("scheme", SCHEMES[::3], ids=lambda scheme: scheme.describe)
@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("bias", [None, (40,), (1,), (1, 40), (5, 1)], ids=str)
def test_a_gemm_keeps_its_scalars_and_bias(
    scheme: Scheme, transposed: int, bias: tuple[int, ...] | None, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((110, 40)).astype(np.float32)
    offset = None if bias is None else rng.standard_normal(bias).astype(np.float32)
    model = gemm(weight.T.copy() if transposed else weight, offset, transB=transposed, alpha=0.5, beta=-2.0)
    quantized, blocks = in_blocks(model, scheme)
    x = rng.standard_normal((5, 110)).astype(np.float32)
    wanted = 0.5 * (x @ blocks.restored(scheme.block)) - (0 if offset is None else 2 * offset)
    assert_close(outputs(quantized, x=x), wanted)
    legal = legalized(quantized)
    assert_close(outputs(legal, x=x), wanted)
    assert kernels(legal, tmp_path)["MatMulNBits"] == 1


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.describe)
@pytest.mark.parametrize("width", [64, 96, 100])
def test_a_table_gives_the_rows_that_it_holds(scheme: Scheme, width: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(width)
    table = rng.standard_normal((300, width)).astype(np.float32)
    quantized, blocks = in_blocks(gather(table), scheme)
    indices = np.array([[0, 299, 7], [-1, -300, 7]])
    wanted = blocks.restored(scheme.block).T[indices]
    assert_close(outputs(quantized, i=indices), wanted, 1e-6)
    legal = legalized(quantized)
    assert kernels(legal, tmp_path)["GatherBlockQuantized"] == 1
    assert_close(outputs(legal, i=indices), wanted, 1e-6)


def test_one_weight_of_two_layers_is_stored_once() -> None:
    weight = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="first"),
        helper.make_node("MatMul", ["h", "w"], ["y"], name="second"),
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", 1, ["M", 64])], [helper.make_tensor_value_info("y", 1, None)],
        [numpy_helper.from_array(weight, "w")],
    )  # fmt: skip
    model = ir.from_proto(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    )
    forms = BlockForms(Scheme(8, 32, True), {}, {})
    both = replaced(model, {"first": forms, "second": forms}, "quantize-weights")
    assert len(both.graph.initializers) == 2
    one = replaced(model, {"second": forms}, "quantize-weights")
    assert len(one.graph.initializers) == 3, "the float weight stays for the first"


def test_a_switch_adds_the_noise_of_its_layer_alone() -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((128, 64)).astype(np.float32)
    model = matmul(weight)
    x = rng.standard_normal((9, 128)).astype(np.float32)
    forms = BlockForms(Scheme(4, 32, True), {}, {})
    found = noise_of_forms(model, {"layer": forms}, [{"x": x}])
    quantized = replaced(model, {"layer": forms}, "quantize-weights")
    wanted, got = outputs(model, x=x), outputs(quantized, x=x)
    share = np.square(got - wanted).sum() / np.square(wanted).sum()
    assert found["layer"] == pytest.approx(share, rel=0.02) and share > 1e-4
    assert [output.name for output in model.graph.outputs] == ["y"]


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (matmul(np.zeros((2, 64, 64), np.float32), (2,)), "3 dimensions"),
        (matmul(np.zeros((8, 8), np.float32)), "small"),
        (matmul(np.full((128, 64), np.nan, np.float32)), "NaN"),
        (matmul(np.zeros((128, 64), np.float64)), "not float32"),
    ],
)
def test_says_why_a_weight_stays(model: ir.Model, reason: str) -> None:
    found, refused = layers_of(model)
    assert not found and reason in refused["layer"]


def test_the_integers_have_the_type_of_the_scheme() -> None:
    weight = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    for scheme in SCHEMES:
        quantized, _ = in_blocks(matmul(weight), scheme)
        node = next(node for node in quantized.graph if node.op_type == "DequantizeLinear")
        assert node.inputs[0] is not None and node.inputs[0].dtype == scheme.dtype
        assert facts.attribute(node, "block_size") == scheme.block
