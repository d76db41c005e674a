"""A Relax module  ==>  a library for a processor, or with kernels for a GPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from graphopt.targets.tvm.adapter import (
    IRModule,
    PassContext,
    Sequential,
    Target,
    compile_module,
    relax,
    tirx,
)
from graphopt.targets.tvm.lower import functions
from graphopt.targets.tvm.lower import gpu as gpu_loops
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


def build_library(module: IRModule, target: Target, vectors: Vectors) -> Any:
    """The compiled module, not yet written."""
    functions.register()
    with target, PassContext(opt_level=3):
        lowered = finished(scheduled(fused(module), vectors))
        return compile_module(lowered, target=target, relax_pipeline=None)


@dataclass(frozen=True)
class CudaLibrary:
    """Kernels for a GPU.

    Attributes:
        compiled: The module with its kernels as CUDA source, not yet written.
        loops: Its functions, bound to blocks and threads.
        plain: The same before that.
    """

    compiled: Any
    loops: IRModule
    plain: IRModule


def build_cuda_library(module: IRModule, target: Target) -> CudaLibrary:
    """Kernels for a GPU.

    Raises:
        NoLoopsError: A function has no loops for a GPU.
    """
    with target, PassContext(opt_level=3, config={"relax.backend.use_cuda_graph": True}):
        # Sorting and running sums are written for threads by TVM; they are seen here, before anything is bound.
        dispatched = Sequential((relax.backend.DispatchSampling(), relax.backend.DispatchSortScan()))(module)
        plain = fused(dispatched)
        loops = gpu_loops.scheduled(plain, target)
        ready = finished(loops, graphs=not gpu_loops.keeps_memory_of_its_own(loops))
        compiled = compile_module(ready, target=target, relax_pipeline=None)
        return CudaLibrary(compiled, loops, plain)


def build_stand_in(library: CudaLibrary, processor: Target, vectors: Vectors) -> tuple[Any, str]:
    """What the kernels compute, for a processor; and which loops it has, in words."""
    functions.register()
    with processor, PassContext(opt_level=3):
        serial, followed = gpu_loops.one_after_the_other(library.loops, library.plain, vectors)
        all_of_them = sum(isinstance(function, tirx.PrimFunc) for _, function in serial.functions_items())
        words = "the loops of the kernels"
        if followed < all_of_them:
            words += f" ({followed} of {all_of_them}, the others with a processor's own)"
        return compile_module(finished(serial), target=processor, relax_pipeline=None), words


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
