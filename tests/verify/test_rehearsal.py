"""Made-up inputs that end ONNX Runtime's process, and with it nothing else."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.errors import DataError, TargetError
from graphopt.testing import model_from_text
from graphopt.verify import apart, rehearsal
from graphopt.verify.reference import build_reference
from graphopt.verify.rehearsal import Rehearsal

# ONNX Runtime 1.31 divides by the turns of a Scan whose output is not stacked along its first axis: with no turns, here
# with 600 samples or fewer, its process ends (SIGFPE).
FRAMES = """g (float[length] x) => (float[2,K,4] y, float[2,4] last)
    <int64[1] zero={0}, int64[1] from={600}, int64[1] step={600}, int64[3] s={2,-1,4}, float[2,4] begin={0,0,0,0,0,0,0,0}> {
    n = Shape(x)
    late = Slice(x, from, n, zero, step)
    eight = Concat<axis=0>(late, late, late, late, late, late, late, late)
    rows = Reshape(eight, s)
    last, y = Scan<num_scan_inputs=1, scan_input_axes=[1], scan_output_axes=[1],
        body = b (float[2,4] before, float[2,4] now) => (float[2,4] after, float[2,4] out) {
            after = Add(before, now) out = Identity(after) }>(begin, rows) }"""


def frames() -> ir.Model:
    return model_from_text(FRAMES)


def of(size: int) -> dict[str, np.ndarray]:
    return {"x": np.ones(size, np.float32)}


@pytest.fixture(scope="module")
def crashes() -> None:
    with Rehearsal(frames()) as trying:
        try:
            trying.check(of(599))
        except TargetError:
            return
    pytest.skip("this ONNX Runtime does not crash")


@pytest.mark.usefixtures("crashes")
def test_a_crash_is_an_error_and_the_next_inputs_are_tried_again() -> None:
    with Rehearsal(frames()) as trying:
        for _ in range(2):
            with pytest.raises(TargetError, match=r"it crashed \(SIGFPE\)"):
                trying.check(of(599))
            trying.check(of(700))


def test_a_hang_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "hangs.py").write_text("import time; time.sleep(60)")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(apart, "_CHILD", "hangs")
    monkeypatch.setattr(rehearsal, "_SECONDS", 0.5)
    started = time.monotonic()
    with Rehearsal(frames()) as trying:
        for _ in range(3):
            with pytest.raises(TargetError, match="took longer than"):
                trying.check(of(700))
    assert time.monotonic() - started < 10


def test_nothing_is_run_where_nothing_is_to_be_tried() -> None:
    with Rehearsal(None) as trying:
        trying.check(of(599))


@pytest.mark.usefixtures("crashes")
def test_the_reference_takes_sizes_that_do_not_end_it() -> None:
    trials = build_reference(frames()).trials
    assert trials and all(trial.sizes["length"] > 600 for trial in trials)
    real = build_reference(frames(), data=[of(1000)]).trials
    assert [len(trial.feeds["x"]) for trial in real] == [1000, 2000]


@pytest.mark.usefixtures("crashes")
def test_where_all_made_up_inputs_end_it_that_is_said() -> None:
    model = model_from_text(FRAMES.replace("from={600}", "from={1000000}"))
    with pytest.raises(DataError, match=r"none of the made-up inputs: it crashed \(SIGFPE\)"):
        build_reference(model)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited on Linux")
def test_a_run_that_takes_too_much_memory_is_an_error_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsal, "total_memory", lambda: 1 << 30)
    model = model_from_text("g (float[n,1] x) => (float[n,n] y) { t = Transpose(x) y = Add(x, t) }")
    with Rehearsal(model) as trying:
        trying.check({"x": np.ones((100, 1), np.float32)})
        with pytest.raises(TargetError):
            trying.check({"x": np.ones((20_000, 1), np.float32)})  # 1.6 GB
        trying.check({"x": np.ones((200, 1), np.float32)})
