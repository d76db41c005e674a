"""What models are worth at their task, before and after compilation, on data that need no download.

    python benchmarks/accuracy.py list
    python benchmarks/accuracy.py data ocr --calibration calib.npz --samples 100 --evaluation eval.npz
    graphopt compile rec.onnx --passes fuse,quantize --data calib.npz \\
        --metric benchmarks/tasks/ocr.py:metric --max-drop 1% -o rec.gopt
    python benchmarks/accuracy.py run --tasks ocr,vad ocr=rec.gopt ocr=other.onnx

``data`` writes the inputs, and the labels beside them, for ``--data``. ``run`` scores each task's original in ONNX
Runtime and each candidate (a bundle or an ONNX file; ``TASK=`` may be left out where one task is named), prints a table
and writes JSON. No sample of the calibration data is among those that are judged by.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _results import FOLDER, write
from rich.console import Console
from rich.table import Table

# The tasks are a package of the checkout, wherever graphopt itself is installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.tasks import Outputs, Run, Task, onnx_runtime, tasks

DEFAULT_OUTPUT = FOLDER / "accuracy.json"
ORIGINAL = "original"


def runner(path: Path, threads: int) -> Run:
    """How to run a bundle, or an ONNX file in ONNX Runtime."""
    if not path.is_dir():
        return onnx_runtime(path, threads)
    import graphopt

    return graphopt.load(path, threads=threads).run


def evaluate(task: Task, candidates: Sequence[Path], threads: int) -> dict[str, Any]:
    """Scores of a task's original and of each candidate, by how the candidate was named."""
    reference: list[Outputs] | None = None
    rows = []
    for label, path in ((ORIGINAL, task.model()), *((str(path), path) for path in candidates)):
        run = runner(path, threads)
        started = time.perf_counter()
        outputs = task.predict(run)
        seconds = time.perf_counter() - started
        rows.append({"model": label, "scores": task.score(outputs, reference), "seconds": seconds})
        reference = reference or outputs
    return {
        "task": task.name,
        "headline": task.headline,
        "samples": len(task.evaluation.feeds),
        "models": rows,
    }


def table(results: Sequence[dict[str, Any]]) -> Table:
    """A row for each model of each task: the headline, its drop against the original, the other metrics."""
    view = Table(title="scores at the task; drop in points of the headline")
    for heading in ("task", "model", "metric", "score", "drop", "others"):
        view.add_column(heading, justify="right" if heading in ("score", "drop") else "left")
    for result in results:
        headline = result["headline"]
        original = result["models"][0]["scores"][headline]
        for row in result["models"]:
            scores = row["scores"]
            drop = "" if row["model"] == ORIGINAL else f"{100 * (original - scores[headline]):.2f}"
            others = ", ".join(f"{name} {value:.4f}" for name, value in scores.items() if name != headline)
            view.add_row(
                result["task"], row["model"], headline, f"{100 * scores[headline]:.2f} %", drop, others
            )
    return view


def chosen(names: str | None) -> list[Task]:
    """The tasks named, in order; a name also stands for all tasks that begin with it and a hyphen."""
    known = tasks()
    if names is None:
        return list(known.values())
    found: dict[str, Task] = {}
    for name in names.split(","):
        fitting = {key: task for key, task in known.items() if key == name or key.startswith(f"{name}-")}
        if not fitting:
            raise SystemExit(f"there is no task {name!r}; there are {', '.join(known)}")
        found |= fitting
    return list(found.values())


def assigned(named: Sequence[str], wanted: Sequence[Task]) -> dict[str, list[Path]]:
    """The candidates of each task, from ``TASK=PATH`` or, where there is one task, ``PATH``."""
    result: dict[str, list[Path]] = {task.name: [] for task in wanted}
    for text in named:
        task, separator, place = text.partition("=")
        if not separator:
            if len(wanted) != 1:
                raise SystemExit(
                    f"which task is {text!r} for? Write TASK={text}, or name one task: --tasks TASK"
                )
            task, place = wanted[0].name, text
        if task not in result:
            raise SystemExit(f"the task {task!r} of {text!r} is not among those run: {', '.join(result)}")
        if not Path(place).exists():
            raise SystemExit(f"there is no file or bundle {place!r}")
        result[task].append(Path(place))
    return result


def write_data(options: argparse.Namespace) -> None:
    """Write a task's samples as ``.npz``."""
    if options.task not in tasks():
        raise SystemExit(f"there is no task {options.task!r}; there are {', '.join(tasks())}")
    if not options.calibration and not options.evaluation:
        raise SystemExit("name a file to write: --calibration FILE or --evaluation FILE")
    task = tasks()[options.task]
    if options.calibration:
        task.calibration(options.samples).save(options.calibration)
        print(f"wrote {options.calibration}")
    if options.evaluation:
        task.evaluation.save(options.evaluation)
        print(f"wrote {options.evaluation}")


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="the tasks, their models and headlines")
    data = commands.add_parser("data", help="write a task's data for --data")
    data.add_argument("task")
    data.add_argument(
        "--calibration", type=Path, metavar="FILE", help="where to write calibration data (.npz)"
    )
    data.add_argument("--samples", type=int, default=100, help="of calibration (default: 100)")
    data.add_argument("--evaluation", type=Path, metavar="FILE", help="where to write evaluation data (.npz)")
    run = commands.add_parser("run", help="score originals and candidates")
    run.add_argument("--tasks", help="comma-separated; `vad` stands for all forms of it (default: all)")
    run.add_argument("--threads", type=int, default=2)
    run.add_argument("--output", type=Path, help=f"JSON to write (the project's own: {DEFAULT_OUTPUT.name})")
    run.add_argument("candidates", nargs="*", metavar="[TASK=]PATH", help="bundles and ONNX files")
    options = parser.parse_args()
    if options.command == "list":
        for task in tasks().values():
            print(f"{task.name:20} {task.headline}")
        return
    if options.command == "data":
        write_data(options)
        return
    wanted = chosen(options.tasks)
    candidates = assigned(options.candidates, wanted)
    console = Console(width=160)
    results = []
    for task in wanted:
        results.append(evaluate(task, candidates[task.name], options.threads))
        shown = {row["model"]: round(row["scores"][task.headline], 4) for row in results[-1]["models"]}
        console.print(f"{task.name}: {shown}", highlight=False)
    console.print(table(results))
    if options.output is not None:
        write(options.output, {"tasks": results}, threads=options.threads, packages=("onnxruntime", "pillow"))


if __name__ == "__main__":
    main()
