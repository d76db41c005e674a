"""Rotary position embedding in the forms of Llama, GPT-NeoX and GPT-J."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.passes.rotary import Rotary
from graphopt.testing import check, check_ignores, check_refuses

NUMBERS = """int64[1] i0={0}, int64[1] i1={1}, int64[1] i2={2}, int64[1] i3={3}, int64[1] far={9223372036854775807},
    int64[1] half={2}, int64[1] size={4}"""
SLICES = "x1 = Slice(x, i0, half, i3) x2 = Slice(x, half, far, i3)"
ROTATED = "n = Neg(x2) r = Concat<axis=-1>(n, x1)"
ADDED = "a = Mul(x, cos) b = Mul(r, sin) y = Add(a, b)"


def table(name: str, length: int = 3, size: int = 4, repeats: bool = True, interleaved: bool = False) -> str:
    half = np.random.default_rng(len(name)).standard_normal((length, size // 2)).round(3)
    if not repeats:
        full = np.concatenate([half, half + 1], -1)
    else:
        full = np.repeat(half, 2, -1) if interleaved else np.concatenate([half, half], -1)
    return f"float[1,1,{length},{size}] {name} = {{{','.join(str(number) for number in full.reshape(-1))}}}"


def graph(
    body: str, *, inputs: str = "float[2,5,3,4] x", extra: str = "", output: str = "float[2,5,3,4] y"
) -> str:
    tables = extra or f"{table('cos')}, {table('sin')}"
    return f"g ({inputs}) => ({output}) <{NUMBERS}, {tables}> {{ {body} }}"


@pytest.mark.parametrize("halves", [SLICES, "x1, x2 = Split<axis=-1, num_outputs=2>(x)"])
@pytest.mark.parametrize("added", [ADDED, "a = Mul(cos, x) b = Mul(sin, r) y = Add(b, a)"])
def test_fires(halves: str, added: str) -> None:
    model = check(Rotary(), graph(f"{halves} {ROTATED} {added}"))
    assert [node.op_type for node in model.graph] == ["RotaryEmbedding"]


def test_moves_the_transpose_behind() -> None:
    body = f"s = Reshape(h, shape) x = Transpose<perm=[0,2,1,3]>(s) {SLICES} {ROTATED} {ADDED}"
    extra = f"{table('cos')}, {table('sin')}, int64[4] shape = {{0,0,5,4}}"
    model = check(Rotary(), graph(body, inputs="float[2,3,20] h", extra=extra))
    assert [node.op_type for node in model.graph] == ["RotaryEmbedding", "Reshape", "Transpose"]


def test_heads_behind_the_length() -> None:
    cos, sin = table("cos").replace("[1,1,3,4]", "[1,3,1,4]"), table("sin").replace("[1,1,3,4]", "[1,3,1,4]")
    body = f"{SLICES} {ROTATED} {ADDED}"
    before = graph(body, inputs="float[2,3,5,4] x", extra=f"{cos}, {sin}", output="float[2,3,5,4] y")
    model = check(Rotary(), before)
    assert [node.op_type for node in model.graph] == ["Reshape", "RotaryEmbedding", "Reshape"]


@pytest.mark.parametrize("batch", ["N", "2"])
def test_computed_angles(batch: str) -> None:
    """Hugging Face computes cos and sin of the positions; the batch is written out, as ONNX Runtime demands."""
    body = f"""c = Concat<axis=-1>(f, f) c1 = Cos(c) s1 = Sin(c) cos = Unsqueeze(c1, i1) sin = Unsqueeze(s1, i1)
        {SLICES} {ROTATED} {ADDED}"""
    inputs = f"float[{batch},5,L,4] x, float[1,L,2] f"
    model = check(
        Rotary(), graph(body, inputs=inputs, extra="float z = {0}", output=f"float[{batch},5,L,4] y")
    )
    assert "RotaryEmbedding" in [node.op_type for node in model.graph]
    assert "Neg" not in [node.op_type for node in model.graph]


def test_angles_of_each_batch() -> None:
    body = f"""c = Concat<axis=-1>(f, f) c1 = Cos(c) s1 = Sin(c) cos = Unsqueeze(c1, i1) sin = Unsqueeze(s1, i1)
        {SLICES} {ROTATED} {ADDED}"""
    before = graph(
        body, inputs="float[N,5,L,4] x, float[N,L,2] f", extra="float z = {0}", output="float[N,5,L,4] y"
    )
    kinds = [node.op_type for node in check(Rotary(), before).graph]
    assert "RotaryEmbedding" in kinds
    assert "Expand" not in kinds


@pytest.mark.parametrize("transposed", [True, False])
def test_a_part_of_each_head(transposed: bool) -> None:
    start = "w = Transpose<perm=[0,2,1,3]>(w0)" if transposed else ""
    body = f"""{start} x = Slice(w, i0, size, i3) rest = Slice(w, size, far, i3)
        {SLICES} {ROTATED} {ADDED.replace("y =", "t =")} y = Concat<axis=-1>(t, rest)"""
    inputs = "float[2,3,5,6] w0" if transposed else "float[2,5,3,6] w"
    kinds = [
        node.op_type for node in check(Rotary(), graph(body, inputs=inputs, output="float[2,5,3,6] y")).graph
    ]
    assert kinds == (
        ["Reshape", "RotaryEmbedding", "Reshape", "Transpose"] if transposed else ["RotaryEmbedding"]
    )


def test_neighbours() -> None:
    body = f"""x1 = Slice(x, i0, far, i3, i2) x2 = Slice(x, i1, far, i3, i2) n = Neg(x2)
        n1 = Unsqueeze(n, last) n2 = Unsqueeze(x1, last) p = Concat<axis=-1>(n1, n2) r = Reshape(p, shape) {ADDED}"""
    tables = f"{table('cos', interleaved=True)}, {table('sin', interleaved=True)}"
    extra = f"{tables}, int64[1] last = {{-1}}, int64[4] shape = {{2,5,3,4}}"
    model = check(Rotary(), graph(body, extra=extra))
    assert [node.op_type for node in model.graph] == ["RotaryEmbedding"]
    assert model.graph[0].attributes["interleaved"].as_int() == 1


def test_refuses_unequal_halves() -> None:
    extra = f"{table('cos', repeats=False)}, {table('sin', repeats=False)}"
    check_refuses(Rotary(), graph(f"{SLICES} {ROTATED} {ADDED}", extra=extra), "halves")


def test_refuses_angles_of_each_head() -> None:
    inputs = "float[2,5,3,4] x, float[2,5,3,4] cos, float[2,5,3,4] sin"
    check_refuses(
        Rotary(), graph(f"{SLICES} {ROTATED} {ADDED}", inputs=inputs, extra="float z = {0}"), "do not fit"
    )


def test_refuses_double() -> None:
    check_refuses(Rotary(), graph(f"{SLICES} {ROTATED} {ADDED}").replace("float", "double"), "no kernel")


def test_refuses_a_shared_inner_value() -> None:
    before = graph(f"{SLICES} {ROTATED} {ADDED}", output="float[2,5,3,4] y, float[2,5,3,4] r")
    check_refuses(Rotary(), before, "used elsewhere")


@pytest.mark.parametrize(
    "body",
    [
        f"{SLICES} n = Neg(x1) r = Concat<axis=-1>(n, x2) {ADDED}",
        f"{SLICES} n = Neg(x2) r = Concat<axis=-1>(x1, n) {ADDED}",
        f"{SLICES.replace('half', 'i1')} {ROTATED} {ADDED}",
        f"{SLICES} {ROTATED} {ADDED.replace('Add', 'Sub')}",
        f"{SLICES} {ROTATED} a = Mul(z, cos) b = Mul(r, sin) y = Add(a, b)",
    ],
)
def test_ignores_near_misses(body: str) -> None:
    check_ignores(Rotary(), graph(body, inputs="float[2,5,3,4] x, float[2,5,3,4] z"))


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    batch=st.integers(1, 3),
    heads=st.integers(1, 3),
    length=st.integers(1, 4),
    half=st.integers(1, 4),
    merged=st.booleans(),
)
def test_numbers_agree(batch: int, heads: int, length: int, half: int, merged: bool) -> None:
    size = 2 * half
    body = f"{SLICES} {ROTATED} {ADDED}"
    inputs = f"float[{batch},{heads},{length},{size}] x"
    extra = f"{table('cos', length, size)}, {table('sin', length, size)}"
    if merged:
        body = f"s = Reshape(h, shape) x = Transpose<perm=[0,2,1,3]>(s) {body}"
        inputs = f"float[{batch},{length},{heads * size}] h"
        extra += f", int64[4] shape = {{0,0,{heads},{size}}}"
    before = graph(body, inputs=inputs, extra=extra, output=f"float[{batch},{heads},{length},{size}] y")
    before = before.replace("half={2}", f"half={{{half}}}")
    assert any(node.op_type == "RotaryEmbedding" for node in check(Rotary(), before).graph)
