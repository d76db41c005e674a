"""Makes two products of a model's layers by one share or another: looks at the data once, then splits and judges."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.data.interface import Feeds
from graphopt.ir import check, facts, shapes
from graphopt.ir import model as ir_model
from graphopt.lossy import Context
from graphopt.prune import costs, factors, moments
from graphopt.prune.bias import can_be_centred
from graphopt.prune.factors import Factors, Moments, Split
from graphopt.prune.ranks import SEEN, Choice, cheapest, milliseconds_at
from graphopt.prune.recover import Fit, Pair, Refit, behind
from graphopt.prune.reduced import Reduced, search, tried_of
from graphopt.prune.structure import Layer, layers_of
from graphopt.quant.observe import in_turns

_SHARE_OF_MEMORY = 0.5
_SENSITIVITY_SAMPLES = 8
_LEAST_SAVED = 0.1
"""Of a layer, by its multiplications and by its kernels' times: a second kernel reads and writes what is between."""
_PROBED = (0.25, 0.75)
"""Of the ranks that a layer may have: those at which its kernels are timed."""
_PRODUCTS = ("Conv", "MatMul", "Gemm")
_IN_SUBGRAPH = "it is part of a subgraph"
_NOTHING = {"saved_ms": None, "error_before": None, "error_after": None, "error_refitted": None}
_NOT_CHOSEN = "others save more time for what they lose"


@dataclass
class Factored(Reduced):
    """A model with layers that are two products.

    Attributes:
        ranks: Of these layers, by name.
        splits: What became of them.
        fits: What refitting did, by layer.
        hurried: What refitting did on fewer samples for lack of time, in words; empty where there was enough.
        skipped: Layers that could not be refitted, with the reason.
    """

    ranks: Mapping[str, int] = field(default_factory=dict)
    splits: Mapping[str, Split] = field(default_factory=dict)
    fits: Mapping[str, Fit] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)
    hurried: str = ""


class Factorizer:
    """A model, and the layers of it that may become two products.

    Args:
        model: Shapes are inferred. It stays as it is.
        samples: What layers read on them is looked at.
        context: Of the pass.
        recover: Whether weights are refitted.
        multiple: Widths that kernels like.
        kept: From a layer's name, whether it stays as it is.
    """

    def __init__(
        self,
        model: ir.Model,
        samples: Sequence[Feeds],
        context: Context,
        *,
        recover: bool,
        multiple: int,
        kept: Callable[[str], bool],
    ) -> None:
        self.model = model
        self.context = context
        self.multiple = multiple
        self.layers = layers_of(model.graph)
        self._recover = recover
        self._kept = kept
        self._refused: dict[str, str] = {}
        self._late: list[str] = []
        self._allowed: dict[str, tuple[int, ...]] = {}
        self._slow: dict[str, str] = {}
        self._ratios: dict[str, float] = {}
        self._all: list[Choice] = []
        self.notes: list[str] = []
        self.warnings: list[str] = []
        self.choices: list[Choice] = []
        self.times: dict[str, float] = {}
        self._inner = _inside(model)
        self._samples = samples
        if not self.layers:
            return
        self.macs = self._macs()
        self._whole = sum(self.macs.values()) or 1.0
        ranks = self._allowed
        for layer in self.layers:
            reason = "the option 'keep' names it" if kept(layer.name) else factors.why_not(layer)
            allowed = () if reason else self._ranks(layer)
            if allowed:
                ranks[layer.name] = allowed
            else:
                self._refused[layer.name] = reason or _too_small(layer, self._step(layer))
        self._factor()
        self.choices = self._weighed(self._timed())

    def _factor(self) -> None:
        """Factors of every layer that may have some, as far as there is time; those that are known are kept."""
        known = {choice.name: choice for choice in self._all}
        ranks = self._allowed
        found = self._factors(
            [layer for layer in self.layers if layer.name in ranks and layer.name not in known], ranks
        )
        made = {
            layer.name: Choice(
                layer, found[layer.name], own, self.macs[layer.name], np.zeros(len(own)), np.zeros(len(own))
            )
            for layer in self.layers
            if layer.name in found and (own := ranks[layer.name])
        }
        every = known | made
        self._all = [every[layer.name] for layer in self.layers if layer.name in every]

    @property
    def names(self) -> list[str]:
        """Of all layers."""
        return [layer.name for layer in self.layers]

    def for_target(self, context: Context) -> Factorizer:
        """The same for another target whose kernels like the same widths: what layers cost there is measured anew."""
        self.context, self.warnings = context, []
        late, self._late = self._late, []
        for name in late:
            del self._refused[name]
        if late:
            self._factor()
        if self._all:
            self.choices = self._weighed(self._timed())
        return self

    @property
    def refused(self) -> dict[str, str]:
        """Why layers stay as they are, by name."""
        return {**self._refused, **self._slow}

    @property
    def why_nothing(self) -> str:
        """Why no layer can become two products."""
        if not self.layers and self._inner:
            return f"{self._inner[0].name!r}: {_IN_SUBGRAPH}"
        if not self.layers:
            return "it holds no Conv, MatMul or Gemm with constant weights"
        refused = self.refused
        name = max(refused, key=lambda name: self.macs[name])
        return f"none of its layers can become two products; the largest, {name!r}: {refused[name]}"

    def _macs(self) -> dict[str, float]:
        """Multiplications of each layer in one sample."""
        places = costs.places(self.model, self.layers, self._samples[0], self.context.threads)
        return {
            layer.name: places[layer.name] * float(np.prod(facts.static_dims(layer.weight) or (0,)))
            for layer in self.layers
        }

    def _step(self, layer: Layer) -> int:
        """What ranks are multiples of: less in narrow layers."""
        full = factors.side(layer)
        for wanted in (self.multiple, self.multiple // 2, self.multiple // 4):
            if wanted > 1 and full >= 4 * wanted:
                return wanted
        return max(self.multiple // 4, 1)

    def _ranks(self, layer: Layer) -> tuple[int, ...]:
        """Ranks at which two products have fewer multiplications."""
        outputs, numbers = factors.sizes(layer)
        most = int((1 - _LEAST_SAVED) * outputs * numbers / (outputs + numbers))
        step = self._step(layer)
        return tuple(range(step, most + 1, step))

    def _factors(self, layers: Sequence[Layer], ranks: Mapping[str, Sequence[int]]) -> dict[str, Factors]:
        found: dict[str, Factors] = {}
        memory = max(int(_SHARE_OF_MEMORY * self.context.memory), 1 << 26)
        padding = self.context.evaluation.padding
        for turn in in_turns(layers, factors.nbytes, memory):
            self.context.progress(f"what {len(turn)} layers read")
            sums = {layer.name: Moments.of(layer) for layer in turn}
            seen = moments.read_by(self.model, turn, self._samples, self.context.threads, padding)
            for number, arrays in enumerate(seen):
                for layer in turn:
                    sums[layer.name].add(moments.rows_of(layer, arrays[layer.data.name or ""], number)[0])
            for layer in turn:
                if time.monotonic() > self.context.deadline:
                    self._refused[layer.name] = "no time was left"
                    self._late.append(layer.name)
                    continue
                self.context.progress(f"factors of layer {len(found) + 1} of {len(layers)}")
                made = factors.factorize(
                    sums.pop(layer.name), ranks[layer.name][-1], centred=can_be_centred(layer)
                )
                found[layer.name] = made
                if made.note:
                    self.notes.append(f"{layer.name}: cut off by its weight alone: {made.note}")
        if self.notes:
            self.warnings.append(
                f"{len(self.notes)} of {len(self.layers)} layers are cut off by their weights alone; the first: "
                f"{self.notes[0]}"
            )
        return found

    def _timed(self) -> list[Choice]:
        """With what each rank saves on the target, without the layers that are no faster at any."""
        self.times = costs.times(
            self.context, self.model, {layer.name: (layer.node,) for layer in self.layers}, "low-rank"
        )
        usual = self._alike(self.times)
        each = costs.per_multiplication(usual, self.macs)
        probes = [self._probe(share) for share in _PROBED] if usual and self._all else []
        found = []
        self._slow = {}
        for choice in self._all:
            whole = usual.get(choice.name, 0.0)
            measured = [
                (ranks[choice.name], times[choice.name]) for ranks, times in probes if choice.name in times
            ]
            left = np.asarray([choice.left(rank) for rank in choice.ranks])
            if whole and len(measured) == len(_PROBED):
                saved = whole - milliseconds_at(measured, choice.ranks)
            else:
                saved = each[choice.name] * (choice.macs - left)
            if saved.max() < _LEAST_SAVED * (whole or each[choice.name] * choice.macs):
                best = choice.ranks[int(saved.argmax())]
                self._slow[choice.name] = (
                    f"two products are no faster: {whole:.3f} ms, {whole - saved.max():.3f} at rank {best}"
                )
                continue
            found.append(replace(choice, saved=saved))
        return found

    def _probe(self, share: float) -> tuple[dict[str, int], dict[str, float]]:
        """All layers at this share of their ranks: the ranks, and the times of the kernels."""
        ranks = {
            choice.name: choice.ranks[int(share * (len(choice.ranks) - 1) + 0.5)] for choice in self._all
        }
        self.context.progress(f"times at {share:.0%} of the ranks")
        model, splits = self._split(ranks, self._all)
        return ranks, self._alike(costs.times(self.context, model, _nodes(splits), "low-rank"))

    def _alike(self, measured: Mapping[str, float]) -> dict[str, float]:
        """Layers of the same shape take the same time: the median of what was measured of them."""
        shapes_of = {
            layer.name: (layer.node.op_type, factors.sizes(layer), self.macs[layer.name])
            for layer in self.layers
            if layer.name in measured
        }
        groups: dict[Hashable, list[float]] = {}
        for name, shape in shapes_of.items():
            groups.setdefault(shape, []).append(measured[name])
        return {name: float(np.median(groups[shape])) for name, shape in shapes_of.items()}

    def _weighed(self, choices: Sequence[Choice]) -> list[Choice]:
        """With the noise that is expected in the model's outputs at each rank.

        Each layer alone, the largest first, is split at one rank to see what its loss does to the outputs; what it
        loses at other ranks is known.
        """
        new = [choice for choice in choices if choice.name not in self._ratios]
        new.sort(key=lambda choice: -choice.macs)
        noises = costs.noises(
            self.model, [functools.partial(self._alone, choice) for choice in new],
            self._samples[:_SENSITIVITY_SAMPLES], self.context, "layer",
        ) if new else []  # fmt: skip
        for choice, noise in zip(new, noises, strict=True):
            self._ratios[choice.name] = noise / max(choice.factors.lost[choice.middle], SEEN)
        unseen = sum(np.isnan(noise) for noise in noises)
        if unseen:
            self.warnings.append(
                f"there was no time to see what {unseen} of {len(noises)} layers do to the outputs: they count as the "
                "median of the others (--tune gives more)"
            )
        ratios = costs.known_or_usual([self._ratios[choice.name] for choice in choices])
        return [
            replace(choice, loss=choice.factors.lost[list(choice.ranks)] * ratio)
            for choice, ratio in zip(choices, ratios, strict=True)
        ]

    def _alone(self, choice: Choice) -> ir.Model:
        return self._split({choice.name: choice.middle}, [choice])[0]

    def _split(
        self, ranks: Mapping[str, int], choices: Sequence[Choice]
    ) -> tuple[ir.Model, dict[str, Split]]:
        """A copy with these layers as two products, and what became of each."""
        model = ir_model.clone(self.model)
        twins = {layer.name: layer for layer in layers_of(model.graph)}
        made = {
            choice.name: factors.split(model.graph, twins[choice.name], choice.factors, ranks[choice.name])
            for choice in choices
            if choice.name in ranks
        }
        return model, made

    def factored(self, *, ratio: float = 0.0, macs: float = 0.0) -> Factored | None:
        """The model without a share of the multiplications; None where that is nothing at all.

        Args:
            ratio: Of the layers that can become two products.
            macs: Of all layers.
        """
        ranks = cheapest(self.choices, (macs or ratio * self.able) * self._whole)
        return self._made(ranks) if ranks else None

    def search(self) -> list[Factored]:
        """As much as the budget allows."""
        seen: list[dict[str, int]] = []

        def attempt(share: float) -> Factored | None:
            ranks = cheapest(self.choices, share * self._whole)
            if not ranks or ranks in seen:
                return None
            seen.append(ranks)
            return self._made(ranks)

        return search(attempt, self.context.deadline, self.reachable, recovers=self.context.recovers)

    @property
    def able(self) -> float:
        """The share of the multiplications that is in layers that can become two products."""
        return sum(choice.macs for choice in self.choices) / self._whole

    @property
    def reachable(self) -> float:
        """The largest share of the multiplications that can be removed."""
        return sum(choice.gone(choice.ranks[0]) for choice in self.choices) / self._whole

    def _left(self, ranks: Mapping[str, int]) -> float:
        """Share of the multiplications."""
        gone = sum(choice.gone(ranks[choice.name]) for choice in self.choices if choice.name in ranks)
        return 1 - gone / self._whole

    def _made(self, ranks: Mapping[str, int]) -> Factored:
        left = self._left(ranks)
        label = f"low rank, {1 - left:.0%} of the multiplications gone"
        self.context.progress(label)
        model, splits = self._split(ranks, self.choices)
        shapes.infer(model)
        check.check(model)
        made = Factored(label, model, left, None, ranks, splits)
        if self._recover:
            self._refit(made)
            check.check(model)
        return replace(made, judgement=self.context.judged(model))

    def _refit(self, made: Factored) -> None:
        """New weights for the second products, and for all layers behind them: they make up for what is lost before."""
        context = self.context
        split = {id(layer.node) for layer in self.layers if layer.name in made.splits}
        changed = behind(self.model, lambda node: id(node) in split)
        twins = {layer.name: layer for layer in layers_of(made.model.graph)}
        pairs = []
        for layer in self.layers:
            own = made.splits.get(layer.name)
            if own is not None:
                pairs.append(Pair(layer, own.second, own.shift))
            elif layer.data in changed and len(layer.weight.uses()) == 1 and not self._kept(layer.name):
                pairs.append(Pair(layer, twins[layer.name]))
        refit = Refit(
            self.model, made.model, self._samples, context.threads, context.deadline,
            lambda text: context.progress(f"{made.label}: {text}"), shifts=can_be_centred, maker=factors.MAKER,
            padding=context.evaluation.padding,
        )  # fmt: skip
        refit.run(pairs)
        made.fits, made.skipped, made.hurried = refit.fits, refit.skipped, refit.hurried

    def details(self, chosen: Factored | None = None, tried: Sequence[Factored] = ()) -> dict[str, Any]:
        """For the report: plain JSON."""
        later: dict[str, float] = {}
        if chosen is not None:
            later = costs.times(self.context, chosen.model, _nodes(chosen.splits), "low-rank")
        able = {choice.name: choice for choice in self.choices}
        rows: list[dict[str, Any]] = [
            self._row(layer, able.get(layer.name), chosen, later) for layer in self.layers
        ]
        rows += [
            {
                "node": node.name, "op": node.op_type, "rank": None, "macs": None, **_NOTHING,
                "reason": _IN_SUBGRAPH,
            }
            for node in self._inner
        ]  # fmt: skip
        return {
            "multiple": self.multiple,
            "notes": self.notes,
            "macs_left": None if chosen is None else chosen.macs,
            "factored": rows,
            "tried": tried_of(tried),
        }

    def _row(
        self, layer: Layer, choice: Choice | None, chosen: Factored | None, later: Mapping[str, float]
    ) -> dict[str, Any]:
        name, full, macs = layer.name, factors.side(layer), self.macs[layer.name]
        row: dict[str, Any] = {
            "node": name,
            "op": layer.node.op_type,
            "rank": [full, full],
            "macs": [macs, macs],
            **_NOTHING,
        }
        fit = None if chosen is None else chosen.fits.get(name)
        row["error_refitted"] = None if fit is None else fit.after
        if choice is None or chosen is None or name not in chosen.ranks:
            return row | {"reason": self.refused.get(name, _NOT_CHOSEN)}
        rank = chosen.ranks[name]
        known = name in later and name in self.times
        return row | {
            "rank": [full, rank],
            "macs": [macs, choice.left(rank)],
            "saved_ms": self.times[name] - later[name] if known else None,
            "error_before": float(choice.factors.plain[rank]),
            "error_after": float(choice.factors.lost[rank]),
            "reason": choice.factors.note or chosen.skipped.get(name, ""),
        }


def _nodes(splits: Mapping[str, Split]) -> dict[str, tuple[ir.Node, ...]]:
    return {name: split.nodes for name, split in splits.items()}


def _too_small(layer: Layer, step: int) -> str:
    outputs, numbers = factors.sizes(layer)
    return (
        f"too small: {outputs} outputs of {numbers} numbers each are multiplied no faster at a rank of {step}"
    )


def _inside(model: ir.Model) -> list[ir.Node]:
    """Products with constant weights in bodies of If and Loop, which no data is seen of."""
    return [
        node
        for node in model.graph.all_nodes()
        if node.graph is not model.graph
        and node.op_type in _PRODUCTS
        and len(node.inputs) > 1
        and facts.is_constant(node.inputs[1])
    ]


__all__ = ["Factored", "Factorizer"]
