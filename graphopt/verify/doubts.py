"""What a user should know about a reference: outputs that say little, or that equally valid runs move far."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from graphopt.data.interface import Feeds
from graphopt.errors import listed
from graphopt.verify.compare import deviation
from graphopt.verify.trial import Trial, is_floating, largest

_WILD = 0.05
_UNLIKE, _UNLIKE_TIMES = 0.01, 100.0
"""Share of the largest value, and times the noise of the other valid runs, from which a difference is no rounding."""


def silent_outputs(trials: Sequence[Trial]) -> tuple[str, ...]:
    """A warning of float outputs that are zeros in all trials, where an error upstream need not show."""
    floats = {
        name: [array for trial in trials if isinstance(array := trial.outputs.get(name), np.ndarray)]
        for name, first in trials[0].outputs.items()
        if is_floating(first)
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


def count_doubtful(trials: Sequence[Trial], random: frozenset[str], *, wild: bool = True) -> int:
    """How many float outputs are zeros, or moved far by last digits, in most trials: none where inputs suit a model.

    Args:
        wild: Whether what is moved far counts; not of a model that rounds on purpose.
    """

    def is_doubtful(trial: Trial, name: str) -> bool:
        return not np.any(trial.outputs[name]) or (wild and _moved_share(trial, name) > _WILD)

    names = [
        name
        for name, first in trials[0].outputs.items()
        if name not in random and is_floating(first) and np.size(first)
    ]
    return sum(2 * sum(is_doubtful(trial, name) for trial in trials) > len(trials) for name in names)


def _moved_share(trial: Trial, name: str) -> float:
    """How far last digits move an output, as a share of its largest value."""
    return float(np.max(trial.noise.get(name, 0.0))) / max(largest(trial.outputs[name]), 1e-30)


def deaf_outputs(trials: Sequence[Trial], random: frozenset[str]) -> tuple[str, ...]:
    """A warning where equally valid runs differ in nothing, so that an error upstream need not show either."""
    floats = [
        (name, trial)
        for trial in trials
        for name, array in trial.outputs.items()
        if name not in random and is_floating(array) and np.any(array)
    ]
    moved = any(np.any(trial.noise.get(name, 0.0)) for name, trial in floats)
    whole = all((np.trunc(trial.outputs[name]) == trial.outputs[name]).all() for name, trial in floats)
    if not floats or moved or whole:
        return ()
    return (
        "on these inputs the original's outputs are the same to the bit whatever last digits inputs and weights have: "
        "an error inside the model need not show in them (give other inputs with --data)",
    )


def wild_outputs(trials: Sequence[Trial], random: frozenset[str]) -> tuple[str, ...]:
    """A warning of outputs that last digits move much; of a model in which nothing rounds on purpose."""
    shares = {
        name: _moved_share(trial, name)
        for trial in trials
        for name, array in trial.outputs.items()
        if name not in random and is_floating(array) and np.any(array) and name in trial.noise
    }
    wild = ", ".join(f"{name!r} by {share:.0%}" for name, share in shares.items() if share > _WILD)
    if not wild:
        return ()
    return (
        f"last digits of inputs and weights move the original's outputs by much of their largest value ({wild}): what "
        "a result is held to is no more exact (give other inputs with --data)",
    )


def unlike_outputs(trials: Sequence[Trial], optimized: Sequence[Feeds]) -> tuple[str, ...]:
    """A warning of float outputs that ONNX Runtime's optimisations change by more than rounding explains."""
    found: dict[str, float] = {}
    for trial, outputs in zip(trials, optimized, strict=True):
        for name, moved in deviation(trial.outputs, outputs).items():
            wanted = trial.outputs[name]
            if not is_floating(wanted) or not moved.size:
                continue
            most_there = max(largest(wanted), 1e-30)
            rounding = float(np.max(trial.noise.get(name, 0.0)))
            most = float(moved.max())
            if most > _UNLIKE * most_there and most > _UNLIKE_TIMES * rounding:
                found[name] = max(found.get(name, 0.0), most / most_there)
    if not found:
        return ()
    told = ", ".join(f"{name!r} by {share:.0%} of its largest value" for name, share in found.items())
    return (
        f"ONNX Runtime's own optimisations change the original's outputs ({told}), far more than rounding explains: "
        "one of its two ways is wrong, and what a result is held to is no more exact than they differ",
    )


__all__ = ["count_doubtful", "deaf_outputs", "silent_outputs", "unlike_outputs", "wild_outputs"]
