"""What measures kernels: a process of this machine, or a device behind TVM's RPC tracker."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from graphopt.errors import TargetError
from graphopt.processes import Child, SilentError
from graphopt.targets.tvm.adapter import rpc, tensor
from graphopt.targets.tvm.executable import reason_of
from graphopt.targets.tvm.tuning.arguments import Argument, filled

_SECONDS, _PROFILE_SECONDS = 8.0, 600.0
"""For measuring some kernels, which takes a fraction of a second; for running a whole model several times."""
_CONNECT_SECONDS, _FREE_SECONDS = 5.0, 20.0
_REPEATS, _LEAST_MILLISECONDS = 5, 4


class RunnerLostError(TargetError):
    """What measures is gone: nothing more can be measured."""


class Runner(Protocol):
    """Measures kernels."""

    def measure(self, library: Path, kernels: Sequence[Mapping[str, Any]]) -> list[float]:
        """Seconds of a run of each.

        Raises:
            TargetError: They cannot be measured.
        """

    def profile(self, library: Path, config: Mapping[str, Any], feeds: Path) -> dict[str, Any] | None:
        """Seconds of a run of a whole model (``total``), and of its ``kernels`` by name; None where it cannot run."""

    def close(self) -> None:
        """End it."""


class LocalRunner:
    """A process of this machine.

    Args:
        threads: Of a kernel.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._child: Child | None = None

    def measure(self, library: Path, kernels: Sequence[Mapping[str, Any]]) -> list[float]:
        """As :class:`Runner`; a process that crashed or hangs is replaced."""
        answer = self._ask({"library": str(library), "kernels": list(kernels)}, _SECONDS)
        return [float(value) for value in answer["seconds"]]

    def profile(self, library: Path, config: Mapping[str, Any], feeds: Path) -> dict[str, Any] | None:
        """As :class:`Runner`."""
        request = {"library": str(library), "config": dict(config), "feeds": str(feeds)}
        return self._ask(request, _PROFILE_SECONDS)

    def _ask(self, request: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        if self._child is None:
            self._child = Child(
                "graphopt.targets.tvm.tuning.runner", str(self._threads),
                environment={"TVM_NUM_THREADS": str(self._threads), "TVM_BIND_THREADS": "0"},
            )  # fmt: skip
        self._child.send(request)
        try:
            answer = self._child.receive(seconds)
        except SilentError as silent:
            self.close()
            raise TargetError("a kernel crashed or hung where it was measured") from silent
        if "error" in answer:
            raise TargetError(answer["error"])
        return answer

    def close(self) -> None:
        """End the process."""
        if self._child is not None:
            self._child.close()
            self._child = None


class RemoteRunner:
    """A device behind TVM's RPC tracker.

    Args:
        address: ``host:port`` of the tracker.
        key: Of the device.

    Raises:
        RunnerLostError: The tracker does not answer, or has no such device.
    """

    def __init__(self, address: str, key: str) -> None:
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()
            tracker = rpc.connect_tracker(host, int(port))
            # A device that was just given back takes a moment until it is free again.
            deadline = time.monotonic() + _FREE_SECONDS
            queues = tracker.summary()["queue_info"]
            while not queues.get(key, {}).get("free") and key in queues and time.monotonic() < deadline:
                time.sleep(0.2)
                queues = tracker.summary()["queue_info"]
        except Exception as error:  # TVM raises RuntimeError where the other side speaks otherwise
            raise RunnerLostError(
                f"no RPC tracker answers at {address}: {reason_of(error)}",
                hint="start one: python -m tvm.exec.rpc_tracker --host 0.0.0.0 --port 9190",
            ) from error
        if not queues.get(key, {}).get("free"):
            there = ", ".join(sorted(queues)) or "none at all"
            raise RunnerLostError(
                f"the tracker at {address} has no free device {key!r}; it has: {there}",
                hint=f"on the device: python -m tvm.exec.rpc_server --tracker {address} --key {key}",
            )
        try:
            self._session = tracker.request(key, max_retry=1, session_timeout=0)
        except Exception as error:  # as above
            raise RunnerLostError(f"the device {key!r} does not answer: {reason_of(error)}") from error
        self._device = self._session.cpu(0)
        self._key = key
        self._kept: dict[str, list[Any]] = {}

    def measure(self, library: Path, kernels: Sequence[Mapping[str, Any]]) -> list[float]:
        """As :class:`Runner`.

        Raises:
            RunnerLostError: The device is gone.
        """
        try:
            self._session.upload(str(library))
            module = self._session.load_module(library.name)
            found = []
            for kernel in kernels:
                evaluate = module.time_evaluator(
                    kernel["name"], self._device, number=1, repeat=_REPEATS, min_repeat_ms=_LEAST_MILLISECONDS
                )
                found.append(float(np.median(evaluate(*self._arguments(kernel["arguments"])).results)))
            self._session.remove(library.name)
            return found
        except Exception as error:  # TVM raises RPCError, RuntimeError and others
            raise RunnerLostError(
                f"the device {self._key!r} was lost while measuring: {reason_of(error)}",
                hint="what was measured before is kept: run the same command again",
            ) from error

    def profile(self, library: Path, config: Mapping[str, Any], feeds: Path) -> dict[str, Any] | None:
        """Not known: the device has TVM's runtime, not the model's."""
        del library, config, feeds
        return None

    def close(self) -> None:
        """Give the device back."""
        self._kept.clear()
        self._session = self._device = None

    def _arguments(self, wanted: Sequence[Argument]) -> list[Any]:
        key = json.dumps(wanted)
        if key not in self._kept:
            self._kept.clear()
            rng = np.random.default_rng(0)
            self._kept[key] = [tensor(filled(argument, rng), device=self._device) for argument in wanted]
        return self._kept[key]
