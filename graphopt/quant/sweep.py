"""How much noise each unit adds, and which ranges make less of it, over a graph with switches.

One run for each unit with its switch alone on gives the noise that it makes by itself: for small noise these powers add
up (the errors of different layers are close to uncorrelated: Zhou et al., Adaptive Quantization for Deep Neural
Network, AAAI 2018). One run with its switch alone off gives what it makes in company. The two differ where a unit
undoes another one's error: rounding what a layer reads takes an offset away again that the layer before has made of a
constant background.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.data.interface import Feeds
from graphopt.ir.facts import Array
from graphopt.quant.kernels import IntegerKernels
from graphopt.quant.place import Weights
from graphopt.quant.ranges import Range
from graphopt.quant.switched import Switched

SECONDS = 12.0
_LEAST = 1e-15
_WORTH_A_RANGE = 0.97
"""Noise over noise before, from which on another range is taken: 0.13 dB."""


@dataclass(frozen=True)
class Noise:
    """Noise power over signal power, in the worst output, by unit.

    Attributes:
        alone: With this unit on integers and no other.
        company: How much less it is without this unit, all others on integers; 0 where it is not less.
        samples: Number of samples that each unit ran.
    """

    alone: dict[str, float]
    company: dict[str, float]
    samples: int = 0


class SweepTooLongError(Exception):
    """A sweep would take much longer than it may."""


def noise_of_units(
    model: ir.Model,
    names: Sequence[str],
    ranges: Mapping[str, Range],
    kernels: IntegerKernels,
    samples: Sequence[Feeds],
    *,
    weights: Weights | None = None,
    company: bool = True,
    threads: int = 0,
    seconds: float = SECONDS,
    most: float = math.inf,
    progress: Callable[[str], None] = lambda text: None,
) -> Noise:
    """The noise of each unit.

    Args:
        model: The float graph; left as it was.
        names: Of units.
        samples: Few: each unit runs all of them.
        company: Whether the noise in company is measured as well, where there is time for both.
        seconds: As many of the samples as run in this time for all units; at least one.
        most: How many times ``seconds`` one sample may take at most.

    Raises:
        SweepTooLongError: One sample takes longer than that.
    """
    switched = Switched(model, names, ranges, kernels, weights or Weights(), threads)
    off = switched.off
    each = _seconds_of_a_sample(switched, samples[0])
    company = company and each <= seconds / 2 * most
    if company:
        seconds /= 2
    if each > seconds * most:
        raise SweepTooLongError
    samples = samples[: max(1, int(min(seconds / each, len(samples))))]
    references = [switched.run(feeds, off) for feeds in samples]

    def shares(switches: Array) -> list[float]:
        return switched.shares(samples, references, switches)

    alone: dict[str, float] = {}
    together: dict[str, float] = {}
    everything = _typical(shares(~off)) if company else 0.0
    for index, unit in enumerate(switched.units):
        switches = off.copy()
        switches[index] = True
        alone[unit.name] = float(np.mean(shares(switches)))
        if company:
            together[unit.name] = max(everything - _typical(shares(~switches)), 0.0)
        progress(f"unit {index + 1} of {len(off)}")
    return Noise(alone, together, len(samples))


def _typical(shares: Sequence[float]) -> float:
    """The mean of decibels: differences of two noises are small, and one sample that goes wrong would hide them."""
    return float(np.exp(np.mean(np.log(np.maximum(shares, _LEAST)))))


def ranges_by_tensor(
    model: ir.Model,
    names: Sequence[str],
    ranges: Mapping[str, Range],
    choices: Mapping[str, Sequence[Range]],
    kernels: IntegerKernels,
    samples: Sequence[Feeds],
    *,
    weights: Weights | None = None,
    threads: int = 0,
    seconds: float = SECONDS,
) -> dict[str, Range]:
    """Ranges that lower the noise in the outputs with all units on integers, one tensor after the other.

    A rule for ranges looks at a tensor by itself. What counts is what its rounding does to the outputs: an offset that
    rounding gives to a constant background adds up over all of it, and differs from range to range as by lot.

    Args:
        names: Of units.
        ranges: Of all tensors of these units, to begin with.
        choices: What may stand in for them, by tensor, in the order in which tensors are to be tried.
        samples: All of them run for each choice.
        seconds: After which the rest is left as it is.

    Returns:
        The ranges that changed.
    """
    started = time.monotonic()
    switched = Switched(model, names, ranges, kernels, weights or Weights(), threads)
    references = [switched.run(feeds, switched.off) for feeds in samples]
    best = _typical(switched.shares(samples, references, ~switched.off))
    found: dict[str, Range] = {}
    for name, others in choices.items():
        for choice in others if name in switched.tensors else ():
            if time.monotonic() - started > seconds:
                return found
            before = switched.set_range(name, choice)
            noise = _typical(switched.shares(samples, references, ~switched.off))
            if noise < best * _WORTH_A_RANGE:
                best, found[name] = noise, choice
            else:
                switched.set_range(name, before)
    return found


def _seconds_of_a_sample(switched: Switched, sample: Feeds) -> float:
    """That a sweep over all units takes for one sample."""
    switched.run(sample, switched.off)
    started = time.monotonic()
    switched.run(sample, switched.off)
    return max((time.monotonic() - started) * max(1, len(switched.off)), 1e-6)


__all__ = ["SECONDS", "Noise", "SweepTooLongError", "noise_of_units", "ranges_by_tensor"]
