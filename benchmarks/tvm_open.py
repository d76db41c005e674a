"""Models compiled by TVM with their sizes open, beside the same with fixed sizes.

    python benchmarks/tvm_open.py [--models NAME,...] [--seconds S] [--threads N] [--output FILE]

Models of the zoo whose files leave sizes open. Both forms and ONNX Runtime's default on the original take the recipe's
inputs, interleaved, each in a process of its own; both are compared with the original on them (docs/tvm.md).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

import graphopt
from benchmarks._results import FOLDER, write
from graphopt import catalog, zoo
from graphopt.capture import capture
from graphopt.data.interface import Feeds, is_static
from graphopt.errors import GraphoptError
from graphopt.machine import Form
from graphopt.pipeline.manager import PassManager
from graphopt.tune.paired import time_forms
from graphopt.verify.session import Session


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default="")
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=FOLDER / "tvm_open.json")
    arguments = parser.parse_args()
    names = [name for name in arguments.models.split(",") if name] or [
        recipe.name for recipe in zoo.listing()
    ]
    table = Table("model", "original, ms", "fixed", "open", "open / fixed", "error", title="tvm-llvm")
    results: list[dict[str, Any]] = []
    console = Console()
    for name in names:
        result = measured(name, arguments.seconds, arguments.threads)
        if result is None:
            continue
        results.append(result)
        if "error" in result:
            table.add_row(name, "", "", "", "", result["error"][:60])
        else:
            told = (f"{result[key]:.2f}" for key in ("milliseconds", "fixed", "open", "ratio"))
            table.add_row(name, *told, f"{result['largest_error']:.1e}")
        console.print(f"{name}: {result.get('error') or 'done'}")
    console.print(table)
    write(
        arguments.output,
        {"models": results},
        threads=arguments.threads,
        packages=("apache-tvm", "onnxruntime"),
    )


def measured(name: str, seconds: float, threads: int) -> dict[str, Any] | None:
    """Both forms of a model, relative to ONNX Runtime; None for one whose file has fixed sizes."""
    path = zoo.fetch(name)
    captured = capture(path)
    if is_static(captured.model):
        return None
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        try:
            fixed, _ = built(path, folder / "fixed", zoo.recipe(name).input_shapes)
            opened, took = built(path, folder / "open", None)
        except GraphoptError as error:
            return {"model": name, "error": error.message}
        feeds = zoo.example_inputs(name)
        original = folder / "original"
        original.mkdir()
        target = catalog.target("ort-cpu")
        config = target.emit(
            captured.original_model, original, target.variants(captured.original_model, None)[0]
        )
        forms = [Form("original", "ort-cpu", original, config), fixed, opened]
        reference = Session(captured.original_model, threads=threads)
        errors = [off(form, feeds, reference) for form in (fixed, opened)]
        timings = time_forms(forms, feeds, threads=threads, seconds=seconds)
        return {
            "model": name,
            "milliseconds": timings[0].milliseconds,
            "fixed": timings[1].speedup,
            "open": timings[2].speedup,
            "ratio": timings[2].speedup / timings[1].speedup,
            "largest_error": max(errors),
            "compile_seconds": took,
        }


def built(path: Path, folder: Path, shapes: Mapping[str, Any] | None) -> tuple[Form, float]:
    """A model on ``tvm-llvm`` with these shapes, or with its own; and the seconds of its compilation."""
    folder.mkdir()
    target = catalog.target("tvm-llvm")
    model = graphopt.Pipeline("fold,fuse").run(capture(path, input_shapes=shapes).model)
    model, _ = PassManager(target.legalization()).run(model)
    started = time.monotonic()
    config = target.emit(model, folder, {})
    return Form(folder.name, "tvm-llvm", folder, config), time.monotonic() - started


def off(form: Form, feeds: Feeds, reference: Session) -> float:
    """Largest deviation from the original, relative to the largest value of the output."""
    made = catalog.runtime(form.target).load(form.folder, form.config).run(feeds)
    found = [
        float(np.abs(made[name] - wanted).max() / max(float(np.abs(wanted).max()), 1e-30))
        for name, wanted in reference.run(feeds).items()
        if isinstance(wanted, np.ndarray) and wanted.dtype.kind == "f"
    ]
    return max(found, default=0.0)


if __name__ == "__main__":
    main()
