"""What prepares a graph for int8: equal in float, less noise on integers, and left out where it does not help."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.ir import check, facts
from graphopt.ir import model as ir_model
from graphopt.ir.facts import Array
from graphopt.quant.blocks import Scheme, quantize_blocks
from graphopt.quant.channels import Channels, by_input
from graphopt.quant.correct import bias_shifts
from graphopt.quant.equalize import equalize, expected_noise
from graphopt.quant.kernels import CONVOLUTIONS, PRODUCTS
from graphopt.quant.observe import Calibration, Observed, calibrate
from graphopt.quant.place import Weights, place, tensors_to_observe
from graphopt.quant.prepare import STEPS, prepare
from graphopt.quant.ranges import Range, along, quantize_weight, weight_scales
from graphopt.quant.rounding import patches, rounded_weights, why_not
from graphopt.quant.sweep import SweepTooLongError, noise_of_units, ranges_by_tensor
from graphopt.quant.switched import Switched
from graphopt.quant.units import units_of
from graphopt.targets.ort.integers import kernels as ort_kernels
from graphopt.testing import model_from_text, run

KERNELS = ort_kernels(frozenset({"avx2", "avx512_vnni"}))
RNG = np.random.default_rng(3)


def net(text: str, **constants: Array) -> ir.Model:
    """A model from text with ``NAME`` in place of the initializers, which get these contents."""
    model = model_from_text(text)
    for name, array in constants.items():
        tensor = ir.tensor(np.asarray(array, np.float32), name=name)
        model.graph.initializers[name].const_value = tensor
    return model


def conv_net(spread: float) -> ir.Model:
    """Two convolutions, the channels between them of ranges that differ up to ``spread`` times."""
    rng = np.random.default_rng(0)
    ranges = np.geomspace(1, spread, 8).reshape(8, 1, 1, 1)
    return net(
        """
        g (float[1,4,9,9] x) => (float[1,6,9,9] y)
        <float[8,4,3,3] w1 = {0}, float[8] b1 = {0}, float[6,8,1,1] w2 = {0}, float[6] b2 = {0}>
        { a = Conv <pads=[1,1,1,1]> (x, w1, b1)  b = Relu(a)  y = Conv(b, w2, b2) }
        """,
        w1=rng.standard_normal((8, 4, 3, 3)) * ranges,
        b1=rng.standard_normal(8) * ranges.ravel(),
        w2=rng.standard_normal((6, 8, 1, 1)) / ranges.reshape(1, 8, 1, 1),
        b2=rng.standard_normal(6),
    )  # fmt: skip


def product_net(outlier: float) -> ir.Model:
    """A normalization whose channel 3 is an outlier, and a product that reads it."""
    rng = np.random.default_rng(1)
    scale = np.ones(16)
    scale[3] = outlier
    weight = rng.standard_normal((16, 12))
    weight[3] /= outlier
    return net(
        """
        g (float[2,5,16] x) => (float[2,5,12] y)
        <float[16] s = {0}, float[16] z = {0}, float[16,12] w = {0}>
        { n = LayerNormalization (x, s, z)  y = MatMul(n, w) }
        """,
        s=scale, z=rng.standard_normal(16), w=weight,
    )  # fmt: skip


def feeds(model: ir.Model, seed: int) -> dict[str, Array]:
    shape = [int(dim) for dim in model.graph.inputs[0].shape]  # type: ignore[union-attr, arg-type]
    return {"x": np.random.default_rng(seed).standard_normal(shape).astype(np.float32)}


def data(model: ir.Model, count: int = 6) -> Iterator[dict[str, Array]]:
    return iter([feeds(model, seed) for seed in range(count)])


def calibrated(model: ir.Model, known: Observed | None = None, quick: bool = False) -> Calibration:
    del quick
    return calibrate(model, tensors_to_observe(units_of(model, KERNELS)[0]), list(data(model)), known=known)


def decibels(model: ir.Model, prepared: ir.Model, weights: Weights | None = None) -> float:
    """Of the graph with every unit on integers, on inputs that calibration did not see."""
    quantized = ir_model.clone(prepared)
    units = frozenset(unit.name for unit in units_of(quantized, KERNELS)[0])
    place(quantized, units, calibrated(prepared).ranges, KERNELS, weights)
    check.check(quantized)
    noise = signal = 0.0
    for seed in range(100, 108):
        wanted, got = run(model, feeds(model, seed))["y"], run(quantized, feeds(model, seed))["y"]
        noise += float(np.square(wanted - got).sum())
        signal += float(np.square(wanted).sum())
    return float(10 * np.log10(signal / noise))


@pytest.mark.parametrize("model", [conv_net(200.0), product_net(60.0)], ids=["conv", "product"])
def test_scaled_channels_compute_the_same_and_lose_less_on_integers(model: ir.Model) -> None:
    scaled = ir_model.clone(model)
    found = equalize(scaled, KERNELS, data(model))
    check.check(scaled)
    assert len(found) >= 1
    # Powers of two: nothing is rounded.
    for seed in range(3):
        np.testing.assert_array_equal(
            run(model, feeds(model, seed))["y"], run(scaled, feeds(model, seed))["y"]
        )
    assert decibels(model, scaled) > decibels(model, model) + 3


def test_a_factor_goes_into_what_makes_the_tensor_where_that_is_linear() -> None:
    for model in (conv_net(200.0), product_net(60.0)):
        scaled = ir_model.clone(model)
        folded = {entry.tensor for entry in equalize(scaled, KERNELS, data(model)) if entry.folded}
        assert folded & {"b", "n"}


def test_operators_say_whose_inputs_may_be_scaled() -> None:
    model = product_net(60.0)
    assert not equalize(ir_model.clone(model), KERNELS, data(model), operators=CONVOLUTIONS)
    assert equalize(ir_model.clone(model), KERNELS, data(model), operators=PRODUCTS)


def test_channels_that_are_alike_are_left_alone() -> None:
    model = conv_net(1.0)
    assert not equalize(ir_model.clone(model), KERNELS, data(model), operators=PRODUCTS)
    found = equalize(ir_model.clone(model), KERNELS, data(model))
    assert "b" not in {entry.tensor for entry in found}


CONVOLUTIONS_TO_UNFOLD = {
    "plain": ("[1,4,7,6]", "[5,4,3,2]", ""),
    "strides and pads": ("[2,4,8,8]", "[5,4,3,3]", "<strides=[2,1], pads=[1,0,2,1]>"),
    "dilations": ("[1,2,9,9]", "[3,2,3,3]", "<dilations=[2,3]>"),
    "groups": ("[1,6,5,5]", "[4,3,3,3]", "<group=2, pads=[1,1,1,1]>"),
    "depthwise": ("[1,4,5,5]", "[4,1,3,3]", "<group=4>"),
    "one axis": ("[2,3,12]", "[4,3,5]", "<strides=[3], pads=[2,1]>"),
}


@pytest.mark.parametrize("case", CONVOLUTIONS_TO_UNFOLD, ids=str)
def test_a_convolution_is_the_product_of_its_patches(case: str) -> None:
    shape, weight_shape, attributes = CONVOLUTIONS_TO_UNFOLD[case]
    weight = RNG.standard_normal([int(size) for size in weight_shape.strip("[]").split(",")])
    model = net(
        f"g (float{shape} x) => (float[N,M] y) <float{weight_shape} w = {{0}}> {{ y = Conv {attributes} (x, w) }}",
        w=weight,
    )
    given_feeds = feeds(model, 1)
    wanted = run(model, given_feeds)["y"]
    node = next(iter(model.graph))
    rows = patches(node, given_feeds["x"], lambda count: np.arange(count))
    groups = len(rows)
    made = np.einsum(
        "gpk,gok->gop", rows, weight.astype(np.float32).reshape(groups, len(weight) // groups, -1)
    )
    # [groups, outputs, batch * positions] -> [batch, channels, positions]
    batch = wanted.shape[0]
    made = made.reshape(len(weight), batch, -1).swapaxes(0, 1)
    np.testing.assert_allclose(made.reshape(wanted.shape), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bits", [7, 8])
def test_reconstructed_weights_lose_less_in_what_the_layer_makes(bits: int) -> None:
    rng = np.random.default_rng(5)
    # Inputs that go together: what one weight loses another can make up for.
    mixing = rng.standard_normal((4, 16))
    model = net(
        "g (float[64,4] x) => (float[64,8] y) <float[4,16] m = {0}, float[16,8] w = {0}> "
        "{ h = MatMul(x, m)  y = MatMul(h, w) }",
        m=mixing, w=rng.standard_normal((16, 8)),
    )  # fmt: skip
    kernels = KERNELS if bits == 8 else ort_kernels(frozenset({"avx2"}))
    assert kernels.weight_bits == bits
    units = [unit for unit in units_of(model, kernels)[0] if unit.inputs[0].name == "h"]
    rounded, scales = rounded_weights(model, units, kernels, list(data(model)))
    (name,) = rounded
    assert np.abs(rounded[name]).max() <= kernels.weight_limit
    inputs = feeds(model, 50)["x"] @ mixing.astype(np.float32)
    weight = model.graph.initializers["w"].const_value.numpy()  # type: ignore[union-attr]
    nearest_scales = weight_scales(weight, 1, kernels.weight_limit)
    nearest = quantize_weight(weight, nearest_scales, 1, kernels.weight_limit) * nearest_scales
    found = rounded[name] * along(scales[name], 1, 2)
    assert np.square(inputs @ (found - weight)).sum() < 0.5 * np.square(inputs @ (nearest - weight)).sum()


def head(batch: int) -> ir.Model:
    return net(
        f"g (float[{batch},4,6,6] x) => (float[{batch},6] y) "
        "<float[6,2,3,3] w = {0}, float[6,96] v = {0}, float[6] c = {0}> "
        "{ a = Conv <group=2> (x, w)  f = Flatten(a)  y = Gemm <transB=1> (f, v, c) }",
        w=RNG.standard_normal((6, 2, 3, 3)), v=RNG.standard_normal((6, 96)), c=RNG.standard_normal(6),
    )  # fmt: skip


def test_rounded_weights_have_the_shape_of_the_weight() -> None:
    model = head(batch=80)
    units = units_of(model, KERNELS)[0]
    rounded, scales = rounded_weights(model, units, KERNELS, list(data(model)))
    assert {tuple(array.shape) for array in rounded.values()} == {(6, 2, 3, 3), (6, 96)}
    assert {array.shape for array in scales.values()} == {(6,)}
    found = decibels(model, model, Weights(rounded=rounded, scales=scales))
    assert found > decibels(model, model) - 0.5


def test_zeros_that_are_to_stay_do() -> None:
    """Rounded by reconstruction, which would let them make up for the others, and with channels scaled."""
    sparse = head(batch=80)
    zeros = {}
    for value in sparse.graph.initializers.values():
        content = value.const_value.numpy().copy()  # type: ignore[union-attr]
        if content.ndim > 1:
            content.reshape(-1)[::3] = 0
            value.const_value = ir.tensor(content, name=value.name)
            zeros[content.shape] = content == 0
    plain = ir_model.clone(sparse)
    for value in sparse.graph.initializers.values():
        value.metadata_props[facts.SPARSITY] = "unstructured"
    for model, kept in ((sparse, True), (plain, False)):
        rounded, _ = rounded_weights(model, units_of(model, KERNELS)[0], KERNELS, list(data(model)))
        assert rounded
        assert all(not array[zeros[array.shape]].any() for array in rounded.values()) == kept
    scaled = conv_net(200.0)
    for value in scaled.graph.initializers.values():
        value.metadata_props[facts.SPARSITY] = "2:4"
    assert equalize(scaled, KERNELS, data(scaled))
    weights = [node.inputs[1] for node in scaled.graph if node.op_type == "Conv"]
    assert [facts.sparsity(weight) for weight in weights] == ["2:4", "2:4"]


def test_a_weight_that_few_inputs_are_seen_of_is_rounded_to_nearest() -> None:
    model = head(batch=1)
    units = units_of(model, KERNELS)[0]
    rounded, _ = rounded_weights(model, units, KERNELS, list(data(model)))
    assert {tuple(array.shape) for array in rounded.values()} == {(6, 2, 3, 3)}


def test_says_why_a_weight_is_rounded_to_nearest() -> None:
    model = net(
        "g (float[1,4,H,6] x) => (float[1,4,A,3] y) <float[4,4,3,3] w = {0}> "
        '{ y = Conv <auto_pad="SAME_UPPER", strides=[2,2]> (x, w) }',
        w=RNG.standard_normal((4, 4, 3, 3)),
    )
    assert "padding" in why_not(next(iter(model.graph)))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([7, 8]))
def test_integers_of_any_width_stay_within_their_limits(seed: int, bits: int) -> None:
    weight = np.random.default_rng(seed).standard_normal((6, 3)).astype(np.float32)
    blocks = quantize_blocks(weight, Scheme(bits, 6, True))
    assert np.abs(blocks.integers.astype(int)).max() <= 2 ** (bits - 1) - 1
    assert np.abs(blocks.restored(6) - weight).max() <= np.abs(weight).max() / 2 ** (bits - 2)


def test_a_correction_takes_the_mean_error_out() -> None:
    model = conv_net(8.0)
    units = [unit for unit in units_of(model, KERNELS)[0] if unit.kind == "compute"]
    found = calibrated(model)
    shifts = bias_shifts(model, units, KERNELS, found.ranges, list(data(model)))
    last = units[-1].name

    def mean_error(weights: Weights) -> Array:
        quantized = ir_model.clone(model)
        place(quantized, frozenset({last}), found.ranges, KERNELS, weights)
        errors = [
            run(quantized, feeds(model, seed))["y"] - run(model, feeds(model, seed))["y"] for seed in range(6)
        ]
        return np.mean(errors, axis=(0, 1, 3, 4))

    before, after = mean_error(Weights()), mean_error(Weights(bias=shifts))
    # What rounding the outputs adds has a mean as well, which no bias can know.
    assert np.abs(after).sum() < 0.7 * np.abs(before).sum()


def test_steps_run_in_order_and_stay_only_where_they_help() -> None:
    model = conv_net(200.0)
    prepared = prepare(model, KERNELS, calibrated, lambda most: data(model))
    names = [step.name for step in prepared.steps]
    assert names == [name for name in STEPS if name in names]
    assert "equalize" in [step.name for step in prepared.steps if step.kept]
    for step in prepared.steps:
        assert step.kept == (step.decibels > step.before + 0.5)
    for before, after in zip(prepared.steps, prepared.steps[1:], strict=False):
        assert after.before == (before.decibels if before.kept else before.before)
    assert decibels(model, prepared.model, prepared.weights) > decibels(model, model) + 3


@pytest.mark.parametrize("model", [conv_net(200.0), product_net(60.0)], ids=["conv", "product"])
def test_only_what_equalization_changed_is_observed_again(model: ir.Model) -> None:
    prepared = prepare(model, KERNELS, calibrated, lambda most: data(model), steps=("equalize", "smooth"))
    assert prepared.equalized
    anew = calibrated(prepared.model)
    assert prepared.calibration.ranges == anew.ranges
    assert prepared.calibration.sizes == anew.sizes


def test_channels_are_not_scaled_behind_integers_that_were_found_for_them() -> None:
    model = conv_net(200.0)
    units = units_of(model, KERNELS)[0]
    rounded, scales = rounded_weights(model, units, KERNELS, list(data(model)))
    weights = Weights(rounded=rounded, scales=scales)
    prepared = prepare(model, KERNELS, calibrated, lambda most: data(model), weights=weights)
    assert not prepared.equalized
    assert prepared.weights.rounded.keys() >= rounded.keys()
    np.testing.assert_array_equal(
        by_input(units[0].node), by_input(units_of(prepared.model, KERNELS)[0][0].node)
    )


def test_noise_in_company_is_what_a_unit_adds_there() -> None:
    """Two products of one input: what each adds is the same alone and in company, but for chance."""
    rng = np.random.default_rng(2)
    model = net(
        "g (float[64,16] x) => (float[64,8] y) <float[16,16] v = {0}, float[16,8] w = {0}> "
        "{ h = MatMul(x, v)  y = MatMul(h, w) }",
        v=rng.standard_normal((16, 16)), w=rng.standard_normal((16, 8)),
    )  # fmt: skip
    names = [unit.name for unit in units_of(model, KERNELS)[0]]
    found = noise_of_units(model, names, calibrated(model).ranges, KERNELS, list(data(model)))
    assert found.alone.keys() == found.company.keys() == set(names)
    for name in names:
        assert found.alone[name] == pytest.approx(found.company[name], rel=0.35)


def test_a_unit_that_undoes_an_error_adds_nothing_in_company() -> None:
    """An offset of less than half a step, and a product behind it that rounds it away."""
    model = net(
        "g (float[32,4] x) => (float[32,4] y) <float[4,4] v = {0}, float[4,4] w = {0}> "
        "{ h = MatMul(x, v)  y = MatMul(h, w) }",
        v=np.eye(4), w=np.eye(4),
    )  # fmt: skip
    names = [unit.name for unit in units_of(model, KERNELS)[0]]
    # The second step is a multiple of the first: what the first one rounds, the second rounds as it would anyway.
    ranges = {name: Range(-4.0, 4.0) for name in ("x", "h", "y")}
    coarse = {**ranges, "h": Range(-40.0, 40.0)}
    found = noise_of_units(model, names, coarse, KERNELS, list(data(model)))
    assert found.alone[names[0]] > 0
    assert found.company[names[0]] < 0.2 * found.alone[names[0]] + 0.1 * found.alone[names[1]]


def test_a_sweep_that_would_take_too_long_is_refused() -> None:
    model = product_net(1.0)
    names = [unit.name for unit in units_of(model, KERNELS)[0]]
    with pytest.raises(SweepTooLongError):
        noise_of_units(
            model, names, calibrated(model).ranges, KERNELS, list(data(model)), seconds=1e-9, most=2.0
        )


@pytest.mark.parametrize("model", [conv_net(4.0), product_net(4.0)], ids=["conv", "product"])
def test_all_switches_on_is_the_quantized_graph(model: ir.Model) -> None:
    units = units_of(model, KERNELS)[0]
    names = [unit.name for unit in units]
    ranges = calibrated(model).ranges
    switched = Switched(model, names, ranges, KERNELS, Weights(), 1)
    quantized = ir_model.clone(model)
    place(quantized, frozenset(names), ranges, KERNELS)
    given = feeds(model, 0)
    wanted = run(quantized, given)["y"]
    step = np.abs(wanted).max() / 100
    assert np.abs(switched.run(given, ~switched.off)["y"] - wanted).max() <= step
    np.testing.assert_allclose(switched.run(given, switched.off)["y"], run(model, given)["y"], atol=1e-5)


def test_a_range_is_replaced_where_that_lowers_the_noise_and_nowhere_else() -> None:
    model = product_net(1.0)
    names = [unit.name for unit in units_of(model, KERNELS)[0]]
    good = calibrated(model).ranges
    bad = {**good, "n": Range(100 * good["n"].low, 100 * good["n"].high)}
    choices = {"y": [Range(-1e4, 1e4)], "n": [Range(1e3 * good["n"].low, 1.0), good["n"], bad["n"]]}
    samples = list(data(model))
    assert ranges_by_tensor(model, names, bad, choices, KERNELS, samples) == {"n": good["n"]}
    assert ranges_by_tensor(model, names, good, choices, KERNELS, samples) == {}
    assert ranges_by_tensor(model, names, bad, choices, KERNELS, samples, seconds=-1.0) == {}


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 40), st.integers(1, 30))
def test_expected_noise_is_summed_as_it_is_written(seed: int, inputs: int, outputs: int) -> None:
    """Against the noise of each weight, one by one."""
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((inputs, outputs)) * rng.uniform(0.1, 10, (inputs, 1))
    low, high = -rng.uniform(0, 2, inputs), rng.uniform(0, 2, inputs)
    channels = Channels(low, high, rng.standard_normal(inputs), rng.uniform(0.1, 2, inputs))
    factors = np.exp2(rng.integers(-3, 4, inputs))
    step = (max(0, (high * factors).max()) - min(0, (low * factors).min())) / 255
    by_column = np.abs(weight / factors[:, None]).max(axis=0) / 127.5
    signal = noise = 0.0
    for row in range(inputs):
        for column in range(outputs):
            signal += channels.power[row] * weight[row, column] ** 2
            noise += step**2 / 12 * (weight[row, column] / factors[row]) ** 2
            noise += by_column[column] ** 2 / 12 * channels.power[row] * factors[row] ** 2
    squares = [np.square(weight).sum(axis=1)]
    found = expected_noise([np.abs(weight)], squares, channels, factors, depthwise=False)
    assert found == pytest.approx(noise / signal, rel=1e-9)
