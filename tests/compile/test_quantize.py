"""Quantization end to end on small models: within the budget or not at all, explained, and never silent."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import graphopt
from graphopt import catalog
from graphopt.errors import DataError, UnknownNameError, UsageError, VerificationError
from graphopt.machine import Form
from graphopt.models import builders
from graphopt.passes import _preparation
from graphopt.testing import model_from_text
from graphopt.tune.kernels import kernels_of
from graphopt.verify.evaluation import Evaluation
from graphopt.verify.metrics import find_metric

QUICK: dict[str, Any] = {"threads": 1, "tune": "3s", "target": "ort-cpu", "passes": "fuse,quantize"}


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("net") / "net.onnx"
    onnx.save(builders.conv_net(channels=64, blocks=4, size=32), path)
    return path


def samples(count: int, seed: int = 0) -> Iterator[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    for _ in range(count):
        yield {"x": rng.standard_normal((1, 3, 32, 32)).astype(np.float32)}


def lossy(report: Any) -> dict[str, Any]:
    return next(record for record in report.as_dict()["passes"] if record["numerics"] == "lossy")


@pytest.fixture(scope="module")
def compiled(net: Path) -> graphopt.CompiledModel:
    return graphopt.compile(net, data=samples(12), **QUICK)


def test_the_budget_holds_on_held_out_samples(compiled: graphopt.CompiledModel) -> None:
    record = lossy(compiled.report)
    assert record["status"] == "applied"
    assert any(layer["precision"] == "int8" for layer in record["details"]["layers"])
    budget = compiled.report.verification.budget
    if compiled.report.chosen.startswith("int8"):
        assert budget is not None
        assert budget["drop"] <= budget["allowed"] == 0.01
        assert budget["held_out"] and budget["samples"] == 3
    else:
        assert any("not part of the result" in text for text in compiled.report.warnings)


def test_every_float_layer_has_a_reason(compiled: graphopt.CompiledModel) -> None:
    layers = lossy(compiled.report)["details"]["layers"]
    assert all(layer["reason"] for layer in layers if layer["precision"] == "float32")


def test_integer_kernels_really_run(net: Path, tmp_path: Path) -> None:
    compiled = graphopt.compile(net, data=samples(12), **QUICK, best_effort=True)
    forms = [form for form in compiled.report.forms if form.label.startswith("int8")]
    assert forms and all(form.verified for form in forms)
    if not compiled.report.chosen.startswith("int8"):
        pytest.skip("on this machine the float form is faster")
    path = compiled.save(tmp_path / "net.gopt")
    manifest = json.loads((path / "manifest.json").read_text())
    form = Form("bundle", "ort-cpu", path, manifest["config"])
    kernels = kernels_of(form, next(samples(1)), threads=1, runs=1)
    assert sum(kernel.op == "QLinearConv" for kernel in kernels) >= 1
    assert all(kernel.integer for kernel in kernels if kernel.op == "QLinearConv")
    executed = lossy(compiled.report)["details"]["executed"]
    assert executed["integer"] >= 1 and executed["without_integer_kernel"] == []
    assert executed["providers"] == ["CPUExecutionProvider"]


def test_a_saved_bundle_shows_what_was_decided(compiled: graphopt.CompiledModel, tmp_path: Path) -> None:
    path = compiled.save(tmp_path / "net.gopt")
    page = (path / "report.html").read_text(encoding="utf-8")
    assert "quantize for ort-cpu" in page and "What was judged" in page
    outputs = graphopt.load(path).run(next(samples(1)))
    assert all(np.isfinite(array).all() for array in outputs.values())


def test_without_data_it_refuses(net: Path) -> None:
    with pytest.raises(DataError, match="calibrated and judged on data") as caught:
        graphopt.compile(net, **QUICK)
    assert "--synthetic-calibration" in caught.value.hint


def test_made_up_inputs_are_said_to_be(net: Path) -> None:
    compiled = graphopt.compile(net, synthetic_calibration=True, **QUICK)
    assert any(
        "made-up inputs: the accuracy on real data is unknown" in text for text in compiled.report.warnings
    )


def test_a_budget_that_nothing_keeps_is_an_error_with_what_came_nearest(net: Path) -> None:
    with pytest.raises(VerificationError, match="budget of 0.00% .* cannot be kept.*nearest") as caught:
        graphopt.compile(net, data=samples(12), max_drop=0.0, **QUICK)
    assert "--best-effort" in caught.value.hint


def test_a_metric_of_the_users_own_gets_the_labels(net: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, Any]] = []

    def metric(outputs: Any, labels: Any) -> float:
        seen.append((len(outputs), labels["labels"].tolist()))
        return 0.5

    arrays = np.stack([sample["x"] for sample in samples(8)])
    np.savez(tmp_path / "data.npz", x=arrays, labels=np.arange(8))
    compiled = graphopt.compile(net, data=tmp_path / "data.npz", metric=metric, **QUICK)
    # One sample in two is held out, whichever of the two; for the standard error the metric gets parts of them too.
    assert (4, [1, 3, 4, 6]) in seen
    assert all(count == len(labels) and set(labels) <= {1, 3, 4, 6} for count, labels in seen)
    budget = compiled.report.verification.budget
    assert budget is None or (budget["metric"] == "metric" and budget["original"] == 0.5)


def test_a_metric_that_raises_is_named(net: Path) -> None:
    def broken(outputs: Any) -> float:
        raise ZeroDivisionError("no rows")

    with pytest.raises(UsageError, match="the metric 'broken' fails: ZeroDivisionError: no rows") as caught:
        graphopt.compile(net, data=samples(8), metric=broken, **QUICK)
    assert "for each sample (outputs: 'y')" in caught.value.hint and "(labels: none" in caught.value.hint


def test_unknown_metrics_and_budgets(net: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'cosine'"):
        graphopt.compile(net, data=samples(8), metric="cosin", **QUICK)
    with pytest.raises(UsageError, match="cannot read the budget 'much'"):
        graphopt.compile(net, data=samples(8), max_drop="much", **QUICK)
    with pytest.raises(UsageError, match="the budget '150%' is not a share of the metric"):
        graphopt.compile(net, data=samples(8), max_drop="150%", **QUICK)


def test_few_samples_are_judged_on_what_calibrated_and_that_is_said(net: Path) -> None:
    compiled = graphopt.compile(net, data=samples(2), **QUICK)
    assert any("too few samples to hold some out" in text for text in compiled.report.warnings)


def test_samples_with_nan_are_refused(net: Path) -> None:
    data = list(samples(8))
    data[1]["x"][0, 0, 0, 0] = np.nan
    with pytest.raises(DataError, match="'x' holds NaN"):
        graphopt.compile(net, data=data, **QUICK)


def test_nodes_to_keep_stay_in_float(net: Path) -> None:
    compiled = graphopt.compile(
        net, data=samples(8), threads=1, tune="3s", target="ort-cpu", passes="fuse,quantize{keep=[*]}"
    )
    record = lossy(compiled.report)
    assert all(layer["precision"] == "float32" for layer in record["details"]["layers"])
    assert compiled.report.verification.budget is None


def test_a_model_without_products_is_left_as_it_is(tmp_path: Path) -> None:
    from graphopt.testing import model_from_text

    path = tmp_path / "plain.onnx"
    ir.save(model_from_text("g (float[4,8] x) => (float[4,8] y) { a = Exp(x)\n y = Neg(a) }"), path)
    data = [{"x": np.ones((4, 8), np.float32)}] * 4
    compiled = graphopt.compile(path, data=data, **QUICK)
    assert "no Conv, MatMul or Gemm" in lossy(compiled.report)["reason"]


def test_a_quantized_model_keeps_its_precision_and_is_not_quantized_twice(net: Path, tmp_path: Path) -> None:
    compiled = graphopt.compile(net, data=samples(12), **QUICK)
    if not compiled.report.chosen.startswith("int8"):
        pytest.skip("on this machine the float form is faster")
    path = compiled.save(tmp_path / "net.gopt") / "model.onnx"

    def quantizers(model: ir.Model) -> int:
        return sum(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in model.graph)

    again = graphopt.compile(path, data=samples(12), **QUICK)
    record = lossy(again.report)
    assert record["status"] == "nothing to do" and "quantized already" in record["reason"]
    result = ir.load(again.save(tmp_path / "again.gopt") / "model.onnx")
    assert quantizers(result) == quantizers(ir.load(path)) > 0


def test_a_metric_that_counts_few_rows_is_not_trusted_alone() -> None:
    from graphopt.verify.evaluation import Evaluation
    from graphopt.verify.metrics import find_metric

    rng = np.random.default_rng(0)
    references = [{"y": rng.standard_normal((1, 10)).astype(np.float32)} for _ in range(24)]
    noisy = [{"y": wanted["y"] * np.float32(1.5)} for wanted in references]  # the same largest element, 6 dB
    feeds = [{"x": np.zeros(1, np.float32)}] * 24
    few = Evaluation(feeds, references, [{}] * 24, find_metric("top1"), 0.01).judge(noisy)
    assert few.drop == 0 and not few.ok and "since the samples are few" in few.describe()
    many = Evaluation(feeds, references, [{}] * 24, find_metric("top1"), 0.2).judge(noisy)
    assert many.ok


@pytest.mark.parametrize("step", ["equalize", "smooth", "round-weights", "correct-bias"])
def test_each_step_of_accuracy_is_a_pass_of_its_own(net: Path, step: str) -> None:
    options = "equalize=false,smooth=false,round_weights=false,correct_bias=false"
    passes = f"fuse,{step},quantize{{{options}}}"
    compiled = graphopt.compile(net, data=samples(12), **{**QUICK, "passes": passes})
    records = [record for record in compiled.report.as_dict()["passes"] if record["numerics"] == "lossy"]
    assert [record["name"] for record in records] == [step, "quantize", "storage"]
    assert records[0]["status"] == "applied" or records[0]["reason"]
    assert all(entry["name"] == step for entry in records[0]["details"].get("steps", []))
    names = {entry["name"] for entry in records[1]["details"]["steps"]}
    assert all(name.startswith("ranges by") for name in names)


def test_weights_that_an_earlier_pass_rounded_are_those_that_are_written(net: Path) -> None:
    from graphopt.lossy import Candidate, Context, LossyPass, Proposal
    from graphopt.quant.place import Weights
    from graphopt.quant.ranges import quantize_weight, weight_scales
    from graphopt.quant.units import units_of

    class RoundDown(LossyPass):
        name = "round-down"

        def propose(self, model: ir.Model, context: Context) -> Proposal:
            assert context.kernels is not None
            rounded, scales = {}, {}
            for unit in units_of(model, context.kernels)[0]:
                if unit.kind == "compute":
                    array = unit.node.inputs[1].const_value.numpy()  # type: ignore[union-attr]
                    scales[unit.name] = weight_scales(array, 0, 127)
                    rounded[unit.name] = quantize_weight(array, scales[unit.name], 0, 127) & ~1
            return Proposal([Candidate("even", model, weights=Weights(rounded, scales))])

    seen: list[np.ndarray] = []

    class Look(LossyPass):
        name = "look"

        def propose(self, model: ir.Model, context: Context) -> Proposal:
            seen.extend(
                value.const_value.numpy()
                for value in model.graph.initializers.values()
                if value.const_value is not None
                and value.dtype == ir.DataType.INT8
                and value.const_value.size > 256
            )
            return Proposal(reason="only looked")

    quantize = "quantize{equalize=false,smooth=false,round_weights=false,correct_bias=false}"
    graphopt.compile(
        net, data=samples(12), max_drop=0.5, **{**QUICK, "passes": ["fuse", RoundDown(), quantize, Look()]}
    )
    assert seen and all(not (array & 1).any() for array in seen)


def test_targets_with_like_kernels_share_what_prepares_for_them(
    net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")

    made: list[object] = []
    real = _preparation.prepare

    def counted(*args: Any, **kwargs: Any) -> Any:
        made.append(args)
        return real(*args, **kwargs)

    monkeypatch.setattr(_preparation, "prepare", counted)
    # So much that what the first turn takes of it is little: with half as much again it would be prepared anew.
    given: dict[str, Any] = {"data": list(samples(12)), **QUICK, "target": "cpu", "tune": "3m"}
    monkeypatch.setenv("GRAPHOPT_CACHE", str(tmp_path / "cache"))
    compiled = graphopt.compile(net, **given)
    records = [record for record in compiled.report.as_dict()["passes"] if record["name"] == "quantize"]
    # A net of convolutions is looked at for OpenVINO first.
    assert [record["details"]["target"] for record in records] == ["openvino", "ort-cpu"]
    found = [catalog.targets_of(name)[0].integer_kernels() for name in ("ort-cpu", "openvino")]  # type: ignore[attr-defined]
    alike = len({(entry.limits, entry.symmetric, entry.weight_bits) for entry in found}) == 1
    assert len(made) == (1 if alike else 2)
    if alike:
        assert records[0]["details"]["steps"] == records[1]["details"]["steps"]
    assert compiled.save(tmp_path / "net.gopt").is_dir()

    # The next time both are prepared as before, and nothing is measured for it.
    made.clear()
    again = [
        record["details"]
        for record in graphopt.compile(net, **given).report.as_dict()["passes"]
        if record["name"] == "quantize"
    ]
    assert not made and all(details["replayed"] for details in again)
    for name in ("steps", "equalized", "calibration"):
        assert [details[name] for details in again] == [record["details"][name] for record in records]


def test_names_and_numbers_that_make_no_sense_are_said(net: Path) -> None:
    with pytest.raises(UsageError, match="-1 is no number of samples"):
        graphopt.compile(net, data=samples(8), **QUICK | {"passes": "fuse,quantize{samples=-1}"})
    passes = "fuse,quantize{keep=[nowhere],ops=[Conv,Gru]}"
    warnings = graphopt.compile(net, data=samples(8), **QUICK | {"passes": passes}).report.warnings
    assert any("'keep' names no node: 'nowhere'" in text for text in warnings)
    assert any("'ops' names 'Gru'" in text for text in warnings)
    assert not any("'ops' names 'Conv'" in text for text in warnings)


def test_a_metric_that_ends_the_program_or_scores_nothing_is_said(net: Path) -> None:
    def ends(outputs: Any) -> float:
        raise SystemExit(3)

    with pytest.raises(UsageError, match="the metric 'ends' fails: SystemExit: 3"):
        graphopt.compile(net, data=samples(8), metric=ends, **QUICK)
    with pytest.raises(
        DataError, match="the original scores 0 by the metric .*: what is lost cannot be told"
    ):
        graphopt.compile(net, data=samples(8), metric=lambda outputs: 0.0, **QUICK)


def test_outputs_that_show_nothing_are_told(tmp_path: Path) -> None:
    """Zeros: nothing can be judged by them. One number, whatever the inputs: little can."""
    path = tmp_path / "mlp.onnx"
    onnx.save(_mlp(np.random.default_rng(0)), path)
    zeros = [{"x": np.zeros((4, 256), np.float32)} for _ in range(12)]
    with pytest.raises(DataError, match="nothing but zeros on the samples"):
        graphopt.compile(path, data=zeros, **QUICK)
    references = [{"y": np.full((4, 2), 0.5, np.float32)}, {"y": np.full((3, 2), 0.5, np.float32)}]
    metric = find_metric(None)
    assert not Evaluation([{}, {}], references, [{}, {}], metric).tells
    references[1]["y"][0] = np.nan
    assert not Evaluation([{}, {}], references, [{}, {}], metric).tells
    references[1]["y"][1] = 0.25
    assert Evaluation([{}, {}], references, [{}, {}], metric).tells


def test_products_whose_channels_were_smoothed_are_saved(tmp_path: Path) -> None:
    """A normalization with an outlier channel: what smoothing did to it is part of the report, as plain JSON."""
    rng = np.random.default_rng(0)
    scale = np.ones(256, np.float32)
    scale[3] = 200
    weight = rng.standard_normal((256, 256)).astype(np.float32) / 16
    weight[3] /= 200
    model = model_from_text(
        """g (float[B,8,256] x) => (float[B,8,256] y) <float[256] s = {0}, float[256] z = {0}, float[256,256] w = {0}>
        { n = LayerNormalization (x, s, z)  y = MatMul(n, w) }"""
    )
    for name, array in (("s", scale), ("z", np.zeros(256, np.float32)), ("w", weight)):
        model.graph.initializers[name].const_value = ir.tensor(array, name=name)
    path = tmp_path / "product.onnx"
    ir.save(model, path)
    data = [{"x": rng.standard_normal((2, 8, 256)).astype(np.float32)} for _ in range(12)]
    compiled = graphopt.compile(path, data=data, **QUICK)
    details = lossy(compiled.report)["details"]["dynamic"]
    assert details["equalized"] and all("factors" not in entry for entry in details["equalized"])
    assert compiled.save(tmp_path / "product.gopt").is_dir()


def test_data_that_never_change_are_warned_about_whatever_is_proposed(tmp_path: Path) -> None:
    """Products alone: dynamic int8 is proposed first, and may be all there is time for."""
    path = tmp_path / "mlp.onnx"
    onnx.save(_mlp(np.random.default_rng(0)), path)
    data = [{"x": np.ones((4, 256), np.float32)} for _ in range(12)]
    warnings = graphopt.compile(path, data=data, **QUICK | {"tune": "1s"}).report.warnings
    assert any("samples of the calibration data are the same" in text for text in warnings)


def _mlp(rng: np.random.Generator) -> onnx.ModelProto:
    weights = [
        onnx.numpy_helper.from_array(rng.standard_normal((256, 256)).astype(np.float32) / 16, f"w{index}")
        for index in range(3)
    ]
    names = ["x", "a", "b", "y"]
    nodes = [
        onnx.helper.make_node("MatMul", [names[i], f"w{i}"], [names[i + 1]], name=f"m{i}") for i in range(3)
    ]
    values = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [4, 256]) for name in ("x", "y")
    ]
    graph = onnx.helper.make_graph(nodes, "g", values[:1], values[1:], weights)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])


def test_best_effort_writes_what_is_over_the_budget_and_says_so(net: Path, tmp_path: Path) -> None:
    compiled = graphopt.compile(net, data=samples(12), max_drop=0.0, best_effort=True, **QUICK)
    report = compiled.report
    forms = [form for form in report.forms if form.label.startswith("int8")]
    assert forms and all(form.verified and form.note.startswith("over the budget") for form in forms)
    assert any("taken on as best effort" in text for text in report.warnings)
    if not report.chosen.startswith("int8"):
        pytest.skip("on this machine the float form is faster")
    assert report.verification.status == "over the budget"
    compiled.save(tmp_path / "net.gopt")
    assert (
        json.loads((tmp_path / "net.gopt" / "manifest.json").read_text())["verification"]["status"]
        == "over the budget"
    )
