"""The public interface: names and signatures that stay put. A failure here means that users' code breaks."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

import graphopt


def test_public_names() -> None:
    assert graphopt.__all__ == [
        "CompiledModel",
        "GraphoptError",
        "LoadedModel",
        "Pipeline",
        "Report",
        "Simplified",
        "__version__",
        "compile",
        "load",
        "simplify",
    ]
    assert [name for name in graphopt.__all__ if not hasattr(graphopt, name)] == []
    assert dir(graphopt) == sorted(graphopt.__all__)


def test_unknown_attribute() -> None:
    with pytest.raises(AttributeError, match="no attribute 'compil'"):
        graphopt.compil  # noqa: B018


def test_version_is_a_version() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+)?", graphopt.__version__)


def test_signature_of_compile() -> None:
    parameters = inspect.signature(graphopt.compile).parameters
    positional = [
        name for name, entry in parameters.items() if entry.kind is not inspect.Parameter.KEYWORD_ONLY
    ]
    assert positional == ["model", "example_inputs"]
    defaults = {name: entry.default for name, entry in parameters.items() if name != "model"}
    assert defaults == {
        "arch": None,
        "database": None,
        "device": "",
        "target": "cpu",
        "passes": ("fuse",),
        "example_inputs": None,
        "data": None,
        "max_drop": None,
        "metric": None,
        "synthetic_calibration": False,
        "best_effort": False,
        "transform": None,
        "max_memory": None,
        "tune": None,
        "prefer": "speed",
        "input_shapes": None,
        "seed": 0,
        "threads": 0,
        "dynamic_shapes": None,
        "repro_dir": None,
        "progress": None,
    }


def test_signature_of_load() -> None:
    expected = "(path: 'str | Path', *, threads: 'int' = 0, check: 'bool' = True)"
    assert str(inspect.signature(graphopt.load)).startswith(expected)


def test_methods_of_models() -> None:
    assert list(inspect.signature(graphopt.CompiledModel.run).parameters) == ["self", "feeds"]
    assert list(inspect.signature(graphopt.LoadedModel.run).parameters) == ["self", "feeds"]
    assert list(inspect.signature(graphopt.CompiledModel.save).parameters) == ["self", "path"]
    assert isinstance(graphopt.CompiledModel.report, property)
    assert list(inspect.signature(graphopt.Pipeline.run).parameters) == ["self", "model"]


def test_the_package_is_typed() -> None:
    assert (Path(graphopt.__file__).parent / "py.typed").exists()
