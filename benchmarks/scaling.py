"""Time of the passes over the size of the graph, on one core.

    python benchmarks/scaling.py [--nodes 10000 30000 100000] [--passes fold,fuse] [--output FILE]

Each graph is a chain of blocks as exporters write them: a projection with bias, a decomposed Gelu, a decomposed layer
normalisation, a hard swish, a residual addition, shape arithmetic and no-ops, so that most passes find something to do.
The passes run as in a compilation, each one a transaction with structural verification, and with comparison
against the reference. Prints seconds of each pass and writes JSON.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from _results import FOLDER, write
from rich.console import Console
from rich.table import Table

from graphopt import catalog
from graphopt.capture import capture
from graphopt.pipeline.manager import PassManager
from graphopt.pipeline.spec import parse
from graphopt.verify.reference import build_reference

DEFAULT_OUTPUT = FOLDER / "scaling.json"
WIDTH = 16

BLOCK = """
  {p}h = MatMul({x}, w) {p}b = Add({p}h, bias)
  {p}d = Div({p}b, root2) {p}e = Erf({p}d) {p}o = Add({p}e, one) {p}m = Mul({p}b, {p}o) {p}g = Mul({p}m, half)
  {p}i = Identity({p}g)
  {p}r = Add({p}i, {x})
  {p}mu = ReduceMean<axes=[-1]>({p}r) {p}c = Sub({p}r, {p}mu) {p}sq = Pow({p}c, two) {p}v = ReduceMean<axes=[-1]>({p}sq)
  {p}ve = Add({p}v, eps) {p}s = Sqrt({p}ve) {p}n = Div({p}c, {p}s) {p}ng = Mul({p}n, gamma) {p}nb = Add({p}ng, beta)
  {p}t = Add({p}nb, three) {p}cl = Clip({p}t, zero, six) {p}hm = Mul({p}nb, {p}cl) {p}hs = Div({p}hm, six)
  {p}sh = Shape({p}hs) {p}re = Reshape({p}hs, {p}sh) {p}u = Unsqueeze({p}re, axis0) {p}y = Squeeze({p}u, axis0)
"""


def synthetic(nodes: int) -> ir.Model:
    """A graph of at least ``nodes`` nodes; input [batch, 16]."""
    import onnx.parser

    blocks: list[str] = []
    x = "x"
    per_block = BLOCK.count("=") - BLOCK.count("axes=")
    for index in range(-(-nodes // per_block)):
        blocks.append(BLOCK.format(p=f"b{index}_", x=x))
        x = f"b{index}_y"
    scalars = {"root2": 2**0.5, "one": 1, "half": 0.5, "two": 2, "eps": 1e-5, "three": 3, "zero": 0, "six": 6}
    rng = np.random.default_rng(0)
    shapes = {"w": (WIDTH, WIDTH), "bias": (WIDTH,), "gamma": (WIDTH,), "beta": (WIDTH,)}
    constants = [f"float {name} = {{{value}}}" for name, value in scalars.items()]
    for name, shape in shapes.items():
        content = ", ".join(f"{value:.5f}" for value in (rng.standard_normal(shape) * 0.3).reshape(-1))
        constants.append(f"float[{', '.join(map(str, shape))}] {name} = {{{content}}}")
    text = (
        f'<ir_version: 8, opset_import: ["" : 17]> g (float[batch,{WIDTH}] x) => (float[batch,{WIDTH}] y) '
        f"<{', '.join(constants)}, int64[1] axis0 = {{0}}>\n{{{''.join(blocks)} y = Identity({x}) }}"
    )
    return ir.from_proto(onnx.parser.parse_model(text))


def measure(nodes: int, passes: str) -> dict[str, Any]:
    """Seconds of each step for one size."""
    model = synthetic(nodes)
    started = time.monotonic()
    captured = capture(model)
    capture_seconds = time.monotonic() - started
    started = time.monotonic()
    reference = build_reference(captured.original_model, interface=captured.model, trials=1)
    reference_seconds = time.monotonic() - started
    started = time.monotonic()
    result, records = PassManager(catalog.expand(parse(passes)), reference).run(captured.model)
    seconds = time.monotonic() - started
    return {
        "nodes": sum(1 for _ in captured.original_model.graph.all_nodes()),
        "nodes_after": sum(1 for _ in result.graph.all_nodes()),
        "seconds": seconds,
        "capture_seconds": capture_seconds,
        "reference_seconds": reference_seconds,
        # Of a graph of one block many times over, refusals are alike: how many there are is enough.
        "passes": [{**record.as_dict(), "refused": len(record.refused)} for record in records],
    }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--nodes", type=int, nargs="*", default=[10_000, 30_000, 100_000])
    parser.add_argument("--passes", default="fold,fuse")
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT)
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    rows = [measure(nodes, options.passes) for nodes in options.nodes]
    table = Table(title=f"seconds of {options.passes}, one core")
    table.add_column("pass")
    for row in rows:
        table.add_column(f"{row['nodes']} nodes", justify="right")
    for index, record in enumerate(rows[0]["passes"]):
        cells = [
            f"{row['passes'][index]['seconds']:.2f} + {row['passes'][index]['verify_seconds']:.2f}"
            for row in rows
        ]
        table.add_row(f"{record['name']} ({record['status']})", *cells)
    table.add_section()
    table.add_row("all passes", *(f"{row['seconds']:.1f}" for row in rows))
    table.add_row("growth", *(f"{row['seconds'] / rows[0]['seconds']:.1f}x" for row in rows))
    table.add_row("capture", *(f"{row['capture_seconds']:.1f}" for row in rows))
    table.add_row("reference", *(f"{row['reference_seconds']:.1f}" for row in rows))
    table.add_row("nodes after", *(str(row["nodes_after"]) for row in rows))
    Console(width=140).print(table)
    figures = {"passes": options.passes, "sizes": rows}
    write(options.output, figures, threads=1, packages=("onnx-ir", "onnxruntime", "onnxsim"))


if __name__ == "__main__":
    main()
