"""The noise floor of a model: what equally valid runs of it differ by.

One thread against several, packed weights against plain ones, ONNX Runtime's own optimisations (other layouts, fused
rounding), and inputs and weights of which half are moved to a neighbour. It is measured, not assumed, for each model
and each set of inputs.
"""

from __future__ import annotations

import contextlib
import itertools
import time

import numpy as np
import onnx_ir as ir

from graphopt.data.interface import Array
from graphopt.errors import TargetError
from graphopt.ir import model as ir_model
from graphopt.ir.operators import BROADCAST, UNARY
from graphopt.verify.apart import ApartSession
from graphopt.verify.doubts import unlike_outputs
from graphopt.verify.session import Session
from graphopt.verify.trial import Trial, is_floating

_LARGE_WEIGHTS = 512 << 20
_PERTURBATIONS = 2
_PERTURBATIONS_OF_ROUNDED = 8
"""Where activations are rounded to integers, few runs show what one that falls to the other side does."""
_ROUNDED_SECONDS = 2.0
_ROUNDING = frozenset({"QuantizeLinear", "DynamicQuantizeLinear"})
_OPTIMIZED_SECONDS = 120.0
_MANY_NODES = 20_000
MOVED_TYPES = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16})
"""Types of numbers that are moved to a neighbour."""
_PLACES = frozenset({"NonMaxSuppression", "Range", "Resize", "RoiAlign", "Upsample"})
"""Operators whose inputs behind the first say where elements come from, or how many there are."""
_WHOLE = frozenset(
    {"Ceil", "Equal", "Floor", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Mod", "Round", "Sign"}
)
_FEW = 64
_MOST_FOLLOWED = 200


def measure_noise(model: ir.Model, session: Session, trials: list[Trial], seed: int) -> tuple[str, ...]:
    """Fill in the noise of each trial; returns warnings."""
    perturbations = _PERTURBATIONS if len(trials) > 1 else 1
    if not packs(model) or len(model.graph) >= _MANY_NODES:
        _absorb_variants(model, session, trials, seed, perturbations, weights=False)
        return ()
    with ApartSession(model, optimize="all", seed=seed) as optimized:
        optimized.begin([trial.feeds for trial in trials])
        _absorb_variants(model, session, trials, seed, perturbations, weights=True)
        try:
            results = optimized.outputs(_OPTIMIZED_SECONDS)
            # Where activations are rounded, one that falls to the other side moves much.
            warnings = () if rounds(model) else unlike_outputs(trials, results)
            for trial, outputs in zip(trials, results, strict=True):
                trial.absorb(outputs)
        except TargetError as error:
            return (
                "the original does not run with ONNX Runtime's optimisations on: the noise floor is measured without "
                f"them ({error.message})",
            )
    return warnings


def _absorb_variants(
    model: ir.Model, session: Session, trials: list[Trial], seed: int, perturbations: int, *, weights: bool
) -> None:
    """The equally valid runs without optimisations: other inputs, one thread, other weights."""
    rng = np.random.default_rng(seed + 1)
    floating = any(is_floating(array) for trial in trials for array in trial.feeds.values())
    most = 0 if not floating else _PERTURBATIONS_OF_ROUNDED if rounds(model) else perturbations
    started = time.monotonic()
    for number, trial in itertools.product(range(most), trials):
        if number < perturbations or time.monotonic() - started < _ROUNDED_SECONDS:
            moved = {name: perturb(array, rng) for name, array in trial.feeds.items()}
            # A variant that ONNX Runtime cannot run says nothing about the noise of the model.
            with contextlib.suppress(TargetError):
                trial.absorb(session.run(moved))
    # Indices and bytes cannot be moved a little: the weights stand in for them.
    moves = 0 if not weights else 1 if floating else 1 + perturbations
    for number in range(1 + moves):
        try:
            if number == 0:
                other = Session(model, threads=1, prepack=False, seed=seed)
            else:
                other = Session(_perturbed_weights(model, rng), seed=seed)
            for trial in trials:
                trial.absorb(other.run(trial.feeds))
        except TargetError:
            continue  # as above


def rounds(model: ir.Model) -> bool:
    """Whether a model rounds activations to integers, where one that falls to the other side moves much."""
    return any(node.op_type in _ROUNDING for node in model.graph.all_nodes())


def _perturbed_weights(model: ir.Model, rng: np.random.Generator) -> ir.Model:
    """A copy of which half of the float weights are moved to a neighbour.

    Not what places, counts or choices are computed from: a factor of 2 that is a little more takes the nearest pixel
    from next to it, a logarithm that ends up whole falls into the bucket below.
    """
    moved = ir_model.clone(model)
    for value in moved.graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and tensor.dtype in MOVED_TYPES and not _decides(value):
            value.const_value = ir.tensor(perturb(tensor.numpy(), rng), name=value.name)
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
            if node.op_type in _WHOLE or (node.op_type == "Cast" and made.dtype not in MOVED_TYPES):
                return True
            if node.op_type in UNARY | BROADCAST and made not in seen and len(seen) < _MOST_FOLLOWED:
                seen.add(made)
                waiting.append(made)
    return False


def perturb(array: Array, rng: np.random.Generator) -> Array:
    """Half of the floats moved to one of their neighbours: by one unit in the last place, as rounding may leave them.

    Whole numbers move away from zero only: a size, an index or a class that comes as a float stays what it is when it
    is cast to an integer. Otherwise the noise would be that of another size.
    """
    if not is_floating(array):
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


def packs(model: ir.Model) -> bool:
    """Whether a second, packed copy of the weights is affordable."""
    total = sum(
        value.const_value.nbytes
        for value in model.graph.initializers.values()
        if value.const_value is not None
    )
    return total < _LARGE_WEIGHTS


__all__ = ["MOVED_TYPES", "measure_noise", "packs", "perturb", "rounds"]
