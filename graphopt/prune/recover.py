"""Weights that make up for what was removed, in closed form, from data.

A layer that reads fewer channels is given the weights for which its outputs are nearest to what the original's were, on
what it reads in the pruned model: least squares with second moments summed up sample by sample (He et al., Channel
Pruning for Accelerating Very Deep Neural Networks, ICCV 2017), so that memory does not grow with the data. The solution
is drawn towards the weights that are left of the original (a ridge), as strongly as serves samples that are kept apart.
Layers are taken from the inputs on, so each makes up for what those before it could not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from graphopt.data.interface import Feeds
from graphopt.ir import facts, provenance
from graphopt.ir.describe import all_reads
from graphopt.ir.facts import Array
from graphopt.ir.graphs import add_constant, free_name
from graphopt.prune import moments
from graphopt.prune.cut import Keep
from graphopt.prune.structure import Layer, Structure, layers_of
from graphopt.prune.walk import Walk
from graphopt.quant.kernels import bias_of
from graphopt.quant.rounding import inputs_of

MAKER = "prune"
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


@dataclass
class Fit:
    """What recovery did to a layer.

    Attributes:
        before: Power of what is wrong with the outputs that are left, relative to their own, with the weights of the
            original; on samples kept apart.
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
    """

    full: Array
    left: Array
    has_bias: bool = True
    read: Array = field(default_factory=lambda: np.zeros(0))
    wrong: Array = field(default_factory=lambda: np.zeros(0))
    missed: Array = field(default_factory=lambda: np.zeros(0))
    power: float = 0.0
    rows: int = 0
    _waiting: moments.Batches = field(default_factory=moments.Batches)

    def add(self, old: Array, new: Array) -> None:
        """Add rows.

        Args:
            old: What the original's layer reads, [groups, rows, numbers].
            new: What the pruned one reads.
        """
        self._enter(self._waiting.add(old, new))

    def whole(self) -> _Sums:
        """With all rows that were added."""
        self._enter(self._waiting.rest())
        return self

    def _enter(self, batch: tuple[Array, ...] | None) -> None:
        if batch is None:
            return
        old, new = batch
        wanted = old @ self.full.swapaxes(1, 2)
        wrong = wanted - new @ self.left.swapaxes(1, 2)
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
        self.power += float(np.square(wanted, dtype=np.float64).sum())
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
        deadline: ``time.monotonic()`` by which it is to end. A layer that is not refitted spoils what those before it
            won, so none is left out: where the time does not suffice, the layers that are left see fewer samples.
        progress: Told what is being done.
        fits: What was done, by layer.
        skipped: Layers that cannot be refitted, with the reason.
        hurried: What was done on fewer samples, in words; empty where there was time.
    """

    model: ir.Model
    structure: Structure
    removed: frozenset[int]
    pruned: ir.Model
    samples: Sequence[Feeds]
    threads: int = 0
    deadline: float = float("inf")
    progress: Callable[[str], None] = lambda text: None
    fits: dict[str, Fit] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    hurried: str = ""

    def run(self) -> None:
        """Refit every layer that reads fewer channels, or what comes of such layers, from the inputs on."""
        keep = self.structure.keeper(self.removed)
        twins = {layer.name: layer for layer in layers_of(self.pruned.graph)}
        changed = self._changed(keep)
        todo = [
            layer
            for layer in self.structure.layers
            if layer.data in changed or keep(layer.data, layer.channel) is not None
        ]
        self.skipped = {layer.name: reason for layer in todo if (reason := moments.why_not(layer))}
        todo = [layer for layer in todo if layer.name not in self.skipped]
        theirs, ours = (Walk(model, self.samples, self.threads) for model in (self.model, self.pruned))
        pace = _Pace(self.deadline, len(todo), len(self.samples))
        for number, layer in enumerate(todo):
            samples = pace.samples(number)
            if samples < len(self.samples):
                self.hurried = self.hurried or f"from layer {number + 1} of {len(todo)} on"
                for walk in (theirs, ours):
                    walk.keep(samples)
            self.progress(f"refitting layer {number + 1} of {len(todo)}")
            twin = twins[layer.name]
            rows = moments.rows_a_sample(inputs_of(twin.node), len(self.samples))
            has_bias = _can_shift(twin)
            full, left = _matrices(layer, twin, keep)
            train, test = _Sums(full, left, has_bias), _Sums(full, left, has_bias)
            # What it reads may have another name by now: a bias may have been added.
            reads = twin.node.inputs[0]
            assert reads is not None
            pairs = zip(theirs.to(layer.data.name or ""), ours.to(reads.name or ""), strict=True)
            for index, (before, after) in enumerate(pairs):
                for axis in range(before.ndim):
                    mask = keep(layer.data, axis) if axis != layer.channel else None
                    before = before if mask is None else np.compress(mask, before, axis=axis)
                old = moments.rows_of(layer, before, index, rows)
                new = moments.rows_of(twin, after, index, rows)
                kept = keep(layer.data, layer.channel) if layer.is_depthwise else None
                (test if index % _TEST == _TEST - 1 else train).add(old if kept is None else old[kept], new)
            train, test = train.whole(), test.whole()
            self._solve(train, test if test.rows else train, layer, twin)
        if self.hurried:
            self.hurried = f"{samples} of {len(self.samples)} samples {self.hurried}"

    def _changed(self, keep: Keep) -> set[ir.Value]:
        """What is not as it was: all that comes behind a layer that lost channels."""
        found: set[ir.Value] = set()
        for node in self.model.graph:
            reads = all_reads(node)
            fewer = any(
                keep(value, axis) is not None for value in reads for axis in range(facts.rank(value) or 0)
            )
            if fewer or any(value in found for value in reads):
                found.update(node.outputs)
        return found

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
            _add_to_bias(self.pruned.graph, twin, change[:, -1].reshape(-1))


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


def _bias_behind(layer: Layer) -> ir.Value | None:
    """The bias of a layer, or what is added behind a MatMul."""
    if layer.node.op_type != "MatMul":
        return bias_of(layer.node)
    behind = facts.sole_consumer(layer.node.outputs[0])
    return None if behind is None else _addend(behind, layer.node.outputs[0])


def _can_shift(layer: Layer) -> bool:
    """Whether something can be added to each output of a layer."""
    bias = _bias_behind(layer)
    if bias is None:
        return True
    unused = layer.node.op_type == "Gemm" and not facts.attribute(layer.node, "beta", 1.0)
    # A Gemm's bias may be one number, or have rows.
    wide = layer.node.op_type != "Gemm" or facts.rank(bias) == 1
    return facts.constant(bias) is not None and len(bias.uses()) == 1 and not unused and wide


def _add_to_bias(graph: ir.Graph, layer: Layer, change: Array) -> None:
    """Add to the bias of a layer, or to what is added behind a MatMul; one is made where there is none."""
    node = layer.node
    bias = _bias_behind(layer)
    content = facts.constant(bias)
    if bias is not None and content is not None:
        beta = facts.attribute(node, "beta", 1.0) if node.op_type == "Gemm" else 1.0
        made = np.asarray(content.astype(np.float64) + change / beta).astype(content.dtype)
        bias.const_value, bias.shape = ir.tensor(made, name=bias.name), ir.Shape(made.shape)
        return
    name = free_name(f"{node.name or node.op_type}/recovered_bias", graph.initializers)
    array = change.astype(facts.numpy_dtype(layer.weight) or np.float32)
    value = add_constant(graph, name, ir.tensor(array))
    if node.op_type in ("Conv", "Gemm"):
        node.resize_inputs(3)
        node.replace_input_with(2, value)
        return
    out = node.outputs[0]
    add = ir.node("Add", [out, value], name=name.replace("recovered_bias", "recovered"))
    provenance.record(add, MAKER, ())
    made_value = add.outputs[0]
    made_value.type, made_value.shape = out.type, out.shape
    graph.insert_after(node, add)
    given = out.name
    out.replace_all_uses_with(made_value, replace_graph_outputs=True)
    add.replace_input_with(0, out)
    out.name, made_value.name = f"{name}/product", given


def _addend(node: ir.Node, value: ir.Value) -> ir.Value | None:
    """What an Add adds to a value, where that is a constant along its last axis."""
    if node.op_type != "Add" or node.domain != "":
        return None
    other = next((entry for entry in node.inputs if entry is not value), None)
    dims = facts.dims(other)
    return other if facts.is_constant(other) and dims and len(dims) == 1 and dims[0] != 1 else None


__all__ = ["Fit", "Recovery"]
