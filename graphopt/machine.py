"""What a backend finds on this machine, and what runs a compiled model; light enough for loading a bundle."""

from __future__ import annotations

import importlib
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt


def cpu_flags() -> frozenset[str]:
    """Instruction sets of this processor as Linux names them (``avx512_vnni``, ``asimddp``, ...).

    Where the system does not list them, those that NumPy detects, in the same spelling; without the integer extensions
    that NumPy does not know.
    """
    found = _cpuinfo("flags", "Features")
    if found is not None:
        return frozenset(found.split())
    features = importlib.import_module("numpy._core._multiarray_umath").__cpu_features__
    return frozenset(name.lower() for name, there in features.items() if there)


def floats_of_a_vector() -> int:
    """float32 numbers in the widest vector register of this processor, 4 where that is not known."""
    flags = cpu_flags()
    return 16 if "avx512f" in flags else 8 if "avx2" in flags else 4


def cpu_name() -> str:
    """As its maker calls it; where the system does not say, the kind of processor."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _cpuinfo(*keys: str) -> str | None:
    """What Linux says of the first processor under one of these keys; None where it does not."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    fields = (line.partition(":") for line in lines)
    return next((value.strip() for key, _, value in fields if key.strip() in keys), None)


def cores() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Probe:
    """What a target finds on this machine.

    Attributes:
        available: Whether compiled models can be built.
        runnable: Whether they can also be run here.
        version: Of the backend.
        reason: In words, where something is missing, with the next step.
        machine: What a bundle built here needs (instruction set, GPU architecture), for its manifest.
    """

    available: bool
    runnable: bool
    version: str = ""
    reason: str = ""
    machine: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Form:
    """A runnable form of a model on disk.

    Attributes:
        label: In reports ("original", "optimized", "legalized, one thread").
        target: Name of the target that loads it.
        folder: Where its files are.
        config: What the target needs to load it (file names relative to ``folder``, knobs); plain JSON.
        original: Whether it is the model as it came.
        baseline: Whether it is the original that the others are measured against. It is never refused.
        base: The form that it was made from, where it differs by knobs or by how constants are stored alone.
    """

    label: str
    target: str
    folder: Path
    config: Mapping[str, Any]
    original: bool = False
    baseline: bool = False
    base: Form | None = None

    @property
    def ancestry(self) -> Iterator[Form]:
        """This form, and those that it was made from, the nearest first."""
        form: Form | None = self
        while form is not None:
            yield form
            form = form.base


@dataclass(frozen=True)
class Kernel:
    """One kernel that a loaded model runs.

    Attributes:
        node: Name of the node as the backend knows it, without what it adds to names.
        op: Operator.
        outputs: Names of the tensors that it makes.
        readers: Names of the nodes that read these.
        integer: Whether its arithmetic is on integers.
        provider: Of ONNX Runtime, or the backend's name for the implementation.
        milliseconds: Median over runs; 0 where nothing was run.
    """

    node: str
    op: str
    outputs: tuple[str, ...] = ()
    readers: tuple[str, ...] = ()
    integer: bool = False
    provider: str = ""
    milliseconds: float = 0.0


class Executable(Protocol):
    """A loaded model."""

    def run(self, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[np.generic]]:
        """Outputs by name, in the model's order.

        Args:
            feeds: Every input by name, of the model's types and shapes.
        """


class Runtime(Protocol):
    """The part of a target that a bundle needs when it is loaded."""

    name: str

    def probe(self) -> Probe:
        """What this machine offers."""

    def load(self, folder: Path, config: Mapping[str, Any], *, threads: int = 0) -> Executable:
        """Load what the target emitted.

        Raises:
            TargetError: The backend rejects it, or this machine lacks what it needs.
        """


@runtime_checkable
class Inspectable(Protocol):
    """A runtime that can say which kernels a model really runs, and for how long."""

    def kernels(
        self,
        folder: Path,
        config: Mapping[str, Any],
        feeds: Mapping[str, npt.NDArray[Any]],
        *,
        threads: int = 0,
        runs: int = 10,
    ) -> Sequence[Kernel]:
        """The kernels in the order in which they run; to be called in a process of its own.

        Raises:
            TargetError: As for :meth:`Runtime.load`.
        """
