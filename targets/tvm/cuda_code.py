"""CUDA source  ==>  machine code, by NVRTC or nvcc, whichever is there; no GPU is needed.

TVM's own compilation turns ``--use_fast_math`` on, which computes exp, division and small numbers otherwise than what
was verified; here it stays off.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from graphopt.errors import TargetError

_SECONDS = 600.0
_CPP = "--std=c++17"


class CudaCompiler(Protocol):
    """What makes machine code."""

    @property
    def name(self) -> str:
        """With its version, for the manifest."""

    @property
    def architectures(self) -> frozenset[str]:
        """It makes code for, as ``sm_90``."""

    def compile(self, source: str, architecture: str) -> bytes:
        """Machine code for ``sm_90``, PTX for ``compute_90``.

        Raises:
            TargetError: The source is rejected; its message is kept.
        """


@functools.cache
def find_compiler() -> CudaCompiler | None:
    """NVRTC where its packages are installed, else nvcc; None where there is neither."""
    for make in (_nvrtc, _nvcc):
        found = make()
        if found is not None:
            return found
    return None


@dataclass(frozen=True)
class _Nvcc:
    program: str
    name: str
    architectures: frozenset[str]

    def compile(self, source: str, architecture: str) -> bytes:
        kind = "--ptx" if architecture.startswith("compute_") else "--cubin"
        with tempfile.TemporaryDirectory(prefix="graphopt-cuda-") as temporary:
            made, written = Path(temporary) / "kernels.bin", Path(temporary) / "kernels.cu"
            written.write_text(source, encoding="utf-8")
            command = [
                self.program,
                kind,
                "-O3",
                _CPP,
                f"-arch={architecture}",
                "-o",
                str(made),
                str(written),
            ]
            try:
                done = subprocess.run(
                    command, capture_output=True, text=True, errors="replace", timeout=_SECONDS, check=False
                )
            except subprocess.TimeoutExpired as error:
                raise TargetError(f"nvcc did not compile the kernels within {_SECONDS:g} s") from error
            if done.returncode or not made.is_file():
                raise TargetError(f"nvcc rejects the kernels for {architecture}: {_error(done.stderr)}")
            return made.read_bytes()


def _nvcc() -> CudaCompiler | None:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    program = shutil.which("nvcc", path=f"{home}/bin") if home else None
    program = program or shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if program is None:
        return None
    try:
        version = subprocess.run(
            [program, "--version"], capture_output=True, text=True, timeout=60, check=True
        )
        listed = subprocess.run(
            [program, "--list-gpu-code"], capture_output=True, text=True, timeout=60, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    words = version.stdout.replace(",", " ").split()
    release = words[words.index("release") + 1] if "release" in words else ""
    return _Nvcc(program, f"nvcc {release}".strip(), frozenset(listed.stdout.split()))


class _Nvrtc:
    """The library that CUDA has for compiling at run time, through NVIDIA's own bindings."""

    def __init__(self, api: Any) -> None:
        self._api = api
        major, minor = self._call(api.nvrtcVersion())
        self.name = f"NVRTC {major}.{minor}"
        self.architectures = frozenset(
            f"sm_{number}" for number in self._call(api.nvrtcGetSupportedArchs())[0]
        )

    def compile(self, source: str, architecture: str) -> bytes:
        api = self._api
        (program,) = self._call(api.nvrtcCreateProgram(source.encode(), b"kernels.cu", 0, [], []))
        options = [f"--gpu-architecture={architecture}", _CPP, *(f"-I{folder}" for folder in _headers())]
        try:
            (result,) = api.nvrtcCompileProgram(program, len(options), [word.encode() for word in options])
            if result != api.nvrtcResult.NVRTC_SUCCESS:
                log = self._text(program, api.nvrtcGetProgramLogSize, api.nvrtcGetProgramLog)
                raise TargetError(
                    f"NVRTC rejects the kernels for {architecture}: {_error(log.decode(errors='replace'))}"
                )
            if architecture.startswith("compute_"):
                return self._text(program, api.nvrtcGetPTXSize, api.nvrtcGetPTX)
            return self._text(program, api.nvrtcGetCUBINSize, api.nvrtcGetCUBIN)
        finally:
            api.nvrtcDestroyProgram(program)

    def _text(self, program: Any, size_of: Any, write: Any) -> bytes:
        (size,) = self._call(size_of(program))
        space = bytearray(size)
        self._call(write(program, space))
        return bytes(space)

    def _call(self, answer: tuple[Any, ...]) -> tuple[Any, ...]:
        result, *values = answer
        if result != self._api.nvrtcResult.NVRTC_SUCCESS:
            raise TargetError(f"NVRTC fails: {result.name}")
        return tuple(values)


def _nvrtc() -> CudaCompiler | None:
    try:
        from cuda.bindings import nvrtc

        return _Nvrtc(nvrtc)
    except (ImportError, RuntimeError, TargetError):
        # The bindings are there without the library, or neither is.
        return None


@functools.cache
def _headers() -> tuple[str, ...]:
    """Folders of CUDA's headers: of the packages ``nvidia-cuda-runtime`` and ``nvidia-cuda-cccl``, or of a toolkit."""
    spec = importlib.util.find_spec("nvidia")
    roots = [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec is not None else []
    found = [folder for root in roots for folder in sorted(root.glob("cu*/include"))]
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    found += [Path(home) / "include"]
    folders = [entry for folder in found for entry in (folder, folder / "cccl") if entry.is_dir()]
    return tuple(map(str, folders))


def _error(log: str) -> str:
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    first = next((line for line in lines if "error" in line.lower()), lines[-1] if lines else "no message")
    return first[:300]
