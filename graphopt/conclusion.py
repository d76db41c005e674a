"""What a compilation comes to: the last entries of its report, and the bundle's manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import onnx_ir as ir

from graphopt import artifact
from graphopt._version import __version__
from graphopt.capture import Captured
from graphopt.data.interface import TensorSpec, inputs_of, outputs_of
from graphopt.errors import TargetError
from graphopt.ir import model as ir_model
from graphopt.ir.hash import content_hash
from graphopt.lineage import Lineage
from graphopt.proposals import Proposals
from graphopt.report import Report, Verdict
from graphopt.rewrite import Numerics
from graphopt.selection import Selection, inherited
from graphopt.target import Form
from graphopt.verify.evaluation import Evaluation
from graphopt.verify.reference import Reference

_UNSTEADY = 1.3
"""Upper over lower end of an interval, from which it says little."""


def judge(
    report: Report, selection: Selection, proposals: Proposals, chosen: Form, computed: Form
) -> Evaluation | None:
    """Enter what the chosen form scores; say so where no lossy form was chosen although one was asked for.

    Args:
        computed: What ``chosen`` computes: the form that it was before it was stored in fewer bits.

    Returns:
        How the chosen form was judged; None where it loses nothing.
    """
    evaluation = proposals.evaluation
    judgement = selection.judgements.get(chosen.label)
    if judgement is not None:
        report.verification.judge(judgement, evaluation)
    if computed.label in selection.judgements:
        if selection.targets[chosen.target][1].runnable:
            _read_back(report, selection, proposals, chosen)
        elif judgement is not None and judgement.ok:
            report.verification.status = Verdict.NOT_RUN
        return evaluation
    names = ", ".join(pass_.name for pass_ in proposals.passes)
    reasons = [
        f"{form.label}: {form.note}"
        for form in report.forms
        if form.label in proposals.candidates and not form.verified
    ]
    reasons = reasons or [
        f"{record.details.get('target', '')}: {record.reason}"
        for record in report.passes
        if record.numerics is Numerics.LOSSY and record.reason
    ]
    held = [form.label for form in report.forms if form.label in proposals.candidates and form.verified]
    if held or not reasons:
        measured = "slower" if proposals.wanted else "no faster"
        what = f"{', '.join(held)}:" if held else "what it proposed was"
        other = "" if report.prefer == "size" else " (--prefer size decides by the size of the bundle)"
        reasons.append(f"{what} measured to be {measured} than the float result{other if held else ''}")
    stored = "; constants are stored in fewer bits all the same" if chosen is not computed else ""
    report.warnings.append(f"{names} is not part of the result: {'; '.join(reasons)}{stored}")
    return evaluation if judgement is not None else None


def _read_back(report: Report, selection: Selection, proposals: Proposals, chosen: Form) -> None:
    """Write down which kernels the chosen form runs, and warn of integers that were asked for and are not there."""
    candidate = inherited(chosen, proposals.candidates)
    if candidate is None or not candidate.units:
        return
    try:
        found = proposals.read_back(chosen, candidate, selection.models[chosen.label])
    except TargetError as error:
        report.warnings.append(f"the kernels of the result could not be read back: {error.message}")
        return
    for record in report.passes:
        if record.numerics is Numerics.LOSSY and record.details.get("target") == chosen.target:
            record.details["executed"] = found
    if found["without_integer_kernel"]:
        names = ", ".join(found["without_integer_kernel"][:5])
        count = len(found["without_integer_kernel"])
        report.warnings.append(
            f"{count} quantized nodes run without an integer kernel on {chosen.target}: {names}"
        )


def finish(
    report: Report, captured: Captured, reference: Reference, final: ir.Model, sizes: tuple[int, int]
) -> None:
    """Enter counts, sizes, what was verified on, and the warnings that follow from them.

    Args:
        final: The graph of the result.
        sizes: Bytes of the original, where it was no file, and of the result.
    """
    report.nodes_after = ir_model.count_nodes(final)
    report.ops_after = ir_model.op_counts(final)
    report.opset = final.opset_imports.get("", 0)
    report.size_before, report.size_after = _file_size(captured) or sizes[0], sizes[1]
    verification = report.verification
    verification.trials = [
        {name: int(size) for name, size in trial.sizes.items()} for trial in reference.trials
    ]
    verification.synthetic = reference.synthetic
    verification.random_outputs = tuple(sorted(reference.random_outputs))
    if reference.synthetic:
        what = "the inputs were made up" if reference.is_hollow else "verified on made-up inputs"
        report.warnings.append(f"no real data were seen: {what} (give real ones with --data)")
    report.warnings += reference.warnings
    if reference.random_outputs:
        report.warnings.append(
            "the model is random: not compared: " + ", ".join(sorted(reference.random_outputs))
        )
    report.warnings += _unsteady(report)
    for record in report.passes:
        for entry in record.undone:
            where = f" (repro: {entry.repro})" if entry.repro else ""
            report.warnings.append(f"{record.name}: undone: {entry.what}: {entry.reason}{where}")


def manifest(
    report: Report,
    captured: Captured,
    lineage: Lineage,
    chosen: Form,
    final: ir.Model,
    *,
    machine: Mapping[str, Any],
    options: Mapping[str, Any],
) -> artifact.Manifest:
    """What a bundle says of its result.

    Args:
        final: The graph that ``chosen`` computes.
        machine: What the target found of this one.
        options: As asked for.
    """
    origins, nodes = lineage.finish(final, chosen.target)
    return artifact.Manifest(
        graphopt=__version__,
        name=report.name,
        target=chosen.target,
        config=dict(chosen.config),
        inputs=artifact.tensors(_as_in(final, inputs_of(captured.model))),
        outputs=artifact.tensors(_as_in(final, outputs_of(captured.model))),
        machine=dict(machine),
        hashes={"source": content_hash(captured.original_model), "result": content_hash(final)},
        options=dict(options),
        warnings=list(report.warnings),
        origins=origins,
        nodes=nodes,
    )


def _as_in(final: ir.Model, specs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    """The interface, with the element types that the result has where a lossy pass was asked to change them."""
    halves = {
        value.name: value.dtype.name.lower()
        for value in (*final.graph.inputs, *final.graph.outputs)
        if value.dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
    }
    return tuple(replace(spec, dtype=halves.get(spec.name, spec.dtype)) for spec in specs)


def _unsteady(report: Report) -> list[str]:
    """A warning where the machine was too busy for the speedup that is told."""
    found = next((form for form in report.forms if form.label == report.chosen), None)
    if found is None or not found.low or not found.high or found.high < _UNSTEADY * found.low:
        return []
    return [
        f"times varied much (95 % interval of the speedup {found.low:.2f} to {found.high:.2f}): the machine was busy; "
        "graphopt bench BUNDLE measures again"
    ]


def _file_size(captured: Captured) -> int:
    """Bytes of the model's file with its external data; 0 where it was no file."""
    if captured.original is None:
        return 0
    return sum(file.stat().st_size for file in captured.files if file.exists())


__all__ = ["finish", "judge", "manifest"]
