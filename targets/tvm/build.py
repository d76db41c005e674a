"""An ONNX file  ==>  a library, in a process of its own: a compiler that crashes or hangs takes nobody with it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from graphopt.errors import TargetError
from graphopt.processes import SilentError, run_once

_SECONDS = 900.0
_MEMORY = 24 << 30
"""Bytes of address space; TVM's own library and what it maps count too."""


def build(
    source: Path, folder: Path, target: Mapping[str, Any], *, seconds: float = _SECONDS
) -> dict[str, Any]:
    """Write the library of an ONNX file, and machine code beside it where it is for a GPU.

    Args:
        source: The ONNX file.
        folder: Where the files go.
        target: What to compile for: ``kind`` (``llvm``, ``cuda``), ``vectors``, ``inside``, the bytes of
            weights up to which they are part of the library, and for GPUs ``architectures`` and ``stand_in``, a folder
            for the same computation as a processor does it, or "".
        seconds: After which the compiler is stopped.

    Returns:
        What the compiler says of it.

    Raises:
        TargetError: It cannot be compiled; names the node where it is one.
    """
    with tempfile.TemporaryDirectory(prefix="graphopt-tvm-") as temporary:
        answer, question = Path(temporary) / "answer.json", Path(temporary) / "job.json"
        job = {"source": str(source), "folder": str(folder), "target": dict(target), "memory": _MEMORY}
        question.write_text(json.dumps(job), encoding="utf-8")
        try:
            done = run_once(
                "graphopt.targets.tvm.worker", str(question), str(answer),
                seconds=seconds, environment=_ENVIRONMENT,
            )  # fmt: skip
        except SilentError as error:
            raise TargetError(f"TVM did not compile the model within {seconds:g} s", hint=_OTHER) from error
        if answer.is_file():
            found: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
            if "error" in found:
                raise TargetError(f"TVM cannot compile the model: {found['error']}", hint=_OTHER)
            return found
        raise TargetError(f"TVM cannot compile the model: {done.last_words[:300]}", hint=_OTHER)


_OTHER = "compile it for another target: --target ort-cpu"


# Where TVM's runtime for CUDA is there, TVM would compile the kernels itself, with fast arithmetic and for one GPU.
_ENVIRONMENT = {"TVM_BIND_THREADS": "0", "TVM_COMPILE_FORCE_FALLBACK": "1"}
