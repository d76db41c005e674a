"""Which form of a model is handed out: verified as it will run, measured against the original.

The original stays unless another form is measured to be no slower. A result close to a tie is measured again, and a
knob of the target is taken only where its gain is beyond doubt.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import onnx_ir as ir

from graphopt import artifact
from graphopt.errors import TargetError
from graphopt.machine import Form, Probe
from graphopt.report import COMPILED_NOT_RUN, FormTiming, KnobTiming, Report
from graphopt.target import Rehearsed, Target
from graphopt.tune.check import FORM_MULTIPLE
from graphopt.tune.paired import SHORT, Bench, Timing
from graphopt.verify.budget import Judgement
from graphopt.verify.compare import Comparison
from graphopt.verify.evaluation import Evaluation
from graphopt.verify.reference import MadeUpSizesError, Reference

T = TypeVar("T")

PREFERENCES = ("speed", "size")
"""What may decide between verified forms that are no slower than the original."""
_TIE = 0.02
_KNOB_GAIN = 0.03
_SECOND_SHARE = 0.5
"""Of the time for one comparison: what a second look at two forms takes at most; a short run is settled by then."""
_SHORT_LIVES = 6
"""Processes that time a short run before it is called slower than the same kernels in another process."""
_KNOB_SHARE = 0.5
"""Of the time for one comparison: a knob that buys less than can be seen by then is not missed."""
_CLOSE = 0.12
_CLEAR = 0.5
"""A gain that no noise of the machine explains: it is not measured a second time."""
FEWER_OPTIMISATIONS = ("basic", "off")
"""Levels of ONNX Runtime's optimisations below all of them, in the order in which a model that fails is tried."""


@dataclass
class Selection:
    """Verifies and measures the forms of one model.

    Attributes:
        targets: By name, with what was found of each.
        reference: What forms are compared with.
        bench: Where they run.
        report: Receives each form's outcome.
        seconds: Time for one comparison of forms.
        try_knobs: Whether the target's knobs are tried; not for models that take long to load.
        models: The graph of each form, by label.
        progress: Told what is being done.
        choosable: Names of the targets that were asked for; forms of others are measured only. Empty for all.
        comparisons: Of each form that ran, by label.
        budgets: What a lossy form is held to instead of the noise floor, by label.
        judgements: Of each lossy form that ran, by label; given from the start for those that cannot run here.
        best_effort: Whether the lossy form that is nearest to its budget may be chosen where none is within it.
        prefer: What decides, one of :data:`PREFERENCES`.
        wanted: Labels of lossy forms that were asked for although what they buy is not time: one is chosen where it is
            as fast as what would be chosen without them, within noise.
        stand_ins: What each form that cannot run here was verified by, by label.
        refused: Labels of those whose stand-ins did not hold.
    """

    targets: Mapping[str, tuple[Target, Probe]]
    reference: Reference
    bench: Bench
    report: Report
    seconds: float
    try_knobs: bool = True
    models: dict[str, ir.Model] = field(default_factory=dict)
    progress: Callable[[str, str], None] = lambda stage, detail: None
    choosable: frozenset[str] = frozenset()
    comparisons: dict[str, Comparison] = field(default_factory=dict)
    budgets: Mapping[str, Evaluation] = field(default_factory=dict)
    judgements: dict[str, Judgement] = field(default_factory=dict)
    best_effort: bool = False
    prefer: str = "speed"
    wanted: frozenset[str] = frozenset()
    stand_ins: dict[str, str] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)
    _original: Form | None = field(default=None, init=False, repr=False)
    _nearest: str = field(default="", init=False, repr=False)
    _unbeaten: list[str] = field(default_factory=list, init=False, repr=False)
    _failed_on_sizes: dict[str, MadeUpSizesError] = field(default_factory=dict, init=False, repr=False)
    _reasons: dict[str, str] = field(default_factory=dict, init=False, repr=False)
    """Notes of forms that failed, by label, as they read without the name of the form."""

    def verify_all(self, forms: Sequence[Form]) -> tuple[list[Form], list[FormTiming]]:
        """Verify the forms, the original first; returns them as they are to be loaded, and the outcome of each.

        Where the backend cannot run the original with all its optimisations, the first level below at which it runs is
        the baseline, and the other forms that do not hold get that level too.
        """
        self.bench.load([form for form in forms if self.targets[form.target][1].runnable])
        loaded, outcomes = list(forms), [self.verify(form) for form in forms]
        target, probe = self.targets[forms[0].target]
        if not outcomes[0].verified and target.runs_original and probe.runnable:
            self._verify_calmer(forms, loaded, outcomes)
        if self.best_effort:
            self._take_nearest(outcomes)
        return loaded, outcomes

    def _verify_calmer(self, forms: Sequence[Form], loaded: list[Form], outcomes: list[FormTiming]) -> None:
        """What does not hold with all of the backend's optimisations, at the first level at which the original does."""
        target = self.targets[forms[0].target][0]
        why = outcomes[0].note
        for level in FEWER_OPTIMISATIONS:
            loaded[0], outcomes[0] = self._verify_at(forms[0], level)
            if outcomes[0].verified:
                break
        else:
            return
        self.report.warnings.append(
            f"the original does not run with all optimisations of {target.name} ({why}): what speed is compared with "
            f"is the original at level {level!r}"
        )
        for index, form in enumerate(forms[1:], 1):
            if not outcomes[index].verified and form.target == forms[0].target:
                loaded[index], outcomes[index] = self._verify_at(form, level)

    def _take_nearest(self, outcomes: Sequence[FormTiming]) -> None:
        """Let the form that is least over its budget be chosen, where none is within it."""
        over = {
            entry.label: self.judgements[entry.label]
            for entry in outcomes
            if entry.label in self.judgements and entry.label in self.budgets
        }
        finite = [label for label, judgement in over.items() if np.isfinite(judgement.drop)]
        if not finite or any(judgement.ok for judgement in over.values()):
            return
        nearest = min(finite, key=lambda label: over[label].excess)
        self._nearest = nearest
        self.refused.discard(nearest)
        next(entry for entry in outcomes if entry.label == nearest).verified = True

    def _verify_at(self, form: Form, level: str) -> tuple[Form, FormTiming]:
        calmer = dataclasses.replace(form, config={**form.config, "level": level})
        return calmer, self.verify(calmer)

    def verify(self, form: Form) -> FormTiming:
        """Load a form as it will be used, run it on every trial, and compare with the original."""
        target, probe = self.targets[form.target]
        if not probe.runnable:
            return self._verify_elsewhere(form, target)
        timing = FormTiming(form.label, size=artifact.size_of(form.folder), original=form.original)
        self._verify_here(form, timing)
        return timing

    def _verify_elsewhere(self, form: Form, target: Target) -> FormTiming:
        """A form that cannot run on this machine, by what stands in for it."""
        timing = FormTiming(
            form.label, note=COMPILED_NOT_RUN, size=artifact.size_of(form.folder), original=form.original
        )
        stand_in = target.stand_in(form) if isinstance(target, Rehearsed) else None
        if stand_in is None:
            if form.label in self.judgements:
                timing.note += f"; on the CPU {self.judgements[form.label].describe()}"
            return timing
        rehearsal = FormTiming(form.label)
        self._verify_here(stand_in.form, rehearsal)
        self.bench.drop(stand_in.form)
        if rehearsal.verified:
            self.stand_ins[form.label] = stand_in.what
            timing.note += f"; {stand_in.what}: {rehearsal.note or 'verified'}"
        else:
            self.refused.add(form.label)
            refused = f"{timing.note}; {stand_in.what}: refused"
            timing.note = f"{refused}: {rehearsal.note}"
            self._reasons[form.label] = f"{refused}: {self._reasons.get(form.label, rehearsal.note)}"
        return timing

    def _verify_here(self, form: Form, timing: FormTiming) -> None:
        self.progress("verify", form.label)
        self._reasons.pop(form.label, None)
        try:
            budget = self._budget_of(form)
            if budget is not None:
                judgement = budget.judge([self.bench.worker(form).outputs(feeds) for feeds in budget.feeds])
                self.judgements[form.label] = judgement
                is_nearest = any(one.label == self._nearest for one in form.ancestry)
                usable = is_nearest and np.isfinite(judgement.drop)
                timing.verified, timing.note = bool(judgement.ok or usable), judgement.describe()
                if not judgement.ok:
                    timing.note = f"over the budget: {timing.note}"
                if not timing.verified:
                    self.bench.drop(form)
                return
            comparison = self.reference.compare(self.bench.worker(form).outputs, FORM_MULTIPLE)
            self.comparisons[form.label] = comparison
            # The original is what the user has: it is never refused, only said to differ.
            timing.verified = comparison.ok or form.baseline
            timing.note = comparison.not_taken if comparison.ok else comparison.describe()
        except TargetError as error:
            timing.note = error.message
            self._reasons[form.label] = error.reason
            if isinstance(error, MadeUpSizesError):
                self._failed_on_sizes.setdefault(form.target, error)
        if not timing.verified:
            self.bench.drop(form)

    def _budget_of(self, form: Form) -> Evaluation | None:
        """The budget of a lossy form, and of what only differs from it by the target's knobs."""
        return inherited(form, self.budgets)

    def choose(self, forms: Sequence[Form], *, measure: bool = True) -> Form:
        """The fastest verified form; the original unless another is measured to be no slower.

        Args:
            forms: From plain to special, the original first; each verified before.
            measure: Without it, the last verified form is taken.
        """
        by_label = {form.label: form for form in forms}
        if not any(self.targets[name][1].runnable for name in self.choosable or self.targets):
            return self._unmeasured([form for form in forms if self._may_choose(form)])
        candidates = [by_label[timing.label] for timing in self.report.forms if timing.verified]
        self._original = candidates[0] if candidates else None
        ours = [form for form in candidates if self._may_choose(form)]
        if not ours:
            hints = [error.hint for error in self._failed_on_sizes.values()][:1]
            raise TargetError(
                f"no form of the model holds on {', '.join(sorted(self.choosable))}: {self._notes()}",
                hint="; ".join([*hints, "choose another target: graphopt targets lists them"]),
            )
        held = {form.target for form in ours}
        self.report.warnings += [
            f"{name} was left out, since it fails {error.where}; {error.hint}"
            for name, error in self._failed_on_sizes.items()
            if name not in held
        ]
        self.report.warnings += self._without_form(forms, held | set(self._failed_on_sizes))
        if not measure:
            return [form for form in ours if form.target == ours[0].target][-1]
        best = self._fastest(candidates) if len(candidates) > 1 else candidates[0]
        chosen = self._best_variant(best, candidates[0]) if self.try_knobs else best
        if self.models[chosen.label] is self.models[candidates[0].label]:
            self.report.warnings += self._unbeaten
        return chosen

    def _without_form(self, forms: Sequence[Form], told: Set[str]) -> list[str]:
        """Warnings of targets that were asked for, run here, and have no form that holds."""
        last = {
            form.target: f"{form.label}: {self._outcome(form.label).note}"
            for form in forms
            if form.target not in told and self._may_choose(form) and self.targets[form.target][1].runnable
        }
        return [f"{name} was left out: {why}" for name, why in last.items()]

    def _notes(self) -> str:
        labels: dict[str, list[str]] = {}
        for entry in self.report.forms:
            if entry.note:
                labels.setdefault(self._reasons.get(entry.label, entry.note), []).append(entry.label)
        return "; ".join(f"{', '.join(names)}: {note}" for note, names in labels.items())

    def _unmeasured(self, forms: Sequence[Form]) -> Form:
        """Nothing can be measured here: what the lossy passes proposed, or the graph as the target wants it.

        Raises:
            TargetError: None of them holds.
        """
        held = [form for form in forms if form.label not in self.refused]
        if not held:
            raise TargetError(
                f"no form of the model holds: {self._notes()}", hint="graphopt targets lists others"
            )
        lossy = [form for form in held if form.label in self.judgements]
        chosen = lossy[0] if lossy else held[-1]
        probe = self.targets[chosen.target][1]
        why = " ".join(probe.reason.split())
        what = self.stand_ins.get(chosen.label, "")
        proof = f"verified by {what}" if what else "the graph was verified on the CPU"
        self.report.verification.by = what
        self.report.warnings.append(
            f"{COMPILED_NOT_RUN}: {why or 'this machine lacks what ' + chosen.target + ' needs'}; {proof}, and nothing "
            "was timed"
        )
        return chosen

    def _fastest(self, candidates: Sequence[Form]) -> Form:
        """The fastest form that is no slower than the original."""
        original = candidates[0]
        timings = self._time([original, *candidates[1:]])
        choosable = [timing for timing in timings[1:] if self._may_choose(timing.form)]
        # What is not wanted for its time has no race to win; it is looked at when there is a winner.
        racing = [timing for timing in choosable if timing.form.label not in self.wanted]
        if not racing and self._may_choose(original):
            racing = timings[:1]
        choosable = racing or choosable
        found = self._looked_at_again(timings, {timing.form.label for timing in choosable})
        timings = [found[timing.form.label] for timing in timings]
        choosable = [found[timing.form.label] for timing in choosable]
        best = max(choosable, key=lambda timing: timing.speedup)
        for timing in timings:
            self._enter(timing)
        if self.prefer == "size":
            smallest = self._smallest(timings[0], choosable)
            if smallest is not None:
                return smallest
        if best.form.label in self.judgements:
            others = [timing for timing in choosable if timing.form is not best.form]
            best = self._worth_its_loss(best, [best, *others])
        unbeaten = best.speedup < 1.0 and self._may_choose(original)
        if best.speedup < 1.0 and not unbeaten:
            self.report.warnings.append(
                f"on {best.form.target} the model is not as fast as the original in ONNX Runtime ({best.describe()}): "
                "--target cpu chooses between them"
            )
        asked = self._wanted_instead(original if unbeaten else best.form, candidates)
        if asked is not None:
            return asked
        if unbeaten:
            entry = self._outcome(best.form.label)
            entry.note = f"not as fast as the original: {best.describe()}"
            self._unbeaten = [
                f"no rewritten form was as fast as the original (the best: {best.describe()}); it is left as it was"
            ]
            return original
        return best.form

    def replaces(self, form: Form, chosen: Form, *, measure: bool = True) -> bool:
        """Whether a form that computes what ``chosen`` does, from another file, holds as well and is as fast, within
        noise, and no slower than the original; measured again by new processes before it is called slower, a short run
        by several."""
        entry = self.verify(form)
        self.report.forms.append(entry)
        if not entry.verified or not measure:
            return entry.verified
        ratio, held = self._looked_at_while_slower(chosen, form, _as_fast)
        told = self._outcome(chosen.label)
        if told.speedup is not None and told.low is not None and told.high is not None:
            # Told beside the original by way of the form that it was timed with: another session has another noise.
            scaled = (told.speedup * ratio.speedup, told.low * ratio.low, told.high * ratio.high)
            self._enter(Timing(form, ratio.milliseconds, *scaled, ratio.rounds))
        entry.note += f"; {'as fast as' if held else 'slower than'} {chosen.label!r}: {ratio.describe()}"
        if held and entry.speedup is not None and entry.speedup < 1 and self._original is not None:
            # Two ties on end may be more than one: beside the original itself.
            direct, held = self._looked_at_while_slower(self._original, form, _ties)
            self._enter(direct)
            entry.note += "" if held else f"; slower than the original: {direct.describe()}"
        return held

    def _looked_at_while_slower(
        self, rival: Form, form: Form, holds: Callable[[Timing], bool]
    ) -> tuple[Timing, bool]:
        """How a form compares with one that it is to be as fast as, and whether it holds: measured again by new
        processes before it is called slower, a short run by several."""
        looks = 0
        while True:
            ratio = self._time([rival, form], share=_SECOND_SHARE)[1]
            looks += 1
            if holds(ratio) or looks == (_SHORT_LIVES if ratio.milliseconds < SHORT else 2):
                return ratio, holds(ratio)
            for used in (rival, form):
                self.bench.drop(used)

    def _looked_at_again(self, timings: Sequence[Timing], racing: Set[str]) -> dict[str, Timing]:
        """Timings by label, until what is ahead has been looked at again wherever chance may have put it there: a run
        close to a tie with the original, a short run. What falls behind by that leaves its place to the next.

        Args:
            timings: The original's first.
            racing: Labels of the forms that one is chosen of.
        """
        found = {timing.form.label: timing for timing in timings}
        original = timings[0].form
        looked: set[str] = set()
        while True:
            best = max((found[label] for label in racing), key=lambda timing: timing.speedup)
            label = best.form.label
            if best.form is original or label in looked:
                return found
            looked.add(label)
            if len(racing) > 1 or best.low < 1 <= best.speedup:
                found[original.label], best = self._beside(found[original.label], best)
            found[label] = self._in_other_processes(original, best)

    def _in_other_processes(self, original: Form, best: Timing) -> Timing:
        """A timing of a short run, measured once more by new processes, or by three where two do not agree.

        No interval over the rounds of a process shows what its memory does to all of them
        (:func:`graphopt.tune.paired.time_forms`).
        """
        if best.form is original or best.milliseconds >= SHORT:
            return best
        found = [best]
        while len(found) < 3:
            for form in (original, best.form):
                self.bench.drop(form)
            found.append(self._time([original, best.form])[1])
            if len(found) == 2 and found[0].low <= found[1].high and found[1].low <= found[0].high:
                return best
        return sorted(found, key=lambda timing: timing.speedup)[1]

    def _beside(self, original: Timing, timing: Timing) -> tuple[Timing, Timing]:
        """Both measured again, these two alone, where one is close to a tie with the original, before it is said to be
        no slower."""
        if abs(timing.speedup - 1) >= 3 * _TIE:
            return original, timing
        original, timing = self._time([original.form, timing.form], share=_SECOND_SHARE)
        return original, timing

    def _smallest(self, original: Timing, choosable: Sequence[Timing]) -> Form | None:
        """The smallest form that is no slower than the original, each measured again where chance may have said so;
        None where there is none."""
        for timing in sorted(
            choosable, key=lambda timing: (self._outcome(timing.form.label).size, -timing.speedup)
        ):
            if timing.form is original.form or not _ties(timing):
                continue
            _, timing = self._beside(original, timing)
            timing = self._in_other_processes(original.form, timing)
            self._enter(timing)
            if _ties(timing):
                return timing.form
        return None

    def _wanted_instead(self, best: Form, candidates: Sequence[Form]) -> Form | None:
        """The fastest form that was asked for although it buys no time, where it is as fast as ``best``, within noise.

        These alone are measured. As fast is what ties, or is not shown to be slower; where noise would hide much, it is
        measured once more.
        """
        asked = [form for form in candidates if form.label in self.wanted and self._may_choose(form)]
        if not asked or best in asked:
            return None
        timings = self._time([best, *asked])[1:]
        doubtful = [timing.form for timing in timings if timing.high >= 1 and timing.low < 1 - _CLOSE]
        again = (
            {timing.form.label: timing for timing in self._time([best, *doubtful])[1:]} if doubtful else {}
        )
        timings = [again.get(timing.form.label, timing) for timing in timings]
        as_fast = [timing for timing in timings if _as_fast(timing)]
        for timing in timings:
            entry = self._outcome(timing.form.label)
            held = timing in as_fast
            entry.note += f"; {'as fast as' if held else 'slower than'} {best.label!r}: {timing.describe()}"
        return max(as_fast, key=lambda timing: timing.speedup).form if as_fast else None

    def _worth_its_loss(self, best: Timing, others: Sequence[Timing]) -> Timing:
        """The fastest lossy form if it is faster than the fastest form that loses nothing, these alone; else that."""
        exact = [timing for timing in others if timing.form.label not in self.judgements]
        if not exact:
            return best
        rival = max(exact, key=lambda timing: timing.speedup)
        if best.low > rival.high * (1 + _CLEAR):
            return best
        close = [
            timing
            for timing in others
            if timing.form.label in self.judgements and timing.speedup > best.speedup * (1 - _CLOSE)
        ]
        if best.milliseconds < SHORT:
            # As these processes happen to be, one form may be ahead for as long as they live.
            for timing in (rival, *close):
                self.bench.drop(timing.form)
        again = self._time([rival.form, *(timing.form for timing in close)])[1:]
        winner = max(again, key=lambda timing: timing.speedup)
        if winner.speedup >= 1 + _TIE and winner.low >= 1:
            return next(timing for timing in close if timing.form.label == winner.form.label)
        for timing in again:
            entry = self._outcome(timing.form.label)
            entry.note += f"; not faster than {rival.form.label!r}: {timing.describe()}"
        return rival

    def _may_choose(self, form: Form) -> bool:
        return not self.choosable or form.target in self.choosable

    def _best_variant(self, best: Form, original: Form) -> Form:
        """Try the target's knobs on the best form.

        One is taken where its gain is beyond doubt, it verifies, and it is no slower than the original.
        """
        variants = self._variants(best)
        latency = next((entry.milliseconds for entry in self.report.forms if entry.label == best.label), None)
        if not variants and latency is not None:
            return best
        timings = self._time_knobs([best, *variants])
        timings[1:] = [self._no_longer_doubtful(best, timing) for timing in timings[1:]]
        tried = {
            timing.form.label: KnobTiming(
                timing.form.label, best.label, timing.speedup, timing.low, timing.high, timing.rounds
            )
            for timing in timings[1:]
        }
        self.report.knobs += tried.values()
        for timing in sorted(timings[1:], key=lambda timing: timing.speedup, reverse=True):
            if timing.speedup < 1 + _KNOB_GAIN or timing.low < 1:
                continue
            entry = self.verify(timing.form)
            self.report.forms.append(entry)
            if not entry.verified:
                continue
            confirmed = self._time_knobs([original, timing.form])
            for measured in confirmed:
                self._enter(measured)
            if confirmed[1].speedup >= 1.0:
                tried[timing.form.label].taken = True
                self.models[timing.form.label] = self.models[best.label]
                return timing.form
            entry.note = "not as fast as the original when measured again"
        if latency is None:
            self._enter(Timing(original, timings[0].milliseconds, 1.0, 1.0, 1.0, timings[0].rounds))
        return best

    def _no_longer_doubtful(self, best: Form, timing: Timing) -> Timing:
        """A knob's timing, measured again beside ``best`` alone where it seems to gain and a few rounds do not tell.

        One round that something else disturbed makes the interval of five reach far below.
        """
        if timing.speedup < 1 + _KNOB_GAIN or timing.low >= 1:
            return timing
        return self._time_knobs([best, timing.form], share=1.0)[1]

    def _variants(self, base: Form) -> list[Form]:
        """Forms of ``base`` with other knobs."""
        target = self.targets[base.target][0]
        latency = next((entry.milliseconds for entry in self.report.forms if entry.label == base.label), None)
        return [
            Form(
                f"{base.label}, {knobs['label']}",
                base.target,
                base.folder,
                {**base.config, **_without_label(knobs)},
                base=base,
            )
            for knobs in target.variants(self.models[base.label], latency)[1:]
        ]

    def _time(self, forms: Sequence[Form], share: float = 1.0) -> list[Timing]:
        return self.bench.time(
            forms, seconds=share * self.seconds, progress=lambda text: self.progress("measure", text)
        )

    def _time_knobs(self, forms: Sequence[Form], share: float = _KNOB_SHARE) -> list[Timing]:
        """As :meth:`_time`, until it is known of each form whether it buys enough."""
        return self.bench.time(
            forms,
            seconds=share * self.seconds,
            progress=lambda text: self.progress("measure", text),
            decided=lambda timings: all(
                timing.high < 1 + _KNOB_GAIN or timing.low >= 1 + _KNOB_GAIN for timing in timings[1:]
            ),
        )

    def _outcome(self, label: str) -> FormTiming:
        """What the report tells of a form."""
        return next(entry for entry in self.report.forms if entry.label == label)

    def _enter(self, timing: Timing) -> None:
        entry = self._outcome(timing.form.label)
        baseline, milliseconds = self.report.baseline, timing.milliseconds
        if baseline is not None and baseline.milliseconds is not None:
            # All are told beside one time of the original, which may be another one where it was measured again.
            milliseconds = baseline.milliseconds / timing.speedup
        entry.milliseconds, entry.speedup = milliseconds, timing.speedup
        entry.low, entry.high, entry.rounds = timing.low, timing.high, timing.rounds


def _ties(timing: Timing) -> bool:
    return timing.speedup >= 1 - _TIE


def _as_fast(timing: Timing) -> bool:
    """Whether it ties, or is not shown to be slower."""
    return timing.high >= 1 or _ties(timing)


def inherited(form: Form, entries: Mapping[str, T]) -> T | None:
    """The entry of a form, by label, or else of the nearest one that it was made from."""
    return next((entries[one.label] for one in form.ancestry if one.label in entries), None)


def _without_label(knobs: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in knobs.items() if key != "label"}
