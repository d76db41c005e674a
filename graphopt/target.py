"""What a backend is: the Target and Executable protocols.

A target legalises the graph (rewrites that may use vendor operators), writes one or more *forms* of it (the same
computation with different knobs), and loads a form into an Executable. Which form is handed out is decided by
measurement, outside the target.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import onnx_ir as ir

from graphopt.machine import Executable, Form, Probe, Runtime
from graphopt.pipeline.base import Pass

__all__ = ["CrossCompiler", "Executable", "Form", "Probe", "Rehearsed", "Runtime", "StandIn", "Target"]


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

    def notes(self, config: Mapping[str, Any]) -> Sequence[str]:
        """What a user is to know of a form, one sentence each."""
