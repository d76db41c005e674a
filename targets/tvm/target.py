"""The target ``tvm-llvm``: kernels that TVM compiles for this processor.

A bundle holds a shared library, weights included; TVM's runtime library runs it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from graphopt.data.interface import optional_inputs_of, outputs_of
from graphopt.errors import TargetError
from graphopt.ir import model as ir_model
from graphopt.pipeline.base import Pass, RewritePass
from graphopt.quant.kernels import IntegerKernels
from graphopt.targets.tvm.build import build
from graphopt.targets.tvm.executable import LIBRARY, LLVM, TvmRuntime, vector_extension
from graphopt.targets.tvm.operators import check


class TvmTarget(TvmRuntime):
    """TVM's compiler.

    Args:
        name: ``tvm-llvm``.
    """

    runs_original = False

    def __init__(self, name: str = LLVM) -> None:
        super().__init__(name)

    def legalization(self) -> Sequence[Pass]:
        """What TVM lacks, or computes slowly."""
        from graphopt.targets.tvm.legalize import REWRITES

        return (RewritePass(self.name, [rewrite() for rewrite in REWRITES]),)

    def integer_kernels(self) -> IntegerKernels | None:
        """None yet."""
        return None

    def allowed_domains(self) -> frozenset[str]:
        """None but ONNX's."""
        return frozenset()

    def variants(self, model: ir.Model, milliseconds: float | None) -> Sequence[Mapping[str, Any]]:
        """The default only: TVM's kernels have their own ways to be tuned."""
        return ({"label": "default"},)

    def emit(self, model: ir.Model, folder: Path, knobs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Write the library.

        Raises:
            TargetError: What cannot be lowered is named before anything is compiled, op by op.
        """
        check(model)
        optional = optional_inputs_of(model)
        if optional:
            raise TargetError(
                f"TVM makes a constant of the input {min(optional)!r}, which has a default value",
                hint="compile the model for another target: --target ort-cpu",
            )
        target = {"kind": "llvm", "vectors": vector_extension()}
        with tempfile.TemporaryDirectory(prefix="graphopt-", dir=folder.parent) as temporary:
            source = Path(temporary) / "model.onnx"
            ir_model.save(model, source)
            made = build(source, folder / LIBRARY, target)
        return {
            "file": LIBRARY,
            "inputs": [value.name for value in model.graph.inputs],
            "outputs": [spec.name for spec in outputs_of(model)],
            "constants": _constants(model),
            "vectors": target["vectors"],
            "mcpu": made["mcpu"],
            **{key: value for key, value in knobs.items() if key != "label"},
        }


def _constants(model: ir.Model) -> list[str]:
    """Names of outputs that may be constants: those that no input leads to, and with branches any."""
    if any(_graphs(node) for node in model.graph):
        return [value.name or "" for value in model.graph.outputs]
    reached = set(model.graph.inputs)
    for node in model.graph:
        if any(value in reached for value in node.inputs):
            reached.update(node.outputs)
    return [value.name or "" for value in model.graph.outputs if value not in reached]


def _graphs(node: ir.Node) -> list[ir.Graph]:
    return [
        attribute.as_graph()
        for attribute in node.attributes.values()
        if attribute.type == ir.AttributeType.GRAPH
    ]
