"""What calibration takes, and which rule for ranges loses least.

    python benchmarks/calibration.py memory [--samples 500] [--output FILE]
    python benchmarks/calibration.py rules [TASK ...] [--samples 48] [--output FILE]

``memory``: PP-OCRv4's text detector on 500 pages of 640 by 640, the memory of the process (PSS, sampled) before and at
its peak, for several limits, and the time. Linux only.

``rules``: each task of ``benchmarks/tasks`` with ranges by every rule from one calibration, quantized as ONNX Runtime's
integer kernels want it, without equalization or bias correction: the signal-to-noise ratio of the outputs on 24 inputs,
once with products alone on integers and once with every operator that has integer kernels; the better of the two is
scored on all of them where that takes less than 15 s. A task that is run again takes the place of its old figures."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import _results
from benchmarks.memory import Sampler, pss_bytes
from benchmarks.tasks import Array, Task, tasks
from graphopt import catalog, zoo
from graphopt.api import as_specs
from graphopt.capture import capture
from graphopt.data.dataset import Calibrating, Dataset
from graphopt.data.interface import inputs_of
from graphopt.ir import model as ir_model
from graphopt.pipeline.manager import PassManager
from graphopt.quant.clipping import METHODS, Rule
from graphopt.quant.observe import Calibration, observe, parse_memory
from graphopt.quant.place import place, tensors_to_observe
from graphopt.quant.units import units_of
from graphopt.targets.ort.integers import kernels
from graphopt.verify.agreement import noise_share
from graphopt.verify.session import Session

MODEL = "ppocrv4-det"
LIMITS = ("2G", "256M")
PERCENTILES = (99.9, 99.99, 99.999)
PARTS = ("products", "all")
JUDGED = 24
MOST_SECONDS = 15.0
THREADS = 2
_FLOOR = 1e-12


def main() -> None:
    """Run one of the benchmarks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    memory = commands.add_parser("memory")
    memory.add_argument("--samples", type=int, default=500)
    memory.add_argument("--output", type=Path, default=_results.FOLDER / "calibration_memory.json")
    child = commands.add_parser("child")
    child.add_argument("data", type=Path)
    child.add_argument("limit")
    rules = commands.add_parser("rules")
    rules.add_argument("tasks", nargs="*")
    rules.add_argument("--samples", type=int, default=48)
    rules.add_argument("--output", type=Path, default=_results.FOLDER / "calibration_rules.json")
    options = parser.parse_args()
    if options.command == "child":
        _child(options.data, options.limit)
    elif options.command == "memory":
        _memory(options.samples, options.output)
    else:
        _rules(options.tasks or list(tasks()), options.samples, options.output)


def fused(path: Path) -> ir.Model:
    """The model as quantization meets it."""
    return PassManager(catalog.expand(as_specs("fuse"))).run(capture(path).model)[0]


# -- memory ------------------------------------------------------------------------------------------------------


def _memory(samples: int, output: Path) -> None:
    figures = []
    with tempfile.TemporaryDirectory(prefix="graphopt-bench-") as folder:
        for index in range(samples):
            np.savez(Path(folder) / f"{index:04d}.npz", **zoo.example_inputs(MODEL, index))
        for limit in LIMITS:
            command = [sys.executable, __file__, "child", folder, limit]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            sampler = Sampler(process.pid)
            sampler.start()
            printed, _ = process.communicate()
            sampler.running = False
            sampler.join()
            if process.returncode:
                raise SystemExit(f"calibration failed with exit code {process.returncode}")
            found = json.loads(printed)
            beyond = sampler.peak - found["before_bytes"]
            figures.append(
                {**found, "limit": limit, "peak_bytes": sampler.peak, "beyond_the_model_bytes": beyond}
            )
            print(
                f"{limit:>5}: {samples} samples in {found['seconds']:.0f} s, {found['groups']} turns of "
                f"{found['tensors']} tensors; {beyond / 1e6:.0f} MB beyond the model, {sampler.peak / 1e6:.0f} in all"
            )
    _results.write(
        output,
        {"model": MODEL, "samples": samples, "runs": figures},
        threads=THREADS,
        packages=("onnxruntime",),
    )


def _child(data: Path, limit: str) -> None:
    model = fused(zoo.fetch(MODEL))
    names = tensors_to_observe(units_of(model, kernels())[0])
    # What it takes to hold and run the model is no part of calibration.
    feeds = dict(zoo.example_inputs(MODEL, 0))
    session = Session(model, optimize="all", threads=THREADS)
    session.run(feeds)
    before = pss_bytes(os.getpid())
    del session, feeds
    started = time.monotonic()
    found = observe(
        model, names, Everything(Dataset(data, inputs_of(model))), memory=parse_memory(limit), threads=THREADS
    )
    seconds = time.monotonic() - started
    print(
        json.dumps(
            {
                "before_bytes": before,
                "seconds": seconds,
                "groups": found.groups,
                "tensors": len(names),
                "samples": found.samples,
            }
        )
    )


class Everything(Calibrating):
    """All samples, none held out."""

    def __iter__(self) -> Iterator[dict[str, Array]]:
        return (sample.feeds for sample in self.dataset)


# -- rules -------------------------------------------------------------------------------------------------------


def _rules(names: list[str], samples: int, output: Path) -> None:
    chosen = [Rule(method) for method in METHODS if method != "percentile"]
    chosen[1:1] = [Rule("percentile", percentile) for percentile in PERCENTILES]
    known = json.loads(output.read_text(encoding="utf-8"))["tasks"] if output.exists() else {}
    for name in names:
        known[name] = _rules_of(tasks()[name], chosen, samples)
        # After each, so that tasks can be run one by one.
        figures = {"samples": samples, "tasks": known}
        _results.write(output, figures, threads=THREADS, packages=("onnxruntime",))


def _rules_of(task: Task, rules: list[Rule], samples: int) -> dict[str, Any]:
    model = fused(task.model())
    wanted = kernels()
    units, _ = units_of(model, wanted)
    seen = observe(model, tensors_to_observe(units), task.calibration(samples).feeds, threads=THREADS)
    found = {str(rule): seen.calibration(rule) for rule in rules}

    def quantized(calibration: Calibration, part: str) -> Session:
        names = frozenset(
            unit.name
            for unit in units
            if (part == "all" or unit.kind == "compute")
            and not any(calibration.ranges[value.name or ""].why_not for value in (*unit.inputs, unit.output))
        )
        copy = ir_model.clone(model)
        place(copy, names, calibration.ranges, wanted)
        return Session(copy, optimize="all", threads=THREADS)

    few = list(itertools.islice(task.evaluation.feeds, JUDGED))
    session = Session(model, threads=THREADS)
    started = time.monotonic()
    reference = [session.run(feeds) for feeds in few]
    seconds = time.monotonic() - started
    decibels: dict[str, dict[str, float]] = {}
    for part in PARTS:
        decibels[part] = {}
        for name, calibration in found.items():
            session = quantized(calibration, part)
            share = noise_share([session.run(feeds) for feeds in few], reference)
            decibels[part][name] = float(-10 * np.log10(max(share, _FLOOR)))
        print(
            f"{task.name}, {part}: "
            + ", ".join(f"{name} {value:.1f}" for name, value in decibels[part].items())
        )
    better = max(PARTS, key=lambda part: decibels[part]["norm"])
    figures: dict[str, Any] = {"decibels": decibels}
    if len(task.evaluation.feeds) * seconds / len(few) < MOST_SECONDS:
        original = task.score(task.predict(Session(model, threads=THREADS).run))[task.headline]
        scores = {
            name: task.score(task.predict(quantized(calibration, better).run))[task.headline]
            for name, calibration in found.items()
        }
        print(f"{task.name}, {task.headline}: {original:.4f}; {scores}", flush=True)
        figures |= {"metric": task.headline, "original": original, "scores": scores, "scored": better}
    return figures


if __name__ == "__main__":
    main()
