"""What products compute, as tensor expressions over weights that are packed for vector registers.

Data have their channels last, so that the channels of a position lie side by side. A weight is cut into blocks of
``width`` output channels whose numbers for one element of the reduced axes lie side by side too: the innermost loop
reads whole vectors of weights, and writes whole vectors of the result. The sums are made in the same packed order and
unpacked next to where they are used (:mod:`graphopt.targets.tvm.lower.schedule`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from graphopt.targets.tvm.adapter import te, tirx, topi
from graphopt.targets.tvm.integers import FOUR
from graphopt.targets.tvm.lower.tiles import Tile, round_up

SUMS = "packed_sums"
INTEGER_SUMS = "packed_integer_sums"
UNPACKED = "unpacked"
TAKEN = "taken"
PADDED = "padded"
DEPTHWISE = "depthwise_sums"
ROWS, WIDTH = "graphopt.rows", "graphopt.width"
RUNS_ON, CHANNELS_INSIDE = "graphopt.runs_on", "graphopt.channels_inside"
IN_TILES = "graphopt.in_tiles"
"""Annotations of a block: its tile."""
OPEN_LENGTH = 240
"""Stands for a size that is open, where tiles are chosen: any few rows divide it."""

Array = npt.NDArray[Any]


def number_or_size(size: Any) -> Any:
    """A size of a tensor: a number where it is known, else TVM's expression."""
    return int(size) if isinstance(size, int | tirx.IntImm) else size


@dataclass(frozen=True)
class Window:
    """How a convolution's window moves over an image: (height, width) each; pads as ONNX: top, left, bottom, right.

    A line [batch, length, channels] and a column [batch, length, 1, channels] are images of one row.
    """

    strides: tuple[int, int]
    pads: tuple[int, int, int, int]
    dilations: tuple[int, int]
    groups: int = 1
    form: Literal["image", "line", "column"] = "image"

    def image(self, place: Sequence[Any]) -> tuple[Any, Any]:
        """The place in the image of an element of the tensor, given by what lies between its batch and its channel."""
        return (place[0], place[1]) if self.form == "image" else (0, place[0])

    def at(self, n: Any, c: Any, y: Any, x: Any) -> tuple[Any, ...]:
        """Where an element of the image lies in the tensor."""
        return {"image": (n, y, x, c), "line": (n, x, c), "column": (n, x, 0, c)}[self.form]

    def shape(self, n: Any, c: Any, y: Any, x: Any) -> tuple[Any, ...]:
        """Of the tensor."""
        return {"image": (n, y, x, c), "line": (n, x, c), "column": (n, x, 1, c)}[self.form]

    def output(self, shape: Sequence[Any], kernel: tuple[int, int]) -> tuple[Any, Any]:
        """Height and width of what it makes of a tensor of this shape (ONNX specification, Conv).

        They are numbers where those of the tensor are.
        """
        sizes = [number_or_size(size) for size in shape[1:-1]]
        height, width = sizes if self.form == "image" else (1, sizes[0])
        extents = [dilation * (size - 1) + 1 for dilation, size in zip(self.dilations, kernel, strict=True)]
        return (
            (height + self.pads[0] + self.pads[2] - extents[0]) // self.strides[0] + 1,
            (width + self.pads[1] + self.pads[3] - extents[1]) // self.strides[1] + 1,
        )

    def lines(self, shape: Sequence[int | None], kernel: tuple[int, int]) -> tuple[int, int]:
        """As :meth:`output`, with a long line, or many of them, where sizes of the tensor are open."""
        return self.output([size or OPEN_LENGTH * self.strides[1] for size in shape], kernel)

    def is_pointwise(self, kernel: tuple[int, int]) -> bool:
        """Whether it is a product of matrices: every output is made of all channels at its place."""
        return kernel == (1, 1) and self.strides == (1, 1) and not any(self.pads) and self.groups == 1


@dataclass(frozen=True)
class _Line:
    """A line of the output as its sums are counted: to the end of its last tile.

    Where its length is open, tiles and the positions in a tile are counted each by themselves: of one number TVM could
    not tell how many of its positions are in a tile.

    Attributes:
        length: Positions that there are.
        rows: Of a tile.
    """

    length: Any
    rows: int

    @property
    def is_open(self) -> bool:
        """Whether the length is not known."""
        return not isinstance(self.length, int)

    @property
    def columns(self) -> Any:
        """Positions that are computed."""
        tiles, *_ = self.axes
        return tiles * self.rows if self.is_open else tiles

    @property
    def axes(self) -> tuple[Any, ...]:
        """Sizes by which its positions are counted."""
        if self.is_open:
            # Written so that TVM sees that the last position lies in the last tile.
            return (self.length - 1) // self.rows + 1, self.rows
        return (round_up(self.length, self.rows),)

    def at(self, indices: Sequence[Any]) -> Any:
        """A position, from its places along the axes."""
        return indices[0] * self.rows + indices[1] if self.is_open else indices[0]

    def places(self, position: Any) -> tuple[Any, ...]:
        """Where a position is along the axes."""
        return (position // self.rows, position % self.rows) if self.is_open else (position,)


def pack_kernel(weight: Array, groups: int, width: int) -> Array:
    """Weights [outputs, inputs / groups, height, width] as [groups, blocks, height, width, inputs / groups, ``width``].

    The last block of a group is filled up with zeros.
    """
    outputs, inputs, height, breadth = weight.shape
    each = outputs // groups
    blocks = -(-each // width)
    padded = np.zeros((groups, blocks * width, inputs, height, breadth), weight.dtype)
    padded[:, :each] = weight.reshape(groups, each, inputs, height, breadth)
    packed = padded.reshape(groups, blocks, width, inputs, height, breadth).transpose(0, 1, 4, 5, 3, 2)
    return np.ascontiguousarray(packed)


def pack_matrix(weight: Array, width: int) -> Array:
    """Weights [inputs, outputs] as [blocks, inputs, ``width``], filled up with zeros."""
    inputs, outputs = weight.shape
    blocks = -(-outputs // width)
    padded = np.zeros((inputs, blocks * width), weight.dtype)
    padded[:, :outputs] = weight
    return np.ascontiguousarray(padded.reshape(inputs, blocks, width).transpose(1, 0, 2))


def in_fours(packed: Array, axis: int) -> Array:
    """int8 weights whose ``axis`` counts channels, packed, as dot products of bytes take them: [..., channels / 4, ...,
    ``width``, 4], filled up with zeros."""
    more = -packed.shape[axis] % FOUR
    padded = np.pad(packed, [(0, more if place == axis else 0) for place in range(packed.ndim)])
    shape = (*padded.shape[:axis], -1, FOUR, *padded.shape[axis + 1 :])
    return np.ascontiguousarray(np.moveaxis(padded.reshape(shape), axis + 1, -1))


def convolution(data: Any, packed: Any, *, outputs: int, window: Window, tile: Tile, zero: int = 0) -> Any:
    """Conv [batch, height, width, channels] by weights from :func:`pack_kernel`.

    Args:
        data: float32, or uint8 for weights in fours (:func:`in_fours`), whose sums are int32.
        outputs: Number of output channels.
        tile: What lies behind the last column is computed in vain.
        zero: What lies beyond the edges.
    """
    batch = data.shape[0]
    groups, blocks, tall, broad, inputs, width, *fours = (int(size) for size in packed.shape)
    made_high, made_wide = window.output(data.shape, (tall, broad))
    line = _Line(made_wide, tile.rows)
    four = FOUR if fours else 1
    more_channels = groups * inputs * four - int(data.shape[-1])
    source = _padded(data, window, (tall, broad), (made_high, line), more_channels, zero)
    channel = te.reduce_axis((0, inputs), "channel")
    ky, kx = te.reduce_axis((0, tall), "ky"), te.reduce_axis((0, broad), "kx")
    inside = [te.reduce_axis((0, size), "four") for size in fours]
    (sy, sx), (dy, dx) = window.strides, window.dilations

    def add_up(n: Any, y: Any, *indices: Any) -> Any:
        (*places, block, lane), group = indices, indices[-2] // blocks
        x = line.at(places)
        at = (group * inputs + channel) * four + (inside[0] if inside else 0)
        number = source[window.at(n, at, y * sy + ky * dy, x * sx + kx * dx)]
        place = (group, block % blocks, ky, kx, channel, lane, *inside)
        return te.sum(_multiplied(number, packed[place]), axis=[channel, ky, kx, *inside])

    sums = te.compute(
        (batch, made_high, *line.axes, groups * blocks, width),
        add_up, name=INTEGER_SUMS if fours else SUMS, attrs=_attributes(tile, line),
    )  # fmt: skip

    def unpack(n: Any, *place: Any) -> Any:
        (y, x), o = window.image(place), place[-1]
        at = (n, y, *line.places(x), o // width, o % width)
        return sums[at]

    each = outputs // groups
    if groups == 1 or each % width == 0:
        return te.compute(window.shape(batch, outputs, made_high, made_wide), unpack, name=UNPACKED)
    # What fills up the blocks of each group is left out in a second step.
    filled = te.compute(
        window.shape(batch, groups * blocks * width, made_high, made_wide), unpack, name=UNPACKED
    )

    def take(*place: Any) -> Any:
        o = place[-1]
        whole = (*place[:-1], o // each * (blocks * width) + o % each)
        return filled[whole]

    return te.compute(window.shape(batch, outputs, made_high, made_wide), take, name=TAKEN)


def pack_depthwise(weight: Array, lanes: int) -> Array:
    """Weights [channels * multiplier, 1, height, width] as [height, width, channels * multiplier], zeros behind."""
    outputs, _, tall, broad = weight.shape
    packed = np.zeros((tall, broad, round_up(outputs, lanes)), weight.dtype)
    packed[:, :, :outputs] = weight[:, 0].transpose(1, 2, 0)
    return packed


def depthwise(data: Any, packed: Any, *, outputs: int, window: Window, tile: Tile, zero: int = 0) -> Any:
    """Conv [batch, height, width, channels], each channel by itself, by weights from :func:`pack_depthwise`.

    Args:
        data: float32, or integers, which are multiplied as float32: so 512 products of bytes are exact.
        outputs: Number of output channels.
        zero: What lies beyond the edges.
    """
    batch, channels = data.shape[0], int(data.shape[-1])
    tall, broad, made = (int(size) for size in packed.shape)
    multiplier = outputs // channels
    made_high, made_wide = window.output(data.shape, (tall, broad))
    line = _Line(made_wide, tile.rows)
    more_channels = -(-made // multiplier) - channels
    source = _padded(data, window, (tall, broad), (made_high, line), more_channels, zero)
    ky, kx = te.reduce_axis((0, tall), "ky"), te.reduce_axis((0, broad), "kx")
    (sy, sx), (dy, dx) = window.strides, window.dilations

    def add_up(n: Any, y: Any, *indices: Any) -> Any:
        *places, o = indices
        number = source[
            window.at(n, o // multiplier, y * sy + ky * dy, line.at(places) * sx + kx * dx)
        ].astype("float32")
        return te.sum(number * packed[ky, kx, o], axis=[ky, kx])

    sums = te.compute(
        (batch, made_high, *line.axes, made), add_up, name=DEPTHWISE, attrs=_attributes(tile, line)
    )

    def unpack(n: Any, *place: Any) -> Any:
        (y, x), o = window.image(place), place[-1]
        at = (n, y, *line.places(x), o)
        return sums[at]

    return te.compute(window.shape(batch, outputs, made_high, made_wide), unpack, name=UNPACKED)


def product(data: Any, packed: Any, *, outputs: int, tile: Tile) -> Any:
    """MatMul [..., rows, inputs] by weights from :func:`pack_matrix`, or in fours."""
    shape = tuple(data.shape)
    leading = shape[:-1]
    blocks, inputs, width, *fours = (int(size) for size in packed.shape)
    four = FOUR if fours else 1
    if inputs * four > int(shape[-1]):
        behind = [*(0,) * len(leading), inputs * four - int(shape[-1])]
        data = topi.nn.pad(data, [0] * len(shape), behind, name=PADDED)
    element = te.reduce_axis((0, inputs), "element")
    inside = [te.reduce_axis((0, size), "four") for size in fours]
    rows = number_or_size(leading[-1])
    line = _Line(rows, 1 if tile.runs_on else tile.rows)
    is_whole = not line.is_open and line.columns == rows

    def add_up(*indices: Any) -> Any:
        position, places, (block, lane) = (
            indices[: len(leading) - 1],
            indices[len(leading) - 1 : -2],
            indices[-2:],
        )
        # Behind the last row the last one is computed again.
        row = line.at(places) if is_whole else tirx.min(line.at(places), rows - 1)
        at = (*position, row, element * four + (inside[0] if inside else 0))
        place = (block, element, lane, *inside)
        return te.sum(_multiplied(data[at], packed[place]), axis=[element, *inside])

    sums = te.compute(
        (*leading[:-1], *line.axes, blocks, width),
        add_up, name=INTEGER_SUMS if fours else SUMS, attrs=_attributes(tile, line),
    )  # fmt: skip

    def unpack(*indices: Any) -> Any:
        *position, row, o = indices
        place = (*position, *line.places(row), o // width, o % width)
        return sums[place]

    return te.compute((*leading, outputs), unpack, name=UNPACKED)


def _multiplied(number: Any, weight: Any) -> Any:
    """A product of floats, or of a byte and a byte as int32."""
    if str(weight.dtype) != "int8":
        return number * weight
    return number.astype("int32") * weight.astype("int32")


def _padded(
    data: Any,
    window: Window,
    kernel: tuple[int, int],
    made: tuple[Any, _Line],
    more_channels: int,
    zero: int,
) -> Any:
    """What a convolution reads of an image.

    Args:
        made: Height and lines of the output.
        more_channels: Zeros behind the channels.
        zero: What lies beyond the edges.
    """
    high, line = made
    beyond = tirx.const(zero, str(data.dtype))
    if isinstance(high, int) and not line.is_open:
        top, left, bottom, right = window.pads
        right += (line.columns - line.length) * window.strides[1]
        if not (top or left or bottom or right or more_channels):
            return data
        before, after = window.at(0, 0, top, left), window.at(0, more_channels, bottom, right)
        return topi.nn.pad(data, before, after, beyond, name=PADDED)
    # Sizes that follow from what is read of it: TVM cannot see that the image with its pads covers that.
    read = [
        (size - 1) * stride + (length - 1) * dilation + 1
        for size, stride, dilation, length in zip(
            (high, line.columns), window.strides, window.dilations, kernel, strict=True
        )
    ]
    sizes = window.shape(data.shape[0], int(data.shape[-1]) + more_channels, *read)
    offsets = window.at(0, 0, *window.pads[:2])

    def place(*indices: Any) -> Any:
        inside = [index - offset for index, offset in zip(indices, offsets, strict=True)]
        # The batch is that of the data.
        edges = zip(inside[1:], data.shape[1:], strict=True)
        conditions = [condition for index, size in edges for condition in (index >= 0, index < size)]
        return tirx.if_then_else(tirx.all(*conditions), data[tuple(inside)], beyond)

    return te.compute(sizes, place, name=PADDED)


def padded_by(data: Any, zero: Any, *, window: Window) -> Any:
    """Bytes [batch, height, width, channels] with a zero point, a tensor of one int32, around them."""
    top, left, bottom, right = window.pads
    before, after = window.at(0, 0, top, left), window.at(0, 0, bottom, right)
    sizes = [number_or_size(size) for size in data.shape]
    made = [more + size + behind for more, size, behind in zip(before, sizes, after, strict=True)]

    def place(*indices: Any) -> Any:
        inside = [index - more for index, more in zip(indices, before, strict=True)]
        conditions = [
            condition
            for index, size, whole in zip(inside, sizes, made, strict=True)
            if size != whole
            for condition in (index >= 0, index < size)
        ]
        number = data[tuple(inside)]
        return tirx.if_then_else(tirx.all(*conditions), number, zero[()].astype(str(data.dtype)))

    return te.compute(made, place, name="padded_by_zero_point")


def _attributes(tile: Tile, line: _Line) -> dict[str, int]:
    return {
        ROWS: tile.rows,
        WIDTH: tile.width,
        RUNS_ON: int(tile.runs_on),
        IN_TILES: int(line.is_open),
        CHANNELS_INSIDE: int(tile.channels_inside),
    }
