"""The transactional pass manager.

For each pass: clone the graph (weights are shared), run the pass on the clone, verify its structure, run the
reference inputs through it, compare. Only then does the clone take the graph's place. Where the numbers do not hold,
the application that breaks them is found by bisection, denied, and the rest is kept. A pass that raises, hangs,
crashes or corrupts the graph is undone. Whatever is undone leaves a minimal repro, and the run goes on.

Loading a graph of tens of thousands of nodes into ONNX Runtime takes longer than most passes over it. There the passes
are compared together, after the last one; only where the result does not hold is the run begun again, pass by pass.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import onnx_ir as ir

from graphopt.data.interface import Feeds
from graphopt.errors import GraphoptError, PassFailedError, RejectedError
from graphopt.ir import check as ir_check
from graphopt.ir import model as ir_model
from graphopt.ir import shapes
from graphopt.pipeline.base import Pass
from graphopt.pipeline.isolate import run_isolated, time_limit
from graphopt.pipeline.record import CHANGED, PassRecord, PassStatus, Undone
from graphopt.rewrite import Application, Gate, Numerics, RewriteLog, allow_all
from graphopt.verify.compare import Comparison
from graphopt.verify.reference import Reference
from graphopt.verify.repro import write_repro

ALLOWED_MULTIPLE = {Numerics.EXACT: 2.0, Numerics.REASSOCIATES: 8.0}


class Listener(Protocol):
    """Told of each pass as it begins and ends; timing, dumps and progress live here and not in passes."""

    def run_started(self) -> None:
        """A run begins, or begins again: then what was told of it before does not count."""

    def pass_started(self, name: str) -> None:
        """A pass begins."""

    def pass_ended(self, record: PassRecord, model: ir.Model) -> None:
        """A pass has ended; ``model`` is what the run goes on with."""


@dataclass
class Limits:
    """What one pass may take.

    Attributes:
        pass_seconds: Time for running a pass once.
        bisect_seconds: Time for finding what broke the numbers; after it the whole pass is undone.
        culprits: Applications of one pass that are undone one by one before the whole pass is.
        nodes_apart: Graphs with more nodes are compared after the last pass, and after each one only where that fails.
    """

    pass_seconds: float = 300.0
    bisect_seconds: float = 60.0
    culprits: int = 4
    nodes_apart: int = 20_000


@dataclass
class _Attempt:
    """A pass run on a clone: the result, or why there is none."""

    model: ir.Model
    log: RewriteLog
    modified: bool = False
    comparison: Comparison | None = None
    results: list[Feeds] = field(default_factory=list)
    failure: str = ""
    rejected: bool = False

    def fail(self, error: Exception) -> None:
        """Write down why there is no result."""
        self.failure = _describe(error)
        self.rejected = isinstance(error, RejectedError)

    @property
    def ok(self) -> bool:
        return not self.failure and (self.comparison is None or self.comparison.ok)

    @property
    def why(self) -> str:
        if self.failure:
            return self.failure
        return "" if self.comparison is None else self.comparison.describe()


@dataclass(frozen=True)
class _Spare:
    """A clone that a pass left as it was, as good as new for the next one."""

    of: ir.Model
    clone: ir.Model
    fingerprint: int


@dataclass
class PassManager:
    """Runs passes over a model, each one a transaction.

    Attributes:
        passes: In order.
        reference: Trials of the original model; None runs the passes without comparing numbers.
        listeners: Told of each pass.
        limits: Of time.
        allow_domains: Domains other than ONNX's that the structural verifier accepts.
        repro_dir: Where repros go; None writes none.
    """

    passes: Sequence[Pass]
    reference: Reference | None = None
    listeners: Sequence[Listener] = ()
    limits: Limits = field(default_factory=Limits)
    allow_domains: frozenset[str] = frozenset()
    repro_dir: Path | None = None
    _spare: _Spare | None = field(default=None, init=False, repr=False)
    _accepted: list[Feeds] | None = field(default=None, init=False, repr=False)

    def run(self, model: ir.Model) -> tuple[ir.Model, list[PassRecord]]:
        """The model after all passes that held, and the pass log. ``model`` itself stays as it was."""
        with ir_model.paused_collection():
            if self.reference is not None and ir_model.count_nodes(model) > self.limits.nodes_apart:
                result, records = dataclasses.replace(self, reference=None)._run(model)
                if self._holds(result, records, self.reference):
                    return result, records
            return self._run(model)

    def _run(self, model: ir.Model) -> tuple[ir.Model, list[PassRecord]]:
        for listener in self.listeners:
            listener.run_started()
        records: list[PassRecord] = []
        changed: set[int] = set()
        nodes = ir_model.count_nodes(model)
        for pass_ in self.passes:
            if pass_.after is not None and id(pass_.after) not in changed:
                continue
            for listener in self.listeners:
                listener.pass_started(pass_.name)
            record = PassRecord(pass_.name, pass_.numerics, nodes_before=nodes)
            before = model
            model = self._transaction(pass_, model, record)
            if model is not before:
                changed.add(id(pass_))
                nodes = ir_model.count_nodes(model)
            record.nodes_after = nodes
            records.append(record)
            for listener in self.listeners:
                listener.pass_ended(record, model)
        self._spare = None
        return model, records

    def _holds(self, model: ir.Model, records: Sequence[PassRecord], reference: Reference) -> bool:
        """Compare the result of all passes; the records of those that changed something say how it went."""
        if any(record.undone for record in records):
            # What is undone leaves a repro, which is made with the reference.
            return False
        changed = [record for record in records if record.status in CHANGED]
        if not changed:
            return True
        started = time.monotonic()
        try:
            comparison = reference.compare_model(model, max(_multiple(record.numerics) for record in changed))
        except Exception:  # as in a transaction; which pass it comes from is seen when they run one by one
            return False
        for record in changed:
            _write_down(comparison, record)
            record.together = True
        changed[-1].verify_seconds += time.monotonic() - started
        return comparison.ok

    def _transaction(self, pass_: Pass, model: ir.Model, record: PassRecord) -> ir.Model:
        record.reason = pass_.declines(model)
        if record.reason:
            return model
        peak = peak_megabytes()
        attempt = self._attempt(pass_, model, record, allow_all)
        denied: set[Application] = set()
        banned: set[str] = set()

        def allowed(entry: Application) -> bool:
            return entry not in denied and entry.rewrite not in banned

        deadline = time.monotonic() + self.limits.bisect_seconds
        while not attempt.ok:
            culprit = self._find_culprit(pass_, model, attempt, allowed, record, deadline)
            if culprit is None or len(record.undone) >= self.limits.culprits:
                break
            why = attempt.why
            record.rejected |= attempt.rejected
            repro = self._repro(pass_, model, attempt, culprit)
            if any(known.rewrite == culprit.rewrite for known in denied):
                # The second time it is the rewrite, not the place.
                denied |= {entry for entry in attempt.log.applied if entry.rewrite == culprit.rewrite}
                banned.add(culprit.rewrite)
                record.undone.append(Undone(f"{culprit.rewrite}, everywhere", why, repro))
            else:
                record.undone.append(Undone(str(culprit), why, repro))
            denied.add(culprit)
            attempt = self._attempt(pass_, model, record, allowed)

        record.peak_megabytes = max(0.0, peak_megabytes() - peak)
        record.refused = attempt.log.refused
        record.rewrites = attempt.log.counts()
        for failure in attempt.log.failed:
            repro = self._repro(pass_, model, attempt, None)
            record.undone.append(
                Undone(f"{failure.rewrite} at {failure.site!r}", f"it raised {failure.error}", repro)
            )
        if not attempt.ok:
            record.status, record.reason = PassStatus.UNDONE, attempt.why
            record.rejected |= attempt.rejected
            record.rewrites = {}
            record.undone.append(Undone(pass_.name, attempt.why, self._repro(pass_, model, attempt, None)))
            return model
        if not attempt.modified:
            record.status = PassStatus.UNDONE if record.undone else PassStatus.NOTHING
            record.reason = _why_nothing(attempt.log, record)
            return model
        record.status = PassStatus.PARTLY_UNDONE if record.undone else PassStatus.APPLIED
        if record.undone:
            record.reason = f"{len(record.undone)} undone"
        if attempt.comparison is not None:
            _write_down(attempt.comparison, record)
        record.replaced = {
            name: application.rewrite for application, names in attempt.log.replaced.items() for name in names
        }
        self._accepted = attempt.results or self._accepted
        return attempt.model

    def _attempt(self, pass_: Pass, model: ir.Model, record: PassRecord, gate: Gate) -> _Attempt:
        started = time.monotonic()
        spare, self._spare = self._spare, None
        if spare is None or spare.of is not model:
            clone = ir_model.clone(model)
            spare = _Spare(model, clone, fingerprint(clone))
        attempt = _Attempt(spare.clone, RewriteLog())
        try:
            if pass_.native:
                attempt.modified = run_isolated(pass_, attempt.model, attempt.log, self.limits.pass_seconds)
            else:
                with time_limit(self.limits.pass_seconds, f"pass {pass_.name!r}"):
                    attempt.modified = pass_.run(attempt.model, attempt.log, gate)
        except Exception as error:
            attempt.fail(error)
        record.seconds += time.monotonic() - started
        started = time.monotonic()
        if not attempt.failure:
            untouched = fingerprint(attempt.model) == spare.fingerprint
            attempt.modified = attempt.modified or not untouched
            if attempt.modified:
                self._verify(pass_, model, attempt)
            elif untouched:
                self._spare = spare
        record.verify_seconds += time.monotonic() - started
        return attempt

    def _verify(self, pass_: Pass, before: ir.Model, attempt: _Attempt) -> None:
        try:
            _check_interface(before, attempt.model)
            ir_check.check(attempt.model, allow_domains=self.allow_domains)
            shapes.infer(attempt.model)
            if self.reference is not None:
                self._compare(self.reference, pass_, attempt)
        except Exception as error:
            attempt.fail(error)

    def _compare(self, reference: Reference, pass_: Pass, attempt: _Attempt) -> None:
        attempt.results = reference.results_of(attempt.model)
        allowed = _multiple(pass_.numerics)
        attempt.comparison = reference.judge(attempt.results, allowed)
        if attempt.comparison.ok or pass_.numerics is not Numerics.EXACT or self._accepted is None:
            return
        # What passes before it did to the numbers is not held against a pass that changes none.
        own = reference.judge(attempt.results, allowed, against=self._accepted)
        whole = reference.judge(attempt.results, ALLOWED_MULTIPLE[Numerics.REASSOCIATES])
        attempt.comparison = whole if own.ok else own

    def _find_culprit(
        self,
        pass_: Pass,
        model: ir.Model,
        failed: _Attempt,
        still_allowed: Gate,
        record: PassRecord,
        deadline: float,
    ) -> Application | None:
        """The first application after which the pass no longer holds, by bisection over their order."""
        applied = list(dict.fromkeys(failed.log.applied))
        if not applied:
            return None
        good, bad = 0, len(applied)
        while bad - good > 1:
            if time.monotonic() > deadline:
                return None
            middle = (good + bad) // 2
            gate = _only(frozenset(applied[:middle]), still_allowed)
            attempt = self._attempt(pass_, model, record, gate)
            if attempt.ok:
                good = middle
            else:
                bad = middle
        return applied[bad - 1]

    def _repro(
        self, pass_: Pass, model: ir.Model, attempt: _Attempt, culprit: Application | None
    ) -> str | None:
        if self.repro_dir is None or self.reference is None:
            return None
        nodes = () if culprit is None else attempt.log.replaced.get(culprit, ())
        name = pass_.name if culprit is None else culprit.rewrite
        try:
            return str(write_repro(self.repro_dir, name, model, nodes, self.reference))
        except (GraphoptError, OSError, ValueError) as error:
            return f"(no repro: {error})"


def _multiple(numerics: Numerics) -> float:
    """How many times the noise floor a pass may be off."""
    return ALLOWED_MULTIPLE.get(numerics, ALLOWED_MULTIPLE[Numerics.REASSOCIATES])


def _write_down(comparison: Comparison, record: PassRecord) -> None:
    record.error = comparison.relative_error
    record.noise_floor = comparison.noise_floor
    record.identical = comparison.identical


def _only(first: frozenset[Application], still_allowed: Gate) -> Gate:
    return lambda entry: entry in first and still_allowed(entry)


def fingerprint(model: ir.Model) -> int:
    """Changes whenever a node, an operand, an attribute or a constant of this very object is changed."""
    parts: list[int] = []
    pending = [model.graph, *(function.graph for function in model.functions.values())]
    while pending:
        graph = pending.pop()
        for node in graph:
            parts.append(id(node))
            parts.append(hash(node.op_type))
            parts.extend(map(id, node.inputs))
            if node.attributes:
                parts.extend(map(id, node.attributes.values()))
                pending.extend(ir_model.subgraphs_of(node))
        parts.extend(map(id, graph.outputs))
        parts.extend(id(value.const_value) for value in graph.initializers.values())
    return hash(tuple(parts))


def peak_megabytes() -> float:
    """Peak resident memory of this process so far; 0 where the system does not tell."""
    if os.name != "posix":
        return 0.0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20) if sys.platform == "darwin" else peak / 1024


def _describe(error: Exception) -> str:
    if isinstance(error, GraphoptError):
        return error.message.splitlines()[0]
    return f"it raised {type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _check_interface(before: ir.Model, after: ir.Model) -> None:
    for kind in ("inputs", "outputs"):
        wanted = [(value.name, value.dtype) for value in getattr(before.graph, kind)]
        got = [(value.name, value.dtype) for value in getattr(after.graph, kind)]
        if wanted != got:
            raise PassFailedError(f"it changed the model's {kind}: {wanted} became {got}")


def _why_nothing(log: RewriteLog, record: PassRecord) -> str:
    if record.undone:
        return "all that it did was undone"
    if log.refused:
        return f"{len(log.refused)} refused, the first ({log.refused[0].rewrite}): {log.refused[0].reason}"
    return "nothing in the graph matches"


__all__ = ["ALLOWED_MULTIPLE", "Limits", "Listener", "PassManager"]
