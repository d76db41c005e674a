"""The choice of layers by noise, gain and budget."""

from __future__ import annotations

import time
from collections.abc import Mapping

import pytest

from graphopt.quant.layers import Choice, choose
from graphopt.verify.budget import Judgement

ALLOWED = 0.01


def run(noise: Mapping[str, float], gains: Mapping[str, float], deadline: float = float("inf")) -> Choice:
    """Noise adds up, and is what is lost."""

    def judge(names: frozenset[str]) -> Judgement:
        drop = sum(noise[name] for name in names)
        return Judgement(1 - drop, 1.0, drop, ALLOWED, 0.0)

    return choose(gains, judge, lambda: noise, deadline=deadline)


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


def test_tells_the_nearest_where_nothing_holds() -> None:
    found = run({"a": 0.5, "b": 0.02}, {"a": 1.0, "b": 1.0})
    assert found.best is None and found.nearest.chosen == {"b"}


@pytest.mark.parametrize("late", [False, True])
def test_the_first_guess_is_judged_even_after_the_deadline(late: bool) -> None:
    noise = {f"layer{index}": 0.001 for index in range(40)}
    started = time.monotonic()
    # The deadline passes while all are judged, or while the noise is measured.
    deadline = started - 1 if late else started + 0.05

    def judge(names: frozenset[str]) -> Judgement:
        drop = sum(noise[name] for name in names)
        return Judgement(1 - drop, 1.0, drop, ALLOWED, 0.0)

    def sweep() -> Mapping[str, float]:
        time.sleep(0.1)
        return noise

    found = choose(dict.fromkeys(noise, 1.0), judge, sweep, deadline=deadline)
    # Late before anything is measured, half of the layers are tried; else as many as should hold.
    assert [len(point.chosen) for point in found.points] == ([40, 20] if late else [40, 9])
    assert (found.best is None) == late


def test_layers_without_a_measurement_stay() -> None:
    known = {"a": 0.002, "b": 0.003}

    def judge(names: frozenset[str]) -> Judgement:
        drop = sum(known.get(name, 0.02) for name in names)
        return Judgement(1 - drop, 1.0, drop, ALLOWED, 0.0)

    found = choose(dict.fromkeys([*known, "c", "d"], 1.0), judge, lambda: known)
    assert found.best is not None and found.best.chosen == {"a", "b"}
