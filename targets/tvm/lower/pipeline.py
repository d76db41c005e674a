"""A Relax module  ==>  a library for one processor."""

from __future__ import annotations

from typing import Any

from graphopt.targets.tvm.adapter import IRModule, PassContext, Sequential, Target, compile_module, relax
from graphopt.targets.tvm.lower import functions
from graphopt.targets.tvm.lower.schedule import scheduled
from graphopt.targets.tvm.lower.tiles import Vectors

_PROCESSORS = {
    "avx512f": ("x86-64-v4", Vectors(16, 32)),
    "avx2": ("x86-64-v3", Vectors(8, 16)),
    "neon": ("generic", Vectors(4, 32)),
    "": ("", Vectors(4, 16)),
}


def processor(extension: str) -> tuple[Target, Vectors]:
    """What LLVM compiles for, and the registers there are.

    It is what loading asks for, and no more: this very processor may have instructions of its own.

    Args:
        extension: As from :func:`graphopt.targets.tvm.executable.vector_extension`.
    """
    cpu, vectors = _PROCESSORS[extension]
    return Target({"kind": "llvm", "mcpu": cpu} if cpu else {"kind": "llvm"}), vectors


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


def finished(module: IRModule) -> IRModule:
    """Memory planned, calls as TVM's virtual machine makes them."""
    passes = (
        relax.backend.DispatchSampling(),
        relax.backend.DispatchSortScan(),
        relax.transform.LegalizeOps(),
        relax.transform.RewriteDataflowReshape(),
        relax.transform.ToNonDataflow(),
        relax.transform.RemovePurityChecking(),
        relax.transform.CallTIRRewrite(),
        relax.transform.StaticPlanBlockMemory(),
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
