"""Single operators compiled by TVM with graphopt's own loops, beside ONNX Runtime.

    python benchmarks/tvm_kernels.py [--seconds S] [--threads N] [--output FILE]

Each case is a model of one operator; ratios are interleaved, each side in a process of its own (docs/tvm.md).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

import graphopt
from benchmarks._results import FOLDER, write
from graphopt.errors import GraphoptError


@dataclass(frozen=True)
class Case:
    """One operator: shapes of its data and of its constant weight, its attributes."""

    op: str
    data: Sequence[int]
    weight: Sequence[int] = ()
    attributes: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Operator and sizes."""
        sizes = " by ".join("x".join(map(str, shape)) for shape in (self.data, self.weight) if shape)
        told = ", ".join(f"{key}={value}" for key, value in self.attributes.items() if key != "axis")
        return f"{self.op} {sizes}" + (f" ({told})" if told else "")

    def model(self) -> onnx.ModelProto:
        """The model of this one node."""
        rng = np.random.default_rng(0)
        weights = [numpy_helper.from_array(rng.standard_normal(self.weight).astype(np.float32), "w")]
        node = helper.make_node(self.op, ["x", *(["w"] if self.weight else [])], ["y"], **self.attributes)
        graph = helper.make_graph(
            [node], "case",
            [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, self.data)],
            [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
            weights if self.weight else [],
        )  # fmt: skip
        return onnx.shape_inference.infer_shapes(
            helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
        )


def conv(data: Sequence[int], outputs: int, kernel: int, stride: int = 1, group: int = 1) -> Case:
    """A convolution that keeps the size but for the stride."""
    attributes: dict[str, Any] = {"pads": [kernel // 2] * 4}
    if stride > 1:
        attributes["strides"] = [stride] * 2
    if group > 1:
        attributes["group"] = group
    return Case("Conv", data, (outputs, data[1] // group, kernel, kernel), attributes)


CASES = (
    conv((1, 3, 224, 224), 64, 7, 2),
    conv((1, 64, 56, 56), 64, 3),
    conv((1, 256, 14, 14), 256, 3),
    conv((1, 256, 56, 56), 64, 1),
    conv((1, 512, 7, 7), 2048, 1),
    conv((1, 64, 56, 56), 64, 3, 1, 64),
    conv((1, 64, 112, 112), 64, 3, 2, 64),
    conv((1, 240, 6, 80), 240, 5, 1, 240),
    conv((1, 240, 28, 28), 240, 1, 1, 3),
    Case("MatMul", (8, 128, 384), (384, 1536)),
    Case("MatMul", (8, 128, 1536), (1536, 384)),
    Case("MatMul", (1, 4096), (4096, 4096)),
    Case("MatMul", (1, 197, 768), (768, 768)),
    Case("Softmax", (8, 12, 128, 128), (), {"axis": -1}),
    Case("Gelu", (8, 128, 1536)),
    Case("HardSwish", (1, 64, 112, 112)),
    Case("GlobalAveragePool", (1, 480, 14, 14)),
    Case("MaxPool", (1, 64, 112, 112), (), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1] * 4}),
)


def measure(case: Case, seconds: float, threads: int) -> dict[str, Any]:
    """Times of the original in ONNX Runtime and of TVM's library."""
    with tempfile.TemporaryDirectory(prefix="graphopt-bench-") as temporary:
        path = Path(temporary) / "case.onnx"
        onnx.save(case.model(), path)
        report = graphopt.compile(
            path, target="tvm-llvm", passes=(), threads=threads, tune=seconds
        ).report.as_dict()
    return {
        "case": case.name,
        "onnxruntime_ms": report["baseline"]["latency_ms"],
        "tvm_ms": report["optimized"]["latency_ms"],
        "speedup": report["speedup"],
        "error": report["verify"]["value"],
        "noise_floor": report["verify"]["noise_floor"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=3.0, help="of timing for each case")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=FOLDER / "tvm_kernels.json")
    options = parser.parse_args()
    console = Console()
    table = Table("operator", "ONNX Runtime, ms", "TVM, ms", "times as fast", title="one operator at a time")
    rows = []
    for case in CASES:
        try:
            row = measure(case, options.seconds, options.threads)
        except GraphoptError as error:
            console.print(f"{case.name}: {error}", highlight=False)
            continue
        rows.append(row)
        table.add_row(
            row["case"], f"{row['onnxruntime_ms']:.3f}", f"{row['tvm_ms']:.3f}", f"{row['speedup']:.2f}"
        )
    console.print(table)
    write(options.output, {"cases": rows}, threads=options.threads, packages=("onnxruntime", "apache-tvm"))


if __name__ == "__main__":
    main()
