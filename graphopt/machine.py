"""What a backend finds on this machine, and what runs a compiled model; light enough for loading a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt


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
