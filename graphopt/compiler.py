"""One compilation, from the captured model to the verified bundle.

Reads top to bottom: capture, reference, passes, legalisation, forms, verification of each form, timing, choice,
bundle, and verification of the bundle as it lies on disk.
"""

from __future__ import annotations

import contextlib
import math
import shutil
import tempfile
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from graphopt import artifact, catalog, conclusion, interrupt
from graphopt.bundle import Outcome
from graphopt.capture import Captured, capture
from graphopt.capture.upgrade import lower
from graphopt.data.dataset import Dataset
from graphopt.data.interface import Feeds, inputs_of
from graphopt.data.load import samples
from graphopt.errors import DataError, TargetError, UnsupportedModelError, UsageError, listed
from graphopt.forms import Forms
from graphopt.ir import model as ir_model
from graphopt.lineage import Lineage
from graphopt.lossy import LossyPass
from graphopt.pipeline.base import Pass
from graphopt.pipeline.manager import Listener, PassManager
from graphopt.pipeline.record import CHANGED, PassRecord
from graphopt.proposals import Budget, Proposals, lossy_and_others
from graphopt.report import FormTiming, Report, Verdict
from graphopt.request import Progress, Request, Silent
from graphopt.rewrite import Numerics
from graphopt.selection import Selection
from graphopt.simplified import Simplified
from graphopt.storing import Storing
from graphopt.target import Effort, Form, Noted, Probe, Target, Tunable, Tuning
from graphopt.tune.paired import Bench
from graphopt.verify.branches import unreached
from graphopt.verify.budget import parse_drop
from graphopt.verify.evaluation import TELLS_NOTHING, dataset_for, evaluate
from graphopt.verify.export import export_warnings
from graphopt.verify.metrics import find_metric
from graphopt.verify.reference import Reference, build_reference

CAPTURE_MULTIPLE = 8.0
_DOMAINS = frozenset({"com.microsoft", "ai.onnx.ml"})
"""Whose operators may be in a graph whatever the target: models come with them."""
_LARGE_BYTES = 1 << 30
_WHOLE_SECONDS = 30.0
"""Of a compilation with lossy passes, by default, after which what was found is verified and measured."""
_LEAST_SEARCH_SECONDS = 15.0
_SHARE_BESIDE_SEARCH = 0.5
"""Of the time for one comparison of forms, where lossy passes have timed their own: gains are large there."""
_SECONDS_IN_FLOAT = 0.4
"""For comparing targets, to see which has the first turn of lossy passes."""
_LEAST_STORAGE_SECONDS, _MOST_STORAGE_SECONDS = 2.0, 3.0
"""For looking which constants may be stored in 8 bits, where not all may."""
_UNTIL_STORED = 38.0
"""Seconds of a compilation, after which the least of these is taken."""


class Compilation:
    """Runs one request.

    Args:
        request: What to compile.
        progress: Told of each stage.
    """

    def __init__(self, request: Request, progress: Progress | None = None) -> None:
        self.request = request
        self.progress: Progress = progress or Silent()
        self.work = Path(tempfile.mkdtemp(prefix="graphopt-"))
        self._forms = Forms(self.work)
        self._stages: dict[str, float] = {}
        self._large = False
        self._started = time.monotonic()
        self.tuning: Tuning | None = None
        self._lineage: Lineage | None = None

    def tune(self, tracker: str = "") -> Tuning:
        """Tune the kernels that the request's graph comes to on its target, and compile nothing.

        Args:
            tracker: ``host:port`` of what reaches the request's device.

        Raises:
            UsageError: The target has none to tune.
            GraphoptError: As for :meth:`run`.
        """
        try:
            request = self.request
            (target, *others) = self._targets()
            if others or not isinstance(target, Tunable):
                raise UsageError(
                    f"the target {request.target!r} has no kernels that are tuned", hint="--target tvm-llvm"
                )
            probe = target.probe()
            if not probe.available:
                raise TargetError(f"the target {request.target!r} is not available: {probe.reason}")
            passes = self._lossless(": kernels are tuned in float", "leave it out: --passes fuse")
            with self._stage("capture"):
                captured = self._capture(request.input_shapes)
            with self._stage("reference"):
                reference = self._reference(captured)
            with self._stage("passes"):
                optimized, _ = self._optimize(captured, passes, reference, held=True)
            with self._stage("legalize"):
                legal, _ = self._manager(target.legalization(), reference, target.allowed_domains()).run(
                    optimized
                )
            with self._stage("tune"):
                return self._tune(target, legal, reference, request.effort or Effort(), tracker)
        finally:
            shutil.rmtree(self.work, ignore_errors=True)

    def simplify(self, opset: int | None = None) -> Simplified:
        """Run the passes, and nothing that is for a target: the result is a graph of ONNX's operators.

        Args:
            opset: To write it in; None for the oldest from the model's own on that takes it.

        Raises:
            UsageError: A pass is lossy.
            UnsupportedModelError: The result has no form in that opset.
            GraphoptError: As for :meth:`run`.
        """
        try:
            request = self.request
            passes = self._lossless(
                ", and simplifying loses nothing", "graphopt compile runs it, within a budget"
            )
            with self._stage("capture"):
                captured = self._capture(request.input_shapes)
                report = self._new_report(captured, "")
                report.warnings += export_warnings(captured)
            with self._stage("reference"):
                dataset = None if request.transform is None else self._dataset(captured, None)
                reference = self._reference(captured, dataset)
            captured, final, held = self._pass(captured, passes, reference, report)
            if held:
                lower(final, opset, captured.source_opset)
                _drop_unused_opsets(final)
            else:
                final = captured.original_model
                if opset not in (None, captured.source_opset):
                    raise UnsupportedModelError(
                        f"the model is left as it was, in opset {captured.source_opset}: it is not written in {opset}",
                        hint="leave --opset out",
                    )
            conclusion.finish(
                report, captured, reference, final, (ir_model.nbytes(captured.original_model), 0)
            )
            report.seconds = time.monotonic() - self._started
            report.stages = dict(self._stages)
            return Simplified(final, report, reference, changed=held)
        finally:
            shutil.rmtree(self.work, ignore_errors=True)

    def run(self) -> Outcome:
        """Compile.

        Raises:
            GraphoptError: Each kind of failure has its own class; nothing is left behind.
        """
        try:
            outcome = self._run()
        except BaseException:
            shutil.rmtree(self.work, ignore_errors=True)
            raise
        weakref.finalize(outcome, shutil.rmtree, self.work, ignore_errors=True)
        return outcome

    def _run(self) -> Outcome:
        request = self.request
        targets = self._runnable_targets(self._targets())
        baseline = self._baseline(targets)
        by_name = {target.name: (target, probe) for target, probe in [*baseline, *targets]}
        passes, lossy = lossy_and_others(catalog.expand(tuple(request.passes)))
        for pass_ in lossy:
            pass_.require()
        with self._stage("capture"):
            captured = self._capture(request.input_shapes)
            doubts = export_warnings(captured)
        self._large = ir_model.nbytes(captured.original_model) > _LARGE_BYTES
        report = self._new_report(captured, targets[0][0].name)
        report.warnings += doubts
        read = (lossy and not self._makes_data_up()) or request.transform is not None
        dataset = self._dataset(captured, None) if read else None
        with self._stage("reference"):
            reference = self._reference(captured, dataset)
        if reference.is_hollow:
            _refuse_to_judge(lossy, [target for target, _ in targets])
        captured, optimized, held = self._pass(captured, passes, reference, report)
        with self._stage("legalize"):
            for target, _ in baseline:
                self._forms.add_original(target, captured)
            for target, _ in targets:
                try:
                    report.passes += self._add_forms(target, optimized, captured, reference, held)
                except TargetError as error:
                    if len(targets) == 1:
                        raise
                    self._forms.left_out.append(FormTiming(target.name, note=error.message))
        report.warnings += self._not_available()
        proposals = None
        if lossy and held:
            with self._stage("lossy passes"):
                dataset = dataset or self._dataset(captured, reference)
                proposals = self._propose(lossy, targets, optimized, captured, dataset, report)
        # Where nothing can be compared, whatever came of the model would pass unseen.
        forms = self._forms.written[:1] if reference.is_hollow else self._forms.written
        feeds = reference.trials[0].feeds
        report.timed_on = {
            name: np.shape(array) for name, array in feeds.items() if isinstance(array, np.ndarray)
        }
        # From here on processes of their own run the forms, each with the weights.
        ir_model.release_pages(captured.original_model)
        with Bench(feeds, threads=request.threads, most_loaded=1 if self._large else 8) as bench:
            selection = Selection(
                by_name,
                reference,
                bench,
                report,
                request.measure_seconds * (_SHARE_BESIDE_SEARCH if lossy else 1.0),
                not (self._large or reference.is_hollow),
                self._forms.graphs,
                self.progress.stage,
                choosable=frozenset(target.name for target, _ in targets),
                budgets={} if proposals is None else proposals.judged,
                judgements={} if proposals is None else dict(proposals.judgements),
                best_effort=self._budget().best_effort,
                prefer=request.prefer,
                wanted=frozenset() if proposals is None else proposals.wanted,
            )
            with self._stage("verify"):
                forms, outcomes = selection.verify_all(forms)
                report.forms = outcomes + self._forms.left_out
            with self._stage("measure"):
                computed = chosen = selection.choose(forms, measure=request.time_forms)
            storage = None
            if proposals is not None and proposals.storage is not None:
                with self._stage("storage"):
                    chosen, storage = self._store(selection, proposals, computed)
                proposals.check(bool(proposals.candidates) or chosen is not computed)
        report.chosen = chosen.label
        report.target = chosen.target
        report.tuning = self.tuning
        target = by_name[chosen.target][0]
        report.warnings += target.notes(chosen.config) if isinstance(target, Noted) else ()
        final = self._forms.graphs[chosen.label]
        report.compared(selection.comparisons.get(chosen.label))
        evaluation = None
        if proposals is not None:
            evaluation = conclusion.judge(report, selection, proposals, chosen, computed)
        report.passes += [storage] if storage is not None else []
        sizes = (artifact.size_of(self._forms.written[0].folder), artifact.size_of(chosen.folder))
        conclusion.finish(report, captured, reference, final, sizes)
        report.seconds = time.monotonic() - self._started
        report.stages = dict(self._stages)
        assert self._lineage is not None
        probe = by_name[chosen.target][1]
        manifest = conclusion.manifest(
            report, captured, self._lineage, chosen, final, machine=probe.machine, options=request.options
        )
        runnable = probe.runnable
        if not runnable and report.verification.status is Verdict.VERIFIED:
            report.verification.status = Verdict.NOT_RUN
        if reference.is_hollow:
            report.verification.status, report.verification.value = Verdict.NOT_COMPARED, None
        return Outcome(report, manifest, chosen.folder, reference, evaluation, runnable)

    # -- the steps -------------------------------------------------------------------------------------------

    def _capture(self, input_shapes: Mapping[str, Sequence[int | None]] | None) -> Captured:
        request = self.request
        return capture(
            request.model,
            example_inputs=request.example_inputs,
            dynamic_shapes=request.dynamic_shapes,
            input_shapes=input_shapes,
        )

    def _lossless(self, why: str, hint: str) -> Sequence[Pass]:
        """The passes, where none may be lossy.

        Args:
            why: What is said of one that is, behind its name.

        Raises:
            UsageError: One is.
        """
        passes, lossy = lossy_and_others(catalog.expand(tuple(self.request.passes)))
        if lossy:
            raise UsageError(f"{lossy[0].name} is lossy{why}", hint=hint)
        return passes

    def _pass(
        self, captured: Captured, passes: Sequence[Pass], reference: Reference, report: Report
    ) -> tuple[Captured, ir.Model, bool]:
        """The model as it was captured in the end, what the passes made of it, and whether capture held."""
        if self.request.data is not None:
            report.warnings += _not_numbers(reference)
        held = self._verify_capture(captured, reference, report)
        with self._stage("passes"):
            optimized, report.passes = self._optimize(captured, passes, reference, held)
            if self.request.input_shapes and any(record.rejected for record in report.passes):
                # With fixed sizes a branch that is never taken may have no valid shapes (a model of two sample rates).
                report.warnings.append(
                    "with these input shapes the backend rejects a branch of the model: it is compiled with dynamic "
                    "dimensions, and verified and measured with the shapes given"
                )
                captured = self._capture(None)
                held = self._verify_capture(captured, reference, report)
                optimized, report.passes = self._optimize(captured, passes, reference, held)
            report.warnings += self._not_reached(captured, optimized, reference)
        return captured, optimized, held

    def _not_reached(self, captured: Captured, optimized: ir.Model, reference: Reference) -> list[str]:
        """Warnings of branches in which passes did something that nothing compared."""
        trials = [trial.feeds for trial in reference.trials]
        try:
            branches = unreached(optimized, trials, before=captured.model, threads=self.request.threads)
        except TargetError as error:
            return [f"which branches the inputs that were verified take is not known: {error.message}"]
        if not branches:
            return []
        return [
            f"no input that was verified takes the branch {listed(branches, 1)}: what passes did there was not "
            "compared (give inputs with --data that take it)"
        ]

    def _optimize(
        self, captured: Captured, passes: Sequence[Pass], reference: Reference, held: bool
    ) -> tuple[ir.Model, list[PassRecord]]:
        self._lineage = Lineage(captured)
        if not held:
            return captured.model, []
        return self._manager(passes, reference, listeners=(self._lineage,)).run(captured.model)

    def _targets(self) -> list[Target]:
        request = self.request
        return catalog.targets_of(request.target, request.arch, request.database, request.device)

    def _runnable_targets(self, targets: Sequence[Target]) -> list[tuple[Target, Probe]]:
        probed = [(target, target.probe()) for target in targets]
        usable = [(target, probe) for target, probe in probed if probe.available]
        if not usable:
            reasons = "; ".join(probe.reason for _, probe in probed if probe.reason)
            raise TargetError(
                f"the target {self.request.target!r} is not available: {reasons}", hint="graphopt doctor"
            )
        runnable = [(target, probe) for target, probe in usable if probe.runnable]
        used = runnable or usable
        self._forms.left_out += [
            FormTiming(target.name, note="; ".join(map(str.strip, probe.reason.splitlines())))
            for target, probe in probed
            if not any(target is other for other, _ in used)
        ]
        return used

    def _not_available(self) -> list[str]:
        """Warnings of targets that were asked for by name and cannot be had here; a group takes what there is."""
        asked = {name.strip() for name in self.request.target.split(",")}
        return [
            f"{form.label} was left out: {form.note}" for form in self._forms.left_out if form.label in asked
        ]

    def _baseline(self, targets: Sequence[tuple[Target, Probe]]) -> list[tuple[Target, Probe]]:
        """What runs the original to compare with, where the targets cannot: ONNX Runtime on the CPU."""
        if targets[0][0].runs_original:
            return []
        target = catalog.target("ort-cpu")
        return [(target, target.probe())]

    def _new_report(self, captured: Captured, target: str) -> Report:
        report = Report(
            name=captured.name,
            source=str(captured.original or captured.kind),
            source_opset=captured.source_opset,
            opset=captured.model.opset_imports.get("", 0),
            target=target,
            threads=self.request.threads,
            prefer=self.request.prefer,
            warnings=list(captured.warnings),
        )
        report.nodes_before = ir_model.count_nodes(captured.original_model)
        report.nodes_captured = ir_model.count_nodes(captured.model)
        report.ops_before = ir_model.op_counts(captured.original_model)
        return report

    def _propose(
        self,
        lossy: Sequence[LossyPass],
        targets: Sequence[tuple[Target, Probe]],
        optimized: ir.Model,
        captured: Captured,
        dataset: Dataset,
        report: Report,
    ) -> Proposals:
        """Let the lossy passes propose forms for each target, and write these.

        Raises:
            DataError: There are no data to calibrate and judge on.
            VerificationError: The budget cannot be kept.
        """
        budget = self._budget()
        evaluation = evaluate(
            captured.original_model, dataset, budget.metric, budget.max_drop, threads=self.request.threads
        )
        if evaluation.original == 0:
            raise DataError(
                f"the original scores 0 by the metric {budget.metric.name!r}: what is lost cannot be told",
                hint="are the labels right, and a row of them beside each sample (--help: --data)?",
            )
        if dataset.cuts_batches:
            report.warnings.append(
                "each row of a batch in the data counts as a sample, since labels have a row for each; an entry that "
                "is one sample, as a sequence with a label for each step, has one axis more"
            )
        if not evaluation.tells:
            report.warnings.append(TELLS_NOTHING)
        seconds, last_turn = budget.seconds, math.inf
        if seconds is None:
            # A pass that takes a share of the time for itself brings as much for those that follow.
            whole = _WHOLE_SECONDS * (1 + sum(1 / pass_.share - 1 for pass_ in lossy[:-1] if pass_.searches))
            last_turn = self._started + whole
            seconds = max(_LEAST_SEARCH_SECONDS, last_turn - time.monotonic())
        proposals = Proposals(
            lossy, budget, dataset, evaluation, seconds, len(targets),
            self.request.threads, self.request.seed, self.progress.stage, last_turn,
        )  # fmt: skip
        for target, probe in self._in_turns(targets, proposals, optimized):
            passes = target.legalization()

            def legalize(
                model: ir.Model, passes: Sequence[Pass] = passes, target: Target = target
            ) -> ir.Model:
                return PassManager(passes, allow_domains=target.allowed_domains() | _DOMAINS).run(model)[0]

            folder = self.work / target.name
            found, records = proposals.propose(target, optimized, folder, legalize)
            report.passes += records
            for candidate, legal in found:
                label = candidate.label if len(targets) == 1 else f"{target.name}: {candidate.label}"
                while label in self._forms.graphs:
                    label += "'"
                knobs = {**target.variants(legal, None)[0], **candidate.knobs}
                place = folder / f"lossy-{len(self._forms.written)}"
                written = proposals.written(label, legal, target)
                self._forms.add(label, target, written, place, knobs, computes=legal)
                proposals.judged[label] = evaluation
                proposals.candidates[label] = candidate
                if not probe.runnable:
                    self.progress.stage("lossy passes", f"judging {label} on the CPU")
                    proposals.judge_here(label, legal)
        if not proposals.store_all:
            proposals.check(bool(proposals.candidates))
        report.warnings += proposals.warnings
        if self.request.data is None:
            report.warnings.append(
                "calibrated and judged on made-up inputs: the accuracy on real data is unknown (give some with --data)"
            )
        elif not evaluation.held_out:
            report.warnings.append(
                f"too few samples to hold some out ({len(evaluation.feeds)}; an array of several has one axis more "
                "than its input): the result is judged on the samples that calibrated it"
            )
        return proposals

    def _in_turns(
        self,
        targets: Sequence[tuple[Target, Probe]],
        proposals: Proposals,
        optimized: ir.Model,
    ) -> Sequence[tuple[Target, Probe]]:
        """The targets, the one first on which the lossy passes are likeliest to come to the fastest form."""
        last = {form.target: form for form in self._forms.written if not form.baseline}
        times: dict[str, float] = {}
        timed = [last[target.name] for target, probe in targets if probe.runnable and target.name in last]
        if len(timed) > 1 and not self._large:
            self.progress.stage("lossy passes", "times in float")
            feeds = proposals.evaluation.feeds[0]
            with contextlib.suppress(TargetError), Bench(feeds, threads=self.request.threads) as bench:
                timings = bench.time(timed, seconds=_SECONDS_IN_FLOAT, least_rounds=2, most_rounds=5)
                times = {timing.form.target: timing.milliseconds for timing in timings}
        return proposals.in_turns(targets, optimized, times)

    def _store(
        self, selection: Selection, proposals: Proposals, chosen: Form
    ) -> tuple[Form, PassRecord | None]:
        """The form that was chosen, from a smaller file where that holds as well; and what was tried."""
        left = _UNTIL_STORED - (time.monotonic() - self._started)
        seconds = min(max(left, _LEAST_STORAGE_SECONDS), _MOST_STORAGE_SECONDS)
        storing = Storing(selection, proposals, self.work, measure=self.request.time_forms)
        return storing.run(chosen, deadline=time.monotonic() + seconds)

    def _budget(self) -> Budget:
        return self.request.budget or Budget(find_metric(None), parse_drop(None))

    def _makes_data_up(self) -> bool:
        return self.request.data is None and self._budget().synthetic

    def _dataset(self, captured: Captured, reference: Reference | None) -> Dataset:
        """The samples of lossy passes.

        Raises:
            DataError: There are none, and made-up ones were not allowed.
        """
        request = self.request
        return dataset_for(
            request.data, captured.model, reference, self._budget().metric,
            synthetic=self._makes_data_up(), seed=request.seed, transform=request.transform, fixed=captured.fixed,
        )  # fmt: skip

    def _reference(self, captured: Captured, dataset: Dataset | None = None) -> Reference:
        data: Iterator[Feeds] | None = None
        if dataset is not None:
            data = (sample.feeds for sample in dataset)
        elif self.request.data is not None:
            data = samples(self.request.data, inputs_of(captured.model), fixed=captured.fixed)
        return build_reference(
            captured.original_model,
            interface=captured.model,
            data=data,
            example=dict(captured.example),
            seed=self.request.seed,
            progress=lambda text: self.progress.stage("reference", text),
        )

    def _verify_capture(self, captured: Captured, reference: Reference, report: Report) -> bool:
        """Whether the graph in internal form still computes the original; if not, the original is what is left."""
        if reference.is_hollow:
            report.warnings.append(
                "no output holds a finite number on these inputs: nothing can be compared, so the model is left as it "
                "was (give other inputs with --data)"
            )
            return False
        try:
            comparison = reference.compare_model(captured.model, CAPTURE_MULTIPLE)
            why = comparison.describe()
            held = comparison.ok
        except TargetError as error:
            held, why = False, f"it cannot be run: {error.message}"
        if not held:
            report.warnings.append(
                f"raised from opset {captured.source_opset}, the model does not hold ({why}); it is left as it was"
            )
        return held

    def _manager(
        self,
        passes: Sequence[Pass],
        reference: Reference,
        domains: frozenset[str] = frozenset(),
        listeners: Sequence[Listener] = (),
    ) -> PassManager:
        return PassManager(
            passes,
            reference=reference,
            listeners=(self.progress, *listeners),
            limits=self.request.limits,
            allow_domains=domains | _DOMAINS,
            repro_dir=self.request.repro_dir,
        )

    def _add_forms(
        self,
        target: Target,
        optimized: ir.Model,
        captured: Captured,
        reference: Reference,
        held: bool,
    ) -> list[PassRecord]:
        """Write the forms of one target: the original, the optimised graph, and the legalised one."""
        forms = self._forms
        prefix = f"{target.name}: " if forms.written else ""
        if target.runs_original or not held:
            forms.add_original(target, captured)
        if not held:
            return []
        passes = target.legalization()
        legal, records = self._manager(passes, reference, target.allowed_domains()).run(optimized)
        changed = any(record.status in CHANGED for record in records)
        exact = all(record.numerics is Numerics.EXACT for record in records if record.status in CHANGED)
        wanted = [] if changed and (self._large or exact) else [("optimized", optimized)]
        wanted += [("legalized", legal)] if changed else []
        if self.request.effort is not None and isinstance(target, Tunable):
            self._tune(target, wanted[-1][1], reference, self.request.effort)
        before = len(forms.written)
        for name, model in wanted:
            try:
                forms.add(prefix + name, target, model, forms.folder(target, name))
            except TargetError as error:
                # One form is enough: what the target lacks may be what legalisation replaces.
                forms.left_out.append(FormTiming(prefix + name, note=error.message))
        if len(forms.written) == before:
            # It may take the model, and not what the passes made of it.
            plain, records = self._manager(passes, reference, target.allowed_domains()).run(captured.model)
            forms.add(prefix + "captured", target, plain, forms.folder(target, "captured"))
        return records

    def _tune(
        self, target: Tunable, model: ir.Model, reference: Reference, effort: Effort, tracker: str = ""
    ) -> Tuning:
        self.progress.stage("tune", "")
        self.tuning = target.tune(
            model,
            reference.trials[0].feeds,
            effort,
            tracker=tracker,
            progress=lambda text: self.progress.stage("tune", text),
        )
        return self.tuning

    @contextlib.contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        interrupt.check()
        self.progress.stage(name)
        started = time.monotonic()
        try:
            yield
        finally:
            self._stages[name] = self._stages.get(name, 0.0) + time.monotonic() - started


def _refuse_to_judge(lossy: Sequence[LossyPass], targets: Sequence[Target]) -> None:
    """Where nothing can be compared, the original in ONNX Runtime is all that can be handed out.

    Raises:
        DataError: Something else is asked for.
    """
    what = f"{lossy[0].name} cannot be judged" if lossy else ""
    if not any(target.runs_original for target in targets):
        what = f"nothing can be verified on {targets[0].name}"
    if what:
        raise DataError(
            f"no output of the model holds a finite number on these inputs, so {what}",
            hint="give other inputs with --data",
        )


def _not_numbers(reference: Reference) -> list[str]:
    """Warnings of inputs that hold NaN or infinity: what they come to says little of others."""
    return [
        f"the data hold NaN or infinity in {name!r} (sample {index}): backends differ in what they make of it"
        for index, trial in enumerate(reference.trials)
        for name, array in trial.feeds.items()
        if isinstance(array, np.ndarray) and array.dtype.kind == "f" and not np.isfinite(array).all()
    ][:1]


def _drop_unused_opsets(model: ir.Model) -> None:
    """A runtime may refuse a domain that it does not know, whether a node is of it or not."""
    used = {"", *(node.domain for node in model.graph.all_nodes())}
    for domain in set(model.graph.opset_imports) - used:
        del model.graph.opset_imports[domain]
