"""Loops for GPUs, run on the processor one thread after the other: right for any sizes, and as exact as they should be."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("tvm")

from graphopt.ir.facts import Array
from graphopt.targets.tvm import adapter
from graphopt.targets.tvm.executable import vector_extension
from graphopt.targets.tvm.lower import functions, gpu, gpu_product
from graphopt.targets.tvm.lower.pipeline import gpu as gpu_of
from graphopt.targets.tvm.lower.pipeline import processor

RNG = np.random.default_rng(3)
topi, te = adapter.topi, adapter.te


def function_of(expression: Callable[..., Any], *arrays: Array) -> tuple[Any, Any]:
    places = [te.placeholder(array.shape, str(array.dtype), f"p{i}") for i, array in enumerate(arrays)]
    out = expression(*places)
    return te.create_prim_func([*places, out], index_dtype_override="int64"), out


def computed(expression: Callable[..., Any], *arrays: Array, follows: bool = True) -> Array:
    """What the threads of a GPU would make of arrays."""
    functions.register()
    function, out = function_of(expression, *arrays)
    plain, target = adapter.IRModule({"main": function}), gpu_of("sm_80")
    with target:
        bound = gpu.scheduled(adapter.IRModule({"main": function}), target)
    assert "threadIdx" in bound.script()
    cpu, vectors = processor(vector_extension())
    serial, followed = gpu.one_after_the_other(bound, plain, vectors)
    assert followed == int(follows) and "threadIdx" not in serial.script()
    library = adapter.compile_module(serial, target=cpu)
    made = adapter.tensor(np.zeros([int(size) for size in out.shape], str(out.dtype)))
    library["main"](*(adapter.tensor(array) for array in arrays), made)
    return np.array(made.numpy())


def close(got: Array, wanted: Array, terms: int) -> None:
    """Within what rounding of so many added products explains, of the largest."""
    allowed = 4e-7 * max(math.sqrt(terms), 4) * float(np.abs(wanted).max() + 1e-9)
    assert float(np.abs(got - wanted).max()) <= allowed


def normal(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


@settings(max_examples=15, deadline=None)
@given(
    batch=st.integers(1, 3), inputs=st.integers(2, 40), outputs=st.integers(2, 70), size=st.integers(2, 15),
    kernel=st.sampled_from([1, 3]), stride=st.integers(1, 2), pad=st.integers(0, 1), residual=st.booleans(),
)  # fmt: skip
def test_a_convolution_is_that_of_its_definition(
    batch: int, inputs: int, outputs: int, size: int, kernel: int, stride: int, pad: int, residual: bool
) -> None:
    if size + 2 * pad < kernel:
        return
    data, weight = normal(batch, inputs, size, size), normal(outputs, inputs, kernel, kernel)
    padded = np.pad(data.astype(np.float64), [(0, 0), (0, 0), (pad, pad), (pad, pad)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, (kernel, kernel), axis=(2, 3))
    wanted = np.einsum("ncyxij,ocij->noyx", windows[:, :, ::stride, ::stride], weight.astype(np.float64))
    bias = normal(*wanted.shape) if residual else normal(1, outputs, 1, 1)

    def expression(d: Any, w: Any, b: Any) -> Any:
        made = topi.nn.conv2d_nchw(d, w, stride, pad, 1)
        return topi.nn.relu(topi.add(made, b))

    close(computed(expression, data, weight, bias), np.maximum(wanted + bias, 0), inputs * kernel**2)


@settings(max_examples=15, deadline=None)
@given(
    batch=st.integers(1, 3), rows=st.integers(2, 80), inner=st.integers(2, 300), columns=st.integers(2, 80),
    transposed=st.booleans(),
)  # fmt: skip
def test_a_product_of_matrices_is_that_of_its_definition(
    batch: int, rows: int, inner: int, columns: int, transposed: bool
) -> None:
    a, b = normal(batch, rows, inner), normal(batch, inner, columns)
    given_b = np.ascontiguousarray(b.transpose(0, 2, 1)) if transposed else b
    made = computed(lambda x, y: topi.nn.batch_matmul(x, y, transpose_b=transposed), a, given_b)
    close(made, a.astype(np.float64) @ b.astype(np.float64), inner)


def test_products_have_loops_of_their_own_and_others_have_those_of_dlight() -> None:
    conv, _ = function_of(
        lambda d, w: topi.nn.conv2d_nchw(d, w, 1, 1, 1), normal(1, 8, 9, 9), normal(16, 8, 3, 3)
    )
    own = gpu_product.product(conv)
    assert own is not None and 'scope="shared"' in own.script() and 'scope="local"' in own.script()
    depthwise, _ = function_of(
        lambda d, w: topi.nn.depthwise_conv2d_nchw(d, w, 1, 1, 1), normal(1, 8, 9, 9), normal(8, 1, 3, 3)
    )
    assert gpu_product.product(depthwise) is None
    soft, _ = function_of(topi.nn.softmax, normal(4, 100))
    assert gpu_product.product(soft) is None


@pytest.mark.parametrize("length", [4096, 20000, 16 * 61])
def test_long_sums_are_as_exact_as_their_parts(length: int) -> None:
    """All numbers alike: one sum after the other would be off in one direction."""
    a = np.full((1, 40, length), 0.1, np.float32)
    b = np.full((1, length, 33), 0.7, np.float32)
    wanted = float(length * np.float64(np.float32(0.1)) * np.float64(np.float32(0.7)))
    made = computed(topi.nn.batch_matmul, a, np.ascontiguousarray(b.transpose(0, 2, 1)))
    assert float(np.abs(made / wanted - 1).max()) < 4e-6


@pytest.mark.parametrize(
    ("expression", "shape", "wanted", "follows"),
    [
        (topi.nn.softmax, (7, 6625), lambda x: np.exp(x) / np.exp(x).sum(-1, keepdims=True), False),
        (lambda x: topi.sum(x, axis=[1]), (5, 1000, 3), lambda x: x.sum(1), True),
        (lambda x: topi.nn.adaptive_pool(x, [1, 1], "avg"), (1, 30, 7, 7), lambda x: x.mean((2, 3), keepdims=True), True),
        (lambda x: topi.transpose(x, [2, 0, 1]), (5, 6, 7), lambda x: x.transpose(2, 0, 1), True),
        (topi.exp, (3, 5), np.exp, True),
    ],
)  # fmt: skip
def test_what_is_no_product(
    expression: Callable[..., Any],
    shape: tuple[int, ...],
    wanted: Callable[[Array], Array],
    follows: bool,
) -> None:
    data = normal(*shape)
    truth = wanted(data.astype(np.float64))
    close(computed(expression, data, follows=follows), truth, 4)


def test_memory_between_kernels_is_seen() -> None:
    """What a graph must not hold: TVM frees it when another function needs more."""
    target = gpu_of("sm_80")
    with target:
        one, _ = function_of(topi.exp, normal(3, 5))
        assert not gpu.keeps_memory_of_its_own(gpu.scheduled(adapter.IRModule({"main": one}), target))
        # Two sums that each want a kernel of their own.
        two, _ = function_of(lambda x: topi.sum(topi.sum(x, axis=[2]), axis=[1]), normal(5, 70, 70))
        made = gpu.scheduled(adapter.IRModule({"main": two}), target)
    has_memory = "scope" not in made.script().partition("sblock_alloc_buffer(")[2].partition(")\n")[0]
    assert gpu.keeps_memory_of_its_own(made) == ("sblock_alloc_buffer(" in made.script() and has_memory)


def test_more_blocks_than_a_gpu_launches_lie_along_x() -> None:
    function, _ = function_of(topi.nn.batch_matmul, normal(70000, 2, 4), normal(70000, 2, 4))
    target = gpu_of("sm_80")
    with target:
        bound = gpu.scheduled(adapter.IRModule({"main": function}), target)["main"]
    sizes = {loop.thread_binding.thread_tag: int(loop.extent) for loop in gpu._threads_of(bound.body)}
    assert sizes["blockIdx.x"] >= 70000 and sizes.get("blockIdx.y", 1) <= 65535


def test_a_function_written_for_threads_has_no_loops_of_a_processor() -> None:
    target = gpu_of("sm_80")
    with target:
        written = te.create_prim_func(
            [place := te.placeholder((3, 50), "float32", "p"), topi.gpu.cumsum(place, axis=1)]
        )
    module = adapter.IRModule({"main": written})
    _, vectors = processor(vector_extension())
    with pytest.raises(gpu.NoLoopsError, match="written for threads"):
        gpu.one_after_the_other(module, module, vectors)


def test_a_function_that_no_rule_takes_is_named() -> None:
    function, _ = function_of(topi.exp, normal(3, 5))
    opaque = function.with_body(adapter.tirx.Evaluate(0))
    with pytest.raises(gpu.NoLoopsError, match="no loops for odd on a GPU"):
        gpu.scheduled(adapter.IRModule({"odd": opaque}), gpu_of("sm_80"))
