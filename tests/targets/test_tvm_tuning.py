"""Tuning: what is measured is kept, joined and taken; crashes, lost devices and full disks cost no more than they must."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("tvm_ffi")

import graphopt
from graphopt import api, artifact
from graphopt.cli import main as cli
from graphopt.errors import GraphoptError, TargetError, UsageError
from graphopt.models import builders
from graphopt.processes import child_environment
from graphopt.request import parse_effort
from graphopt.target import Effort
from graphopt.targets.tvm.lower.tiles import Tile, Vectors, tiles_of
from graphopt.targets.tvm.tuning import session
from graphopt.targets.tvm.tuning.database import LOOPS, Database, Header, Record, hardware_name, merge

HERE = "a processor, avx512f, 2 threads"


def record(name: str, seconds: float = 1e-3, before: float = 2e-3, **about: Any) -> Record:
    return Record(name, Tile(4, 16), seconds, before, about.pop("trials", 8), **about)


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("net") / "net.onnx"
    onnx.save(builders.conv_net(channels=16, blocks=2, size=16), path)
    return path


SHAPES = {"x": (1, 3, 16, 16)}


# -- the database --------------------------------------------------------------------------------------------


def test_the_last_record_of_a_product_counts(tmp_path: Path) -> None:
    database = Database(tmp_path, "0.27", HERE)
    database.add(record("conv a", 2e-3))
    database.add(record("conv b"))
    database.add(record("conv a", 1e-3, finished=True))
    assert Database(tmp_path, "0.27", HERE).best() == {
        "conv a": record("conv a", 1e-3, finished=True),
        "conv b": record("conv b"),
    }
    assert set(database.tiles()) == {"conv a", "conv b"}


def test_each_version_and_each_hardware_has_its_own(tmp_path: Path) -> None:
    database = Database(tmp_path, "0.27", HERE)
    database.add(record("conv"))
    assert not Database(tmp_path, "0.28", HERE).best() and not Database(tmp_path, "0.27", "another").best()
    assert "TVM 0.27 on a processor" in Database(tmp_path, "0.28", HERE).describe_absence()
    assert (
        not database.describe_absence() and not Database(tmp_path / "none", "0.27", HERE).describe_absence()
    )
    assert Database(tmp_path, "0.28", HERE).others() == [Header("0.27", LOOPS, HERE)]


def test_a_line_that_was_cut_off_costs_itself_alone(tmp_path: Path) -> None:
    database = Database(tmp_path, "0.27", HERE)
    database.add(record("first"))
    with open(database.file, "ab") as file:
        file.write(msgspec.json.encode(record("cut"))[:30])
    database.add(record("second"))
    assert set(database.best()) == {"first", "second"}


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(GraphoptError, match="cannot write .*file") as raised:
        Database(tmp_path / "file", "0.27", HERE).add(record("conv"))
    assert "kept" in str(raised.value.hint)


@settings(max_examples=30, deadline=None)
@given(
    gains=st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from("xy"), st.floats(0.5, 4)), min_size=1, max_size=12
    ),
    into_first=st.booleans(),
)
def test_joined_databases_hold_the_largest_gain_of_each(
    tmp_path_factory: pytest.TempPathFactory, gains: list[tuple[str, str, float]], into_first: bool
) -> None:
    root = tmp_path_factory.mktemp("merge")
    wanted: dict[tuple[str, str], float] = {}
    for place, (name, hardware, gain) in enumerate(gains):
        folder = root / f"{place % 3}"
        kept = Database(folder, "0.27", hardware).best().get(name)
        if kept is None or kept.before / kept.seconds < gain:
            Database(folder, "0.27", hardware).add(record(name, 1e-3, gain * 1e-3))
            wanted[name, hardware] = max(wanted.get((name, hardware), 0.0), gain)
    sources = [folder for folder in root.iterdir() if folder.is_dir()]
    into = sources[0] if into_first else root / "all"
    counts = merge(sources, into)
    assert sum(counts.values()) == len(wanted)
    for (name, hardware), gain in wanted.items():
        best = Database(into, "0.27", hardware).best()[name]
        assert best.before / best.seconds == pytest.approx(gain)
    # Once more changes nothing.
    before = {file: file.read_bytes() for file in into.rglob("*.jsonl")}
    merge(sources, into)
    assert {file: file.read_bytes() for file in into.rglob("*.jsonl")} == before


def test_what_holds_no_records_is_not_joined(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no tuned kernels"):
        merge([tmp_path], tmp_path / "all")
    assert not (tmp_path / "all").exists()


# -- tiles ---------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    lines=st.integers(1, 60), length=st.integers(1, 200), channels=st.integers(1, 300), runs_on=st.booleans(),
    vectors=st.sampled_from([Vectors(4, 16), Vectors(8, 16), Vectors(16, 32)]),
)  # fmt: skip
def test_every_tile_can_be_computed(
    lines: int, length: int, channels: int, runs_on: bool, vectors: Vectors
) -> None:
    tiles = tiles_of(lines, length, channels, vectors, runs_on=runs_on)
    assert tiles and len(set(tiles)) == len(tiles)
    for tile in tiles:
        assert tile.width % vectors.lanes == 0 and tile.rows * tile.width // vectors.lanes <= vectors.count
        if tile.runs_on:
            assert runs_on and lines * length % tile.rows == 0
        else:
            assert tile.rows <= length


# -- tuning --------------------------------------------------------------------------------------------------


def test_efforts_are_read() -> None:
    assert parse_effort("10m") == Effort(seconds=600) and parse_effort("2000trials") == Effort(trials=2000)
    for text in ("trials", "0trials", "-5trials", "1.5trials", "soon"):
        with pytest.raises(UsageError):
            parse_effort(text)


def test_what_is_tuned_is_kept_taken_and_gone_on_with(net: Path, tmp_path: Path) -> None:
    kernels = tmp_path / "kernels"
    first = api.tune(net, tune="20trials", database=kernels, input_shapes=SHAPES)
    assert 0 < first.trials <= 20 and first.before and first.estimate and first.estimate <= first.before * 1.5
    assert 0 < first.tuned_share <= 1 and first.hardware == hardware_name(first.hardware.split(", ")[1])
    again = api.tune(net, tune="20trials", database=kernels, input_shapes=SHAPES)
    by_name = {kernel.name: kernel for kernel in first.kernels}
    assert all(kernel.trials >= by_name[kernel.name].trials for kernel in again.kernels)
    whole = api.tune(net, database=kernels, input_shapes=SHAPES)
    assert all(kernel.finished for kernel in whole.kernels) and whole.untuned_share == 0
    nothing_left = api.tune(net, database=kernels, input_shapes=SHAPES)
    assert nothing_left.trials == 0

    compiled = graphopt.compile(net, target="tvm-llvm", database=kernels, input_shapes=SHAPES)
    assert compiled.report.verification.status == "verified"
    config = artifact.read_manifest(compiled.save(tmp_path / "net.gopt")).config
    assert config["tuned"] == config["products"] == len(whole.kernels)


def test_compile_tunes_first_where_it_is_asked_to(net: Path, tmp_path: Path) -> None:
    compiled = graphopt.compile(
        net, target="tvm-llvm", tune="8trials", database=tmp_path, input_shapes=SHAPES
    )
    report = compiled.report.as_dict()
    assert report["tuning"]["trials"] == 8 and report["tuning"]["coverage"]["tuned"] > 0
    assert Database(
        tmp_path,
        report["tuning"]["database"].split("tvm-")[-1].split("-loops")[0],
        report["tuning"]["hardware"],
    ).best()


def test_a_foreign_database_is_said_to_be_one(net: Path, tmp_path: Path) -> None:
    Database(tmp_path, "0.26.0", "NVIDIA H200").add(record("conv"))
    compiled = graphopt.compile(net, target="tvm-llvm", database=tmp_path, input_shapes=SHAPES)
    (warning,) = [entry for entry in compiled.report.warnings if "tuned kernels" in entry]
    assert "TVM 0.26.0 on NVIDIA H200" in warning and "none of TVM 0.27" in warning


def test_targets_without_such_kernels_refuse(net: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'ort-cpu' has no kernels that are tuned"):
        api.tune(net, target="ort-cpu")
    with pytest.raises(UsageError, match="'ort-cpu' has no kernels that are tuned"):
        graphopt.compile(net, target="ort-cpu", database=tmp_path)
    with pytest.raises(UsageError, match="lossy"):
        api.tune(net, passes="fuse,quantize")
    with pytest.raises(UsageError, match="go together"):
        api.tune(net, tracker="localhost:9190")


def test_a_crash_leaves_out_what_was_measured_then(
    net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first batch crashes TVM; the tuner is started again without it."""
    crashing = tmp_path / "crash"
    crashing.mkdir()
    (crashing / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        f"flag = {str(tmp_path / 'crashed')!r}\n"
        "if any('tuning.tuner' in entry for entry in sys.orig_argv) and not os.path.exists(flag):\n"
        "    import graphopt.targets.tvm.tuning.runners as runners\n"
        "    def measure(self, library, kernels):\n"
        "        open(flag, 'w').close()\n"
        "        os.kill(os.getpid(), signal.SIGSEGV)\n"
        "    runners.LocalRunner.measure = measure\n",
        encoding="utf-8",
    )
    inherited = child_environment()
    monkeypatch.setattr(
        session,
        "child_environment",
        lambda: {**inherited, "PYTHONPATH": f"{crashing}{os.pathsep}{inherited['PYTHONPATH']}"},
    )
    found = api.tune(net, tune="16trials", database=tmp_path / "kernels", input_shapes=SHAPES)
    assert (tmp_path / "crashed").exists() and found.trials > 0 and found.tuned_share > 0


def test_a_kernel_that_crashes_where_it_is_measured_is_left_out_alone(tmp_path: Path) -> None:
    pytest.importorskip("tvm")
    from graphopt.targets.tvm.executable import vector_extension
    from graphopt.targets.tvm.lower.pipeline import processor
    from graphopt.targets.tvm.lower.products import Product
    from graphopt.targets.tvm.tuning import tuner

    cpu, vectors = processor(vector_extension())
    product = Product((4, 64), (64, 32))
    tiles = product.tiles(vectors)[:3]
    state = tuner._State(product, 1, tiles[0], tiles[0], [])

    class Runner:
        def measure(self, library: Path, kernels: list[dict[str, Any]]) -> list[float]:
            # Two kernels at a time work, but for the one whose weights are packed as wide as those of the second tile.
            arguments = [kernel["arguments"] for kernel in kernels]
            if len(kernels) > 2 or arguments[1] == bad:
                raise TargetError("a kernel crashed or hung where it was measured")
            return [1e-3, 0.5e-3][: len(kernels)]

    bad = tuner.kernel_of(product, tiles[1], vectors)[1]
    others = [tile for tile in tiles[1:] if tuner.kernel_of(product, tile, vectors)[1] != bad]
    times = tuner._times(state, [tiles[0], tiles[1], *others], cpu, vectors, Runner(), tmp_path)  # type: ignore[arg-type]
    assert tiles[1] not in times and all(tile in times for tile in others)


def test_an_interruption_ends_the_tuner_and_keeps_what_it_found(net: Path, tmp_path: Path) -> None:
    code = (
        "from graphopt import api\n"
        f"api.tune({str(net)!r}, database={str(tmp_path / 'kernels')!r}, input_shapes={{'x': (1, 3, 16, 16)}})\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=child_environment(), stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("kernels/*/*.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0 and "KeyboardInterrupt" in errors
    (file,) = tmp_path.glob("kernels/*/*.jsonl")
    assert len(file.read_text(encoding="utf-8").splitlines()) >= 2
    # What measured kernels ends when nobody asks it any more.
    deadline = time.monotonic() + 20
    while subprocess.run(["pgrep", "-g", str(process.pid)], capture_output=True, check=False).stdout:
        assert time.monotonic() < deadline, "a process of the session is left running"
        time.sleep(0.1)


# -- a device elsewhere --------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextlib.contextmanager
def tracker_and_server(key: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """TVM's own, on the loopback."""
    port, quiet = free_port(), {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    environment = child_environment() | {"TVM_NUM_THREADS": "1"}
    tracker = subprocess.Popen(
        [sys.executable, "-m", "tvm.exec.rpc_tracker", "--host", "127.0.0.1", "--port", str(port), "--port-end", str(port + 1)],
        env=environment, start_new_session=True, **quiet,  # type: ignore[call-overload]
    )  # fmt: skip
    started = [tracker]
    try:
        wait_for(port)
        address = f"127.0.0.1:{port}"
        server = subprocess.Popen(
            [sys.executable, "-m", "tvm.exec.rpc_server", "--host", "127.0.0.1", "--tracker", address, "--key", key],
            env=environment, start_new_session=True, **quiet,  # type: ignore[call-overload]
        )  # fmt: skip
        started.append(server)
        yield address, server
    finally:
        for process in started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_for(port: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        time.sleep(0.1)
    raise AssertionError("the tracker did not start")


def tuned_remotely(net: Path, address: str, folder: Path, effort: str) -> Any:
    """Once the device has registered."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return api.tune(
                net, tracker=address, device="rack", tune=effort, database=folder, input_shapes=SHAPES
            )
        except TargetError as error:
            if "no free device" not in error.message or time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def test_a_device_behind_a_tracker_is_tuned_and_its_kernels_are_taken(net: Path, tmp_path: Path) -> None:
    pytest.importorskip("tornado")
    with tracker_and_server("rack") as (address, _):
        found = tuned_remotely(net, address, tmp_path, "12trials")
    assert found.trials == 12 and found.hardware.startswith("rack, ") and found.before is None
    config = artifact.read_manifest(
        graphopt.compile(net, target="tvm-llvm", database=tmp_path, device="rack", input_shapes=SHAPES).save(
            tmp_path / "net.gopt"
        )
    ).config
    assert config["tuned"] >= 1
    # This machine's own kernels are others.
    other = graphopt.compile(net, target="tvm-llvm", database=tmp_path, input_shapes=SHAPES)
    assert any("tuned kernels of" in warning for warning in other.report.warnings)


def test_a_tracker_that_does_not_answer_or_has_no_such_device_is_named(net: Path, tmp_path: Path) -> None:
    pytest.importorskip("tornado")
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(TargetError, match=f"no RPC tracker answers at {address}"):
        api.tune(net, tracker=address, device="rack", database=tmp_path, input_shapes=SHAPES)
    with tracker_and_server("rack") as (address, _):
        tuned_remotely(net, address, tmp_path, "1trials")
        with pytest.raises(TargetError, match="no free device 'shelf'; it has: .*rack"):
            api.tune(net, tracker=address, device="shelf", database=tmp_path, input_shapes=SHAPES)


def test_a_device_that_dies_in_the_middle_leaves_what_was_measured(net: Path, tmp_path: Path) -> None:
    pytest.importorskip("tornado")
    with tracker_and_server("rack") as (address, server):
        tuned_remotely(net, address, tmp_path, "2trials")
        (file,) = tmp_path.glob("*/*.jsonl")
        lines = len(file.read_text(encoding="utf-8").splitlines())

        def kill_it() -> None:
            deadline = time.monotonic() + 60
            while len(file.read_text(encoding="utf-8").splitlines()) == lines and time.monotonic() < deadline:
                time.sleep(0.02)
            os.killpg(server.pid, signal.SIGKILL)

        killer = threading.Thread(target=kill_it)
        killer.start()
        with pytest.raises(TargetError, match="lost while measuring|does not answer") as raised:
            tuned_remotely(net, address, tmp_path, "5000trials")
        killer.join()
    assert "run the same command again" in str(raised.value.hint) or "does not answer" in raised.value.message
    assert len(file.read_text(encoding="utf-8").splitlines()) > lines


# -- the command ---------------------------------------------------------------------------------------------


def test_the_command_tells_what_is_covered(
    net: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--input-shape", "x:1,3,16,16", "--database", str(tmp_path / "a")]
    assert cli(["tune", str(net), "--tune", "8trials", *options]) == 0
    shown = capsys.readouterr().out
    for words in (
        "tuned for",
        "8 trials",
        "coverage",
        "in tuned kernels",
        "of the time",
        str(tmp_path / "a"),
    ):
        assert words in shown
    assert cli(["tune", str(net), "--tune", "1trials", "--json", *options]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["trials"] <= 1 and set(found["coverage"]) == {"tuned", "untuned"} and found["kernels"]
    assert cli(["tune", "merge", str(tmp_path / "a"), "-o", str(tmp_path / "b")]) == 0
    assert "kernels" in capsys.readouterr().out and list((tmp_path / "b").rglob("*.jsonl"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["merge"], "merge needs databases"),
        (["merge", "nowhere", "-o", "all"], "holds no tuned kernels"),
        (["a.onnx", "b.onnx"], "one model at a time"),
        (["a.onnx", "--tune", "soon"], "cannot read the"),
        (["a.onnx", "--target", "openvino"], "no kernels that are tuned"),
    ],
)
def test_wrong_commands_are_told(
    arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert cli(["tune", *arguments]) in (1, 2)
    errors = capsys.readouterr().err
    assert words in errors and "Traceback" not in errors


def test_joining_takes_the_last_of_each_file(tmp_path: Path) -> None:
    """An early record that was measured to gain more was measured again since."""
    database = Database(tmp_path / "a", "0.27", HERE)
    database.add(record("conv", 1e-3, 1.6e-3, trials=8))
    database.add(record("conv", 1e-3, 1.4e-3, trials=80, finished=True))
    merge([tmp_path / "a"], tmp_path / "b")
    assert Database(tmp_path / "b", "0.27", HERE).best()["conv"] == record(
        "conv", 1e-3, 1.4e-3, trials=80, finished=True
    )


def test_names_of_hardware_that_look_alike_are_kept_apart(tmp_path: Path) -> None:
    Database(tmp_path, "0.27", "rack 7").add(record("conv"))
    assert not Database(tmp_path, "0.27", "rack-7").best() and not Database(tmp_path, "0.27", "Rack 7").best()


def test_tiles_that_cannot_be_are_not_taken(net: Path, tmp_path: Path) -> None:
    """A file that was edited, or is of other loops, costs what it says and no more."""
    found = api.tune(net, tune="8trials", database=tmp_path, input_shapes=SHAPES)
    (file,) = tmp_path.glob("*/*.jsonl")
    head, *_ = file.read_text(encoding="utf-8").splitlines()
    name = json.dumps(found.kernels[0].name)
    rest = '"seconds":1e-3,"before":2e-3,"trials":8}'
    bad = [
        f'{{"product":{name},"tile":{tile},{rest}' for tile in ('{"rows":0,"width":16}', '{"rows":"4"}', "{}")
    ]
    file.write_text("\n".join([head, *bad, "no json", ""]), encoding="utf-8")
    compiled = graphopt.compile(net, target="tvm-llvm", database=tmp_path, input_shapes=SHAPES)
    config = artifact.read_manifest(compiled.save(tmp_path / "net.gopt")).config
    assert config["tuned"] == 0 and compiled.report.verification.status == "verified"
    assert any("0 of" in warning and "tuned" in warning for warning in compiled.report.warnings)
    assert api.tune(net, tune="8trials", database=tmp_path, input_shapes=SHAPES).tuned_share > 0


def test_going_on_measures_what_was_not_measured() -> None:
    pytest.importorskip("tvm")
    from graphopt.targets.tvm.lower.products import Product
    from graphopt.targets.tvm.tuning import tuner

    vectors, product = Vectors(16, 32), Product((8, 28, 64), (64, 256))
    tiles = product.tiles(vectors)
    first = tuner._state(product, 1, None, vectors, set())
    assert first.waiting == tiles[1:] and first.best == tiles[0]
    # Eight were measured, and the third of them was the best.
    kept = Record(product.key, tiles[3], 1e-3, 2e-3, 8)
    assert tuner._state(product, 1, kept, vectors, set()).waiting == tiles[9:]
    kept = Record(product.key, tiles[0], 1e-3, 1e-3, 8)
    assert tuner._state(product, 1, kept, vectors, set()).waiting == tiles[9:]
    # A crash leaves these out, and nothing else.
    bad = {(product.key, tile) for tile in tiles[:3]}
    after = tuner._state(product, 1, None, vectors, bad)
    assert after.default == tiles[0] and after.waiting == tiles[3:]


def test_a_device_elsewhere_is_not_tuned_here(net: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="through its tracker"):
        graphopt.compile(
            net, target="tvm-llvm", tune="1trials", database=tmp_path, device="rack", input_shapes=SHAPES
        )
