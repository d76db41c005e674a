"""Pruning end to end: within its budget or not at all, with shapes that fit, told layer by layer."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import graphopt
from graphopt import proposals
from graphopt.errors import UsageError, VerificationError
from graphopt.models import builders

QUICK: dict[str, Any] = {"threads": 1, "tune": "20s", "target": "ort-cpu", "max_drop": 0.9}


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("net") / "net.onnx"
    onnx.save(builders.conv_net(channels=64, blocks=3, size=16), path)
    return path


def samples(count: int, seed: int = 0) -> Iterator[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    for _ in range(count):
        yield {"x": rng.standard_normal((1, 3, 16, 16)).astype(np.float32)}


def record(compiled: graphopt.CompiledModel, name: str = "prune") -> dict[str, Any]:
    return next(entry for entry in compiled.report.as_dict()["passes"] if entry["name"] == name)


@pytest.fixture(scope="module")
def compiled(net: Path) -> graphopt.CompiledModel:
    return graphopt.compile(net, passes="fuse,prune{ratio=0.5}", data=samples(24), **QUICK)


def test_channels_are_gone_and_the_budget_holds(compiled: graphopt.CompiledModel, tmp_path: Path) -> None:
    details = record(compiled)["details"]
    narrower = [layer for layer in details["pruned"] if layer["channels"][1] < layer["channels"][0]]
    assert narrower and 0.1 < details["macs_left"] < 0.6
    assert all(layer["channels"][1] % 16 in (0, 4, 8, 12) for layer in narrower)
    assert all(one["held"] for one in details["tried"])
    forms = {form.label: form for form in compiled.report.forms}
    pruned = next(form for label, form in forms.items() if label.startswith("pruned"))
    assert pruned.verified and pruned.milliseconds is not None


def test_every_layer_is_told(compiled: graphopt.CompiledModel) -> None:
    for layer in record(compiled)["details"]["pruned"]:
        before, after = layer["channels"]
        assert after <= before and layer["macs"][1] <= layer["macs"][0]
        if layer["error_before"] is not None:
            assert layer["error_after"] <= layer["error_before"]
        if after == before and layer["reason"]:
            assert "'" in layer["reason"] or "output" in layer["reason"]


def test_the_bundle_runs_at_other_sizes_and_shows_it(
    compiled: graphopt.CompiledModel, tmp_path: Path
) -> None:
    if not compiled.report.chosen.startswith("pruned"):
        pytest.skip("on this machine the whole model is as fast")
    path = compiled.save(tmp_path / "net.gopt")
    page = (path / "report.html").read_text(encoding="utf-8")
    assert "prune for ort-cpu" in page and "multiplications left" in page and "refitted" in page
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["verification"]["status"] == "verified"
    assert next(iter(graphopt.load(path).run(next(samples(1))).values())).shape == (1, 10)


def test_refitted_weights_lose_less(net: Path) -> None:
    drops = []
    for recover in ("true", "false"):
        made = graphopt.compile(
            net,
            passes=f"fuse,prune{{ratio=0.3,recover={recover}}}",
            data=samples(24),
            best_effort=True,
            **QUICK,
        )
        drops.append(record(made)["details"]["tried"][0]["decibels"])
    assert drops[0] > drops[1] + 3


def test_without_a_share_the_budget_decides(net: Path) -> None:
    made = graphopt.compile(net, passes="fuse,prune", data=samples(24), **{**QUICK, "max_drop": 0.2})
    tried = record(made)["details"]["tried"]
    assert tried and 0.5 < tried[0]["macs_left"] < 0.9
    assert all(one["held"] == (one["drop"] <= 0.2) for one in tried)


def test_quantizing_goes_on_with_what_is_left(net: Path) -> None:
    made = graphopt.compile(
        net,
        passes="fuse,prune{ratio=0.25},quantize{cache=none}",
        data=samples(24),
        **{**QUICK, "max_drop": 0.5},
    )
    labels = [form.label for form in made.report.forms]
    assert any(label.startswith("pruned") and "int8" in label for label in labels), labels


def test_a_budget_that_is_not_kept_is_an_error_with_what_came_nearest(net: Path) -> None:
    with pytest.raises(VerificationError, match="cannot be kept.*multiplications gone: over the budget"):
        graphopt.compile(net, passes="fuse,prune{ratio=0.5}", data=samples(24), **{**QUICK, "max_drop": 0.0})


def test_layers_can_be_kept(net: Path, compiled: graphopt.CompiledModel) -> None:
    names = [layer["node"] for layer in record(compiled)["details"]["pruned"]]
    made = graphopt.compile(
        net,
        passes=f'fuse,prune{{ratio=0.5,keep=["{names[0]}", nothing]}}',
        data=samples(24),
        best_effort=True,
        **QUICK,
    )
    first = record(made)["details"]["pruned"][0]
    assert first["node"] == names[0] and first["channels"][0] == first["channels"][1]
    assert any("names no layer: 'nothing'" in text for text in made.report.warnings)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("ratio=1.5", "the ratio of prune is 1.5"),
        ("ratio=-0.1", "the ratio of prune is -0.1"),
        ("macs=1", "the macs of prune is 1"),
        ("ratio=0.1,macs=0.1", "of the channels or of the multiplications"),
        ("samples=-1", "-1 is no number of samples"),
        ("multiple=-1", "-1 is no width"),
    ],
)
def test_options_that_make_no_sense(net: Path, options: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        graphopt.compile(net, passes=f"fuse,prune{{{options}}}", data=samples(8), **QUICK)


def test_a_model_with_nothing_to_prune_says_why(tmp_path: Path) -> None:
    import onnx_ir as ir

    from graphopt.testing import model_from_text

    model = model_from_text(
        "g (float[N,3,4,4] x) => (float[N,4,4,4] y) <float[4,3,1,1] w = {0}> { p = Conv(x, w) y = Softmax <axis=1> (p) }"
    )
    weight = np.random.default_rng(0).standard_normal((4, 3, 1, 1)).astype(np.float32)
    model.graph.initializers["w"].const_value = ir.tensor(weight, name="w")
    ir.save(model, tmp_path / "m.onnx")
    data = [
        {"x": np.random.default_rng(i).standard_normal((1, 3, 4, 4)).astype(np.float32)} for i in range(8)
    ]
    made = graphopt.compile(tmp_path / "m.onnx", passes="fuse,prune{ratio=0.5}", data=data, **QUICK)
    assert "Softmax is over all of them" in record(made)["reason"]
    assert any("prune is not part of the result" in text for text in made.report.warnings)


def test_a_quantized_model_is_left_alone(net: Path, tmp_path: Path) -> None:
    quantized = graphopt.compile(
        net, passes="fuse,quantize{cache=none}", data=samples(12), **{**QUICK, "max_drop": 0.5}
    )
    if not quantized.report.chosen.startswith("int8"):
        pytest.skip("on this machine the float form is faster")
    bundle = quantized.save(tmp_path / "q.gopt")
    made = graphopt.compile(bundle / "model.onnx", passes="prune{ratio=0.5}", data=samples(12), **QUICK)
    assert "quantized already" in record(made)["reason"]


def test_little_data_is_said(net: Path) -> None:
    made = graphopt.compile(
        net, passes="fuse,prune{ratio=0.25,samples=1}", data=samples(5), best_effort=True, **QUICK
    )
    assert any("not ranked by hessian" in text and "too few inputs" in text for text in made.report.warnings)


def test_every_layer_that_lost_nothing_says_why(net: Path, compiled: graphopt.CompiledModel) -> None:
    first = record(compiled)["details"]["pruned"][0]["node"]
    for options in ("ratio=0.3", "ratio=0.1,spread=uniform", f'ratio=0.3,keep=["{first}"]'):
        made = graphopt.compile(
            net, passes=f"fuse,prune{{{options}}}", data=samples(24), best_effort=True, **QUICK
        )
        rows = record(made)["details"]["pruned"]
        for row in rows:
            before, after = row["channels"]
            assert bool(row["reason"]) == (after == before), row
        if "keep" in options:
            assert rows[0]["reason"] == "the option 'keep' names it"


def test_too_little_time_is_said_and_every_layer_is_refitted(
    net: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A pass that is told how much is given a minute and a half, which is enough for this net anywhere.
    monkeypatch.setattr(proposals, "_UNHURRIED", 0.01)
    made = graphopt.compile(
        net, passes="fuse,prune{ratio=0.3}", data=samples(160), best_effort=True, **{**QUICK, "tune": "0.01s"}
    )
    details = record(made)["details"]
    assert all(not row["not_refitted"] for row in details["pruned"])
    assert any(row["error_after"] is not None for row in details["pruned"])
    assert any("there was no time to measure" in text for text in made.report.warnings)
    assert any("weights were refitted on" in text for text in made.report.warnings)


def test_what_was_over_the_budget_is_said_where_another_pass_held(net: Path) -> None:
    made = graphopt.compile(
        net,
        passes="fuse,prune{macs=0.8,recover=false},quantize{cache=none}",
        data=samples(24),
        **{**QUICK, "max_drop": 0.01},
    )
    assert any(text.startswith("prune on ort-cpu was left out: pruned") for text in made.report.warnings)
    assert record(made)["reason"] and record(made, "quantize")["details"]["layers"]


def test_more_samples_are_taken_where_there_is_time() -> None:
    import time

    from graphopt.capture import capture
    from graphopt.data.dataset import Dataset
    from graphopt.data.interface import inputs_of
    from graphopt.lossy import Context
    from graphopt.prune.pruner import samples_for
    from graphopt.testing import run
    from graphopt.verify.evaluation import Evaluation
    from graphopt.verify.metrics import find_metric

    model = capture(builders.conv_net(channels=8, blocks=1, size=16)).model
    (one,) = samples(1)
    evaluation = Evaluation([one], [run(model, one)], [{}], find_metric(None), 0.1, True)

    def taken(wanted: int, deadline: float) -> int:
        dataset = Dataset(list(samples(900)), inputs_of(model))
        context = Context(
            dataset, evaluation, "ort-cpu", None, lambda graph, label: [], threads=1, deadline=deadline
        )
        return len(samples_for(model, context, wanted))

    assert taken(7, float("inf")) == 7
    assert taken(0, time.monotonic()) == 128
    assert taken(0, float("inf")) == 512


def test_a_ratio_is_met_as_near_as_widths_allow(tmp_path: Path) -> None:
    # Steps of 8, 16 and 16: three tenths of each, rounded, would be half of the first two.
    rng = np.random.default_rng(1)
    widths = (3, 16, 32, 64)
    nodes, weights = [], []
    for index, (read, made) in enumerate(itertools.pairwise(widths)):
        weight = (rng.standard_normal((made, read, 3, 3)) / np.sqrt(9 * read)).astype(np.float32)
        weights.append(onnx.numpy_helper.from_array(weight, f"w{index}"))
        inputs = ["x" if index == 0 else f"r{index - 1}", f"w{index}"]
        nodes.append(onnx.helper.make_node("Conv", inputs, [f"c{index}"], pads=[1] * 4, strides=[2, 2]))
        nodes.append(onnx.helper.make_node("Relu", [f"c{index}"], [f"r{index}"]))
    head = rng.standard_normal((64, 5)).astype(np.float32)
    weights.append(onnx.numpy_helper.from_array(head, "head"))
    nodes.append(onnx.helper.make_node("GlobalAveragePool", ["r2"], ["p"]))
    nodes.append(onnx.helper.make_node("Flatten", ["p"], ["f"]))
    nodes.append(onnx.helper.make_node("MatMul", ["f", "head"], ["y"]))
    inputs = [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 3, 32, 32])]
    outputs = [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 5])]
    graph = onnx.helper.make_graph(nodes, "g", inputs, outputs, weights)
    opsets = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "m.onnx")
    data = [{"x": rng.standard_normal((1, 3, 32, 32)).astype(np.float32)} for _ in range(24)]
    options = {**QUICK, "max_drop": 0.99}
    made = graphopt.compile(
        tmp_path / "m.onnx", passes="fuse,prune{ratio=0.3,multiple=16}", data=data, **options
    )
    macs = np.array([27 * 16 * 256, 9 * 16 * 32 * 64, 9 * 32 * 64 * 16, 64 * 5])
    alike = float((macs * [0.7, 0.49, 0.49, 0.7]).sum() / macs.sum())
    assert abs(record(made)["details"]["macs_left"] - alike) < 0.06
