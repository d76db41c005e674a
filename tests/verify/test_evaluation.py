"""Which samples a model is judged on, and that it is said of how many."""

from __future__ import annotations

import numpy as np
import pytest
from pytest import MonkeyPatch

from graphopt.data.dataset import Dataset
from graphopt.data.interface import inputs_of
from graphopt.testing import model_from_text
from graphopt.verify import evaluation as module
from graphopt.verify.evaluation import EVALUATED, dataset_for, evaluate
from graphopt.verify.metrics import find_metric

TEXT = "g (float[1,4] x) => (float[1,4] y) { y = Relu(x) }"
CLASSES = """g (float[1,4] x) => (int64[1] y) { y = ArgMax<axis=1, keepdims=0>(x) }"""
METRIC = find_metric(None)


def samples(count: int) -> dict[str, np.ndarray]:
    """The first number of each tells which it is."""
    x = np.ones((count, 1, 4), np.float32)
    x[:, 0, 0] = np.arange(count)
    return {"x": x}


def judged(text: str, count: int, *, whole: bool = False) -> module.Evaluation:
    model = model_from_text(text)
    dataset = dataset_for(samples(count), model, None, METRIC, synthetic=False, seed=0, whole=whole)
    return evaluate(model, dataset, METRIC, 0.01, whole=whole)


def numbers(found: module.Evaluation) -> list[int]:
    return [int(feeds["x"][0, 0]) for feeds in found.feeds]


def test_samples_come_from_all_over_the_data() -> None:
    found = judged(TEXT, 1000)
    assert len(found.feeds) == EVALUATED and found.available == 250 and not found.is_cut
    assert min(numbers(found)) < 200 and max(numbers(found)) >= 800
    assert numbers(found) == numbers(judged(TEXT, 1000))


def test_where_something_counts_there_are_more() -> None:
    assert len(judged(CLASSES, 1000).feeds) == 250


def test_all_are_judged_on_where_all_are_asked_for() -> None:
    found = judged(TEXT, 1000, whole=True)
    assert numbers(found) == list(range(1000)) and found.available == 1000 and not found.is_cut


def test_what_does_not_fit_into_memory_is_told(monkeypatch: MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WHOLE_BYTES", 20 * 2 * 16)
    found = judged(TEXT, 1000, whole=True)
    assert len(found.feeds) == 20 and found.is_cut and found.available == 1000
    assert max(numbers(found)) > 500


def test_samples_beyond_those_that_were_counted_are_judged_on_too(monkeypatch: MonkeyPatch) -> None:
    monkeypatch.setattr("graphopt.data.dataset._COUNTING_SECONDS", 0.0)
    model = model_from_text(TEXT)
    dataset = Dataset(samples(100), inputs_of(model), held_out=1)
    assert dataset.number(judging=True) < 100
    assert numbers(evaluate(model, dataset, METRIC, 0.01, whole=True)) == list(range(100))


@pytest.mark.parametrize("order", ["by class", "in turns", "mixed"])
def test_a_budget_does_not_hold_on_one_class_alone(order: str) -> None:
    """A result that is wrong for one class, whose samples come last, or in turn with those of the others."""
    rng = np.random.default_rng(0)
    classes = np.repeat(np.arange(4), 100)
    classes = {
        "by class": classes,
        "in turns": np.tile(np.arange(4), 100),
        "mixed": rng.permutation(classes),
    }[order]
    model = model_from_text(TEXT)
    x = np.eye(4, dtype=np.float32)[classes][:, None]
    dataset = dataset_for({"x": x}, model, None, METRIC, synthetic=False, seed=0)
    found = evaluate(model, dataset, METRIC, 0.01)
    for wrong in range(4):
        results = [{"y": one["y"] * (0.5 if one["y"].argmax() == wrong else 1)} for one in found.references]
        assert not found.judge(results).ok
        assert any(feeds["x"][0].argmax() == wrong for feeds in dataset.calibration(24))
