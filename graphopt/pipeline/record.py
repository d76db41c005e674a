"""What is written down about each pass: the pass log of a report and a manifest."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any

from graphopt.rewrite import Numerics, Refusal


class PassStatus(enum.Enum):
    """Outcome of one pass."""

    APPLIED = "applied"
    NOTHING = "nothing to do"
    PARTLY_UNDONE = "partly undone"
    UNDONE = "undone"
    LEFT_OUT = "left out"
    """A lossy pass whose result was over the budget, or no better than what it began with."""


CHANGED = (PassStatus.APPLIED, PassStatus.PARTLY_UNDONE)
"""Of a pass whose result took the place of what it began with."""


@dataclass
class Undone:
    """Something a pass did that was taken back.

    Attributes:
        what: The rewrite and its place, or the pass.
        reason: Why.
        repro: Folder with a minimal model, inputs and a command, where one was written.
    """

    what: str
    reason: str
    repro: str | None = None


@dataclass
class PassRecord:
    """One pass, as it went.

    Attributes:
        name: Of the pass.
        numerics: Its numerics class.
        status: Outcome.
        reason: In words, where the status is not APPLIED.
        nodes_before, nodes_after: Nodes in the graph and its subgraphs.
        rewrites: Applications by rewrite.
        refused: Rewrites that matched and were not done, with reasons.
        undone: What was taken back.
        seconds: Time of the pass itself.
        verify_seconds: Time of checking and comparing.
        peak_megabytes: Growth of the process's peak resident memory during the pass.
        error: Relative error of the worst output after the pass; None where nothing was run.
        noise_floor: The model's noise floor on the same scale.
        identical: Whether all outputs were equal bit for bit.
        together: Whether these three are of the result of all passes: a large graph is compared once.
        details: What else a pass has to say about what it decided; plain JSON.
        replaced: The rewrite that took the place of a node, by the node's name; not part of the log.
        rejected: Whether ONNX Runtime did not load what it made, which was undone; not part of the log.
    """

    name: str
    numerics: Numerics
    status: PassStatus = PassStatus.NOTHING
    reason: str = ""
    nodes_before: int = 0
    nodes_after: int = 0
    rewrites: dict[str, int] = field(default_factory=dict)
    refused: list[Refusal] = field(default_factory=list)
    undone: list[Undone] = field(default_factory=list)
    seconds: float = 0.0
    verify_seconds: float = 0.0
    peak_megabytes: float = 0.0
    error: float | None = None
    noise_floor: float | None = None
    identical: bool | None = None
    together: bool = False
    details: dict[str, Any] = field(default_factory=dict)
    replaced: dict[str, str] = field(default_factory=dict, repr=False)
    rejected: bool = field(default=False, repr=False)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name,
            "numerics": self.numerics.value,
            "status": self.status.value,
            "reason": self.reason,
            "nodes": {"before": self.nodes_before, "after": self.nodes_after},
            "rewrites": dict(self.rewrites),
            "refused": [vars(refusal) for refusal in self.refused],
            "undone": [vars(entry) for entry in self.undone],
            "seconds": round(self.seconds, 4),
            "verify_seconds": round(self.verify_seconds, 4),
            "peak_megabytes": round(self.peak_megabytes, 1),
            "error": self.error,
            "noise_floor": self.noise_floor,
            "identical": self.identical,
            "together": self.together,
            "details": self.details,
        }
