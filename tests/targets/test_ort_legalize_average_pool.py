"""Average pools of few channels as depthwise convolutions."""

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from graphopt.ir import kernels
from graphopt.targets.ort.legalize.average_pool import PlainAveragePool
from graphopt.testing import check, check_ignores, check_refuses


def pool(options: str, shape: str = "N,2,5,6") -> str:
    return f"g (float[{shape}] x) => (float[A,B,C,D] y) {{ y = AveragePool<{options}>(x) }}"


def test_fires_without_padding() -> None:
    check(
        PlainAveragePool(),
        pool("kernel_shape=[2,2], strides=[2,1]", "N,2,H,W"),
        "g (float[N,2,H,W] x) => (float[A,B,C,D] y) <float[2,1,2,2] w={0.25,0.25,0.25,0.25,0.25,0.25,0.25,0.25}> "
        "{ y = Conv<group=2, kernel_shape=[2,2], pads=[0,0,0,0], strides=[2,1]>(x, w) }",
    )


def test_fires_where_padding_is_left_out() -> None:
    check(
        PlainAveragePool(),
        pool("kernel_shape=[2,1], pads=[1,0,0,0]", "N,2,2,1"),
        "g (float[N,2,2,1] x) => (float[A,B,C,D] y) <float[2,1,2,1] w={0.5,0.5,0.5,0.5}, float[1,1,2,1] s={2,1}> "
        "{ c = Conv<group=2, kernel_shape=[2,1], pads=[1,0,0,0], strides=[1,1]>(x, w) y = Mul(c, s) }",
    )


def test_fires_where_the_sizes_tell_the_padding() -> None:
    check(
        PlainAveragePool(),
        pool('kernel_shape=[2,1], auto_pad="SAME_LOWER"', "N,2,2,1"),
        "g (float[N,2,2,1] x) => (float[A,B,C,D] y) <float[2,1,2,1] w={0.5,0.5,0.5,0.5}, float[1,1,2,1] s={2,1}> "
        "{ c = Conv<group=2, kernel_shape=[2,1], pads=[1,0,0,0], strides=[1,1]>(x, w) y = Mul(c, s) }",
    )


def test_fires_for_the_whole_map() -> None:
    check(
        PlainAveragePool(),
        pool("kernel_shape=[5,6]"),
        "g (float[N,2,5,6] x) => (float[A,B,C,D] y) { y = GlobalAveragePool(x) }",
    )


@pytest.mark.parametrize(
    ("options", "shape", "reason"),
    [
        ("kernel_shape=[2,2], dilations=[2,1]", "N,2,5,6", "dilations"),
        ('kernel_shape=[2,2], strides=[2,2], auto_pad="SAME_UPPER"', "N,2,5,W", "auto_pad"),
        ("kernel_shape=[2,2], strides=[2,2], ceil_mode=1", "N,2,5,6", "ceil_mode"),
        ("kernel_shape=[2,2], strides=[2,2], ceil_mode=1", "N,2,H,W", "ceil_mode"),
        ("kernel_shape=[3,3], pads=[1,1,1,1]", "N,2,H,6", "unknown"),
    ],
)
def test_refuses(options: str, shape: str, reason: str) -> None:
    check_refuses(PlainAveragePool(), pool(options, shape), reason)


@pytest.mark.parametrize("shape", ["N,16,5,6", "N,C,5,6"])
def test_ignores_whole_blocks_and_unknown_channels(shape: str) -> None:
    check_ignores(PlainAveragePool(), pool("kernel_shape=[2,2]", shape))


def test_ignores_other_ranks_and_types() -> None:
    line = "g (float[N,2,5] x) => (float[A,B,C] y) { y = AveragePool<kernel_shape=[2]>(x) }"
    check_ignores(PlainAveragePool(), line)
    check_ignores(PlainAveragePool(), pool("kernel_shape=[2,2]").replace("float[", "float16["))


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(*(st.integers(0, 3) for _ in range(4))),
    counts=st.booleans(),
    channels=st.integers(1, 5),
)
def test_property(
    kernel: tuple[int, int],
    strides: tuple[int, int],
    padding: tuple[int, int, int, int],
    counts: bool,
    channels: int,
) -> None:
    pads = [min(pad, kernel[index % 2] - 1) for index, pad in enumerate(padding)]
    # The kernel that it is compared with must be right; that of ONNX Runtime 1.24 and older is wrong for these.
    assume(not counts or len(set(pads)) == 1 or kernels.average_pool_counts_all_padding())
    check(
        PlainAveragePool(),
        pool(
            f"kernel_shape={list(kernel)}, strides={list(strides)}, pads={pads}, count_include_pad={int(counts)}",
            f"2,{channels},5,6",
        ),
        rtol=2e-6,
    )
