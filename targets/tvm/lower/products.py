"""Products with constant weights, as they are told apart, computed and tuned: by sizes, whatever surrounds them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from graphopt.targets.tvm.lower import compute
from graphopt.targets.tvm.lower.compute import OPEN_LENGTH, Array, Window
from graphopt.targets.tvm.lower.tiles import Tile, Vectors, tiles_of

_WEIGHTS_THAT_STAY = 1 << 17
"""In the cache of one core, while all of them are read for one position after the other."""


@dataclass(frozen=True)
class Product:
    """A Conv, MatMul or Gemm of float32; a pointwise Conv is a MatMul.

    Attributes:
        data: Shape of the data, channels last; None for a size that is open.
        weight: Shape of the weights, [outputs, inputs / groups, height, width] or [inputs, outputs].
        window: Of a convolution; None of a product of matrices.
        integer: Whether data are uint8, weights int8, and sums int32.
    """

    data: tuple[int | None, ...]
    weight: tuple[int, ...]
    window: Window | None = None
    integer: bool = False

    @property
    def key(self) -> str:
        """What it is known by in a database of tuned kernels."""
        data = ("?" if size is None else str(size) for size in self.data)
        sizes = f"{'x'.join(data)} by {'x'.join(map(str, self.weight))}"
        kind = "integer " if self.integer else ""
        if self.window is None:
            return f"{kind}product {sizes}"
        window = self.window
        numbers = (*window.strides, *window.pads, *window.dilations, window.groups)
        return f"{kind}convolution {sizes} {','.join(map(str, numbers))} {window.form}"

    @property
    def is_open(self) -> bool:
        """Whether a size is not known: such a product cannot be measured by itself."""
        return None in self.data

    @property
    def operations(self) -> int:
        """Multiplications and additions, of one element along axes that are open."""
        data = [size or 1 for size in self.data]
        if self.window is None:
            return 2 * math.prod(data) * self.weight[1]
        high, wide = self.window.output(data, self.weight[2:])  # type: ignore[arg-type]
        return int(2 * data[0] * high * wide * math.prod(self.weight))

    def tiles(self, vectors: Vectors) -> list[Tile]:
        """All that it can be computed in, the most promising first."""
        runs_on = self.window is None and self.data[-2] is not None
        if self.window is None:
            # Lines are joined as far as their number is known.
            known = itertools.takewhile(lambda size: size is not None, reversed(self.data[:-2]))
            lines, length, channels = math.prod(known), self.data[-2] or OPEN_LENGTH, self.weight[1]  # type: ignore[arg-type]
        else:
            lines, length = self.window.lines(self.data, self.weight[2:])  # type: ignore[arg-type]
            channels = self.weight[0] // self.window.groups
        found = []
        for tile in tiles_of(lines, length, channels, vectors, runs_on=runs_on):
            found.append(tile)
            # With one block of channels there is no order of blocks.
            if channels > tile.width:
                found.append(replace(tile, channels_inside=True))
                if math.prod(self.weight) <= _WEIGHTS_THAT_STAY:
                    found[-2:] = reversed(found[-2:])
        return found

    def pack(self, weight: Array, tile: Tile) -> Array:
        """The weights as the kernel reads them."""
        if self.window is None:
            packed, channels = compute.pack_matrix(weight, tile.width), 1
        else:
            packed, channels = compute.pack_kernel(weight, self.window.groups, tile.width), 4
        return compute.in_fours(packed, channels) if self.integer else packed

    def expression(self, tile: Tile, zero: int = 0) -> Callable[[Any, Any], Any]:
        """Of data and packed weights.

        Args:
            zero: What lies beyond the edges of an image.
        """
        if self.window is None:
            return partial(compute.product, outputs=self.weight[1], tile=tile)
        return partial(compute.convolution, outputs=self.weight[0], window=self.window, tile=tile, zero=zero)
