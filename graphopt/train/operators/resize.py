"""Resize: nearest and linear over any axes, cubic over images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

_WHOLE = 1e-6
"""Relative difference up to which a scale gives a whole size."""


def resize(
    x: Tensor, roi: Tensor | None = None, scales: Tensor | None = None, sizes: Tensor | None = None, *,
    antialias: int = 0, axes: Sequence[int] | None = None, coordinate_transformation_mode: str = "half_pixel",
    cubic_coeff_a: float = -0.75, exclude_outside: int = 0, extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch", mode: str = "nearest", nearest_mode: str = "round_prefer_floor",
) -> Tensor:  # fmt: skip
    """Axis by axis (ONNX specification, Resize)."""
    del roi, extrapolation_value
    if antialias or exclude_outside or keep_aspect_ratio_policy != "stretch":
        raise NotImplementedError("a Resize with antialias, exclude_outside or an aspect ratio")
    places = list(range(x.ndim)) if axes is None else [axis % x.ndim for axis in axes]
    if sizes is not None and sizes.numel():
        wanted = [int(entry) for entry in sizes]
        factors = [size / x.shape[axis] for size, axis in zip(wanted, places, strict=True)]
    else:
        assert scales is not None
        factors = [float(entry) for entry in scales]
        # In float32, as the specification's own arithmetic.
        exact = [
            np.float32(x.shape[axis]) * np.float32(factor)
            for factor, axis in zip(factors, places, strict=True)
        ]
        wanted = [int(size) for size in exact]
    if mode == "cubic":
        return _cubic(x, places, wanted, factors, coordinate_transformation_mode, cubic_coeff_a)
    for axis, size, factor in zip(places, wanted, factors, strict=True):
        if size == x.shape[axis] and factor == 1.0:
            continue
        at = _coordinates(x.shape[axis], size, factor, coordinate_transformation_mode)
        x = _nearest(x, axis, at, nearest_mode) if mode == "nearest" else _linear(x, axis, at)
    return x


def _coordinates(before: int, after: int, scale: float, mode: str) -> Tensor:
    """Where each element of the result lies in the original, float64."""
    at = torch.arange(after, dtype=torch.float64)
    if mode == "half_pixel" or (mode == "pytorch_half_pixel" and after > 1):
        return (at + 0.5) / scale - 0.5
    if mode == "pytorch_half_pixel":
        return at * 0
    if mode == "asymmetric":
        return at / scale
    if mode == "align_corners":
        if abs(after - scale * before) > _WHOLE * after:
            raise NotImplementedError("a Resize that aligns corners, by a scale that gives no whole size")
        return at * (before - 1) / (after - 1) if after > 1 else at * 0
    if mode == "half_pixel_symmetric":
        adjustment = after / (scale * before)
        center = before / 2
        return center * (1 - adjustment) + (at + 0.5) / scale - 0.5
    raise NotImplementedError(f"coordinate_transformation_mode={mode!r}")


_ROUND: Mapping[str, Callable[[Tensor], Tensor]] = {
    "floor": torch.floor,
    "ceil": torch.ceil,
    "round_prefer_floor": lambda at: torch.ceil(at - 0.5),
    "round_prefer_ceil": lambda at: torch.floor(at + 0.5),
}


def _nearest(x: Tensor, axis: int, at: Tensor, mode: str) -> Tensor:
    places = _ROUND[mode](at).clamp(0, x.shape[axis] - 1).to(torch.int64)
    return torch.index_select(x, axis, places)


def _linear(x: Tensor, axis: int, at: Tensor) -> Tensor:
    at = at.clamp(0, x.shape[axis] - 1)
    low = torch.floor(at)
    share = (at - low).to(x.dtype).reshape([-1 if place == axis else 1 for place in range(x.ndim)])
    first = low.to(torch.int64)
    second = (first + 1).clamp(max=x.shape[axis] - 1)
    left, right = torch.index_select(x, axis, first), torch.index_select(x, axis, second)
    return left * (1 - share) + right * share


def _cubic(
    x: Tensor,
    places: Sequence[int],
    wanted: Sequence[int],
    factors: Sequence[float],
    mode: str,
    coefficient: float,
) -> Tensor:
    sizes, scales = list(x.shape), [1.0] * x.ndim
    for axis, size, factor in zip(places, wanted, factors, strict=True):
        sizes[axis], scales[axis] = size, factor
    if x.ndim != 4 or sizes[:2] != list(x.shape[:2]) or coefficient != -0.75:
        raise NotImplementedError("a cubic Resize of other axes than an image's, or another coefficient")
    whole = all(
        abs(size - before * scale) <= _WHOLE * size
        for size, before, scale in zip(sizes, x.shape, scales, strict=True)
    )
    if whole and mode in ("align_corners", "half_pixel", "pytorch_half_pixel"):
        return F.interpolate(x, sizes[2:], mode="bicubic", align_corners=mode == "align_corners")
    raise NotImplementedError(f"a cubic Resize with {mode!r}")


OPERATORS: Mapping[str, Callable[..., Any]] = {"Resize": resize}
"""By ONNX name."""
