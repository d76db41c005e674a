"""float32 constants stored in fewer bits: a smaller file, the same kernels, and only where the numbers allow it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt import catalog
from graphopt.ir import check
from graphopt.ir import model as ir_model
from graphopt.ir.facts import Array
from graphopt.machine import Inspectable
from graphopt.quant.storage import Bits, Storage, as_many_as_hold, stored
from graphopt.testing import model_from_text, run
from graphopt.verify.evaluation import Evaluation
from graphopt.verify.metrics import find_metric


def never(node: ir.Node) -> bool:
    del node
    return False


def with_weights(text: str, **weights: Array) -> ir.Model:
    """A graph from text, with these constants."""
    model = model_from_text(text)
    for name, weight in weights.items():
        model.graph.initializers[name].const_value = ir.tensor(weight.astype(np.float32), name=name)
    return model


def product(weight: Array) -> ir.Model:
    rows, columns = weight.shape
    return with_weights(
        f"g (float[3,{rows}] x) => (float[3,{columns}] y) <float[{rows},{columns}] w = {{0}}> {{ y = MatMul(x, w) }}",
        w=weight,
    )


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def feeds(model: ir.Model) -> dict[str, Array]:
    shape = model.graph.inputs[0].shape
    assert shape is not None
    return {"x": normal(*shape.numpy(), seed=1)}


def decibels(before: ir.Model, after: ir.Model) -> float:
    wanted, got = (run(model, feeds(before))["y"] for model in (before, after))
    return float(10 * np.log10(np.square(wanted).sum() / np.square(got - wanted).sum()))


def nbytes(model: ir.Model) -> int:
    return sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)


WEIGHTS = {
    "product": ("float[2,60] x", "float[2,96] y", "60,96", "y = MatMul(x, w)"),
    "from the left": ("float[60,4] x", "float[96,4] y", "96,60", "y = MatMul(w, x)"),
    "batch of products": ("float[3,2,60] x", "float[3,2,48] y", "3,60,48", "y = MatMul(x, w)"),
    "gemm": ("float[2,60] x", "float[2,96] y", "60,96", "y = Gemm(x, w)"),
    "transposed": ("float[2,60] x", "float[2,96] y", "96,60", "y = Gemm <transB=1> (x, w)"),
    "convolution": ("float[1,12,9,9] x", "float[1,24,7,7] y", "24,12,3,3", "y = Conv(x, w)"),
    "depthwise": ("float[1,128,9,9] x", "float[1,128,7,7] y", "128,1,3,3", "y = Conv <group=128> (x, w)"),
    "prime": ("float[1,37,9] x", "float[1,32,9] y", "32,37,1", "y = Conv(x, w)"),
    "backwards": ("float[1,32,9,9] x", "float[1,8,11,11] y", "32,8,3,3", "y = ConvTranspose(x, w)"),
}
"""Input, output, shape of the weight, and the node that reads it."""


@pytest.mark.parametrize("case", WEIGHTS)
def test_a_weight_in_8_bits(case: str) -> None:
    given_, made, shape, body = WEIGHTS[case]
    weight = normal(*map(int, shape.split(",")))
    # Channels of other sizes share no scale with one another.
    weight *= np.exp2(np.arange(weight.shape[0]) % 7).reshape(-1, *[1] * (weight.ndim - 1))
    model = with_weights(f"g ({given_}) => ({made}) <float[{shape}] w = {{0}}> {{ {body} }}", w=weight)
    small, found = stored(model, 8, never)
    check.check(small)
    assert [(one.name, one.bits) for one in found] == [("w", 8)]
    assert found[0].noise < 1e-4
    assert found[0].nbytes == (
        model.graph.initializers["w"].const_value.nbytes,
        nbytes(small) - 8 * weight.ndim,
    )  # type: ignore[union-attr]
    assert found[0].nbytes[1] < 0.32 * found[0].nbytes[0]
    assert decibels(model, small) > 35


def test_16_bits_take_half_and_lose_less() -> None:
    model = product(normal(64, 32))
    small, found = stored(model, 16, never)
    check.check(small)
    assert [(one.bits, one.nbytes) for one in found] == [(16, (8192, 4096))]
    assert [value.dtype for value in small.graph.initializers.values()] == [ir.DataType.FLOAT16]
    assert decibels(model, small) > 60


@pytest.mark.parametrize(
    ("weight", "bits"),
    [
        (np.full((64, 32), 1e6), 16),
        (normal(64, 32) * 1e-7, 16),
        (normal(4, 4), 8),
        (np.full((64, 32), np.inf), 8),
    ],
    ids=["beyond the range", "below the normal numbers", "small", "infinite"],
)
def test_a_constant_stays(weight: Array, bits: Bits) -> None:
    model = product(weight)
    assert stored(model, bits, never) == (model, [])


def test_8_bits_with_scales_beyond_float16() -> None:
    for factor in (1e-7, 1e9):
        model = product(normal(64, 32) * factor)
        small, found = stored(model, 8, never)
        assert [one.bits for one in found] == [8]
        assert decibels(model, small) > 35


@pytest.mark.parametrize(
    ("rows", "loud", "bits", "blocks"), [(64, 4, 8, [32]), (64, 100, 8, [16]), (67, 100, 16, [])]
)
def test_what_loses_much_has_smaller_blocks_or_16_bits(
    rows: int, loud: float, bits: Bits, blocks: list[int]
) -> None:
    """Where one number takes the digits of the others in its block, and no smaller block divides them."""
    weight = normal(rows, 32)
    weight[0] = loud
    small, found = stored(product(weight), 8, never)
    assert [one.bits for one in found] == [bits] and found[0].noise < 1e-4
    integers = [value for value in small.graph.initializers.values() if value.dtype == ir.DataType.INT8]
    assert [value.shape[2] for value in integers] == blocks  # type: ignore[index]


def test_what_is_no_weight_takes_16() -> None:
    text = "g (float[64,32] x) => (float[64,32] y) <float[64,32] w = {0}> { y = Add(x, w) }"
    _, found = stored(with_weights(text, w=normal(64, 32)), 8, never)
    assert [one.bits for one in found] == [16]


def test_what_nodes_of_two_kinds_read_takes_16() -> None:
    text = (
        "g (float[64,64] x) => (float[64,64] y) <float[64,64] w = {0}> "
        "{ a = MatMul(x, w)  b = Gemm <transB=1> (x, w)  y = Add(a, b) }"
    )
    _, found = stored(with_weights(text, w=normal(64, 64)), 8, never)
    assert [one.bits for one in found] == [16]


def test_what_a_pass_keeps_stays() -> None:
    model = product(normal(64, 32))
    model.graph[0].name = "head"
    storage = Storage.of(8, lambda node: "kept" if node.name == "head" else "")
    assert storage is not None
    assert stored(model, 8, storage.keeps) == (model, [])
    assert Storage.of(32, lambda node: "") is None


def test_zeros_stay_zeros() -> None:
    weight = np.where(np.random.default_rng(3).random((64, 64)) < 0.5, 0, normal(64, 64))
    small, found = stored(product(weight), 8, never)
    assert [one.bits for one in found] == [8]
    one_hot = np.eye(64, dtype=np.float32)
    rows = [run(small, {"x": one_hot[first : first + 3]})["y"] for first in range(0, 63, 3)]
    assert (np.concatenate(rows)[weight[:63] == 0] == 0).all()


@settings(derandomize=True, deadline=None, max_examples=40)
@given(rows=st.integers(1, 200), columns=st.integers(1, 60), scale=st.floats(-20, 20), seed=st.integers(0, 9))
def test_rounding_is_what_is_told(rows: int, columns: int, scale: float, seed: int) -> None:
    weight = (normal(rows, columns, seed=seed) * np.float32(2.0**scale)).astype(np.float32)
    small, found = stored(product(weight), 8, never)
    if not found:
        assert weight.size < (256 if _has_blocks(rows) else 1024)
        return
    (one,) = found
    restored = run(ir_model.clone(small), {"x": np.zeros((3, rows), np.float32)}) and _restored(small)
    noise = np.square(restored - weight, dtype=np.float64).sum() / np.square(weight, dtype=np.float64).sum()
    assert noise == pytest.approx(one.noise, rel=1e-3, abs=1e-12)
    assert one.noise < 1e-4 and one.nbytes[1] < one.nbytes[0]


def _has_blocks(length: int) -> bool:
    return any(length % size == 0 for size in range(8, 33)) or length < 19


def _restored(model: ir.Model) -> Array:
    """The weight that a graph of :func:`product` widens, by running it on rows of the identity."""
    rows = int(model.graph.inputs[0].shape[1])  # type: ignore[index, arg-type]
    padded = np.eye(-(-rows // 3) * 3, rows, dtype=np.float32)
    return np.concatenate(
        [run(model, {"x": padded[first : first + 3]})["y"] for first in range(0, len(padded), 3)]
    )[:rows]


@pytest.mark.parametrize("bits", [8, 16])
def test_the_backend_runs_the_same_kernels(bits: Bits, tmp_path: Path) -> None:
    model = with_weights(
        "g (float[1,16,12,12] x) => (float[1,32,12,12] y) <float[32,16,3,3] w = {0}> "
        "{ c = Conv <pads=[1,1,1,1]> (x, w)  y = Relu(c) }",
        w=normal(32, 16, 3, 3),
    )
    small, found = stored(model, bits, never)
    assert found
    target, runtime = catalog.target("ort-cpu"), catalog.runtime("ort-cpu")
    assert isinstance(runtime, Inspectable)
    kernels = []
    for index, graph in enumerate((model, small)):
        folder = tmp_path / str(index)
        folder.mkdir()
        config = target.emit(graph, folder, target.variants(graph, None)[0])
        ran = runtime.kernels(folder, config, feeds(model), threads=1, runs=1)
        kernels.append([kernel.op for kernel in ran])
    assert kernels[0] == kernels[1]
    assert not {"Cast", "Mul", "Reshape"} & set(kernels[1])


def test_constants_of_branches_too() -> None:
    model = with_weights(
        "g (float[3,64] x, bool p) => (float[3,32] y) <float[64,32] w = {0}> { y = If <then_branch = t () => (float[3,32] u) "
        "{ u = MatMul(x, w) }, else_branch = e () => (float[3,32] v) <float[64,32] k = {0}> { v = MatMul(x, k) }> (p) }",
        w=normal(64, 32),
    )
    branch = next(graph for graph in ir_model.all_graphs(model) if graph.name == "e")
    branch.initializers["k"].const_value = ir.tensor(normal(64, 32, seed=2), name="k")
    small, found = stored(model, 8, never)
    check.check(small)
    assert {one.name for one in found} == {"w", "k"}
    for p in (True, False):
        given_ = {"x": normal(3, 64, seed=1), "p": np.array(p)}
        wanted, got = run(model, given_)["y"], run(small, given_)["y"]
        assert 0 < np.square(got - wanted).sum() < 1e-4 * np.square(wanted).sum()


def test_names_are_those_that_are_free_and_shapes_are_told_once() -> None:
    model = with_weights(
        "g (float[3,64] storage_0) => (float[3,64] y) <float[64,64] w = {0}, float[64,64] storage_2 = {0}> "
        "{ storage_1 = MatMul(storage_0, w)  y = MatMul(storage_1, storage_2) }",
        w=normal(64, 64), storage_2=normal(64, 64, seed=2),
    )  # fmt: skip
    small, found = stored(model, 8, never)
    check.check(small)
    assert [one.bits for one in found] == [8, 8]
    shapes = [value for value in small.graph.initializers.values() if value.dtype == ir.DataType.INT64]
    assert len(shapes) == 1
    sample = {"storage_0": normal(3, 64, seed=1)}
    wanted, got = run(model, sample)["y"], run(small, sample)["y"]
    assert 0 < np.square(got - wanted).sum() < 3e-4 * np.square(wanted).sum()


def test_the_loud_constants_alone_take_16_bits() -> None:
    """One output is a small difference of what two weights make, the other what a third makes."""
    first, third = normal(64, 64), normal(64, 64, seed=1)
    model = with_weights(
        "g (float[3,64] x) => (float[3,64] d, float[3,64] e) <float[64,64] a = {0}, float[64,64] b = {0}, "
        "float[64,64] c = {0}> { u = MatMul(x, a)  v = MatMul(x, b)  d = Sub(u, v)  e = MatMul(x, c) }",
        a=first, b=first - np.float32(0.1) * normal(64, 64, seed=2), c=third,
    )  # fmt: skip
    samples = [{"x": normal(3, 64, seed=seed)} for seed in range(4)]
    references = [run(model, sample) for sample in samples]
    evaluation = Evaluation(samples, references, [{}] * 4, find_metric("sqnr"), 1e-4)
    small, constants = stored(model, 8, never)
    everything = evaluation.judge([run(small, sample) for sample in samples])
    assert not everything.ok
    wide = as_many_as_hold(model, constants, never, evaluation, everything, threads=1)
    assert wide == {"a", "b"}
    mixed, found = stored(model, 8, never, wide)
    assert {one.name: one.bits for one in found} == {"a": 16, "b": 16, "c": 8}
    assert evaluation.judge([run(mixed, sample) for sample in samples]).ok
