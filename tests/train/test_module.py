"""A graph as a module: the same numbers, gradients that are those of the graph, and the way back."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.capture import capture
from graphopt.ir import facts, shapes
from graphopt.ir import model as ir_model
from graphopt.models import builders
from graphopt.quant.kernels import IntegerKernels
from graphopt.quant.observe import calibrate
from graphopt.quant.place import place, tensors_to_observe
from graphopt.quant.units import units_of
from graphopt.targets.ort.integers import kernels as ort_kernels
from graphopt.testing import model_from_text, run
from graphopt.train.module import NotTrainableError, to_module, weights_of

torch = pytest.importorskip("torch")
RNG = np.random.default_rng(5)
NETS: dict[str, tuple[Any, dict[str, tuple[int, ...]]]] = {
    "convolutions": (lambda: builders.conv_net(channels=8, blocks=2, size=12), {"x": (2, 3, 12, 12)}),
    "products": (lambda: builders.mlp(), {"x": (3, 16)}),
    "transformer": (lambda: builders.transformer_block(), {"x": (2, 7, 32)}),
}


def net(name: str) -> tuple[ir.Model, dict[str, np.ndarray]]:
    make, sizes = NETS[name]
    model = capture(make()).model
    shapes.infer(model)
    return model, {key: RNG.standard_normal(dims).astype(np.float32) for key, dims in sizes.items()}


def numbers(module: Any, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    with torch.no_grad():
        return {name: tensor.numpy() for name, tensor in zip(module.outputs, module(feeds), strict=True)}


@pytest.mark.parametrize("name", NETS)
def test_a_module_computes_what_the_graph_does_and_goes_back_unchanged(name: str) -> None:
    model, feeds = net(name)
    module = to_module(model)
    wanted = run(model, feeds)
    for key, got in numbers(module, feeds).items():
        np.testing.assert_allclose(got, wanted[key], rtol=1e-4, atol=1e-5)
    back = ir_model.clone(model)
    module.write(back)
    assert module.weights and {value.name for value in weights_of(model.graph)} == set(module.weights)
    for key in module.weights:
        before, after = (one.graph.initializers[key].const_value for one in (model, back))
        assert before is not None and after is not None
        np.testing.assert_array_equal(before.numpy(), after.numpy())


@pytest.mark.parametrize("name", NETS)
def test_gradients_are_the_differences_of_the_graph(name: str) -> None:
    model, feeds = net(name)
    module = to_module(model)
    direction = {
        key: RNG.standard_normal(array.shape).astype(np.float32) for key, array in run(model, feeds).items()
    }
    sum(
        (out * torch.from_numpy(direction[key])).sum()
        for key, out in zip(module.outputs, module(feeds), strict=True)
    ).backward()
    for key, weight in module.weights.items():
        way = RNG.standard_normal(weight.parameter.shape).astype(np.float32)
        step = 1e-2 / max(float(np.abs(way).max()), 1.0)
        ends = []
        for sign in (1, -1):
            moved = ir_model.clone(model)
            value = moved.graph.initializers[key]
            assert value.const_value is not None
            value.const_value = ir.tensor(value.const_value.numpy() + np.float32(sign * step) * way, name=key)
            found = run(moved, feeds)
            ends.append(sum(float((found[out].astype(np.float64) * direction[out]).sum()) for out in found))
        measured = (ends[0] - ends[1]) / (2 * step)
        assert weight.parameter.grad is not None
        told = float((weight.parameter.grad.numpy().astype(np.float64) * way).sum())
        size = float(np.linalg.norm(weight.parameter.grad.numpy()) * np.linalg.norm(way))
        assert abs(told - measured) <= 0.05 * size + 1e-3, key


def quantized() -> tuple[ir.Model, dict[str, np.ndarray]]:
    model, feeds = net("convolutions")
    kernels: IntegerKernels = ort_kernels(frozenset({"avx2", "avx512_vnni"}))
    units, _ = units_of(model, kernels)
    data = [{"x": RNG.standard_normal((1, 3, 12, 12)).astype(np.float32)} for _ in range(4)]
    calibration = calibrate(model, tensors_to_observe(units), data, cache=None)
    copy = ir_model.clone(model)
    place(copy, frozenset(unit.name for unit in units), calibration.ranges, kernels)
    shapes.infer(copy)
    return copy, feeds


def test_a_quantized_graph_is_trained_with_its_rounding_and_stays_on_the_same_integers() -> None:
    model, feeds = quantized()
    module = to_module(model)
    integers = {key: weight for key, weight in module.weights.items() if weight.rounding is not None}
    assert integers
    wanted = run(model, feeds)
    scale = max(float(np.abs(array).max()) for array in wanted.values())
    for key, got in numbers(module, feeds).items():
        # A sum that lies between two steps may be rounded to either.
        assert np.abs(got - wanted[key]).mean() < 2e-3 * scale
    back = ir_model.clone(model)
    module.write(back)
    for key in integers:
        before, after = (one.graph.initializers[key].const_value for one in (model, back))
        assert before is not None and after is not None and before.dtype == after.dtype
        np.testing.assert_array_equal(before.numpy(), after.numpy())
    # Weights that lie anywhere compute, before they are written, what their integers do.
    with torch.no_grad():
        for weight in integers.values():
            weight.parameter.add_(0.02 * torch.randn_like(weight.parameter) * weight.parameter.abs().max())
    moved = numbers(module, feeds)
    module.write(back)
    for key, got in run(back, feeds).items():
        assert np.abs(got - moved[key]).mean() < 2e-3 * scale
        assert np.abs(got - wanted[key]).mean() > 2e-3 * scale


def test_gradients_pass_the_rounding() -> None:
    model, feeds = quantized()
    module = to_module(model)
    sum(out.square().sum() for out in module(feeds)).backward()
    for key, weight in module.weights.items():
        assert weight.parameter.grad is not None and float(weight.parameter.grad.abs().sum()) > 0, key


def test_zeros_that_are_to_stay_stay() -> None:
    model, feeds = net("products")
    value = weights_of(model.graph)[0]
    assert value.const_value is not None
    array = value.const_value.numpy() * (RNG.random(value.const_value.numpy().shape) < 0.5)
    value.const_value = ir.tensor(array.astype(np.float32), name=value.name)
    value.metadata_props[facts.SPARSITY] = "unstructured"
    module = to_module(model)
    optimizer = torch.optim.SGD([weight.parameter for weight in module.weights.values()], lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        sum(out.square().sum() for out in module(feeds)).backward()
        optimizer.step()
        module.mask()
    module.write(model)
    after = model.graph.initializers[value.name or ""].const_value
    assert after is not None
    np.testing.assert_array_equal(after.numpy() == 0, array == 0)
    assert not np.array_equal(after.numpy(), array)


def test_numbers_that_are_no_weights_are_not_trained() -> None:
    text = """
    g (float[2,4,3] x) => (float[2,4,3] y)
    <float c = {0.5}, float[1,1,4,3] mask = {0,0,-1e30,0,0,0,0,0,0,0,0,0}, float[3] bias = {1,2,3}, float[3] grid = {1,2,3}, float[3,3] w = {1,0,0,0,1,0,0,0,1}, int64[4] to = {1,2,4,3}, int64[3] back = {2,4,3}>
    { a = Mul(x, c) b = Reshape(a, to) d = Add(b, mask) e = Reshape(d, back) f = Mul(e, grid) h = MatMul(f, w) y = Add(h, bias) }
    """
    assert [value.name for value in weights_of(model_from_text(text).graph)] == ["w", "bias"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("g (float[2,3] x) => (float[2,3] y) { y = Hardmax(x) }", "Hardmax"),
        ("g (float[1,2,4,4] x) => (float[1,2,4,4] y) { y = LRN <size=2> (x) }", "even number"),
    ],
)
def test_what_has_no_form_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(NotTrainableError, match=reason):
        module = to_module(model_from_text(text))
        module(
            {
                "x": np.zeros(
                    [int(size) for size in model_from_text(text).graph.inputs[0].shape or ()], np.float32
                )
            }
        )
