"""layers  ==>  the same with fewer channels, heads and neurons, whose weights make up for what is gone

Structured pruning: indices of a graph's axes that hang together (:mod:`graphopt.prune`) are removed from every tensor
that has them, whatever framework wrote the graph, and every shape that depends on them is mended. The layers that read
fewer channels get new weights in closed form, so that their outputs are nearest to the original's on calibration data
(He et al., ICCV 2017). Without ``ratio`` or ``macs`` as much is removed as the budget allows.

Refuses (in the report, layer by layer, with the node that prevents it):
- channels that are outputs of the model, or that a softmax, a normalization or a mean runs over;
- channels that meet others which may not be removed, or a size that is used for anything but a shape;
- a model that computes on integers already: prune before quantizing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from graphopt.errors import UsageError
from graphopt.lossy import Context, LossyPass, Proposal
from graphopt.prune.pruner import Pruned, Pruner, samples_for
from graphopt.prune.reduced import QUANTIZERS, check_shares, is_named, naming_nothing, proposal_of
from graphopt.quant.units import integer_nodes


@dataclass(frozen=True)
class PruneOptions:
    """Options of ``prune``.

    Attributes:
        ratio: Share of the channels of each group that is removed; 0 leaves it to ``macs`` or the budget.
        macs: Share of the multiplications that is removed, from wherever it costs least; 0 leaves it to ``ratio`` or
            the budget.
        criterion: What channels are ranked by: ``hessian`` (what layers that read them lose after the others have made
            up for it), ``activation`` (Wanda), ``magnitude``, or ``taylor`` (what the model's outputs lose to first
            order, by gradients; needs PyTorch).
        spread: ``measured`` takes more where the outputs are measured to lose less for what is saved, in all as much as
            the share of every group would save; ``uniform`` takes that share of every group.
        recover: Whether weights are refitted.
        multiple: Widths that are kept a multiple of it; 0 asks the target.
        samples: Most samples to rank and refit on; 0 takes 128, or up to 512 as far as there is time: a layer that
            reads one number of each channel sees no more than one row of a sample.
        keep: Names of layers (wildcards allowed) whose outputs stay as they are.
    """

    ratio: float = 0.0
    macs: float = 0.0
    criterion: Literal["hessian", "activation", "magnitude", "taylor"] = "hessian"
    spread: Literal["measured", "uniform"] = "measured"
    recover: bool = True
    multiple: int = 0
    samples: int = 0
    keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_shares("prune", self.ratio, self.macs, "the channels or of the multiplications")
        if self.samples < 0:
            raise UsageError(
                f"{self.samples} is no number of samples", hint="write samples=128, or leave it out"
            )
        if self.multiple < 0:
            raise UsageError(f"{self.multiple} is no width", hint="write multiple=8, or leave it out")


class Prune(LossyPass):
    """Structured pruning with recovery; LOSSY."""

    name = "prune"
    Options = PruneOptions
    share = 0.5
    precedes = (*QUANTIZERS, "sparsify")

    @property
    def searches(self) -> bool:
        """Not where it is told how much."""
        options: PruneOptions = self.options
        return not (options.ratio or options.macs)

    def propose(self, model: ir.Model, context: Context) -> Proposal:
        """The model without what may be removed."""
        options: PruneOptions = self.options
        present = integer_nodes(model)
        if present:
            return Proposal(
                reason=f"the model is quantized already ({present} integer operators): prune comes before quantize"
            )
        pruner = self._pruner(model, context)
        if not pruner.choices:
            return Proposal(
                reason=pruner.why_nothing, details=pruner.details(), warnings=self._unknown(pruner)
            )
        if options.ratio or options.macs:
            found = pruner.pruned(ratio=options.ratio, macs=options.macs)
            return self._proposal(pruner, [] if found is None else [found])
        return self._proposal(pruner, pruner.search())

    def _pruner(self, model: ir.Model, context: Context) -> Pruner:
        """One that ranked the channels for a target before this, where the widths are the same."""
        options: PruneOptions = self.options
        multiple = options.multiple or context.width
        key = ("prune", id(model), options, multiple)
        before: tuple[ir.Model, Pruner] | None = context.shared.get(key)
        if before is not None:
            return before[1].for_target(context)
        samples = samples_for(model, context, options.samples)
        made = Pruner(
            model, samples, context, criterion=options.criterion, recover=options.recover, multiple=multiple,
            kept=self._keeps, uniform=options.spread == "uniform",
        )  # fmt: skip
        # With the model itself, so that no other one gets its identity.
        context.shared[key] = (model, made)
        return made

    def _keeps(self, name: str) -> bool:
        options: PruneOptions = self.options
        return is_named(name, options.keep)

    def _unknown(self, pruner: Pruner) -> list[str]:
        options: PruneOptions = self.options
        return naming_nothing(options.keep, pruner.names)

    def _notes(self, pruner: Pruner, taken: Pruned | None) -> list[str]:
        """What the user is to know besides the numbers."""
        options: PruneOptions = self.options
        notes = []
        if taken is not None and (missing := pruner.unreached(ratio=options.ratio, macs=options.macs)):
            notes.append(missing)
        if pruner.notes:
            notes.append(
                f"{len(pruner.notes)} of {len(pruner.names)} layers are not ranked by {options.criterion}; the first: "
                f"{pruner.notes[0]}"
            )
        if pruner.unmeasured:
            notes.append(
                f"there was no time to measure how much {pruner.unmeasured} matter: they count as the others do "
                "(--tune gives more)"
            )
        if taken is not None and taken.hurried:
            notes.append(f"weights were refitted on {taken.hurried} for lack of time (--tune gives more)")
        return notes + self._unknown(pruner)

    def _proposal(self, pruner: Pruner, tried: list[Pruned]) -> Proposal:
        return proposal_of(
            tried, pruner.details,
            nothing="nothing could be removed at widths that kernels like",
            warnings=lambda taken: self._notes(pruner, taken), recovers=pruner.context.recovers,
        )  # fmt: skip


__all__ = ["Prune", "PruneOptions"]
