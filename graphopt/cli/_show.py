"""A report as a person reads it in a terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from graphopt.cli import _lossy
from graphopt.cli._console import bad, bold, dim, good, shape, table
from graphopt.pipeline.record import PassRecord, PassStatus
from graphopt.report import COMPILED_NOT_RUN, FormTiming, Report, Verdict, Verification, decided
from graphopt.rewrite import Numerics
from graphopt.target import Tuning
from graphopt.verify.budget import percent
from graphopt.words import milliseconds, size

_LABEL = 12
_WIDTH = 100
_MOST_OPS = 10


def lines(report: Report) -> list[str]:
    """The report, from what was captured to what was written."""
    shown = [_line("captured", _captured(report))]
    shown += _passes(report)
    if report.tuning is not None:
        shown.append(_line("tune", _tuned(report.tuning)))
    shown.append(_line("target", _target(report)))
    within = report.verification.budget is None or report.verification.status is Verdict.VERIFIED
    shown.append(_line("verified" if within else "judged", _verified(report)))
    shown.append(_line("speed", _speed(report)))
    if report.timed_on and report.baseline is not None and report.baseline.milliseconds is not None:
        shown += [_continued(dim(part)) for part in _wrap("on " + timed_on(report.timed_on))]
    if report.output is not None:
        inside = dim("(report.html inside)")
        shown.append(_line("wrote", f"{bold(report.output)}   {size(report.size_after)}   {inside}"))
    else:
        shown.append(_line("dry run", "nothing was written"))
    shown += ["", before_and_after(report)]
    return shown + _warnings(report)


def simplified_lines(report: Report) -> list[str]:
    """The report of a model that was simplified."""
    wrote = f"{bold(report.output or '')}   opset {report.opset}   {size(report.size_after)}"
    return [
        _line("captured", _captured(report)),
        *_passes(report),
        _line("verified", _verified(report)),
        _line("wrote", wrote),
        "",
        before_and_after(report),
        *_warnings(report),
    ]


def _warnings(report: Report) -> list[str]:
    shown = [_line("warning", warning, style=bad) for warning in report.warnings]
    return ["", *shown] if shown else []


def _line(label: str, text: str, style: object = bold) -> str:
    assert callable(style)
    return f"{style(label)}{' ' * max(1, _LABEL - len(label))}{text}"


def _continued(text: str) -> str:
    return " " * _LABEL + text


def _captured(report: Report) -> str:
    opset = f"opset {report.opset}"
    if report.source_opset and report.source_opset != report.opset:
        opset = f"opset {report.source_opset} -> {report.opset}"
    name = report.source.replace("\\", "/").rpartition("/")[2] or report.name
    if name == "torch":
        name = f"{report.name} (torch)"
    nodes = f"{report.nodes_before}"
    if report.nodes_captured not in (0, report.nodes_before):
        nodes += f" -> {report.nodes_captured}"
    return f"{name} · {opset} · {nodes} nodes · {size(report.size_before)}"


def _passes(report: Report) -> list[str]:
    shown: list[str] = []
    idle: list[str] = []
    for record in report.passes:
        if record.status is PassStatus.NOTHING and not record.refused:
            idle.append(record.name)
            continue
        shown += pass_lines(record, report)
    if idle:
        text = "nothing to do: " + ", ".join(idle)
        shown += [_continued(dim(part)) for part in _wrap(text)]
    return shown


def pass_lines(record: PassRecord, report: Report) -> list[str]:
    """One pass: what became of the graph, what it did, and what it left."""
    label = record.name if len(record.name) < _LABEL else record.name + "\n" + " " * (_LABEL - 1)
    if record.status is PassStatus.UNDONE:
        shown = [_line(label, f"{bad('undone')}: {record.reason}")]
    elif record.status is PassStatus.LEFT_OUT:
        shown = [_line(label, f"{bad('left out')}: {record.reason}")]
    elif record.status is PassStatus.NOTHING:
        shown = [_line(label, f"nothing done: {record.reason}")]
    else:
        nodes = f"{record.nodes_before} -> {record.nodes_after} nodes"
        shown = [_line(label, f"{nodes:<22} {record.seconds:5.1f} s   {numbers(record)}")]
    if record.details and record.numerics is Numerics.LOSSY:
        shown += [
            _continued(part)
            for part in (decided(record.details), *map(dim, _lossy.points(record.details)))
            if part
        ]
    words = [f"{name} x{count}" for name, count in sorted(record.rewrites.items(), key=lambda pair: -pair[1])]
    shown += [_continued(part) for part in _wrap("  ".join(words))] if words else []
    for entry in record.undone:
        if entry.what != record.name:
            shown.append(_continued(f"{bad('undone')} {entry.what}: {entry.reason}"))
        if entry.repro:
            shown.append(_continued(f"repro in {entry.repro}"))
    if record.refused:
        where = (
            f"graphopt explain {report.output}" if report.output and report.chosen else "--json lists them"
        )
        shown.append(_continued(dim(f"{len(record.refused)} refused: {where}")))
    return shown


def numbers(record: PassRecord) -> str:
    """What a pass did to the numbers."""
    if record.error is None:
        return record.numerics.value
    error = f"{record.error:.1e}, noise floor {record.noise_floor or 0:.1e}"
    return ("bit-identical" if record.identical else error) + (", all passes" if record.together else "")


def _wrap(text: str) -> list[str]:
    """Broken between words (two spaces or a comma apart) to the width of the report."""
    import textwrap

    return textwrap.wrap(text, _WIDTH - _LABEL, break_long_words=False, break_on_hyphens=False)


def _tuned(tuning: Tuning) -> str:
    estimate = ""
    if tuning.before is not None and tuning.estimate is not None:
        before, after = milliseconds(1e3 * tuning.before), milliseconds(1e3 * tuning.estimate)
        estimate = f", about {before} -> {after} ms by the kernels' times"
    return f"{tuning.trials} trials in {tuning.seconds:.0f} s: {coverage(tuning)}{estimate}"


def coverage(tuning: Tuning) -> str:
    """Shares of the model's time, in words."""
    return (
        f"{tuning.tuned_share:.0%} of the time in tuned kernels, {tuning.untuned_share:.0%} in untuned ones"
    )


def _target(report: Report) -> str:
    verified = [form for form in report.forms if form.verified]
    timed = [form for form in verified if form.milliseconds is not None]
    if report.keeps_original:
        return f"{report.target}, {bad('the original as it was')}: no other form was verified and as fast"
    if not timed:
        return f"{report.target}, {report.chosen}"
    what = "smallest that is no slower" if report.prefer == "size" else "fastest"
    return f"{report.target}, {report.chosen}: {what} of {len(timed)} verified"


def _verified(report: Report) -> str:
    found = report.verification
    inputs = "made-up" if found.synthetic else "real"
    others = 0 if found.synthetic else sum(bool(sizes) for sizes in found.trials)
    count = len(found.trials) - others
    where = f"on {count} {inputs} input{'' if count == 1 else 's'}"
    where += f" and {others} cut or repeated to other sizes" if others else ""
    if found.status is Verdict.NOT_RUN:
        proof = f"{found.describe} by {found.by}" if found.by else "the graph was verified on the CPU"
        return f"{bad(COMPILED_NOT_RUN)}: {proof} {where}"
    if found.budget is not None:
        return _within_budget(found)
    if found.status is not Verdict.VERIFIED:
        return bad(found.status)
    return f"{good(found.describe or 'verified')} {where}, reloaded from disk"


def _within_budget(found: Verification) -> str:
    """What the metric was and is, and how much of the budget that takes."""
    style = good if found.status is Verdict.VERIFIED else bad
    return f"{style(within_budget(found.budget or {}))}, reloaded from disk"


def within_budget(budget: Mapping[str, Any]) -> str:
    """What a metric was and is, how much of its budget that takes, and on what."""
    held = {True: "held-out ", False: "calibration "}.get(budget["held_out"], "")
    held += "sample" if budget.get("available", budget["samples"]) == 1 else "samples"
    scores = f"{budget['metric']} {budget['original']:.4g} -> {budget['value']:.4g}"
    drop = f"drop {percent(budget['drop'])} of {percent(budget['allowed'])}"
    return f"{scores}, {drop}, {budget['decibels']:.1f} dB on {_of(budget)} {held}"


def _of(budget: Mapping[str, Any]) -> str:
    """The number of samples, and of how many it is."""
    samples = budget["samples"]
    available = budget.get("available", samples)
    return str(samples) if samples == available else f"{samples} of {available}"


def speed(baseline: FormTiming | None, optimized: FormTiming | None) -> str | None:
    """Latencies and speedup with its interval; None where nothing was timed."""
    if (
        baseline is None
        or optimized is None
        or baseline.milliseconds is None
        or optimized.milliseconds is None
    ):
        return None
    before, after = milliseconds(baseline.milliseconds), milliseconds(optimized.milliseconds)
    if optimized is baseline:
        return f"{before} ms, unchanged"
    ratio = "" if optimized.speedup is None else f"   {bold(f'{optimized.speedup:.2f}x')}"
    interval = ""
    if optimized.low is not None and optimized.high is not None:
        interval = f" (95 % interval {optimized.low:.2f} to {optimized.high:.2f}, {optimized.rounds} rounds)"
    return f"{before} -> {after} ms{ratio}{interval}"


def timed_on(shapes: Mapping[str, Sequence[int]]) -> str:
    """The inputs that were timed."""
    return "  ".join(f"{name} {shape(dims)}" for name, dims in shapes.items())


def _speed(report: Report) -> str:
    return speed(report.baseline, report.optimized) or "not measured"


def before_and_after(report: Report) -> str:
    """The table of nodes, operators, size, latency and error."""
    nodes = (report.nodes_before, report.nodes_after)
    rows = [["nodes", str(nodes[0]), str(nodes[1]), _change(*nodes)]]
    changed = changed_ops(report.ops_before, report.ops_after, _MOST_OPS)
    rows += [[f"  {name}", str(count), str(now), ""] for name, count, now in changed]
    sizes = (report.size_before, report.size_after)
    rows.append(["size", size(sizes[0]), size(sizes[1]), _change(*sizes)])
    baseline, optimized = report.baseline, report.optimized
    if baseline and optimized and baseline.milliseconds is not None and optimized.milliseconds is not None:
        change = (
            "" if optimized is baseline or optimized.speedup is None else f"{optimized.speedup:.2f}x as fast"
        )
        before, after = milliseconds(baseline.milliseconds), milliseconds(optimized.milliseconds)
        rows.append(["latency", f"{before} ms", f"{after} ms", change])
    found = report.verification
    if found.budget is not None:
        budget = found.budget
        change = f"drop {percent(budget['drop'])}"
        rows.append([found.metric, f"{budget['original']:.4g}", f"{budget['value']:.4g}", change])
    elif found.value is not None:
        floor = f"noise floor {found.noise_floor or 0:.1e}"
        rows.append(["error", "", "0" if found.value == 0 else f"{found.value:.1e}", floor])
    return table(["", "before", "after", ""], rows, right=(1, 2))


def changed_ops(
    before: Mapping[str, int], after: Mapping[str, int], most: int | None = None
) -> list[tuple[str, int, int]]:
    """Operators whose number changed, the largest change first.

    Args:
        most: Rows at most; what is left out becomes one row "others".
    """
    changed = [
        (name, before.get(name, 0), after.get(name, 0))
        for name in sorted({*before, *after})
        if before.get(name, 0) != after.get(name, 0)
    ]
    changed.sort(key=lambda row: (-abs(row[1] - row[2]), row[0]))
    if most is None or len(changed) <= most:
        return changed
    rest = changed[most - 1 :]
    others = (f"{len(rest)} others", sum(row[1] for row in rest), sum(row[2] for row in rest))
    return [*changed[: most - 1], others]


def _change(before: int, after: int) -> str:
    if before == 0 or before == after:
        return ""
    percent = (after / before - 1) * 100
    if abs(percent) < 1:
        # The same digits as in the report; what changed is not told as nothing.
        return f"{math.copysign(max(0.1, abs(round(percent, 1))), percent):+.1f} %"
    return f"{percent:+.0f} %"
