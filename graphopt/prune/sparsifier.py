"""Puts zeros into the weights of one model: looks at its layers once, then by one share or another.

What layers read is seen in two ways. Mean squares of all layers come from the model as it is, in one run over the
samples. Second moments, for SparseGPT, come layer by layer, from the inputs on, with the zeros of the layers before
already in place, where the samples' tensors fit into memory; else from the model as it is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.data.interface import Feeds
from graphopt.ir import check, facts
from graphopt.ir import model as ir_model
from graphopt.ir.facts import Array
from graphopt.lossy import Candidate, Context
from graphopt.prune import moments, sparse
from graphopt.prune.bias import add_to_bias, can_be_centred
from graphopt.prune.recover import is_kept_apart
from graphopt.prune.score import Criterion
from graphopt.prune.sparse import Pattern
from graphopt.prune.sparse_weights import Outcome, Part, Solution, Sums, contents_of, parts_of, solved
from graphopt.prune.structure import layers_of
from graphopt.prune.walk import Walk, most_kept
from graphopt.quant import layers as lossy_layers
from graphopt.quant.observe import activation_bytes, in_turns
from graphopt.quant.rounding import inputs_of
from graphopt.verify.agreement import noise_share
from graphopt.verify.budget import Judgement
from graphopt.verify.session import Session

_SHARE_OF_MEMORY = 0.5
_SHARE_OF_TIME = 0.3
"""Of what is left, for the noise of each layer alone."""
_ALONE_SAMPLES = 8
_SHARE_OF_LOOKING = 0.1
"""Of what is left, for one run over the samples; fewer are taken where all would take longer."""
_LEAST_SAMPLES = 16
_LEAST_WALKED = 4
"""Samples, below which walking is not worth what it costs."""


@dataclass
class Sparse:
    """A model with zeros in its weights.

    Attributes:
        label: "sparse 2:4 in 12 of 20 layers, 43% zeros".
        model: The graph.
        zeros: Share of the numbers in the weights of all layers that are zero.
        outcomes: By the layer that reads the weight first.
        judgement: What it loses; None where it was not judged.
    """

    label: str
    model: ir.Model
    zeros: float
    outcomes: Mapping[str, Outcome]
    judgement: Judgement | None = None

    @property
    def holds(self) -> bool:
        """Whether the budget does."""
        return self.judgement is not None and self.judgement.ok

    @property
    def drop(self) -> float:
        """What is lost, as a share."""
        return float("inf") if self.judgement is None else self.judgement.drop

    def candidate(self, *, prepares: bool = False) -> Candidate:
        """For the passes that follow, and as a form: zeros buy no time, so it need not be faster."""
        return Candidate(self.label, self.model, judgement=self.judgement, prepares=prepares, wanted=True)


class Sparsifier:
    """A model, and which of its weights may get zeros.

    Args:
        model: Shapes are inferred; it stays as it is.
        samples: To choose zeros on.
        context: Of the pass.
        pattern: Where zeros may be.
        criterion: What they are chosen by.
        kept: From a layer's name, whether its weight stays.
    """

    def __init__(
        self,
        model: ir.Model,
        samples: Sequence[Feeds],
        context: Context,
        *,
        pattern: Pattern,
        criterion: Criterion,
        kept: Callable[[str], bool],
    ) -> None:
        self.model = model
        self.context = context
        self.pattern = pattern
        self.criterion = criterion
        self.layers = layers_of(model.graph)
        self.parts, self.refused = parts_of(self.layers, pattern, kept)
        self._samples = samples
        self._memory = max(int(_SHARE_OF_MEMORY * context.memory), 1 << 26)
        self._squares: dict[str, Array] = {}
        self._found: dict[str, Solution] = {}
        """The pattern in all weights, for the next target. For some of them it does not serve: a change is large where
        what it was found on had little power, and without the zeros before it a layer reads something else."""
        self._walked = 0
        if self.parts and criterion != "magnitude":
            self._look()

    def for_target(self, context: Context) -> Sparsifier:
        """The same for another target, whose time it is now."""
        self.context = context
        return self

    @property
    def why_nothing(self) -> str:
        """Why no weight can get zeros."""
        if not self.layers:
            return "it holds no Conv, MatMul or Gemm with constant weights"
        name, reason = next(iter(self.refused.items()))
        return f"none of its layers can have zeros as {self.pattern}; {name!r}: {reason}"

    def made(self, names: Iterable[str] | None = None, shares: Mapping[str, float] | None = None) -> Sparse:
        """The model with zeros in some weights.

        Args:
            names: Of layers; None for all that may.
            shares: Of the numbers that become zero, by layer; of no account where the pattern says it.
        """
        shares = shares or {}
        wanted = None if names is None else frozenset(names)
        parts = [
            part
            for part in self.parts
            if (wanted is None or part.name in wanted)
            and (self.pattern.block or shares.get(part.name, 0.0) > 0)
        ]
        model = ir_model.clone(self.model)
        found: dict[str, Solution] = {}
        if self.pattern.block and wanted is None and self._found:
            found = self._found
            for part in parts:
                self._give(model, part, found[part.name])
        else:
            for part, solution in self._solutions(model, parts, shares):
                found[part.name] = solution
            if self.pattern.block and wanted is None:
                self._found = found
        check.check(model)
        return self._labelled(model, {name: solution.outcome for name, solution in found.items()})

    def _solutions(
        self, model: ir.Model, parts: Sequence[Part], shares: Mapping[str, float]
    ) -> Iterator[tuple[Part, Solution]]:
        """Zeros of each weight, which the model is given at once: the layers behind see what comes of it."""
        todo: dict[str, Part] = {}
        for part in parts:
            why = self._why_no_moments(part)
            if self.criterion == "hessian" and not why:
                todo[part.name] = part
            else:
                yield part, self._give(model, part, self._masked(part, shares.get(part.name, 0.0), why))
        count = len(todo)
        for part, train, test in self._summed(model, list(todo.values())):
            self.context.progress(f"zeros in layer {count - len(todo) + 1} of {count}")
            del todo[part.name]
            share = shares.get(part.name, 0.0)
            solution = solved(part, self.pattern, share, train, test, shifts=can_be_centred(part.layer))
            if isinstance(solution, str):
                solution = self._masked(part, share, solution)
            yield part, self._give(model, part, solution)
        for part in todo.values():
            why = "no time was left for second moments: --tune gives more"
            yield part, self._give(model, part, self._masked(part, shares.get(part.name, 0.0), why))

    def judged(self, found: Sparse) -> Sparse:
        """With what it loses on the held-out samples."""
        self.context.progress(f"judging {found.label}")
        found.judgement = lossy_layers.judge(found.model, self.context)
        return found

    def noise_alone(self, until: float, share: float = 0.0) -> dict[str, float]:
        """Noise of the model's outputs with zeros in one weight alone, the others as they are; as far as there is time.

        Args:
            until: ``time.monotonic()`` after which it stops; before that, when its share of the time is over.
            share: Of the numbers that become zero, where the pattern does not say.
        """
        started = time.monotonic()
        limit = min(until, started + _SHARE_OF_TIME * max(self.context.deadline - started, 0.0))
        samples = self._samples[:_ALONE_SAMPLES]
        session = Session(self.model, optimize="all", threads=self.context.threads)
        counted = self.context.evaluation.counted
        references = [counted(feeds, session.run(feeds)) for feeds in samples]
        found: dict[str, float] = {}
        for number, part in enumerate(self.parts):
            if time.monotonic() > limit:
                break
            self.context.progress(f"zeros in layer {number + 1} of {len(self.parts)} alone")
            model = ir_model.clone(self.model)
            self._give(model, part, self._masked(part, share))
            alone = Session(model, optimize="all", threads=self.context.threads)
            found[part.name] = noise_share(
                [counted(feeds, alone.run(feeds)) for feeds in samples], references
            )
        return found

    def scores(self, part: Part) -> tuple[Array, str]:
        """What is lost without each number, [groups, outputs, K], if the others stay; and by which criterion."""
        squares = None if self.criterion == "magnitude" else self._mean_squares(part)
        criterion = "magnitude" if squares is None else "activation"
        return sparse.scores(part.matrix(part.weight), squares), criterion

    def _masked(self, part: Part, share: float, why: str = "") -> Solution:
        """A weight with zeros whose other numbers stay as they are.

        Args:
            why: SparseGPT does not choose them.
        """
        scores, criterion = self.scores(part)
        zeros = part.restored(self.pattern.zeros(scores, share))
        if self.criterion == "magnitude":
            why = ""
        elif criterion == "magnitude":
            why = why or moments.why_no_rows(part.layer) or "what it reads is not finite on the data"
        weight = np.where(zeros, 0, part.weight).astype(part.weight.dtype)
        return Solution(weight, np.zeros(0), Outcome(criterion, note=why))

    # -- what layers read ------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Mean squares of what layers read, and how many samples can be walked with."""
        self.context.progress("what layers read")
        feeds = self._samples[0]
        made = [
            value.name
            for node in self.model.graph
            for value in node.outputs
            if value.name and isinstance(value.type, ir.TensorType) and value.dtype != ir.DataType.STRING
        ]
        sizes = activation_bytes(self.model, made, feeds, threads=self.context.threads)
        sizes |= {name: int(np.asarray(array).nbytes) for name, array in feeds.items()}
        started = time.monotonic()
        padding = self.context.evaluation.padding
        limit = started + _SHARE_OF_LOOKING * max(self.context.deadline - started, 0.0)
        layers = [layer for part in self.parts for layer in part.readers if not moments.why_no_rows(layer)]
        for turn in in_turns(layers, lambda layer: sizes.get(layer.data.name or "", 0), self._memory):
            sums: dict[str, Array] = {}
            rows_seen: dict[str, int] = {}
            for number, seen in enumerate(
                moments.read_by(self.model, turn, self._samples, self.context.threads, padding)
            ):
                if number >= _LEAST_SAMPLES and time.monotonic() > limit:
                    self._samples = self._samples[:number]
                    break
                for layer in turn:
                    array = seen[layer.data.name or ""]
                    most = moments.rows_a_sample(inputs_of(layer.node), len(self._samples))
                    rows = moments.rows_of(layer, array, number, most)
                    own = np.square(rows, dtype=np.float64).sum(axis=1)
                    sums[layer.name] = sums.get(layer.name, 0.0) + own
                    rows_seen[layer.name] = rows_seen.get(layer.name, 0) + rows.shape[1]
            limit = float("inf")
            for name, total in sums.items():
                if np.isfinite(total).all():
                    self._squares[name] = total / rows_seen[name]
        self._walked = min(len(self._samples), self._memory // max(most_kept(self.model, sizes), 1))

    def _mean_squares(self, part: Part) -> Array | None:
        """Of what all readers of a weight multiply with it, [groups, 1, K] in order; None where it was not seen."""
        found = [self._squares[layer.name] for layer in part.readers if layer.name in self._squares]
        if len(found) < len(part.readers):
            return None
        total = np.sum(found, axis=0)
        squares: Array = (total if part.order is None else total[:, part.order])[:, None]
        return squares

    def _why_no_moments(self, part: Part) -> str:
        """Why SparseGPT does not choose the zeros of a weight; empty where it does or was not asked to."""
        if self.criterion != "hessian":
            return ""
        if len(part.readers) > 1:
            return f"{len(part.readers)} layers share the weight"
        return moments.why_not(part.layer)

    def _summed(self, model: ir.Model, parts: Sequence[Part]) -> Iterator[tuple[Part, Sums, Sums]]:
        """Second moments of what each layer reads, on samples to fit and on others; as far as there is time."""
        if self._walked < min(_LEAST_WALKED, len(self._samples)):
            yield from self._summed_apart(parts)
            return
        walk = Walk(model, self._samples[: self._walked], self.context.threads)
        real = moments.real_rows(
            self.model, [part.layer for part in parts], self.context.evaluation.padding, self.context.threads
        )
        for part in parts:
            if time.monotonic() > self.context.deadline:
                return
            train, test = Sums(), Sums()
            name = part.layer.data.name or ""
            for index, array in enumerate(walk.to(name)):
                array = real.of(name, self._samples[index], array)
                self._add(part, array, index, self._walked, train, test)
            yield part, train, test if test.rows else train

    def _summed_apart(self, parts: Sequence[Part]) -> Iterator[tuple[Part, Sums, Sums]]:
        """As :meth:`_summed`, from what the layers read in the model without zeros."""

        def size(part: Part) -> int:
            return 16 * part.layer.groups * inputs_of(part.layer.node) ** 2

        count = len(self._samples)
        for turn in in_turns(parts, size, self._memory):
            if time.monotonic() > self.context.deadline:
                return
            sums = {part.name: (Sums(), Sums()) for part in turn}
            layers = [part.layer for part in turn]
            for index, seen in enumerate(
                moments.read_by(
                    self.model, layers, self._samples, self.context.threads, self.context.evaluation.padding
                )
            ):
                for part in turn:
                    self._add(part, seen[part.layer.data.name or ""], index, count, *sums[part.name])
            for part in turn:
                train, test = sums.pop(part.name)
                yield part, train, test if test.rows else train

    def _add(self, part: Part, array: Array, index: int, count: int, train: Sums, test: Sums) -> None:
        rows = moments.rows_of(
            part.layer, array, index, moments.rows_a_sample(inputs_of(part.layer.node), count)
        )
        (test if is_kept_apart(index) else train).add(rows)

    # -- what they are given ---------------------------------------------------------------------------------

    def _give(self, model: ir.Model, part: Part, solution: Solution) -> Solution:
        value = model.graph.initializers[part.layer.weight.name or ""]
        value.const_value = ir.tensor(solution.weight, name=value.name)
        value.metadata_props[facts.SPARSITY] = str(self.pattern)
        if solution.shift.any():
            twin = next(layer for layer in layers_of(model.graph) if layer.name == part.name)
            add_to_bias(model.graph, twin, solution.shift, "sparsify")
        return solution

    def _labelled(self, model: ir.Model, outcomes: Mapping[str, Outcome]) -> Sparse:
        contents = contents_of(model).values()
        zeros = sum(content.size - np.count_nonzero(content) for content in contents)
        share = float(zeros / max(sum(content.size for content in contents), 1))
        readers = sum(len(part.readers) for part in self.parts if part.name in outcomes)
        kind = f"sparse {self.pattern}" if self.pattern.block else "sparse"
        where = "" if readers == len(self.layers) else f" in {readers} of {len(self.layers)} layers"
        return Sparse(f"{kind}{where}, {share:.0%} zeros", model, share, outcomes)


__all__ = ["Sparse", "Sparsifier"]
