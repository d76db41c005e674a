"""Symbolic dimensions."""

import onnx_ir as ir
import pytest

from graphopt.ir.dims import Dim, broadcast, expanded, least, product
from graphopt.ir.symbolic import ShapeCache, Shapes, refine
from graphopt.testing import model_from_text


def value(model: ir.Model, name: str) -> ir.Value:
    return next(output for node in model.graph for output in node.outputs if output.name == name)


def dims(body: str, name: str = "y", *, constants: str = "", inputs: str = "float[B,S,12] x") -> object:
    model = model_from_text(f"g ({inputs}) => (y) <{constants}> {{ {body} }}")
    for node in model.graph:
        for output in node.outputs:
            if output.dtype is not None and output.dtype.is_floating_point():
                output.shape = ir.Shape([None] * len(output.shape)) if output.shape is not None else None
    return Shapes().of(value(model, name))


B, S = Dim(1, ("B",)), Dim(1, ("S",))


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (
            "s = Shape(x) b = Slice(s, i0, i1) n = Gather(s, i1) t = Concat<axis=0>(b, n, m1, i3) y = Reshape(x, t)",
            (B, S, Dim(4), Dim(3)),
        ),
        ("t = Concat<axis=0>(m1, i3) y = Reshape(x, t)", (Dim(4, ("B", "S")), Dim(3))),
        ("y = Transpose<perm=[2,0,1]>(x)", (Dim(12), B, S)),
        (
            "t = Concat<axis=0>(i0, i0, m1, i3) z = Reshape(x, t) y = Transpose<perm=[0,2,1,3]>(z)",
            (B, Dim(4), S, Dim(3)),
        ),
        ("u = Unsqueeze(x, i1) r = Relu(u) y = Squeeze(r, i1)", (B, S, Dim(12))),
        ("s = Shape<start=0, end=2>(x) e = Expand(one, s) y = Trilu(e)", (B, S)),
        ("y = MatMul(x, w)", (B, S, Dim(2))),
        ("s = Shape(x) y = ConstantOfShape(s)", (B, S, Dim(12))),
        ("y = Flatten<axis=2>(x)", (Dim(1, ("B", "S")), Dim(12))),
        ("y = ReduceMean(x, i1)", (B, Dim(1), Dim(12))),
        ("y = ReduceMax<keepdims=0>(x, m1)", (B, S)),
        (
            "s = Shape<start=0, end=1>(x) t = Concat<axis=0>(s, i3, i1) y = Tile(x, t)",
            (Dim(1, ("B", "B")), Dim(3, ("S",)), Dim(12)),
        ),
        ('t = Shape(x) y = Resize<mode="nearest">(x, , , t)', (B, S, Dim(12))),
        (
            "t = Concat<axis=0>(i0, i0, m1, i3) z = Reshape(x, t) q = Transpose<perm=[0,2,1,3]>(z) y = Attention(q, q, q)",
            (B, Dim(4), S, Dim(3)),
        ),
    ],
)
def test_derives(body: str, expected: object) -> None:
    constants = "int64[1] i0={0}, int64[1] i1={1}, int64[1] i3={3}, int64[1] m1={-1}, float one={1}, float[12,2] w={1,2,3,4,5,6,7,8,9,10,11,12,1,2,3,4,5,6,7,8,9,10,11,12}"
    assert dims(body, constants=constants) == expected


def test_names_and_sizes_are_written_where_inference_made_some_up() -> None:
    model = model_from_text(
        """g (float[B,S,12] x, float[B,S] mask) => (y) <float[1,3] table={1,2,3}, float one={1}, int64[1] i0={0},
            int64[1] i1={1}> {
            s = Shape(mask) e = Expand(one, s) n = Shape<start=1, end=2>(mask)
            p = Slice(table, i0, n, i1) m = Add(e, mask) y = Relu(m) }"""
    )
    names = {"e": ["unk__0", "unk__1"], "p": [1, "unk__2"], "m": ["unk__3", "unk__4"]}
    for name, shape in names.items():
        value(model, name).shape = ir.Shape(shape)
    assert refine(model.graph)
    assert [list(value(model, name).shape or ()) for name in names] == [
        [ir.SymbolicDim("B"), ir.SymbolicDim("S")], [1, ir.SymbolicDim("unk__2")], [ir.SymbolicDim("B"), ir.SymbolicDim("S")],
    ]  # fmt: skip
    assert not refine(model.graph)


def test_a_table_cut_at_a_length_gives_way_to_that_length() -> None:
    cut = least(S, 6)
    assert broadcast([(cut,), (S,)]) == (S,) and expanded((Dim(1), cut), (B, S)) == (B, S)
    assert broadcast([(cut,), (B,)]) is None and expanded((cut,), (B,)) is None
    assert broadcast([(cut,), (cut,)]) == (cut,) and broadcast([(cut,), (Dim(1),)]) == (cut,)


def test_expand_as_pytorch_writes_it() -> None:
    """A target of -1 keeps the size: Where(Equal(target, -1), 1, target)."""
    constants = (
        "int64[3] ones={1,1,1}, int64[3] minus={-1,-1,-1}, int64[1] i0={0}, int64[1] i1={1}, int64[1] m1={-1}"
    )
    body = """s = Shape(x) b = Slice(s, i0, i1) t = Concat<axis=0>(b, m1, m1) c = Equal(t, minus) w = Where(c, ones, t)
        y = Expand(z, w)"""
    found = dims(body, constants=constants, inputs="float[B,S,12] x, float[1,4,5] z")
    assert found == (B, Dim(4), Dim(5))


def test_unequal_dynamic_sizes_stay_unknown() -> None:
    assert broadcast([(B,), (S,)]) is None
    assert broadcast([(B, Dim(1)), (S,)]) == (B, S)
    assert broadcast([(B,), (Dim(4),)]) == (Dim(4),)


def test_beside_a_scalar_an_unknown_shape_stays_unknown() -> None:
    assert broadcast([None, ()]) is None and broadcast([(), None, (S,)]) is None
    assert broadcast([(), ()]) == ()


def test_quotients() -> None:
    assert product((B, Dim(6), S)).over(B.times(Dim(2))) == Dim(3, ("S",))
    assert B.over(S) is None
    assert Dim(3).over(Dim(2)) is None
    assert Dim(3).over(Dim(0)) is None


def test_a_deep_chain_ends() -> None:
    layers = " ".join(f"v{index + 1} = Relu(v{index})" for index in range(2000))
    model = model_from_text(f"g (float[B,S] v0) => (float[B,S] v2000) {{ {layers} }}")
    shapes = Shapes().of(value(model, "v2000"))
    assert shapes is not None and len(shapes) == 2


def test_the_cache_belongs_to_one_graph() -> None:
    cache = ShapeCache()
    one, two = (model_from_text("g (float[B] x) => (float[B] y) { y = Relu(x) }") for _ in range(2))
    first = cache.of(one.graph[0])
    assert cache.of(one.graph[0]) is first
    assert cache.of(two.graph[0]) is not first
