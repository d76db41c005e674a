"""Calibration on the command line: its options, and the data it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

QUANTIZE = ("compile", "model.onnx", "--target", "ort-cpu", "--passes", "quantize", "--tune", "1s")


def save(path: Path, count: int = 6, **more: Any) -> Path:
    x = np.random.default_rng(0).standard_normal((count, 5, 8)).astype(np.float32)
    np.savez(path, **{"x": x, **more})
    return path


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--max-memory", "lots"), 2, "cannot read the size 'lots'"),
        (("--max-memory", "1M"), 2, "1M is too little memory"),
        (("--transform", "mine.py:f"), 2, "there is no file mine.py"),
        (("--transform", "f"), 2, "the transform 'f' names no function"),
        (("--passes", "quantize{percentile=30}"), 2, "the percentile of a range is 30"),
        (("--passes", "quantize{calibration=maximum}"), 2, "unknown value for option 'calibration'"),
    ],
)
def test_wrong_options(
    cli: Any, model: Path, tmp_path: Path, options: tuple[str, ...], code: int, message: str
) -> None:
    save(tmp_path / "data.npz")
    done = cli(*QUANTIZE, "--data", "data.npz", *options)
    assert done.code == code and message in done.err and not (tmp_path / "model.gopt").exists()


def test_a_transform_needs_data(cli: Any, model: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def f(raw): return raw\n")
    done = cli(*QUANTIZE, "--synthetic-calibration", "--transform", "mine.py:f")
    assert done.code == 2 and "there is a transform, but no data" in done.err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": np.full((6, 5, 8), np.nan, np.float32)}, "data.npz, row 0: the input 'x' holds NaN"),
        ({"x": np.zeros((6, 5, 8))}, "float64"),
        ({"x": np.zeros((0, 5, 8), np.float32)}, "the data hold no sample"),
        ({"x": np.zeros((6, 5, 9), np.float32)}, "dimension 1 is 9, not 8"),
    ],
)
def test_wrong_data(cli: Any, model: Path, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    save(tmp_path / "data.npz", **change)
    done = cli(*QUANTIZE, "--data", "data.npz")
    assert done.code == 1 and message in done.err and "Traceback" not in done.err
    assert not (tmp_path / "model.gopt").exists()


READ = """import numpy as np
def read(raw):
    numbers = open(raw['path']).read().split()
    return {'x': np.array(numbers, np.float32).reshape(5, 8)}
"""


def texts(folder: Path, count: int) -> None:
    """Files that a transform reads, and the transform."""
    (folder / "texts").mkdir()
    for index in range(count):
        (folder / "texts" / f"{index}.txt").write_text("2.5 " * 40)
    (folder / "mine.py").write_text(READ)


@pytest.mark.parametrize("command", [("run",), ("bench", "--seconds", "0"), ("verify", "model.gopt")])
def test_other_commands_take_a_transform(
    cli: Any, model: Path, tmp_path: Path, command: tuple[str, ...]
) -> None:
    texts(tmp_path, 2)
    if command[0] == "verify":
        assert cli("compile", "model.onnx", "--target", "ort-cpu", "--tune", "1s").code == 0
    without = cli(*command, "model.onnx", "--transform", "mine.py:read")
    assert without.code == 2 and "there is a transform, but no data" in without.err
    unread = cli(*command, "model.onnx", "--data", "texts")
    assert unread.code == 1 and "--transform FILE.py:FUNCTION" in unread.err
    done = cli(*command, "model.onnx", "--data", "texts", "--transform", "mine.py:read", "--json")
    assert done.code == 0, done.err
    if command[0] == "run":
        assert done.json["samples"] == 2 and done.json["inputs"] == "texts"
    elif command[0] == "bench":
        assert done.json["shapes"] == {"x": [5, 8]}
    else:
        assert done.json["synthetic"] is False and len(done.json["trials"]) >= 2


def test_files_through_a_transform(cli: Any, model: Path, tmp_path: Path) -> None:
    """Text files as data, all of the same content: calibration says so."""
    texts(tmp_path, 6)
    options = ("--data", "texts", "--transform", "mine.py:read", "--max-memory", "512M", "--json")
    # Static int8 is left out where dynamic int8 took most of a short budget: here it is not to depend on the machine.
    options = (
        *options,
        "--passes",
        "quantize{calibration=percentile,percentile=99,cache=none}",
        "--tune",
        "60s",
    )
    done = cli(*QUANTIZE, *options)
    assert done.code == 0, done.err
    assert "quantize: all 5 samples of the calibration data are the same" in done.json["warnings"]
    assert any("the input 'x' is 2.5 throughout" in text for text in done.json["warnings"])
    (entry,) = [entry for entry in done.json["passes"] if entry["name"] == "quantize"]
    assert entry["details"]["calibration"]["method"] == "percentile 99"
