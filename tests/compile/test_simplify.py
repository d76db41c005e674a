"""``graphopt simplify``: fewer nodes, ONNX's operators alone, the opset that the model has, verified as written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import graphopt
from graphopt.capture.upgrade import lower
from graphopt.cli import main
from graphopt.errors import BundleError, GraphoptError, UnsupportedModelError, UsageError
from graphopt.models import builders


def written(path: Path, opset: int = 11) -> Path:
    """A product with a weight that folds, and what does nothing, then Gelu as exporters write it."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Constant", [], ["two"], value=numpy_helper.from_array(np.array(2.0, np.float32))),
        helper.make_node("Mul", ["w", "two"], ["v"]),
        helper.make_node("Identity", ["x"], ["z"]),
        helper.make_node("MatMul", ["z", "v"], ["u"], name="product"),
        helper.make_node("Dropout", ["u"], ["d"]),
        helper.make_node("Div", ["d", "root"], ["e"]),
        helper.make_node("Erf", ["e"], ["f"]),
        helper.make_node("Add", ["f", "one"], ["g"]),
        helper.make_node("Mul", ["d", "g"], ["h"]),
        helper.make_node("Mul", ["h", "half"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])],
        [
            numpy_helper.from_array(rng.standard_normal((8, 4)).astype(np.float32), "w"),
            *(
                numpy_helper.from_array(np.array(value, np.float32), name)
                for name, value in (("root", np.sqrt(2)), ("one", 1), ("half", 0.5))
            ),
        ],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=6), path)
    return path


def outputs(path: Path, rows: int = 3) -> np.ndarray:
    feeds = {"x": np.random.default_rng(1).standard_normal((rows, 8)).astype(np.float32)}
    (made,) = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, feeds)
    return np.asarray(made)


def test_fewer_nodes_in_the_models_own_opset(tmp_path: Path) -> None:
    model = written(tmp_path / "net.onnx")
    simplified = graphopt.simplify(model)
    path = simplified.save(tmp_path / "small.onnx")
    small = onnx.load(path)
    onnx.checker.check_model(small, full_check=True)
    assert [node.op_type for node in small.graph.node] == ["MatMul", "Div", "Erf", "Add", "Mul", "Mul"]
    assert [(entry.domain, entry.version) for entry in small.opset_import] == [("", 11)]
    assert small.ir_version == 6
    report = simplified.report
    assert report.verification.status == "verified" and report.output == str(path)
    assert (report.nodes_before, report.nodes_after) == (10, 6) and report.size_after == path.stat().st_size
    for rows in (1, 5):
        np.testing.assert_allclose(outputs(path, rows), outputs(model, rows), rtol=1e-5, atol=1e-5)


def test_fused_operators_take_the_opset_that_has_them(tmp_path: Path) -> None:
    simplified = graphopt.simplify(written(tmp_path / "net.onnx"), passes="fold,fuse")
    assert [node.op_type for node in simplified.model.graph] == ["MatMul", "Gelu"]
    assert simplified.model.graph.opset_imports[""] == 20
    simplified.save(tmp_path / "small.onnx")
    onnx.checker.check_model(onnx.load(tmp_path / "small.onnx"), full_check=True)


@pytest.mark.parametrize("opset", [7, 8])
def test_an_old_file_stays_a_valid_one(tmp_path: Path, opset: int) -> None:
    """Before version 4 of the format each initializer had to be an input."""
    rng = np.random.default_rng(0)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node("Relu", ["c"], ["y"])], "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, 5, 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3, 3, 3])],
        [numpy_helper.from_array(rng.standard_normal((3, 2, 3, 3)).astype(np.float32), "w")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=4)
    path = graphopt.simplify(model).save(tmp_path / "small.onnx")
    small = onnx.load(path)
    onnx.checker.check_model(small, full_check=True)
    assert small.ir_version == 4 and small.opset_import[0].version == opset


def test_functions_become_nodes_and_their_domain_goes(tmp_path: Path) -> None:
    twice = helper.make_function(
        "mine",
        "Twice",
        ["a"],
        ["b"],
        [helper.make_node("Add", ["a", "a"], ["b"])],
        [helper.make_opsetid("", 13)],
    )
    graph = helper.make_graph(
        [helper.make_node("Twice", ["x"], ["y"], domain="mine")], "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 13), helper.make_opsetid("mine", 1)]
    model = helper.make_model(graph, functions=[twice], opset_imports=opsets, ir_version=8)
    small = onnx.load(graphopt.simplify(model).save(tmp_path / "small.onnx"))
    assert not small.functions and [(one.domain, one.version) for one in small.opset_import] == [("", 13)]


NODES = {
    "normalization": (helper.make_node("BatchNormalization", ["x", "s", "s", "s", "s"], ["y"]), 9),
    "sizes of parts": (helper.make_node("Split", ["x", "parts"], ["y", "z"], axis=1), 13),
    "the last axis": (helper.make_node("Softmax", ["x"], ["y"], axis=1), 9),
    "an axis from the end": (helper.make_node("Concat", ["x", "x"], ["y"], axis=-1), 11),
    "a sum of all": (helper.make_node("ReduceMean", ["x"], ["y"], keepdims=1), 9),
    "axes": (helper.make_node("ReduceMean", ["x", "ax"], ["y"]), 18),
    "a later value": (helper.make_node("Pad", ["x", "pads"], ["y"], mode="wrap"), 19),
}


@pytest.mark.parametrize("case", NODES)
def test_the_oldest_opset_is_where_each_node_means_the_same(case: str) -> None:
    node, wanted = NODES[case]
    shape = {"sizes of parts": (2, 2)}.get(case)
    constants = {
        "s": np.arange(1, 5, dtype=np.float32), "parts": np.array(shape or (1, 3)), "ax": np.array([1]),
        "pads": np.array([0, 1, 0, 1]),
    }  # fmt: skip
    graph = helper.make_graph(
        [node], "net", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, 4])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in node.output],
        [numpy_helper.from_array(constants[name], name) for name in dict.fromkeys(node.input) if name != "x"],
    )  # fmt: skip
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]))
    assert lower(model, None, 9) == wanted
    assert model.graph.opset_imports[""] == wanted
    with pytest.raises(UnsupportedModelError, match="older than what graphopt reads"):
        lower(model, 6, 9)


def test_a_place_that_takes_no_file(tmp_path: Path) -> None:
    simplified = graphopt.simplify(written(tmp_path / "net.onnx"))
    with pytest.raises(BundleError, match="cannot write"):
        simplified.save(tmp_path / "net.onnx" / "small.onnx")
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(UsageError, match="is a folder"):
        simplified.save(tmp_path / "folder.onnx")


def test_an_opset_may_be_asked_for(tmp_path: Path) -> None:
    model = written(tmp_path / "net.onnx")
    path = graphopt.simplify(model, opset=17).save(tmp_path / "small.onnx")
    assert onnx.load(path).opset_import[0].version == 17
    np.testing.assert_allclose(outputs(path), outputs(model), rtol=1e-5, atol=1e-5)
    with pytest.raises(UnsupportedModelError, match=r"opset 17: Gelu .* is not the same there") as caught:
        graphopt.simplify(model, passes="fold,fuse", opset=17)
    assert "--opset 20" in (caught.value.hint or "")
    with pytest.raises(UnsupportedModelError, match="not raised to 99"):
        graphopt.simplify(model, opset=99)


def test_sizes_are_fixed_where_asked(tmp_path: Path) -> None:
    simplified = graphopt.simplify(written(tmp_path / "net.onnx"), input_shapes={"x": (2, 8)})
    small = onnx.load(simplified.save(tmp_path / "small.onnx"))
    assert [dim.dim_value for dim in small.graph.input[0].type.tensor_type.shape.dim] == [2, 8]


def test_the_model_itself_may_be_replaced(tmp_path: Path) -> None:
    model = written(tmp_path / "net.onnx")
    wanted = outputs(model)
    graphopt.simplify(model).save(model)
    assert len(onnx.load(model).graph.node) == 6
    np.testing.assert_allclose(outputs(model), wanted, rtol=1e-5, atol=1e-5)


def test_large_weights_lie_beside_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tmp_path / "net.onnx"
    onnx.save(builders.conv_net(channels=32, blocks=3, size=16), model)
    monkeypatch.setattr("graphopt.ir.save.EXTERNAL_THRESHOLD", 1000)
    monkeypatch.setattr("graphopt.ir.save.save.__kwdefaults__", {"external_threshold": 1000})
    graphopt.simplify(model, passes="fold,fuse").save(tmp_path / "small.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.onnx", "small.onnx", "small.onnx.data"]


def test_what_cannot_be_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    model = written(tmp_path / "net.onnx")
    with pytest.raises(UsageError, match="quantize is lossy, and simplifying loses nothing"):
        graphopt.simplify(model, passes="fold,quantize")
    with pytest.raises(UsageError, match=r"small is no \.onnx file"):
        graphopt.simplify(model).save(tmp_path / "small")
    simplified = graphopt.simplify(model)
    weight = next(iter(simplified.model.graph.initializers.values()))
    assert weight.const_value is not None
    weight.const_value = ir.tensor((1.01 * weight.const_value.numpy()).astype(np.float32))
    with pytest.raises(GraphoptError, match="the file as written does not hold"):
        simplified.save(tmp_path / "small.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written(tmp_path / "net.onnx")
    monkeypatch.chdir(tmp_path)
    assert main(["simplify", "net.onnx"]) == 0
    shown = capsys.readouterr().out
    assert "net.simplified.onnx   opset 11" in shown and "10        6" in shown
    assert len(onnx.load(tmp_path / "net.simplified.onnx").graph.node) == 6
    assert main(["simplify", "net.onnx", "-o", "out"]) == 2
    assert "out is no .onnx file" in capsys.readouterr().err
    assert main(["simplify", "net.onnx", "-o", "nowhere/out.onnx"]) == 2
    assert "no folder" in capsys.readouterr().err
    assert main(["simplify", "none.onnx"]) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.onnx", "net.simplified.onnx"]
