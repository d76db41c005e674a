"""weights  ==>  the same with zeros, as 2:4, another N:M, or anywhere, whose other numbers make up for them

No shape changes, and no kernel that graphopt's targets have skips zeros: it buys no time there. It buys size once the
file is compressed, and 2:4 is what Sparse Tensor Cores take (in TensorRT with sparsity enabled, in cuSPARSELt; in
float16, bfloat16 and int8). So a result is handed out where it is within the budget and as fast as the fastest without
zeros, within noise. Zeros are chosen, and the numbers beside them updated, by SparseGPT (Frantar & Alistarh, ICML
2023), by Wanda (Sun et al., ICLR 2024) or by magnitude. N:M runs along the numbers that a sum reads: of a convolution
along its input channels, at each place of the kernel. Where N:M in all layers is over the budget, those that add least
noise get it.

Refuses (in the report, layer by layer):
- numbers of a sum (input channels of a group) that are no multiple of M;
- depthwise and transposed convolutions;
- a weight that something else reads too, such as a Gather;
- a model that computes on integers already: sparsify before quantizing, which keeps zeros.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from graphopt.errors import UsageError
from graphopt.lossy import Context, LossyPass, Proposal
from graphopt.prune.reduced import QUANTIZERS, is_named, naming_nothing
from graphopt.prune.sparse import Pattern
from graphopt.prune.sparse_report import details
from graphopt.prune.sparse_search import Shares, largest_share, most_layers
from graphopt.prune.sparsifier import Sparse, Sparsifier
from graphopt.quant.units import integer_nodes

_SAMPLES = 128


@dataclass(frozen=True)
class SparsifyOptions:
    """Options of ``sparsify``.

    Attributes:
        pattern: ``2:4`` or another ``N:M``: N of each M numbers in a row stay; ``unstructured`` for zeros anywhere.
        sparsity: Share of the numbers that become zero, of all weights that may; 0 leaves it to the budget. Only for
            ``unstructured``.
        criterion: What zeros are chosen by: ``hessian`` (SparseGPT, which also updates the other numbers),
            ``activation`` (Wanda) or ``magnitude``.
        spread: ``measured`` takes more zeros where the outputs are measured to lose less for them; ``uniform`` takes
            the same share of each weight. Of no account with ``N:M``.
        samples: Most samples to choose on.
        keep: Names of layers (wildcards allowed) whose weights stay as they are.
    """

    pattern: str = "2:4"
    sparsity: float = 0.0
    criterion: Literal["hessian", "activation", "magnitude"] = "hessian"
    spread: Literal["measured", "uniform"] = "measured"
    samples: int = _SAMPLES
    keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        pattern = Pattern.parse(self.pattern)
        if not 0 <= self.sparsity < 1:
            raise UsageError(
                f"the sparsity of sparsify is {self.sparsity:g}",
                hint="write a share from 0 to below 1: sparsify{pattern=unstructured,sparsity=0.5}",
            )
        if self.sparsity and pattern.block:
            raise UsageError(
                f"the pattern {pattern} says how many zeros there are",
                hint="leave out sparsity, or write pattern=unstructured",
            )
        if self.samples < 1:
            raise UsageError(f"{self.samples} is no number of samples", hint="write samples=128")


class Sparsify(LossyPass):
    """Zeros inside weights; LOSSY."""

    name = "sparsify"
    Options = SparsifyOptions
    share = 0.5
    precedes = QUANTIZERS

    @property
    def searches(self) -> bool:
        """Not where it is told how much."""
        options: SparsifyOptions = self.options
        return not options.sparsity

    def propose(self, model: ir.Model, context: Context) -> Proposal:
        """The model with as many zeros as were asked for, or as the budget allows."""
        options: SparsifyOptions = self.options
        present = integer_nodes(model)
        if present:
            return Proposal(
                reason=f"the model is quantized already ({present} integer operators): sparsify comes before quantize"
            )
        sparsifier = self._sparsifier(model, context)
        if not sparsifier.parts:
            return Proposal(
                reason=sparsifier.why_nothing,
                details=details(sparsifier),
                warnings=self._unknown(sparsifier),
            )
        uniform = options.spread == "uniform"
        if options.sparsity:
            shares = Shares(sparsifier, uniform=uniform).of(options.sparsity)
            tried = [sparsifier.judged(sparsifier.made(shares=shares))]
        elif not sparsifier.pattern.block:
            tried = largest_share(sparsifier, uniform=uniform)
        else:
            tried = most_layers(sparsifier)
        return self._proposal(sparsifier, tried)

    def _sparsifier(self, model: ir.Model, context: Context) -> Sparsifier:
        """One that looked at the layers for a target before this, where there was one."""
        options: SparsifyOptions = self.options
        key = ("sparsify", id(model), options)
        before: tuple[ir.Model, Sparsifier] | None = context.shared.get(key)
        if before is not None:
            return before[1].for_target(context)
        samples = list(context.dataset.calibration(options.samples))
        made = Sparsifier(
            model, samples, context,
            pattern=Pattern.parse(options.pattern), criterion=options.criterion, kept=self._keeps,
        )  # fmt: skip
        # With the model itself, so that no other one gets its identity.
        context.shared[key] = (model, made)
        return made

    def _keeps(self, name: str) -> bool:
        options: SparsifyOptions = self.options
        return is_named(name, options.keep)

    def _unknown(self, sparsifier: Sparsifier) -> list[str]:
        options: SparsifyOptions = self.options
        return naming_nothing(options.keep, [layer.name for layer in sparsifier.layers])

    def _proposal(self, sparsifier: Sparsifier, tried: list[Sparse]) -> Proposal:
        """The one with most zeros that holds, or what came nearest."""
        options: SparsifyOptions = self.options
        context = sparsifier.context
        held = [found for found in tried if found.holds]
        best = max(held, key=lambda found: found.zeros, default=None)
        # Where a pass follows that wins accuracy back, it is given all of it besides.
        most = max(tried, key=lambda found: found.zeros) if context.recovers else None
        chosen = most or best or min(tried, key=lambda found: found.drop)
        speed = _speed(context.target, sparsifier.pattern)
        notes = [speed]
        others = {
            name: outcome.note
            for name, outcome in chosen.outcomes.items()
            if outcome.note and outcome.criterion != options.criterion
        }
        if others:
            name, why = next(iter(others.items()))
            notes.append(
                f"the zeros of {len(others)} of {len(chosen.outcomes)} weights are not chosen by {options.criterion}; "
                f"the first: {name}: {why}"
            )
        notes += self._unknown(sparsifier)
        told = {**details(sparsifier, chosen, tried), "speed": speed}
        if best is not None:
            further = [] if chosen is best or chosen.holds else [chosen.candidate(prepares=True)]
            return Proposal([best.candidate(), *further], told, warnings=notes)
        words = "" if chosen.judgement is None else f": {chosen.judgement.describe()}"
        return Proposal(
            details=told,
            reason=f"{chosen.label}: over the budget{words}",
            warnings=notes,
            best_effort=chosen.candidate(),
        )


def _speed(target: str, pattern: Pattern) -> str:
    """What zeros buy, and what they do not."""
    text = f"{target} has no kernels that skip zeros, so they buy no time there"
    if pattern == Pattern(2, 4):
        return (
            f"{text}; they are laid out for Sparse Tensor Cores (TensorRT with sparsity enabled, cuSPARSELt), and the "
            "file compresses better"
        )
    return f"{text}; what they buy is a file that compresses better"


__all__ = ["Sparsify", "SparsifyOptions"]
