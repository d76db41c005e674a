"""What a lossy pass gets to see, and what it gives: candidates that are judged by the budget and by the clock."""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import onnx_ir as ir

from graphopt.data.dataset import Dataset
from graphopt.data.interface import Feeds
from graphopt.errors import GraphoptError, UsageError
from graphopt.machine import Kernel
from graphopt.pipeline.base import Pass
from graphopt.quant.kernels import IntegerKernels
from graphopt.quant.observe import MEMORY
from graphopt.quant.place import Weights
from graphopt.quant.storage import Storage
from graphopt.quant.units import Unit
from graphopt.rewrite import Gate, Numerics, RewriteLog, allow_all
from graphopt.verify.budget import Judgement, judged_of
from graphopt.verify.evaluation import Evaluation
from graphopt.verify.session import Session

Run = Callable[[Feeds], Feeds]


@dataclass
class Context:
    """What a lossy pass may use.

    Attributes:
        dataset: The user's samples, or made-up ones where these were allowed.
        evaluation: Held-out samples, the metric and the budget.
        target: Name of the target.
        kernels: Its integer kernels; None where it has none worth using.
        profile: Kernels that a graph runs on the target, with their times; also told a label.
        legalize: A graph as the target will have it; it runs in ONNX Runtime's CPU provider, whatever the target.
        written: The same with what stays in float as the target's file will hold it, unless that takes long; None where
            it is held as it is.
        halves: Operators that the target has kernels for, by the name of a 16-bit float type; empty where none gains.
        runnable: Whether the target runs on this machine; without it there is no profile.
        threads: Of an operator.
        seed: Of whatever is random.
        memory: Bytes beyond the model that calibration may take.
        width: Channels that its kernels like a multiple of.
        deadline: ``time.monotonic()`` after which nothing new is begun.
        limit: The same as long as nothing was found to hold, on this target or one before: what the ones after it would
            have of the time. Never before the deadline.
        progress: Told what is being done.
        weights: Integer weights and corrections that an earlier pass found.
        rival: Milliseconds of all kernels of the fastest that holds on a target before this one.
        shared: What passes found on the targets before this one, by a key of their own.
        original: The float graph that the first lossy pass was given: what a pass that wins accuracy back learns from.
        recovers: Whether such a pass follows: then what is over the budget may be handed on to it
            (:attr:`Candidate.prepares`).
        candidates: What earlier passes proposed; the last one holds the graph that the pass is given.
        as_it_runs: Runs a graph on the target while a ``with`` block lasts; None where ONNX Runtime stands in for it.
    """

    dataset: Dataset
    evaluation: Evaluation
    target: str
    kernels: IntegerKernels | None
    profile: Callable[[ir.Model, str], Sequence[Kernel]]
    legalize: Callable[[ir.Model], ir.Model] = lambda model: model
    written: Callable[[ir.Model], ir.Model] | None = None
    halves: Mapping[str, frozenset[str]] = field(default_factory=dict)
    runnable: bool = True
    threads: int = 0
    seed: int = 0
    memory: int = MEMORY
    width: int = 1
    deadline: float = float("inf")
    limit: float = 0.0
    progress: Callable[[str], None] = lambda text: None
    weights: Weights = field(default_factory=Weights)
    rival: float = float("inf")
    shared: dict[Hashable, Any] = field(default_factory=dict)
    original: ir.Model | None = None
    recovers: bool = False
    candidates: tuple[Candidate, ...] = ()
    as_it_runs: Callable[[ir.Model], AbstractContextManager[Run]] | None = None

    def running(self, model: ir.Model) -> AbstractContextManager[Run]:
        """Runs a graph as the target does, or as near to it as there is time for in a search.

        Raises:
            TargetError: It does not load.
        """
        if self.as_it_runs is not None:
            return self.as_it_runs(model)
        graph = (self.written or self.legalize)(model)
        return contextlib.nullcontext(Session(graph, optimize="all", threads=self.threads).run)

    def judged(self, model: ir.Model) -> Judgement | None:
        """What a graph loses on the held-out samples as it runs; None where it does not."""
        try:
            with self.running(model) as run:
                return self.evaluation.judge([run(feeds) for feeds in self.evaluation.feeds])
        except GraphoptError:
            return None


@dataclass(frozen=True)
class Candidate:
    """A lossy form of a graph that kept its budget where the pass looked.

    Attributes:
        label: In reports ("int8", "int8, 2 kept float").
        model: The graph.
        knobs: What the target's ``emit`` is to be told besides.
        units: The units that were put on integers, whose kernels are looked for once the form is built.
        judgement: What the pass found that it loses; what counts where the target cannot run here.
        weights: For the pass that puts the graph on integers, where that is another one.
        prepares: Whether it is for a pass that follows, and no form by itself.
        replaces: The earlier candidate that it was made of, and is better than at the same cost.
        wanted: Whether what it buys is not time (zeros, for a smaller file or another backend): it is handed out where
            it is as fast as what would be handed out without it, within noise. What is made of it is wanted as well.
    """

    label: str
    model: ir.Model
    knobs: dict[str, Any] = field(default_factory=dict)
    units: tuple[Unit, ...] = ()
    judgement: Judgement | None = None
    weights: Weights = field(default_factory=Weights)
    prepares: bool = False
    replaces: Candidate | None = None
    wanted: bool = False

    @property
    def is_over_budget(self) -> bool:
        """Whether it lost more than it may, for a pass that wins it back; not known of one that was not judged."""
        return self.judgement is not None and not self.judgement.ok


@dataclass
class Proposal:
    """What a lossy pass found for one graph on one target.

    Attributes:
        candidates: From plain to special; none where nothing held.
        details: For the report: plain JSON.
        reason: Why there is no candidate, where there is none.
        warnings: What is suspicious about the data, for the report.
        best_effort: The best that did not hold, for ``--best-effort``.
        milliseconds: Of all kernels of the fastest candidate, where they were measured.
    """

    candidates: list[Candidate] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)
    reason: str = ""
    warnings: Sequence[str] = ()
    best_effort: Candidate | None = None
    milliseconds: float = float("inf")


class LossyPass(Pass):
    """A pass that changes the numbers, within a budget that it is given.

    Class attributes:
        share: Of the time that is left, where other lossy passes follow.
        recovers: Whether it wins back what passes before it lost.
        precedes: Names of passes that come after it where both are asked for: it cannot take what they make.
    """

    numerics = Numerics.LOSSY
    share: ClassVar[float] = 1.0
    recovers: ClassVar[bool] = False

    @property
    def searches(self) -> bool:
        """Whether it looks for the best that there is time for; else it does what its options say, at its own pace, and
        the passes behind it have as much time as without it."""
        return True

    precedes: ClassVar[tuple[str, ...]] = ()

    @property
    def storage(self) -> Storage | None:
        """In how few bits constants that are left in float may be stored, for a target that widens them as it loads a
        graph; None leaves them as they are."""
        return None

    def require(self) -> None:
        """Look for what it needs besides, before anything is done. Nothing by default.

        Raises:
            MissingExtraError: It is not installed.
        """

    def suits(self, model: ir.Model, kernels: IntegerKernels | None) -> bool:
        """Whether a target with these kernels is where it should look first: what comes of it there is likely to be the
        fastest. What the others then lag behind, they are left for soon."""
        del model, kernels
        return False

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


__all__ = ["Candidate", "Context", "Judgement", "LossyPass", "Proposal", "judged_of"]
