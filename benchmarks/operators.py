"""Where the time of zoo models goes: kernel times by operator, of the original and of what graphopt makes of it.

    python benchmarks/operators.py [--models NAME ...] [--rounds R] [--runs N] [--threads N] [--output FILE]

Each model is compiled; then ONNX Runtime's profiler runs original and bundle in turn, each time in a process of its
own. A figure is the median over runs (without the first two of a process) of the sum of an operator's kernel times.
GFLOP/s counts two operations to a multiplication and addition of MatMul, Gemm and Conv, in the shapes that ONNX Runtime
computes (where it pads channels to a block, the padding is counted). Prints a table for each model and writes JSON.
"""

from __future__ import annotations

import argparse
import collections
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from _results import FOLDER, processor, undisturbed, write
from rich.console import Console
from rich.table import Table

import graphopt
from graphopt import artifact, zoo
from graphopt.data.interface import load_feeds, save_feeds
from graphopt.machine import Form

MODELS = ("minilm", "ppocrv4-det", "light-alexnet", "light-inception-v1", "light-zfnet512")
PRODUCTS = ("Conv", "FusedConv", "FusedGemm", "FusedMatMul", "Gemm", "MatMul")
CONTAINERS = ("If", "Loop", "Scan")
WARM_UP = 2


def flops(op: str, inputs: Sequence[Sequence[int]], outputs: Sequence[Sequence[int]]) -> int | None:
    """Of one node; None where the profiler does not show what it takes (weights that were packed are left out)."""
    if op not in PRODUCTS or not inputs or not outputs:
        return None
    if "Conv" in op:
        if len(inputs) < 2 or len(inputs[1]) != len(inputs[0]):
            return None
        return 2 * math.prod(outputs[0]) * math.prod(inputs[1][1:])
    if "Gemm" in op:
        return 2 * math.prod(inputs[0]) * outputs[0][-1]
    # A transposed left operand (FusedMatMul) has its inner dimension elsewhere: elements over rows is the same.
    rows = math.prod(outputs[0][:-1])
    return 2 * math.prod(outputs[0]) * (math.prod(inputs[0]) // max(rows, 1))


def profile(request: Mapping[str, Any]) -> list[dict[str, dict[str, float]]]:
    """Milliseconds, kernels and operations by operator, for each run; to be called in a process of its own."""
    import onnxruntime as ort

    from graphopt.targets.ort.executable import session_options

    config = request["config"]
    options = session_options(config, request["threads"])
    options.enable_profiling = True
    options.profile_file_prefix = request["prefix"]
    session = ort.InferenceSession(
        str(Path(request["folder"]) / config["file"]), options, providers=["CPUExecutionProvider"],
        disabled_optimizers=config.get("disabled_optimizers"),
    )  # fmt: skip
    feeds = load_feeds(Path(request["feeds"]))
    for _ in range(request["runs"] + WARM_UP):
        session.run(None, feeds)
    events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    runs: list[dict[str, dict[str, float]]] = []
    current: dict[str, dict[str, float]] = collections.defaultdict(lambda: collections.defaultdict(float))
    for event in events:
        if event.get("cat") == "Session" and event["name"] == "model_run":
            runs.append({op: dict(row) for op, row in current.items()})
            current.clear()
        if event.get("cat") != "Node" or not event["name"].endswith("_kernel_time"):
            continue
        arguments = event["args"]
        if arguments["op_name"] in CONTAINERS:
            continue
        row = current[arguments["op_name"]]
        row["milliseconds"] += event["dur"] / 1000
        row["kernels"] += 1
        count = flops(arguments["op_name"], *(_shapes(arguments, key) for key in ("input", "output")))
        row["counted"] += count is not None
        row["operations"] += count or 0
    return runs[WARM_UP:]


def _shapes(arguments: Mapping[str, Any], which: str) -> list[list[int]]:
    return [shape for entry in arguments.get(f"{which}_type_shape", ()) for shape in entry.values()]


def profiled(form: Form, feeds: Path, threads: int, runs: int) -> list[dict[str, dict[str, float]]]:
    """:func:`profile` in a process of its own.

    Raises:
        RuntimeError: It fails; its last words.
    """
    with tempfile.TemporaryDirectory(prefix="graphopt-bench-") as folder:
        request = {
            "folder": str(form.folder.resolve()), "config": dict(form.config), "feeds": str(feeds),
            "threads": threads, "runs": runs, "prefix": f"{folder}/profile",
        }  # fmt: skip
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
        done = subprocess.run(
            [sys.executable, __file__, "--request", json.dumps(request)],
            capture_output=True, text=True, env=environment, timeout=600, check=False,
        )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{form.label}: {done.stderr.strip().splitlines()[-1:]}")
    found: list[dict[str, dict[str, float]]] = json.loads(done.stdout)
    return found


def medians(runs: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, Any]:
    """Of the runs of one form: by operator, the slowest first, and in all."""
    operators: dict[str, dict[str, Any]] = {}
    for op in {op for run in runs for op in run}:
        rows = [run[op] for run in runs if op in run]
        milliseconds = statistics.median(row["milliseconds"] for row in rows)
        entry: dict[str, Any] = {"milliseconds": milliseconds, "kernels": int(rows[0]["kernels"])}
        if op in PRODUCTS and rows[0]["counted"] == rows[0]["kernels"]:
            entry["gflop"] = rows[0]["operations"] / 1e9
            entry["gflop_per_second"] = entry["gflop"] / (milliseconds / 1e3)
        operators[op] = entry
    totals = [sum(row["milliseconds"] for row in run.values()) for run in runs]
    ordered = sorted(operators.items(), key=lambda item: -item[1]["milliseconds"])
    return {"milliseconds": statistics.median(totals), "operators": dict(ordered)}


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Both forms of one model."""
    source, recipe, inputs = zoo.fetch(name), zoo.recipe(name), zoo.example_inputs(name, seed=0)
    with tempfile.TemporaryDirectory(prefix="graphopt-bench-") as temporary:
        folder = Path(temporary)
        save_feeds(folder / "feeds.npz", inputs)
        compiled = graphopt.compile(
            source, target="ort-cpu", passes="O2", threads=options.threads, data=[inputs],
            input_shapes={key: tuple(dims) for key, dims in recipe.input_shapes.items()},
        )  # fmt: skip
        bundle = compiled.save(folder / "model.gopt")
        manifest = artifact.read_manifest(bundle)
        forms = (
            Form("original", "ort-cpu", source.parent, {"file": source.name}),
            Form("graphopt", manifest.target, bundle, manifest.config),
        )

        def alternate() -> dict[str, Any]:
            runs: dict[str, list[Any]] = {form.label: [] for form in forms}
            for number in range(options.rounds):
                for form in forms if number % 2 == 0 else reversed(forms):
                    runs[form.label] += profiled(form, folder / "feeds.npz", options.threads, options.runs)
            return {label: medians(found) for label, found in runs.items()}

        return {
            "model": name,
            "form": compiled.report.as_dict()["optimized"]["form"],
            **undisturbed(alternate),
        }


def table(row: Mapping[str, Any], threads: int) -> Table:
    """For people: operators that take a hundredth of the time or more."""
    view = Table(title=f"{row['model']}, kernel times by operator, {threads} threads, {processor()}")
    for label in ("original", "graphopt"):
        view.add_column(label)
        for heading in ("ms", "kernels", "GFLOP/s"):
            view.add_column(heading, justify="right")
    sides = []
    for label in ("original", "graphopt"):
        shown = [
            (op, f"{entry['milliseconds']:.2f}", str(entry["kernels"]), _rate(entry))
            for op, entry in row[label]["operators"].items()
            if entry["milliseconds"] >= 0.01 * row[label]["milliseconds"]
        ]
        sides.append([("all", f"{row[label]['milliseconds']:.2f}", "", ""), *shown])
    for index in range(max(map(len, sides))):
        cells = [side[index] if index < len(side) else ("", "", "", "") for side in sides]
        view.add_row(*cells[0], *cells[1])
    return view


def _rate(entry: Mapping[str, Any]) -> str:
    return f"{entry['gflop_per_second']:.0f}" if "gflop_per_second" in entry else ""


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--models", nargs="*", default=MODELS, help="names from `graphopt zoo list`")
    parser.add_argument("--rounds", type=int, default=4, help="processes for each form")
    parser.add_argument("--runs", type=int, default=15, help="of a process, after two that warm up")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=FOLDER / "operators.json")
    parser.add_argument("--request", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.request:
        json.dump(profile(json.loads(options.request)), sys.stdout)
        return
    rows = []
    for name in options.models:
        rows.append(measure(name, options))
        Console(width=120).print(table(rows[-1], options.threads))
    write(options.output, {"models": rows}, threads=options.threads, packages=("onnxruntime",))


if __name__ == "__main__":
    main()
