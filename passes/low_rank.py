"""MatMul, Gemm, Conv  ==>  two smaller ones behind each other

A weight W becomes the product of two of a rank below what both have in common, the one that reads the data first. The
rank is cut off where the outputs of the layer are nearest to the original's on calibration data, not where the weights
are (Chen et al., DRONE, NeurIPS 2021; Wang et al., SVD-LLM, ICLR 2025); the bias takes up the mean of what is lost. A
convolution becomes one with its own window to as few channels as the rank is, and one of 1x1 behind it (Zhang et al.,
TPAMI 2016). Then, from the inputs on, second products and all layers behind them are refitted to what the original's
made (He et al., ICCV 2017), as ``prune`` does. Ranks are lower where the model's outputs are measured to lose less for
the time of the target's kernels that is saved. Without ``ratio`` or ``macs`` as much is removed as the budget allows.

Refuses (in the report, layer by layer):
- layers too small to have fewer multiplications at a rank that kernels like, or not measured to be faster;
- weights that other nodes read too, that are not float32 or float64, or hold NaN or infinity;
- convolutions in groups, transposed ones, those that find their pads themselves, Gemm with transposed data;
- layers with more than 4096 numbers on both sides;
- nodes inside a subgraph (If, Loop);
- a model that computes on integers already: low-rank comes before quantize.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from graphopt.errors import UsageError
from graphopt.lossy import Context, LossyPass, Proposal
from graphopt.prune.factorizer import Factored, Factorizer
from graphopt.prune.reduced import QUANTIZERS, check_shares, is_named, naming_nothing, proposal_of
from graphopt.quant.units import integer_nodes

_SAMPLES = 128
_REACHED = 0.999


@dataclass(frozen=True)
class LowRankOptions:
    """Options of ``low-rank``.

    Attributes:
        ratio: Share of the multiplications that is removed of all layers together that can become two products; 0
            leaves it to ``macs`` or the budget.
        macs: Share of the whole model's multiplications with weights that is removed; 0 leaves it to ``ratio`` or the
            budget.
        recover: Whether the second products, and all layers behind them, are refitted to make up for what is lost.
        multiple: Ranks are a multiple of it (in narrow layers of a half or a quarter); 0 asks the target.
        samples: Most samples to look at what layers read on.
        keep: Names of layers (wildcards allowed) that stay as they are.
    """

    ratio: float = 0.0
    macs: float = 0.0
    recover: bool = True
    multiple: int = 0
    samples: int = _SAMPLES
    keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_shares(
            "low-rank",
            self.ratio,
            self.macs,
            "the multiplications of layers that can become two products, or of all",
        )
        if self.samples < 1:
            raise UsageError(f"{self.samples} is no number of samples", hint="write samples=128")
        if self.multiple < 0:
            raise UsageError(f"{self.multiple} is no rank", hint="write multiple=8, or leave it out")


class LowRank(LossyPass):
    """Layers as two products of a lower rank; LOSSY."""

    name = "low-rank"
    Options = LowRankOptions
    share = 0.5
    precedes = (*QUANTIZERS, "sparsify")

    @property
    def searches(self) -> bool:
        """Not where it is told how much."""
        options: LowRankOptions = self.options
        return not (options.ratio or options.macs)

    def propose(self, model: ir.Model, context: Context) -> Proposal:
        """The model with as few multiplications as was asked for, or as the budget allows."""
        options: LowRankOptions = self.options
        present = integer_nodes(model)
        if present:
            return Proposal(
                reason=f"the model is quantized already ({present} integer operators): low-rank comes before quantize"
            )
        factorizer = self._factorizer(model, context)
        warnings = [*factorizer.warnings, *naming_nothing(options.keep, factorizer.names)]
        if not factorizer.choices:
            return Proposal(reason=factorizer.why_nothing, details=factorizer.details(), warnings=warnings)
        asked = bool(options.ratio or options.macs)
        tried: list[Factored] = []
        if not asked:
            tried = factorizer.search()
        elif (found := factorizer.factored(ratio=options.ratio, macs=options.macs)) is not None:
            tried = [found]
            wanted = options.macs or options.ratio * factorizer.able
            if 1 - found.macs < _REACHED * wanted:
                warnings.append(
                    f"{1 - found.macs:.0%} of the multiplications can be removed, not {wanted:.0%}"
                )
        return proposal_of(
            tried, factorizer.details,
            nothing="no rank below the full one saves time",
            warnings=lambda chosen: [*warnings, *_hurried(chosen)], recovers=context.recovers,
        )  # fmt: skip

    def _factorizer(self, model: ir.Model, context: Context) -> Factorizer:
        """One that looked at the data for a target before this, where the widths are the same."""
        options: LowRankOptions = self.options
        multiple = options.multiple or context.width
        key = ("low-rank", id(model), options, multiple)
        before: tuple[ir.Model, Factorizer] | None = context.shared.get(key)
        if before is not None:
            return before[1].for_target(context)
        samples = list(context.dataset.calibration(options.samples))
        made = Factorizer(
            model,
            samples,
            context,
            recover=options.recover,
            multiple=multiple,
            kept=lambda name: is_named(name, options.keep),
        )
        # With the model itself, so that no other one gets its identity.
        context.shared[key] = (model, made)
        return made


def _hurried(chosen: Factored | None) -> list[str]:
    if chosen is None or not chosen.hurried:
        return []
    return [f"weights were refitted on {chosen.hurried} for lack of time (--tune gives more)"]


__all__ = ["LowRank", "LowRankOptions"]
