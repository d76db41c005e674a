"""What a lossy pass gets to see, and what it gives: candidates that are judged by the budget and by the clock."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from graphopt.data.dataset import Dataset
from graphopt.errors import UsageError
from graphopt.machine import Kernel
from graphopt.pipeline.base import Pass
from graphopt.quant.kernels import IntegerKernels
from graphopt.rewrite import Gate, Numerics, RewriteLog, allow_all
from graphopt.verify.budget import Evaluation


@dataclass
class Context:
    """What a lossy pass may use.

    Attributes:
        dataset: The user's samples, or made-up ones where these were allowed.
        evaluation: Held-out samples, the metric and the budget.
        target: Name of the target.
        kernels: Its integer kernels; None where it has none worth using.
        profile: Kernels that a graph runs on the target, with their times; also told a label.
        threads: Of an operator.
        seed: Of whatever is random.
        deadline: ``time.monotonic()`` after which nothing new is begun.
        progress: Told what is being done.
    """

    dataset: Dataset
    evaluation: Evaluation
    target: str
    kernels: IntegerKernels | None
    profile: Callable[[ir.Model, str], Sequence[Kernel]]
    threads: int = 0
    seed: int = 0
    deadline: float = float("inf")
    progress: Callable[[str], None] = lambda text: None


@dataclass(frozen=True)
class Candidate:
    """A lossy form of a graph that kept its budget where the pass looked.

    Attributes:
        label: In reports ("int8", "int8, 2 kept float").
        model: The graph.
        knobs: What the target's ``emit`` is to be told besides.
    """

    label: str
    model: ir.Model
    knobs: dict[str, Any] = field(default_factory=dict)


@dataclass
class Proposal:
    """What a lossy pass found for one graph on one target.

    Attributes:
        candidates: From plain to special; none where nothing held.
        details: For the report: plain JSON.
        reason: Why there is no candidate, where there is none.
        best_effort: The best that did not hold, for ``--best-effort``.
    """

    candidates: list[Candidate] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)
    reason: str = ""
    best_effort: Candidate | None = None


class LossyPass(Pass):
    """A pass that changes the numbers, within a budget that it is given."""

    numerics = Numerics.LOSSY

    @abc.abstractmethod
    def propose(self, model: ir.Model, context: Context) -> Proposal:
        """Candidates for ``model``, which stays as it was."""

    def run(self, model: ir.Model, log: RewriteLog, gate: Gate = allow_all) -> bool:
        """Not possible without data, a budget and a target.

        Raises:
            UsageError: Always.
        """
        del model, log, gate
        raise UsageError(
            f"the pass {self.name!r} needs data, a budget and a target",
            hint="run it through graphopt.compile",
        )


__all__ = ["Candidate", "Context", "LossyPass", "Proposal"]
