"""Processes of graphopt's own: what they inherit, and talking with one in lines of JSON."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TextIO


class SilentError(Exception):
    """A child gave no further line: it ended, or it took too long.

    Attributes:
        ended: Whether its output ended.
    """

    def __init__(self, *, ended: bool) -> None:
        super().__init__("it ended" if ended else "it took too long")
        self.ended = ended


class Lines:
    """Reads the standard output of a process.

    Args:
        process: In text mode.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        self._output = process.stdout
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def next(self, seconds: float) -> dict[str, Any]:
        """The next line's object.

        Raises:
            SilentError: The output ended, or no line comes in this time.
        """
        try:
            line = self._lines.get(timeout=max(0.0, seconds))
        except queue.Empty:
            raise SilentError(ended=False) from None
        if not line.endswith("\n"):
            self._lines.put("")
            raise SilentError(ended=True)
        found: dict[str, Any] = json.loads(line)
        return found

    def close(self) -> None:
        """To be called when the process has ended."""
        self._reader.join()
        self._output.close()

    def _read(self) -> None:
        for line in self._output:
            self._lines.put(line)
        self._lines.put("")


class Child:
    """A module that runs in a process of its own and answers each request with a line.

    Args:
        module: Its name; it calls :func:`answers` and reads requests from its standard input.
        arguments: On its command line.
        environment: Variables beside those of :func:`child_environment`.
        errors: A file for what it writes to its standard error.
    """

    def __init__(
        self, module: str, *arguments: str, environment: Mapping[str, str] | None = None,
        errors: int | IO[Any] = subprocess.DEVNULL,
    ) -> None:  # fmt: skip
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, encoding="utf-8",
            env={**child_environment(), **(environment or {})},
        )  # fmt: skip
        self._lines = Lines(self._process)

    @property
    def pid(self) -> int:
        """Its number."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it can be asked for more."""
        return self._process.poll() is None

    def send(self, request: Mapping[str, Any]) -> None:
        """Ask. A child that is gone is noticed when its answer is missing."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()

    def receive(self, seconds: float) -> dict[str, Any]:
        """The next answer.

        Args:
            seconds: To wait for it, at most.

        Raises:
            SilentError: There is none.
        """
        return self._lines.next(seconds)

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    def wait(self) -> int:
        """Its exit code, when it has ended."""
        return self._process.wait()

    def close(self) -> None:
        """End it."""
        self._process.kill()
        with contextlib.suppress(OSError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        self._process.wait()
        self._lines.close()


@dataclass(frozen=True)
class Ended:
    """What a process left behind.

    Attributes:
        code: Its exit code, negative where a signal ended it.
        output, errors: What it wrote.
    """

    code: int
    output: str
    errors: str

    @property
    def last_words(self) -> str:
        """Why it ended."""
        return last_words(self.code, self.errors)


def run_once(
    module: str, *arguments: str, request: Mapping[str, Any] | None = None, seconds: float,
    environment: Mapping[str, str] | None = None,
) -> Ended:  # fmt: skip
    """Run a module in a process of its own, to its end.

    Args:
        module, arguments, environment: As for :class:`Child`.
        request: What it reads from its standard input, as JSON.
        seconds: It may take.

    Raises:
        SilentError: It took longer, and was killed.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments],
            input="" if request is None else json.dumps(request), capture_output=True, text=True,
            encoding="utf-8", errors="replace", env={**child_environment(), **(environment or {})},
            timeout=seconds, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise SilentError(ended=False) from error
    return Ended(done.returncode, done.stdout, done.stderr)


def answers() -> TextIO:
    """The child's side: where its answers go.

    Native libraries print to file descriptor 1, which from now on is the standard error; answers are alone.
    """
    alone = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return alone


def child_environment() -> dict[str, str]:
    """Of a Python process that is to import what this one does, and not what lies in the current folder (from Python
    3.11 on)."""
    path = os.pathsep.join(entry for entry in sys.path if entry)
    return {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}


def end_with_parent() -> None:
    """On Linux, be killed when the parent dies: one that is stopped or busy would not notice."""
    if sys.platform == "linux":
        import ctypes

        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def total_memory() -> int:
    """Bytes of the machine's memory; 0 where it cannot be told."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0


def own_memory() -> int:
    """Bytes of this process's address space, on Linux."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    return pages * os.sysconf("SC_PAGE_SIZE")


def limit_memory(most: int) -> None:
    """Let this process take so many bytes of address space, and no more.

    Raises:
        OSError, ValueError: The system knows no such limit.
    """
    try:
        import resource
    except ImportError:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    least = min(limit for limit in (most, soft, hard) if limit != resource.RLIM_INFINITY)
    resource.setrlimit(resource.RLIMIT_AS, (least, hard))


def last_words(code: int, errors: str) -> str:
    """Why a child process ended with the exit code ``code``, having written ``errors``."""
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"it crashed ({signal.Signals(-code).name})"
    lines = [line for line in errors.strip().splitlines() if line.strip()]
    return lines[-1] if lines else f"exit code {code}"
