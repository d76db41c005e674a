"""``graphopt inspect``: what is in a model or a bundle."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from graphopt.cli._options import common

if TYPE_CHECKING:
    import onnx_ir as ir

    from graphopt.artifact import Manifest

_WIDTH = 89
_OPTIONAL = " (optional)"
_MOST_OPTIONAL = 4


@click.command("inspect", short_help="Show what is in a model or a bundle.")
@click.argument("path", metavar="MODEL|BUNDLE", type=click.Path(path_type=Path))
@click.option("--text", "as_text", is_flag=True, help="Print the graph in ONNX's text syntax.")
@click.option(
    "--log", is_flag=True, help="Of a bundle: the pass log with every rewrite, refusal and undoing."
)
@common
def command(path: Path, as_text: bool, log: bool, as_json: bool) -> None:
    """Show the interface, operators, sizes and hashes of a model; of a bundle also how it was made and proved.

    \b
      graphopt inspect rec.onnx
      graphopt inspect rec.gopt --log
    """
    from graphopt.artifact import SUFFIX, check_files, read_manifest
    from graphopt.cli._console import write, write_json
    from graphopt.errors import UsageError
    from graphopt.ir import model as ir_model
    from graphopt.ir.text import to_text

    manifest = None
    model: ir.Model | None = None
    if path.is_dir() or path.suffix == SUFFIX:
        manifest = read_manifest(path)
        check_files(path, manifest)
        file = manifest.config.get("file")
        if isinstance(file, str) and file.endswith(".onnx"):
            model = ir_model.load(path / file)
    elif path.suffix.lower() == ".pt2":
        from graphopt.capture import capture

        model = capture(path).original_model
    else:
        model = ir_model.load(path)
    if log and manifest is None:
        raise UsageError(f"{path} is a model, and only a bundle has a pass log", hint="leave out --log")
    if as_text:
        if model is None:
            raise UsageError(f"{path} holds no graph as ONNX", hint="leave out --text")
        text = to_text(model)
        write_json({"path": str(path), "text": text}) if as_json else write(text)
        return
    facts: dict[str, Any] = {"path": str(path)}
    if manifest is not None:
        facts |= bundle_facts(manifest)
    if model is not None:
        facts |= model_facts(model, path)
    if as_json:
        write_json(facts)
        return
    _show(facts, log)


def bundle_facts(manifest: Manifest) -> dict[str, Any]:
    """What a bundle says of itself."""
    import msgspec

    facts: dict[str, Any] = msgspec.to_builtins(manifest)
    # Where nodes went is told by ``graphopt explain``.
    for name in ("measurements", "inputs", "outputs", "origins", "nodes"):
        del facts[name]
    return {
        **facts,
        "inputs": [str(tensor.spec()) for tensor in manifest.inputs],
        "outputs": [str(tensor.spec()) for tensor in manifest.outputs],
    }


def model_facts(model: ir.Model, path: Path) -> dict[str, Any]:
    """What the graph holds."""
    from graphopt.data.interface import inputs_of, optional_inputs_of, outputs_of
    from graphopt.ir import model as ir_model
    from graphopt.ir import provenance
    from graphopt.ir.hash import content_hash

    nodes = list(model.graph.all_nodes())
    tensors = {id(tensor): tensor for tensor in ir_model.all_tensors(model)}
    optional = optional_inputs_of(model)
    made = Counter(maker for node in nodes if (maker := provenance.made_by(node)) is not None)
    external = sorted({str(tensor.location) for tensor in ir_model.external_tensors(model)})
    size = path.stat().st_size if path.is_file() else 0
    base = path.parent
    return {
        "ir_version": model.ir_version,
        "opsets": dict(model.graph.opset_imports),
        "producer": " ".join(filter(None, (model.producer_name, model.producer_version))),
        "metadata": dict(model.metadata_props),
        "graph": {
            "name": model.graph.name or "",
            "inputs": [f"{spec}{_OPTIONAL if spec.name in optional else ''}" for spec in inputs_of(model)],
            "outputs": [str(spec) for spec in outputs_of(model)],
            "nodes": len(nodes),
            "subgraphs": sum(1 for _ in model.graph.subgraphs()),
            "functions": len(model.functions),
            "initializers": len(model.graph.initializers),
            "constants": sum(node.op_type == "Constant" and not node.domain for node in nodes),
            "parameters": sum(tensor.size for tensor in tensors.values()),
            "weight_bytes": ir_model.nbytes(model),
            "file_bytes": size
            + sum((base / name).stat().st_size for name in external if (base / name).is_file()),
            "external_data": external,
            "ops": dict(sorted(ir_model.op_counts(model).items(), key=lambda pair: (-pair[1], pair[0]))),
            "made_by": dict(made.most_common()),
            "content_hash": content_hash(model),
        },
    }


def _show(facts: dict[str, Any], log: bool) -> None:
    from graphopt.cli._console import bad, bold, table, write
    from graphopt.words import size

    def line(label: str, value: object) -> None:
        if value not in ("", None):
            write(f"{bold(label)}{' ' * max(1, 11 - len(click.unstyle(label)))}{value}")

    def several(label: str, values: Sequence[str]) -> None:
        for index, value in enumerate(values):
            line(label, value) if index == 0 else write(" " * 11 + value)

    graph = facts.get("graph", {})
    is_bundle = "target" in facts
    line("bundle" if is_bundle else "model", facts["path"])
    if is_bundle:
        line("made", f"by graphopt {facts['graphopt']} from {facts['name']}, for {facts['target']}")
        line("options", _pairs(facts["options"]))
        line("needs", _pairs(facts["machine"]))
    several("inputs", _shown_inputs(facts.get("inputs") or graph.get("inputs", [])))
    several("outputs", facts.get("outputs") or graph.get("outputs", []))
    if graph:
        opsets = ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in facts["opsets"].items())
        line("opset", f"{opsets} · IR version {facts['ir_version']}")
        line("producer", facts["producer"])
        line("graph", graph["name"])
        several("metadata", [f"{key}: {_short(value)}" for key, value in facts["metadata"].items()])
        inner = f" ({graph['subgraphs']} subgraphs)" if graph["subgraphs"] else ""
        functions = f" · {graph['functions']} functions" if graph["functions"] else ""
        line("nodes", f"{graph['nodes']}{inner}{functions}")
        held = [f"{graph[kind]} {kind}" for kind in ("initializers", "constants") if graph[kind]]
        where = f" in {' and '.join(held)}" if held else ""
        line("weights", f"{size(graph['weight_bytes'])}, {graph['parameters']:,} elements{where}")
        if not is_bundle:
            line("file", size(graph["file_bytes"]))
        several("external", graph["external_data"])
        line("hash", graph["content_hash"])
    if is_bundle:
        _show_evidence(facts, line)
        for warning in facts["warnings"]:
            line(bad("warning"), warning)
    if log:
        from graphopt.cli._log import lines

        write()
        write("\n".join(lines(facts["passes"])))
        return
    if graph:
        write()
        made = "  ".join(f"{name} x{count}" for name, count in graph["made_by"].items())
        if made:
            several("rewritten", textwrap.wrap(made, _WIDTH, break_long_words=False, break_on_hyphens=False))
            write()
        write(
            table(
                ("operator", "count"),
                [[name, str(count)] for name, count in graph["ops"].items()],
                right=(1,),
            )
        )


def _shown_inputs(inputs: Sequence[str]) -> list[str]:
    """The inputs that must be given; of the others, where there are many, only how many they are."""
    optional = [text for text in inputs if text.endswith(_OPTIONAL)]
    if len(optional) <= _MOST_OPTIONAL:
        return list(inputs)
    required = [text for text in inputs if not text.endswith(_OPTIONAL)]
    return [*required, f"and {len(optional)} with a default value (--json lists them)"]


def _pairs(values: Mapping[str, Any]) -> str:
    return "  ".join(
        f"{key.replace('_', ' ')}: {_value(value)}"
        for key, value in values.items()
        if value not in (None, "", [], {})
    )


def _value(value: Any) -> str:
    """An option as it is written on the command line."""
    if isinstance(value, Mapping):
        return " ".join(f"{key}:{_value(entry)}" for key, entry in value.items())
    if isinstance(value, list | tuple):
        return ",".join(map(_value, value))
    return "?" if value is None else str(value)


def _short(text: str) -> str:
    """On one line, and not longer than that."""
    return textwrap.shorten(text, _WIDTH - 20, placeholder=" ...") or repr(text[:20])


def _show_evidence(facts: dict[str, Any], line: Any) -> None:
    from graphopt.cli._show import within_budget
    from graphopt.report import COMPILED_NOT_RUN, Verdict
    from graphopt.words import milliseconds

    found = facts["verification"]
    if found:
        kind = "made-up" if found.get("synthetic") else "real"
        inputs = f"{len(found.get('trials', []))} {kind} inputs"
        judged = within_budget(found["budget"]) if found.get("budget") else ""
        status = judged or f"on {inputs}"
        if found.get("status") == Verdict.NOT_RUN:
            status = f"{COMPILED_NOT_RUN}; the graph on the CPU, {status}"
        elif found.get("status") != Verdict.VERIFIED:
            status = f"{found.get('status')} ({inputs})"
        error = ""
        if not judged and found.get("value") is not None:
            error = f": {found['metric']} {found['value']:.1e}, noise floor {found['noise_floor'] or 0:.1e}"
        within = not judged or found.get("status") == Verdict.VERIFIED
        line("verified" if within else "judged", f"{status}{error}")
    report = facts["report"]
    before = report.get("baseline", {}).get("latency_ms")
    after = report.get("optimized", {}).get("latency_ms")
    if before is not None and after is not None:
        low, high = report.get("speedup_interval") or (None, None)
        interval = f" (95 % interval {low:.2f} to {high:.2f})" if low is not None and high is not None else ""
        line(
            "speed",
            f"{milliseconds(before)} -> {milliseconds(after)} ms   {report['speedup']:.2f}x{interval}",
        )
