"""Padding is taken for padding where the metric and the model say so, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.prune.moments import read_by, real_rows
from graphopt.prune.structure import layers_of
from graphopt.testing import model_from_text
from graphopt.verify.evaluation import Evaluation
from graphopt.verify.metrics import find_metric
from graphopt.verify.padding import Padding, find_padding
from graphopt.verify.session import Session

Array = np.ndarray
LENGTH, WIDTH = 6, 4

# Attention of one head, whose keys at masked positions are far below all others.
MASKED = """
h = MatMul(x, w) k = Transpose<perm=[0,2,1]>(h) s = MatMul(h, k)
n = Sub(one, m) far = Mul(n, low) a = Unsqueeze(far, axis)
t = Add(s, a) p = Softmax<axis=-1>(t) c = MatMul(p, h) y = MatMul(c, v)
"""
UNMASKED = MASKED.replace("t = Add(s, a)", "z = Mul(a, none) t = Add(s, z)")


def model_of(body: str, low: float = -1e9, one: float = 1.0) -> ir.Model:
    model = model_from_text(
        f"""g (float[N,{LENGTH},{WIDTH}] x, float[N,{LENGTH}] m) => (float[N,{LENGTH},{WIDTH}] y)
        <float[{WIDTH},{WIDTH}] w = {{0}}, float[{WIDTH},{WIDTH}] v = {{0}}, float one = {{{one}}},
         float low = {{{low}}}, float none = {{0}}, int64[1] axis = {{1}}, int64[1] last = {{-1}}, float[{WIDTH}] bias = {{1, 2, 3, 4}}> {{ {body} }}"""
    )
    rng = np.random.default_rng(0)
    for name in ("w", "v"):
        array = rng.standard_normal((WIDTH, WIDTH)).astype(np.float32)
        model.graph.initializers[name].const_value = ir.tensor(array, name=name)
    return model


def samples(count: int = 3, real: float = 1.0) -> list[dict[str, Array]]:
    rng = np.random.default_rng(1)
    found = []
    for _ in range(count):
        lengths = rng.integers(2, LENGTH, size=2)
        mask = np.where(np.arange(LENGTH) < lengths[:, None], real, 1 - real).astype(np.float32)
        found.append({"x": rng.standard_normal((2, LENGTH, WIDTH)).astype(np.float32), "m": mask})
    return found


def masked_mean(outputs: Sequence[Mapping[str, Array]], labels: Mapping[str, Array]) -> float:
    hidden = np.stack([one["y"] for one in outputs])
    real = labels["real"][..., None]
    return float(1 / (1 + np.square(np.where(real, hidden, 0)).sum(axis=2) / real.sum(axis=2)).mean())


def plain_mean(outputs: Sequence[Mapping[str, Array]]) -> float:
    return float(1 / (1 + np.mean([np.square(one["y"]).mean() for one in outputs])))


def found_in(
    model: ir.Model, metric: str | Callable[..., float], feeds: list[dict[str, Array]], real: float = 1.0
) -> tuple[Padding | None, Evaluation]:
    session = Session(model)
    labels = [{"real": one["m"] == real} for one in feeds]
    evaluation = Evaluation(feeds, [session.run(one) for one in feeds], labels, find_metric(metric))
    return find_padding(session, evaluation), evaluation


def test_a_mask_is_found() -> None:
    padding, _ = found_in(model_of(MASKED), masked_mean, samples())
    assert padding is not None and (padding.mask, padding.marks) == ("m", 0)


def test_a_mask_may_mark_what_is_padding() -> None:
    padding, _ = found_in(
        model_of(MASKED.replace("Sub(one, m)", "Mul(one, m)")), masked_mean, samples(real=0.0), 0.0
    )
    assert padding is not None and (padding.mask, padding.marks) == ("m", 1)


@pytest.mark.parametrize("metric", [plain_mean, "sqnr", "cosine"])
def test_none_is_found_where_the_metric_looks_at_all(metric: str | Callable[..., float]) -> None:
    assert found_in(model_of(MASKED), metric, samples())[0] is None


@pytest.mark.parametrize(
    "body", [UNMASKED, MASKED.replace("y = MatMul(c, v)", "q = ReduceMean(c, axis) y = Add(c, q)")]
)
def test_none_is_found_where_the_model_looks_at_all(body: str) -> None:
    assert found_in(model_of(body), masked_mean, samples())[0] is None


def test_none_is_found_without_any() -> None:
    feeds = [{**one, "m": np.ones_like(one["m"])} for one in samples()]
    assert found_in(model_of(MASKED), masked_mean, feeds)[0] is None


def test_rows_of_padding_are_left_out_of_what_layers_read() -> None:
    model, feeds = model_of(MASKED), samples()
    padding, _ = found_in(model, masked_mean, feeds)
    assert padding is not None
    layers = layers_of(model.graph)
    assert {layer.data.name for layer in layers} == {"x", "c"}
    whole, real = (list(read_by(model, layers, feeds, padding=given)) for given in (None, padding))
    for one, all_rows, rows in zip(feeds, whole, real, strict=True):
        assert np.array_equal(rows["c"], all_rows["c"][one["m"] == 1])
    # What has the mask's sizes by chance, and differs where the padding does, stays whole.
    altered = {**padding.altered, "x": padding.altered["x"] + 1}
    other = real_rows(model, layers, Padding(padding.mask, padding.marks, padding.feeds, altered))
    assert other.of("c", feeds[0], whole[0]["c"]) is whole[0]["c"]


def test_rows_that_padding_does_not_change_are_kept() -> None:
    """A mean over all positions reads what a bias leaves at padding, whatever the inputs hold there."""
    model = model_of(
        "a = Unsqueeze(m, last) z = Mul(x, a) h = MatMul(z, w) b = Add(h, bias) r = Relu(b) y = MatMul(r, v)"
    )
    feeds = samples()
    padding, _ = found_in(model, masked_mean, feeds)
    assert padding is not None
    layers = layers_of(model.graph)
    (seen,) = read_by(model, layers, feeds[:1], padding=padding)
    assert seen["z"].shape == seen["r"].shape == (2, LENGTH, WIDTH)


def test_inputs_that_are_left_out_or_no_arrays_are_no_masks() -> None:
    model, feeds = model_of(MASKED), samples()
    session = Session(model)
    references = [session.run(one) for one in feeds]
    odd = [{**one, "more": [np.ones(3)]} for one in feeds]
    odd[0]["first"] = np.zeros(2, np.float32)
    for given in (odd, [odd[0], {name: odd[1][name] for name in ("x", "more")}, odd[2]]):
        labels = [{"real": one["m"] == 1} for one in feeds]
        evaluation = Evaluation(given, references, labels, find_metric(masked_mean))
        padding = find_padding(_Ignoring(session), evaluation)
        assert padding is None or padding.mask == "m"


class _Ignoring:
    """A session that takes what its model has an input for."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def run(self, feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        return self._session.run({name: feeds[name] for name in self._session.input_names})


def test_integer_outputs_count_too() -> None:
    model = model_of(
        MASKED.replace("y = MatMul(c, v)", "q = MatMul(c, v) y = ArgMax<axis=-1, keepdims=0>(q)")
    )
    model.graph.outputs[0].type, model.graph.outputs[0].shape = ir.TensorType(ir.DataType.INT64), None

    def all_of(outputs: Sequence[Mapping[str, Array]]) -> float:
        return 1 + float(np.mean([one["y"].mean() for one in outputs]))

    def real_ones(outputs: Sequence[Mapping[str, Array]], labels: Mapping[str, Array]) -> float:
        return 1 + float(np.stack([one["y"] for one in outputs])[labels["real"]].mean())

    assert found_in(model, all_of, samples())[0] is None
    assert found_in(model, real_ones, samples())[0] is not None


@pytest.mark.parametrize("sentinel", [-1e30, -np.inf])
def test_a_sentinel_does_not_hide_a_difference(sentinel: float) -> None:
    feeds = {"m": np.array([1.0, 1.0, 1.0, 0.0], np.float32)}
    padding = Padding("m", 0, feeds, feeds)
    plain = np.array([0.5, 1.0, sentinel, 7.0], np.float32)
    assert padding.is_same(plain, np.array([0.5, 1.0, sentinel, 3.0], np.float32))
    assert not padding.is_same(plain, np.array([0.6, 1.0, sentinel, 7.0], np.float32))
    assert not padding.is_same(plain, np.array([0.5, 1.0, 2.0, 7.0], np.float32))


def test_noise_of_padding_does_not_count() -> None:
    feeds = samples()
    padding, evaluation = found_in(model_of(MASKED), masked_mean, feeds)
    evaluation.padding = padding
    outputs = [
        {"y": np.where(one["m"][..., None] == 1, wanted["y"], 100.0).astype(np.float32)}
        for one, wanted in zip(feeds, evaluation.references, strict=True)
    ]
    assert evaluation.judge(outputs).decibels == float("inf")
    outputs[0]["y"][0, 0] += 1.0
    assert evaluation.judge(outputs).decibels < 40
