"""MatMul, Gemm, LSTM  ==>  on int8, activations quantized as they come

Dynamic quantization: int8 weights with one scale for each output channel; each activation gets its range from the run
itself (ONNX operators DynamicQuantizeLinear and MatMulInteger). Nothing is calibrated, data are only judged on. Which
layers take part is decided by the kernels' measured times and by the budget: the noise that each layer adds alone is
measured, and those that add most for what they gain stay in float.

Refuses (in the report, node by node):
- a weight that is no constant, has other than two dimensions, or holds NaN or infinity;
- a transposed first operand of a Gemm, and an LSTM with its batch first;
- a node inside a subgraph (If, Loop);
- a node that int8 does not make faster on the target.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import onnx_ir as ir

from graphopt.lossy import Context, LossyPass, Proposal
from graphopt.passes._precisions import kept_by, proposal_of
from graphopt.quant import dynamic
from graphopt.quant.storage import Storage


@dataclass(frozen=True)
class QuantizeDynamicOptions:
    """Options of ``quantize-dynamic``.

    Attributes:
        ops: Operators that may compute on integers: MatMul, Gemm, LSTM; empty allows all.
        keep: Names of nodes (wildcards allowed) that stay in float.
        storage: Least bits that a number left in float may take in the file; what loads it widens it.
    """

    ops: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    storage: Literal[8, 16, 32] = 8


class QuantizeDynamic(LossyPass):
    """Dynamic int8 quantization of the layers that gain; LOSSY."""

    name = "quantize-dynamic"
    Options = QuantizeDynamicOptions

    @property
    def storage(self) -> Storage | None:
        """As the option says, except for nodes that are to stay in float."""
        return Storage.of(self.options.storage, kept_by((), self.options.keep))

    def propose(self, model: ir.Model, context: Context) -> Proposal:
        """The layers that gain, as many as the budget allows."""
        options: QuantizeDynamicOptions = self.options
        kernels = context.kernels
        if kernels is None or not kernels.dynamic:
            return Proposal(reason=f"{context.target} has no kernels that quantize activations as they come")
        found = dynamic.find(
            model, context, weight_limit=kernels.weight_limit, operators=kernels.dynamic,
            allowed=kept_by(options.ops, options.keep),
        )  # fmt: skip
        return replace(proposal_of(found), details={"kernels": kernels.describe, **found.details})
