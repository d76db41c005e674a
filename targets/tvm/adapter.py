"""All that graphopt uses of TVM's compiler, under the names that it goes by here: they move with every release of TVM.

Importing this module loads the compiler; only the process that compiles does it (:mod:`graphopt.targets.tvm.worker`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tvm
from tvm import relax, rpc, s_tir, te, tirx, topi
from tvm.error import InternalError
from tvm.ir import IRModule
from tvm.ir.expr import GenericConst as Constant
from tvm.ir.transform import PassContext, Sequential
from tvm.relax.frontend.onnx.onnx_frontend import ONNXGraphImporter, onnx_input
from tvm.s_tir import SBlock, SBlockRealize, Schedule, ScheduleError, TensorIntrin, dlight
from tvm.s_tir.dlight.analysis.common_analysis import get_sblockrealize as realize_of
from tvm.s_tir.dlight.gpu.matmul import auto_inline_consumer_chain, auto_inline_producers
from tvm.s_tir.dlight.gpu.matmul import get_index_map as index_maps_of
from tvm.script import from_source
from tvm.sym.analyzer import Analyzer
from tvm.target import Target
from tvm.target.codegen import llvm_lookup_intrinsic_id as llvm_intrinsic
from tvm.tirx import IndexMap
from tvm.tirx.analysis import undefined_vars
from tvm.tirx.op import register_intrin_lowering
from tvm_ffi import structural_equal

compile_module = tvm.compile
tensor = tvm.runtime.tensor
register_tensor_intrinsic = TensorIntrin.register
GPU_RULES = (
    dlight.gpu.Matmul, dlight.gpu.GEMV, dlight.gpu.Reduction, dlight.gpu.GeneralReduction, dlight.gpu.Fallback,
)  # fmt: skip
"""DLight's, in the order in which they are tried."""

_FIRST = 99


def register_lowering(intrinsic: str, function: Callable[[Any], Any]) -> None:
    """Have an intrinsic lowered by a function of its call, for processors, before LLVM's own is."""
    register_intrin_lowering(intrinsic, "llvm", f=function, level=_FIRST)


__all__ = [
    "GPU_RULES",
    "Analyzer",
    "Constant",
    "IRModule",
    "IndexMap",
    "InternalError",
    "ONNXGraphImporter",
    "PassContext",
    "SBlock",
    "SBlockRealize",
    "Schedule",
    "ScheduleError",
    "Sequential",
    "Target",
    "auto_inline_consumer_chain",
    "auto_inline_producers",
    "compile_module",
    "from_source",
    "index_maps_of",
    "llvm_intrinsic",
    "onnx_input",
    "realize_of",
    "register_lowering",
    "register_tensor_intrinsic",
    "relax",
    "rpc",
    "s_tir",
    "structural_equal",
    "te",
    "tensor",
    "tirx",
    "topi",
    "undefined_vars",
]
