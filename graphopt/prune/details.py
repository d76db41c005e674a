"""What pruning did, layer by layer, and why some layers lost nothing: for the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from graphopt.ir import facts
from graphopt.prune.choose import Choice
from graphopt.prune.labels import PINNED
from graphopt.prune.recover import Fit
from graphopt.prune.structure import Layer, Structure, recurrent_units

WIDTHS_STAY = "a tenth of each group of channels stays, and widths that kernels like"


@dataclass(frozen=True)
class Outcome:
    """One way of pruning a graph.

    Attributes:
        structure: Of the graph as it was.
        choices: What could be removed.
        removed: Classes that were.
        named: Layers that the user kept, with the classes of their outputs.
        uniform: Whether every group was to lose the same share.
        macs: Multiplications of each layer before and after.
        times: Milliseconds of each layer before and after, as far as they were measured.
        fits: What recovery did.
        skipped: Layers that could not be refitted, with the reason.
    """

    structure: Structure
    choices: Sequence[Choice]
    removed: frozenset[int]
    named: Mapping[str, frozenset[int]]
    uniform: bool
    macs: tuple[Mapping[str, float], Mapping[str, float]]
    times: tuple[Mapping[str, float], Mapping[str, float]]
    fits: Mapping[str, Fit]
    skipped: Mapping[str, str]

    def rows(self) -> list[dict[str, Any]]:
        """One for each layer, in order, recurrent ones last: plain JSON.

        ``channels``, ``macs``: before and after. ``error_before``, ``error_after``: of the layer's outputs with what is
        added to them, relative to the outputs, with the old weights and with the new ones. ``reason``: why it lost no
        channel. ``not_refitted``: why its weights are the old ones, where it reads fewer channels.
        """
        keep = self.structure.keeper(self.removed)
        found = []
        for layer in self.structure.layers:
            dims = facts.static_dims(layer.weight) or ()
            width = dims[layer.out] if dims else 0
            mask = keep(layer.weight, layer.out)
            fit = self.fits.get(layer.name)
            before, after = (times.get(layer.name) for times in self.times)
            found.append(
                {
                    "node": layer.name,
                    "op": layer.node.op_type,
                    "channels": [width, width if mask is None else int(mask.sum())],
                    "macs": [macs.get(layer.name) for macs in self.macs],
                    "saved_ms": None if before is None or after is None else before - after,
                    "error_before": None if fit is None else fit.before,
                    "error_after": None if fit is None else fit.after,
                    "reason": "" if mask is not None else self._why_kept(layer),
                    "not_refitted": self.skipped.get(layer.name, ""),
                }
            )
        return found + self._recurrent()

    def _recurrent(self) -> list[dict[str, Any]]:
        found = []
        for name, (op, classes) in recurrent_units(self.structure).items():
            left = int((~np.isin(classes, list(self.removed))).sum())
            before, after = (times.get(name) for times in self.times)
            found.append(
                {
                    "node": name,
                    "op": op,
                    "channels": [len(classes), left],
                    "macs": [macs.get(name) for macs in self.macs],
                    "saved_ms": None if before is None or after is None else before - after,
                    "error_before": None,
                    "error_after": None,
                    "reason": "" if left < len(classes) else self._why_these_stay(name, classes.tolist()),
                    "not_refitted": "recurrent layers are not refitted" if left < len(classes) else "",
                }
            )
        return found

    def _why_kept(self, layer: Layer) -> str:
        if layer.name in self.structure.refused:
            return self.structure.refused[layer.name]
        classes = self.structure.class_of(layer.weight, layer.out)
        own = [] if classes is None else classes[classes != PINNED].tolist()
        return self._why_these_stay(layer.name, own)

    def _why_these_stay(self, name: str, classes: Sequence[int]) -> str:
        """Why nothing of some channels was removed although nothing in the graph prevents it."""
        if not classes:
            return "nothing of it may be removed"
        if name in self.named:
            return "the option 'keep' names it"
        for other, kept in self.named.items():
            if kept.issuperset(classes):
                return f"its channels go with those of {other!r}, which the option 'keep' names"
        own = frozenset(classes)
        choice = next(
            (one for one in self.choices if any(not own.isdisjoint(unit.classes) for unit in one.units)), None
        )
        if choice is None:
            return f"{len(classes)} channels: too few to lose any at widths that kernels like"
        if not self.removed:
            return "nothing was removed at all"
        if self.uniform:
            return f"its share is less than the {choice.step} that go at a time"
        return "others lose less for the time that is saved"


def why_no_more(structure: Structure, named: Mapping[str, frozenset[int]], left: Mapping[str, float]) -> str:
    """What holds most of the multiplications that are left where as much as possible is removed.

    Args:
        left: Multiplications of each layer then.
    """
    whole = sum(left.values()) or 1.0
    fixed = {
        layer.name: left.get(layer.name, 0.0)
        for layer in structure.layers
        if layer.name in structure.refused or layer.name in named
    }
    share = sum(fixed.values()) / whole
    if share < 0.5:
        return WIDTHS_STAY
    first = max(fixed, key=lambda name: fixed[name])
    why = structure.refused.get(first) or "the option 'keep' names it"
    return f"{share:.0%} of what is left are layers that cannot lose channels, most of it {first!r} ({why})"


__all__ = ["WIDTHS_STAY", "Outcome", "why_no_more"]
