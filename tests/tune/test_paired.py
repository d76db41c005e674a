"""Paired timing: every form in a process of its own, and a crash is that form's own."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.errors import TargetError
from graphopt.machine import Form
from graphopt.testing import model_from_text, run
from graphopt.tune.paired import Bench, Timing, time_forms, turn_order


def form(folder: Path, label: str, text: str) -> Form:
    ir.save(model_from_text(text), folder / f"{label}.onnx")
    return Form(label, "ort-cpu", folder, {"file": f"{label}.onnx"})


ONE = "g (float[256,256] x) => (float[256,256] y) { y = MatMul(x, x) }"
SIX = (
    "g (float[256,256] x) => (float[256,256] y) "
    "{ a = MatMul(x, x) b = MatMul(a, x) c = MatMul(b, x) d = MatMul(c, x) e = MatMul(d, x) y = MatMul(e, x) }"
)
FEEDS = {"x": np.random.default_rng(0).standard_normal((256, 256)).astype(np.float32) / 16}


@pytest.mark.parametrize("loaded", [1, 8])
def test_six_products_take_longer_than_one(tmp_path: Path, loaded: int) -> None:
    forms = [form(tmp_path, "six", SIX), form(tmp_path, "one", ONE)]
    with Bench(FEEDS, threads=1, most_loaded=loaded) as bench:
        baseline, faster = bench.time(forms, seconds=0.5)
    assert baseline.speedup == 1.0 and faster.form.label == "one"
    # Six times the work: even a busy machine leaves half of that.
    assert faster.speedup > 2 and faster.low <= faster.speedup <= faster.high
    assert faster.rounds >= 4 and faster.milliseconds < baseline.milliseconds


def test_a_short_run_is_timed_by_several_processes(tmp_path: Path) -> None:
    short = "g (float[2] x) => (float[2] y) { y = Relu(x) }"
    forms = [form(tmp_path, "relu", short), form(tmp_path, "again", short)]
    feeds = {"x": np.ones(2, np.float32)}
    baseline, again = time_forms(forms, feeds, threads=1, seconds=0.0, least_rounds=3, most_rounds=3)
    assert baseline.rounds == again.rounds == 15
    assert baseline.speedup == baseline.low == baseline.high == 1.0
    assert again.low <= again.speedup <= again.high
    assert again.milliseconds == pytest.approx(baseline.milliseconds / again.speedup)


def test_outputs_come_from_the_worker(tmp_path: Path) -> None:
    one = form(tmp_path, "one", ONE)
    with Bench(FEEDS, threads=1) as bench:
        got = bench.worker(one).outputs(FEEDS)
    np.testing.assert_allclose(got["y"], run(model_from_text(ONE), FEEDS)["y"], rtol=1e-5, atol=1e-5)


def test_a_form_that_does_not_load_says_why(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"nothing")
    with pytest.raises(TargetError, match="'bad' fails"):
        time_forms([Form("bad", "ort-cpu", tmp_path, {"file": "bad.onnx"})], FEEDS)


def test_workers_end_with_the_bench(tmp_path: Path) -> None:
    with Bench(FEEDS, threads=1) as bench:
        worker = bench.worker(form(tmp_path, "one", ONE))
        pid = worker._child.pid
        os.kill(pid, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_crash_is_an_error_of_that_form(tmp_path: Path) -> None:
    with Bench(FEEDS, threads=1) as bench:
        worker = bench.worker(form(tmp_path, "one", ONE))
        worker._child.signal(signal.SIGKILL)
        with pytest.raises(TargetError, match="'one'"):
            worker.run(1, 0.1)


def test_a_ratio_near_a_tie_shows_which_side_it_is_on() -> None:
    timing = Timing(Form("one", "ort-cpu", Path(), {}), 1.0, 0.997, 0.991, 1.002, 9)
    assert timing.describe() == "0.997x (95 % interval 0.991 to 1.002, 9 rounds)"
    assert (
        replace(timing, speedup=1.304, low=1.2, high=1.4).describe().startswith("1.30x (95 % interval 1.20 ")
    )


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_no_form_has_a_better_place_than_another(count: int) -> None:
    orders = [turn_order(number, count) for number in range(2 * count)]
    assert all(sorted(order) == list(range(count)) for order in orders)
    for first in range(count):
        for second in range(first):
            assert sum(order.index(first) < order.index(second) for order in orders) == count
        assert {sum(order[place] == first for order in orders) for place in range(count)} == {2}
