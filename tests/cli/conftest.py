"""Small models, and the command line called in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphopt.cli import main


@dataclass(frozen=True)
class Done:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one object on stdout."""
        return json.loads(self.out)


Cli = Callable[..., Done]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Calls the command line in ``tmp_path``."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str | Path) -> Done:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Done(code, captured.out, captured.err)

    return call


def build(
    nodes: list[Any],
    path: Path,
    *,
    inputs: dict[str, tuple[Any, ...]] | None = None,
    outputs: dict[str, tuple[Any, ...]] | None = None,
    weights: dict[str, Any] | None = None,
    opset: int = 17,
    dtype: int = 1,
    **more: Any,
) -> Path:
    """Write a model of these nodes; by default from x[n,8] to y[n,8]."""
    import onnx
    from onnx import helper, numpy_helper

    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info(name, dtype, dims)
            for name, dims in (inputs or {"x": ("n", 8)}).items()
        ],
        [
            helper.make_tensor_value_info(name, dtype, dims)
            for name, dims in (outputs or {"y": ("n", 8)}).items()
        ],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in (weights or {}).items()],
    )
    imports = [
        helper.make_opsetid("", opset),
        *(helper.make_opsetid(name, 1) for name in more.pop("domains", ())),
    ]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=8), path)
    return path


@pytest.fixture
def make() -> Callable[..., Path]:
    """The function :func:`build`."""
    return build


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """y = x w * hardswish, in the form that exporters write; n is dynamic."""
    from onnx import helper

    rng = np.random.default_rng(0)
    return build(
        [
            helper.make_node("MatMul", ["x", "w"], ["a"], name="matmul"),
            helper.make_node("Add", ["a", "three"], ["b"], name="add"),
            helper.make_node("Clip", ["b", "zero", "six"], ["c"], name="clip"),
            helper.make_node("Mul", ["a", "c"], ["d"], name="mul"),
            helper.make_node("Div", ["d", "six"], ["y"], name="div"),
        ],
        tmp_path / "model.onnx",
        weights={
            "w": rng.standard_normal((8, 8)).astype(np.float32),
            "three": np.float32(3), "zero": np.float32(0), "six": np.float32(6),
        },
    )  # fmt: skip
