"""Zeros inside weights: the patterns, the Optimal Brain Surgeon, the compressed form."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.errors import DataError, UsageError
from graphopt.ir.facts import Array
from graphopt.prune.sparse import Pattern, compressed_2_4, expanded_2_4, loss, scores, sparse_gpt
from graphopt.prune.sparse_weights import Part, Sums, parts_of, solved
from graphopt.prune.structure import layers_of
from graphopt.prune.walk import most_kept
from graphopt.quant.blocks import Scheme, gptq
from graphopt.testing import model_from_text

PATTERNS = [Pattern(2, 4), Pattern(1, 2), Pattern(1, 4), Pattern(3, 8), Pattern(5, 7)]
seeds = st.integers(0, 2**32 - 1)


def correlated(rng: np.random.Generator, rows: int, columns: int) -> Array:
    """Rows whose numbers hang together, and differ in their size."""
    mixed = rng.standard_normal((rows, columns)) @ rng.standard_normal((columns, columns))
    return (
        mixed / np.sqrt(columns) * rng.uniform(0.3, 3, columns) + rng.standard_normal((rows, columns)) * 0.1
    )


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@settings(derandomize=True, deadline=None, max_examples=12)
@given(seed=seeds)
def test_every_block_has_just_as_many_zeros_as_the_pattern_says(pattern: Pattern, seed: int) -> None:
    rng = np.random.default_rng(seed)
    columns = pattern.block * int(rng.integers(1, 40))
    weight = rng.standard_normal((int(rng.integers(1, 6)), columns))
    rows = correlated(rng, 2 * columns, columns)
    found = sparse_gpt(weight, rows.T @ rows, pattern)
    assert found is not None and np.isfinite(found).all()
    for array in (found, np.where(pattern.zeros(scores(weight)), 0, weight)):
        kept = np.count_nonzero(array.reshape(len(weight), -1, pattern.block), axis=-1)
        assert (kept == pattern.kept).all() and pattern.holds(array)
    assert not pattern.holds(np.ones((1, pattern.block)))


@settings(derandomize=True, deadline=None, max_examples=40)
@given(seed=seeds, share=st.floats(0, 0.99))
def test_a_share_of_all_numbers_becomes_zero(seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((7, 300))
    assert np.count_nonzero(Pattern().zeros(scores(weight), share)) == round(share * weight.size)
    rows = correlated(rng, 600, 300)
    found = sparse_gpt(weight, rows.T @ rows, Pattern(), share)
    assert found is not None
    # Of 128 columns together.
    sizes = [7 * 128, 7 * 128, 7 * 44]
    assert np.count_nonzero(found == 0) == sum(round(share * size) for size in sizes)


def test_the_numbers_of_least_score_go() -> None:
    weight = np.asarray([[3.0, -1.0, 2.0, 0.5, 4.0, 4.0, 0.0, 1.0]])
    assert Pattern(2, 4).zeros(scores(weight)).tolist() == [
        [False, True, False, True, False, False, True, True]
    ]
    squares = np.asarray([0.01, 9.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    assert Pattern(2, 4).zeros(scores(weight, squares))[0, :4].tolist() == [True, False, False, True]


@settings(derandomize=True, deadline=None, max_examples=30)
@given(seed=seeds)
def test_one_number_that_goes_is_made_up_for_as_the_surgeon_says(seed: int) -> None:
    """Without w_q, the others change by -w_q / [H^-1]_qq times column q of H^-1, and w_q^2 / [H^-1]_qq is lost."""
    rng = np.random.default_rng(seed)
    size = 12
    rows = correlated(rng, 60, size)
    hessian = rows.T @ rows
    hessian += 0.01 * np.diag(hessian).mean() * np.eye(size)
    inverse = np.linalg.inv(hessian)
    weight = rng.choice([-1.0, 1.0], (1, size)) * rng.uniform(1, 2, (1, size))
    # The first of all, so that all others may make up for it.
    weight[0, 0] = 1e-3
    found = sparse_gpt(weight, hessian, Pattern(), 1 / size, damping=0.0)
    assert found is not None
    wanted = weight - weight[0, 0] / inverse[0, 0] * inverse[:, 0]
    np.testing.assert_allclose(found, np.where(np.arange(size) == 0, 0, wanted), rtol=1e-9, atol=1e-12)
    assert loss(found - weight, hessian) == pytest.approx(weight[0, 0] ** 2 / inverse[0, 0], rel=1e-6)


def test_the_last_number_has_no_others_to_make_up_for_it() -> None:
    rng = np.random.default_rng(0)
    rows = correlated(rng, 60, 12)
    weight = rng.uniform(1, 2, (3, 12))
    weight[:, -1] = 1e-3
    found = sparse_gpt(weight, rows.T @ rows, Pattern(), 1 / 12)
    assert found is not None
    np.testing.assert_array_equal(found[:, :-1], weight[:, :-1])
    assert not found[:, -1].any()


@pytest.mark.parametrize("pattern", [Pattern(2, 4), Pattern(1, 4), Pattern()], ids=str)
def test_sparse_gpt_loses_less_than_wanda_and_wanda_less_than_magnitudes(pattern: Pattern) -> None:
    """Not a theorem, so asserted for inputs that hang together: each case for the first, all in all for the second."""
    lost = []
    for seed in range(16):
        rng = np.random.default_rng(seed)
        rows = correlated(rng, 500, 136)
        moments = rows.T @ rows
        weight = rng.standard_normal((16, 136))
        made = sparse_gpt(weight, moments, pattern, 0.5)
        wanda = np.where(pattern.zeros(scores(weight, np.diag(moments)), 0.5), 0, weight)
        plain = np.where(pattern.zeros(scores(weight), 0.5), 0, weight)
        assert made is not None
        lost.append([loss(array - weight, moments) for array in (made, wanda, plain)])
    by_surgeon, by_wanda, by_magnitude = np.asarray(lost).T
    assert (by_surgeon < by_wanda).all()
    assert by_wanda.mean() < 0.95 * by_magnitude.mean()


def test_columns_are_taken_in_pieces_without_a_difference() -> None:
    """What reaches the columns behind a piece is what would have reached them one by one."""
    rng = np.random.default_rng(1)
    rows = correlated(rng, 400, 140)
    weight, hessian = rng.standard_normal((4, 140)), rows.T @ rows
    found = sparse_gpt(weight, hessian, Pattern(2, 4), damping=0.01)
    damped = hessian + 0.01 * np.diag(hessian).mean() * np.eye(140)
    work = weight.copy()
    for column in range(140):
        # Without the columns that are done: the inverse anew each time.
        inverse = np.linalg.inv(damped[column:, column:])
        if column % 4 == 0:
            diagonal = np.asarray([np.linalg.inv(damped[at:, at:])[0, 0] for at in range(column, column + 4)])
            zeros = Pattern(2, 4).zeros(np.square(work[:, column : column + 4]) / diagonal)
        gone = zeros[:, column % 4]
        step = np.where(gone, work[:, column], 0) / inverse[0, 0]
        work[:, column:] -= np.outer(step, inverse[0])
        work[gone, column] = 0
    np.testing.assert_allclose(found, work, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("order", ["C", "F"])
def test_the_weight_that_is_given_stays(order: str) -> None:
    weight = np.asarray(np.random.default_rng(0).standard_normal((3, 8)), order=order)  # type: ignore[call-overload]
    before = weight.copy()
    assert sparse_gpt(weight, np.eye(8), Pattern(2, 4)) is not weight
    np.testing.assert_array_equal(weight, before)


def test_moments_that_say_nothing_leave_magnitudes() -> None:
    weight = np.random.default_rng(0).standard_normal((3, 8))
    found = sparse_gpt(weight, np.zeros((8, 8)), Pattern(2, 4))
    np.testing.assert_array_equal(found, np.where(Pattern(2, 4).zeros(scores(weight)), 0, weight))


@pytest.mark.parametrize(
    "text", ["4:2", "x", "2:2", "0:4", "2", "2:4:8", "-2:4", "2:128", "", "Unstructured", "1.5:4"]
)
def test_what_is_no_pattern(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        Pattern.parse(text)
    assert "pattern=2:4" in (caught.value.hint or "")


def test_patterns_as_text() -> None:
    for text in ("2:4", "1:2", "5:7", "unstructured"):
        assert str(Pattern.parse(text)) == text
    assert Pattern.parse("1:4").share == 0.75


# -- one layer ---------------------------------------------------------------------------------------------------


def net(body: str, constants: str, dims: str) -> ir.Model:
    model = model_from_text(f"g (float[N,{dims}] x) => (float[N,M] y) <{constants}> {{ {body} }}")
    rng = np.random.default_rng(0)
    for value in model.graph.initializers.values():
        if value.dtype == ir.DataType.FLOAT:
            shape = [int(size) for size in value.shape]  # type: ignore[union-attr]
            value.const_value = ir.tensor(rng.standard_normal(shape).astype(np.float32), name=value.name)
    return model


def parts(model: ir.Model, pattern: str = "2:4", keep: str = "") -> tuple[list[Part], dict[str, str]]:
    return parts_of(layers_of(model.graph), Pattern.parse(pattern), lambda name: name == keep)


def product() -> Part:
    (part,), _ = parts(net("y = MatMul(x, w)", "float[16,6] w = {0}", "16"))
    return part


def test_a_convolution_has_its_pattern_along_the_channels_that_it_reads() -> None:
    model = net("p = Conv <group=2> (x, w) y = Flatten(p)", "float[6,8,3,3] w = {0}", "16,5,5")
    (part,), refused = parts(model)
    assert not refused
    matrix = part.matrix(part.weight)
    np.testing.assert_array_equal(part.restored(matrix), part.weight)
    assert matrix.shape == (2, 3, 72)
    # The first four numbers of a sum are four channels at one place of the kernel.
    np.testing.assert_array_equal(matrix[1, 0, :4], part.weight[3, :4, 0, 0])
    made = part.restored(np.where(Pattern(2, 4).zeros(scores(matrix)), 0, matrix))
    assert Pattern(2, 4).holds(np.moveaxis(made, 1, -1)) and not Pattern(2, 4).holds(made.reshape(6, -1))


def test_sums_are_turned_as_the_weight_is() -> None:
    (part,), _ = parts(net("p = Conv(x, w) y = Flatten(p)", "float[5,4,3,3] w = {0}", "4,6,6"))
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((1, 50, 36))
    sums = Sums()
    sums.add(rows)
    found = part.turned(sums.means)[0]
    weight = part.weight.reshape(5, -1)
    turned = part.matrix(part.weight)[0]
    assert loss(turned, found[:-1, :-1]) == pytest.approx(np.square(rows[0] @ weight.T).sum() / 50, rel=1e-6)
    np.testing.assert_allclose(
        found[-1, :-1] @ turned.T, (rows[0] @ weight.T).mean(axis=0), rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize(
    ("body", "constants", "dims", "reason"),
    [
        ("p = Conv(x, w) y = Flatten(p)", "float[4,3,1,1] w = {0}", "3,4,4", "its 3 input channels are no multiple of 4"),
        ("p = Conv <group=2> (x, w) y = Flatten(p)", "float[4,2,1,1] w = {0}", "4,4,4",
         "its 2 input channels of a group are no multiple of 4"),
        ("p = Conv <group=8> (x, w) y = Flatten(p)", "float[8,1,1,1] w = {0}", "8,4,4", "it is depthwise"),
        ("p = ConvTranspose(x, w) y = Flatten(p)", "float[8,4,1,1] w = {0}", "8,4,4", "transposed convolution"),
        ("y = MatMul(x, w)", "float[6,4] w = {0}", "6", "its 6 input numbers are no multiple of 4"),
        ("y = Gemm <alpha=0.0> (x, w)", "float[8,4] w = {0}", "8", "alpha is 0"),
        ("p = MatMul(x, w) q = MatMul(p, w) r = Add(q, w) y = MatMul(r, w)", "float[8,8] w = {0}", "8",
         "its weight is read by something else too"),
    ],
)  # fmt: skip
def test_what_gets_no_zeros(body: str, constants: str, dims: str, reason: str) -> None:
    found, refused = parts(net(body, constants, dims))
    assert not found and all(reason in text for text in refused.values()) and refused


def test_a_weight_that_is_not_finite_gets_no_zeros() -> None:
    model = net("y = MatMul(x, w)", "float[8,4] w = {0}", "8")
    model.graph.initializers["w"].const_value = ir.tensor(np.full((8, 4), np.nan, np.float32), name="w")
    assert parts(model) == ([], {"MatMul_0": "its weight is not finite"})


def test_layers_can_be_kept_and_zeros_anywhere_need_no_multiple() -> None:
    model = net("y = MatMul(x, w)", "float[6,4] w = {0}", "6")
    assert parts(model, "unstructured")[0]
    assert parts(model, "unstructured", keep="MatMul_0") == ([], {"MatMul_0": "the option 'keep' names it"})


@settings(derandomize=True, deadline=None, max_examples=30)
@given(seed=seeds, samples=st.integers(1, 12))
def test_a_layer_never_loses_more_than_with_zeros_alone(seed: int, samples: int) -> None:
    """On the samples that are kept apart: the weight with zeros and no other change is among those tried."""
    part, rng = product(), np.random.default_rng(seed)
    train, test = Sums(), Sums()
    for index in range(samples):
        rows = correlated(rng, 16, 16).astype(np.float32)[None]
        (test if index % 4 == 3 else train).add(rows)
    found = solved(part, Pattern(2, 4), 0.0, train, test if test.rows else train, shifts=False)
    if samples < 2:
        assert found == "too few inputs were seen for second moments"
        return
    assert not isinstance(found, str)
    assert found.outcome.after <= found.outcome.before * (1 + 1e-9)  # type: ignore[operator]
    assert Pattern(2, 4).holds(found.weight.T) and not found.shift.any()


def test_the_bias_makes_up_for_means() -> None:
    part, rng = product(), np.random.default_rng(0)
    train, test = Sums(), Sums()
    for index in range(16):
        rows = (3 + correlated(rng, 32, 16)).astype(np.float32)[None]
        (test if index % 4 == 3 else train).add(rows)
    plain = solved(part, Pattern(2, 4), 0.0, train, test, shifts=False)
    shifted = solved(part, Pattern(2, 4), 0.0, train, test, shifts=True)
    assert not isinstance(plain, str) and not isinstance(shifted, str)
    assert shifted.outcome.after < plain.outcome.after  # type: ignore[operator]
    # The means of the outputs stay.
    mean = train.means[0, -1, :-1]
    np.testing.assert_allclose(
        mean @ shifted.weight + shifted.shift, mean @ part.weight, rtol=1e-4, atol=1e-4
    )


def test_what_is_not_finite_is_said() -> None:
    part = product()
    sums = Sums()
    sums.add(np.full((1, 64, 16), np.inf, np.float32))
    assert (
        solved(part, Pattern(2, 4), 0.0, sums, sums, shifts=False)
        == "what it reads is not finite on the data"
    )


def test_what_a_walk_keeps_at_most() -> None:
    model = model_from_text(
        "g (float[4] x) => (float[4] y) { a = Relu(x) b = Neg(a) c = Add(a, b) d = Abs(c) y = Add(d, x) }"
    )
    sizes = {"x": 1, "a": 10, "b": 100, "c": 1000, "d": 10000, "y": 100000}
    # x, c and d: nothing reads y, and a and b are forgotten by then.
    assert most_kept(model, sizes) == 11001


# -- the compressed form -----------------------------------------------------------------------------------------


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    seed=seeds,
    dtype=st.sampled_from(["float16", "float32", "int8"]),
    rows=st.integers(1, 5),
    fours=st.integers(1, 20),
)
def test_the_compressed_form_gives_the_weight_back(seed: int, dtype: str, rows: int, fours: int) -> None:
    rng = np.random.default_rng(seed)
    weight = rng.integers(-9, 10, (rows, 4 * fours)).astype(dtype)
    weight[Pattern(2, 4).zeros(rng.random(weight.shape))] = 0
    values, metadata = compressed_2_4(weight)
    assert values.shape == (rows, 2 * fours) and values.dtype == weight.dtype
    assert metadata.shape == (rows, -(-fours // 4)) and metadata.dtype == np.uint16
    np.testing.assert_array_equal(expanded_2_4(values, metadata), weight)
    # PTX: the first place is smaller, so 0b0000, 0b0101, 0b1010 and 0b1111 are invalid, in the padding too.
    nibbles = metadata[..., None] >> (4 * np.arange(4)) & 0xF
    assert ((nibbles & 3) < (nibbles >> 2)).all()


def test_the_compressed_form_is_that_of_torch() -> None:
    """As torch makes it for CUTLASS, whose order of the words is undone."""
    torch = pytest.importorskip("torch")
    from torch.sparse import _semi_structured_conversions as conversions

    rng = np.random.default_rng(0)
    weight = rng.standard_normal((64, 128)).astype(np.float16)
    weight[Pattern(2, 4).zeros(rng.random(weight.shape))] = 0
    weight[rng.random(weight.shape) < 0.3] = 0
    values, metadata = compressed_2_4(weight)
    theirs, reordered = conversions.sparse_semi_structured_from_dense_cutlass(torch.from_numpy(weight))
    offsets = conversions._calculate_meta_reordering_scatter_offsets(64, 8, torch.int16, "cpu")
    words = torch.gather(reordered.view(-1), 0, offsets).view(64, 8)
    np.testing.assert_array_equal(values, theirs.numpy())
    np.testing.assert_array_equal(metadata, words.numpy().view(np.uint16))


def test_a_small_weight_by_hand() -> None:
    weight = np.asarray([[5, 0, 0, 7, 0, 3, 0, 0]], np.float32)
    values, metadata = compressed_2_4(weight)
    assert values.tolist() == [[5, 7, 3, 0]]
    assert metadata.tolist() == [[0b0100_0100_1001_1100]]


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (np.ones((2, 8), np.float32), "more than two of four"),
        (np.zeros((2, 6), np.float32), "has no 2:4 form"),
        (np.zeros(8, np.float32), "has no 2:4 form"),
    ],
)
def test_what_has_no_compressed_form(weight: Array, message: str) -> None:
    with pytest.raises(DataError, match=message):
        compressed_2_4(weight)


# -- what comes after --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", [Scheme(8, 32, True), Scheme(4, 16, True), Scheme(4, 16, False)])
def test_rounding_by_reconstruction_keeps_zeros(scheme: Scheme) -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((32, 20)).astype(np.float32)
    weight[Pattern(2, 4).zeros(scores(weight.T)).T] = 0
    rows = correlated(rng, 200, 32)
    moments = rows.T @ rows
    kept = gptq(weight, moments, scheme, keep_zeros=True).restored(scheme.block)
    free = gptq(weight, moments, scheme).restored(scheme.block)
    assert not kept[weight == 0].any() and free[weight == 0].any()
    near = loss((kept - weight).T, moments) / loss(weight.T, moments)
    assert near < (0.001 if scheme.bits == 8 else 0.2)
