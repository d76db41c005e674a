"""The target tvm-cuda on a machine without a GPU: real compilers, real runtime, and a driver that only takes notes."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

pytest.importorskip("tvm_ffi")

import graphopt
from graphopt import artifact
from graphopt.errors import BundleError, TargetError, UnknownNameError, UsageError
from graphopt.machine import Probe
from graphopt.models import builders
from graphopt.processes import child_environment
from graphopt.report import Verdict
from graphopt.targets.tvm import cuda_code, cuda_executable, worker
from graphopt.targets.tvm import target as targeting
from graphopt.targets.tvm.architectures import GPUS, code_for, gpus_here, gpus_of, nearest, processor_of
from graphopt.targets.tvm.gpu import first_gpu
from graphopt.targets.tvm.target import TvmCudaTarget, TvmTarget

HERE = Path(__file__).parent
SM_80, SM_90 = 80, 90
SHAPE = (1, 3, 16, 16)

needs_compiler = pytest.mark.skipif(
    cuda_code.find_compiler() is None, reason="neither NVRTC nor nvcc is here"
)
without_gpu = pytest.mark.skipif(first_gpu() is not None, reason="this machine has a GPU")


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("net") / "net.onnx"
    onnx.save(builders.conv_net(channels=16, blocks=2, size=16), path)
    return path


@pytest.fixture(scope="module")
def compiled(net: Path) -> graphopt.CompiledModel:
    return graphopt.compile(net, target="tvm-cuda", arch="90,sm_80", input_shapes={"x": SHAPE})


@pytest.fixture(scope="module")
def bundle(compiled: graphopt.CompiledModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled.save(tmp_path_factory.mktemp("bundle") / "net.gopt")


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with libcuda and libcudart that only take notes."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("no C compiler")
    folder = tmp_path_factory.mktemp("driver")
    (folder / "versions").write_text("libcudart.so.13 { global: *; };\n", encoding="utf-8")
    versions = f"-Wl,--version-script={folder / 'versions'}"
    for name, options in (("libcuda.so.1", ()), ("libcudart.so.13", (versions,))):
        command = [compiler, "-shared", "-fPIC", f"-Wl,-soname,{name}", *options, "-o", str(folder / name)]
        subprocess.run([*command, str(HERE / "fake_cuda.c")], check=True)
    return folder


def run_on(driver: Path, capability: int, bundle: Path, runs: int = 1) -> tuple[str, list[str]]:
    """Load a bundle on a GPU of this capability and run it; returns what went wrong, and the notes of the driver."""
    log = driver / "log"
    log.unlink(missing_ok=True)
    code = (
        "import numpy, graphopt, sys\n"
        f"loaded = graphopt.load({str(bundle)!r})\n"
        f"for _ in range({runs}): made = loaded.run({{'x': numpy.ones({SHAPE}, 'float32')}})\n"
        "assert {name: array.shape for name, array in made.items()} == {'y': (1, 10)}\n"
        "maps = open('/proc/self/maps').read()\n"
        "assert 'tvm' not in sys.modules and 'libtvm_compiler' not in maps and 'libtvm_runtime_cuda' in maps\n"
    )
    environment = child_environment() | {
        "LD_LIBRARY_PATH": f"{driver}:{os.environ.get('LD_LIBRARY_PATH', '')}",
        "FAKE_CAPABILITY": str(capability),
        "FAKE_LOG": str(log),
    }
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    notes = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    return ("" if done.returncode == 0 else done.stderr), notes


@without_gpu
@needs_compiler
def test_a_bundle_holds_machine_code_for_each_gpu_and_ptx_for_newer_ones(
    compiled: graphopt.CompiledModel, bundle: Path
) -> None:
    config = artifact.read_manifest(bundle).config
    assert config["architectures"] == ["sm_80", "sm_90"]
    assert list(config["code"]) == ["sm_80", "sm_90", "compute_90"]
    compiler = cuda_code.find_compiler()
    assert compiler is not None and config["compiler"] == compiler.name
    for name, file in config["code"].items():
        data = (bundle / file).read_bytes()
        if name.startswith("sm_"):
            # The machine of the ELF file is CUDA, and its flags hold the architecture.
            assert data[:4] == b"\x7fELF" and int.from_bytes(data[18:20], "little") == 190
            flags = int.from_bytes(data[48:52], "little")
            assert int(name[3:]) in (flags & 0xFF, flags >> 8 & 0xFF)
        else:
            assert b".target sm_90" in data
    report = compiled.report.as_dict()
    assert report["verify"]["status"] == Verdict.NOT_RUN and report["speedup"] is None
    assert "the loops of the kernels" in compiled.report.verification.by
    assert any("compiled, not run" in warning for warning in report["warnings"])


@without_gpu
@needs_compiler
@pytest.mark.parametrize(("capability", "code"), [(80, "cubin"), (86, "cubin"), (90, "cubin"), (120, "ptx")])
def test_each_gpu_is_handed_its_code_and_its_kernels_are_launched(
    driver: Path, bundle: Path, capability: int, code: str
) -> None:
    error, notes = run_on(driver, capability, bundle)
    assert not error
    assert [note for note in notes if note.startswith("load")] == [f"load {code}"]
    if code == "cubin":
        flags = int(next(note for note in notes if note.startswith("flags")).split()[1], 16)
        assert {SM_80 if capability < SM_90 else SM_90} & {flags & 0xFF, flags >> 8 & 0xFF}
    assert sum(note.startswith("launch") for note in notes) >= 4


@without_gpu
@needs_compiler
def test_calls_with_fixed_sizes_become_a_graph(driver: Path, bundle: Path) -> None:
    error, notes = run_on(driver, 90, bundle, runs=4)
    assert not error
    assert notes.count("graph captured") == 1 and notes.count("graph launched") >= 3


@without_gpu
@needs_compiler
def test_weights_apart_are_brought_to_the_gpu_once(
    net: Path, driver: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(targeting, "INSIDE", 0)
    compiled = graphopt.compile(net, target="tvm-cuda", arch="sm_90", input_shapes={"x": SHAPE})
    assert "the loops of the kernels" in compiled.report.verification.by
    bundle = compiled.save(tmp_path / "net.gopt")
    weights = artifact.read_manifest(bundle).config["weights"]
    assert weights and (bundle / "weights.bin").stat().st_size >= 4 * sum(
        int(np.prod(entry["shape"])) for entry in weights
    )
    error, notes = run_on(driver, 90, bundle, runs=4)
    assert not error
    assert notes.count("graph captured") == 1 and notes.count("graph launched") >= 3


@without_gpu
@needs_compiler
def test_it_compiles_the_same_where_tvm_finds_a_gpu(net: Path, driver: Path, tmp_path: Path) -> None:
    """TVM would compile the kernels itself, with fast arithmetic and for one GPU."""
    code = (
        "import graphopt\n"
        f"compiled = graphopt.compile({str(net)!r}, target='tvm-cuda', arch='sm_80,sm_100', tune=1)\n"
        f"compiled.save({str(tmp_path / 'net.gopt')!r})\n"
    )
    environment = child_environment() | {"LD_LIBRARY_PATH": str(driver), "FAKE_CAPABILITY": "75"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    manifest = artifact.read_manifest(tmp_path / "net.gopt")
    assert list(manifest.config["code"]) == ["sm_80", "sm_100", "compute_100"]
    assert any("this GPU is sm_75, not sm_80, sm_100" in warning for warning in manifest.warnings)
    assert "loops of the kernels" in manifest.verification["by"]


@without_gpu
@needs_compiler
def test_an_older_gpu_is_refused_by_name(driver: Path, bundle: Path) -> None:
    error, notes = run_on(driver, 75, bundle)
    assert "was compiled for sm_80, sm_90, compute_90; this GPU is sm_75" in error and not notes


@without_gpu
@needs_compiler
def test_source_is_compiled_where_it_is_loaded(driver: Path, bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / "source.gopt"
    shutil.copytree(bundle, copy)
    manifest = artifact.read_manifest(copy)
    for file in manifest.config["code"].values():
        (copy / file).unlink()
    manifest.config = {**manifest.config, "code": {}}
    artifact.write_manifest(copy, manifest)
    error, notes = run_on(driver, 86, copy)
    assert not error and "load cubin" in notes
    flags = int(next(note for note in notes if note.startswith("flags")).split()[1], 16)
    assert 86 in (flags & 0xFF, flags >> 8 & 0xFF)


@without_gpu
def test_a_machine_without_a_gpu_refuses_the_bundle(bundle: Path) -> None:
    with pytest.raises(BundleError, match="does not run here") as raised:
        graphopt.load(bundle)
    assert "no NVIDIA GPU" in str(raised.value.hint)
    with pytest.raises(TargetError, match="no NVIDIA GPU"):
        cuda_executable.TvmCudaRuntime().load(bundle, artifact.read_manifest(bundle).config)


def test_without_a_compiler_the_source_is_kept_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "find_compiler", lambda: None)
    assert worker._machine_code("source", ["sm_90"], tmp_path) == {}
    (note,) = TvmCudaTarget().notes({"code": {}, "source": "abc"})
    assert "neither NVRTC nor nvcc" in note
    assert not TvmCudaTarget().notes({"code": {"sm_90": "kernels.sm_90.cubin"}, "source": "abc"})


@needs_compiler
def test_a_kernel_that_does_not_compile_is_told_with_the_compilers_words() -> None:
    compiler = cuda_code.find_compiler()
    assert compiler is not None
    with pytest.raises(TargetError, match="for sm_90: .*error.*undeclared|for sm_90: .*undefined"):
        compiler.compile('extern "C" __global__ void f(float* x) { x[0] = nothing; }', "sm_90")


def test_both_compilers_say_what_they_are() -> None:
    found = [made for made in (cuda_code._nvrtc(), cuda_code._nvcc()) if made is not None]
    if not found:
        pytest.skip("neither NVRTC nor nvcc is here")
    source = 'extern "C" __global__ void f(float* x) { x[0] = expf(x[0]) / 3.0f; }'
    for compiler in found:
        assert "sm_90" in compiler.architectures
        ptx = compiler.compile(source, "compute_90").decode().rstrip("\0")
        # Neither approximates: a division rounds to nearest.
        assert "div.rn.f32" in ptx and "div.approx" not in ptx and "div.full" not in ptx


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("sm_90", ("sm_90",)), ("9.0", ("sm_90",)), ("sm_90,80", ("sm_80", "sm_90")), ("SM_120", ("sm_120",))],
)
def test_architectures_are_read(text: str, wanted: tuple[str, ...]) -> None:
    assert gpus_of(text) == wanted


@pytest.mark.parametrize("text", ["sm_95", "hopper", "", "sm_90,", "sm_", "90x"])
def test_an_unknown_architecture_is_an_error_that_names_those_there_are(text: str, net: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"unknown CUDA architecture|did you mean"):
        graphopt.compile(net, target="tvm-cuda", arch=text)


def test_a_target_of_this_machine_takes_no_architecture(net: Path) -> None:
    with pytest.raises(UsageError, match="'ort-cpu' does not compile for an architecture"):
        graphopt.compile(net, target="ort-cpu", arch="sm_90")


def test_code_for_a_gpu_that_the_compiler_does_not_know_is_that_of_an_older_one() -> None:
    assert nearest(90, ("sm_80", "sm_90")) == "sm_90"
    assert nearest(100, ("sm_80", "sm_90")) == "compute_90"
    assert nearest(70, ("sm_80", "sm_90")) is None


def test_parts_of_arm_chips_take_their_own_code_only() -> None:
    assert code_for(87, ("sm_80", "compute_80")) == "compute_80" and code_for(87, ("sm_80",)) is None
    if processor_is_x86():
        with pytest.raises(UnknownNameError):
            gpus_of("sm_87", gpus_here())


def processor_is_x86() -> bool:
    return platform.machine().lower() in ("x86_64", "amd64")


def test_code_runs_on_its_own_and_newer_devices_as_cuda_says() -> None:
    made = ("sm_80", "sm_90", "compute_90")
    expected = {
        75: None,
        80: "sm_80",
        86: "sm_80",
        89: "sm_80",
        90: "sm_90",
        100: "compute_90",
        121: "compute_90",
    }
    assert {device: code_for(device, made) for device in expected} == expected
    assert code_for(86, ("sm_80", "sm_86", "compute_86")) == "sm_86"
    assert code_for(80, ("sm_86", "compute_86")) is None
    assert all(code_for(int(name[3:]), (name,)) == name for name in GPUS)


def test_a_level_of_processors_is_compiled_for(net: Path, tmp_path: Path) -> None:
    if processor_of("x86-64-v3") != "x86-64-v3" or not TvmTarget(level="x86-64-v3").probe().runnable:
        pytest.skip("another processor")
    compiled = graphopt.compile(net, target="tvm-llvm", arch="x86-64-v3", tune=1)
    config = artifact.read_manifest(compiled.save(tmp_path / "net.gopt")).config
    assert config["vectors"] == "avx2" and config["mcpu"] == "x86-64-v3"
    assert compiled.report.verification.status == "verified"


def test_code_for_a_higher_level_is_compiled_and_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graphopt.targets.tvm.target.has_extension", lambda name: False)
    probe = TvmTarget(level="x86-64-v4").probe()
    assert isinstance(probe, Probe) and probe.available and not probe.runnable
    assert "lacks what x86-64-v4 has" in probe.reason


@pytest.mark.cuda
@pytest.mark.skipif(first_gpu() is None, reason="this machine has no GPU")
def test_on_a_gpu_the_bundle_computes_what_the_model_does(net: Path, tmp_path: Path) -> None:
    import onnxruntime

    loaded = graphopt.load(graphopt.compile(net, target="tvm-cuda").save(tmp_path / "net.gopt"))
    session = onnxruntime.InferenceSession(str(net), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    for _ in range(3):
        feeds = {"x": rng.standard_normal(SHAPE).astype(np.float32)}
        for got, wanted in zip(loaded.run(feeds).values(), session.run(None, feeds), strict=True):
            np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)
