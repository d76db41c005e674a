"""Lossy forms of single layers: put into a graph, measured for the noise that each adds alone, chosen by the budget.

A *form* builds, beside a node, what computes almost the same. The noise of all forms is found in one session in which
each has a switch (for small noise these powers add up: Zhou et al., Adaptive Quantization for Deep Neural Network,
AAAI 2018). Where the budget does not hold with all of them, those that add most noise for what they gain stay as they
were.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir

from graphopt.data.interface import Feeds
from graphopt.errors import TargetError
from graphopt.ir import model as ir_model
from graphopt.ir import provenance
from graphopt.ir.facts import Array
from graphopt.machine import Kernel
from graphopt.quant.units import Unit
from graphopt.rewrite import Builder
from graphopt.verify.agreement import noise_share
from graphopt.verify.budget import Judgement
from graphopt.verify.evaluation import Evaluation
from graphopt.verify.session import Session

SWITCHES = "graphopt_switches"
_MOST_JUDGED = 9
_GUESS, _MEASURED = 0.9, 0.97
"""Of the noise that there is room for: by the noise of all layers, and by that of a set near what holds."""
_STEP = 0.8
"""Of its noise, for a set that loses too much by a metric that tells little of how much."""
_FOLLOWED = 5
"""Turns in which what the last set lost says how many layers the next one has; after them halves are taken."""
_LEAST_NOISE = 1e-15
_LEAST_GROUPS, _LEAST_RUNS = 6, 12
_LITTLE = 0.1
"""Noise up to which it adds up, so that the whole less one part tells the other; more hides what a quiet part adds."""


@dataclass
class Shared:
    """What the forms of one graph have in common.

    Attributes:
        constants: By name.
        values: Outputs of the node that was made for a value, by that value.
    """

    constants: dict[str, ir.Value] = field(default_factory=dict)
    values: dict[ir.Value, Sequence[ir.Value]] = field(default_factory=dict)


class Beside(Builder):
    """Builds nodes beside a node of the main graph. A constant is made once, whoever asks for it.

    Args:
        node: The node.
        common: What was made for the nodes before it.
    """

    def __init__(self, node: ir.Node, maker: str, common: Shared) -> None:
        super().__init__(node, maker)
        self.common = common

    def shared(self, name: str, content: ir.TensorProtocol | Array) -> ir.Value:
        """The constant of this name; its content is the same whenever it is asked for."""
        if name not in self.common.constants:
            tensor = ir.tensor(content, name=name) if isinstance(content, np.ndarray) else content
            self.common.constants[name] = ir.Value(
                name=name,
                type=ir.TensorType(tensor.dtype),
                shape=ir.Shape(tensor.shape.numpy()),
                const_value=tensor,
            )
        return self.common.constants[name]


Form = Callable[[ir.Node, Beside], Sequence[ir.Value | None]]
"""Builds, beside a node, values for its outputs; None for an output that is not there."""


def replaced(model: ir.Model, forms: Mapping[str, Form], maker: str) -> ir.Model:
    """A copy of ``model`` in which nodes of its main graph, by name, have these forms."""
    copy = ir_model.clone(model)
    common = Shared()
    for node in [node for node in copy.graph if node.name in forms]:
        build, values = _built(copy.graph, node, forms[node.name or ""], maker, common)
        copy.graph.insert_before(node, build.nodes)
        for made in build.nodes:
            provenance.record(made, maker, [node])
        for old, new in zip(node.outputs, values, strict=False):
            if new is None:
                continue
            new.type, new.shape = old.type, old.shape.copy() if old.shape is not None else None
            old.replace_all_uses_with(new, replace_graph_outputs=True)
            old.name, new.name = f"{old.name}/{maker}_replaced", old.name
        copy.graph.remove(node, safe=True)
    _drop_unread(copy.graph)
    return copy


def noise_of_forms(
    model: ir.Model,
    forms: Mapping[str, Form],
    samples: Sequence[Feeds],
    *,
    threads: int = 0,
    deadline: float = float("inf"),
    progress: Callable[[str], None] = lambda text: None,
) -> dict[str, float]:
    """Noise power over signal power, in the worst output, that each form adds alone.

    Where time does not suffice for each of them, neighbours are measured together; what adds most is then halved as
    long as there is time (where there is little noise one half is taken to add what the other leaves), and layers that
    are still together share what they add. Few layers make most of the noise, and few runs find them.

    Args:
        samples: Few: each form runs all of them.
        deadline: ``time.monotonic()`` after which the rest is not measured; a few groups are in any case, and halves of
            the loudest.
    """
    switched = ir_model.clone(model)
    names = _add_switches(switched, forms)
    session = Session(switched, optimize="all", threads=threads)
    off = np.zeros(len(names), dtype=bool)
    started = time.monotonic()
    references = [session.run({**feeds, SWITCHES: off}) for feeds in samples]
    now = time.monotonic()

    def measured(first: int, end: int) -> float:
        progress(f"noise of layer {first + 1} of {len(names)}")
        switches = off.copy()
        switches[first:end] = True
        share = noise_share([session.run({**feeds, SWITCHES: switches}) for feeds in samples], references)
        return share if np.isfinite(share) else float(np.finfo(np.float32).max)

    together = _group_size(len(names), (deadline - now) / (now - started))
    groups: dict[tuple[int, int], float] = {}
    for number, first in enumerate(range(0, len(names), together)):
        if number >= _LEAST_RUNS and time.monotonic() > deadline:
            break
        end = min(first + together, len(names))
        groups[first, end] = measured(first, end)
    runs = len(groups)
    while runs < _LEAST_RUNS or time.monotonic() < deadline:
        first, end = max(groups, key=lambda group: groups[group] if group[1] - group[0] > 1 else -1.0)
        if end - first < 2:
            break
        whole, middle = groups.pop((first, end)), (first + end) // 2
        groups[first, middle] = half = measured(first, middle)
        is_told = whole <= _LITTLE or half <= whole / 2
        groups[middle, end] = max(whole - half, 0.0) if is_told else measured(middle, end)
        runs += 1 if is_told else 2
    return {
        name: share / (end - first) for (first, end), share in groups.items() for name in names[first:end]
    }


def _group_size(count: int, runs: float) -> int:
    """How many of so many layers are measured together, where there is time for ``runs`` runs; half of them is left."""
    if runs >= count:
        return 1
    return math.ceil(count / max(_LEAST_GROUPS, int(runs / 2)))


def _add_switches(model: ir.Model, forms: Mapping[str, Form]) -> list[str]:
    """Let a new input choose between each node and its form; returns the nodes' names in the input's order."""
    graph = model.graph
    nodes = [node for node in graph if node.name in forms]
    switches = ir.Value(name=SWITCHES, type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([len(nodes)]))
    graph.inputs.append(switches)
    common = Shared()
    for index, node in enumerate(nodes):
        build, values = _built(graph, node, forms[node.name or ""], SWITCHES, common)
        place = build.shared(f"{SWITCHES}/{index}", np.asarray(index, np.int64))
        if place.name not in graph.initializers:
            graph.register_initializer(place)
        switch = build.op("Gather", switches, place, axis=0, shape=())
        chosen = [
            None if new is None else build.op("Where", switch, new, old, like=old)
            for old, new in zip(node.outputs, values, strict=False)
        ]
        made = set(build.nodes)
        graph.insert_after(node, build.nodes)
        for old, new in zip(node.outputs, chosen, strict=False):
            if new is None:
                continue
            for use in [use for use in old.uses() if use.node not in made]:
                use.node.replace_input_with(use.idx, new)
            for slot, output in enumerate(graph.outputs):
                if output is old:
                    graph.outputs[slot] = new
                    old.name, new.name = f"{old.name}/{SWITCHES}_off", old.name
    return [node.name or "" for node in nodes]


def _built(
    graph: ir.Graph, node: ir.Node, form: Form, maker: str, common: Shared
) -> tuple[Beside, Sequence[ir.Value | None]]:
    build = Beside(node, maker, common)
    values = form(node, build)
    for value in [*build.initializers, *common.constants.values()]:
        if value.name not in graph.initializers:
            graph.register_initializer(value)
    return build, values


def _drop_unread(graph: ir.Graph) -> None:
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
            del graph.initializers[name]


@dataclass
class Found:
    """What looking for a lossy form of a graph came to.

    Attributes:
        label: Of the form, in reports.
        model: The graph; None where nothing held.
        nearest: The best that did not hold; None where something did.
        judgement: What either loses.
        units: The layers that the result has on integers.
        details: For the report.
        reason: Why there is no result.
        milliseconds: Of all kernels of the result, as predicted; infinite where nothing could be measured.
    """

    label: str = ""
    model: ir.Model | None = None
    nearest: ir.Model | None = None
    judgement: Judgement | None = None
    units: tuple[Unit, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)
    reason: str = ""
    milliseconds: float = float("inf")


class Setting(Protocol):
    """What choosing layers takes of a pass's context (:class:`graphopt.lossy.Context`)."""

    @property
    def evaluation(self) -> Evaluation:
        """Held-out samples, the metric and the budget."""

    @property
    def runnable(self) -> bool:
        """Whether the target runs on this machine."""

    @property
    def threads(self) -> int:
        """Of an operator."""

    @property
    def deadline(self) -> float:
        """``time.monotonic()`` after which nothing new is begun."""

    @property
    def limit(self) -> float:
        """The same as long as nothing was found to hold, where that is later."""

    def running(self, model: ir.Model, /) -> AbstractContextManager[Callable[[Feeds], Feeds]]:
        """Runs a graph as the target does, or as near to it as there is time for."""

    def profile(self, model: ir.Model, label: str, /) -> Sequence[Kernel]:
        """Kernels that a graph runs on the target, with their times."""

    def progress(self, text: str, /) -> None:
        """Told what is being done."""


@dataclass
class Point:
    """A set of layers in their lossy form, and what became of it.

    Attributes:
        chosen: Names of the layers.
        judgement: On the held-out samples.
        gain: Sum of what its layers gain.
    """

    chosen: frozenset[str]
    judgement: Judgement
    gain: float


@dataclass
class Choice:
    """The outcome of :func:`choose`.

    Attributes:
        points: Every set that was judged, in order.
        best: That of most gain that holds; None where none does.
        noise: Of each layer alone; empty where it was not needed.
    """

    points: list[Point] = field(default_factory=list)
    best: Point | None = None
    noise: Mapping[str, float] = field(default_factory=dict)

    @property
    def nearest(self) -> Point:
        """That which is least over the budget."""
        return min(self.points, key=lambda point: point.judgement.excess)


def choose(
    gains: Mapping[str, float],
    judge: Callable[[frozenset[str]], Judgement],
    noise: Callable[[float], Mapping[str, float]],
    *,
    deadline: float = float("inf"),
    limit: float = 0.0,
    everything: Judgement | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> Choice:
    """The set of layers of most gain within the budget, where the noise of layers adds up.

    Args:
        gains: What each layer gains in its lossy form: bytes, or milliseconds.
        judge: What a set loses.
        noise: Of each layer alone, measured until the time that it is given, roughly where that is over; asked only
            where the budget does not hold with all.
        deadline: ``time.monotonic()`` after which nothing new is begun.
        limit: The same as long as nothing holds, where that is later.
        everything: What all lose together, where that is known: too much.
    """
    found = Choice()
    limit = max(deadline, limit)
    started = time.monotonic()

    def holds(names: Iterable[str]) -> bool:
        chosen = frozenset(names)
        progress(f"judging {len(chosen)} of {len(gains)} layers")
        point = Point(chosen, judge(chosen), sum(gains[name] for name in chosen))
        found.points.append(point)
        if point.judgement.ok and (found.best is None or point.gain > found.best.gain):
            found.best = point
        return point.judgement.ok

    if everything is not None:
        found.points.append(Point(frozenset(gains), everything, sum(gains.values())))
    if not gains or (everything is None and holds(gains)):
        return found
    now = time.monotonic()
    # What is chosen by it takes as long to be judged as all did.
    seconds = now - started
    found.noise = noise((deadline if now + seconds < deadline else limit) - seconds)
    # Layers that were not measured before the deadline come last: they stay as they were. Without any measurement those
    # that gain most come first.
    unknown = float("inf") if found.noise else 1.0
    price = {
        name: max(found.noise.get(name, unknown), _LEAST_NOISE) / max(gains[name], 1e-12) for name in gains
    }
    order = sorted(gains, key=lambda name: price[name])
    low, high = 0, len(order)
    middle = _guess(order, found.noise, found.points[0].judgement)
    for turn in range(_MOST_JUDGED):
        # The first guess is judged however late it is: without it nothing may be left.
        late = time.monotonic() > (limit if found.best is None else deadline)
        if high - low <= 1 or (turn and late):
            break
        low, high = (middle, high) if holds(order[:middle]) else (low, middle)
        expected = _expected(order[:middle], order, found) if turn < _FOLLOWED else None
        middle = (low + high) // 2 if expected is None else min(max(expected, low + 1), high - 1)
    if found.best is not None and time.monotonic() < deadline:
        more = _affordable(order, found.noise, found.best)
        if more:
            holds([*found.best.chosen, *more])
    return found


def _affordable(order: Sequence[str], noise: Mapping[str, float], best: Point) -> list[str]:
    """Layers behind a loud one in ``order`` that fit into what ``best`` leaves of the budget."""
    used = sum(noise.get(name, 0.0) for name in best.chosen)
    drop, allowed = best.judgement.drop, best.judgement.allowed
    room = used * (_GUESS * allowed / drop - 1) if drop > 0 else 0.0
    found: list[str] = []
    for name in order:
        cost = noise.get(name, float("inf"))
        if name not in best.chosen and cost <= room:
            found.append(name)
            room -= cost
    return found


def _guess(order: Sequence[str], noise: Mapping[str, float], everything: Judgement) -> int:
    """How many layers of ``order`` would hold if what is lost were proportional to the sum of their noise."""
    shares = np.cumsum([noise.get(name, float("inf")) for name in order])
    known = shares[np.isfinite(shares)]
    share = min(_room(everything), 1.0)
    if share >= 1 or not len(known) or known[-1] <= 0:
        return max(len(order) // 2, 1)
    allowed = _GUESS * share * known[-1]
    return int(np.clip(np.searchsorted(shares, allowed, side="right"), 1, max(len(order) - 1, 1)))


def _expected(tried: Sequence[str], order: Sequence[str], found: Choice) -> int | None:
    """How many layers of ``order`` should hold, by what those judged last lost; None where that tells nothing."""
    shares = np.cumsum([found.noise.get(name, float("inf")) for name in order])
    measured = shares[len(tried) - 1]
    room = _room(found.points[-1].judgement)
    known = 0 < measured < np.inf and room < np.inf
    return int(np.searchsorted(shares, _MEASURED * room * measured, side="right")) if known else None


def _room(judgement: Judgement) -> float:
    """How many times the noise that was judged the budget has room for; infinite where nothing is lost."""
    if judgement.needed and np.isfinite(judgement.decibels):
        # Of what the metric loses there, a sample more or less is most.
        room = 10 ** ((judgement.decibels - judgement.needed) / 10)
        return room if judgement.drop <= judgement.allowed else min(room, _STEP)
    if np.isfinite(judgement.drop) and judgement.drop > 0:
        return judgement.allowed / judgement.drop
    return math.inf


def refusals(refused: Mapping[str, str]) -> list[dict[str, Any]]:
    """Layers that stay in float, with the reason, for the report."""
    return [
        {"node": name, "op": "", "precision": "float32", "reason": reason} for name, reason in refused.items()
    ]


def judge(model: ir.Model, setting: Setting) -> Judgement:
    """What a graph loses on the held-out samples as it runs."""
    try:
        with setting.running(model) as run:
            return setting.evaluation.judge_while_hopeful(run)
    except TargetError:
        return setting.evaluation.unusable()
