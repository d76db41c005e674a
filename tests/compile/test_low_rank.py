"""Layers as two products, end to end: within the budget or not at all, smaller, told layer by layer."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

import graphopt
from graphopt.data.dataset import Dataset
from graphopt.data.interface import inputs_of
from graphopt.errors import UsageError, VerificationError
from graphopt.ir import facts, shapes
from graphopt.lossy import Context
from graphopt.machine import Kernel
from graphopt.models import builders
from graphopt.passes.low_rank import LowRank, LowRankOptions
from graphopt.prune import costs
from graphopt.testing import model_from_text
from graphopt.verify.evaluation import Evaluation
from graphopt.verify.metrics import find_metric
from graphopt.verify.session import Session

WIDTH, RANK, BATCH = 384, 24, 32
QUICK: dict[str, Any] = {"threads": 1, "tune": "40s", "target": "ort-cpu", "max_drop": 0.1}


def of_low_rank(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """A matrix of a low rank with a little noise on it."""
    low = rng.standard_normal((rows, RANK)) @ rng.standard_normal((RANK, columns)) / np.sqrt(RANK * rows)
    return np.asarray(low + 0.02 * rng.standard_normal((rows, columns)) / np.sqrt(rows), np.float32)


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    proto = builders.mlp(width=WIDTH, layers=3)
    rng = np.random.default_rng(0)
    for weight in proto.graph.initializer:
        if list(weight.dims) == [WIDTH, WIDTH]:
            weight.CopyFrom(numpy_helper.from_array(of_low_rank(rng, WIDTH, WIDTH), weight.name))
    path = tmp_path_factory.mktemp("net") / "net.onnx"
    onnx.save(proto, path)
    return path


def samples(count: int, seed: int = 0, batch: int = BATCH) -> Iterator[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    for _ in range(count):
        yield {"x": rng.standard_normal((batch, WIDTH)).astype(np.float32)}


def record(compiled: graphopt.CompiledModel) -> dict[str, Any]:
    return next(entry for entry in compiled.report.as_dict()["passes"] if entry["name"] == "low-rank")


@pytest.fixture(scope="module")
def compiled(net: Path) -> graphopt.CompiledModel:
    return graphopt.compile(net, passes="fuse,low-rank{ratio=0.7}", data=samples(64), **QUICK)


def test_it_is_chosen_smaller_and_within_the_budget(
    compiled: graphopt.CompiledModel, net: Path, tmp_path: Path
) -> None:
    report = compiled.report
    assert report.chosen.startswith("low rank, ") and "multiplications gone" in report.chosen
    assert report.verification.budget is not None and report.verification.budget["drop"] <= 0.1
    assert report.size_after < 0.6 * report.size_before
    path = compiled.save(tmp_path / "net.gopt")
    page = (path / "report.html").read_text(encoding="utf-8")
    assert "low-rank for ort-cpu" in page and "ranks in multiples of" in page
    assert json.loads((path / "manifest.json").read_text())["verification"]["status"] == "verified"
    # The batch is dynamic still.
    made = graphopt.load(path).run(next(samples(1, seed=5, batch=7)))["y"]
    wanted = Session(ir.load(net)).run(next(samples(1, seed=5, batch=7)))["y"]
    assert made.shape == (7, 4) and np.square(made - wanted).sum() < 0.1 * np.square(wanted).sum()


def test_every_layer_is_told(compiled: graphopt.CompiledModel) -> None:
    details = record(compiled)["details"]
    lower = [layer for layer in details["factored"] if layer["rank"][1] < layer["rank"][0]]
    assert len(details["factored"]) == 4 and len(lower) == 3
    assert details["macs_left"] == pytest.approx(
        sum(layer["macs"][1] for layer in details["factored"])
        / sum(layer["macs"][0] for layer in details["factored"])
    )
    assert details["macs_left"] < 0.35
    for layer in lower:
        assert layer["rank"][1] % details["multiple"] == 0
        assert layer["macs"][1] == pytest.approx(layer["macs"][0] * 2 * layer["rank"][1] / WIDTH)
        assert 0 < layer["error_after"] <= layer["error_before"]
        assert layer["saved_ms"] is not None
    (rest,) = [layer for layer in details["factored"] if layer not in lower]
    # Too small to be tried, or so small that two products were measured to be no faster.
    assert "too small: 4 outputs" in rest["reason"] or "two products are no faster" in rest["reason"]


def test_without_a_share_the_budget_decides(net: Path) -> None:
    made = graphopt.compile(net, passes="fuse,low-rank", data=samples(64), **QUICK)
    tried = record(made)["details"]["tried"]
    # How many there is time for depends on the machine.
    assert tried and all(one["held"] == (one["drop"] <= 0.1) for one in tried)
    assert record(made)["details"]["macs_left"] == min(one["macs_left"] for one in tried if one["held"])


def test_a_share_of_the_whole_model(net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Measured times of kernels as small as these are noise: by them any rank may look best. Without, steps are even.
    monkeypatch.setattr(costs, "times", lambda *given: {})
    made = graphopt.compile(net, passes="fuse,low-rank{macs=0.5}", data=samples(64), **QUICK)
    # Ranks come in steps, so a little more goes.
    assert 0.4 < record(made)["details"]["macs_left"] <= 0.5


def test_after_pruning_and_before_quantizing(net: Path) -> None:
    made = graphopt.compile(
        net, passes="fuse,prune{ratio=0.1,samples=16},low-rank{ratio=0.5},quantize{cache=none}",
        data=samples(64), **{**QUICK, "max_drop": 0.9},
    )  # fmt: skip
    labels = [form.label for form in made.report.forms]
    assert any(
        label.startswith("pruned") and ", low rank" in label and "int8" in label for label in labels
    ), labels


def test_a_budget_that_is_not_kept_is_an_error_with_what_came_nearest(net: Path) -> None:
    with pytest.raises(VerificationError, match="cannot be kept.*low rank.*over the budget"):
        graphopt.compile(
            net, passes="fuse,low-rank{ratio=0.8}", data=samples(64), **{**QUICK, "max_drop": 0.0}
        )


def test_layers_can_be_kept(net: Path, compiled: graphopt.CompiledModel) -> None:
    first = record(compiled)["details"]["factored"][0]["node"]
    made = graphopt.compile(
        net, passes=f'fuse,low-rank{{ratio=0.5,keep=["{first}", nothing]}}', data=samples(64),
        best_effort=True, **QUICK,
    )  # fmt: skip
    rows = record(made)["details"]["factored"]
    assert rows[0]["rank"] == [WIDTH, WIDTH] and rows[0]["reason"] == "the option 'keep' names it"
    assert any("names no layer: 'nothing'" in text for text in made.report.warnings)


def test_little_data_is_said(net: Path) -> None:
    made = graphopt.compile(
        net, passes="fuse,low-rank{ratio=0.5,samples=2}", data=samples(16), best_effort=True, **QUICK
    )
    assert any(
        "cut off by their weights alone" in text and "too few" in text for text in made.report.warnings
    )
    rows = [row for row in record(made)["details"]["factored"] if row["rank"][1] < row["rank"][0]]
    assert rows and all(row["error_before"] == row["error_after"] for row in rows)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("ratio=1.5", "the ratio of low-rank is 1.5"),
        ("ratio=-0.1", "the ratio of low-rank is -0.1"),
        ("macs=1", "the macs of low-rank is 1"),
        ("ratio=0.1,macs=0.1", "of layers that can become two products, or of all"),
        ("samples=0", "0 is no number of samples"),
        ("multiple=-1", "-1 is no rank"),
    ],
)
def test_options_that_make_no_sense(net: Path, options: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        graphopt.compile(net, passes=f"fuse,low-rank{{{options}}}", data=samples(8), **QUICK)


# --- The pass alone, on a target that cannot run here --------------------------------------------------------------


def context_of(model: ir.Model, count: int = 40, drop: float = 0.5, **given: Any) -> Context:
    rng = np.random.default_rng(1)
    shape = [size if isinstance(size, int) else 2 for size in model.graph.inputs[0].shape or ()]
    data = [{"x": rng.standard_normal(shape).astype(np.float32)} for _ in range(count)]
    session = Session(model)
    evaluation = Evaluation(
        data[:8], [session.run(feeds) for feeds in data[:8]], [{} for _ in data[:8]], find_metric(None), drop
    )
    return Context(
        Dataset(data, inputs_of(model)), evaluation, "elsewhere", None, lambda graph, label: [],
        runnable=False, threads=1, width=4, **given,
    )  # fmt: skip


def filled(text: str) -> ir.Model:
    rng = np.random.default_rng(0)
    model = model_from_text(text)
    for value in model.graph.initializers.values():
        shape = [int(size) for size in value.shape]  # type: ignore[union-attr]
        if value.dtype == ir.DataType.FLOAT:
            array = rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]) or 1)
            value.const_value = ir.tensor(array.astype(np.float32), name=value.name)
    shapes.infer(model)
    return model


DEEP = filled(
    "g (float[N,16,6,6] x) => (float[N,32,6,6] y) <float[32,16,3,3] w = {0}, float[32] b = {0}, float[32,32,1,1] v = {0}, "
    "float[32,1,3,3] d = {0}> { p = Conv <pads=[1,1,1,1]> (x, w, b) q = Relu(p) r = Conv <group=32, pads=[1,1,1,1]> (q, d) "
    "y = Conv(r, v) }"
)


def test_layers_that_had_no_time_have_it_on_the_next_target() -> None:
    shared: dict[Any, Any] = {}
    options = LowRankOptions(ratio=0.4)
    late = context_of(DEEP, drop=0.9, deadline=time.monotonic() - 1.0, shared=shared)
    first = LowRank(options).propose(DEEP, late)
    assert not first.candidates
    assert "no time was left" in {row["reason"] for row in first.details["factored"]}
    second = LowRank(options).propose(DEEP, context_of(DEEP, drop=0.9, shared=shared))
    assert second.candidates
    assert "no time was left" not in {row["reason"] for row in second.details["factored"]}


def test_convolutions_without_a_target_that_runs() -> None:
    proposal = LowRank(LowRankOptions(ratio=0.4)).propose(DEEP, context_of(DEEP, drop=0.9))
    (candidate,) = proposal.candidates
    names = {node.name: node for node in candidate.model.graph}
    split = [name for name in names if f"{name}/low_rank" in names]
    assert split and len(names) == 4 + len(split)
    assert all(facts.attribute(names[name], "kernel_shape") == (1, 1) for name in split)
    rows = {row["node"]: row for row in proposal.details["factored"]}
    assert [row["saved_ms"] for row in rows.values()] == [None] * 3
    assert sum("in groups" in row["reason"] for row in rows.values()) == 1
    assert all(rows[name]["error_refitted"] is not None for name in split)
    macs = np.asarray([row["macs"] for row in rows.values() if "groups" not in row["reason"]]).sum(axis=0)
    assert macs[1] <= 0.6 * macs[0]


def test_what_is_over_the_budget_is_the_best_effort() -> None:
    alone = LowRank(LowRankOptions(ratio=0.7)).propose(DEEP, context_of(DEEP, drop=0.0))
    assert not alone.candidates and "over the budget" in alone.reason
    assert alone.best_effort is not None and alone.best_effort.judgement is not None
    assert not alone.best_effort.judgement.ok


def test_more_than_can_be_removed_is_told() -> None:
    proposal = LowRank(LowRankOptions(macs=0.95)).propose(DEEP, context_of(DEEP, drop=0.99))
    assert any("of the multiplications can be removed, not 95%" in text for text in proposal.warnings)


def test_bodies_of_if_are_left_alone() -> None:
    model = filled(
        "g (float[N,32] x, bool c) => (float[N,32] y) <float[32,32] w = {0}, float[32,32] v = {0}> { p = MatMul(x, w) "
        "y = If (c) <then_branch = t () => (float[N,32] s) { s = MatMul(p, v) }, else_branch = e () => (float[N,32] z) "
        "{ z = Identity(p) }> }"
    )
    model.graph.inputs[1].const_value = None
    context = context_of_if(model)
    proposal = LowRank(LowRankOptions(ratio=0.3)).propose(model, context)
    inside = [row for row in proposal.details["factored"] if row["reason"] == "it is part of a subgraph"]
    assert len(inside) == 1 and inside[0]["op"] == "MatMul"
    (candidate,) = proposal.candidates
    assert [node.op_type for node in candidate.model.graph] == ["MatMul", "MatMul", "If"]


def context_of_if(model: ir.Model) -> Context:
    rng = np.random.default_rng(1)
    data = [{"x": rng.standard_normal((8, 32)).astype(np.float32), "c": np.asarray(True)} for _ in range(24)]
    session = Session(model)
    evaluation = Evaluation(
        data[:4], [session.run(feeds) for feeds in data[:4]], [{} for _ in data[:4]], find_metric(None), 0.9
    )
    return Context(
        Dataset(data, inputs_of(model)), evaluation, "elsewhere", None, lambda graph, label: [],
        runnable=False, threads=1, width=4,
    )  # fmt: skip


def test_a_model_without_products_and_one_on_integers_say_why() -> None:
    model = filled("g (float[N,4] x) => (float[N,4] y) { y = Relu(x) }")
    proposal = LowRank(LowRankOptions(ratio=0.5)).propose(model, context_of(model))
    assert proposal.reason == "it holds no Conv, MatMul or Gemm with constant weights"
    small = filled("g (float[N,4] x) => (float[N,4] y) <float[4,4] w = {0}> { y = MatMul(x, w) }")
    proposal = LowRank(LowRankOptions(ratio=0.5, multiple=16)).propose(small, context_of(small))
    assert "none of its layers" in proposal.reason and "too small" in proposal.reason
    integer = filled(
        "g (float[N,4] x) => (float[N,4] y) { a, s, z = DynamicQuantizeLinear(x) y = DequantizeLinear(a, s, z) }"
    )
    proposal = LowRank(LowRankOptions(ratio=0.5)).propose(integer, context_of(integer))
    assert "quantized already (2 integer operators)" in proposal.reason


def clock(each: float, kernel: float) -> Callable[[ir.Model, str], list[Kernel]]:
    """A target whose kernels take so many milliseconds a thousand multiplications, and so many for being called."""

    def profile(model: ir.Model, label: str) -> list[Kernel]:
        del label
        found = []
        for node in model.graph:
            dims = facts.static_dims(node.inputs[1]) if node.op_type == "MatMul" else None
            took = 0.0 if dims is None else kernel + each * float(np.prod(dims)) / 1000
            names = tuple(value.name or "" for value in node.outputs)
            found.append(Kernel(node.name or "", node.op_type, names, milliseconds=took))
        return found

    return profile


TWO = filled(
    "g (float[N,32] x) => (float[N,64] y) <float[32,32] w = {0}, float[32,64] v = {0}> { p = MatMul(x, w) q = Relu(p) "
    "y = MatMul(q, v) }"
)


def test_what_kernels_do_not_gain_by_is_left_and_another_target_decides_anew() -> None:
    context = context_of(TWO, count=80, drop=0.99)
    pass_ = LowRank(LowRankOptions(ratio=0.5))
    # 1 ms for the smaller layer, 2 ms for the larger one: a further kernel of 0.7 ms pays for the larger one alone.
    first = pass_.propose(TWO, replace(context, runnable=True, profile=clock(1.0, 0.7)))
    rows = {row["macs"][0]: row for row in first.details["factored"]}
    small, large = rows[min(rows)], rows[max(rows)]
    assert "two products are no faster: 1.724 ms" in small["reason"] and small["saved_ms"] is None
    assert large["rank"][1] < large["rank"][0] and large["saved_ms"] > 0
    # The factors are those of before; here both are worth it.
    second = pass_.propose(TWO, replace(context, runnable=True, profile=clock(1.0, 0.0)))
    assert all("no faster" not in row["reason"] for row in second.details["factored"])
    # And here none is.
    third = pass_.propose(TWO, replace(context, runnable=True, profile=clock(0.0, 1.0)))
    assert not third.candidates and "two products are no faster" in third.reason


def test_without_time_nothing_is_done_and_it_is_said() -> None:
    proposal = LowRank(LowRankOptions(ratio=0.5)).propose(DEEP, context_of(DEEP, deadline=0.0))
    assert not proposal.candidates and "no time was left" in proposal.reason
    assert [row["reason"] for row in proposal.details["factored"]].count("no time was left") == 2


def test_layers_of_one_shape_count_as_taking_the_same_time() -> None:
    """One kernel that was measured ten times too slow does not make its layer the first to go."""
    text = " ".join(f"p{place + 1} = MatMul(p{place}, w{place})" for place in range(5))
    weights = ", ".join(f"float[32,32] w{place} = {{0}}" for place in range(5))
    body = text.replace("p0", "x").replace("p5", "y")
    model = filled(f"g (float[N,32] x) => (float[N,32] y) <{weights}> {{ {body} }}")

    def profile(graph: ir.Model, label: str) -> list[Kernel]:
        return [
            replace(kernel, milliseconds=10 * kernel.milliseconds) if kernel.outputs == ("p3",) else kernel
            for kernel in clock(1.0, 0.0)(graph, label)
        ]

    context = replace(context_of(model, count=80, drop=0.99), runnable=True, profile=profile)
    rows = LowRank(LowRankOptions(ratio=0.5)).propose(model, context).details["factored"]
    ranks = {row["node"]: row["rank"][1] for row in rows}
    without = replace(context, profile=clock(1.0, 0.0), shared={})
    assert ranks == {
        row["node"]: row["rank"][1]
        for row in LowRank(LowRankOptions(ratio=0.5)).propose(model, without).details["factored"]
    }
