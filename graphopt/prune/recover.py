"""Weights that make up for what was removed, in closed form, from data.

A layer that reads fewer channels is given the weights for which its outputs are nearest to what the original's were, on
what it reads in the pruned model: least squares with second moments summed up sample by sample (He et al., Channel
Pruning for Accelerating Very Deep Neural Networks, ICCV 2017), so that memory does not grow with the data. The solution
is drawn towards the weights that are left of the original (a ridge), as strongly as serves samples that are kept apart.
Layers are taken from the inputs on, so each makes up for what those before it could not. Where something else is added
to what a layer makes, as in a residual block, it is their sum that is to be as it was.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from graphopt.data.interface import Feeds
from graphopt.ir import facts
from graphopt.ir.describe import all_reads
from graphopt.ir.facts import Array
from graphopt.prune import moments
from graphopt.prune.bias import add_to_bias, can_shift
from graphopt.prune.cut import Keep
from graphopt.prune.structure import Layer, Structure, layers_of
from graphopt.prune.walk import Walk
from graphopt.quant.positions import Positions
from graphopt.quant.rounding import inputs_of
from graphopt.verify.padding import Padding

_RIDGES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Relative to the mean square of what is read."""
_LARGE = 1500
_TEST = 4
"""One sample in so many is kept apart."""
_SEEN = 3
"""Layers that tell a pace."""
_LEAST_SAMPLES = 16
_LEAST_SHARE = 0.5
"""Of the samples, however little time there is. On a recognizer of text a quarter of them lost 1.6 dB of 15.3, what is
known of the sensitivity of groups 0.7."""


def is_kept_apart(index: int) -> bool:
    """Whether nothing is fitted on the sample of this number."""
    return index % _TEST == _TEST - 1


def kept_apart(samples: Sequence[Feeds]) -> Sequence[Feeds]:
    """The samples that nothing is fitted on."""
    return samples[_TEST - 1 :: _TEST]


@dataclass
class Fit:
    """What recovery did to a layer.

    Attributes:
        before: Power of what is wrong with the outputs that are left, and what is added to them, relative to their own,
            with the weights of the original; on samples kept apart.
        after: With the new weights.
        ridge: That was taken; 0 where the old weights were left.
    """

    before: float
    after: float
    ridge: float


@dataclass
class _Sums:
    """Sums over rows of what a layer reads, with a one behind it for the bias, group by group.

    Attributes:
        full: The original's weights for the outputs that are left, [groups, outputs, numbers].
        left: Those of the pruned one.
        offset: What its bias adds to the original's [outputs of all groups].
    """

    full: Array
    left: Array
    offset: Array | None = None
    has_bias: bool = True
    read: Array = field(default_factory=lambda: np.zeros(0))
    wrong: Array = field(default_factory=lambda: np.zeros(0))
    missed: Array = field(default_factory=lambda: np.zeros(0))
    power: float = 0.0
    rows: int = 0
    _waiting: moments.Batches = field(default_factory=moments.Batches)

    def add(self, old: Array, new: Array, missing: Array | None = None) -> None:
        """Add rows.

        Args:
            old: What the original's layer reads, [groups, rows, numbers].
            new: What the pruned one reads.
            missing: What is missing in the pruned graph of what is added to the outputs [groups, rows, outputs]; None
                where nothing is added.
        """
        if missing is None:
            self._enter(self._waiting.add(old, new))
        else:
            self._enter(self._waiting.add(missing, old, new))

    def whole(self) -> _Sums:
        """With all rows that were added."""
        self._enter(self._waiting.rest())
        return self

    @np.errstate(over="ignore", invalid="ignore")
    def _enter(self, batch: tuple[Array, ...] | None) -> None:
        """Numbers beyond float32 fit nothing: no ridge is better then, and the layer stays as it is."""
        if batch is None:
            return
        *missing, old, new = batch
        wanted = old @ self.full.swapaxes(1, 2)
        self.power += float(np.square(wanted, dtype=np.float64).sum())
        wrong = wanted - new @ self.left.swapaxes(1, 2)
        for part in missing:
            wrong += part
        if self.offset is not None:
            wrong -= self.offset.reshape(len(wrong), 1, -1).astype(wrong.dtype)
        one = np.full((*new.shape[:2], 1), float(self.has_bias), np.float32)
        with_one = np.concatenate([new, one], axis=2)
        turned = with_one.swapaxes(1, 2)
        if not self.rows:
            groups, size, outputs = len(new), with_one.shape[2], wrong.shape[2]
            self.read, self.wrong = np.zeros((groups, size, size)), np.zeros((groups, size, outputs))
            self.missed = np.zeros(groups)
        self.read += turned @ with_one
        self.wrong += turned @ wrong
        self.missed += np.square(wrong, dtype=np.float64).sum(axis=(1, 2))
        self.rows += new.shape[1]


class _Pace:
    """How many samples the layers that are left can see by a deadline, at the pace of those before them.

    Args:
        deadline: ``time.monotonic()``.
        layers: To be refitted.
        samples: There are.
    """

    def __init__(self, deadline: float, layers: int, samples: int) -> None:
        self._deadline = deadline
        self._layers = layers
        self._samples = samples
        self._least = min(samples, max(_LEAST_SAMPLES, int(_LEAST_SHARE * samples)))
        self._started = time.monotonic()
        self._from = 0

    def samples(self, number: int) -> int:
        """For the layer of this number: as many as for the one before it, or half as many."""
        now = time.monotonic()
        since, left = number - self._from, self._deadline - now
        late = left <= 0 or (
            since >= _SEEN and (now - self._started) / since * (self._layers - number) > left
        )
        if late and self._samples > self._least:
            self._samples = max(self._samples // 2, self._least)
            # The pace with fewer samples is another.
            self._started, self._from = now, number
        return self._samples


@dataclass(frozen=True)
class Pair:
    """A layer, and the one that is to make the same outputs in another graph.

    Attributes:
        layer: Of the original.
        twin: Of the other graph; its weight is replaced.
        offset: What was added to its bias already [outputs].
    """

    layer: Layer
    twin: Layer
    offset: Array | None = None


@dataclass
class Refit:
    """Gives layers the weights for which their outputs are nearest to the original's.

    Attributes:
        model: The original.
        reduced: The graph whose weights are replaced.
        samples: To fit on; one in four is kept apart.
        threads: Of an operator.
        deadline: ``time.monotonic()`` by which it is to end. A layer that is not refitted spoils what those before it
            won, so none is left out: where the time does not suffice, the layers that are left see fewer samples.
        progress: Told what is being done.
        keep: From an axis of a value of the original to what is left of it; None where all is.
        shifts: Whether something may be added to each output of a layer.
        maker: The pass, for the provenance of nodes.
        padding: Positions that are not fitted to; None where all count.
        fits: What was done, by layer.
        skipped: Layers that cannot be refitted, with the reason.
        hurried: What was done on fewer samples, in words; empty where there was time.
    """

    model: ir.Model
    reduced: ir.Model
    samples: Sequence[Feeds]
    threads: int = 0
    deadline: float = float("inf")
    progress: Callable[[str], None] = lambda text: None
    keep: Keep = lambda value, axis: None
    shifts: Callable[[Layer], bool] = can_shift
    maker: str = "prune"
    padding: Padding | None = None
    fits: dict[str, Fit] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    hurried: str = ""

    def run(self, pairs: Sequence[Pair]) -> None:
        """Refit layers, which are in the order of the graph: each makes up for what those before it could not."""
        todo = []
        for pair in pairs:
            reason = moments.why_no_rows(pair.layer) or moments.why_not(pair.twin)
            if reason:
                self.skipped[pair.layer.name] = reason
            else:
                todo.append(pair)
        theirs, ours = (Walk(model, self.samples, self.threads) for model in (self.model, self.reduced))
        real = moments.real_rows(self.model, [pair.layer for pair in todo], self.padding, self.threads)
        pace, samples = _Pace(self.deadline, len(todo), len(self.samples)), len(self.samples)
        for number, pair in enumerate(todo):
            layer, twin = pair.layer, pair.twin
            samples = pace.samples(number)
            if samples < len(self.samples):
                self.hurried = self.hurried or f"from layer {number + 1} of {len(todo)} on"
                for walk in (theirs, ours):
                    walk.keep(samples)
            self.progress(f"refitting layer {number + 1} of {len(todo)}")
            full, left = _matrices(layer, twin, self.keep)
            train, test = (_Sums(full, left, pair.offset, self.shifts(twin)) for _ in range(2))
            for index, rows in enumerate(self._rows(pair, theirs, ours, real)):
                (test if is_kept_apart(index) else train).add(*rows)
            train, test = train.whole(), test.whole()
            self._solve(train, test if test.rows else train, layer, twin)
        if self.hurried:
            self.hurried = f"{samples} of {len(self.samples)} samples {self.hurried}"

    def _rows(self, pair: Pair, theirs: Walk, ours: Walk, real: Positions) -> Iterator[tuple[Array, ...]]:
        """For each sample rows of the same places: what both layers read, and what is missing of what is added to what
        they make, where something is."""
        layer, twin = pair.layer, pair.twin
        most = moments.rows_a_sample(inputs_of(twin.node), len(self.samples))
        # What it reads may have another name by now: a bias may have been added.
        name, own_name = ((one.node.inputs[0] or layer.data).name or "" for one in (layer, twin))
        seen = zip(theirs.to(name), ours.to(own_name), strict=True)
        kept = self.keep(layer.data, layer.channel) if layer.is_depthwise else None
        beside, own_beside = added_to(layer), added_to(twin)
        added: Iterator[tuple[Array, Array]] | None = None
        if beside is not None and own_beside is not None:
            added = zip(theirs.to(beside.name or ""), ours.to(own_beside.name or ""), strict=True)
        for index, (before, after) in enumerate(seen):
            feeds = self.samples[index]
            before = self._left(layer.data, before, layer.channel)
            # Both by the name that it has in the original: the positions are the same.
            before, after = (real.of(name, feeds, array) for array in (before, after))
            old = moments.rows_of(layer, before, index, most)
            rows = [old if kept is None else old[kept], moments.rows_of(twin, after, index, most)]
            if added is not None and beside is not None:
                whole, left = next(added)
                sums, own_sums = (
                    moments.outputs_of(twin, real.of(name, feeds, array), index, most)
                    for array in (self._left(beside, whole), left)
                )
                if sums.shape[1] == old.shape[1]:
                    rows.append(sums - own_sums)
                else:
                    # One that is spread over the other.
                    added = None
            yield tuple(rows)

    def _left(self, value: ir.Value, array: Array, channel: int | None = None) -> Array:
        """What is left of a value of the original, but for one axis."""
        for axis in range(array.ndim):
            mask = self.keep(value, axis) if axis != channel else None
            if mask is not None:
                # Of an axis of unknown size the mask repeats.
                array = np.compress(np.resize(mask, array.shape[axis]), array, axis=axis)
        return array

    def _solve(self, train: _Sums, test: _Sums, layer: Layer, twin: Layer) -> None:
        own = facts.constant(twin.weight)
        assert own is not None
        ridges, change, lost = _best(train, test)
        power = test.power or 1.0
        self.fits[layer.name] = Fit(
            float(test.missed.sum()) / power, float(lost.sum()) / power, float(ridges.max())
        )
        if not ridges.any():
            return
        matrix = moments.matrices(twin, own).astype(np.float64) + change[:, :-1].swapaxes(1, 2)
        twin.weight.const_value = ir.tensor(moments.restored(twin, matrix, own), name=twin.weight.name)
        if train.has_bias:
            add_to_bias(self.reduced.graph, twin, change[:, -1].reshape(-1), self.maker)


@dataclass
class Recovery:
    """Refits the layers of a pruned model.

    Attributes:
        model: The original.
        structure: Of the original.
        removed: Classes.
        pruned: The model without them; its weights are replaced.
        samples: To fit on; one in four is kept apart.
        threads: Of an operator.
        deadline: ``time.monotonic()`` by which it is to end; see :class:`Refit`.
        progress: Told what is being done.
        padding: Positions that are not fitted to; None where all count.
        fits, skipped, hurried: As there.
    """

    model: ir.Model
    structure: Structure
    removed: frozenset[int]
    pruned: ir.Model
    samples: Sequence[Feeds]
    threads: int = 0
    deadline: float = float("inf")
    progress: Callable[[str], None] = lambda text: None
    padding: Padding | None = None
    fits: dict[str, Fit] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    hurried: str = ""

    def run(self) -> None:
        """Refit every layer that reads fewer channels, or what comes of such layers, from the inputs on."""
        keep = self.structure.keeper(self.removed)
        twins = {layer.name: layer for layer in layers_of(self.pruned.graph)}

        def reads_fewer(node: ir.Node) -> bool:
            return any(
                keep(value, axis) is not None
                for value in all_reads(node)
                for axis in range(facts.rank(value) or 0)
            )

        changed = behind(self.model, reads_fewer)
        pairs = [
            Pair(layer, twins[layer.name])
            for layer in self.structure.layers
            if layer.data in changed or keep(layer.data, layer.channel) is not None
        ]
        refit = Refit(
            self.model, self.pruned, self.samples, self.threads, self.deadline, self.progress, keep,
            padding=self.padding, fits=self.fits, skipped=self.skipped,
        )  # fmt: skip
        refit.run(pairs)
        self.hurried = refit.hurried


def behind(model: ir.Model, changes: Callable[[ir.Node], bool]) -> set[ir.Value]:
    """What is not as it was: the outputs of nodes that change, and all that comes of them."""
    found: set[ir.Value] = set()
    for node in model.graph:
        if changes(node) or any(value in found for value in all_reads(node)):
            found.update(node.outputs)
    return found


def added_to(layer: Layer) -> ir.Value | None:
    """What an Add adds to a layer's outputs, its bias aside; None where there is none of their shape, where it is made
    later, or where the outputs are read otherwise too."""
    out = layer.node.outputs[0]
    dims = facts.known_dims(out)
    while dims is not None and None not in dims:
        node = facts.sole_consumer(out)
        if node is None or node.op_type != "Add" or node.domain != "":
            return None
        other = next((entry for entry in node.inputs if entry is not out), None)
        if other is None:
            return None
        if not facts.is_constant(other):
            alike = facts.known_dims(other) == dims
            return other if alike and _is_made_before(other, layer.node) else None
        out = node.outputs[0]
        if facts.known_dims(out) != dims:
            return None
    return None


def _is_made_before(value: ir.Value, node: ir.Node) -> bool:
    maker = value.producer()
    return maker is None or next(one for one in node.graph or () if one in (maker, node)) is maker


def _matrices(layer: Layer, twin: Layer, keep: Keep) -> tuple[Array, Array]:
    """The weights of the outputs that are left, as they were and as they are: [groups, outputs, numbers]."""
    weight, own = facts.constant(layer.weight), facts.constant(twin.weight)
    assert weight is not None and own is not None
    full, left = moments.matrices(layer, weight), moments.matrices(twin, own)
    mask = keep(layer.weight, layer.out)
    if mask is None:
        return full, left
    # Each group has as many outputs left, but not the same ones; of a depthwise one whole groups are gone.
    return full[mask.reshape(full.shape[:2])].reshape(*left.shape[:2], -1), left


@np.errstate(over="ignore", invalid="ignore")
def _best(train: _Sums, test: _Sums) -> tuple[Array, Array, Array]:
    """For each group the ridge that serves the test samples best, the change of weights, and what is missed then.

    Returns:
        Ridges [groups], 0 for no change at all; changes [groups, numbers + 1, outputs]; noise power [groups].
    """
    groups, size, _ = train.read.shape
    ridges, change, missed = np.zeros(groups), np.zeros_like(train.wrong), test.missed.copy()
    mean = np.maximum(np.einsum("gii->g", train.read[:, :-1, :-1]) / max(size - 1, 1), 1e-12)
    diagonal = np.arange(size)
    # Without samples kept apart a weak ridge would look best whatever it does to others.
    ridges_tried = _RIDGES[3:] if test is train else _RIDGES if size <= _LARGE else _RIDGES[1::2]
    for ridge in ridges_tried:
        damped = train.read.copy()
        # The bias is free.
        damped[:, diagonal[:-1], diagonal[:-1]] += (ridge * mean)[:, None]
        damped[:, -1, -1] += 1e-9 * mean
        made = np.linalg.solve(damped, train.wrong)
        # |wrong - rows @ made|^2 on the test samples, from their sums alone.
        lost = test.missed + (made * (test.read @ made - 2 * test.wrong)).sum(axis=(1, 2))
        better = lost < missed
        ridges[better], missed[better], change[better] = ridge, lost[better], made[better]
    return ridges, change, missed


__all__ = ["Fit", "Pair", "Recovery", "Refit", "behind", "is_kept_apart", "kept_apart"]
