"""Rewrites into what TVM computes right and fast, in the order in which they are tried."""

from __future__ import annotations

from graphopt.rewrite import Rewrite
from graphopt.targets.legalize.attention import LegalizeAttention
from graphopt.targets.legalize.convtranspose_to_depth import ConvTransposeToDepth
from graphopt.targets.tvm.legalize.integers import IntegerProduct
from graphopt.targets.tvm.legalize.recurrent import UnrollGru, UnrollLstm, UnrollRnn
from graphopt.targets.tvm.legalize.requantize import QuantizeFirst
from graphopt.targets.tvm.legalize.table import ByteTable

REWRITES: tuple[type[Rewrite], ...] = (
    LegalizeAttention,
    ConvTransposeToDepth,
    UnrollLstm,
    UnrollGru,
    UnrollRnn,
)
INTEGERS: tuple[type[Rewrite], ...] = (IntegerProduct, QuantizeFirst, ByteTable)
"""Where the processor multiplies bytes."""
