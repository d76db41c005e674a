"""Subnormal numbers are flushed for one call and one thread, and no session leaves another mode behind."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from graphopt import denormals
from graphopt.targets.ort.executable import OrtExecutable
from graphopt.testing import model_from_text

TINY = """
t (float[n] x) => (float[n] y)
<float small={1e-10}>
{
  y = Mul(x, small)
}
"""
SUBNORMAL = np.float32(1e-40)

pytestmark = pytest.mark.skipif(not denormals.can_flush(), reason="no mode of this machine is known")


def _product() -> float:
    return float(np.float64(5e-324) * np.float64(1))


def test_only_within_the_block() -> None:
    assert _product() > 0
    with denormals.flushed():
        assert _product() == 0
        with denormals.flushed():
            assert _product() == 0
        assert _product() == 0
    assert _product() > 0


def test_only_in_the_calling_thread() -> None:
    seen: list[float] = []
    # A thread inherits the mode of the one that starts it, so this one is there before.
    ready, go = threading.Event(), threading.Event()

    def wait() -> None:
        ready.set()
        go.wait()
        seen.append(_product())

    thread = threading.Thread(target=wait)
    thread.start()
    ready.wait()
    with denormals.flushed():
        go.set()
        thread.join()
    assert seen[-1] > 0


def test_an_error_puts_the_mode_back() -> None:
    with pytest.raises(ZeroDivisionError), denormals.flushed():
        raise ZeroDivisionError
    assert _product() > 0


@pytest.mark.parametrize("flush", [False, True])
def test_a_session_flushes_whatever_thread_runs_it_and_leaves_the_mode(tmp_path: Path, flush: bool) -> None:
    path = tmp_path / "tiny.onnx"
    ir.save(model_from_text(TINY), path)
    x = np.full(8, 1e-30, np.float32)
    executable = OrtExecutable(path, {"flush_denormals": flush}, target="ort-cpu", threads=1)
    assert _product() > 0
    seen = [executable.run({"x": x})["y"]]
    thread = threading.Thread(target=lambda: seen.append(executable.run({"x": x})["y"]))
    thread.start()
    thread.join()
    assert _product() > 0
    for y in seen:
        np.testing.assert_array_equal(y, np.zeros(8, np.float32) if flush else np.full(8, SUBNORMAL))


def test_openvino_leaves_the_mode(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    from graphopt.targets.openvino.executable import OpenVinoExecutable

    path = tmp_path / "tiny.onnx"
    ir.save(model_from_text(TINY), path)
    config = {"inputs": ["x"], "outputs": ["y"], "flush_denormals": True}
    executable = OpenVinoExecutable(path, config, threads=1)
    assert _product() > 0
    np.testing.assert_array_equal(executable.run({"x": np.full(8, 1e-30, np.float32)})["y"], np.zeros(8))
    assert _product() > 0
