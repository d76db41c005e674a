"""onnxsim on a skeleton of the model."""

import importlib.metadata

import hypothesis
import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import strategies as st

from graphopt.api import Pipeline
from graphopt.errors import PassFailedError
from graphopt.passes.simplify import SKIPPED_OPTIMIZERS, Simplify, SimplifyOptions
from graphopt.rewrite import RewriteLog
from graphopt.testing import apply, assert_same_numbers, check, check_ignores, model_from_text, text_of


def test_fires() -> None:
    check(
        Simplify(SimplifyOptions(fold_constants=True)),
        """g (float[2,3,4] x) => (float[2,12] y) <int64 i0={0}, int64[1] a0={0}, int64[1] m={-1}> {
            s = Shape(x) n = Gather(s, i0) u = Unsqueeze(n, a0) t = Concat<axis=0>(u, m)
            d = Dropout(x) e = Identity(d) y = Reshape(e, t) }""",
        "g (float[2,3,4] x) => (float[2,12] y) <int64[2] t={2,-1}> { y = Reshape(x, t) }",
        exact=True,
    )


def _with_weight() -> ir.Model:
    model = model_from_text(
        """g (float[1,8,9,9] x, float[8,8,5,5] w, float[8] b) => (float[1,8,5,5] y) <float[8] s={1,2,3,4,5,6,7,8}> {
        i = Identity(w) c = Conv(x, i, b) n = BatchNormalization(c, s, b, b, s) p = Identity(n) y = Relu(p) }"""
    )
    rng = np.random.default_rng(0)
    for value in list(model.graph.inputs)[1:]:
        shape = [int(dim) for dim in value.shape or ()]
        value.const_value = ir.tensor(rng.random(shape).astype(np.float32), name=value.name)
        model.graph.inputs.remove(value)
        model.graph.register_initializer(value)
    return model


def test_weights_are_shared_and_nothing_is_fused() -> None:
    model = _with_weight()
    before = model.clone()
    weight = model.graph.initializers["w"].const_value
    log = RewriteLog()
    next(node for node in model.graph if node.op_type == "Conv").metadata_props["graphopt.pass"] = "earlier"
    assert Simplify().run(model, log)
    assert [node.op_type for node in model.graph] == ["Conv", "BatchNormalization", "Relu"]
    assert model.graph.initializers["w"].const_value is weight
    assert next(iter(model.graph)).metadata_props["graphopt.pass"] == "earlier"
    assert [value.name for value in model.graph.inputs] == ["x"]
    assert_same_numbers(before, model, exact=True)


@pytest.mark.parametrize(
    "body",
    [
        "a = MatMul(x, w) y = Add(a, b)",
        "a = Softmax(x) y = Log(a)",
        "a = Transpose(x) y = Gemm(a, w, b)",
        "a = MatMul(x, w) c = Mul(a, b) y = Add(c, b)",
        "a = Mul(x, b) y = Mul(a, b)",
        "a = Mul(x, x) m = ReduceMean(a, axis) e = Add(m, b) r = Sqrt(e) y = Div(x, r)",
    ],
)
def test_rounding_does_not_change(body: str) -> None:
    head = "g (float[2,2] x) => (float[2,2] y) <float[2,2] w={1,2,3,4}, float[2] b={1,2}, int64[1] axis={-1}>"
    check_ignores(Simplify(), f"{head} {{ {body} }}")


ALLOWED = {
    "eliminate_common_subexpression",
    "eliminate_consecutive_idempotent_ops",
    "eliminate_deadend",
    "eliminate_duplicate_initializer",
    "eliminate_identity",
    "eliminate_nop_cast",
    "eliminate_nop_concat",
    "eliminate_nop_dropout",
    "eliminate_nop_expand",
    "eliminate_nop_flatten",
    "eliminate_nop_pad",
    "eliminate_nop_reduce",
    "eliminate_nop_reshape",
    "eliminate_nop_split",
    "eliminate_nop_transpose",
    "eliminate_optional_get_element",
    "eliminate_optional_has_element",
    "eliminate_reshape_around_elementwise",
    "eliminate_reshape_family_on_constant",
    "eliminate_sequence_at_construct",
    "eliminate_sequence_length_construct",
    "eliminate_shape_gather",
    "eliminate_shape_op",
    "eliminate_unused_initializer",
    "extract_constant_to_initializer",
    "fuse_concat_into_reshape",
    "fuse_consecutive_concats",
    "fuse_consecutive_reduce_unsqueeze",
    "fuse_consecutive_reshapes",
    "fuse_consecutive_slices",
    "fuse_consecutive_squeeze_unsqueeze",
    "fuse_consecutive_squeezes",
    "fuse_consecutive_transposes",
    "fuse_consecutive_unsqueezes",
    "fuse_reshape_family",
    "fuse_split_gather_concat",
    "nop",
    "rewrite_bool_where",
    "rewrite_where",
}


def test_every_optimizer_was_looked_at() -> None:
    """onnxsim ignores names that it does not know, and a new version may bring more; both show here."""
    import onnxsim.onnxsim_cpp2py_export as native

    Simplify().run(model_from_text("g (float[N] x) => (float[N] y) { y = Neg(x) }"), RewriteLog())
    found, known = set(native._list_optimizers()), ALLOWED | set(SKIPPED_OPTIMIZERS)
    assert found <= known
    # The last onnxsim for Python 3.10 has fewer of them.
    assert found == known or importlib.metadata.version("onnxsim").startswith("0.7.")


def test_a_failure_names_onnxsim(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxsim

    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("Nodes in a graph must be topologically sorted\nmore")

    monkeypatch.setattr(onnxsim, "simplify", fail)
    with pytest.raises(
        PassFailedError, match="onnxsim failed: Nodes in a graph must be topologically sorted"
    ):
        Simplify().run(model_from_text("g (float[N] x) => (float[N] y) { y = Neg(x) }"), RewriteLog())


def test_refuses_large_graphs() -> None:
    text = "g (float[N] x) => (float[N] y) { a = Identity(x) b = Neg(a) y = Neg(b) }"
    model, log = model_from_text(text), RewriteLog()
    assert not Simplify(SimplifyOptions(max_nodes=2)).run(model, log)
    assert "max_nodes=2" in log.refused[0].reason
    assert text_of(model) == text_of(model_from_text(text))


def test_refuses_inputs_of_unknown_rank() -> None:
    model = model_from_text("g (float[N] x) => (float[N] y) { i = Identity(x) y = Relu(i) }")
    model.graph.inputs[0].shape = None
    log = RewriteLog()
    assert not Simplify().run(model, log)
    assert "unknown rank: 'x'" in log.refused[0].reason


def test_the_gate_is_asked() -> None:
    text = "g (float[N] x) => (float[N] y) { a = Identity(x) y = Neg(a) }"
    model, log = model_from_text(text), RewriteLog()
    assert not Simplify().run(model, log, lambda application: False)
    assert not log.applied and text_of(model) == text_of(model_from_text(text))


def test_branches_and_outer_weights() -> None:
    values = ",".join(["1.5"] * 1200)
    text = f"""g (float[N,1200] x, bool c) => (float[N,1200] y) <float[1200] w={{{values}}}> {{
        i = Identity(x)
        y = If(c) <then_branch = t () => (float[N,1200] a) {{ p = Identity(w) a = Add(i, p) }},
                   else_branch = e () => (float[N,1200] b) <float[1200] v={{{values}}}> {{ b = Mul(i, v) }}> }}"""
    model, _ = apply(Simplify(), text)
    assert len(model.graph) == 1
    assert_same_numbers(model_from_text(text), model, exact=True)


@hypothesis.settings(derandomize=True, deadline=None, max_examples=20)
@hypothesis.given(
    st.lists(
        st.sampled_from(["Identity", "Neg", "Transpose", "Relu", "Dropout", "Abs", "Exp", "Add", "Mul"]),
        min_size=1,
        max_size=8,
    )
)
def test_any_chain(ops: list[str]) -> None:
    body = []
    for index, op in enumerate(ops):
        operands = f"v{index}, c" if op in ("Add", "Mul") else f"v{index}"
        body.append(f"v{index + 1} = {op}({operands})")
    text = f"g (float[N,N] v0) => (float[N,N] v{len(ops)}) <float c={{2}}> {{ {' '.join(body)} }}"
    model, _ = apply(Simplify(), text)
    assert_same_numbers(model_from_text(text), model, exact=True)


@pytest.mark.parametrize(
    "drawn",
    [
        "RandomNormal <shape=[64]> ()", "RandomUniformLike(x)", "RandomNormalLike(x)", "Bernoulli(x)",
        "Dropout(x, ratio, trains)",
    ],
)  # fmt: skip
def test_nodes_that_draw_numbers_stay_two(drawn: str) -> None:
    """onnxsim itself takes the second for the first, so that their difference is zero."""
    model = model_from_text(
        "g (float[64] x) => (float[64] y) <float ratio = {0.5}, bool trains = {1}> "
        f"{{ a = {drawn} b = {drawn} y = Sub(a, b) }}"
    )
    after = Pipeline("fold,fuse").run(model)
    kinds = [node.op_type for node in after.graph]
    assert kinds.count(drawn.split("(")[0].split(" ")[0]) == 2
