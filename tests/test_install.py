"""The command that brings what is missing: in a checkout, and where graphopt was installed as a copy."""

from __future__ import annotations

import importlib.metadata
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from graphopt import install

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Say = Callable[[bool], None]
ROOT = Path(__file__).parents[1]


@pytest.fixture
def onnxruntime_is(monkeypatch: pytest.MonkeyPatch) -> Say:
    """Say whether the distribution onnxruntime is there."""

    def say(installed: bool) -> None:
        monkeypatch.setattr(install, "_is_installed", lambda name: installed and name == "onnxruntime")

    return say


def test_in_a_checkout(onnxruntime_is: Say) -> None:
    onnxruntime_is(False)
    assert install.checkout() == ROOT
    assert install.command("torch") == f"pip install -c {ROOT}/constraints.txt -e '{ROOT}[torch]'"
    assert install.command(package="numpy") == f"pip install -c {ROOT}/constraints.txt -e {ROOT}"
    assert install.command("cuda") == f"pip install -c {ROOT}/constraints.txt -e '{ROOT}[cuda]'"


def test_cuda_takes_the_place_of_cpu(onnxruntime_is: Say) -> None:
    onnxruntime_is(True)
    assert install.command("cuda").startswith("pip uninstall onnxruntime && pip install ")
    assert "uninstall" not in install.command("torch")


def test_of_an_installed_copy(onnxruntime_is: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    onnxruntime_is(False)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    # As the metadata of a wheel writes them.
    lines = list(project["dependencies"])
    lines += [f'{line}; extra == "{extra}"' for extra, wanted in extras.items() for line in wanted]
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: lines)
    monkeypatch.setattr(install, "checkout", lambda: None)
    assert install.command("cuda") == f"pip install '{extras['cuda'][0]}'"
    torch = install.command("torch").removeprefix("pip install ").split()
    assert [re.split("[=>]", word.strip("'"))[0] for word in torch] == ["torch", "onnxscript"]
    assert install.command(package="numpy") == "pip install 'numpy>=2.2'"


def test_without_any_metadata(onnxruntime_is: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> list[str]:
        raise importlib.metadata.PackageNotFoundError(name)

    onnxruntime_is(False)
    monkeypatch.setattr(importlib.metadata, "requires", missing)
    monkeypatch.setattr(install, "checkout", lambda: None)
    assert install.command(package="numpy") == "pip install numpy"
