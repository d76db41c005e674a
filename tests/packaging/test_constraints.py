"""constraints.txt pins every package that pyproject.toml names, once for each Python, and the README says what was run."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
PYTHONS = ("3.10", "3.11", "3.12", "3.13")


def pins(python: str) -> dict[str, list[str]]:
    """Versions of each package that apply to this Python."""
    found: dict[str, list[str]] = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"python_version": python}):
            versions = [item.version for item in requirement.specifier if item.operator == "=="]
            assert versions and len(requirement.specifier) == 1, line
            found.setdefault(requirement.name, []).extend(versions)
    return found


@pytest.mark.parametrize("python", PYTHONS)
def test_every_dependency_has_one_pin_that_it_allows(python: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [
        *project["dependencies"],
        *(each for group in project["optional-dependencies"].values() for each in group),
    ]
    known = pins(python)
    assert all(len(versions) == 1 for versions in known.values())
    for text in wanted:
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"python_version": python}):
            assert requirement.specifier.contains(known[requirement.name][0]), text


def test_the_readme_says_which_pythons_were_run_with_which_onnxruntime() -> None:
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    sentence = re.search(r"\(the tests were last run with (.*?)\)", readme)
    assert sentence
    groups = re.findall(r"with ([\d., and]+) and ONNX Runtime ([\d.]+\d)", f"with {sentence[1]}")
    run = {
        ".".join(python.split(".")[:2]): onnxruntime
        for pythons, onnxruntime in groups
        for python in re.findall(r"\d+\.\d+\.\d+", pythons)
    }
    assert run == {python: pins(python)["onnxruntime"][0] for python in PYTHONS}
