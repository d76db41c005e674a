"""Zoo models compiled for GPUs that need not be here: which compile, what proves them, how long it takes.

    python benchmarks/cross_compile.py [MODEL ...] [--arch A,...] [--output FILE]

Nothing is timed but compiling: without a GPU the result is "compiled, not run" (docs/tvm.md).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

import graphopt
from benchmarks._results import FOLDER, write
from graphopt import artifact, zoo
from graphopt.errors import GraphoptError


def main() -> None:
    """Compile each model; print a table, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=[recipe.name for recipe in zoo.listing()])
    parser.add_argument("--arch", default="sm_80,sm_90")
    parser.add_argument("--output", type=Path, default=FOLDER / "cross_compile.json")
    options = parser.parse_args()
    rows = []
    for name in options.models:
        rows.append(compiled(name, options.arch))
        print(rows[-1], flush=True)
    table = Table("model", "compiled in, s", "largest error", "noise floor", "verified by", "code")
    for row in rows:
        if "error" in row:
            table.add_row(row["model"], "", "", "", row["error"], "")
        else:
            table.add_row(
                row["model"], f"{row['seconds']:.0f}", f"{row['value']:.1e}", f"{row['noise_floor']:.1e}", row["by"],
                f"{', '.join(row['code'])} by {row['compiler']}",
            )  # fmt: skip
    Console(width=160).print(table)
    write(
        options.output,
        {"arch": options.arch, "models": rows},
        threads=0,
        packages=("apache-tvm", "onnxruntime"),
    )


def compiled(name: str, arch: str) -> dict[str, Any]:
    """What became of one model."""
    started = time.monotonic()
    shapes = {key: tuple(sizes) for key, sizes in zoo.recipe(name).input_shapes.items()}
    try:
        made = graphopt.compile(zoo.fetch(name), target="tvm-cuda", arch=arch, input_shapes=shapes or None)
    except GraphoptError as error:
        return {"model": name, "error": error.message}
    report = made.report.as_dict()
    with tempfile.TemporaryDirectory() as folder:
        config = artifact.read_manifest(made.save(Path(folder) / f"{name}.gopt")).config
    return {
        "model": name,
        "seconds": time.monotonic() - started,
        **{key: report["verify"][key] for key in ("value", "noise_floor", "by", "status")},
        "code": list(config["code"]),
        "compiler": config["compiler"],
    }


if __name__ == "__main__":
    main()
