"""Load and save: what comes back is what went in, and each way in which a file can be wrong is said in words."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.errors import BundleError, InvalidGraphError, ModelError, UnsupportedModelError
from graphopt.ir import facts
from graphopt.ir import model as ir_model
from graphopt.ir.hash import content_hash
from graphopt.models import builders


def saved(tmp_path: Path, *, external: bool = False) -> Path:
    return ir_model.save(
        ir_model.from_proto(builders.conv_net()),
        tmp_path / "net.onnx",
        external_threshold=0 if external else ir_model.EXTERNAL_THRESHOLD,
    )


@pytest.mark.parametrize("external", [False, True])
def test_save_and_load_give_the_same_model(tmp_path: Path, external: bool) -> None:
    model = ir_model.from_proto(builders.transformer_block())
    path = ir_model.save(model, tmp_path / "m.onnx", external_threshold=0 if external else 1 << 40)
    assert (tmp_path / "m.onnx.data").exists() == external
    onnx.checker.check_model(str(path))
    again = ir_model.load(path)
    assert content_hash(again) == content_hash(model)
    assert ir_model.nbytes(again) == ir_model.nbytes(model)


@pytest.mark.parametrize("external", [False, True])
def test_what_is_recorded_of_a_weight_survives(tmp_path: Path, external: bool) -> None:
    model = ir_model.from_proto(builders.conv_net())
    name, value = next(iter(model.graph.initializers.items()))
    value.metadata_props[facts.SPARSITY] = "2:4"
    path = ir_model.save(model, tmp_path / "m.onnx", external_threshold=0 if external else 1 << 40)
    onnx.checker.check_model(str(path))
    again = ir_model.load(path)
    assert {key: facts.sparsity(value) for key, value in again.graph.initializers.items()} == {
        key: "2:4" if key == name else "" for key in model.graph.initializers
    }
    assert content_hash(again) == content_hash(model)


def test_small_constants_stay_in_the_file(tmp_path: Path) -> None:
    model = ir_model.load(saved(tmp_path, external=True))
    kinds = {type(value.const_value) for value in model.graph.initializers.values()}
    assert kinds == {ir.ExternalTensor, ir.Tensor}


def test_saving_over_the_file_that_the_weights_are_mapped_from(tmp_path: Path) -> None:
    path = saved(tmp_path, external=True)
    wanted = content_hash(ir_model.load(path))
    ir_model.save(ir_model.load(path), path, external_threshold=0)
    assert content_hash(ir_model.load(path)) == wanted
    ir_model.save(ir_model.load(path), path)
    assert content_hash(ir_model.load(path)) == wanted


def test_tensors_of_every_type_survive(tmp_path: Path) -> None:
    types = [dtype for dtype in ir.DataType if dtype not in (ir.DataType.UNDEFINED, ir.DataType.STRING)]
    constants = []
    for dtype in types:
        array = np.array([[1, 1, 1]], dtype=np.int8).astype(dtype.numpy())
        tensor = ir.Tensor(array, dtype=dtype, name=dtype.name)
        constants.append(ir.Value(name=dtype.name, type=ir.TensorType(dtype), const_value=tensor))
    text = ir.StringTensor([b"\xc3\xa9", b""], shape=ir.Shape([2]), name="text")
    constants.append(ir.Value(name="text", type=ir.TensorType(ir.DataType.STRING), const_value=text))
    model = ir.Model(
        ir.Graph([], [], nodes=[], initializers=constants, opset_imports={"": 26}, name="g"), ir_version=13
    )
    path = ir_model.save(model, tmp_path / "all.onnx")
    proto = onnx.load(path)
    assert [tensor.name for tensor in proto.graph.initializer] == ["text", *(dtype.name for dtype in types)]
    again = ir.from_proto(proto)
    for dtype in types:
        value = again.graph.initializers[dtype.name].const_value
        assert value is not None and value.dtype == dtype
        np.testing.assert_array_equal(value.numpy().astype(np.complex64), [[1, 1, 1]])


def test_loading_maps_external_data_and_saving_streams_it(tmp_path: Path) -> None:
    """In a process of its own: 400 MB of weights, and neither loading, cloning nor saving them takes 100 MB."""
    path = builders.write_large(tmp_path / "large.onnx", gigabytes=0.4, width=2048)
    script = (
        "import resource, sys; from graphopt.ir import model as m; from pathlib import Path\n"
        "import onnx, graphopt.ir.hash as h\n"
        "def anonymous():\n"
        "    lines = open('/proc/self/status').read().splitlines()\n"
        "    return next(int(line.split()[1]) for line in lines if line.startswith('RssAnon')) // 1024\n"
        f"path = Path({str(path)!r}); before = anonymous()\n"
        "model = m.clone(m.load(path)); h.content_hash(model); m.skeleton(model)\n"
        "m.save(model, path.with_name('copy.onnx'), external_threshold=0)\n"
        "m.save(model, path.with_name('whole.onnx'))\n"
        "print(anonymous() - before)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100
    sizes = [(tmp_path / name).stat().st_size for name in ("copy.onnx.data", "whole.onnx")]
    assert min(sizes) >= 16 * 2048 * 2048 * 4
    assert content_hash(ir_model.load(tmp_path / "whole.onnx")) == content_hash(ir_model.load(path))


def test_more_than_two_gigabytes_in_one_file_are_refused(tmp_path: Path) -> None:
    array = np.broadcast_to(np.float32(0), (1 << 29, 2))
    value = ir.Value(name="w", type=ir.TensorType(ir.DataType.FLOAT), const_value=ir.Tensor(array, name="w"))
    graph = ir.Graph([], [], nodes=[], initializers=[value], opset_imports={"": 26}, name="g")
    with pytest.raises(BundleError, match=r"has 4\.3 GB, but an ONNX file ends at 2 GiB"):
        ir_model.save(ir.Model(graph, ir_version=13), tmp_path / "m.onnx", external_threshold=1 << 40)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_save_leaves_the_old_file(tmp_path: Path) -> None:
    path = saved(tmp_path)
    before = path.read_bytes()

    class Broken(ir.Tensor):
        def tofile(self, file: object) -> None:
            raise OSError(28, "No space left on device")

    model = ir_model.load(path)
    value = next(iter(model.graph.initializers.values()))
    assert value.const_value is not None
    value.const_value = Broken(value.const_value.numpy(), name=value.name)
    with pytest.raises(BundleError, match=r"cannot write .*net\.onnx: No space left on device"):
        ir_model.save(model, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleError, match=r"cannot write .*another place|cannot write"):
        ir_model.save(ir_model.from_proto(builders.mlp()), tmp_path / "file" / "m.onnx")


def test_clone_shares_weights_and_nothing_else() -> None:
    model = ir_model.from_proto(builders.branch_and_loop())
    copy = ir_model.clone(model)
    assert content_hash(copy) == content_hash(model)
    name, value = next(iter(model.graph.initializers.items()))
    assert copy.graph.initializers[name].const_value is value.const_value
    assert copy.graph.initializers[name] is not value
    copy.graph.inputs[0].dtype = ir.DataType.DOUBLE
    assert model.graph.inputs[0].dtype == ir.DataType.FLOAT
    mine, theirs = set(model.graph.all_nodes()), set(copy.graph.all_nodes())
    assert not mine & theirs and len(mine) == len(theirs)
    for node in theirs:
        for read in node.inputs:
            assert read is None or read.producer() is None or read.producer() in theirs


def test_op_counts_and_nbytes() -> None:
    model = ir_model.from_proto(builders.branch_and_loop())
    assert ir_model.op_counts(model) == {
        "Add": 2, "Constant": 2, "Mul": 3, "Identity": 1, "If": 1, "Loop": 1,
    }  # fmt: skip
    assert list(ir_model.op_counts(model))[0] == "Mul"
    assert ir_model.nbytes(model) == 3 * 4


def test_the_skeleton_holds_names_and_types_but_no_weights() -> None:
    model = ir_model.from_proto(builders.conv_net(channels=32))
    before = content_hash(model)
    proto, left_out = ir_model.skeleton(model)
    assert len(proto.SerializeToString()) < 20_000 < ir_model.nbytes(model)
    assert {value.name for value in proto.graph.input} == {"x", *left_out}
    assert {t.name for t in proto.graph.initializer} | left_out == set(model.graph.initializers)
    assert content_hash(model) == before and [value.name for value in model.graph.inputs] == ["x"]
    onnx.shape_inference.infer_shapes(proto, strict_mode=True, check_type=True)


# --- What can be wrong with a file ------------------------------------------------------------------------------


def test_no_such_file_lists_models_beside_it(tmp_path: Path) -> None:
    saved(tmp_path)
    with pytest.raises(ModelError, match=r"there is no file .*nets\.onnx") as caught:
        ir_model.load(tmp_path / "nets.onnx")
    assert caught.value.hint == "models in that folder: net.onnx"


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is a folder, not a model"):
        ir_model.load(tmp_path)


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"")
    with pytest.raises(ModelError, match=r"m\.onnx is empty"):
        ir_model.load(tmp_path / "m.onnx")


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"hello, world, this is text", "is not an ONNX model"),
        (b"PK\x03\x04rest", "it is a zip archive"),
        (b"version https://git-lfs.github.com/spec/v1", "it is a Git LFS pointer"),
        (b"\x80\x04\x95pickle", "it is a Python pickle"),
        (b"<!DOCTYPE html>", "it is a web page"),
        (b"\x08\x0a", "is not an ONNX model"),
    ],
)
def test_a_file_of_another_kind(tmp_path: Path, content: bytes, what: str) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(ModelError, match=what):
        ir_model.load(tmp_path / "m.onnx")


def test_a_truncated_file(tmp_path: Path) -> None:
    path = saved(tmp_path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"net\.onnx is damaged or cut off: its [\d,]+ bytes"):
        ir_model.load(path)


def test_text_that_cannot_be_parsed(tmp_path: Path) -> None:
    (tmp_path / "m.onnxtxt").write_text("g (float[2] x) => (float[2] y) { y = }")
    with pytest.raises(ModelError, match="is not ONNX in the format of its suffix '.onnxtxt'"):
        ir_model.load(tmp_path / "m.onnxtxt")


def test_text_is_loaded(tmp_path: Path) -> None:
    text = '<ir_version: 10, opset_import: ["" : 21]> g (float[2] x) => (float[2] y) { y = Relu(x) }'
    (tmp_path / "m.onnxtxt").write_text(text)
    assert [node.op_type for node in ir_model.load(tmp_path / "m.onnxtxt").graph] == ["Relu"]


def external(tmp_path: Path, location: str, *, length: int = 64, offset: int = 0) -> Path:
    tensor = TensorProto(name="w", data_type=1, dims=[4, 4], data_location=TensorProto.EXTERNAL)
    for key, content in (("location", location), ("offset", str(offset)), ("length", str(length))):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, content
    x, y = (helper.make_tensor_value_info(name, 1, [4, 4]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", [x], [y], [tensor])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    folder = tmp_path / "model"
    folder.mkdir(exist_ok=True)
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    return folder / "m.onnx"


def test_external_data_that_are_missing(tmp_path: Path) -> None:
    path = external(tmp_path, "w.bin")
    with pytest.raises(
        ModelError, match=r"the data of tensor 'w' are in 'w\.bin', which is missing"
    ) as caught:
        ir_model.load(path)
    assert caught.value.hint == "copy w.bin into that folder: the weights are a file of their own"


def test_external_data_that_are_cut_off(tmp_path: Path) -> None:
    path = external(tmp_path, "w.bin", offset=32)
    (path.parent / "w.bin").write_bytes(bytes(64))
    with pytest.raises(ModelError, match=r"'w' end at byte 96 of 'w\.bin', but that file has 64 bytes"):
        ir_model.load(path)


def test_external_data_of_the_wrong_length(tmp_path: Path) -> None:
    path = external(tmp_path, "w.bin", length=60)
    (path.parent / "w.bin").write_bytes(bytes(64))
    with pytest.raises(ModelError, match=r"'w' have 60 bytes by the model, but its shape and type need 64"):
        ir_model.load(path)


@pytest.mark.parametrize("location", ["../w.bin", "a/../../w.bin", "/etc/passwd"])
def test_external_data_outside_the_folder(tmp_path: Path, location: str) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(64))
    with pytest.raises(
        ModelError, match=r"the data of tensor 'w' would be read from .*, outside the model's folder"
    ):
        ir_model.load(external(tmp_path, location))


def test_a_link_to_external_data_outside_the_folder(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(64))
    path = external(tmp_path, "w.bin")
    (path.parent / "w.bin").symlink_to(tmp_path / "w.bin")
    with pytest.raises(ModelError, match=r"a link to .* outside the model's folder"):
        ir_model.load(path)
    (path.parent / "w.bin").unlink()
    os.link(tmp_path / "w.bin", path.parent / "w.bin")
    with pytest.raises(ModelError, match="has several hard links"):
        ir_model.load(path)


def test_a_link_to_the_model_itself(tmp_path: Path) -> None:
    path = external(tmp_path, "w.bin")
    (path.parent / "w.bin").write_bytes(np.arange(16, dtype=np.float32).tobytes())
    (tmp_path / "link.onnx").symlink_to(path)
    tensor = ir_model.load(tmp_path / "link.onnx").graph.initializers["w"].const_value
    assert tensor is not None and tensor.numpy()[3, 3] == 15


def bad(nodes: list[onnx.NodeProto], weights: list[onnx.TensorProto]) -> onnx.ModelProto:
    x, y = (helper.make_tensor_value_info(name, 1, [2]) for name in "xy")
    graph = helper.make_graph(nodes, "g", [x], [y], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


WEIGHT = helper.make_tensor("w", 1, [2], [1.0, 2.0])


@pytest.mark.parametrize(
    ("nodes", "weights", "message"),
    [
        (
            [
                helper.make_node("Relu", ["x"], ["y"], "first"),
                helper.make_node("Neg", ["x"], ["y"], "second"),
            ],
            [],
            r"the name 'y' is defined twice, by node 'first' \(Relu\) and by node 'second' \(Neg\)",
        ),
        (
            [helper.make_node("Relu", ["x"], ["x"], "n")],
            [],
            r"the name 'x' is defined twice, by an input and by",
        ),
        (
            [helper.make_node("Add", ["x", "w"], ["y"])],
            [WEIGHT, WEIGHT],
            r"the name 'w' is defined twice, by an initializer and by an initializer",
        ),
        (
            [helper.make_node("Relu", ["x"], ["y"])],
            [helper.make_tensor("", 1, [1], [1.0])],
            "an initializer has no name",
        ),
    ],
)
def test_names_defined_twice(
    nodes: list[onnx.NodeProto], weights: list[onnx.TensorProto], message: str
) -> None:
    with pytest.raises(InvalidGraphError, match=message):
        ir_model.from_proto(bad(nodes, weights))


def test_a_tensor_with_too_few_bytes() -> None:
    tensor = TensorProto(name="w", data_type=1, dims=[2], raw_data=b"\0\0\0\0")
    with pytest.raises(ModelError, match="the tensor 'w' is damaged"):
        ir_model.from_proto(bad([helper.make_node("Add", ["x", "w"], ["y"])], [tensor]))


def test_sparse_initializers_become_dense() -> None:
    proto = bad([helper.make_node("Add", ["x", "w"], ["y"])], [])
    proto.graph.sparse_initializer.append(
        helper.make_sparse_tensor(
            helper.make_tensor("w", 1, [1], [5.0]), numpy_helper.from_array(np.array([1]), "i"), [2]
        )
    )
    tensor = ir_model.from_proto(proto).graph.initializers["w"].const_value
    assert tensor is not None and tensor.numpy().tolist() == [0, 5]


def test_a_huge_sparse_initializer_is_refused() -> None:
    proto = bad([helper.make_node("Add", ["x", "w"], ["y"])], [])
    values = helper.make_tensor("w", 1, [1], [5.0])
    indices = numpy_helper.from_array(np.array([1]), "i")
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [1 << 20, 1 << 20]))
    with pytest.raises(UnsupportedModelError, match=r"the sparse tensor 'w' of shape \[1048576, 1048576\]"):
        ir_model.from_proto(proto)


def test_attributes_without_a_type_as_files_of_version_1_have_them() -> None:
    proto = bad([helper.make_node("LeakyRelu", ["x"], ["y"], alpha=0.5)], [])
    proto.graph.node[0].attribute[0].ClearField("type")
    (node,) = ir_model.from_proto(proto).graph
    assert node.attributes["alpha"].as_float() == 0.5


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_pages_of_mapped_weights_are_released(tmp_path: Path) -> None:
    path = builders.write_large(tmp_path / "large.onnx", gigabytes=0.1)
    model = ir_model.load(path)
    (before, *_) = sums = [
        int(tensor.numpy().view(np.uint8).sum()) for tensor in ir_model.external_tensors(model)
    ]
    mapped = file_pages()
    ir_model.release_pages(model)
    assert before and file_pages() < mapped - 0.9 * ir_model.nbytes(model)
    assert [int(tensor.numpy().view(np.uint8).sum()) for tensor in ir_model.external_tensors(model)] == sums


def file_pages() -> int:
    """Bytes of files that are mapped and in memory."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssFile"))
