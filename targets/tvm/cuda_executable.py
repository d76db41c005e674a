"""Loads and runs a library with CUDA kernels: TVM's runtime, NVIDIA's driver, and machine code from the bundle.

The library holds its kernels as source. When the first of them is called, TVM asks a callback for machine code of that
source; the answer is what was compiled ahead for this GPU, or what NVRTC or nvcc makes of it now where the bundle holds
source only.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import importlib.util
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from graphopt import install
from graphopt.errors import MissingExtraError, TargetError
from graphopt.machine import Probe
from graphopt.targets.tvm.architectures import code_for
from graphopt.targets.tvm.cuda_code import find_compiler
from graphopt.targets.tvm.executable import (
    CPU,
    POOLED,
    TvmExecutable,
    TvmRuntime,
    import_runtime,
    runtime_library,
    version,
)
from graphopt.targets.tvm.gpu import first_gpu

CUDA = "tvm-cuda"
_DEVICE = 2
_CUDA_RUNTIME = "libcudart.so.13"
_CALLBACK = "tvm_callback_cuda_compile"
_ahead: dict[str, bytes] = {}
"""Machine code that lies ready, by :func:`digest` of the source."""


class CudaExecutable(TvmExecutable):
    """A library that TVM made for a GPU."""

    _devices = (_DEVICE, 0, POOLED, CPU, 0, POOLED)

    def _handed_in(self, array: npt.NDArray[Any]) -> Any:
        to_device = self._ffi.get_global_func("vm.builtin.to_device")
        return to_device(self._ffi.from_dlpack(array), self._devices[0], 0)

    def _handed_out(
        self, results: Sequence[Any], arrays: Sequence[npt.NDArray[Any]]
    ) -> dict[str, npt.NDArray[np.generic]]:
        """Copies in the host's memory; copying waits for the kernels."""
        copy = self._ffi.get_global_func("runtime.TVMTensorCopyToBytes")
        found: dict[str, npt.NDArray[np.generic]] = {}
        for name, result in zip(self.output_names, results, strict=True):
            array = np.empty(tuple(result.shape), str(result.dtype))
            if array.nbytes:
                copy(result, ctypes.c_void_p(array.ctypes.data), array.nbytes)
            found[name] = array
        return found


class TvmCudaRuntime(TvmRuntime):
    """What a bundle for TVM on a GPU needs when it is loaded.

    Args:
        name: ``tvm-cuda``.
    """

    def __init__(self, name: str = CUDA) -> None:
        super().__init__(name)

    def probe(self) -> Probe:
        """Whether TVM is there, and a GPU with its driver."""
        try:
            found = version()
            runtime_library()
        except MissingExtraError as error:
            return Probe(False, False, reason=str(error))
        machine = {"tvm": found, "machine": platform.machine()}
        gpu = first_gpu()
        if gpu is None:
            return Probe(True, False, found, "there is no NVIDIA GPU with a driver on this machine", machine)
        return Probe(True, True, found, f"{gpu.name} ({gpu.architecture})", machine)

    def load(self, folder: Path, config: Mapping[str, Any], *, threads: int = 0) -> CudaExecutable:
        """The library that the configuration names, with its code for this GPU.

        Raises:
            TargetError: There is no GPU, or no code for this one.
        """
        gpu = first_gpu()
        if gpu is None:
            raise TargetError("there is no NVIDIA GPU with a driver on this machine", hint="graphopt doctor")
        made: Mapping[str, str] = config.get("code", {})
        name = code_for(gpu.capability, made)
        if name is None and made:
            raise TargetError(
                f"{config['file']} was compiled for {', '.join(made)}; this GPU is {gpu.architecture}",
                hint=f"compile the model with --arch {gpu.architecture}",
            )
        if name is None and find_compiler() is None:
            raise TargetError(
                f"{config['file']} holds CUDA source only, and there is neither NVRTC nor nvcc to compile it",
                hint=install.command("tvm-cuda"),
            )
        if name is not None:
            # The driver reads PTX up to a zero.
            _ahead[config["source"]] = (folder / made[name]).read_bytes() + b"\0"
        _load_runtime()
        return CudaExecutable(folder / config["file"], config, threads=threads)


def digest(source: str) -> str:
    """By which the machine code of a source is found again."""
    return hashlib.sha256(source.encode()).hexdigest()


def machine_code(source: str) -> bytes:
    """Of the GPU that is here; what TVM asks for when the first kernel of a library is called.

    Raises:
        TargetError: There is none ahead, and it cannot be compiled.
    """
    ahead = _ahead.get(digest(source))
    if ahead is not None:
        return ahead
    compiler, gpu = find_compiler(), first_gpu()
    if compiler is None or gpu is None:
        raise TargetError(
            "there is neither NVRTC nor nvcc to compile the kernels", hint=install.command("tvm-cuda")
        )
    return compiler.compile(source, gpu.architecture)


@functools.cache
def _load_runtime() -> None:
    """TVM's runtime for CUDA, and the callback."""
    ffi = import_runtime()
    library = runtime_library()
    for runtime in _cuda_runtimes():
        with contextlib.suppress(OSError):
            ctypes.CDLL(runtime, mode=ctypes.RTLD_GLOBAL)
            break
    try:
        ctypes.CDLL(
            str(library.with_name(library.name.replace("tvm_runtime", "tvm_runtime_cuda"))),
            mode=ctypes.RTLD_GLOBAL,
        )
    except OSError as error:
        raise TargetError(
            f"TVM's runtime for CUDA cannot be loaded: {error}", hint=install.command("tvm-cuda")
        ) from error
    ffi.register_global_func(_CALLBACK, machine_code, override=True)


def _cuda_runtimes() -> list[str]:
    """CUDA's runtime library: the system's, or that of the package ``nvidia-cuda-runtime``."""
    spec = importlib.util.find_spec("nvidia")
    folders = (spec.submodule_search_locations or ()) if spec is not None else ()
    packaged = [str(path) for folder in folders for path in Path(folder).glob(f"cu13/lib/{_CUDA_RUNTIME}")]
    return [_CUDA_RUNTIME, *packaged]
