"""Attention in the decompositions of PyTorch, Hugging Face, timm, Paddle and Keras."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.ir import kernels
from graphopt.passes.attention import Attention
from graphopt.testing import apply, assert_same_numbers, check, check_ignores, check_refuses, model_from_text

CLOSED_ROWS = pytest.mark.onnxruntime("1.28", "makes zero of a row that Attention masks wholly")
QKV = "float[2,6,16] q, float[2,6,16] k, float[2,6,16] v"
CONSTANTS = "int64[4] split = {0,0,4,4}, int64[3] join = {0,0,16}, float half = {0.5}, float two = {2.0}, float root = {0.70710677}"
SPLIT = """
    q1 = Reshape(q, split) q4 = Transpose<perm=[0,2,1,3]>(q1)
    k1 = Reshape(k, split) kt = Transpose<perm=[0,2,3,1]>(k1)
    v1 = Reshape(v, split) v4 = Transpose<perm=[0,2,1,3]>(v1)
"""
HEADS_FIRST = SPLIT.replace("kt = Transpose<perm=[0,2,3,1]>", "k4 = Transpose<perm=[0,2,1,3]>")
JOIN = "t = Transpose<perm=[0,2,1,3]>(o) y = Reshape(t, join)"
PLAIN = "s = MatMul(q4, kt) d = Mul(s, half) p = Softmax<axis=-1>(d) o = MatMul(p, v4)"
MERGED = (
    f"g ({QKV}) => (float[2,6,16] y) {{ y = Attention<q_num_heads=4, kv_num_heads=4, scale=0.5>(q, k, v) }}"
)


def graph(
    body: str, *, inputs: str = QKV, constants: str = CONSTANTS, output: str = "float[2,6,16] y"
) -> str:
    return f"g ({inputs}) => ({output}) <{constants}> {{ {body} }}"


def kinds(before: str) -> list[str]:
    return [node.op_type for node in check(Attention(), before).graph]


@pytest.mark.parametrize(
    "scores",
    [
        "s = MatMul(q4, kt) d = Mul(s, half)",
        "s = MatMul(q4, kt) d = Div(s, two)",
        "qs = Mul(half, q4) d = MatMul(qs, kt)",
        "ks = Div(kt, two) d = MatMul(q4, ks)",
        "qs = Mul(q4, root) ks = Mul(kt, root) d = MatMul(qs, ks)",
    ],
)
@pytest.mark.parametrize(
    "guard", ["p = Softmax<axis=-1>(d)", "r = Softmax<axis=3>(d) n = IsNaN(r) p = Where(n, zero, r)"]
)
def test_fires_with_merged_heads(scores: str, guard: str) -> None:
    constants = f"{CONSTANTS}, float zero = {{0}}"
    check(
        Attention(), graph(f"{SPLIT} {scores} {guard} o = MatMul(p, v4) {JOIN}", constants=constants), MERGED
    )


def test_key_transposed_twice() -> None:
    body = f"{HEADS_FIRST} kt = Transpose<perm=[0,1,3,2]>(k4) {PLAIN} {JOIN}"
    check(Attention(), graph(body), MERGED)


def test_keeps_heads_first_where_the_reader_wants_them() -> None:
    found = kinds(graph(f"{SPLIT} {PLAIN} y = Relu(o)", output="float[2,4,6,4] y"))
    assert sorted(found) == ["Attention", "Relu", *["Reshape"] * 3, *["Transpose"] * 3]


def test_key_transposed_by_way_of_rank_3() -> None:
    constants = f"{CONSTANTS}, int64[3] r3 = {{-1,6,4}}, int64[4] r4 = {{2,4,4,6}}"
    body = f"""{HEADS_FIRST} k3 = Reshape(k4, r3) k5 = Transpose<perm=[0,2,1]>(k3) kt = Reshape(k5, r4)
        {PLAIN} {JOIN}"""
    check(Attention(), graph(body, constants=constants), MERGED)


def test_dynamic_sizes_of_pytorch() -> None:
    inputs = QKV.replace("2,6,16", "B,S,16")
    body = f"""
        shape = Shape(q) b = Slice(shape, i0, i1) n = Slice(shape, i1, i2) target = Concat<axis=0>(b, n, heads)
        {HEADS_FIRST.replace("split", "target")}
        ks = Shape(k4) last = Slice(ks, m1, far) before = Slice(ks, m2, m1) lead = Slice(ks, i0, i2)
        flat = Concat<axis=0>(m1, before, last) back = Concat<axis=0>(lead, last, before)
        k3 = Reshape(k4, flat) k5 = Transpose<perm=[0,2,1]>(k3) kt = Reshape(k5, back)
        {PLAIN} t = Transpose<perm=[0,2,1,3]>(o) end = Concat<axis=0>(b, n, m1) y = Reshape(t, end)"""
    numbers = "int64[1] i0={0}, int64[1] i1={1}, int64[1] i2={2}, int64[1] m1={-1}, int64[1] m2={-2}, int64[1] far={9999999}"
    constants = f"{CONSTANTS}, {numbers}, int64[2] heads={{-1,4}}"
    after = MERGED.replace("2,6,16", "B,S,16")
    check(Attention(), graph(body, inputs=inputs, constants=constants, output="float[B,S,16] y"), after)


PARTS = {
    "slices": "a = Slice(w, i0, i1, i0) b = Slice(w, i1, i2, i0) c = Slice(w, i2, i3, i0)",
    "split": "a, b, c = Split<axis=0>(w, ones)",
}


@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS.keys())
def test_packed_projection(parts: str) -> None:
    constants = """int64[5] five = {0,0,3,4,4}, int64[3] join = {0,0,16}, float half = {0.5}, int64[3] ones = {1,1,1},
        int64[1] i0={0}, int64[1] i1={1}, int64[1] i2={2}, int64[1] i3={3}"""
    body = f"""u = Reshape(x, five) w = Transpose<perm=[2,0,3,1,4]>(u) {parts}
        q4 = Squeeze(a, i0) k4 = Squeeze(b, i0) v4 = Squeeze(c, i0) kt = Transpose<perm=[0,1,3,2]>(k4) {PLAIN} {JOIN}"""
    check(
        Attention(),
        graph(body, inputs="float[B,S,48] x", constants=constants, output="float[B,S,16] y"),
        """g (float[B,S,48] x) => (float[B,S,16] y) <int64[3] s = {16,16,16}> {
            q, k, v = Split<axis=-1>(x, s) y = Attention<q_num_heads=4, kv_num_heads=4, scale=0.5>(q, k, v) }""",
    )


def test_packed_projection_by_gather() -> None:
    constants = "int64[5] five = {0,0,3,4,4}, int64[3] join = {0,0,16}, float half = {0.5}, int64 i0={0}, int64 i1={1}, int64 i2={-1}"
    body = f"""u = Reshape(x, five) w = Transpose<perm=[2,0,3,1,4]>(u)
        q4 = Gather(w, i0) k4 = Gather(w, i1) v4 = Gather(w, i2) kt = Transpose<perm=[0,1,3,2]>(k4) {PLAIN} {JOIN}"""
    before = graph(body, inputs="float[2,5,48] x", constants=constants, output="float[2,5,16] y")
    assert kinds(before) == ["Split", "Attention"]


@pytest.mark.parametrize("copy", ["Expand", "Tile"])
def test_groups_of_queries(copy: str) -> None:
    inputs = "float[2,6,16] q, float[2,6,8] k, float[2,6,8] v"
    constants = f"{CONSTANTS}, int64[4] few = {{0,0,2,4}}, int64[1] i2={{2}}, int64[5] copies={{1,1,2,1,1}}, int64[4] all={{2,4,6,4}}"
    body = f"""q1 = Reshape(q, split) q4 = Transpose<perm=[0,2,1,3]>(q1)
        k1 = Reshape(k, few) k2 = Transpose<perm=[0,2,1,3]>(k1) k3 = Unsqueeze(k2, i2) k4 = {copy}(k3, copies) k5 = Reshape(k4, all)
        v1 = Reshape(v, few) v2 = Transpose<perm=[0,2,1,3]>(v1) v3 = Unsqueeze(v2, i2) v5 = {copy}(v3, copies) v4 = Reshape(v5, all)
        kt = Transpose<perm=[0,1,3,2]>(k5) {PLAIN} {JOIN}"""
    after = f"g ({inputs}) => (float[2,6,16] y) {{ y = Attention<q_num_heads=4, kv_num_heads=2, scale=0.5>(q, k, v) }}"
    check(Attention(), graph(body, inputs=inputs, constants=constants), after)


def test_one_key_head_for_all_queries() -> None:
    inputs = "float[2,4,6,4] q4, float[2,1,4,5] kt0, float[2,1,5,4] v4"
    body = "k4 = Transpose<perm=[0,1,3,2]>(kt0) kt = Transpose<perm=[0,1,3,2]>(k4) " + PLAIN.replace(
        "o =", "y ="
    )
    assert "Attention" in kinds(graph(body, inputs=inputs, output="float[2,4,6,4] y"))


def test_without_heads() -> None:
    inputs = "float[N,6,8] q4, float[N,5,8] k, float[N,5,3] v4, float[N,6,5] m"
    body = """kt = Transpose<perm=[0,2,1]>(k) s = MatMul(q4, kt) d = Mul(s, half) e = Add(d, m) f = Add(e, m2)
        p = Softmax<axis=-1>(f) y = MatMul(p, v4)"""
    constants = "float half = {0.5}, float[6,5] m2 = {0,0,0,0,-1,0,0,0,-1,0,0,0,-1,0,0,0,0,0,0,-1,0,0,0,-1,0,0,0,-1,0,0}"
    before = graph(body, inputs=inputs, constants=constants, output="float[N,6,3] y")
    model, log = apply(Attention(), before)
    assert log.counts() == {"attention": 1}
    assert_same_numbers(model_from_text(before), model)


def test_softcap() -> None:
    body = f"{SPLIT} s = MatMul(q4, kt) c = Div(s, two) t0 = Tanh(c) d = Mul(t0, two) p = Softmax<axis=-1>(d) o = MatMul(p, v4) {JOIN}"
    after = MERGED.replace("scale=0.5", "scale=1.0, softcap=2.0")
    check(Attention(), graph(body), after)


def test_softmax_of_an_old_opset() -> None:
    scores = "s = MatMul(q4, kt) d = Mul(s, half) h = Shape(d) f = Flatten<axis=3>(d) r = Softmax<axis=-1>(f) p = Reshape(r, h)"
    check(Attention(), graph(f"{SPLIT} {scores} o = MatMul(p, v4) {JOIN}"), MERGED)


MASKED = f"{SPLIT} s = MatMul(q4, kt) d = Mul(s, half) {{}} p = Softmax<axis=-1>(e) o = MatMul(p, v4) {JOIN}"


@pytest.mark.parametrize(
    ("shape", "nodes"),
    [
        ("2,1,6,6", ["Cast", "Mul", "Max", "Attention"]),
        ("2,1,1,6", ["Cast", "Mul", "Max", "Expand", "Attention"]),
        ("6,6", ["Cast", "Mul", "Max", "Attention"]),
        ("1,4,6,6", ["Cast", "Mul", "Max", "Attention"]),
        ("6", ["Cast", "Mul", "Max", "Expand", "Attention"]),
        ("1,1", ["Cast", "Mul", "Max", "Expand", "Attention"]),
    ],
)
def test_finite_additive_mask(shape: str, nodes: list[str]) -> None:
    """1 for a padded token, times the lowest number: also a row that is masked wholly keeps its numbers."""
    body = MASKED.format("c = Cast<to=1>(pad) m = Mul(c, low) e = Add(d, m)")
    before = graph(
        body, inputs=f"{QKV}, bool[{shape}] pad", constants=f"{CONSTANTS}, float low = {{-3.4028235e38}}"
    )
    assert kinds(before) == nodes
    rng = np.random.default_rng(0)
    feeds = {name: rng.standard_normal((2, 6, 16)).astype(np.float32) for name in "qkv"}
    check(Attention(), before, feeds=feeds | {"pad": np.ones([int(n) for n in shape.split(",")], bool)})


def literal(kind: str, number: float) -> str:
    """ONNX text has no float16 numbers: their bits are written."""
    return str(int(np.float16(number).view(np.uint16))) if kind == "float16" else repr(float(number))


@pytest.mark.parametrize("kind", ["float", "float16"])
@pytest.mark.parametrize("arms", ["zero, low", "bias, low"])
def test_the_lowest_number_is_raised_in_a_where(kind: str, arms: str) -> None:
    low = np.finfo("float32" if kind == "float" else kind).min
    numbers = {"half": 0.5, "zero": 0.0, "low": low}
    scalars = ", ".join(f"{kind} {name} = {{{literal(kind, number)}}}" for name, number in numbers.items())
    bias = ",".join(literal(kind, number) for number in (1, 0, -1, 2, 3, -2))
    constants = (
        f"int64[4] split = {{0,0,4,4}}, int64[3] join = {{0,0,16}}, {scalars}, {kind}[6] bias = {{{bias}}}"
    )
    body = MASKED.format(f"m = Where(keep, {arms}) e = Add(d, m)")
    inputs = f"{QKV}, bool[2,1,6,6] keep".replace("float", kind)
    before = graph(body, inputs=inputs, constants=constants, output=f"{kind}[2,6,16] y")
    rng = np.random.default_rng(0)
    feeds = {name: rng.standard_normal((2, 6, 16)).astype(np.float32) for name in "qkv"}
    keep = rng.integers(0, 2, (2, 1, 6, 6)).astype(bool)
    keep[1, 0, :3] = False
    if kind == "float16":
        check_refuses(Attention(), before, "float16")
        return
    model = check(Attention(), before, feeds=feeds | {"keep": keep})
    assert [node.op_type for node in model.graph] == ["Where", "Attention"]


@pytest.mark.parametrize("guard", [pytest.param(True, marks=CLOSED_ROWS), False])
def test_an_unknown_mask_keeps_the_meaning_of_each_row(guard: bool) -> None:
    body = MASKED.format("e = Add(d, m)")
    if guard:
        body = body.replace("p = Soft", "r = Soft").replace("o =", "n = IsNaN(r) p = Where(n, zero, r) o =")
    before = graph(body, inputs=f"{QKV}, float[2,1,6,6] m", constants=f"{CONSTANTS}, float zero = {{0}}")
    rng = np.random.default_rng(0)
    feeds = {name: rng.standard_normal((2, 6, 16)).astype(np.float32) for name in "qkv"}
    mask = np.zeros((2, 1, 6, 6), np.float32)
    lowest = np.finfo(np.float32).min
    mask[0, 0, 1], mask[0, 0, 2], mask[0, 0, 3, 1:], mask[0, 0, 4, :3] = -np.inf, lowest, -np.inf, lowest
    mask[1, 0, 0], mask[1, 0, 0, 2] = lowest, -np.inf
    model, log = apply(Attention(), before)
    assert log.counts() == {"attention": 1}
    assert_same_numbers(model_from_text(before), model, feeds | {"m": mask})


@pytest.mark.parametrize("where", ["Where(keep, d, low)", "Where(drop, low, d)"])
def test_mask_by_where(where: str) -> None:
    inputs = f"{QKV}, bool[2,1,6,6] {'keep' if 'keep' in where else 'drop'}"
    before = graph(
        MASKED.format(f"e = {where}"), inputs=inputs, constants=f"{CONSTANTS}, float low = {{-1e9}}"
    )
    assert kinds(before) == ["Where", "Attention"]


def test_a_wholly_masked_row_stays_nan() -> None:
    body = MASKED.format("z = Where(keep, zero, inf) e = Add(d, z)")
    constants = f"{CONSTANTS}, float zero = {{0}}, float inf = {{-inf}}"
    before = graph(body, inputs=f"{QKV}, bool[2,1,1,6] keep", constants=constants)
    rng = np.random.default_rng(0)
    feeds = {name: rng.standard_normal((2, 6, 16)).astype(np.float32) for name in "qkv"}
    keep = np.ones((2, 1, 1, 6), bool)
    keep[1] = False
    model, log = apply(Attention(), before)
    assert log.counts() == {"attention": 1}
    assert_same_numbers(model_from_text(before), model, feeds | {"keep": keep})


@CLOSED_ROWS
def test_a_guarded_row_becomes_zero() -> None:
    body = (
        MASKED.format("e = Add(d, m)")
        .replace("p = Soft", "r = Soft")
        .replace("o =", "n = IsNaN(r) p = Where(n, zero, r) o =")
    )
    before = graph(body, inputs=f"{QKV}, float[2,1,6,6] m", constants=f"{CONSTANTS}, float zero = {{0}}")
    rng = np.random.default_rng(0)
    feeds = {name: rng.standard_normal((2, 6, 16)).astype(np.float32) for name in "qkv"}
    mask = np.zeros((2, 1, 6, 6), np.float32)
    mask[1, 0, 2:4] = -np.inf
    check(Attention(), before, feeds=feeds | {"m": mask})


def test_refuses_a_guard_where_the_kernel_makes_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    """As ONNX Runtime up to 1.27."""
    monkeypatch.setattr(kernels, "attention_zeroes_closed_rows", lambda: False)
    guard = "r = Softmax(e) n = IsNaN(r) p = Where(n, zero, r)"
    body = MASKED.format("e = Add(d, m)").replace("p = Softmax<axis=-1>(e)", guard)
    assert guard in body
    constants = f"{CONSTANTS}, float zero = {{0}}"
    check_refuses(
        Attention(), graph(body, inputs=f"{QKV}, float[2,1,6,6] m", constants=constants), "makes NaN of a row"
    )


@pytest.mark.parametrize("closed", [-np.inf, -1e9])
def test_constant_causal_mask_becomes_an_attribute(closed: float) -> None:
    rows = [str(closed if column > row else 0.0) for row in range(6) for column in range(6)]
    constants = f"{CONSTANTS}, float[1,1,6,6] m = {{{','.join(rows)}}}"
    after = MERGED.replace("q_num_heads", "is_causal=1, q_num_heads")
    check(Attention(), graph(MASKED.format("e = Add(m, d)"), constants=constants), after)


def test_refuses_weights_that_are_an_output() -> None:
    before = graph(f"{SPLIT} {PLAIN} {JOIN}", output="float[2,6,16] y, float[2,4,6,6] p")
    check_refuses(Attention(), before, "used elsewhere")


def test_refuses_double() -> None:
    before = graph(f"{SPLIT} {PLAIN} {JOIN}").replace("float", "double")
    check_refuses(Attention(), before, "no kernel")


def test_refuses_a_negative_scale() -> None:
    constants = CONSTANTS.replace("half = {0.5}", "half = {-0.5}")
    check_refuses(Attention(), graph(f"{SPLIT} {PLAIN} {JOIN}", constants=constants), "scale is not positive")


def test_refuses_a_mask_that_enlarges() -> None:
    inputs = f"{QKV.replace('2,6,16', '1,6,16')}, float[2,1,6,6] m"
    before = graph(MASKED.format("e = Add(d, m)"), inputs=inputs, output="float[2,6,16] y")
    check_refuses(Attention(), before, "enlarge")


def test_refuses_batches_that_may_differ() -> None:
    inputs = "float[A,4,6,4] q4, float[B,4,5,4] k4, float[B,4,5,4] v4"
    body = "kt = Transpose<perm=[0,1,3,2]>(k4) " + PLAIN.replace("o =", "y =")
    check_refuses(Attention(), graph(body, inputs=inputs, output="float[C,4,6,4] y"), "same batch size")


def test_refuses_a_large_mask_that_may_close_a_row() -> None:
    before = graph(MASKED.format("e = Add(d, m)"), inputs=f"{QKV}, float[2,4,6,6] m")
    check_refuses(Attention(), before, "masked wholly")


@pytest.mark.parametrize(
    "body",
    [
        PLAIN.replace("axis=-1", "axis=2"),
        PLAIN.replace("p = Softmax<axis=-1>(d)", "p = Relu(d)"),
        "s = MatMul(q4, k4t) p = Softmax<axis=-1>(s) o = MatMul(p, v4)",
        "s = MatMul(q4, kt) d = Add(s, s2) e = Mul(d, half) p = Softmax<axis=-1>(e) o = MatMul(p, v4)",
        "s = MatMul(q4, kt) d = Where(drop, high, s) p = Softmax<axis=-1>(d) o = MatMul(p, v4)",
    ],
)
def test_ignores_near_misses(body: str) -> None:
    inputs = f"{QKV}, float[2,4,4,6] k4t, float[2,4,6,6] s2, bool[2,1,6,6] drop"
    constants = f"{CONSTANTS}, float high = {{-10000.0}}"
    check_ignores(Attention(), graph(f"{SPLIT} {body} {JOIN}", inputs=inputs, constants=constants))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    batch=st.integers(1, 3),
    heads=st.sampled_from([1, 2, 3]),
    lengths=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    sizes=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    scale=st.floats(0.1, 2.0),
    direct=st.booleans(),
    mask=st.sampled_from([None, "b1st", "11st", "bhst", "b11t", "st", "1hs1", "t"]),
    join=st.booleans(),
)
def test_numbers_agree(
    batch: int,
    heads: int,
    lengths: tuple[int, int],
    sizes: tuple[int, int],
    scale: float,
    direct: bool,
    mask: str | None,
    join: bool,
) -> None:
    (s, t), (d, e) = lengths, sizes
    inputs = f"float[{batch},{s},{heads * d}] q, float[{batch},{t},{heads * d}] k, float[{batch},{t},{heads * e}] v"
    axes = {"b": batch, "h": heads, "s": s, "t": t, "1": 1}
    constants = f"float scale = {{{scale}}}, float low = {{-1e9}}, int64[4] a = {{0,0,{heads},{d}}}, int64[4] c = {{0,0,{heads},{e}}}"
    constants += f", int64[3] z = {{0,0,{heads * e}}}"
    key = "kt = Transpose<perm=[0,2,3,1]>(k1)"
    if not direct:
        key = "k4 = Transpose<perm=[0,2,1,3]>(k1) kt = Transpose<perm=[0,1,3,2]>(k4)"
    body = f"""q1 = Reshape(q, a) q4 = Transpose<perm=[0,2,1,3]>(q1) k1 = Reshape(k, a) {key}
        v1 = Reshape(v, c) v4 = Transpose<perm=[0,2,1,3]>(v1) u = MatMul(q4, kt) w = Mul(u, scale)"""
    if mask is not None:
        inputs += f", bool[{','.join(str(axes[axis]) for axis in mask)}] pad"
        body += " c1 = Cast<to=1>(pad) m = Mul(c1, low) x = Add(w, m) p = Softmax<axis=-1>(x)"
    else:
        body += " p = Softmax<axis=-1>(w)"
    body += " o = MatMul(p, v4) t = Transpose<perm=[0,2,1,3]>(o)" if join else " y = MatMul(p, v4)"
    body += " y = Reshape(t, z)" if join else ""
    output = f"float[{batch},{s},{heads * e}] y" if join else f"float[{batch},{heads},{s},{e}] y"
    result = check(Attention(), graph(body, inputs=inputs, constants=constants, output=output))
    assert any(node.op_type == "Attention" for node in result.graph)
    assert any(node.op_type == "Transpose" for node in result.graph) != join


STEPS = {
    "fill": "Where(c{i}, {number}, {scores})",
    "keep": "Where(c{i}, {scores}, {number})",
    "add": "Add({scores}, m{i})",
}
LOWEST = float(np.finfo(np.float32).min)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["fill", "keep", "add"]), st.sampled_from([-1e4, -1e9, -1e30, LOWEST, -np.inf])
        ),
        min_size=1,
        max_size=3,
    ),
    size=st.sampled_from([1.0, 30.0]),
    seed=st.integers(0, 1000),
)
def test_masks_one_on_the_other_keep_the_meaning_of_each_row(
    steps: list[tuple[str, float]], size: float, seed: int
) -> None:
    """Whatever is masked, by one or several, and however large the scores are beneath."""
    scores, body = "d", ""
    inputs, constants = QKV, CONSTANTS
    rng = np.random.default_rng(seed)
    feeds = {name: (rng.standard_normal((2, 6, 16)) * size).astype(np.float32) for name in "qk"}
    feeds["v"] = rng.standard_normal((2, 6, 16)).astype(np.float32)
    for i, (kind, number) in enumerate(steps):
        closed = rng.random((2, 1, 6, 6)) < rng.choice([0.5, 0.9])
        closed[0, 0, 0] = rng.random() < 0.5
        inputs += f", bool[2,1,6,6] c{i}"
        feeds[f"c{i}"] = closed if kind != "keep" else ~closed
        constants += (
            f", float low{i} = {{{number!r}}}, float none = {{0}}"
            if i == 0
            else f", float low{i} = {{{number!r}}}"
        )
        if kind == "add":
            body += f" m{i} = Where(c{i}, low{i}, none)"
        body += f" e{i} = {STEPS[kind].format(i=i, number=f'low{i}', scores=scores)}"
        scores = f"e{i}"
    before = graph(
        f"{SPLIT} s = MatMul(q4, kt) d = Mul(s, half) {body} p = Softmax<axis=-1>({scores}) o = MatMul(p, v4) {JOIN}",
        inputs=inputs,
        constants=constants,
    )
    model, _ = apply(Attention(), before)
    assert_same_numbers(model_from_text(before), model, feeds)


def test_a_wholly_masked_row_is_uniform_beneath_large_scores() -> None:
    """At -1e9 floats are 64 apart: added there, scores above 32 would still tell."""
    before = graph(
        MASKED.format("e = Where(drop, low, d)"),
        inputs=f"{QKV}, bool[2,1,1,6] drop",
        constants=f"{CONSTANTS}, float low = {{-1e9}}",
    )
    rng = np.random.default_rng(0)
    feeds = {name: (30 * rng.standard_normal((2, 6, 16))).astype(np.float32) for name in "qk"}
    feeds |= {"v": rng.standard_normal((2, 6, 16)).astype(np.float32), "drop": np.ones((2, 1, 1, 6), bool)}
    check(Attention(), before, feeds=feeds)


def test_refuses_values_of_a_dynamic_size() -> None:
    """ONNX's shape inference takes the size of such a value for 0, and what reads the result no longer loads."""
    before = """g (float[2,3,N] x) => (float[2,3,N] y) <float half={0.5}> {
        t = Transpose<perm=[0,2,1]>(x) d = MatMul(x, t) s = Mul(d, half) w = Softmax<axis=-1>(s) y = MatMul(w, x) }"""
    check_refuses(Attention(), before, "dynamic")
