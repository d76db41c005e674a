"""The last step of a compilation with passes that quantize: the form that was chosen, from a smaller file.

What is left in float is stored in 8 bits, where not all of it holds as much as does, else in 16 (a form with integers
is from the start), and widened by the backend as it loads the graph. So neither the choice of a form nor its time
depends on it; it is held to the same budget, as it runs, and to the time of the form that it takes the place of.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from graphopt import artifact
from graphopt.errors import TargetError
from graphopt.ir import model as ir_model
from graphopt.pipeline.record import PassRecord, PassStatus
from graphopt.proposals import Proposals
from graphopt.quant.storage import Storage, Stored, as_many_as_hold, stored
from graphopt.rewrite import Numerics
from graphopt.selection import Selection, inherited
from graphopt.target import Form, Target
from graphopt.verify.budget import judged_of

NAME = "storage"
_WORTH = 0.97
"""Of the bundle's size: above it, fewer bits are not worth what they lose."""


@dataclass
class Storing:
    """One compilation's last step.

    Attributes:
        selection: Verifies and measures; it learns of what is tried.
        proposals: Of the passes that say how few bits may be taken.
        work: Folder for forms.
        measure: Whether anything is timed.
    """

    selection: Selection
    proposals: Proposals
    work: Path
    measure: bool = True

    def run(self, chosen: Form, deadline: float) -> tuple[Form, PassRecord | None]:
        """The form to hand out, and what was tried; None where the target or the budget leaves nothing to try.

        Args:
            chosen: Computes what is handed out.
            deadline: ``time.monotonic()`` after which it is not looked for what holds in 8 bits.
        """
        target, probe = self.selection.targets[chosen.target]
        judgement = self.selection.judgements.get(chosen.label)
        storage = self.proposals.storage_on(target)
        if storage is None or not probe.runnable or (judgement is not None and not judgement.ok):
            return chosen, None
        started = time.monotonic()
        judged: list[dict[str, Any]] = []
        record = PassRecord(NAME, Numerics.LOSSY, reason="what is left in float would take no less")
        record.nodes_before = record.nodes_after = ir_model.count_nodes(self.selection.models[chosen.label])
        record.details = {"target": target.name, "allowed": self.proposals.budget.max_drop, "judged": judged}
        size = artifact.size_of(chosen.folder)
        taken = chosen
        for words, model, constants in self._tries(chosen, storage, deadline):
            try:
                form = self._written(chosen, words, model, target)
            except TargetError as error:
                record.status, record.reason = PassStatus.LEFT_OUT, error.message
                continue
            smaller = artifact.size_of(form.folder)
            if smaller > _WORTH * size:
                continue
            held = self.selection.replaces(form, chosen, measure=self.measure)
            judged.append(
                {"label": words, **judged_of(self.selection.judgements.get(form.label)), "taken": held}
            )
            if held:
                taken, record.status, record.reason = form, PassStatus.APPLIED, ""
                self._tell(record, constants, smaller)
                record.nodes_after = ir_model.count_nodes(model)
                break
            record.status, record.reason = PassStatus.LEFT_OUT, self.selection.report.forms[-1].note
        if taken is chosen and self._halved(chosen):
            record.status, record.reason = PassStatus.APPLIED, ""
            self._tell(record, self._halved(chosen), size)
        record.seconds = time.monotonic() - started
        return taken, record

    def _halved(self, chosen: Form) -> list[Stored]:
        """Constants of the chosen form that are stored in 16 bits as it is; a knob changes nothing of it."""
        return inherited(chosen, self.proposals.halved) or []

    @staticmethod
    def _tell(record: PassRecord, constants: list[Stored], size: int) -> None:
        """What is stored how in a file of this size, beside what it would be with all in 32 bits."""
        saved = sum(before - after for before, after in (one.nbytes for one in constants))
        record.details["stored"] = [dataclasses.asdict(constant) for constant in constants]
        record.details["bytes"] = [size + saved, size]

    def _tries(
        self, chosen: Form, storage: Storage, deadline: float
    ) -> Iterator[tuple[str, ir.Model, list[Stored]]]:
        """What is stored how, in words, the graph with it, and what it stores otherwise; the fewest bits first."""
        graph = self.selection.models[chosen.label]
        if storage.bits == 8:
            model, constants = stored(graph, 8, storage.keeps)
            yield (words := "8 bits"), model, constants
            judgement = self.selection.judgements.get(_label(chosen, words))
            if judgement is not None and not judgement.ok:
                wide = as_many_as_hold(
                    graph, constants, storage.keeps, self.proposals.evaluation, judgement,
                    threads=self.proposals.threads, deadline=deadline,
                    progress=lambda text: self.selection.progress(NAME, text),
                )  # fmt: skip
                if any(one.bits == 8 and one.name not in wide for one in constants):
                    yield "8 and 16 bits", *stored(graph, 8, storage.keeps, wide)
        if not self._halved(chosen):
            yield "16 bits", *stored(graph, 16, storage.keeps)

    def _written(self, chosen: Form, words: str, model: ir.Model, target: Target) -> Form:
        """The form on disk, its budget and graph known.

        Raises:
            TargetError: The target does not take it.
        """
        folder = self.work / target.name / f"{NAME}-{words.replace(' ', '-')}"
        folder.mkdir(parents=True)
        # What emitting tells of the files, and the knobs of the form that it takes the place of.
        config = {**chosen.config, **target.emit(model, folder, {})}
        form = Form(_label(chosen, words), target.name, folder, config, base=chosen)
        self.proposals.judged[form.label] = self.proposals.evaluation
        self.selection.models[form.label] = self.selection.models[chosen.label]
        return form


def _label(chosen: Form, words: str) -> str:
    return f"{chosen.label}, stored in {words}"


__all__ = ["Storing"]
