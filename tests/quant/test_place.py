"""Q and DQ: where they go, what they hold, and what the graph computes with them."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.ir import check, shapes
from graphopt.ir import model as ir_model
from graphopt.quant.kernels import IntegerKernels
from graphopt.quant.observe import calibrate
from graphopt.quant.place import Weights, place, tensors_to_observe
from graphopt.quant.ranges import Range, affine, along, quantize_weight, weight_scales
from graphopt.quant.units import units_of
from graphopt.targets.openvino.integers import kernels as openvino_kernels
from graphopt.targets.ort.integers import kernels as ort_kernels
from graphopt.testing import model_from_text, run

VNNI = frozenset({"avx2", "avx512_vnni"})
ORT = ort_kernels(VNNI)

NET = """
g (float[1,4,8,8] x) => (float[1,6,4,4] y)
<float[8,4,3,3] w1 = {...}, float[8] b1 = {...}, float[6,8,1,1] w2 = {...}>
{
  a = Conv <pads=[1,1,1,1]> (x, w1, b1)
  b = Relu(a)
  c = MaxPool <kernel_shape=[2,2], strides=[2,2]> (b)
  d = Conv(c, w2)
  y = HardSwish(d)
}
"""


def net(text: str, **constants: np.ndarray) -> ir.Model:
    """A model from text whose initializers get these contents."""
    for name, array in constants.items():
        dims = ",".join(map(str, array.shape))
        values = ",".join(repr(float(value)) for value in array.reshape(-1))
        text = text.replace(f"float[{dims}] {name} = {{...}}", f"float[{dims}] {name} = {{{values}}}")
    assert "..." not in text
    return model_from_text(text)


@pytest.fixture
def model() -> ir.Model:
    rng = np.random.default_rng(0)
    return net(
        NET,
        w1=rng.standard_normal((8, 4, 3, 3)),
        b1=rng.standard_normal(8),
        w2=rng.standard_normal((6, 8, 1, 1)),
    )


def feeds(seed: int = 0) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).standard_normal((1, 4, 8, 8)).astype(np.float32)}


def quantized(model: ir.Model, kernels: IntegerKernels, *names: str, **options: Weights) -> ir.Model:
    units = units_of(model, kernels)[0]
    found = calibrate(model, tensors_to_observe(units), [feeds(seed) for seed in range(4)])
    copy = ir_model.clone(model)
    place(copy, frozenset(names) or frozenset(unit.name for unit in units), found.ranges, kernels, **options)
    check.check(copy)
    shapes.infer(copy)
    return copy


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def decibels(model: ir.Model, other: ir.Model) -> float:
    wanted, got = run(model, feeds())["y"], run(other, feeds())["y"]
    return float(10 * np.log10(np.square(wanted).sum() / np.square(wanted - got).sum()))


def test_units_take_in_the_activations_of_their_kernels(model: ir.Model) -> None:
    units, refused = units_of(model, ORT)
    assert [[node.op_type for node in unit.nodes] for unit in units] == [
        ["Conv", "Relu"],
        ["MaxPool"],
        ["Conv"],
    ]
    assert [unit.kind for unit in units] == ["compute", "passes", "compute"]
    assert refused == {}


def test_a_kernel_that_writes_integers_gets_its_q_behind_the_activation(model: ir.Model) -> None:
    found = quantized(model, ORT)
    relu = next(node for node in found.graph if node.op_type == "Relu")
    (reader,) = {use.node for use in relu.outputs[0].uses()}
    assert reader.op_type == "QuantizeLinear"
    assert not relu.outputs[0].is_graph_output()
    # x, Relu, MaxPool (of the same scale), and what the second Conv writes.
    assert ops(found).count("QuantizeLinear") == 4
    assert decibels(model, found) > 30


def test_what_moves_elements_keeps_the_scale_of_its_input(model: ir.Model) -> None:
    found = quantized(model, ORT)
    pool = next(node for node in found.graph if node.op_type == "MaxPool")
    before, after = pool.inputs[0].producer(), next(iter(pool.outputs[0].uses())).node
    assert before.inputs[1].const_value.numpy() == after.inputs[1].const_value.numpy()


def test_a_kernel_that_leaves_the_sum_in_float_gets_none_behind_it(model: ir.Model) -> None:
    kernels = dataclasses.replace(ORT, writes_integers=frozenset(), integer_bias=False)
    found = quantized(model, kernels, "a", "Conv_0")
    del found
    units = units_of(model, kernels)[0]
    names = [unit.name for unit in units if unit.kind == "compute"]
    found = quantized(model, kernels, *names)
    for node in found.graph:
        if node.op_type == "Conv":
            readers = {use.node.op_type for use in node.outputs[0].uses()}
            assert "QuantizeLinear" not in readers
            assert node.inputs[1].producer().op_type == "DequantizeLinear"
    assert decibels(model, found) > 30


def test_a_graph_output_that_is_written_as_integers_keeps_its_name() -> None:
    rng = np.random.default_rng(1)
    text = "g (float[1,4,8,8] x) => (float[1,6,8,8] y) <float[6,4,1,1] w = {...}> { y = Conv(x, w) }"
    model = net(text, w=rng.standard_normal((6, 4, 1, 1)))
    found = quantized(model, ORT)
    assert [output.name for output in found.graph.outputs] == ["y"]
    assert found.graph.outputs[0].producer().op_type == "DequantizeLinear"
    assert decibels(model, found) > 30


def test_float_readers_of_a_float_tensor_read_it_as_it_is() -> None:
    rng = np.random.default_rng(1)
    text = """g (float[1,4,8,8] x) => (float[1,4,8,8] y, float[1,6,8,8] z)
    <float[6,4,1,1] w = {...}> { a = Exp(x)
      y = Neg(a)
      z = Conv(a, w) }"""
    model = net(text, w=rng.standard_normal((6, 4, 1, 1)))
    found = quantized(model, ORT)
    assert np.array_equal(run(model, feeds())["y"], run(found, feeds())["y"])


def test_float_weights_are_gone_from_the_file(model: ir.Model) -> None:
    found = quantized(model, ORT)
    assert not any(
        value.const_value.dtype == ir.DataType.FLOAT and value.const_value.size > 8
        for value in found.graph.initializers.values()
    )


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        ("y = Conv(x, v)", "its weight is no constant"),
        ("u = Conv(x, w)\n y = Conv(u, w)", ""),
        ("y = Conv <group=1> (x, w, c)", "its bias is no constant"),
    ],
)
def test_reasons_for_staying_in_float(node: str, reason: str) -> None:
    text = f"""g (float[1,4,8,8] x, float[4,4,1,1] v, float[4] c) => (float[1,4,8,8] y)
    <float[4,4,1,1] w = {{...}}> {{ {node} }}"""
    model = net(text, w=np.ones((4, 4, 1, 1)))
    units, refused = units_of(model, ORT)
    assert set(refused.values()) == ({reason} if reason else set())
    assert len(units) == (0 if reason else 2)


def test_weights_with_nan_are_refused() -> None:
    model = net(
        "g (float[1,4] x) => (float[1,3] y) <float[4,3] w = {...}> { y = MatMul(x, w) }", w=np.ones((4, 3))
    )
    model.graph.initializers["w"].const_value = ir.tensor(np.full((4, 3), np.nan, np.float32), name="w")
    assert set(units_of(model, ORT)[1].values()) == {"its weight holds NaN or infinity"}


def test_a_graph_that_is_quantized_is_not_quantized_again(model: ir.Model) -> None:
    once = quantized(model, ORT)
    units, refused = units_of(once, ORT)
    assert [unit for unit in units if unit.kind == "compute"] == []
    assert set(refused.values()) == {"it is quantized already"}


def test_rounded_weights_scales_and_bias_take_the_place_of_the_nearest(model: ir.Model) -> None:
    name = units_of(model, ORT)[0][0].name
    zeros = Weights(rounded={name: np.zeros((8, 4, 3, 3), np.int8)}, bias={name: np.full(8, 2.0)})
    found = quantized(model, ORT, name, weights=zeros)
    conv = next(node for node in found.graph if node.op_type == "Conv")
    assert not conv.inputs[1].producer().inputs[0].const_value.numpy().any()
    bias = conv.inputs[2].producer()
    restored = bias.inputs[0].const_value.numpy() * bias.inputs[1].const_value.numpy().astype(np.float64)
    wanted = model.graph.initializers["b1"].const_value.numpy() + 2.0
    assert (np.abs(restored - wanted) <= bias.inputs[1].const_value.numpy() * 0.51).all()


def test_a_bias_beyond_int32_widens_the_scale_of_its_channel() -> None:
    text = (
        "g (float[1,2] x) => (float[1,2] y) <float[2,2] w = {...}, float[2] b = {...}> { y = Gemm(x, w, b) }"
    )
    model = net(text, w=np.full((2, 2), 1e-7), b=np.array([5000.0, 1e-7]))
    kernels = dataclasses.replace(ORT, writes_integers=frozenset())
    copy = ir_model.clone(model)
    unit = units_of(model, kernels)[0][0]
    place(copy, frozenset({unit.name}), {"x": Range(-1, 1), "y": Range(0, 5000)}, kernels)
    x = {"x": np.ones((1, 2), np.float32)}
    assert np.allclose(run(copy, x)["y"], run(model, x)["y"], rtol=1e-3)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    low=st.floats(-1e4, 1e4),
    span=st.floats(0, 1e4),
    symmetric=st.booleans(),
    limits=st.sampled_from([(0, 255), (-128, 127)]),
)
def test_zero_is_exact_and_the_range_is_covered(
    low: float, span: float, symmetric: bool, limits: tuple[int, int]
) -> None:
    found = affine(Range(low, low + span), limits, symmetric=symmetric)
    least, largest = limits
    assert least <= found.zero_point <= largest and found.scale > 0
    ends = [(edge - found.zero_point) * found.scale for edge in limits]
    step = found.scale * 0.5001
    assert ends[0] <= min(low, 0.0) + step and ends[1] >= max(low + span, 0.0) - step


@settings(max_examples=60, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10_000), axis=st.sampled_from([None, 0, 1]), limit=st.sampled_from([63, 127]))
def test_weights_are_rounded_to_half_a_step(seed: int, axis: int | None, limit: int) -> None:
    rng = np.random.default_rng(seed)
    weight = (rng.standard_normal((5, 7)) * 10.0 ** rng.integers(-6, 6, (5, 1))).astype(np.float32)
    weight[rng.integers(0, 5)] = 0
    scales = weight_scales(weight, axis, limit)
    integers = quantize_weight(weight, scales, axis, limit)
    assert np.abs(integers.astype(int)).max(initial=0) <= limit
    steps = along(scales, axis, 2)
    assert (np.abs(integers * steps.astype(np.float64) - weight) <= steps * 0.501).all()


@pytest.mark.parametrize(
    ("flags", "activation", "bits"),
    [
        (VNNI, ir.DataType.UINT8, 8),
        (frozenset({"avx2", "avx512bw"}), ir.DataType.UINT8, 7),
        (frozenset({"avx2", "avx_vnni"}), ir.DataType.UINT8, 8),
        (frozenset({"asimd", "asimddp"}), ir.DataType.INT8, 8),
        (frozenset({"amx_int8", "avx512_vnni"}), ir.DataType.UINT8, 8),
    ],
)
def test_types_follow_the_instruction_set(flags: frozenset[str], activation: ir.DataType, bits: int) -> None:
    found = ort_kernels(flags)
    assert (found.activation, found.weight_bits) == (activation, bits)
    assert found.describe.startswith("ONNX Runtime, ")


def test_both_backends_say_what_they_want() -> None:
    assert ORT.writes_integers == {"Conv"} and ORT.integer_bias
    found = openvino_kernels()
    if found is not None:
        assert not found.writes_integers and not found.integer_bias
