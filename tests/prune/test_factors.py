"""Two products in place of one: exact at the full rank, and below it as near on the data as any of that rank."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.ir import check, provenance, shapes
from graphopt.ir import model as ir_model
from graphopt.prune import factors, moments
from graphopt.prune.bias import can_be_centred
from graphopt.prune.factors import Factors, Moments
from graphopt.prune.ranks import Choice, cheapest, milliseconds_at
from graphopt.prune.structure import Layer, layers_of
from graphopt.testing import model_from_text, run


@dataclass(frozen=True)
class Case:
    body: str
    constants: str
    data: tuple[int, ...]
    result: str


CASES = {
    "MatMul": Case("p = MatMul(x, w) y = Add(p, b)", "float[12,9] w = {0}, float[9] b = {0}", (5, 12), "N,5,9"),
    "MatMul, wide": Case("p = MatMul(x, w) y = Add(b, p)", "float[6,14] w = {0}, float[14] b = {0}", (5, 6), "N,5,14"),
    "MatMul, square": Case("p = MatMul(x, w) y = Add(b, p)", "float[9,9] w = {0}, float[9] b = {0}", (5, 9), "N,5,9"),
    "MatMul alone": Case("y = MatMul(x, w)", "float[12,9] w = {0}", (5, 12), "N,5,9"),
    "MatMul alone, wide": Case("y = MatMul(x, w)", "float[6,14] w = {0}", (6,), "N,14"),
    "Gemm": Case("y = Gemm(x, w, b)", "float[12,9] w = {0}, float[9] b = {0}", (12,), "N,9"),
    "Gemm, scaled": Case(
        "y = Gemm <transB=1, alpha=0.5, beta=2.0> (x, w, b)", "float[9,12] w = {0}, float[9] b = {0}", (12,), "N,9"
    ),
    "Gemm, wide": Case("y = Gemm <transB=1> (x, w, b)", "float[14,6] w = {0}, float[14] b = {0}", (6,), "N,14"),
    "Gemm without a bias": Case("y = Gemm <beta=3.0> (x, w)", "float[12,9] w = {0}", (12,), "N,9"),
    "Gemm with one number": Case("y = Gemm(x, w, b)", "float[12,9] w = {0}, float[1] b = {0}", (12,), "N,9"),
    "Gemm with rows": Case("y = Gemm(x, w, b)", "float[12,9] w = {0}, float[1,9] b = {0}", (12,), "N,9"),
    "Conv 1x1": Case("y = Conv(x, w, b)", "float[8,12,1,1] w = {0}, float[8] b = {0}", (12, 4, 5), "N,8,4,5"),
    "Conv 1x1, strided": Case(
        "y = Conv <strides=[2,1], pads=[1,0,1,2]> (x, w, b)", "float[8,12,1,1] w = {0}, float[8] b = {0}",
        (12, 5, 4), "N,8,4,6",
    ),
    "Conv 3x3": Case(
        "y = Conv <strides=[2,2], pads=[1,1,1,1], kernel_shape=[3,3]> (x, w)", "float[8,3,3,3] w = {0}", (3, 7, 7),
        "N,8,4,4",
    ),
    "Conv 3x2, wide": Case(
        "y = Conv <dilations=[1,2]> (x, w, b)", "float[14,2,3,2] w = {0}, float[14] b = {0}", (2, 6, 6), "N,14,4,4"
    ),
    "Conv of a line": Case("y = Conv <pads=[1,1]> (x, w)", "float[6,4,3] w = {0}", (4, 9), "N,6,9"),
}  # fmt: skip
SAMPLES, ROWS = 12, 3


def model_of(case: Case, rng: np.random.Generator) -> ir.Model:
    dims = ",".join(map(str, case.data))
    model = model_from_text(
        f"g (float[N,{dims}] x) => (float[{case.result}] y) <{case.constants}> {{ {case.body} }}"
    )
    for value in model.graph.initializers.values():
        shape = [int(size) for size in value.shape]  # type: ignore[union-attr]
        value.const_value = ir.tensor(rng.standard_normal(shape).astype(np.float32), name=value.name)
    shapes.infer(model)
    return model


def samples_of(case: Case, rng: np.random.Generator, count: int = SAMPLES) -> list[dict[str, np.ndarray]]:
    """Numbers that go together, around a mean that is not zero."""
    size = int(np.prod(case.data))
    mix = rng.standard_normal((size, size)) * np.geomspace(3, 0.05, size)[:, None]
    offset = rng.standard_normal(size)
    return [
        {"x": (rng.standard_normal((ROWS, size)) @ mix + offset).reshape(ROWS, *case.data).astype(np.float32)}
        for _ in range(count)
    ]


def only_layer(model: ir.Model) -> Layer:
    (layer,) = layers_of(model.graph)
    return layer


def rows_of(layer: Layer, samples: list[dict[str, np.ndarray]]) -> list[np.ndarray]:
    return [moments.rows_of(layer, feeds["x"], number)[0] for number, feeds in enumerate(samples)]


def factors_of(model: ir.Model, samples: list[dict[str, np.ndarray]], damping: float = 1e-3) -> Factors:
    layer = only_layer(model)
    sums = Moments.of(layer)
    for rows in rows_of(layer, samples):
        sums.add(rows)
    return factors.factorize(sums, factors.side(layer), centred=can_be_centred(layer), damping=damping)


def split(model: ir.Model, made: Factors, rank: int) -> ir.Model:
    copy = ir_model.clone(model)
    factors.split(copy.graph, only_layer(copy), made, rank)
    check.check(copy)
    return copy


def outputs(model: ir.Model, samples: list[dict[str, np.ndarray]]) -> np.ndarray:
    """[channels, all places], float64."""
    layer_axis = 1 if any(node.op_type == "Conv" for node in model.graph) else -1
    found = [np.moveaxis(run(model, feeds)["y"], layer_axis, 0) for feeds in samples]
    return np.concatenate([array.reshape(len(array), -1) for array in found], axis=1).astype(np.float64)


def without_bias(model: ir.Model, made: np.ndarray) -> np.ndarray:
    """What the weight alone makes: with zeros in place of the bias."""
    zeros = run(model, {"x": np.zeros([1, *model.graph.inputs[0].shape[1:]], np.float32)})["y"]  # type: ignore[index]
    axis = 1 if any(node.op_type == "Conv" for node in model.graph) else -1
    bias = np.moveaxis(zeros, axis, 0).reshape(made.shape[0], -1)[:, :1]
    return np.asarray(made - bias)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("seed", range(3))
def test_the_full_rank_is_the_layer_itself(name: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    model = model_of(CASES[name], rng)
    samples = samples_of(CASES[name], rng)
    made = factors_of(model, samples)
    full = factors.side(only_layer(model))
    fresh = [{"x": rng.standard_normal((2, *CASES[name].data)).astype(np.float32)}]
    wanted, got = outputs(model, fresh), outputs(split(model, made, full), fresh)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-4 * np.abs(wanted).max())
    assert made.lost[full] == 0 and made.plain[full] == 0


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("seed", range(3))
def test_no_product_of_a_rank_is_nearer_on_the_data(name: str, seed: int) -> None:
    """What is lost is the tail of the singular values of the whitened weight, computed here in another way."""
    rng = np.random.default_rng(seed)
    model = model_of(CASES[name], rng)
    samples = samples_of(CASES[name], rng)
    layer = only_layer(model)
    rows = np.concatenate(rows_of(layer, samples)).astype(np.float64)
    content = layer.weight.const_value
    assert content is not None
    weight = moments.matrices(layer, content.numpy())[0].astype(np.float64)
    centre = rows.mean(axis=0) if can_be_centred(layer) else 0.0
    # The singular values of what the weight makes of all rows: those of W L, where L L' are the second moments.
    values = np.linalg.svd((rows - centre) @ weight.T, compute_uv=False)
    power = np.square(rows @ weight.T).sum()
    best, damped = factors_of(model, samples, damping=1e-12), factors_of(model, samples)
    full = factors.side(layer)
    cut, _, _ = np.linalg.svd(weight, full_matrices=False)
    wanted = outputs(model, samples)
    for rank in range(full + 1):
        optimum = np.square(values[rank:]).sum() / power
        assert best.lost[rank] == pytest.approx(optimum, rel=1e-5, abs=1e-9)
        plain = weight - (cut[:, :rank] @ cut[:, :rank].T) @ weight
        assert damped.plain[rank] == pytest.approx(
            np.square(rows @ plain.T).sum() / power, rel=1e-5, abs=1e-9
        )
        assert optimum - 1e-9 <= damped.lost[rank] <= damped.plain[rank] + 1e-9
        if rank and rank % 2 == 0:
            wrong = outputs(split(model, damped, rank), samples) - wanted
            whole = np.square(without_bias(model, wanted)).sum()
            assert np.square(wrong).sum() / whole == pytest.approx(damped.lost[rank], rel=1e-3, abs=1e-8)
            if can_be_centred(layer):
                assert np.abs(wrong.mean(axis=1)).max() < 1e-4 * np.abs(wanted).max()


def test_the_data_matter() -> None:
    """Directions that the data do not have cost nothing."""
    rng = np.random.default_rng(0)
    case = CASES["MatMul"]
    model = model_of(case, rng)
    seen = rng.standard_normal((4, 12))
    samples = [{"x": (rng.standard_normal((ROWS, 5, 4)) @ seen).astype(np.float32)} for _ in range(SAMPLES)]
    made = factors_of(model, samples)
    assert made.lost[4] < 1e-6 < 0.05 < made.plain[4]
    assert made.note == ""


@pytest.mark.parametrize("kind", ["few", "not finite"])
def test_without_data_the_weight_alone_is_cut_off(kind: str) -> None:
    rng = np.random.default_rng(0)
    case = CASES["Conv 1x1"]
    model = model_of(case, rng)
    samples = samples_of(case, rng, 1)
    samples[0]["x"] = (
        samples[0]["x"][:1, :, :1, :2] if kind == "few" else samples[0]["x"] * np.float32(np.inf)
    )
    made = factors_of(model, samples)
    assert ("2 inputs were seen, too few" if kind == "few" else "not finite") in made.note
    content = model.graph.initializers["w"].const_value
    assert content is not None
    weight = content.numpy().reshape(8, 12).astype(np.float64)
    left, values, right = np.linalg.svd(weight, full_matrices=False)
    nearest = (left[:, :3] * values[:3]) @ right[:3]
    np.testing.assert_allclose(made.outer[:, :3] @ made.inner[:3], nearest, atol=1e-5)
    np.testing.assert_array_equal(made.lost, made.plain)
    assert not made.shift(3).any()


def test_a_weight_that_is_of_a_lower_rank_already() -> None:
    rng = np.random.default_rng(0)
    case = CASES["MatMul"]
    model = model_of(case, rng)
    low = rng.standard_normal((12, 3)) @ rng.standard_normal((3, 9))
    model.graph.initializers["w"].const_value = ir.tensor(low.astype(np.float32), name="w")
    made = factors_of(model, samples_of(case, rng))
    assert np.isfinite(made.inner).all() and made.lost[3] < 1e-9
    fresh = [{"x": rng.standard_normal((2, *case.data)).astype(np.float32)}]
    wanted = outputs(model, fresh)
    np.testing.assert_allclose(
        outputs(split(model, made, 3), fresh), wanted, atol=1e-3 * np.abs(wanted).max()
    )


@pytest.mark.parametrize("name", ["MatMul", "Gemm, scaled", "Conv 3x3"])
def test_what_becomes_of_the_graph(name: str) -> None:
    rng = np.random.default_rng(0)
    model = model_of(CASES[name], rng)
    made = factors_of(model, samples_of(CASES[name], rng))
    before = only_layer(model).node
    copy = split(model, made, 2)
    first, second = (node for node in copy.graph if node.op_type == before.op_type)
    assert second.name == before.name and first.name == f"{before.name}/low_rank"
    assert second.outputs[0].name == before.outputs[0].name
    assert [provenance.made_by(node) for node in (first, second)] == ["low-rank", "low-rank"]
    assert provenance.sources(first) == provenance.sources(second) == (before.name,)
    assert "w" not in copy.graph.initializers
    between = first.outputs[0]
    assert between.dtype == ir.DataType.FLOAT and between.shape is not None
    assert between.shape[1 if before.op_type == "Conv" else -1] == 2
    assert str(between.shape[0]) == "N"
    assert all(value.dtype == ir.DataType.FLOAT for value in copy.graph.initializers.values())
    # The original is as it was.
    assert "w" in model.graph.initializers and len(list(model.graph)) == len(list(copy.graph)) - 1


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("(float[N,8,4,4] x) => (float[N,8,4,4] y) <float[8,4,1,1] w = {0}> { y = Conv <group=2> (x, w) }", "in groups"),
        ("(float[N,8,4,4] x) => (float[N,8,4,4] y) <float[8,8,1,1] w = {0}> { y = ConvTranspose(x, w) }", "transposed convolution"),
        ('(float[N,8,H,4] x) => (float[N,8,A,2] y) <float[8,8,3,3] w = {0}> { y = Conv <auto_pad="SAME_UPPER", strides=[2,2]> (x, w) }', "pads are not known"),
        ("(float[8,N] x) => (float[N,8] y) <float[8,8] w = {0}> { y = Gemm <transA=1> (x, w) }", "data are transposed"),
        ("(float[N,8] x) => (float[N,8] y) <float[8,8] w = {0}> { y = Gemm <alpha=0.0> (x, w) }", "multiplied by zero"),
        ("(float[N,8] x) => (float[N,8] y) <float[8,8] w = {0}> { p = MatMul(x, w) y = MatMul(p, w) }", "shared with other nodes"),
        ("(float16[N,8] x) => (float16[N,8] y) <float16[8,8] w = {0}> { y = MatMul(x, w) }", "its weight is FLOAT16"),
    ],
)  # fmt: skip
def test_what_stays_one_product(text: str, reason: str) -> None:
    model = model_from_text(f"g {text}")
    for value in model.graph.initializers.values():
        shape = [int(size) for size in value.shape]  # type: ignore[union-attr]
        assert value.dtype is not None
        value.const_value = ir.tensor(np.ones(shape, value.dtype.numpy()), name=value.name)
    assert reason in factors.why_not(layers_of(model.graph)[0])


def test_a_weight_that_is_not_finite_stays() -> None:
    model = model_of(CASES["Gemm"], np.random.default_rng(0))
    model.graph.initializers["w"].const_value = ir.tensor(np.full((12, 9), np.nan, np.float32), name="w")
    assert "NaN" in factors.why_not(only_layer(model))


# --- Which ranks ---------------------------------------------------------------------------------------------------


def choice(name: str, loss: list[float], saved: list[float], steep: float = 1.0) -> Choice:
    """A layer of 64 numbers to 64, at ranks of 4, 8, 12, ...; most is lost and saved at the smallest.

    Args:
        steep: Times as much of its own outputs as at the next rank, that it loses at the smallest.
    """
    text = "g (float[N,64] x) => (float[N,64] y) <float[64,64] w = {0}> { y = MatMul(x, w) }"
    model = model_from_text(text)
    model.graph.initializers["w"].const_value = ir.tensor(np.ones((64, 64), np.float32), name="w")
    (node,) = model.graph
    node.name = name
    ranks = tuple(4 * (place + 1) for place in range(len(loss)))
    nothing, lost = np.zeros(0), np.full(65, 0.1)
    lost[:5] *= steep
    return Choice(
        only_layer(model), Factors(nothing, nothing, lost, lost, nothing, nothing), ranks, 4096.0,
        np.asarray(saved), np.asarray(loss),
    )  # fmt: skip


def test_what_costs_least_for_its_time_goes_first() -> None:
    dear = choice("dear", [0.4, 0.2, 0.1], [3.0, 2.0, 1.0])
    cheap = choice("cheap", [0.04, 0.02, 0.01], [3.0, 2.0, 1.0])
    assert list(cheapest([dear, cheap], 1000.0)) == ["cheap"]
    both = cheapest([dear, cheap], 3584.0 + 1000.0)
    assert both["cheap"] == 4 and both["dear"] == 12
    assert cheapest([dear, cheap], 1e9) == {"cheap": 4, "dear": 4}
    assert cheapest([dear, cheap], 0.0) == {}


def test_no_more_goes_than_is_wanted() -> None:
    # All of the hull is its last point, but that need not be taken.
    only = choice("only", [0.3, 0.29, 0.28], [3.0, 2.0, 1.0])
    assert only.steps() == [(pytest.approx(0.1), 4)]
    assert cheapest([only], only.gone(8)) == {"only": 8}
    assert cheapest([only], only.gone(8) + 1) == {"only": 4}


def test_ranks_that_save_no_time_are_left_out() -> None:
    only = choice("only", [0.3, 0.2, 0.1], [1.0, -0.5, -1.0])
    assert [rank for _, rank in only.steps()] == [4]
    assert cheapest([only], 1.0) == {"only": 4}


def test_what_is_known_of_small_losses_says_little_of_large_ones() -> None:
    """The smallest rank is the best bargain, and taken only where its loss is near to what was looked at."""
    for steep, smallest in ((1.0, 4), (20.0, 8)):
        both = [choice(name, [0.3, 0.28, 0.27], [3.0, 1.2, 1.0], steep) for name in ("a", "b")]
        assert min(cheapest(both, 4000.0).values()) == smallest
        # Unless so much is wanted.
        assert cheapest(both, 7000.0) == {"a": 4, "b": 4}


def test_times_between_two_that_were_measured() -> None:
    np.testing.assert_allclose(milliseconds_at([(8, 1.0), (24, 2.0)], [8, 16, 24]), [1.0, 1.5, 2.0])
    # What was measured to fall rises a little all the same.
    falling = milliseconds_at([(8, 1.2), (24, 1.0)], [4, 8, 16, 24, 32])
    assert (np.diff(falling) > 0).all() and falling[2] == pytest.approx(1.1)
    assert (milliseconds_at([(8, 0.0), (24, 2.0)], [2, 4, 8]) >= 0).all()
