"""Compilation end to end on small models: verified, never slower, explained, and nothing half-written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import onnx_ir as ir
import onnx_ir.passes.common
import pytest

import graphopt
from graphopt import artifact
from graphopt.errors import BundleError, DataError, GraphoptError, ModelError, UnknownNameError, UsageError
from graphopt.ir import opset
from graphopt.models import builders
from graphopt.pipeline.record import PassStatus
from graphopt.rewrite import Builder, Rewrite
from graphopt.testing import model_from_text, run

QUICK = {"threads": 1, "tune": "0.3s"}

GELU = """
g (float[batch,16] x) => (float[batch,16] y)
<float root2={1.4142135}, float one={1}, float half={0.5}, float zero={0}>
{
  a = Add(x, zero)
  b = Div(a, root2)
  c = Erf(b)
  d = Add(c, one)
  e = Mul(a, d)
  y = Mul(e, half)
}
"""


@pytest.fixture
def gelu(tmp_path: Path) -> Path:
    path = tmp_path / "gelu.onnx"
    ir.save(model_from_text(GELU), path)
    return path


def test_compile_save_load_run(gelu: Path, tmp_path: Path) -> None:
    compiled = graphopt.compile(gelu, **QUICK)
    report = compiled.report
    assert report.verification.synthetic and report.speedup is not None and report.speedup >= 1.0
    x = np.random.default_rng(0).standard_normal((5, 16)).astype(np.float32)
    wanted = run(ir.load(gelu), {"x": x})["y"]
    np.testing.assert_allclose(compiled.run({"x": x})["y"], wanted, atol=2e-6)
    bundle = compiled.save(tmp_path / "gelu.gopt")
    loaded = graphopt.load(bundle)
    (got,) = loaded(x)
    np.testing.assert_allclose(got, wanted, atol=2e-6)
    for model in (loaded, compiled):
        with pytest.raises(UsageError, match=r"by input name, and this is of type ndarray\n.*model\(array\)"):
            model.run(x)  # type: ignore[arg-type]
    assert compiled.report.verification.status == "verified"
    assert {file.name for file in bundle.iterdir()} >= {"manifest.json", "report.html"}


def test_the_report_names_every_rewrite_and_every_idle_pass(gelu: Path) -> None:
    passes = graphopt.compile(gelu, **QUICK).report.as_dict()["passes"]
    done = {name: count for entry in passes for name, count in entry["rewrites"].items()}
    assert done.get("gelu") == 1
    idle = [entry for entry in passes if entry["status"] == PassStatus.NOTHING.value]
    assert idle and all(entry["reason"] for entry in idle)


def test_the_manifest_holds_the_evidence(gelu: Path, tmp_path: Path) -> None:
    bundle = graphopt.compile(gelu, **QUICK).save(tmp_path / "m.gopt")
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert manifest["verification"]["status"] == "verified" and manifest["hashes"]["source"]
    assert manifest["passes"] and manifest["measurements"]["forms"] and manifest["machine"]["machine"]
    artifact.check_files(bundle, artifact.read_manifest(bundle))


def test_a_changed_bundle_is_not_loaded(gelu: Path, tmp_path: Path) -> None:
    bundle = graphopt.compile(gelu, **QUICK).save(tmp_path / "m.gopt")
    file = next(file for file in bundle.iterdir() if file.suffix == ".onnx")
    file.write_bytes(file.read_bytes() + b"\0")
    with pytest.raises(BundleError, match="its hash differs"):
        graphopt.load(bundle)
    file.unlink()
    with pytest.raises(BundleError, match="lacks"):
        graphopt.load(bundle)


def test_the_user_s_file_stays_the_user_s(gelu: Path, tmp_path: Path) -> None:
    """A bundle that holds the original holds a copy: changing the file later must not change the bundle."""
    bundle = graphopt.compile(gelu, passes="O0", **QUICK).save(tmp_path / "m.gopt")
    with open(gelu, "r+b") as file:
        file.write(b"garbage")
    graphopt.load(bundle)


def test_a_file_newer_than_the_backend_is_measured_all_the_same(gelu: Path) -> None:
    """onnx writes newer versions of the file format than ONNX Runtime reads."""
    proto = onnx.load(gelu)
    proto.ir_version = opset.limits().ir_version + 1
    onnx.save(proto, gelu)
    report = graphopt.compile(gelu, **QUICK).report
    original = next(form for form in report.forms if form.label == "original")
    assert original.milliseconds is not None and original.verified


class WrongGelu(Rewrite):
    """Takes every Erf for a Tanh."""

    name = "wrong-gelu"
    roots = ("Erf",)

    def apply(self, node: ir.Node, build: Builder) -> ir.Value | None:
        return build.op("Tanh", node.inputs[0], like=node.outputs[0])


def test_a_wrong_pass_is_undone_told_and_reproduced(gelu: Path, tmp_path: Path) -> None:
    compiled = graphopt.compile(gelu, passes=[WrongGelu, "fuse"], repro_dir=tmp_path / "repro", **QUICK)
    x = np.linspace(-3, 3, 32, dtype=np.float32).reshape(2, 16)
    np.testing.assert_allclose(compiled.run({"x": x})["y"], run(ir.load(gelu), {"x": x})["y"], atol=2e-6)
    warning = next(text for text in compiled.report.warnings if "wrong-gelu" in text)
    assert "undone" in warning and "repro" in warning
    assert (tmp_path / "repro" / "wrong-gelu" / "command.txt").exists()


def test_python_objects_foreign_passes_and_text_mix(gelu: Path) -> None:
    theirs = onnx_ir.passes.common.CommonSubexpressionEliminationPass()
    compiled = graphopt.compile(gelu, passes=["fold", theirs, "fuse{disable=[gelu]}"], **QUICK)
    names = [record.name for record in compiled.report.passes]
    assert "CommonSubexpressionEliminationPass" in names
    assert not any("gelu" in record.rewrites for record in compiled.report.passes)


def test_pipeline_runs_without_a_target(gelu: Path) -> None:
    from graphopt.capture import capture

    pipeline = graphopt.Pipeline("fuse")
    result = pipeline.run(capture(gelu).model)
    assert [node.op_type for node in result.graph] == ["Gelu"] and pipeline.records
    assert [node.op_type for node in pipeline.run(gelu).graph] == ["Gelu"]
    with pytest.raises(ModelError):
        pipeline.run(gelu.parent / "missing.onnx")


def test_a_call_by_name_is_told_apart_from_one_in_order(gelu: Path) -> None:
    compiled = graphopt.compile(gelu, **QUICK)
    x = np.ones((2, 16), np.float32)
    with pytest.raises(UsageError, match="a call takes arrays in the order of the inputs"):
        compiled({"x": x})  # type: ignore[arg-type]
    np.testing.assert_array_equal(compiled(x)[0], compiled.run({"x": x})["y"])


def test_data_without_numbers_are_told(gelu: Path) -> None:
    x = np.ones((2, 16), np.float32)
    x[0, 3] = np.nan
    report = graphopt.compile(gelu, data=[{"x": np.ones((2, 16), np.float32)}, {"x": x}], **QUICK).report
    assert any("the data hold NaN or infinity in 'x' (sample 1)" in warning for warning in report.warnings)


def test_several_targets_in_a_list(gelu: Path) -> None:
    report = graphopt.compile(gelu, **{**QUICK, "target": ["ort-cpu"]}).report
    assert report.target == "ort-cpu"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"passes": "fusee"}, UnknownNameError, "did you mean 'fuse'"),
        ({"passes": "fuse{disable=[gelo]}"}, UnknownNameError, "did you mean 'gelu'"),
        ({"target": "ort-cpuu"}, UnknownNameError, "did you mean 'ort-cpu'"),
        ({"max_drop": 0.01}, UsageError, "^max-drop is about lossy passes, and none of the passes is lossy"),
        (
            {"max_drop": 0.01, "metric": "f1", "best_effort": True},
            UsageError,
            "^max-drop, metric and best-effort are",
        ),
        ({"input_shapes": {"z": (1, 16)}}, UnknownNameError, "unknown input"),
        ({"input_shapes": {"x": (1, 16, 1)}}, UsageError, "x"),
        ({"input_shapes": "x:1,16"}, UsageError, "input_shapes is no mapping"),
        ({"input_shapes": {"x": 16}}, UsageError, "input_shapes is no mapping"),
        ({"target": 5}, UsageError, "the target is of type int"),
        ({"data": 5}, DataError, "the data are of type int"),
        ({"tune": "soon"}, UsageError, "cannot read the time"),
    ],
)
def test_wrong_calls_say_what_is_wrong(
    gelu: Path, arguments: dict[str, Any], error: type[GraphoptError], message: str
) -> None:
    with pytest.raises(error, match=message):
        graphopt.compile(gelu, **{**QUICK, **arguments})


def test_an_existing_folder_is_never_overwritten(gelu: Path, tmp_path: Path) -> None:
    place = tmp_path / "mine"
    place.mkdir()
    (place / "thesis.txt").write_text("do not touch")
    with pytest.raises(BundleError, match="is no bundle"):
        graphopt.compile(gelu, **QUICK).save(place)
    assert (place / "thesis.txt").read_text() == "do not touch"


def test_a_bundle_is_replaced_whole(gelu: Path, tmp_path: Path) -> None:
    place = tmp_path / "m.gopt"
    for _ in range(2):
        graphopt.compile(gelu, **QUICK).save(place)
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith(".")] == []


@pytest.mark.parametrize("shapes", [None, {"x": (2, 16)}])
def test_the_same_seed_gives_the_same_graph(gelu: Path, shapes: dict[str, Any] | None) -> None:
    hashes = [
        graphopt.compile(gelu, seed=3, input_shapes=shapes, **QUICK)._outcome.manifest.hashes["source"]
        for _ in range(2)
    ]
    assert hashes[0] == hashes[1]


@pytest.mark.parametrize(
    "model",
    [
        builders.conv_net(),
        builders.mlp(),
        builders.transformer_block(),
        builders.dynamic_net(),
        builders.branch_and_loop(),
    ],
    ids=["conv", "mlp", "transformer", "dynamic", "control-flow"],
)
def test_builders_compile_and_hold_on_fresh_inputs(model: Any) -> None:
    from graphopt.data.interface import inputs_of
    from graphopt.data.synthesize import feeds_for, size_candidates
    from graphopt.verify.session import Session

    original = ir.from_proto(model) if not isinstance(model, ir.Model) else model
    compiled = graphopt.compile(model, **QUICK)
    session = Session(original)
    checked = 0
    for seed, sizes in enumerate(size_candidates(original)):
        feeds = feeds_for(original, sizes, seed + 100)
        try:
            wanted = session.run(feeds)
        except GraphoptError:
            continue
        got = compiled.run(feeds)
        checked += 1
        for name, reference in wanted.items():
            scale = max(1e-6, float(np.abs(reference).max()))
            np.testing.assert_allclose(got[name], reference, rtol=0, atol=2e-5 * scale)
        if checked == 3:
            break
    assert checked and inputs_of(original)


def test_cuda_compiles_without_a_gpu(gelu: Path, tmp_path: Path) -> None:
    from graphopt import catalog

    if catalog.target("ort-cuda").probe().runnable:
        pytest.skip("this machine has a GPU: the tests marked cuda run there")
    compiled = graphopt.compile(gelu, target="ort-cuda", **QUICK)
    compiled.save(tmp_path / "m.gopt")
    report = compiled.report.as_dict()
    assert report["verify"]["status"] == "verified, not run on the target"
    assert report["speedup"] is None and report["target"] == "ort-cuda"
    assert any(warning.startswith("compiled, not run: ") for warning in report["warnings"])
    assert "compiled, not run: " in (tmp_path / "m.gopt" / "report.html").read_text()
    with pytest.raises(BundleError, match="does not run here"):
        graphopt.load(tmp_path / "m.gopt")


def test_the_targets_knobs_are_tried_and_told(gelu: Path, tmp_path: Path) -> None:
    dynamic = graphopt.compile(gelu, target="ort-cpu", **QUICK)
    # Small as it is here, it need not stay so.
    assert {knob.label.partition(", ")[2] for knob in dynamic.report.knobs} == {"denormals flushed"}
    compiled = graphopt.compile(gelu, target="ort-cpu", input_shapes={"x": (2, 16)}, **QUICK)
    knobs = {knob.label.partition(", ")[2]: knob for knob in compiled.report.knobs}
    assert knobs.keys() == {"denormals flushed", "one thread"}
    taken = [knob.label for knob in knobs.values() if knob.taken]
    assert taken == ([compiled.report.chosen] if ", " in compiled.report.chosen else [])
    manifest = artifact.read_manifest(compiled.save(tmp_path / "gelu.gopt"))
    assert [knob["label"] for knob in manifest.measurements["knobs"]] == [
        knob.label for knob in compiled.report.knobs
    ]


BRANCHES = """
g (float[batch,16] x, bool up) => (float[batch,16] y)
{
  a = MatMul(x, large)
  m = MatMul(a, medium)
  b = MatMul(m, rest)
  c = Add(b, small)
  y = If (up) <
    then_branch = high () => (float[batch,16] h) { h = Add(c, inner) },
    else_branch = low () => (float[batch,16] l) { l = Sub(c, small) }
  >
}
"""


def _with_external_data(path: Path, threshold: int) -> tuple[dict[str, Any], Any]:
    """A model with weights of 524, 131, 4 and less kB in files, one of them a branch's; returns inputs and output."""
    rng = np.random.default_rng(5)
    shapes = {"large": (16, 2048), "medium": (2048, 64), "rest": (64, 16), "small": (16,)}
    proto = onnx.parser.parse_model('<ir_version: 8, opset_import: ["" : 17]>' + BRANCHES)
    tensors = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    proto.graph.initializer.extend(
        onnx.numpy_helper.from_array(array, name) for name, array in tensors.items()
    )
    inner = onnx.numpy_helper.from_array(np.full((1, 16), 2, np.float32), "inner")
    (branch,) = [entry for entry in proto.graph.node[-1].attribute if entry.name == "then_branch"]
    branch.g.initializer.append(inner)
    feeds = {"x": rng.standard_normal((3, 16)).astype(np.float32), "up": np.array(True)}
    wanted = run(ir.from_proto(proto), feeds)["y"]
    onnx.save(proto, path, save_as_external_data=True, location="weights.bin", size_threshold=threshold)
    return feeds, wanted


def test_weights_beside_a_model_stay_readable_while_its_result_lives(tmp_path: Path) -> None:
    """A file of several hard links is refused, by ONNX too: the user's own gets none."""
    path = tmp_path / "net.onnx"
    _with_external_data(path, 0)
    first = graphopt.compile(path, passes="fold", target="ort-cpu", **QUICK)
    assert (tmp_path / "weights.bin").stat().st_nlink == 1
    again = graphopt.compile(path, passes="fold", target="ort-cpu", **QUICK)
    assert first.report.verification.status == again.report.verification.status == "verified"


@pytest.mark.parametrize("threshold", [0, 32, 1024])
def test_external_data_of_any_size(tmp_path: Path, threshold: int) -> None:
    (tmp_path / "model").mkdir()
    path = tmp_path / "model" / "net.onnx"
    feeds, wanted = _with_external_data(path, threshold)
    bundle = graphopt.compile(path, target="ort-cpu", passes="O2", **QUICK).save(tmp_path / "net.gopt")
    # The bundle stands alone.
    path.unlink()
    (tmp_path / "model" / "weights.bin").unlink()
    got = graphopt.load(bundle).run(feeds)["y"]
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5 * float(np.abs(wanted).max()))


FALSE_LENGTH = """
g (float[batch,length,8] x) => (float[batch,19,4] y)
<int64[2] flat = {-1, 8}, int64[1] start = {0}, int64[1] end = {2}, int64[1] width = {4}>
{
  rows = Reshape(x, flat)
  product = MatMul(rows, w)
  shape = Shape(x)
  outer = Slice(shape, start, end)
  dims = Concat <axis=0> (outer, width)
  y = Reshape(product, dims)
}
"""


@pytest.mark.parametrize("passes", ["fuse", "O2"])
def test_a_length_that_the_file_states_wrongly_is_not_baked_in(tmp_path: Path, passes: str) -> None:
    # As torch writes it behind an LSTM. All data have that length, so they alone would not show it.
    rng = np.random.default_rng(2)
    proto = onnx.parser.parse_model('<ir_version: 8, opset_import: ["" : 17]>' + FALSE_LENGTH)
    weight = rng.standard_normal((8, 4)).astype(np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    path = tmp_path / "net.onnx"
    onnx.save(proto, path)
    data = [{"x": rng.standard_normal((2, 19, 8)).astype(np.float32)} for _ in range(3)]
    compiled = graphopt.compile(path, target="ort-cpu", data=data, passes=passes, **QUICK)
    found = compiled.report.verification
    assert not found.synthetic and found.trials[3:] == [{"batch": 1, "length": 9}]
    for shape in [(2, 19, 8), (2, 38, 8), (3, 5, 8)]:
        x = rng.standard_normal(shape).astype(np.float32)
        np.testing.assert_allclose(compiled.run({"x": x})["y"], x @ weight, rtol=1e-4, atol=1e-5)


def test_other_sizes_are_tried_as_far_as_the_model_takes_them(tmp_path: Path) -> None:
    # The batch is 3 in truth: the length alone may be another.
    text = """
    g (float[batch,length] x) => (float[1,length] y) <float[1,3] scale = {1, 2, 3}> {
        three = MatMul(scale, x)
        y = Relu(three)
    }"""
    path = tmp_path / "net.onnx"
    ir.save(model_from_text(text), path)
    x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    trials = graphopt.compile(path, target="ort-cpu", data=[{"x": x}], **QUICK).report.verification.trials
    assert {"batch": 3, "length": 2} in trials


def test_a_size_that_the_original_itself_fixes_is_told(tmp_path: Path) -> None:
    text = """
    g (float[2,length] x) => (float[2,5] y) <int64[2] to = {2, 5}> {
        fixed = Reshape(x, to)
        y = Relu(fixed)
    }"""
    path = tmp_path / "net.onnx"
    ir.save(model_from_text(text), path)
    data = [{"x": np.ones((2, 5), np.float32)}]
    report = graphopt.compile(path, target="ort-cpu", data=data, **QUICK).report
    assert any("verified with length = 5 only" in warning for warning in report.warnings)


@pytest.fixture
def scaled(tmp_path: Path) -> Path:
    """A model with an input that has a default value."""
    text = "g (float[batch,3] x, float[1] scale) => (float[batch,3] y) { y = Mul(x, scale) }"
    proto = ir.to_proto(model_from_text(text))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.full(1, 2, np.float32), "scale"))
    onnx.save(proto, tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


@pytest.mark.parametrize("passes", ["fuse", "fuse,quantize"])
def test_data_that_differ_from_a_default_value_are_refused(scaled: Path, passes: str) -> None:
    x = np.ones((8, 2, 3), np.float32)
    for scale in (np.full((8, 1), 7, np.float32), np.full((8, 2), 2, np.float32)):
        with pytest.raises(DataError, match="'scale' is an input with a default value"):
            graphopt.compile(scaled, target="ort-cpu", data={"x": x, "scale": scale}, passes=passes, **QUICK)


def test_data_that_repeat_a_default_value_are_taken(scaled: Path) -> None:
    x = np.ones((8, 2, 3), np.float32)
    data = {"x": x, "scale": np.full((8, 1), 2, np.float32)}
    compiled = graphopt.compile(scaled, target="ort-cpu", data=data, **QUICK)
    np.testing.assert_array_equal(compiled.run({"x": x[0]})["y"], 2 * x[0])


ONLY_NAN = """
g (float[batch,4] x) => (float[batch,4] y) <float zero = {0}, float one = {1}> {
  a = Relu(x)
  b = Mul(a, zero)
  c = Div(b, zero)
  y = Mul(c, one)
}
"""


def test_what_cannot_be_compared_is_left_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "nan.onnx"
    ir.save(model_from_text(ONLY_NAN), path)
    compiled = graphopt.compile(path, target="cpu", **QUICK)
    report = compiled.report
    assert not any("verified on" in warning for warning in report.warnings)
    assert report.chosen == "original" and not report.knobs
    assert report.verification.status == "not compared" and report.verification.value is None
    assert any("nothing can be compared" in warning for warning in report.warnings)
    compiled.save(tmp_path / "nan.gopt")
    manifest = json.loads((tmp_path / "nan.gopt" / "manifest.json").read_text())
    assert manifest["verification"]["status"] == "not compared"
    with pytest.raises(GraphoptError, match="quantize cannot be judged"):
        graphopt.compile(path, target="cpu", passes="quantize", synthetic_calibration=True, **QUICK)


def test_inputs_that_give_nothing_finite_are_passed_over(tmp_path: Path) -> None:
    # Random numbers are too small for it; ones are not.
    text = """
    g (float[2] x) => (float[2] y) <float[2] least = {0.99, 0.99}, float[2] nan = {0, 0}> {
      low = ReduceMin<keepdims=0>(x)
      small = Less(low, least)
      none = Div(nan, nan)
      y = Where(small, none, x)
    }"""
    path = tmp_path / "picky.onnx"
    ir.save(model_from_text(text), path)
    report = graphopt.compile(path, target="ort-cpu", **QUICK).report
    assert report.verification.status == "verified"
