"""Runs a model in ONNX Runtime in a process of its own, so that a crash or hang is its own."""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from graphopt.data.interface import Feeds, receive_feeds, send_feeds
from graphopt.errors import TargetError, shorten
from graphopt.processes import (
    Child,
    SilentError,
    answers,
    end_with_parent,
    last_words,
    limit_memory,
    own_memory,
)

if TYPE_CHECKING:
    import onnx_ir as ir

_CHILD = "graphopt.verify.apart"


class ApartSession:
    """A model that is loaded and run elsewhere, while its parent works. A context manager: its end ends the process.

    Args:
        model: The graph; its weights are copied.
        optimize: ONNX Runtime's own optimisations.
        seed: Of random operators.
        memory: Bytes that a run may take beyond the loaded model, where the system can be told so; None for any.
    """

    def __init__(
        self, model: ir.Model, *, optimize: Literal["off", "all"], seed: int = 0, memory: int | None = None
    ) -> None:
        from graphopt.verify.session import reuses_buffers, seed_of, skeleton_file

        self._count = 0
        self._pending: list[Path] = []
        with contextlib.ExitStack() as stack:
            path, _ = stack.enter_context(skeleton_file(model, share=False))
            self._folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="graphopt-")))
            self._errors = stack.enter_context(open(self._folder / "errors", "w+", encoding="utf-8"))
            self._child = Child(_CHILD, errors=self._errors)
            stack.callback(self._child.close)
            self._cleanup = stack.pop_all()
        request = {"model": str(path), "optimize": optimize, "seed": seed_of(seed), "memory": memory}
        self._child.send({**request, "reuse": reuses_buffers(model)})

    def __enter__(self) -> ApartSession:
        return self

    def __exit__(self, *exception: object) -> None:
        self._cleanup.close()

    @property
    def alive(self) -> bool:
        """Whether it can be asked for more: not after a crash, a rejected model or a run that took too long."""
        return self._child.alive

    def begin(self, feeds: Sequence[Feeds]) -> None:
        """Run the model on these sets of inputs, one after the other; :meth:`outputs` waits for them."""
        for one in feeds:
            source, result = (self._folder / f"{what}-{self._count}" for what in ("feeds", "outputs"))
            self._count += 1
            send_feeds(source, one)
            self._pending.append(result)
            self._child.send({"feeds": str(source), "to": str(result)})

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
        return [receive_feeds(result) for result in pending]

    def _wait(self, deadline: float, timeout: float) -> None:
        """For the answer to one set of inputs."""
        try:
            error = self._child.receive(deadline - time.monotonic())["error"]
        except SilentError as silent:
            if not silent.ended:
                self._child.close()
                raise TargetError(f"ONNX Runtime took longer than {timeout:g} s") from silent
            code = self._child.wait()
            self._errors.seek(0)
            raise TargetError(last_words(code, self._errors.read())) from silent
        if error:
            raise TargetError(error)


def _child() -> None:
    """The child's side: load the model that the first line names, then run it on the inputs of each further line."""
    end_with_parent()
    answer_to = answers()
    import onnxruntime

    request = json.loads(sys.stdin.readline())
    onnxruntime.set_seed(request["seed"])
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.enable_mem_reuse = request["reuse"]
    if request["optimize"] == "off":
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(request["model"], options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises many unrelated classes; the parent reads the last line
        sys.exit(shorten(error))
    if request["memory"] is not None and sys.platform == "linux":
        limit_memory(own_memory() + request["memory"])
    names = [output.name for output in session.get_outputs()]
    for line in sys.stdin:
        files = json.loads(line)
        said = ""
        try:
            outputs = session.run(names, receive_feeds(Path(files["feeds"])))
            send_feeds(Path(files["to"]), dict(zip(names, outputs, strict=True)))
        except Exception as error:  # as above
            said = shorten(error)
        print(json.dumps({"error": said}), file=answer_to, flush=True)


if __name__ == "__main__":
    _child()
