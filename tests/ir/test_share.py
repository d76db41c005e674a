"""Constants with the same content, stored once; what cse tests is tested there."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from graphopt.ir import model as ir_model
from graphopt.ir.share import share_constants
from graphopt.testing import assert_same_numbers, model_from_text

TEXT = """
g (float[N,4] x) => (float[N,4] y) <float[4,4] v = {0}, float[4,4] w = {0}, float[4] b = {1,2,3,4}, float[4] c = {1,2,3,4}>
{ p = MatMul(x, v) q = Add(p, b) r = MatMul(q, w) y = Add(r, c) }
"""


def twins() -> ir.Model:
    model = model_from_text(TEXT)
    for name in ("v", "w"):
        content = np.arange(16, dtype=np.float32).reshape(4, 4)
        model.graph.initializers[name].const_value = ir.tensor(content, name=name)
    return model


def test_limits_of_size() -> None:
    for least, most, left in (
        (0, 0, ["v", "b"]),
        (32, 0, ["v", "b", "c"]),
        (0, 32, ["v", "w", "b"]),
        (65, 0, 4),
    ):
        model = twins()
        gone = share_constants(model, least_bytes=least, most_bytes=most)
        names = list(model.graph.initializers)
        assert names == left if isinstance(left, list) else len(names) == left
        assert gone == 4 - len(names)
        assert_same_numbers(twins(), model, exact=True)


def test_what_may_not_go_stays() -> None:
    model = twins()
    assert share_constants(model, lambda name: name != "w") == 1
    assert list(model.graph.initializers) == ["v", "w", "b"]


def test_external_data_are_not_loaded(tmp_path: Path) -> None:
    size = 4_000_000
    content = np.random.default_rng(0).standard_normal(size).astype(np.float32)
    other = content.copy()
    other[size // 3] += 1
    proto = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 21]> g (float[{size}] x) => (float[{size}] y) '
        "{ a = Add(x, u) b = Add(a, v) y = Add(b, w) }"
    )
    for name, array in (("u", content), ("v", other), ("w", content)):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    model = ir_model.load(tmp_path / "m.onnx")
    tracemalloc.start()
    try:
        assert share_constants(model) == 1
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
    assert list(model.graph.initializers) == ["u", "v"]
