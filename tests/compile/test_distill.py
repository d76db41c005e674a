"""Distillation end to end: what pruning lost is won back within the budget, and the report says how."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import graphopt
from graphopt import catalog
from graphopt.errors import MissingExtraError, UsageError, VerificationError
from graphopt.lossy import Candidate, Judgement, LossyPass
from graphopt.models import builders
from graphopt.pipeline.spec import parse
from graphopt.proposals import _followed
from graphopt.testing import model_from_text

pytest.importorskip("torch")

QUICK: dict[str, Any] = {"threads": 1, "tune": "8s", "target": "ort-cpu"}
TRAIN = "distill{steps=60,rate=1e-3,batch=8,cache=none}"


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("net") / "net.onnx"
    onnx.save(builders.conv_net(channels=64, blocks=3, size=16), path)
    return path


def samples(count: int, seed: int = 0) -> Iterator[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    for _ in range(count):
        yield {"x": rng.standard_normal((1, 3, 16, 16)).astype(np.float32)}


def record(compiled: graphopt.CompiledModel, name: str) -> dict[str, Any]:
    return next(entry for entry in compiled.report.as_dict()["passes"] if entry["name"] == name)


@pytest.fixture(scope="module")
def lost(net: Path) -> float:
    """What a half of the channels costs without training."""
    made = graphopt.compile(
        net, passes="fuse,prune{ratio=0.5,recover=false}", data=samples(48), max_drop=0.9, **QUICK
    )
    return float(record(made, "prune")["details"]["tried"][0]["drop"])


def test_what_was_over_the_budget_is_won_back(net: Path, lost: float) -> None:
    budget = 0.7 * lost
    with pytest.raises(VerificationError, match="cannot be kept"):
        graphopt.compile(
            net, passes="fuse,prune{ratio=0.5,recover=false}", data=samples(48), max_drop=budget, **QUICK
        )
    made = graphopt.compile(
        net,
        passes=f"fuse,prune{{ratio=0.5,recover=false}},{TRAIN}",
        data=samples(48),
        max_drop=budget,
        **QUICK,
    )
    told = record(made, "distill")["details"]["distilled"]
    assert told["drop"][0] > budget >= told["drop"][1]
    assert told["steps"] == 60 and told["loss"][1] < told["loss"][0]
    labels = [form.label for form in made.report.forms]
    assert any(label.startswith("pruned") and label.endswith(", distilled") for label in labels)
    assert not any(label.startswith("pruned") and label.endswith("gone") for label in labels), (
        "it is over the budget"
    )


def test_what_cannot_be_won_back_is_an_error_that_says_how_near_it_came(net: Path) -> None:
    with pytest.raises(
        VerificationError, match=r"cannot be kept: .*over the budget: drop.*; ort-cpu: distill: "
    ):
        graphopt.compile(
            net,
            passes="fuse,prune{ratio=0.8},distill{steps=3,cache=none}",
            data=samples(24),
            max_drop=1e-6,
            **QUICK,
        )


def test_the_report_tells_of_it(net: Path, tmp_path: Path) -> None:
    made = graphopt.compile(
        net, passes=f"fuse,prune{{ratio=0.5,recover=false}},{TRAIN}", data=samples(48), max_drop=0.9, **QUICK
    )
    page = (made.save(tmp_path / "net.gopt") / "report.html").read_text(encoding="utf-8")
    manifest = json.loads((tmp_path / "net.gopt" / "manifest.json").read_text())
    assert "distill for ort-cpu" in page and "60 steps" in page
    assert manifest["verification"]["status"] == "verified"


def test_without_anything_to_win_back_it_says_so(net: Path) -> None:
    made = graphopt.compile(net, passes="fuse,distill", data=samples(12), **QUICK)
    assert "nothing to win back" in record(made, "distill")["reason"]


def test_without_pytorch_it_names_the_extra(net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtraError, match="torch is not installed"):
        graphopt.compile(net, passes="fuse,prune{ratio=0.5},distill", data=samples(12), max_drop=0.9, **QUICK)


@pytest.mark.parametrize("given", ["steps=-1", "seconds=-2", "optimizer=lion", "schedule=steep", "hidden=-1"])
def test_impossible_options_are_named(net: Path, given: str) -> None:
    with pytest.raises(UsageError, match=given.split("=")[0]):
        graphopt.compile(net, passes=f"fuse,prune,distill{{{given}}}", data=samples(4), **QUICK)


def test_a_quantized_graph_is_trained_on_its_integers(net: Path) -> None:
    made = graphopt.compile(
        net, passes="fuse,quantize{cache=none},distill{steps=60,rate=1e-4,batch=8,cache=none}",
        data=samples(48), max_drop=0.5, **QUICK,
    )  # fmt: skip
    if (
        not record(made, "quantize")["details"].get("layers")
        or record(made, "quantize")["status"] != "applied"
    ):
        pytest.skip("on this machine integers are not faster for this net")
    entry = record(made, "distill")
    told = entry["details"]["distilled"]
    assert told["loss"][1] <= told["loss"][0]
    if entry["status"] == "applied":
        assert told["decibels"][1] >= told["decibels"][0]


def form(
    label: str, *, drop: float | None = None, prepares: bool = False, replaces: Candidate | None = None
) -> Candidate:
    judgement = None if drop is None else Judgement(1 - drop, 1.0, drop, 0.01, 30.0)
    return Candidate(label, MODEL, judgement=judgement, prepares=prepares, replaces=replaces)


MODEL = model_from_text("g (float[2] x) => (float[2] y) { y = Relu(x) }")
FLOAT, HELD = form(""), form("pruned, 10%", drop=0.005)
OVER = form("pruned, 20%", drop=0.02, prepares=True)


@pytest.mark.parametrize(
    ("kept", "proposed", "recovers", "labels"),
    [
        # A pass takes the place of what was before it.
        ([FLOAT], [form("pruned")], False, ["pruned"]),
        ([HELD], [form("int8")], False, ["pruned, 10%, int8"]),
        # What is over the budget goes on beside it.
        ([FLOAT], [form("pruned", drop=0.02, prepares=True)], False, ["", "pruned"]),
        # What is won back takes the place of what it was made of.
        ([FLOAT, OVER], [form("distilled", drop=0.001, replaces=OVER)], True, ["", "pruned, 20%, distilled"]),
        ([HELD, OVER], [form("distilled", drop=0.001, replaces=OVER)], True, ["pruned, 10%", "pruned, 20%, distilled"]),
        ([HELD], [form("distilled", drop=0.001, replaces=HELD)], True, ["pruned, 10%, distilled"]),
        # What only prepares leaves what held before it in the running.
        ([HELD], [form("equalized", prepares=True)], False, ["pruned, 10%", "pruned, 10%, equalized"]),
        # What is not ends there.
        ([HELD, OVER], [], True, ["pruned, 10%"]),
        ([FLOAT, OVER], [], True, [""]),
        ([HELD], [], False, ["pruned, 10%"]),
    ],
)  # fmt: skip
def test_what_goes_on_after_a_pass(
    kept: list[Candidate], proposed: list[Candidate], recovers: bool, labels: list[str]
) -> None:
    assert [entry.label for entry in _followed(kept, proposed, recovers)] == labels


@pytest.mark.parametrize(
    ("spec", "searches"),
    [
        ("prune", True), ("prune{ratio=0.3}", False), ("prune{macs=0.3}", False), ("low-rank{ratio=0.2}", False), ("low-rank", True),
        ("sparsify", True), ("sparsify{pattern=unstructured,sparsity=0.5}", False), ("distill", True), ("distill{steps=9}", False),
        ("distill{seconds=9}", False), ("quantize", True),
    ],
)  # fmt: skip
def test_what_is_told_how_much_takes_no_time_from_the_search(spec: str, searches: bool) -> None:
    (pass_,) = catalog.expand(tuple(parse(spec)))
    assert isinstance(pass_, LossyPass) and pass_.searches is searches
