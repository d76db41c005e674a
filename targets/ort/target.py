"""The targets ``ort-cpu`` and ``ort-cuda``.

A bundle holds an ONNX file in which only operators that every ONNX Runtime of this version has appear;
layouts that depend on the machine are chosen when it loads, so the bundle moves between machines of the same
kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from graphopt.ir import model as ir_model
from graphopt.machine import floats_of_a_vector
from graphopt.pipeline.base import Pass, RewritePass
from graphopt.quant.kernels import IntegerKernels
from graphopt.targets.ort.executable import OrtRuntime
from graphopt.targets.ort.local_constants import LocalConstants
from graphopt.targets.ort.splat import SplatConstants
from graphopt.targets.variants import of_a_processor

MODEL_FILE = "model.onnx"
SLOW_FUSIONS = ["MatMulAddFusion", "SkipLayerNormFusion", "BiasGeluFusion"]
"""Optimisers of ONNX Runtime 1.31 whose results were measured slower than what they replace (docs/onnxruntime.md)."""


class OrtTarget(OrtRuntime):
    """ONNX Runtime with one execution provider.

    Args:
        name: ``ort-cpu`` or ``ort-cuda``.
    """

    runs_original = True

    def legalization(self) -> Sequence[Pass]:
        """Vendor operators where they were measured faster than what they replace."""
        from graphopt.targets.ort.legalize import ANY_PROVIDER, REWRITES

        # What is known to be slow or fast was measured on CPU kernels.
        rewrites = REWRITES if self.name == "ort-cpu" else ANY_PROVIDER
        return (
            RewritePass(self.name, [rewrite() for rewrite in rewrites]),
            SplatConstants(),
            LocalConstants(),
        )

    def integer_kernels(self) -> IntegerKernels | None:
        """The integer kernels of the CPU provider; the CUDA provider has none for QDQ graphs."""
        if self.name != "ort-cpu":
            return None
        from graphopt.targets.ort.integers import kernels

        return kernels()

    def channel_multiple(self) -> int:
        """A vector of channels, as MLAS blocks them; on GPUs what tensor cores take of float16."""
        return floats_of_a_vector() if self.name == "ort-cpu" else 8

    def widens_constants(self) -> bool:
        """It folds all but DequantizeLinear, whatever the provider."""
        return True

    def half_kernels(self) -> Mapping[str, frozenset[str]]:
        """Operators that the CUDA provider computes in 16-bit float types; the CPU provider gains nothing from them."""
        if self.name != "ort-cuda":
            return {}
        from graphopt.targets.ort.halves import kernels

        return kernels()

    def allowed_domains(self) -> frozenset[str]:
        """ONNX Runtime's contributed operators."""
        return frozenset({"com.microsoft"})

    def variants(self, model: ir.Model, milliseconds: float | None) -> Sequence[Mapping[str, Any]]:
        """The default first; then, on the CPU, the session options that were ever measured to win on a real model."""
        default: dict[str, Any] = {"label": "default"}
        if self.name != "ort-cpu":
            return (default,)
        if any(node.op_type == "QuantizeLinear" for node in model.graph):
            # A MatMul that became a Gemm with a float bias has no integer kernel.
            default["disabled_optimizers"] = SLOW_FUSIONS
        found: list[Mapping[str, Any]] = [default]
        if {"MatMul", "LayerNormalization"} & ir_model.op_counts(model).keys():
            found.append({"label": "without slow fusions", "disabled_optimizers": SLOW_FUSIONS})
        return [*found, *of_a_processor(model, milliseconds)]

    def emit(self, model: ir.Model, folder: Path, knobs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Write ``model.onnx`` (weights beside it where large)."""
        if not (folder / MODEL_FILE).exists():
            ir_model.save(model, folder / MODEL_FILE)
        return {"file": MODEL_FILE, **{key: value for key, value in knobs.items() if key != "label"}}
