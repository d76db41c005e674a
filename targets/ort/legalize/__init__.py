"""Rewrites into what ONNX Runtime runs fastest, in the order in which they are tried."""

from __future__ import annotations

from graphopt.rewrite import Rewrite
from graphopt.targets.legalize.convtranspose_to_depth import ConvTransposeToDepth
from graphopt.targets.ort.legalize.average_pool import PlainAveragePool
from graphopt.targets.ort.legalize.block_gather import BlockGather
from graphopt.targets.ort.legalize.block_product import BlockProduct
from graphopt.targets.ort.legalize.blocked_affine import BlockedAffine
from graphopt.targets.ort.legalize.conv_sum import ConvSum
from graphopt.targets.ort.legalize.dynamic_lstm import DynamicLstm
from graphopt.targets.ort.legalize.elu import LegalizeElu
from graphopt.targets.ort.legalize.gated_residual import GatedResidual
from graphopt.targets.ort.legalize.long_conv import LegalizeLongConv
from graphopt.targets.ort.legalize.lrn import LegalizeLrn
from graphopt.targets.ort.legalize.mish import LegalizeMish
from graphopt.targets.ort.legalize.narrow_conv import NarrowConv
from graphopt.targets.ort.legalize.plain_bias import PlainBias
from graphopt.targets.ort.legalize.plain_residual import PlainResidual
from graphopt.targets.ort.legalize.prelu import LegalizePRelu
from graphopt.targets.ort.legalize.quantize_type import QuantizeType
from graphopt.targets.ort.legalize.reduce_l2 import LegalizeReduceL2
from graphopt.targets.ort.legalize.signed_qdq import SignedQdq
from graphopt.targets.ort.legalize.softplus import LegalizeSoftplus
from graphopt.targets.ort.legalize.split_concat import SplitConcat

REWRITES: tuple[type[Rewrite], ...] = (
    LegalizeLrn,
    LegalizeLongConv,
    ConvTransposeToDepth,
    NarrowConv,
    PlainAveragePool,
    ConvSum,
    SplitConcat,
    GatedResidual,
    BlockedAffine,
    LegalizeMish,
    LegalizeSoftplus,
    LegalizeElu,
    LegalizePRelu,
    LegalizeReduceL2,
    PlainResidual,
    PlainBias,
    SignedQdq,
    QuantizeType,
    BlockGather,
    BlockProduct,
    DynamicLstm,
)

ANY_PROVIDER: tuple[type[Rewrite], ...] = (BlockGather, BlockProduct)
"""Those that hold for every provider; the others were measured on the CPU."""
