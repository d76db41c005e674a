"""Metrics and the budget: what is within it, how sure that is, and when a count is not enough."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.data.interface import Feeds
from graphopt.errors import DataError, UsageError
from graphopt.verify.agreement import METRICS, noise_share
from graphopt.verify.budget import Judgement, percent
from graphopt.verify.evaluation import Evaluation, TooSlowError
from graphopt.verify.metrics import find_metric

RNG = np.random.default_rng(0)


def logits(count: int, classes: int = 10) -> list[Feeds]:
    return [{"y": RNG.standard_normal((1, classes)).astype(np.float32)} for _ in range(count)]


def evaluation(references: list[Feeds], metric: Any, allowed: float) -> Evaluation:
    feeds: list[Feeds] = [{"x": np.full(1, index, np.float32)} for index in range(len(references))]
    return Evaluation(feeds, references, [{} for _ in references], find_metric(metric), allowed)


def swapped(references: list[Feeds], indices: range) -> list[Feeds]:
    """The class of these samples is another one, everything else as it was."""
    found = [{"y": entry["y"].copy()} for entry in references]
    for index in indices:
        row = found[index]["y"][0]
        best, second = np.argsort(row)[-1], np.argsort(row)[-2]
        row[best], row[second] = row[second], row[best]
    return found


@pytest.mark.parametrize("metric", sorted(METRICS.keys() - {"ctc"}))
def test_the_original_loses_nothing(metric: str) -> None:
    references = logits(30)
    judged = evaluation(references, metric, 0.01).judge(references)
    assert judged.drop == 0 and judged.original == 1 and judged.decibels == float("inf")


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 40))
def test_a_count_counts(wrong: int) -> None:
    references = logits(200)
    judged = evaluation(references, "top1", 0.1).judge(swapped(references, range(wrong)))
    assert judged.drop == pytest.approx(wrong / 200)
    assert judged.ok == (wrong <= 20)


def test_the_standard_error_is_that_of_a_share() -> None:
    references = logits(400)
    wrong = swapped(references, range(0, 400, 20))
    judged = evaluation(references, "top1", 0.06).judge(wrong)
    # 20 of 400, so sqrt(p (1 - p) / n); the jackknife over ten groups knows it but roughly.
    assert judged.drop == pytest.approx(0.05)
    spread = [
        evaluation(references, "top1", 0.06).judge(swapped(references, range(s, s + 20))).error
        for s in (0, 7, 90)
    ]
    assert all(0 < error < 0.03 for error in [judged.error, *spread])


def test_a_count_whose_error_exceeds_the_budget_needs_decibels_too() -> None:
    references = logits(200)
    classes = [int(entry["y"][0].argmax()) for entry in references]
    # The original is wrong on the first twenty; the other form is right there and wrong on twenty others.
    labels = [{"label": np.asarray((found + (index < 20)) % 10)} for index, found in enumerate(classes)]
    feeds: list[Feeds] = [{"x": np.zeros(1, np.float32)} for _ in range(200)]

    def accuracy(outputs: Any, given: Any) -> float:
        pairs = zip(outputs, given["label"], strict=True)
        return float(np.mean([entry["y"][0].argmax() == label for entry, label in pairs]))

    def other(index: int, entry: Feeds) -> Feeds:
        right = labels[index]["label"] if index < 20 else (classes[index] + (index < 40)) % 10
        return {"y": np.eye(10, dtype=np.float32)[[int(right)]] * entry["y"].max()}

    outputs = [other(index, entry) for index, entry in enumerate(references)]
    judged = Evaluation(feeds, references, labels, find_metric(accuracy), 0.01).judge(outputs)
    assert judged.drop == 0 and judged.error > 0.01
    assert judged.needed == 20 and not judged.ok


def test_a_model_that_makes_noise_is_not_run_on_all_samples() -> None:
    references = logits(50)
    calls: list[int] = []

    def noise(feeds: Feeds) -> Feeds:
        calls.append(1)
        return {"y": 2 * RNG.standard_normal((1, 10)).astype(np.float32)}

    judged = evaluation(references, "sqnr", 0.01).judge_while_hopeful(noise)
    assert len(calls) < 10 and not judged.ok
    assert "no usable outputs" in judged.describe()
    exact = evaluation(references, "sqnr", 0.01).judge_while_hopeful(
        lambda feeds: references[int(feeds["x"][0])]
    )
    assert exact.ok and exact.drop == 0


@settings(max_examples=30, deadline=None)
@given(st.floats(1e-4, 0.5), st.integers(1, 5))
def test_noise_is_that_of_the_worst_output(share: float, outputs: int) -> None:
    rng = np.random.default_rng(1)
    wanted = {str(index): rng.standard_normal(4096) for index in range(outputs)}
    got = {
        name: array + (np.sqrt(share) * rng.standard_normal(4096) if name == "0" else 0)
        for name, array in wanted.items()
    }
    assert noise_share([got], [wanted]) == pytest.approx(share, rel=0.15)


def counting(
    references: list[Feeds], calls: list[int], changed: Callable[[Any], Any]
) -> Callable[[Feeds], Feeds]:
    """Runs a sample: what its reference holds, changed; ``calls`` lists which were run."""

    def run(given: Feeds) -> Feeds:
        calls.append(int(given["x"][0]))
        return {"y": changed(references[calls[-1]]["y"])}

    return run


def test_what_some_samples_show_to_be_far_beyond_the_budget_is_not_run_on_the_others() -> None:
    references = logits(80)
    held = evaluation(references, "sqnr", 0.01)
    calls: list[int] = []

    def worse(share: float) -> Any:
        return counting(references, calls, lambda wanted: (wanted * (1 + share)).astype(np.float32))

    far = held.judge_while_hopeful(worse(0.3))
    assert 0 < far.some == len(calls) < 20 and not far.ok and f"on {far.some} samples" in far.describe()
    calls.clear()
    near = held.judge_while_hopeful(worse(0.12))
    assert near.some == 0 and len(calls) == 80 and not near.ok
    # Within another budget it would be, had all of them been run.
    assert not dataclasses.replace(far, allowed=0.5).ok


def test_what_is_too_noisy_is_not_run_on_all_where_the_samples_tell_little() -> None:
    """Forty samples: what the metric loses is chance, and decibels, which few samples tell, are asked for besides."""
    references = logits(40)
    for index, entry in enumerate(references):
        # Every class is won clearly, so that little noise changes none.
        entry["y"][0, index % 10] += np.float32(5)
    held = evaluation(references, "top1", 0.01)
    calls: list[int] = []

    def with_noise(share: float) -> Any:
        def noisy(wanted: Any) -> Any:
            noise = np.random.default_rng(calls[-1]).standard_normal(wanted.shape)
            return wanted + np.float32(np.sqrt(share * np.square(wanted).mean())) * noise

        return counting(references, calls, noisy)

    first = held.judge_while_hopeful(with_noise(0.05))
    assert first.needed == 20 and not first.ok
    calls.clear()
    second = held.judge_while_hopeful(with_noise(0.05))
    assert len(calls) < 20 and second.some == len(calls) and second.needed == 20 and not second.ok
    calls.clear()
    assert held.judge_while_hopeful(with_noise(1e-5)).ok and len(calls) == 40


def test_a_set_far_over_the_budget_says_nothing_of_what_the_samples_tell() -> None:
    """Many samples tell a drop of 1 %: what loses much more has a larger error, and the next set needs no decibels."""
    references = logits(2000)
    held = evaluation(references, "top1", 0.02)

    def lossy(share: float) -> list[Feeds]:
        rng = np.random.default_rng(1)
        return [
            {
                "y": entry["y"]
                + np.float32(np.sqrt(share * np.square(entry["y"]).mean()))
                * rng.standard_normal(entry["y"].shape).astype(np.float32)
            }
            for entry in references
        ]

    bad = held.judge(lossy(1.0))
    assert bad.drop > 0.1 and not bad.ok and bad.needed == 0
    good = swapped(references, range(0, 2000, 100))
    loud = [{"y": 1.2 * entry["y"]} for entry in good]
    judged = held.judge_while_hopeful(lambda feeds: loud[int(feeds["x"][0])])
    assert judged.decibels < 15 and judged.some == 0 and judged.needed == 0 and judged.ok


def test_what_cannot_be_judged_in_time_is_not_judged() -> None:
    references = logits(80)
    held = evaluation(references, "sqnr", 0.01)
    calls: list[int] = []

    def run(given: Feeds) -> Feeds:
        calls.append(int(given["x"][0]))
        time.sleep(0.01)
        return references[calls[-1]]

    with pytest.raises(TooSlowError):
        held.judge_while_hopeful(run, time.monotonic() + 0.3)
    assert 0 < len(calls) < 20
    assert held.judge_while_hopeful(run, time.monotonic() + 60).ok


def test_a_count_that_moves_in_fine_steps_needs_no_decibels_on_few_samples() -> None:
    """Forty pages of fifty boxes: one page is more than 1 %, one box is not."""
    references: list[Feeds] = [{"y": RNG.standard_normal((1, 50, 10)).astype(np.float32)} for _ in range(40)]
    outputs = [{"y": entry["y"].copy()} for entry in references]
    for index in range(0, 40, 8):
        row = outputs[index]["y"][0, index]
        best, second = np.argsort(row)[-1], np.argsort(row)[-2]
        row[best], row[second] = row[second], row[best]
    held = evaluation(references, "top1", 0.02)
    assert held.is_coarse
    judged = held.judge(outputs)
    assert 0 < judged.drop < 0.01 and 0 < judged.error < 0.01 and judged.needed == 0 and judged.ok
    # Nothing moves at all: that says nothing about steps.
    assert held.judge(references).needed == 20


@pytest.mark.parametrize(("rows", "needed"), [(280, 20), (320, 0)])
def test_a_count_that_does_not_move_holds_where_a_drop_would_have_shown(rows: int, needed: float) -> None:
    """The rule of three: of 280 rows none differs by chance with more than 5 % where 1 % do."""
    references = logits(rows)
    judged = evaluation(references, "top1", 0.01).judge(references)
    assert judged.drop == 0 and judged.needed == needed


def test_a_small_share_does_not_read_as_none() -> None:
    assert [percent(share) for share in (0.0, 0.01, -0.0014, 1e-5, -2.5e-4, float("inf"))] == [
        "0.00%", "1.00%", "-0.14%", "0.001%", "-0.025%", "all",
    ]  # fmt: skip


def test_zeros_in_some_samples_are_no_reason_to_refuse() -> None:
    """Those that are tried first hold nothing (a detector that finds nothing there); the others do."""
    references = logits(16)
    for index in range(0, 16, 2):
        references[index] = {"y": np.zeros((1, 10), np.float32)}
    held = evaluation(references, "sqnr", 0.01)
    assert not held.is_silent and held.tells
    answers = iter([*references[::2], *references[1::2]])
    assert held.judge_while_hopeful(lambda feeds: next(answers)).ok
    assert evaluation([references[0]] * 3, "sqnr", 0.01).is_silent


def test_a_function_is_not_taken_for_the_metric_of_its_name() -> None:
    def f1(outputs: Sequence[Any]) -> float:
        return 0.5

    metric = find_metric(f1)
    assert metric.name not in METRICS and metric.score([], [], []) == 0.5


def test_labels_of_different_shapes_are_no_fault_of_the_metric() -> None:
    metric = find_metric(lambda outputs, labels: 1.0)
    rows = [{"label": np.zeros(())}, {"label": np.zeros(1)}]
    with pytest.raises(DataError, match=r"the labels 'label' have different shapes: \(\) and \(1,\)"):
        metric.score([{}, {}], [{}, {}], rows)
    # One that asks for none does not care.
    assert find_metric(lambda outputs: 0.5).score([{}, {}], [{}, {}], rows) == 0.5


@pytest.mark.parametrize(
    ("drop", "decibels", "needed", "clear"),
    [
        (0.008, 15.0, 0.0, True), (0.0081, 15.0, 0.0, False), (-0.5, 20.5, 20.0, True), (0.0, 20.4, 20.0, False),
        (0.02, 50.0, 0.0, False),
    ],
)  # fmt: skip
def test_what_holds_with_a_margin(drop: float, decibels: float, needed: float, clear: bool) -> None:
    judgement = Judgement(1 - drop, 1.0, drop, 0.01, decibels, needed)
    assert judgement.is_clear == clear and judgement.ok == (drop <= 0.01)


def classes(count: int) -> list[Feeds]:
    return [{"id": RNG.integers(0, 10, 1)} for _ in range(count)]


def others(references: list[Feeds], count: int) -> list[Feeds]:
    """The first so many ids are other ones."""
    return [{**entry, "id": entry["id"] + (index < count)} for index, entry in enumerate(references)]


@pytest.mark.parametrize("metric", sorted(METRICS))
@pytest.mark.parametrize("wrong", [0, 3, 40, 400])
def test_integers_count_by_the_share_that_is_equal(metric: str, wrong: int) -> None:
    references = classes(400)
    judged = evaluation(references, metric, 0.01).judge(others(references, wrong))
    assert judged.drop == pytest.approx(wrong / 400) and judged.ok == (wrong <= 3)


def test_what_cannot_be_told_of_few_integers_is_not_held() -> None:
    """Of 48 rows none may differ by luck where one in a hundred does."""
    references = classes(48)
    judged = evaluation(references, "sqnr", 0.01).judge(references)
    assert not judged.ok and judged.needed == 20 and judged.decibels == pytest.approx(12, abs=0.1)
    assert evaluation(references, "sqnr", 0.1).judge(references).ok


def test_integers_beside_floats() -> None:
    references = [{**left, **right} for left, right in zip(logits(400), classes(400), strict=True)]
    held = evaluation(references, "sqnr", 0.01)
    assert held.judge(references).ok and held.judge(references).decibels == float("inf")
    assert held.judge(others(references, 100)).drop == pytest.approx(0.25)


@pytest.mark.parametrize(
    "other",
    [
        np.array([True, True]),
        np.array(["a", "c"], object),
        np.array([1], np.int64),
        np.array([1.5, 2.5], np.float32),
    ],
)
def test_outputs_of_every_kind_count(other: np.ndarray[Any, Any]) -> None:
    original = {
        "b": np.array([True, False]),
        "O": np.array(["a", "b"], object),
        "i": np.array([1, 2]),
        "f": np.ones(2, np.float32),
    }
    references: list[Feeds] = [{"y": original[other.dtype.kind]}] * 400
    results: list[Feeds] = [{"y": other}] * 400
    assert evaluation(references, "sqnr", 0.01).judge(references).ok
    assert not evaluation(references, "sqnr", 0.01).judge(results).ok


def test_sequences_and_maps_count_by_their_elements() -> None:
    numbers = [RNG.standard_normal(8).astype(np.float32) for _ in range(16)]
    references: list[Any] = [{"s": [array, {"a": float(array[0])}]} for array in numbers]
    near: list[Any] = [{"s": [array + 1e-3, {"a": float(array[0])}]} for array in numbers]
    far: list[Any] = [{"s": [array, {"a": float(array[0]) + 0.3}]} for array in numbers]
    shorter: list[Any] = [{"s": [array]} for array in numbers]
    held = evaluation(references, "sqnr", 0.01)
    assert held.judge(references).decibels == float("inf")
    assert held.judge(near).ok and 40 < held.judge(near).decibels < 70
    assert not held.judge(far).ok and not held.judge(shorter).ok


@pytest.mark.parametrize(
    ("metric", "needs"), [("cosine", "more than one"), ("top1", "more than one"), ("f1", "above 0.5")]
)
def test_a_metric_that_can_read_no_output_is_refused(metric: str, needs: str) -> None:
    references: list[Feeds] = [{"y": -np.abs(array["y"][:, :1])} for array in logits(400)]
    with pytest.raises(UsageError, match=needs):
        evaluation(references, metric, 0.01)


def test_what_a_metric_cannot_read_counts_by_its_noise() -> None:
    """A cosine says nothing of the single number beside the logits."""
    references: list[Feeds] = [{**entry, "size": entry["y"][:, 0]} for entry in logits(40)]
    held = evaluation(references, "cosine", 0.01)
    assert held.judge(references).ok
    assert held.judge([{**entry, "size": entry["size"] * 1.3} for entry in references]).drop == pytest.approx(
        0.09
    )


def test_a_metric_that_works_in_place_changes_nothing() -> None:
    def spoils(outputs: list[dict[str, Any]]) -> float:
        score = float(np.mean([entry["y"].argmax() for entry in outputs]))
        for entry in outputs:
            entry["y"] -= entry["y"]
            entry["y"] = 0
        outputs.clear()
        return score

    references = logits(40)
    held = evaluation(references, spoils, 0.01)
    judged = held.judge(swapped(references, range(20)))
    assert judged.original == held.original > 0 and np.isfinite(judged.decibels)
    assert all(np.any(entry["y"]) for entry in references)


def test_what_a_metric_prints_is_not_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    def says(outputs: Any) -> float:
        print("hello")
        return 1.0

    find_metric(says).score([{}], [{}], [{}])
    captured = capsys.readouterr()
    assert captured.out == "" and "hello" in captured.err
