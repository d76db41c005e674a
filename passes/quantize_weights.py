"""MatMul, Gemm, Gather with a float weight  ==>  the same with a weight of 4 or 8 bits in blocks

Weight-only quantization: a scale for each block of 16 to 256 numbers along the axis that is summed over, activations
and sums stay in float (as far as the target's kernels do). Rounding is to nearest with the scale of least squared
error, or by GPTQ (Frantar et al., 2022) on calibration data. It makes a model smaller; faster only where its weights
do not stay in the processor's cache, or where the kernel computes on integers. Where the budget does not hold with
all layers, those that add most noise for the bytes they save stay in float.

Refuses (in the report, node by node):
- a weight that is no constant, not float32, of other than two dimensions, or that holds NaN or infinity;
- a weight of less than 4096 numbers;
- a node inside a subgraph (If, Loop);
- Conv, for which no backend has such a kernel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from graphopt.ir.facts import Array
from graphopt.lossy import Context, LossyPass, Proposal
from graphopt.passes._precisions import kept_by, proposal_of
from graphopt.quant import weight_only
from graphopt.quant.blocks import moments_of
from graphopt.quant.storage import Storage


@dataclass(frozen=True)
class QuantizeWeightsOptions:
    """Options of ``quantize-weights``.

    Attributes:
        bits: Of a weight.
        block: Numbers that share a scale; 0 stands for 128 with 8 bits and 32 with 4.
        symmetric: Without zero points; by default 8 bits are symmetric and 4 are not.
        method: ``nearest`` rounds each number; ``gptq`` makes up for what is lost, and needs calibration data.
        samples: Most samples that ``gptq`` looks at.
        accuracy_level: How ONNX Runtime takes activations: 4 rounds them to int8 by blocks, 1 leaves them in float32.
        ops: Operators whose weights may be written so; empty allows MatMul, Gemm and Gather.
        keep: Names of nodes (wildcards allowed) that keep their weight.
        storage: Least bits that a number left in float may take in the file; what loads it widens it.
    """

    bits: Literal[4, 8] = 8
    block: Literal[0, 16, 32, 64, 128, 256] = 0
    symmetric: bool | None = None
    method: Literal["nearest", "gptq"] = "nearest"
    samples: int = 32
    accuracy_level: Literal[0, 1, 2, 3, 4] = 4
    ops: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    storage: Literal[8, 16, 32] = 8


class QuantizeWeights(LossyPass):
    """Weights of 4 or 8 bits in blocks; LOSSY."""

    name = "quantize-weights"
    Options = QuantizeWeightsOptions

    @property
    def storage(self) -> Storage | None:
        """As the option says, except for nodes that are to stay in float."""
        return Storage.of(self.options.storage, kept_by((), self.options.keep))

    def propose(self, model: ir.Model, context: Context) -> Proposal:
        """As many weights in blocks as the budget allows."""
        options: QuantizeWeightsOptions = self.options

        def moments(nodes: Sequence[ir.Node]) -> Mapping[str, Array]:
            if options.method != "gptq":
                return {}
            return moments_of(
                model, nodes, context.dataset.calibration,
                most=options.samples, threads=context.threads, progress=context.progress,
            )  # fmt: skip

        found = weight_only.find(
            model, context, weight_only.scheme_of(options.bits, options.block, options.symmetric),
            moments=moments, accuracy_level=options.accuracy_level, allowed=kept_by(options.ops, options.keep),
        )  # fmt: skip
        return proposal_of(found)
