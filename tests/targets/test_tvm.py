"""The target tvm-llvm from the model to the bundle, and what happens when TVM cannot, crashes or hangs."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

pytest.importorskip("tvm_ffi")

import graphopt
from graphopt import processes
from graphopt.errors import BundleError, TargetError
from graphopt.models import builders
from graphopt.rewrite import Builder, Refuse
from graphopt.targets.tvm import target as targeting
from graphopt.targets.tvm.build import build
from graphopt.targets.tvm.executable import TvmRuntime, aligned, import_runtime, mapped
from graphopt.targets.tvm.legalize.recurrent import UnrollGru, UnrollLstm, UnrollRnn
from graphopt.targets.tvm.operators import check
from graphopt.targets.tvm.target import TvmTarget
from graphopt.testing import model_from_text, run

RNG = np.random.default_rng(5)


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("net") / "net.onnx"
    onnx.save(builders.conv_net(channels=16, blocks=2, size=16), path)
    return path


@pytest.fixture(scope="module")
def bundle(net: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiled = graphopt.compile(net, target="tvm-llvm", threads=2, tune="4trials")
    report = compiled.report.as_dict()
    assert report["target"] == "tvm-llvm" and report["verify"]["status"] == "verified"
    return compiled.save(tmp_path_factory.mktemp("bundle") / "net.gopt")


def feeds(seed: int = 0) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).standard_normal((1, 3, 16, 16)).astype(np.float32)}


def test_the_bundle_computes_what_the_model_does(net: Path, bundle: Path) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(net), providers=["CPUExecutionProvider"])
    loaded = graphopt.load(bundle)
    for seed in range(3):
        wanted = session.run(None, feeds(seed))
        for got, array in zip(loaded.run(feeds(seed)).values(), wanted, strict=True):
            np.testing.assert_allclose(got, array, rtol=1e-4, atol=1e-5)


def test_the_bundle_needs_the_runtime_library_alone(bundle: Path) -> None:
    code = (
        "import sys, numpy, graphopt\n"
        f"made = graphopt.load({str(bundle)!r}).run({{'x': numpy.zeros((1, 3, 16, 16), 'float32')}})\n"
        "maps = open('/proc/self/maps').read()\n"
        "assert 'tvm' not in sys.modules and 'libtvm_compiler' not in maps and 'libtvm_runtime' in maps\n"
        "assert all(numpy.isfinite(array).all() for array in made.values())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_weights_apart_give_the_same_numbers(
    net: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(targeting, "INSIDE", 0)
    apart = graphopt.compile(net, target="tvm-llvm", threads=2).save(tmp_path / "apart.gopt")
    weights, library = apart / "weights.bin", apart / "model.so"
    assert weights.stat().st_size > library.stat().st_size / 20
    wanted, got = graphopt.load(bundle).run(feeds()), graphopt.load(apart).run(feeds())
    for name, array in wanted.items():
        np.testing.assert_allclose(got[name], array, rtol=1e-5, atol=1e-6)
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(BundleError, match="its hash differs"):
        graphopt.load(apart)


def test_weights_that_are_cut_short_are_told(tmp_path: Path) -> None:
    entries = [{"dtype": "float32", "shape": [4], "offset": 0}]
    with pytest.raises(TargetError, match=r"weights.bin, are missing"):
        mapped(tmp_path / "weights.bin", entries)
    (tmp_path / "weights.bin").write_bytes(bytes(12))
    with pytest.raises(TargetError, match="cut short"):
        mapped(tmp_path / "weights.bin", entries)


def test_sorting_needs_no_compiler_either(tmp_path: Path) -> None:
    model = model_from_text(
        "g (float[9] x) => (float[3] v, int64[3] i) <int64[1] k = {3}> { v, i = TopK(x, k) }"
    )
    (tmp_path / "config.json").write_text(json.dumps(dict(TvmTarget().emit(model, tmp_path, {}))))
    code = (
        "import json, pathlib, numpy\n"
        "from graphopt.targets.tvm.executable import TvmRuntime\n"
        f"folder = pathlib.Path({str(tmp_path)!r})\n"
        "loaded = TvmRuntime().load(folder, json.loads((folder / 'config.json').read_text()))\n"
        "made = loaded.run({'x': numpy.array([3, 1, 4, 1, 5, 9, 2, 6, 5], 'float32')})\n"
        "assert made['v'].tolist() == [9, 6, 5], made\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_calls_from_several_threads_take_turns(bundle: Path, net: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    loaded = graphopt.load(bundle)
    wanted = [loaded.run(feeds(seed)) for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda turn: loaded.run(feeds(turn % 8)), range(64)))
    for turn, outputs in enumerate(made):
        for name, array in outputs.items():
            np.testing.assert_array_equal(array, wanted[turn % 8][name])


def test_an_index_beyond_the_table_reads_nothing_else(tmp_path: Path) -> None:
    model = model_from_text("g (float[4,2] x, int64[3] i) => (float[3,2] y) { y = Gather(x, i) }")
    executable = TvmRuntime().load(tmp_path, TvmTarget().emit(model, tmp_path, {}))
    table = np.arange(8, dtype=np.float32).reshape(4, 2)
    made = executable.run({"x": table, "i": np.array([-1, 10**12, -(10**12)])})
    np.testing.assert_array_equal(made["y"], table[[3, 3, 0]])


def test_what_is_handed_out_belongs_to_the_caller(bundle: Path) -> None:
    loaded = graphopt.load(bundle)
    first = loaded.run(feeds(0))
    kept = {name: array.copy() for name, array in first.items()}
    loaded.run(feeds(1))
    for name, array in first.items():
        np.testing.assert_array_equal(array, kept[name])


def test_inputs_and_constants_that_are_outputs_are_handed_out_as_copies(tmp_path: Path) -> None:
    model = model_from_text(
        "g (float[32] x) => (float[32] same, float[4,8] shaped, float[2] fixed, float[32] made) "
        "<float[2] k = {1.0, 2.0}, int64[2] s = {4, 8}> "
        "{ same = Identity(x)  shaped = Reshape(x, s)  fixed = Identity(k)  made = Relu(x) }"
    )
    executable = TvmRuntime().load(tmp_path, TvmTarget().emit(model, tmp_path, {}))
    x = aligned(np.arange(32, dtype=np.float32))
    for _ in range(2):
        made = executable.run({"x": x})
        np.testing.assert_array_equal(made["shaped"].ravel(), np.arange(32))
        np.testing.assert_array_equal(made["fixed"], [1, 2])
        for array in made.values():
            array[...] = -1
        np.testing.assert_array_equal(x, np.arange(32))


@pytest.mark.parametrize(
    "array",
    [
        RNG.standard_normal((4, 6)).astype(np.float32).T,
        RNG.standard_normal(33).astype(np.float32)[1:],
        np.frombuffer(bytes(64), np.float32),
        np.arange(6, dtype=">i8").reshape(2, 3),
        np.float32(3),
        np.zeros((0, 3), np.float32),
    ],
    ids=["transposed", "unaligned", "read-only", "big-endian", "scalar", "empty"],
)
def test_inputs_lie_as_kernels_read_them(array: Any) -> None:
    ready = aligned(np.asarray(array))
    np.testing.assert_array_equal(ready, array)
    assert ready.flags.c_contiguous and ready.flags.writeable and ready.dtype.isnative
    assert ready.shape == np.shape(array) and (ready.size == 0 or ready.ctypes.data % 64 == 0)
    import_runtime().from_dlpack(ready)


def test_inputs_of_another_shape_are_an_error(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    config = manifest.get("config") or manifest["form"]["config"]
    executable = TvmRuntime().load(bundle / manifest.get("folder", ""), config)
    with pytest.raises(TargetError, match="TVM fails"):
        executable.run({"x": np.zeros((1, 3, 8, 8), np.float32)})


def test_a_processor_without_the_vectors_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graphopt.targets.tvm.executable.cpu_flags", lambda: frozenset({"sse2"}))
    config = {"file": "model.so", "inputs": ["x"], "outputs": ["y"], "vectors": "avx512f"}
    with pytest.raises(TargetError, match="made for a processor with avx512f"):
        TvmRuntime().load(tmp_path, config)


def test_what_is_no_library_is_told(tmp_path: Path) -> None:
    (tmp_path / "model.so").write_bytes(b"no library")
    with pytest.raises(TargetError, match=r"TVM's runtime rejects model\.so"):
        TvmRuntime().load(tmp_path, {"file": "model.so", "inputs": ["x"], "outputs": ["y"], "vectors": ""})


def test_operators_that_cannot_be_lowered_are_named_before_anything_is_compiled(tmp_path: Path) -> None:
    model = model_from_text(
        "g (float[4,5] x) => (float[4,5] y) { h = Relu(x)  y = Det2(h) }".replace("Det2", "Celu")
    )
    with pytest.raises(TargetError, match="Celu .*TVM has no such operator"):
        TvmTarget().emit(model, tmp_path, {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("y = Mod <fmod=1> (x, x)", "signs of zero"),
        ("y = SpaceToDepth <blocksize=1, mode=\"CRD\"> (x)", "depth first"),
        ("y, m = MaxPool <kernel_shape=[1,1]> (x)  z = Identity(m)", "first output only"),
    ],
)  # fmt: skip
def test_what_tvm_computes_otherwise_is_refused(body: str, reason: str) -> None:
    more = ", int64[1,1,4,5] z" if "z =" in body else ""
    model = model_from_text(f"g (float[1,1,4,5] x) => (float[1,1,4,5] y{more}) {{ {body} }}")
    with pytest.raises(TargetError, match=reason):
        check(model)


def test_a_compiler_that_takes_too_long_is_stopped(net: Path, tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"did not compile the model within 0\.2 s"):
        build(net, tmp_path / "model.so", {"kind": "llvm", "vectors": ""}, seconds=0.2)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (f"import os; os.kill(os.getpid(), {int(signal.SIGSEGV)})", r"it crashed \(SIGSEGV\)"),
        (
            "import sys; print('no memory', file=sys.stderr); sys.exit(3)",
            "TVM cannot compile the model: no memory",
        ),
    ],
)
def test_a_compiler_that_crashes_is_an_error_of_the_model(
    net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, message: str
) -> None:
    real = subprocess.run

    def crash(command: list[str], **options: Any) -> Any:
        return real([command[0], "-c", code], **options)

    monkeypatch.setattr(processes.subprocess, "run", crash)
    with pytest.raises(TargetError, match=message):
        build(net, tmp_path / "model.so", {"kind": "llvm", "vectors": ""})


def test_a_model_that_tvm_rejects_is_told_in_its_words(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    with pytest.raises(TargetError, match="TVM cannot compile the model"):
        build(tmp_path / "bad.onnx", tmp_path / "model.so", {"kind": "llvm", "vectors": ""})


RECURRENT = {"LSTM": (4, UnrollLstm), "GRU": (3, UnrollGru), "RNN": (1, UnrollRnn)}
"""Gates, and the rewrite."""


def recurrent(kind: str, direction: str, *, states: bool = False, steps: int = 5, more: str = "") -> ir.Model:
    """A layer of 4 units over 3 features and 2 rows."""
    count, gates = 2 if direction == "bidirectional" else 1, RECURRENT[kind][0]
    names = ["h", "c"] if kind == "LSTM" else ["h"]
    given = "".join(f", float[{count},2,4] {name}" for name in names if states)
    operands = ", ".join(["x, w, r, b, ", *(names if states else ())]) if states else "x, w, r, b"
    results = "".join(f", float[{count},2,4] y{name}" for name in names)
    model = model_from_text(
        f"""
        g (float[{steps},2,3] x{given}) => (float[{steps},{count},2,4] y{results})
        <float[{count},{4 * gates},3] w = {{0}}, float[{count},{4 * gates},4] r = {{0}},
         float[{count},{8 * gates}] b = {{0}}>
        {{ y, {", ".join("y" + name for name in names)} =
           {kind} <hidden_size=4, direction="{direction}"{more}> ({operands}) }}
        """
    )
    for name in ("w", "r", "b"):
        value = model.graph.initializers[name]
        shape = tuple(int(size) for size in value.shape)  # type: ignore[union-attr]
        array = np.random.default_rng(len(name) + ord(name)).standard_normal(shape).astype(np.float32)
        value.const_value = ir.tensor(array, name=name)
    return model


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("states", [True, False])
@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize(
    ("kind", "more"),
    [("LSTM", ""), ("LSTM", ', activations=["Relu", "Tanh", "Softsign"]'), ("GRU", ""), ("GRU", ", linear_before_reset=1"),
     ("RNN", ""), ("RNN", ', activations=["Relu"]')],
)  # fmt: skip
def test_a_recurrent_layer_in_steps_is_the_layer(
    kind: str, more: str, direction: str, states: bool, steps: int
) -> None:
    if direction == "bidirectional":
        more = re.sub(r"\[(.*)\]", r"[\1, \1]", more)
    model = recurrent(kind, direction, states=states, steps=steps, more=more)
    from graphopt.pipeline.base import RewritePass
    from graphopt.pipeline.manager import PassManager

    unrolled, records = PassManager([RewritePass("tvm", [RECURRENT[kind][1]()])]).run(model)
    assert list(records[0].rewrites.values()) == [1]
    assert not any(node.op_type == kind for node in unrolled.graph)
    given = {
        value.name: RNG.standard_normal([int(size) for size in value.shape]).astype(np.float32)  # type: ignore[union-attr]
        for value in model.graph.inputs
    }
    wanted, got = run(model, given), run(unrolled, given)
    assert wanted.keys() == got.keys()
    for name, array in wanted.items():
        # Relu in place of the sigmoid lets states grow from step to step, and with them what rounding adds.
        scale = max(1.0, float(np.abs(array).max()))
        np.testing.assert_allclose(got[name] / scale, array / scale, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "more", [", clip=1.0", ", input_forget=1", ', activations=["Affine", "Tanh", "Tanh"]']
)
def test_other_lstms_are_left_alone(more: str) -> None:
    node = next(iter(recurrent("LSTM", "forward", more=more).graph))
    with pytest.raises(Refuse):
        UnrollLstm().apply(node, Builder(node, "lstm-in-steps"))
