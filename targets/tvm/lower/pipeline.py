"""A Relax module  ==>  a library for a processor, or with kernels for a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from graphopt.targets.tvm.adapter import (
    IRModule,
    PassContext,
    Sequential,
    Target,
    compile_module,
    relax,
    tirx,
)
from graphopt.targets.tvm.executable import LIBRARY, WEIGHTS
from graphopt.targets.tvm.lower import functions
from graphopt.targets.tvm.lower import gpu as gpu_loops
from graphopt.targets.tvm.lower.apart import taken_out, write
from graphopt.targets.tvm.lower.schedule import scheduled
from graphopt.targets.tvm.lower.tiles import Vectors

_PROCESSORS = {
    "avx512f+vnni": ("x86-64-v4", "+avx512vnni", Vectors(16, 32, dots=True)),
    "avx512f": ("x86-64-v4", "", Vectors(16, 32)),
    "avx2+vnni": ("x86-64-v3", "+avxvnni", Vectors(8, 16, dots=True)),
    "avx2": ("x86-64-v3", "", Vectors(8, 16)),
    "neon": ("generic", "", Vectors(4, 32)),
    "": ("", "", Vectors(4, 16)),
}


def processor(extension: str) -> tuple[Target, Vectors]:
    """What LLVM compiles for, and the registers there are.

    It is what loading asks for, and no more: this very processor may have instructions of its own.

    Args:
        extension: As from :func:`graphopt.targets.tvm.executable.vector_extension`, or ``dot_products``.
    """
    cpu, more, vectors = _PROCESSORS[extension]
    return Target(
        {"kind": "llvm", **({"mcpu": cpu} if cpu else {}), **({"mattr": [more]} if more else {})}
    ), vectors


def gpu(architecture: str) -> Target:
    """A GPU, with a host of the plainest instructions.

    Args:
        architecture: As ``sm_90``.
    """
    limits = {"max_threads_per_block": 1024, "max_shared_memory_per_block": 49152, "thread_warp_size": 32}
    return Target({"kind": "cuda", "arch": architecture, **limits}, host={"kind": "llvm"})


def fused(module: IRModule) -> IRModule:
    """Operators as loop nests, those that follow each other element by element in one."""
    passes = (
        relax.transform.LegalizeOps(),
        relax.transform.AnnotateTIROpPattern(),
        relax.transform.FoldConstant(),
        relax.transform.FuseOps(),
        relax.transform.FuseTIR(),
        relax.transform.DeadCodeElimination(),
    )
    return Sequential(passes)(module)


def finished(module: IRModule, *, graphs: bool = False) -> IRModule:
    """Memory planned, calls as TVM's virtual machine makes them.

    Args:
        graphs: Whether calls with fixed sizes are launched as CUDA graphs, one after the first run.
    """
    passes = (
        relax.backend.DispatchSampling(),
        relax.backend.DispatchSortScan(),
        relax.transform.LegalizeOps(),
        relax.transform.RewriteDataflowReshape(),
        relax.transform.ToNonDataflow(),
        relax.transform.RemovePurityChecking(),
        relax.transform.CallTIRRewrite(),
        relax.transform.StaticPlanBlockMemory(),
        *([relax.transform.RewriteCUDAGraph()] if graphs else ()),
        relax.transform.LowerAllocTensor(),
        relax.transform.KillAfterLastUse(),
        relax.transform.LowerRuntimeBuiltin(),
        relax.transform.ComputePrimValue(),
        relax.transform.VMShapeLower(),
        relax.transform.AttachGlobalSymbol(),
    )
    return Sequential(passes)(module)


@dataclass(frozen=True)
class Library:
    """Kernels, not yet written.

    Attributes:
        compiled: The module.
        weights: What its last parameters are.
    """

    compiled: Any
    weights: Sequence[npt.NDArray[Any]]

    def write(self, folder: Path) -> list[dict[str, Any]]:
        """Write the library, and beside it its weights where they are apart.

        Returns:
            Where the weights lie, as :func:`graphopt.targets.tvm.executable.mapped` wants it.
        """
        self.compiled.export_library(str(folder / LIBRARY))
        return write(self.weights, folder / WEIGHTS) if self.weights else []


def build_library(module: IRModule, target: Target, vectors: Vectors, inside: int) -> Library:
    """Kernels for a processor.

    Args:
        module: From the importer.
        target: The processor.
        vectors: Its registers.
        inside: Bytes that all constants may have to be part of the library.
    """
    functions.register()
    with target, PassContext(opt_level=3):
        plain, weights = taken_out(fused(module), inside)
        compiled = compile_module(finished(scheduled(plain, vectors)), target=target, relax_pipeline=None)
        return Library(compiled, weights)


@dataclass(frozen=True)
class CudaLibrary(Library):
    """Kernels for a GPU, as CUDA source.

    Attributes:
        loops: Its functions, bound to blocks and threads.
        plain: The same before that.
    """

    loops: IRModule
    plain: IRModule


def build_cuda_library(module: IRModule, target: Target, inside: int) -> CudaLibrary:
    """Kernels for a GPU.

    Args:
        module, inside: As for :func:`build_library`.
        target: The GPU.

    Raises:
        NoLoopsError: A function has no loops for a GPU.
    """
    with target, PassContext(opt_level=3, config={"relax.backend.use_cuda_graph": True}):
        # Sorting and running sums are written for threads by TVM; they are seen here, before anything is bound.
        dispatched = Sequential((relax.backend.DispatchSampling(), relax.backend.DispatchSortScan()))(module)
        plain, weights = taken_out(fused(dispatched), inside)
        loops = gpu_loops.scheduled(plain, target)
        ready = finished(loops, graphs=not gpu_loops.keeps_memory_of_its_own(loops))
        compiled = compile_module(ready, target=target, relax_pipeline=None)
        return CudaLibrary(compiled, weights, loops, plain)


def build_stand_in(library: CudaLibrary, processor: Target, vectors: Vectors) -> tuple[Library, str]:
    """What the kernels compute, for a processor; and which loops it has, in words."""
    functions.register()
    with processor, PassContext(opt_level=3):
        serial, followed = gpu_loops.one_after_the_other(library.loops, library.plain, vectors)
        all_of_them = sum(isinstance(function, tirx.PrimFunc) for _, function in serial.functions_items())
        words = "the loops of the kernels"
        if followed < all_of_them:
            words += f" ({followed} of {all_of_them}, the others with a processor's own)"
        compiled = compile_module(finished(serial), target=processor, relax_pipeline=None)
        return Library(compiled, library.weights), words


def kernels_of(library: CudaLibrary) -> str:
    """The CUDA source of a library; empty where no kernel runs on the GPU."""
    waiting = [library.compiled.mod]
    while waiting:
        module = waiting.pop()
        if module.kind == "cuda":
            source = str(module.inspect_source())
            if "__global__" not in source:
                raise RuntimeError("TVM compiled the kernels itself instead of handing out their source")
            return source
        waiting.extend(module.imports)
    return ""
