"""Sparsity end to end: the pattern holds in what is written, within its budget or not at all, told layer by layer."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import graphopt
from graphopt import catalog
from graphopt.bundle import Outcome
from graphopt.compiler import Compilation
from graphopt.data.dataset import Dataset
from graphopt.data.interface import inputs_of
from graphopt.errors import UsageError, VerificationError
from graphopt.ir import facts, shapes
from graphopt.ir import model as ir_model
from graphopt.lossy import Candidate, Context, LossyPass, Proposal
from graphopt.models import builders
from graphopt.pipeline.spec import parse
from graphopt.proposals import Budget
from graphopt.prune.sparse import Pattern
from graphopt.prune.structure import layers_of, separate
from graphopt.request import Request
from graphopt.testing import model_from_text
from graphopt.verify.evaluation import evaluate
from graphopt.verify.metrics import find_metric

QUICK: dict[str, Any] = {"threads": 1, "tune": "20s", "target": "ort-cpu", "max_drop": 0.9}


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("net") / "net.onnx"
    onnx.save(builders.conv_net(channels=32, blocks=3, size=16), path)
    return path


def samples(count: int, seed: int = 0) -> Iterator[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    for _ in range(count):
        yield {"x": rng.standard_normal((1, 3, 16, 16)).astype(np.float32)}


def unmeasured(
    model: Path, passes: Sequence[Any], drop: float = 0.9, count: int = 24, **about: Any
) -> Outcome:
    """A compilation that hands out what the lossy passes proposed, however long it takes."""
    budget = Budget(find_metric(None), drop, seconds=20.0, **about)
    request = Request(
        model, target="ort-cpu", passes=passes, data=list(samples(count)), threads=1, time_forms=False, budget=budget
    )  # fmt: skip
    return Compilation(request).run()


def details(outcome: Outcome, name: str = "sparsify") -> dict[str, Any]:
    entry = next(entry for entry in outcome.report.as_dict()["passes"] if entry["name"] == name)
    found: dict[str, Any] = entry["details"]
    return found


def blocks(weight: np.ndarray, layer: Any, block: int) -> np.ndarray:
    """[..., block] along what a layer sums over, a convolution's channels."""
    return np.moveaxis(weight, layer.inner, -1).reshape(-1, block)


@pytest.fixture(scope="module")
def sparse(net: Path) -> Outcome:
    return unmeasured(net, parse("fuse,sparsify"))


def test_what_is_written_has_two_of_four_in_each_layer_that_may(sparse: Outcome) -> None:
    assert sparse.report.chosen.startswith("sparse 2:4")
    rows = {row["node"]: row for row in details(sparse)["sparsified"]}
    model = ir_model.load(sparse.folder / "model.onnx")
    layers = layers_of(model.graph)
    seen = 0
    for layer in layers:
        weight = facts.constant(layer.weight)
        assert weight is not None
        if weight.shape[layer.inner] % 4:
            assert np.count_nonzero(weight) == weight.size
        else:
            seen += 1
            assert (np.count_nonzero(blocks(weight, layer, 4), axis=1) <= 2).all()
            assert facts.sparsity(layer.weight) == "2:4"
    assert seen >= 4
    refused = [row for row in rows.values() if not row["criterion"]]
    assert refused and all("3 input channels are no multiple of 4" in row["reason"] for row in refused)
    assert all(row["zeros"] == 0.5 for row in rows.values() if row["criterion"])


def test_every_layer_is_told_and_what_zeros_buy(sparse: Outcome) -> None:
    found = details(sparse)
    for row in found["sparsified"]:
        if row["criterion"] == "hessian":
            assert row["error_after"] <= row["error_before"] < 1
    assert sum(row["criterion"] == "hessian" for row in found["sparsified"]) >= 4
    size = found["size"]
    assert size["deflated"] < 0.75 * size["deflated_before"] <= size["bytes"]
    assert size["bytes"] * 0.5 < size["compressed"] < 0.6 * size["bytes"]
    assert "ort-cpu has no kernels that skip zeros" in found["speed"] and "cuSPARSELt" in found["speed"]
    assert any(found["speed"] in text for text in sparse.report.warnings)


def test_the_page_and_the_terminal_show_it(sparse: Outcome) -> None:
    from graphopt.cli import _show
    from graphopt.report_html import render

    page = render(sparse.report)
    assert "sparsify for ort-cpu" in page and "compressed form of 2:4" in page and "made up for" in page
    record = next(record for record in sparse.report.passes if record.name == "sparsify")
    shown = "\n".join(_show.pass_lines(record, sparse.report))
    assert "of their weights, which deflate to" in shown and "within the budget" in shown
    json.dumps(sparse.report.as_dict(), allow_nan=True)


def proposed(net: Path, options: str = "", drop: float = 0.9, count: int = 24) -> Proposal:
    """What the pass makes of the net as it is, without a compilation around it."""
    model = ir_model.load(net)
    shapes.infer(model)
    dataset = Dataset(list(samples(count)), inputs_of(model))
    context = Context(
        dataset, evaluate(model, dataset, find_metric(None), drop), "ort-cpu", None, lambda graph, label: (),
        threads=1, deadline=time.monotonic() + 30,
    )  # fmt: skip
    (made,) = catalog.expand(parse(f"sparsify{{{options}}}"))
    assert isinstance(made, LossyPass)
    return made.propose(model, context)


def given(proposal: Proposal) -> list[dict[str, Any]]:
    return [row for row in proposal.details["sparsified"] if row["criterion"]]


def decibels(proposal: Proposal) -> float:
    return float(proposal.details["judged"][0]["decibels"])


def made_of(proposal: Proposal) -> ir.Model:
    candidate = proposal.candidates[0] if proposal.candidates else proposal.best_effort
    assert candidate is not None and candidate.wanted
    return candidate.model


@pytest.mark.parametrize(
    ("options", "kept", "block"),
    [("pattern=1:4", 1, 4), ('pattern="1:2",criterion=activation', 1, 2), ("criterion=magnitude", 2, 4)],
)
def test_other_patterns_and_criteria(net: Path, options: str, kept: int, block: int) -> None:
    proposal = proposed(net, options)
    for layer in layers_of(made_of(proposal).graph):
        weight = facts.constant(layer.weight)
        assert weight is not None
        if weight.shape[layer.inner] % block == 0:
            assert (np.count_nonzero(blocks(weight, layer, block), axis=1) <= kept).all()
            assert facts.sparsity(layer.weight) == f"{kept}:{block}"
        else:
            assert not facts.sparsity(layer.weight)
    wanted = "hessian" if "criterion" not in options else options.rpartition("=")[2]
    assert {row["criterion"] for row in given(proposal)} == {wanted}


def test_the_surgeon_loses_less_than_the_others(net: Path) -> None:
    made = {
        name: decibels(proposed(net, f"criterion={name}")) for name in ("hessian", "activation", "magnitude")
    }
    assert made["hessian"] > made["activation"] + 1 and made["hessian"] > made["magnitude"] + 1


@pytest.mark.parametrize("spread", ["measured", "uniform"])
def test_a_share_of_all_weights(net: Path, spread: str) -> None:
    proposal = proposed(net, f"pattern=unstructured,sparsity=0.6,spread={spread}")
    rows = given(proposal)
    zeros = sum(row["zeros"] * row["weights"] for row in rows)
    assert zeros / sum(row["weights"] for row in rows) == pytest.approx(0.6, abs=0.01)
    shares = {round(row["zeros"], 2) for row in rows}
    assert len(shares) > 1 if spread == "measured" else max(shares) - min(shares) <= 0.02
    assert max(shares) <= 0.81 and proposal.details["size"]["compressed"] is None


def test_measured_shares_lose_less_than_uniform_ones(net: Path) -> None:
    made = [
        decibels(proposed(net, f"pattern=unstructured,sparsity=0.5,criterion=activation,spread={spread}"))
        for spread in ("measured", "uniform")
    ]
    assert made[0] > made[1]


def test_without_a_share_the_budget_decides(net: Path) -> None:
    proposal = proposed(net, "pattern=unstructured", drop=0.05)
    judged = proposal.details["judged"]
    assert len(judged) > 2 and all(one["held"] == (one["drop"] <= 0.05) for one in judged)
    (candidate,) = proposal.candidates
    most = max(judged, key=lambda one: (one["held"], float(one["label"].split()[-2].rstrip("%"))))
    assert candidate.label == most["label"]


def test_where_the_pattern_is_over_the_budget_some_layers_get_it(net: Path) -> None:
    whole = proposed(net).details["judged"][0]["drop"]
    proposal = proposed(net, drop=whole / 2)
    rows = proposal.details["sparsified"]
    left = [row for row in rows if row["reason"] == "its zeros would break the budget"]
    assert given(proposal) and left and all(row["zeros"] == 0 for row in left)
    assert f"in {len(given(proposal))} of {len(rows)} layers" in proposal.candidates[0].label


def test_layers_can_be_kept(net: Path) -> None:
    names = [row["node"] for row in given(proposed(net))]
    proposal = proposed(net, f'keep=["{names[0]}",nothing]')
    row = next(row for row in proposal.details["sparsified"] if row["node"] == names[0])
    assert row["zeros"] == 0 and row["reason"] == "the option 'keep' names it"
    assert any("names no layer: 'nothing'" in text for text in proposal.warnings)


def test_little_data_is_said(net: Path) -> None:
    proposal = proposed(net, "samples=1")
    assert any("not chosen by hessian" in text and "too few inputs" in text for text in proposal.warnings)
    assert any(row["criterion"] == "activation" for row in given(proposal))


def test_little_memory_looks_at_the_model_without_zeros(net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from graphopt.prune import sparsifier

    walked = decibels(proposed(net))
    monkeypatch.setattr(sparsifier, "most_kept", lambda model, sizes: 1 << 60)
    proposal = proposed(net)
    assert {row["criterion"] for row in given(proposal)} == {"hessian"}
    assert decibels(proposal) > decibels(proposed(net, "criterion=activation"))
    assert abs(decibels(proposal) - walked) < 3


def test_a_budget_that_is_not_kept_is_an_error_with_what_came_nearest(net: Path) -> None:
    with pytest.raises(VerificationError, match="cannot be kept.*sparse 2:4.*: over the budget"):
        unmeasured(net, parse("fuse,sparsify"), drop=0.0)


class Recovering(LossyPass):
    """Stands for a pass that wins accuracy back: hands on what it is given, and says what that was."""

    name = "recovering"
    recovers = True

    def propose(self, model: ir.Model, context: Context) -> Proposal:
        patterns = [facts.sparsity(value) for value in model.graph.initializers.values()]
        return Proposal([Candidate("recovered", model)], {"patterns": sorted(filter(None, patterns))})


def test_what_is_over_the_budget_goes_on_to_a_pass_that_wins_it_back(net: Path) -> None:
    outcome = unmeasured(net, [*parse("fuse,sparsify"), Recovering()], drop=0.0)
    # What it hands on does not hold either, so the float form is what is left: but it got all of it, marked.
    assert not any("cannot be kept" in text for text in outcome.report.warnings)
    found = details(outcome, "recovering")
    rows = [row for row in details(outcome)["sparsified"] if row["criterion"]]
    assert found["patterns"] == ["2:4"] * len(rows) and len(rows) >= 4
    labels = [form.label for form in outcome.report.forms]
    assert any(label.endswith("zeros, recovered") for label in labels), labels
    assert not any(label.endswith("zeros") for label in labels), labels


def test_quantizing_keeps_zeros(net: Path) -> None:
    outcome = unmeasured(net, parse("fuse,sparsify,quantize{cache=none}"))
    assert "int8" in outcome.report.chosen and outcome.report.chosen.startswith("sparse 2:4")
    model = ir_model.load(outcome.folder / "model.onnx")
    seen = 0
    for node in model.graph:
        if node.op_type != "Conv":
            continue
        dequantize = node.inputs[1].producer() if node.inputs[1] is not None else None
        weight = facts.constant(dequantize.inputs[0]) if dequantize is not None else None
        if weight is None or weight.dtype != np.int8 or weight.shape[1] % 4:
            continue
        seen += 1
        assert (np.count_nonzero(np.moveaxis(weight, 1, -1).reshape(-1, 4), axis=1) <= 2).all(), node.name
    assert seen >= 2


def test_it_is_handed_out_though_it_is_no_faster(net: Path, tmp_path: Path) -> None:
    made = graphopt.compile(net, passes="fuse,sparsify", data=samples(24), **QUICK)
    form = next(form for form in made.report.forms if form.label.startswith("sparse 2:4"))
    assert form.verified and form.milliseconds is not None
    assert "as fast as" in form.note or "slower than" in form.note
    assert (made.report.chosen == form.label) == ("as fast as" in form.note)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("pattern=4:2", "keeps 4 of 2"),
        ("pattern=x", "'x' is no pattern"),
        ("pattern=unstructured,sparsity=1.5", "the sparsity of sparsify is 1.5"),
        ("pattern=unstructured,sparsity=-0.5", "the sparsity of sparsify is -0.5"),
        ("sparsity=0.5", "the pattern 2:4 says how many zeros there are"),
        ("samples=0", "0 is no number of samples"),
        ("criterion=best", "best"),
    ],
)
def test_options_that_make_no_sense(net: Path, options: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        graphopt.compile(net, passes=f"fuse,sparsify{{{options}}}", data=samples(8), **QUICK)


def test_a_model_with_nothing_to_sparsify_says_why(tmp_path: Path) -> None:
    model = model_from_text(
        "g (float[N,3,16,16] x) => (float[N,5,16,16] y) <float[5,3,1,1] w = {0}> { y = Conv(x, w) }"
    )
    weight = np.random.default_rng(0).standard_normal((5, 3, 1, 1)).astype(np.float32)
    model.graph.initializers["w"].const_value = ir.tensor(weight, name="w")
    ir.save(model, tmp_path / "m.onnx")
    made = graphopt.compile(tmp_path / "m.onnx", passes="fuse,sparsify", data=samples(8), **QUICK)
    text = next(entry for entry in made.report.as_dict()["passes"] if entry["name"] == "sparsify")["reason"]
    assert "none of its layers can have zeros as 2:4" in text and "3 input channels" in text


def test_a_quantized_model_is_left_alone(net: Path, tmp_path: Path) -> None:
    quantized = unmeasured(net, parse("fuse,quantize{cache=none}"))
    assert "int8" in quantized.report.chosen
    made = graphopt.compile(quantized.folder / "model.onnx", passes="sparsify", data=samples(12), **QUICK)
    text = next(entry for entry in made.report.as_dict()["passes"] if entry["name"] == "sparsify")["reason"]
    assert "quantized already" in text


def test_a_shared_weight_stays_shared(tmp_path: Path) -> None:
    """Two layers with one weight: zeros for both, by mean squares of what both read, stored once."""
    model = model_from_text(
        "g (float[N,3,16,16] x) => (float[N,8] y) <float[8,8] w = {0}, float[8] b = {0}, float[8,3,2,2] v = {0}> "
        "{ c = Conv<strides=[2,2]>(x, v) m = GlobalAveragePool(c) f = Flatten(m) p = Gemm(f, w, b) q = Relu(p) "
        "y = Gemm(q, w, b) }"
    )
    rng = np.random.default_rng(0)
    for name, shape in (("w", (8, 8)), ("b", (8,)), ("v", (8, 3, 2, 2))):
        content = rng.standard_normal(shape).astype(np.float32)
        model.graph.initializers[name].const_value = ir.tensor(content, name=name)
    ir.save(model, tmp_path / "m.onnx")
    outcome = unmeasured(tmp_path / "m.onnx", parse("fuse,sparsify"), best_effort=True)
    rows = [row for row in details(outcome)["sparsified"] if row["criterion"]]
    assert [row["criterion"] for row in rows] == ["activation"] * 2
    assert all("2 layers share the weight" in row["reason"] for row in rows)
    made = ir_model.load(outcome.folder / "model.onnx")
    assert sum(value.const_value.nbytes == 256 for value in made.graph.initializers.values()) == 1  # type: ignore[union-attr]


class Apart(LossyPass):
    """As the analysis of ``prune`` leaves a graph: each layer has its own copy of what it shares with others."""

    name = "apart"

    def propose(self, model: ir.Model, context: Context) -> Proposal:
        return Proposal([Candidate("apart", separate(model))])


def test_what_is_equal_in_the_end_is_stored_once(tmp_path: Path) -> None:
    model = model_from_text(
        "g (float[N,3,16,16] x) => (float[N,20] y) <float[768,20] w = {0}> "
        "{ f = Flatten(x) s = Neg(f) t = Relu(s) a = MatMul(f, w) b = MatMul(t, w) c = Relu(a) d = Relu(b) y = Add(c, d) }"
    )
    content = np.random.default_rng(0).standard_normal((768, 20)).astype(np.float32)
    model.graph.initializers["w"].const_value = ir.tensor(content, name="w")
    ir.save(model, tmp_path / "m.onnx")
    outcome = unmeasured(tmp_path / "m.onnx", [*parse("fuse"), Apart()])
    assert outcome.report.chosen == "apart"
    assert (outcome.folder / "model.onnx").stat().st_size < 1.5 * content.nbytes


def test_a_pruned_model_stores_equal_constants_once(tmp_path: Path) -> None:
    model = model_from_text(
        "g (float[N,3,16,16] x) => (float[N,10] y) <float[768] c = {0}, float[768,64] v = {0}, float[64,10] w = {0}> "
        "{ f = Flatten(x) s = Add(f, c) t = Relu(s) u = Mul(t, c) p = MatMul(u, v) q = Relu(p) y = MatMul(q, w) }"
    )
    rng = np.random.default_rng(0)
    for name, shape in (("c", (768,)), ("v", (768, 64)), ("w", (64, 10))):
        content = rng.standard_normal(shape).astype(np.float32)
        model.graph.initializers[name].const_value = ir.tensor(content, name=name)
    ir.save(model, tmp_path / "m.onnx")
    outcome = unmeasured(
        tmp_path / "m.onnx", parse("fuse{disable=[elementwise-constants]},prune{ratio=0.5}"), best_effort=True
    )
    assert outcome.report.chosen.startswith("pruned")
    made = ir_model.load(outcome.folder / "model.onnx")
    assert sum(value.const_value.nbytes == 4 * 768 for value in made.graph.initializers.values()) == 1  # type: ignore[union-attr]


def test_two_of_four_is_the_pattern_that_is_compressed() -> None:
    from graphopt.prune.sparse import compressed_2_4, expanded_2_4

    weight = np.random.default_rng(0).standard_normal((16, 64)).astype(np.float32)
    weight[Pattern(2, 4).zeros(np.square(weight))] = 0
    np.testing.assert_array_equal(expanded_2_4(*compressed_2_4(weight)), weight)
