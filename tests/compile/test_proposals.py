"""Turns of lossy passes on several targets."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.data.dataset import Dataset
from graphopt.lossy import Context, LossyPass, Proposal
from graphopt.proposals import Budget, Proposals
from graphopt.targets.ort.target import OrtTarget
from graphopt.testing import model_from_text
from graphopt.verify.evaluation import Evaluation
from graphopt.verify.metrics import find_metric

MODEL = model_from_text("g (float[2] x) => (float[2] y) { y = Relu(x) }")


class Slow(LossyPass):
    """Takes its time, and finds something that takes a millisecond, or nothing."""

    name = "slow"

    def __init__(self, seconds: float, milliseconds: float) -> None:
        super().__init__()
        self.seconds, self.milliseconds = seconds, milliseconds
        self.seen: list[Context] = []

    def propose(self, model: ir.Model, context: Context) -> Proposal:
        """As it was told."""
        self.seen.append(context)
        time.sleep(self.seconds)
        return Proposal(milliseconds=self.milliseconds)


def proposals(pass_: LossyPass, seconds: float) -> Proposals:
    one = {"x": np.ones(2, np.float32)}
    metric = find_metric("sqnr")
    evaluation = Evaluation([one], [{"y": one["x"]}], [{}], metric)
    dataset = Dataset([one], ())
    return Proposals([pass_], Budget(metric, 0.01), dataset, evaluation, seconds, targets=2)


def assert_second_turn(made: Proposals, pass_: Slow, folder: Path, *, has_one: bool) -> None:
    """Of two targets the second one has a turn, or is told that there was no time for it."""
    target = cast(Any, OrtTarget("ort-cpu"))
    records = [made.propose(target, MODEL, folder, lambda model: model)[1][0] for _ in range(2)]
    assert len(pass_.seen) == (2 if has_one else 1)
    assert ("no time was left for this target" in records[1].reason) == (not has_one)


@pytest.mark.parametrize(("milliseconds", "turns"), [(1.0, 1), (float("inf"), 2)])
def test_a_target_without_time_is_left_where_another_one_holds(
    tmp_path: Path, milliseconds: float, turns: int
) -> None:
    pass_ = Slow(0.4, milliseconds)
    made = proposals(pass_, 0.45)
    assert_second_turn(made, pass_, tmp_path, has_one=turns == 2)


@pytest.mark.parametrize(("milliseconds", "turns"), [(1.0, 1), (float("inf"), 2)])
def test_a_target_has_no_turn_once_the_compilation_is_late_and_another_one_holds(
    tmp_path: Path, milliseconds: float, turns: int
) -> None:
    """However much of the time for searching is left."""
    pass_ = Slow(0.05, milliseconds)
    made = proposals(pass_, 60.0)
    made.last_turn = time.monotonic() + 0.04
    assert_second_turn(made, pass_, tmp_path, has_one=turns == 2)


class Named:
    """A target that has a name, and kernels that suit or not."""

    def __init__(self, name: str, suits: bool) -> None:
        self.name, self.suits = name, suits

    def integer_kernels(self) -> bool:
        """As it was told."""
        return self.suits


class Suited(Slow):
    """Suits what says that it does."""

    def suits(self, model: ir.Model, kernels: Any) -> bool:
        """As it was told."""
        return bool(kernels)


@pytest.mark.parametrize(
    ("suited", "times", "order", "share"),
    [
        ("b", {"a": 1.0, "b": 1.5}, "ba", 0.6),
        ("b", {"a": 1.0, "b": 3.5}, "ab", 0.95),
        ("b", {"a": 1.0, "b": 0.9}, "ba", 0.95),
        ("", {"a": 1.0, "b": 0.9}, "ba", 0.6),
        ("b", {"a": 1.0}, "ba", 0.95),
        ("", {}, "ab", 0.6),
    ],
)
def test_the_target_that_is_ahead_has_the_first_turn_and_most_of_the_time(
    tmp_path: Path, suited: str, times: dict[str, float], order: str, share: float
) -> None:
    pass_ = Suited(0.0, float("inf"))
    made = proposals(pass_, 60.0)
    targets = [cast(Any, (Named(name, name in suited), None)) for name in "ab"]
    assert "".join(target.name for target, _ in made.in_turns(targets, MODEL, times)) == order
    until = time.monotonic() + 60
    made.propose(cast(Any, OrtTarget("ort-cpu")), MODEL, tmp_path, lambda model: model)
    assert until - pass_.seen[0].deadline == pytest.approx((1 - share) * 60, abs=1)


def test_what_the_others_would_have_of_the_time_is_there_until_something_holds(tmp_path: Path) -> None:
    target = cast(Any, OrtTarget("ort-cpu"))
    for milliseconds in (1.0, float("inf")):
        pass_ = Slow(0.0, milliseconds)
        made = proposals(pass_, 60.0)
        for _ in range(2):
            made.propose(target, MODEL, tmp_path, lambda model: model)
        first, second = pass_.seen
        assert first.limit - first.deadline == pytest.approx((0.4 + 0.3) * 60, abs=1)
        spare = second.limit - second.deadline
        assert spare == (0 if milliseconds == 1.0 else pytest.approx(0.3 * 60, abs=1))


@pytest.mark.parametrize(("milliseconds", "turns"), [(0.5, 1), (0.9, 2), (float("inf"), 2)])
def test_a_target_has_a_turn_however_late_it_is_where_little_was_gained_before(
    tmp_path: Path, milliseconds: float, turns: int
) -> None:
    pass_ = Slow(0.2, milliseconds)
    made = proposals(pass_, 0.1)
    targets = [cast(Any, (Named(name, False), None)) for name in "ab"]
    made.in_turns(targets, MODEL, {"a": 1.0, "b": 1.2})
    for _ in range(2):
        started = time.monotonic()
        made.propose(cast(Any, OrtTarget("ort-cpu")), MODEL, tmp_path, lambda model: model)
    assert len(pass_.seen) == turns
    assert turns == 1 or pass_.seen[1].deadline - started >= 0.25 * 0.2
