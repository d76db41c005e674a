"""Every wrong input gets one clear message that names it and the next step, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper

from graphopt import install

ROOT = Path(__file__).parents[2]
FAST = ("--passes", "hardswish", "--tune", "0.1s")
Make = Callable[..., Path]


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its content; folders with none."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b"(folder)"
        for path in folder.rglob("*")
        if path.name != ".ses"  # which ONNX Runtime keeps in the folder for temporary files
    }


@pytest.fixture
def fails(cli: Any, tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Run a command that must fail in the right way; returns its message."""

    def check(*arguments: str | Path, code: int, says: tuple[str, ...] | str) -> str:
        before = snapshot(tmp_path)
        done = cli(*arguments)
        message: str = done.err
        assert done.code == code, message
        for words in (says,) if isinstance(says, str) else says:
            assert words in message
        assert message.startswith("error: ")
        assert message.count("error: ") == 1 and "Traceback" not in message
        assert done.out == ""
        assert snapshot(tmp_path) == before, "something was written"
        return message

    yield check


# -- the model ------------------------------------------------------------------------------------------------


def test_no_such_file(fails: Any, model: Path) -> None:
    fails("compile", "modle.onnx", code=1, says=("there is no file modle.onnx", "model.onnx"))


def test_not_a_model(fails: Any, tmp_path: Path) -> None:
    (tmp_path / "notes.onnx").write_text("These are notes, not a model.")
    fails("compile", "notes.onnx", code=1, says="notes.onnx is not an ONNX model")


def test_a_folder_that_is_no_bundle(fails: Any, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    fails("compile", "folder", code=1, says="folder is a folder, not a model")
    fails("run", "folder", code=1, says="folder holds no manifest.json")


def test_empty_file(fails: Any, tmp_path: Path) -> None:
    (tmp_path / "empty.onnx").touch()
    fails("compile", "empty.onnx", code=1, says=("empty.onnx is empty", "export or download"))


def test_truncated_file(fails: Any, tmp_path: Path, model: Path) -> None:
    whole = model.read_bytes()
    (tmp_path / "half.onnx").write_bytes(whole[: len(whole) // 2])
    fails("compile", "half.onnx", code=1, says=("half.onnx is damaged or cut off", "compare its size"))


def test_pickle(fails: Any, tmp_path: Path) -> None:
    (tmp_path / "weights.pt").write_bytes(b"PK\x03\x04")
    fails("compile", "weights.pt", code=2, says=("weights.pt is a pickle", "torch.export"))


def external(make: Make, path: Path, location: str) -> Path:
    """A model whose weights are in a file of this name."""
    import onnx

    make([helper.make_node("MatMul", ["x", "w"], ["y"])], path, weights={"w": np.ones((8, 8), np.float32)})
    proto = onnx.load(path)
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    path.write_bytes(proto.SerializeToString())
    return path


def test_missing_external_data(fails: Any, make: Make, tmp_path: Path) -> None:
    external(make, tmp_path / "external.onnx", "weights.bin")
    fails("compile", "external.onnx", code=1, says="weights.bin")


def test_external_data_outside_the_folder(fails: Any, make: Make, tmp_path: Path) -> None:
    external(make, tmp_path / "external.onnx", "../../etc/passwd")
    fails("compile", "external.onnx", code=1, says="../../etc/passwd")


def test_truncated_external_data(fails: Any, make: Make, tmp_path: Path) -> None:
    external(make, tmp_path / "external.onnx", "weights.bin")
    (tmp_path / "weights.bin").write_bytes(b"\0" * 12)
    fails("compile", "external.onnx", code=1, says="weights.bin")


def test_unknown_operator(fails: Any, make: Make, tmp_path: Path) -> None:
    make([helper.make_node("Reluu", ["x"], ["y"], name="first")], tmp_path / "m.onnx")
    fails("compile", "m.onnx", code=1, says=("Reluu", "first"))


def test_unknown_domain(fails: Any, make: Make, tmp_path: Path) -> None:
    node = helper.make_node("Thing", ["x"], ["y"], name="first", domain="our.company")
    make([node], tmp_path / "m.onnx", domains=("our.company",))
    fails("compile", "m.onnx", code=1, says="our.company")


def test_cycle(fails: Any, make: Make, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Add", ["x", "b"], ["a"], name="one"),
        helper.make_node("Relu", ["a"], ["b"], name="two"),
        helper.make_node("Neg", ["b"], ["y"], name="three"),
    ]
    make(nodes, tmp_path / "m.onnx")
    fails("compile", "m.onnx", code=1, says=("cycle", "two"))


def test_type_clash(fails: Any, make: Make, tmp_path: Path) -> None:
    nodes = [helper.make_node("Add", ["x", "i"], ["y"], name="clash")]
    make(nodes, tmp_path / "m.onnx", weights={"i": np.ones(8, np.int64)})
    fails("compile", "m.onnx", code=1, says="clash")


def test_duplicate_name(fails: Any, make: Make, tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Neg", ["x"], ["y"])]
    make(nodes, tmp_path / "m.onnx")
    fails("compile", "m.onnx", code=1, says=("'y'", "twice"))


def test_undefined_value(fails: Any, make: Make, tmp_path: Path) -> None:
    make([helper.make_node("Add", ["x", "nowhere"], ["y"])], tmp_path / "m.onnx")
    fails("compile", "m.onnx", code=1, says="nowhere")


@pytest.mark.parametrize("command", ["run", "inspect", "bench"])
def test_other_commands_say_the_same(fails: Any, tmp_path: Path, command: str) -> None:
    (tmp_path / "notes.onnx").write_text("These are notes, not a model.")
    fails(command, "notes.onnx", code=1, says="notes.onnx is not an ONNX model")


# -- shapes and data ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ("X:1,8", ("unknown input 'X'", "known: x")),
        ("x:1,8,1", ("x",)),
        ("x:1,9", ("x", "8")),
        ("x:one,8", ("'x:one,8'", "'one'")),
        ("x:0,8", ("positive",)),
        ("x:99999999999999999999,8", ("too large",)),
        ("1,8", ("NAME:SIZE",)),
    ],
)
def test_wrong_input_shape(fails: Any, model: Path, shape: str, says: tuple[str, ...]) -> None:
    fails("compile", "model.onnx", "--input-shape", shape, code=2, says=says)
    fails("run", "model.onnx", "--input-shape", shape, code=2, says=says)


def test_input_shape_given_twice(fails: Any, model: Path) -> None:
    fails(
        "compile", "model.onnx", "--input-shape", "x:1,8", "--input-shape", "x:2,8", code=2, says="given twice"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arrays", "code", "says"),
    [
        ({"x": np.zeros((2, 9), np.float32)}, 1, ("'x'", "dimension 1 is 9, not 8")),
        ({"x": np.zeros((2, 3, 4, 8), np.float32)}, 1, ("'x'", "[2, 3, 4, 8]")),
        ({"x": np.zeros((2, 8), np.float64)}, 1, ("'x'", "float64", "float32")),
        ({"X": np.zeros((2, 8), np.float32)}, 2, ("unknown input 'X'", "known: x")),
        ({}, 1, ("data.npz", "'x'")),
        ({"x": np.zeros((0, 2, 8), np.float32)}, 1, ("no sample",)),
        ({"x": np.array([object()])}, 1, ("cannot read", "data.npz")),
    ],
)
@pytest.mark.parametrize("command", ["compile", "run", "bench"])
def test_data_that_does_not_fit(
    fails: Any, tmp_path: Path, model: Path, command: str, arrays: Any, code: int, says: tuple[str, ...]
) -> None:
    np.savez(tmp_path / "data.npz", **arrays)
    fails(command, "model.onnx", "--data", "data.npz", code=code, says=says)


def test_no_data_there(fails: Any, model: Path, tmp_path: Path) -> None:
    fails("compile", "model.onnx", "--data", "nowhere.npz", code=1, says="no data at nowhere.npz")
    (tmp_path / "folder").mkdir()
    fails("compile", "model.onnx", "--data", "folder", code=1, says="holds no .npz")
    (tmp_path / "text.npz").write_text("not an archive")
    message = fails("compile", "model.onnx", "--data", "text.npz", code=1, says="cannot read text.npz")
    assert "not a .npz file" in message and "numpy.savez" in message and "pickle" not in message
    (tmp_path / "data.csv").write_text("1,2")
    fails("compile", "model.onnx", "--data", "data.csv", code=1, says="neither a .npz file nor a folder")


# -- names and options ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--passes", "fusee"), ("unknown pass 'fusee'", "'fuse'")),
        (("--passes", "fuse{disabel=[gelu]}"), ("option of pass 'fuse'", "did you mean 'disable'")),
        (("--passes", "fuse{disable=[geluu]}"), ("'geluu'", "'gelu'")),
        (("--passes", "hardswish{a=1}"), ("option of pass 'hardswish'", "'a'")),
        (("--passes", "fuse{disable"), ("cannot read the pass list", "position")),
        (("--passes", ""), ("the pass list is empty", "O0")),
        (("--passes", "none.py:Strip"), ("there is no file none.py", "--passes none.py:Strip")),
        (("--passes", "no.module:Strip"), ("'no.module:Strip' cannot be loaded",)),
        (("--passes", "math:pie"), ("math has no pass 'pie'", "FILE.py:PASS")),
        (("--passes", "math:pi"), ("math:pi cannot stand in a pass list", "a Rewrite")),
        (("--passes", "gelu{a=1}"), ("option of pass 'gelu'", "leave it out")),
        (("--target", "ort-cuad"), ("unknown target 'ort-cuad'", "did you mean 'ort-cuda'")),
        (("--target", "gpu"), ("unknown target 'gpu'", "did you mean 'cuda'?")),
        (("--target", "CPU"), ("unknown target 'CPU'", "did you mean 'cpu'?")),
        (("--pases", "fuse"), ("unknown option of 'graphopt compile' '--pases'", "'--passes'")),
        (("--threads", "-1"), ("--threads", "-1")),
        (("--threads", "two"), ("--threads", "two")),
        (("--threads", "99999999999"), ("--threads", "99999999999")),
        (("--seed", "x"), ("--seed",)),
        (("--seed", "-1"), ("--seed", "-1")),
        (("--tune", "soon"), ("cannot read the time 'soon'", "30s")),
        (("--tune", "inf"), ("cannot read the time 'inf'", "30s")),
        (("--max-drop", "1%"), ("lossy",)),
        (("--metric", "f1"), ("lossy",)),
        (("extra.onnx",), ("unexpected extra argument", "-o extra.gopt")),
        (("data.npz",), ("unexpected extra argument", "--data data.npz")),
        (("--repro-dir", "model.onnx"), ("model.onnx is no folder", "--repro-dir")),
        (("--config", "nowhere.toml"), ("cannot read nowhere.toml",)),
    ],
)
def test_wrong_options(fails: Any, model: Path, arguments: tuple[str, ...], says: tuple[str, ...]) -> None:
    fails("compile", "model.onnx", *arguments, code=2, says=says)


def test_no_model_given(fails: Any) -> None:
    fails("compile", code=2, says=("MODEL", "graphopt compile --help"))


def test_unknown_command(fails: Any) -> None:
    fails("complie", "model.onnx", code=2, says=("unknown command 'complie'", "did you mean 'compile'"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[compile]\ntarge = 'cpu'\n", ("config.toml", "'targe'", "did you mean 'target'")),
        ("[compile\n", ("config.toml is not valid TOML",)),
        ("target = 'cpu'\n", ("no table [compile]",)),
        ("[compile]\nthreads = 'two'\n", ("--threads",)),
        ("[compile]\ntarget = ['cpu']\n", ("'target'", "single value")),
        ("[compile]\ndata = 5\n", ("'data'", "config.toml", "path, not 5")),
    ],
)
def test_wrong_config(fails: Any, model: Path, tmp_path: Path, text: str, says: tuple[str, ...]) -> None:
    (tmp_path / "config.toml").write_text(text)
    fails("compile", "model.onnx", "--config", "config.toml", code=2, says=says)


def test_unknown_zoo_model(fails: Any) -> None:
    fails("zoo", "fetch", "ppocrv4-recc", code=2, says=("ppocrv4-recc", "ppocrv4-rec"))


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("no/x.onnx", ("cannot write no/x.onnx", "no folder", "create it")),
        ("/proc/x.onnx", ("cannot write /proc/x.onnx", "-o")),
        ("model.onnx", ("model.onnx exists",)),
    ],
)
def test_zoo_fetch_writes_only_where_it_may(
    fails: Any, model: Path, place: str, says: tuple[str, ...]
) -> None:
    fails("zoo", "fetch", "ppocr-cls", "-o", place, code=2, says=says)


# -- the output -----------------------------------------------------------------------------------------------


def test_output_in_a_folder_that_is_a_file(fails: Any, model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    fails("compile", "model.onnx", "-o", "file/out.gopt", code=1, says=("cannot write", "file"))


def test_output_in_no_folder(fails: Any, model: Path) -> None:
    fails("compile", "model.onnx", "-o", "no/such/out.gopt", code=1, says=("no/such", "does not exist"))


def test_output_where_nobody_may_write(fails: Any, model: Path) -> None:
    fails("compile", "model.onnx", "-o", "/proc/out.gopt", code=1, says=("cannot write /proc/out.gopt", "-o"))


def test_output_that_looks_like_an_onnx_file(fails: Any, model: Path) -> None:
    says = ("cannot write new.onnx", "-o new.gopt", "new.gopt/model.onnx")
    fails("compile", "model.onnx", "-o", "new.onnx", code=1, says=says)


def test_existing_file_is_not_overwritten(fails: Any, model: Path, tmp_path: Path) -> None:
    (tmp_path / "out.gopt").write_text("precious")
    fails("compile", "model.onnx", "-o", "out.gopt", code=1, says=("out.gopt", "no bundle"))


def test_existing_folder_is_not_overwritten(fails: Any, model: Path, tmp_path: Path) -> None:
    (tmp_path / "out.gopt").mkdir()
    (tmp_path / "out.gopt" / "thesis.txt").write_text("precious")
    fails("compile", "model.onnx", "-o", "out.gopt", code=1, says=("out.gopt", "no bundle"))


def test_the_model_itself_is_not_overwritten(fails: Any, model: Path) -> None:
    fails("compile", "model.onnx", "-o", "model.onnx", code=1, says="no bundle")


def test_a_failed_compile_leaves_the_old_bundle(
    cli: Any, fails: Any, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli("compile", "model.onnx", *FAST).code == 0
    from graphopt import bundle
    from graphopt.errors import GraphoptError

    def refuse(*arguments: Any) -> None:
        raise GraphoptError("the bundle as written does not hold: output 'y' differs")

    monkeypatch.setattr(bundle, "_verify_bundle", refuse)
    fails("compile", "model.onnx", *FAST, code=1, says="the bundle as written does not hold")


def test_a_full_disk_is_named(fails: Any, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from graphopt import bundle

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device", "/tmp/x")

    monkeypatch.setattr(bundle, "_verify_bundle", full)
    fails("compile", "model.onnx", *FAST, code=1, says="No space left on device: /tmp/x")


@pytest.mark.parametrize("place", ["no/out.npz", "model.onnx", "folder.npz", "out.npy"])
def test_run_writes_only_where_it_may(fails: Any, model: Path, tmp_path: Path, place: str) -> None:
    (tmp_path / "folder.npz").mkdir()
    fails("run", "model.onnx", "-o", place, code=2, says=("cannot write", place))


# -- bundles --------------------------------------------------------------------------------------------------


@pytest.fixture
def bundle(cli: Any, model: Path, tmp_path: Path) -> Path:
    """A compiled model."""
    assert cli("compile", "model.onnx", *FAST).code == 0
    return tmp_path / "model.gopt"


def test_damaged_bundles(fails: Any, bundle: Path, tmp_path: Path) -> None:
    manifest = (bundle / "manifest.json").read_text()
    (bundle / "manifest.json").write_text(manifest[:100])
    fails("run", "model.gopt", code=1, says=("manifest.json is damaged", "compile the model again"))
    (bundle / "manifest.json").write_text(json.dumps({**json.loads(manifest), "format_version": 99}))
    fails("run", "model.gopt", code=1, says=("bundle format 99", "upgrade graphopt"))
    (bundle / "manifest.json").write_text(manifest)
    with open(bundle / "model.onnx", "ab") as file:
        file.write(b"\0")
    for command in (("run",), ("inspect",), ("verify",)):
        rest = ("model.onnx",) if command == ("verify",) else ()
        fails(*command, "model.gopt", *rest, code=1, says=("model.onnx in model.gopt", "hash differs"))
    (bundle / "model.onnx").unlink()
    fails("run", "model.gopt", code=1, says="lacks model.onnx")


def test_verify_wants_a_bundle_and_the_right_model(
    fails: Any, bundle: Path, make: Make, tmp_path: Path
) -> None:
    fails("verify", "model.onnx", "model.onnx", code=2, says="model.onnx is not a bundle")
    fails("inspect", "model.onnx", "--log", code=2, says="only a bundle has a pass log")
    fails("verify", "nowhere.gopt", "model.onnx", code=1, says="no bundle at nowhere.gopt")


def test_explain_wants_a_bundle_and_names_that_exist(fails: Any, bundle: Path, tmp_path: Path) -> None:
    fails("explain", "model.onnx", code=1, says=("model.onnx is a file, not a bundle", "compile writes"))
    fails("explain", "nowhere.gopt", code=1, says="no bundle at nowhere.gopt")
    fails(
        "explain", "model.gopt", "matmull", code=2, says=("unknown node 'matmull'", "did you mean 'matmul'")
    )
    fails("explain", "model.gopt", "zz*zz", code=2, says=("unknown node 'zz*zz'", "explain model.gopt '*'"))
    fails("explain", "model.gopt", "--pass", "hardswich", code=2, says=("'hardswich'", "'hardswish'"))
    manifest = json.loads((bundle / "manifest.json").read_text())
    (bundle / "manifest.json").write_text(json.dumps({**manifest, "origins": []}))
    fails(
        "explain",
        "model.gopt",
        "add",
        code=1,
        says=("does not say where nodes went", "compile the model again"),
    )


@pytest.mark.parametrize(
    ("inputs", "dtype", "says"),
    [
        (
            {"z": ("n", 8)},
            1,
            ("different inputs", "'x' (float[n,8]) is only in", "'z' (float[n,8]) is only in"),
        ),
        ({"x": ("n", 9)}, 1, ("different inputs", "'x' is float[n,8] in", "float[n,9] in other.onnx")),
        ({"x": ("n", 8)}, 6, ("different inputs", "int32[n,8] in other.onnx")),
        ({"x": (None, "?", 8)}, 1, ("different inputs", "float[?,?,8] in other.onnx")),
    ],
)
@pytest.mark.parametrize("command", ["verify", "bench"])
def test_other_inputs_are_named(
    fails: Any, bundle: Path, make: Make, tmp_path: Path, command: str, inputs: Any, dtype: int, says: Any
) -> None:
    name = next(iter(inputs))
    make(
        [helper.make_node("Neg", [name], ["y"])], tmp_path / "other.onnx",
        inputs=inputs, outputs={"y": next(iter(inputs.values()))}, dtype=dtype,
    )  # fmt: skip
    # bench names the baseline, which is the model file, first.
    said = says if command == "verify" else says[:1]
    fails(command, "model.gopt", "other.onnx", code=2, says=said)


def test_verify_names_other_outputs(fails: Any, bundle: Path, make: Make, tmp_path: Path) -> None:
    make([helper.make_node("Neg", ["x"], ["z"])], tmp_path / "other.onnx", outputs={"z": ("n", 8)})
    says = ("model.gopt and other.onnx have different outputs", "'y' (float[n,8]) is only in model.gopt")
    fails("verify", "model.gopt", "other.onnx", code=2, says=says)


def test_input_shape_that_a_bundle_does_not_take(fails: Any, model: Path, cli: Any) -> None:
    assert cli("compile", "model.onnx", *FAST, "--input-shape", "x:2,8").code == 0
    says = ("model.gopt", "'x' is fixed to [2,8]", "cannot become 3")
    for command in (("run", "model.gopt"), ("bench", "model.gopt"), ("verify", "model.gopt", "model.onnx")):
        fails(*command, "--input-shape", "x:3,8", code=2, says=says)


def test_a_bundle_for_a_gpu_that_is_not_there(
    fails: Any, cli: Any, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from graphopt.targets.ort import executable

    monkeypatch.setattr(executable, "_has_nvidia_driver", lambda: False)
    assert cli("compile", "model.onnx", *FAST, "--target", "cuda").code == 0
    for command in (("run", "model.gopt"), ("bench", "model.gopt"), ("verify", "model.gopt", "model.onnx")):
        says = ("model.gopt needs the target 'ort-cuda', which does not run here", "no NVIDIA driver")
        assert "TargetError" not in fails(*command, code=1, says=says)


def test_a_bundle_is_not_compiled_again(fails: Any, bundle: Path) -> None:
    fails("compile", "model.gopt", code=1, says=("model.gopt is a bundle", "compiled from"))


def test_verify_fails_where_numbers_differ(cli: Any, bundle: Path, make: Make, tmp_path: Path) -> None:
    make([helper.make_node("Neg", ["x"], ["y"])], tmp_path / "other.onnx")
    done = cli("verify", "model.gopt", "other.onnx")
    assert done.code == 1
    assert "model.gopt does not compute what other.onnx does: output 'y'" in done.err
    assert "is not the model that model.gopt was compiled from" in done.out


def test_bench_wants_the_same_inputs(fails: Any, model: Path, make: Make, tmp_path: Path) -> None:
    make([helper.make_node("Neg", ["z"], ["y"])], tmp_path / "other.onnx", inputs={"z": ("n", 8)})
    fails("bench", "model.onnx", "other.onnx", code=2, says=("different inputs", "'x' (float[n,8])"))


# -- what else can happen -------------------------------------------------------------------------------------


def test_an_unexpected_error_is_one_line_and_a_traceback_with_debug(
    cli: Any, fails: Any, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from graphopt import artifact

    def bug(output: Path) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(artifact, "check_writable", bug)
    message = fails("compile", "model.onnx", code=1, says=("ZeroDivisionError: division by zero", "--debug"))
    assert len(message.splitlines()) == 2
    done = cli("compile", "model.onnx", "--debug")
    assert done.code == 1 and "Traceback (most recent call last)" in done.err


def test_json_failures_are_one_object_too(cli: Any, model: Path) -> None:
    done = cli("compile", "model.onnx", "--passes", "fusee", "--json")
    assert done.code == 2
    assert done.json["error"]["kind"] == "UnknownNameError"
    assert "'fusee'" in done.json["error"]["message"]
    assert done.err.startswith("error: unknown pass")


def test_running_out_of_memory_is_named(fails: Any, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from graphopt import artifact

    def full(output: Path) -> None:
        raise MemoryError

    monkeypatch.setattr(artifact, "check_writable", full)
    fails("compile", "model.onnx", code=1, says="out of memory")


def process(folder: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """The command in a process of its own, with a private folder for temporary files."""
    (folder / "tmp").mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-m", "graphopt", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder / "tmp"), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("number", "code", "says"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "")]
)
def test_an_interrupted_compile_leaves_nothing(
    model: Path, tmp_path: Path, number: signal.Signals, code: int, says: str
) -> None:
    (tmp_path / "tmp").mkdir()
    before = snapshot(tmp_path)
    running = process(tmp_path, "compile", "model.onnx", "--tune", "60s")
    deadline = time.monotonic() + 60
    while not list((tmp_path / "tmp").iterdir()) and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.5)
    running.send_signal(number)
    out, err = running.communicate(timeout=60)
    # As a shell counts: Python ends by the signal itself where it came while a string was executed (dataclasses do).
    ended = 128 - running.returncode if running.returncode < 0 else running.returncode
    assert (ended, out, err.strip()) == (code, "", says)
    assert snapshot(tmp_path) == before


def test_a_closed_pipe_is_quiet(tmp_path: Path) -> None:
    script = f"{sys.executable} -m graphopt passes | head -n 1; exit ${{PIPESTATUS[0]}}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 1


def test_closed_streams_do_no_harm(tmp_path: Path) -> None:
    script = (
        f"{sys.executable} -m graphopt passes <&- >&- && {sys.executable} -m graphopt passes 2>&- | wc -l"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) > 20


def hide(folder: Path, package: str) -> Path:
    """A folder for PYTHONPATH that makes a package look as if it were not installed."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        f"""
import sys

class Filter:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] == {package!r} else self.finder.find_spec(name, path, target)

sys.meta_path[:] = [Filter(finder) for finder in sys.meta_path]
"""
    )
    return folder


@pytest.mark.parametrize(
    ("package", "arguments", "says"),
    [
        (
            "onnxruntime",
            ("compile", "model.onnx"),
            ("onnxruntime is not installed", f"-e '{ROOT}[cpu]'"),
        ),
        (
            "onnxruntime",
            ("run", "model.onnx"),
            ("onnxruntime is not installed", f"-e '{ROOT}[cpu]'"),
        ),
        ("torch", ("compile", "program.pt2"), ("torch is not installed", f"-e '{ROOT}[torch]'")),
        (
            "torch",
            ("compile", "model.onnx", "--passes", "prune,distill", "--synthetic-calibration"),
            ("torch is not installed", f"-e '{ROOT}[torch]'"),
        ),
        (
            "tvm",
            ("compile", "model.onnx", "--target", "tvm-cuda"),
            ("apache-tvm is not", f"-e '{ROOT}[tvm-cuda]'"),
        ),
    ],
)
def test_a_missing_extra_says_what_to_install(
    model: Path, tmp_path: Path, package: str, arguments: tuple[str, ...], says: tuple[str, ...]
) -> None:
    hidden = hide(tmp_path / "hidden", package)
    (tmp_path / "program.pt2").write_bytes(b"PK\x03\x04")
    running = process(tmp_path, *arguments, PYTHONPATH=os.pathsep.join([str(hidden), str(ROOT)]))
    out, err = running.communicate(timeout=60)
    assert running.returncode == 1, err
    for words in says:
        assert words in err
    assert "Traceback" not in err and out == ""
    assert not list(tmp_path.glob("*.gopt"))


def test_doctor_names_what_is_missing(tmp_path: Path) -> None:
    hidden = hide(tmp_path / "hidden", "onnxruntime")
    running = process(tmp_path, "doctor", PYTHONPATH=os.pathsep.join([str(hidden), str(ROOT)]))
    out, err = running.communicate(timeout=60)
    assert running.returncode == 1
    assert f"onnxruntime is not installed: {install.command('cpu')}" in out
    assert err == ""


# -- pruning --------------------------------------------------------------------------------------------------


@pytest.fixture
def net(tmp_path: Path) -> Path:
    """A convolution net, and data for it."""
    import onnx

    from graphopt.models import builders

    onnx.save(builders.conv_net(channels=32, blocks=2, size=8), tmp_path / "net.onnx")
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "data.npz", x=rng.standard_normal((12, 1, 3, 8, 8)).astype(np.float32))
    return tmp_path / "net.onnx"


PRUNE = ("compile", "net.onnx", "--target", "ort-cpu", "--threads", "1", "--tune", "10s", "--max-drop", "90%")
DATA = ("--data", "data.npz")


@pytest.mark.parametrize(
    ("passes", "says"),
    [
        ("fuse,prune{ratio=1.5}", ("the ratio of prune is 1.5", "prune{ratio=0.3}")),
        ("fuse,prune{ratio=-0.1}", ("the ratio of prune is -0.1",)),
        ("fuse,prune{macs=1}", ("the macs of prune is 1", "prune{macs=0.3}")),
        ("fuse,prune{share=0.5}", ("'share'", "spread")),
        ("fuse,prune{criterion=hesian}", ("hesian", "hessian")),
        (
            "fuse,quantize,prune{ratio=0.3}",
            ("prune cannot come after quantize", "--passes fuse,prune,quantize"),
        ),
        ("fuse,smooth,prune{ratio=0.3}", ("prune cannot come after smooth",)),
    ],
)
def test_prune_that_makes_no_sense(fails: Any, net: Path, passes: str, says: tuple[str, ...]) -> None:
    fails(*PRUNE, *DATA, "--passes", passes, code=2, says=says)


def test_prune_without_data(fails: Any, net: Path) -> None:
    fails(
        *PRUNE, "--passes", "fuse,prune{ratio=0.3}", code=1,
        says=("calibrated and judged on data, and there are none", "--data", "--synthetic-calibration"),
    )  # fmt: skip


def test_prune_with_layers_to_keep_that_are_not_there(cli: Any, net: Path) -> None:
    done = cli(*PRUNE, *DATA, "--passes", "fuse,prune{ratio=0.3}", "--dry-run", "--json")
    name = next(
        row["node"]
        for record in done.json["passes"]
        for row in record["details"].get("pruned", [])
        if row["channels"][1] < row["channels"][0]
    )
    done = cli(
        *PRUNE,
        *DATA,
        "--passes",
        f'fuse,prune{{ratio=0.3,keep=["{name}x", "?????"]}}',
        "--dry-run",
        "--json",
    )
    warnings = " ".join(done.json["warnings"])
    assert f"the option 'keep' names no layer: '{name}x' (did you mean '{name}'" in warnings
    assert "'?????' (names are in the report)" in warnings


def test_prune_with_little_data_says_what_it_falls_back_to(cli: Any, net: Path, tmp_path: Path) -> None:
    np.savez(
        tmp_path / "data.npz", x=np.random.default_rng(1).standard_normal((2, 1, 3, 8, 8)).astype(np.float32)
    )
    done = cli(
        *PRUNE, *DATA, "--passes", "fuse,prune{ratio=0.3,samples=1}", "--best-effort", "--json", "--dry-run"
    )
    assert done.code == 0, done.err
    (warning,) = [text for text in done.json["warnings"] if "not ranked by hessian" in text]
    assert "ranked by activation: too few inputs were seen for second moments" in warning


def test_prune_of_what_cannot_be_pruned_leaves_the_float_result(cli: Any, make: Make, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="product"),
        helper.make_node("Softmax", ["a"], ["y"], name="probabilities"),
    ]
    rng = np.random.default_rng(0)
    make(nodes, tmp_path / "net.onnx", weights={"w": rng.standard_normal((8, 8)).astype(np.float32)})
    np.savez(tmp_path / "data.npz", x=rng.standard_normal((12, 4, 8)).astype(np.float32))
    done = cli(*PRUNE, *DATA, "--passes", "fuse,prune{ratio=0.5}")
    assert done.code == 0, done.err
    assert "prune is not part of the result" in done.out and "'probabilities'" in done.out
    assert cli("verify", "net.gopt", "net.onnx").code == 0, "the float result, whole"


def test_more_than_can_be_removed_is_said(cli: Any, net: Path) -> None:
    done = cli(*PRUNE, *DATA, "--passes", "fuse,prune{macs=0.99}", "--best-effort", "--json", "--dry-run")
    assert done.code == 0, done.err
    (warning,) = [text for text in done.json["warnings"] if "asked for 99% of the multiplications" in text]
    left = next(record["details"]["macs_left"] for record in done.json["passes"] if record["name"] == "prune")
    assert f"{1 - left:.0%} is the most: " in warning
    done = cli(*PRUNE, *DATA, "--passes", "fuse,prune{ratio=0.95}", "--best-effort", "--json", "--dry-run")
    assert any("asked for 95% of the channels of each group" in text for text in done.json["warnings"])
