"""Shape arithmetic, with static and with dynamic dimensions."""

import hypothesis
import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import strategies as st

from graphopt.ir import model as ir_model
from graphopt.ir.shapes import infer
from graphopt.passes.shape_fold import ShapeFold
from graphopt.rewrite import RewriteLog
from graphopt.testing import apply, assert_same_numbers, check, check_ignores, model_from_text, random_feeds

CONSTANTS = """<int64 i0={0}, int64 i1={1}, int64 i2={2}, int64[1] a0={0}, int64[1] a1={1}, int64[1] a2={2},
    int64[1] a3={3}, int64[1] minus={-1}, int64[1] c64={64}, int64 s4={4}, int64[1] max={9223372036854775807},
    float zero={0}, int64[3] ones={1,1,1}>"""


def test_a_static_dimension_of_a_dynamic_shape() -> None:
    check(
        ShapeFold(),
        f"""g (float[N,M,12] x) => (float[N,M] y, int64 z) {CONSTANTS} {{
            s = Shape(x) d = Gather(s, i2) z = Mul(d, s4) y = ReduceMax<keepdims=0>(x, minus) }}""",
        """g (float[N,M,12] x) => (float[N,M] y, int64 z) <int64[1] minus={-1}, int64 c={48}> {
            z = Identity(c) y = ReduceMax<keepdims=0>(x, minus) }""",
        exact=True,
    )


@pytest.mark.parametrize(
    "body",
    [
        # PyTorch: x.view(x.size(0), x.size(1), 4, 3)
        """s = Shape(x) n = Gather(s, i0) m = Gather(s, i1) nn = Unsqueeze(n, a0) mm = Unsqueeze(m, a0)
        t = Concat<axis=0>(nn, mm, c4, c3) y = Reshape(x, t)""",
        # The same, as TensorFlow writes it.
        "s = Shape(x) b = Slice(s, a0, a2, a0) t = Concat<axis=0>(b, c4, c3) y = Reshape(x, t)",
        # Opset 15 and newer.
        "b = Shape<start=0, end=2>(x) t = Concat<axis=0>(b, c4, c3) y = Reshape(x, t)",
        # Through 32 bits, and with a dimension computed from a static one.
        """s = Shape(x) q = Cast<to=6>(s) n = Slice(q, a0, a2) l = Gather(q, i2) k = Cast<to=6>(s3) d = Div(l, k)
        dd = Unsqueeze(d, a0) e = Cast<to=6>(c3) t = Concat<axis=0>(n, dd, e) t64 = Cast<to=7>(t)
        y = Reshape(x, t64)""",
    ],
)
def test_reshape_keeps_dimensions_in_place(body: str) -> None:
    constants = CONSTANTS[:-1] + ", int64[1] c4={4}, int64[1] c3={3}, int64 s3={3}>"
    check(
        ShapeFold(),
        f"g (float[N,M,12] x) => (float[N,M,4,3] y) {constants} {{ {body} }}",
        "g (float[N,M,12] x) => (float[N,M,4,3] y) <int64[4] t={0,0,4,3}> { y = Reshape(x, t) }",
        exact=True,
    )


def test_one_unknown_dimension_becomes_minus_one() -> None:
    check(
        ShapeFold(),
        f"""g (float[N,M,K] x) => (float[N,A] y) {CONSTANTS} {{
            s = Shape(x) n = Gather(s, a0) m = Gather(s, a1) k = Gather(s, a2) p = Mul(m, k)
            t = Concat<axis=0>(n, p) y = Reshape(x, t) }}""",
        "g (float[N,M,K] x) => (float[N,A] y) <int64[2] t={0,-1}> { y = Reshape(x, t) }",
        exact=True,
    )


def test_an_expand_to_its_own_shape_goes() -> None:
    check(
        ShapeFold(),
        f"""g (float[N,M,4] x) => (float[N,M,4] y) {CONSTANTS} {{
            s = Shape(x) q = Equal(s, minus) w = Where(q, ones, s) e = Expand(x, w) y = Relu(e) }}""",
        "g (float[N,M,4] x) => (float[N,M,4] y) { y = Relu(x) }",
        exact=True,
    )


def test_a_slice_up_to_its_own_size_goes() -> None:
    check(
        ShapeFold(),
        f"""g (float[N,M,4] x) => (float[N,M,4] y) {CONSTANTS} {{
            s = Shape(x) m = Gather(s, a1) e = Slice(x, a0, m, a1) y = Relu(e) }}""",
        "g (float[N,M,4] x) => (float[N,M,4] y) { y = Relu(x) }",
        exact=True,
    )


def test_what_is_learned_of_a_shape_helps_further_on() -> None:
    check(
        ShapeFold(),
        f"""g (float[N,4] x) => (float[N,4] y, int64 z) {CONSTANTS} {{
            s = Shape(x) f = ConstantOfShape(s) y = Add(x, f) t = Shape(f) z = Gather(t, i1) }}""",
        """g (float[N,4] x) => (float[N,4] y, int64 z) <int64 c={4}> {
            s = Shape(x) f = ConstantOfShape(s) y = Add(x, f) z = Identity(c) }""",
        exact=True,
    )


def test_a_dimension_of_an_input_is_taken_from_there() -> None:
    """What is computed for its shape alone goes: here a product and its transposition."""
    check(
        ShapeFold(),
        f"""g (float[4,5] z, float[N,M,12] x) => (float[A,B] y, int64 k) {CONSTANTS} {{
            r = Relu(x) v = Transpose<perm=[1,0,2]>(r) s = Shape(v) k = Gather(s, i0) t = Slice(s, a1, a2, a0)
            u = Concat<axis=0>(t, a1) y = Expand(zero, u) }}""",
        """g (float[4,5] z, float[N,M,12] x) => (float[A,B] y, int64 k) <float zero={0}, int64[1] a1={1}, int64 i1={1}> {
            m = Shape(x) k = Gather<axis=0>(m, i1)
            t = Shape<start=0, end=1>(x) u = Concat<axis=0>(t, a1) y = Expand(zero, u) }""",
        exact=True,
    )


@pytest.mark.parametrize("length", [2, 4, 9])
def test_the_beginning_of_a_table_is_no_longer_than_the_table(length: int) -> None:
    """Its length is the smaller of two numbers, not the one that was asked for."""
    table = f"float[1,4] table={{{','.join('1234')}}}"
    model = model_from_text(
        f"""g (float[N] x) => (float[A,B] y, int64[C] k) {CONSTANTS[:-1]}, {table}> {{
            n = Shape(x) p = Slice(table, a0, n, a1) k = Shape(p) t = Transpose<perm=[1,0]>(p) y = Relu(t) }}"""
    )
    after, _ = apply(ShapeFold(), model)
    assert_same_numbers(model, after, {"x": np.ones(length, np.float32)}, exact=True)


def test_a_table_of_positions_is_as_long_as_what_it_is_added_to() -> None:
    """Where the smaller of both and the length itself are broadcast, the length is what comes out."""
    numbers = ",".join(map(str, range(12)))
    check(
        ShapeFold(),
        f"""g (float[N,M,2] x) => (float[N,M,2,1] y) {CONSTANTS[:-1]}, float[1,6,2] table={{{numbers}}}> {{
            s = Shape(x) m = Slice(s, a1, a2) p = Slice(table, a0, m, a1) e = Add(p, x)
            q = Shape(e) t = Concat<axis=0>(q, a1) y = Reshape(e, t) }}""",
        f"""g (float[N,M,2] x) => (float[N,M,2,1] y) <int64[1] a0={{0}}, int64[1] a1={{1}}, int64[1] a2={{2}},
            int64[4] t={{0,0,2,1}}, float[1,6,2] table={{{numbers}}}> {{
            s = Shape(x) m = Slice(s, a1, a2) p = Slice(table, a0, m, a1) e = Add(p, x) y = Reshape(e, t) }}""",
        exact=True,
    )


def test_inside_a_branch() -> None:
    text = f"""g (float[N,4] x, bool c) => (float y) {CONSTANTS} {{
        s = Shape(x)
        y = If(c) <then_branch = t () => (float p) {{
                k = Gather(s, i1) f = Cast<to=1>(k) p = Exp(f) }},
            else_branch = e () => (float q) {{ q = ReduceMax<keepdims=0>(x) }}> }}"""
    model, log = model_from_text(text), RewriteLog()
    assert ShapeFold().run(model, log)
    assert [node.op_type for node in model.graph.all_nodes()] == ["Shape", "If", "Cast", "Exp", "ReduceMax"]
    assert_same_numbers(model_from_text(text), model, exact=True)


@pytest.mark.parametrize(
    "body",
    [
        # two dimensions that trade places
        "s = Shape(x) n = Gather(s, a0) m = Gather(s, a1) t = Concat<axis=0>(m, n) y = Reshape(x, t)",
        "s = Shape(x) n = Gather(s, i0) f = Cast<to=1>(n) y = Mul(x, f)",
        "s = Shape(x) e = Expand(zero, s) y = Add(x, e)",
        "s = Shape(x) m = Gather(s, a1) e = Slice(x, a1, m, a1) y = Relu(e)",
        "s = Shape(x) m = Gather(s, a1) e = Slice(x, a0, m, a0) y = Relu(e)",
        "s = Shape(x) n = Gather(s, a0) t = Concat<axis=0>(n, z) y = Reshape<allowzero=1>(x, t)",
    ],
)
def test_ignores_what_is_not_known(body: str) -> None:
    constants = CONSTANTS[:-1] + ", int64[1] z={0}>"
    check_ignores(ShapeFold(), f"g (float[N,M] x) => (float[A,B] y) {constants} {{ {body} }}")


def test_overflow_is_left_to_the_runtime() -> None:
    text = """g (float[N,4] x) => (int32[1] y) <int64[1] a1={1}, int32[1] big={2000000000}> {
        s = Shape(x) d = Gather(s, a1) c = Cast<to=6>(d) p = Mul(c, big) y = Add(p, c) }"""
    model, _ = apply(ShapeFold(), text)
    assert [node.op_type for node in model.graph] == ["Mul", "Add"]
    assert_same_numbers(model_from_text(text), model, exact=True)


def test_the_gate_is_asked() -> None:
    text = f"""g (float[N,4,5] x) => (float[N,4,5] y) {CONSTANTS} {{
        s = Shape(x) p = Gather(s, i1) q = Gather(s, i2) f = Cast<to=1>(p) h = Cast<to=1>(q)
        u = Mul(x, f) y = Mul(u, h) }}"""
    model, log = model_from_text(text), RewriteLog()
    ShapeFold().run(model, log, lambda application: application.site != "p")
    assert [entry.site for entry in log.applied] == ["q"]
    assert [node.op_type for node in model.graph] == ["Shape", "Gather", "Cast", "Cast", "Mul", "Mul"]


BINARY = [
    "Add",
    "Sub",
    "Mul",
    "Div",
    "Mod",
    "Max",
    "Min",
    "Equal",
    "Less",
    "Greater",
    "LessOrEqual",
    "GreaterOrEqual",
]
UNARY = ["Slice", "Gather", "Squeeze", "ReduceProd", "ReduceSum", "ReduceMax", "Neg", "Concat", "Identity"]


@hypothesis.settings(derandomize=True, deadline=None, max_examples=60)
@hypothesis.given(
    st.lists(
        st.tuples(st.sampled_from(BINARY + UNARY * 2), st.integers(-4, 4), st.integers(0, 9)),
        min_size=1,
        max_size=7,
    ),
    st.integers(1, 6),
    st.integers(1, 6),
)
def test_elements_are_those_that_the_runtime_computes(
    steps: list[tuple[str, int, int]], n: int, m: int
) -> None:
    """Outputs of every step are compared, at sizes that the pass does not see."""
    constants, body, vectors = ["int64[1] a0={0}"], ["v0 = Shape(x)"], [("v0", 4)]
    outputs = []
    for index, (op, number, pick) in enumerate(steps, start=1):
        source, size = vectors[pick % len(vectors)]
        other, other_size = vectors[-1]
        out = f"v{index}"
        if op in BINARY:
            divides = op in ("Div", "Mod")
            if divides or other_size != size or number % 2:
                constants.append(f"int64[1] c{index}={{{number or 3}}}")
                other = f"c{index}"
            body.append(f"{out}r = {op}({source}, {other})")
            body.append(f"{out} = Cast<to=7>({out}r)")
        elif op == "Slice":
            start, end, step = min(number, size - 1), 9, 1
            if number < 0 and pick % 2:
                start, end, step = size, -9, -2
            if start < -size:
                start = 0
            constants += [
                f"int64[1] s{index}={{{start}}}",
                f"int64[1] e{index}={{{end}}}",
                f"int64[1] t{index}={{{step}}}",
            ]
            body.append(f"{out} = Slice({source}, s{index}, e{index}, a0, t{index})")
            size = len(range(size)[start:end:step]) if step > 0 else len(range(size)[::-2])
        elif op == "Gather":
            constants.append(f"int64[2] c{index}={{{number % size},{-1}}}")
            body.append(f"{out} = Gather({source}, c{index})")
            size = 2
        elif op == "Squeeze":
            constants.append(f"int64 c{index}={{{number % size}}}")
            body.append(f"{out}s = Gather({source}, c{index}) {out} = Unsqueeze({out}s, a0)")
            size = 1
        elif op.startswith("Reduce"):
            body.append(f"{out} = {op}<keepdims={pick % 2}>({source}, a0)")
            if not pick % 2:
                body[-1] = body[-1].replace(f"{out} =", f"{out}k =") + f" {out} = Unsqueeze({out}k, a0)"
            size = 1
        elif op == "Concat":
            hypothesis.assume(size + other_size < 40)
            body.append(f"{out} = Concat<axis=0>({source}, {other})")
            size += other_size
        else:
            body.append(f"{out} = {op}({source})")
        vectors.append((out, size))
        outputs.append(f"int64[{size}] {out}")
    text = f"g (float[N,3,M,5] x) => ({', '.join(outputs)}) <{', '.join(constants)}> {{ {' '.join(body)} }}"
    model, _ = apply(ShapeFold(), text)
    assert_same_numbers(model_from_text(text), model, random_feeds(model, {"N": n, "M": m}), exact=True)


@hypothesis.settings(derandomize=True, deadline=None, max_examples=30)
@hypothesis.given(st.permutations(["n", "m", "k12"]), st.booleans(), st.integers(1, 5), st.integers(1, 5))
def test_any_reshape(order: list[str], split: bool, n: int, m: int) -> None:
    parts = {"n": "n", "m": "m", "k12": "k3, k4" if split else "k12"}
    target = ", ".join(parts[name] for name in order)
    text = f"""g (float[N,M,12] x) => (float{"[A,B,C,D]" if split else "[A,B,C]"} y)
        <int64[1] a0={{0}}, int64[1] a1={{1}}, int64[1] k12={{12}}, int64[1] k3={{3}}, int64[1] k4={{4}}> {{
        s = Shape(x) n = Gather(s, a0) m = Gather(s, a1) t = Concat<axis=0>({target}) y = Reshape(x, t) }}"""
    model, log = apply(ShapeFold(), text)
    assert bool(log.applied) == (
        order.index("n") == 0 or (order.index("m") == 1 and (not split or order[0] != "k12"))
    )
    feeds = {"x": np.arange(n * m * 12, dtype=np.float32).reshape(n, m, 12)}
    assert_same_numbers(model_from_text(text), model, feeds, exact=True)


def test_minus_one_is_no_dimension_where_zero_is() -> None:
    """With allowzero, 0 in a target is a size of 0, but -1 still means the rest."""
    check(
        ShapeFold(),
        f"""g (float[N,M,12] x) => (float[A,B,6] y, int64 n, int64 l) {CONSTANTS} <int64[3] t={{-1,2,6}}> {{
            r = Reshape<allowzero=1>(x, t) s = Shape(r) n = Gather(s, i0) l = Gather(s, i2)
            y = Identity(r) }}""".replace("> <", ", "),
        """g (float[N,M,12] x) => (float[A,B,6] y, int64 n, int64 l) <int64 i0={0}, int64[3] t={-1,2,6}, int64 c={6}> {
            r = Reshape<allowzero=1>(x, t) s = Shape(r) n = Gather(s, i0) l = Identity(c) y = Identity(r) }""",
        exact=True,
    )


def test_a_false_declaration_of_an_output_is_not_believed() -> None:
    """Seen in a text recogniser: three dimensions, of which the file declares two."""
    model = model_from_text(
        f"""g (float[N,M,K,L] x) => (float[1,S] y) {CONSTANTS} {{
            s = Shape(x) n = Gather(s, a0) m = Gather(s, a1) k = Gather(s, a2) l = Gather(s, a3)
            nm = Mul(n, m) kl = Mul(k, l) t = Concat<axis=0>(nm, kl, a1) y = Reshape(x, t) }}"""
    )
    model.graph.outputs[0].shape = ir.Shape([1, "S"])
    log = RewriteLog()
    assert not ShapeFold().run(model, log), log.applied


def test_names_that_look_like_expressions_are_names() -> None:
    """With s0 = 8, s1 + s2 = 4, s0 - s1 = 5 and s2 = 1, the sum of one and the difference of the other differ."""
    text = """g (float["s0"] u, float["s1 + s2"] v, float["s0 - s1"] p, float["s2"] c) => (int64[1] y) {
        U = Shape(u) V = Shape(v) P = Shape(p) C = Shape(c) a = Sub(U, V) b = Add(P, C) y = Sub(b, a) }"""
    model = named_dimensions(text, {"u": "s0", "v": "s1 + s2", "p": "s0 - s1", "c": "s2"})
    before = ir_model.clone(model)
    apply(ShapeFold(), model)
    feeds = {name: np.ones(size, np.float32) for name, size in zip("uvpc", (8, 4, 5, 1), strict=True)}
    assert_same_numbers(before, model, feeds, exact=True)


def named_dimensions(text: str, names: dict[str, str]) -> ir.Model:
    """A model of vectors whose lengths have any names, which ONNX text has not."""
    for name in names.values():
        text = text.replace(f'"{name}"', "n")
    model = model_from_text(text)
    for value in model.graph.inputs:
        value.shape = ir.Shape([names[value.name or ""]])
    return model


def test_what_may_be_empty_keeps_its_computed_size() -> None:
    """Beside no rows at all a size cannot be left out: the original takes them, Reshape to [0, -1] does not."""
    text = """g (float[n,3,4] x) => (float[p,q] y) <int64[1] first={0}, int64[2] rest={1,2}, float zero={0}> {
        r = ReduceSum<keepdims=0>(x, rest) up = Greater(r, zero) found = NonZero(up) at = Squeeze(found, first)
        k = Gather(x, at) s = Shape(k) a, b, c = Split<axis=0, num_outputs=3>(s) bc = Mul(b, c)
        t = Concat<axis=0>(a, bc) y = Reshape(k, t) }"""
    model = model_from_text(text)
    infer(model)
    for node in model.graph:
        if node.op_type == "Gather":
            node.outputs[0].shape = ir.Shape(["found", "b", "c"])
    before = ir_model.clone(model)
    apply(ShapeFold(), model)
    for sign in (1, -1):
        assert_same_numbers(before, model, {"x": np.full((2, 3, 4), sign, np.float32)}, exact=True)
