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

    from graphopt.targets.tvm.lower.importer import import_graph
    from graphopt.targets.tvm.lower.pipeline import build_library, processor

    proto = onnx.load(source)
    opset = next(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))
    cpu, vectors = processor(target["vectors"])
    module = import_graph(proto, opset, vectors)
    build_library(module, cpu, vectors).export_library(str(library))
    return {"mcpu": str(cpu.attrs.get("mcpu", ""))}


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
