"""What preparing decided comes back as it was, is done again to the bit, and nothing stale or broken is used."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.ir import check
from graphopt.ir import model as ir_model
from graphopt.ir.facts import Array
from graphopt.ir.hash import content_hash
from graphopt.quant.clipping import Rule
from graphopt.quant.decisions import Decisions, key_of
from graphopt.quant.equalize import equalize
from graphopt.quant.observe import Calibration, calibrate, data_key, graph_key
from graphopt.quant.place import Weights, tensors_to_observe
from graphopt.quant.prepare import Prepared, Step
from graphopt.quant.ranges import Range
from graphopt.quant.units import units_of
from graphopt.targets.ort.integers import kernels as ort_kernels
from graphopt.testing import model_from_text, run

KERNELS = ort_kernels(frozenset({"avx2", "avx512_vnni"}))


def net() -> ir.Model:
    """Convolutions behind an activation that is read twice, and a product: a folded factor, and ones of their own."""
    rng = np.random.default_rng(0)
    spread = np.geomspace(1, 300, 8).reshape(8, 1, 1, 1)
    model = model_from_text(
        """
        g (float[1,4,6,6] x) => (float[1,5] y)
        <float[8,4,3,3] w1 = {0}, float[6,8,1,1] w2 = {0}, float[6,6,1,1] w3 = {0}, float[216,5] w4 = {0},
         int64[2] s = {1, 216}>
        { a = Conv <pads=[1,1,1,1]> (x, w1)  b = Relu(a)  c = Conv(b, w2)  h = HardSwish(c)
          d = Conv(h, w3)  e = Add(d, h)  f = Reshape(e, s)  y = MatMul(f, w4) }
        """
    )
    weights = {
        "w1": rng.standard_normal((8, 4, 3, 3)) * spread,
        "w2": rng.standard_normal((6, 8, 1, 1)) / spread.reshape(1, 8, 1, 1),
        "w3": rng.standard_normal((6, 6, 1, 1)) * np.geomspace(1, 100, 6).reshape(1, 6, 1, 1),
        "w4": rng.standard_normal((216, 5)) * np.geomspace(1, 1000, 216).reshape(216, 1),
    }
    for name, array in weights.items():
        model.graph.initializers[name].const_value = ir.tensor(array.astype(np.float32), name=name)
    return model


def samples(count: int = 4) -> list[dict[str, Array]]:
    rng = np.random.default_rng(7)
    return [{"x": rng.standard_normal((1, 4, 6, 6)).astype(np.float32)} for _ in range(count)]


def prepared(model: ir.Model) -> Prepared:
    scaled = ir_model.clone(model)
    entries = equalize(scaled, KERNELS, samples())
    assert {entry.folded for entry in entries} == {True, False}
    names = tensors_to_observe(units_of(scaled, KERNELS)[0])
    calibration = calibrate(scaled, names, samples())
    rng = np.random.default_rng(1)
    weights = Weights(
        {"c": rng.integers(-127, 127, (6, 8, 1, 1)).astype(np.int8)},
        {"c": rng.random(6).astype(np.float32)},
        {"c": rng.random(6).astype(np.float32)},
    )
    steps = [Step("equalize", 30.5, 12.25, True), Step("round-weights", math.inf, 30.5, False)]
    rule = Rule("percentile", 99.9, (-128, 127), True)
    return Prepared(scaled, calibration, weights, entries, steps, rule, {"b": Range(-1.5, 2.0)}, "ort-cpu")


def test_it_comes_back_as_it_was(tmp_path: Path) -> None:
    model = net()
    before = content_hash(model)
    kept = prepared(model)
    Decisions(tmp_path, "a").keep(kept, 10.0)
    found = Decisions(tmp_path, "a").replayed(model, KERNELS, 10.0)
    assert found is not None and found.replayed
    assert content_hash(model) == before
    check.check(found.model)
    assert graph_key(found.model) == graph_key(kept.model) != graph_key(model)
    for sample in samples():
        np.testing.assert_array_equal(run(found.model, sample)["y"], run(kept.model, sample)["y"])
    assert (found.rule, found.own, found.steps, found.target) == (
        kept.rule, kept.own, kept.steps, kept.target
    )  # fmt: skip
    assert found.equalized == kept.equalized
    for name in ("ranges", "sizes", "samples", "method", "notes", "warnings", "groups"):
        assert getattr(found.calibration, name) == getattr(kept.calibration, name)
    for name in ("rounded", "scales", "bias"):
        arrays, wanted = getattr(found.weights, name), getattr(kept.weights, name)
        assert arrays.keys() == wanted.keys()
        for node, array in arrays.items():
            assert array.dtype == wanted[node].dtype
            np.testing.assert_array_equal(array, wanted[node])


def test_a_graph_that_nothing_was_done_to_is_the_one_that_was_given(tmp_path: Path) -> None:
    model = net()
    Decisions(tmp_path, "a").keep(Prepared(model, Calibration({"x": Range(-math.inf, 1.0)})), math.inf)
    found = Decisions(tmp_path, "a").replayed(model, KERNELS, math.inf)
    assert found is not None and found.model is model and found.rule is None
    assert found.calibration.ranges == {"x": Range(-math.inf, 1.0)}


@pytest.mark.parametrize(("then", "now", "taken"), [(10, 5, True), (10, 14, True), (10, 60, False)])
def test_with_much_more_time_it_is_prepared_anew(
    tmp_path: Path, then: float, now: float, taken: bool
) -> None:
    model = net()
    Decisions(tmp_path, "a").keep(prepared(model), then)
    assert (Decisions(tmp_path, "a").replayed(model, KERNELS, now) is not None) == taken


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04half"])
def test_a_broken_file_is_prepared_again(tmp_path: Path, content: bytes) -> None:
    model = net()
    Decisions(tmp_path, "a").keep(prepared(model), 10.0)
    (file,) = tmp_path.iterdir()
    file.write_bytes(content or file.read_bytes()[:-200])
    assert Decisions(tmp_path, "a").replayed(model, KERNELS, 10.0) is None
    Decisions(tmp_path, "a").keep(prepared(model), 10.0)
    assert Decisions(tmp_path, "a").replayed(model, KERNELS, 10.0) is not None


def test_without_a_folder_nothing_is_kept(tmp_path: Path) -> None:
    model = net()
    Decisions(None, "").keep(prepared(model), 10.0)
    assert Decisions(None, "").replayed(model, KERNELS, 10.0) is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("blocked", ["file", "missing"])
def test_a_folder_that_cannot_be_written_costs_nothing(tmp_path: Path, blocked: str) -> None:
    (tmp_path / "file").write_text("in the way")
    model = net()
    folder = tmp_path / blocked / ("deeper" if blocked == "file" else "")
    Decisions(folder, "a").keep(prepared(model), 10.0)
    assert (Decisions(folder, "a").replayed(model, KERNELS, 10.0) is None) == (blocked == "file")


def test_the_key_is_of_the_content_of_all_samples() -> None:
    def key(data: list[dict[str, Any]]) -> str:
        return key_of("graph", data_key(data))

    assert key(samples()) == key(samples())
    assert key(samples()) != key(samples(3))
    changed = samples()
    changed[-1]["x"][0, 0, 0, 0] += 1
    assert key(changed) != key(samples())
