"""An interruption that something swallowed is raised again at the next stage."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from graphopt import interrupt


def test_an_interruption_that_was_swallowed_is_raised_again() -> None:
    with interrupt.noted():
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            interrupt.check()
        interrupt.taken()
        interrupt.check()


def test_nothing_is_left_behind() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), interrupt.noted():
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
    interrupt.check()


def test_another_thread_leaves_signals_alone() -> None:
    seen: list[object] = []

    def body() -> None:
        with interrupt.noted():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGINT)]
