"""Prunes one model by one share or another: ranks once, removes, refits, judges."""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.data.interface import Feeds
from graphopt.ir import check, facts, shapes
from graphopt.ir import model as ir_model
from graphopt.ir.facts import Array
from graphopt.lossy import Context
from graphopt.prune import choose, costs
from graphopt.prune.cut import cut
from graphopt.prune.recover import Fit, Recovery, kept_apart
from graphopt.prune.reduced import Reduced, search, tried_of
from graphopt.prune.score import Criterion, scores
from graphopt.prune.structure import Structure, analyse, separate
from graphopt.verify.budget import noise_share
from graphopt.verify.session import Session

_SHARE_OF_MEMORY = 0.5
_SHARE_FOR_GRADIENTS = 0.2
_SENSITIVITY_SAMPLES = 8
_COMPARED_SAMPLES = 16
_SHARES = (0.125, 0.25, 0.375, 0.5, 0.75)
_PROBED = 0.25
_CAP = 1.5
"""Times the share that all groups alike would lose, that one of them may: small losses say little of large ones."""

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
    """

    removed: frozenset[int] = frozenset()
    fits: Mapping[str, Fit] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)


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
    ) -> None:
        self.model = separate(model)
        self.context = context
        self.multiple = multiple
        self.criterion = criterion
        self.structure: Structure = analyse(self.model)
        self.notes: list[str] = []
        self.names = [node.name or node.op_type for node in self.model.graph]
        self._recover = recover
        self._samples = samples
        named = [node for node in self.model.graph if kept(node.name or node.op_type)]
        self._kept = frozenset(one for node in named for one in self.structure.outputs_of(node))
        groups = [group for group in self.structure.groups if not self._kept.issuperset(group.classes)]
        self.choices: list[choose.Choice] = []
        self.times: dict[str, float] = {}
        if not groups:
            return
        self._memory = max(int(_SHARE_OF_MEMORY * context.memory), 1 << 26)
        context.progress("ranking channels")
        self._ranking = scores(
            self.model, self.structure, samples, criterion, memory=self._memory, threads=context.threads,
            seed=context.seed, seconds=_SHARE_FOR_GRADIENTS * max(context.deadline - time.monotonic(), 0.0),
            progress=context.progress,
        )  # fmt: skip
        self.notes += self._ranking.notes
        self.places = costs.places(self.model, self.structure.layers, samples[0], context.threads)
        self._macs = choose.macs(self.structure, self.places)
        self._whole = sum(self._macs.values()) or 1.0
        self.times = self._times(self.model)
        found = choose.choices(self.structure, self._ranking.scores, multiple, groups, self._kept)
        self.choices = self._weighed(found)

    def _weighed(self, found: Sequence[choose.Choice]) -> list[choose.Choice]:
        """With the noise that is expected in the model's outputs for each number of units.

        A share of each group alone is removed and refitted to see what its loss does to the outputs; what other shares
        lose is known from second moments.
        """
        curves: list[Array] = []
        probed: list[tuple[choose.Choice, int]] = []
        for choice in found:
            ends = sorted({choice.rounded(share) or choice.step for share in _SHARES} | {choice.most})
            losses = [self._ranking.loss(choice.removed(end), choice.group.readers) for end in ends]
            curves.append(np.interp(np.arange(len(choice.units) + 1), [0, *ends], [0.0, *losses]))
            probed.append((choice, choice.rounded(_PROBED) or choice.step))
        noises = costs.noises(
            self.model, [functools.partial(self._alone, choice, end) for choice, end in probed],
            self._samples[:_SENSITIVITY_SAMPLES], self.context, "group",
        )  # fmt: skip
        ratios = [
            noise / max(curve[end], 1e-12)
            for noise, curve, (_, end) in zip(noises, curves, probed, strict=True)
        ]
        return [
            replace(choice, loss=curve * ratio)
            for choice, curve, ratio in zip(found, curves, costs.known_or_usual(ratios), strict=True)
        ]

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
        if self.choices:
            self.times = self._times(self.model)
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

    def pruned(self, *, ratio: float = 0.0, macs: float = 0.0, uniform: bool) -> Pruned | None:
        """The model without a share of its channels, or of its multiplications; None where that is nothing at all."""
        removed = self._removed(ratio, macs, uniform=uniform)
        return self._made(removed) if removed else None

    def _removed(self, ratio: float, macs: float, *, uniform: bool) -> frozenset[int]:
        wanted = self._uniform(ratio, macs) if uniform else self._by_loss(ratio, macs)
        return choose.spared(self.structure, self._ranking.scores, self.choices, wanted)

    def search(self, *, uniform: bool) -> list[Pruned]:
        """As much as the budget allows: by bisection, as long as there is time, and until something holds."""
        seen: set[frozenset[int]] = set()

        def attempt(share: float) -> Pruned | None:
            removed = self._removed(0.0, share, uniform=uniform)
            if not removed or removed in seen:
                return None
            seen.add(removed)
            return self._made(removed)

        return search(attempt, self.context.deadline, recovers=self.context.recovers)

    def _uniform(self, ratio: float, macs: float) -> set[int]:
        """The same share of every group."""
        return choose.uniform(self.choices, self._share(macs) if macs else ratio)

    def _by_loss(self, ratio: float, macs: float) -> set[int]:
        """What costs least for the multiplications it saves, until enough are saved."""
        wanted = macs or 1 - self._left(choose.uniform(self.choices, ratio))
        each = costs.per_multiplication(self.times, self._macs)
        gain = {
            choice.group.name: self._saved(choice.removed(len(choice.units)), each) for choice in self.choices
        }
        capped = min(1.0, _CAP * self._share(wanted))
        counts, taken = [0] * len(self.choices), []

        def is_enough() -> bool:
            return 1 - self._left(choose.all_removed(self.choices, counts)) >= wanted

        for index, end in choose.cheapest_first(self.choices, gain, capped):
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

    def _saved(self, removed: Iterable[int], each: Mapping[str, float]) -> float:
        """Milliseconds that are saved without some classes, as far as they go with the multiplications."""
        after = choose.macs(self.structure, self.places, removed)
        return sum((whole - after[name]) * each[name] for name, whole in self._macs.items())

    def _share(self, macs: float) -> float:
        """The share of every group that saves so many multiplications."""
        low, high = 0.0, 1.0
        for _ in range(12):
            middle = (low + high) / 2
            enough = 1 - self._left(choose.uniform(self.choices, middle)) >= macs
            low, high = (low, middle) if enough else (middle, high)
        return high

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
        if self._recover:
            plain = ir_model.clone(model)
            recovery = Recovery(
                self.model, self.structure, removed, model, self._samples, context.threads,
                context.deadline, lambda text: context.progress(f"{label}: {text}"),
            )  # fmt: skip
            recovery.run()
            fits, skipped = recovery.fits, recovery.skipped
            check.check(model)
            if not self._is_nearer(model, plain):
                reason = "refitted layers together bring the outputs no nearer to the original's"
                model, fits, skipped = plain, {}, dict.fromkeys(fits, reason) | skipped
        return Pruned(label, model, left, context.judged(model), removed, fits, skipped)

    def _is_nearer(self, refitted: ir.Model, plain: ir.Model) -> bool:
        """Whether refitting does good at the outputs too, on samples that were kept apart from it."""
        samples = (kept_apart(self._samples) or self._samples)[:_COMPARED_SAMPLES]
        wanted, after, before = (
            [session.run(feeds) for feeds in samples]
            for session in (
                Session(model, optimize="all", threads=self.context.threads)
                for model in (self.model, refitted, plain)
            )
        )
        return noise_share(after, wanted) <= noise_share(before, wanted)

    def _times(self, model: ir.Model) -> dict[str, float]:
        nodes = {layer.name: (layer.node,) for layer in self.structure.layers}
        return costs.times(self.context, model, nodes, "pruned")

    def details(self, chosen: Pruned | None = None, tried: Sequence[Pruned] = ()) -> dict[str, Any]:
        """For the report: plain JSON."""
        removed = frozenset() if chosen is None else chosen.removed
        keep = self.structure.keeper(removed)
        layers = []
        later = self._times(chosen.model) if chosen is not None else {}
        before = self._macs if self.choices else {}
        after = choose.macs(self.structure, self.places, removed) if self.choices else {}
        for layer in self.structure.layers:
            dims = facts.static_dims(layer.weight) or ()
            mask = keep(layer.weight, layer.out)
            fit = None if chosen is None else chosen.fits.get(layer.name)
            width = dims[layer.out] if dims else 0
            layers.append(
                {
                    "node": layer.name,
                    "op": layer.node.op_type,
                    "channels": [width, width if mask is None else int(mask.sum())],
                    "macs": [before.get(layer.name), after.get(layer.name)],
                    "saved_ms": self.times[layer.name] - later[layer.name]
                    if layer.name in later and layer.name in self.times
                    else None,
                    "error_before": None if fit is None else fit.before,
                    "error_after": None if fit is None else fit.after,
                    "reason": self.structure.refused.get(layer.name, "")
                    or ("" if chosen is None else chosen.skipped.get(layer.name, "")),
                }
            )
        return {
            "criterion": self.criterion,
            "multiple": self.multiple,
            "notes": self.notes,
            "macs_left": None if chosen is None else chosen.macs,
            "pruned": layers,
            "tried": tried_of(tried),
        }


def samples_for(model: ir.Model, context: Context, wanted: int) -> list[Feeds]:
    """Samples to rank and to refit on.

    Args:
        wanted: How many at most; 0 for 128, or up to 512 as far as there is time. A layer behind a mean over all places
            sees no more of a sample than one row, and fits to what is peculiar to these where they are few.
    """
    given = iter(context.dataset.calibration())
    found = list(itertools.islice(given, wanted or _LEAST_SAMPLES))
    if wanted or len(found) < _LEAST_SAMPLES:
        return found
    session = Session(model, optimize="all", threads=context.threads)
    session.run(found[0])
    started = time.monotonic()
    session.run(found[0])
    now = time.monotonic()
    affordable = _SHARE_FOR_SAMPLES * max(context.deadline - now, 0.0) / (_RUNS * max(now - started, 1e-6))
    return found + list(itertools.islice(given, max(int(min(affordable, _MOST_SAMPLES)) - len(found), 0)))


__all__ = ["Pruned", "Pruner", "samples_for"]
