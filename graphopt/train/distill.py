"""Trains a student to give what its teacher gives, on samples without labels.

Knowledge distillation (Hinton et al., Distilling the Knowledge in a Neural Network, 2015), end to end by the outputs
and layer by layer by hidden values (Romero et al., FitNets, ICLR 2015). Part of the samples is kept apart: what is
handed back are the weights that were best on these, which may be those that came in.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from graphopt import interrupt
from graphopt.data.interface import Array, Feeds
from graphopt.errors import TargetError
from graphopt.ir import model as ir_model
from graphopt.quant.positions import Positions
from graphopt.train.checkpoint import Checkpoint, State
from graphopt.train.losses import Kind, distance, kinds_of
from graphopt.train.module import Module, NotTrainableError, to_module
from graphopt.train.recipe import RATES, Recipe
from graphopt.train.teacher import Teacher, hidden_of
from graphopt.verify.padding import Padding

if TYPE_CHECKING:
    from torch import Tensor, optim

_APART = 8
"""One sample in so many is kept apart."""
_MOST_APART = 64
_ROWS = 32
_LEAST_BATCH, _WANTED_STEPS = 4, 300
_VALIDATIONS, _LEAST_VALIDATIONS = 20, 6
"""In a whole training."""
_VALIDATING, _LEAST_APART = 0.15, 8
"""Share of the time for them, and samples of each at least where their rows are not known."""
_TRYING = 0.05
"""Share of the time for each learning rate that is tried."""
_LEAST_TRIED = 10
"""Steps that tell one rate from another."""
_MUCH_FASTER = 0.75
"""Share of a step's time in float32 up to which one in bfloat16 is worth its rounding."""
_LEAST_SECONDS_BETWEEN = 10.0
"""Between checkpoints."""
_CLIP = 1.0
_TINY = 1e-12
_LEAST_SCALE = 1e-3
_MOST_SPOILED = 8
"""Steps whose gradients are no finite numbers."""
_ANEW = 0.5
"""Fraction of the schedule at most that a resumed training begins at: its time is to serve more than the end of it."""

STOPPED = "stopped; the same command goes on with it"
"""How it ended, where the user ended it."""


@dataclass
class Trained:
    """What came of it.

    Attributes:
        model: The student with its best weights.
        before, after: Loss on the samples kept apart, of the outputs alone, in units that the losses define.
        steps: That were taken, those of earlier runs included.
        rate: The largest learning rate.
        batch: Samples of a step.
        hidden: Names of the hidden values.
        history: Step and loss at each validation.
        note: How it ended.
    """

    model: ir.Model
    before: float
    after: float
    steps: int
    rate: float
    batch: int
    hidden: list[str]
    history: list[tuple[int, float]]
    note: str = ""


@dataclass
class Distillation:
    """One training.

    Args:
        teacher: The original.
        student: What is trained; left as it was.
        samples: Inputs.
        recipe: How.
        deadline: ``time.monotonic()`` by which it is to end.
        memory: Bytes for what the teacher says.
        threads: Of an operator.
        padding: Positions that are not learned from; None where all count.
        checkpoint: Where it is kept, so that it goes on where it was stopped.
        progress: Told step and loss.
    """

    teacher: ir.Model
    student: ir.Model
    samples: Sequence[Feeds]
    recipe: Recipe = field(default_factory=Recipe)
    deadline: float = float("inf")
    memory: int = 1 << 28
    threads: int = 0
    padding: Padding | None = None
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    progress: Callable[[str], None] = lambda text: None

    def run(self) -> Trained:
        """Train.

        Raises:
            NotTrainableError: The student has no differentiable form; names the node.
        """
        import torch

        threads = torch.get_num_threads()
        try:
            if self.threads:
                torch.set_num_threads(self.threads)
            return self._run()
        finally:
            torch.set_num_threads(threads)

    def _run(self) -> Trained:
        started = time.monotonic()
        samples = self.samples
        outputs = [value.name or "" for value in self.student.graph.outputs]
        hidden = hidden_of(self.teacher, self.student, samples[0], self.threads) if self.recipe.hidden else []
        self._module = to_module(self.student, [*outputs, *hidden])
        inner: list[Kind] = ["mse"] * len(hidden)
        self._kinds = [*kinds_of(self.student, outputs, self.recipe.loss), *inner]
        self._outputs = outputs
        # By the teacher's names, which the student's values have.
        self._positions = Positions(
            self.teacher, [*outputs, *hidden], self.padding, self.threads,
            whole=[name for name, kind in zip(outputs, self._kinds, strict=False) if kind != "mse"],
        )  # fmt: skip
        self._teacher = Teacher(
            self.teacher, [*outputs, *hidden], samples, memory=self.memory, threads=self.threads,
            positions=self._positions,
        )  # fmt: skip
        self._train, self._apart = _split(len(samples))
        self._stacks = _can_stack(self._module, samples)
        self._mixes = self._can_mix()
        self._batch = self.recipe.batch or max(1, _ROWS // _rows_of(samples[0]))
        self._scales = [1.0] * len(self._kinds)
        self._spoiled = 0
        self._check()
        self._scales = self._scales_of(self._losses(self._apart))
        if not np.isfinite(self._scales).all():
            raise NotTrainableError(
                "there is nothing to train towards: the loss is no finite number on the samples"
            )
        self._initial = {
            name: weight.parameter.detach().clone() for name, weight in self._module.weights.items()
        }
        self._half = self.recipe.precision == "bfloat16"
        self._validations = _VALIDATIONS
        if not self.recipe.steps:
            self._budgeted()
        begun = self._begun = self._validated()
        state = self._resumed(begun)
        note = ""
        if state is None:
            state = State(
                best_loss=begun, best={name: array.numpy() for name, array in self._initial.items()}
            )
            try:
                state.rate = self.recipe.rate or self._rate(started)
            except KeyboardInterrupt:
                interrupt.taken()
                note = STOPPED
            self._reset()
        if not note:
            note = "taken from an earlier run" if state.finished else self._loop(state)
        state.put_best(self._module)
        self._module.mask()
        model = ir_model.clone(self.student)
        self._module.write(model)
        return Trained(
            model, begun * self._mean_scale, state.best_loss * self._mean_scale, state.step, state.rate, self._batch,
            hidden, state.history, note,
        )  # fmt: skip

    def _budgeted(self) -> None:
        """Choose what leaves time for many steps: precision, samples of a step and of a validation, validations."""
        batch = self._train[: min(self._batch, _LEAST_BATCH)]
        each = self._seconds(batch, half=self._half)
        if self.recipe.precision == "auto" and not self._is_quantized:
            faster = self._seconds(batch, half=True, most=len(batch) * each)
            if faster < _MUCH_FASTER * each:
                self._half, each = True, faster
        left = min(max(self.deadline - time.monotonic(), 0.0), 1e9)
        # A validation is about a third of a step's work for each of its samples.
        affordable = int(_VALIDATING * left / (each / 3))
        # Where samples cannot be joined their first axis may be anything.
        least = -(-_ROWS // _rows_of(self.samples[0])) if self._stacks else _LEAST_APART
        self._apart = self._apart[: max(affordable // _VALIDATIONS, least)]
        validations = affordable // len(self._apart)
        self._validations = min(max(validations, _LEAST_VALIDATIONS), _VALIDATIONS)
        if not self.recipe.batch:
            self._batch = int(
                min(max(left / (_WANTED_STEPS * each), min(_LEAST_BATCH, self._batch)), self._batch)
            )

    @property
    def _is_quantized(self) -> bool:
        """Whether the student is trained with the rounding of its integers, which another rounding would spoil."""
        return any(node.op_type == "QuantizeLinear" for node in self.student.graph)

    def _seconds(self, batch: Sequence[int], half: bool, most: float = float("inf")) -> float:
        """Of a step, for each sample of it; infinite where none can be taken in this precision.

        Args:
            most: Seconds of a step from which no further one is tried.
        """
        optimizer = self.recipe.make_optimizer([weight.parameter for weight in self._module.weights.values()])
        before, spoiled = self._half, self._spoiled
        self._half = half
        seconds: list[float] = []
        try:
            while len(seconds) < 3 and (len(seconds) < 2 or seconds[-1] < most):
                started = time.monotonic()
                # At a rate of zero nothing changes.
                self._step(batch, 0, optimizer)
                seconds.append(time.monotonic() - started)
            was_spoiled = self._spoiled > spoiled
        except NotTrainableError:
            if not half or before:
                raise
            return float("inf")
        finally:
            self._half, self._spoiled = before, spoiled
        return float("inf") if half and was_spoiled else min(seconds) / len(batch)

    def _resumed(self, begun: float) -> State | None:
        """Where an earlier run stopped; None where there is none, or its weights serve this student worse than its own.

        Args:
            begun: Loss of the student as it came in.
        """
        state = self.checkpoint.load(self._module)
        if state is None:
            return None
        state.put_best(self._module)
        self._module.mask()
        state.best_loss = self._validated()
        self._reset()
        return state if state.best_loss < begun else None

    def _scales_of(self, losses: Sequence[float]) -> list[float]:
        """What one unit is of each loss; of one that is all but zero, a share of the largest."""
        found = list(losses)
        for own in (slice(0, len(self._outputs)), slice(len(self._outputs), None)):
            least = _LEAST_SCALE * max((loss for loss in losses[own] if np.isfinite(loss)), default=0.0)
            found[own] = [max(loss, least, _TINY) for loss in losses[own]]
        return found

    def _check(self) -> None:
        """Raise where there is nothing to train, or nothing that training could change."""
        import torch

        if not self._module.weights:
            raise NotTrainableError("it has no weights to train")
        with torch.no_grad():
            outputs = self._module(self.samples[0])
        floats = [tensor.is_floating_point() for tensor in outputs]
        self._compared = [place for place, real in enumerate(floats[: len(self._outputs)]) if real]
        self._compared_hidden = [place for place in range(len(self._outputs), len(floats)) if floats[place]]
        if not self._compared:
            raise NotTrainableError("none of its outputs is of floating point")

    @property
    def _mean_scale(self) -> float:
        return float(np.mean([self._scales[place] for place in self._compared]))

    def _loop(self, state: State) -> str:
        """Train until the end of the time or the steps, or no further gain; says how it ended."""
        recipe = self.recipe
        parameters = [weight.parameter for weight in self._module.weights.values()]
        optimizer = recipe.make_optimizer(parameters)
        state.put(self._module, optimizer)
        started, first = time.monotonic(), state.step
        seconds = min(max(self.deadline - started, 0.0), 1e9)
        begun, kept_at = state.fraction if recipe.steps else min(state.fraction, _ANEW), started
        fraction = checked = begun
        since = 0
        note = "all the time was used"
        order = self._batches(state.step)
        try:
            while True:
                fraction = begun + (1 - begun) * (time.monotonic() - started) / max(seconds, 1e-9)
                if recipe.steps:
                    fraction = max(fraction, state.step / recipe.steps)
                is_over = fraction >= 1
                if is_over or fraction >= checked + 1 / self._validations:
                    checked = fraction
                    loss = self._validated()
                    state.history.append((state.step, loss * self._mean_scale))
                    self.progress(f"step {state.step}, loss {loss / self._begun:.1%} of what it was")
                    since += 1
                    if loss < state.best_loss:
                        state.take_best(self._module)
                        state.best_loss, since = loss, 0
                    if is_over or since >= recipe.patience:
                        note = note if is_over else f"no gain in {since} validations"
                        if recipe.steps and state.step >= recipe.steps:
                            note = "all steps were taken"
                        state.finished = True
                        break
                    if time.monotonic() - kept_at > _LEAST_SECONDS_BETWEEN:
                        kept_at, state.fraction = time.monotonic(), min(fraction, 0.99)
                        self.checkpoint.save(state, self._module, optimizer)
                for group in optimizer.param_groups:
                    group["lr"] = state.rate * recipe.rate_at(fraction)
                self._step(next(order), state.step, optimizer)
                state.step += 1
        except KeyboardInterrupt:
            interrupt.taken()
            note = STOPPED
            state.fraction = min(fraction, 0.99)
        try:
            if state.step > first:
                self.checkpoint.save(state, self._module, optimizer)
        except KeyboardInterrupt:
            # Not kept, but here.
            interrupt.taken()
        return note

    def _step(self, batch: Sequence[int], number: int, optimizer: optim.Optimizer) -> None:
        """One step.

        Args:
            number: Of the step: what is mixed follows from it.
        """
        import torch

        optimizer.zero_grad()
        for part, share in self._parts(batch):
            feeds = self._feeds(part)
            mixed = self._mixed(feeds, len(part), number)
            if mixed is None:
                wanted = self._wanted(part)
            else:
                feeds, wanted = mixed, self._teacher.on(mixed)
            with torch.autocast("cpu", torch.bfloat16, enabled=self._half):
                got = self._module(feeds)
            losses = torch.stack(self._distances(got, feeds, wanted))
            loss = losses[self._compared].mean()
            if self._compared_hidden:
                loss = loss + self.recipe.hidden * losses[self._compared_hidden].mean()
            torch.autograd.backward(loss * share)
        parameters = [weight.parameter for weight in self._module.weights.values()]
        norm = torch.nn.utils.clip_grad_norm_(parameters, _CLIP)
        if not bool(torch.isfinite(norm)):
            self._spoiled += 1
            if self._spoiled > _MOST_SPOILED and self._spoiled > number // 2:
                raise NotTrainableError("its gradients are no finite numbers")
            return
        optimizer.step()
        self._module.mask()

    def _rate(self, started: float) -> float:
        """The learning rate with which a few steps come farthest: from the middle one on, up or else down, as long as
        it gets better. The middle one where there is no time for as many steps as tell rates apart."""
        rates = RATES[self.recipe.optimizer]
        whole = min(self.deadline - started, 1e9)
        tried: dict[int, float] = {}

        def loss(place: int) -> float:
            if place not in tried:
                tried[place] = (
                    self._tried(rates[place], _TRYING * whole) if 0 <= place < len(rates) else float("inf")
                )
            return tried[place]

        best = len(rates) // 2
        if not np.isfinite(loss(best)):
            return rates[best]
        for way in (1, -1):
            while loss(best + way) < loss(best):
                best += way
        return rates[best]

    def _tried(self, rate: float, seconds: float) -> float:
        """The loss after a short training at a learning rate; infinite where there was time for a handful of steps."""
        self.progress(f"trying a learning rate of {rate:g}")
        self._reset()
        optimizer = self.recipe.make_optimizer([weight.parameter for weight in self._module.weights.values()])
        order, begun = self._batches(0), time.monotonic()
        most = max(self.recipe.steps // 20, 1) if self.recipe.steps else 200
        for step in range(most):
            fraction = max(step / most, (time.monotonic() - begun) / max(seconds, 1e-9))
            if fraction >= 1:
                if step < min(_LEAST_TRIED, most):
                    return float("inf")
                break
            for group in optimizer.param_groups:
                group["lr"] = rate * self.recipe.rate_at(fraction)
            self._step(next(order), step, optimizer)
        return self._validated()

    def _reset(self) -> None:
        import torch

        with torch.no_grad():
            for name, weight in self._module.weights.items():
                weight.parameter.copy_(self._initial[name])

    def _batches(self, skipped: int) -> Iterator[list[int]]:
        """Endless; each epoch in an order of its own."""
        count = max(len(self._train) // self._batch, 1)
        epoch, place = divmod(skipped, count)
        while True:
            order = np.random.default_rng((self.recipe.seed, epoch)).permutation(self._train)
            for index in range(place, count):
                yield order[index * self._batch : (index + 1) * self._batch].tolist()
            epoch, place = epoch + 1, 0

    def _parts(self, batch: Sequence[int]) -> Iterator[tuple[list[int], float]]:
        """What can be run at once of a batch, each with its share of it."""
        groups: dict[object, list[int]] = {}
        for index in batch:
            shapes = tuple((name, np.shape(array)) for name, array in sorted(self.samples[index].items()))
            groups.setdefault(shapes if self._stacks else index, []).append(index)
        for part in groups.values():
            yield part, len(part) / len(batch)

    def _feeds(self, part: Sequence[int]) -> dict[str, Array]:
        return {name: _joined([self.samples[index][name] for index in part]) for name in self._module.inputs}

    def _wanted(self, part: Sequence[int]) -> dict[str, Array]:
        wanted = [self._teacher.of(index) for index in part]
        return {name: _joined([sample[name] for sample in wanted]) for name in self._module.outputs}

    def _mixed(self, feeds: Feeds, count: int, number: int) -> Feeds | None:
        """Samples mixed with one another, where this step is on mixtures; else None."""
        generator = np.random.default_rng((self.recipe.seed, 1, number))
        if not self._mixes or count < 2 or generator.random() >= self.recipe.mix:
            return None
        share = np.float32(generator.random())
        rows = {name: len(array) // count for name, array in feeds.items()}
        # Each sample with the one that lies some places behind it.
        behind = int(generator.integers(1, count))
        return {
            name: (share * array + (1 - share) * np.roll(array, behind * rows[name], axis=0)).astype(
                array.dtype
            )
            for name, array in feeds.items()
        }

    def _can_mix(self) -> bool:
        """Whether mixtures of samples are inputs, and the teacher runs on several at a time."""
        if not self.recipe.mix or not self._stacks:
            return False
        shapes = {name: np.shape(array) for name, array in self.samples[0].items()}
        alike = [
            index
            for index, sample in enumerate(self.samples)
            if {name: np.shape(array) for name, array in sample.items()} == shapes
        ][:2]
        feeds = self._feeds(alike)
        if len(alike) < 2 or any(array.dtype.kind != "f" for array in feeds.values()):
            return False
        try:
            found = self._teacher.on(feeds)
        except TargetError:
            return False
        wanted = self._wanted(alike)
        return all(found[name].shape == wanted[name].shape for name in wanted)

    def _distances(self, values: Sequence[Tensor], feeds: Feeds, wanted: Feeds) -> list[Tensor]:
        """How far each value is from the teacher's, in units of what it was before training.

        Args:
            values: The student's.
            feeds: Of which they come.
            wanted: The teacher's, at positions that count.
        """
        import torch

        found: list[Tensor] = []
        for name, got, kind, scale in zip(
            self._module.outputs, values, self._kinds, self._scales, strict=True
        ):
            if not got.is_floating_point():
                found.append(torch.zeros(()))
                continue
            places = self._positions.places(name, feeds, tuple(got.shape))
            got = (got if places is None else got[torch.from_numpy(places)]).float()
            theirs = torch.from_numpy(np.array(wanted[name]))
            found.append(distance(got, theirs, kind, self.recipe.temperature) / scale)
        return found

    def _losses(self, indices: Sequence[int]) -> list[float]:
        """The mean of each loss over samples."""
        import torch

        total = np.zeros(len(self._kinds))
        with torch.no_grad():
            for start in range(0, len(indices), self._batch):
                batch = indices[start : start + self._batch]
                for part, share in self._parts(batch):
                    feeds = self._feeds(part)
                    losses = self._distances(self._module(feeds), feeds, self._wanted(part))
                    total += torch.stack(losses).double().numpy() * share * len(batch)
        return [float(loss) for loss in total / max(len(indices), 1)]

    def _validated(self) -> float:
        """Loss of the outputs on the samples kept apart, where 1 is what it was before."""
        losses = self._losses(self._apart)
        loss = float(np.mean([losses[place] for place in self._compared]))
        return loss if np.isfinite(loss) else float("inf")


def _joined(arrays: Sequence[object]) -> Array:
    return np.concatenate(list(map(np.asarray, arrays))) if len(arrays) > 1 else np.asarray(arrays[0])


def _split(count: int) -> tuple[list[int], list[int]]:
    """Samples to train on, and those kept apart; the same where there are too few."""
    apart = list(range(_APART - 1, count, _APART))[:_MOST_APART]
    if not apart:
        return list(range(count)), list(range(count))
    return [index for index in range(count) if index not in set(apart)], apart


def _rows_of(sample: Feeds) -> int:
    return max((np.shape(array)[0] for array in sample.values() if np.ndim(array)), default=1) or 1


def _can_stack(module: Module, samples: Sequence[Feeds]) -> bool:
    """Whether samples may be run behind one another along the first axis of every input, as one."""
    import torch

    first = samples[0]
    shapes = {name: np.shape(array) for name, array in first.items()}
    second = next(
        (
            other
            for other in samples[1:]
            if {name: np.shape(array) for name, array in other.items()} == shapes
        ),
        None,
    )
    if second is None or any(not np.ndim(array) for array in first.values()):
        return False
    if len({dims[0] for dims in shapes.values()}) > 1:
        return False
    joined = {name: _joined([first[name], second[name]]) for name in first}
    with torch.no_grad():
        try:
            together, alone = module(joined), [module(first), module(second)]
        except NotTrainableError:
            return False
    for both, left, right in zip(together, *alone, strict=True):
        if (
            not left.ndim
            or both.shape[0] != left.shape[0] + right.shape[0]
            or both.shape[1:] != left.shape[1:]
        ):
            return False
        apart = torch.cat([left, right])
        scale = float(apart.abs().max()) if apart.numel() else 0.0
        if not torch.allclose(both.double(), apart.double(), rtol=1e-3, atol=1e-4 * scale, equal_nan=True):
            return False
    return True


__all__ = ["STOPPED", "Distillation", "Trained"]
