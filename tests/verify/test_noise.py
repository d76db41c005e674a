"""The noise floor where inputs cannot be moved, in half precision, and at the end of the number range."""

import warnings

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from graphopt.testing import model_from_text
from graphopt.verify.noise import perturb
from graphopt.verify.reference import Reference, build_reference


def _reference(text: str, **weights: np.ndarray) -> Reference:
    model = model_from_text(text)
    for name, array in weights.items():
        value = next(value for value in model.graph.inputs if value.name == name)
        value.const_value = ir.tensor(array, name=name)
        model.graph.inputs.remove(value)
        model.graph.register_initializer(value)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return build_reference(model)


def _relative_noise(reference: Reference) -> float:
    trial = reference.trials[0]
    return float(trial.noise["y"].max() / np.abs(trial.outputs["y"]).max())


def test_half_precision_inside_is_seen_in_a_float_output() -> None:
    rng = np.random.default_rng(0)
    reference = _reference(
        """g (int64[N,5] i, float16[9,16] table, float16[16,16] w) => (float[N,5,16] y) {
            e = Gather(table, i) m = MatMul(e, w) y = Cast<to=1>(m) }""",
        table=rng.standard_normal((9, 16)).astype(np.float16),
        w=rng.standard_normal((16, 16)).astype(np.float16),
    )
    assert 1e-4 < _relative_noise(reference) < 1e-2


def test_weights_stand_in_for_inputs_that_are_integers() -> None:
    rng = np.random.default_rng(0)
    reference = _reference(
        "g (int64[N,5] i, float[9,16] table) => (float[N,5,16] y) { e = Gather(table, i) y = Exp(e) }",
        table=rng.standard_normal((9, 16)).astype(np.float32),
    )
    assert 1e-8 < _relative_noise(reference) < 1e-5


def test_the_largest_number_makes_no_warning() -> None:
    lowest = np.full((1, 4), np.finfo(np.float32).min, np.float32)
    reference = _reference(
        "g (float[N,4] x, float[1,4] mask) => (float[N,4] y) { m = Add(x, mask) y = Softmax(m) }", mask=lowest
    )
    assert np.isfinite(reference.trials[0].noise["y"]).all()


def test_sequences_are_made_up_and_compared() -> None:
    text = """g (seq(float[2,3]) s, int64 i) => (float[2,3] z, seq(float[2,3]) y) {
        z = SequenceAt(s, i) r = Relu(z) y = SequenceConstruct(z, r) }"""
    reference = _reference(text)
    assert len(reference.trials[0].feeds["s"]) == 3
    assert reference.compare_model(model_from_text(text), 2.0).identical
    assert not reference.compare_model(model_from_text(text.replace("Relu", "Neg")), 2.0).ok


def _top(k: int, count: str = "count") -> ir.Model:
    """The ``k`` largest of eight, whose number comes as a float; it fails where that is another."""
    return model_from_text(
        f"""g (float[2,8] x, float[1] count) => (float[2,{k}] y) <int64[2] to={{2,{k}}}> {{
            whole = {count} n = Cast<to=7>(whole) best, where = TopK(x, n) y = Reshape(best, to) }}"""
    )


def _feeds(count: np.float32) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {"x": rng.standard_normal((2, 8), np.float32), "count": np.full(1, count, np.float32)}


def test_a_count_that_comes_as_a_float_stays_itself() -> None:
    reference = build_reference(_top(4, "Identity(count)"), data=[_feeds(np.float32(4))])
    assert 0 < reference.trials[0].noise["y"].max() < 1e-6


def test_a_moved_input_that_the_model_refuses_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graphopt.verify.noise._PERTURBATIONS", 20)
    # Rounded it is 7, and 6 where it is moved down.
    edge = np.nextafter(np.float32(6.5), np.float32(7))
    reference = build_reference(_top(7, "Round(count)"), data=[_feeds(edge)] * 2)
    assert reference.trials[0].outputs["y"].shape == (2, 7)


@given(hnp.arrays(st.sampled_from((np.float16, np.float32, np.float64)), 9), st.integers(0, 99))
@settings(deadline=None)
def test_floats_move_to_a_neighbour_or_not_at_all(array: np.ndarray, seed: int) -> None:
    moved = perturb(array, np.random.default_rng(seed))
    assert moved.dtype == array.dtype
    with np.errstate(over="ignore"):
        up, down = (np.nextafter(array, side).astype(array.dtype) for side in (np.inf, -np.inf))
    for old, new, above, below in zip(array, moved, up, down, strict=True):
        stays = np.array_equal(old, new, equal_nan=True)
        assert stays or (old != 0 and np.isfinite(new) and new in (above, below))


def test_half_of_the_floats_move() -> None:
    array = np.random.default_rng(0).standard_normal((100, 100)).astype(np.float32)
    moved = perturb(array, np.random.default_rng(1)) - array
    assert 0.48 < np.mean(moved != 0) < 0.52 and 0.48 < np.mean(moved[moved != 0] > 0) < 0.52


@given(hnp.arrays(np.float32, 7, elements=st.integers(-(2**21), 2**21).map(float)), st.integers(0, 99))
@settings(deadline=None)
def test_whole_numbers_are_cast_to_what_they_were(array: np.ndarray, seed: int) -> None:
    moved = perturb(array, np.random.default_rng(seed))
    np.testing.assert_array_equal(np.trunc(moved), array)
    np.testing.assert_array_equal(np.rint(moved), array)


def test_what_places_are_computed_from_is_not_moved() -> None:
    """A factor of 2 that is a little more takes the nearest pixel from next to it: another picture, not noise."""
    rng = np.random.default_rng(0)
    reference = _reference(
        "g (float[1,4,6,6] x, float[4,4,1,1] w, float[4] scales) => (float[1,4,12,12] y) <float[0] none = {}> {"
        ' c = Conv(x, w) y = Resize <mode="nearest", coordinate_transformation_mode="asymmetric",'
        ' nearest_mode="floor"> (c, none, scales) }',
        w=rng.standard_normal((4, 4, 1, 1)).astype(np.float32), scales=np.float32([1, 1, 2, 2]),
    )  # fmt: skip
    assert 0 < _relative_noise(reference) < 1e-5
    assert reference.warnings == ()


def test_outputs_that_hear_nothing_of_the_weights_are_told() -> None:
    deaf = _reference(
        "g (float[N,7] x) => (float[N,1] y) <int64[1] axes = {1}> { s = Sign(x) y = ReduceMean(s, axes) }"
    )
    assert any("the same to the bit" in warning for warning in deaf.warnings)
    heard = _reference("g (float[N,4] x) => (float[N,4] y) { y = Exp(x) }")
    assert heard.warnings == ()


def test_whole_numbers_need_not_move() -> None:
    whole = _reference("g (float[N,4] x) => (float[N,4] y) { y = Sign(x) }")
    assert not any("the same to the bit" in warning for warning in whole.warnings)


def test_outputs_that_last_digits_move_far_are_told() -> None:
    wild = _reference(
        "g (float[N,4] x, float[1] b) => (float[N,4] y) { m = Mul(x, b) y = Sin(m) }", b=np.float32([1e7])
    )
    assert any("last digits" in warning and "'y'" in warning for warning in wild.warnings)


def test_what_buckets_are_computed_from_is_not_moved() -> None:
    """The buckets of relative positions (T5): a logarithm that comes out whole must not fall into the one below."""
    model = model_from_text(
        "g (int64[4] i) => (float[4,16] y) <float[9,16] table = {0}, float base = {0.6931472}> { c = Cast<to=1>(i)"
        " l = Log(c) s = Div(l, base) b = Cast<to=7>(s) e = Gather(table, b) y = Exp(e) }"
    )
    table = np.random.default_rng(0).standard_normal((9, 16)).astype(np.float32)
    model.graph.initializers["table"].const_value = ir.tensor(table, name="table")
    data = [{"i": np.array([1, 2, 4, 8])}, {"i": np.array([16, 32, 64, 128])}]
    assert 0 < _relative_noise(build_reference(model, data=data)) < 1e-5
