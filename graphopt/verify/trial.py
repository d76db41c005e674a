"""One set of inputs, what the original makes of it, and how far equally valid runs come apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from graphopt.data.interface import Array, Feeds
from graphopt.verify.compare import deviation


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

    def absorb(self, outputs: Mapping[str, Array]) -> None:
        """Take an equally valid run into the noise."""
        for name, moved in deviation(self.outputs, outputs).items():
            known = self.noise.get(name)
            self.noise[name] = moved if known is None else np.maximum(known, moved)


def is_floating(array: object) -> bool:
    """Whether it is an array of floats."""
    return isinstance(array, np.ndarray) and array.dtype.kind == "f"


def largest(array: Array) -> float:
    """The largest finite magnitude."""
    return float(np.abs(np.where(np.isfinite(array), array, 0)).max(initial=0.0))


__all__ = ["Trial", "is_floating", "largest"]
