"""Runs the tuner in a process of its own: within its time, started again where TVM crashes, told of as it goes on."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graphopt.errors import TargetError
from graphopt.machine import cores
from graphopt.processes import Lines, SilentError, child_environment
from graphopt.target import Effort, TunedKernel, Tuning
from graphopt.targets.tvm.tuning.database import Database

_BATCH_SECONDS = 90.0
"""For building and measuring a few kernels, which takes one or two; then TVM has hung."""
_PREPARE_SECONDS = 900.0
_MOST_RESTARTS = 5
"""In a row, without a kernel measured between them."""


@dataclass(frozen=True)
class Job:
    """What is to be tuned.

    Attributes:
        source: An ONNX file.
        config: Inputs and outputs, as the executable takes them.
        feeds: An ``.npz`` file of the inputs.
        vectors: Registers to compile for.
        tracker: ``host:port`` of an RPC tracker; "" for this machine.
        device: Its key there.
    """

    source: Path
    config: Mapping[str, Any]
    feeds: Path
    vectors: str
    tracker: str = ""
    device: str = ""


def tune(job: Job, database: Database, effort: Effort, progress: Callable[[str], None]) -> Tuning:
    """Measure tiles until the effort is spent, or nothing is left that is worth it.

    What was measured is in the database at any time; an interruption ends the tuning, and what it found stays.

    Raises:
        TargetError: The model cannot be tuned, or what measures was lost.
        GraphoptError: The database cannot be written.
        KeyboardInterrupt: As usual; the tuner is ended first.
    """
    with tempfile.TemporaryDirectory(prefix="graphopt-tune-") as folder:
        session = _Session(job, database, effort, progress, folder)
        while session.restarts <= _MOST_RESTARTS:
            if session.run():
                return session.outcome()
        raise TargetError(
            f"TVM crashed {session.restarts} times while tuning",
            hint="what was measured is kept; compile the model without --tune",
        )


class _Session:
    def __init__(
        self, job: Job, database: Database, effort: Effort, progress: Callable[[str], None], folder: str
    ) -> None:
        self._job, self._database, self._effort, self._progress = job, database, effort, progress
        self._folder = folder
        self._started = time.monotonic()
        self._begun: dict[str, Any] = {}
        self._gained: dict[str, float] = {}
        self._base: dict[str, float] = {}
        self._trials = 0
        self._trials_before = 0
        self._elapsed = 0.0
        self._bad: list[dict[str, Any]] = []
        self._trying: dict[str, Any] | None = None
        self.restarts = 0

    def run(self) -> bool:
        """One process; whether it came to an end by itself."""
        seconds = None if self._effort.seconds is None else max(self._effort.seconds - self._elapsed, 1.0)
        trials = None if self._effort.trials is None else max(self._effort.trials - self._trials, 1)
        job = {
            "source": str(self._job.source), "config": dict(self._job.config), "feeds": str(self._job.feeds),
            "vectors": self._job.vectors, "threads": cores(), "tracker": self._job.tracker, "key": self._job.device,
            "database": str(self._database.folder), "tvm": self._database.header.tvm,
            "hardware": self._database.header.hardware, "folder": self._folder, "seconds": seconds,
            "trials": trials, "bad": self._bad,
        }  # fmt: skip
        self._trials_before = self._trials
        self._elapsed = time.monotonic() - self._started if self._begun else 0.0
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "graphopt.targets.tvm.tuning.tuner", json.dumps(job)],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True,
                env={**child_environment(), "TVM_BIND_THREADS": "0"}, start_new_session=True,
            )  # fmt: skip
            lines = Lines(process)
            try:
                if self._follow(lines):
                    return True
            finally:
                # With what measures for it, which may hang in a kernel.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                lines.close()
            log.seek(0)
            words = [line.strip() for line in log if line.strip()]
        self.restarts += 1
        if self._trying is None:
            why = f": {words[-1][:300]}" if words else ""
            raise TargetError(f"TVM crashed before anything was measured{why}")
        # What was being measured is left out from now on.
        self._bad += [{"product": self._trying["product"], "tile": tile} for tile in self._trying["tiles"]]
        self._trying = None
        return False

    def _follow(self, lines: Lines) -> bool:
        """Take in what the process tells; whether it came to its end."""
        patience = _PREPARE_SECONDS
        while True:
            try:
                event = lines.next(patience)
            except SilentError:
                return False
            kind = event.pop("event")
            if kind == "error":
                raise TargetError(event["message"], hint=event["hint"])
            if kind == "begun":
                self._begun = self._begun or event
                self._base = dict(self._gained)
                patience = _BATCH_SECONDS
                self._progress(f"{len(event['products'])} products{self._estimate()}")
            elif kind == "trying":
                self._trying = event
            elif kind == "round":
                self._trying, self.restarts = None, 0
                self._trials = self._trials_before + event["trials"]
                # A process that was started again counts from where the last one was.
                self._gained |= {
                    key: self._base.get(key, 1.0) * gain for key, gain in event["gained"].items()
                }
                self._elapsed = time.monotonic() - self._started
                self._progress(f"{self._trials} trials{self._estimate()}: {event['product']}")
            elif kind == "done":
                return True

    def _estimate(self) -> str:
        found = self._after()
        return "" if found is None else f", about {found * 1e3:.3g} ms"

    def _after(self) -> float | None:
        """The model's time, estimated from its kernels'."""
        before = self._begun.get("seconds")
        if before is None:
            return None
        saved = sum(
            entry["share"] * (1 - self._gained.get(entry["key"], 1.0)) for entry in self._begun["products"]
        )
        return float(before * (1 - saved))

    def outcome(self) -> Tuning:
        best = self._database.best()
        kernels = []
        for entry in self._begun["products"]:
            record = best.get(entry["key"])
            kernels.append(
                TunedKernel(
                    entry["key"],
                    entry["count"],
                    entry["share"],
                    tuned=record is not None,
                    trials=0 if record is None else record.trials,
                    gain=1.0 if record is None or not record.seconds else record.before / record.seconds,
                    finished=record is not None and record.finished,
                )
            )
        return Tuning(
            hardware=self._database.header.hardware,
            database=str(self._database.file),
            trials=self._trials,
            seconds=time.monotonic() - self._started,
            before=self._begun.get("seconds"),
            estimate=self._after(),
            kernels=tuple(sorted(kernels, key=lambda kernel: -kernel.share)),
        )
