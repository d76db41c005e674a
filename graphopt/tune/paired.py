"""Times several forms of a model against a baseline: interleaved, each in a process of its own.

A process whose turn is over is stopped: ONNX Runtime's idle threads go on spinning for a while and would
take the cores from whoever runs next. In each round every form runs in turn, in an order that rotates; the
ratio to the baseline is taken within the round, so that what the machine does between rounds cancels. The
speedup is the median of the ratios, with a bootstrap interval of 95 % (Efron & Tibshirani, An Introduction to
the Bootstrap, ch. 13, percentile method)."""

from __future__ import annotations

import contextlib
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from graphopt.data.interface import Feeds, receive_feeds, send_feeds
from graphopt.errors import FormFailedError, ProcessLostError
from graphopt.machine import Form
from graphopt.processes import Child, SilentError, last_words

_LOAD_TIMEOUT = 120.0
_ROUND_SECONDS = 0.06
_MOST_RUNS = 60
_SPIN_SECONDS = 0.15
_SLOW_SECONDS = 0.1
_ALONE_ROUNDS = 4
_ALONE_SECONDS = 0.8
_SETTLED_ROUNDS = 12
_SETTLED_WIDTH = 0.02
_NEAR = 0.015
_LIVES = 5
SHORT = 1.0
"""Milliseconds of a run, below which a process counts for more than its rounds."""


@dataclass(frozen=True)
class Timing:
    """How long one form takes.

    Attributes:
        form: What was timed.
        milliseconds: Of a run: the baseline's median; of others that over their speedup, so that the two agree
            where the machine changes its speed between rounds.
        speedup: Median ratio of the baseline's time to this form's, within rounds.
        low, high: Its 95 % interval.
        rounds: Number of interleaved rounds.
    """

    form: Form
    milliseconds: float
    speedup: float
    low: float
    high: float
    rounds: int

    def describe(self) -> str:
        """For people; near a tie with one digit more, so that it shows which side it is on."""
        digits = 3 if abs(self.speedup - 1) < _NEAR else 2
        speedup, low, high = (f"{ratio:.{digits}f}" for ratio in (self.speedup, self.low, self.high))
        return f"{speedup}x (95 % interval {low} to {high}, {self.rounds} rounds)"


class Worker:
    """A form loaded in a process of its own."""

    def __init__(self, form: Form, feeds: Path | None, threads: int) -> None:
        self.form = form
        self.once = 0.0
        self._ready = False
        self._child = Child("graphopt.tune.worker")
        self._child.send(
            {
                "load": {
                    "target": form.target,
                    "folder": str(form.folder.resolve()),
                    "config": dict(form.config),
                    "feeds": str(feeds) if feeds is not None else "",
                    "threads": threads,
                }
            }
        )

    def wait_ready(self) -> None:
        """Wait until the form is loaded.

        Raises:
            TargetError: It does not load.
        """
        if not self._ready:
            self._receive(_LOAD_TIMEOUT)
            self._ready = True

    def warm_up(self) -> None:
        """Wait until the form is loaded and run it a few times; measures :attr:`once`, seconds of a run."""
        if self.once:
            return
        self.wait_ready()
        first = self.run(2, 0.0)
        self.once = first[-1] if first[-1] > _SLOW_SECONDS else statistics.median(self.run(3, 0.1))

    def run(self, count: int, seconds: float, timeout: float = 300.0) -> list[float]:
        """Seconds of each of up to ``count`` runs; afterwards the process rests."""
        with self._awake():
            self._child.send({"run": {"count": count, "seconds": seconds}})
            return [float(value) for value in self._receive(timeout)["seconds"]]

    @contextlib.contextmanager
    def _awake(self) -> Iterator[None]:
        if sys.platform != "linux":
            # Elsewhere an orphan could stay stopped for ever (no parent-death signal), so wait the spinning out.
            yield
            time.sleep(_SPIN_SECONDS)
            return
        self._child.signal(signal.SIGCONT)
        try:
            yield
        finally:
            self._child.signal(signal.SIGSTOP)

    def outputs(self, feeds: Feeds, timeout: float = 300.0) -> Feeds:
        """The form's outputs for these inputs.

        Raises:
            TargetError: It fails, crashes or does not answer.
        """
        with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
            source, result = Path(folder) / "feeds", Path(folder) / "outputs"
            send_feeds(source, feeds)
            with self._awake():
                self._child.send({"outputs": {"feeds": str(source), "to": str(result)}})
                self._receive(timeout)
            return receive_feeds(result)

    def close(self) -> None:
        """End the process."""
        self._child.close()

    def _receive(self, timeout: float) -> dict[str, Any]:
        try:
            answer = self._child.receive(timeout)
        except SilentError as silent:
            said = f"did not answer within {timeout:g} s"
            if silent.ended:
                said = f"is lost: {last_words(self._child.wait(), '')}"
            raise ProcessLostError(f"the process that runs the form {self.form.label!r} {said}") from silent
        if "error" in answer:
            raise FormFailedError(self.form.label, answer["error"], hint=answer["hint"])
        return answer


class Bench:
    """Workers that stay loaded from one comparison to the next; all end with the ``with`` block.

    Args:
        feeds: Inputs of every run.
        threads: Of an operator, the same for all.
        most_loaded: Forms kept loaded at once; the least recently timed are unloaded first. With 1, for models of
            which memory holds no two, forms are timed in a few long turns.
    """

    def __init__(self, feeds: Feeds, *, threads: int = 0, most_loaded: int = 8) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="graphopt-")
        self._feeds = Path(self._folder.name) / "feeds"
        send_feeds(self._feeds, feeds)
        self._threads = threads
        self._most_loaded = max(1, most_loaded)
        self._workers: dict[str, Worker] = {}

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *exception: object) -> None:
        for worker in self._workers.values():
            worker.close()
        self._workers.clear()
        self._folder.cleanup()

    def time(
        self,
        forms: Sequence[Form],
        *,
        seconds: float = 4.0,
        least_rounds: int = 5,
        most_rounds: int = 40,
        progress: Callable[[str], None] = lambda text: None,
        decided: Callable[[Sequence[Timing]], bool] = lambda timings: False,
    ) -> list[Timing]:
        """Time forms against the first of them.

        Args:
            forms: The baseline first; at most ``most_loaded``.
            seconds: Time to spend on rounds, after loading and warming up.
            least_rounds, most_rounds: Bounds on the number of rounds, whatever the time.
            decided: Asked after each further round whether what was seen is enough; the baseline's is the first.

        Raises:
            TargetError: A form does not load or run.
        """
        if self._most_loaded < 2:
            return self._time_alone(forms, progress)
        self.load(forms)
        running = [self.worker(form, forms) for form in forms]
        for worker in running:
            worker.warm_up()
        counts = [
            max(1, min(_MOST_RUNS, round(_ROUND_SECONDS / max(worker.once, 1e-6)))) for worker in running
        ]
        medians: list[list[float]] = [[] for _ in running]
        started = time.monotonic()
        number = 0
        while number < most_rounds and (
            number < least_rounds
            or (
                time.monotonic() - started < seconds
                and not _settled(medians)
                and not decided(_timings(forms, medians))
            )
        ):
            for index in turn_order(number, len(running)):
                times = running[index].run(counts[index], 4 * _ROUND_SECONDS)
                medians[index].append(statistics.median(times))
            number += 1
            progress(f"round {number}")
        return _timings(forms, medians)

    def _time_alone(self, forms: Sequence[Form], progress: Callable[[str], None]) -> list[Timing]:
        """As :meth:`time`, with one form loaded at a time: fewer, longer turns."""
        medians: list[list[float]] = [[] for _ in forms]
        for number in range(_ALONE_ROUNDS):
            order = range(len(forms)) if number % 2 == 0 else reversed(range(len(forms)))
            for index in order:
                worker = self.worker(forms[index])
                worker.warm_up()
                medians[index].append(statistics.median(worker.run(_MOST_RUNS, _ALONE_SECONDS)))
                progress(f"round {number + 1}")
        return _timings(forms, medians)

    def load(self, forms: Sequence[Form]) -> None:
        """Begin to load forms side by side, as many as may be loaded at once; :meth:`worker` waits for one."""
        for form in forms[: self._most_loaded]:
            self._started(form, forms)

    def worker(self, form: Form, wanted: Sequence[Form] = ()) -> Worker:
        """The loaded worker of a form.

        Args:
            wanted: Forms that must stay loaded where others have to go.

        Raises:
            TargetError: It does not load.
        """
        worker = self._started(form, wanted)
        worker.wait_ready()
        return worker

    def _started(self, form: Form, wanted: Sequence[Form]) -> Worker:
        worker = self._workers.pop(form.label, None)
        if worker is None:
            keep = {other.label for other in wanted}
            for label in [label for label in self._workers if label not in keep]:
                if len(self._workers) >= self._most_loaded:
                    self._workers.pop(label).close()
            worker = Worker(form, self._feeds, self._threads)
        self._workers[form.label] = worker
        return worker

    def drop(self, form: Form) -> None:
        """Unload a form that will not be looked at again."""
        worker = self._workers.pop(form.label, None)
        if worker is not None:
            worker.close()


def time_forms(
    forms: Sequence[Form],
    feeds: Feeds,
    *,
    threads: int = 0,
    seconds: float = 4.0,
    least_rounds: int = 5,
    most_rounds: int = 40,
    progress: Callable[[str], None] = lambda text: None,
) -> list[Timing]:
    """Time forms of one model against the first of them; see :meth:`Bench.time`.

    Where the first one takes less than a millisecond, all are loaded and timed by five processes one after the other,
    and a timing is the median of theirs, its interval the least and the greatest (which hold the median of all
    processes with 94 %): where a process has its memory changes the time of a short run for as long as it lives
    (Mytkowicz et al., Producing Wrong Data Without Doing Anything Obviously Wrong, ASPLOS 2009).
    """

    def once(seconds: float) -> list[Timing]:
        with Bench(feeds, threads=threads, most_loaded=len(forms)) as bench:
            return bench.time(
                forms, seconds=seconds, least_rounds=least_rounds, most_rounds=most_rounds, progress=progress
            )

    first = once(seconds)
    if first[0].milliseconds >= SHORT or len(forms) < 2:
        return first
    again = [once(seconds / _LIVES) for _ in range(_LIVES - 1)]
    lives = list(zip(first, *again, strict=True))
    milliseconds = statistics.median(timing.milliseconds for timing in lives[0])
    return [_over_lives(timings, milliseconds) for timings in lives]


def turn_order(number: int, count: int) -> list[int]:
    """In which order so many forms are run in a round: each comes as often before each other as after it.

    What has just run leaves the caches and the clock otherwise than it found them, and the next one has that.
    """
    order = [(number // 2 + offset) % count for offset in range(count)]
    return order[::-1] if number % 2 else order


def _over_lives(timings: Sequence[Timing], baseline: float) -> Timing:
    """One timing of a form from those of several processes; ``baseline`` in milliseconds."""
    speedups = [timing.speedup for timing in timings]
    speedup = statistics.median(speedups)
    rounds = sum(timing.rounds for timing in timings)
    return Timing(timings[0].form, baseline / speedup, speedup, min(speedups), max(speedups), rounds)


def _settled(medians: Sequence[Sequence[float]]) -> bool:
    """Whether more rounds would change nothing: every interval is narrower than a fiftieth, after a dozen rounds."""
    if len(medians[0]) < _SETTLED_ROUNDS:
        return False
    baseline = np.asarray(medians[0])
    for own in medians[1:]:
        ratios = np.sort(baseline / np.asarray(own))
        # Distribution-free interval of the median: order statistics around the middle.
        spread = int(np.ceil(0.98 * np.sqrt(len(ratios))))
        middle = len(ratios) // 2
        low, high = ratios[max(0, middle - spread)], ratios[min(len(ratios) - 1, middle + spread)]
        if high - low > _SETTLED_WIDTH * ratios[middle]:
            return False
    return True


def _timings(forms: Sequence[Form], medians: Sequence[Sequence[float]]) -> list[Timing]:
    return [_timing(form, medians[0], own) for form, own in zip(forms, medians, strict=True)]


def _timing(form: Form, baseline: Sequence[float], own: Sequence[float]) -> Timing:
    ratios = np.asarray(baseline) / np.asarray(own)
    rng = np.random.default_rng(0)
    resampled = np.median(rng.choice(ratios, (2000, len(ratios))), axis=1)
    low, high = np.percentile(resampled, (2.5, 97.5))
    speedup = float(np.median(ratios))
    milliseconds = float(np.median(baseline)) * 1e3 / speedup
    return Timing(form, milliseconds, speedup, float(low), float(high), len(ratios))
