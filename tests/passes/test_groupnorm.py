"""Group normalisation by way of InstanceNormalization."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.passes.groupnorm import GroupNorm
from graphopt.testing import check, check_ignores, check_refuses

BODY = "y = GroupNormalization<num_groups=2, epsilon=0.001>(x, gamma, beta)"
CONSTANTS = "<float[4] gamma={1,2,3,4}, float[4] beta={5,6,7,8}>"


def graph(x: str = "N,4,H,3", parameters: str = "", constants: str = CONSTANTS) -> str:
    return f"g (float[{x}] x{parameters}) => (float[{x}] y) {constants} {{ {BODY} }}"


@pytest.mark.parametrize("dynamic", [True, False])
def test_fires(dynamic: bool) -> None:
    shape = "N,4,H,3" if dynamic else "2,4,5,3"
    target = "s = Shape(x)" if dynamic else ""
    constants = (
        "<int64[3] groups={0,2,-1}, float[2] ones={1,1}, float[2] zeros={0,0}, float[4,1,1] gamma={1,2,3,4},"
        f" float[4,1,1] beta={{5,6,7,8}}{'' if dynamic else ', int64[4] s={2,4,5,3}'}>"
    )
    after = (
        f"g (float[{shape}] x) => (float[{shape}] y) {constants} {{ r = Reshape(x, groups) "
        f"i = InstanceNormalization<epsilon=0.001>(r, ones, zeros) {target} k = Reshape(i, s) "
        "u = Mul(k, gamma) y = Add(u, beta) }"
    )
    check(GroupNorm(), graph(shape), after)


def test_parameters_that_are_inputs() -> None:
    model = check(GroupNorm(), graph(parameters=", float[4] gamma, float[4] beta", constants=""))
    assert [node.op_type for node in model.graph].count("Reshape") == 4


def test_refuses_an_unknown_number_of_channels() -> None:
    before = graph("N,C,3,3", ", float[C] gamma, float[C] beta", "")
    check_refuses(GroupNorm(), before, "is not known")


def test_ignores_float64() -> None:
    check_ignores(GroupNorm(), graph().replace("float", "double"))


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    groups=st.integers(1, 4),
    size=st.integers(1, 3),
    spatial=st.lists(st.integers(2, 4), min_size=1, max_size=3),
)
def test_agrees_for_any_shape(groups: int, size: int, spatial: list[int]) -> None:
    channels = groups * size
    numbers = ",".join(str(i + 1) for i in range(channels))
    shape = ",".join(map(str, [2, channels, *spatial]))
    constants = f"<float[{channels}] gamma={{{numbers}}}, float[{channels}] beta={{{numbers}}}>"
    check(GroupNorm(), graph(shape, constants=constants).replace("groups=2", f"groups={groups}"))
