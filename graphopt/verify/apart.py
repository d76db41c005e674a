"""Runs a model in ONNX Runtime in a process of its own, so that a crash or hang is its own."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from graphopt.data.interface import Feeds, load_feeds, save_feeds
from graphopt.errors import TargetError, shorten
from graphopt.machine import child_environment, end_with_parent

if TYPE_CHECKING:
    import onnx_ir as ir

_PROGRAM = ("-m", "graphopt.verify.apart")


class ApartSession:
    """A model that is loaded and run elsewhere, while its parent works. A context manager: its end ends the process.

    Args:
        model: The graph; its weights are copied.
        optimize: ONNX Runtime's own optimisations.
        seed: Of random operators.
    """

    def __init__(self, model: ir.Model, *, optimize: Literal["off", "all"], seed: int = 0) -> None:
        from graphopt.verify.session import skeleton_file

        self._count = 0
        self._pending: list[Path] = []
        self._heard = b""
        with contextlib.ExitStack() as stack:
            path, _ = stack.enter_context(skeleton_file(model, share=False))
            self._folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="graphopt-")))
            self._errors = stack.enter_context(open(self._folder / "errors", "w+", encoding="utf-8"))
            self._process = subprocess.Popen(
                [sys.executable, *_PROGRAM],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, env=child_environment(),
            )  # fmt: skip
            self._cleanup = stack.pop_all()
        self._send({"model": str(path), "optimize": optimize, "seed": seed})

    def __enter__(self) -> ApartSession:
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._cleanup.close()

    @property
    def alive(self) -> bool:
        """Whether it can be asked for more: not after a crash, a rejected model or a run that took too long."""
        return self._process.poll() is None

    def begin(self, feeds: Sequence[Feeds]) -> None:
        """Run the model on these sets of inputs, one after the other; :meth:`outputs` waits for them."""
        for one in feeds:
            source, result = (self._folder / f"{what}-{self._count}.npz" for what in ("feeds", "outputs"))
            self._count += 1
            save_feeds(source, one)
            self._pending.append(result)
            self._send({"feeds": str(source), "to": str(result)})

    def outputs(self, timeout: float) -> list[Feeds]:
        """The outputs for each set of inputs that was begun since the last call.

        Args:
            timeout: Seconds, from now on.

        Raises:
            TargetError: ONNX Runtime rejects the model or the inputs, crashes, or takes longer.
        """
        pending, self._pending = self._pending, []
        deadline = time.monotonic() + timeout
        for _ in pending:
            self._wait(deadline, timeout)
        return [load_feeds(result) for result in pending]

    def _wait(self, deadline: float, timeout: float) -> None:
        """For the answer to one set of inputs."""
        answer = self._line(deadline, timeout)
        if not answer:
            code = self._process.wait()
            self._errors.seek(0)
            raise TargetError(last_words(code, self._errors.read()))
        error = json.loads(answer)["error"]
        if error:
            raise TargetError(error)

    def _line(self, deadline: float, timeout: float) -> bytes:
        """The next line of the child, nothing where it ended. Read without a buffer, which no selector sees."""
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._heard:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    self._process.kill()
                    self._process.wait()
                    raise TargetError(f"ONNX Runtime took longer than {timeout:g} s")
                heard = os.read(self._process.stdout.fileno(), 1 << 16)
                if not heard:
                    return b""
                self._heard += heard
        line, _, self._heard = self._heard.partition(b"\n")
        return line

    def _send(self, request: dict[str, object]) -> None:
        assert self._process.stdin is not None
        # A child that is gone is noticed when its answer is missing.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()


def last_words(code: int, errors: str) -> str:
    """Why a child process ended with the exit code ``code``, having written ``errors``."""
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"it crashed ({signal.Signals(-code).name})"
    lines = [line for line in errors.strip().splitlines() if line.strip()]
    return lines[-1] if lines else f"exit code {code}"


def _child() -> None:
    """The child's side: load the model that the first line names, then run it on the inputs of each further line."""
    end_with_parent()
    # Native libraries print to file descriptor 1; the answers must stay alone there.
    answer_to = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import onnxruntime

    request = json.loads(sys.stdin.readline())
    onnxruntime.set_seed(request["seed"])
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if request["optimize"] == "off":
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(request["model"], options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises many unrelated classes; the parent reads the last line
        sys.exit(shorten(error))
    names = [output.name for output in session.get_outputs()]
    for line in sys.stdin:
        files = json.loads(line)
        said = ""
        try:
            outputs = session.run(names, load_feeds(Path(files["feeds"])))
            save_feeds(Path(files["to"]), dict(zip(names, outputs, strict=True)))
        except Exception as error:  # as above
            said = shorten(error)
        print(json.dumps({"error": said}), file=answer_to, flush=True)


if __name__ == "__main__":
    _child()
