"""All that graphopt uses of TVM's compiler, under the names that it goes by here: they move with every release of TVM.

Importing this module loads the compiler; only the process that compiles does it (:mod:`graphopt.targets.tvm.worker`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tvm
from tvm import relax, te, tirx, topi
from tvm.ir import IRModule
from tvm.ir.expr import GenericConst as Constant
from tvm.ir.transform import PassContext, Sequential
from tvm.relax.frontend.onnx.onnx_frontend import ONNXGraphImporter
from tvm.s_tir import Schedule, ScheduleError
from tvm.target import Target
from tvm.tirx import IndexMap
from tvm.tirx.op import register_intrin_lowering

compile_module = tvm.compile
tensor = tvm.runtime.tensor
_FIRST = 99


def register_lowering(intrinsic: str, function: Callable[[Any], Any]) -> None:
    """Have an intrinsic lowered by a function of its call, for processors, before LLVM's own is."""
    register_intrin_lowering(intrinsic, "llvm", f=function, level=_FIRST)


__all__ = [
    "Constant",
    "IRModule",
    "IndexMap",
    "ONNXGraphImporter",
    "PassContext",
    "Schedule",
    "ScheduleError",
    "Sequential",
    "Target",
    "compile_module",
    "register_lowering",
    "relax",
    "te",
    "tensor",
    "tirx",
    "topi",
]
