"""One compilation, from the captured model to the verified bundle.

Reads top to bottom: capture, reference, passes, legalisation, forms, verification of each form, timing, choice,
bundle, and verification of the bundle as it lies on disk.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import onnx_ir as ir

from graphopt import artifact, catalog
from graphopt._version import __version__
from graphopt.capture import Captured, capture
from graphopt.data.interface import Feeds, inputs_of, optional_inputs_of, outputs_of
from graphopt.data.load import samples
from graphopt.errors import GraphoptError, TargetError, UsageError
from graphopt.ir import model as ir_model
from graphopt.ir.hash import content_hash
from graphopt.pipeline.base import Pass
from graphopt.pipeline.manager import Limits, PassManager, count_nodes
from graphopt.pipeline.record import PassRecord, PassStatus
from graphopt.pipeline.spec import PassSpec
from graphopt.report import FormTiming, Report
from graphopt.report_html import render
from graphopt.rewrite import Numerics
from graphopt.target import Form, Probe, Target
from graphopt.tune.paired import Bench, Timing, Worker
from graphopt.verify.compare import Comparison
from graphopt.verify.reference import Reference, build_reference

FORM_MULTIPLE = 8.0
CAPTURE_MULTIPLE = 8.0
ORIGINAL = "original"
_TIE = 0.02
_KNOB_GAIN = 0.03
_LARGE_BYTES = 1 << 30


class Progress(Protocol):
    """Told what a compilation is doing; the command line draws it."""

    def stage(self, name: str, detail: str = "") -> None:
        """A stage begins."""

    def pass_started(self, name: str) -> None:
        """A pass begins."""

    def pass_ended(self, record: PassRecord, model: ir.Model) -> None:
        """A pass has ended."""


class Silent:
    """Progress that nobody sees."""

    def stage(self, name: str, detail: str = "") -> None:
        """Ignored."""

    def pass_started(self, name: str) -> None:
        """Ignored."""

    def pass_ended(self, record: PassRecord, model: ir.Model) -> None:
        """Ignored."""


@dataclass
class Request:
    """What to compile and how; the arguments of :func:`graphopt.compile`.

    Attributes:
        model: A path or an object that :func:`graphopt.capture.capture` takes.
        target: A target, or a group of targets.
        passes: Specifications and Python objects, in order.
        measure_seconds: Time for measuring the forms.
        verify_only: Run the passes and verification, but time nothing and write nothing.
    """

    model: Any
    target: str = "cpu"
    passes: Sequence[PassSpec | object] = (PassSpec("fuse"),)
    example_inputs: Any = None
    dynamic_shapes: Any = None
    data: Any = None
    input_shapes: Mapping[str, Sequence[int | None]] | None = None
    seed: int = 0
    threads: int = 0
    measure_seconds: float = 3.0
    time_forms: bool = True
    repro_dir: Path | None = None
    limits: Limits = field(default_factory=Limits)
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Outcome:
    """A finished compilation: the chosen form in a folder that lives as long as this object, and the report."""

    report: Report
    manifest: artifact.Manifest
    folder: Path
    reference: Reference


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
        self._stages: dict[str, float] = {}
        self._results: dict[str, ir.Model] = {}
        self._large = False

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
        started = time.monotonic()
        request = self.request
        targets = self._runnable_targets(catalog.targets_of(request.target))
        passes = catalog.expand(tuple(request.passes))
        with self._stage("capture"):
            captured = self._capture(request.input_shapes)
        self._large = ir_model.nbytes(captured.original_model) > _LARGE_BYTES
        report = self._new_report(captured, targets[0][0].name)
        with self._stage("reference"):
            reference = self._reference(captured)
        held = self._verify_capture(captured, reference, report)
        with self._stage("passes"):
            optimized, report.passes = self._optimize(captured, passes, reference, held)
            if request.input_shapes and any(map(_was_rejected, report.passes)):
                # With fixed sizes a branch that is never taken may have no valid shapes (a model of two sample rates).
                report.warnings.append(
                    "with these input shapes the backend rejects a branch of the model: it is compiled with dynamic "
                    "dimensions, and verified and measured with the shapes given"
                )
                captured = self._capture(None)
                held = self._verify_capture(captured, reference, report)
                optimized, report.passes = self._optimize(captured, passes, reference, held)
        forms: list[Form] = []
        with self._stage("legalize"):
            for target, _ in targets:
                report.passes += self._add_forms(target, optimized, captured, reference, forms, held)
        feeds = reference.trials[0].feeds
        with Bench(feeds, threads=request.threads, most_loaded=1 if self._large else 8) as bench:
            with self._stage("verify"):
                report.forms = [self._verify_form(bench, form, reference, targets) for form in forms]
            with self._stage("measure"):
                chosen = self._choose(bench, forms, report, reference, targets)
        report.chosen = chosen.label
        report.target = chosen.target
        final = self._results[chosen.label]
        self._finish_report(report, captured, final, chosen, reference)
        report.seconds = time.monotonic() - started
        report.stages = dict(self._stages)
        manifest = self._manifest(
            captured, report, chosen, final, dict(targets_by_name(targets)[chosen.target][1].machine)
        )
        return Outcome(report, manifest, chosen.folder, reference)

    # -- the steps -------------------------------------------------------------------------------------------

    def _capture(self, input_shapes: Mapping[str, Sequence[int | None]] | None) -> Captured:
        request = self.request
        return capture(
            request.model,
            example_inputs=request.example_inputs,
            dynamic_shapes=request.dynamic_shapes,
            input_shapes=input_shapes,
        )

    def _optimize(
        self, captured: Captured, passes: Sequence[Pass], reference: Reference, held: bool
    ) -> tuple[ir.Model, list[PassRecord]]:
        if not held:
            return captured.model, []
        return self._manager(passes, reference).run(captured.model)

    def _runnable_targets(self, targets: Sequence[Target]) -> list[tuple[Target, Probe]]:
        probed = [(target, target.probe()) for target in targets]
        usable = [(target, probe) for target, probe in probed if probe.available]
        if not usable:
            reasons = "; ".join(probe.reason for _, probe in probed if probe.reason)
            raise TargetError(
                f"the target {self.request.target!r} is not available: {reasons}", hint="graphopt doctor"
            )
        runnable = [(target, probe) for target, probe in usable if probe.runnable]
        return runnable or usable

    def _new_report(self, captured: Captured, target: str) -> Report:
        report = Report(
            name=captured.name,
            source=str(captured.original or captured.kind),
            source_opset=captured.source_opset,
            opset=captured.model.opset_imports.get("", 0),
            target=target,
            threads=self.request.threads,
            warnings=list(captured.warnings),
        )
        report.nodes_before = count_nodes(captured.original_model)
        report.nodes_captured = count_nodes(captured.model)
        report.ops_before = ir_model.op_counts(captured.original_model)
        return report

    def _reference(self, captured: Captured) -> Reference:
        data: Iterator[Feeds] | None = None
        if self.request.data is not None:
            data = samples(
                self.request.data, inputs_of(captured.model), optional=optional_inputs_of(captured.model)
            )
        return build_reference(
            captured.original_model,
            interface=captured.model,
            data=data,
            seed=self.request.seed,
            progress=lambda text: self.progress.stage("reference", text),
        )

    def _verify_capture(self, captured: Captured, reference: Reference, report: Report) -> bool:
        """Whether the graph in internal form still computes the original; if not, the original is what is left."""
        try:
            comparison = reference.compare_model(captured.model, CAPTURE_MULTIPLE)
            why = comparison.describe()
            held = comparison.ok
        except GraphoptError as error:
            held, why = False, error.message
        if not held:
            report.warnings.append(
                f"raising the model from opset {captured.source_opset} changed it ({why}); it is left as it was"
            )
        return held

    def _manager(
        self, passes: Sequence[Pass], reference: Reference, domains: frozenset[str] = frozenset()
    ) -> PassManager:
        return PassManager(
            passes,
            reference=reference,
            listeners=(self.progress,),
            limits=self.request.limits,
            allow_domains=domains | frozenset({"com.microsoft", "ai.onnx.ml"}),
            repro_dir=self.request.repro_dir,
        )

    def _add_forms(
        self,
        target: Target,
        optimized: ir.Model,
        captured: Captured,
        reference: Reference,
        forms: list[Form],
        held: bool,
    ) -> list[PassRecord]:
        """Write the forms of one target: the original, the optimised graph, and the legalised one."""
        prefix = "" if not forms else f"{target.name}: "

        def add(label: str, model: ir.Model, folder: Path) -> None:
            folder.mkdir(parents=True)
            config = target.emit(model, folder, target.variants(model, None)[0])
            forms.append(Form(prefix + label, target.name, folder, config))
            self._results[prefix + label] = model

        base = self.work / target.name
        if not self._link_original(captured, target, base / "original", forms, prefix):
            add(ORIGINAL, captured.original_model, base / "original")
        if not held:
            return []
        passes = [*catalog.expand(tuple(map(PassSpec, target.groups))), *target.legalization()]
        legal, records = self._manager(passes, reference, target.allowed_domains()).run(optimized)
        changed = any(record.status in (PassStatus.APPLIED, PassStatus.PARTLY_UNDONE) for record in records)
        if not changed or not (self._large or all(record.numerics is Numerics.EXACT for record in records)):
            add("optimized", optimized, base / "optimized")
        if changed:
            add("legalized", legal, base / "legalized")
        return records

    def _link_original(
        self, captured: Captured, target: Target, folder: Path, forms: list[Form], prefix: str
    ) -> bool:
        """Take the user's own file as the original's form where it lies on this disk; no weights are copied."""
        if captured.original is None or captured.kind != "onnx":
            return False
        source = Path(captured.original)
        files = {source, *external_files(captured.original_model)}
        if source.suffix != ".onnx" or any(file.parent != source.parent for file in files):
            return False
        folder.mkdir(parents=True)
        try:
            for file in files:
                (folder / file.name).hardlink_to(file.resolve())
        except OSError:
            shutil.rmtree(folder)
            return False
        label = prefix + ORIGINAL
        forms.append(Form(label, target.name, folder, {"file": source.name}))
        self._results[label] = captured.original_model
        return True

    def _verify_form(
        self, bench: Bench, form: Form, reference: Reference, targets: Sequence[tuple[Target, Probe]]
    ) -> FormTiming:
        timing = FormTiming(form.label)
        if not targets_by_name(targets)[form.target][1].runnable:
            timing.note = "compiled, not run: this machine cannot run the target"
            return timing
        if form.label == ORIGINAL:
            timing.verified = True
            return timing
        self.progress.stage("verify", form.label)
        try:
            comparison = reference.compare(bench.worker(form).outputs, FORM_MULTIPLE)
            timing.verified = comparison.ok
            timing.note = "" if comparison.ok else comparison.describe()
        except TargetError as error:
            timing.note = error.message
        if not timing.verified:
            bench.drop(form)
        return timing

    def _choose(
        self,
        bench: Bench,
        forms: Sequence[Form],
        report: Report,
        reference: Reference,
        targets: Sequence[tuple[Target, Probe]],
    ) -> Form:
        """The fastest verified form; the original unless another is measured to be no slower."""
        by_label = {form.label: form for form in forms}
        if not any(probe.runnable for _, probe in targets):
            # Nothing can be measured here: the legalised graph was verified on the CPU.
            return by_label.get("legalized", forms[-1])
        candidates = [by_label[timing.label] for timing in report.forms if timing.verified]
        if not self.request.time_forms:
            return candidates[-1]
        best = candidates[0]
        if len(candidates) > 1:
            best = self._fastest(bench, candidates, report)
        return self._best_variant(bench, best, candidates[0], report, reference, targets)

    def _fastest(self, bench: Bench, candidates: Sequence[Form], report: Report) -> Form:
        original = candidates[0]
        timings = self._time(bench, [original, *candidates[1:]])
        best = max(timings[1:], key=lambda timing: timing.speedup)
        if abs(best.speedup - 1) < 3 * _TIE:
            # Close to a tie: look again, at these two alone, before saying that it is no slower.
            again = self._time(bench, [original, best.form])
            timings = [
                again[0],
                *(timing for timing in timings[1:] if timing.form is not best.form),
                again[1],
            ]
            best = again[1]
        for timing in timings:
            self._enter(report, timing)
        if best.speedup < 1.0:
            entry = next(entry for entry in report.forms if entry.label == best.form.label)
            entry.note = f"slower than the original: {best.describe()}"
            report.warnings.append(
                f"no rewritten form was as fast as the original (the best: {best.describe()}); it is left as it was"
            )
            return original
        return best.form

    def _best_variant(
        self,
        bench: Bench,
        best: Form,
        original: Form,
        report: Report,
        reference: Reference,
        targets: Sequence[tuple[Target, Probe]],
    ) -> Form:
        """Try the target's knobs on the best form; one is taken where its gain is beyond doubt and it verifies."""
        target = targets_by_name(targets)[best.target][0]
        latency = next((entry.milliseconds for entry in report.forms if entry.label == best.label), None)
        variants = [
            Form(
                f"{best.label}, {knobs['label']}",
                best.target,
                best.folder,
                {**best.config, **_without_label(knobs)},
            )
            for knobs in target.variants(self._results[best.label], latency)[1:]
        ]
        timings = self._time(bench, [best, *variants])
        for timing in sorted(timings[1:], key=lambda timing: timing.speedup, reverse=True):
            if timing.speedup < 1 + _KNOB_GAIN or timing.low < 1:
                break
            entry = self._verify_form(bench, timing.form, reference, targets)
            report.forms.append(entry)
            if entry.verified:
                for confirmed in self._time(bench, [original, timing.form]):
                    self._enter(report, confirmed)
                self._results[timing.form.label] = self._results[best.label]
                return timing.form
        if latency is None:
            self._enter(report, Timing(original, timings[0].milliseconds, 1.0, 1.0, 1.0, timings[0].rounds))
        return best

    def _time(self, bench: Bench, forms: Sequence[Form]) -> list[Timing]:
        return bench.time(
            forms,
            seconds=self.request.measure_seconds,
            progress=lambda text: self.progress.stage("measure", text),
        )

    @staticmethod
    def _enter(report: Report, timing: Timing) -> None:
        entry = next(entry for entry in report.forms if entry.label == timing.form.label)
        entry.milliseconds, entry.speedup = timing.milliseconds, timing.speedup
        entry.low, entry.high, entry.rounds = timing.low, timing.high, timing.rounds

    def _finish_report(
        self, report: Report, captured: Captured, final: ir.Model, chosen: Form, reference: Reference
    ) -> None:
        report.nodes_after = count_nodes(final)
        report.ops_after = ir_model.op_counts(final)
        report.opset = final.opset_imports.get("", 0)
        original = next(iter(sorted(self.work.glob("*/original"))))
        report.size_before = _file_size(captured) or artifact.size_of(original)
        report.size_after = artifact.size_of(chosen.folder)
        verification = report.verification
        verification.trials = [
            {name: int(size) for name, size in trial.sizes.items()} for trial in reference.trials
        ]
        verification.synthetic = reference.synthetic
        verification.random_outputs = tuple(sorted(reference.random_outputs))
        if reference.synthetic:
            report.warnings.append(
                "no real data were seen: verified on made-up inputs (give real ones with --data)"
            )
        if reference.random_outputs:
            report.warnings.append(
                "the model is random: not compared: " + ", ".join(sorted(reference.random_outputs))
            )
        for record in report.passes:
            for entry in record.undone:
                where = f" (repro: {entry.repro})" if entry.repro else ""
                report.warnings.append(f"{record.name}: undone: {entry.what}: {entry.reason}{where}")

    def _manifest(
        self, captured: Captured, report: Report, chosen: Form, final: ir.Model, machine: dict[str, Any]
    ) -> artifact.Manifest:
        return artifact.Manifest(
            graphopt=__version__,
            name=report.name,
            target=chosen.target,
            config=dict(chosen.config),
            inputs=artifact.tensors(inputs_of(captured.model)),
            outputs=artifact.tensors(outputs_of(captured.model)),
            optional_inputs=sorted(optional_inputs_of(captured.model)),
            machine=machine,
            hashes={"source": content_hash(captured.original_model), "result": content_hash(final)},
            options=dict(self.request.options),
            warnings=list(report.warnings),
        )

    @contextlib.contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        self.progress.stage(name)
        started = time.monotonic()
        try:
            yield
        finally:
            self._stages[name] = self._stages.get(name, 0.0) + time.monotonic() - started


def targets_by_name(targets: Sequence[tuple[Target, Probe]]) -> dict[str, tuple[Target, Probe]]:
    """The same, by name."""
    return {target.name: (target, probe) for target, probe in targets}


def _was_rejected(record: PassRecord) -> bool:
    return any("ONNX Runtime rejects" in entry.reason for entry in record.undone)


def _without_label(knobs: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in knobs.items() if key != "label"}


def compare_form(
    form: Form, reference: Reference, threads: int, multiple: float = FORM_MULTIPLE
) -> Comparison:
    """Run a form in a process of its own on every trial and compare.

    Raises:
        TargetError: It does not load or run.
    """
    worker = Worker(form, None, threads)
    try:
        worker.wait_ready()
        return reference.compare(worker.outputs, multiple)
    finally:
        worker.close()


def write_bundle(
    outcome: Outcome, output: Path, *, threads: int = 0, progress: Callable[[str], None] = lambda text: None
) -> None:
    """Write the outcome as a bundle, load it again from disk, verify it, and only then put it in its place.

    Raises:
        BundleError: The place cannot be written.
        GraphoptError: The bundle as written does not hold.
    """
    report, manifest = outcome.report, outcome.manifest
    with artifact.replacing(output) as staging:
        for file in sorted(outcome.folder.iterdir()):
            _place(file, staging / file.name)
        artifact.write_manifest(staging, manifest)
        progress("verifying the bundle as written")
        _verify_bundle(staging, outcome, threads)
        report.output = str(output)
        manifest.passes = [record.as_dict() for record in report.passes]
        manifest.verification = report.as_dict()["verify"]
        manifest.measurements = {"forms": [vars(form) for form in report.forms], "threads": report.threads}
        manifest.warnings = list(report.warnings)
        manifest.report = report.as_dict()
        artifact.write_manifest(staging, manifest)
        (staging / "report.html").write_text(render(report), encoding="utf-8")


def _place(file: Path, place: Path) -> None:
    """A hard link costs nothing where both folders share a disk; a file that is the user's own is copied."""
    if file.stat().st_nlink == 1:
        try:
            place.hardlink_to(file)
            return
        except OSError:
            pass
    shutil.copyfile(file, place)


def _verify_bundle(folder: Path, outcome: Outcome, threads: int) -> None:
    manifest = artifact.read_manifest(folder)
    artifact.check_files(folder, manifest)
    verification = outcome.report.verification
    target = catalog.target(manifest.target)
    if not target.probe().runnable:
        verification.status = "verified, not run on the target"
        return
    form = Form("bundle", manifest.target, folder, manifest.config)
    comparison = compare_form(form, outcome.reference, threads)
    verification.value, verification.noise_floor = comparison.relative_error, comparison.noise_floor
    verification.describe = comparison.describe()
    if not comparison.ok and outcome.report.chosen != ORIGINAL:
        raise GraphoptError(
            f"the bundle as written does not hold: {comparison.describe()}", hint="please report this"
        )
    verification.status = "verified"


def _file_size(captured: Captured) -> int:
    """Bytes of the model's file with its external data; 0 where it was no file."""
    if captured.original is None:
        return 0
    files = {Path(captured.original), *external_files(captured.original_model)}
    return sum(file.stat().st_size for file in files if file.exists())


def external_files(model: ir.Model) -> set[Path]:
    """Files that hold the model's external data."""
    return {Path(tensor.path) for tensor in ir_model.external_tensors(model)}


def parse_budget(text: str | float) -> float:
    """Seconds from ``90``, ``"90s"`` or ``"10m"``.

    Raises:
        UsageError: It is none of these.
    """
    if isinstance(text, int | float):
        return float(text)
    units = {"s": 1.0, "m": 60.0, "h": 3600.0}
    number, unit = (text[:-1], text[-1]) if text and text[-1] in units else (text, "s")
    try:
        seconds = float(number) * units[unit]
    except ValueError:
        seconds = -1.0
    if not seconds > 0:
        raise UsageError(f"cannot read the budget {text!r}", hint="write seconds or minutes: 30s, 10m")
    return seconds
