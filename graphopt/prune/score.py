"""How much each class matters: what layers that read it would lose.

``magnitude``: the squares of the weights that make it and of those that read it (Li et al., Pruning Filters for
Efficient ConvNets, ICLR 2017). ``activation``: the squares of the weights that read it times the mean square of what
they read, channel by channel (Sun et al., A Simple and Effective Pruning Approach for LLMs, ICLR 2024).
``hessian``: what a layer that reads it would lose after its other weights have made up for it, by the inverse of the
second moments of its inputs (Hassibi & Stork, Optimal Brain Surgeon, NIPS 1992, block by block). Each is relative to
what the layer gives in all, so layers compare. ``taylor``: what the outputs of the model lose to first order
(:mod:`graphopt.prune.gradients`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir

from graphopt.data.interface import Feeds
from graphopt.ir import facts
from graphopt.ir.facts import Array
from graphopt.prune import moments
from graphopt.prune.gradients import first_order
from graphopt.prune.labels import PINNED, Indices
from graphopt.prune.structure import Layer, Structure
from graphopt.quant.observe import in_turns
from graphopt.quant.rounding import inputs_of
from graphopt.train.module import NotTrainableError

Criterion = Literal["hessian", "activation", "magnitude", "taylor"]
_DAMPING = 0.001
_LEAST_ROWS = 2.0
"""Rows for each number of a sum, below which an inverse says little."""


@dataclass(frozen=True)
class Ranking:
    """What classes are worth.

    Attributes:
        structure: Of the graph.
        scores: Of each class.
        notes: What fell back to another criterion.
        moments: Second moments of what layers read, by name, float32 [groups, K, K], as far as there was memory.
        recurrent: The part of the scores that is due to recurrent layers.
    """

    structure: Structure
    scores: Array
    notes: list[str]
    moments: dict[str, Array]
    recurrent: Array

    def loss(self, removed: Sequence[int], readers: Sequence[Layer]) -> float:
        """What layers lose without some classes, relative to what they give, after other weights have made up for it.

        By the Schur complement of what is left in the second moments; where there are none, the sum of the scores.
        """
        of_recurrent = float(self.recurrent[list(removed)].sum())
        return of_recurrent + sum(self._lost(frozenset(removed), layer) for layer in readers)

    def _lost(self, removed: frozenset[int], layer: Layer) -> float:
        found = self._refit(removed, layer)
        if found is None:
            return float(self.scores[list(removed)].sum())
        return found[1]

    def refitted(self, removed: Sequence[int], layer: Layer) -> Array | None:
        """The weight that a layer is given for what is left of what it reads; None without second moments."""
        found = self._refit(frozenset(removed), layer)
        weight = facts.constant(layer.weight)
        return None if found is None or weight is None else moments.restored(layer, found[0], weight)

    def _refit(self, removed: frozenset[int], layer: Layer) -> tuple[Array, float] | None:
        """Weights of the shape of the old ones, zero where nothing is read any more, and what is lost."""
        moment, weight = self.moments.get(layer.name), facts.constant(layer.weight)
        classes = _read(self.structure, layer)
        if moment is None or weight is None or classes is None:
            return None
        matrix = moments.matrices(layer, weight).astype(np.float64)
        made = matrix.copy()
        lost = whole = 0.0
        gone = np.isin(classes, list(removed)).reshape(layer.groups, -1)
        for group, mask in enumerate(gone):
            out = np.repeat(mask, matrix.shape[2] // len(mask))
            w, h = matrix[group], moment[group].astype(np.float64)
            whole += float(np.einsum("oi,ij,oj->", w, h, w, optimize=True))
            if not out.any():
                continue
            left = ~out
            inner = h[np.ix_(left, left)]
            inner[np.diag_indices_from(inner)] += _DAMPING * max(float(np.diag(h).mean()), 1e-12)
            part = w[:, out]
            cross = h[np.ix_(left, out)] @ part.T
            change = np.linalg.solve(inner, cross)
            lost += float(np.sum((part @ h[np.ix_(out, out)]) * part) - np.sum(change * cross))
            made[group][:, left] += change.T
            made[group][:, out] = 0.0
        return made, max(lost, 0.0) / (whole or 1.0)


def scores(
    model: ir.Model,
    structure: Structure,
    samples: Sequence[Feeds],
    criterion: Criterion,
    *,
    memory: int,
    threads: int = 0,
    seed: int = 0,
    seconds: float = float("inf"),
    progress: Callable[[str], None] = lambda text: None,
) -> Ranking:
    """The score of each class, more for those that matter more.

    Args:
        memory: Bytes for second moments at a time; as many are kept as fit into it too.
    """
    found = np.zeros(len(structure.classes), np.float64)
    notes: list[str] = []
    kept: dict[str, Array] = {}
    recurrent = np.zeros_like(found)
    _add_recurrent(recurrent, structure)
    found += recurrent
    ranking = Ranking(structure, found, notes, kept, recurrent)
    room = memory
    readers = [
        layer for layer in structure.layers if not layer.is_depthwise and _read(structure, layer) is not None
    ]
    if criterion == "magnitude":
        for layer in structure.layers:
            _add_magnitude(found, structure, layer)
        return ranking
    plain = [layer for layer in readers if not moments.why_not(layer)]
    for layer in readers:
        if layer not in plain:
            notes.append(f"{layer.name}: ranked by magnitude: {moments.why_not(layer)}")
            _add_magnitude(found, structure, layer)
    for turn in in_turns(plain, lambda layer: 8 * layer.groups * inputs_of(layer.node) ** 2, memory):
        progress(f"what {len(turn)} layers read")
        sums: dict[str, Array] = {}
        counts: dict[str, int] = {}
        for number, seen in enumerate(moments.read_by(model, turn, samples, threads)):
            for layer in turn:
                rows = moments.rows_of(layer, seen[layer.data.name or ""], number)
                sums[layer.name] = sums.get(layer.name, 0.0) + (rows.swapaxes(1, 2) @ rows).astype(np.float64)
                counts[layer.name] = counts.get(layer.name, 0) + rows.shape[1]
        for layer in turn:
            enough = counts[layer.name] >= _LEAST_ROWS * inputs_of(layer.node)
            if criterion in ("hessian", "taylor") and not enough:
                notes.append(
                    f"{layer.name}: ranked by activation: too few inputs were seen for second moments"
                )
            moment = sums.pop(layer.name) / counts[layer.name]
            if not np.isfinite(moment).all():
                notes.append(f"{layer.name}: ranked by magnitude: what it reads is not finite on the data")
                _add_magnitude(found, structure, layer)
                continue
            _add_losses(found, structure, layer, moment, criterion in ("hessian", "taylor") and enough)
            if moment.nbytes // 2 <= room:
                kept[layer.name] = moment.astype(np.float32)
                room -= kept[layer.name].nbytes
    if criterion == "taylor":
        # What layers lose is still told by their moments; which channels go first is told by gradients.
        _by_gradients(found, ranking, model, samples, seed, seconds, progress)
    return ranking


def _by_gradients(
    found: Array,
    ranking: Ranking,
    model: ir.Model,
    samples: Sequence[Feeds],
    seed: int,
    seconds: float,
    progress: Callable[[str], None],
) -> None:
    try:
        gradients = first_order(
            model, ranking.structure, samples, seed=seed, seconds=seconds, progress=progress
        )
    except NotTrainableError as error:
        ranking.notes.append(f"all layers: ranked by hessian: {error.message}")
        return
    found[:] = gradients


def _read(structure: Structure, layer: Layer) -> Indices | None:
    classes = structure.class_of(layer.data, layer.channel)
    return None if classes is None or not (classes != PINNED).any() else classes


def _add_losses(found: Array, structure: Structure, layer: Layer, moment: Array, invert: bool) -> None:
    """What a layer loses without each channel that it reads.

    Args:
        moment: Second moments, float64 [groups, K, K].
        invert: Whether the other weights make up for it.
    """
    weight = facts.constant(layer.weight)
    classes = _read(structure, layer)
    assert weight is not None and classes is not None
    matrix = moments.matrices(layer, weight).astype(np.float64)
    of_group = classes.reshape(layer.groups, -1)
    for group, own in enumerate(of_group):
        w, h = matrix[group], moment[group]
        energy = float(np.einsum("oi,ij,oj->", w, h, w)) or 1.0
        block = w.shape[1] // len(own)
        inverse = _inverse(h) if invert else None
        for channel, label in enumerate(own.tolist()):
            if label == PINNED:
                continue
            place = slice(channel * block, (channel + 1) * block)
            part = w[:, place]
            if inverse is None:
                loss = float(np.sum(np.square(part) * np.diag(h)[place]))
            else:
                loss = float(np.sum(part * np.linalg.solve(inverse[place, place], part.T).T))
            # Layers that read several groups of channels lose as much of what they give as the sum over all groups.
            found[label] += max(loss, 0.0) / energy / layer.groups


def _inverse(moment: Array) -> Array:
    damped = moment + _DAMPING * max(float(np.diag(moment).mean()), 1e-12) * np.eye(len(moment))
    return np.linalg.inv(damped)


def _add_magnitude(found: Array, structure: Structure, layer: Layer) -> None:
    weight = facts.constant(layer.weight)
    assert weight is not None
    square = np.square(weight.astype(np.float64))
    whole = float(square.sum()) or 1.0
    for axis in (layer.out, layer.inner):
        if axis == layer.inner and layer.groups > 1:
            continue
        labels = structure.class_of(layer.weight, axis)
        if labels is not None:
            others = tuple(place for place in range(square.ndim) if place != axis)
            np.add.at(found, labels, square.sum(axis=others) / whole)


def _add_recurrent(found: Array, structure: Structure) -> None:
    """Hidden units by the squares of the weights that read them back."""
    for value, classes in structure.read_by_recurrent():
        weight = facts.constant(value)
        assert weight is not None
        square = np.square(weight.astype(np.float64))
        np.add.at(found, classes, square.sum(axis=(0, 1)) / (float(square.sum()) or 1.0))


__all__ = ["Criterion", "scores"]
