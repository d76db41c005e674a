"""a pruned, factored, sparse or quantized graph  ==>  the same graph, trained to give what the original gives

Knowledge distillation on the calibration samples, which need no labels: the graph becomes a torch.fx module whose
weights are trained until its outputs, and its hidden values where both have them, are as near to the original's as they
come (Hinton et al. 2015; Romero et al., FitNets, ICLR 2015). A graph with QuantizeLinear and DequantizeLinear is
trained with its rounding (quantization-aware training: Jacob et al., CVPR 2018) and stays on the same integers. Zeros
that an earlier pass put into weights stay. What comes out is judged like any lossy form; where training did not help,
the weights stay as they were.

Refuses (in the report, with the node):
- a graph that no lossy pass has changed: there is nothing to win back;
- an operator without a differentiable form (If, Loop, integer products), or an attribute of one;
- an environment without PyTorch.
"""

from __future__ import annotations

import importlib.util
import time
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from graphopt.errors import MissingExtraError, UsageError
from graphopt.ir.hash import content_hash
from graphopt.lossy import Candidate, Context, Judgement, LossyPass, Proposal
from graphopt.quant.observe import data_key, graph_key
from graphopt.quant.place import Weights
from graphopt.train.checkpoint import Checkpoint, default_folder, key_of
from graphopt.train.module import NotTrainableError, zeros_of
from graphopt.train.recipe import Recipe

_MOST_BYTES = 0.25
"""Of the memory for calibration, for samples; as much again for what the teacher says of them."""


@dataclass(frozen=True)
class DistillOptions(Recipe):
    """Options of ``distill``.

    Attributes:
        samples: Most samples to train on; 0 for all that there is memory for.
        seconds: Time for training, whatever the budget of time leaves; 0 for what it leaves, or for ``steps``.
        cache: Folder where a training is kept, so that the same command goes on with it; "none" keeps nothing, "" is
            the folder ``distillation`` of the user's cache.
    """

    samples: int = 0
    seconds: float = 0.0
    cache: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("samples", "seconds"):
            if not getattr(self, name) >= 0:
                raise UsageError(
                    f"{name}={getattr(self, name):g} cannot be", hint=f"write {name} as 0 or more"
                )

    @property
    def recipe(self) -> Recipe:
        """How it is trained."""
        return Recipe(**{entry.name: getattr(self, entry.name) for entry in fields(Recipe)})


class Distill(LossyPass):
    """Recovery by training; LOSSY."""

    name = "distill"
    Options = DistillOptions
    share = 0.5
    recovers = True

    @property
    def searches(self) -> bool:
        """Not where it is told how much."""
        options: DistillOptions = self.options
        return not (options.steps or options.seconds)

    def require(self) -> None:
        """PyTorch.

        Raises:
            MissingExtraError: It is not installed.
        """
        if importlib.util.find_spec("torch") is None:
            raise MissingExtraError("torch", "torch")

    def propose(self, model: ir.Model, context: Context) -> Proposal:
        """What earlier passes proposed, with trained weights where these lose less."""
        if context.original is None or not context.candidates:
            return Proposal(
                reason="no lossy pass before it changed anything: there is nothing to win back "
                "(name it behind them: --passes fuse,prune,distill)"
            )
        # What is over the budget first, the last of it before what it was made of: that has most to win. Then what
        # holds, the fastest first. Where one cannot be trained (integer products) or stays over the budget, the next
        # one may do.
        over = [entry for entry in context.candidates if entry.is_over_budget]
        order = [*reversed(over), *(entry for entry in context.candidates if not entry.is_over_budget)]
        refused: list[str] = []
        nearest: Proposal | None = None
        for given in order:
            if nearest is not None and time.monotonic() > context.deadline:
                break
            try:
                found = self._trained(given, context)
            except NotTrainableError as error:
                refused.append(f"{given.label}: {error.message}")
                continue
            if found.candidates or not given.is_over_budget:
                return found if found.candidates or nearest is None else nearest
            nearest = nearest or found
        return nearest or Proposal(reason="; ".join(refused))

    def _trained(self, given: Candidate, context: Context) -> Proposal:
        from graphopt.train.distill import STOPPED, Distillation, Trained

        options: DistillOptions = self.options
        assert context.original is not None
        room = int(_MOST_BYTES * context.memory)
        samples: list[Any] = []
        wanted = iter(context.dataset.calibration(options.samples))
        for feeds in wanted:
            room -= sum(getattr(array, "nbytes", 0) for array in feeds.values())
            if samples and room < 0:
                break
            samples.append(feeds)
        before = given.judgement or context.judged(given.model)
        now = time.monotonic()
        # Who says how long gets it; the rest of the time is what there is otherwise.
        until = float("inf") if options.steps else context.deadline
        deadline = now + options.seconds if options.seconds else until
        training = Distillation(
            context.original, given.model, samples, replace(options.recipe, seed=options.seed + context.seed),
            deadline=deadline, memory=int(_MOST_BYTES * context.memory), threads=context.threads,
            padding=context.evaluation.padding,
            checkpoint=self._checkpoint(given.model, samples, context, min(deadline - now, 1e9)),
            progress=lambda text: context.progress(f"training, {text}"),
        )  # fmt: skip
        # Another target may have been given the very same graph.
        key = ("distill", content_hash(given.model), options)
        found: Trained | None = context.shared.get(key)
        trained = found or training.run()
        if trained.steps and trained.note != STOPPED:
            context.shared[key] = trained
        after = context.judged(trained.model)
        details = {
            "distilled": {
                "of": given.label,
                "steps": trained.steps,
                "samples": len(samples),
                "batch": trained.batch,
                "optimizer": options.optimizer,
                "rate": trained.rate,
                "hidden": trained.hidden,
                "loss": [trained.before, trained.after],
                "drop": [None if one is None else one.drop for one in (before, after)],
                "decibels": [None if one is None else one.decibels for one in (before, after)],
                "history": trained.history,
                "end": trained.note,
            }
        }
        warnings = []
        if trained.note == STOPPED:
            warnings.append(f"training was {trained.note}")
        if not trained.steps:
            why = "training was stopped" if trained.note == STOPPED else "no time was left for training"
            return Proposal(
                reason=why if trained.note == STOPPED else f"{why}: --tune gives more",
                details=details,
                warnings=warnings,
            )
        if after is None or (before is not None and _loss(before) <= _loss(after)):
            kept = "" if before is None else f": {before.describe()}"
            return Proposal(
                reason=f"training did not make {given.label!r} better; its weights stay as they were{kept}",
                details=details,
                warnings=warnings,
            )
        made = replace(
            given, label="distilled", model=trained.model, judgement=after, prepares=False, weights=Weights(),
            replaces=given,
        )  # fmt: skip
        if after.ok:
            return Proposal([made], details, warnings=warnings)
        return Proposal(
            details=details,
            reason=f"{given.label}, distilled: over the budget: {after.describe()}",
            warnings=warnings,
            best_effort=made,
        )

    def _checkpoint(
        self, student: ir.Model, samples: list[Any], context: Context, seconds: float
    ) -> Checkpoint:
        options: DistillOptions = self.options
        if options.cache == "none" or context.original is None:
            return Checkpoint()
        # Of the student only what its weights may not change: the same command may refit them to other last digits.
        shape = [
            (
                node.op_type,
                [value.name for value in node.outputs],
                [str(value.shape) for value in node.outputs],
            )
            for node in student.graph
        ]
        own = [(str(value.shape), zeros_of(value)) for value in student.graph.initializers.values()]
        recipe = replace(options, seconds=0.0, cache="")
        key = key_of(
            graph_key(context.original), shape, own, data_key(samples), recipe, context.seed, context.target
        )
        return Checkpoint(Path(options.cache) if options.cache else default_folder(), key, seconds)


def _loss(judgement: Judgement) -> tuple[float, float, float]:
    """Less is better: over the budget or not, what is lost, and what is between equal scores, noise."""
    return (max(judgement.drop - judgement.allowed, 0.0), 0.0 if judgement.ok else 1.0, -judgement.decibels)


__all__ = ["Distill", "DistillOptions"]
