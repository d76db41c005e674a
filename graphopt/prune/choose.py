"""Which classes are removed: units that may go one by one, the cheapest first, to widths that kernels like."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.ir import facts
from graphopt.ir.facts import Array
from graphopt.prune.labels import Indices
from graphopt.prune.structure import RECURRENT_AXIS, Group, Mask, R, Structure, W, name_of

_LEAST_KEPT = 0.1
"""Of a group, however little it seems to matter."""
_NOTHING = 1e-12
"""Noise power over signal power that is rounding (float32)."""


@dataclass(frozen=True)
class Unit:
    """Classes that go together.

    Attributes:
        classes: More than one where groups of a convolution have to lose as many as each other.
        score: What is lost with it.
    """

    classes: tuple[int, ...]
    score: float


@dataclass(frozen=True)
class Choice:
    """A group with its units, the least important one first.

    Attributes:
        group: The group.
        units: What may be removed.
        step: Units that are removed at a time, so that the width stays a multiple of what kernels like.
        loss: What is lost without the first so many units.
        taken: Classes of the group that are among the first so many units.
    """

    group: Group
    units: tuple[Unit, ...]
    step: int
    loss: Array
    taken: Array

    @property
    def most(self) -> int:
        """Units that may be removed at most."""
        allowed = len(self.group.classes) * (1 - _LEAST_KEPT)
        most = int(np.searchsorted(self.taken, allowed, side="right")) - 1
        return most - most % self.step

    def removed(self, count: int) -> list[int]:
        """The classes of the first so many units."""
        return [one for unit in self.units[:count] for one in unit.classes]

    def rounded(self, share: float) -> int:
        """How many units a share of the group is, in steps."""
        wanted = int(np.abs(self.taken - share * len(self.group.classes)).argmin())
        return min(round(wanted / self.step) * self.step, self.most)

    def within(self, share: float) -> int:
        """The most units that are no more than a share of the group, in steps; one step at least."""
        most = int(np.searchsorted(self.taken, share * len(self.group.classes) + 1e-9, side="right")) - 1
        return min(max(most - most % self.step, self.step), self.most)

    def share(self, count: int) -> float:
        """What share of the group so many units are."""
        return float(self.taken[count]) / len(self.group.classes)


def choices(
    structure: Structure,
    scores: Array,
    multiple: int,
    groups: Iterable[Group],
    kept: frozenset[int] = frozenset(),
) -> list[Choice]:
    """The units of each group.

    Args:
        multiple: Widths that kernels like.
        groups: Those that may lose any.
        kept: Classes that stay, and with them the units that hold one.
    """
    bundles = _bundled(structure, scores)
    found = []
    for group in groups:
        own = frozenset(group.classes)
        members = {bundles[one]: None for one in group.classes if one in bundles}
        # A bundle over several groups goes with the first of them.
        units = [
            Unit(unit, float(scores[list(unit)].sum()))
            for unit in members
            if min(unit) in own and kept.isdisjoint(unit)
        ]
        units.sort(key=lambda unit: unit.score)
        if not units:
            continue
        step = _step(group.width, len(own.intersection(units[0].classes)) * group.size, multiple)
        loss = np.concatenate([[0.0], np.cumsum([unit.score for unit in units])])
        taken = np.concatenate([[0], np.cumsum([len(own.intersection(unit.classes)) for unit in units])])
        choice = Choice(group, tuple(units), step, loss, taken)
        if choice.most > 0:
            found.append(choice)
    return found


def spared(
    structure: Structure, scores: Array, choices_: Sequence[Choice], removed: Iterable[int]
) -> frozenset[int]:
    """What is removed, but for units without which an axis of some tensor would have nothing left."""
    gone = set(removed)
    unit_of = {one: unit.classes for choice in choices_ for unit in choice.units for one in unit.classes}
    emptied = True
    while emptied:
        emptied = False
        for classes in structure.axes:
            if gone.issuperset(classes):
                best = max(classes, key=lambda one: float(scores[one]))
                gone.difference_update(unit_of.get(best, (best,)))
                emptied = True
    return frozenset(gone)


def _step(width: int, taken: int, multiple: int) -> int:
    """Units whose removal keeps a width a multiple; 1 where it is none, or would not be by any number of them."""
    for wanted in (multiple, multiple // 2, multiple // 4):
        if wanted > 1 and width % wanted == 0 and width >= 2 * wanted:
            return wanted // int(np.gcd(wanted, taken))
    return 1


def _bundled(structure: Structure, scores: Array) -> dict[int, tuple[int, ...]]:
    """The unit of each class that may be removed.

    A convolution in groups wants as many channels in each group: the least important ones of all groups go together,
    then the next ones, and so on. What lies across groups stays.
    """
    unit: dict[int, tuple[int, ...]] = {one: (one,) for group in structure.groups for one in group.classes}
    for labels in structure.flow.balanced:
        unit = _balanced(structure.classes[labels], unit, scores)
    return unit


def _balanced(
    classes: Indices, unit: dict[int, tuple[int, ...]], scores: Array
) -> dict[int, tuple[int, ...]]:
    count = len(classes)
    members: dict[tuple[int, ...], Array] = {}
    fixed: set[tuple[int, ...]] = set()
    for group, row in enumerate(classes.tolist()):
        for one in row:
            if one in unit:
                members.setdefault(unit[one], np.zeros(count, np.int64))[group] += 1
    ranked: dict[int, list[list[tuple[int, ...]]]] = {}
    for bundle, counts in members.items():
        if (counts == counts[0]).all():
            continue
        where = np.flatnonzero(counts)
        if len(where) > 1:
            fixed.add(bundle)
        else:
            ranked.setdefault(int(counts[where[0]]), [[] for _ in range(count)])[int(where[0])].append(bundle)
    made: list[tuple[int, ...]] = []
    for columns in ranked.values():
        for column in columns:
            column.sort(key=lambda bundle: float(scores[list(bundle)].sum()))
        together = min(len(column) for column in columns)
        made += [
            tuple(sorted(one for column in columns for one in column[place])) for place in range(together)
        ]
        fixed |= {bundle for column in columns for bundle in column[together:]}
    gone = {one for bundle in fixed for one in bundle}
    found = {one: bundle for one, bundle in unit.items() if one not in gone}
    found.update({one: bundle for bundle in made for one in bundle})
    return found


def macs(structure: Structure, places: Mapping[str, int], removed: Iterable[int] = ()) -> dict[str, float]:
    """Multiplications of each layer, recurrent ones too, without some classes.

    Args:
        places: How many sums each output channel of a layer has in one sample, by the layer's name.
    """
    return _macs(structure, places, structure.keeper(removed), lambda mask: float(mask.mean()))


def _macs(
    structure: Structure,
    places: Mapping[str, int],
    keep: Callable[[ir.Value | None, int], Mask | None],
    share: Callable[[Mask], float],
) -> dict[str, float]:
    """Multiplications of each layer where of each axis this share of it is left."""

    def left(mask: Mask | None) -> float:
        return 1.0 if mask is None else share(mask)

    found: dict[str, float] = {}
    for layer in structure.layers:
        dims = facts.static_dims(layer.weight)
        if dims is None or layer.name not in places:
            continue
        # An output of a depthwise convolution goes with the one channel that it reads.
        read = 1.0 if layer.is_depthwise else left(keep(layer.data, layer.channel))
        found[layer.name] = (
            places[layer.name] * float(np.prod(dims)) * left(keep(layer.weight, layer.out)) * read
        )
    for node in structure.recurrent:
        weights = node.inputs[W], node.inputs[R]
        sizes = [facts.static_dims(weight) for weight in weights]
        if name_of(node) in places and None not in sizes:
            data, hidden = (left(keep(weight, RECURRENT_AXIS)) for weight in weights)
            of_data, of_hidden = (float(np.prod(dims or ())) for dims in sizes)
            sums = of_data * data + of_hidden * hidden
            found[name_of(node)] = places[name_of(node)] * sums * hidden
    return found


def macs_alike(
    structure: Structure, places: Mapping[str, int], choices_: Sequence[Choice], share: float
) -> float:
    """Multiplications of all layers if each group could lose exactly this share, whatever widths kernels like."""
    every = [one for choice in choices_ for unit in choice.units for one in unit.classes]
    keep = structure.keeper(every)
    return sum(_macs(structure, places, keep, lambda mask: 1 - share * (1 - float(mask.mean()))).values())


def left_of(masks: Iterable[Mask | None]) -> float:
    """The share that is left of an array, from what is left of its axes; None where all of one is."""
    return math.prod(float(mask.mean()) for mask in masks if mask is not None)


def uniform(choices_: Sequence[Choice], share: float) -> set[int]:
    """The same share of every group.

    What rounding to steps takes too much or too little of one group, the next one of its kind makes up for: a network
    of many narrow layers loses its share by losing a step in some of them.
    """
    found: set[int] = set()
    missing: dict[tuple[int, int], float] = {}
    for choice in choices_:
        kind = (len(choice.group.classes), choice.step)
        wanted = share + missing.get(kind, 0.0)
        count = choice.rounded(wanted)
        limit = choice.share(choice.step)
        # What may not be removed at all is no remainder.
        wanted = min(wanted, choice.share(choice.most))
        missing[kind] = float(np.clip(wanted - choice.share(count), -limit, limit))
        found.update(choice.removed(count))
    return found


def cheapest_first(
    choices_: Sequence[Choice],
    gain: Mapping[str, float],
    cap: float = 1.0,
    per_work: Mapping[str, float] | None = None,
) -> list[tuple[int, int]]:
    """Steps of all groups, what loses least for what it gains first: place of the choice, units that are gone then.

    Args:
        gain: What a group gains with all its units, by name.
        cap: Share of a group that may go at most, or one step where that is more.
        per_work: What a group gains for each multiplication that goes with it, by name: of steps that lose nothing,
            those that gain most come first, since it is multiplications that are to go.
    """
    steps: list[tuple[float, float, int, int]] = []
    for index, choice in enumerate(choices_):
        each = gain[choice.group.name] / len(choice.units) * choice.step
        ends = np.arange(choice.step, choice.within(cap) + 1, choice.step)
        # What a step adds, never less than the one before it added.
        added = np.maximum.accumulate(np.diff(choice.loss[np.concatenate([[0], ends])]))
        last = -(per_work or {}).get(choice.group.name, 0.0)
        steps += [
            (float(lost) / max(each, 1e-30) if lost > _NOTHING else 0.0, last, index, int(end))
            for lost, end in zip(added, ends, strict=True)
        ]
    return [(index, end) for *_, index, end in sorted(steps)]


def all_removed(choices_: Sequence[Choice], counts: Sequence[int]) -> set[int]:
    """The classes of so many units of each choice."""
    return {one for choice, count in zip(choices_, counts, strict=True) for one in choice.removed(count)}


__all__ = [
    "Choice",
    "Unit",
    "all_removed",
    "cheapest_first",
    "choices",
    "left_of",
    "macs",
    "macs_alike",
    "spared",
    "uniform",
]
