"""The reference: the original model, run by ONNX Runtime with its optimisations off, and its noise floor.

The floor is what equally valid runs of the same model differ by: one thread against several, packed weights
against plain ones, ONNX Runtime's own optimisations (other layouts, fused rounding), and inputs and weights of
which half are moved to a neighbour. It is measured, not assumed, for each model and each set of inputs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
    optional_inputs_of,
)
from graphopt.data.synthesize import feeds_for, resized, size_candidates, sizes_of
from graphopt.errors import DataError, ProcessLostError, TargetError, UnsupportedModelError, listed
from graphopt.ir import facts
from graphopt.ir import model as ir_model
from graphopt.ir.operators import BROADCAST, UNARY
from graphopt.verify.apart import ApartSession
from graphopt.verify.compare import Comparison, compare, deviation
from graphopt.verify.rehearsal import Rehearsal
from graphopt.verify.session import Session

_MOST_TRIALS = 8
_LEAST_TRIALS = 2
_LARGE_WEIGHTS = 512 << 20
_PERTURBATIONS = 2
_PERTURBATIONS_OF_ROUNDED = 8
"""Where activations are rounded to integers, few runs show what one that falls to the other side does."""
_ROUNDED_SECONDS = 2.0
_ROUNDING = frozenset({"QuantizeLinear", "DynamicQuantizeLinear"})
_TRIAL_SECONDS = 0.5
_OTHER_SIZES: tuple[Callable[[int], int], ...] = (
    lambda size: size // 2 or 2,
    lambda size: 2 * size,
    lambda size: size + 1,
)
_OPTIMIZED_SECONDS = 120.0
_WILD = 0.05
_UNLIKE, _UNLIKE_TIMES = 0.01, 100.0
"""Share of the largest value, and times the noise of the other valid runs, from which a difference is no rounding."""
_MANY_NODES = 20_000
_MOST_LAYOUT_STEPS = 8
_LAYOUT = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Slice", "Cast"})
_MOVED_TYPES = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16})
_PLACES = frozenset({"NonMaxSuppression", "Range", "Resize", "RoiAlign", "Upsample"})
"""Operators whose inputs behind the first say where elements come from, or how many there are."""
_WHOLE = frozenset(
    {"Ceil", "Equal", "Floor", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Mod", "Round", "Sign"}
)
_FEW = 64
_MOST_FOLLOWED = 200
_BOUNDED = frozenset({"Sigmoid", "Softmax", "HardSigmoid", "Tanh"})


@dataclass
class Trial:
    """One set of inputs with the reference's outputs and their noise.

    Attributes:
        feeds: Inputs by name.
        outputs: The reference's outputs by name.
        noise: Largest absolute deviation over equally valid runs, by output name.
        synthetic: Whether the inputs were made up.
        sizes: Size of each dynamic dimension, where sizes were made up.
    """

    feeds: Feeds
    outputs: Feeds
    noise: Feeds = field(default_factory=dict)
    synthetic: bool = True
    sizes: Mapping[str, int] = field(default_factory=dict)


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
        super().__init__(
            f"{self.where}: {cause.message}",
            hint="these sizes were made up: where they never occur, fix them with --input-shape, or give real "
            "inputs with --data",
        )


@dataclass
class Reference:
    """Trials of the original model, against which everything is compared.

    Attributes:
        trials: At least one.
        random_outputs: Outputs that differ between two runs of the same session; they cannot be compared.
        scales: Range of the function that makes an output, where it is bounded.
        warnings: What the user should know about how the noise floor was measured.
    """

    trials: list[Trial]
    random_outputs: frozenset[str] = frozenset()
    scales: Mapping[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

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
        session = Session(model, prepack=_packs(model))
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
        data: Samples of the user's; made-up inputs where None. The first eight are used for comparison, fewer
            of a model that is slow to run. Dynamic dimensions that all of them have one size of get another one too.
        example: Inputs that the model runs with, for where it takes nothing that is made up.
        seed: Of made-up inputs and perturbations.
        trials: Number of sets of made-up inputs (each dynamic dimension gets several sizes).

    Raises:
        UnsupportedModelError: ONNX Runtime does not run the original.
        DataError: No made-up inputs are accepted by the model; data must be given.
    """
    try:
        session = Session(model, prepack=_packs(model), seed=seed)
    except TargetError as error:
        raise UnsupportedModelError(
            f"the original model does not load: {error.message}",
            hint="graphopt verifies against the original, so ONNX Runtime must run it as it is",
        ) from error
    progress("reference run")
    interface = interface or model
    # Floats of the sizes that the model states are safe; sizes and integers that were made up may be anything.
    risky = _packs(model) and not (is_static(interface) and _takes_floats_only(interface))
    warnings: tuple[str, ...] = ()
    with Rehearsal(model if risky else None, seed=seed) as rehearsal:
        found: list[Trial] = []
        if data is None:
            try:
                found = list(_synthetic_trials(interface, session, rehearsal, trials, seed))
            except DataError:
                if not example:
                    raise
                data = [example]
        if data is not None:
            found = list(_real_trials(data, session))
            found += _resized_trials(found, inputs_of(interface), session, rehearsal)
            warnings = _untried_sizes(found, inputs_of(interface))
    random_outputs = frozenset(
        name
        for trial in found[:1]
        for name, moved in deviation(trial.outputs, session.run(trial.feeds)).items()
        if moved.any()
    )
    progress("noise floor")
    warnings += _silent_outputs(found)
    measured = _measure_noise(model, session, found, seed, _PERTURBATIONS if len(found) > 1 else 1)
    warnings += (
        measured or _deaf_outputs(found, random_outputs) or _wild_outputs(found, random_outputs, model)
    )
    return Reference(found, random_outputs, bounded_outputs(model), warnings)


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

    All of these at once; where the model does not take that, one after the other.
    """
    single = _single_sizes(real, specs)

    def resized_trial(keys: Iterable[str]) -> Trial | None:
        """With half, double or one more of these sizes, whatever the model takes first."""
        for other in _OTHER_SIZES:
            sizes = {**single, **{key: other(single[key]) for key in keys}}
            feeds = resized(real[0].feeds, specs, sizes)
            with contextlib.suppress(TargetError):
                rehearsal.check(feeds)
                return Trial(feeds, session.run(feeds), sizes=sizes)
        return None

    if not single:
        return []
    whole = resized_trial(single)
    if whole is not None or len(single) == 1:
        return [] if whole is None else [whole]
    return [trial for key in single if (trial := resized_trial([key])) is not None]


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


def _silent_outputs(trials: Sequence[Trial]) -> tuple[str, ...]:
    """A warning of float outputs that are zeros in all trials, where an error upstream need not show."""
    floats = {
        name: [array for trial in trials if isinstance(array := trial.outputs.get(name), np.ndarray)]
        for name, first in trials[0].outputs.items()
        if _is_floating(first)
    }
    silent = [
        name
        for name, arrays in floats.items()
        if any(array.size for array in arrays) and not any(map(np.any, arrays))
    ]
    if not silent:
        return ()
    return (
        "on these inputs the original's output holds nothing but zeros, in which an error need not show: "
        f"{listed(silent)} (give other inputs with --data)",
    )


def _synthetic_trials(
    model: ir.Model, session: Session, rehearsal: Rehearsal, wanted: int, seed: int
) -> Iterator[Trial]:
    found = 0
    failure: TargetError | None = None
    hollow: list[Trial] = []
    specs, optional = inputs_of(model), optional_inputs_of(model)
    rounds = list(size_candidates(model))
    static = not rounds[0]
    for plain in (False, True):
        for index in range(wanted) if static else range(len(rounds)):
            sizes = rounds[0 if static else index]
            feeds = feeds_for(model, sizes, seed + index, plain=plain, edge=found > 0)
            try:
                check_feeds(feeds, specs, optional=optional)
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
            if found == wanted or (found + 1) * (time.monotonic() - started) > _TRIAL_SECONDS:
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


def _measure_noise(
    model: ir.Model, session: Session, trials: list[Trial], seed: int, perturbations: int
) -> tuple[str, ...]:
    """Fill in the noise of each trial; returns warnings."""
    if not _packs(model) or len(model.graph) >= _MANY_NODES:
        _absorb_variants(model, session, trials, seed, perturbations, weights=False)
        return ()
    with ApartSession(model, optimize="all", seed=seed) as optimized:
        optimized.begin([trial.feeds for trial in trials])
        _absorb_variants(model, session, trials, seed, perturbations, weights=True)
        try:
            results = optimized.outputs(_OPTIMIZED_SECONDS)
            # Where activations are rounded, one that falls to the other side moves much.
            warnings = () if _rounds(model) else _unlike(trials, results)
            for trial, outputs in zip(trials, results, strict=True):
                _absorb(trial, outputs)
        except TargetError as error:
            return (
                "the original does not run with ONNX Runtime's optimisations on: the noise floor is measured without "
                f"them ({error.message})",
            )
    return warnings


def _unlike(trials: Sequence[Trial], optimized: Sequence[Feeds]) -> tuple[str, ...]:
    """A warning of float outputs that ONNX Runtime's optimisations change by more than rounding explains."""
    found: dict[str, float] = {}
    for trial, outputs in zip(trials, optimized, strict=True):
        for name, moved in deviation(trial.outputs, outputs).items():
            wanted = trial.outputs[name]
            if not _is_floating(wanted) or not moved.size:
                continue
            largest = max(_largest(wanted), 1e-30)
            rounding = float(np.max(trial.noise.get(name, 0.0)))
            most = float(moved.max())
            if most > _UNLIKE * largest and most > _UNLIKE_TIMES * rounding:
                found[name] = max(found.get(name, 0.0), most / largest)
    if not found:
        return ()
    told = ", ".join(f"{name!r} by {share:.0%} of its largest value" for name, share in found.items())
    return (
        f"ONNX Runtime's own optimisations change the original's outputs ({told}), far more than rounding explains: "
        "one of its two ways is wrong, and what a result is held to is no more exact than they differ",
    )


def _deaf_outputs(trials: Sequence[Trial], random: frozenset[str]) -> tuple[str, ...]:
    """A warning where equally valid runs differ in nothing, so that an error upstream need not show either."""
    floats = [
        (name, trial)
        for trial in trials
        for name, array in trial.outputs.items()
        if name not in random and _is_floating(array) and np.any(array)
    ]
    moved = any(np.any(trial.noise.get(name, 0.0)) for name, trial in floats)
    whole = all((np.trunc(trial.outputs[name]) == trial.outputs[name]).all() for name, trial in floats)
    if not floats or moved or whole:
        return ()
    return (
        "on these inputs the original's outputs are the same to the bit whatever last digits inputs and weights have: "
        "an error inside the model need not show in them (give other inputs with --data)",
    )


def _absorb(trial: Trial, outputs: Mapping[str, Array]) -> None:
    """Take an equally valid run into the noise of a trial."""
    for name, moved in deviation(trial.outputs, outputs).items():
        known = trial.noise.get(name)
        trial.noise[name] = moved if known is None else np.maximum(known, moved)


def _absorb_variants(
    model: ir.Model, session: Session, trials: list[Trial], seed: int, perturbations: int, *, weights: bool
) -> None:
    """The equally valid runs without optimisations: other inputs, one thread, other weights."""
    rng = np.random.default_rng(seed + 1)
    floating = any(_is_floating(array) for trial in trials for array in trial.feeds.values())
    most = 0 if not floating else _PERTURBATIONS_OF_ROUNDED if _rounds(model) else perturbations
    started = time.monotonic()
    for number, trial in itertools.product(range(most), trials):
        if number < perturbations or time.monotonic() - started < _ROUNDED_SECONDS:
            moved = {name: _perturb(array, rng) for name, array in trial.feeds.items()}
            # A variant that ONNX Runtime cannot run says nothing about the noise of the model.
            with contextlib.suppress(TargetError):
                _absorb(trial, session.run(moved))
    # Indices and bytes cannot be moved a little: the weights stand in for them.
    moves = 0 if not weights else 1 if floating else 1 + perturbations
    for number in range(1 + moves):
        try:
            if number == 0:
                other = Session(model, threads=1, prepack=False, seed=seed)
            else:
                other = Session(_perturbed_weights(model, rng), seed=seed)
            for trial in trials:
                _absorb(trial, other.run(trial.feeds))
        except TargetError:
            continue  # as above


def _wild_outputs(trials: Sequence[Trial], random: frozenset[str], model: ir.Model) -> tuple[str, ...]:
    """A warning of outputs that last digits move much, where nothing rounds on purpose."""
    if _rounds(model) or any(
        value.dtype == ir.DataType.FLOAT16 for value in model.graph.initializers.values()
    ):
        return ()
    shares = {
        name: float(np.max(trial.noise[name])) / max(_largest(array), 1e-30)
        for trial in trials
        for name, array in trial.outputs.items()
        if name not in random and _is_floating(array) and np.any(array) and name in trial.noise
    }
    wild = ", ".join(f"{name!r} by {share:.0%}" for name, share in shares.items() if share > _WILD)
    if not wild:
        return ()
    return (
        f"last digits of inputs and weights move the original's outputs by much of their largest value ({wild}): what "
        "a result is held to is no more exact (give other inputs with --data)",
    )


def _largest(array: Array) -> float:
    """The largest finite magnitude."""
    return float(np.abs(np.where(np.isfinite(array), array, 0)).max(initial=0.0))


def _rounds(model: ir.Model) -> bool:
    return any(node.op_type in _ROUNDING for node in model.graph.all_nodes())


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


def _perturbed_weights(model: ir.Model, rng: np.random.Generator) -> ir.Model:
    """A copy of which half of the float weights are moved to a neighbour.

    Not what places, counts or choices are computed from: a factor of 2 that is a little more takes the nearest pixel
    from next to it, a logarithm that ends up whole falls into the bucket below.
    """
    moved = ir_model.clone(model)
    for value in moved.graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and tensor.dtype in _MOVED_TYPES and not _decides(value):
            value.const_value = ir.tensor(_perturb(tensor.numpy(), rng), name=value.name)
    return moved


def _decides(value: ir.Value) -> bool:
    """Whether a constant says where elements come from, or a small one goes element by element into what rounds to
    whole numbers or compares."""
    if any(use.node.op_type in _PLACES and use.idx > 0 for use in value.uses()):
        return True
    if value.const_value is None or value.const_value.size > _FEW:
        return False
    seen, waiting = {value}, [value]
    while waiting:
        for node in (use.node for use in waiting.pop().uses()):
            made = node.outputs[0]
            if node.op_type in _WHOLE or (node.op_type == "Cast" and made.dtype not in _MOVED_TYPES):
                return True
            if node.op_type in UNARY | BROADCAST and made not in seen and len(seen) < _MOST_FOLLOWED:
                seen.add(made)
                waiting.append(made)
    return False


def _takes_floats_only(model: ir.Model) -> bool:
    return all(value.dtype in _MOVED_TYPES for value in model.graph.inputs)


def _is_floating(array: object) -> bool:
    return isinstance(array, np.ndarray) and array.dtype.kind == "f"


def _perturb(array: Array, rng: np.random.Generator) -> Array:
    """Half of the floats moved to one of their neighbours: by one unit in the last place, as rounding may leave them.

    Whole numbers move away from zero only: a size, an index or a class that comes as a float stays what it is when it
    is cast to an integer. Otherwise the noise would be that of another size.
    """
    if not _is_floating(array):
        return array
    # The bits of a float, as an integer, count its neighbours by their distance from zero.
    integer = np.dtype(f"int{8 * array.itemsize}")
    steps = np.array([-1, 1, 0, 0], integer).take(rng.integers(0, 4, array.shape, np.uint8))
    whole = np.trunc(array) == array
    moved = (np.array(array, order="C").view(integer) + np.where(whole, np.abs(steps), steps)).view(
        array.dtype
    )
    # The largest finite number, common in masks, has no neighbour to be moved to, and zero none of its size.
    movable = np.isfinite(array) & np.isfinite(moved) & (array != 0)
    return np.asarray(np.where(movable, moved, array), dtype=array.dtype)


def _packs(model: ir.Model) -> bool:
    """Whether a second, packed copy of the weights is affordable."""
    total = sum(
        value.const_value.nbytes
        for value in model.graph.initializers.values()
        if value.const_value is not None
    )
    return total < _LARGE_WEIGHTS
