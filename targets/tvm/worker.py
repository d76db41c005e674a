"""``worker JOB ANSWER``: compiles one model, and writes what came of it; run by :mod:`graphopt.targets.tvm.build`."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from graphopt.processes import limit_memory
from graphopt.targets.tvm.architectures import ptx_of
from graphopt.targets.tvm.cuda_code import find_compiler
from graphopt.targets.tvm.cuda_executable import digest
from graphopt.targets.tvm.executable import INSIDE, reason_of


def main() -> None:
    """Compile; an error goes into the answer, in words."""
    job, answer = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2])
    with contextlib.suppress(OSError, ValueError):
        # Some systems know no such limit.
        limit_memory(job["memory"])
    started = time.monotonic()
    compile_for = {"llvm": _for_processor, "cuda": _for_gpu}[job["target"]["kind"]]
    try:
        found = compile_for(Path(job["source"]), Path(job["folder"]), job["target"])
    except Exception as error:  # TVM raises its own kinds, and RuntimeError, TypeError, AssertionError
        found = {"error": reason_of(error)}
    else:
        found["seconds"] = time.monotonic() - started
    written = answer.with_suffix(".part")
    written.write_text(json.dumps(found), encoding="utf-8")
    written.replace(answer)


def _for_processor(source: Path, folder: Path, target: Mapping[str, Any]) -> dict[str, Any]:
    import onnx

    from graphopt.targets.tvm.lower.importer import import_packed
    from graphopt.targets.tvm.lower.pipeline import build_library, processor
    from graphopt.targets.tvm.lower.tiles import Tile

    cpu, vectors = processor(target["vectors"])
    tuned = {key: Tile(**tile) for key, tile in target.get("tiles", {}).items()}
    module, products = import_packed(onnx.load(source), vectors, tuned)
    return {
        "weights": build_library(module, cpu, vectors, target.get("inside", INSIDE)).write(folder),
        "mcpu": str(cpu.attrs.get("mcpu", "")),
        "tuned": sum(tuned.get(product.key) in product.tiles(vectors) for product in products.count),
        "products": len(products.count),
        "nodes": products.nodes,
    }


def _for_gpu(source: Path, folder: Path, target: Mapping[str, Any]) -> dict[str, Any]:
    """Kernels that the oldest of the GPUs can run, machine code for each of them, PTX for those to come."""
    import onnx

    from graphopt.targets.tvm.lower.importer import import_graph, import_packed
    from graphopt.targets.tvm.lower.pipeline import (
        build_cuda_library,
        build_library,
        build_stand_in,
        gpu,
        kernels_of,
        processor,
    )

    architectures: list[str] = target["architectures"]
    library = build_cuda_library(
        import_graph(onnx.load(source)), gpu(architectures[0]), target.get("inside", INSIDE)
    )
    found: dict[str, Any] = {"weights": library.write(folder), "code": {}, "compiler": "", "source": ""}
    kernels = kernels_of(library)
    if kernels:
        found |= {"source": digest(kernels), **_machine_code(kernels, architectures, folder)}
    if target["stand_in"]:
        cpu, vectors = processor(target["vectors"])
        try:
            stand_in, loops = build_stand_in(library, cpu, vectors)
        except Exception:  # a function written for threads; TVM raises its own kinds, RuntimeError and others
            module, _ = import_packed(onnx.load(source), vectors, {})
            stand_in = build_library(module, cpu, vectors, target.get("inside", INSIDE))
            loops = "a processor's own loops, not those of the kernels"
        found["stand_in"] = {"weights": stand_in.write(Path(target["stand_in"])), "loops": loops}
    return found


def _machine_code(kernels: str, architectures: Sequence[str], folder: Path) -> dict[str, Any]:
    compiler = find_compiler()
    if compiler is None:
        return {}
    newest = ptx_of(architectures[-1])
    code = {}
    for name in (*architectures, newest):
        code[name] = f"kernels.{name}.{'ptx' if name == newest else 'cubin'}"
        (folder / code[name]).write_bytes(compiler.compile(kernels, name))
    return {"code": code, "compiler": compiler.name}


if __name__ == "__main__":
    main()
