"""Sizes that are open when TVM compiles: right for all that come, in the loops that fixed sizes have."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_ir.passes.common import ShapeInferencePass

pytest.importorskip("tvm")

from graphopt.errors import TargetError
from graphopt.ir.facts import Array
from graphopt.pipeline.manager import PassManager
from graphopt.targets.tvm import adapter
from graphopt.targets.tvm.executable import dot_products, vector_extension
from graphopt.targets.tvm.lower import functions, schedule
from graphopt.targets.tvm.lower.compute import Window
from graphopt.targets.tvm.lower.pipeline import processor
from graphopt.targets.tvm.lower.products import Product
from graphopt.targets.tvm.lower.tiles import Vectors
from graphopt.targets.tvm.target import TvmRuntime, TvmTarget
from graphopt.testing import model_from_text, run

RNG = np.random.default_rng(5)
HERE = processor(vector_extension())[1]
DOTS = dot_products(vector_extension())

ROUNDING = 2.4e-7 if HERE.lanes >= 16 else 3.6e-7
"""Of the sum of the sizes of what is added up: a few roundings, which sums in parts stay well below; vectors of eight make
half as many parts, each twice as long."""

small = st.integers(1, 3)
axes = st.sets(st.integers(0, 2), min_size=1)


def kernel(
    expression: Callable[..., Any], data: Array, weight: Array, open_axes: Collection[int], vectors: Vectors
) -> Callable[[Array], Array]:
    """A tensor expression, compiled for data of any size along these axes."""
    functions.register()
    te = adapter.te
    shape = [
        te.var(f"n{axis}", "int64") if axis in open_axes else size for axis, size in enumerate(data.shape)
    ]
    places = [
        te.placeholder(shape, str(data.dtype), "data"), te.placeholder(weight.shape, str(weight.dtype), "weight")
    ]  # fmt: skip
    function = te.create_prim_func([*places, expression(*places)], index_dtype_override="int64")
    made = schedule.for_processor(function, vectors)
    # In tiles whose sums lie in registers: else it would be TVM's plain loops, which are right as well. Half as many
    # registers (AVX2) do not hold the sums of every tile that is tried here.
    assert "_local" in made.script() or vectors.count < 32
    assert not schedule._keeps_open_room(adapter.IRModule({"main": made}))
    target = processor(DOTS if vectors.dots else vector_extension())[0]
    library = adapter.compile_module(adapter.IRModule({"main": made}), target=target)

    def compute(array: Array) -> Array:
        fixed = [te.placeholder(array.shape, str(array.dtype)), places[1]]
        out = expression(*fixed)
        result = adapter.tensor(np.zeros([int(size) for size in out.shape], str(out.dtype)))
        library["main"](adapter.tensor(array), adapter.tensor(weight), result)
        return np.array(result.numpy())

    return compute


def convolved(data: Array, weight: Array, window: Window) -> Array:
    """As the kernels of fixed sizes have it, which are compared with the definition (test_tvm_kernels.py)."""
    product = Product(data.shape, weight.shape, window)
    tile = product.tiles(HERE)[0]
    return kernel(product.expression(tile), data, product.pack(weight, tile), (), HERE)(data)


def sizes_of(data: Array, open_axes: Collection[int], least: int) -> list[tuple[int, ...]]:
    """The sizes that it was made with, and others where they are open."""
    others = [
        tuple(int(RNG.integers(least if axis else 1, 40)) if axis in open_axes else size for axis, size in enumerate(data.shape))
        for _ in range(3)
    ]  # fmt: skip
    return [data.shape, *others]


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    open_axes=axes, groups=st.integers(1, 2), each=st.sampled_from([1, 16, 37, 64]), inputs=st.integers(1, 5),
    sizes=st.tuples(st.integers(7, 30), st.integers(7, 30)), extent=st.tuples(small, small),
    strides=st.tuples(small, small), dilations=st.tuples(small, small), pads=st.tuples(*[st.integers(0, 2)] * 4),
    channels_inside=st.booleans(),
)  # fmt: skip
def test_a_convolution_is_that_of_fixed_sizes(
    open_axes: set[int], groups: int, each: int, inputs: int, sizes: tuple[int, int], extent: tuple[int, int],
    strides: tuple[int, int], dilations: tuple[int, int], pads: tuple[int, int, int, int], channels_inside: bool,
) -> None:  # fmt: skip
    window = Window(strides, pads, dilations, groups)
    data = RNG.standard_normal((2, *sizes, groups * inputs)).astype(np.float32)
    weight = RNG.standard_normal((groups * each, inputs, *extent)).astype(np.float32)
    known = tuple(None if axis in open_axes else size for axis, size in enumerate(data.shape))
    product = Product(known, weight.shape, window)
    tile = replace(product.tiles(HERE)[0], channels_inside=channels_inside)
    compute = kernel(product.expression(tile), data, product.pack(weight, tile), open_axes, HERE)
    for shape in sizes_of(data, open_axes, least=7):
        array = RNG.standard_normal(shape).astype(np.float32)
        wanted = convolved(array, weight, window)
        allowed = ROUNDING * convolved(np.abs(array), np.abs(weight), window).max()
        assert float(np.abs(compute(array) - wanted).max()) <= allowed


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    leading=st.lists(st.integers(1, 7), max_size=2), rows=st.integers(1, 40), inputs=st.integers(1, 700),
    outputs=st.integers(1, 150), open_axes=axes, is_integer=st.booleans(), number=st.integers(0, 3),
)  # fmt: skip
def test_a_product_is_that_of_its_definition(
    leading: list[int], rows: int, inputs: int, outputs: int, open_axes: set[int], is_integer: bool, number: int
) -> None:  # fmt: skip
    vectors, shape = HERE, (*leading, rows, inputs)
    open_axes = {axis for axis in open_axes if axis < len(shape) - 1} or {0}
    weight = RNG.standard_normal((inputs, outputs)).astype(np.float32)
    if is_integer and DOTS:
        vectors = processor(DOTS)[1]
        weight = RNG.choice([-128, -127, 126, 127], (inputs, outputs)).astype(np.int8)
    known = tuple(None if axis in open_axes else size for axis, size in enumerate(shape))
    product = Product(known, weight.shape, integer=weight.dtype == np.int8)
    tiles = product.tiles(vectors)
    tile = tiles[min(number, len(tiles) - 1)]

    def made(shape: tuple[int, ...]) -> Array:
        if weight.dtype == np.int8:
            return RNG.choice([0, 1, 254, 255], shape).astype(np.uint8)
        return RNG.standard_normal(shape).astype(np.float32)

    data = made(shape)
    compute = kernel(product.expression(tile), data, product.pack(weight, tile), open_axes, vectors)
    for sizes in sizes_of(data, open_axes, least=1):
        array = made(sizes)
        wanted = array.astype(np.float64) @ weight.astype(np.float64)
        is_exact = weight.dtype == np.int8
        allowed = 0.0 if is_exact else ROUNDING * (np.abs(array).astype(np.float64) @ np.abs(weight)).max()
        assert float(np.abs(compute(array) - wanted).max()) <= allowed


def compiled(model: ir.Model, folder: Path) -> Any:
    """A model on ``tvm-llvm``."""
    target = TvmTarget()
    made, _ = PassManager(target.legalization()).run(model)
    return TvmRuntime().load(folder, target.emit(made, folder, {}))


TYPES = {"float32": "float", "int8": "int8"}


def with_weights(text: str, **weights: Array) -> ir.Model:
    """A model from text that reads these constants."""
    declared = [
        f"{TYPES[str(array.dtype)]}[{','.join(map(str, array.shape))}] {name}"
        for name, array in weights.items()
    ]
    model = model_from_text(text.replace(") =>", f", {', '.join(declared)}) =>", 1) if weights else text)
    for value in [value for value in model.graph.inputs if value.name in weights]:
        model.graph.inputs.remove(value)
        value.const_value = ir.tensor(weights[str(value.name)], name=value.name)
        model.graph.register_initializer(value)
    ShapeInferencePass()(model)
    return model


def check(
    text: str, *shapes: tuple[int, ...], folder: Path, tolerance: float = 1e-6, **weights: Array
) -> None:
    """That a model with open sizes computes what ONNX Runtime does, for inputs ``x`` of these shapes."""
    model = with_weights(text, **weights)
    executable = compiled(model, folder)
    for shape in shapes:
        feeds = {"x": RNG.standard_normal(shape).astype(np.float32)}
        made = executable.run(feeds)
        for name, wanted in run(with_weights(text, **weights), feeds).items():
            assert made[name].shape == wanted.shape
            np.testing.assert_allclose(
                made[name], wanted, rtol=0, atol=tolerance * max(np.abs(wanted).max(), 1)
            )


def weight(*shape: int) -> Array:
    return (RNG.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def test_an_image_of_any_size_through_depthwise_convolutions_and_pools(tmp_path: Path) -> None:
    check(
        """g (float[N,3,H,W] x) => (float[N,5] y) {
        a = Conv<pads=[1,1,1,1], strides=[2,2]>(x, w1) b = HardSwish(a)
        c = Conv<group=24, pads=[2,2,2,2]>(b, w2) d = Relu(c)
        e = MaxPool<kernel_shape=[2,2], auto_pad="SAME_UPPER">(d)
        f = Conv(e, w3) h = AveragePool<kernel_shape=[3,3], auto_pad="SAME_LOWER">(f)
        i = GlobalAveragePool(h) j = Flatten(i) y = Gemm<transB=1>(j, w4, k) }""",
        (1, 3, 20, 33), (3, 3, 48, 17), (2, 3, 9, 64), folder=tmp_path, tolerance=3e-6,
        w1=weight(24, 3, 3, 3), w2=weight(24, 1, 5, 5), w3=weight(40, 24, 1, 1), w4=weight(5, 40), k=weight(5),
    )  # fmt: skip


def test_attention_over_any_number_of_rows(tmp_path: Path) -> None:
    check(
        """g (float[N,S,32] x) => (float[N,S,32] y) {
        q = MatMul(x, w1) k = MatMul(x, w2) v = MatMul(x, w3) t = Transpose<perm=[0,2,1]>(k)
        a = MatMul(q, t) b = Softmax<axis=-1>(a) c = MatMul(b, v)
        d = Add(c, x) y = LayerNormalization<axis=-1>(d, scale) }""",
        (1, 5, 32), (3, 1, 32), (2, 40, 32), folder=tmp_path, tolerance=3e-6,
        w1=weight(32, 32), w2=weight(32, 32), w3=weight(32, 32), scale=np.ones(32, np.float32),
    )  # fmt: skip


UNET = """g (float[N,3,H,W] x) => (float[N,8,H,W] y) {
    a = Conv<pads=[1,1,1,1]>(x, w1) b = Conv<pads=[1,1,1,1], strides=[2,2]>(a, w2)
    c = Resize<mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor">(b, , scales)
    d = Concat<axis=1>(a, c) y = Conv<pads=[1,1,1,1]>(d, w3) }"""


def test_halves_that_are_doubled_go_with_what_was_not(tmp_path: Path) -> None:
    weights = {"w1": weight(8, 3, 3, 3), "w2": weight(8, 8, 3, 3), "w3": weight(8, 16, 3, 3)}
    weights["scales"] = np.array([1, 1, 2, 2], np.float32)
    check(UNET, (1, 3, 8, 12), (2, 3, 20, 6), folder=tmp_path, tolerance=3e-6, **weights)
    executable = TvmRuntime().load(tmp_path, TvmTarget().emit(with_weights(UNET, **weights), tmp_path, {}))
    with pytest.raises(TargetError):
        # An odd size is another one after it was halved and doubled: ONNX Runtime refuses it too.
        executable.run({"x": np.zeros((1, 3, 9, 12), np.float32)})


@pytest.mark.skipif(not DOTS, reason="this processor has no instruction for products of bytes")
@pytest.mark.parametrize(
    ("shape", "node", "weight_shape", "shapes"),
    [
        ("N,3,H,W", "y = Conv<pads=[1,1,1,1]>(b, c)", (16, 3, 3, 3), [(1, 3, 8, 12), (2, 3, 5, 33)]),
        ("N,S,24", "y = MatMul(b, c)", (24, 40), [(1, 7, 24), (3, 20, 24)]),
    ],
)
def test_integers_of_any_size(
    tmp_path: Path, shape: str, node: str, weight_shape: tuple[int, ...], shapes: list[tuple[int, ...]]
) -> None:
    text = f"""g (float[{shape}] x) => (float[N,P,Q] y)
        <float one = {{0.02}}, uint8 middle = {{120}}, float other = {{0.01}}> {{
        a = QuantizeLinear(x, one, middle) b = DequantizeLinear(a, one, middle) c = DequantizeLinear(w, other) {node} }}"""
    if "Conv" in node:
        text = text.replace("float[N,P,Q] y", "float[N,16,H,W] y")
    weights = {"w": RNG.integers(-127, 128, weight_shape).astype(np.int8)}
    made, _ = PassManager(TvmTarget().legalization()).run(with_weights(text, **weights))
    assert {"ConvInteger", "MatMulInteger"} & {node.op_type for node in made.graph}
    check(text, *shapes, folder=tmp_path, **weights)


def test_sizes_without_a_name_and_with_names_that_are_none(tmp_path: Path) -> None:
    model = model_from_text("g (float[N,2] x, float[N,2] z) => (float[N,2] y) { y = Mul(x, z) }")
    for value, size in zip(model.graph.inputs, (None, "p2o.Dynamic.0"), strict=True):
        value.shape = ir.Shape([size, 2])
    model.graph.outputs[0].shape = ir.Shape([None, 2])
    executable = compiled(model, tmp_path)
    for rows in (1, 4):
        x = RNG.standard_normal((rows, 2)).astype(np.float32)
        np.testing.assert_array_equal(executable.run({"x": x, "z": x})["y"], x * x)


@pytest.mark.parametrize("pads", ["SAME_UPPER", "SAME_LOWER"])
def test_pads_that_depend_on_open_sizes_are_refused(tmp_path: Path, pads: str) -> None:
    model = model_from_text(
        "g (float[N,3,H,W] x) => (float[N,3,P,Q] y) "
        f'{{ y = MaxPool<kernel_shape=[2,2], strides=[2,2], auto_pad="{pads}">(x) }}'
    )
    with pytest.raises(TargetError, match="its pads depend on sizes that are open"):
        compiled(model, tmp_path)


def test_an_unknown_number_of_axes_is_refused(tmp_path: Path) -> None:
    model = model_from_text("g (float[N,2] x) => (float[N,2] y) { y = Relu(x) }")
    model.graph.inputs[0].shape = None
    with pytest.raises(TargetError, match="number of axes of each input, and that of 'x' is not known"):
        compiled(model, tmp_path)


def test_recurrent_layers_of_an_open_number_of_steps_say_what_fixes_it(tmp_path: Path) -> None:
    model = with_weights(
        "g (float[S,1,4] x) => (float[S,1,1,4] y) { y = GRU<hidden_size=4>(x, w, r) }",
        w=weight(1, 12, 4), r=weight(1, 12, 4),
    )  # fmt: skip
    with pytest.raises(
        TargetError, match="GRU .*the number of its steps, or of its rows, is open .--input-shape"
    ):
        compiled(model, tmp_path)


def test_slices_that_end_beyond_any_axis(tmp_path: Path) -> None:
    """As exporters of TensorFlow and PyTorch say "to the end"."""
    check(
        """g (float[N,6,S] x) => (float[N,5,P] y)
        <int64[3] starts = {0, -5, 2}, int64[3] ends = {1000000000, 6, 9223372036854775807}, int64[3] axes = {0, 1, 2}> {
        a = Slice(x, starts, ends, axes) b = Conv(a, w) y = Relu(b) }""",
        (1, 6, 9), (3, 6, 20), folder=tmp_path, tolerance=3e-6, w=weight(5, 5, 3),
    )  # fmt: skip


@pytest.mark.parametrize("length", [6906, 18385, 997, 1009 * 3])
def test_softmax_over_lengths_that_nothing_divides(tmp_path: Path, length: int) -> None:
    """Sums of exponentials in parts: one after the other they are off by as many roundings as there are."""
    model = model_from_text(f"g (float[N,{length}] x) => (float[N,{length}] y) {{ y = Softmax<axis=-1>(x) }}")
    x = RNG.standard_normal((3, length)).astype(np.float32)
    powers = np.exp(x.astype(np.float64) - x.max(axis=1, keepdims=True))
    made = compiled(model, tmp_path).run({"x": x})["y"]
    assert float(np.abs(made / (powers / powers.sum(axis=1, keepdims=True)) - 1).max()) < 1e-6


@pytest.mark.parametrize("pads", ["SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize(("kernel", "stride"), [(2, 2), (3, 2), (4, 3), (2, 1)])
@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
def test_pads_of_known_sizes_are_found(tmp_path: Path, op: str, pads: str, kernel: int, stride: int) -> None:
    attributes = f'kernel_shape=[{kernel},{kernel}], strides=[{stride},{stride}], auto_pad="{pads}"'
    check(f"g (float[N,3,7,10] x) => (float[N,3,P,Q] y) {{ y = {op}<{attributes}>(x) }}",
          (1, 3, 7, 10), (3, 3, 7, 10), folder=tmp_path)  # fmt: skip


def test_resized_by_whole_numbers(tmp_path: Path) -> None:
    check(
        """g (float[N,3,H,W] x) => (float[N,3,P,Q] y) <float[4] scales = {1.0, 1.0, 2.0, 3.0}> {
        y = Resize<mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor">(x, , scales) }""",
        (1, 3, 7, 10), (2, 3, 4, 5), folder=tmp_path,
    )  # fmt: skip


def test_a_decoder_with_biases_behind_resized_branches(tmp_path: Path) -> None:
    """Sizes that the frontend would compute in float, in a loop nest that is fused with what follows."""
    check(
        """g (float[N,3,H,W] x) => (float[N,8,P,Q] y) <float[4] scales = {1.0, 1.0, 2.0, 2.0}> {
        a = Conv<pads=[1,1,1,1], strides=[2,2]>(x, w1) b = Relu(a)
        c = Conv<pads=[1,1,1,1], strides=[2,2], group=2>(b, w2) d = Relu(c)
        e = Resize<mode="linear">(d, , scales) f = Concat<axis=1>(e, b)
        h = Conv<pads=[1,1,1,1]>(f, w3, k) y = Relu(h) }""",
        (1, 3, 16, 24), (2, 3, 8, 40), folder=tmp_path, tolerance=3e-6,
        w1=weight(8, 3, 3, 3), w2=weight(16, 4, 3, 3), w3=weight(8, 24, 3, 3), k=weight(8),
    )  # fmt: skip
