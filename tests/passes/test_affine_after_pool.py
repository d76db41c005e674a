"""An affine map moves below a pool that shrinks the data."""

import pytest

from graphopt.passes.affine_after_pool import AffineAfterPool
from graphopt.testing import check, check_ignores, check_refuses

HEAD = "g (float[1,2,4,4] x) => (float[1,2,A,B] y)"


@pytest.mark.parametrize(
    "pool",
    [
        "GlobalAveragePool",
        "GlobalMaxPool",
        "MaxPool<kernel_shape=[2,2], strides=[2,2], pads=[1,1,1,1]>",
        "AveragePool<kernel_shape=[3,2], strides=[3,2]>",
    ],
)
@pytest.mark.parametrize(("op", "constant"), [("Mul", "float[2,1,1] s={2,3}"), ("Add", "float[1] s={-2}")])
def test_fires(pool: str, op: str, constant: str) -> None:
    check(
        AffineAfterPool(),
        f"{HEAD} <{constant}> {{ t = {op}(x, s) {_call('y', pool, 't')} }}",
        f"{HEAD} <{constant}> {{ {_call('t', pool, 'x')} y = {op}(t, s) }}",
    )


def _call(out: str, pool: str, operand: str) -> str:
    return f"{out} = {pool}({operand})"


def test_refuses_a_map_read_elsewhere() -> None:
    check_refuses(
        AffineAfterPool(),
        "g (float[1,2,4,4] x) => (float[1,2,A,B] y, float[1,2,4,4] t) <float s={2}> "
        "{ t = Mul(x, s) y = GlobalAveragePool(t) }",
        "is used elsewhere",
    )


@pytest.mark.parametrize(
    "body",
    [
        "t = Mul(x, n) y = GlobalMaxPool(t)",
        "t = Mul(x, s) y = MaxPool<kernel_shape=[2,2]>(t)",
        "t = Add(x, s) y = AveragePool<kernel_shape=[2,2], strides=[2,2], pads=[1,1,1,1], count_include_pad=1>(t)",
        "t = Mul(x, rows) y = GlobalAveragePool(t)",
    ],
)
def test_ignores(body: str) -> None:
    check_ignores(
        AffineAfterPool(), f"{HEAD} <float s={{2}}, float n={{-2}}, float[4,1] rows={{1,2,3,4}}> {{ {body} }}"
    )
