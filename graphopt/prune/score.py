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
from graphopt.verify.padding import Padding

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

    def losses(self, units: Sequence[Sequence[int]], readers: Sequence[Layer]) -> Array:
        """What layers lose without the first so many units, relative to what they give, after other weights have made
        up for it: [units + 1], 0 first.

        Args:
            units: Classes that go together, in the order in which they go.
        """
        scores = np.array([float(self.scores[list(unit)].sum()) for unit in units])
        added = np.array([float(self.recurrent[list(unit)].sum()) for unit in units])
        for layer in readers:
            found = self._lost(units, layer)
            # Without second moments the scores stand in.
            added += scores if found is None else found
        return np.concatenate([[0.0], np.cumsum(added)])

    def _lost(self, units: Sequence[Sequence[int]], layer: Layer) -> Array | None:
        """What each unit adds to the loss of those before it; None without second moments.

        Let H be the second moments with the numbers in the order in which they go, and H = U U' with U upper
        triangular. Then U' is the inverse of the Cholesky factor of the inverse of H, and what is lost without the
        first k numbers (Optimal Brain Surgeon) is the sum of squares of the first k rows of U' w': one factorization
        tells all k.
        """
        moment, weight = self.moments.get(layer.name), facts.constant(layer.weight)
        classes = _read(self.structure, layer)
        if moment is None or weight is None or classes is None:
            return None
        matrix = moments.matrices(layer, weight).astype(np.float64)
        turn = np.full(len(self.structure.classes), len(units))
        for number, unit in enumerate(units):
            turn[list(unit)] = number
        # What is pinned stays, as what is in no unit does.
        turns = np.where(classes == PINNED, len(units), turn[classes]).reshape(layer.groups, -1)
        lost, whole = np.zeros(len(units) + 1), 0.0
        for group, of_channels in enumerate(turns):
            w, h = matrix[group], moment[group].astype(np.float64)
            whole += float(np.sum((w @ h) * w))
            own = np.repeat(of_channels, w.shape[1] // len(of_channels))
            if (own == len(units)).all():
                continue
            # NumPy's factor is lower triangular: that of the reversed matrix, reversed, is the upper one.
            order = np.argsort(own, kind="stable")[::-1]
            factor = np.linalg.cholesky(_damped(h)[np.ix_(order, order)])
            np.add.at(lost, own[order], np.square(factor.T @ w[:, order].T).sum(axis=1))
        return np.asarray(lost[:-1] / (whole or 1.0))

    def refitted(self, removed: Sequence[int], layer: Layer) -> Array | None:
        """The weight that a layer is given for what is left of what it reads: of the shape of the old one, zero where
        nothing is read any more; None without second moments."""
        moment, weight = self.moments.get(layer.name), facts.constant(layer.weight)
        classes = _read(self.structure, layer)
        if moment is None or weight is None or classes is None:
            return None
        made = moments.matrices(layer, weight).astype(np.float64)
        gone = np.isin(classes, removed).reshape(layer.groups, -1)
        for w, h, mask in zip(made, moment, gone, strict=True):
            out = np.repeat(mask, w.shape[1] // len(mask))
            left = ~out
            damped = _damped(h.astype(np.float64))
            w[:, left] += np.linalg.solve(
                damped[np.ix_(left, left)], damped[np.ix_(left, out)] @ w[:, out].T
            ).T
            w[:, out] = 0.0
        return moments.restored(layer, made, weight)


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
    padding: Padding | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> Ranking:
    """The score of each class, more for those that matter more.

    Args:
        padding: Positions that count nothing; None where all count.
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
        squares = {layer.name: moments.Squares() for layer in turn}
        for number, seen in enumerate(moments.read_by(model, turn, samples, threads, padding)):
            for layer in turn:
                most = moments.rows_a_sample(inputs_of(layer.node), len(samples))
                rows = moments.rows_of(layer, seen[layer.data.name or ""], number, most)
                squares[layer.name].add(rows)
        for layer in turn:
            moment, count = squares.pop(layer.name).mean()
            enough = count >= _LEAST_ROWS * inputs_of(layer.node)
            if criterion in ("hessian", "taylor") and not enough:
                notes.append(
                    f"{layer.name}: ranked by activation: too few inputs were seen for second moments"
                )
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
        _by_gradients(found, ranking, model, samples, seed, seconds, padding, progress)
    return ranking


def _by_gradients(
    found: Array,
    ranking: Ranking,
    model: ir.Model,
    samples: Sequence[Feeds],
    seed: int,
    seconds: float,
    padding: Padding | None,
    progress: Callable[[str], None],
) -> None:
    try:
        gradients = first_order(
            model, ranking.structure, samples, seed=seed, seconds=seconds, padding=padding, progress=progress
        )
    except NotTrainableError as error:
        ranking.notes.append(f"all layers: ranked by hessian: {error.message}")
        return
    if not np.isfinite(gradients).all() or not gradients.any():
        ranking.notes.append("all layers: ranked by hessian: the gradients are zero, or no finite numbers")
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
        inverse = np.linalg.inv(_damped(h)) if invert else None
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


def _damped(moment: Array) -> Array:
    return np.asarray(moment + _DAMPING * max(float(np.diag(moment).mean()), 1e-12) * np.eye(len(moment)))


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
