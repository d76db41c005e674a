"""How far two sets of outputs lie apart, in multiples of the model's own noise floor.

The floor of an element is not one number for a whole tensor: a detector's boxes (0 to 640) and scores (0 to
1) may share one. So noise is measured along each axis, the largest in each slice, and an element gets the
least of the slices that it lies in. A slice may be quiet by chance, in the few runs that were made: along a long axis
(pixels, positions) its neighbours, an eighth of the axis to either side, count as well, and no slice's floor is below a
64th of the whole tensor's nor below a few units in the last place of the largest value in it. Where the output comes
from a function of bounded range (a sigmoid, a softmax), units in the last place of that range count: kernels
approximate such functions absolutely, and a saturated value has no digits to keep."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from graphopt.data.interface import Array, Feeds

ULPS = 4.0
_LEAST_SLICE = 16
_LEAST_SHARE = 1 / 64
_LONG_AXIS = 128
_NEIGHBOURS = 1 / 8


class Status(enum.Enum):
    """Outcome of a comparison."""

    IDENTICAL = "identical"
    WITHIN_NOISE = "within noise"
    DIFFERENT = "different"


@dataclass(frozen=True)
class OutputDifference:
    """One output compared.

    Attributes:
        name: Of the output.
        status: Outcome.
        relative_error: Largest absolute difference over the largest magnitude of the reference.
        noise_floor: The floor on the same scale (its largest over the tensor).
        ratio: Largest quotient of difference and floor over all elements; must not exceed the allowed multiple.
        reason: In words, where the status is not good.
    """

    name: str
    status: Status
    relative_error: float = 0.0
    noise_floor: float = 0.0
    ratio: float = 0.0
    reason: str = ""


@dataclass(frozen=True)
class Comparison:
    """All outputs of all trials compared; ``worst`` is the one that decides.

    Attributes:
        outputs: One entry each.
        multiple: How many times the noise floor is allowed.
        not_taken: How it fails with sizes that were made up beside real ones; empty where it does not.
    """

    outputs: tuple[OutputDifference, ...]
    multiple: float
    not_taken: str = ""

    @property
    def ok(self) -> bool:
        """Whether every output is within what is allowed."""
        return all(output.status in (Status.IDENTICAL, Status.WITHIN_NOISE) for output in self.outputs)

    @property
    def identical(self) -> bool:
        """Whether every output is equal bit for bit."""
        return all(output.status is Status.IDENTICAL for output in self.outputs)

    @property
    def worst(self) -> OutputDifference | None:
        """The failing output, else the one with the largest error."""
        return max(
            self.outputs,
            key=lambda output: (
                output.status is Status.DIFFERENT,
                output.ratio if np.isfinite(output.ratio) else np.inf,
            ),
            default=None,
        )

    @property
    def relative_error(self) -> float:
        """Largest relative error over all outputs."""
        return max((output.relative_error for output in self.outputs), default=0.0)

    @property
    def noise_floor(self) -> float:
        """The noise floor of the output with the largest relative error."""
        worst = max(self.outputs, key=lambda output: output.relative_error, default=None)
        return 0.0 if worst is None else worst.noise_floor

    def describe(self) -> str:
        """One line for people."""
        worst = self.worst
        if worst is None or self.identical:
            return "bit-identical"
        if not self.ok:
            return worst.reason or f"output {worst.name!r} differs"
        return f"{self.relative_error:.1e}, noise floor {self.noise_floor:.1e}"


def element_floor(reference: Array, noise: Array, scale: float = 0.0) -> Array:
    """The noise floor of each element of a float output.

    Args:
        reference: The output of the reference run.
        noise: Largest absolute deviation seen over equally valid runs, same shape.
        scale: Range of the function that makes the output, where it is bounded; 0 where it is not.
    """
    epsilon = float(np.finfo(reference.dtype).eps)
    magnitude = np.where(np.isfinite(reference), np.abs(reference), 0).astype(np.float64)
    noise = np.where(np.isfinite(noise), noise, 0).astype(np.float64)
    if reference.size == 0:
        return noise
    tiny = float(np.finfo(reference.dtype).tiny)
    whole = max(noise.max(), ULPS * epsilon * magnitude.max(), ULPS * epsilon * scale, tiny)
    least = max(noise.max() * _LEAST_SHARE, ULPS * epsilon * scale, tiny)
    floor = np.full(reference.shape, whole, dtype=np.float64)
    for axis in range(reference.ndim):
        others = tuple(other for other in range(reference.ndim) if other != axis)
        if reference.shape[axis] < 2 or reference.size // reference.shape[axis] < _LEAST_SLICE:
            continue
        along = np.maximum(
            _with_neighbours(noise.max(axis=others, keepdims=True), axis),
            ULPS * epsilon * magnitude.max(axis=others, keepdims=True),
        )
        floor = np.minimum(floor, np.maximum(along, least))
    return floor


def _with_neighbours(along: Array, axis: int) -> Array:
    """The largest noise of each slice of a long axis and of the slices next to it."""
    length = along.shape[axis]
    reach = int(length * _NEIGHBOURS) if length >= _LONG_AXIS else 0
    if not reach:
        return along
    # The largest within a window, from running maxima over blocks of its length (van Herk, 1992).
    window = 2 * reach + 1
    padded = np.zeros(-(-(length + 2 * reach) // window) * window)
    padded[reach : reach + length] = along.ravel()
    blocks = padded.reshape(-1, window)
    forward = np.maximum.accumulate(blocks, axis=1).ravel()
    backward = np.maximum.accumulate(blocks[:, ::-1], axis=1)[:, ::-1].ravel()
    found = np.maximum(backward[:length], forward[window - 1 : window - 1 + length])
    return found.reshape(along.shape)


def compare_output(
    name: str,
    reference: Array,
    result: Array,
    noise: Array | None,
    multiple: float,
    scale: float = 0.0,
) -> OutputDifference:
    """Compare one output of one trial.

    Args:
        scale: As for :func:`element_floor`.
        noise: As for :func:`element_floor`; for integers, booleans and strings the mask of unstable elements.
        multiple: How many times the floor is allowed.
    """

    def different(reason: str, **numbers: float) -> OutputDifference:
        return OutputDifference(name, Status.DIFFERENT, reason=f"output {name!r} {reason}", **numbers)

    if not isinstance(reference, np.ndarray) or not isinstance(result, np.ndarray):
        equal = _equal_nested(reference, result)
        return OutputDifference(name, Status.IDENTICAL) if equal else different("(a sequence) differs")
    if reference.shape != result.shape:
        return different(f"has shape {list(result.shape)} instead of {list(reference.shape)}")
    if reference.dtype != result.dtype:
        return different(f"has type {result.dtype} instead of {reference.dtype}")
    if reference.dtype.kind not in "fV":
        wrong = reference != result
        if not wrong.any():
            return OutputDifference(name, Status.IDENTICAL)
        unstable = noise.astype(bool) if noise is not None else np.zeros(reference.shape, dtype=bool)
        if not (wrong & ~unstable).any():
            return OutputDifference(name, Status.WITHIN_NOISE, float(wrong.mean()), float(unstable.mean()))
        return different(
            f"differs in {int(wrong.sum())} of {wrong.size} {reference.dtype} elements",
            relative_error=float(wrong.mean()),
            ratio=float("inf"),
        )
    if np.array_equal(reference, result, equal_nan=True):
        return OutputDifference(name, Status.IDENTICAL)
    if (np.isnan(reference) != np.isnan(result)).any():
        return different("has NaN in other places than the original", ratio=float("inf"))
    infinite = np.isinf(reference) | np.isinf(result)
    if (reference[infinite] != result[infinite]).any():
        return different("has infinities in other places than the original", ratio=float("inf"))
    finite = np.isfinite(reference)
    wide_reference, wide_result = reference.astype(np.float64), result.astype(np.float64)
    difference = np.where(finite, np.abs(np.where(finite, wide_result - wide_reference, 0)), 0)
    floor = element_floor(reference, noise if noise is not None else np.zeros(reference.shape), scale)
    ratio = float((difference / floor).max(initial=0.0))
    largest = float(np.abs(wide_reference[finite]).max(initial=0.0)) or 1.0
    relative, relative_floor = (
        float(difference.max(initial=0.0)) / largest,
        float(floor.max(initial=0.0)) / largest,
    )
    if ratio <= multiple:
        return OutputDifference(name, Status.WITHIN_NOISE, relative, relative_floor, ratio)
    return different(
        f"is off by {relative:.1e} of its largest value, {ratio:.3g} times the noise floor where it is worst "
        f"({multiple:g} times are allowed)",
        relative_error=relative, noise_floor=relative_floor, ratio=ratio,
    )  # fmt: skip


def _equal_nested(left: object, right: object) -> bool:
    if isinstance(left, np.ndarray) and isinstance(right, np.ndarray):
        return left.shape == right.shape and np.array_equal(left, right, equal_nan=left.dtype.kind == "f")
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(_equal_nested, left, right))
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(_equal_nested(left[key], right[key]) for key in left)
    return left == right or (left != left and right != right)


def compare(
    references: Sequence[Mapping[str, Array]],
    results: Sequence[Mapping[str, Array]],
    noises: Sequence[Mapping[str, Array]],
    multiple: float,
    scales: Mapping[str, float] | None = None,
) -> Comparison:
    """Compare all outputs of all trials; outputs missing from a result count as different.

    Args:
        scales: As for :func:`element_floor`, by output.
    """
    differences: dict[str, OutputDifference] = {}
    for reference, result, noise in zip(references, results, noises, strict=True):
        for name, wanted in reference.items():
            if name not in result:
                found = OutputDifference(
                    name, Status.DIFFERENT, ratio=float("inf"), reason=f"output {name!r} is missing"
                )
            else:
                scale = (scales or {}).get(name, 0.0)
                found = compare_output(name, wanted, result[name], noise.get(name), multiple, scale)
            known = differences.get(name)
            differences[name] = found if known is None else _worse(known, found)
    return Comparison(tuple(differences.values()), multiple)


_ORDER = (Status.IDENTICAL, Status.WITHIN_NOISE, Status.DIFFERENT)


def _worse(left: OutputDifference, right: OutputDifference) -> OutputDifference:
    return max(left, right, key=lambda output: (_ORDER.index(output.status), output.ratio))


def deviation(reference: Feeds, other: Mapping[str, Array]) -> Feeds:
    """Absolute deviation of each output of an equally valid run (for non-floats: where it differs)."""
    found: Feeds = {}
    for name, wanted in reference.items():
        got = other.get(name)
        if not isinstance(wanted, np.ndarray) or not isinstance(got, np.ndarray) or wanted.shape != got.shape:
            continue
        if wanted.dtype.kind in "fV":
            finite = np.isfinite(wanted) & np.isfinite(got)
            with np.errstate(invalid="ignore"):
                found[name] = np.where(finite, np.abs(wanted.astype(np.float64) - got.astype(np.float64)), 0)
        else:
            found[name] = np.asarray(wanted != got)
    return found
