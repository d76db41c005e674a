"""The commands on a small model: what they print, write and return."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

from graphopt.cli import COMMANDS

ROOT = Path(__file__).parents[2]
FAST = ("--passes", "hardswish", "--tune", "0.1s")


@pytest.fixture
def bundle(cli: Any, model: Path, tmp_path: Path) -> Path:
    """The compiled model."""
    done = cli("compile", "model.onnx", *FAST)
    assert done.code == 0, done.err
    return tmp_path / "model.gopt"


# -- compile --------------------------------------------------------------------------------------------------


def test_compile_prints_the_report_and_writes_a_bundle(cli: Any, model: Path, tmp_path: Path) -> None:
    done = cli("compile", "model.onnx", *FAST)
    assert done.code == 0, done.err
    assert done.err == "", "no progress where stderr is no terminal"
    assert "\x1b" not in done.out
    labels = [line.split(" ")[0] for line in done.out.splitlines() if line and not line.startswith(" ")]
    assert labels[:2] == ["captured", "hardswish"]
    assert {"target", "verified", "speed", "wrote", "nodes", "size", "latency", "error", "warning"} <= set(
        labels
    )
    assert re.search(r"captured    model\.onnx · opset 17 -> \d+ · 5 nodes", done.out)
    assert "hardswish x1" in done.out
    assert "reloaded from disk" in done.out and "no real data were seen" in done.out
    assert {path.name for path in (tmp_path / "model.gopt").iterdir()} >= {
        "manifest.json",
        "report.html",
        "model.onnx",
    }
    assert not list(tmp_path.glob("graphopt-repro-*")) and not list(tmp_path.glob(".*"))


def test_a_pass_of_a_file_stands_in_a_pass_list(cli: Any, model: Path, tmp_path: Path) -> None:
    """A rewrite that fires, in a file that nothing has installed, and a pass with an option of its own."""
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\n"
        "from graphopt.pipeline.base import Numerics, Pass\n"
        "from graphopt.rewrite import PatternRewrite, op, var\n"
        "class Twice(PatternRewrite):\n"
        "    'relu(x)  ==>  relu(relu(x))'\n"
        "    name = 'twice'\n"
        "    patterns = (op('Relu', var('x')),)\n"
        "    def build(self, match, build):\n"
        "        x = match['x']\n"
        "        if x.producer() is not None and x.producer().op_type == 'Relu' or self.of(match.root):\n"
        "            return None\n"
        "        y = match.root.outputs[0]\n"
        "        return build.op('Relu', build.op('Relu', x, like=y), like=y)\n"
        "    def of(self, node):\n"
        "        return any(use.op_type == 'Relu' for use in node.outputs[0].consumers())\n"
        "class Named(Pass):\n"
        "    name = 'named'\n"
        "    numerics = Numerics.EXACT\n"
        "    @dataclass(frozen=True)\n"
        "    class Options:\n"
        "        producer: str = ''\n"
        "    def run(self, model, log, gate):\n"
        "        model.producer_name = self.options.producer\n"
        "        return True\n"
    )
    from .conftest import build

    build([onnx.helper.make_node("Relu", ["x"], ["y"])], tmp_path / "relu.onnx")
    done = cli(
        "compile",
        "relu.onnx",
        "--passes",
        "mine.py:Twice,mine.py:Named{producer=me}",
        "--tune",
        "0.1s",
        "--json",
    )
    assert done.code == 0, done.err
    first, second = done.json["passes"][:2]
    assert (first["name"], first["rewrites"], second["name"]) == ("twice", {"twice": 1}, "named")
    assert (first["status"], second["status"]) == ("applied", "applied")


def test_compile_json_has_the_promised_keys(cli: Any, model: Path) -> None:
    done = cli("compile", "model.onnx", *FAST, "--json")
    report = done.json
    assert {
        "output", "target", "baseline", "optimized", "speedup", "verify", "passes", "size", "warnings",
    } <= set(report)  # fmt: skip
    assert report["output"] == "model.gopt"
    assert report["target"] == "ort-cpu"
    assert report["baseline"]["latency_ms"] > 0 and report["optimized"]["latency_ms"] > 0
    assert {"status", "metric", "value", "noise_floor"} <= set(report["verify"])
    assert report["verify"]["status"] == "verified"
    first = report["passes"][0]
    assert {"name", "status", "rewrites", "seconds", "reason"} <= set(first)
    assert (first["name"], first["status"], first["rewrites"]) == ("hardswish", "applied", {"hardswish": 1})
    assert set(report["size"]) == {"before", "after"}


def test_compile_replaces_a_bundle(cli: Any, bundle: Path, tmp_path: Path) -> None:
    (bundle / "stale.txt").write_text("of the old bundle")
    assert cli("compile", "model.onnx", *FAST).code == 0
    assert not (bundle / "stale.txt").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.gopt", "model.onnx"]


def test_dry_run_does_everything_but_write(cli: Any, model: Path, tmp_path: Path) -> None:
    done = cli("compile", "model.onnx", *FAST, "--dry-run", "--json")
    assert done.json["output"] is None
    assert done.json["verify"]["status"] == "verified"
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert "nothing was written" in cli("compile", "model.onnx", *FAST, "--dry-run").out


def test_a_dry_run_minds_no_existing_file(cli: Any, model: Path, tmp_path: Path) -> None:
    (tmp_path / "model.gopt").write_text("precious")
    assert cli("compile", "model.onnx", *FAST, "--dry-run").code == 0
    assert (tmp_path / "model.gopt").read_text() == "precious"


def test_input_shape_and_data_reach_the_compiler(cli: Any, model: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=np.ones((5, 3, 8), np.float32))
    done = cli("compile", "model.onnx", *FAST, "--input-shape", "x:3,8", "--data", "data.npz", "--json")
    assert done.code == 0, done.err
    assert done.json["verify"]["synthetic"] is False
    assert len(done.json["verify"]["trials"]) == 5
    assert cli("inspect", "model.gopt", "--json").json["inputs"] == ["x: float[3,8]"]


def test_config_gives_defaults_and_the_command_line_wins(cli: Any, model: Path, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    np.savez(tmp_path / "sub" / "data.npz", x=np.ones((2, 8), np.float32))
    (tmp_path / "sub" / "config.toml").write_text(
        '[compile]\noutput = "ours.gopt"\npasses = ["hardswish", "gelu"]\ndata = "data.npz"\n'
        'tune = "0.1s"\nseed = 3\ninput-shape = { x = [2, 8] }\nthreads = 1\n'
    )
    done = cli("compile", "model.onnx", "--config", "sub/config.toml", "--json")
    assert done.code == 0, done.err
    assert done.json["output"] == "sub/ours.gopt"
    assert [entry["name"] for entry in done.json["passes"]][:2] == ["hardswish", "gelu"]
    assert done.json["verify"]["synthetic"] is False and done.json["threads"] == 1
    again = cli(
        "compile",
        "model.onnx",
        "--config",
        "sub/config.toml",
        "-o",
        "mine.gopt",
        "--passes",
        "gelu",
        "--json",
    )
    assert again.json["output"] == "mine.gopt"
    assert again.json["passes"][0]["name"] == "gelu"


def test_the_same_seed_gives_the_same_bundle(cli: Any, model: Path, tmp_path: Path) -> None:
    for name in ("one.gopt", "two.gopt"):
        assert cli("compile", "model.onnx", *FAST, "-o", name, "--seed", "7").code == 0
    first, second = (
        json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("one.gopt", "two.gopt")
    )
    assert first["hashes"]["source"] == second["hashes"]["source"]
    # What is handed out may differ, since times do; what the passes did and how far that is off may not.
    keys = ("name", "status", "rewrites", "error", "noise_floor")
    first, second = (
        [[entry[key] for key in keys] for entry in bundle["passes"]] for bundle in (first, second)
    )
    assert first == second and any(error is not None for *_, error, _ in first)


def test_progress_is_drawn_on_a_terminal(model: Path, tmp_path: Path) -> None:
    leader, follower = os.openpty()
    # Drawn from the start rather than after a second: how long a compilation takes is the machine's affair.
    script = (
        "import graphopt.cli, graphopt.cli._console as console; console.SHOW_AFTER = 0.05; "
        "graphopt.cli.main(['compile', 'model.onnx', '--passes', 'hardswish'])"
    )
    command = [sys.executable, "-c", script]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=follower, check=True
    )
    # Read while the other end is open: afterwards what was drawn may be gone.
    os.set_blocking(leader, False)
    drawn = os.read(leader, 1 << 16).decode(errors="replace")
    os.close(follower)
    os.close(leader)
    assert any(stage in drawn for stage in ("capture", "reference", "pass", "verify", "measure"))
    assert b"wrote" in done.stdout and b"\x1b" not in done.stdout


# -- run, verify, bench ---------------------------------------------------------------------------------------


def test_run_gives_the_same_for_model_and_bundle(cli: Any, bundle: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "data.npz", x=rng.standard_normal((3, 2, 8)).astype(np.float32))
    assert cli("run", "model.onnx", "--data", "data.npz", "-o", "a.npz").code == 0
    done = cli("run", "model.gopt", "--data", "data.npz", "-o", "b.npz", "--json")
    assert done.json["samples"] == 3
    assert done.json["outputs"][0]["name"] == "y" and done.json["outputs"][0]["shape"] == [2, 8]
    with np.load(tmp_path / "a.npz") as first, np.load(tmp_path / "b.npz") as second:
        assert first["y"].shape == (3, 2, 8)
        np.testing.assert_allclose(first["y"], second["y"], rtol=1e-5, atol=1e-6)


def test_run_makes_inputs_up_and_shows_the_outputs(cli: Any, bundle: Path) -> None:
    done = cli("run", "model.gopt")
    assert done.code == 0, done.err
    assert "made-up inputs" in done.out and re.search(r"^y +float32 +\[\d+,8\]", done.out, re.MULTILINE)
    assert done.err == ""


def test_run_writes_samples_of_different_sizes_to_a_folder(cli: Any, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for index, batch in enumerate((1, 4)):
        np.savez(tmp_path / "data" / f"{index}.npz", x=np.ones((batch, 8), np.float32))
    refused = cli("run", "model.gopt", "--data", "data", "-o", "out.npz")
    assert refused.code == 1 and "do not stack" in refused.err and not (tmp_path / "out.npz").exists()
    assert cli("run", "model.gopt", "--data", "data", "-o", "out").code == 0
    shapes = [np.load(tmp_path / "out" / name)["y"].shape for name in ("000000.npz", "000001.npz")]
    assert shapes == [(1, 8), (4, 8)]


def test_size_may_decide(cli: Any, model: Path) -> None:
    done = cli("compile", "model.onnx", *FAST, "--prefer", "size", "--json")
    assert done.code == 0 and done.json["prefer"] == "size", done.err
    smallest = min(
        form["size"] for form in done.json["forms"] if form["verified"] and form["speedup"] >= 0.98
    )
    assert done.json["size"]["after"] <= smallest
    wrong = cli("compile", "model.onnx", "--prefer", "beauty")
    assert wrong.code == 2 and "speed" in wrong.err


def test_a_pass_tells_its_options(cli: Any) -> None:
    shown = cli("passes", "quantize")
    assert shown.code == 0 and "Refuses" in shown.out and "round_weights" in shown.out and "true" in shown.out
    told = cli("passes", "quantize", "--json").json
    assert told["numerics"] == "lossy"
    assert {option["name"]: option["default"] for option in told["options"]}["storage"] == 8
    assert "no options" in cli("passes", "gelu").out and "squeeze-excite" in cli("passes", "fuse").out
    wrong = cli("passes", "quantise")
    assert wrong.code == 2 and "quantize" in wrong.err


def test_verify_tells_the_evidence(cli: Any, bundle: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=np.ones((2, 8), np.float32))
    done = cli("verify", "model.gopt", "model.onnx", "--data", "data.npz", "--json")
    assert done.code == 0, done.err
    assert done.json["status"] == "verified" and done.json["same_source"] is True
    assert done.json["synthetic"] is False and done.json["warnings"] == []
    assert done.json["outputs"][0]["ratio"] <= done.json["allowed_multiple"]
    shown = cli("verify", "model.gopt", "model.onnx")
    assert "verified on 3 made-up inputs" in shown.out and "no real data" in shown.out


def test_bench_times_against_the_model(cli: Any, bundle: Path) -> None:
    done = cli("bench", "model.gopt", "model.onnx", "--seconds", "0.1", "--json")
    assert done.code == 0, done.err
    assert done.json["baseline"] == "model.onnx"
    first, second = done.json["models"]
    assert (first["model"], second["model"]) == ("model.onnx", "model.gopt")
    assert second["latency_ms"] > 0 and second["rounds"] >= 5
    low, high = second["speedup_interval"]
    assert low <= second["speedup"] <= high
    assert "baseline" in cli("bench", "model.gopt", "model.onnx", "--seconds", "0.1").out


def test_models_that_do_something_else_are_told(cli: Any, model: Path, tmp_path: Path) -> None:
    text = '<ir_version: 10, opset_import: ["" : 17]> g (float[n,8] x) => (float[n,8] z) { z = Neg(x) }'
    onnx.save(onnx.parser.parse_model(text), tmp_path / "other.onnx")
    done = cli("bench", "model.onnx", "other.onnx", "--seconds", "0.1", "--json")
    (warning,) = done.json["warnings"]
    assert "other.onnx has other outputs than model.onnx" in warning
    assert "other outputs" in cli("bench", "model.onnx", "other.onnx", "--seconds", "0.1").out
    assert not cli("bench", "model.onnx", "model.onnx", "--seconds", "0.1", "--json").json["warnings"]


def test_inputs_are_made_for_what_all_models_take(cli: Any, model: Path) -> None:
    done = cli("compile", "model.onnx", *FAST, "--input-shape", "x:5,8")
    assert done.code == 0, done.err
    for order in (("model.gopt", "model.onnx"), ("model.onnx", "model.gopt")):
        done = cli("bench", *order, "--seconds", "0.1", "--json")
        assert done.code == 0, done.err
        assert done.json["shapes"] == {"x": [5, 8]}
    assert cli("run", "model.gopt", "--json").json["outputs"][0]["shape"] == [5, 8]
    done = cli("verify", "model.gopt", "model.onnx", "--json")
    assert done.code == 0 and done.json["trials"] == [{}, {}, {}], done.err


def test_input_shape_of_made_up_inputs(cli: Any, bundle: Path) -> None:
    for name in ("model.onnx", "model.gopt"):
        done = cli("run", name, "--input-shape", "x:7,8", "--json")
        assert done.json["outputs"][0]["shape"] == [7, 8], done.err
    done = cli("bench", "model.gopt", "model.onnx", "--input-shape", "x:7,8", "--seconds", "0.1", "--json")
    assert done.json["shapes"] == {"x": [7, 8]}, done.err
    done = cli("verify", "model.gopt", "model.onnx", "--input-shape", "x:7,8", "--json")
    assert done.code == 0 and done.json["status"] == "verified", done.err


def test_a_target_that_is_not_here_is_said(
    cli: Any, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from graphopt.targets.ort import executable

    monkeypatch.setattr(executable, "_has_nvidia_driver", lambda: False)
    done = cli("compile", "model.onnx", *FAST, "--target", "cuda")
    assert done.code == 0, done.err
    assert re.search(r"verified\s+compiled, not run: ", done.out)
    assert re.search(r"warning\s+compiled, not run: this machine has no NVIDIA driver", done.out)
    report = cli("compile", "model.onnx", *FAST, "--target", "cuda", "--json").json
    assert report["warnings"][0].startswith("compiled, not run: this machine has no NVIDIA driver")
    shown = cli("inspect", "model.gopt").out
    assert re.search(r"verified\s+compiled, not run", shown) and "verified   verified" not in shown
    assert "compiled, not run: " in (tmp_path / "model.gopt" / "report.html").read_text()


# -- looking ---------------------------------------------------------------------------------------------------


def test_inspect_a_model(cli: Any, model: Path) -> None:
    found = cli("inspect", "model.onnx", "--json").json
    assert found["opsets"] == {"": 17}
    assert found["graph"]["inputs"] == ["x: float[n,8]"]
    assert found["graph"]["ops"] == {"Add": 1, "Clip": 1, "Div": 1, "MatMul": 1, "Mul": 1}
    assert found["graph"]["weight_bytes"] == 4 * (64 + 3)
    assert re.fullmatch(r"[0-9a-f]{16,}", found["graph"]["content_hash"])
    shown = cli("inspect", "model.onnx").out
    assert "x: float[n,8]" in shown and "MatMul" in shown


def test_inspect_prints_the_graph(cli: Any, model: Path) -> None:
    shown = cli("inspect", "model.onnx", "--text").out
    assert "g (float[n,8] x) => (float[n,8] y)" in shown
    assert re.search(r"a = MatMul\s*\(x, w\)", shown)


def test_inspect_prints_the_graph_as_json_too(cli: Any, model: Path) -> None:
    assert "g (float[n,8] x)" in cli("inspect", "model.onnx", "--text", "--json").json["text"]


def test_inspect_counts_constants_and_names_what_must_be_given(cli: Any, make: Any, tmp_path: Path) -> None:
    import onnx
    from onnx import helper, numpy_helper

    value = numpy_helper.from_array(np.ones((2, 3), np.float32))
    nodes = [
        helper.make_node("Constant", [], ["w"], value=value),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    path = make(nodes, tmp_path / "c.onnx", inputs={"x": (None, -1)}, outputs={"y": (None, 3)})
    found = cli("inspect", "c.onnx", "--json").json["graph"]
    assert (found["constants"], found["initializers"], found["parameters"]) == (1, 0, 6)
    assert found["inputs"] == ["x: float[?,?]"]
    shown = cli("inspect", "c.onnx").out
    assert re.search(r"weights\s+24 B, 6 elements in 1 constants", shown)
    proto = onnx.load(path)
    proto.metadata_props.add(key="classes", value="cat\ndog " * 50)
    for index in range(5):
        proto.graph.input.append(helper.make_tensor_value_info(f"bias{index}", 1, (2,)))
        proto.graph.initializer.append(numpy_helper.from_array(np.ones(2, np.float32), f"bias{index}"))
    onnx.save(proto, path)
    shown = cli("inspect", "c.onnx").out
    assert "and 5 with a default value" in shown and "bias0" not in shown
    assert re.search(r"metadata\s+classes: cat dog .* \.\.\.\n", shown)
    assert "bias0: float[2] (optional)" in cli("inspect", "c.onnx", "--json").json["graph"]["inputs"]


def test_inspect_shows_options_as_they_are_written(cli: Any, model: Path) -> None:
    assert cli("compile", "model.onnx", *FAST, "--input-shape", "x:?,8").code == 0
    shown = cli("inspect", "model.gopt").out
    assert "passes: hardswish  input shapes: x:?,8" in shown and "None" not in shown


def test_inspect_a_bundle_with_its_log(cli: Any, bundle: Path) -> None:
    found = cli("inspect", "model.gopt", "--json").json
    assert found["target"] == "ort-cpu" and found["passes"][0]["name"] == "hardswish"
    assert found["verification"]["status"] == "verified"
    shown = cli("inspect", "model.gopt", "--log").out
    assert "hardswish x1" in shown and "verified" in shown


def test_passes_lists_passes_groups_and_pipelines(cli: Any) -> None:
    found = cli("passes", "--json").json
    names = {entry["name"]: entry for entry in found["passes"]}
    assert names["hardswish"]["summary"].startswith("x * clip(x + 3, 0, 6) / 6  ==>  HardSwish(x)")
    assert [entry["name"] for entry in found["passes"] if entry["error"]] == []
    assert names["add-zero"]["summary"] == "x + 0.0, x - -0.0  ==>  x, up to the sign of a zero"
    summaries = [entry["summary"] for entry in found["passes"]]
    assert len(set(summaries)) == len(summaries), "each says what it does itself"
    assert set(found["pipelines"]) == {"O0", "O1", "O2"} and found["groups"]["fuse"]["requires"] == ["fold"]
    shown = cli("passes").out
    assert all(summary in shown for summary in summaries), "nothing is cut where stdout is no terminal"
    assert set(re.findall(r"(\w+): ", re.search("^numerics  .*", shown, re.M)[0])) == {
        entry["numerics"] for entry in found["passes"]
    }


def test_passes_cuts_long_lines_on_a_terminal(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert "…" in cli("passes").out


def test_targets_says_what_runs_here(cli: Any) -> None:
    found = {entry["name"]: entry for entry in cli("targets", "--json").json["targets"]}
    assert found["ort-cpu"]["runnable"] and found["ort-cpu"]["version"]
    assert "ort-cpu" in cli("targets").out


def test_targets_says_what_to_install(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from graphopt import install
    from graphopt.errors import MissingExtraError
    from graphopt.targets.tvm import executable

    def missing() -> str:
        raise MissingExtraError("apache-tvm", "tvm")

    monkeypatch.setattr(executable, "version", missing)
    for command in ("targets", "doctor"):
        lines = cli(command).out.splitlines()
        for name in ("tvm-llvm", "tvm-cuda"):
            (line,) = (line for line in lines if line.startswith(name) and "not available" in line)
            extra = "tvm" if name == "tvm-llvm" else name
            assert line.endswith(f"apache-tvm is not installed; install it: {install.command(extra)}")


def test_doctor_is_well(cli: Any) -> None:
    done = cli("doctor", "--json")
    assert done.code == 0, done.out
    assert done.json["problems"] == []
    assert done.json["packages"]["numpy"] == np.__version__
    assert "CPUExecutionProvider" in done.json["onnxruntime"]["providers"]
    assert done.json["cpu"]["cores"] >= 1 and done.json["cache"]["writable"]
    assert "ready to compile" in cli("doctor").out


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        (("complie", "model.onnx"), "UnknownNameError"),
        (("compile", "--pases", "fuse"), "NoSuchOption"),
        (("zoo", "fetch"), "MissingParameter"),
    ],
)
def test_json_of_a_command_line_that_cannot_be_read(cli: Any, arguments: tuple[str, ...], kind: str) -> None:
    done = cli(*arguments, "--json")
    assert done.code == 2 and done.json["error"]["kind"] == kind


def test_zoo_fetch_copies_a_model(
    cli: Any, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from graphopt import zoo

    monkeypatch.setattr(zoo, "fetch", lambda name: model)
    done = cli("zoo", "fetch", "ppocr-cls", "-o", "copy.onnx", "--json")
    assert done.json["models"] == {"ppocr-cls": "copy.onnx"}, done.err
    assert (tmp_path / "copy.onnx").read_bytes() == model.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy.onnx", "model.onnx"]


def test_zoo_lists_models(cli: Any) -> None:
    names = [entry["name"] for entry in cli("zoo", "list", "--json").json["models"]]
    assert "ppocrv4-rec" in names
    assert "ppocrv4-rec" in cli("zoo", "list").out


# -- help -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS), ("zoo", "list"), ("zoo", "fetch")])
def test_help(cli: Any, command: tuple[str, ...]) -> None:
    done = cli(*command, "--help")
    assert done.code == 0 and done.err == ""
    assert done.out.startswith(f"Usage: graphopt{' ' if command else ''}{' '.join(command)}")


def test_no_command_shows_the_help(cli: Any) -> None:
    done = cli()
    assert done.code == 2 and "Commands:" in done.err


def test_version(cli: Any) -> None:
    import graphopt

    assert cli("--version").out == f"graphopt {graphopt.__version__}\n"
