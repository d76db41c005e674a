"""What is asked of a compilation, and who is told of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import onnx_ir as ir

from graphopt.errors import UsageError
from graphopt.pipeline.manager import Limits
from graphopt.pipeline.record import PassRecord
from graphopt.pipeline.spec import PassSpec
from graphopt.proposals import Budget
from graphopt.target import Effort


class Progress(Protocol):
    """Told what a compilation is doing; the command line draws it."""

    def stage(self, name: str, detail: str = "") -> None:
        """A stage begins."""

    def run_started(self) -> None:
        """The passes begin, or begin again."""

    def pass_started(self, name: str) -> None:
        """A pass begins."""

    def pass_ended(self, record: PassRecord, model: ir.Model) -> None:
        """A pass has ended."""


class Silent:
    """Progress that nobody sees."""

    def stage(self, name: str, detail: str = "") -> None:
        """Ignored."""

    def run_started(self) -> None:
        """Ignored."""

    def pass_started(self, name: str) -> None:
        """Ignored."""

    def pass_ended(self, record: PassRecord, model: ir.Model) -> None:
        """Ignored."""


@dataclass
class Request:
    """What to compile and how; the arguments of :func:`graphopt.compile`.

    Attributes:
        model: A path or an object that :func:`graphopt.capture.capture` takes.
        target: A target, or a group of targets.
        arch: What to compile for, where that is not this machine.
        database, device: Of tuned kernels; as for :func:`graphopt.catalog.targets_of`.
        effort: Of tuning kernels before they are compiled; None takes them as they are known.
        passes: Specifications and Python objects, in order.
        measure_seconds: Time for measuring the forms.
        budget: Of lossy passes; None stands for the default budget.
        transform: Applied to each sample of the data.
        prefer: What decides between verified forms that are no slower than the original, one of ``PREFERENCES``.
        time_forms: Whether forms are timed; else the last that holds is taken.
    """

    model: Any
    target: str = "cpu"
    arch: str | None = None
    database: Path | None = None
    device: str = ""
    effort: Effort | None = None
    passes: Sequence[PassSpec | object] = (PassSpec("fuse"),)
    example_inputs: Any = None
    dynamic_shapes: Any = None
    data: Any = None
    input_shapes: Mapping[str, Sequence[int | None]] | None = None
    seed: int = 0
    threads: int = 0
    measure_seconds: float = 3.0
    prefer: str = "speed"
    time_forms: bool = True
    budget: Budget | None = None
    transform: Any = None
    repro_dir: Path | None = None
    limits: Limits = field(default_factory=Limits)
    options: Mapping[str, Any] = field(default_factory=dict)


def parse_effort(text: str | float) -> Effort:
    """How long to tune kernels: seconds or minutes as for :func:`parse_budget`, or ``"2000trials"``.

    Raises:
        UsageError: It is none of these.
    """
    if isinstance(text, str) and text.endswith("trials"):
        try:
            trials = int(text.removesuffix("trials"))
        except ValueError:
            trials = 0
        if trials < 1:
            raise UsageError(f"cannot read the effort {text!r}", hint="write 2000trials, or a time: 10m")
        return Effort(trials=trials)
    return Effort(seconds=parse_budget(text))


def parse_budget(text: str | float) -> float:
    """Seconds from ``90``, ``"90s"`` or ``"10m"``.

    Raises:
        UsageError: It is none of these.
    """
    if isinstance(text, int | float):
        return float(text)
    units = {"s": 1.0, "m": 60.0, "h": 3600.0}
    number, unit = (text[:-1], text[-1]) if text and text[-1] in units else (text, "s")
    try:
        seconds = float(number) * units[unit]
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < float("inf"):
        raise UsageError(f"cannot read the time {text!r}", hint="write seconds or minutes: 30s, 10m")
    return seconds


__all__ = ["Progress", "Request", "Silent", "parse_budget", "parse_effort"]
