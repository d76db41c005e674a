"""Which units of a graph compute on integers: the fastest set, by measurement, whose outputs stay within the budget.

1. Calibrate: ranges of every tensor that could be quantized.
2. Measure: the graph in float and with every unit on integers, kernel by kernel; a minimum cut over these times gives
   a set (:mod:`graphopt.quant.cut`). That set is measured as a whole: where integers meet floats a backend does more
   than convert (other layouts, activations that stand alone), so the price of a boundary is corrected until what is
   predicted is what is measured.
3. Judge the fastest sets on held-out samples. If the fastest holds it is done; else the noise of each unit, in company
   and alone, is measured in one sweep (:mod:`graphopt.quant.sweep`), noise gets a price, and bisection finds the lowest
   price at which the budget holds.

It can be stopped at any time: what was found to hold so far stands.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from graphopt import interrupt
from graphopt.data.interface import Feeds, spread
from graphopt.errors import TargetError
from graphopt.ir import model as ir_model
from graphopt.machine import Kernel
from graphopt.quant.attribution import Attribution, attribute, conversion_costs
from graphopt.quant.cut import Costs, conversions, fastest
from graphopt.quant.kernels import IntegerKernels
from graphopt.quant.memory import Memory
from graphopt.quant.observe import Calibration
from graphopt.quant.place import Weights, place
from graphopt.quant.ranges import Range
from graphopt.quant.sweep import SECONDS, Noise, SweepTooLongError, noise_of_units
from graphopt.quant.units import Unit, units_of
from graphopt.verify.budget import Judgement
from graphopt.verify.evaluation import Evaluation, TooSlowError

_SWEEP_SAMPLES = 6
_SWEEP_SHARE = 0.4
_LEAST_SECONDS = 2.0
_MOST_JUDGED = 9
_PRICES = 40
_SMALL = 1e-9
_LEAST_NOISE = 1e-6
_FOR_MARGIN, FOR_ANY = 0.1, 0.3
"""Of the time, that is taken besides where nothing holds with a margin so far; where nothing holds at all."""
_GRACE = 4.0
"""Seconds that the last judgement may take after the time is up."""
_IMPROVING = 0.7
"""Share of the time after which what holds is not improved any more; the rest is for finding something that does."""
_CORRECTIONS = 3
_CLOSE = 0.1
_OUTRUN = 1.25
_MOST_OVERRUN = 1.5
_UNSURE = 0.2
"""Milliseconds below which times of kernels are those of measuring them."""
_MOST_CORRECTED = 8.0

Profile = Callable[[ir.Model, str], Sequence[Kernel]]


@dataclass
class Point:
    """A set of units on integers, and what became of it.

    Attributes:
        chosen: Names of the units.
        milliseconds: Time of all kernels, measured on the whole where there was time for that, else predicted.
        noise: Share of noise that the units' own predict; None where it was not measured.
        judgement: On the held-out samples; None where it was not judged.
    """

    chosen: frozenset[str]
    milliseconds: float
    noise: float | None = None
    judgement: Judgement | None = None


@dataclass
class Found:
    """The outcome of a search.

    Attributes:
        points: Every set that was judged, in order.
        best: The fastest of them that holds; None where none does.
        units: All units that could compute on integers.
        refused: Other nodes of their operators, with the reason.
        integer: Units that an integer kernel really formed for, with all on integers.
        interrupted: Whether it was stopped before its end.
        hurried: Whether it ended because the time was up, with nothing that holds.
        fastest: Milliseconds of the fastest set, whether it holds or not.
        guessed: Whether there was no time to measure noise, and all units count alike.
        times: Milliseconds of sets that were measured as a whole: as predicted before, and as measured.
    """

    points: list[Point] = field(default_factory=list)
    best: Point | None = None
    units: list[Unit] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    slow: dict[str, str] = field(default_factory=dict)
    noise: dict[str, float] = field(default_factory=dict)
    costs: Costs = field(default_factory=lambda: Costs({}, {}, {}))
    float_milliseconds: float = 0.0
    interrupted: bool = False
    hurried: bool = False
    times: dict[frozenset[str], tuple[float, float]] = field(default_factory=dict)
    fastest: float = float("inf")
    guessed: bool = False


@dataclass
class Search:
    """Looks for the mix of one graph on one target.

    Attributes:
        model: The float graph; left as it was.
        kernels: The target's integer kernels.
        calibration: Ranges and sizes of all tensors of all units.
        evaluation: Held-out samples and the budget.
        profile: Kernels that a graph runs on the target; also told a label.
        running: Runs a graph, as the target does, while a ``with`` block lasts.
        allowed: Whether a unit may be put on integers at all, or the reason why not.
        weights: Integer weights found by looking at data, in place of rounding to nearest.
        memory: What an earlier search of just this found, and where this one keeps what it finds.
        rival: Milliseconds of the fastest on another target; what takes much longer is not judged.
        deadline: ``time.monotonic()`` at which it is to end; somewhat later where nothing was found to hold.
    """

    model: ir.Model
    kernels: IntegerKernels
    calibration: Calibration
    evaluation: Evaluation
    profile: Profile
    running: Callable[[ir.Model], AbstractContextManager[Callable[[Feeds], Feeds]]]
    allowed: Callable[[Unit], str] = lambda unit: ""
    weights: Weights = field(default_factory=Weights)
    memory: Memory = field(default_factory=lambda: Memory(None, ""))
    rival: float = float("inf")
    deadline: float = float("inf")
    threads: int = 0
    progress: Callable[[str], None] = lambda text: None
    found: Found = field(default_factory=Found, init=False)
    _late: float = field(default=float("inf"), init=False)
    _end: float = field(default=float("inf"), init=False)
    _last_end: float = field(default=float("inf"), init=False)

    def run(self) -> Found:
        """Search; what was found so far is returned where the user stops it."""
        now = time.monotonic()
        left = max(self.deadline - now, 0.0)
        self._late = now + _IMPROVING * left
        self._end, self._last_end = (self.deadline + more * left for more in (_FOR_MARGIN, FOR_ANY))
        try:
            # What is too slow to be judged in time is left unjudged, and the search ends with what it has.
            with contextlib.suppress(TooSlowError):
                self._run()
            self.memory.finish()
        except KeyboardInterrupt:
            if self.found.best is None:
                raise
            interrupt.taken()
            self.found.interrupted = True
        return self.found

    def quantized(self, chosen: Iterable[str]) -> ir.Model:
        """A copy of the graph with these units on integers."""
        copy = ir_model.clone(self.model)
        place(copy, frozenset(chosen), self.calibration.ranges, self.kernels, self.weights)
        return copy

    def judge(self, chosen: Iterable[str]) -> Judgement:
        """What the graph with these units on integers loses on the held-out samples."""
        # Where nothing holds, here or elsewhere, it may take as long as it wants.
        held = self.found.best is not None or self.rival < float("inf")
        deadline = max(self.deadline, time.monotonic()) + _GRACE if held else float("inf")
        try:
            with self.running(self.quantized(chosen)) as run:
                return self.evaluation.judge_while_hopeful(run, deadline)
        except TargetError:
            return self.evaluation.unusable()

    def _run(self) -> None:
        self.found.units, self.found.refused = usable_units(
            self.model, self.kernels, self.calibration.ranges, self.allowed
        )
        if not self.found.units:
            return
        self._measure()
        cuts = self._cuts()
        if not cuts:
            return
        # Times of kernels do not add up exactly where a backend fuses: plain sets are candidates as well.
        sets = sorted(dict.fromkeys([*cuts, *self._families()]), key=self._time_of)
        self.found.fastest = self._time_of(sets[0])
        if self.found.fastest > self._outrun:
            return
        worth = min(self.found.float_milliseconds * (1 + _CLOSE) + _UNSURE, self._outrun)
        for chosen in sets:
            best = self.found.best
            if self._may_stop():
                break
            if self._is_late() and self._holds_what_failed(chosen):
                continue
            if self._time_of(chosen) <= (worth if best is None else best.milliseconds * (1 + _CLOSE)):
                self._try(chosen)
        best = self.found.best
        if best is not None and self._is_clear() and (best.chosen == sets[0] or self._is_late()):
            return
        if ((best is not None or self.rival < float("inf")) and self._is_over()) or self._gives_up():
            return
        noise = self._sweep()
        # Close to the fastest set what a unit adds in company counts, far from it what it adds alone.
        self._enter_noise(noise.company or noise.alone)
        self._bisect()
        if self.found.best is None and noise.company:
            self._enter_noise(noise.alone)
            self._bisect()

    @property
    def _outrun(self) -> float:
        """Milliseconds from which on a set has no chance beside what holds on another target."""
        return self.rival * _OUTRUN + _UNSURE

    def _is_late(self) -> bool:
        return time.monotonic() > self._late

    def _may_stop(self) -> bool:
        """Whether the time is up, and nothing is known that would be faster than what holds here or elsewhere."""
        holds = self.found.best is not None or self.found.fastest >= self.rival
        return self._is_over() if holds else self._gives_up()

    def _gives_up(self) -> bool:
        """Whether the time for finding anything that holds is up."""
        over = self.found.best is None and bool(self.found.points) and time.monotonic() > self._last_end
        self.found.hurried = self.found.hurried or over
        return over

    def _is_over(self) -> bool:
        """Whether the time is up; what holds without a margin is given some more."""
        unsure = self.found.best is not None and not self._is_clear() and self.rival == float("inf")
        return time.monotonic() > (self._end if unsure else self.deadline)

    def _holds_what_failed(self, chosen: frozenset[str]) -> bool:
        """Whether a set has all the units of one that was over the budget: their noise is hardly less in company."""
        return any(
            point.judgement is not None and not point.judgement.ok and point.chosen <= chosen
            for point in self.found.points
        )

    def _is_clear(self) -> bool:
        """Whether the best holds with a margin; else one that does is looked for, since the target rounds otherwise."""
        best = self.found.best
        return best is not None and best.judgement is not None and best.judgement.is_clear

    def _cuts(self) -> list[frozenset[str]]:
        """The fastest set, as the times of kernels predict it and as measurement of the whole corrects them."""
        sets: list[frozenset[str]] = []
        for turn in range(_CORRECTIONS + 1):
            chosen = self._cut(0.0)
            if not chosen or chosen in sets:
                break
            sets.append(chosen)
            if turn == _CORRECTIONS or self._is_late():
                break
            costs = self.found.costs
            boundary = conversions(self.found.units, costs, self.kernels, chosen)
            if boundary <= 0:
                break
            alone = self._predicted(chosen) - boundary
            ratio = (self._time_of(chosen) - alone) / boundary
            if abs(ratio - 1) <= _CLOSE:
                break
            ratio = min(max(ratio, 1 / _MOST_CORRECTED), _MOST_CORRECTED)
            convert = {name: cost * ratio for name, cost in costs.convert.items()}
            self.found.costs = replace(costs, convert=convert)
        return sets

    def _time_of(self, chosen: frozenset[str]) -> float:
        """Milliseconds of all kernels with these units on integers: measured, or predicted where it is late."""
        times = self.found.times
        if chosen not in times:
            predicted = self._predicted(chosen)
            if self._is_late():
                return predicted
            self.progress(f"time of {len(chosen)} units on integers")
            try:
                kernels = self.profile(self.quantized(chosen), f"{len(chosen)} units")
            except TargetError:
                times[chosen] = predicted, float("inf")
            else:
                times[chosen] = predicted, sum(kernel.milliseconds for kernel in kernels)
        return times[chosen][1]

    def _measure(self) -> None:
        known = self.memory.measured
        if known is not None:
            self.found.costs, self.found.float_milliseconds, self.found.slow = known
            times = self.found.costs.integers
            self.found.units = [unit for unit in self.found.units if unit.name in times]
            return
        self._profile()
        # What has no time on integers is not in the file: a unit that was dropped stays dropped.
        costs = self.found.costs
        integers = {unit.name: costs.integers.get(unit.name, 0.0) for unit in self.found.units}
        self.found.costs = Costs(costs.floats, integers, costs.convert)
        self.memory.measure(self.found.costs, self.found.float_milliseconds, self.found.slow)

    def _profile(self) -> None:
        self.progress("times in float")
        floats = attribute(self.profile(self.model, "float"), self.found.units, self.model)
        self.progress("times on integers")
        everything = self.quantized(unit.name for unit in self.found.units)
        try:
            integers = attribute(self.profile(everything, "integers"), self.found.units, everything)
        except TargetError:
            # Some unit has no kernel that loads: the large ones are tried alone.
            everything = self.quantized(unit.name for unit in self.found.units if unit.kind == "compute")
            self.found.units = [unit for unit in self.found.units if unit.kind == "compute"]
            integers = attribute(self.profile(everything, "integers"), self.found.units, everything)
        self.found.float_milliseconds = sum(floats.milliseconds.values()) + floats.other
        for unit in self.found.units:
            if unit.kind == "compute" and unit.name not in integers.integer:
                self.found.slow[unit.name] = "no integer kernel formed for it"
        self.found.units = [unit for unit in self.found.units if unit.name not in self.found.slow]
        self.found.costs = self._costs(floats, integers)

    def _costs(self, floats: Attribution, integers: Attribution) -> Costs:
        converted = [value.name or "" for unit in self.found.units for value in (*unit.inputs, unit.output)]
        convert = conversion_costs(
            integers.conversions, list(dict.fromkeys(converted)), self.calibration.sizes
        )
        return Costs(floats.milliseconds, integers.milliseconds, convert)

    def _cut(self, price: float) -> frozenset[str]:
        chosen = fastest(self.found.units, self.found.costs, self.kernels, price)
        compute = {unit.name for unit in self.found.units if unit.kind == "compute"}
        return chosen if chosen & compute else frozenset()

    def _families(self) -> list[frozenset[str]]:
        """All products; all products and what only moves elements; all units."""
        kinds = (("compute",), ("compute", "passes"), ("compute", "passes", "arithmetic"))
        sets = [frozenset(unit.name for unit in self.found.units if unit.kind in kind) for kind in kinds]
        return list(dict.fromkeys(sets))

    def _try(self, chosen: frozenset[str]) -> Judgement:
        self.progress(f"judging {len(chosen)} units on integers")
        measured = self.found.times.get(chosen)
        point = Point(chosen, self._predicted(chosen) if measured is None else measured[1])
        if self.found.noise:
            point.noise = sum(self.found.noise.get(name, 0.0) for name in chosen)
        # A metric of the user's own may have been edited since.
        lasting = self.evaluation.metric.task is None
        point.judgement = (
            self.memory.judgement(chosen, self.evaluation.allowed, counts=self.evaluation.metric.counts)
            if lasting
            else None
        )
        if point.judgement is None:
            point.judgement = self.judge(chosen)
            if lasting:
                self.memory.judged(chosen, point.judgement)
        self.found.points.append(point)
        best = self.found.best
        if point.judgement.ok and (best is None or point.milliseconds < best.milliseconds):
            self.found.best = point
        return point.judgement

    def _predicted(self, chosen: frozenset[str]) -> float:
        costs = self.found.costs
        saved = sum(costs.floats.get(name, 0.0) - costs.integers.get(name, 0.0) for name in chosen)
        return (
            self.found.float_milliseconds - saved + conversions(self.found.units, costs, self.kernels, chosen)
        )

    def _sweep(self) -> Noise:
        known = self.memory.noise
        if known is not None:
            return known
        names = [unit.name for unit in self.found.units]
        samples: list[Feeds] = spread(self.evaluation.feeds, _SWEEP_SAMPLES)
        seconds = min(SECONDS, max(_SWEEP_SHARE * (self.deadline - time.monotonic()), _LEAST_SECONDS))
        try:
            noise = noise_of_units(
                self.model, names, self.calibration.ranges, self.kernels, samples,
                weights=self.weights, threads=self.threads,
                seconds=seconds, most=_MOST_OVERRUN, progress=self.progress,
            )  # fmt: skip
        except SweepTooLongError:
            # One unit counts as much as the other: what saves most time goes first.
            self.found.guessed = True
            return Noise(dict.fromkeys(names, 1.0), {})
        if noise.company:
            self.memory.noise = noise
        return noise

    def _enter_noise(self, noise: dict[str, float]) -> None:
        self.found.noise = noise
        self.found.costs = replace(self.found.costs, noise=noise)

    def _bisect(self) -> None:
        """The lowest price of noise at which the budget holds, over the distinct sets that prices give."""
        gains = [self.found.costs.floats.get(unit.name, 0.0) for unit in self.found.units]
        noises = [noise for noise in self.found.noise.values() if noise > 0]
        if not noises:
            return
        least = max(min(noises), max(noises) * _LEAST_NOISE)
        lowest, highest = _SMALL + max(gains) / max(noises) / 1e3, (sum(gains) + 1.0) / least
        sets = [self._cut(float(price)) for price in np.geomspace(lowest, highest, _PRICES)]
        distinct = list(dict.fromkeys(chosen for chosen in sets if chosen))
        tried = {point.chosen for point in self.found.points}
        distinct = [chosen for chosen in distinct if chosen not in tried and self._promises(chosen)]
        first, last = 0, len(distinct)
        for _ in range(_MOST_JUDGED):
            done = self._is_late() and (self._is_clear() or self.rival < float("inf"))
            if first >= last or done or (self.found.best is not None and self._is_over()) or self._gives_up():
                return
            if time.monotonic() > self.deadline:
                # Nothing holds so far, or not with a margin: small sets first.
                first = max(first, (first + 3 * last) // 4)
            middle = (first + last) // 2
            judgement = self._try(distinct[middle])
            if judgement.ok and (judgement.is_clear or self._is_clear()):
                last = middle
            else:
                first = middle + 1

    def _promises(self, chosen: frozenset[str]) -> bool:
        """Whether a set may be faster than the best so far."""
        best = self.found.best
        least = self._outrun
        if best is not None:
            # Beside a best without a margin a slower one is wanted as well, which is still faster than floats.
            least = best.milliseconds if self._is_clear() else min(least, self.found.float_milliseconds)
        return self._predicted(chosen) < least


def usable_units(
    model: ir.Model,
    kernels: IntegerKernels,
    ranges: dict[str, Range] | object,
    allowed: Callable[[Unit], str],
) -> tuple[list[Unit], dict[str, str]]:
    """Units whose tensors have a range that can be quantized, and why others are left in float."""
    units, refused = units_of(model, kernels)
    usable: list[Unit] = []
    for unit in units:
        reason = allowed(unit) or _why_no_range(unit, ranges)  # type: ignore[arg-type]
        if reason:
            refused[unit.name] = reason
        else:
            usable.append(unit)
    return usable, refused


def _why_no_range(unit: Unit, ranges: dict[str, Range]) -> str:
    for value in (*unit.inputs, unit.output):
        found = ranges.get(value.name or "")
        if found is None:
            return f"{value.name!r} was not observed"
        if found.why_not:
            return f"{value.name!r} {found.why_not}"
    return ""
