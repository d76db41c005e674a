"""How a compilation with lossy passes keeps to the time it is given.

    python benchmarks/tune_budget.py [--models NAME ...] [--targets T ...] [--seconds S ...] [--output FILE]

For each model, target and time of ``--tune``: how long the search for a mix of precisions took (half of the time is for
it), how long measuring the forms did, and both together against the whole. Nothing is taken over from earlier runs.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

import graphopt
from benchmarks import _results
from benchmarks.quantize import settings
from graphopt import zoo

MODELS = ("ppocrv4-rec", "ppocrv4-det", "minilm", "crepe-full")
TARGETS = ("ort-cpu", "cpu")
SECONDS = (30.0, 60.0)
THREADS = 2


def measure(name: str, target: str, seconds: float) -> dict[str, Any]:
    """One compilation."""
    compiled = graphopt.compile(
        zoo.fetch(name), target=target, passes="fuse,quantize{cache=none}", tune=seconds, threads=THREADS,
        best_effort=True, **settings(name),
    )  # fmt: skip
    report = compiled.report.as_dict()
    search = sum(record["seconds"] for record in report["passes"] if record["numerics"] == "lossy")
    measured = report["stages"]["measure"]
    return {
        "model": name,
        "target": target,
        "tune": seconds,
        "search": round(search, 1),
        "measure": round(measured, 1),
        "used": round((search + measured) / seconds, 2),
        "speedup": report["speedup"],
        "form": report["optimized"]["form"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--targets", nargs="+", default=list(TARGETS))
    parser.add_argument("--seconds", nargs="+", type=float, default=list(SECONDS))
    parser.add_argument("--output", type=Path, default=_results.FOLDER / "tune_budget.json")
    given = parser.parse_args()
    view = Table(title="--tune: seconds searched and measured")
    for heading in ("model", "target", "tune", "search (of half)", "measure", "used", "form"):
        view.add_column(heading)
    rows = []
    for name, target, seconds in itertools.product(given.models, given.targets, given.seconds):
        row = measure(name, target, seconds)
        rows.append(row)
        view.add_row(
            name, target, f"{seconds:g}", f"{row['search']:.1f} ({row['search'] / seconds * 2:.0%})",
            f"{row['measure']:.1f}", f"{row['used']:.0%}", row["form"],
        )  # fmt: skip
        Console(stderr=True).print(row)
    Console(width=140).print(view)
    _results.write(given.output, {"rows": rows}, threads=THREADS, packages=("onnxruntime", "openvino"))


if __name__ == "__main__":
    main()
