"""``worker JOB ANSWER``: compiles one model, and writes what came of it; run by :mod:`graphopt.targets.tvm.build`."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from graphopt.targets.tvm.executable import last_words

_VECTORS = {"avx512f": (16, 32), "avx2": (8, 16), "neon": (4, 32), "": (4, 16)}
"""Lanes of float32 and number of registers."""
_CPUS = {"avx512f": "x86-64-v4", "avx2": "x86-64-v3", "neon": "generic"}
"""What LLVM compiles for: what loading asks for, and no more; this very processor may have instructions of its own."""


def main() -> None:
    """Compile; an error goes into the answer, in words."""
    job, answer = json.loads(sys.argv[1]), Path(sys.argv[2])
    with contextlib.suppress(OSError, ValueError):
        # Some systems know no such limit.
        _limit(job["memory"])
    started = time.monotonic()
    try:
        found = _compile(Path(job["source"]), Path(job["library"]), job["target"])
    except Exception as error:  # TVM raises its own kinds, and RuntimeError, TypeError, AssertionError
        found = {"error": last_words(error)}
    else:
        found["seconds"] = time.monotonic() - started
    answer.write_text(json.dumps(found), encoding="utf-8")


def _compile(source: Path, library: Path, target: Mapping[str, Any]) -> dict[str, Any]:
    import onnx

    from graphopt.targets.tvm import adapter
    from graphopt.targets.tvm.lower.importer import import_graph
    from graphopt.targets.tvm.lower.pipeline import build_library
    from graphopt.targets.tvm.lower.tiles import Vectors

    proto = onnx.load(source)
    opset = next(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))
    vectors = Vectors(*_VECTORS[target["vectors"]])
    module = import_graph(proto, opset, vectors)
    cpu = _CPUS.get(target["vectors"], "")
    llvm = adapter.Target({"kind": "llvm", "mcpu": cpu} if cpu else {"kind": "llvm"})
    built = build_library(module, llvm, vectors)
    built.export_library(str(library))
    return {"mcpu": cpu}


def _limit(memory: int) -> None:
    try:
        import resource
    except ImportError:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    least = min(limit for limit in (memory, soft, hard) if limit != resource.RLIM_INFINITY)
    resource.setrlimit(resource.RLIMIT_AS, (least, hard))


if __name__ == "__main__":
    main()
