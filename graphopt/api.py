"""The Python interface: compile, load, Pipeline."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graphopt import catalog
from graphopt.bundle import Outcome, write_bundle
from graphopt.compiler import Compilation, Progress, Request, parse_budget
from graphopt.errors import UsageError
from graphopt.pipeline.manager import PassManager
from graphopt.pipeline.record import PassRecord
from graphopt.pipeline.spec import PassSpec, parse
from graphopt.report import Report
from graphopt.rewrite import Numerics
from graphopt.runtime import LoadedModel, load


class CompiledModel:
    """A compiled, verified model.

    Attributes:
        report: What was done, proved and measured.
    """

    def __init__(self, outcome: Outcome, threads: int) -> None:
        self._outcome = outcome
        self._threads = threads
        self._loaded: LoadedModel | None = None

    @property
    def report(self) -> Report:
        """What was done, proved and measured."""
        return self._outcome.report

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
    *,
    target: str = "cpu",
    passes: str | Sequence[object] = ("fuse",),
    example_inputs: Any = None,
    data: str | Path | Mapping[str, Any] | Iterable[Mapping[str, Any]] | None = None,
    max_drop: float | str | None = None,
    metric: str | Callable[..., float] | None = None,
    tune: str | float | None = None,
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
        target: A target (``ort-cpu``, ``ort-cuda``, a plugin's) or group (``cpu``, ``cuda``, ``auto``).
        passes: Names, groups or pipelines with options as on the command line, and pass objects.
        example_inputs: For a ``torch`` module: its inputs, a tuple or a mapping.
        data: Real inputs to verify on: a ``.npz`` file, a folder, or samples; made-up inputs where None.
        max_drop, metric: The budget of lossy passes. No pass of this version is lossy, so giving one is an error
            unless a plugin's pass among ``passes`` is.
        tune: Time for measuring the forms of the model, as ``"30s"`` or in seconds.
        input_shapes: Sizes to specialise dynamic dimensions to, by input.
        seed: Of made-up inputs; the same seed gives the same result.
        threads: Of an operator, in measurement and for :meth:`CompiledModel.run`; 0 leaves it to the backend.
        dynamic_shapes: For a ``torch`` module: as in ``torch.export.export``.
        repro_dir: Where a minimal repro is written of whatever had to be undone.
        progress: Told of each stage and pass.

    Raises:
        GraphoptError: A message that names what is wrong and the next step.
    """
    specs = as_specs(passes)
    if max_drop is not None or metric is not None:
        expanded = catalog.expand(specs)
        if not any(pass_.numerics is Numerics.LOSSY for pass_ in expanded):
            raise UsageError(
                "max_drop and metric are the budget of lossy passes, and none of the passes is lossy",
                hint="leave them out: the result is held to the model's own noise floor",
            )
    options = {
        "target": target,
        "passes": [str(spec) for spec in specs],
        "input_shapes": {name: list(dims) for name, dims in (input_shapes or {}).items()},
        "seed": seed,
        "threads": threads,
    }
    request = Request(
        model=model,
        target=target,
        passes=specs,
        example_inputs=example_inputs,
        dynamic_shapes=dynamic_shapes,
        data=data,
        input_shapes=None
        if input_shapes is None
        else {name: tuple(dims) for name, dims in input_shapes.items()},
        seed=seed,
        threads=threads,
        repro_dir=None if repro_dir is None else Path(repro_dir),
        options=options,
    )
    if tune is not None:
        request.measure_seconds = parse_budget(tune)
    return CompiledModel(Compilation(request, progress).run(), threads)


class Pipeline:
    """Passes to run over a graph in Python, without a target.

    Args:
        passes: As for :func:`compile`.
    """

    def __init__(self, passes: str | Sequence[object]) -> None:
        self.passes = catalog.expand(as_specs(passes))
        self.records: list[PassRecord] = []

    def run(self, model: ir.Model) -> ir.Model:
        """The graph after the passes; each is checked for structure and undone where it breaks it.

        Args:
            model: In the internal form, as :func:`graphopt.capture.capture` gives it; left as it was.
        """
        result, self.records = PassManager(self.passes).run(model)
        return result


__all__ = ["CompiledModel", "Pipeline", "compile", "load"]
