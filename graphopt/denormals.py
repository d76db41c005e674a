"""Flushing of subnormal floats, for the time of one call and for the calling thread alone.

Processors compute with subnormal numbers (in float32 below 1.2e-38) up to a hundred times slower. A softmax over
masked positions makes many of them: its exponentials end at about 4e-39. Backends can flush them to zero, but they
set the mode of the thread that creates a session, and leave it so; ONNX Runtime does it for the first session of a
process only, and the thread that runs the model later may be another one. So the mode is set around each run, and
what the thread had is put back.

The mode is part of the floating-point environment (C11, 7.6), read and written with ``fegetenv`` and ``fesetenv``:
FTZ and DAZ in MXCSR on x86-64 (Intel 64 SDM, volume 1, 10.2.3), FZ in FPCR on Armv8.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass

_WORDS = 16
"""Of 32 bits; more than any ``fenv_t`` that is read here."""
_SMALLEST = 5e-324


@dataclass(frozen=True)
class _Mode:
    """Where the mode lies in ``fenv_t``: the 32-bit word, and its bits."""

    word: int
    bits: int


_MODES = {
    ("linux", "x86_64"): _Mode(7, 0x8040),
    ("linux", "aarch64"): _Mode(0, 0x0100_0000),
}


_Words = ctypes.c_uint32 * _WORDS


@dataclass(frozen=True)
class _Environment:
    """The C library's access to the floating-point environment of the calling thread."""

    mode: _Mode
    get: Callable[[ctypes.Array[ctypes.c_uint32]], int]
    set: Callable[[ctypes.Array[ctypes.c_uint32]], int]

    def read(self) -> ctypes.Array[ctypes.c_uint32]:
        words = _Words()
        self.get(words)
        return words

    def flush(self, saved: ctypes.Array[ctypes.c_uint32]) -> None:
        words = _Words.from_buffer_copy(saved)
        words[self.mode.word] |= self.mode.bits
        self.set(words)


@functools.cache
def _environment() -> _Environment | None:
    mode = _MODES.get((sys.platform, platform.machine()))
    if mode is None:
        return None
    try:
        library = ctypes.CDLL(None)
        found = _Environment(mode, library.fegetenv, library.fesetenv)
    except (OSError, AttributeError):
        return None
    saved = found.read()
    found.flush(saved)
    works = _is_flushed()
    found.set(saved)
    return found if works else None


def _is_flushed() -> bool:
    return _SMALLEST * float(1) == 0.0


def can_flush() -> bool:
    """Whether this machine lets a thread flush subnormal numbers for a while."""
    return _environment() is not None


class kept:
    """Whatever the block does to the calling thread's floating-point environment, it is as before afterwards."""

    __slots__ = ("_environment", "_saved")

    def __enter__(self) -> None:
        self._environment = _environment()
        if self._environment is not None:
            self._saved = self._environment.read()

    def __exit__(self, *exception: object) -> None:
        if self._environment is not None:
            self._environment.set(self._saved)


class flushed(kept):
    """The calling thread flushes subnormal numbers, as operands and as results, within the block.

    Without effect where :func:`can_flush` says no.
    """

    __slots__ = ()

    def __enter__(self) -> None:
        super().__enter__()
        if self._environment is not None:
            self._environment.flush(self._saved)


def mode(flush: bool) -> Callable[[], contextlib.AbstractContextManager[None]]:
    """What to run a model in: :class:`flushed`, or nothing."""
    return flushed if flush else contextlib.nullcontext
