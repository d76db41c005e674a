"""Weights that may get zeros, why others may not, and one weight's zeros from what its layer reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from graphopt.ir import facts
from graphopt.ir.facts import Array
from graphopt.prune import sparse
from graphopt.prune.sparse import Pattern
from graphopt.prune.structure import Layer, layers_of
from graphopt.quant.rounding import inputs_of

_LEAST_ROWS, _LEAST_ROWS_ALONE = 0.25, 2.0
"""Rows for each number of a sum, below which second moments say little: with others kept apart to tell, and without."""
_DAMPING = 0.01
_DAMPINGS_OF_FEW = (0.1, 1.0)
_MANY_ROWS = 4.0
"""Rows for each number of a sum, from which the least damping serves best."""
_PENDING_ROWS = 1024


@dataclass(frozen=True)
class Part:
    """A weight that may get zeros.

    Attributes:
        layer: That reads it.
        readers: All layers that do.
        order: Numbers of a sum in the order in which the pattern runs along them; None for the order they are in.
    """

    layer: Layer
    readers: tuple[Layer, ...]
    order: Array | None = None

    @property
    def name(self) -> str:
        """Of the layer."""
        return self.layer.name

    @property
    def size(self) -> int:
        """Numbers of the weight."""
        return int(np.prod(facts.static_dims(self.layer.weight) or (0,)))

    @property
    def weight(self) -> Array:
        """The weight as the layer has it."""
        content = facts.constant(self.layer.weight)
        assert content is not None
        return content

    def matrix(self, weight: Array) -> Array:
        """A weight as [groups, outputs of a group, numbers of a sum], in order."""
        if self.layer.node.op_type == "Conv":
            found = weight.reshape(self.layer.groups, len(weight) // self.layer.groups, -1)
        else:
            found = (weight if self.layer.inner == 1 else weight.T)[None]
        return found if self.order is None else found[..., self.order]

    def restored(self, matrix: Array) -> Array:
        """What :meth:`matrix` made this of."""
        if self.order is not None:
            matrix = matrix[..., np.argsort(self.order)]
        if self.layer.node.op_type == "Conv":
            return matrix.reshape(self.weight.shape)
        return np.ascontiguousarray(matrix[0] if self.layer.inner == 1 else matrix[0].T)

    def turned(self, sums: Array) -> Array:
        """Sums [groups, K + 1, K + 1] of products of what a layer reads, in order."""
        if self.order is None:
            return sums
        order = np.append(self.order, len(self.order))
        return sums[:, order][:, :, order]


def parts_of(
    layers: Sequence[Layer], pattern: Pattern, kept: Callable[[str], bool]
) -> tuple[list[Part], dict[str, str]]:
    """The weights that may get zeros, in the order of their first layers, and why those of other layers may not.

    Args:
        kept: From a layer's name, whether its weight stays.
    """
    readers: dict[ir.Value, list[Layer]] = {}
    for layer in layers:
        readers.setdefault(layer.weight, []).append(layer)
    found: list[Part] = []
    refused: dict[str, str] = {}
    for weight, own in readers.items():
        first = own[0]
        reason = next((text for layer in own if (text := _why_not(layer, pattern, kept))), "")
        alike = all((layer.inner, layer.groups) == (first.inner, first.groups) for layer in own)
        if not reason and (len(weight.uses()) != len(own) or not alike or weight.is_graph_output()):
            reason = "its weight is read by something else too"
        if reason:
            refused.update({layer.name: reason for layer in own})
            continue
        order = None
        if first.node.op_type == "Conv" and pattern.block:
            _, channels, *window = facts.static_dims(weight) or ()
            count = channels * int(np.prod(window))
            order = np.arange(count).reshape(channels, -1).T.reshape(-1)
        found.append(Part(first, tuple(own), order))
    return found, refused


def _why_not(layer: Layer, pattern: Pattern, kept: Callable[[str], bool]) -> str:
    """Why a layer's weight gets no zeros; empty where it may."""
    dims = facts.static_dims(layer.weight)
    content = facts.constant(layer.weight)
    if kept(layer.name):
        return "the option 'keep' names it"
    if layer.node.op_type == "ConvTranspose":
        return "it is a transposed convolution"
    if layer.is_depthwise:
        return "it is depthwise: each sum has one channel"
    if dims is None or content is None or not np.isfinite(content).all():
        return "its weight is not finite"
    if layer.node.op_type == "Gemm" and not facts.attribute(layer.node, "alpha", 1.0):
        return "its product counts for nothing: alpha is 0"
    if pattern.block and dims[layer.inner] % pattern.block:
        what = "channels" if layer.node.op_type == "Conv" else "numbers"
        of = " of a group" if layer.groups > 1 else ""
        return f"its {dims[layer.inner]} input {what}{of} are no multiple of {pattern.block}"
    return ""


@dataclass
class Outcome:
    """What became of one weight.

    Attributes:
        criterion: That its zeros were chosen by.
        before: Noise of the layer relative to what it gives, with zeros by mean squares and the other numbers as they
            were; on samples kept apart. None where it was not measured.
        after: With the weight it was given.
        note: Why another criterion took the place of what was asked for.
    """

    criterion: str
    before: float | None = None
    after: float | None = None
    note: str = ""


@dataclass
class Sums:
    """Second moments of what a layer reads, with a one behind it for the bias, group by group.

    Rows of several samples are multiplied together: for a wide layer a product costs less than adding it up.
    """

    rows: int = 0
    _total: Array | None = None
    _pending: list[Array] = field(default_factory=list)

    def add(self, rows: Array) -> None:
        """Add rows, float32 [groups, rows, K]."""
        self._pending.append(rows)
        self.rows += rows.shape[1]
        if sum(entry.shape[1] for entry in self._pending) >= _PENDING_ROWS:
            self._multiply()

    def _multiply(self) -> None:
        rows = np.concatenate(self._pending, axis=1)
        self._pending = []
        with_one = np.concatenate([rows, np.ones((*rows.shape[:2], 1), np.float32)], axis=2)
        found = np.stack([group.T @ group for group in with_one]).astype(np.float64)
        self._total = found if self._total is None else self._total + found

    @property
    def means(self) -> Array:
        """float64 [groups, K + 1, K + 1]."""
        if self._pending:
            self._multiply()
        assert self._total is not None
        return self._total / self.rows


@dataclass(frozen=True)
class Solution:
    """A weight with zeros, and what its bias gets.

    Attributes:
        weight: Of the shape and type of the one it takes the place of.
        shift: What the layer's outputs are to get besides, [outputs]; zeros where its bias has to stay.
        outcome: For the report.
    """

    weight: Array
    shift: Array
    outcome: Outcome


def solved(
    part: Part, pattern: Pattern, share: float, train: Sums, test: Sums, *, shifts: bool
) -> Solution | str:
    """The weight, of some dampings and of no change at all, that loses least on the test samples.

    With fewer rows the dampings are stronger.

    Args:
        part: The weight.
        share: Of the numbers that become zero, where the pattern does not say.
        train: What its layer reads on samples to fit.
        test: On others; the same object where there are none.
        shifts: Whether the layer's bias may change: then it makes up for the means.

    Returns:
        Why there is none, where these samples say too little.
    """
    kept_apart = test is not train
    least = _LEAST_ROWS if kept_apart else _LEAST_ROWS_ALONE
    if train.rows + (test.rows if kept_apart else 0) < least * inputs_of(part.layer.node):
        return "too few inputs were seen for second moments"
    fit, judged = part.turned(train.means), part.turned(test.means)
    if not (np.isfinite(fit).all() and np.isfinite(judged).all()):
        return "what it reads is not finite on the data"
    matrix = part.matrix(part.weight).astype(np.float64)
    made, bias = np.empty_like(matrix), np.zeros(matrix.shape[:2])
    many = train.rows >= _MANY_ROWS * matrix.shape[2]
    # Without samples kept apart the weaker damping would look best whatever it does to others.
    dampings = (_DAMPING,) if many else _DAMPINGS_OF_FEW[: 2 if kept_apart else 1]
    before = after = power = 0.0
    for group, own in enumerate(matrix):
        best = _Best(own, fit[group], judged[group], shifts)
        plain = np.where(pattern.zeros(sparse.scores(own, np.diag(fit[group])[:-1]), share), 0.0, own)
        best.offer(plain)
        for damping in dampings:
            found = sparse.sparse_gpt(own, best.moments, pattern, share, damping)
            if found is not None:
                best.offer(found)
        made[group], bias[group] = best.weight, best.bias
        after += best.lost
        before += sparse.loss(plain - own, judged[group][:-1, :-1])
        power += sparse.loss(own, judged[group][:-1, :-1])
    power = power or 1.0
    alpha = facts.attribute(part.layer.node, "alpha", 1.0) if part.layer.node.op_type == "Gemm" else 1.0
    return Solution(
        part.restored(made).astype(part.weight.dtype),
        alpha * bias.reshape(-1),
        Outcome("hessian", before / power, after / power),
    )


class _Best:
    """The weight that loses least of those that are offered, with the bias that goes with it.

    Args:
        weight: Of the layer, [outputs, K].
        fit: Means of products of what it reads and of one, on samples to fit, [K + 1, K + 1].
        judged: On others.
        shifts: Whether its bias may change.
    """

    def __init__(self, weight: Array, fit: Array, judged: Array, shifts: bool) -> None:
        self._weight = weight
        self._judged = judged
        self._means = fit[:-1, -1] if shifts else np.zeros(len(fit) - 1)
        self.moments = fit[:-1, :-1] - np.outer(self._means, self._means)
        """What is left to make up for once the bias takes the means."""
        self.lost = float("inf")
        self.weight, self.bias = weight, np.zeros(len(weight))

    def offer(self, weight: Array) -> None:
        """Take it if it loses less."""
        change = weight - self._weight
        bias = -change @ self._means
        lost = sparse.loss(np.concatenate([change, bias[:, None]], axis=1), self._judged)
        if lost < self.lost:
            self.weight, self.bias, self.lost = weight, bias, lost


def contents_of(model: ir.Model) -> dict[str, Array]:
    """The weights of all layers of a model, each once, by the name of the weight."""
    found = {layer.weight.name or "": facts.constant(layer.weight) for layer in layers_of(model.graph)}
    return {name: content for name, content in found.items() if content is not None}


__all__ = ["Outcome", "Part", "Solution", "Sums", "contents_of", "parts_of", "solved"]
