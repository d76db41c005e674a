"""A target that needs nothing but the onnx package: ONNX's reference evaluator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graphopt.errors import TargetError
from graphopt.machine import Executable, Probe
from graphopt.pipeline.base import Pass


class ReferenceExecutable:
    """A model in the reference evaluator."""

    def __init__(self, path: Path) -> None:
        from onnx.reference import ReferenceEvaluator

        self._evaluator = ReferenceEvaluator(str(path))

    def run(self, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[np.generic]]:
        """Outputs by name."""
        try:
            results = self._evaluator.run(None, dict(feeds))
        except Exception as error:
            raise TargetError(f"the reference evaluator fails: {error}") from error
        return dict(zip(self._evaluator.output_names, results, strict=True))


class OnnxReference:
    """ONNX's reference evaluator: slow, and an independent implementation of every operator."""

    name = "onnx-reference"
    runs_original = True

    def probe(self) -> Probe:
        """It runs wherever onnx does."""
        import onnx

        return Probe(available=True, runnable=True, version=onnx.__version__)

    def legalization(self) -> Sequence[Pass]:
        """It takes every ONNX operator as it is."""
        return ()

    def allowed_domains(self) -> frozenset[str]:
        """None but ONNX's."""
        return frozenset()

    def variants(self, model: ir.Model, milliseconds: float | None) -> Sequence[Mapping[str, Any]]:
        """There is nothing to set."""
        del model, milliseconds
        return ({"label": "default"},)

    def emit(self, model: ir.Model, folder: Path, knobs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Write ``model.onnx``."""
        del knobs
        ir.save(model, folder / "model.onnx")
        return {"file": "model.onnx"}

    def load(self, folder: Path, config: Mapping[str, Any], *, threads: int = 0) -> Executable:
        """Load it."""
        del threads
        return ReferenceExecutable(folder / config["file"])
