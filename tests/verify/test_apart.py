"""ONNX Runtime's optimisations in a process of their own: crashes, hangs and refusals stay there and are told."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import graphopt
from graphopt.errors import TargetError
from graphopt.testing import model_from_text
from graphopt.verify import apart, noise, rehearsal
from graphopt.verify.apart import ApartSession
from graphopt.verify.reference import build_reference

PRODUCT = "g (float[N,4] x, float[4,4] w) => (float[N,4] y) { m = MatMul(x, w) y = Relu(m) }"
# ONNX Runtime 1.31 rejects this on x86 from level "extended" on (targets/ort/legalize/signed_qdq.py).
REJECTED = """g (float[1,4,6] x) => (float[4,6] y) <float s={0.05}, int8 z={3}, int64[2] to={4,6}> {
    q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) p = Reshape(d, to) y = Sin(p) }"""


def product() -> ir.Model:
    return model_from_text(PRODUCT)


def feeds(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {"x": rng.standard_normal((3, 4)).astype(np.float32), "w": np.eye(4, dtype=np.float32)}


def test_outputs_for_each_set_of_inputs() -> None:
    with ApartSession(product(), optimize="all") as run:
        run.begin([feeds(0), feeds(1)])
        outputs = run.outputs(60)
    for seed, got in enumerate(outputs):
        np.testing.assert_array_equal(got["y"], np.maximum(feeds(seed)["x"], 0))


def test_inputs_that_are_rejected_do_not_end_the_session() -> None:
    with ApartSession(product(), optimize="off") as run:
        run.begin([{"x": np.zeros((3, 5), np.float32), "w": np.eye(4, dtype=np.float32)}])
        with pytest.raises(TargetError, match="5"):
            run.outputs(60)
        run.begin([feeds(2)])
        (got,) = run.outputs(60)
        assert run.alive
    np.testing.assert_array_equal(got["y"], np.maximum(feeds(2)["x"], 0))


def test_a_crash_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "aborts.py").write_text("import os; os.abort()")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(apart, "_CHILD", "aborts")
    with ApartSession(product(), optimize="all") as run:
        run.begin([feeds(0)])
        with pytest.raises(TargetError, match=r"it crashed \(SIGABRT\)"):
            run.outputs(60)
        assert not run.alive
    made = build_reference(product(), data=[feeds(0)])
    sizes, warning = made.warnings
    assert "verified with N = 3 only" in sizes
    assert "the noise floor is measured without them (it crashed (SIGABRT))" in warning
    assert all(np.isfinite(trial.noise["y"]).all() for trial in made.trials)


def test_a_real_crash_ends_neither_the_noise_floor_nor_the_compilation() -> None:
    """ONNX Runtime 1.31 ends with SIGSEGV on this at its highest level, and runs it at level basic."""
    model = model_from_text(
        """g (float16[b,t,32] x, float16[32,96] w) => (float16[t,b,96] y) {
        p = Transpose<perm=[1,0,2]>(x) y = MatMul(p, w) }"""
    )
    value = next(value for value in model.graph.inputs if value.name == "w")
    model.graph.inputs.remove(value)
    weight = np.random.default_rng(0).standard_normal((32, 96)).astype(np.float16)
    value.const_value = ir.tensor(weight, name="w")
    model.graph.register_initializer(value)
    if not build_reference(model).warnings:
        pytest.skip("this ONNX Runtime does not crash")
    report = graphopt.compile(model, target="ort-cpu", passes="fold,fuse", threads=1, tune="0.3s").report
    warnings = "\n".join(report.warnings)
    assert "measured without them (it crashed (SIGSEGV))" in warnings and "at level 'basic'" in warnings
    assert report.verification.status == "verified" and report.speedup is not None and report.speedup >= 1


def test_a_hang_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "hangs.py").write_text("import time; time.sleep(60)")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(apart, "_CHILD", "hangs")
    monkeypatch.setattr(noise, "_OPTIMIZED_SECONDS", 0.5)
    monkeypatch.setattr(rehearsal, "_SECONDS", 0.5)
    sizes, warning = build_reference(product(), data=[feeds(0)]).warnings
    assert "verified with N = 3 only" in sizes
    assert "took longer than 0.5 s" in warning


def test_the_optimised_run_is_part_of_the_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    class Shifted(ApartSession):
        def outputs(self, timeout: float) -> list[dict[str, np.ndarray]]:
            return [{"y": one["y"] + 7} for one in super().outputs(timeout)]

    monkeypatch.setattr(noise, "ApartSession", Shifted)
    made = build_reference(product())
    assert len(made.warnings) == 1 and "'y' by" in made.warnings[0] and "optimisations" in made.warnings[0]
    assert all(trial.noise["y"].min() > 6 for trial in made.trials)


def test_an_original_that_only_runs_with_fewer_optimisations_is_still_the_baseline() -> None:
    model = model_from_text(REJECTED)
    compiled = graphopt.compile(model, target="ort-cpu", passes="fold,fuse", threads=1, tune="0.3s")
    report = compiled.report
    if not build_reference(model).warnings:
        pytest.skip("this ONNX Runtime takes the model as it is")
    warnings = "\n".join(report.warnings)
    assert "does not run with all optimisations of ort-cpu" in warnings and "at level 'basic'" in warnings
    assert all(form.verified and form.milliseconds for form in report.forms)
    # The legalised form has all optimisations again.
    knobs = {knob.label for knob in report.knobs}
    assert [form.label for form in report.forms if form.label not in knobs][-1] == "legalized"
    assert report.speedup is not None and report.speedup >= 1
    x = np.random.default_rng(0).standard_normal((1, 4, 6)).astype(np.float32)
    wanted = np.sin((np.clip(np.round(x / np.float32(0.05)) + 3, -128, 127) - 3) * np.float32(0.05))
    np.testing.assert_allclose(compiled.run({"x": x})["y"], wanted.reshape(4, 6), atol=1e-6)


def test_what_lies_in_the_current_folder_is_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if sys.version_info < (3, 11):
        pytest.skip("Python 3.10 has no switch for it")
    (tmp_path / "random.py").write_text("raise SystemExit('the wrong one')")
    monkeypatch.chdir(tmp_path)
    with ApartSession(product(), optimize="off") as run:
        run.begin([feeds(0)])
        assert len(run.outputs(60)) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's death")
def test_a_session_ends_with_its_parent_though_it_is_busy() -> None:
    program = """
import numpy, time
from graphopt.testing import model_from_text
from graphopt.verify.apart import ApartSession
model = model_from_text('''g (float[4] x) => (float[4] y) <int64 turns={4000000000000}, bool more={1}> {
    y = Loop<body = b (int64 i, bool c, float[4] v) => (bool d, float[4] w) { d = Identity(c) w = Add(v, v) }>
        (turns, more, x) }''')
run = ApartSession(model, optimize="off")
run.begin([{"x": numpy.ones(4, numpy.float32)}])
print(run._child.pid, flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = Path("/proc", parent.stdout.readline().strip())
        deadline = time.monotonic() + 30
        while "graphopt.verify.apart" not in _arguments_of(child) or _seconds_of(child) < 1:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        parent.kill()
    while _arguments_of(child):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _arguments_of(process: Path) -> str:
    """Its command line; nothing where it has ended."""
    with contextlib.suppress(OSError):
        return (process / "cmdline").read_text()
    return ""


def _seconds_of(process: Path) -> float:
    """That it computed."""
    fields = (process / "stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) / os.sysconf("SC_CLK_TCK")
