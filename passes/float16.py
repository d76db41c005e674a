"""float32 graph  ==>  float16 (or bfloat16) where the target has kernels and the numbers fit

Half precision takes half the memory and, on GPUs, runs on tensor cores. Samples are run first: a node stays in
float32 where one of its tensors comes within a factor of two of 65504, a constant does not fit, or sums of squares
inside it may overflow. Inputs and outputs keep their types unless asked otherwise. Casts stand only where the two
types meet. Where the budget does not hold, the nodes that add most noise go back to float32.

Refuses (in the report, node by node):
- an operator for which the target has no such kernel, or whose schema has no such type;
- a tensor or a constant beyond the range, a single constant below it;
- ReduceSum, ReduceL2, CumSum and other reductions whose inner sums may overflow;
- a node that holds a subgraph, and what is inside it;
- a light node between float32 nodes, where casts would cost more than it gains.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from graphopt.data.interface import spread
from graphopt.errors import UsageError
from graphopt.lossy import Context, LossyPass, Proposal
from graphopt.passes._precisions import kept_by, proposal_of
from graphopt.quant import half


@dataclass(frozen=True)
class Float16Options:
    """Options of ``float16``.

    Attributes:
        dtype: ``float16``, or ``bfloat16`` (the range of float32, 8 bits of precision) where the target has kernels.
        keep_io: Whether inputs and outputs keep their types; without it they are half precision as well.
        samples: Most samples that are run to find what overflows.
        keep: Names of nodes (wildcards allowed) that stay in float32.
    """

    dtype: Literal["float16", "bfloat16"] = "float16"
    keep_io: bool = True
    samples: int = 64
    keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.dtype == "bfloat16" and not self.keep_io:
            raise UsageError(
                "inputs and outputs of type bfloat16 are not supported: NumPy has no such type",
                hint="leave keep_io out, or write float16{keep_io=false}",
            )


class Float16(LossyPass):
    """Half precision with a measured keep-list; LOSSY."""

    name = "float16"
    Options = Float16Options

    def propose(self, model: ir.Model, context: Context) -> Proposal:
        """As much in half precision as the budget allows."""
        options: Float16Options = self.options
        operators = context.halves.get(options.dtype)
        if not operators:
            return Proposal(
                reason=f"{context.target} has no {options.dtype} kernels that are faster than float32"
            )
        data = itertools.chain(
            context.dataset.calibration(options.samples), spread(context.evaluation.feeds, options.samples)
        )
        found = half.find(
            model, context, operators, data, dtype=half.TYPES[options.dtype], keep_io=options.keep_io,
            allowed=kept_by((), options.keep),
        )  # fmt: skip
        return proposal_of(found)
