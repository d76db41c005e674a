"""Simplifiers side by side: nodes, opset, and what they do to the numbers.

    python benchmarks/simplify.py [--models NAME ...] [--output FILE]

For each zoo model, with its sizes left as they are: nodes of the original, of onnxsim's, onnxslim's and ``graphopt
simplify``'s result (``fold``, and ``fold,fuse``), the opset of each, and the largest error of its outputs beside the
original's over the largest output, both run in ONNX Runtime without its optimisations on the same inputs.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

import graphopt
from benchmarks import _results
from benchmarks.zoo import TOOLS, simplified
from graphopt import zoo
from graphopt.capture import capture
from graphopt.data.interface import Feeds
from graphopt.errors import GraphoptError
from graphopt.ir import model as ir_model
from graphopt.verify.session import Session

PASSES = ("fold", "fold,fuse")


def figures(path: Path, feeds: Feeds, wanted: Feeds) -> dict[str, Any]:
    """Of one file."""
    model = ir_model.load(path)
    opset = next(
        entry.version for entry in onnx.load(path, load_external_data=False).opset_import if not entry.domain
    )
    return {
        "nodes": ir_model.count_nodes(model),
        "opset": opset,
        "error": error(outputs(path, feeds), wanted),
    }


def outputs(path: Path, feeds: Feeds) -> Feeds:
    """What ONNX Runtime makes of the file as it is."""
    return Session(capture(path).original_model, optimize="off", threads=2).run(feeds)


def error(got: Feeds, wanted: Feeds) -> float:
    """The largest error of any output, over its largest number."""
    found = [
        float(np.abs(got[name].astype(np.float64) - array).max() / (np.abs(array).max() or 1.0))
        for name, array in wanted.items()
        if isinstance(array, np.ndarray) and array.size
    ]
    return max(found, default=0.0)


def measure(name: str) -> dict[str, Any]:
    """All figures of one model."""
    source, feeds = zoo.fetch(name), zoo.example_inputs(name, seed=0)
    wanted = outputs(source, feeds)
    row: dict[str, Any] = {"model": name, "original": figures(source, feeds, wanted)}
    with tempfile.TemporaryDirectory(prefix="graphopt-bench-") as temporary:
        folder = Path(temporary)
        for tool in TOOLS:
            try:
                form = simplified(tool, source, folder, {})
                row[tool] = figures(form.folder / form.config["file"], feeds, wanted)
            except (RuntimeError, GraphoptError, subprocess.TimeoutExpired) as failure:
                row[tool] = {"failure": getattr(failure, "message", str(failure)).splitlines()[0]}
        for passes in PASSES:
            started = time.monotonic()
            path = graphopt.simplify(source, passes=passes, data=[feeds]).save(folder / "graphopt.onnx")
            seconds = round(time.monotonic() - started, 1)
            row[f"graphopt {passes}"] = {**figures(path, feeds, wanted), "seconds": seconds}
    return row


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=[recipe.name for recipe in zoo.listing()])
    parser.add_argument("--output", type=Path, default=_results.FOLDER / "simplify.json")
    given = parser.parse_args()
    columns = ("original", *TOOLS, *(f"graphopt {passes}" for passes in PASSES))
    view = Table(title="Nodes (opset, error)")
    for heading in ("model", *columns):
        view.add_column(heading)
    rows = []
    for name in given.models:
        row = measure(name)
        rows.append(row)
        cells = [
            "fails" if "failure" in one else f"{one['nodes']} ({one['opset']}, {one['error']:.0e})"
            for one in (row[column] for column in columns)
        ]
        view.add_row(name, *cells)
        Console(stderr=True).print(name, *cells)
    Console(width=160).print(view)
    _results.write(given.output, {"models": rows}, threads=2, packages=("onnxruntime", "onnxsim", "onnxslim"))


if __name__ == "__main__":
    main()
