"""``runner THREADS``: measures kernels in a process of its own, with TVM's runtime alone.

A kernel that crashes takes nobody along. Reads one request a line from the standard input, and answers each in a line.
``{"library", "kernels"}`` names functions with shapes and types of their arguments, and gets ``{"seconds": [...]}``;
``{"library", "config", "feeds"}`` names a whole model, and gets ``{"total", "kernels"}``. What goes wrong is answered
with ``{"error": ...}``.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from graphopt.data.interface import load_feeds
from graphopt.processes import answers, end_with_parent
from graphopt.targets.tvm.executable import TvmExecutable, aligned, import_runtime, reason_of
from graphopt.targets.tvm.tuning.arguments import Argument, filled

_ROTATED_BYTES = 8 << 20
"""Weights are taken in turns from about so many bytes: in a model, other kernels have used the caches since. What is
computed lies where it was just written, and where it will be read."""
_MOST_COPIES = 64
_WEIGHT = 1
"""Place among the arguments."""
_ROUND_SECONDS = 0.004
_ROUNDS, _LEAST_ROUNDS = 7, 3
_PROFILE_RUNS = 15
_SLOW = 4.0
"""Times the fastest of a request, beyond which a kernel is not measured again."""


def main() -> None:
    """Answer until the standard input ends."""
    end_with_parent()
    answer_to = answers()
    ffi = import_runtime()
    ffi.get_global_func("runtime.config_threadpool")(0, int(sys.argv[1]))
    kept: dict[str, list[list[Any]]] = {}
    for line in sys.stdin:
        request = json.loads(line)
        try:
            library = Path(request["library"])
            answer: dict[str, Any]
            if "config" in request:
                answer = _profile(library, request["config"], Path(request["feeds"]))
            else:
                answer = {"seconds": _measure(ffi, library, request["kernels"], kept)}
        except Exception as error:  # tvm_ffi raises RuntimeError, ValueError and others
            answer = {"error": reason_of(error)}
        print(json.dumps(answer), file=answer_to, flush=True)


def _profile(library: Path, config: Mapping[str, Any], feeds: Path) -> dict[str, Any]:
    total, kernels = TvmExecutable(library, config).profile(load_feeds(feeds), _PROFILE_RUNS)
    return {"total": total, "kernels": kernels}


def _measure(
    ffi: Any, library: Path, kernels: Sequence[dict[str, Any]], kept: dict[str, list[list[Any]]]
) -> list[float]:
    """Seconds of a run of each kernel, the median of interleaved rounds."""
    module = ffi.load_module(str(library), keep_module_alive=False)
    functions = [module[entry["name"]] for entry in kernels]
    arguments = []
    for entry in kernels:
        key = json.dumps(entry["arguments"])
        if key not in kept:
            # The same sizes come again and again; other ones make room.
            kept.clear()
            kept[key] = _copies(ffi, entry["arguments"])
        arguments.append(kept[key])
    pairs = list(zip(functions, arguments, strict=True))
    once = [min(_run(function, copies, 1) for _ in range(2)) for function, copies in pairs]
    rounds: list[list[float]] = [[] for _ in kernels]
    for number in range(_ROUNDS):
        for index, (function, copies) in enumerate(pairs):
            if number >= _LEAST_ROUNDS and once[index] > _SLOW * min(once):
                continue
            count = max(1, min(int(_ROUND_SECONDS / max(once[index], 1e-7)), 1000))
            rounds[index].append(_run(function, copies, count))
    return [float(np.median(times)) for times in rounds]


def _run(function: Any, copies: Sequence[Sequence[Any]], count: int) -> float:
    started = time.perf_counter()
    for number in range(count):
        function(*copies[number % len(copies)])
    return (time.perf_counter() - started) / count


def _copies(ffi: Any, wanted: Sequence[Argument]) -> list[list[Any]]:
    """Arguments to be taken in turns."""
    shape, dtype = wanted[_WEIGHT]
    size = np.dtype(dtype).itemsize * math.prod(shape)
    count = max(1, min(_ROTATED_BYTES // max(size, 1), _MOST_COPIES))
    rng = np.random.default_rng(0)

    def made(argument: Argument) -> Any:
        return ffi.from_dlpack(aligned(filled(argument, rng)))

    first = [made(argument) for argument in wanted]
    others = [[*first[:_WEIGHT], made(wanted[_WEIGHT]), *first[_WEIGHT + 1 :]] for _ in range(count - 1)]
    return [first, *others]


if __name__ == "__main__":
    main()
