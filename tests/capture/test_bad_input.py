"""What capture refuses, and in which words: the thing is named and the next step told."""

from __future__ import annotations

import sys
from pathlib import Path

import onnx
import pytest
from onnx import helper

from graphopt import install
from graphopt.capture import capture
from graphopt.errors import (
    InvalidGraphError,
    MissingExtraError,
    ModelError,
    UnsupportedModelError,
    UsageError,
)
from graphopt.models import builders


def model(
    body: str, opset: str = '"" : 21', ports: str = "float[2] x", outputs: str = "float[2] y"
) -> onnx.ModelProto:
    return onnx.parser.parse_model(
        f"<ir_version: 10, opset_import: [{opset}]> g ({ports}) => ({outputs}) {{ {body} }}"
    )


@pytest.mark.parametrize(
    ("proto", "kind", "message"),
    [
        (
            model("y = Relu(ghost)"),
            InvalidGraphError,
            r"nothing defines 'ghost', its input 0\n  in y = Relu\(ghost\)",
        ),
        (model("a = Relu(x)"), InvalidGraphError, "nothing computes the output 'y' of graph 'g'"),
        (
            model("y = Add(x, i)", ports="float[2] x, int64[2] i"),
            InvalidGraphError,
            r"type clash: Add wants one type for 'x' \(tensor\(float\)\) and 'i' \(tensor\(int64\)\)",
        ),
        (model("y = Add(x)"), InvalidGraphError, "Add takes 2 inputs, not 1"),
        (model("y = Relu<alpha=1.0>(x)"), InvalidGraphError, "Relu has no attribute 'alpha'"),
        (
            model("y = Relu(x)", opset='"com.microsoft" : 1'),
            InvalidGraphError,
            "the model imports no opset of ONNX",
        ),
        (
            model("[oops] y = Frobnicate(x)"),
            UnsupportedModelError,
            r"opset 21 of domain 'ai\.onnx' has no operator 'Frobnicate' \(node 'oops'\)",
        ),
        (
            model("[oops] y = Gelu(x)", opset='"" : 19'),
            UnsupportedModelError,
            r"opset 19 of domain 'ai\.onnx' has no operator 'Gelu' \(node 'oops'\)",
        ),
        (
            model("[oops] y = com.acme.Op(x)", opset='"" : 21, "com.acme" : 1'),
            UnsupportedModelError,
            "unknown domain 'com.acme' of operator 'Op', node 'oops'",
        ),
        (
            model("[oops] y = com.microsoft.Frobnicate(x)", opset='"" : 21, "com.microsoft" : 1'),
            UnsupportedModelError,
            r"domain 'com\.microsoft' of ONNX Runtime has no operator 'Frobnicate' \(node 'oops'\)",
        ),
        (
            model("y = Relu(x)", opset='"" : 6'),
            UnsupportedModelError,
            "the model is written in opset 6; graphopt takes 7 and newer",
        ),
    ],
)
def test_invalid_and_unsupported_models(proto: onnx.ModelProto, kind: type[ModelError], message: str) -> None:
    with pytest.raises(kind, match=message) as caught:
        capture(proto)
    assert caught.value.hint and caught.value.exit_code == 1


def test_a_name_defined_twice() -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"], "first"), helper.make_node("Neg", ["x"], ["y"], "second")]
    x, y = (helper.make_tensor_value_info(name, 1, [2]) for name in "xy")
    proto = helper.make_model(helper.make_graph(nodes, "g", [x], [y]))
    with pytest.raises(InvalidGraphError, match=r"the name 'y' is defined twice, by node 'first' \(Relu\)"):
        capture(proto)


def test_the_broken_node_is_shown_among_its_neighbours() -> None:
    proto = model("a = Relu(x) b = Add(a) y = Neg(b)")
    with pytest.raises(InvalidGraphError) as caught:
        capture(proto)
    assert caught.value.neighbourhood.splitlines() == [
        "    a = Relu(x: float[2])",
        "  > b = Add(a)",
        "    y = Neg(b)",
    ]


def test_nothing_of_the_file_is_changed(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(model("y = Add(x)").SerializeToString())
    before = path.read_bytes()
    with pytest.raises(InvalidGraphError):
        capture(path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".bin", ".pkl"])
def test_pickles_are_not_opened(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(b"\x80\x04")
    with pytest.raises(UsageError, match="loading it could run code") as caught:
        capture(path)
    assert "pass the module" in caught.value.hint and ".pt2" in caught.value.hint


def test_something_else_altogether() -> None:
    with pytest.raises(UsageError, match=r"cannot capture an object of type builtins\.int"):
        capture(3)


def test_external_data_of_a_message_are_looked_for_where_the_program_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = builders.write_large(tmp_path / "m.onnx", gigabytes=1e-3, width=64)
    proto = onnx.load(path, load_external_data=False)
    monkeypatch.chdir(tmp_path)
    assert capture(proto).model.graph.initializers["w0"].const_value is not None
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match=r"'w0' are in 'm\.onnx\.data', which is missing"):
        capture(proto)


def test_torch_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    (tmp_path / "m.pt2").write_bytes(b"")
    find = importlib.util.find_spec
    for missing in ("torch", "onnxscript"):
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name, missing=missing: None if name == missing else find(name)
        )
        with pytest.raises(MissingExtraError, match=f"{missing} is not installed") as caught:
            capture(tmp_path / "m.pt2")
        assert caught.value.hint == f"install it: {install.command('torch')}"


def test_capturing_onnx_does_not_import_torch() -> None:
    import subprocess

    script = (
        "import sys; from graphopt.capture import capture; from graphopt.models import builders; "
        "capture(builders.mlp()); assert 'torch' not in sys.modules"
    )
    subprocess.run(
        [sys.executable, "-c", script], check=True, env={"PYTHONPATH": ":".join(sys.path), "PATH": ""}
    )
