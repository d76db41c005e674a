"""Which of the measured forms is handed out, by timings that are given."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

import onnx_ir as ir
import pytest

from graphopt.errors import FormFailedError, TargetError
from graphopt.forms import ORIGINAL
from graphopt.machine import Form, Probe
from graphopt.report import FormTiming, Report
from graphopt.selection import Selection
from graphopt.target import Target
from graphopt.tune.paired import Bench, Timing
from graphopt.verify.budget import Judgement
from graphopt.verify.evaluation import Evaluation
from graphopt.verify.reference import Reference
from graphopt.verify.trial import Trial


class _Target:
    name = "here"
    runs_original = True

    def __init__(self, knobs: Sequence[str] = ()) -> None:
        self.knobs = knobs

    def variants(self, model: ir.Model, milliseconds: float | None) -> Sequence[dict[str, Any]]:
        return [{"label": label} for label in ("default", *self.knobs)]


class _Selection(Selection):
    def verify(self, form: Form) -> FormTiming:
        return FormTiming(form.label, verified=True)


class _Bench:
    """Hands out one round of speedups after the other, of the original's time."""

    def __init__(
        self, *rounds: dict[str, float], noise: float | Sequence[float] = 0.01, milliseconds: float = 10.0
    ) -> None:
        self.rounds, self.milliseconds = list(rounds), milliseconds
        self.noise = [noise] * len(rounds) if isinstance(noise, float) else list(noise)
        self.dropped: list[str] = []

    def drop(self, form: Form) -> None:
        self.dropped.append(form.label)

    def time(self, forms: Sequence[Form], **about: Any) -> list[Timing]:
        speedups, noise = self.rounds.pop(0), self.noise.pop(0)
        first = speedups[forms[0].label]
        return [
            Timing(
                form,
                self.milliseconds / speedups[form.label],
                ratio,
                (1 - noise) * ratio,
                (1 + noise) * ratio,
                10,
            )
            for form in forms
            for ratio in [speedups[form.label] / first]
        ]


def selection_of(
    *rounds: dict[str, float],
    lossy: str = "int8",
    wanted: bool = False,
    noise: float | Sequence[float] = 0.01,
    knobs: Sequence[str] = (),
    milliseconds: float = 10.0,
    sizes: Sequence[int] = (),
) -> tuple[_Selection, list[Form], _Bench]:
    labels = list(rounds[0])
    forms = [Form(label, "here", Path(label), {}) for label in labels]
    report = Report(name="net", source="net.onnx", source_opset=20, opset=20, target="here", threads=0)
    report.forms = [FormTiming(label, verified=True, original=label == ORIGINAL) for label in labels]
    bench = _Bench(*rounds, noise=noise, milliseconds=milliseconds)
    selection = _Selection(
        {"here": (cast(Target, _Target(knobs)), Probe(True, True))},
        cast(Reference, None),
        cast(Bench, bench),
        report,
        1.0,
        models={label: cast(ir.Model, object()) for label in labels},
        judgements={lossy: cast(Judgement, None)},
        wanted=frozenset({lossy} if wanted else ()),
        prefer="size" if sizes else "speed",
    )
    for entry, size in zip(report.forms, sizes, strict=False):
        entry.size = size
    return selection, forms, bench


def choose(*rounds: dict[str, float], **about: Any) -> tuple[str, Report, _Bench]:
    selection, forms, bench = selection_of(*rounds, **about)
    return selection.choose(forms).label, selection.report, bench


def test_a_lossy_form_that_looked_faster_for_a_moment_is_measured_again() -> None:
    chosen, report, bench = choose(
        {ORIGINAL: 1.0, "optimized": 1.2, "int8": 1.7},
        {"optimized": 1.2, "int8": 1.19},
    )
    assert chosen == "optimized" and not bench.rounds
    assert (
        "not faster than 'optimized'" in next(entry for entry in report.forms if entry.label == "int8").note
    )


def test_a_lossy_form_that_holds_its_gain_is_handed_out() -> None:
    chosen, _, bench = choose(
        {ORIGINAL: 1.0, "optimized": 1.2, "int8": 1.7},
        {"optimized": 1.2, "int8": 1.6},
    )
    assert chosen == "int8" and not bench.rounds


def test_a_gain_that_no_noise_explains_is_measured_once() -> None:
    chosen, _, bench = choose({ORIGINAL: 1.0, "optimized": 1.2, "int8": 2.4})
    assert chosen == "int8" and not bench.rounds


def test_milliseconds_are_told_beside_one_time_of_the_original() -> None:
    """The machine runs at half its speed when a form is measured again: the original is told once, and ratios hold."""
    _, report, _ = choose(
        {ORIGINAL: 1.0, "optimized": 1.01, "legalized": 0.9}, {ORIGINAL: 0.5, "optimized": 0.51}, lossy=""
    )
    original, optimized, legalized = report.forms[:3]
    assert original.milliseconds == 20.0
    for form in (optimized, legalized):
        assert form.speedup and form.milliseconds == pytest.approx(original.milliseconds / form.speedup)


@pytest.mark.parametrize(
    ("rounds", "found"),
    [
        ([1.4, 1.41], 1.4),
        ([1.4, 1.0, 1.01], 1.01),
        ([0.7, 1.05, 1.06], 1.05),
        ([1.4, 1.0, 1.6], 1.4),
    ],
)
def test_a_short_run_is_measured_by_other_processes_too(rounds: list[float], found: float) -> None:
    """One process in a few is slow or fast for as long as it lives."""
    timed = [{ORIGINAL: 1.0, "optimized": speedup} for speedup in rounds]
    chosen, report, bench = choose(*timed, lossy="", milliseconds=0.1)
    assert report.forms[1].speedup == found and not bench.rounds
    assert bench.dropped == [ORIGINAL, "optimized"] * (len(rounds) - 1)
    assert chosen == "optimized"


def test_a_short_run_that_falls_behind_by_that_leaves_its_place_to_the_next() -> None:
    """The one that chance favoured is ahead first: what other processes say of it is compared with the others anew."""
    chosen, report, bench = choose(
        {ORIGINAL: 1.0, "lucky": 1.9, "fast": 1.5, "faster": 1.6},
        {ORIGINAL: 1.0, "lucky": 1.3},
        {ORIGINAL: 1.0, "lucky": 1.3},
        {ORIGINAL: 1.0, "faster": 1.6},
        lossy="",
        milliseconds=0.1,
    )
    assert chosen == "faster" and not bench.rounds
    assert [entry.speedup for entry in report.forms[1:]] == [1.3, 1.5, 1.6]


@pytest.mark.parametrize("again", [0.97, 1.01])
def test_near_a_tie_the_form_is_measured_again_against_the_original(again: float) -> None:
    chosen, report, _ = choose(
        {ORIGINAL: 1.0, "optimized": 1.01}, {ORIGINAL: 1.0, "optimized": again}, lossy=""
    )
    assert chosen == ("optimized" if again > 1 else ORIGINAL)
    assert bool(report.warnings) == (again < 1)


@pytest.mark.parametrize(("speedup", "chosen"), [(0.98, ORIGINAL), (1.04, "optimized")])
def test_one_form_that_is_shown_to_be_slower_or_faster_is_measured_once(speedup: float, chosen: str) -> None:
    found, _, bench = choose({ORIGINAL: 1.0, "optimized": speedup}, lossy="")
    assert found == chosen and not bench.rounds


def test_knobs_are_tried_on_the_best_form_alone() -> None:
    tie = {ORIGINAL: 1.0, "optimized": 0.99}
    knobs = {ORIGINAL: 1.0, f"{ORIGINAL}, flushed": 1.2}
    chosen, report, bench = choose(tie, knobs, knobs, lossy="", knobs=["flushed"])
    assert chosen == f"{ORIGINAL}, flushed" and not bench.rounds
    assert [(knob.label, knob.taken) for knob in report.knobs] == [(f"{ORIGINAL}, flushed", True)]


@pytest.mark.parametrize(("again", "taken"), [(1.2, True), (1.02, False)])
def test_a_knob_that_a_few_rounds_leave_in_doubt_is_measured_again_alone(again: float, taken: bool) -> None:
    chosen, report, bench = choose(
        {ORIGINAL: 1.0, "optimized": 1.3},
        {"optimized": 1.0, "optimized, flushed": 1.2, "optimized, alone": 0.9},
        {"optimized": 1.0, "optimized, flushed": again},
        *([{ORIGINAL: 1.0, "optimized, flushed": 1.5}] if taken else []),
        lossy="",
        knobs=["flushed", "alone"],
        noise=[0.01, 0.3, 0.01, 0.01],
    )
    assert chosen == ("optimized, flushed" if taken else "optimized") and not bench.rounds
    assert [(knob.speedup, knob.taken) for knob in report.knobs] == [(again, taken), (0.9, False)]


def test_the_original_is_said_to_be_left_only_where_it_is() -> None:
    knobs = dict.fromkeys((ORIGINAL, f"{ORIGINAL}, flushed"), 1.0)
    chosen, report, _ = choose({ORIGINAL: 1.0, "optimized": 0.99}, knobs, lossy="", knobs=["flushed"])
    assert chosen == ORIGINAL and "it is left as it was" in report.warnings[0]
    knobs = {"optimized": 1.0, "optimized, flushed": 1.2}
    confirmed = {ORIGINAL: 1.0, "optimized, flushed": 1.2}
    chosen, report, _ = choose(
        {ORIGINAL: 1.0, "optimized": 1.2}, knobs, confirmed, lossy="", knobs=["flushed"]
    )
    assert chosen == "optimized, flushed" and report.warnings == []


def test_a_form_that_is_wanted_though_it_buys_no_time_is_handed_out_where_it_is_as_fast() -> None:
    chosen, report, bench = choose(
        {ORIGINAL: 1.0, "optimized": 1.2, "sparse": 1.21},
        {"optimized": 1.2, "sparse": 1.195},
        lossy="sparse",
        wanted=True,
    )
    assert chosen == "sparse" and not bench.rounds
    assert "as fast as 'optimized'" in next(entry for entry in report.forms if entry.label == "sparse").note


def test_a_form_that_is_wanted_may_tie() -> None:
    chosen, _, bench = choose(
        {ORIGINAL: 1.0, "optimized": 1.2, "sparse": 1.2},
        {"optimized": 1.0, "sparse": 0.99},
        lossy="sparse",
        wanted=True,
        noise=0.001,
    )
    assert chosen == "sparse" and not bench.rounds


def test_a_form_that_is_wanted_is_left_where_it_is_slower() -> None:
    chosen, report, bench = choose(
        {ORIGINAL: 1.0, "optimized": 1.2, "sparse": 1.3},
        {"optimized": 1.2, "sparse": 1.15},
        lossy="sparse",
        wanted=True,
    )
    assert chosen == "optimized" and not bench.rounds
    assert "slower than 'optimized'" in next(entry for entry in report.forms if entry.label == "sparse").note


@pytest.mark.parametrize("again", [0.999, 0.9])
def test_a_form_that_is_wanted_is_held_to_the_original_where_nothing_is_faster(again: float) -> None:
    chosen, report, bench = choose(
        {ORIGINAL: 1.0, "optimized": 0.9, "sparse": 1.0},
        {ORIGINAL: 1.0, "sparse": again},
        lossy="sparse",
        wanted=True,
    )
    assert chosen == ("sparse" if again > 0.99 else ORIGINAL) and not bench.rounds
    assert any("left as it was" in text for text in report.warnings) == (chosen == ORIGINAL)


@pytest.mark.parametrize("again", [0.95, 0.8])
def test_a_form_that_is_wanted_is_measured_again_where_noise_would_hide_much(again: float) -> None:
    chosen, _, bench = choose(
        {ORIGINAL: 1.0, "optimized": 1.2, "sparse": 1.2},
        {"optimized": 1.0, "sparse": 0.92},
        {"optimized": 1.0, "sparse": again},
        lossy="sparse",
        wanted=True,
        noise=0.15,
    )
    assert chosen == ("sparse" if again > 0.9 else "optimized") and not bench.rounds


def test_a_form_that_is_wanted_may_be_the_only_one_that_holds() -> None:
    chosen, _, bench = choose(
        {ORIGINAL: 1.0, "sparse": 1.0}, {ORIGINAL: 1.0, "sparse": 1.0}, lossy="sparse", wanted=True
    )
    assert chosen == "sparse" and not bench.rounds


@pytest.mark.parametrize(("direct", "held"), [([0.95, 0.95], False), ([0.95, 1.0], True), ([1.0], True)])
def test_what_takes_less_room_is_held_to_the_original_too(direct: list[float], held: bool) -> None:
    """As fast as what is hardly faster than the original: two ties on end may be a loss, and one look may err."""
    selection, forms, bench = selection_of(
        {ORIGINAL: 1.0, "optimized": 1.01},
        {ORIGINAL: 1.0, "optimized": 1.01},
        {"optimized": 1.0, "stored": 0.98},
        *({ORIGINAL: 1.0, "stored": speedup} for speedup in direct),
        lossy="",
    )
    chosen = selection.choose(forms)
    assert selection.replaces(Form("stored", "here", Path("stored"), {}), chosen) is held
    told = selection.report.forms[-1]
    assert (
        told.speedup == direct[-1]
        and ("slower than the original" in told.note) is not held
        and not bench.rounds
    )


@pytest.mark.parametrize(
    ("again", "chosen"),
    [(1.01, "int8"), (0.99, "int8"), (0.9, "stored")],
)
def test_the_smallest_that_is_no_slower_where_size_is_preferred(again: float, chosen: str) -> None:
    """Among forms that are as fast as the original within noise; one near a tie is measured again."""
    found, report, bench = choose(
        {ORIGINAL: 1.0, "optimized": 1.5, "tiny": 0.7, "int8": 1.02, "stored": 1.3},
        {ORIGINAL: 1.0, "int8": again},
        sizes=(100, 90, 10, 20, 30),
    )
    assert found == chosen and not bench.rounds
    assert report.forms[3].speedup == again


def test_nothing_smaller_is_as_fast_where_size_is_preferred() -> None:
    found, _, _ = choose({ORIGINAL: 1.0, "optimized": 0.9, "int8": 0.7}, sizes=(100, 90, 10))
    assert found == ORIGINAL


class _Judged(_Selection):
    """Every form was judged; ``drops`` by label."""

    drops: ClassVar[dict[str, float]] = {}

    def verify(self, form: Form) -> FormTiming:
        if form.label not in self.drops:
            return FormTiming(form.label, verified=True)
        judgement = Judgement(1 - self.drops[form.label], 1.0, self.drops[form.label], 0.01, 20.0)
        self.judgements[form.label] = judgement
        return FormTiming(form.label, verified=judgement.ok)


@pytest.mark.parametrize(
    ("drops", "verified"),
    [
        ({"int8": 0.005, "fast": 0.011}, {"int8"}),
        ({"int8": 0.02, "fast": 0.011}, {"fast"}),
        ({"int8": float("nan"), "fast": float("inf")}, set()),
    ],
    ids=["one is within the budget", "none is", "nothing usable"],
)
def test_best_effort_is_the_nearest_where_nothing_is_within_the_budget(
    drops: dict[str, float], verified: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_Judged, "drops", drops)
    plain, forms, bench = selection_of({ORIGINAL: 1.0, "int8": 1.0, "fast": 1.0})
    monkeypatch.setattr(bench, "load", lambda forms: None, raising=False)
    selection = _Judged(
        plain.targets, plain.reference, plain.bench, plain.report, 1.0,
        budgets={label: cast(Evaluation, None) for label in drops}, best_effort=True,
    )  # fmt: skip
    _, outcomes = selection.verify_all(forms)
    assert {entry.label for entry in outcomes if entry.verified} == {ORIGINAL, *verified}


def test_forms_that_fail_alike_are_told_together() -> None:
    """A note names its form; in one error for all of them a reason stands once."""
    plain, forms, bench = selection_of({"optimized": 1.0, "legalized": 1.0})

    def worker(form: Form) -> None:
        raise FormFailedError(form.label, "no kernel for it")

    bench.worker = worker  # type: ignore[attr-defined]
    selection = Selection(
        plain.targets,
        Reference([Trial({}, {}, {})]),
        plain.bench,
        plain.report,
        1.0,
        choosable=frozenset({"here"}),
    )
    selection.report.forms = [selection.verify(form) for form in forms]
    assert [entry.note for entry in selection.report.forms] == [
        f"the form {form.label!r} fails: no kernel for it" for form in forms
    ]
    with pytest.raises(TargetError, match="holds on here: optimized, legalized: no kernel for it"):
        selection.choose(forms)
