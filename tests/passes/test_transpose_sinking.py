"""Transposes that cancel or merge across other ops."""

from __future__ import annotations

from collections import Counter

import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.passes.transpose_chain import TransposeChain
from graphopt.passes.transpose_sinking import TransposeSinking
from graphopt.pipeline.base import RewritePass
from graphopt.testing import apply, assert_same_numbers, check, check_ignores, model_from_text

TO_LAST, TO_FIRST = "Transpose<perm=[0,2,3,1]>", "Transpose<perm=[0,3,1,2]>"
HEAD = "g (float[2,3,4,5] x) => (float[2,3,A,B] y)"


def together() -> RewritePass:
    """With the rewrite that composes adjacent Transposes, as in the pipeline."""
    return RewritePass("tested", (TransposeChain(), TransposeSinking()))


def transposes(model: ir.Model) -> int:
    return Counter(node.op_type for node in model.graph)["Transpose"]


def test_a_chain_between_two_that_cancel() -> None:
    check(
        TransposeSinking(),
        f"{HEAD} <float[3] b={{1,2,3}}, float s={{2}}> "
        f"{{ t = {TO_LAST}(x) a = Add(t, b) r = Relu(a) m = Mul(s, r) y = {TO_FIRST}(m) }}",
        f"{HEAD} <float[1,3,1,1] b={{1,2,3}}, float s={{2}}> {{ a = Add(x, b) r = Relu(a) y = Mul(s, r) }}",
        exact=True,
    )


def test_a_chain_between_two_that_merge() -> None:
    check(
        TransposeSinking(),
        f"g (float[2,3,4,5] x) => (float[A,B,C,D] y) {{ t = {TO_LAST}(x) r = Relu(t) y = {TO_LAST}(r) }}",
        "g (float[2,3,4,5] x) => (float[A,B,C,D] y) { r = Relu(x) y = Transpose<perm=[0,3,1,2]>(r) }",
        exact=True,
    )


def test_a_sum_of_two() -> None:
    head = "g (float[2,3,4,5] x, float[2,3,1,1] z) => (float[A,B,C,D] y)"
    check(
        TransposeSinking(),
        f"{head} {{ t = {TO_LAST}(x) u = {TO_LAST}(z) y = Add(t, u) }}",
        f"{head} {{ a = Add(x, z) y = {TO_LAST}(a) }}",
        exact=True,
    )


def test_a_residual_branch_in_channels_last() -> None:
    """What tf2onnx writes: each convolution between two Transposes, the sum outside of them."""
    head = "g (float[1,3,4,4] x) => (float[1,3,A,B] y)"
    weight = "<float[3,3,1,1] w={1,2,3,4,5,6,7,8,9}>"
    model = check(
        together(),
        f"{head} {weight} {{ t = {TO_LAST}(x) r = Relu(t) "
        f"p = {TO_FIRST}(r) c = Conv(p, w) q = {TO_LAST}(c) s = Add(r, q) k = {TO_FIRST}(s) y = Tanh(k) }}",
        f"{head} {weight} {{ r = Relu(x) c = Conv(r, w) k = Add(r, c) y = Tanh(k) }}",
        exact=True,
    )
    assert transposes(model) == 0


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ("r = ReduceMean<keepdims=0>(t, ax) y = Relu(r)", 0),
        ("r = ReduceMean(t, ax) s = Squeeze(r, ax) y = Relu(s)", 0),
        (f"r = Softmax(t) y = {TO_FIRST}(r)", 2),
        (f"r = Softmax<axis=2>(t) y = {TO_FIRST}(r)", 0),
        (f"r = Pad(t, pads) y = {TO_FIRST}(r)", 0),
        (f"r = Pad(t, pads2, v, ax) y = {TO_FIRST}(r)", 0),
        (f"r = Slice(t, one, three, two) y = {TO_FIRST}(r)", 0),
        (
            f"k, l = Split<axis=3, num_outputs=2>(t) a = {TO_FIRST}(k) b = {TO_FIRST}(l) y = Concat<axis=1>(b, a)",
            0,
        ),
        ("r = Concat<axis=-1>(t, t) y = ReduceSum<keepdims=0>(r, ax)", 0),
        ("r = Unsqueeze(t, one) y = Squeeze(r, one) ", 1),
        (f"r = Where(mask, t, v) y = {TO_FIRST}(r)", 0),
        (f"r = Cast<to=10>(t) q = {TO_FIRST}(r) y = Cast<to=1>(q)", 0),
    ],
)
def test_each_kind_of_op(body: str, wanted: int) -> None:
    constants = (
        "int64[2] ax={1,2}, int64[8] pads={0,1,0,0,0,2,1,0}, int64[4] pads2={1,0,0,2}, float v={7}, "
        "int64[1] one={1}, int64[1] two={2}, int64[1] three={3}, bool[5,1] mask={1,0,1,0,1}"
    )
    text = f"g (float[2,3,4,5] x) => (float y) <{constants}> {{ t = {TO_LAST}(x) {body} }}"
    before = _unshaped(text)
    after, _ = apply(together(), before)
    assert transposes(after) == wanted
    assert_same_numbers(before, after)


def _unshaped(text: str) -> ir.Model:
    """The model with the shape of its output inferred, not given."""
    model = model_from_text(text)
    model.graph.outputs[0].shape = None
    import onnx_ir.passes.common

    onnx_ir.passes.common.ShapeInferencePass()(model)
    return model


def test_an_unsqueeze_between_two_that_cancel() -> None:
    head = "g (float[2,3,5] x) => (float[2,3,5,1] y)"
    check(
        TransposeSinking(),
        f"{head} <int64[1] two={{2}}> "
        f"{{ t = Transpose<perm=[0,2,1]>(x) u = Unsqueeze(t, two) y = {TO_FIRST}(u) }}",
        f"{head} <int64[1] three={{3}}> {{ y = Unsqueeze(x, three) }}",
        exact=True,
    )


@pytest.mark.parametrize(
    "body",
    [
        f"t = {TO_LAST}(x) y = Relu(t)",
        f"t = {TO_LAST}(x) u = Transpose<perm=[0,2,1,3]>(z) k = Reshape(u, to) y = Add(t, k)",
        f"t = {TO_LAST}(x) k = Reshape(z, to) a = Add(t, k) y = {TO_FIRST}(a)",
        f"t = {TO_LAST}(x) r = Relu(t) a = Sigmoid(r) b = Exp(t) c = Add(a, b) d = Add(c, r) y = CumSum(d, axis)",
    ],
)
def test_ignores_what_does_not_pay(body: str) -> None:
    check_ignores(
        TransposeSinking(),
        "g (float[2,3,4,5] x, float[2,3,4,5] z) => (float[A,B,C,D] y) "
        f"<int64[4] to={{2,4,5,3}}, int64 axis={{0}}> {{ {body} }}",
    )


def test_a_value_read_by_two_keeps_a_transpose_and_no_more() -> None:
    text = (
        "g (float[2,3,4,5] x) => (float[2,3,A,B] y, float[2,C,D,E] z) "
        f"{{ t = {TO_LAST}(x) r = Relu(t) y = {TO_FIRST}(r) z = CumSum(r, axis) }}"
    ).replace(") {", ") <int64 axis={1}> {", 1)
    model = check(TransposeSinking(), text, exact=True)
    assert transposes(model) == 1


def test_an_output_of_the_graph_keeps_its_name() -> None:
    head = "g (float[2,3,4,5] x) => (float[2,3,A,B] y, float[2,C,D,E] r)"
    model = check(
        TransposeSinking(), f"{head} {{ t = {TO_LAST}(x) r = Relu(t) y = {TO_FIRST}(r) }}", exact=True
    )
    assert transposes(model) == 1


def test_a_value_read_before_another_leaf_is_made_stays() -> None:
    """The sum reads two Transposes; one of its operands is read earlier, where the other does not exist yet."""
    check_ignores(
        TransposeSinking(),
        "g (float[2,3,4,5] x) => (float[2,3,A,B] y, float[C,D,E,F] z) <int64 axis={1}> "
        f"{{ t = {TO_LAST}(x) r = Relu(t) k = CumSum(r, axis) z = Tanh(k) q = {TO_FIRST}(k) "
        f"u = {TO_LAST}(q) s = Add(r, u) h = CumSum(s, axis) y = {TO_FIRST}(h) }}",
    )


def test_a_bound_that_is_computed_later_stays_outside() -> None:
    check_ignores(
        TransposeSinking(),
        "g (float[2,3,4,5] x, float m) => (float[2,3,A,B] y) "
        f"{{ t = {TO_LAST}(x) low = Neg(m) c = Clip(t, low) y = {TO_FIRST}(c) }}",
    )


def test_shapes_inside_are_those_of_the_new_order() -> None:
    model = check(
        TransposeSinking(), f"{HEAD} {{ t = {TO_LAST}(x) r = Relu(t) s = Exp(r) y = {TO_FIRST}(s) }}"
    )
    inner = next(node for node in model.graph if node.op_type == "Relu").outputs[0]
    assert inner.shape == [2, 3, 4, 5]


@given(
    st.lists(
        st.sampled_from(
            [
                "Relu",
                "Add1",
                "AddC",
                "AddSelf",
                "Mul",
                "Softmax",
                "Pad",
                "T",
                "T",
                "T",
                "Split",
                "Mean",
                "Concat",
                "Branch",
            ]
        ),
        min_size=2,
        max_size=9,
    ),
    st.lists(st.permutations([0, 1, 2]), min_size=9, max_size=9),
)
@settings(derandomize=True, deadline=None, max_examples=80)
def test_property(steps: list[str], perms: list[list[int]]) -> None:
    """Random chains and branches: never more Transposes, the same numbers, a fixed point."""
    lines, value, earlier, perm = [], "x", "x", iter(perms)
    for index, step in enumerate(steps):
        out = f"v{index}"
        if step == "T":
            lines.append(f"{out} = Transpose<perm={next(perm)}>({value})")
        elif step == "Branch":
            lines.append(f"{out}b = Sigmoid({value}) {out} = Mul({value}, {out}b)")
        else:
            lines.append(
                {
                    "Relu": f"{out} = Relu({value})",
                    "Add1": f"{out} = Add({value}, c1)",
                    "AddC": f"{out} = Add(c2, {value})",
                    "AddSelf": f"{out} = Add({value}, {earlier})",
                    "Mul": f"{out} = Mul({value}, {value})",
                    "Softmax": f"{out} = Softmax<axis={index % 3}>({value})",
                    "Pad": f"{out}p = Pad({value}, p) {out} = Slice({out}p, z, three, ax)",
                    "Split": f"{out}a, {out}b = Split<axis={index % 3}>({value}, parts) "
                    f"{out} = Concat<axis={index % 3}>({out}b, {out}a)",
                    "Mean": f"{out}m = ReduceMean({value}, ax) {out} = Sub({value}, {out}m)",
                    "Concat": f"{out}c = Concat<axis=1>({value}, {value}) {out} = Slice({out}c, z, three, ax)",
                }[step]
            )
        if index % 3 == 0:
            earlier = value
        value = out
    lines.append(f"y = Neg({value})")
    text = (
        "g (float[3,3,3] x) => (float[3,3,3] y) <float[3] c1={1,2,3}, float[3,1] c2={4,5,6}, int64[2] parts={1,2}, "
        f"int64[6] p={{0,0,0,0,1,0}}, int64[1] z={{0}}, int64[1] three={{3}}, int64[1] ax={{1}}> "
        f"{{ {' '.join(lines)} }}"
    )
    before = model_from_text(text)
    after, _ = apply(together(), text)
    assert_same_numbers(before, after)
    after, log = apply(TransposeSinking(), text)
    assert transposes(after) <= transposes(before) - len(log.applied)
    assert_same_numbers(before, after)
    again, more = apply(TransposeSinking(), after)
    assert not more.applied, again
