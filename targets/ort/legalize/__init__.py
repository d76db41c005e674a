"""Rewrites into what ONNX Runtime runs fastest, in the order in which they are tried."""

from __future__ import annotations

from graphopt.rewrite import Rewrite
from graphopt.targets.ort.legalize.long_conv import LegalizeLongConv
from graphopt.targets.ort.legalize.lrn import LegalizeLrn
from graphopt.targets.ort.legalize.plain_bias import PlainBias
from graphopt.targets.ort.legalize.plain_residual import PlainResidual

REWRITES: tuple[type[Rewrite], ...] = (
    LegalizeLrn,
    LegalizeLongConv,
    PlainResidual,
    PlainBias,
)
