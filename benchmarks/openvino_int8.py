"""Where Q and DQ pay in OpenVINO: placements by kind of operator, against ONNX Runtime's default on the original.

    python benchmarks/openvino_int8.py [--models NAME ...] [--seconds S] [--nncf PYTHON]

Every unit of the kinds that a placement names goes to integers, on the graph as the passes of O2 leave it, with ranges
of eight samples (minmax). Interleaved, each form in a process of its own. ``--nncf`` names a Python that has nncf and
openvino installed; what it makes of the same graph (eight samples, defaults) is measured too. The signal-to-noise ratio
is that of the outputs on a ninth sample. With constant weights (light-*) it says nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from _results import FOLDER, write

from graphopt import catalog, zoo
from graphopt.capture import capture
from graphopt.data.interface import Feeds, outputs_of
from graphopt.ir import model as ir_model
from graphopt.pipeline.manager import PassManager
from graphopt.pipeline.spec import PassSpec
from graphopt.quant.kernels import IntegerKernels
from graphopt.quant.observe import calibrate
from graphopt.quant.place import place, tensors_to_observe
from graphopt.quant.units import units_of
from graphopt.target import Form
from graphopt.targets.openvino.integers import kernels
from graphopt.tune.paired import Bench, time_forms
from graphopt.verify.reference import build_reference

MODELS = (
    *("ppocrv4-rec", "ppocrv4-det", "ppocr-cls", "minilm", "light-resnet50", "light-densenet121"),
    *("light-squeezenet", "light-shufflenet", "light-inception-v1"),
)
SAMPLES = 8
THREADS = 2

NNCF = """
import json, sys, numpy, nncf, openvino
source, samples, target, kind = sys.argv[1:]
data = [dict(numpy.load(path)) for path in json.loads(samples)]
model = openvino.Core().read_model(source)
extra = {"model_type": nncf.ModelType.TRANSFORMER} if kind == "transformer" else {}
openvino.save_model(
    nncf.quantize(model, nncf.Dataset(data), subset_size=len(data), **extra), target, compress_to_fp16=False
)
"""


def placements(every: IntegerKernels) -> dict[str, IntegerKernels]:
    """Kinds of operators that go to integers, from few to all that have kernels."""
    none: frozenset[str] = frozenset()
    pools = frozenset({"AveragePool", "GlobalAveragePool"})
    return {
        "products": dataclasses.replace(every, arithmetic=none, passes=none),
        "+ Concat, MaxPool": dataclasses.replace(every, arithmetic=frozenset({"Concat"})),
        "+ average pools": dataclasses.replace(every, arithmetic=frozenset({"Concat"}) | pools),
        "+ Add": dataclasses.replace(every, arithmetic=frozenset({"Concat", "Add"}) | pools),
        "+ Mul": dataclasses.replace(every, arithmetic=frozenset({"Concat", "Add", "Mul"}) | pools),
        "+ layout": dataclasses.replace(
            every, passes=every.passes | {"Reshape", "Transpose", "Slice", "Squeeze", "Flatten"}
        ),
    }


def optimized(name: str, feeds: Feeds) -> ir.Model:
    """The graph after the passes of O2."""
    shapes = dict(zoo.recipe(name).input_shapes)
    captured = capture(zoo.fetch(name), input_shapes=shapes)
    reference = build_reference(captured.original_model, interface=captured.model, data=[feeds])
    model, _ = PassManager(catalog.expand((PassSpec("O2"),)), reference=reference).run(captured.model)
    return model


def emitted(label: str, model: ir.Model, folder: Path) -> Form:
    """The legalised graph for OpenVINO."""
    target = catalog.target("openvino")
    legal, _ = PassManager(target.legalization()).run(model)
    folder.mkdir()
    return Form(label, "openvino", folder, target.emit(legal, folder, target.variants(legal, None)[0]))


def by_nncf(python: str, model: ir.Model, samples: list[Feeds], kind: str, folder: Path) -> Form:
    """What NNCF makes of the graph."""
    import json

    folder.mkdir()
    ir_model.save(model, folder / "float.onnx")
    paths = []
    for index, feeds in enumerate(samples):
        paths.append(str(folder / f"{index}.npz"))
        np.savez(paths[-1], **feeds)
    command = [
        python,
        "-c",
        NNCF,
        str(folder / "float.onnx"),
        json.dumps(paths),
        str(folder / "model.xml"),
        kind,
    ]
    subprocess.run(command, check=True, capture_output=True)
    config = {
        "file": "model.xml",
        "inputs": [value.name for value in model.graph.inputs],
        "outputs": [spec.name for spec in outputs_of(model)],
    }
    return Form("NNCF", "openvino", folder, config)


def measure(name: str, seconds: float, nncf: str | None) -> dict[str, Any]:
    """Speedups and decibels of each placement on one model."""
    source = zoo.fetch(name)
    samples = [zoo.example_inputs(name, seed=seed) for seed in range(1, SAMPLES + 2)]
    model = optimized(name, samples[0])
    every = kernels()
    with tempfile.TemporaryDirectory(prefix="graphopt-bench-") as temporary:
        folder = Path(temporary)
        forms = [
            Form("original", "ort-cpu", source.parent, {"file": source.name}),
            emitted("float", model, folder / "float"),
        ]
        for index, (label, kinds) in enumerate(placements(every).items()):
            copy = model.clone()
            units = units_of(copy, kinds)[0]
            found = calibrate(model, tensors_to_observe(units), samples[:SAMPLES], threads=THREADS)
            seen = {unit.name for unit in units if all(value.name in found.ranges for value in unit.inputs)}
            place(copy, frozenset(seen), found.ranges, kinds)
            forms.append(emitted(label, copy, folder / str(index)))
        if nncf is not None:
            kind = "transformer" if "LayerNormalization" in ir_model.op_counts(model) else "default"
            forms.append(by_nncf(nncf, model, samples[:SAMPLES], kind, folder / "nncf"))
        timings = time_forms(
            forms, samples[0], threads=THREADS, seconds=seconds, least_rounds=11, most_rounds=60
        )
        with Bench(samples[-1], threads=THREADS) as bench:
            outputs = {form.label: bench.worker(form).outputs(samples[-1]) for form in forms}
    return {
        "model": name,
        "milliseconds": timings[0].milliseconds,
        "speedup": {timing.form.label: round(timing.speedup, 3) for timing in timings[1:]},
        "decibels": {form.label: decibels(outputs["original"], outputs[form.label]) for form in forms[1:]},
    }


def decibels(wanted: Feeds, found: Feeds) -> float | None:
    """Signal to noise over all float outputs; None where they are equal."""
    pairs = [(wanted[name], found[name]) for name in wanted if wanted[name].dtype.kind == "f"]
    signal = sum(float((a.astype(np.float64) ** 2).sum()) for a, _ in pairs)
    noise = sum(float(((a.astype(np.float64) - b) ** 2).sum()) for a, b in pairs)
    return round(10 * float(np.log10(signal / noise)), 1) if noise else None


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--models", nargs="*", default=list(MODELS), help="names from `graphopt zoo list`")
    parser.add_argument("--seconds", type=float, default=6.0, help="of timing for each model")
    parser.add_argument("--nncf", metavar="PYTHON", help="an interpreter that has nncf and openvino")
    parser.add_argument("--output", type=Path, default=FOLDER / "openvino_int8.json")
    options = parser.parse_args()
    rows = []
    for name in options.models:
        rows.append(measure(name, options.seconds, options.nncf))
        print(rows[-1], flush=True)
    write(options.output, {"models": rows}, threads=THREADS, packages=("onnxruntime", "openvino"))


if __name__ == "__main__":
    sys.exit(main())
