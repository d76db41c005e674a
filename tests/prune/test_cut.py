"""Cutting against masking: a model without some channels computes what it does with zeros in their place."""

from __future__ import annotations

from typing import Any

import hypothesis
import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from graphopt.capture import capture
from graphopt.ir import check, facts, shapes
from graphopt.prune.choose import choices, spared
from graphopt.prune.cut import cut
from graphopt.prune.labels import PINNED
from graphopt.prune.structure import Structure, analyse, separate
from graphopt.testing import model_from_text, run
from tests.prune._masked import masked

TOLERANCE = 2e-5
"""Of the largest number: sums in another order, in nets of a few layers."""


def random_weights(model: ir.Model, seed: int = 0) -> ir.Model:
    """Give every float constant of more than one element random numbers."""
    rng = np.random.default_rng(seed)
    for value in model.graph.initializers.values():
        dims = facts.static_dims(value)
        if facts.is_float(value) and dims and np.prod(dims) > 1:
            scale = 1 / np.sqrt(max(np.prod(dims[1:]), 1))
            array = (rng.standard_normal(dims) * scale).astype(np.float32)
            value.const_value = ir.tensor(
                np.abs(array) + 0.1 if "var" in (value.name or "") else array, name=value.name
            )
    return model


def drawn(structure: Structure, seed: int, share: float = 0.4) -> list[int]:
    """About this share of what may be removed, drawn at random; groups of convolutions lose as many each."""
    scores = np.random.default_rng(seed).random(len(structure.classes))
    return [
        one
        for choice in choices(structure, scores, 1, structure.groups)
        for one in choice.removed(max(choice.step, choice.rounded(share)))
    ]


def check_cut(model: ir.Model, feeds: dict[str, Any], seed: int = 0) -> tuple[ir.Model, Structure]:
    """Cut at random and compare with masking; returns the result and what was found."""
    shapes.infer(model)
    model = separate(model)
    structure = analyse(model)
    removed = drawn(structure, seed)
    pruned = cut(model, structure, removed)
    shapes.infer(pruned)
    check.check(pruned)
    wanted, got = run(masked(model, structure, removed), feeds), run(pruned, feeds)
    for name, array in wanted.items():
        assert got[name].shape == array.shape
        scale = max(float(np.abs(array).max()), 1e-3)
        np.testing.assert_allclose(got[name] / scale, array / scale, atol=TOLERANCE)
    return pruned, structure


def widths(model: ir.Model) -> dict[str, tuple[int, ...]]:
    return {
        node.name or "": facts.static_dims(node.inputs[1]) or ()
        for node in model.graph
        if len(node.inputs) > 1
    }


X = np.random.default_rng(1).standard_normal((2, 3, 8, 8)).astype(np.float32)

CASES = {
    "a chain": (
        "float[N,8,3,3] a, float[8] ab, float[6,8,1,1] b",
        "p = Conv <pads=[1,1,1,1]> (x, a, ab) q = Relu(p) y = Conv(q, b)",
        {"a": (8, 3, 3, 3), "ab": (8,), "b": (6, 8, 1, 1)},
        1,
    ),
    "a residual": (
        "",
        """p = Conv <pads=[1,1,1,1]> (x, a) q = Relu(p) r = Conv <pads=[1,1,1,1]> (q, b) s = Add(p, r)
           y = Conv(s, c)""",
        {"a": (8, 3, 3, 3), "b": (8, 8, 3, 3), "c": (4, 8, 1, 1)},
        1,
    ),
    "batch norm, depthwise, squeeze and excitation": (
        "",
        """p = Conv <pads=[1,1,1,1]> (x, a) n = BatchNormalization(p, scale, shift, mean, var) h = HardSwish(n)
           d = Conv <pads=[1,1,1,1], group=8> (h, w) g = GlobalAveragePool(d) e = Conv(g, f) k = Relu(e)
           u = Conv(k, v) t = Sigmoid(u) m = Mul(d, t) y = Conv(m, c)""",
        {"a": (8, 3, 3, 3), "scale": (8,), "shift": (8,), "mean": (8,), "var": (8,), "w": (8, 1, 3, 3),
         "f": (4, 8, 1, 1), "v": (8, 4, 1, 1), "c": (4, 8, 1, 1)},
        2,
    ),
    "concat, split, slice, pad of channels": (
        "int64[2] parts = {6, 6}, int64[1] one = {1}, int64[1] end = {5}, int64[8] pads = {0, 2, 0, 0, 0, 1, 0, 0}",
        """p = Conv(x, a) q = Conv(x, b) j = Concat <axis=1> (p, q) s, t = Split <axis=1> (j, parts)
           u = Slice(s, one, end, one) v = Pad(u, pads) k = Conv(v, c) l = Conv(t, d) y = Add(k, l)""",
        {"a": (4, 3, 1, 1), "b": (8, 3, 1, 1), "c": (4, 7, 1, 1), "d": (4, 6, 1, 1)},
        2,
    ),
    "flatten to a product": (
        "",
        "p = Conv <strides=[4,4]> (x, a) q = Relu(p) f = Flatten(q) g = Gemm <transB=1> (f, w, b) r = Relu(g) y = MatMul(r, v)",
        {"a": (6, 3, 4, 4), "w": (10, 24), "b": (10,), "v": (10, 4)},
        2,
    ),
    "groups with a shuffle": (
        "int64[5] split = {0, 3, 4, 8, 8}, int64[4] join = {0, 12, 8, 8}",
        """p = Conv(x, a) q = Conv <group=3> (p, b) r = Reshape(q, split) s = Transpose <perm=[0,2,1,3,4]> (r)
           t = Reshape(s, join) u = Conv <group=3> (t, c) y = Conv(u, d)""",
        {"a": (12, 3, 1, 1), "b": (12, 4, 1, 1), "c": (6, 4, 1, 1), "d": (4, 6, 1, 1)},
        3,
    ),
    "transposed convolutions and pixel shuffle": (
        "",
        """p = Conv(x, a) q = ConvTranspose <strides=[2,2]> (p, b, bb) r = Conv(q, c) s = DepthToSpace <blocksize=2> (r)
           t = Relu(s) y = Conv(t, d)""",
        {"a": (6, 3, 1, 1), "b": (6, 4, 2, 2), "bb": (4,), "c": (16, 4, 1, 1), "d": (2, 4, 1, 1)},
        3,
    ),
    "normalization of channels and of groups": (
        "",
        """p = Conv(x, a) i = InstanceNormalization(p, s, b) q = Conv(i, c) g = GroupNormalization <num_groups=4> (q, t, u)
           r = PRelu(g, slope) y = Conv(r, d)""",
        {"a": (6, 3, 1, 1), "s": (6,), "b": (6,), "c": (8, 6, 1, 1), "t": (8,), "u": (8,), "slope": (8, 1, 1),
         "d": (4, 8, 1, 1)},
        2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_what_is_left_computes_what_masking_does(name: str, seed: int) -> None:
    constants, body, arrays, groups = CASES[name]
    known = constants if "=" in constants else ""
    declared = ", ".join(
        [
            *([known] if known else []),
            *(f"float[{','.join(map(str, dims))}] {key} = {{0}}" for key, dims in arrays.items()),
        ]
    )
    model = random_weights(
        model_from_text(
            f"g (float[N,3,8,8] x) => (float[N,C,H,W] y) <{declared}> {{ {body} }}"
            if "flatten" not in name
            else f"g (float[N,3,8,8] x) => (float[N,4] y) <{declared}> {{ {body} }}"
        )
    )
    pruned, structure = check_cut(model, {"x": X}, seed)
    assert len(structure.groups) == groups
    assert sum(np.prod(dims) for dims in widths(pruned).values()) < sum(
        np.prod(dims) for dims in widths(model).values()
    )


def test_heads_go_as_a_whole() -> None:
    model = random_weights(model_from_text(
        """
        g (float[N,5,12] x) => (float[N,5,12] y)
        <float[12,36] w = {0}, float[36] b = {0}, float[12,12] o = {0}, int64[5] split = {0, 5, 3, 4, 3},
         int64[3] join = {0, 5, 12}, int64 i0 = {0}, int64 i1 = {1}, int64 i2 = {2}, float scale = {0.5}>
        {
          p = MatMul(x, w) q = Add(p, b) r = Reshape(q, split) t = Transpose <perm=[2,0,3,1,4]> (r)
          k0 = Gather <axis=0> (t, i0) k1 = Gather <axis=0> (t, i1) k2 = Gather <axis=0> (t, i2)
          kt = Transpose <perm=[0,1,3,2]> (k1) s = MatMul(k0, kt) m = Mul(s, scale) a = Softmax(m)
          c = MatMul(a, k2) d = Transpose <perm=[0,2,1,3]> (c) e = Reshape(d, join) y = MatMul(e, o)
        }
        """
    ))  # fmt: skip
    x = np.random.default_rng(0).standard_normal((2, 5, 12)).astype(np.float32)
    pruned, structure = check_cut(model, {"x": x})
    assert [(len(group.classes), group.size) for group in structure.groups] == [(4, 9)]
    outputs = next(node for node in pruned.graph if node.name == model.graph[-1].name)
    assert facts.static_dims(outputs.inputs[1]) == (6, 12)


@pytest.mark.parametrize("kv", [4, 2, 1])
def test_heads_of_an_attention_that_is_one_operator(kv: int) -> None:
    model = random_weights(model_from_text(
        f"""
        g (float[N,5,8] x) => (float[N,5,8] y)
        <float[8,16] q = {{0}}, float[8,{4 * kv}] k = {{0}}, float[8,{4 * kv}] v = {{0}}, float[16,8] o = {{0}}>
        {{
          a = MatMul(x, q) b = MatMul(x, k) c = MatMul(x, v)
          d = Attention <q_num_heads=4, kv_num_heads={kv}> (a, b, c) y = MatMul(d, o)
        }}
        """
    ))  # fmt: skip
    x = np.random.default_rng(0).standard_normal((2, 5, 8)).astype(np.float32)
    pruned, structure = check_cut(model, {"x": x})
    # One head of keys and values stays; the heads of queries that share it go one by one.
    assert [len(group.classes) for group in structure.groups] == [kv if kv > 1 else 4]
    attention = next(node for node in pruned.graph if node.op_type == "Attention")
    assert facts.attribute(attention, "q_num_heads") < 4
    assert facts.attribute(attention, "kv_num_heads") < kv or kv == 1


@pytest.mark.parametrize(("kind", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
def test_hidden_units(kind: str, gates: int, direction: str) -> None:
    count = 2 if direction == "bidirectional" else 1
    model = random_weights(model_from_text(
        f"""
        g (float[5,N,6] x) => (float[5,{count},N,3] y)
        <float[{count},{8 * gates},6] w = {{0}}, float[{count},{8 * gates},8] r = {{0}},
         float[{count},{16 * gates}] b = {{0}}, float[8,3] o = {{0}}>
        {{ h = {kind} <hidden_size=8, direction="{direction}"> (x, w, r, b) y = MatMul(h, o) }}
        """
    ))  # fmt: skip
    x = np.random.default_rng(0).standard_normal((5, 2, 6)).astype(np.float32)
    pruned, structure = check_cut(model, {"x": x})
    assert [len(group.classes) for group in structure.groups] == [8]
    assert facts.attribute(pruned.graph[0], "hidden_size") < 8


def test_a_shape_that_is_joined_of_what_is_computed_is_mended() -> None:
    model = random_weights(model_from_text(
        """
        g (float[N,S,6] x) => (float[N,S,5] y)
        <float[6,8] w = {0}, float[8,5] v = {0}, int64[1] eight = {8}>
        { p = MatMul(x, w) n = Shape <start=0, end=2> (x) t = Concat <axis=0> (n, eight) q = Reshape(p, t)
          r = Relu(q) y = MatMul(r, v) }
        """
    ))  # fmt: skip
    for sizes in ((2, 3), (1, 7)):
        x = np.random.default_rng(0).standard_normal((*sizes, 6)).astype(np.float32)
        pruned, structure = check_cut(model, {"x": x})
        assert len(structure.groups) == 1
        assert any(node.op_type == "Concat" and node.name.endswith("pruned_shape_1") for node in pruned.graph)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("p = Conv(x, a) y = Softmax <axis=1> (p)", "Softmax is over all of them"),
        ("p = Conv(x, a) y = LRN <size=3> (p)", "LRN is over its neighbours"),
        ("y = Conv(x, a)", "is an output of the model"),
        ("p = Conv(x, a) m = ReduceMean(p, one) y = Identity(m)", "ReduceMean is over all of them"),
        ("p = Conv(x, a) s = Shape(p) f = Cast <to=1> (s) y = Mul(p, f)", "its size is computed with"),
        ('p = Conv(x, a) y = Einsum <equation="nchw->nhwc"> (p)', "Einsum may not read fewer of them"),
    ],
)
def test_what_may_not_be_removed_is_told_with_the_node(body: str, reason: str) -> None:
    model = model_from_text(
        f"g (float[2,3,4,4] x) => (float[A,B,C,D] y) <float[4,3,1,1] a = {{0}}, int64[1] one = {{1}}> {{ {body} }}"
    )
    shapes.infer(model)
    structure = analyse(model)
    assert not structure.groups and reason in next(iter(structure.refused.values()))


def test_layers_that_share_a_weight_are_pruned_apart() -> None:
    model = random_weights(model_from_text(
        """
        g (float[N,4,8,8] x) => (float[N,2,8,8] y) <float[4,4,1,1] a = {0}, float[2,4,1,1] b = {0}>
        { p = Conv(x, a) q = Relu(p) r = Conv(q, a) s = Relu(r) y = Conv(s, b) }
        """
    ))  # fmt: skip
    shapes.infer(model)
    assert not analyse(model).groups
    x = np.random.default_rng(0).standard_normal((1, 4, 8, 8)).astype(np.float32)
    _, structure = check_cut(model, {"x": x})
    assert len(structure.groups) == 2


class Nets:
    """Random nets of convolutions with branches that meet again in every way there is."""

    def __init__(self, draw: Any) -> None:
        self.draw = draw
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self.rng = np.random.default_rng(draw(st.integers(0, 99)))

    def name(self) -> str:
        return f"v{len(self.nodes)}"

    def add(self, op: str, inputs: list[str], outputs: int = 1, **attributes: Any) -> list[str]:
        made = [f"{self.name()}_{index}" for index in range(outputs)]
        self.nodes.append(helper.make_node(op, inputs, made, name=self.name(), **attributes))
        return made

    def constant(self, array: np.ndarray) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def conv(self, value: str, channels: int, out: int, groups: int = 1, kernel: int = 1) -> str:
        weight = self.rng.standard_normal((out, channels // groups, kernel, kernel)).astype(np.float32)
        operands = [
            value,
            self.constant((weight / np.sqrt(channels // groups * kernel**2)).astype(np.float32)),
        ]
        if self.draw(st.booleans()):
            operands.append(self.constant(self.rng.standard_normal(out).astype(np.float32)))
        return self.add("Conv", operands, group=groups, pads=[kernel // 2] * 4)[0]

    def block(self, value: str, channels: int) -> tuple[str, int]:
        kind = self.draw(
            st.sampled_from(["conv", "depthwise", "residual", "concat", "split", "groups", "shuffle", "gate"])
        )
        if kind == "conv":
            out = self.draw(st.sampled_from([4, 6, 8, 12]))
            return self.add(
                "Relu", [self.conv(value, channels, out, kernel=self.draw(st.sampled_from([1, 3])))]
            )[0], out
        if kind == "depthwise":
            return self.conv(value, channels, channels, groups=channels, kernel=3), channels
        if kind == "residual":
            inner = self.add("Tanh", [self.conv(value, channels, 6)])[0]
            return self.add("Add", [value, self.conv(inner, 6, channels)])[0], channels
        if kind == "concat":
            other = self.add("Sigmoid", [self.conv(value, channels, 4)])[0]
            return self.add("Concat", [value, other], axis=1)[0], channels + 4
        if kind == "split" and channels > 4:
            sizes = self.constant(np.array([3, channels - 3], np.int64))
            first, second = self.add("Split", [value, sizes], 2, axis=1)
            return self.add("Add", [self.conv(first, 3, 6), self.conv(second, channels - 3, 6)])[0], 6
        if kind == "groups" and channels % 2 == 0:
            return self.conv(value, channels, 8, groups=2), 8
        if kind == "shuffle" and channels % 2 == 0:
            parted = self.constant(np.array([0, 2, channels // 2, 5, 5], np.int64))
            joined = self.constant(np.array([0, channels, 5, 5], np.int64))
            turned = self.add("Transpose", self.add("Reshape", [value, parted]), perm=[0, 2, 1, 3, 4])[0]
            return self.add("Reshape", [turned, joined])[0], channels
        pooled = self.add("GlobalAveragePool", [value])[0]
        gate = self.conv(self.add("Relu", [self.conv(pooled, channels, 4)])[0], 4, channels)
        return self.add("Mul", [value, self.add("Sigmoid", [gate])[0]])[0], channels

    def build(self, blocks: int) -> Any:
        value, channels = self.conv("x", 3, 8, kernel=3), 8
        for _ in range(blocks):
            value, channels = self.block(value, channels)
        self.conv(value, channels, 2)
        result = self.nodes[-1].output[0]
        graph = helper.make_graph(
            self.nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 5, 5])],
            [helper.make_tensor_value_info(result, TensorProto.FLOAT, ["N", 2, 5, 5])], self.weights,
        )  # fmt: skip
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@hypothesis.given(st.data(), st.integers(1, 6), st.integers(0, 3))
@hypothesis.settings(max_examples=60, deadline=None)
def test_any_net_without_channels_is_the_net_with_zeros(data: st.DataObject, blocks: int, seed: int) -> None:
    model = capture(Nets(data.draw).build(blocks)).model
    for batch in (1, 3):
        x = np.random.default_rng(seed).standard_normal((batch, 3, 5, 5)).astype(np.float32)
        _, structure = check_cut(model, {"x": x}, seed)
        assert all(PINNED not in group.classes for group in structure.groups)


def body(
    inputs: str, outputs: str, weights: dict[str, tuple[int, ...]], text: str, more: str = ""
) -> ir.Model:
    declared = [f"float[{','.join(map(str, dims))}] {name} = {{0}}" for name, dims in weights.items()]
    model = model_from_text(
        f"g ({inputs}) => ({outputs}) <{', '.join([*declared, *([more] if more else [])])}> {{ {text} }}"
    )
    return random_weights(model)


MIXED = {
    "a window over what a product made": (
        "float[N,3,8] x", "float[N,2,6] y", {"w": (8, 6), "c": (2, 3, 3)},
        "p = MatMul(x, w) q = Relu(p) y = Conv <pads=[1,1]> (q, c)", "", "Conv mixes them",
    ),
    "a mean over what a product made": (
        "float[N,3,8] x", "float[N,2] y", {"w": (8, 6), "c": (3, 2)},
        "p = MatMul(x, w) q = GlobalAveragePool(p) r = Flatten(q) y = MatMul(r, c)", "", "GlobalAveragePool mixes them",
    ),
    "queries against keys": (
        "float[N,5,8] x", "float[N,5,5] y", {"a": (8, 6), "b": (8, 6)},
        "q = MatMul(x, a) k = MatMul(x, b) t = Transpose <perm=[0,2,1]> (k) y = MatMul(q, t)", "", "MatMul mixes them",
    ),
    "weights in batches": (
        "float[2,3,8] x", "float[2,3,4] y", {"a": (8, 6), "b": (2, 6, 4)},
        "p = MatMul(x, a) q = Relu(p) y = MatMul(q, b)", "", "MatMul mixes them",
    ),
    "maps that are split and multiplied with all channels": (
        "float[N,3,4,4] x", "float[N,2,4,4] y", {"a": (6, 3, 1, 1), "h": (2, 3, 1, 1), "c": (2, 6, 1, 1)},
        """p = Conv(x, a) g = Conv(x, h) s, t = Split <axis=1> (g, one) m = Mul(p, s) n = Mul(m, t) y = Conv(n, c)""",
        "int64[2] one = {1, 1}", "it is repeated along this axis",
    ),
    "indices of a pool": (
        "float[N,3,4,4] x", "float[N,2,2,2] y", {"a": (6, 3, 1, 1), "c": (2, 6, 1, 1)},
        """p = Conv(x, a) m, i = MaxPool <kernel_shape=[2,2], strides=[2,2]> (p) f = Cast <to=1> (i) s = Add(m, f)
           y = Conv(s, c)""",
        "", "its indices count channels",
    ),
    "a single number": (
        "float[1,4] x", "float y", {"a": (4, 6), "b": (6, 1)}, "p = MatMul(x, a) q = MatMul(p, b) y = Reshape(q, none)",
        "int64[0] none = {}", "it becomes a single number",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MIXED)
def test_what_is_mixed_with_the_rest_stays(name: str) -> None:
    inputs, outputs, weights, text, more, reason = MIXED[name]
    model = body(inputs, outputs, weights, text, more)
    dims = [2 if size == "N" else int(size) for size in inputs[6 : inputs.index("]")].split(",")]
    x = np.random.default_rng(0).standard_normal(dims).astype(np.float32)
    _, structure = check_cut(model, {"x": x})
    assert any(reason in text for text in structure.refused.values()), structure.refused


OPEN = {
    "rows joined before a product": ("float[N,S,6] x", "p = MatMul(x, a) r = Reshape(p, t) y = MatMul(r, b)", "int64[2] t = {-1, 8}", (2, 3, 6)),
    "a vector that becomes an image": (
        "float[N,6] x", "p = MatMul(x, a) r = Reshape(p, t) s = Relu(r) f = Flatten(s) y = MatMul(f, b)",
        "int64[4] t = {-1, 8, 1, 1}", (3, 6),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OPEN)
def test_sizes_that_are_not_known_beside_it_do_no_harm(name: str) -> None:
    inputs, text, more, dims = OPEN[name]
    model = body(inputs, "float[A,B] y", {"a": (6, 8), "b": (8, 2)}, text, more)
    x = np.random.default_rng(0).standard_normal(dims).astype(np.float32)
    _, structure = check_cut(model, {"x": x})
    assert len(structure.groups) == 1


def test_no_axis_loses_all_it_has() -> None:
    model = body(
        "float[N,3,4,4] x", "float[N,2,4,4] y",
        {"a": (12, 3, 1, 1), "c": (2, 1, 1, 1), "d": (2, 12, 1, 1)},
        "p = Conv(x, a) s, t = Split <axis=1> (p, parts) k = Conv <group=2> (s, c) j = Concat <axis=1> (k, t) y = Conv(j, d)",
        "int64[2] parts = {2, 10}",
    )  # fmt: skip
    model = separate(model)
    shapes.infer(model)
    structure = analyse(model)
    ranks = np.ones(len(structure.classes))
    found = choices(structure, ranks, 1, structure.groups)
    everything = {one for choice in found for one in choice.removed(len(choice.units))}
    removed = spared(structure, ranks, found, everything)
    pruned = cut(model, structure, removed)
    shapes.infer(pruned)
    check.check(pruned)
    for node in pruned.graph:
        for value in (*node.inputs, *node.outputs):
            assert 0 not in (facts.dims(value) or ())


def test_a_pruned_graph_is_pruned_again() -> None:
    model = body(
        "float[N,3,4,4] x", "float[N,2,4,4] y", {"a": (12, 3, 1, 1), "b": (2, 6, 1, 1)},
        "p = Conv(x, a) q = Gather <axis=1> (p, some) r = Relu(q) y = Conv(r, b)", "int64[6] some = {1, 3, 5, 7, 9, 11}",
    )  # fmt: skip
    x = np.random.default_rng(0).standard_normal((1, 3, 4, 4)).astype(np.float32)
    once, _ = check_cut(model, {"x": x})
    check_cut(once, {"x": x}, seed=1)


COMPUTED = {
    "groups that read what stays": (
        "p = Conv(x, a) l = LRN <size=3> (p) q = Conv <group=2> (l, b) y = Conv(q, c)",
        {"a": (8, 3, 1, 1), "b": (8, 4, 1, 1), "c": (2, 8, 1, 1)}, "", 1,
    ),
    "normalization of groups in parts": (
        """p = Conv(x, a) r = Reshape(p, open) i = InstanceNormalization(r, ones, zeros) n = Shape(p) b = Reshape(i, n)
           s = Mul(b, scale) t = Add(s, shift) y = Conv(t, c)""",
        {"a": (8, 3, 1, 1), "scale": (8, 1, 1), "shift": (8, 1, 1), "c": (2, 8, 1, 1)},
        "int64[3] open = {0, 4, -1}, float[4] ones = {1, 1, 1, 1}, float[4] zeros = {0, 0, 0, 0}", 1,
    ),
    "sizes that come of sizes": (
        """p = Conv(x, a) s = SpaceToDepth <blocksize=1> (p) n = Shape(s) i = Gather(n, first) c0 = Gather(n, second) h = Gather(n, last)
           g = Div(c0, two) t = Concat <axis=0> (i, two, g, h) r = Reshape(s, t) q = Transpose <perm=[0,2,1,3,4]> (r)
           m = Mul(g, two) u = Concat <axis=0> (i, m, h) v = Reshape(q, u) y = Conv(v, c)""",
        {"a": (8, 3, 1, 1), "c": (2, 8, 1, 1)},
        "int64[1] first = {0}, int64[1] second = {1}, int64[2] last = {2, 3}, int64[1] two = {2}", 1,
    ),
    "resized to the size of another": (
        """p = Conv(x, a) q = MaxPool <kernel_shape=[2,2], strides=[2,2]> (p) r = Conv(q, b) n = Shape <start=0, end=2> (r)
           h = Shape <start=2> (p) s = Concat <axis=0> (n, h) z = Resize <mode="nearest"> (r, , , s) k = Concat <axis=1> (z, p)
           y = Conv(k, c)""",
        {"a": (8, 3, 1, 1), "b": (6, 8, 1, 1), "c": (2, 14, 1, 1)}, "", 2,
    ),
    "resized along axes": (
        """p = Conv(x, a) h = Shape <start=2> (x) q = MaxPool <kernel_shape=[2,2], strides=[2,2]> (p)
           z = Resize <mode="nearest", axes=[2,3]> (q, , , h) y = Conv(z, c)""",
        {"a": (8, 3, 1, 1), "c": (2, 8, 1, 1)}, "", 1,
    ),
    "padded along axes": (
        "p = Conv(x, a) q = Pad(p, pads, , axes) y = Conv(q, c)", {"a": (8, 3, 1, 1), "c": (2, 8, 1, 1)},
        "int64[4] pads = {1, 0, 2, 3}, int64[2] axes = {2, -1}", 1,
    ),
    "channels padded along axes": (
        "p = Conv(x, a) q = Pad(p, pads, , axes) y = Conv(q, c)", {"a": (8, 3, 1, 1), "c": (2, 11, 1, 1)},
        "int64[2] pads = {1, 2}, int64[1] axes = {1}", 1,
    ),
    "padded by what is computed": (
        """p = Conv(x, a) h = Shape <start=2> (x) w = Mod(h, four) t = Concat <axis=0> (none, w) q = Pad(p, t) y = Conv(q, c)""",
        {"a": (8, 3, 1, 1), "c": (2, 8, 1, 1)}, "int64[6] none = {0, 0, 0, 0, 0, 0}, int64[1] four = {4}", 1,
    ),
    "cropped to what is computed": (
        """p = Conv <pads=[1,1,1,1]> (x, a) h = Shape <start=2> (x) e = Sub(h, one) r = Slice(p, ones, e, axes) y = Conv(r, c)""",
        {"a": (8, 3, 3, 3), "c": (2, 8, 1, 1)}, "int64[1] one = {1}, int64[2] ones = {1, 1}, int64[2] axes = {2, 3}", 1,
    ),
    "a gate through a view whose sizes are computed": (
        """p = Conv(x, a) g = GlobalAveragePool(p) n = Shape(p) i = Gather(n, i0) j = Gather(n, i1) u = Unsqueeze(i, i0v)
           v = Unsqueeze(j, i0v) t = Concat <axis=0> (u, v) f = Reshape(g, t) k = Gemm <transB=1> (f, w) r = Relu(k)
           l = Gemm <transB=1> (r, o) m = Sigmoid(l) s = Concat <axis=0> (u, v, one, one) q = Reshape(m, s) d = Mul(p, q)
           y = Conv(d, c)""",
        {"a": (8, 3, 1, 1), "w": (5, 8), "o": (8, 5), "c": (2, 8, 1, 1)},
        "int64 i0 = {0}, int64 i1 = {1}, int64[1] i0v = {0}, int64[1] one = {1}", 2,
    ),
    "pixels in one axis whose size is computed": (
        """p = Conv(x, a) n = Shape(p) i = Gather(n, first) h = Gather(n, third) w = Gather(n, fourth) m = Mul(h, w)
           t = Concat <axis=0> (i, eight, m) r = Reshape(p, t) s = Transpose <perm=[0,2,1]> (r) u = MatMul(s, o) v = Relu(u)
           z = MatMul(v, q) k = Transpose <perm=[0,2,1]> (z) b = Concat <axis=0> (i, two, h, w) y = Reshape(k, b)""",
        {"a": (8, 3, 1, 1), "o": (8, 6), "q": (6, 2)},
        "int64[1] first = {0}, int64[1] third = {2}, int64[1] fourth = {3}, int64[1] eight = {8}, int64[1] two = {2}", 2,
    ),
    "rows and pixels in one axis, and back": (
        """p = Conv(x, a) t = Transpose <perm=[0,2,3,1]> (p) r = Reshape(t, flat) g = Gemm <transB=1> (r, o) n = Shape(p)
           i = Gather(n, first) h = Gather(n, third) w = Gather(n, fourth) s = Concat <axis=0> (i, h, w, six) b = Reshape(g, s)
           u = Relu(b) v = Transpose <perm=[0,3,1,2]> (u) y = Conv(v, c)""",
        {"a": (8, 3, 1, 1), "o": (6, 8), "c": (2, 6, 1, 1)},
        """int64[2] flat = {-1, 8}, int64[1] first = {0}, int64[1] third = {2}, int64[1] fourth = {3}, int64[1] six = {6}""", 2,
    ),
    "zeros beside channels": (
        """p = Conv(x, a) n = Shape(p) i = Gather(n, first) h = Gather(n, last) s = Concat <axis=0> (i, three, h) z = ConstantOfShape(s)
           k = Concat <axis=1> (p, z) q = Conv(x, b) r = Add(k, q) y = Conv(r, c)""",
        {"a": (8, 3, 1, 1), "b": (11, 3, 1, 1), "c": (2, 11, 1, 1)},
        "int64[1] first = {0}, int64[2] last = {2, 3}, int64[1] three = {3}", 1,
    ),
    "one map for all channels": (
        """p = Conv(x, a) m = Conv(x, b) n = Shape(p) e = Expand(m, n) r = Mul(p, e) y = Conv(r, c)""",
        {"a": (8, 3, 1, 1), "b": (1, 3, 1, 1), "c": (2, 8, 1, 1)}, "", 1,
    ),
    "channels one behind the other": (
        "p = Conv(x, a) t = Tile(p, twice) y = Conv(t, c)", {"a": (6, 3, 1, 1), "c": (2, 12, 1, 1)},
        "int64[4] twice = {1, 2, 1, 1}", 1,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", COMPUTED)
def test_sizes_that_are_computed(name: str) -> None:
    text, weights, more, groups = COMPUTED[name]
    model = body("float[N,3,H,W] x", "float[N,2,A,B] y", weights, text, more)
    for sizes in ((2, 8, 8), (1, 10, 6), (3, 9, 12)):
        x = np.random.default_rng(0).standard_normal((sizes[0], 3, *sizes[1:])).astype(np.float32)
        _, structure = check_cut(model, {"x": x})
        assert len(structure.groups) == groups, structure.refused


SEQUENCES = {
    "heads of all samples in one axis": (
        """a = MatMul(x, q) b = MatMul(x, k) c = MatMul(x, v) ta = Transpose <perm=[1,0,2]> (a) tb = Transpose <perm=[1,0,2]> (b)
           tc = Transpose <perm=[1,0,2]> (c) s = Shape(ta) l = Gather(s, i0) n = Gather(s, i1) m = Mul(n, four)
           e = Concat <axis=0> (l, m, four) ra = Reshape(ta, e) rb = Reshape(tb, open) rc = Reshape(tc, e)
           pa = Transpose <perm=[1,0,2]> (ra) pb = Transpose <perm=[1,2,0]> (rb) pc = Transpose <perm=[1,0,2]> (rc)
           w = MatMul(pa, pb) h = Mul(w, half) f = Softmax(h) g = MatMul(f, pc) u = Transpose <perm=[1,0,2]> (g)
           d = Mul(l, n) t = Concat <axis=0> (d, sixteen) z = Reshape(u, t) y0 = Gemm(z, o)
           j = Concat <axis=0> (l, n, eight) y1 = Reshape(y0, j) y = Transpose <perm=[1,0,2]> (y1)""",
        {"q": (8, 16), "k": (8, 16), "v": (8, 16), "o": (16, 8)},
        """int64[1] i0 = {0}, int64[1] i1 = {1}, int64[1] four = {4}, int64[1] sixteen = {16}, int64[1] eight = {8},
           int64[3] open = {0, -1, 4}, float half = {0.5}""", [(4, 4)],
    ),
    "heads of all samples that come apart again": (
        """a = MatMul(x, q) r = Reshape(a, split) t = Transpose <perm=[0,2,1,3]> (r) l = Shape <start=1, end=2> (x)
           e = Concat <axis=0> (minus, l, four) k = Reshape(t, e) u = Transpose <perm=[0,2,1]> (k) n = Shape <start=0, end=1> (x)
           d = Concat <axis=0> (n, four, four, l) v = Reshape(u, d) w = Relu(v) p = Transpose <perm=[0,3,1,2]> (w)
           z = Reshape(p, join) y = MatMul(z, o)""",
        {"q": (8, 16), "o": (16, 8)},
        "int64[1] minus = {-1}, int64[1] four = {4}, int64[4] split = {0, 0, 4, 4}, int64[3] join = {0, 0, 16}", [(4, 4)],
    ),
    "a bias for each head": (
        """a = MatMul(x, q) b = MatMul(x, k) c = MatMul(x, v) t = Shape <start=1, end=2> (x) e = Concat <axis=0> (four, t, t)
           m = Expand(bias, e) d = Attention <q_num_heads=4, kv_num_heads=4> (a, b, c, m) y = MatMul(d, o)""",
        {"q": (8, 16), "k": (8, 16), "v": (8, 16), "bias": (4, 1, 1), "o": (16, 8)}, "int64[1] four = {4}", [(4, 4)],
    ),
    "queries that share one head of keys and values": (
        """a = MatMul(x, q) b = MatMul(x, k) c = MatMul(x, v) d = Attention <q_num_heads=4, kv_num_heads=1> (a, b, c)
           y = MatMul(d, o)""",
        {"q": (8, 16), "k": (8, 4), "v": (8, 6), "o": (24, 8)}, "", [(4, 4)],
    ),
    "angles, heads in one axis": (
        """a = MatMul(x, q) b = MatMul(x, k) c = MatMul(x, v) p = Shape <start=0, end=1> (x) e = Concat <axis=0> (p, ones)
           s = Expand(cos, e) t = Expand(sin, e) f = RotaryEmbedding <num_heads=4> (a, s, t) g = RotaryEmbedding <num_heads=2> (b, s, t)
           d = Attention <q_num_heads=4, kv_num_heads=2> (f, g, c) y = MatMul(d, o)""",
        {"q": (8, 16), "k": (8, 8), "v": (8, 8), "cos": (1, 5, 2), "sin": (1, 5, 2), "o": (16, 8)}, "int64[2] ones = {1, 1}", [(2, 8)],
    ),
    "angles, heads in an axis of their own": (
        """a = MatMul(x, q) b = MatMul(x, k) c = MatMul(x, v) h = Reshape(a, split) i = Reshape(b, split) j = Reshape(c, split)
           l = Transpose <perm=[0,2,1,3]> (h) m = Transpose <perm=[0,2,1,3]> (i) n = Transpose <perm=[0,2,1,3]> (j)
           p = Shape <start=0, end=1> (x) e = Concat <axis=0> (p, ones) s = Expand(cos, e) t = Expand(sin, e)
           f = RotaryEmbedding (l, s, t) g = RotaryEmbedding (m, s, t) d = Attention (f, g, n)
           r = Transpose <perm=[0,2,1,3]> (d) u = Reshape(r, join) y = MatMul(u, o)""",
        {"q": (8, 16), "k": (8, 16), "v": (8, 16), "cos": (1, 5, 2), "sin": (1, 5, 2), "o": (16, 8)},
        "int64[2] ones = {1, 1}, int64[4] split = {0, 0, 4, 4}, int64[3] join = {0, 0, 16}", [(4, 4)],
    ),
    "one head of keys and values repeated": (
        """a = MatMul(x, q) b = MatMul(x, k) c = MatMul(x, v) h = Reshape(a, split) l = Transpose <perm=[0,2,1,3]> (h)
           i = Unsqueeze(b, i1) j = Unsqueeze(c, i1) p = Shape <start=0, end=2> (x) n0 = Gather(p, i0) n1 = Gather(p, i1)
           e = Concat <axis=0> (n0, four, n1, four) u = Expand(i, e) w = Expand(j, e) t = Transpose <perm=[0,1,3,2]> (u)
           s = MatMul(l, t) f = Softmax(s) g = MatMul(f, w) r = Transpose <perm=[0,2,1,3]> (g) z = Reshape(r, join) y = MatMul(z, o)""",
        {"q": (8, 16), "k": (8, 4), "v": (8, 4), "o": (16, 8)},
        "int64[1] i0 = {0}, int64[1] i1 = {1}, int64[1] four = {4}, int64[4] split = {0, 0, 4, 4}, int64[3] join = {0, 0, 16}", [(4, 4)],
    ),
    "heads of keys and values repeated": (
        """a = MatMul(x, q) b = MatMul(x, k) c = MatMul(x, v) h = Reshape(a, split) l = Transpose <perm=[0,2,1,3]> (h)
           i = Reshape(b, few) ti = Transpose <perm=[0,2,1,3]> (i) ui = Unsqueeze(ti, i2) j = Reshape(c, few) tj = Transpose <perm=[0,2,1,3]> (j)
           uj = Unsqueeze(tj, i2) n0 = Shape <start=0, end=1> (x) n1 = Shape <start=1, end=2> (x)
           e = Concat <axis=0> (n0, two, two, n1, four) u = Expand(ui, e) w = Expand(uj, e) m = Concat <axis=0> (n0, four, n1, four)
           ru = Reshape(u, m) rw = Reshape(w, m) t = Transpose <perm=[0,1,3,2]> (ru)
           s = MatMul(l, t) f = Softmax(s) g = MatMul(f, rw) r = Transpose <perm=[0,2,1,3]> (g) z = Reshape(r, join) y = MatMul(z, o)""",
        {"q": (8, 16), "k": (8, 8), "v": (8, 8), "o": (16, 8)},
        "int64[1] i2 = {2}, int64[1] two = {2}, int64[1] four = {4}, int64[4] split = {0, 0, 4, 4}, int64[4] few = {0, 0, 2, 4}, int64[3] join = {0, 0, 16}",
        [(2, 8)],
    ),
    "hidden units that begin at zero": (
        """t = Transpose <perm=[1,0,2]> (x) n = Shape <start=0, end=1> (x) s = Concat <axis=0> (one, n, six) z = ConstantOfShape(s)
           i = Expand(zero, s) h = LSTM <hidden_size=6> (t, w, r, b, , z, i, p) q = Squeeze(h, axis) k = MatMul(q, o) y = Transpose <perm=[1,0,2]> (k)""",
        {"w": (1, 24, 8), "r": (1, 24, 6), "b": (1, 48), "p": (1, 18), "o": (6, 8)},
        "int64[1] one = {1}, int64[1] six = {6}, int64[1] axis = {1}, float zero = {0.0}", [(6, 1)],
    ),
    "hidden units of sequences of some lengths": (
        """t = Transpose <perm=[1,0,2]> (x) n = Shape <start=0, end=1> (x) l = Expand(four, n) h = GRU <hidden_size=6> (t, w, r, b, l)
           q = Squeeze(h, axis) k = MatMul(q, o) y = Transpose <perm=[1,0,2]> (k)""",
        {"w": (1, 18, 8), "r": (1, 18, 6), "b": (1, 36), "o": (6, 8)}, "int32[1] four = {4}, int64[1] axis = {1}", [(6, 1)],
    ),
    "tokens that are picked": (
        """a = MatMul(x, q) m = ReduceMax(x, last) k, j = TopK <axis=1> (m, two) n = Shape <start=0, end=2> (j)
           e = Concat <axis=0> (n, six) s = Expand(j, e) g = GatherElements <axis=1> (a, s) y = MatMul(g, o)""",
        {"q": (8, 6), "o": (6, 8)}, "int64[1] two = {2}, int64[1] six = {6}, int64[1] last = {-1}", [(6, 1)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SEQUENCES)
def test_heads_and_units_of_sequences(name: str) -> None:
    text, weights, more, groups = SEQUENCES[name]
    model = body("float[N,S,8] x", "float[N,T,8] y", weights, text, more)
    for sizes in ((2, 5), (1, 5)) if "angles" in name else ((2, 5), (1, 9)):
        x = np.random.default_rng(0).standard_normal((*sizes, 8)).astype(np.float32)
        _, structure = check_cut(model, {"x": x})
        found = [(len(group.classes), group.size) for group in structure.groups]
        assert found == groups, structure.refused
