"""The targets ``ort-cpu`` and ``ort-cuda``.

A bundle holds an ONNX file in which only operators that every ONNX Runtime of this version has appear; layouts that depend on
the machine are chosen when it loads, so the bundle moves between machines of the same kind.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from graphopt.errors import MissingExtraError
from graphopt.ir import model as ir_model
from graphopt.pipeline.base import Pass, RewritePass
from graphopt.target import Executable, Probe
from graphopt.targets.ort.executable import PROVIDERS, OrtExecutable, import_onnxruntime

MODEL_FILE = "model.onnx"


class OrtTarget:
    """ONNX Runtime with one execution provider.

    Args:
        name: ``ort-cpu`` or ``ort-cuda``.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.provider = PROVIDERS[name]

    def probe(self) -> Probe:
        """Whether ONNX Runtime and the provider are there."""
        try:
            ort = import_onnxruntime("cuda" if self.name == "ort-cuda" else "cpu")
        except MissingExtraError as error:
            return Probe(False, False, reason=str(error))
        there = self.provider in ort.get_available_providers()
        reason = ""
        if not there:
            reason = f"ONNX Runtime {ort.__version__} has no {self.provider}: pip install 'graphopt[cuda]'"
        elif self.name == "ort-cuda" and not _has_nvidia_driver():
            there, reason = False, "no NVIDIA driver on this machine: models compile, but are not run here"
        return Probe(
            True, there, ort.__version__, reason, {"onnxruntime": ort.__version__, "machine": platform.machine()}
        )

    def legalization(self) -> Sequence[Pass]:
        """Vendor operators where they were measured faster than what they replace."""
        from graphopt.targets.ort.legalize import REWRITES

        return (RewritePass(self.name, [rewrite() for rewrite in REWRITES]),)

    def allowed_domains(self) -> frozenset[str]:
        """ONNX Runtime's contributed operators."""
        return frozenset({"com.microsoft"})

    def variants(self, model: ir.Model) -> Sequence[Mapping[str, Any]]:
        """The default, and denormals flushed where the CPU runs floats (one process-wide mode, so measured apart)."""
        del model
        default: dict[str, Any] = {"label": "default"}
        if self.name != "ort-cpu":
            return (default,)
        return (default, {"label": "denormals flushed", "flush_denormals": True})

    def emit(self, model: ir.Model, folder: Path, knobs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Write ``model.onnx`` (weights beside it where large)."""
        if not (folder / MODEL_FILE).exists():
            ir_model.save(model, folder / MODEL_FILE)
        return {"file": MODEL_FILE, **{key: value for key, value in knobs.items() if key != "label"}}

    def load(self, folder: Path, config: Mapping[str, Any], *, threads: int = 0) -> Executable:
        """A session on the file that the configuration names."""
        return OrtExecutable(folder / config["file"], config, target=self.name, threads=threads)


def _has_nvidia_driver() -> bool:
    import ctypes

    for library in ("libcuda.so.1", "nvcuda.dll"):
        try:
            ctypes.CDLL(library)
        except OSError:
            continue
        return True
    return False
