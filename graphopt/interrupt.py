"""Ctrl-C that is not lost.

Python raises ``KeyboardInterrupt`` wherever the program happens to be. In a finalizer, or in what a C library calls, it
is printed or dropped there, and the program goes on. So the command line notes the signal as well, and a compilation
asks for it at each stage.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

_pending = False


@contextlib.contextmanager
def handling(number: signal.Signals, handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle a signal while this lasts; not in a thread other than the main one, which cannot."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, previous)


@contextlib.contextmanager
def noted() -> Iterator[None]:
    """Note SIGINT while this lasts; it raises ``KeyboardInterrupt`` as ever."""
    # Ignored, as in the background of a shell, or handled by others: then it is theirs.
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    try:
        with handling(signal.SIGINT, _note):
            yield
    finally:
        taken()


def taken() -> None:
    """Say that an interruption was heard: whoever catches ``KeyboardInterrupt`` and goes on calls this."""
    global _pending
    _pending = False


def check() -> None:
    """Raise an interruption that was noted and that nobody heard.

    Raises:
        KeyboardInterrupt: There is one.
    """
    if _pending:
        raise KeyboardInterrupt


def _note(number: int, frame: FrameType | None) -> None:
    global _pending
    del number, frame
    _pending = True
    raise KeyboardInterrupt


__all__ = ["check", "handling", "noted", "taken"]
