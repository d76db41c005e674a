"""Calibration: what is observed, in how much memory, after an interruption, and on whose data."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.data.interface import Feeds
from graphopt.errors import DataError, UsageError
from graphopt.ir import model as ir_model
from graphopt.quant import observe as module
from graphopt.quant.clipping import Rule
from graphopt.quant.observe import MEMORY, Observed, Taps, activation_bytes, calibrate, observe, parse_memory
from graphopt.testing import model_from_text, run

NET = """
g (float[n,4] x, float[n,4] z, int64[n] ids) => (float[n,4] y, float[n,4] unread)
<float[4,4] w = {1,-2,3,-4,2,3,-1,1,-3,1,2,4,1,1,-1,2}, float[2,4] table = {1,2,3,4,5,6,7,8}>
{
  a = MatMul(x, w)
  b = Relu(a)
  c = Add(b, z)
  e = Gather(table, ids)
  d = Add(c, e)
  y = Tanh(d)
  unread = Exp(z)
}
"""
NAMES = ("x", "a", "b", "c", "d")


@pytest.fixture
def net() -> ir.Model:
    return model_from_text(NET)


def sample(index: int, rows: int = 3) -> Feeds:
    rng = np.random.default_rng(index)
    floats = {name: rng.standard_normal((rows, 4)).astype(np.float32) for name in ("x", "z")}
    return {**floats, "ids": rng.integers(0, 2, rows)}


DATA = [sample(index, 2 + index % 3) for index in range(7)]


def same(first: Observed, second: Observed) -> bool:
    """Whether both saw the same numbers."""
    pairs = [(first.histograms[name], second.histograms[name]) for name in NAMES]
    return all(
        (a.low, a.high, a.elements, a.zeros, a.largest) == (b.low, b.high, b.elements, b.zeros, b.largest)
        and np.array_equal(a.counts, b.counts)
        for a, b in pairs
    )


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A cache that takes in what took no time as well."""
    monkeypatch.setattr(module, "_WORTH_KEEPING", 0.0)
    return tmp_path / "cache"


def test_ranges_are_those_of_the_tensors(net: ir.Model) -> None:
    found = calibrate(net, NAMES, DATA)
    copy = ir_model.clone(net)
    values = {value.name: value for node in copy.graph for value in node.outputs}
    copy.graph.outputs.extend([values[name] for name in NAMES if name != "x"])
    outputs = [{**run(copy, feeds), "x": feeds["x"]} for feeds in DATA]
    for name in NAMES:
        arrays = [output[name] for output in outputs]
        assert found.ranges[name].low == pytest.approx(min(array.min() for array in arrays), rel=1e-6)
        assert found.ranges[name].high == pytest.approx(max(array.max() for array in arrays), rel=1e-6)
        assert found.sizes[name] == max(array.size for array in arrays)
    assert found.samples == 7 and found.method == "minmax" and not found.warnings


def test_an_input_with_a_default_may_be_left_out() -> None:
    net = model_from_text("g (float[2] x) => (float[2] y) { y = Relu(x) }")
    default = ir.Value(name="b", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([2]))
    default.const_value = ir.tensor(np.array([3.0, 4.0], np.float32), name="b")
    net.graph.inputs.append(default)
    net.graph.initializers["b"] = default
    found = calibrate(net, ["b", "y"], [{"x": np.ones(2, np.float32)}])
    assert (found.ranges["b"].low, found.ranges["b"].high) == (3, 4)


def test_tensors_take_turns_where_memory_is_short(net: ir.Model) -> None:
    whole = observe(net, NAMES, DATA)
    # 40 % of this holds two tensors of the largest sample, 4 rows of 4 numbers.
    parts = observe(net, NAMES, DATA, memory=int(2.1 * 64 / 0.4))
    assert (whole.groups, parts.groups) == (1, 3)
    assert same(whole, parts)


def test_sizes_are_those_of_the_sample(net: ir.Model) -> None:
    assert activation_bytes(net, ["x", "a", "d"], sample(0, 5)) == {"x": 80, "a": 80, "d": 80}


def test_what_does_not_lead_to_the_tensors_is_not_run(net: ir.Model) -> None:
    """Row 9 of the table does not exist, which only ``e`` would notice."""
    feeds = {**sample(0), "ids": np.full(3, 9)}
    assert {name for name, _ in Taps(net, ["x", "b"]).run(feeds)} == {"x", "b"}
    assert [output.name for output in net.graph.outputs] == ["y", "unread"]


class Interrupted:
    """Samples of which reading stops once, at one of them."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.reads = 0

    def __iter__(self) -> Iterator[Feeds]:
        self.reads += 1
        for index, feeds in enumerate(DATA):
            if self.reads == 2 and index == self.at:
                raise KeyboardInterrupt
            yield feeds


@pytest.mark.parametrize("memory", [MEMORY, int(2.1 * 64 / 0.4)])
@pytest.mark.parametrize("at", [0, 1, 6])
def test_an_interrupted_calibration_goes_on(net: ir.Model, kept: Path, at: int, memory: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        observe(net, NAMES, Interrupted(at), memory=memory, cache=kept)
    again = observe(net, NAMES, DATA, memory=memory, cache=kept)
    assert same(again, observe(net, NAMES, DATA))
    assert any(f"stopped after {at} of 7 samples" in note for note in again.notes) == (at > 0)


def test_an_interruption_in_the_middle_of_a_sample_counts_nothing_twice(
    net: ir.Model, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add, calls = module.Histogram.add, 0

    def stopping(self: Any, array: Any) -> None:
        nonlocal calls
        calls += 1
        add(self, array)
        if calls == 13:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module.Histogram, "add", stopping)
        with pytest.raises(KeyboardInterrupt):
            observe(net, NAMES, DATA, cache=kept)
    assert same(observe(net, NAMES, DATA, cache=kept), observe(net, NAMES, DATA))


def test_a_second_calibration_runs_nothing(
    net: ir.Model, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = observe(net, NAMES, DATA, cache=kept)
    with monkeypatch.context() as patch:
        patch.setattr(module, "Session", None)
        second = observe(net, NAMES, DATA, cache=kept)
        # Any rule, and any of the tensors.
        assert observe(net, NAMES[:2], DATA, cache=kept).calibration(Rule("mse")).samples == 7
    assert same(first, second) and "earlier run" in second.notes[0]


def test_other_data_or_another_graph_is_observed_anew(net: ir.Model, kept: Path) -> None:
    observe(net, NAMES, DATA, cache=kept)
    other = [*DATA[:-1], {**DATA[-1], "x": DATA[-1]["x"] * 2}]
    assert same(observe(net, NAMES, other, cache=kept), observe(net, NAMES, other))
    # The same computation, but names that stand for other tensors.
    renamed = ir_model.clone(net)
    values = {value.name: value for node in renamed.graph for value in node.outputs}
    values["a"].name, values["b"].name, values["a"].name = "t", "a", "b"
    assert same(observe(renamed, NAMES, DATA, cache=kept), observe(renamed, NAMES, DATA))
    assert len(list(kept.glob("*.npz"))) == 3


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no archive", b"nothing"])
def test_a_damaged_file_is_observed_anew(net: ir.Model, kept: Path, content: bytes) -> None:
    first = observe(net, NAMES, DATA, cache=kept)
    (file,) = kept.glob("*")
    file.write_bytes(content)
    assert same(observe(net, NAMES, DATA, cache=kept), first)
    file.write_bytes(file.read_bytes()[:-20])
    assert same(observe(net, NAMES, DATA, cache=kept), first)


def test_a_folder_that_cannot_be_written_is_told(net: ir.Model, kept: Path) -> None:
    kept.write_text("a file")
    assert "cannot be kept" in observe(net, NAMES, DATA, cache=kept).notes[0]


def test_progress_says_which_sample_of_how_many_and_how_long(net: ir.Model) -> None:
    said: list[str] = []
    observe(net, NAMES, DATA, progress=said.append)
    assert any(text.startswith("sample 3 of 7, ") and text.endswith(" left") for text in said)
    assert said[-1] == "sample 7 of 7"
    said.clear()
    observe(net, NAMES, DATA, memory=int(2.1 * 64 / 0.4), progress=said.append)
    assert any(text.startswith("part 2 of 3, sample 3 of 7, ") for text in said)


def test_no_samples(net: ir.Model) -> None:
    with pytest.raises(DataError, match="no sample to calibrate on"):
        calibrate(net, NAMES, [])


def test_suspicious_data_are_told(net: ir.Model) -> None:
    still = {**sample(0), "z": np.full((3, 4), 0.5, np.float32)}
    found = calibrate(net, NAMES, [still, still])
    assert found.warnings == (
        "all 2 samples of the calibration data are the same",
        "the input 'z' is 0.5 throughout the calibration data",
    )
    changing = [{**sample(index), "z": np.full((3, 4), index, np.float32)} for index in range(2)]
    assert calibrate(net, NAMES, changing).warnings == ()


def test_too_few_elements_are_told(net: ir.Model) -> None:
    found = calibrate(net, NAMES, DATA, rule=Rule("percentile", 99.9))
    assert "5 of 5 tensors have too few elements for percentile 99.9" in found.notes[0]
    assert found.method == "percentile 99.9"
    assert found.ranges == calibrate(net, NAMES, DATA).ranges
    assert not calibrate(net, NAMES, DATA, rule=Rule("percentile", 80)).notes


def test_values_that_are_not_finite_or_zero_have_no_range() -> None:
    net = model_from_text("""
    g (float[2] x) => (float[2] y) {
      a = Log(x)
      b = Sqrt(x)
      c = Sub(x, x)
      d = Add(a, b)
      y = Add(d, c)
    }""")
    found = calibrate(net, ["a", "b", "c"], [{"x": np.array([0, -1], np.float32)}])
    assert "not finite" in found.ranges["a"].why_not and "not finite" in found.ranges["b"].why_not
    assert "zero throughout" in found.ranges["c"].why_not


@pytest.mark.parametrize(
    ("given", "size"),
    [
        (None, MEMORY),
        ("512M", 512_000_000),
        ("2G", 2_000_000_000),
        ("1.5GiB", 3 << 29),
        ("64000000", 64_000_000),
        (10**9, 10**9),
        ("1gb", 10**9),
    ],
)
def test_sizes_for_people(given: str | int | None, size: int) -> None:
    assert parse_memory(given) == size


@pytest.mark.parametrize(
    ("given", "message"),
    [("two", "cannot read"), ("-1G", "cannot read"), ("1M", "too little"), ("", "cannot read")],
)
def test_sizes_that_are_none(given: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_memory(given)


def test_samples_are_passed_over_where_they_would_take_too_long(
    net: ir.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = [sample(index) for index in range(100)]
    assert observe(net, NAMES, many, seconds=60.0).samples == 100
    # Each sample counts as a second.
    ticks = iter(range(10_000))
    monkeypatch.setattr(module.time, "monotonic", lambda: float(next(ticks)))
    short = observe(net, NAMES, many, seconds=20.0)
    assert 8 <= short.samples <= 20
    assert "samples were looked at" in short.notes[0]
    assert observe(net, NAMES, many, seconds=1e-3).samples >= 8
