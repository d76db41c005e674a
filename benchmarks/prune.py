"""Pruned models beside the fused ones: time, multiplications, and what they are worth at their task.

    python benchmarks/prune.py [--rows NAME ...] [--target T] [--seconds S] [--threads N] [--output FILE]

Each row is a model with a share that is removed. The bundles of ``--passes fuse`` and ``--passes fuse,prune{...}`` are
timed interleaved, each in a process of its own. Where the model has a task (benchmarks/tasks), channels are ranked
and weights refitted on its calibration data, and both bundles are scored on its evaluation data, which nothing of this
saw. The others have constant weights, on made-up inputs: they show shapes and speed alone. ``gain`` is the share of the
proportional gain that is reached: (speed - 1) / (1 / multiplications left - 1).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

import graphopt
from benchmarks import _results
from benchmarks.quantize import _runner
from benchmarks.tasks import tasks
from graphopt import artifact, zoo
from graphopt.data.interface import Feeds
from graphopt.errors import GraphoptError
from graphopt.target import Form
from graphopt.tune.paired import time_forms


@dataclass(frozen=True)
class Row:
    """What is measured.

    Attributes:
        model: Of the zoo; "" where the task has one of its own.
        options: Of prune.
        task: "" for none.
        samples: To rank and refit on, half of which or fewer are held out.
        integers: Whether int8 is measured too, alone and on top.
        trained: Options of distill for a form that is trained besides, on integers too where these are measured; "" for
            none.
        metric: Name of the function that the budget is of, in the task's module.
        max_drop: Of the task's metric, or of the signal; what is asked for is the share, not the budget.
    """

    model: str
    options: str
    task: str = ""
    samples: int = 200
    integers: bool = False
    max_drop: float = 0.9
    trained: str = ""
    metric: str = "metric"


ROWS: Mapping[str, Row] = {
    "digits-cnn": Row("", "macs=0.5", "digits-cnn", 1000, trained="seconds=60"),
    "digits-transformer": Row("", "macs=0.5", "digits-transformer", 1000, trained="seconds=60"),
    "ppocrv4-rec": Row("ppocrv4-rec", "ratio=0.25", "ocr", 400, True, 0.01, "seconds=60", "characters_right"),
    "minilm": Row("minilm", "ratio=0.25,criterion=taylor", "retrieval", 500, trained="seconds=300"),
    "ppocrv4-det": Row("ppocrv4-det", "macs=0.3", "det", 48),
    "ppocrv4-rec-30": Row("ppocrv4-rec", "macs=0.3", "ocr", 400, max_drop=0.01, metric="characters_right"),
    "ppocr-cls": Row("ppocr-cls", "macs=0.3", "cls", 400),
    **{
        name: Row(name, "macs=0.3")
        for name in (
            "light-resnet50", "light-densenet121", "light-shufflenet", "light-inception-v1", "light-inception-v2",
            "light-squeezenet",
        )
    },
}  # fmt: skip


def settings(row: Row) -> tuple[Path, dict[str, Any]]:
    """The model's file; data, metric and shapes for compiling it."""
    if not row.task:
        shapes = {key: tuple(dims) for key, dims in zoo.recipe(row.model).input_shapes.items()}
        return zoo.fetch(row.model), {"synthetic_calibration": True, "input_shapes": shapes}
    task = tasks()[row.task]
    split = task.calibration(row.samples)
    data = [
        {**feeds, **{label: array[index] for label, array in split.labels.items()}}
        for index, feeds in enumerate(split.feeds)
    ]
    metric = getattr(sys.modules[type(task).__module__], row.metric, None)
    return task.model(), {"data": data, "metric": metric}


def measure(name: str, row: Row, target: str, seconds: float, threads: int) -> dict[str, Any]:
    """All figures of one row."""
    source, given = settings(row)
    task = tasks()[row.task] if row.task else None
    feeds: Feeds = zoo.example_inputs(row.model, seed=0) if task is None else dict(task.evaluation.feeds[0])
    found: dict[str, Any] = {"row": name, "options": row.options, "task": row.task}
    prune = f"prune{{{row.options}}}"
    passes = {"fuse": "fuse", "pruned": f"fuse,{prune}"}
    if row.integers:
        passes |= {"int8": "fuse,quantize{cache=none}", "pruned int8": f"fuse,{prune},quantize{{cache=none}}"}
    if row.trained:
        distill = f"distill{{cache=none,{row.trained}}}"
        passes["trained"] = f"fuse,{prune},{distill}"
        if row.integers:
            passes["trained int8"] = f"fuse,{prune},quantize{{cache=none}},{distill}"
    forms: list[Form] = []
    with tempfile.TemporaryDirectory(prefix="graphopt-bench-") as temporary:
        for label, chain in passes.items():
            started = time.monotonic()
            lossy = {} if label == "fuse" else given | {"max_drop": row.max_drop, "tune": "60s"}
            shapes = {key: value for key, value in given.items() if key == "input_shapes"}
            try:
                compiled = graphopt.compile(
                    source, target=target, passes=chain, threads=threads, **{**shapes, **lossy}
                )
                bundle = compiled.save(Path(temporary) / f"{label}.gopt")
            except GraphoptError as error:
                found[label] = {"error": error.message}
                continue
            manifest = artifact.read_manifest(bundle)
            forms.append(Form(label, manifest.target, bundle, manifest.config))
            found[label] = {"seconds": round(time.monotonic() - started, 1), "form": compiled.report.chosen}
            details = [
                record.details
                for record in compiled.report.passes
                if record.name == "prune" and record.details
            ]
            if details and "macs_left" in details[-1]:
                found[label]["macs_left"] = details[-1]["macs_left"]
            if task:
                found[label]["score"] = task.score(task.predict(_runner(forms[-1], threads)))
        timings = time_forms(forms, feeds, threads=threads, seconds=seconds, least_rounds=9, most_rounds=100)
    for timing in timings:
        found[timing.form.label] |= {
            "ms": timing.milliseconds, "speedup": timing.speedup, "interval": [timing.low, timing.high],
        }  # fmt: skip
    return found


def gain(row: Mapping[str, Any]) -> float | None:
    """Share of the proportional gain; None where nothing was removed."""
    pruned = row.get("pruned", {})
    left = pruned.get("macs_left")
    if not left or left >= 1 or "speedup" not in pruned:
        return None
    return float((pruned["speedup"] - 1) / (1 / left - 1))


def table(rows: list[dict[str, Any]], target: str) -> Table:
    """For people."""
    view = Table(title=f"pruned, beside the result of fuse, on {target}")
    for heading in (
        "model",
        "prune",
        "fuse ms",
        "MACs left",
        "times as fast",
        "gain",
        "score",
        "s",
        "int8",
        "both",
        "trained",
    ):
        view.add_column(heading, justify="left" if heading in ("model", "prune") else "right")
    for row in rows:
        pruned = row["pruned"]
        failed = next((row[form]["error"] for form in ("fuse", "pruned") if "error" in row[form]), None)
        if failed is not None:
            view.add_row(row["row"], row["options"], "", "", "fails", "", failed[:60])
            continue
        share = gain(row)
        view.add_row(
            row["row"], row["options"], f"{row['fuse']['ms']:.2f}", f"{pruned.get('macs_left') or 1:.0%}",
            f"{pruned['speedup']:.2f}", "" if share is None else f"{share:.2f}", _score(row),
            f"{pruned['seconds']:.0f}",
            *(f"{row[key]['speedup']:.2f}" if "speedup" in row.get(key, {}) else "" for key in ("int8", "pruned int8")),
            _score(row, "trained"),
        )  # fmt: skip
    return view


def _score(row: Mapping[str, Any], form: str = "pruned") -> str:
    before, after = row["fuse"].get("score"), row.get(form, {}).get("score")
    if not before or not after:
        return ""
    return ", ".join(f"{name} {100 * value:.1f} -> {100 * after[name]:.1f}" for name, value in before.items())


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rows", nargs="*", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--target", default="ort-cpu")
    parser.add_argument("--seconds", type=float, default=5.0, help="of timing for each row")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=_results.FOLDER / "prune.json")
    options = parser.parse_args()
    rows = []
    for name in options.rows:
        rows.append(measure(name, ROWS[name], options.target, options.seconds, options.threads))
        print({key: value for key, value in rows[-1].items() if key != "warnings"}, flush=True)
    Console(width=170).print(table(rows, options.target))
    _results.write(
        options.output,
        {"target": options.target, "rows": rows},
        threads=options.threads,
        packages=("onnxruntime",),
    )


if __name__ == "__main__":
    main()
