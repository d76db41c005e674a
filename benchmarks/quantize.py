"""Every zoo model with weights, quantized to int8: time, accuracy, size.

    python benchmarks/quantize.py [--models NAME ...] [--targets T ...] [--seconds S] [--threads N] [--output FILE]

For each model and target: ONNX Runtime's default on the original file against the bundle that ``--passes
fuse,quantize`` wrote, interleaved, each in a process of its own. A model that has a task (benchmarks/tasks) is
calibrated on its calibration data, held to 1 % of its metric, and scored on its evaluation data, which calibration
never sees; the others take made-up inputs and are held to a signal-to-noise ratio of 20 dB. ``float`` is the fastest
float form of the same compilation.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

import graphopt
from benchmarks import _results
from benchmarks.tasks import Task, tasks
from graphopt import artifact, zoo
from graphopt.data.interface import Feeds
from graphopt.errors import GraphoptError
from graphopt.target import Form
from graphopt.tune.paired import time_forms

TARGETS = ("ort-cpu", "cpu")
_SAMPLES = 200
_SAMPLES_OF = {"ocr": 400, "cls": 400} | dict.fromkeys(("vad", "vad-16k", "vad-half", "vad-ifless"), 1000)
"""Where a sample is one count (a line, a frame): half of them are held out, and 1 % should be several."""


def task_of(name: str) -> Task | None:
    """The task of a zoo model, where it has one."""
    source = zoo.fetch(name)
    return next((task for task in tasks().values() if task.model() == source), None)


def settings(name: str) -> dict[str, Any]:
    """Data, metric and shapes for compiling a zoo model."""
    task = task_of(name)
    if task is None:
        shapes = {key: tuple(dims) for key, dims in zoo.recipe(name).input_shapes.items()}
        return {"synthetic_calibration": True, "input_shapes": shapes}
    split = task.calibration(_SAMPLES_OF.get(task.name, _SAMPLES))
    data = [
        {**feeds, **{label: array[index] for label, array in split.labels.items()}}
        for index, feeds in enumerate(split.feeds)
    ]
    metric = getattr(sys.modules[type(task).__module__], "metric", None)
    shapes = {key: np.shape(array) for key, array in split.feeds[0].items()}
    return {"data": data, "metric": metric, "input_shapes": shapes}


def measure(name: str, targets: tuple[str, ...], seconds: float, threads: int) -> dict[str, Any]:
    """All figures of one model."""
    source, task, given = zoo.fetch(name), task_of(name), settings(name)
    feeds: Feeds = zoo.example_inputs(name, seed=0) if task is None else dict(task.evaluation.feeds[0])
    row: dict[str, Any] = {"model": name, "task": task.name if task else None, "targets": {}}
    with tempfile.TemporaryDirectory(prefix="graphopt-bench-") as temporary:
        folder = Path(temporary)
        forms = [Form("original", "ort-cpu", source.parent, {"file": source.name})]
        reference = task.predict(_runner(forms[0], threads)) if task else None
        if task and reference is not None:
            row["score"] = task.score(reference, reference)
        for target in targets:
            entry: dict[str, Any] = {}
            row["targets"][target] = entry
            started = time.monotonic()
            # Nothing that an earlier run has found: the time is that of the first compilation.
            passes = f"fuse,quantize{{cache={folder / f'cache-{target}'}}}"
            try:
                compiled = graphopt.compile(source, target=target, passes=passes, threads=threads, **given)
                bundle = compiled.save(folder / f"{target}.gopt")
            except GraphoptError as error:
                entry["error"] = error.message
                continue
            report = compiled.report.as_dict()
            entry |= {
                "compile_seconds": round(time.monotonic() - started, 1),
                "chosen": report["optimized"]["form"],
                "on": report["target"],
                "budget": report["verify"]["budget"],
                "size": report["size"]["after"] / max(1, report["size"]["before"]),
                "float_speedup": _float_speedup(report),
                "warnings": report["warnings"],
            }
            manifest = artifact.read_manifest(bundle)
            forms.append(Form(target, manifest.target, bundle, manifest.config))
            if task and reference is not None:
                entry["score"] = task.score(task.predict(_runner(forms[-1], threads)), reference)
        timings = time_forms(forms, feeds, threads=threads, seconds=seconds, least_rounds=9, most_rounds=100)
    row["original_ms"] = timings[0].milliseconds
    for timing in timings[1:]:
        row["targets"][timing.form.label] |= {
            "ms": timing.milliseconds, "speedup": timing.speedup, "interval": [timing.low, timing.high],
        }  # fmt: skip
    return row


def _float_speedup(report: dict[str, Any]) -> float | None:
    """Of the fastest float form that the same compilation measured."""
    found = [
        form["speedup"]
        for form in report["forms"]
        if form["verified"] and form["speedup"] is not None and "int8" not in form["label"]
    ]
    return max(found, default=None)


def _runner(form: Form, threads: int) -> Any:
    from graphopt import catalog

    return catalog.runtime(form.target).load(form.folder, form.config, threads=threads).run


def geometric_mean(rows: list[dict[str, Any]], target: str) -> float | None:
    """Of the speedups on one target over the models that compiled for it."""
    values = [
        row["targets"][target]["speedup"] for row in rows if "speedup" in row["targets"].get(target, {})
    ]
    return float(np.exp(np.mean(np.log(values)))) if values else None


def table(rows: list[dict[str, Any]], targets: tuple[str, ...]) -> Table:
    """For people."""
    view = Table(
        title="fuse,quantize against ONNX Runtime's default on the original (float: the fastest float form)"
    )
    for heading in (
        "model",
        "original ms",
        *(f"{target}: {part}" for target in targets for part in ("x", "float", "score")),
    ):
        view.add_column(heading, justify="left" if heading == "model" else "right")
    for row in rows:
        cells = [row["model"], f"{row['original_ms']:.2f}"]
        for target in targets:
            entry = row["targets"][target]
            if "speedup" not in entry:
                cells += ["fails", "", entry.get("error", "")[:40]]
                continue
            cells += [f"{entry['speedup']:.2f}", f"{entry['float_speedup'] or 0:.2f}", _score(row, entry)]
        view.add_row(*cells)
    view.add_section()
    means = [geometric_mean(rows, target) for target in targets]
    view.add_row(
        "geometric mean", "", *(cell for mean in means for cell in (f"{mean:.2f}" if mean else "", "", ""))
    )
    return view


def _score(row: dict[str, Any], entry: dict[str, Any]) -> str:
    if "score" in entry:
        name, before = next(iter(row["score"].items()))
        return f"{name} {before:.3f} -> {entry['score'][name]:.3f}"
    return "float" if entry["budget"] is None else f"{entry['budget']['decibels']:.0f} dB"


def write(output: Path, rows: list[dict[str, Any]], targets: tuple[str, ...], threads: int) -> None:
    """Write what was measured so far: a run over the whole zoo takes half an hour."""
    means = {target: geometric_mean(rows, target) for target in targets}
    packages = ("onnxruntime", *(("openvino",) if set(targets) != {"ort-cpu"} else ()))
    _results.write(output, {"geometric_mean": means, "models": rows}, threads=threads, packages=packages)


def _kept(output: Path, models: list[str]) -> list[dict[str, Any]]:
    """What an earlier run measured of other models."""
    if not output.is_file():
        return []
    rows: list[dict[str, Any]] = json.loads(output.read_text(encoding="utf-8"))["models"]
    return [row for row in rows if row["model"] not in models]


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--models",
        nargs="*",
        help="names from `graphopt zoo list` (default: all); rows of others stay in the file",
    )
    parser.add_argument("--targets", nargs="*", default=list(TARGETS))
    parser.add_argument("--seconds", type=float, default=6.0, help="of timing for each model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=_results.FOLDER / "quantize.json")
    options = parser.parse_args()
    targets = tuple(options.targets)
    console = Console(width=160)
    rows = [] if options.models is None else _kept(options.output, options.models)
    for name in options.models or [recipe.name for recipe in zoo.listing()]:
        rows.append(measure(name, targets, options.seconds, options.threads))
        shown = {
            target: [
                entry.get("speedup"),
                entry.get("float_speedup"),
                entry.get("chosen"),
                entry.get("error"),
            ]
            for target, entry in rows[-1]["targets"].items()
        }
        console.print(f"{name}: {shown}", highlight=False)
        write(options.output, rows, targets, options.threads)
    console.print(table(rows, targets))


if __name__ == "__main__":
    main()
