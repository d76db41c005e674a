"""Loads and runs a model in ONNX Runtime; needs nothing of the compiler."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from graphopt import denormals, install
from graphopt.errors import MissingExtraError, TargetError, shorten
from graphopt.machine import Kernel, Probe

PROVIDERS = {"ort-cpu": "CPUExecutionProvider", "ort-cuda": "CUDAExecutionProvider"}
LEVELS = {
    "off": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}


def import_onnxruntime(extra: str = "cpu") -> Any:
    """The onnxruntime module.

    Raises:
        MissingExtraError: Not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError("onnxruntime", extra) from error
    return onnxruntime


def session_options(config: Mapping[str, Any], threads: int) -> Any:
    """ONNX Runtime's session options from a form's configuration.

    Args:
        config: ``level`` (off, basic, extended, all), ``flush_denormals``, ``prepack``, ``spin``,
            ``threads`` (instead of the argument); absent keys leave ONNX Runtime's default.
        threads: Of an operator; 0 leaves it to ONNX Runtime.
    """
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = config.get("threads", threads)
    level = getattr(ort.GraphOptimizationLevel, LEVELS[config.get("level", "all")])
    options.graph_optimization_level = level
    if config.get("flush_denormals"):
        options.add_session_config_entry("session.set_denormal_as_zero", "1")
    if config.get("prepack") is False:
        options.add_session_config_entry("session.disable_prepacking", "1")
    if config.get("spin") is False:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


class OrtExecutable:
    """A session of ONNX Runtime.

    Args:
        path: The ONNX file.
        config: See :func:`session_options`.
        target: Selects the execution provider.
        threads: Of an operator; 0 leaves it to ONNX Runtime.

    Raises:
        TargetError: ONNX Runtime rejects the model, or the provider is not there.
        MissingExtraError: ONNX Runtime is not installed.
    """

    def __init__(self, path: Path, config: Mapping[str, Any], *, target: str, threads: int = 0) -> None:
        ort = import_onnxruntime("cuda" if target == "ort-cuda" else "cpu")
        provider = PROVIDERS[target]
        if provider not in ort.get_available_providers():
            raise TargetError(
                f"ONNX Runtime has no {provider} here", hint=f"install it: {install.command('cuda')}"
            )
        options = session_options(config, threads)
        providers = list(dict.fromkeys([provider, "CPUExecutionProvider"]))
        self._mode = denormals.mode(config.get("flush_denormals", False))
        try:
            with denormals.kept():
                self._session = ort.InferenceSession(
                    str(path),
                    options,
                    providers=providers,
                    disabled_optimizers=config.get("disabled_optimizers"),
                )
        except Exception as error:  # onnxruntime raises many unrelated classes
            raise TargetError(
                f"ONNX Runtime rejects {path.name}: {shorten(error)}",
                hint=f"export the model again, or try a newer ONNX Runtime (this is {ort.__version__})",
            ) from error
        if provider not in self._session.get_providers():
            raise TargetError(
                f"{provider} did not start on this machine",
                hint="graphopt doctor shows what is missing (driver, CUDA libraries)",
            )
        self.output_names = tuple(output.name for output in self._session.get_outputs())
        # Where the interface is in half precision, float32 may be given to compare with the original.
        self._halves = frozenset(
            entry.name for entry in self._session.get_inputs() if entry.type == "tensor(float16)"
        )

    def run(self, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[np.generic]]:
        """Outputs by name.

        Raises:
            TargetError: ONNX Runtime fails; its message is kept.
        """
        try:
            given = {
                name: array.astype(np.float16) if name in self._halves else array
                for name, array in feeds.items()
            }
            with self._mode():
                results = self._session.run(None, given)
        except Exception as error:  # as above
            raise TargetError(
                f"ONNX Runtime fails: {shorten(error)}",
                hint="the model may take only some sizes and values: give it others",
            ) from error
        return dict(zip(self.output_names, results, strict=True))


class OrtRuntime:
    """What a bundle for ONNX Runtime needs when it is loaded: nothing of the compiler.

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
        if self.name == "ort-cuda" and not _has_nvidia_driver():
            there, reason = False, "this machine has no NVIDIA driver"
        elif not there:
            reason = f"ONNX Runtime {ort.__version__} has no {self.provider}: {install.command('cuda')}"
        machine = {"onnxruntime": ort.__version__, "machine": platform.machine()}
        return Probe(True, there, ort.__version__, reason, machine)

    def load(self, folder: Path, config: Mapping[str, Any], *, threads: int = 0) -> OrtExecutable:
        """A session on the file that the configuration names."""
        return OrtExecutable(folder / config["file"], config, target=self.name, threads=threads)

    def kernels(
        self,
        folder: Path,
        config: Mapping[str, Any],
        feeds: Mapping[str, npt.NDArray[Any]],
        *,
        threads: int = 0,
        runs: int = 10,
    ) -> list[Kernel]:
        """The kernels that a session on the file runs."""
        from graphopt.targets.ort import kernels

        with denormals.kept(), denormals.mode(config.get("flush_denormals", False))():
            return kernels.kernels(
                folder / config["file"],
                session_options(config, threads),
                list(dict.fromkeys([self.provider, "CPUExecutionProvider"])),
                feeds,
                runs=runs,
                disabled_optimizers=config.get("disabled_optimizers"),
            )


def _has_nvidia_driver() -> bool:
    for library in ("libcuda.so.1", "nvcuda.dll"):
        try:
            ctypes.CDLL(library)
        except OSError:
            continue
        return True
    return False
