"""What is left in float takes fewer bits in the file, within the same budget, whatever is computed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import graphopt
from graphopt import selection
from graphopt.artifact import read_manifest
from graphopt.cli import main
from graphopt.errors import VerificationError
from graphopt.lossy import Candidate, Context, Judgement, LossyPass, Proposal
from graphopt.quant.storage import Storage
from graphopt.testing import model_from_text, run

QUICK: dict[str, Any] = {"threads": 1, "tune": "1s", "target": "ort-cpu"}


@pytest.fixture(autouse=True)
def times_decide_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is stored is looked at here: of so small a net a busy machine calls one file slower than the other."""
    monkeypatch.setattr(selection, "_ties", lambda timing: True)


def tall(seed: int = 0) -> ir.Model:
    """A product of one row."""
    rng = np.random.default_rng(seed)
    model = model_from_text(
        "g (float[1,512] x) => (float[1,512] y) <float[512,512] w = {0}, float[512] b = {0}> "
        "{ a = Gemm(x, w, b)  y = Tanh(a) }"
    )
    for name in ("w", "b"):
        value = model.graph.initializers[name]
        assert value.shape is not None
        content = (0.05 * rng.standard_normal(value.shape.numpy())).astype(np.float32)
        value.const_value = ir.tensor(content, name=name)
    return model


@pytest.fixture
def net(tmp_path: Path) -> Path:
    path = tmp_path / "net.onnx"
    onnx.save(ir.to_proto(tall()), path)
    return path


def samples(count: int) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [{"x": rng.standard_normal((1, 512)).astype(np.float32)} for _ in range(count)]


def compiled(net: Path, options: str = "", **more: Any) -> graphopt.CompiledModel:
    # Nothing is to compute on integers, so that what is stored is the float graph.
    passes = f"fuse,quantize{{ops=[Conv]{options}}}"
    return graphopt.compile(net, passes=passes, data=samples(12), **{**QUICK, **more})


def record(made: graphopt.CompiledModel) -> dict[str, Any]:
    return next(record for record in made.report.as_dict()["passes"] if record["name"] == "storage")


def test_the_file_is_a_quarter_and_the_budget_holds(net: Path, tmp_path: Path) -> None:
    made = compiled(net)
    assert made.report.chosen.endswith("stored in 8 bits")
    size = made.report.as_dict()["size"]
    assert size["after"] < 0.3 * size["before"]
    told = record(made)
    assert told["status"] == "applied"
    assert [(one["name"], one["bits"]) for one in told["details"]["stored"]] == [("w", 8)]
    budget = made.report.verification.budget
    assert budget is not None and budget["drop"] <= budget["allowed"]
    assert any("quantize is not part of the result" in text for text in made.report.warnings)
    bundle = made.save(tmp_path / "net.gopt")
    for sample in samples(3):
        got, wanted = graphopt.load(bundle).run(sample)["y"], run(tall(), sample)["y"]
        assert 0 < np.square(got - wanted).sum() < 0.01 * np.square(wanted).sum()


@pytest.mark.parametrize(("bits", "share"), [(16, 0.5), (32, 1.0)])
def test_the_option_says_how_few(net: Path, bits: int, share: float) -> None:
    made = compiled(net, f",storage={bits}")
    size = made.report.as_dict()["size"]
    assert size["after"] == pytest.approx(share * size["before"], rel=0.02)
    assert made.report.chosen.endswith("stored in 16 bits") == (bits == 16)


def test_a_budget_that_8_bits_break_leaves_16(net: Path) -> None:
    made = compiled(net, max_drop=1e-5)
    assert made.report.chosen.endswith("stored in 16 bits")
    judged = record(made)["details"]["judged"]
    assert [(one["label"], one["held"], one["taken"]) for one in judged] == [
        ("8 bits", False, False), ("16 bits", True, True),
    ]  # fmt: skip


def test_a_budget_that_nothing_holds_leaves_the_numbers(net: Path) -> None:
    made = compiled(net, max_drop=1e-12)
    told = record(made)
    assert told["status"] == "left out" and "over the budget" in told["reason"]
    assert made.report.verification.budget is None
    sample = samples(1)[0]
    np.testing.assert_allclose(made.run(sample)["y"], run(tall(), sample)["y"], rtol=0, atol=1e-5)


def test_what_is_kept_in_float_keeps_its_bits(net: Path) -> None:
    made = compiled(net, ",keep=[*]")
    assert record(made)["status"] == "nothing to do"
    size = made.report.as_dict()["size"]
    assert size["after"] > 0.95 * size["before"]


def test_without_a_pass_that_quantizes_nothing_is_stored_otherwise(net: Path) -> None:
    made = graphopt.compile(net, passes="fuse,prune{ratio=0.1}", data=samples(12), **QUICK)
    assert not any(entry["name"] == "storage" for entry in made.report.as_dict()["passes"])


def test_the_report_tells_each_constant(net: Path, tmp_path: Path) -> None:
    bundle = compiled(net).save(tmp_path / "net.gopt")
    page = (bundle / "report.html").read_text(encoding="utf-8")
    section = page[page.index("storage for ort-cpu") :]
    assert "constants: 1 in 8 bits, widened on load" in section
    assert "<td>8 bits</td>" in section and "<code>w</code>" in section


def test_explain_tells_of_the_constants_of_a_node(net: Path, tmp_path: Path, capsys: Any) -> None:
    bundle = compiled(net).save(tmp_path / "net.gopt")
    name = next(origin.name for origin in read_manifest(bundle).origins if origin.op == "Gemm")
    assert main(["explain", str(bundle), name, "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)["nodes"]["original"]
    assert [(one["pass"], one["name"], one["bits"]) for one in told["stored"]] == [("storage", "w", 8)]
    assert main(["explain", str(bundle), name]) == 0
    assert "w is stored in 8 bits and widened on load" in capsys.readouterr().out


class Loud(LossyPass):
    """Proposes what is far over the budget."""

    name = "loud"

    @property
    def storage(self) -> Storage | None:
        return Storage(8, lambda node: False)

    def propose(self, model: ir.Model, context: Context) -> Proposal:
        nearest = Candidate("loud", model, judgement=Judgement(0.0, 1.0, 1.0, 0.01, 0.0))
        return Proposal(reason="nothing holds", best_effort=nearest)


def test_the_float_form_from_a_smaller_file_is_within_the_budget_where_nothing_else_is(net: Path) -> None:
    made = graphopt.compile(net, passes=["fuse", Loud()], data=samples(12), **QUICK)
    assert made.report.chosen.endswith("stored in 8 bits")
    assert any(
        "loud is not part of the result: ort-cpu: nothing holds" in text for text in made.report.warnings
    )
    with pytest.raises(VerificationError, match="cannot be kept: ort-cpu: loud: nothing holds"):
        graphopt.compile(net, passes=["fuse", Loud()], data=samples(12), max_drop=0.0, **QUICK)


def test_the_times_of_a_stored_form_are_told_beside_the_form_that_it_stands_for(net: Path) -> None:
    made = compiled(net)
    forms = {form.label: form for form in made.report.forms}
    stored = forms[made.report.chosen]
    before = forms[made.report.chosen.removesuffix(", stored in 8 bits")]
    assert f"as fast as {before.label!r}" in stored.note
    assert stored.low is not None and stored.speedup is not None and stored.high is not None
    assert stored.low <= stored.speedup <= stored.high
