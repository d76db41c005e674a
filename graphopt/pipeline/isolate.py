"""Runs a native pass in a process of its own, so that its crash or hang is its own.

The child gets the graph with every large weight as an extra input (a native pass never sees the content of large
weights), and hands the changed graph back the same way; weights never leave the parent.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import onnx_ir as ir

from graphopt.errors import GraphoptError, PassFailedError
from graphopt.pipeline.base import Pass, replace_content
from graphopt.processes import SilentError, answers, run_once
from graphopt.rewrite import Refusal, RewriteLog

LARGE_BYTES = 4096


def run_isolated(pass_: Pass, model: ir.Model, log: RewriteLog, timeout: float) -> bool:
    """Run ``pass_`` on ``model`` in a child process; changes ``model`` only when the child succeeds.

    Args:
        timeout: Seconds.

    Raises:
        PassFailedError: The child crashed, raised or took longer than ``timeout``.
    """
    import onnx

    with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
        weights = detach_large(model)
        try:
            proto = ir.to_proto(model)
        finally:
            reattach(model, weights)
        source, result = Path(folder) / "in.onnx", Path(folder) / "out.onnx"
        onnx.save(proto, source)
        request = {
            "pass": f"{type(pass_).__module__}:{type(pass_).__qualname__}",
            "options": dataclasses.asdict(pass_.options),
            "source": str(source),
            "result": str(result),
        }
        try:
            done = run_once("graphopt.pipeline.isolate", request=request, seconds=timeout)
        except SilentError as error:
            raise PassFailedError(f"pass {pass_.name!r} took longer than {timeout:g} s") from error
        if done.code != 0:
            raise PassFailedError(f"pass {pass_.name!r} failed: {done.last_words}")
        answer = json.loads(done.output.splitlines()[-1])
        log.refused += [Refusal(**entry) for entry in answer["refused"]]
        if not answer["modified"]:
            return False
        changed = ir.serde.deserialize_model(onnx.load(result))
        reattach(changed, weights)
        replace_content(model, changed)
        return True


def detach_large(model: ir.Model) -> dict[str, ir.TensorProtocol]:
    """Turn each large initializer into an extra input; returns their contents by name."""
    weights: dict[str, ir.TensorProtocol] = {}
    for name, value in list(model.graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or tensor.nbytes <= LARGE_BYTES or value.is_graph_input():
            continue
        weights[name] = tensor
        value.type = ir.TensorType(tensor.dtype)
        value.shape = ir.Shape(tensor.shape.numpy())
        del model.graph.initializers[name]
        value.const_value = None
        model.graph.inputs.append(value)
    return weights


def reattach(model: ir.Model, weights: dict[str, ir.TensorProtocol]) -> None:
    """Undo :func:`detach_large`; an extra input that nothing reads any more is dropped."""
    for value in list(model.graph.inputs):
        if value.name not in weights:
            continue
        model.graph.inputs.remove(value)
        if value.uses() or value.is_graph_output():
            value.const_value = weights[value.name]
            model.graph.register_initializer(value)


@contextlib.contextmanager
def time_limit(seconds: float, what: str) -> Iterator[None]:
    """Raise a PassFailedError in Python code that runs longer than ``seconds`` (main thread only).

    Elsewhere, and on systems without interval timers, there is no limit.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        del number, frame
        raise PassFailedError(f"{what} took longer than {seconds:g} s")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def _child() -> None:
    """The child's side: read one request, run the pass, write the graph and one line of JSON."""
    import importlib

    request = json.load(sys.stdin)
    module, _, name = request["pass"].partition(":")
    cls = getattr(importlib.import_module(module), name)
    options = {
        key: tuple(value) if isinstance(value, list) else value for key, value in request["options"].items()
    }
    pass_ = cls(cls.Options(**options))
    model = ir.load(request["source"])
    log = RewriteLog()
    answer_to = answers()
    modified = pass_.run(model, log)
    if modified:
        ir.save(model, request["result"])
    refused = [dataclasses.asdict(entry) for entry in log.refused]
    print(json.dumps({"modified": modified, "refused": refused}), file=answer_to, flush=True)


if __name__ == "__main__":
    try:
        _child()
    except GraphoptError as failure:
        # The parent reads the last line; the hint would hide what happened.
        sys.exit(" ".join(failure.message.split()))
