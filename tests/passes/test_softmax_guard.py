"""The guard against NaN after a softmax, and the bounds that make it needless."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.passes._bounds import UNKNOWN, Bounds
from graphopt.passes.softmax_guard import SoftmaxGuard
from graphopt.testing import apply, check, check_ignores, check_refuses, model_from_text, run

GUARD = "p = Softmax(s) n = IsNaN(p) w = Where(n, zero, p) "
KEYS = 8
INFINITE = (
    f"g (float[B,2,Q,4] q, float[B,2,4,{KEYS}] k, float[B,2,{KEYS},4] v, bool[B,1,Q,{KEYS}] mask)"
    " => (float[B,2,Q,4] y) <float zero={0}, float low={-inf}>"
    "{ c = MatMul(q, k) a = Where(mask, zero, low) s = Add(c, a) " + GUARD + "y = MatMul(w, v) }"
)


def lookup(mask: str, scores: str = "c = MatMul(q, t)", table: str = "1,2,3,4,5,-6,7,8") -> str:
    """Attention over rows of a table, as in a model whose inputs are tokens."""
    return (
        f"g (int64[B,{KEYS}] ids, bool[B,1,{KEYS}] mask) => (float[B,{KEYS},2] y)"
        f" <float[4,2] table={{{table}}}, float[2] gamma={{1,2}}, float zero={{0}}, float big={{1e32}},"
        " float low={-3.4028234663852886e+38}, float minus_inf={-inf}>"
        f"{{ e = Gather(table, ids) q = LayerNormalization(e, gamma) t = Transpose<perm=[0,2,1]>(q) {scores} {mask} "
        f"{GUARD} y = MatMul(w, q) }}"
    )


def operators(model: object) -> list[str]:
    return [node.op_type for node in model.graph]  # type: ignore[attr-defined]


def feeds(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {"q": (2, 2, 3, 4), "k": (2, 2, 4, KEYS), "v": (2, 2, KEYS, 4)}
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    return {**arrays, "mask": rng.integers(0, 2, (2, 1, 3, KEYS)).astype(bool)}


def test_drops_where_scores_are_bounded_and_the_mask_is_finite() -> None:
    mask = "a = Where(mask, zero, low) s = Add(c, a)"
    model = check(SoftmaxGuard(), lookup(mask), exact=True)
    assert "IsNaN" not in operators(model) and "Where" in operators(model)
    model = check(SoftmaxGuard(), lookup("s = Neg(c) m2 = Not(mask)"), exact=True)
    assert "IsNaN" not in operators(model) and "Slice" not in operators(model)


def test_drops_behind_a_constant_mask_that_leaves_each_row_an_entry() -> None:
    causal = np.where(np.tril(np.ones((KEYS, KEYS))), 0, -np.inf)
    for spoilt in (False, True):
        if spoilt:
            causal[3] = -np.inf
        numbers = ",".join(map(str, causal.ravel()))
        before = lookup("s = Add(c, causal)").replace(
            "<float[4,2]", f"<float[8,8] causal={{{numbers}}}, float[4,2]"
        )
        model = check(SoftmaxGuard(), before, exact=True)
        assert ("IsNaN" in operators(model)) == spoilt


@pytest.mark.parametrize(
    "before",
    [
        lookup("a = Where(mask, zero, minus_inf) s = Add(c, a)"),
        lookup("a = Where(mask, zero, low) s = Add(c, a)", "d = MatMul(q, t) c = Mul(d, big)"),
        lookup("a = Where(mask, zero, low) s = Add(c, a)", table="1,2,3,4,5,-inf,7,8"),
        lookup("a = Where(mask, zero, low) s = Add(c, a)", "d = MatMul(q, t) c = Sqrt(d)"),
    ],
)
def test_moves_where_a_row_may_be_nan(before: str) -> None:
    model = check(SoftmaxGuard(), before, exact=True)
    assert "IsNaN" in operators(model) and operators(model)[-1] == "Where"
    assert ("ReduceSum" in operators(model)) == ("-inf,7" in before)


def test_moves_behind_the_product() -> None:
    after = (
        INFINITE.split(" => ")[0]
        + " => (float[B,2,Q,4] y) <float zero={0}, float low={-inf}, int64[1] f={0},"
        " int64[1] l={1}, int64[1] ax={-1}, int64[1] ax2={-2}>"
        "{ c = MatMul(q, k) a = Where(mask, zero, low) s = Add(c, a) p = Softmax(s) h = Slice(p, f, l, ax)"
        " n = IsNaN(h) z = Mul(v, zero) r = ReduceSum<keepdims=1>(z, ax2) m = MatMul(p, v) y = Where(n, r, m) }"
    )
    check(SoftmaxGuard(), INFINITE, after, exact=True)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 99),
    name=st.sampled_from("qkv"),
    number=st.sampled_from([np.nan, np.inf, -np.inf, 1e38, 0.0]),
    masked=st.booleans(),
)
def test_moving_keeps_what_is_not_finite(seed: int, name: str, number: float, masked: bool) -> None:
    before = model_from_text(INFINITE)
    after, _ = apply(SoftmaxGuard(), before)
    given_ = feeds(seed)
    given_[name].flat[seed % given_[name].size] = number
    if masked:
        given_["mask"][0, 0, 1] = False
    wanted, got = run(before, given_)["y"], run(after, given_)["y"]
    np.testing.assert_array_equal(got, wanted)
    if masked and name != "v":
        assert not wanted[0, :, 1].any()


def test_refuses_weights_that_are_used_elsewhere() -> None:
    output = INFINITE.replace("(float[B,2,Q,4] y)", f"(float[B,2,Q,4] y, float[B,2,Q,{KEYS}] w)")
    check_refuses(SoftmaxGuard(), output, "read by more than a product")
    other = INFINITE.replace("y = MatMul(w, v)", "o = MatMul(w, v) o2 = MatMul(w, v) y = Sub(o, o2)")
    check_refuses(SoftmaxGuard(), other, "used elsewhere")


def test_refuses_few_keys() -> None:
    check_refuses(SoftmaxGuard(), INFINITE.replace(f"{KEYS}]", "7]").replace(f"{KEYS},4]", "7,4]"), "too few")


@pytest.mark.parametrize(
    "before",
    [
        INFINITE.replace("Softmax(s)", "Softmax<axis=2>(s)"),
        INFINITE.replace("Where(n, zero, p)", "Where(n, low, p)"),
        INFINITE.replace("IsNaN(p)", "IsNaN(s)"),
        INFINITE.replace("Where(n, zero, p)", "Where(n, p, zero)"),
        INFINITE.replace("Softmax(s)", "Sigmoid(s)"),
    ],
)
def test_ignores_near_misses(before: str) -> None:
    check_ignores(SoftmaxGuard(), before)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(seed=st.integers(0, 999), steps=st.integers(1, 6))
def test_no_element_exceeds_its_bound(seed: int, steps: int) -> None:
    rng = np.random.default_rng(seed)
    kinds = [
        "{o} = Add({a}, {b})",
        "{o} = Mul({a}, {b})",
        "{o} = Sub({a}, {b})",
        "{o} = MatMul({a}, {b})",
        "{o} = Gemm<transA=1, alpha=2.0>({a}, {b}, row)",
        "{o} = Div({a}, row)",
        "{o} = Max({a}, {b})",
        "{o} = Clip({a}, big, big)",
        "{o} = Tanh({a})",
        "{o} = Gelu({a})",
        "{o} = Softmax({a})",
        "{o} = LayerNormalization({a}, row, row)",
        "{o} = Where(mask, {a}, {b})",
        "{o} = Transpose({a})",
    ]
    names, body = ["x"], "x = Gather(table, ids) "
    for step in range(steps):
        a, b = rng.choice(names, 2)
        body += kinds[rng.integers(len(kinds))].format(o=f"v{step}", a=a, b=b) + " "
        names.append(f"v{step}")
    table = ",".join(f"{number:.3f}" for number in rng.normal(0, 3, 20))
    model = model_from_text(
        f"g (int64[4] ids, bool[4,4] mask) => (float[4,4] v{steps - 1}) <float[5,4] table={{{table}}},"
        f" float[4] row={{-0.5,1,2,3}}, float big={{50}}> {{ {body} }}"
    )
    bound = Bounds().magnitude(model.graph.outputs[0])
    result = run(model, {"ids": rng.integers(0, 5, 4), "mask": rng.integers(0, 2, (4, 4)).astype(bool)})
    assert np.abs(result[f"v{steps - 1}"]).max() <= bound
    assert bound < UNKNOWN or steps > 1
