"""``graphopt explain``: why a result is what it is, and where each node went."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from graphopt.cli import _log, main
from graphopt.models import builders

FAST = ("--passes", "hardswish", "--tune", "0.1s")


@pytest.fixture
def bundle(cli: Any, model: Path, tmp_path: Path) -> Path:
    """The compiled model."""
    done = cli("compile", "model.onnx", *FAST)
    assert done.code == 0, done.err
    return tmp_path / "model.gopt"


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A convolution net, pruned and, as far as that holds, quantized."""
    folder = tmp_path_factory.mktemp("pruned")
    onnx.save(builders.conv_net(channels=32, blocks=3, size=16), folder / "net.onnx")
    rng = np.random.default_rng(0)
    np.savez(folder / "data.npz", x=rng.standard_normal((24, 1, 3, 16, 16)).astype(np.float32))
    arguments = [
        "compile", str(folder / "net.onnx"), "-o", str(folder / "net.gopt"), "--target", "ort-cpu", "--threads", "1",
        "--passes", "fuse,prune{ratio=0.5},quantize{cache=none}", "--data", str(folder / "data.npz"),
        "--max-drop", "50%", "--tune", "20s",
    ]  # fmt: skip
    assert main(arguments) == 0
    return folder / "net.gopt"


def test_why_the_chosen_form_won(cli: Any, bundle: Path) -> None:
    facts = cli("explain", "model.gopt", "--json").json
    report = json.loads((bundle / "manifest.json").read_text())["report"]
    assert facts["chosen"] == report["optimized"]["form"] and facts["target"] == report["target"]
    assert [form["label"] for form in facts["forms"]] == [form["label"] for form in report["forms"]]
    assert sum(form["outcome"].startswith("chosen") for form in facts["forms"]) == 1
    assert all(form["outcome"] for form in facts["forms"])
    assert "nodes" not in facts
    shown = cli("explain", "model.gopt").out
    assert facts["why"] in shown and "hardswish x1" in shown
    assert all(form["label"] in shown and form["outcome"] in shown for form in facts["forms"])
    assert "no real data were seen" in shown


def test_a_rewrite_is_told_of_by_the_pass_that_holds_it(cli: Any, make: Any, tmp_path: Path) -> None:
    make(
        [helper.make_node("Identity", ["x"], ["z"]), helper.make_node("Relu", ["z"], ["y"])],
        tmp_path / "i.onnx",
    )
    assert cli("compile", "i.onnx", "--passes", "fuse", "--tune", "0.1s", "-o", "i.gopt").code == 0
    whole = cli("explain", "i.gopt", "--json").json["passes"]
    rewrites = {name for record in whole for name in record["rewrites"]}
    for name in rewrites:
        told = cli("explain", "i.gopt", "--pass", name, "--json").json["passes"]
        assert told and all(name == record["name"] or name in record["rewrites"] for record in told)
    assert "unknown pass of this bundle" in cli("explain", "i.gopt", "--pass", "nowhere").err


def test_inspect_tells_the_budget_of_what_was_judged_by_one(cli: Any, pruned: Path) -> None:
    report = json.loads((pruned / "manifest.json").read_text())["report"]
    shown = " ".join(cli("inspect", str(pruned)).out.split())
    budget = report["verify"]["budget"]
    assert budget and f"{budget['decibels']:.1f} dB on {budget['samples']} held-out samples" in shown
    assert "noise floor" not in shown


def test_forms_that_lost_say_why(cli: Any, bundle: Path) -> None:
    """Whatever the machine measured: figures are put into the manifest here."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    timed = {
        "milliseconds": 2.0,
        "speedup": 1.0,
        "low": 1.0,
        "high": 1.0,
        "rounds": 9,
        "verified": True,
        "note": "",
    }
    lost = {"milliseconds": None, "speedup": None, "low": None, "high": None, "verified": False}
    manifest["measurements"]["forms"] = [
        {**timed, "label": "original", "original": True},
        {**timed, "label": "optimized", "milliseconds": 1.6, "speedup": 1.25},
        {**timed, "label": "legalized", "milliseconds": 1.0, "speedup": 2.0, "low": 1.9, "high": 2.1},
        {**timed, **lost, "label": "int8", "note": "over the budget: drop 3% of 1%"},
        {**timed, **lost, "label": "tvm", "note": "no compiler", "verified": True},
        {**timed, "label": "pruned", "speedup": 2.1, "note": "not faster than 'legalized': 0.99x"},
    ]
    manifest["report"]["optimized"]["form"] = "legalized"
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    facts = cli("explain", "model.gopt", "--json").json
    assert facts["why"] == (
        "'legalized' is the fastest of 5 forms that were verified, 2.00x as fast as the original "
        "(95 % interval 1.90 to 2.10)"
    )
    assert [form["outcome"] for form in facts["forms"]] == [
        "slower: 1.00x, the chosen one 2.00x",
        "slower: 1.25x, the chosen one 2.00x",
        "chosen",
        "not verified: over the budget: drop 3% of 1%",
        "no compiler",
        "not faster than 'legalized': 0.99x",
    ]
    manifest["report"]["optimized"]["form"] = "original"
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    assert "the original is what was kept" in cli("explain", "model.gopt", "--json").json["why"]


def test_where_nodes_went(cli: Any, bundle: Path) -> None:
    if json.loads((bundle / "manifest.json").read_text())["report"]["optimized"]["form"] == "original":
        pytest.skip("on this machine the original is as fast")
    found = cli("explain", "model.gopt", "add", "matmul", "--json").json["nodes"]["original"]
    assert [one["node"] for one in found] == ["add", "matmul"]
    (step,) = found[0]["steps"]
    assert step["stage"] == "hardswish" and step["by"] == ["hardswish"]
    assert found[0]["now"] == step["nodes"] != ["add"]
    assert found[1]["steps"] == [] and found[1]["now"] == ["matmul"]
    (made,) = cli("explain", "model.gopt", step["nodes"][0], "--json").json["nodes"]["result"]
    assert made["op"] == "HardSwish" and made["by"] == "hardswish"
    assert set(made["origins"]) == {"add", "clip", "mul", "div"}
    shown = cli("explain", "model.gopt", "add", "matmul").out
    assert f"hardswish  is {step['nodes'][0]}" in shown and "as it was" in shown


def test_every_node_is_matched_by_a_wildcard(cli: Any, bundle: Path) -> None:
    found = cli("explain", "model.gopt", "*", "--json").json["nodes"]
    assert [one["node"] for one in found["original"]] == ["matmul", "add", "clip", "mul", "div"]
    assert found["result"] == [], "each of the result stands for one of these"
    two = cli("explain", "model.gopt", "m*", "--json").json["nodes"]["original"]
    assert [one["node"] for one in two] == ["matmul", "mul"]


def test_what_was_refused_about_a_node(cli: Any, make: Any, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Add", ["x", "three"], ["b"], name="add"),
        helper.make_node("Clip", ["b", "zero", "six"], ["c"], name="clip"),
        helper.make_node("Mul", ["x", "c"], ["d"], name="mul"),
        helper.make_node("Div", ["d", "six"], ["y"], name="div"),
        helper.make_node("Neg", ["d"], ["z"], name="neg"),
    ]
    weights = {"three": np.float32(3), "zero": np.float32(0), "six": np.float32(6)}
    make(nodes, tmp_path / "m.onnx", weights=weights, outputs={"y": ("n", 8), "z": ("n", 8)})
    assert cli("compile", "m.onnx", *FAST).code == 0
    log = cli("explain", "m.gopt", "--json").json["passes"]
    refused = [entry for record in log for entry in record["refused"]]
    assert [entry["rewrite"] for entry in refused] == ["hardswish"]
    told = cli("explain", "m.gopt", "*", "--json").json["nodes"]["original"]
    assert [entry["reason"] for one in told for entry in one["refused"]] == [
        entry["reason"] for entry in refused
    ]
    assert refused[0]["reason"] in cli("explain", "m.gopt", "*").out
    assert refused[0]["reason"] in cli("inspect", "m.gopt", "--log").out
    assert f"{len(refused)} refused: graphopt explain m.gopt" in cli("compile", "m.onnx", *FAST).out


def test_layers_of_lossy_passes(cli: Any, pruned: Path) -> None:
    facts = cli("explain", pruned, "--json").json
    record = next(record for record in facts["passes"] if record["name"] == "prune")
    shown = cli("explain", pruned).out
    for row in record["details"]["pruned"]:
        before, after = row["channels"]
        assert row["node"] in shown and (f"{before} -> {after}" in shown) == (after != before)
        assert after < before or row["reason"] in shown
    assert "of the multiplications gone" in shown and "refitted" in shown
    only = cli("explain", pruned, "--pass", "prune").out
    assert "refitted" in only and "constant-fold" not in only and "fastest of" not in only


def test_a_layer_is_told_with_what_lossy_passes_decided(cli: Any, pruned: Path) -> None:
    rows = cli("explain", pruned, "--pass", "prune", "--json").json["passes"][0]["details"]["pruned"]
    narrower = next(row for row in rows if row["channels"][1] < row["channels"][0])
    found = cli("explain", pruned, "*", "--json").json["nodes"]["original"]
    decided = [entry for one in found for entry in one["decided"] if entry["node"] == narrower["node"]]
    assert {"prune", "quantize"} == {entry["pass"] for entry in decided}
    name = next(one["node"] for one in found if decided[0] in one["decided"])
    shown = cli("explain", pruned, name).out
    assert f"{narrower['channels'][0]} -> {narrower['channels'][1]} channels on ort-cpu" in shown


def test_verify_judges_a_lossy_bundle_by_its_budget(cli: Any, pruned: Path) -> None:
    net, data = pruned.with_name("net.onnx"), pruned.with_name("data.npz")
    said = json.loads((pruned / "manifest.json").read_text())["verification"]["budget"]
    done = cli("verify", pruned, net, "--data", data, "--json")
    assert done.code == 0, done.err
    found = done.json["budget"]
    assert done.json["status"] == "verified" and found["allowed"] == 0.5
    # All samples judge, those too that calibrated when it was compiled, and those are not called held out.
    with np.load(data) as arrays:
        count = next(iter(arrays.values())).shape[0]
    assert found["samples"] == count > said["samples"] and found["metric"] == said["metric"]
    assert f"on {count} samples" in cli("verify", pruned, net, "--data", data).out
    over = cli("verify", pruned, net, "--data", data, "--max-drop", "0.0001%")
    assert over.code == 1 and "over its budget" in over.err and "--max-drop" in over.err
    made_up = cli("verify", pruned, net, "--json", "--max-drop", "60%")
    assert made_up.code == 0 and any("no real data" in warning for warning in made_up.json["warnings"])


def test_alike_refusals_are_one_line() -> None:
    entries = [
        {"rewrite": "pad", "site": f"n{index}", "reason": "it pads" if index < 5 else "it is shared"}
        for index in range(6)
    ]
    assert _log.refusals(entries) == [
        "refused pad at n0, n1, n2 and 2 more: it pads",
        "refused pad at n5: it is shared",
    ]
