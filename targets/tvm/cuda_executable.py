"""Loads and runs a library with CUDA kernels: TVM's runtime, NVIDIA's driver, and machine code from the bundle.

The library holds its kernels as source. While it is loaded, TVM asks a callback for machine code of that source. The
answer is what was compiled ahead for this GPU, or what NVRTC or nvcc makes now where the bundle holds source only.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import functools
import hashlib
import importlib.util
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from graphopt import install
from graphopt.errors import TargetError
from graphopt.machine import Probe
from graphopt.targets.tvm.architectures import code_for, nearest
from graphopt.targets.tvm.cuda_code import find_compiler
from graphopt.targets.tvm.executable import (
    CPU,
    POOLED,
    TvmExecutable,
    TvmRuntime,
    import_runtime,
    runtime_library,
)
from graphopt.targets.tvm.gpu import Gpu, first_gpu

CUDA = "tvm-cuda"
_DEVICE = 2
_CUDA_RUNTIME = "libcudart.so.13"
_CALLBACK = "tvm_callback_cuda_compile"
_NO_GPU = "there is no NVIDIA GPU with a driver on this machine"
_turn = threading.Lock()
"""All models take turns: while a graph is captured, nothing else may take memory of the device."""


class CudaExecutable(TvmExecutable):
    """A library that TVM made for a GPU."""

    _devices = (_DEVICE, 0, POOLED, CPU, 0, POOLED)

    def __init__(self, path: Path, config: Mapping[str, Any], *, threads: int = 0) -> None:
        super().__init__(path, config, threads=threads)
        self._turn = _turn
        self._given: dict[int, Any] = {}

    def _kept(self, array: npt.NDArray[Any]) -> Any:
        to_device = self._ffi.get_global_func("vm.builtin.to_device")
        return to_device(self._ffi.from_dlpack(array), self._devices[0], 0)

    def _handed_in(self, number: int, array: npt.NDArray[Any]) -> Any:
        """In the memory that this input had the last time, where it has the same size."""
        there = self._given.get(number)
        if there is None or tuple(there.shape) != array.shape or str(there.dtype) != str(array.dtype):
            self._given[number] = self._kept(array)
        elif array.nbytes:
            copy = self._ffi.get_global_func("runtime.TVMTensorCopyFromBytes")
            copy(there, ctypes.c_void_p(array.ctypes.data), array.nbytes)
        return self._given[number]

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
        found, gpu = super().probe(), first_gpu()
        if not found.available:
            return found
        # The host's code is the plainest there is: it needs no vectors.
        machine = {key: found.machine[key] for key in ("tvm", "machine")}
        found = dataclasses.replace(found, machine=machine)
        if gpu is None:
            return dataclasses.replace(found, runnable=False, reason=_NO_GPU)
        try:
            _load_runtime()
        except TargetError as error:
            return dataclasses.replace(found, runnable=False, reason=f"{error.message}: {error.hint}")
        return dataclasses.replace(found, reason=f"{gpu.name} ({gpu.architecture})")

    def load(self, folder: Path, config: Mapping[str, Any], *, threads: int = 0) -> CudaExecutable:
        """The library that the configuration names, with its code for this GPU.

        Raises:
            TargetError: There is no GPU, or no code for this one.
        """
        gpu = first_gpu()
        if gpu is None:
            raise TargetError(_NO_GPU, hint="graphopt doctor")
        made: Mapping[str, str] = config.get("code", {})
        name = code_for(gpu.capability, made)
        if name is None and made:
            raise TargetError(
                f"{config['file']} was compiled for {', '.join(made)}; this GPU is {gpu.architecture}",
                hint=f"compile the model with --arch {gpu.architecture}",
            )
        if name is None and config.get("source") and find_compiler() is None:
            raise TargetError(
                f"{config['file']} holds CUDA source only, and there is neither NVRTC nor nvcc to compile it",
                hint=install.command("tvm-cuda"),
            )
        # The driver reads PTX up to a zero.
        ahead = b"" if name is None else (folder / made[name]).read_bytes() + b"\0"

        def machine_code(source: str) -> bytes:
            if ahead and digest(source) == config["source"]:
                return ahead
            return compiled_here(source, gpu)

        _load_runtime()
        with _turn, _answering(machine_code):
            return CudaExecutable(folder / config["file"], config, threads=threads)


def digest(source: str) -> str:
    """By which a source is known again."""
    return hashlib.sha256(source.encode()).hexdigest()


def compiled_here(source: str, gpu: Gpu) -> bytes:
    """Machine code for a GPU, or PTX where it is newer than the compiler.

    Raises:
        TargetError: There is no compiler, or it rejects the source or the GPU.
    """
    compiler = find_compiler()
    if compiler is None:
        raise TargetError(
            "there is neither NVRTC nor nvcc to compile the kernels", hint=install.command("tvm-cuda")
        )
    name = nearest(gpu.capability, compiler.architectures)
    if name is None:
        raise TargetError(f"{compiler.name} does not compile for {gpu.architecture}, which is too old for it")
    return compiler.compile(source, name) + b"\0"


@contextlib.contextmanager
def _answering(machine_code: Callable[[str], bytes]) -> Iterator[None]:
    """Have TVM ask this function for machine code, and whoever it asked before again afterwards."""
    ffi = import_runtime()
    before = ffi.get_global_func(_CALLBACK, allow_missing=True)
    ffi.register_global_func(_CALLBACK, machine_code, override=True)
    try:
        yield
    finally:
        if before is None:
            ffi.registry.remove_global_func(_CALLBACK)
        else:
            ffi.register_global_func(_CALLBACK, before, override=True)


@functools.cache
def _load_runtime() -> None:
    """TVM's runtime for CUDA.

    Raises:
        TargetError: CUDA's runtime library is missing, or older than TVM's.
    """
    import_runtime()
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


def _cuda_runtimes() -> list[str]:
    """CUDA's runtime library: the system's, or that of the package ``nvidia-cuda-runtime``."""
    spec = importlib.util.find_spec("nvidia")
    folders = (spec.submodule_search_locations or ()) if spec is not None else ()
    packaged = [str(path) for folder in folders for path in Path(folder).glob(f"cu13/lib/{_CUDA_RUNTIME}")]
    return [_CUDA_RUNTIME, *packaged]
