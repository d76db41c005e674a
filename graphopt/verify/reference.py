"""The reference: the original model, run by ONNX Runtime with its optimisations off, and its noise floor.

What is made of a model is compared on a few sets of inputs: the user's, or made-up ones of several sizes.
:mod:`graphopt.verify.noise` measures by how much it may differ, :mod:`graphopt.verify.doubts` says what the user should
know of them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from graphopt.data.interface import (
    Array,
    Feeds,
    TensorSpec,
    check_feeds,
    inputs_of,
    is_static,
)
from graphopt.data.synthesize import GRAINS, feeds_for, resized, size_candidates, sizes_of
from graphopt.errors import DataError, ProcessLostError, TargetError, UnsupportedModelError
from graphopt.ir import facts
from graphopt.verify.compare import Comparison, compare, deviation
from graphopt.verify.doubts import count_doubtful, deaf_outputs, silent_outputs, wild_outputs
from graphopt.verify.noise import MOVED_TYPES, measure_noise, packs, rounds
from graphopt.verify.rehearsal import Rehearsal
from graphopt.verify.session import Session
from graphopt.verify.trial import Trial, is_floating

_MOST_TRIALS = 8
_LEAST_TRIALS = 2
_TRIAL_SECONDS = 0.5
_GRAIN_SECONDS = 5.0
"""For looking for inputs that the original makes more of, after which no others are begun."""
_SIZE_SECONDS = 2.0
"""A run of made-up sizes may take so long for the model to be tried with others as well."""
_OTHER_SIZES: tuple[Callable[[int], int], ...] = (
    lambda size: size // 2 or 2,
    lambda size: 2 * size,
    lambda size: size + 1,
)
_MOST_LAYOUT_STEPS = 8
_LAYOUT = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Slice", "Cast"})
_BOUNDED = frozenset({"Sigmoid", "Softmax", "HardSigmoid", "Tanh"})


class MadeUpSizesError(TargetError):
    """Something fails with sizes of dynamic dimensions that were made up, and that the original took.

    Args:
        sizes: By name of the dimension.
        cause: How it fails.

    Attributes:
        where: The sizes in words.
    """

    def __init__(self, sizes: Mapping[str, int], cause: TargetError) -> None:
        self.where = "with " + ", ".join(f"{name} = {size}" for name, size in sizes.items())
        self._reason = f"{self.where}: {cause.reason}"
        super().__init__(
            f"{self.where}: {cause.message}",
            hint="these sizes were made up: where they never occur, fix them with --input-shape, or give real "
            "inputs with --data",
        )

    @property
    def reason(self) -> str:
        """The sizes, and how it fails with them."""
        return self._reason


@dataclass
class Reference:
    """Trials of the original model, against which everything is compared.

    Attributes:
        trials: At least one.
        random_outputs: Outputs that differ between two runs of the same session; they cannot be compared.
        scales: Range of the function that makes an output, where it is bounded.
        warnings: What the user should know about how the noise floor was measured.
        grain: Of made-up floats (:data:`graphopt.data.synthesize.GRAINS`).
        doubtful: How many outputs hold nothing but zeros, or are moved far by last digits, in most trials.
    """

    trials: list[Trial]
    random_outputs: frozenset[str] = frozenset()
    scales: Mapping[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    grain: int = 1
    doubtful: int = 0

    @property
    def synthetic(self) -> bool:
        """Whether no real data were seen."""
        return all(trial.synthetic for trial in self.trials)

    @property
    def is_hollow(self) -> bool:
        """Whether no output of any trial holds a finite number, so that nothing can be compared."""
        return all(_is_hollow(trial.outputs) for trial in self.trials)

    def compare(self, run: Callable[[Feeds], Mapping[str, Array]], multiple: float) -> Comparison:
        """Run something on every trial and compare with the original.

        Args:
            run: From inputs to outputs by name.
            multiple: How many times the noise floor is allowed.

        Raises:
            MadeUpSizesError: It fails where sizes of dynamic dimensions were made up, which may never occur. Where
                there are real inputs as well, the comparison is of those that it takes, and holds the error; unless
                its process is lost, which is no way to refuse a size.
            TargetError: It fails.
        """
        taken: list[Trial] = []
        results: list[Feeds] = []
        not_taken = ""
        for trial in self.trials:
            try:
                results.append(_run(run, trial))
            except MadeUpSizesError as error:
                if self.synthetic or isinstance(error.__cause__, ProcessLostError):
                    raise
                not_taken = not_taken or error.message
            else:
                taken.append(trial)
        comparison = dataclasses.replace(self, trials=taken).judge(results, multiple)
        return dataclasses.replace(comparison, not_taken=not_taken)

    def compare_model(self, model: ir.Model, multiple: float) -> Comparison:
        """Run a graph with ONNX Runtime's optimisations off on every trial and compare.

        Raises:
            TargetError: ONNX Runtime rejects the graph, or fails while running it.
        """
        return self.judge(self.results_of(model), multiple)

    def results_of(self, model: ir.Model) -> list[Feeds]:
        """Outputs of a graph on every trial, with ONNX Runtime's optimisations off.

        Raises:
            TargetError: As for :meth:`compare_model`.
        """
        session = Session(model, prepack=packs(model))
        return [session.run(trial.feeds) for trial in self.trials]

    def judge(
        self,
        results: Sequence[Mapping[str, Array]],
        multiple: float,
        *,
        against: Sequence[Feeds] | None = None,
    ) -> Comparison:
        """Compare outputs, one mapping for each trial.

        Args:
            against: What to compare with, instead of the original's outputs.
        """
        wanted = [trial.outputs for trial in self.trials] if against is None else against
        return compare(
            [self._comparable(outputs) for outputs in wanted],
            results,
            [trial.noise for trial in self.trials],
            multiple,
            self.scales,
        )

    def _comparable(self, outputs: Feeds) -> Feeds:
        return {name: array for name, array in outputs.items() if name not in self.random_outputs}


def _is_hollow(outputs: Feeds) -> bool:
    """Whether outputs are floats without a finite number."""
    arrays = [array for array in outputs.values() if isinstance(array, np.ndarray)]
    floats = [array for array in arrays if array.dtype.kind == "f" and array.size]
    if not floats or len(floats) < len(arrays):
        return False
    return not any(np.isfinite(array).any() for array in floats)


def _run(run: Callable[[Feeds], Mapping[str, Array]], trial: Trial) -> Feeds:
    try:
        return dict(run(trial.feeds))
    except TargetError as error:
        if not trial.sizes:
            raise
        raise MadeUpSizesError(trial.sizes, error) from error


def build_reference(
    model: ir.Model,
    *,
    interface: ir.Model | None = None,
    data: Iterable[Feeds] | None = None,
    example: Feeds | None = None,
    seed: int = 0,
    trials: int = 3,
    progress: Callable[[str], None] = lambda text: None,
) -> Reference:
    """Run the original model and measure its noise floor.

    Args:
        model: The original, as given.
        interface: Its inputs as specialised and inferred, for making up inputs; by default those of ``model``.
        data: Samples of the user's; made-up inputs where None, of another grain where the
            original makes nothing but zeros or rounding of the first. The first eight are used for comparison, fewer
            of a model that is slow to run. Dynamic dimensions that all of them have one size of get another one too.
        example: Inputs that the model runs with, for where it takes nothing that is made up.
        seed: Of made-up inputs and perturbations.
        trials: Number of sets of made-up inputs (each dynamic dimension gets several sizes).

    Raises:
        UnsupportedModelError: ONNX Runtime does not run the original.
        DataError: No made-up inputs are accepted by the model; data must be given.
    """
    try:
        session = Session(model, prepack=packs(model), seed=seed)
    except TargetError as error:
        raise UnsupportedModelError(
            f"the original model does not load: {error.message}",
            hint="graphopt verifies against the original, so ONNX Runtime must run it as it is",
        ) from error
    progress("reference run")
    interface = interface or model
    # Floats of the sizes that the model states are safe; sizes and integers that were made up may be anything.
    risky = packs(model) and not (is_static(interface) and _takes_floats_only(interface))
    assess = functools.partial(_assessed, model, session, seed, progress)
    with Rehearsal(model if risky else None, seed=seed) as rehearsal:
        make_up = functools.partial(_synthetic_trials, interface, session, rehearsal, trials, seed)
        if data is None:
            try:
                found = list(make_up(GRAINS[0]))
            except DataError:
                if not example:
                    raise
                data = [example]
            else:
                return _of_telling_inputs(found, make_up, assess)
        found = list(_real_trials(data, session))
        found += _resized_trials(found, inputs_of(interface), session, rehearsal)
        return assess(found, _untried_sizes(found, inputs_of(interface)))


def _of_telling_inputs(
    found: list[Trial], make_up: Callable[[int], Iterable[Trial]], assess: Callable[..., Reference]
) -> Reference:
    """The reference of made-up inputs, or of others with a grain that the original makes more of."""
    started = time.monotonic()
    reference = assess(found)
    for grain in GRAINS[1:] if _has_floats(found) else ():
        if not reference.doubtful or time.monotonic() - started > _GRAIN_SECONDS:
            break
        with contextlib.suppress(DataError):
            other = assess(list(make_up(grain)), grain=grain)
            reference = min(reference, other, key=lambda one: one.doubtful)
    return reference


def _assessed(
    model: ir.Model,
    session: Session,
    seed: int,
    progress: Callable[[str], None],
    found: list[Trial],
    warnings: tuple[str, ...] = (),
    grain: int = 1,
) -> Reference:
    """The reference of these trials, with their noise, and what is to be said of them."""
    random_outputs = frozenset(
        name
        for trial in found[:1]
        for name, moved in deviation(trial.outputs, session.run(trial.feeds)).items()
        if moved.any()
    )
    progress("noise floor")
    warnings += silent_outputs(found)
    measured = measure_noise(model, session, found, seed)
    warnings += measured or deaf_outputs(found, random_outputs)
    rounds_on_purpose = _rounds_on_purpose(model)
    if not measured and not rounds_on_purpose:
        warnings += wild_outputs(found, random_outputs)
    doubtful = count_doubtful(found, random_outputs, wild=not rounds_on_purpose)
    return Reference(found, random_outputs, bounded_outputs(model), warnings, grain, doubtful)


def _has_floats(trials: Sequence[Trial]) -> bool:
    """Whether the inputs hold floats, which have a grain, of more than one dimension."""
    return any(is_floating(array) and np.ndim(array) > 1 for array in trials[0].feeds.values())


def _real_trials(data: Iterable[Feeds], session: Session) -> Iterator[Trial]:
    """The first samples: at least two where there are as many, and no more than run in half a second."""
    started = time.monotonic()
    for index, feeds in enumerate(itertools.islice(data, _MOST_TRIALS)):
        if index >= _LEAST_TRIALS and (time.monotonic() - started) * (index + 1) / index > _TRIAL_SECONDS:
            return
        yield Trial(feeds, session.run(feeds), synthetic=False)


def _resized_trials(
    real: Sequence[Trial], specs: Sequence[TensorSpec], session: Session, rehearsal: Rehearsal
) -> list[Trial]:
    """Real inputs with other sizes of the dynamic dimensions of which the data know one size only.

    All of these at once; where the model does not take that, one after the other. Those that have the size of another
    everywhere get one of their own besides.
    """
    single = _single_sizes(real, specs)

    usual = sizes_of(real[0].feeds, specs) if real else {}

    def resized_trial(keys: Iterable[str]) -> Trial | None:
        """With half, double or one more of these sizes, whatever the model takes first."""
        for other in _OTHER_SIZES:
            sizes = {**single, **{key: other(usual[key]) for key in keys}}
            feeds = resized(real[0].feeds, specs, sizes)
            with contextlib.suppress(TargetError):
                rehearsal.check(feeds)
                return Trial(feeds, session.run(feeds), sizes=sizes)
        return None

    def resized_trials(keys: Collection[str]) -> list[Trial]:
        """With all of these at once, or else one after the other."""
        whole = resized_trial(keys) if keys else None
        if whole is not None or len(keys) < 2:
            return [] if whole is None else [whole]
        return [trial for key in keys if (trial := resized_trial([key])) is not None]

    found = resized_trials(single)
    return found + resized_trials(_equal_sizes([*real, *found], specs))


def _equal_sizes(trials: Sequence[Trial], specs: Sequence[TensorSpec]) -> list[str]:
    """Dynamic dimensions that have the size of one before them in all trials."""
    seen = [sizes_of(trial.feeds, specs) for trial in trials] or [{}]
    keys = list(seen[0])
    return [
        key
        for index, key in enumerate(keys)
        if seen[0][key]
        and any(all(sizes.get(key) == sizes.get(other) for sizes in seen) for other in keys[:index])
    ]


def _single_sizes(trials: Sequence[Trial], specs: Sequence[TensorSpec]) -> dict[str, int]:
    """Dynamic dimensions that have one size in all trials, and it."""
    seen = [sizes_of(trial.feeds, specs) for trial in trials] or [{}]
    return {
        key: size for key, size in seen[0].items() if size and all(sizes.get(key) == size for sizes in seen)
    }


def _untried_sizes(trials: Sequence[Trial], specs: Sequence[TensorSpec]) -> tuple[str, ...]:
    """A warning of dynamic dimensions of which the original took no other size."""
    single = _single_sizes(trials, specs)
    if not single:
        return ()
    only = ", ".join(f"{key} = {size}" for key, size in single.items())
    return (
        f"verified with {only} only: the original itself fails with the other sizes that were tried, although its "
        "inputs declare them dynamic",
    )


def _synthetic_trials(
    model: ir.Model, session: Session, rehearsal: Rehearsal, wanted: int, seed: int, grain: int
) -> Iterator[Trial]:
    found = 0
    failure: TargetError | None = None
    hollow: list[Trial] = []
    specs = inputs_of(model)
    rounds = list(size_candidates(model))
    static = not rounds[0]
    for plain in (False, True):
        for index in range(wanted) if static else range(len(rounds)):
            sizes = rounds[0 if static else index]
            feeds = feeds_for(model, sizes, seed + index, plain=plain, edge=found > 0, grain=grain)
            try:
                check_feeds(feeds, specs)
                rehearsal.check(feeds)
                started = time.monotonic()
                outputs = session.run(feeds)
            except (TargetError, DataError) as error:
                failure = failure or (error if isinstance(error, TargetError) else None)
                if static:
                    break
                continue
            if _is_hollow(outputs):
                # A mask that lets nothing through, a number out of range: such inputs show nothing.
                hollow.append(Trial(feeds, outputs, sizes=sizes))
                continue
            found += 1
            yield Trial(feeds, outputs, sizes=sizes)
            # The reference is slow by nature (no fusion, no packing): a heavy model is tried on fewer inputs.
            taken = time.monotonic() - started
            if found == 1 and not static and taken < _SIZE_SECONDS:
                continue
            if found == wanted or (found + 1) * taken > _TRIAL_SECONDS:
                return
        if found:
            return
    if hollow:
        yield from hollow[:wanted]
        return
    reason = failure.message if failure is not None else "no size of the dynamic dimensions was accepted"
    raise DataError(
        f"the model runs with none of the made-up inputs: {reason}",
        hint="give real inputs with --data FILE.npz, or fix the shapes with --input-shape",
    )


def bounded_outputs(model: ir.Model) -> dict[str, float]:
    """Outputs that come, but for their layout, from a function of bounded range, with that range."""
    found: dict[str, float] = {}
    for output in model.graph.outputs:
        value: ir.Value | None = output
        for _ in range(_MOST_LAYOUT_STEPS):
            node = None if value is None else value.producer()
            if node is None or node.op_type not in _LAYOUT:
                break
            value = node.inputs[0]
        if facts.producer_op(value) in _BOUNDED and output.name:
            found[output.name] = 1.0
    return found


def _rounds_on_purpose(model: ir.Model) -> bool:
    """Whether a model rounds to integers or to 16 bits, which may move much."""
    halves = any(value.dtype == ir.DataType.FLOAT16 for value in model.graph.initializers.values())
    return halves or rounds(model)


def _takes_floats_only(model: ir.Model) -> bool:
    return all(value.dtype in MOVED_TYPES for value in model.graph.inputs)
