"""The target openvino: float32 as it is, real int8 kernels, refusals by name; and cpu, the fastest of what there is."""

from __future__ import annotations

import gzip
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

import graphopt
from graphopt import catalog
from graphopt.errors import BundleError, MissingExtraError, TargetError
from graphopt.targets.openvino.operators import check
from graphopt.targets.openvino.target import OpenVinoTarget
from graphopt.testing import model_from_text, run

pytest.importorskip("openvino")
QUICK: Mapping[str, Any] = {"threads": 1, "tune": "0.3s"}

MLP = """
g (float[batch,16] x, float[16,16] w) => (float[batch,16] y)
{
  a = MatMul(x, w)
  y = Relu(a)
}
"""
QDQ = """
g (float[1,8,12,12] x, int8[16,8,3,3] w, float[16] ws, float[16] b) => (float[1,16,12,12] y)
<float xs={0.03}, uint8 xz={128}>
{
  q = QuantizeLinear(x, xs, xz)
  d = DequantizeLinear(q, xs, xz)
  f = DequantizeLinear<axis=0>(w, ws)
  c = Conv<pads=[1,1,1,1]>(d, f, b)
  y = Relu(c)
}
"""


def with_weights(text: str, **arrays: Any) -> ir.Model:
    """The graph with these of its inputs as constants."""
    model = model_from_text(text)
    for name, array in arrays.items():
        value = next(value for value in model.graph.inputs if value.name == name)
        model.graph.inputs.remove(value)
        value.const_value = ir.tensor(array, name=name)
        model.graph.register_initializer(value)
    return model


def weights(*shape: int) -> Any:
    return np.random.default_rng(3).standard_normal(shape).astype(np.float32)


def loaded(model: ir.Model, folder: Path, threads: int = 1) -> Any:
    target = OpenVinoTarget()
    config = target.emit(model, folder, target.variants(model, None)[0])
    return target.load(folder, config, threads=threads)


@pytest.fixture
def mlp(tmp_path: Path) -> Path:
    path = tmp_path / "mlp.onnx"
    ir.save(with_weights(MLP, w=weights(16, 16)), path)
    return path


def test_probe_says_what_the_int8_kernels_use() -> None:
    probe = catalog.target("openvino").probe()
    assert probe.available and probe.runnable and probe.version.startswith("20")
    assert set(probe.machine) == {"openvino", "machine", "int8"}


def test_compile_save_load_run(mlp: Path, tmp_path: Path) -> None:
    compiled = graphopt.compile(mlp, target="openvino", **QUICK)
    assert compiled.report.target == "openvino" and compiled.report.chosen.startswith("openvino: ")
    baseline = compiled.report.baseline
    assert baseline is not None and baseline.milliseconds is not None
    bundle = compiled.save(tmp_path / "mlp.gopt")
    assert {file.name for file in bundle.iterdir()} >= {"model.xml.gz", "model.bin"}
    model = graphopt.load(bundle)
    for batch in (1, 5):
        x = weights(batch, 16)
        np.testing.assert_allclose(model.run({"x": x})["y"], run(ir.load(mlp), {"x": x})["y"], atol=1e-5)


def test_cpu_tells_of_every_form(mlp: Path) -> None:
    report = graphopt.compile(mlp, target="cpu", **QUICK).report
    labels = {form.label for form in report.forms if form.verified}
    assert {"original", "openvino: optimized"} <= labels
    assert report.speedup is not None and report.speedup >= 1.0


@pytest.mark.parametrize("targets", ["openvino,ort-cpu", "ort-cpu,openvino"])
def test_targets_come_in_any_order(mlp: Path, targets: str) -> None:
    report = graphopt.compile(mlp, target=targets, **QUICK).report
    assert {"original", "openvino: optimized"} <= {form.label for form in report.forms if form.verified}


def test_one_model_serves_many_threads(tmp_path: Path) -> None:
    """Also where some of them give it what it refuses, after which it is compiled again."""
    text = "g (float[n] x) => (float[m,4] y) <int64[2] t={-1,4}> { y = Reshape(x, t) }"
    executable = loaded(model_from_text(text), tmp_path)
    given = [np.arange(size, dtype=np.float32) for size in (6, 4, 8, 12, 7, 16, 20, 24) for _ in range(4)]

    def ran(x: Any) -> Any:
        try:
            return executable.run({"x": x})["y"]
        except TargetError:
            return None

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(ran, given))
    for x, result in zip(given, results, strict=True):
        if x.size % 4:
            assert result is None
        else:
            np.testing.assert_array_equal(result, x.reshape(-1, 4))


def test_cpu_without_openvino(mlp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    report = graphopt.compile(mlp, target="cpu", **QUICK).report
    (left_out,) = [form for form in report.forms if form.label == "openvino"]
    assert not left_out.verified and "openvino is not installed" in left_out.note
    with pytest.raises(TargetError, match="openvino is not installed"):
        graphopt.compile(mlp, target="openvino", **QUICK)


def _encoder(masked: bool) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """A transformer's layer as PyTorch exports it, batch and length open."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.TransformerEncoderLayer(64, 4, 64, batch_first=True, norm_first=True)

        def forward(self, x: Any, mask: Any = None) -> Any:
            return self.layer(x, src_key_padding_mask=mask)

    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    x = torch.randn(2, 16, 64)
    mask = torch.zeros(2, 16, dtype=torch.bool)
    mask[0, 10:] = True
    given = (x, mask) if masked else (x,)
    return Encoder().eval(), given, {"dynamic_shapes": {"x": sizes} | ({"mask": sizes} if masked else {})}


@pytest.mark.slow
def test_a_length_of_one_before_longer_ones(tmp_path: Path) -> None:
    """Attention's kernels of one length are not taken for those of another (OpenVINO's cache of kernels)."""
    encoder, given, about = _encoder(masked=False)
    compiled = graphopt.compile(encoder, example_inputs=given, target="openvino", **about, **QUICK)
    compiled.save(tmp_path / "encoder.gopt")
    torch = pytest.importorskip("torch")
    model = graphopt.load(tmp_path / "encoder.gopt")
    (name,) = [spec.name for spec in model.inputs]
    for sizes in ((1, 1), (1, 16), (2, 64), (3, 1), (3, 16)):
        x = np.random.default_rng(0).standard_normal((*sizes, 64)).astype(np.float32)
        with torch.no_grad():
            wanted = encoder(torch.from_numpy(x)).numpy()
        (found,) = model.run({name: x}).values()
        np.testing.assert_allclose(found, wanted, atol=1e-4, err_msg=str(sizes))


@pytest.mark.slow
def test_what_passes_made_and_it_does_not_take_falls_back_to_the_model(tmp_path: Path) -> None:
    """A mask of padding becomes a comparison of infinities, of which OpenVINO gives no maximum."""
    encoder, given, about = _encoder(masked=True)
    report = graphopt.compile(encoder, example_inputs=given, target="openvino", **about, **QUICK).report
    assert report.chosen == "openvino: captured" and report.verification.status == "verified"
    notes = [form.note for form in report.forms if "infinit" in form.note]
    assert notes


def test_cpu_names_what_openvino_refuses(tmp_path: Path) -> None:
    path = tmp_path / "double.onnx"
    ir.save(model_from_text("g (double[4] x) => (double[4] y) { y = Exp(x) }"), path)
    report = graphopt.compile(path, target="cpu", **QUICK).report
    (left_out,) = [form for form in report.forms if form.label == "openvino"]
    assert "the input 'x': it is double" in left_out.note and report.target == "ort-cpu"
    with pytest.raises(TargetError, match="the input 'x'"):
        graphopt.compile(path, target="openvino", **QUICK)


def test_made_up_sizes_that_it_does_not_take_are_told(tmp_path: Path) -> None:
    # ONNX Runtime takes a kernel of 3 over 2 rows; made-up heights give the pool as few.
    # On one thread OpenVINO computes something, which differs.
    quick = {**QUICK, "threads": 2}
    path = tmp_path / "pools.onnx"
    text = """
        <ir_version: 7, opset_import: ["" : 11]>
        g (float[1,4,h,64] x) => (float[1,4,k,l] y) {
            a = MaxPool <kernel_shape=[32,2], strides=[32,2]> (x)
            y = AveragePool <kernel_shape=[3,2], strides=[3,2]> (a)
        }"""
    ir.save(model_from_text(text), path)
    report = graphopt.compile(path, target="cpu", **quick).report
    assert report.target == "ort-cpu"
    (warning,) = [line for line in report.warnings if "openvino was left out" in line]
    assert "with h = 64" in warning and "--input-shape" in warning
    with pytest.raises(TargetError, match=r"with h = 64: OpenVINO fails: AvgPool") as raised:
        graphopt.compile(path, target="openvino", **quick)
    assert "--input-shape" in raised.value.hint and len(raised.value.message) < 400
    report = graphopt.compile(path, target="openvino", input_shapes={"x": (1, 4, 224, 64)}, **quick).report
    assert report.target == "openvino"
    # With data, their sizes are what it has to take; what others it does not take is told.
    data = [{"x": weights(1, 4, 128, 64)}]
    compiled = graphopt.compile(path, target="openvino", data=data, **quick)
    assert any(
        "sizes that the data do not have" in line and "h = 64" in line for line in compiled.report.warnings
    )
    with pytest.raises(TargetError, match="OpenVINO fails"):
        compiled.run({"x": weights(1, 4, 64, 64)})
    assert compiled.run(data[0])["y"].shape == (1, 4, 1, 16)


def test_a_bundle_says_what_to_install(mlp: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = graphopt.compile(mlp, target="openvino", **QUICK).save(tmp_path / "mlp.gopt")
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(BundleError) as caught:
        graphopt.load(bundle)
    assert "openvino" in caught.value.message and "install" in caught.value.hint
    with pytest.raises(MissingExtraError):
        OpenVinoTarget().load(tmp_path, {"file": "model.xml.gz"})


def test_the_text_of_a_model_is_compressed(mlp: Path, tmp_path: Path) -> None:
    """And what OpenVINO itself wrote is loaded as well, as bundles were once; a model may have no weights at all."""
    target = OpenVinoTarget()
    config = target.emit(ir.load(mlp), tmp_path, {})
    x = weights(3, 16)
    packed = target.load(tmp_path, config).run({"x": x})["y"]
    text = gzip.decompress((tmp_path / "model.xml.gz").read_bytes())
    assert len(text) > 3 * (tmp_path / "model.xml.gz").stat().st_size
    (tmp_path / "model.xml").write_bytes(text)
    plain = target.load(tmp_path, {**config, "file": "model.xml"}).run({"x": x})["y"]
    np.testing.assert_array_equal(packed, plain)
    (bare := tmp_path / "bare").mkdir()
    config = target.emit(model_from_text("g (float[2] x) => (float[2] y) { y = Relu(x) }"), bare, {})
    assert (bare / "model.bin").stat().st_size == 0
    np.testing.assert_array_equal(target.load(bare, config).run({"x": np.float32([-1, 2])})["y"], [0, 2])


def test_float_graphs_are_computed_in_float32(tmp_path: Path) -> None:
    from graphopt.targets.openvino.executed import executed

    executable = loaded(with_weights(MLP, w=weights(16, 16)), tmp_path)
    nodes = executed(executable.compiled)
    assert any(node.type == "FullyConnected" for node in nodes)
    assert {node.precision for node in nodes} == {"f32"}
    assert str(executable.compiled.get_property("INFERENCE_PRECISION_HINT")) == "<Type: 'float32'>"
    assert executable.compiled.get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE") == 0


def quantized() -> ir.Model:
    """A convolution on integers, with weights as large as the kernels of this machine add without overflow."""
    rng = np.random.default_rng(0)
    most = 2 ** (OpenVinoTarget().integer_kernels().weight_bits - 1)
    return with_weights(
        QDQ,
        w=rng.integers(1 - most, most, (16, 8, 3, 3)).astype(np.int8),
        ws=rng.uniform(0.01, 0.02, 16).astype(np.float32),
        b=weights(16),
    )


def test_qdq_runs_on_integer_kernels(tmp_path: Path) -> None:
    model = quantized()
    target = OpenVinoTarget()
    config = target.emit(model, tmp_path, target.variants(model, None)[0])
    feeds = {"x": weights(1, 8, 12, 12)}
    wanted = run(model, feeds)["y"]
    np.testing.assert_allclose(
        target.load(tmp_path, config).run(feeds)["y"], wanted, atol=1e-2 * np.abs(wanted).max()
    )
    kernels = target.kernels(tmp_path, config, feeds, runs=2)
    (convolution,) = [kernel for kernel in kernels if kernel.op == "Convolution"]
    assert convolution.integer and "I8" in convolution.provider
    assert {"c", "y"} <= set(convolution.outputs)
    assert any(kernel.op == "QuantizeLinear" and not kernel.integer for kernel in kernels)


@pytest.mark.parametrize("bits", [4, 8])
def test_weights_stay_compressed(bits: int, tmp_path: Path) -> None:
    text = f"""
    g (float[n,64] x, int{bits}[64,32] w, float[2,32] s) => (float[n,32] y)
    {{
      f = DequantizeLinear<axis=0, block_size=32>(w, s)
      y = MatMul(x, f)
    }}
    """
    limit = 1 << (bits - 1)
    integers = np.random.default_rng(0).integers(-limit, limit, (64, 32))
    model = with_weights(
        text, w=integers.astype(ml_dtypes.int4 if bits == 4 else np.int8), s=np.abs(weights(2, 32))
    )
    feeds = {"x": weights(3, 64)}
    wanted = run(model, feeds)["y"]
    np.testing.assert_allclose(
        loaded(model, tmp_path).run(feeds)["y"], wanted, atol=1e-5 * np.abs(wanted).max()
    )
    assert (tmp_path / "model.bin").stat().st_size < 64 * 32 * bits // 8 + 1024


def test_results_are_the_callers_own(tmp_path: Path) -> None:
    executable = loaded(
        model_from_text("g (float[n] x) => (float[n] y, float[n] z) { y = Relu(x) z = Identity(x) }"),
        tmp_path,
    )
    x = np.array([-1.0, 2.0], np.float32)
    first = executable.run({"x": x})
    assert list(first) == ["y", "z"] and not np.shares_memory(first["z"], x)
    kept = {name: array.copy() for name, array in first.items()}
    executable.run({"x": x + 1})
    for name, array in first.items():
        np.testing.assert_array_equal(array, kept[name])


@pytest.mark.parametrize(
    "array",
    [np.ones((3, 4), np.float32).T, np.ones((0, 3), np.float32), np.ones((2, 3), np.float32)[:, ::-1]],
)
def test_inputs_of_any_layout(array: Any, tmp_path: Path) -> None:
    executable = loaded(model_from_text("g (float[n,m] x) => (float[n,m] y) { y = Add(x, x) }"), tmp_path)
    np.testing.assert_array_equal(executable.run({"x": array})["y"], array + array)


@pytest.mark.parametrize("dtype", ["bool", "int64", "int32", "uint8", "float16"])
def test_types_are_kept(dtype: str, tmp_path: Path) -> None:
    executable = loaded(
        model_from_text(f"g ({dtype}[3] x) => ({dtype}[3] y) {{ y = Identity(x) }}"), tmp_path
    )
    x = np.array([0, 1, 1]).astype(dtype)
    y = executable.run({"x": x})["y"]
    assert y.dtype == x.dtype
    np.testing.assert_array_equal(y, x)


def test_integers_beyond_32_bits_are_refused(tmp_path: Path) -> None:
    executable = loaded(model_from_text("g (int64[2] x) => (int64[2] y) { y = Add(x, x) }"), tmp_path)
    with pytest.raises(TargetError, match="beyond 32 bits"):
        executable.run({"x": np.array([1, 2**40])})


def test_topk_keeps_the_order_of_equals(tmp_path: Path) -> None:
    model = model_from_text(
        "g (float[2,20] x) => (float[2,7] v, int64[2,7] i) <int64[1] k={7}> { v, i = TopK(x, k) }"
    )
    feeds = {"x": np.round(weights(2, 20))}
    found, wanted = loaded(model, tmp_path).run(feeds), run(model, feeds)
    np.testing.assert_array_equal(found["i"], wanted["i"])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("g (float[3] x, int64[1] r) => (float[n] y) { y = Tile(x, r) }", "Tile .*constant numbers"),
        ("g (int64[3] x) => (int64[3] y) { y = Mul(x, x) }", "Mul .*32 bits"),
        ("g (int8[3] x) => (int8[3] y) { y = Add(x, x) }", "Add .*saturates"),
        ("g (float[1,1,7,7] x) => (float[1,1,a,b] y) { y = MaxPool<kernel_shape=[1,1], strides=[2,2], ceil_mode=1>(x) }", ""),
        (
            "g (float[1,1,8,8] x) => (float[1,1,a,b] y) { y = MaxPool<kernel_shape=[1,1], strides=[2,2], ceil_mode=1>(x) }",
            "MaxPool .*begins in the padding",
        ),
        ("g (float[1,1,4,4] x) => (float[1,1,8,8] y) <float[4] s={1,1,2,2}> { y = Resize<mode=\"cubic\", exclude_outside=1>(x, , s) }", "Resize .*exclude_outside"),
        ("g (float[3] x) => (float[3] y) { y = com.microsoft.Gelu(x) }", "no operator Gelu of com.microsoft"),
        ("g (float[3] x) => (double[3] y) { y = Cast<to=11>(x) }", "Cast .*double"),
        ("g (float[2,2] x) => (float[] y) { y = Det(x) }", "Det .*not checked"),
        ("g (int64[2] x) => (bool[2] y) <int64 c={4611686018427387904}> { y = Less(x, c) }", "does not fit into 32 bits"),
        ("g (float[9] x) => (float[n] y) <int64[1] a={1}, int64[1] b={9223372036854775807}, int64[1] c={0}> { y = Slice(x, a, b, c) }", ""),
    ],
)  # fmt: skip
def test_refuses_what_it_computes_otherwise(text: str, reason: str) -> None:
    model = model_from_text(text)
    for node in model.graph:
        for output in node.outputs:
            output.dtype = output.dtype or ir.DataType.FLOAT
    if not reason:
        check(model)
        return
    with pytest.raises(TargetError, match=reason):
        check(model)
