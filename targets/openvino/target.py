"""The target ``openvino``: OpenVINO's CPU plugin.

A bundle holds an OpenVINO IR with weights in full precision. OpenVINO compiles it when it loads, for the processor it
finds, so the bundle moves between machines of the same kind.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from graphopt.data.interface import outputs_of
from graphopt.errors import TargetError
from graphopt.ir import model as ir_model
from graphopt.machine import floats_of_a_vector
from graphopt.pipeline.base import Pass, RewritePass
from graphopt.quant.kernels import IntegerKernels
from graphopt.targets.openvino.convert import convert
from graphopt.targets.openvino.executable import NAME, PACKED, OpenVinoRuntime
from graphopt.targets.openvino.operators import check
from graphopt.targets.variants import of_a_processor

MODEL_FILE = f"model.xml{PACKED}"


class OpenVinoTarget(OpenVinoRuntime):
    """OpenVINO on the CPU.

    Args:
        name: ``openvino``.
    """

    runs_original = False

    def __init__(self, name: str = NAME) -> None:
        super().__init__(name)

    def legalization(self) -> Sequence[Pass]:
        """What OpenVINO lacks, computes otherwise or runs slowly."""
        from graphopt.targets.openvino.legalize import REWRITES

        return (RewritePass(self.name, [rewrite() for rewrite in REWRITES]),)

    def integer_kernels(self) -> IntegerKernels | None:
        """What its integer kernels want."""
        from graphopt.targets.openvino.integers import kernels

        return kernels()

    def widens_constants(self) -> bool:
        """It folds them as it compiles a graph."""
        return True

    def loads_quickly(self) -> bool:
        """It rounds otherwise than ONNX Runtime, and integers are several times as fast."""
        return True

    def channel_multiple(self) -> int:
        """A vector of channels, as oneDNN blocks them."""
        return floats_of_a_vector()

    def allowed_domains(self) -> frozenset[str]:
        """None but ONNX's."""
        return frozenset()

    def variants(self, model: ir.Model, milliseconds: float | None) -> Sequence[Mapping[str, Any]]:
        """The default first; one thread for models of fixed sizes and a few hundred microseconds; flushed denormals."""
        return [{"label": "default"}, *of_a_processor(model, milliseconds)]

    def emit(self, model: ir.Model, folder: Path, knobs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Write ``model.xml.gz`` and ``model.bin``."""
        check(model)
        outputs = [spec.name for spec in outputs_of(model)]
        with tempfile.TemporaryDirectory(prefix="graphopt-", dir=folder.parent) as temporary:
            source = Path(temporary) / "model.onnx"
            with _only_onnx(model):
                ir_model.save(model, source)
            inputs = convert(source, folder / MODEL_FILE, len(outputs))
        for value in model.graph.inputs:
            if value.name not in inputs and (value.uses() or value.is_graph_output()):
                raise TargetError(f"OpenVINO ignores the input {value.name!r}, which the model reads")
        settings = {key: value for key, value in knobs.items() if key != "label"}
        return {"file": MODEL_FILE, "inputs": inputs, "outputs": outputs, **settings}


@contextlib.contextmanager
def _only_onnx(model: ir.Model) -> Iterator[None]:
    """Without imports of other domains, which nothing uses: OpenVINO takes a file that has some for no ONNX file."""
    others = {domain: version for domain, version in model.opset_imports.items() if domain}
    for domain in others:
        del model.opset_imports[domain]
    try:
        yield
    finally:
        model.opset_imports.update(others)
