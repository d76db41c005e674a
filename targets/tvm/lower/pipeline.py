"""A Relax module  ==>  a library for one processor."""

from __future__ import annotations

from typing import Any

from graphopt.targets.tvm.adapter import IRModule, PassContext, Sequential, Target, compile_module, relax
from graphopt.targets.tvm.lower import functions
from graphopt.targets.tvm.lower.schedule import scheduled
from graphopt.targets.tvm.lower.tiles import Vectors


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
