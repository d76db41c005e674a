"""The squeeze of squeeze-and-excitation blocks."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.passes.squeeze_excite import SqueezeExcite
from graphopt.testing import check, check_ignores

EXCITE = "c = Conv(p, w) s = Sigmoid(c) y = Mul(x, s)"
POOLED = (
    "g (float[N,2,H,3] x) => (float[N,2,H,3] y) <float[2,2,1,1] w={1,2,3,4}>"
    f"{{ p = GlobalAveragePool(x) {EXCITE} }}"
)


def graph(body: str, axes: str = "2,3") -> str:
    constants = f"<int64[{axes.count(',') + 1}] ax={{{axes}}}, float[2,2,1,1] w={{1,2,3,4}}>"
    return f"g (float[N,2,H,3] x) => (float[N,2,H,3] y) {constants} {{ {body} }}"


@pytest.mark.parametrize("axes", ["2,3", "-1,-2"])
def test_fires(axes: str) -> None:
    check(SqueezeExcite(), graph(f"p = ReduceMean(x, ax) {EXCITE}", axes), POOLED)


@pytest.mark.parametrize("axes", ["1,2", "1,2,3", "3"])
def test_ignores_other_axes(axes: str) -> None:
    before = graph('p = ReduceMean(x, ax) q = Conv<auto_pad="SAME_UPPER">(x, w) y = Mul(p, q)', axes)
    check_ignores(SqueezeExcite(), before)


def test_ignores_dropped_axes_other_readers_and_float64() -> None:
    check_ignores(SqueezeExcite(), graph("p = ReduceMean(x, ax) y = Mul(x, p)"))
    kernel = graph("p = ReduceMean(x, ax) y = Conv(x, p)").replace("N,2,H,3", "2,2,3,3")
    check_ignores(SqueezeExcite(), kernel)
    dropped = "p = ReduceMean<keepdims=0>(x, ax) q = Unsqueeze(p, ax) y = Mul(x, q)"
    check_ignores(SqueezeExcite(), graph(dropped))
    check_ignores(SqueezeExcite(), graph(f"p = ReduceMean(x, ax) {EXCITE}").replace("float", "double"))


@settings(max_examples=10, deadline=None, derandomize=True)
@given(spatial=st.lists(st.integers(1, 5), min_size=2, max_size=3), reverse=st.booleans())
def test_agrees_for_any_shape(spatial: list[int], reverse: bool) -> None:
    rank = len(spatial) + 2
    axes = [str(axis) for axis in range(2, rank)]
    before = graph(f"p = ReduceMean(x, ax) {EXCITE}", ",".join(axes[::-1] if reverse else axes))
    before = before.replace("N,2,H,3", ",".join(map(str, [2, 2, *spatial])))
    check(SqueezeExcite(), before.replace("[2,2,1,1]", f"[2,2{',1' * len(spatial)}]"))
