"""Prunes one model by one share or another: ranks once, removes, refits, judges."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.data.interface import Feeds
from graphopt.errors import GraphoptError
from graphopt.ir import check, facts, shapes
from graphopt.ir import model as ir_model
from graphopt.ir.facts import Array
from graphopt.lossy import Context
from graphopt.prune import choose, costs
from graphopt.prune.cut import Keep, cut
from graphopt.prune.details import WIDTHS_STAY, Outcome, why_no_more
from graphopt.prune.recover import Fit, Recovery, kept_apart
from graphopt.prune.reduced import Reduced, search, tried_of
from graphopt.prune.score import Criterion, scores
from graphopt.prune.structure import Structure, analyse, layers_of, name_of, recurrent_of, separate
from graphopt.verify.agreement import noise_share
from graphopt.verify.session import Session

_SHARE_OF_MEMORY = 0.5
_SHARE_FOR_GRADIENTS = 0.2
_SENSITIVITY_SAMPLES = 8
_COMPARED_SAMPLES = 16
_SHARES = (0.125, 0.25, 0.375, 0.5, 0.75)
_PROBED = 0.25
_CAP = 1.5
"""Times the share that all groups alike would lose, that one of them may: small losses say little of large ones."""
_REFITTING = 2.0
"""Times what ranking takes: two models are run where one was, and each layer is solved several times."""
_REACHED = 0.005
"""What may be missing of a share."""

_LEAST_SAMPLES, _MOST_SAMPLES = 128, 512
_SHARE_FOR_SAMPLES = 0.2
"""Of the time that is left, for running those beyond the least."""
_RUNS = 6
"""How often a sample is run about, by the original and by the pruned model."""


@dataclass
class Pruned(Reduced):
    """A pruned model.

    Attributes:
        removed: Classes.
        fits: What recovery did, by layer.
        skipped: Layers that could not be refitted, with the reason.
        hurried: What refitting did on fewer samples for lack of time, in words; empty where there was enough.
    """

    removed: frozenset[int] = frozenset()
    fits: Mapping[str, Fit] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)
    hurried: str = ""


class Pruner:
    """A model, and what may be removed from it.

    Args:
        model: Shapes are inferred.
        samples: To rank and to refit on.
        context: Of the pass.
        criterion: What channels are ranked by.
        recover: Whether weights are refitted.
        multiple: Widths that kernels like.
        kept: From a layer's name, whether its outputs stay.
        uniform: Whether every group loses the same share, so that nothing need be known of their sensitivity.

    Attributes:
        choices: What may be removed of each group; none where nothing may be.
        times: Milliseconds of each layer on the target.
        notes: Layers that are ranked by another criterion, with the reason.
        unmeasured: Groups whose sensitivity was not measured, in words; empty where there was time for all.
    """

    def __init__(
        self,
        model: ir.Model,
        samples: Sequence[Feeds],
        context: Context,
        *,
        criterion: Criterion,
        recover: bool,
        multiple: int,
        kept: Callable[[str], bool],
        uniform: bool = False,
    ) -> None:
        self.model = separate(model)
        self.context = context
        self.multiple = multiple
        self.criterion = criterion
        self.structure: Structure = analyse(self.model)
        self.notes: list[str] = []
        self.names = [node.name or node.op_type for node in self.model.graph]
        self.unmeasured = ""
        self._recover = recover
        self._uniform = uniform
        self._samples = samples
        self._named = {
            name: self.structure.outputs_of(node)
            for name, node in zip(self.names, self.model.graph, strict=True)
            if kept(name)
        }
        self._kept = frozenset(one for classes in self._named.values() for one in classes)
        groups = [group for group in self.structure.groups if not self._kept.issuperset(group.classes)]
        self.choices: list[choose.Choice] = []
        self.times: dict[str, float] = {}
        self._others: list[tuple[ir.Node, float]] = []
        self._slowest_first: bool | None = None
        if not groups:
            return
        self._memory = max(int(_SHARE_OF_MEMORY * context.memory), 1 << 26)
        context.progress("ranking channels")
        started = time.monotonic()
        self._ranking = scores(
            self.model, self.structure, samples, criterion, memory=self._memory, threads=context.threads,
            seed=context.seed, seconds=_SHARE_FOR_GRADIENTS * max(context.deadline - time.monotonic(), 0.0),
            padding=context.evaluation.padding, progress=context.progress,
        )  # fmt: skip
        self.notes += self._ranking.notes
        ranking = time.monotonic() - started
        self.places = costs.places(
            self.model, self.structure.layers, samples[0], context.threads, self.structure.recurrent
        )
        self._macs = choose.macs(self.structure, self.places)
        self._whole = sum(self._macs.values()) or 1.0
        self._measure()
        found = choose.choices(self.structure, self._ranking.scores, multiple, groups, self._kept)
        self.choices = found if uniform else self._weighed(found, _REFITTING * ranking if recover else 0.0)

    def _weighed(self, found: Sequence[choose.Choice], reserved: float) -> list[choose.Choice]:
        """With the noise that is expected in the model's outputs for each number of units.

        A share of each group alone is removed and refitted to see what its loss does to the outputs; what other shares
        lose is known from second moments. Groups that would save most come first, in case the time ends.

        Args:
            reserved: Seconds that are to be left.
        """
        each = costs.per_multiplication(self.times, self._macs)
        gains = [self._saved(choice.removed(len(choice.units)), each) for choice in found]
        order = sorted(range(len(found)), key=lambda index: -gains[index])
        curves = [self._curve(choice) for choice in found]
        ends = [choice.rounded(_PROBED) or choice.step for choice in found]
        noises = costs.noises(
            self.model, [functools.partial(self._alone, found[index], ends[index]) for index in order],
            self._samples[:_SENSITIVITY_SAMPLES], self.context, "group", reserved,
        )  # fmt: skip
        ratios = [float("nan")] * len(found)
        for index, noise in zip(order, noises, strict=True):
            ratios[index] = noise / max(curves[index][ends[index]], 1e-12)
        unseen = sum(np.isnan(noise) for noise in noises)
        self.unmeasured = f"{unseen} of {len(found)} groups" if unseen else ""
        return [
            replace(choice, loss=curve * ratio)
            for choice, curve, ratio in zip(found, curves, costs.known_or_usual(ratios), strict=True)
        ]

    def _curve(self, choice: choose.Choice) -> Array:
        """What the layers that read a group lose without the first so many units, by second moments."""
        ends = sorted({choice.rounded(share) or choice.step for share in _SHARES} | {choice.most})
        losses = self._ranking.losses([unit.classes for unit in choice.units], choice.group.readers)
        return np.interp(np.arange(len(losses)), [0, *ends], losses[[0, *ends]])

    def _alone(self, choice: choose.Choice, count: int) -> ir.Model:
        """The model without so many units of one group, what reads them refitted."""
        removed = choice.removed(count)
        model = ir_model.clone(self.model)
        keep = self.structure.keeper(removed)
        for layer in choice.group.readers:
            weight = self._ranking.refitted(removed, layer)
            if weight is None:
                mask = keep(layer.data, layer.channel)
                content = facts.constant(layer.weight)
                if mask is None or content is None or layer.groups > 1:
                    continue
                weight = content.copy()
                weight[(slice(None),) * layer.inner + (~mask,)] = 0
            value = model.graph.initializers[layer.weight.name or ""]
            value.const_value = ir.tensor(weight, name=value.name)
        for constant, classes in self.structure.read_by_recurrent():
            content = facts.constant(constant)
            assert content is not None
            value = model.graph.initializers[constant.name or ""]
            kept = np.where(np.isin(classes, removed), 0, content).astype(content.dtype)
            value.const_value = ir.tensor(kept, name=value.name)
        return model

    def for_target(self, context: Context) -> Pruner:
        """The same for another target whose kernels like the same widths: what layers cost there is measured anew."""
        self.context = context
        self._slowest_first = None
        if self.choices:
            self._measure()
        return self

    @property
    def why_nothing(self) -> str:
        """Why nothing can be removed."""
        if not self.structure.layers:
            return "it holds no Conv, MatMul or Gemm with constant weights"
        if self._kept and not self.choices:
            return "the option 'keep' names every layer that could lose channels"
        refused = self.structure.refused
        if refused:
            name, reason = next(iter(refused.items()))
            return f"none of its layers can lose channels; {name!r}: {reason}"
        return "its layers are too narrow to lose channels"

    def pruned(self, *, ratio: float = 0.0, macs: float = 0.0) -> Pruned | None:
        """The model without a share of its channels, or of its multiplications; None where that is nothing at all."""
        removed = self._removed(ratio, macs)
        return self._made(removed) if removed else None

    def unreached(self, *, ratio: float = 0.0, macs: float = 0.0) -> str:
        """What cannot be had of the share that is asked for, and why; empty where all of it can."""
        every = choose.uniform(self.choices, 1.0)
        if macs:
            most, what = 1 - self._left(every), "the multiplications"
        else:
            taken = sum(int(choice.taken[choice.most]) for choice in self.choices)
            most = taken / sum(len(choice.group.classes) for choice in self.choices)
            what = "the channels of each group"
        if most > max(macs, ratio) - _REACHED:
            return ""
        left = choose.macs(self.structure, self.places, every)
        why = why_no_more(self.structure, self._named, left) if macs else WIDTHS_STAY
        return f"asked for {max(macs, ratio):.0%} of {what}, {most:.0%} is the most: {why}"

    def _removed(self, ratio: float, macs: float) -> frozenset[int]:
        wanted = self._alike(ratio, macs) if self._uniform else self._by_loss(ratio, macs)
        return choose.spared(self.structure, self._ranking.scores, self.choices, wanted)

    def search(self) -> list[Pruned]:
        """As much as the budget allows: by bisection, as long as there is time, and until something holds."""
        seen: set[frozenset[int]] = set()

        def attempt(share: float) -> Pruned | None:
            removed = self._removed(0.0, share)
            if not removed or removed in seen:
                return None
            seen.add(removed)
            return self._made(removed)

        return search(attempt, self.context.deadline, recovers=self.context.recovers)

    def _alike(self, ratio: float, macs: float) -> set[int]:
        """The same share of every group."""
        return choose.uniform(self.choices, self._share(macs) if macs else ratio)

    def _by_loss(self, ratio: float, macs: float) -> set[int]:
        """What costs least for the multiplications it saves, until enough are saved."""
        wanted = macs or 1 - self._left_alike(ratio)
        each = costs.per_multiplication(self.times, self._macs)
        gain = {
            choice.group.name: self._saved(choice.removed(len(choice.units)), each) for choice in self.choices
        }
        per_work = {
            choice.group.name: gain[choice.group.name] / max(self._work(choice), 1.0)
            for choice in self.choices
        }
        capped = min(1.0, _CAP * _smallest(lambda share: 1 - self._left_alike(share) >= wanted))

        def removed(slowest_first: bool) -> set[int]:
            order = per_work if slowest_first else None
            return self._until_enough(wanted, choose.cheapest_first(self.choices, gain, capped, order))

        if self._slowest_first is None:
            # What kernels make of other widths is no matter of their multiplications alone.
            slowest, plain = removed(True), removed(False)
            self._slowest_first = slowest == plain or self._milliseconds(slowest) <= self._milliseconds(plain)
            return slowest if self._slowest_first else plain
        return removed(self._slowest_first)

    def _until_enough(self, wanted: float, steps: Sequence[tuple[int, int]]) -> set[int]:
        """The first of these steps that save enough multiplications, as far as they are needed for that."""
        counts, taken = [0] * len(self.choices), []

        def is_enough() -> bool:
            return 1 - self._left(choose.all_removed(self.choices, counts)) > wanted - _REACHED

        for index, end in steps:
            if is_enough():
                break
            counts[index] = end
            taken.append(index)
        # The last steps may have brought more than was wanted: dear ones that can be spared are given back.
        for index in reversed(taken):
            counts[index] -= self.choices[index].step
            if not is_enough():
                counts[index] += self.choices[index].step
        return choose.all_removed(self.choices, counts)

    def _milliseconds(self, removed: set[int]) -> float:
        """Of all kernels without some classes; infinite where that cannot be measured."""
        if not self.context.runnable:
            return float("inf")
        spared = choose.spared(self.structure, self._ranking.scores, self.choices, removed)
        model = cut(self.model, self.structure, spared)
        try:
            shapes.infer(model)
            return sum(kernel.milliseconds for kernel in self.context.profile(model, "pruned"))
        except GraphoptError:
            return float("inf")

    def _saved(self, removed: Iterable[int], each: Mapping[str, float]) -> float:
        """Milliseconds that are saved without some classes: those of layers go with their multiplications, those of all
        other nodes with the elements that they make."""
        removed = list(removed)
        after = choose.macs(self.structure, self.places, removed)
        keep = self.structure.keeper(removed)
        of_layers = sum((whole - after[name]) * each[name] for name, whole in self._macs.items())
        return of_layers + sum(
            milliseconds * (1 - float(np.mean([_left_of(value, keep) for value in node.outputs])))
            for node, milliseconds in self._others
        )

    def _work(self, choice: choose.Choice) -> float:
        """Multiplications that go with all units of a group."""
        return self._whole * (1 - self._left(choice.removed(len(choice.units))))

    def _share(self, macs: float) -> float:
        """The share of every group that saves so many multiplications, with the widths that kernels like."""
        return _smallest(lambda share: 1 - self._left(choose.uniform(self.choices, share)) >= macs)

    def _left_alike(self, share: float) -> float:
        """What is left of the multiplications without a share of every group, whatever widths kernels like."""
        return choose.macs_alike(self.structure, self.places, self.choices, share) / self._whole

    def _left(self, removed: set[int] | list[int]) -> float:
        return sum(choose.macs(self.structure, self.places, removed).values()) / self._whole

    def _made(self, removed: frozenset[int]) -> Pruned:
        context = self.context
        left = self._left(set(removed))
        label = f"pruned, {1 - left:.0%} of the multiplications gone"
        context.progress(label)
        model = cut(self.model, self.structure, removed)
        shapes.infer(model)
        check.check(model)
        fits: dict[str, Fit] = {}
        skipped: dict[str, str] = {}
        hurried = ""
        if self._recover:
            plain = ir_model.clone(model)
            recovery = Recovery(
                self.model, self.structure, removed, model, self._samples, context.threads,
                context.deadline, lambda text: context.progress(f"{label}: {text}"),
                context.evaluation.padding,
            )  # fmt: skip
            recovery.run()
            fits, skipped, hurried = recovery.fits, recovery.skipped, recovery.hurried
            check.check(model)
            if not self._is_nearer(model, plain):
                reason = "refitted layers together bring the outputs no nearer to the original's"
                model, fits, skipped, hurried = plain, {}, dict.fromkeys(fits, reason) | skipped, ""
        return Pruned(label, model, left, context.judged(model), removed, fits, skipped, hurried)

    def _is_nearer(self, refitted: ir.Model, plain: ir.Model) -> bool:
        """Whether refitting does good at the outputs too, on samples that were kept apart from it."""
        samples = (kept_apart(self._samples) or self._samples)[:_COMPARED_SAMPLES]
        wanted, after, before = (
            [self.context.evaluation.counted(feeds, session.run(feeds)) for feeds in samples]
            for session in (
                Session(model, optimize="all", threads=self.context.threads)
                for model in (self.model, refitted, plain)
            )
        )
        return noise_share(after, wanted) <= noise_share(before, wanted)

    def _measure(self) -> None:
        self.times, self._others = self._times(self.model)

    def _times(self, model: ir.Model) -> tuple[dict[str, float], list[tuple[ir.Node, float]]]:
        nodes = {layer.name: (layer.node,) for layer in layers_of(model.graph)}
        nodes |= {name_of(node): (node,) for node in recurrent_of(model.graph)}
        return costs.all_times(self.context, model, nodes, "pruned")

    def details(self, chosen: Pruned | None = None, judged: Sequence[Pruned] = ()) -> dict[str, Any]:
        """For the report: plain JSON."""
        removed = frozenset() if chosen is None else chosen.removed
        outcome = Outcome(
            self.structure,
            self.choices,
            removed,
            self._named,
            self._uniform,
            (self._macs, choose.macs(self.structure, self.places, removed)) if self.choices else ({}, {}),
            (self.times, self._times(chosen.model)[0]) if chosen is not None else ({}, {}),
            {} if chosen is None else chosen.fits,
            {} if chosen is None else chosen.skipped,
        )
        return {
            "criterion": self.criterion,
            "multiple": self.multiple,
            "notes": self.notes,
            "unmeasured": self.unmeasured,
            "hurried": "" if chosen is None else chosen.hurried,
            "macs_left": None if chosen is None else chosen.macs,
            "pruned": outcome.rows(),
            "tried": tried_of(judged),
        }


def _smallest(is_enough: Callable[[float], bool]) -> float:
    """The smallest share from 0 to 1 that is enough, to a few thousandths."""
    low, high = 0.0, 1.0
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return high


def _left_of(value: ir.Value, keep: Keep) -> float:
    """The share of a value's elements that are left."""
    return choose.left_of(keep(value, axis) for axis in range(facts.rank(value) or 0))


def samples_for(model: ir.Model, context: Context, wanted: int) -> list[Feeds]:
    """Samples to rank and to refit on.

    Args:
        wanted: How many at most; 0 for 128, or up to 512 as far as there is time. A layer behind a mean over all places
            sees no more of a sample than one row, and fits to what is peculiar to these where they are few.
    """
    found = list(context.dataset.calibration(wanted or _LEAST_SAMPLES))
    if wanted or len(found) < _LEAST_SAMPLES:
        return found
    session = Session(model, optimize="all", threads=context.threads)
    session.run(found[0])
    started = time.monotonic()
    session.run(found[0])
    now = time.monotonic()
    affordable = _SHARE_FOR_SAMPLES * max(context.deadline - now, 0.0) / (_RUNS * max(now - started, 1e-6))
    most = int(min(affordable, _MOST_SAMPLES))
    return list(context.dataset.calibration(most)) if most > len(found) else found


__all__ = ["Pruned", "Pruner", "samples_for"]
