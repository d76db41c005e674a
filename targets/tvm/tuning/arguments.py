"""What kernels are measured with."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Argument = tuple[list[int], str]
"""Shape and element type."""
_LARGEST = 100


def filled(argument: Argument, rng: np.random.Generator) -> npt.NDArray[Any]:
    """An array of numbers from 0 to 1, or of integers from 0 to 99."""
    shape, dtype = argument
    numbers = rng.random(shape, np.float32)
    return (numbers if np.dtype(dtype).kind == "f" else _LARGEST * numbers).astype(dtype)
