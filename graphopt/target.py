"""What a backend is: the Target and Executable protocols.

A target legalises the graph (rewrites that may use vendor operators), writes one or more *forms* of it (the same
computation with different knobs), and loads a form into an Executable. Which form is handed out is decided by
measurement, outside the target.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import onnx_ir as ir

from graphopt.machine import Executable, Form, Probe, Runtime
from graphopt.pipeline.base import Pass
from graphopt.quant.kernels import IntegerKernels

__all__ = [
    "Aligned",
    "CrossCompiler",
    "Effort",
    "Executable",
    "Form",
    "HalfCapable",
    "IntegerCapable",
    "Noted",
    "Probe",
    "Quick",
    "Rehearsed",
    "Runtime",
    "StandIn",
    "Target",
    "Tunable",
    "TunedKernel",
    "Tuning",
    "Widening",
]


@runtime_checkable
class Target(Runtime, Protocol):
    """A backend.

    Attributes:
        runs_original: Whether it loads a model's ONNX file as it is, so that the original can be the baseline. Where it
            does not, ONNX Runtime on the CPU runs the original.
    """

    runs_original: bool

    def legalization(self) -> Sequence[Pass]:
        """Passes that bring the graph into the form that the backend runs fastest."""

    def allowed_domains(self) -> frozenset[str]:
        """Operator domains besides ONNX's that may appear after legalisation."""

    def variants(self, model: ir.Model, milliseconds: float | None) -> Sequence[Mapping[str, Any]]:
        """Knob settings worth measuring for this graph, the default first; each has a ``label``.

        Args:
            milliseconds: Of a run with the default, where it was measured.
        """

    def emit(self, model: ir.Model, folder: Path, knobs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Write the model into ``folder``; returns the configuration that :meth:`load` needs.

        Raises:
            TargetError: The backend cannot take the graph; names the node.
        """


@runtime_checkable
class CrossCompiler(Protocol):
    """A target that compiles for other machines than this one."""

    def for_architecture(self, text: str) -> Target:
        """The same target for what ``--arch`` names.

        Raises:
            UsageError: No such architecture; names those there are.
        """


@dataclass(frozen=True)
class StandIn:
    """What computes the same as a form that cannot run on this machine.

    Attributes:
        form: It runs here.
        what: It has in common with the other, for reports.
    """

    form: Form
    what: str


@runtime_checkable
class Rehearsed(Protocol):
    """A target whose forms have something to stand in for them where they cannot run."""

    def stand_in(self, form: Form) -> StandIn | None:
        """What computes the same; None where there is nothing."""


@runtime_checkable
class Noted(Protocol):
    """A target that has something to say of what it made."""

    def notes(self, config: Mapping[str, Any]) -> Sequence[str]:
        """What a user is to know of a form, one sentence each."""


@runtime_checkable
class Aligned(Protocol):
    """A target whose kernels like numbers of channels that are multiples of something."""

    def channel_multiple(self) -> int:
        """What they like a multiple of."""


@runtime_checkable
class IntegerCapable(Protocol):
    """A target that may have kernels on integers."""

    def integer_kernels(self) -> IntegerKernels | None:
        """What they want; None where it has none worth using."""


@runtime_checkable
class HalfCapable(Protocol):
    """A target that may have kernels for 16-bit floats."""

    def half_kernels(self) -> Mapping[str, frozenset[str]]:
        """Operators that they compute, by the name of the type; empty where none gains."""


@runtime_checkable
class Widening(Protocol):
    """A target whose backend computes what is constant as it loads a graph: constants may be stored in fewer bits, and
    widened by nodes of the graph, at no cost in time."""

    def widens_constants(self) -> bool:
        """Whether it does."""


@runtime_checkable
class Quick(Protocol):
    """A target whose backend takes a graph in about a second: a search judges its candidates as they will run there."""

    def loads_quickly(self) -> bool:
        """Whether it does."""


@dataclass(frozen=True)
class Effort:
    """How long kernels are tuned; without both, until nothing is left that is worth it.

    Attributes:
        seconds: Of measuring.
        trials: Kernels built and measured.
    """

    seconds: float | None = None
    trials: int | None = None


@dataclass(frozen=True)
class TunedKernel:
    """What a database knows of a kernel of a model.

    Attributes:
        name: With its sizes.
        count: Times it is in the model.
        share: Of the model's time, before it was tuned.
        tuned: Whether there is a measurement of it.
        trials: How many ways to compute it were measured.
        gain: Times as fast as without tuning.
        finished: Whether no more ways are worth measuring.
    """

    name: str
    count: int
    share: float
    tuned: bool
    trials: int
    gain: float
    finished: bool


@dataclass(frozen=True)
class Tuning:
    """What tuning came to.

    Attributes:
        hardware: Measured on.
        database: The file of its records.
        trials: Of this time.
        seconds: Spent.
        before, estimate: Seconds of a run of the model before, and by its kernels' times now; None if it was not run.
        kernels: That can be tuned, the largest share first.
    """

    hardware: str
    database: str
    trials: int
    seconds: float
    before: float | None
    estimate: float | None
    kernels: tuple[TunedKernel, ...]

    @property
    def tuned_share(self) -> float:
        """Of the model's time, in kernels that are tuned."""
        return sum(kernel.share for kernel in self.kernels if kernel.tuned)

    @property
    def untuned_share(self) -> float:
        """Of the model's time, in kernels that can be tuned and are not."""
        return sum(kernel.share for kernel in self.kernels if not kernel.tuned)


@runtime_checkable
class Tunable(Protocol):
    """A target whose kernels are made faster by measuring."""

    def with_database(self, folder: Path | None, device: str) -> Target:
        """The same target with the records of this folder, and of this device where it is not this machine."""

    def tune(
        self,
        model: ir.Model,
        feeds: Mapping[str, Any],
        effort: Effort,
        *,
        tracker: str = "",
        progress: Callable[[str], None] = lambda text: None,
    ) -> Tuning:
        """Measure kernels of a model, and keep what is found.

        Args:
            model: As it would be emitted.
            feeds: Inputs of the model, to measure it as a whole.
            tracker: ``host:port`` of what reaches the device; "" for this machine.

        Raises:
            TargetError: It cannot be tuned.
        """
