"""What a backend is: the Target and Executable protocols.

A target legalises the graph (rewrites that may use vendor operators), writes one or more *forms* of it (the same
computation with different knobs), and loads a form into an Executable. Which form is handed out is decided by
measurement, outside the target.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graphopt.pipeline.base import Pass


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
        label: In reports ("legalised", "original", "legalised, denormals flushed").
        target: Name of the target that loads it.
        folder: Where its files are.
        config: What the target needs to load it (file names relative to ``folder``, knobs); plain JSON.
    """

    label: str
    target: str
    folder: Path
    config: Mapping[str, Any]


class Executable(Protocol):
    """A loaded model."""

    def run(self, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[np.generic]]:
        """Outputs by name, in the model's order.

        Args:
            feeds: Every input by name, of the model's types and shapes.
        """


@runtime_checkable
class Target(Protocol):
    """A backend."""

    name: str

    def probe(self) -> Probe:
        """What this machine offers."""

    def legalization(self) -> Sequence[Pass]:
        """Passes that bring the graph into the form that the backend runs fastest."""

    def allowed_domains(self) -> frozenset[str]:
        """Operator domains besides ONNX's that may appear after legalisation."""

    def variants(self, model: ir.Model) -> Sequence[Mapping[str, Any]]:
        """Knob settings worth measuring for this graph, the default first; each has a ``label``."""

    def emit(self, model: ir.Model, folder: Path, knobs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Write the model into ``folder``; returns the configuration that :meth:`load` needs.

        Raises:
            TargetError: The backend cannot take the graph; names the node.
        """

    def load(self, folder: Path, config: Mapping[str, Any], *, threads: int = 0) -> Executable:
        """Load what :meth:`emit` wrote.

        Raises:
            TargetError: The backend rejects it, or this machine lacks what it needs.
        """
