"""Chains of Reshape, Flatten, Squeeze and Unsqueeze."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from graphopt.passes.reshape_chain import ReshapeChain
from graphopt.testing import apply, assert_same_numbers, check, check_ignores, check_refuses, model_from_text

CONSTANTS = """<int64[2] s26={2,12}, int64[3] s234={2,3,4}, int64[1] flat={-1}, int64[2] keep={0,-1},
    int64[1] a0={0}, int64[1] a1={1}, int64[1] am={-1}, int64[3] split={0,0,-1}, int64[1] a3={3}>"""


@pytest.mark.parametrize(
    ("body", "after"),
    [
        ("a = Reshape(x, flat) y = Reshape(a, s26)", "y = Reshape(x, s26)"),
        ("a = Flatten(x) y = Reshape(a, s26)", "y = Reshape(x, s26)"),
        ("a = Unsqueeze(x, a0) y = Reshape(a, s26)", "y = Reshape(x, s26)"),
        ("a = Unsqueeze(x, a0) b = Flatten<axis=2>(a) y = Relu(b)", "a = Reshape(x, s26) y = Relu(a)"),
        ("a = Unsqueeze(x, a0) b = Squeeze(a, a0) y = Relu(b)", "y = Relu(x)"),
        ("a = Unsqueeze(x, a3) b = Squeeze(a, am) y = Relu(b)", "y = Relu(x)"),
        ("a = Reshape(x, flat) b = Reshape(a, s234) y = Relu(b)", "y = Relu(x)"),
    ],
)
def test_fires(body: str, after: str) -> None:
    dims = "[2,3,4]" if after == "y = Relu(x)" else "[2,12]"
    head = f"g (float[2,3,4] x) => (float{dims} y) {CONSTANTS}"
    check(ReshapeChain(), f"{head} {{ {body} }}", f"{head} {{ {after} }}", exact=True)


def test_the_batch_dimension_stays_dynamic() -> None:
    check(
        ReshapeChain(),
        f"g (float[N,3,4] x) => (float[N,12] y) {CONSTANTS} {{ a = Unsqueeze(x, a1) y = Flatten(a) }}",
        "g (float[N,3,4] x) => (float[N,12] y) <int64[2] s={0,12}> { y = Reshape(x, s) }",
        exact=True,
    )


def test_two_dynamic_dimensions() -> None:
    check(
        ReshapeChain(),
        f"g (float[N,M,3,4] x) => (float[N,M,12] y) {CONSTANTS} "
        "{ a = Unsqueeze(x, a3) b = Squeeze(a, a3) c = Relu(b) d = Unsqueeze(c, a3) y = Reshape(d, split) }",
        exact=True,
    )


def test_a_shared_inner_value_stays_for_its_other_readers() -> None:
    check(
        ReshapeChain(),
        f"g (float[2,3,4] x) => (float[2,12] y, float[24] z) {CONSTANTS} "
        "{ a = Reshape(x, flat) y = Reshape(a, s26) z = Relu(a) }",
        f"g (float[2,3,4] x) => (float[2,12] y, float[24] z) {CONSTANTS} "
        "{ a = Reshape(x, flat) y = Reshape(x, s26) z = Relu(a) }",
        exact=True,
    )


def test_refuses_what_no_constant_can_say() -> None:
    check_refuses(
        ReshapeChain(),
        "g (float[N,M] x, int64[1] s, int64[2] t) => (float[A,B] y) { a = Reshape(x, s) y = Reshape(a, t) }",
        "not known well enough",
    )
    check_refuses(
        ReshapeChain(),
        f"g (float[N,M] x, int64[2] s) => (float[A,B] y) {CONSTANTS} {{ a = Reshape(x, s) y = Reshape(a, keep) }}",
        "not known well enough",
    )


def test_ignores_other_operators() -> None:
    check_ignores(
        ReshapeChain(),
        f"g (float[2,3,4] x) => (float[2,12] y) {CONSTANTS} {{ a = Relu(x) y = Reshape(a, s26) }}",
    )


@hypothesis.settings(derandomize=True, deadline=None, max_examples=30)
@hypothesis.given(st.data())
def test_any_chain(data: st.DataObject) -> None:
    shape = [2, 3, 4]
    dynamic = data.draw(st.booleans())
    body, constants, current = [], [], "x"
    for step in range(data.draw(st.integers(2, 4))):
        op = data.draw(st.sampled_from(["Reshape", "Flatten", "Unsqueeze", "Squeeze"]))
        name = f"v{step}"
        if op == "Reshape":
            target = data.draw(st.sampled_from([[0, -1], [-1, 4], [2, 3, 4], [-1], [4, 6]]))
            hypothesis.assume(not dynamic or (2 not in target and target not in ([-1, 4], [-1], [4, 6])))
            total = int(np.prod(shape))
            known = [shape[i] if t == 0 else t for i, t in enumerate(target)]
            hypothesis.assume(total % abs(int(np.prod(known))) == 0)
            shape = [total // abs(int(np.prod(known))) if t == -1 else t for t in known]
            constants.append(f"int64[{len(target)}] c{step}={{{','.join(map(str, target))}}}")
            body.append(f"{name} = Reshape({current}, c{step})")
        elif op == "Flatten":
            axis = data.draw(st.integers(1, len(shape)))
            shape = [int(np.prod(shape[:axis])), int(np.prod(shape[axis:]))]
            body.append(f"{name} = Flatten<axis={axis}>({current})")
        elif op == "Unsqueeze":
            axis = data.draw(st.integers(0, len(shape)))
            shape.insert(axis, 1)
            constants.append(f"int64[1] c{step}={{{axis}}}")
            body.append(f"{name} = Unsqueeze({current}, c{step})")
        else:
            hypothesis.assume(1 in shape)
            axis = shape.index(1)
            shape.pop(axis)
            constants.append(f"int64[1] c{step}={{{axis}}}")
            body.append(f"{name} = Squeeze({current}, c{step})")
        current = name
    initializers = f"<{', '.join(constants)}>" if constants else ""
    first = "N" if dynamic else "2"
    text = (
        f"g (float[{first},3,4] x) => (float[{','.join('abcdefg'[: len(shape)])}] y) {initializers} "
        f"{{ {' '.join(body)} y = Relu({current}) }}"
    )
    model, _ = apply(ReshapeChain(), text)
    from graphopt.testing import random_feeds

    assert_same_numbers(model_from_text(text), model, random_feeds(model, {"N": 2}), exact=True)
