"""Runs a model with all of ONNX Runtime's optimisations in a process of its own, so that a crash or hang is its own.

The child is started first and asked for its outputs last, so that it works while its parent does.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from graphopt.data.interface import Feeds, load_feeds, save_feeds
from graphopt.errors import TargetError, shorten
from graphopt.machine import child_environment

if TYPE_CHECKING:
    import onnx_ir as ir

_PROGRAM = ("-m", "graphopt.verify.apart")


class ApartRun:
    """One run of a model on some inputs, begun when this is made. A context manager: its end ends the process.

    Args:
        model: The graph.
        feeds: Sets of inputs.
        seed: Of random operators.
    """

    def __init__(self, model: ir.Model, feeds: Sequence[Feeds], *, seed: int = 0) -> None:
        from graphopt.verify.session import skeleton_file

        with contextlib.ExitStack() as stack:
            path, _ = stack.enter_context(skeleton_file(model, share=False))
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="graphopt-")))
            self._results = [folder / f"outputs-{index}.npz" for index in range(len(feeds))]
            sources = [folder / f"feeds-{index}.npz" for index in range(len(feeds))]
            for source, one in zip(sources, feeds, strict=True):
                save_feeds(source, one)
            self._process = subprocess.Popen(
                [sys.executable, *_PROGRAM],
                stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                env=child_environment(),
            )  # fmt: skip
            self._cleanup = stack.pop_all()
        request = {
            "model": str(path),
            "feeds": [*map(str, sources)],
            "to": [*map(str, self._results)],
            "seed": seed,
        }
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()

    def __enter__(self) -> ApartRun:
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._cleanup.close()

    def outputs(self, timeout: float) -> list[Feeds]:
        """The outputs for each set of inputs.

        Args:
            timeout: Seconds, from now on.

        Raises:
            TargetError: ONNX Runtime rejects the model, crashes, or takes longer.
        """
        try:
            _, errors = self._process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired as error:
            raise TargetError(f"ONNX Runtime took longer than {timeout:g} s") from error
        if self._process.returncode != 0:
            raise TargetError(last_words(self._process.returncode, errors))
        return [load_feeds(result) for result in self._results]


def last_words(code: int, errors: str) -> str:
    """Why a child process ended with the exit code ``code``, having written ``errors``."""
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"it crashed ({signal.Signals(-code).name})"
    lines = [line for line in errors.strip().splitlines() if line.strip()]
    return lines[-1] if lines else f"exit code {code}"


def _child() -> None:
    """The child's side: read one request, run the model on each set of inputs, write the outputs."""
    import onnxruntime

    request = json.loads(sys.stdin.readline())
    onnxruntime.set_seed(request["seed"])
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = onnxruntime.InferenceSession(request["model"], options, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        for source, result in zip(request["feeds"], request["to"], strict=True):
            outputs = session.run(names, load_feeds(Path(source)))
            save_feeds(Path(result), dict(zip(names, outputs, strict=True)))
    except Exception as error:  # onnxruntime raises many unrelated classes; the parent reads the last line
        sys.exit(shorten(error))


if __name__ == "__main__":
    _child()
