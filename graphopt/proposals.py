"""Runs the lossy passes of a compilation on each target: what they propose becomes forms held to the budget."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.data.dataset import Dataset
from graphopt.data.interface import Feeds
from graphopt.errors import DataError, GraphoptError, TargetError, UsageError, VerificationError
from graphopt.ir import model as ir_model
from graphopt.ir.share import share_constants
from graphopt.lossy import Candidate, Context, LossyPass, Proposal, Run
from graphopt.machine import Form, Kernel
from graphopt.pipeline.record import PassRecord, PassStatus
from graphopt.quant.attribution import attribute
from graphopt.quant.kernels import IntegerKernels
from graphopt.quant.observe import MEMORY
from graphopt.quant.search import FOR_ANY
from graphopt.quant.storage import Storage, Stored, stored
from graphopt.rewrite import Numerics
from graphopt.target import Aligned, HalfCapable, IntegerCapable, Probe, Quick, Target, Widening
from graphopt.tune.kernels import kernels_of
from graphopt.tune.paired import Worker
from graphopt.verify.budget import Judgement, percent
from graphopt.verify.evaluation import Evaluation
from graphopt.verify.metrics import Metric
from graphopt.verify.session import Session

_WRITTEN_BYTES = 256 << 20
"""Of constants, up to which what is tried has them as the file will hold them: rounding more takes seconds."""
_LEAST_TURN = 0.25
"""Of the longest turn of a target so far: with less time left another one would come to nothing, or be late."""
_GAINED, _GAINED_BY_THEN = 0.8, 0.9
"""Of the time of the fastest float form: what takes less leaves targets without a turn that there is no time for; once
the compilation is late, what takes less than the second."""
_UNHURRIED = 90.0
"""Seconds at least for a pass that is told how much: it does not search, and what it hurries it does worse."""
_LEAST_SHARED = 1024
"""Bytes of constants that are looked for again: where passes look at layers one by one, each has a copy of its own."""
_SHARE_OF_FIRST = 0.6
_SHARE_OF_AHEAD = 0.95
"""Of the time, for the first of several targets; and for one that is far ahead."""
_FAR = 1.5
_GAIN_OF_SUITED = 2.0
"""What kernels that suit a model gain beside what others gain by the same pass (``benchmarks/quantize.py``)."""


@dataclass(frozen=True)
class Budget:
    """What lossy passes may lose, and on what they are judged.

    Attributes:
        metric: What the budget is of.
        max_drop: Share of the original's score that may be lost.
        synthetic: Whether made-up inputs may stand in for data.
        best_effort: Whether the nearest result is handed out where the budget cannot be kept.
        seconds: Time for searching, on all targets together; None for what the default leaves.
        memory: Bytes beyond the model that calibration may take.
    """

    metric: Metric
    max_drop: float
    synthetic: bool = False
    best_effort: bool = False
    seconds: float | None = None
    memory: int = MEMORY


@dataclass
class Proposals:
    """The lossy part of one compilation.

    Attributes:
        passes: In order.
        budget: For all of them together.
        dataset: Samples for calibration and judgement.
        evaluation: The held-out ones, with what the original makes of them.
        seconds: Time for searching.
        targets: How many targets share the time.
        threads, seed, progress: As in the request.
        last_turn: ``time.monotonic()`` after which no further target has a turn where one before it has gained.
        judged: The evaluation that each form is held to, by label.
        candidates: What each form was made from, by label.
        halved: Constants of each form that are stored in 16 bits, by label.
        judgements: Of forms whose target cannot run here, by label.
        warnings: For the report.
    """

    passes: Sequence[LossyPass]
    budget: Budget
    dataset: Dataset
    evaluation: Evaluation
    seconds: float
    targets: int = 1
    threads: int = 0
    seed: int = 0
    progress: Callable[[str, str], None] = lambda stage, detail: None
    last_turn: float = float("inf")
    judged: dict[str, Evaluation] = field(default_factory=dict)
    candidates: dict[str, Candidate] = field(default_factory=dict)
    halved: dict[str, list[Stored]] = field(default_factory=dict)
    judgements: dict[str, Judgement] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    _over_budget: dict[str, list[str]] = field(default_factory=dict)
    """What came nearest where nothing held, by target."""
    _shared: dict[Hashable, Any] = field(default_factory=dict)
    _fastest: float = field(default=float("inf"), init=False)
    _longest: float = field(default=0.0, init=False)
    _left: int = field(init=False)
    _is_ahead: bool = field(default=False, init=False)
    _in_float: float = field(default=float("inf"), init=False)
    _original: ir.Model | None = field(default=None, init=False)
    _deadline: float = field(init=False)

    def __post_init__(self) -> None:
        self._left = self.targets
        self._deadline = time.monotonic() + self.seconds

    def in_turns(
        self, targets: Sequence[tuple[Target, Probe]], model: ir.Model, milliseconds: Mapping[str, float]
    ) -> list[tuple[Target, Probe]]:
        """Targets in the order in which something fast is likely to come of them, which decides how time is shared.

        Args:
            milliseconds: Of the float graph, by target; as if they were equal where one is not known.
        """
        places: dict[str, float] = {}
        for target, _ in targets:
            kernels = _integer_kernels(target)
            suits = any(pass_.suits(model, kernels) for pass_ in self.passes)
            time_in_float = milliseconds[target.name] if len(milliseconds) == len(targets) else 1.0
            places[target.name] = time_in_float if suits else _GAIN_OF_SUITED * time_in_float
        first, second, *_ = [*sorted(places.values()), float("inf")]
        self._is_ahead = second >= _FAR * first
        self._in_float = min(milliseconds.values(), default=float("inf"))
        return sorted(targets, key=lambda entry: places[entry[0].name])

    def propose(
        self, target: Target, model: ir.Model, folder: Path, legalize: Callable[[ir.Model], ir.Model]
    ) -> tuple[list[tuple[Candidate, ir.Model]], list[PassRecord]]:
        """What the passes propose for ``model`` on ``target``, legalised; and the pass log."""
        records: list[PassRecord] = []
        self._original = model
        kept: list[Candidate] = [Candidate("", model)]
        # What a target leaves of its time the next ones have.
        now = time.monotonic()
        share = 1.0 if self._left < 2 else _SHARE_OF_AHEAD if self._is_ahead else _SHARE_OF_FIRST
        deadline = now + max(self._deadline - now, 0.0) * share
        is_told = self.budget.seconds is not None
        is_late = now > self.last_turn
        least = (_GAINED_BY_THEN if is_late else _GAINED) * self._in_float
        has_gained = self._fastest < (float("inf") if is_told else least)
        if not has_gained and not is_told:
            deadline = max(deadline, now + _LEAST_TURN * self._longest)
        self._left -= 1
        for place, pass_ in enumerate(self.passes):
            started = time.monotonic()
            is_last = place == len(self.passes) - 1
            left = max(deadline - started, 0.0)
            if pass_.searches:
                until = started + (left if is_last else left * pass_.share)
            else:
                until = started + max(left, _UNHURRIED)
            record = PassRecord(pass_.name, Numerics.LOSSY, nodes_before=len(model.graph))
            follows = any(later.recovers for later in self.passes[place + 1 :])
            records.append(record)
            if has_gained and (is_late or self._deadline - now < _LEAST_TURN * self._longest):
                proposal = Proposal(reason="no time was left for this target: --tune gives more")
            else:
                proposal = self._run(pass_, kept, follows, target, folder, legalize, record, until)
            record.seconds = time.monotonic() - started
            self._longest = max(self._longest, record.seconds)
            if not pass_.searches:
                deadline += record.seconds
                self._deadline += record.seconds
            self._fastest = min(self._fastest, proposal.milliseconds)
            record.details = {
                "target": target.name, "allowed": self.budget.max_drop, **proposal.details,
            }  # fmt: skip
            self.warnings += [
                f"{pass_.name}: {text}"
                for text in proposal.warnings
                if f"{pass_.name}: {text}" not in self.warnings
            ]
            if not proposal.candidates and proposal.best_effort is not None:
                self._over_budget.setdefault(target.name, []).append(f"{pass_.name}: {proposal.reason}")
                if self.budget.best_effort and _is_nearer(proposal.best_effort, kept[-1]):
                    proposal.candidates = [proposal.best_effort]
                    self.warnings.append(
                        f"{pass_.name} on {target.name}: {proposal.reason}; taken on as best effort"
                    )
                elif follows:
                    proposal.candidates = [replace(proposal.best_effort, prepares=True)]
                elif len(self.passes) > 1:
                    self.warnings.append(f"{pass_.name} on {target.name} was left out: {proposal.reason}")
            elif (
                pass_.recovers
                and not proposal.candidates
                and proposal.reason
                and target.name in self._over_budget
            ):
                # What was to win back did not: the error is to say so.
                self._over_budget[target.name].append(f"{pass_.name}: {proposal.reason}")
            kept = _followed(kept, proposal.candidates, pass_.recovers)
            if proposal.candidates:
                record.status = PassStatus.APPLIED
                record.nodes_after = len(kept[-1].model.graph)
            else:
                record.reason = record.reason or proposal.reason
                record.nodes_after = record.nodes_before
                if proposal.best_effort is not None or (pass_.recovers and proposal.reason):
                    record.status = PassStatus.LEFT_OUT
        found = [
            (candidate, legalize(candidate.model))
            for candidate in kept
            if candidate.label and not candidate.prepares
        ]
        for _, legal in found:
            share_constants(legal, least_bytes=_LEAST_SHARED)
        return found, records

    @property
    def wanted(self) -> frozenset[str]:
        """Labels of the forms that were asked for although what they buy is not time."""
        return frozenset(label for label, candidate in self.candidates.items() if candidate.wanted)

    @property
    def storage(self) -> Storage | None:
        """What the passes allow together of storing what is left in float; None where none allows anything."""
        allowed = [pass_.storage for pass_ in self.passes if pass_.storage is not None]
        if not allowed:
            return None
        return Storage(
            min(storage.bits for storage in allowed), lambda node: any(one.keeps(node) for one in allowed)
        )

    def storage_on(self, target: Target) -> Storage | None:
        """The same on a target: None where it does not widen constants as it loads a graph."""
        return self.storage if isinstance(target, Widening) and target.widens_constants() else None

    def written(self, label: str, legal: ir.Model, target: Target) -> ir.Model:
        """A form's graph as it is to be written: what is left in float in 16 bits, where the target widens it."""
        graph, self.halved[label] = self._halved(legal, target)
        return graph

    def _halved(self, legal: ir.Model, target: Target) -> tuple[ir.Model, list[Stored]]:
        storage = self.storage_on(target)
        return (legal, []) if storage is None else stored(legal, 16, storage.keeps)

    @property
    def store_all(self) -> bool:
        """Whether every pass allows it: then the float form from a smaller file is something that was asked for."""
        return all(pass_.storage is not None for pass_ in self.passes)

    def read_back(self, form: Form, candidate: Candidate, legal: ir.Model) -> dict[str, Any]:
        """Which kernels the built form really runs: what is on integers, what stayed in float, what fell elsewhere.

        Raises:
            TargetError: The form does not load, or its target cannot tell.
            VerificationError: No kernel on integers formed: the quantization did not happen.
        """
        kernels = kernels_of(form, self.evaluation.feeds[0], threads=self.threads)
        found = attribute(kernels, candidate.units, legal)
        products = [unit.name for unit in candidate.units if unit.kind == "compute"]
        missing = [name for name in products if name not in found.integer]
        if products and len(missing) == len(products):
            raise VerificationError(
                f"{form.target} formed no integer kernel of the {len(products)} that were asked for",
                hint="please report this with the model",
            )
        conversions = [kernel for kernel in kernels if kernel.op in ("QuantizeLinear", "DequantizeLinear")]
        providers = sorted({kernel.provider for kernel in kernels if kernel.provider})
        return {
            "kernels": len(kernels),
            "integer": sum(kernel.integer for kernel in kernels),
            "conversions": len(conversions),
            "conversions_ms": round(sum(kernel.milliseconds for kernel in conversions), 4),
            "without_integer_kernel": missing,
            "providers": providers,
            "float": [
                {"node": kernel.node, "op": kernel.op, "ms": round(kernel.milliseconds, 4)}
                for kernel in kernels
                if not kernel.integer and kernel not in conversions
            ],
        }

    def judge_here(self, label: str, legal: ir.Model) -> None:
        """Judge a form whose target cannot run on this machine in ONNX Runtime's CPU provider.

        Its arithmetic is not the target's (half precision is computed in float32), so the worse counts of this and of
        what the pass found; a form that is over the budget is told and not handed out.
        """
        found = [self.candidates[label].judgement]
        try:
            session = Session(legal, optimize="all", threads=self.threads)
            halves = {value.name for value in legal.graph.inputs if value.dtype == ir.DataType.FLOAT16}

            def run(feeds: Feeds) -> Feeds:
                return session.run(
                    {
                        name: array.astype(np.float16) if name in halves else array
                        for name, array in feeds.items()
                    }
                )

            found.append(self.evaluation.judge([run(feeds) for feeds in self.evaluation.feeds]))
        except TargetError as error:
            self.warnings.append(f"{label}: it could not be judged on the CPU: {error.message}")
            return
        judgement = max((entry for entry in found if entry is not None), key=lambda entry: entry.drop)
        if judgement.ok or self.budget.best_effort:
            self.judgements[label] = judgement
        else:
            self.warnings.append(f"{label} is over the budget: {judgement.describe()}")

    def check(self, kept: bool) -> None:
        """Refuse to go on where the budget cannot be kept by anything that was asked for.

        Args:
            kept: Whether any lossy form was proposed, on any target, or anything is stored in fewer bits.

        Raises:
            VerificationError: Says what came nearest.
        """
        if not kept and self._over_budget:
            data = "give more or better --data"
            if self.budget.synthetic:
                data = "give real inputs with --data (a model may make little of made-up ones)"
            raise VerificationError(
                f"the budget of {percent(self.budget.max_drop)} ({self.budget.metric.name}) cannot be kept: "
                + "; ".join(
                    f"{target}: {text}" for target, texts in self._over_budget.items() for text in texts
                ),
                hint=f"{data}, raise --max-drop, or take the nearest with --best-effort",
            )

    def _limit(self, deadline: float) -> float:
        """Until when a pass may go on as long as nothing holds: what the targets after it would have, and, where nobody
        said how long it may take, a little more."""
        if self._fastest < float("inf"):
            return deadline
        more = FOR_ANY * self.seconds if self.budget.seconds is None else 0.0
        return max(deadline, self._deadline + more)

    def _run(
        self,
        pass_: LossyPass,
        kept: Sequence[Candidate],
        recovers: bool,
        target: Target,
        folder: Path,
        legalize: Callable[[ir.Model], ir.Model],
        record: PassRecord,
        deadline: float,
    ) -> Proposal:
        numbers = itertools.count()

        @contextlib.contextmanager
        def emitted(legal: ir.Model, label: str) -> Iterator[Form]:
            place = folder / f"tried-{next(numbers)}"
            place.mkdir(parents=True)
            try:
                config = target.emit(legal, place, target.variants(legal, None)[0])
                yield Form(label, target.name, place, config)
            finally:
                shutil.rmtree(place, ignore_errors=True)

        def profile(graph: ir.Model, label: str) -> Sequence[Kernel]:
            with emitted(legalize(graph), label) as form:
                return kernels_of(form, self.evaluation.feeds[0], threads=self.threads)

        @contextlib.contextmanager
        def as_it_runs(graph: ir.Model) -> Iterator[Run]:
            with (
                emitted(written(graph), "judged") as form,
                contextlib.closing(Worker(form, None, self.threads)) as worker,
            ):
                worker.wait_ready()
                yield worker.outputs

        def written(graph: ir.Model) -> ir.Model:
            legal = legalize(graph)
            return legal if ir_model.nbytes(legal) > _WRITTEN_BYTES else self._halved(legal, target)[0]

        runnable = target.probe().runnable
        context = Context(
            self.dataset,
            self.evaluation,
            target.name,
            _integer_kernels(target),
            profile,
            legalize=legalize,
            written=written,
            halves=target.half_kernels() if isinstance(target, HalfCapable) else {},
            runnable=runnable,
            threads=self.threads,
            seed=self.seed,
            memory=self.budget.memory,
            width=target.channel_multiple() if isinstance(target, Aligned) else 1,
            deadline=deadline,
            limit=self._limit(deadline),
            progress=lambda text: self.progress(f"{pass_.name} for {target.name}", text),
            weights=kept[-1].weights,
            rival=self._fastest,
            shared=self._shared,
            original=self._original,
            recovers=recovers,
            candidates=tuple(entry for entry in kept if entry.label),
            as_it_runs=as_it_runs
            if runnable and isinstance(target, Quick) and target.loads_quickly()
            else None,
        )
        try:
            return pass_.propose(kept[-1].model, context)
        except DataError:
            raise
        except GraphoptError as error:
            record.status, record.reason = PassStatus.UNDONE, error.message.splitlines()[0]
        except Exception as error:
            record.status = PassStatus.UNDONE
            record.reason = f"it raised {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        self.warnings.append(f"{pass_.name} on {target.name} failed and was left out: {record.reason}")
        return Proposal()


def _integer_kernels(target: Target) -> IntegerKernels | None:
    return target.integer_kernels() if isinstance(target, IntegerCapable) else None


def _followed(kept: Sequence[Candidate], proposed: Sequence[Candidate], recovers: bool) -> list[Candidate]:
    """The forms after a pass: what it proposed, and what goes on beside it.

    Args:
        recovers: Whether the pass wins back what others lost: what it did not bring within the budget ends here.
    """
    if not proposed:
        return [entry for entry in kept if not (recovers and _is_handed_over(entry))]
    named: list[Candidate] = []
    for entry in proposed:
        given = entry.replaces or kept[-1]
        label = f"{given.label}, {entry.label}" if given.label else entry.label
        named.append(replace(entry, label=label, wanted=entry.wanted or given.wanted, replaces=None))
    if recovers:
        replaced = {id(entry.replaces) for entry in proposed}
        beside = [entry for entry in kept if not _is_handed_over(entry) and id(entry) not in replaced]
    else:
        # What only prepares, or is handed on over the budget, leaves what held before it in the running.
        beside = [entry for entry in kept if not entry.prepares or entry.is_over_budget]
        beside = beside if all(entry.prepares for entry in named) else []
    return [*beside, *named]


def _is_handed_over(candidate: Candidate) -> bool:
    """Whether a form is over the budget, for a pass that may win it back."""
    return candidate.prepares and candidate.is_over_budget


def _is_nearer(candidate: Candidate, before: Candidate) -> bool:
    """Whether a form that is over the budget is no farther from it than what an earlier pass gave."""
    drops = [
        float("inf") if entry.judgement is None else entry.judgement.drop for entry in (candidate, before)
    ]
    held = before.judgement is not None and before.judgement.ok
    return not before.label or (not held and (before.judgement is None or drops[0] <= drops[1]))


def lossy_and_others(passes: Sequence[Any]) -> tuple[list[Any], list[LossyPass]]:
    """The passes that keep the numbers, and the lossy ones, which run after them.

    Raises:
        UsageError: A lossy pass comes after one that it has to precede.
    """
    lossy = [pass_ for pass_ in passes if isinstance(pass_, LossyPass)]
    for earlier, later in itertools.combinations(lossy, 2):
        if earlier.name in later.precedes:
            raise UsageError(
                f"{later.name} cannot come after {earlier.name}: it does not take what that makes of the weights",
                hint=f"write it before: --passes fuse,{later.name},{earlier.name}",
            )
    return [pass_ for pass_ in passes if not isinstance(pass_, LossyPass)], lossy
