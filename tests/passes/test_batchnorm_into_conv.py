"""BatchNormalization after linear ops."""

import pytest

from graphopt.passes.batchnorm_into_conv import BatchNormIntoConv
from graphopt.testing import check, check_ignores, check_refuses

# scale / sqrt(var + epsilon) = [2, 4] and shift = [1 - 2, -2 - 12] = [-1, -14]
BN = "<float[2] s={1,3}, float[2] b={1,-2}, float[2] m={1,3}, float[2] v={0.24,0.5525}, "
NORM = "BatchNormalization<epsilon=0.01>"


@pytest.mark.parametrize(
    ("source", "constants", "op", "folded", "bias"),
    [
        ("float[1,1,4,4] x", "float[2,1,1,1] w={1,10}", "Conv(x, w)", "float[2,1,1,1] w={2,40}", "{-1,-14}"),
        (
            "float[1,1,4,4] x",
            "float[2,1,1,1] w={1,10}, float[2] c={5,6}",
            "Conv<pads=[1,1,1,1]>(x, w, c)",
            "float[2,1,1,1] w={2,40}",
            "{9,10}",
        ),
        (
            "float[1,2,4] x",
            "float[2,1,1] w={1,10}",
            "ConvTranspose<group=2>(x, w)",
            "float[2,1,1] w={2,40}",
            "{-1,-14}",
        ),
        (
            "float[N,3] x",
            "float[2,3] w={1,2,3,4,5,6}, float[2] c={1,2}",
            "Gemm<transB=1, alpha=0.5, beta=2.0>(x, w, c)",
            "float[2,3] w={1,2,3,8,10,12}",
            "{3,2}",
        ),
    ],
)
def test_fires(source: str, constants: str, op: str, folded: str, bias: str) -> None:
    shape = source.split("]")[0].split(",")[2:]
    out = "float[N,2]" if "Gemm" in op else "float[" + ",".join(["1,2", *["K"] * len(shape)]) + "]"
    kind, inputs = op.split("(")
    kind = kind.replace(", alpha=0.5, beta=2.0", "")
    before = f"g ({source}) => ({out} y) {BN}{constants}> {{ t = {op} y = {NORM}(t, s, b, m, v) }}"
    after = f"g ({source}) => ({out} y) <{folded}, float[2] c={bias}> {{ y = {kind}(x, w, c) }}"
    del inputs
    check(BatchNormIntoConv(), before, after)


def test_matmul_gets_a_bias() -> None:
    head = "g (float[N,1] x) => (float[N,2] y)"
    check(
        BatchNormIntoConv(),
        f"{head} {BN}float[1,2] w={{1,10}}> {{ t = MatMul(x, w) y = {NORM}(t, s, b, m, v) }}",
        f"{head} <float[1,2] w={{2,40}}, float[2] c={{-1,-14}}> {{ t = MatMul(x, w) y = Add(t, c) }}",
    )


def test_through_max_pool_where_the_scale_is_positive() -> None:
    head = "g (float[1,1,4,4] x) => (float[1,2,A,B] y)"
    body = f"t = Conv(x, w) p = MaxPool<kernel_shape=[2,2]>(t) y = {NORM}(p, s, b, m, v)"
    check(
        BatchNormIntoConv(),
        f"{head} {BN}float[2,1,1,1] w={{1,10}}> {{ {body} }}",
        f"{head} <float[2,1,1,1] w={{2,40}}, float[2] c={{-1,-14}}> "
        "{ t = Conv(x, w, c) y = MaxPool<kernel_shape=[2,2]>(t) }",
    )
    check_ignores(
        BatchNormIntoConv(),
        f"{head} {BN.replace('s={1,3}', 's={1,-3}')}float[2,1,1,1] w={{1,10}}> {{ {body} }}",
    )


def test_refuses_a_shared_output() -> None:
    check_refuses(
        BatchNormIntoConv(),
        f"g (float[1,1,4,4] x) => (float[1,2,4,4] y, float[1,2,4,4] t) {BN}float[2,1,1,1] w={{1,10}}> "
        f"{{ t = Conv(x, w) y = {NORM}(t, s, b, m, v) }}",
        "is used elsewhere",
    )


def test_refuses_a_large_shared_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graphopt.passes._affine._SMALL_BYTES", 0)
    check_refuses(
        BatchNormIntoConv(),
        f"g (float[1,1,4,4] x) => (float[1,2,4,4] y, float[1,2,4,4] z) {BN}float[2,1,1,1] w={{1,10}}> "
        f"{{ t = Conv(x, w) z = Conv(x, w) y = {NORM}(t, s, b, m, v) }}",
        "is shared",
    )


def test_refuses_overflow() -> None:
    # The text syntax gives float16 by its bits: 100, 1 and 1000.
    check_refuses(
        BatchNormIntoConv(),
        "g (float16[1,1,4,4] x) => (float16[1,1,4,4] y) <float16[1] s={22080}, float16[1] b={15360}, "
        "float16[1] v={0}, float16[1,1,1,1] w={25552}> "
        "{ t = Conv(x, w) y = BatchNormalization(t, s, b, b, v) }",
        "overflow",
    )


@pytest.mark.parametrize(
    "body",
    [
        "t = Conv(x, w) y = BatchNormalization(t, s, d, m, v)",
        "t = Conv(x, w) y, p, q = BatchNormalization<training_mode=1>(t, s, b, m, v)",
        "t = Conv(x, u) y = BatchNormalization(t, s, b, m, v)",
    ],
)
def test_ignores_what_is_not_constant(body: str) -> None:
    check_ignores(
        BatchNormIntoConv(),
        "g (float[1,1,4,4] x, float[2] d, float[2,1,1,1] u) => (float[1,2,4,4] y) "
        f"{BN}float[2,1,1,1] w={{1,10}}> {{ {body} }}",
    )


@pytest.mark.parametrize("leading", ["3,5", "N,5", "3,L"])
def test_through_a_view_that_keeps_the_axis(leading: str) -> None:
    """LeViT and other transformers with batch normalisation flatten batch and positions for it."""
    head = f"g (float[{leading},1] x) => (float[M,2] y)"
    flat = "t = MatMul(x, w) f = Reshape(t, to)"
    check(
        BatchNormIntoConv(),
        f"{head} {BN}float[1,2] w={{1,10}}, int64[2] to={{-1,2}}> {{ {flat} y = {NORM}(f, s, b, m, v) }}",
        f"{head} <float[1,2] w={{2,40}}, float[2] c={{-1,-14}}, int64[2] to={{-1,2}}> "
        "{ t = MatMul(x, w) a = Add(t, c) y = Reshape(a, to) }",
    )


@pytest.mark.parametrize(("rows", "to"), [("4", "2,2,2"), ("4", "4,2,1"), ("2", "1,2,2")])
def test_a_view_that_moves_the_axis(rows: str, to: str) -> None:
    """The second axis of what is normalised is that of the columns in ``4,2,1`` only."""
    text = (
        f"g (float[{rows},3] x) => (float[{to}] y) {BN}float[3,2] w={{1,10,2,3,4,5}}, int64[3] to={{{to}}}> "
        f"{{ t = MatMul(x, w) f = Reshape(t, to) y = {NORM}(f, s, b, m, v) }}"
    )
    if to == "4,2,1":
        check(
            BatchNormIntoConv(),
            text,
            f"g (float[{rows},3] x) => (float[{to}] y) <float[3,2] w={{2,40,4,12,8,20}}, float[2] c={{-1,-14}}, "
            f"int64[3] to={{{to}}}> {{ t = MatMul(x, w) a = Add(t, c) y = Reshape(a, to) }}",
        )
    else:
        check_ignores(BatchNormIntoConv(), text)
