"""Operators that move, pad, resample or reduce nothing."""

import hypothesis
import pytest
from hypothesis import strategies as st

from graphopt.passes.no_op_layout import NoOpLayout
from graphopt.testing import apply, assert_same_numbers, check, check_ignores, model_from_text

CONSTANTS = """<int64[1] zero={0}, int64[1] one={1}, int64[1] minus={-1}, int64[1] big={9223372036854775807},
    int64[4] zeros={0,0,0,0}, int64[4] same={0,3,1,8}, int64[4] infers={0,3,-1,8}, int64[4] ones={1,1,1,1},
    int64[8] pads={0,0,0,0,0,0,0,0}, int64[1] eight={8}, int64[2] hw={2,3}, float[4] scales={1,1,1,1},
    int64[4] bigger={1,3,2,8}, float[4] twice={1,1,2,2}, int64[8] pad1={0,0,0,1,0,0,0,0}, int64[2] wrong={0,-1},
    int64[4] sizes={2,3,1,8}, int64 depth={3}, int64[4] two={1,1,1,2}, int64[1] three={3}, int64[1] axis2={2}>"""


@pytest.mark.parametrize(
    "call",
    [
        "Transpose<perm=[0,1,2,3]>(p)",
        "Reshape(p, zeros)",
        "Reshape(p, same)",
        "Reshape(p, infers)",
        "Expand(p, ones)",
        "Expand(p, one)",
        "Slice(p, zero, big, one)",
        "Slice(p, zero, eight, three, one)",
        "Pad(p, pads)",
        'Pad<mode="reflect">(p, pads)',
        "Tile(p, ones)",
        "Concat<axis=1>(p)",
        "Split<axis=1, num_outputs=1>(p)",
        "Resize(p, , scales)",
        'Resize<mode="linear", coordinate_transformation_mode="align_corners">(p, , scales)',
        "MaxPool<kernel_shape=[1,1]>(p)",
        'MaxPool<kernel_shape=[1,1], strides=[1,1], auto_pad="SAME_UPPER">(p)',
        "AveragePool<kernel_shape=[1,1], pads=[0,0,0,0], ceil_mode=1>(p)",
        "ReduceMean(p, axis2)",
        pytest.param(
            "ReduceSum<noop_with_empty_axes=1>(p)",
            marks=pytest.mark.onnxruntime("1.24", "runs ReduceSum over no axes"),
        ),
        "DepthToSpace<blocksize=1>(p)",
        "SpaceToDepth<blocksize=1>(p)",
    ],
)
def test_fires(call: str) -> None:
    check(
        NoOpLayout(),
        f"g (float[2,3,1,8] x) => (float[2,3,1,8] y) {CONSTANTS} {{ p = Neg(x) q = {call} y = Abs(q) }}",
        "g (float[2,3,1,8] x) => (float[2,3,1,8] y) { p = Neg(x) y = Abs(p) }",
        exact=True,
    )


@pytest.mark.parametrize(
    "call",
    [
        "Reshape(p, zeros)",
        "Reshape(p, infers)",
        "Expand(p, ones)",
        "Slice(p, zero, big, minus)",
        "Tile(p, ones)",
        "Resize(p, , scales)",
        "GlobalAveragePool(p)",
        "GlobalMaxPool(p)",
    ],
)
def test_fires_with_dynamic_dimensions(call: str) -> None:
    size = "1,1" if call.startswith("Global") else "1,8"
    check(
        NoOpLayout(),
        f"g (float[N,3,{size}] x) => (float[N,3,{size}] y) {CONSTANTS} {{ p = Neg(x) q = {call} y = Abs(q) }}",
        f"g (float[N,3,{size}] x) => (float[N,3,{size}] y) {{ p = Neg(x) y = Abs(p) }}",
        exact=True,
    )


@pytest.mark.parametrize("call", ["Flatten(p)", "Flatten<axis=-1>(p)", "Reshape(p, wrong)", "Squeeze(q)"])
def test_fires_in_two_dimensions(call: str) -> None:
    inner = "q = Relu(p) " if "(q)" in call else ""
    dims = "2,8" if "Squeeze" in call else "N,M"
    check(
        NoOpLayout(),
        f"g (float[{dims}] x) => (float[{dims}] y) {CONSTANTS} {{ p = Neg(x) {inner} r = {call} y = Abs(r) }}",
        exact=True,
    )


def test_the_name_of_an_output_stays() -> None:
    check(
        NoOpLayout(),
        "g (float[2,3] x) => (float[2,3] y) { p = Neg(x) y = Transpose<perm=[0,1]>(p) }",
        "g (float[2,3] x) => (float[2,3] y) { p = Neg(x) y = Identity(p) }",
        exact=True,
    )


@pytest.mark.parametrize(
    "call",
    [
        "Transpose<perm=[0,2,1,3]>(p)",
        "Transpose(p)",
        "Expand(p, bigger)",
        "Slice(p, one, big, one)",
        "Slice(p, minus, eight, three)",
        "Pad(p, pad1)",
        "Tile(p, two)",
        "Resize(p, , twice)",
        "MaxPool<kernel_shape=[1,1], strides=[1,2]>(p)",
        "AveragePool<kernel_shape=[1,1], pads=[0,1,0,0]>(p)",
        "ReduceMean(p, one)",
        "ReduceMean(p)",
        "ReduceMean<keepdims=0>(p, axis2)",
        "ReduceSumSquare(p, axis2)",
        "Squeeze(p)",
        "GlobalAveragePool(p)",
    ],
)
def test_ignores_what_does_something(call: str) -> None:
    graph = f"g (float[2,3,1,8] x) => (float y) {CONSTANTS} {{ p = Neg(x) q = {call} y = ReduceMax<keepdims=0>(q) }}"
    check_ignores(NoOpLayout(), graph)


@pytest.mark.parametrize("call", ["Expand(x, s)", "Reshape(x, s)", "Tile(x, s)"])
def test_ignores_what_is_not_known(call: str) -> None:
    check_ignores(NoOpLayout(), f"g (float[N,3] x, int64[2] s) => (float[A,B] y) {{ y = {call} }}")


def test_ignores_two_unnamed_dimensions_that_may_differ() -> None:
    graph = "g (float[A,B] x) => (float[C,D] y) <int64[2] s={-1,4}> { y = Reshape(x, s) }"
    check_ignores(NoOpLayout(), graph)


def test_ignores_indices_that_are_read() -> None:
    graph = """g (float[1,2,4,4] x) => (float[1,2,4,4] y, int64[1,2,4,4] i) {
        y, i = MaxPool<kernel_shape=[1,1]>(x) }"""
    check_ignores(NoOpLayout(), graph)


@hypothesis.settings(derandomize=True, deadline=None, max_examples=25)
@hypothesis.given(st.permutations([0, 1, 2]), st.lists(st.integers(1, 4), min_size=3, max_size=3), st.data())
def test_never_changes_numbers(perm: list[int], shape: list[int], data: st.DataObject) -> None:
    starts = [data.draw(st.sampled_from([0, 0, size - 1])) for size in shape]
    ends = [
        data.draw(st.sampled_from([start + 1, size, 9])) for start, size in zip(starts, shape, strict=True)
    ]
    target = data.draw(st.sampled_from([[0, 0, 0], [0, 0, -1], shape, [-1, 1, shape[2]]]))
    graph = f"""g (float{shape} x) => (float y) <int64[3] s={{{str(starts)[1:-1]}}}, int64[3] e={{{str(ends)[1:-1]}}},
        int64[3] t={{{str(target)[1:-1]}}}> {{
        a = Transpose<perm={perm}>(x) b = Reshape(x, t) c = Slice(x, s, e)
        p = ReduceSum<keepdims=0>(c) q = ReduceMax<keepdims=0>(b) r = Softmax<axis=0>(a)
        u = ReduceMin<keepdims=0>(r) v = Add(p, q) y = Add(u, v) }}"""
    model, _ = apply(NoOpLayout(), graph)
    assert_same_numbers(model_from_text(graph), model, exact=True)
