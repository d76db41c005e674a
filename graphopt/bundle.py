"""Writes the outcome of a compilation as a bundle, and proves the bundle before it takes its place."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from graphopt import artifact
from graphopt.errors import GraphoptError
from graphopt.machine import Form
from graphopt.report import Report, Verdict
from graphopt.report_html import render
from graphopt.tune.check import compare_form, judge_form
from graphopt.verify.evaluation import Evaluation
from graphopt.verify.reference import Reference


@dataclass
class Outcome:
    """A finished compilation: the chosen form in a folder that lives as long as this object, and the report.

    Attributes:
        evaluation: What the chosen form is held to where it is lossy; None where it is held to the noise floor.
        runnable: Whether this machine runs what was compiled.
    """

    report: Report
    manifest: artifact.Manifest
    folder: Path
    reference: Reference
    evaluation: Evaluation | None = None
    runnable: bool = True


def write_bundle(outcome: Outcome, output: Path, *, threads: int = 0) -> None:
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
        _verify_bundle(staging, outcome, threads)
        report.output = str(output)
        facts = report.as_dict()
        manifest.passes, manifest.verification = facts["passes"], facts["verify"]
        manifest.measurements = {key: facts[key] for key in ("forms", "knobs", "threads")}
        manifest.warnings = facts["warnings"]
        manifest.report = facts
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
    if not outcome.runnable:
        verification.status = Verdict.NOT_RUN
        return
    form = Form("bundle", manifest.target, folder, manifest.config)
    if outcome.evaluation is not None:
        _judge_bundle(form, outcome.evaluation, outcome, threads)
        return
    comparison = compare_form(form, outcome.reference, threads)
    if verification.status is Verdict.NOT_COMPARED:
        return
    verification.value, verification.noise_floor = comparison.relative_error, comparison.noise_floor
    verification.describe = comparison.describe()
    if comparison.ok:
        verification.status = Verdict.VERIFIED
        return
    if not outcome.report.keeps_original:
        raise GraphoptError(
            f"the bundle as written does not hold: {comparison.describe()}", hint="please report this"
        )
    verification.status, verification.value = Verdict.NOT_VERIFIED, None
    outcome.report.warnings.append(
        f"the original itself gives other numbers on {manifest.target} than in the reference run: "
        f"{comparison.describe()}"
    )


def _judge_bundle(form: Form, evaluation: Evaluation, outcome: Outcome, threads: int) -> None:
    judgement = judge_form(form, evaluation, threads)
    found = outcome.report.verification
    was_over = found.budget is not None and found.status is not Verdict.VERIFIED
    found.judge(judgement, evaluation)
    if not judgement.ok and not was_over:
        raise GraphoptError(
            f"the bundle as written breaks its budget: {judgement.describe()}", hint="please report this"
        )
