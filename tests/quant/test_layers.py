"""The choice of layers by noise, gain and budget."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import pytest

from graphopt.quant.layers import Choice, _group_size, choose
from graphopt.verify.budget import Judgement

ALLOWED = 0.01


def judging(noise: Mapping[str, float], seconds: float = 0.0) -> Callable[[frozenset[str]], Judgement]:
    """What a set loses is the sum of its noise; saying so takes its time."""

    def judge(names: frozenset[str]) -> Judgement:
        time.sleep(seconds)
        drop = sum(noise[name] for name in names)
        return Judgement(1 - drop, 1.0, drop, ALLOWED, 0.0)

    return judge


def run(noise: Mapping[str, float], gains: Mapping[str, float], deadline: float = float("inf")) -> Choice:
    """Noise adds up, and is what is lost."""
    return choose(gains, judging(noise), lambda until: noise, deadline=deadline, limit=deadline)


def test_takes_all_where_all_hold() -> None:
    found = run({"a": 0.004, "b": 0.005}, {"a": 1.0, "b": 2.0})
    assert found.best is not None and found.best.chosen == {"a", "b"} and len(found.points) == 1
    assert not found.noise, "nothing is swept where all hold"


def test_leaves_out_what_costs_most_for_its_gain() -> None:
    noise = {f"layer{index}": 0.0006 for index in range(12)} | {"loud": 0.004, "louder": 0.02}
    gains = {**dict.fromkeys(noise, 1.0), "loud": 0.5}
    found = run(noise, gains)
    assert found.best is not None and found.best.chosen == {f"layer{index}" for index in range(12)}
    assert len(found.points) <= 6


def test_a_large_gain_is_worth_more_noise() -> None:
    noise = {"large": 0.008, **{f"small{index}": 0.001 for index in range(8)}}
    found = run(noise, {"large": 100.0, **{name: 1.0 for name in noise if name != "large"}})
    assert found.best is not None and "large" in found.best.chosen


def test_a_guess_that_did_not_hold_says_how_many_do() -> None:
    """Noise of layers that lie behind each other adds up to more than its sum: a few layers are left out, not half."""
    noise = {f"layer{index}": 0.0004 * 1.02**index for index in range(36)}

    def judge(names: frozenset[str]) -> Judgement:
        drop = sum(noise[name] for name in names) * (1 + 0.004 * len(names))
        return Judgement(1 - drop, 1.0, drop, ALLOWED, 0.0)

    found = choose(dict.fromkeys(noise, 1.0), judge, lambda until: noise)
    sizes = [len(point.chosen) for point in found.points]
    most = max(count for count in range(37) if judge(frozenset(list(noise)[:count])).ok)
    assert found.best is not None and found.best.chosen == set(list(noise)[:most])
    # All, the first guess, and then no set that is far from what holds.
    assert sizes[0] == 36 and all(abs(size - most) <= 3 for size in sizes[1:]) and len(sizes) <= 6


def test_tells_the_nearest_where_nothing_holds() -> None:
    found = run({"a": 0.5, "b": 0.02}, {"a": 1.0, "b": 1.0})
    assert found.best is None and found.nearest.chosen == {"b"}


@pytest.mark.parametrize("late", [False, True])
def test_the_first_guess_is_judged_even_after_the_deadline(late: bool) -> None:
    noise = {f"layer{index}": 0.001 for index in range(40)}
    started = time.monotonic()
    # The deadline passes while all are judged, or while the noise is measured.
    deadline = started - 1 if late else started + 0.05

    judge = judging(noise)

    def sweep(until: float) -> Mapping[str, float]:
        time.sleep(0.1)
        return noise

    found = choose(dict.fromkeys(noise, 1.0), judge, sweep, deadline=deadline, limit=deadline)
    # However late it is, as many are tried as should hold.
    assert [len(point.chosen) for point in found.points] == [40, 9]
    assert found.best is not None


def test_time_is_left_for_judging_what_was_chosen() -> None:
    noise = {f"layer{index}": 0.001 for index in range(40)}
    told = []

    judge = judging(noise, 0.2)

    def sweep(until: float) -> Mapping[str, float]:
        told.append(until)
        return noise

    deadline = time.monotonic() + 60
    choose(dict.fromkeys(noise, 1.0), judge, sweep, deadline=deadline)
    assert len(told) == 1 and 0.2 <= deadline - told[0] < 30


@pytest.mark.parametrize(
    ("count", "runs", "expected"),
    [(36, 50, 1), (36, 36, 1), (36, 35.9, 3), (36, 24, 3), (36, 12, 6), (36, -4, 6), (4, 0, 1)],
)
def test_neighbours_are_measured_together_where_time_is_short(count: int, runs: float, expected: int) -> None:
    assert _group_size(count, runs) == expected


def test_the_time_of_others_is_taken_where_nothing_holds() -> None:
    noise = {"loud": 0.006} | {f"layer{index}": 0.001 for index in range(40)}
    told = []

    judge = judging(noise, 0.05)

    def sweep(until: float) -> Mapping[str, float]:
        told.append(until)
        return dict.fromkeys(noise, 0.0001)

    late = time.monotonic() - 1
    few = choose(dict.fromkeys(noise, 1.0), judge, sweep, deadline=late, limit=late)
    assert few.best is None and len(few.points) == 2
    limit = time.monotonic() + 60
    more = choose(dict.fromkeys(noise, 1.0), judge, sweep, deadline=late, limit=limit)
    assert more.best is not None and more.points[-1] is more.best, "it ends with the first that holds"
    assert limit - 30 < told[-1] < limit


def test_layers_without_a_measurement_stay() -> None:
    known = {"a": 0.002, "b": 0.003}

    found = choose(
        dict.fromkeys([*known, "c", "d"], 1.0), judging({**known, "c": 0.02, "d": 0.02}), lambda until: known
    )
    assert found.best is not None and found.best.chosen == {"a", "b"}
