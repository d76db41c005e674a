"""Inputs that were made up are tried on the original elsewhere first: a kernel may divide by a size that is zero for
them, or never end, and would take the program with it."""

from __future__ import annotations

import contextlib
import time

import onnx_ir as ir

from graphopt.data.interface import Feeds
from graphopt.errors import TargetError
from graphopt.processes import total_memory
from graphopt.verify.apart import ApartSession

_SECONDS = 120.0
"""For all inputs together."""
_SHARE_OF_MEMORY = 0.25
"""Of the machine's, that a run of sizes that were made up may take: what takes more is another size than is meant."""


class Rehearsal:
    """The original in a process of its own, and in another one after each that it ended. A context manager.

    Args:
        model: The original, or None where nothing is to be tried.
        seed: Of random operators.
    """

    def __init__(self, model: ir.Model | None, *, seed: int = 0) -> None:
        self._model, self._seed = model, seed
        self._cleanup = contextlib.ExitStack()
        self._session: ApartSession | None = None
        self._left = _SECONDS

    def __enter__(self) -> Rehearsal:
        return self

    def __exit__(self, *exception: object) -> None:
        self._cleanup.close()

    def check(self, feeds: Feeds) -> None:
        """Run the original on these inputs.

        Raises:
            TargetError: It rejects them, crashes, takes too long, or more memory than made-up inputs are worth.
        """
        if self._model is None:
            return
        if self._session is None:
            memory = int(_SHARE_OF_MEMORY * total_memory())
            session = ApartSession(self._model, optimize="off", seed=self._seed, memory=memory or None)
            self._session = self._cleanup.enter_context(session)
        self._session.begin([feeds])
        started = time.monotonic()
        try:
            self._session.outputs(self._left)
        except TargetError:
            if not self._session.alive:
                self._cleanup.close()
                self._session = None
            raise
        finally:
            self._left = max(0.0, self._left - (time.monotonic() - started))
