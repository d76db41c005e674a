"""The Python interface: compile, simplify, tune, load, Pipeline."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graphopt import catalog
from graphopt.bundle import Outcome, write_bundle
from graphopt.capture import capture
from graphopt.compiler import Compilation
from graphopt.data.functions import transform_of
from graphopt.data.interface import TensorSpec
from graphopt.errors import UnknownNameError, UsageError
from graphopt.lossy import LossyPass
from graphopt.pipeline.manager import PassManager
from graphopt.pipeline.record import PassRecord
from graphopt.pipeline.spec import PassSpec, parse
from graphopt.proposals import Budget
from graphopt.quant.observe import parse_memory
from graphopt.report import Report
from graphopt.request import Progress, Request, parse_budget, parse_effort
from graphopt.rewrite import Numerics
from graphopt.runtime import LoadedModel, load
from graphopt.selection import PREFERENCES
from graphopt.simplified import Simplified
from graphopt.target import Tunable, Tuning
from graphopt.verify.budget import parse_drop
from graphopt.verify.metrics import find_metric


class CompiledModel:
    """A compiled, verified model.

    Attributes:
        report: What was done, proved and measured.
        inputs, outputs: Its interface, in order.
    """

    def __init__(self, outcome: Outcome, threads: int) -> None:
        self._outcome = outcome
        self._threads = threads
        self._loaded: LoadedModel | None = None

    @property
    def report(self) -> Report:
        """What was done, proved and measured."""
        return self._outcome.report

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What it takes, in order."""
        return tuple(tensor.spec() for tensor in self._outcome.manifest.inputs)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What it gives, in order."""
        return tuple(tensor.spec() for tensor in self._outcome.manifest.outputs)

    def run(self, feeds: Mapping[str, Any]) -> dict[str, npt.NDArray[np.generic]]:
        """Outputs by name.

        Args:
            feeds: Arrays by input name.
        """
        return self._load().run(feeds)

    def __call__(self, *arrays: npt.NDArray[Any]) -> tuple[npt.NDArray[np.generic], ...]:
        """Outputs in order, from inputs in order."""
        return self._load()(*arrays)

    def save(self, path: str | Path) -> Path:
        """Write the bundle, and verify it as it lies on disk before it takes its place.

        Raises:
            BundleError: The place cannot be written; what was there stays.
        """
        output = Path(path)
        write_bundle(self._outcome, output, threads=self._threads)
        return output

    def _load(self) -> LoadedModel:
        if self._loaded is None:
            self._loaded = LoadedModel(self._outcome.folder, self._outcome.manifest, threads=self._threads)
        return self._loaded

    def __repr__(self) -> str:
        speedup = self.report.speedup
        return f"<CompiledModel {self.report.name} on {self.report.target}, {speedup and round(speedup, 2)}x>"


def as_specs(passes: str | Sequence[object]) -> tuple[PassSpec | object, ...]:
    """Pass specifications from text, or from a sequence of text and Python objects."""
    if isinstance(passes, str):
        return parse(passes)
    specs: list[PassSpec | object] = []
    for entry in passes:
        specs += parse(entry) if isinstance(entry, str) else (entry,)
    return tuple(specs)


def compile(
    model: Any,
    example_inputs: Any = None,
    *,
    target: str | Sequence[str] = "cpu",
    arch: str | None = None,
    passes: str | Sequence[object] = ("fuse",),
    data: str | Path | Mapping[str, Any] | Iterable[Any] | None = None,
    max_drop: float | str | None = None,
    metric: str | Callable[..., float] | None = None,
    synthetic_calibration: bool = False,
    best_effort: bool = False,
    transform: str | Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None,
    max_memory: str | int | None = None,
    tune: str | float | None = None,
    prefer: str = "speed",
    database: str | Path | None = None,
    device: str = "",
    input_shapes: Mapping[str, Sequence[int | None]] | None = None,
    seed: int = 0,
    threads: int = 0,
    dynamic_shapes: Any = None,
    repro_dir: str | Path | None = None,
    progress: Progress | None = None,
) -> CompiledModel:
    """Compile a model: optimise it, verify it against the original, and take its fastest verified form.

    Args:
        model: An ONNX file, ``.pt2`` file, ``onnx.ModelProto``, ``onnx_ir.Model``, ``torch.nn.Module``,
            ``torch.fx.GraphModule`` or ``torch.export.ExportedProgram``.
        example_inputs: For a ``torch`` module: its inputs, a tuple or a mapping.
        target: A target (``ort-cpu``, ``tvm-cuda``, a plugin's) or group (``cpu``, ``cuda``, ``auto``), or several.
        arch: What ``tvm-cuda`` and ``tvm-llvm`` compile for, where that is not this machine: ``"sm_80,sm_90"``,
            ``"x86-64-v3"``.
        passes: Names, groups or pipelines with options as on the command line, and pass objects.
        data: Real inputs to verify on: a ``.npz`` file, a folder, or samples (mappings from input name to array, or
            arrays in the order of the inputs, with labels behind them, as a ``DataLoader`` gives); made-up inputs where
            None.
        max_drop: What lossy passes may lose of ``metric`` on held-out data, as ``"1%"`` or 0.01 (the default).
        metric: A name (``sqnr``, the default, ``cosine``, ``top1``, ``ctc``, ``f1``), ``"file.py:function"``, or a
            function of outputs (one mapping for each sample) and, if it takes two arguments, of labels, which are the
            entries of ``data`` that are no inputs: one mapping of arrays with a row for each sample. More is better.
        synthetic_calibration: Let lossy passes calibrate on made-up inputs where there are no data.
        best_effort: Hand out the nearest result where the budget cannot be kept, instead of raising.
        transform: Applied to each entry of ``data`` before it is checked: a function, or ``"file.py:function"``, from
            what the entry holds to arrays by input name. For a folder of other files an entry is
            ``{"path": ..., "image": ...}`` of one file, the image as uint8 [height, width, 3].
        max_memory: What calibration may take beyond the model, as ``"512M"``, ``"2G"`` (the default) or in bytes.
        tune: Time for measuring the forms of the model, as ``"30s"`` or in seconds; for ``tvm-llvm`` for tuning its
            kernels first, or how many are measured, as ``"2000trials"``.
        prefer: What decides between verified forms that are no slower than the original: ``"speed"``, or ``"size"`` of
            the bundle.
        database: A folder of tuned kernels, for ``tvm-llvm``; None for that in the cache.
        device: Whose kernels to take from it, where that is not this machine.
        input_shapes: Sizes to specialise dynamic dimensions to, by input.
        seed: Of made-up inputs; the same seed gives the same result.
        threads: Of an operator, in measurement and for :meth:`CompiledModel.run`; 0 leaves it to the backend.
        dynamic_shapes: For a ``torch`` module: as in ``torch.export.export``.
        repro_dir: Where a minimal repro is written of whatever had to be undone.
        progress: Told of each stage and pass.

    Raises:
        GraphoptError: A message that names what is wrong and the next step.
    """
    specs, target, shapes = as_specs(passes), _as_target(target), _as_tuples(input_shapes)
    lossy = any(pass_.numerics is Numerics.LOSSY for pass_ in catalog.expand(specs))
    asked = {
        "max-drop": max_drop is not None,
        "metric": metric is not None,
        "best-effort": best_effort,
        "synthetic-calibration": synthetic_calibration,
    }
    given = [name for name, is_given in asked.items() if is_given]
    if given and not lossy:
        names = " and ".join(filter(None, (", ".join(given[:-1]), given[-1])))
        raise UsageError(
            f"{names} {'is' if len(given) == 1 else 'are'} about lossy passes, and none of the passes is lossy",
            hint="leave them out (the result is held to the model's own noise floor), or add a pass: fuse,quantize",
        )
    if prefer not in PREFERENCES:
        raise UnknownNameError("preference", prefer, PREFERENCES)
    made_of = transform_of(transform, data)
    budget = Budget(
        find_metric(metric),
        parse_drop(max_drop),
        synthetic_calibration,
        best_effort,
        memory=parse_memory(max_memory),
    )
    options: dict[str, Any] = {
        "target": target,
        "arch": arch,
        "device": device,
        "passes": [str(spec) for spec in specs],
        "input_shapes": {name: list(dims) for name, dims in (shapes or {}).items()},
        "seed": seed,
        "threads": threads,
        "prefer": prefer,
    }
    if lossy:
        options |= {
            "max_drop": budget.max_drop,
            "metric": budget.metric.name,
            "synthetic_calibration": synthetic_calibration,
            "best_effort": best_effort,
        }
    request = Request(
        model=model,
        target=target,
        arch=arch,
        database=None if database is None else Path(database),
        device=device,
        passes=specs,
        example_inputs=example_inputs,
        dynamic_shapes=dynamic_shapes,
        data=data,
        input_shapes=shapes,
        seed=seed,
        threads=threads,
        prefer=prefer,
        repro_dir=None if repro_dir is None else Path(repro_dir),
        budget=budget,
        transform=made_of,
        options=options,
    )
    if tune is not None and _is_tuned(target):
        request.effort = parse_effort(tune)
    elif tune is not None:
        seconds = parse_budget(tune)
        request.measure_seconds = seconds
        if lossy:
            # Searching takes the larger part, measuring what was found the rest.
            request.measure_seconds = seconds / 6
            request.budget = dataclasses.replace(budget, seconds=seconds / 2)
    return CompiledModel(Compilation(request, progress).run(), threads)


def simplify(
    model: Any,
    example_inputs: Any = None,
    *,
    passes: str | Sequence[object] = ("fold",),
    opset: int | None = None,
    data: str | Path | Mapping[str, Any] | Iterable[Any] | None = None,
    transform: str | Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None,
    input_shapes: Mapping[str, Sequence[int | None]] | None = None,
    seed: int = 0,
    dynamic_shapes: Any = None,
    repro_dir: str | Path | None = None,
    progress: Progress | None = None,
) -> Simplified:
    """Simplify a model: the same passes as :func:`compile`, verified the same way, and nothing that is for a target.

    What it gives is saved as one ``.onnx`` file of ONNX's operators, for any runtime.

        simplify("model.onnx").save("small.onnx")

    Args:
        model, example_inputs, data, transform, input_shapes, seed, dynamic_shapes, repro_dir, progress: As for
            :func:`compile`.
        passes: As for :func:`compile`, without lossy ones; ``"fold,fuse"`` brings in newer operators.
        opset: To write it in; None for the oldest from the model's own on that takes the result.

    Raises:
        GraphoptError: A message that names what is wrong and the next step.
    """
    request = Request(
        model=model,
        passes=as_specs(passes),
        example_inputs=example_inputs,
        dynamic_shapes=dynamic_shapes,
        data=data,
        input_shapes=_as_tuples(input_shapes),
        seed=seed,
        repro_dir=None if repro_dir is None else Path(repro_dir),
        transform=transform_of(transform, data),
    )
    return Compilation(request, progress).simplify(opset)


def tune(
    model: Any,
    example_inputs: Any = None,
    *,
    target: str | Sequence[str] = "tvm-llvm",
    arch: str | None = None,
    passes: str | Sequence[object] = ("fuse",),
    tune: str | float | None = None,
    database: str | Path | None = None,
    tracker: str = "",
    device: str = "",
    data: str | Path | Mapping[str, Any] | Iterable[Any] | None = None,
    input_shapes: Mapping[str, Sequence[int | None]] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Tuning:
    """Measure kernels of a model on the machine that will run them, and keep what is found for :func:`compile`.

    Args:
        model: As for :func:`compile`, like the other arguments that are not named here.
        tune: How long, as ``"10m"`` or in seconds, or how many kernels are measured, as ``"2000trials"``; None until
            nothing is left that is worth it. The same call goes on where the last one ended.
        database: A folder; None for that in the cache.
        tracker: ``"host:port"`` of TVM's RPC tracker, for a device that is not this machine.
        device: Its key there, and its name in the database.

    Raises:
        GraphoptError: A message that names what is wrong and the next step; what was measured before is kept.
    """
    if bool(tracker) != bool(device):
        raise UsageError("a tracker and a device go together", hint="--tracker HOST:PORT --device KEY")
    request = Request(
        model=model,
        target=_as_target(target),
        arch=arch,
        passes=as_specs(passes),
        database=None if database is None else Path(database),
        device=device,
        effort=None if tune is None else parse_effort(tune),
        example_inputs=example_inputs,
        data=data,
        input_shapes=_as_tuples(input_shapes),
        seed=seed,
    )
    return Compilation(request, progress).tune(tracker)


def _as_tuples(
    shapes: Mapping[str, Sequence[int | None]] | None,
) -> dict[str, tuple[int | None, ...]] | None:
    if shapes is None:
        return None
    sizes = list(shapes.values()) if isinstance(shapes, Mapping) else [None]
    if any(not isinstance(dims, Sequence) or isinstance(dims, str) for dims in sizes):
        raise UsageError(
            "input_shapes is no mapping from input name to sizes",
            hint="write input_shapes={'x': (1, 3, 224, 224)}",
        )
    return {name: tuple(dims) for name, dims in shapes.items()}


def _as_target(target: str | Sequence[str]) -> str:
    """Targets as the command line spells them."""
    if isinstance(target, str):
        return target
    if not isinstance(target, Sequence) or not all(isinstance(name, str) for name in target):
        raise UsageError(f"the target is of type {type(target).__name__}", hint="write target='cpu'")
    return ",".join(target)


def _is_tuned(target: str) -> bool:
    return any(isinstance(member, Tunable) for member in catalog.targets_of(target))


class Pipeline:
    """Passes to run over a graph in Python, without a target.

    Args:
        passes: As for :func:`compile`, without lossy ones.

    Raises:
        UsageError: A pass needs data, a budget and a target.
    """

    def __init__(self, passes: str | Sequence[object]) -> None:
        self.passes = catalog.expand(as_specs(passes))
        lossy = next((pass_ for pass_ in self.passes if isinstance(pass_, LossyPass)), None)
        if lossy is not None:
            raise UsageError(
                f"the pass {lossy.name!r} needs data, a budget and a target",
                hint="run it through graphopt.compile",
            )
        self.records: list[PassRecord] = []

    def run(self, model: Any) -> ir.Model:
        """The graph after the passes; each is checked for structure and undone where it breaks it.

        Args:
            model: In the internal form, as :func:`graphopt.capture.capture` gives it, and left as it was; or what that
                takes without examples: a file or ``onnx.ModelProto``.

        Raises:
            GraphoptError: It is no model.
        """
        graph = model if isinstance(model, ir.Model) else capture(model).model
        result, self.records = PassManager(self.passes).run(graph)
        return result


__all__ = ["CompiledModel", "Pipeline", "Simplified", "compile", "load", "simplify", "tune"]
