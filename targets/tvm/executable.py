"""Loads and runs a library that TVM made, with TVM's runtime alone: no compiler, and not the package ``tvm``."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import platform
import re
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from graphopt.errors import MissingExtraError, TargetError
from graphopt.machine import Kernel, Probe, cores, cpu_flags

LLVM = "tvm-llvm"
LIBRARY = "model.so"
WEIGHTS = "weights.bin"
INSIDE = 64 << 20
"""Bytes of weights up to which they are part of the library; beyond that linking takes long."""
CPU, POOLED = 1, 2
DEPTHWISE, END_OF_NUMBER = "depthwise", "th"
"""In names of kernels: what is no product with a number, and what is behind a number, since TVM adds its own."""
_PRODUCT = re.compile(rf"(?:product|convolution)_\d+{END_OF_NUMBER}|{DEPTHWISE}")
ALIGNMENT = 64
_RUNTIMES = ("libtvm_runtime.so", "libtvm_runtime.dylib", "tvm_runtime.dll")
_V3 = ("avx2", "fma", "f16c", "bmi1", "bmi2", "movbe")
_FLAGS = {
    "avx512f": (*_V3, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"),
    "avx2": _V3,
    "neon": ("asimd",),
}
"""What vector registers go by, widest first, and the processor's flags that code for them needs (x86-64-v4 and -v3)."""
_DOTS = {"avx512f": "avx512_vnni", "avx2": "avx_vnni"}
"""Flags of the instruction for products of bytes that goes with them."""
_WITH_DOTS = "+vnni"


def vector_extension() -> str:
    """The widest vector registers of this processor that kernels are made for; "" for the least there are."""
    return next((name for name in _FLAGS if has_extension(name)), "")


def dot_products(name: str) -> str:
    """These vector registers with the instruction for products of bytes, where this processor has it; else ""."""
    wanted = name + _WITH_DOTS
    return wanted if name in _DOTS and has_extension(wanted) else ""


def has_dot_products(name: str) -> bool:
    """Whether these vector registers come with the instruction for products of bytes."""
    return name.endswith(_WITH_DOTS)


def has_extension(name: str) -> bool:
    """Whether this processor runs code for these vector registers."""
    registers = name.removesuffix(_WITH_DOTS)
    needed = {*_FLAGS.get(registers, ()), *((_DOTS[registers],) if registers != name else ())}
    return cpu_flags().issuperset(needed)


def import_runtime() -> Any:
    """The module ``tvm_ffi``, with TVM's runtime library loaded.

    The number of threads is read once by the library, before its first kernel runs, so it is said here; threads are not
    bound to cores, since that would bind the caller's too.

    Raises:
        MissingExtraError: Not installed.
    """
    os.environ.setdefault("TVM_BIND_THREADS", "0")
    os.environ.setdefault("TVM_NUM_THREADS", str(cores()))
    try:
        import tvm_ffi
    except ImportError as error:
        raise MissingExtraError("apache-tvm", "tvm") from error
    if "tvm" not in sys.modules:
        library = runtime_library()
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
        # Sorting lies in a library of its own.
        extra = library.with_name(library.name.replace("tvm_runtime", "tvm_runtime_extra"))
        if extra.is_file():
            ctypes.CDLL(str(extra), mode=ctypes.RTLD_GLOBAL)
    return tvm_ffi


def runtime_library() -> Path:
    spec = importlib.util.find_spec("tvm")
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        for name in _RUNTIMES:
            path = Path(folder) / "lib" / name
            if path.is_file():
                return path
    raise MissingExtraError("apache-tvm", "tvm")


class TvmExecutable:
    """A library that TVM made, in its virtual machine.

    Args:
        path: The shared library.
        config: ``inputs`` and ``outputs``, names in the model's order; ``constants``, those outputs that no input
            leads to; ``weights``, what lies in a file beside the library, as :func:`mapped` takes it.
        threads: 0 takes all cores.

    Raises:
        TargetError: TVM's runtime rejects it.
        MissingExtraError: TVM is not installed.
    """

    _devices: tuple[int, ...] = (CPU, 0, POOLED)
    """Type, number and allocator of each device; the host comes last."""

    def __init__(self, path: Path, config: Mapping[str, Any], *, threads: int = 0) -> None:
        ffi = import_runtime()
        self._ffi = ffi
        try:
            self._machine = ffi.load_module(str(path), keep_module_alive=False)["vm_load_executable"]()
            self._machine["vm_initialization"](*self._devices)
            self._main = self._machine["main"]
            self._weights = [
                self._kept(array) for array in mapped(path.with_name(WEIGHTS), config.get("weights", ()))
            ]
        except TargetError:
            raise
        except Exception as error:  # tvm_ffi raises RuntimeError, AttributeError and others
            raise TargetError(
                f"TVM's runtime rejects {path.name}: {reason_of(error)}",
                hint=f"this is TVM {version()}: compile the model here",
            ) from error
        self._set_threads = ffi.get_global_func("runtime.config_threadpool")
        self._turn = threading.Lock()
        self._threads = int(config.get("threads", threads)) or cores()
        self._inputs = tuple(config["inputs"])
        self.output_names = tuple(config["outputs"])
        self._constants = frozenset(config.get("constants", ()))

    def run(self, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[np.generic]]:
        """Outputs by name, the caller's own.

        Raises:
            TargetError: TVM fails; its message is kept.
        """
        arrays = [aligned(np.asarray(feeds[name])) for name in self._inputs]
        try:
            # The machine holds one call's registers; each thread of the caller has a pool of its own to be told.
            with self._turn:
                self._set_threads(0, self._threads)
                made = self._main(*(self._handed_in(*pair) for pair in enumerate(arrays)), *self._weights)
                results = [made] if hasattr(made, "__dlpack__") else list(made)
                return self._handed_out(results, arrays)
        except Exception as error:  # as above
            words = reason_of(error)
            fixed = "sizes are as when it was compiled: fixed, or open and equal where an operator needs it"
            raise TargetError(f"TVM fails: {words}", hint="" if "CUDA" in words else fixed) from error

    def profile(self, feeds: Mapping[str, npt.NDArray[Any]], runs: int) -> tuple[float, dict[str, float]]:
        """Median seconds of a run, and of each kernel in it, all its calls together, by name.

        Raises:
            TargetError: As :meth:`run`.
        """
        whole = []
        for _ in range(runs):
            started = time.perf_counter()
            self.run(feeds)
            whole.append(time.perf_counter() - started)
        kernels: dict[str, float] = {}
        for name, seconds in self.calls(feeds, runs):
            kernels[name] = kernels.get(name, 0.0) + seconds
        return float(np.median(whole)), kernels

    def calls(self, feeds: Mapping[str, npt.NDArray[Any]], runs: int) -> list[tuple[str, float]]:
        """Kernels in the order in which they are called, each with its median seconds.

        Raises:
            TargetError: As :meth:`run`.
        """
        rounds: list[list[tuple[str, float]]] = []
        since = 0.0

        def watch(function: Any, name: str, before: bool, result: Any, *arguments: Any) -> int:
            del function, result, arguments
            nonlocal since
            if before:
                since = time.perf_counter()
            elif not name.startswith("vm."):
                rounds[-1].append((name, time.perf_counter() - since))
            return 0

        self._machine["set_instrument"](self._ffi.convert(watch))
        for _ in range(runs):
            rounds.append([])
            self.run(feeds)
        self._machine["set_instrument"](None)
        # A branch that went the other way makes another list of calls.
        alike = [calls for calls in rounds if [name for name, _ in calls] == [name for name, _ in rounds[-1]]]
        times = np.median([[seconds for _, seconds in calls] for calls in alike], axis=0)
        return [(name, float(seconds)) for (name, _), seconds in zip(rounds[-1], times, strict=True)]

    def _handed_in(self, number: int, array: npt.NDArray[Any]) -> Any:
        """A tensor where kernels read it, of the input of this number."""
        return self._ffi.from_dlpack(array)

    def _kept(self, array: npt.NDArray[Any]) -> Any:
        """A tensor where kernels read it, for as long as the library is loaded."""
        return self._ffi.from_dlpack(array)

    def _handed_out(
        self, results: Sequence[Any], arrays: Sequence[npt.NDArray[Any]]
    ) -> dict[str, npt.NDArray[np.generic]]:
        """Fresh memory as it is; what is an input, a constant, or an output twice, as a copy."""
        taken = [array for array in arrays if array.size]
        found: dict[str, npt.NDArray[np.generic]] = {}
        for name, result in zip(self.output_names, results, strict=True):
            array = np.from_dlpack(result)
            if name in self._constants or any(np.may_share_memory(array, other) for other in taken):
                array = array.copy()
            taken.append(array)
            found[name] = array
        return found


def aligned(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The same numbers where kernels may read whole vectors: in order, from an aligned address, in writable memory."""
    ready = array.flags.c_contiguous and array.flags.writeable and array.ctypes.data % ALIGNMENT == 0
    if ready and array.dtype.isnative:
        return array
    dtype = array.dtype.newbyteorder("=")
    space = np.empty(array.size * dtype.itemsize + ALIGNMENT, np.uint8)
    start = -space.ctypes.data % ALIGNMENT
    found: npt.NDArray[Any] = space[start : start + array.size * dtype.itemsize].view(dtype)
    found = found.reshape(array.shape)
    found[...] = array
    return found


def mapped(file: Path, entries: Sequence[Mapping[str, Any]]) -> list[npt.NDArray[Any]]:
    """The arrays of a file, in its own pages, which processes share.

    Args:
        file: Holds them one behind the other.
        entries: ``dtype``, ``shape`` and ``offset`` in bytes of each.

    Raises:
        TargetError: The file is missing or too short.
    """
    found = []
    for entry in entries:
        try:
            # Copied where it is written: kernels only read, but tensors have to be writable.
            array = np.memmap(file, entry["dtype"], "c", entry["offset"], tuple(entry["shape"]))
        except (OSError, ValueError) as error:
            raise TargetError(
                f"the weights of the library, {file.name}, are missing or cut short: {error}"
            ) from error
        found.append(array.view(np.ndarray))
    return found


def version() -> str:
    """Of the installed TVM.

    Raises:
        MissingExtraError: Not installed.
    """
    try:
        return metadata.version("apache-tvm")
    except metadata.PackageNotFoundError as error:
        raise MissingExtraError("apache-tvm", "tvm") from error


def product_of(kernel: str) -> str:
    """What a kernel is called by the product in it; empty for what is none."""
    found = _PRODUCT.search(kernel)
    return "" if found is None else found[0]


def reason_of(error: BaseException) -> str:
    """What an error of TVM says, on one line, without its trace."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    kept = [line for line in lines if not line.startswith(("File ", "Traceback", "Stack trace", "[bt]"))]
    return " ".join(kept[-3:])[:600] or type(error).__name__


class TvmRuntime:
    """What a bundle for TVM needs when it is loaded: nothing of the compiler.

    Args:
        name: ``tvm-llvm``.
    """

    def __init__(self, name: str = LLVM) -> None:
        self.name = name

    def probe(self) -> Probe:
        """Whether TVM is there, and for which processor it compiles."""
        try:
            found = version()
            runtime_library()
        except MissingExtraError as error:
            return Probe(False, False, reason=str(error))
        vectors = vector_extension()
        machine = {"tvm": found, "machine": platform.machine(), "vectors": vectors}
        return Probe(True, True, found, f"kernels use {vectors}" if vectors else "", machine)

    def kernels(
        self,
        folder: Path,
        config: Mapping[str, Any],
        feeds: Mapping[str, npt.NDArray[Any]],
        *,
        threads: int = 0,
        runs: int = 10,
    ) -> Sequence[Kernel]:
        """The kernels in the order in which they run; products know their nodes.

        Raises:
            TargetError: As for :meth:`load`.
        """
        nodes = {name: iter(entries) for name, entries in config.get("nodes", {}).items()}
        found = []
        for name, seconds in self.load(folder, config, threads=threads).calls(feeds, runs):
            # Kernels of one kind are called in the order of their nodes.
            entry = next(nodes.get(product_of(name), iter(())), ("", name, False, ()))
            node, op, is_integer, values = entry
            found.append(
                Kernel(node, op, tuple(values), (), is_integer, self.name, milliseconds=1000 * seconds)
            )
        return found

    def load(self, folder: Path, config: Mapping[str, Any], *, threads: int = 0) -> TvmExecutable:
        """The library that the configuration names.

        Raises:
            TargetError: This processor lacks what it was made for.
        """
        needed = config.get("vectors", "")
        if not has_extension(needed):
            raise TargetError(
                f"{config['file']} was made for a processor with {needed}, which this one lacks",
                hint="compile the model on this machine",
            )
        return TvmExecutable(folder / config["file"], config, threads=threads)
