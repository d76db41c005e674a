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


def test_files_through_a_transform(cli: Any, model: Path, tmp_path: Path) -> None:
    """Text files as data, all of the same content: calibration says so."""
    (tmp_path / "texts").mkdir()
    for index in range(6):
        (tmp_path / "texts" / f"{index}.txt").write_text("2.5 " * 40)
    (tmp_path / "mine.py").write_text(
        "import numpy as np\n"
        "def read(raw):\n"
        "    numbers = open(raw['path']).read().split()\n"
        "    return {'x': np.array(numbers, np.float32).reshape(5, 8)}\n"
    )
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
