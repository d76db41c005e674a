"""What decides about a mix of int8 and float: times of whole sets against their prediction, and the noise of each unit.

    python benchmarks/mixes.py times MODEL [--target T]   sets of units: predicted from single kernels, and measured
    python benchmarks/mixes.py noise MODEL [--target T]   decibels with one unit on integers, and with all but one

MODEL is one of the zoo that has a task (benchmarks/tasks), whose calibration data are taken.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

import graphopt
from benchmarks.quantize import settings
from graphopt import zoo
from graphopt.errors import GraphoptError
from graphopt.lossy import Context, LossyPass, Proposal
from graphopt.passes._preparation import CalibrationOptions
from graphopt.quant.search import Search
from graphopt.quant.sweep import Noise, noise_of_units
from graphopt.quant.units import units_of

_SAMPLES = 10
_SHOWN = 12
CONSOLE = Console(width=140)


class Look(LossyPass):
    """Measures and proposes nothing."""

    name = "look"
    Options = CalibrationOptions
    what = "times"

    def propose(self, model: ir.Model, context: Context) -> Proposal:
        options: CalibrationOptions = self.options
        if context.kernels is None:
            raise SystemExit(f"{context.target} has no integer kernels")
        calibration = options.observe(model, context.kernels, context)
        calibration = calibration.by(options.rules(context.kernels)[0])
        if self.what == "noise":
            samples = list(itertools.islice(options.data(context), _SAMPLES))
            names = [unit.name for unit in units_of(model, context.kernels)[0] if unit.kind == "compute"]
            print_noise(
                noise_of_units(
                    model, names, calibration.ranges, context.kernels, samples,
                    threads=context.threads, seconds=float("inf"),
                )
            )  # fmt: skip
            return Proposal(reason="only looked at")
        search = Search(
            model, context.kernels, calibration, context.evaluation, context.profile,
            threads=context.threads,
        )  # fmt: skip
        print_times(search)
        return Proposal(reason="only looked at")


def print_noise(noise: Noise) -> None:
    """The loudest units alone, and those without which the graph is noisiest or quietest."""
    view = Table(
        title="Noise over signal in what goes into the outputs; company: how much less without the unit"
    )
    for heading in ("unit", "alone, dB", "company"):
        view.add_column(heading, justify="left" if heading == "unit" else "right")
    for name in sorted(noise.alone, key=lambda name: noise.alone[name], reverse=True)[:_SHOWN]:
        alone = -10 * np.log10(max(noise.alone[name], 1e-15))
        view.add_row(name, f"{alone:.1f}", f"{noise.company[name]:.1e}")
    CONSOLE.print(view)


def print_times(search: Search) -> None:
    """Each set that was measured as a whole, with its time as predicted before and as measured."""
    found = search.run()
    view = Table(title=f"Kernels in float: {found.float_milliseconds:.1f} ms")
    for heading in ("units on integers", "predicted, ms", "measured, ms"):
        view.add_column(heading, justify="right")
    for chosen, (predicted, measured) in found.times.items():
        view.add_row(str(len(chosen)), f"{predicted:.1f}", f"{measured:.1f}")
    CONSOLE.print(view)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("what", choices=("times", "noise"))
    parser.add_argument("model", help="a zoo model that has a task")
    parser.add_argument("--target", default="ort-cpu")
    options = parser.parse_args()
    Look.what = options.what
    given: dict[str, Any] = {"target": options.target, "threads": 2, "tune": "4s", **settings(options.model)}
    try:
        compiled = graphopt.compile(zoo.fetch(options.model), passes=["fuse", Look()], **given)
    except GraphoptError as error:
        raise SystemExit(error.message) from error
    failed = [text for text in compiled.report.warnings if "failed and was left out" in text]
    if failed:
        raise SystemExit("; ".join(failed))


if __name__ == "__main__":
    main()
