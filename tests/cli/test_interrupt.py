"""An interruption that something swallowed is raised again at the next stage."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import threading

from graphopt import interrupt
from graphopt.processes import child_environment


def in_a_process(body: str) -> None:
    """Run statements where a signal reaches nothing but them."""
    head = "import os, signal, pytest\nfrom graphopt import interrupt\n"
    done = subprocess.run(
        [sys.executable, "-c", head + textwrap.dedent(body)],
        capture_output=True, text=True, env=child_environment(), timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_an_interruption_that_was_swallowed_is_raised_again() -> None:
    in_a_process("""
        with interrupt.noted():
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
            with pytest.raises(KeyboardInterrupt):
                interrupt.check()
            interrupt.taken()
            interrupt.check()
    """)


def test_nothing_is_left_behind() -> None:
    in_a_process("""
        before = signal.getsignal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt), interrupt.noted():
            os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is before
        interrupt.check()
    """)


def test_another_thread_leaves_signals_alone() -> None:
    seen: list[object] = []

    def body() -> None:
        with interrupt.noted():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGINT)]
