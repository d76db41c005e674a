"""A real plugin package, installed and used; and one that is broken and breaks nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip has installed both packages."""
    folder = tmp_path_factory.mktemp("plugins")
    sources = tmp_path_factory.mktemp("sources")
    for name in ("example", "broken"):
        # pip builds in place; the copy keeps the checkout clean.
        subprocess.run(["cp", "-r", str(HERE / name), str(sources)], check=True)
    subprocess.run(
        [
            sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index",
            "--disable-pip-version-check", "--target", str(folder),
            str(sources / "example"), str(sources / "broken"),
        ],
        check=True,
    )  # fmt: skip
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """y = relu(|x|) + 1"""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    path = tmp_path / "model.onnx"
    graph = helper.make_graph(
        [
            helper.make_node("Abs", ["x"], ["a"], name="absolute"),
            helper.make_node("Relu", ["a"], ["r"], name="relu"),
            helper.make_node("Add", ["r", "one"], ["y"], name="add"),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 64])],
        [numpy_helper.from_array(__import__("numpy").float32(1.0), "one")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def graphopt(plugins: Path, folder: Path, *arguments: str, code: int = 0) -> Any:
    """Run the command with ``--json`` and the plugins installed; returns what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", "graphopt", *arguments, "--json"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(plugins), str(ROOT)])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return json.loads(done.stdout)


def test_passes_lists_the_plugin_with_its_package_and_the_broken_one_with_its_error(
    plugins: Path, tmp_path: Path
) -> None:
    entries = {entry["name"]: entry for entry in graphopt(plugins, tmp_path, "passes")["passes"]}
    assert entries["relu-of-abs"]["origin"] == "graphopt-example 1.2.0"
    assert entries["relu-of-abs"]["summary"] == "relu(|x|)  ==>  |x|"
    assert entries["relu-of-abs"]["numerics"] == "exact"
    assert entries["relu-of-abs"]["error"] == ""
    assert "built for another version" in entries["shaky"]["error"]
    assert entries["absent"]["error"]
    assert entries["hardswish"]["error"] == ""


def test_targets_lists_the_plugin_and_the_broken_one(plugins: Path, tmp_path: Path) -> None:
    entries = {entry["name"]: entry for entry in graphopt(plugins, tmp_path, "targets")["targets"]}
    assert entries["onnx-reference"]["runnable"]
    assert entries["onnx-reference"]["origin"] == "graphopt-example 1.2.0"
    assert "built for another version" in entries["shaky-target"]["error"]
    assert entries["ort-cpu"]["error"] == ""


def test_doctor_shows_plugins_and_stays_well(plugins: Path, tmp_path: Path) -> None:
    found = graphopt(plugins, tmp_path, "doctor")
    errors = {entry["name"]: entry["error"] for entry in found["plugins"]}
    assert errors["relu-of-abs"] == "" and "another version" in errors["shaky"]
    assert found["problems"] == []


def test_compile_uses_the_plugin_pass_with_its_options(plugins: Path, tmp_path: Path, model: Path) -> None:
    specs = "relu-of-abs,rename-nodes{prefix=our_}"
    report = graphopt(plugins, tmp_path, "compile", str(model), "--passes", specs, "--tune", "0.2s")
    records = {record["name"]: record for record in report["passes"]}
    assert records["relu-of-abs"]["status"] == "applied"
    assert records["relu-of-abs"]["rewrites"] == {"relu-of-abs": 1}
    assert records["relu-of-abs"]["identical"] is True
    assert records["rename-nodes"]["status"] == "applied"
    assert report["verify"]["status"] == "verified"


def test_compile_for_the_plugin_target_and_run_the_bundle(plugins: Path, tmp_path: Path, model: Path) -> None:
    options = ("--target", "onnx-reference", "--passes", "relu-of-abs", "-o", "ours.gopt", "--tune", "0.2s")
    report = graphopt(plugins, tmp_path, "compile", str(model), *options)
    assert report["target"] == "onnx-reference"
    assert report["verify"]["status"] == "verified"
    assert graphopt(plugins, tmp_path, "run", "ours.gopt")["outputs"][0]["min"] >= 1.0


def test_a_wrong_option_of_a_plugin_pass_names_the_right_one(
    plugins: Path, tmp_path: Path, model: Path
) -> None:
    answer = graphopt(plugins, tmp_path, "compile", str(model), "--passes", "rename-nodes{prefx=a}", code=2)
    assert "did you mean 'prefix'" in answer["error"]["message"]


def test_using_the_broken_plugin_says_what_is_wrong(plugins: Path, tmp_path: Path, model: Path) -> None:
    answer = graphopt(plugins, tmp_path, "compile", str(model), "--passes", "shaky", code=1)
    assert "graphopt-broken 0.0.1" in answer["error"]["message"]
    assert "built for another version" in answer["error"]["message"]
    assert not (tmp_path / "model.gopt").exists()


def test_a_bundle_whose_target_is_gone_says_so(plugins: Path, tmp_path: Path, model: Path) -> None:
    options = ("--target", "onnx-reference", "--passes", "O0", "-o", "ours.gopt", "--tune", "0.2s")
    graphopt(plugins, tmp_path, "compile", str(model), *options)
    answer = graphopt(tmp_path, tmp_path, "run", "ours.gopt", code=2)
    assert "unknown target 'onnx-reference'" in answer["error"]["message"]
