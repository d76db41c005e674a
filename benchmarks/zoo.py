"""Every model of the zoo against what a user would do without graphopt.

    python benchmarks/zoo.py [--target T] [--models NAME ...] [--seconds S] [--threads N] [--output FILE]

For each model: ONNX Runtime's default on the original file, onnxsim + ONNX Runtime, onnxslim + ONNX Runtime, and the
bundle that graphopt wrote; interleaved, each in a process of its own, the same inputs. Prints a table and writes JSON.
All tools are given the recipe's input shapes. A tool that fails on a model is shown with its error and counts as 1.0
in no mean.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from _results import FOLDER, write
from rich.console import Console
from rich.table import Table

import graphopt
from graphopt import artifact, zoo
from graphopt.data.interface import Feeds
from graphopt.errors import GraphoptError
from graphopt.target import Form
from graphopt.tune.paired import time_forms

TOOLS = ("onnxsim", "onnxslim")

SIMPLIFY = {
    "onnxsim": (
        "import json, sys, onnx, onnxsim; source, target, shapes = sys.argv[1:];"
        "model, ok = onnxsim.simplify(onnx.load(source), overwrite_input_shapes=json.loads(shapes) or None);"
        "assert ok, 'onnxsim reports that its result differs'; onnx.save(model, target)"
    ),
    "onnxslim": (
        "import json, sys, onnx, onnxslim; source, target, shapes = sys.argv[1:];"
        "shapes = [f'{name}:' + ','.join(map(str, dims)) for name, dims in json.loads(shapes).items()];"
        "onnx.save(onnxslim.slim(onnx.load(source), input_shapes=shapes or None), target)"
    ),
}


def simplified(tool: str, source: Path, folder: Path, shapes: dict[str, list[int]]) -> Form:
    """The form that another tool makes of the model; raises RuntimeError with its last words where it fails."""
    target = folder / f"{tool}.onnx"
    command = [sys.executable, "-c", SIMPLIFY[tool], str(source), str(target), json.dumps(shapes)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode or not target.exists():
        lines = done.stderr.strip().splitlines()
        raise RuntimeError(lines[-1][:200] if lines else f"exit code {done.returncode}")
    return Form(tool, "ort-cpu", folder, {"file": target.name})


def simplified_and_runnable(
    tool: str, source: Path, folder: Path, shapes: dict[str, list[int]], feeds: Feeds, threads: int
) -> Form:
    """As :func:`simplified`, checked to run; without the shapes where the tool fails with them."""
    for attempt in (shapes, {}) if shapes else ({},):
        try:
            form = simplified(tool, source, folder, attempt)
            time_forms([form], feeds, threads=threads, seconds=0.0, least_rounds=1, most_rounds=1)
            return form
        except (RuntimeError, GraphoptError) as error:
            failure = error
    raise RuntimeError(getattr(failure, "message", str(failure)).splitlines()[0])


def measure(name: str, target: str, seconds: float, threads: int) -> dict[str, Any]:
    """All figures of one model."""
    source = zoo.fetch(name)
    recipe = zoo.recipe(name)
    shapes = {key: list(dims) for key, dims in recipe.input_shapes.items()}
    feeds: Feeds = zoo.example_inputs(name, seed=0)
    row: dict[str, Any] = {"model": name, "errors": {}}
    with tempfile.TemporaryDirectory(prefix="graphopt-bench-") as temporary:
        folder = Path(temporary)
        forms = [Form("original", "ort-cpu", source.parent, {"file": source.name})]
        for tool in TOOLS if target == "ort-cpu" else ():
            try:
                sized = {key: dims for key, dims in shapes.items() if dims}
                forms.append(simplified_and_runnable(tool, source, folder, sized, feeds, threads))
            except (RuntimeError, subprocess.TimeoutExpired) as error:
                row["errors"][tool] = str(error)
        started = time.monotonic()
        try:
            compiled = graphopt.compile(
                source, target=target, passes="O2", threads=threads, data=[feeds],
                input_shapes={key: tuple(dims) for key, dims in shapes.items()},
            )  # fmt: skip
            bundle = compiled.save(folder / "model.gopt")
        except GraphoptError as error:
            row["errors"]["graphopt"] = str(error)
        else:
            report = compiled.report.as_dict()
            row |= {
                "compile_seconds": time.monotonic() - started,
                "verify": report["verify"],
                "nodes": report["nodes"],
                "form": report["optimized"]["form"],
                "target": report["target"],
                "undone": [entry for entry in report["passes"] if entry["undone"]],
                "stages": report["stages"],
                "size": report["size"],
            }
            manifest = artifact.read_manifest(bundle)
            forms.append(Form("graphopt", manifest.target, bundle, manifest.config))
        timings = time_forms(forms, feeds, threads=threads, seconds=seconds, least_rounds=11, most_rounds=200)
    row["latency_ms"] = {timing.form.label: timing.milliseconds for timing in timings}
    row["speedup"] = {timing.form.label: timing.speedup for timing in timings}
    row["interval"] = {timing.form.label: [timing.low, timing.high] for timing in timings}
    return row


def geometric_mean(rows: list[dict[str, Any]], label: str) -> float | None:
    """Of the speedups of one tool over the models that it manages."""
    values = [row["speedup"][label] for row in rows if label in row["speedup"]]
    return float(np.exp(np.mean(np.log(values)))) if values else None


def table(rows: list[dict[str, Any]]) -> Table:
    """For people."""
    view = Table(title="Speedup over ONNX Runtime's default on the original (95 % interval)")
    view.add_column("model")
    for heading in ("original ms", *TOOLS, "graphopt", "interval", "compile s", "nodes", "error/floor"):
        view.add_column(heading, justify="right")
    for row in rows:
        cells = [row["model"], f"{row['latency_ms']['original']:.2f}"]
        for label in (*TOOLS, "graphopt"):
            failed = "fails" if label in row["errors"] else ""
            cells.append(f"{row['speedup'][label]:.2f}" if label in row["speedup"] else failed)
        interval = row["interval"].get("graphopt")
        cells.append(f"{interval[0]:.2f}-{interval[1]:.2f}" if interval else "")
        cells.append(f"{row['compile_seconds']:.1f}" if "compile_seconds" in row else "")
        cells.append(f"{row['nodes']['before']}>{row['nodes']['after']}" if "nodes" in row else "")
        verify = row.get("verify")
        cells.append(
            f"{verify['value']:.0e}/{verify['noise_floor']:.0e}"
            if verify
            else row["errors"].get("graphopt", "")
        )
        view.add_row(*cells)
    means = [geometric_mean(rows, label) for label in (*TOOLS, "graphopt")]
    view.add_section()
    view.add_row("geometric mean", "", *(f"{mean:.3f}" if mean else "" for mean in means))
    return view


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument(
        "--target", default="ort-cpu", help="of graphopt; with another, graphopt alone is measured"
    )
    parser.add_argument("--models", nargs="*", help="names from `graphopt zoo list` (default: all)")
    parser.add_argument("--seconds", type=float, default=8.0, help="of timing for each model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--output", type=Path, help="default: benchmarks/results/zoo.json, or zoo-TARGET.json"
    )
    options = parser.parse_args()
    console = Console(width=160)
    rows = []
    for name in options.models or [recipe.name for recipe in zoo.listing()]:
        rows.append(measure(name, options.target, options.seconds, options.threads))
        row = rows[-1]
        shown = {label: round(value, 2) for label, value in row["speedup"].items()}
        console.print(f"{name}: {shown} {row['errors'] or ''}", highlight=False)
    console.print(table(rows))
    means = {label: geometric_mean(rows, label) for label in (*TOOLS, "graphopt")}
    figures = {"geometric_mean": means, "models": rows}
    name = "zoo.json" if options.target == "ort-cpu" else f"zoo-{options.target}.json"
    packages = ("onnxruntime", *(TOOLS if options.target == "ort-cpu" else ("openvino",)))
    write(options.output or FOLDER / name, figures, threads=options.threads, packages=packages)


if __name__ == "__main__":
    main()
