"""Quantized models on tvm-llvm: what ONNX Runtime's own tool quantized, and what ``--passes fuse,quantize`` does.

    python benchmarks/tvm_integers.py [--models NAME ...] [--seconds S] [--threads N] [--output FILE]

For each model, interleaved and each in a process of its own: ONNX Runtime's default on the float model; the file of its
``quantize_static`` (QDQ, unsigned activations, weights by channel) in ONNX Runtime and compiled by ``--target
tvm-llvm``; and the float model by ``--target tvm-llvm --passes fuse,quantize``, held to 20 dB on made-up inputs. All at
the sizes of the zoo's recipes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxsim
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

import graphopt
from benchmarks._results import FOLDER, write
from graphopt import artifact, zoo
from graphopt.data.interface import Feeds
from graphopt.errors import GraphoptError
from graphopt.target import Form
from graphopt.tune.paired import time_forms

MODELS = (
    "light-squeezenet",
    "light-resnet50",
    "light-shufflenet",
    "ppocrv4-rec",
    "ppocr-cls",
    "crepe-tiny",
    "minilm",
)
_OPSET = 13
"""The least that has scales by channel."""
_SAMPLES = 4


class _Samples:
    """What ONNX Runtime's tool calibrates with."""

    def __init__(self, name: str) -> None:
        self._left: Iterator[Feeds] = iter([zoo.example_inputs(name, seed=seed) for seed in range(_SAMPLES)])

    def get_next(self) -> Feeds | None:
        return next(self._left, None)


def quantized(name: str, folder: Path) -> Path:
    """The model as ONNX Runtime's tool quantizes it."""
    from onnxruntime.quantization import QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    raised, prepared, path = (folder / f"{step}.onnx" for step in ("raised", "prepared", "quantized"))
    model = onnx.load(zoo.fetch(name))
    if next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")) < _OPSET:
        # Constants of so old files are inputs too, which the tool does not quantize.
        model, _ = onnxsim.simplify(model)
        model = onnx.version_converter.convert_version(model, _OPSET)
    model.ir_version = max(model.ir_version, 8)
    onnx.save(model, raised)
    quant_pre_process(raised, prepared, skip_symbolic_shape=True)
    quantize_static(
        prepared, path, _Samples(name), per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip
    return path


def measure(name: str, seconds: float, threads: int) -> dict[str, Any]:
    """All figures of one model."""
    shapes = {key: tuple(dims) for key, dims in zoo.recipe(name).input_shapes.items()}
    feeds = zoo.example_inputs(name, seed=0)
    source = zoo.fetch(name)
    row: dict[str, Any] = {"model": name, "errors": {}}
    options: dict[str, Any] = {"target": "tvm-llvm", "threads": threads, "input_shapes": shapes}
    with tempfile.TemporaryDirectory(prefix="graphopt-bench-") as temporary:
        folder = Path(temporary)
        forms = [Form("original", "ort-cpu", source.parent, {"file": source.name})]
        try:
            path = quantized(name, folder)
            forms.append(Form("qdq", "ort-cpu", path.parent, {"file": path.name}))
            _add(row, forms, "qdq-tvm", path, folder, passes="O2", data=[feeds], tune=1.0, **options)
        except (GraphoptError, ValueError, RuntimeError) as error:
            row["errors"]["qdq"] = str(error).splitlines()[0]
        try:
            _add(
                row, forms, "quantize", source, folder,
                passes="O2,quantize", synthetic_calibration=True, tune=60.0, **options,
            )  # fmt: skip
        except GraphoptError as error:
            row["errors"]["quantize"] = str(error).splitlines()[0]
        timings = time_forms(forms, feeds, threads=threads, seconds=seconds, least_rounds=11, most_rounds=200)
    row["latency_ms"] = {timing.form.label: timing.milliseconds for timing in timings}
    row["speedup"] = {timing.form.label: timing.speedup for timing in timings}
    return row


def _add(
    row: dict[str, Any], forms: list[Form], label: str, source: Path, folder: Path, **options: Any
) -> None:
    compiled = graphopt.compile(source, **options)
    bundle = compiled.save(folder / f"{label}.gopt")
    manifest = artifact.read_manifest(bundle)
    report = compiled.report.as_dict()
    row[label] = {"verify": report["verify"], "form": report["optimized"]["form"], "stages": report["stages"]}
    forms.append(Form(label, manifest.target, bundle, manifest.config))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--seconds", type=float, default=4.0, help="of timing for each model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=FOLDER / "tvm_integers.json")
    options = parser.parse_args()
    console = Console()
    view = Table(title="Times as fast as ONNX Runtime on the float model")
    for column in ("model", "QDQ in ONNX Runtime", "QDQ on tvm-llvm", "quantize on tvm-llvm", "dB", "form"):
        view.add_column(column)
    rows = []
    for name in options.models:
        row = measure(name, options.seconds, options.threads)
        rows.append(row)
        shown = [
            f"{row['speedup'][label]:.2f}" if label in row["speedup"] else "-" for label in ("qdq", "qdq-tvm")
        ]
        found = row.get("quantize", {})
        budget = found.get("verify", {}).get("budget") or {}
        noise = budget.get("decibels")
        view.add_row(
            name, *shown, f"{row['speedup'].get('quantize', np.nan):.2f}",
            "-" if noise is None else f"{noise:.0f}", found.get("form", str(row["errors"])),
        )  # fmt: skip
        console.print(name, row["speedup"], row["errors"])
    console.print(view)
    write(options.output, {"models": rows}, threads=options.threads, packages=("onnxruntime", "apache-tvm"))


if __name__ == "__main__":
    main()
