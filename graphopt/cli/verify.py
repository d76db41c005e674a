"""``graphopt verify``: compare a bundle with its original again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from graphopt.cli._options import common, inputs_options, seed_option, threads_option

if TYPE_CHECKING:
    import onnx_ir as ir

    from graphopt.artifact import Manifest
    from graphopt.cli._console import Progress
    from graphopt.cli._subject import Subject
    from graphopt.data.dataset import Transform
    from graphopt.data.interface import TensorSpec
    from graphopt.errors import VerificationError
    from graphopt.report import Verification
    from graphopt.verify.compare import Comparison
    from graphopt.verify.evaluation import Evaluation
    from graphopt.verify.metrics import Metric
    from graphopt.verify.reference import Reference


@click.command("verify", short_help="Compare a bundle with the original model.")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("model", type=click.Path(path_type=Path))
@inputs_options
@click.option(
    "--metric",
    metavar="M",
    help="Of a lossy bundle, instead of the one that it was compiled by; needed where that is a function.",
)
@click.option("--max-drop", metavar="D", help="What it may lose, instead of what it was compiled with.")
@threads_option
@seed_option
@common
def command(
    bundle: Path,
    model: Path,
    data: Path | None,
    transform: str | None,
    input_shapes: tuple[str, ...],
    metric: str | None,
    max_drop: str | None,
    threads: int,
    seed: int,
    as_json: bool,
) -> None:
    """Run BUNDLE and the original MODEL on the same inputs and compare the outputs.

    The original runs in ONNX Runtime with its optimisations off, and its own noise floor is measured; the bundle must
    stay within a small multiple of it. A bundle of lossy passes is judged by its metric and budget instead, on all
    samples that are given. Exits with 1 where it does not hold.

    \b
      graphopt verify rec.gopt rec.onnx --data samples.npz
    """
    from graphopt.cli._console import Progress, write_json
    from graphopt.data.functions import transform_of
    from graphopt.report import Verdict
    from graphopt.tune.check import compare_form

    made_of = transform_of(transform, data)
    with Progress() as progress:
        pair = _read(bundle, model, input_shapes, progress)
        reference = _reference(pair, data, made_of, seed, progress)
        progress.say(f"running {bundle}")
        budget = _budget(pair, metric, max_drop)
        judged = comparison = None
        warnings: list[str] = []
        if budget is not None:
            evaluation = _evaluation(pair, reference, budget, data, made_of, seed, threads)
            warnings += _doubts(evaluation)
            judged = _judged(pair, evaluation, threads)
        else:
            comparison = compare_form(pair.subject.form, reference, threads)
    warnings += _warnings(pair, reference, comparison)
    result: dict[str, Any] = {
        "bundle": str(bundle),
        "model": str(model),
        "same_source": pair.same,
        "trials": [dict(trial.sizes) for trial in reference.trials],
        "synthetic": reference.synthetic,
        "warnings": warnings,
        **(_differences(comparison) if comparison is not None else {}),
        **({"status": judged.status.value, "budget": judged.budget} if judged is not None else {}),
    }
    held = result["status"] == Verdict.VERIFIED
    if as_json and held:
        write_json(result)
    elif not as_json:
        _show(result)
    if not held:
        raise _failure(pair, judged, comparison)


@dataclass(frozen=True)
class _Pair:
    """A bundle and the model that it is compared with.

    Attributes:
        subject, manifest: The bundle.
        model: Where the model is.
        original: The model.
        interface: The same in internal form, with the inputs that both take.
        specs: These inputs.
        same: Whether the bundle was compiled from this model.
    """

    subject: Subject
    manifest: Manifest
    model: Path
    original: ir.Model
    interface: ir.Model
    specs: tuple[TensorSpec, ...]
    same: bool


def _read(bundle: Path, model: Path, input_shapes: tuple[str, ...], progress: Progress) -> _Pair:
    """Both, from disk.

    Raises:
        UsageError: The one is no bundle, or they have different inputs or outputs.
    """
    from graphopt.capture import capture
    from graphopt.cli._subject import open_subject, specialized, with_inputs
    from graphopt.data.interface import inputs_of, outputs_of
    from graphopt.errors import UsageError
    from graphopt.ir.hash import content_hash

    progress.say(f"reading {bundle}")
    subject = open_subject(bundle, input_shapes)
    manifest = subject.manifest
    if manifest is None:
        raise UsageError(f"{bundle} is not a bundle", hint="usage: graphopt verify BUNDLE MODEL")
    progress.say(f"reading {model}")
    captured = capture(model)
    specs = common_inputs(subject, inputs_of(captured.model), outputs_of(captured.model), model)
    if not input_shapes:
        # A bundle may take more than it was compiled with: those sizes are the ones that are known to run.
        specs = specialized(specs, manifest.options.get("input_shapes", {}))
    same = content_hash(captured.original_model) == manifest.hashes.get("source")
    interface = with_inputs(captured.model, specs)
    return _Pair(subject, manifest, model, captured.original_model, interface, specs, same)


def _reference(
    pair: _Pair, data: Path | None, transform: Transform | None, seed: int, progress: Progress
) -> Reference:
    """What the original makes of the inputs.

    Raises:
        VerificationError: Nothing that could be compared.
    """
    from graphopt.errors import VerificationError
    from graphopt.verify.reference import build_reference

    reference = build_reference(
        pair.original,
        interface=pair.interface,
        data=None if data is None else pair.subject.samples(data, pair.specs, transform),
        seed=seed,
        progress=progress.say,
    )
    if reference.is_hollow:
        raise VerificationError(
            f"no output of {pair.model} holds a finite number on these inputs: nothing can be compared",
            hint="give other inputs with --data",
        )
    return reference


def _budget(pair: _Pair, metric: str | None, max_drop: str | None) -> tuple[Metric, float] | None:
    """The metric and what of it may be lost, as asked for, else as the bundle was compiled with; None where it is to
    compute the same.

    Raises:
        UsageError: There is no such metric, or no such share; the bundle's metric is a function.
    """
    from graphopt.verify.budget import parse_drop
    from graphopt.verify.metrics import find_metric

    compiled = pair.manifest.verification.get("budget") or {}
    if not compiled and metric is None and max_drop is None:
        return None
    return (
        find_metric(_metric_of(pair.subject.path, compiled) if metric is None else metric),
        parse_drop(compiled.get("allowed") if max_drop is None else max_drop),
    )


def _metric_of(bundle: Path, budget: Mapping[str, Any]) -> str | None:
    """The metric by which a bundle was judged; None where it was not.

    Raises:
        UsageError: It is a function of the user's own, which a bundle may name and not have run.
    """
    from graphopt.errors import UsageError
    from graphopt.verify.agreement import METRICS

    name: str | None = budget.get("metric")
    if name is None or name in METRICS:
        return name
    given = name if ":" in name else "FILE.py:FUNCTION"
    raise UsageError(
        f"{bundle} was judged by {name}, a function of the user's own, which is run only where it is given",
        hint=f"give it: --metric {given}; or judge by another: --metric sqnr",
    )


def _evaluation(
    pair: _Pair,
    reference: Reference,
    budget: tuple[Metric, float],
    data: Path | None,
    transform: Transform | None,
    seed: int,
    threads: int,
) -> Evaluation:
    """All samples that are given, with what the original makes of them."""
    from graphopt.verify.evaluation import dataset_for, evaluate

    metric, allowed = budget
    dataset = dataset_for(
        data, pair.interface, reference, metric, synthetic=True, seed=seed, transform=transform, whole=True
    )
    return evaluate(pair.original, dataset, metric, allowed, threads=threads, whole=True)


def _judged(pair: _Pair, evaluation: Evaluation, threads: int) -> Verification:
    from graphopt.report import Verification
    from graphopt.tune.check import judge_form

    found = Verification()
    judgement = judge_form(pair.subject.form, evaluation, threads)
    found.judge(judgement, evaluation, calibrated=False)
    return found


def _doubts(evaluation: Evaluation) -> list[str]:
    """Warnings of what the samples do not tell."""
    from graphopt.verify.evaluation import TELLS_NOTHING

    found = []
    if evaluation.is_cut:
        found.append(
            f"{len(evaluation.feeds)} of {evaluation.available} samples are judged on: more do not fit into memory "
            "with what both make of them"
        )
    if not evaluation.tells:
        found.append(TELLS_NOTHING)
    return found


def _warnings(pair: _Pair, reference: Reference, comparison: Comparison | None) -> list[str]:
    found = []
    if not pair.same:
        found.append(
            f"{pair.model} is not the model that {pair.subject.path} was compiled from (their content differs)"
        )
    if reference.synthetic:
        found.append("no real data were seen: verified on made-up inputs (give real ones with --data)")
    found += reference.warnings
    if comparison is not None and comparison.not_taken:
        found.append(
            f"it fails with sizes that the data do not have, where {pair.model} does not: {comparison.not_taken}"
        )
    if reference.random_outputs:
        found.append("the model is random: not compared: " + ", ".join(sorted(reference.random_outputs)))
    return found


def _failure(pair: _Pair, judged: Verification | None, comparison: Comparison | None) -> VerificationError:
    """What is raised of a bundle that does not hold."""
    from graphopt.errors import VerificationError

    bundle = pair.subject.path
    if judged is not None:
        return VerificationError(
            f"{bundle} is over its budget: {judged.describe}",
            hint="compile it again with these data, or allow more with --max-drop",
        )
    assert comparison is not None
    return VerificationError(
        f"{bundle} does not compute what {pair.model} does: {comparison.describe()}",
        hint="compile the model again"
        if pair.same
        else "compare it with the model that it was compiled from",
    )


def _differences(comparison: Comparison) -> dict[str, Any]:
    from graphopt.report import Verdict
    from graphopt.verify.compare import Status

    return {
        "status": (Verdict.VERIFIED if comparison.ok else Status.DIFFERENT).value,
        "allowed_multiple": comparison.multiple,
        "outputs": [
            {
                "name": output.name,
                "status": output.status.value,
                "relative_error": output.relative_error,
                "noise_floor": output.noise_floor,
                "ratio": output.ratio,
            }
            for output in comparison.outputs
        ],
    }


def common_inputs(
    subject: Subject, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], model: Path
) -> tuple[TensorSpec, ...]:
    """The inputs that the bundle and the model both take.

    Raises:
        UsageError: They have different inputs or outputs; says which.
    """
    from graphopt.data.intersection import differences, intersection
    from graphopt.errors import UsageError

    names = (str(subject.path), str(model))
    sides = {"inputs": (subject.inputs, inputs), "outputs": (subject.outputs, outputs)}
    for kind, (ours, theirs) in sides.items():
        found = differences(ours, theirs, names, shapes=kind == "inputs")
        if found:
            raise UsageError(
                f"{names[0]} and {names[1]} have different {kind}: {'; '.join(found)}",
                hint="give the model that the bundle was compiled from",
            )
    return intersection(subject.inputs, inputs)


def _show(result: dict[str, Any]) -> None:
    from graphopt.cli._console import bad, good, table, write
    from graphopt.cli._show import within_budget
    from graphopt.report import Verdict
    from graphopt.verify.compare import Status

    style = good if result["status"] == Verdict.VERIFIED else bad
    if "budget" in result:
        budget = result["budget"]
        write(f"{style(result['status'])}: {within_budget(budget)}")
        for warning in result["warnings"]:
            write(f"{bad('warning')}: {warning}")
        return
    rows = [
        [
            output["name"],
            (bad if output["status"] == Status.DIFFERENT.value else good)(output["status"]),
            *_numbers(output),
        ]
        for output in result["outputs"]
    ]
    write(table(("output", "status", "error", "noise floor", "multiple at worst"), rows, right=(2, 3, 4)))
    write()
    kind = "made-up" if result["synthetic"] else "real"
    count = len(result["trials"])
    write(
        f"{style(result['status'])} on {count} {kind} input{'s' if count > 1 else ''}; "
        f"allowed: {result['allowed_multiple']:g} times the noise floor"
    )
    for warning in result["warnings"]:
        write(f"{bad('warning')}: {warning}")


def _numbers(output: dict[str, Any]) -> list[str]:
    """Error, noise floor and their quotient; of an output that differs in more than numbers there are none."""
    from graphopt.verify.compare import Status

    if output["status"] == Status.DIFFERENT.value and not output["relative_error"]:
        return ["", "", ""]
    return [f"{output['relative_error']:.1e}", f"{output['noise_floor']:.1e}", f"{output['ratio']:.2g}"]
