"""``graphopt explain``: why a result is what it is, and where each node of the model went."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from graphopt.cli._options import common
from graphopt.errors import BundleError, UnknownNameError, UsageError, nearest

if TYPE_CHECKING:
    from graphopt.artifact import Made, Manifest, Origin

_LABEL = 10


@click.command("explain", short_help="Say why a result is what it is, and where each node went.")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("nodes", metavar="[NODE]...", nargs=-1)
@click.option("--pass", "pass_name", metavar="NAME", help="Only what this pass did.")
@common
def command(bundle: Path, nodes: tuple[str, ...], pass_name: str | None, as_json: bool) -> None:
    """Say which forms of a model were tried and why the chosen one won, what each pass did and refused to do, and what
    lossy passes decided layer by layer.

    With the names of nodes of the original model or of the result (wildcards allowed): where these went, by which
    passes, and what was refused and decided about them.

    \b
      graphopt explain rec.gopt
      graphopt explain rec.gopt --pass prune
      graphopt explain rec.gopt conv1 '*/attention/*'
    """
    import msgspec

    from graphopt.artifact import read_manifest
    from graphopt.cli._console import write, write_json

    manifest = read_manifest(bundle)
    passes = _only(manifest, pass_name)
    found = _found(bundle, manifest, nodes)
    told = [told_of(origin, passes) for origin in found[0]]
    # What an original one came to is told with that.
    standing = {name for one in told for name in one["now"]}
    made = [msgspec.to_builtins(node) for node in found[1] if node.name not in standing]
    forms = forms_of(manifest)
    if as_json:
        facts = {
            "bundle": str(bundle),
            "target": manifest.target,
            "chosen": _chosen(manifest),
            "why": why(manifest),
            "forms": forms,
            "knobs": manifest.measurements.get("knobs", []),
            "passes": passes,
        }
        write_json(facts | ({"nodes": {"original": told, "result": made}} if nodes else {}))
    elif nodes:
        write("\n".join([*_shown(told), *_shown_made(made)]).rstrip("\n"))
    else:
        write("\n".join(_overview(bundle, manifest, forms, passes, whole=pass_name is None)))


def _only(manifest: Manifest, name: str | None) -> list[dict[str, Any]]:
    """The pass log, or one pass of it.

    Raises:
        UnknownNameError: It holds no such pass.
    """
    found = [record for record in manifest.passes if name in (None, record["name"])]
    # A rewrite is told of by the passes that hold it.
    found = found or [record for record in manifest.passes if name in _rewrites_of(record)]
    if name is not None and not found:
        known = {record["name"] for record in manifest.passes}.union(*map(_rewrites_of, manifest.passes))
        raise UnknownNameError("pass of this bundle", name, known)
    return found


def _rewrites_of(record: Mapping[str, Any]) -> set[str]:
    return {*record["rewrites"], *(entry["rewrite"] for entry in record["refused"])}


# -- why the chosen form won -----------------------------------------------------------------------------------


def _chosen(manifest: Manifest) -> str:
    label: str = manifest.report.get("optimized", {}).get("form") or ""
    return label


def forms_of(manifest: Manifest) -> list[dict[str, Any]]:
    """Each form that was tried, with what became of it in words (``outcome``)."""
    forms = manifest.measurements.get("forms", [])
    chosen = next((form for form in forms if form["label"] == _chosen(manifest)), None)
    return [{**form, "outcome": _outcome(form, chosen)} for form in forms]


def _outcome(form: Mapping[str, Any], chosen: Mapping[str, Any] | None) -> str:
    note: str = form["note"]
    if chosen is not None and form["label"] == chosen["label"]:
        return f"chosen: {note}" if note else "chosen"
    if not form["verified"]:
        return f"not verified: {note}" if note and form["milliseconds"] is None else note or "not verified"
    if form["speedup"] is None:
        return note or "not measured: another was clearly ahead"
    reasons = [note] if note else []
    if chosen is not None and chosen["speedup"] is not None:
        ours, theirs = form["speedup"], chosen["speedup"]
        if ours < theirs:
            digits = 2 if f"{ours:.2f}" != f"{theirs:.2f}" else 4
            reasons.insert(0, f"slower: {ours:.{digits}f}x, the chosen one {theirs:.{digits}f}x")
        elif not note:
            reasons.append("no faster when measured against the chosen one again")
    return "; ".join(reasons)


def why(manifest: Manifest) -> str:
    """Why the result is what it is, in a sentence."""
    forms = manifest.measurements.get("forms", [])
    label = _chosen(manifest)
    chosen = next((form for form in forms if form["label"] == label), None)
    verified = sum(form["verified"] for form in forms)
    if chosen is not None and chosen.get("original"):
        return f"the original is what was kept: none of {len(forms) - 1} other forms was verified and as fast"
    if chosen is None or chosen["speedup"] is None:
        return f"{label!r} was taken without being timed"
    interval = (
        "" if chosen["low"] is None else f" (95 % interval {chosen['low']:.2f} to {chosen['high']:.2f})"
    )
    smallest = manifest.options.get("prefer") == "size"
    what = "smallest that is no slower than the original, of" if smallest else "fastest of"
    return (
        f"{label!r} is the {what} {verified} forms that were verified, {chosen['speedup']:.2f}x as fast as the "
        f"original{interval}"
    )


def _overview(
    bundle: Path,
    manifest: Manifest,
    forms: Sequence[Mapping[str, Any]],
    passes: Sequence[Mapping[str, Any]],
    *,
    whole: bool,
) -> list[str]:
    from graphopt.cli import _log, _lossy
    from graphopt.cli._console import bad, bold, dim, good, table
    from graphopt.cli._show import within_budget
    from graphopt.report import decided, decided_layers
    from graphopt.words import milliseconds, size

    shown: list[str] = []
    if whole:
        shown.append(f"{bold(str(bundle))}  from {manifest.name}, for {manifest.target}: {why(manifest)}")
        verification = manifest.verification
        if verification.get("budget"):
            shown.append(within_budget(verification["budget"]))
        rows = [
            [
                good(form["label"]) if form["outcome"].startswith("chosen") else form["label"],
                "yes" if form["verified"] else bad("no"),
                "" if form["milliseconds"] is None else milliseconds(form["milliseconds"]),
                "" if form["speedup"] is None else f"{form['speedup']:.2f}x",
                "" if form.get("size") is None else size(form["size"]),
                form["outcome"],
            ]
            for form in forms
        ]
        shown += ["", table(("form", "verified", "ms", "speedup", "size", "why"), rows, right=(2, 3, 4)), ""]
        knobs = [_knob(knob) for knob in manifest.measurements.get("knobs", [])]
        shown += [*knobs, ""] if knobs else []
    shown += _log.lines(passes)
    for record in passes:
        details = record["details"]
        rows_of = decided_layers(details)
        points = _lossy.points(details)
        if not rows_of and not points:
            continue
        shown += ["", f"{bold(record['name'])}  {decided(details)}"]
        shown += [f"  {dim(details['kernels'])}"] if details.get("kernels") else []
        shown += [f"  {point}" for point in points]
        shown += [_lossy.layer_table(rows_of, indent=2)] if rows_of else []
        shown += _lossy.stored(details)
    if whole:
        shown += [f"{bad('warning')}  {text}" for text in manifest.warnings]
    return shown


def _knob(knob: Mapping[str, Any]) -> str:
    outcome = "taken" if knob["taken"] else "not taken"
    return (
        f"{knob['label']}: {knob['speedup']:.2f}x as fast as {knob['beside']!r} (95 % interval {knob['low']:.2f} to "
        f"{knob['high']:.2f}), {outcome}"
    )


# -- where nodes went ------------------------------------------------------------------------------------------


def _found(bundle: Path, manifest: Manifest, patterns: Sequence[str]) -> tuple[list[Origin], list[Made]]:
    """Nodes of the original and of the result that patterns name, by their own names or those of their outputs.

    Raises:
        BundleError: The bundle does not say where nodes went.
        UsageError: A pattern names nothing.
    """
    if patterns and not manifest.origins:
        raise BundleError(
            f"{bundle} does not say where nodes went: it was written by graphopt {manifest.graphopt}",
            hint="compile the model again",
        )
    origins: dict[str, Origin] = {}
    nodes: dict[str, Made] = {}
    for pattern in patterns:
        of_model = {one.name: one for one in manifest.origins if _matches(pattern, one.name, *one.values)}
        of_result = {one.name: one for one in manifest.nodes if _matches(pattern, one.name)}
        if not of_model and not of_result:
            raise _unknown(bundle, manifest, pattern)
        origins |= of_model
        nodes |= of_result
    return list(origins.values()), list(nodes.values())


def _matches(pattern: str, *names: str) -> bool:
    # A name may itself hold what would be a wildcard.
    return any(name == pattern or fnmatch.fnmatchcase(name, pattern) for name in names)


def _unknown(bundle: Path, manifest: Manifest, pattern: str) -> UsageError:
    known = {one.name for one in manifest.origins} | {one.name for one in manifest.nodes}
    hint = f"graphopt explain {bundle} '*' lists them"
    if nearest(pattern, known):
        return UnknownNameError("node", pattern, known, hint=hint)
    return UsageError(
        f"unknown node {pattern!r}: none of the {len(known)} of the model and of the result is called like it",
        hint=hint,
    )


def told_of(origin: Origin, passes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """All that is known of a node of the original.

    Args:
        passes: The pass log, as far as it is asked for.
    """
    import msgspec

    from graphopt.report import decided_layers

    names = {origin.name, *origin.values, *(name for step in origin.steps for name in step.nodes)}
    return {
        "node": origin.name,
        "op": origin.op,
        "steps": msgspec.to_builtins(origin.steps),
        "now": list(origin.steps[-1].nodes) if origin.steps else [origin.name],
        "refused": [
            {"pass": record["name"], **entry}
            for record in passes
            for entry in record["refused"]
            if entry["site"] in names
        ],
        "decided": [
            {"pass": record["name"], "target": record["details"].get("target", ""), **row}
            for record in passes
            for row in decided_layers(record["details"])
            if row.get("node") in names
        ],
        "stored": [
            {"pass": record["name"], **constant}
            for record in passes
            for constant in record["details"].get("stored", [])
            if names.intersection(constant.get("nodes", ()))
        ],
    }


def _shown(told: Sequence[Mapping[str, Any]]) -> list[str]:
    from graphopt.cli import _log, _lossy
    from graphopt.cli._console import bad, bold, dim

    shown: list[str] = []
    for one in told:
        shown.append(f"{bold(one['node'])}  {one['op']}")
        for step in one["steps"]:
            by = f" by {', '.join(step['by'])}" if step["by"] and step["by"] != [step["stage"]] else ""
            if step["nodes"]:
                where = f"is {', '.join(step['nodes'])}"
            elif step["stage"] == "capture":
                where = "became a constant, or is written as other nodes"
            else:
                where = bad("gone") + ": no node stands for it"
            shown.append(_line(step["stage"], f"{where}{by}"))
        if not one["steps"]:
            shown.append(_line("now", "as it was"))
        for name in dict.fromkeys(entry["pass"] for entry in one["refused"]):
            alike = [entry for entry in one["refused"] if entry["pass"] == name]
            shown += [_line(name, dim(text)) for text in _log.refusals(alike)]
        for row in one["decided"]:
            shown.append(_line(row["pass"], _lossy.layer_words(row)))
        for constant in one["stored"]:
            shown.append(_line(constant["pass"], _lossy.constant_words(constant)))
        shown.append("")
    return shown


def _shown_made(made: Sequence[Mapping[str, Any]]) -> list[str]:
    from graphopt.cli._console import bold

    shown: list[str] = []
    for one in made:
        shown.append(f"{bold(one['name'])}  {one['op']}, of the result")
        shown.append(_line("made", f"by {one['by']}" if one["by"] else "it is the original's"))
        if one["origins"]:
            shown.append(_line("for", ", ".join(one["origins"])))
        shown.append("")
    return shown


def _line(label: str, text: str) -> str:
    return f"  {label:<{_LABEL}} {text}"
