"""Loads and runs a model in OpenVINO's CPU plugin; needs nothing of the compiler."""

from __future__ import annotations

import gzip
import platform
import re
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from graphopt import denormals
from graphopt.errors import MissingExtraError, TargetError
from graphopt.machine import Kernel, Probe, cpu_flags

NAME = "openvino"
PACKED = ".gz"
"""Behind the name of an OpenVINO IR whose text is compressed."""
_FLAGS = {
    "avx512_core_amx": ("amx_int8",),
    "avx512_vnni": ("avx512_vnni",),
    "avx2_vnni": ("avx_vnni",),
    "avx512": ("avx512bw",),
    "avx2": ("avx2",),
    "arm_i8mm": ("i8mm",),
    "arm_dotprod": ("asimddp",),
}
"""Instruction sets of its int8 kernels, the best first, and the processor's flags that they need."""
_NODE = re.compile(r"<Node\((?P<op>\w+)\): (?P<name>[^>]*)>'(?P<reason>.*?)(?: -- | Summary:|$)")
_TRACE = re.compile(
    r"Check '[^']*' failed at \S+ |FrontEnd API failed with \w+: |Exception from src/\S+ "
    r"|\[CPU\] |(?<= )While validating node '.*?' with friendly_name '[^']*':\s*"
)
_NO_CACHE = {"CPU_RUNTIME_CACHE_CAPACITY": 0}
"""Of kernels by their sizes. OpenVINO 2026.4 finds the one of another size in it: after a run in which an inner length
was one, attention over longer ones was off by as much as it computes. Kernels of sizes that change are made anew."""
_INT32 = np.iinfo(np.int32)
_WIDE = (np.dtype(np.int64), np.dtype(np.uint64), np.dtype(np.uint32))


def import_openvino() -> Any:
    """The openvino module.

    Raises:
        MissingExtraError: Not installed.
    """
    try:
        import openvino
    except ImportError as error:
        raise MissingExtraError("openvino", "openvino") from error
    return openvino


def int8_kernels() -> str:
    """The instruction set that OpenVINO's int8 kernels use on this processor; "" where it has none for them."""
    flags = cpu_flags()
    return next((name for name, needed in _FLAGS.items() if flags.issuperset(needed)), "")


def properties(config: Mapping[str, Any], threads: int) -> dict[str, Any]:
    """OpenVINO's properties from a form's configuration.

    The precision is always said: left to itself, OpenVINO computes float32 graphs in bfloat16 on processors that have
    it, quantizes activations of weight-only products, and says nothing of either.

    Args:
        config: ``threads`` (instead of the argument), ``flush_denormals``; absent keys leave OpenVINO's default.
        threads: Of the whole model; 0 leaves it to OpenVINO.
    """
    found: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": "f32",
        "EXECUTION_MODE_HINT": "ACCURACY",
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
    }
    count = int(config.get("threads", threads))
    if count:
        found["INFERENCE_NUM_THREADS"] = count
    if count == 1:
        # With a stream of one thread OpenVINO 2026.4 runs in the thread that calls it and drops what its kernels raise:
        # sizes that do not fit gave the outputs of the run before. Without streams it runs there too, and raises.
        found["NUM_STREAMS"] = 0
    if config.get("flush_denormals"):
        found["CPU_DENORMALS_OPTIMIZATION"] = True
    return found


def reason_of(error: BaseException) -> str:
    """What an error of OpenVINO says, on one line, without its trace: the first node that it names, and why."""
    lines = [line.strip() for line in str(error).splitlines()]
    kept = [
        line for line in lines if line and not line.startswith(("Exception from src", "Check '", "[Core]"))
    ]
    text = _TRACE.sub("", " ".join(" ".join(kept).split()))
    node = _NODE.search(text)
    if node is not None:
        text = f"{node['op']} {node['name']!r}: {node['reason'].strip(' :')}"
    return text[:600] or type(error).__name__


def read(core: Any, path: Path) -> tuple[Any, npt.NDArray[np.uint8] | None]:
    """A model as OpenVINO reads it, and its weights where it does not keep them itself: the caller does.

    Args:
        core: An ``openvino.Core``.
        path: An OpenVINO IR (``.xml``, or compressed ``.xml.gz``) with its weights beside it, or an ONNX file.
    """
    if path.suffix != PACKED:
        return core.read_model(path), None
    text = gzip.decompress(path.read_bytes()).decode()
    file = path.with_suffix("").with_suffix(".bin")
    if not file.stat().st_size:
        return core.read_model(text.encode()), None
    # OpenVINO wants memory that may be written, and does not write.
    weights = np.memmap(file, dtype=np.uint8, mode="c")
    return core.read_model(text, import_openvino().Tensor(weights, shared_memory=True)), weights


class OpenVinoExecutable:
    """A model compiled by OpenVINO's CPU plugin. It may be run from several threads, which wait for one another.

    Args:
        path: An OpenVINO IR (``.xml`` or ``.xml.gz``, its weights beside it) or an ONNX file.
        config: See :func:`properties`; also ``inputs`` and ``outputs``, the names in the model's order.
        threads: Of the whole model; 0 leaves it to OpenVINO.
        profile: Whether the times of kernels are taken.

    Raises:
        TargetError: OpenVINO rejects the model.
        MissingExtraError: OpenVINO is not installed.
    """

    def __init__(
        self, path: Path, config: Mapping[str, Any], *, threads: int = 0, profile: bool = False
    ) -> None:
        self.path = path
        self._turn = threading.Lock()
        self._settings = properties(config, threads) | ({"PERF_COUNT": True} if profile else {})
        self._compile()
        self._mode = denormals.mode(config.get("flush_denormals", False))
        self._inputs = tuple(config["inputs"])
        self._types = tuple(np.dtype(port.element_type.to_dtype()) for port in self.compiled.inputs)
        self.output_names = tuple(config["outputs"])
        if (len(self.compiled.inputs), len(self.compiled.outputs)) != (
            len(self._inputs),
            len(self.output_names),
        ):
            raise TargetError(f"{path.name} has other inputs and outputs than its bundle says")

    def _compile(self) -> None:
        openvino = import_openvino()
        try:
            core = openvino.Core()
            # What a compiled model reads of the weights it reads where they lie, as long as it lives.
            model, self._weights = read(core, self.path)
            settings = self._settings | (_NO_CACHE if model.is_dynamic() else {})
            with denormals.kept():
                self.compiled = core.compile_model(model, "CPU", settings)
            self.request = self.compiled.create_infer_request()
        except Exception as error:  # openvino raises RuntimeError and others
            raise TargetError(
                f"OpenVINO rejects {self.path.name}: {reason_of(error)}",
                hint=f"this is OpenVINO {_version(openvino)}: compile the model here, or for another target",
            ) from error
        self._failed = False

    def run(self, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[np.generic]]:
        """Outputs by name; inputs are read in place, outputs are the caller's own.

        Raises:
            TargetError: OpenVINO fails; its message is kept. An integer that does not fit into 32 bits is refused,
                since OpenVINO computes with 32.
        """
        arrays = {}
        for index, (name, dtype) in enumerate(zip(self._inputs, self._types, strict=True)):
            array = np.ascontiguousarray(feeds[name], dtype=dtype).reshape(np.shape(feeds[name]))
            if dtype in _WIDE and array.size and not _fits(array):
                raise TargetError(
                    f"the input {name!r} holds integers beyond 32 bits, with which OpenVINO does not compute",
                    hint="compile the model for another target: --target ort-cpu",
                )
            arrays[index] = array
        with self._turn:
            results = self._infer(arrays)
        return {name: np.asarray(results[index]) for index, name in enumerate(self.output_names)}

    def _infer(self, arrays: dict[int, npt.NDArray[Any]]) -> Any:
        """Outputs by index; one thread at a time."""
        if self._failed:
            # A compiled model in which a kernel refused its sizes goes on failing, whatever it is given.
            self._compile()
        try:
            # Outputs are copied: the next run writes into the same memory.
            with self._mode():
                return self.request.infer(arrays, share_inputs=True, share_outputs=False)
        except Exception as error:  # as above
            self._failed = True
            raise TargetError(
                f"OpenVINO fails: {reason_of(error)}",
                hint="the model may take only some sizes and values: give it others",
            ) from error


def _version(openvino: Any) -> str:
    return str(openvino.__version__).partition("-")[0]


def _fits(array: npt.NDArray[Any]) -> bool:
    return int(array.min()) >= _INT32.min and int(array.max()) <= _INT32.max


class OpenVinoRuntime:
    """What a bundle for OpenVINO needs when it is loaded: nothing of the compiler.

    Args:
        name: ``openvino``.
    """

    def __init__(self, name: str = NAME) -> None:
        self.name = name

    def probe(self) -> Probe:
        """Whether OpenVINO is there, and what its int8 kernels use."""
        try:
            openvino = import_openvino()
        except MissingExtraError as error:
            return Probe(False, False, reason=str(error))
        version = _version(openvino)
        int8 = int8_kernels()
        machine = {"openvino": version, "machine": platform.machine(), "int8": int8}
        return Probe(True, True, version, f"int8 kernels use {int8}" if int8 else "", machine)

    def load(self, folder: Path, config: Mapping[str, Any], *, threads: int = 0) -> OpenVinoExecutable:
        """The file that the configuration names, compiled for this processor."""
        return OpenVinoExecutable(folder / config["file"], config, threads=threads)

    def kernels(
        self,
        folder: Path,
        config: Mapping[str, Any],
        feeds: Mapping[str, npt.NDArray[Any]],
        *,
        threads: int = 0,
        runs: int = 10,
    ) -> list[Kernel]:
        """The kernels that the compiled model runs."""
        from graphopt.targets.openvino import executed

        executable = OpenVinoExecutable(folder / config["file"], config, threads=threads, profile=True)
        return executed.kernels(executable, feeds, runs=runs)
