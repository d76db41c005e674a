"""float32 constants stored as float16: half the bytes, the same kernels, and only where the numbers allow it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from graphopt import catalog
from graphopt.ir import check
from graphopt.ir import model as ir_model
from graphopt.ir.facts import Array
from graphopt.machine import Inspectable
from graphopt.quant.compact import compact
from graphopt.testing import model_from_text, run


def product(weight: Array) -> ir.Model:
    rows, columns = weight.shape
    model = model_from_text(
        f"g (float[3,{rows}] x) => (float[3,{columns}] y) <float[{rows},{columns}] w = {{0}}> {{ y = MatMul(x, w) }}"
    )
    model.graph.initializers["w"].const_value = ir.tensor(weight.astype(np.float32), name="w")
    return model


def feeds(model: ir.Model) -> dict[str, Array]:
    rows = int(model.graph.inputs[0].shape[1])  # type: ignore[index, arg-type]
    return {"x": np.random.default_rng(1).standard_normal((3, rows)).astype(np.float32)}


def test_a_large_constant_takes_half_the_bytes_and_computes_nearly_the_same() -> None:
    model = product(np.random.default_rng(0).standard_normal((64, 32)))
    small = ir_model.clone(model)
    assert compact(small) == 64 * 32 * 2
    check.check(small)
    assert [value.dtype for value in small.graph.initializers.values()] == [ir.DataType.FLOAT16]
    wanted, got = run(model, feeds(model))["y"], run(small, feeds(model))["y"]
    assert 0 < np.square(got - wanted).sum() < 1e-6 * np.square(wanted).sum()


@pytest.mark.parametrize(
    "weight",
    [
        np.full((64, 32), 1e6),
        np.random.default_rng(0).standard_normal((64, 32)) * 1e-7,
        np.random.default_rng(0).standard_normal((4, 4)),
    ],
    ids=["beyond the range", "below the normal numbers", "small"],
)
def test_a_constant_stays(weight: Array) -> None:
    model = product(weight)
    assert compact(model) == 0
    assert [value.dtype for value in model.graph.initializers.values()] == [ir.DataType.FLOAT]


def test_the_backend_runs_the_same_kernels(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    model = model_from_text(
        "g (float[1,16,12,12] x) => (float[1,32,12,12] y) <float[32,16,3,3] w = {0}> "
        "{ c = Conv <pads=[1,1,1,1]> (x, w)  y = Relu(c) }"
    )
    weight = rng.standard_normal((32, 16, 3, 3)).astype(np.float32)
    model.graph.initializers["w"].const_value = ir.tensor(weight, name="w")
    small = ir_model.clone(model)
    assert compact(small) > 0
    sample = {"x": rng.standard_normal((1, 16, 12, 12)).astype(np.float32)}
    target, runtime = catalog.target("ort-cpu"), catalog.runtime("ort-cpu")
    assert isinstance(runtime, Inspectable)
    kernels = []
    for index, graph in enumerate((model, small)):
        folder = tmp_path / str(index)
        folder.mkdir()
        config = target.emit(graph, folder, target.variants(graph, None)[0])
        found = runtime.kernels(folder, config, sample, threads=1, runs=1)
        kernels.append([kernel.op for kernel in found])
    assert kernels[0] == kernels[1]
    assert "Cast" not in kernels[1]
