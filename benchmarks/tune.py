"""What tuning brings on this machine: a model before and after, beside ONNX Runtime, and the cost of a trial.

    python benchmarks/tune.py [MODEL ...] [--tune EFFORT] [--seconds S] [--output FILE]

Each model is tuned into a database of its own, that is empty at the beginning; then the original in ONNX Runtime, the
untuned and the tuned bundle are timed interleaved, each in a process of its own (docs/tvm.md).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

import graphopt
from benchmarks._results import FOLDER, undisturbed, write
from graphopt import api, artifact, zoo
from graphopt.machine import Form, cores
from graphopt.tune.paired import Bench

MODELS = ("light-squeezenet", "light-resnet50", "ppocrv4-rec", "minilm", "crepe-tiny")


def main() -> None:
    """Tune each model; print a table, and write what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--tune", default="10m")
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--output", type=Path, default=FOLDER / "tune.json")
    options = parser.parse_args()
    rows = []
    for name in options.models:
        rows.append(tuned(name, options.tune, options.seconds))
        print(rows[-1], flush=True)
    table = Table(
        "model", "trials", "s", "s a trial", "tuned", "untuned, of ONNX Runtime's time", "tuned", "disturbed"
    )
    for row in rows:
        table.add_row(
            row["model"], str(row["trials"]), f"{row['seconds']:.0f}", f"{row['seconds'] / max(row['trials'], 1):.2f}",
            f"{row['coverage']:.0%}", f"{row['untuned']:.2f}", f"{row['tuned']:.2f}",
            "yes" if row["disturbed"] else "",
        )  # fmt: skip
    Console(width=140).print(table)
    write(
        options.output, {"effort": options.tune, "models": rows}, threads=cores(),
        packages=("apache-tvm", "onnxruntime"),
    )  # fmt: skip


def tuned(name: str, effort: str, seconds: float) -> dict[str, Any]:
    """One model: what tuning took, and times relative to ONNX Runtime's."""
    shapes = {key: tuple(sizes) for key, sizes in zoo.recipe(name).input_shapes.items()} or None
    model = zoo.fetch(name)
    with tempfile.TemporaryDirectory() as folder:
        empty, kernels = Path(folder) / "empty", Path(folder) / "kernels"
        found = api.tune(model, tune=effort, database=kernels, input_shapes=shapes)
        forms = [Form("original", "ort-cpu", model.parent, {"file": model.name})]
        for label, database in (("untuned", empty), ("tuned", kernels)):
            made = graphopt.compile(
                model,
                target="tvm-llvm",
                database=database,
                input_shapes=shapes,
                data=zoo.example_inputs(name),
            )
            bundle = made.save(Path(folder) / f"{label}.gopt")
            forms.append(Form(label, "tvm-llvm", bundle, artifact.read_manifest(bundle).config))

        def measure() -> dict[str, Any]:
            with Bench(zoo.example_inputs(name)) as bench:
                timings = bench.time(forms, seconds=seconds)
            return {timing.form.label: 1 / timing.speedup for timing in timings[1:]}

        return {
            "model": name,
            "trials": found.trials,
            "seconds": found.seconds,
            "coverage": found.tuned_share,
            "finished": all(kernel.finished for kernel in found.kernels),
            **{"disturbed": False, **undisturbed(measure)},
        }


if __name__ == "__main__":
    main()
