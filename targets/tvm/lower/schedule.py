"""Loops for processors without tuning: products in tiles that stay in registers, all else in lines over the cores.

A function that :func:`scheduled` has no rule for keeps the loops that TVM made: right, and slow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from graphopt.targets.tvm.adapter import (
    IndexMap,
    InternalError,
    IRModule,
    Schedule,
    ScheduleError,
    Sequential,
    s_tir,
    structural_equal,
    tirx,
)
from graphopt.targets.tvm.lower.compute import (
    CHANNELS_INSIDE,
    DEPTHWISE,
    IN_TILES,
    INTEGER_SUMS,
    PADDED,
    ROWS,
    RUNS_ON,
    SUMS,
    TAKEN,
    UNPACKED,
    WIDTH,
    number_or_size,
)
from graphopt.targets.tvm.lower.dots import dot_product
from graphopt.targets.tvm.lower.tiles import Vectors

SCHEDULED = "tirx.is_scheduled"
"""TVM's own mark."""
_PARALLEL_FROM = 1 << 13
_OPEN = 64
"""Elements below which starting threads costs more than they save."""
_MOST_UNROLLED = 64
_MOST_ROWS = 8
_MOST_PARTS = 64
"""That a sum is made of."""
_LONGEST_SUM, _SHORTEST_SUM = 256, 32
"""Products that are added up one by one, where the length allows it."""
_PIECE = 4
"""Vectors of a line that are one turn of an outer loop."""


def scheduled(module: IRModule, vectors: Vectors) -> IRModule:
    """Every loop nest of a module with loops for this processor."""
    return each_function(module, lambda name, function: for_processor(function, vectors))


def each_function(module: IRModule, change: Callable[[str, Any], Any]) -> IRModule:
    """A module with every loop nest that has no loops yet changed by a function of its name and itself."""
    made = IRModule(dict(module.functions_items()), attrs=module.attrs)
    for name, function in module.functions_items():
        if isinstance(function, tirx.PrimFunc) and not function.attrs.get(SCHEDULED, 0):
            made[name] = change(name.name_hint, function)
    return made


def for_processor(function: Any, vectors: Vectors) -> Any:
    """One loop nest with loops for this processor."""
    is_open = _is_open(function)
    for rule in (_product, _product_in_lines, _depthwise, _contraction, _rows, _lines):
        schedule = Schedule(function)
        try:
            if rule(schedule, vectors) and not (is_open and _keeps_open_room(schedule.mod)):
                return schedule.mod["main"].with_attr(SCHEDULED, True)
        except (ScheduleError, InternalError, _OpenError):
            continue
    return function


def _is_open(function: Any) -> bool:
    """Whether a tensor that it takes has sizes that are not known."""
    shapes = [getattr(parameter.ty, "shape", ()) for parameter in function.params]
    return any(not isinstance(size, tirx.IntImm) for shape in shapes for size in shape)


def _keeps_open_room(module: IRModule) -> bool:
    """Whether sums would lie in room, made inside a loop, of a size that is not known.

    What TVM finds for it may be too small.
    """
    passes = (
        s_tir.transform.LowerInitBlock(),
        s_tir.transform.PlanAndUpdateBufferAllocationLocation(),
        s_tir.transform.ConvertBlocksToOpaque(),
        s_tir.transform.CompactBufferAllocation(),
    )
    return any(
        not isinstance(size, tirx.IntImm)
        for statement, is_inside in _statements(Sequential(passes)(module)["main"].body)
        for buffer in getattr(statement, "alloc_buffers", None) or ()
        if is_inside or buffer.scope() == "local"
        for size in buffer.shape
    )


def _statements(statement: Any, is_inside: bool = False) -> Iterator[tuple[Any, bool]]:
    """It and all that it holds, and whether that is inside a loop."""
    yield statement, is_inside
    is_inside = is_inside or isinstance(statement, tirx.For)
    for name in ("body", "block", "init", "then_case", "else_case"):
        inside = getattr(statement, name, None)
        if inside is not None:
            yield from _statements(inside, is_inside)
    for inside in getattr(statement, "seq", None) or ():
        yield from _statements(inside, is_inside)


class _OpenError(Exception):
    """TVM cannot tell how long a loop is that is to have a few turns: sizes that are open are divided too often."""


def _blocks(schedule: Any) -> list[Any]:
    return list(schedule.get_child_blocks(schedule.get_sblock("root")))


def _name(schedule: Any, block: Any) -> str:
    return str(schedule.get(block).name_hint)


def _is_spatial(schedule: Any, block: Any) -> bool:
    return all(var.iter_type == tirx.IterVar.DataPar for var in schedule.get(block).iter_vars)


def _extent(schedule: Any, loop: Any) -> int:
    """Of a loop; 0 where it is not known."""
    extent = schedule.get(loop).extent
    return int(extent) if isinstance(extent, tirx.IntImm) else 0


def _is_large(extents: Sequence[int]) -> bool:
    """Whether so many elements are worth starting threads; what is not known counts as some."""
    return math.prod(extent or _OPEN for extent in extents) >= _PARALLEL_FROM


def _are_alike(schedule: Any, loops: Sequence[Any], others: Sequence[Any]) -> bool:
    """Whether loops are as long as others, one by one."""
    pairs = zip(loops, others, strict=True)
    return all(structural_equal(*(schedule.get(loop).extent for loop in pair)) for pair in pairs)


def _find(schedule: Any, prefix: str) -> Any | None:
    return next((block for block in _blocks(schedule) if _name(schedule, block).startswith(prefix)), None)


def _inline(schedule: Any, keep: tuple[Any, ...]) -> Any:
    """Put every elementwise block into its readers; returns the last block, which writes the result."""
    kept = {_name(schedule, block) for block in keep}
    blocks = _blocks(schedule)
    for block in blocks[:-1]:
        name = _name(schedule, block)
        if name in kept or name.startswith(PADDED) or not _is_spatial(schedule, block):
            continue
        schedule.compute_inline(block)
    return blocks[-1]


def _product_in_lines(schedule: Any, vectors: Vectors) -> bool:
    """As :func:`_product`, with a loop for the tiles of a line alone."""
    return _product(schedule, vectors, in_lines=True)


def _product(schedule: Any, vectors: Vectors, *, in_lines: bool = False) -> bool:
    """Packed sums of a convolution or a product, with what follows them computed tile by tile."""
    sums = _find(schedule, SUMS) or _find(schedule, INTEGER_SUMS)
    if sums is None:
        return False
    is_integer = _name(schedule, sums).startswith(INTEGER_SUMS)
    about = schedule.get(sums).annotations
    runs_on = bool(int(about[RUNS_ON]))
    # Groups that do not fill whole blocks are unpacked with what fills them up, and taken out of it at the end.
    has_gaps = _find(schedule, TAKEN) is not None
    unpacked = _find(schedule, UNPACKED)
    last = _inline(schedule, (sums, unpacked) if has_gaps else (sums,))
    if has_gaps:
        _spread(schedule, last, vectors)
        last = unpacked
    count = _reduced(schedule, sums)
    if runs_on:
        _join_lines(schedule, sums, last)
    kept = len(schedule.get_loops(sums)) - count
    parts = None if is_integer else _in_parts(schedule, sums, count)
    loops = schedule.get_loops(sums)
    (*positions, block, lane), reduced = loops[:kept], loops[kept:]
    fours = [reduced.pop()] if is_integer else []
    reduced = _channels_inside(reduced)
    before, far, near = _tiles_of_lines(schedule, positions, about)
    channels_inside = bool(int(about[CHANNELS_INSIDE]))
    if in_lines:
        outer, shared = _lines_of_tiles(schedule, before, far, block, channels_inside)
        schedule.reorder(*outer, *reduced, near, lane, *fours)
    else:
        places = [*before, far]
        in_order = [*places, block] if channels_inside else [block, *places]
        schedule.reorder(*in_order, *reduced, near, lane, *fours)
        shared = schedule.fuse(*in_order)
        schedule.parallel(shared)
    if parts is None:
        held = schedule.cache_write(sums, 0, "local")
        schedule.reverse_compute_at(held, shared)
        schedule.reverse_compute_at(last, shared)
        _keep_in_registers(schedule, held, vectors)
        if is_integer:
            _add_up_bytes(schedule, sums, near, lane, reduced[0], vectors)
        else:
            _keep_in_registers(schedule, sums, vectors, reduced[0])
    else:
        # The sums of all parts stay in memory: registers are for the part that is added up.
        held = schedule.cache_write(parts, 0, "local")
        schedule.reverse_compute_at(last, shared)
        schedule.compute_at(held, reduced[0], preserve_unit_loops=True)
        schedule.compute_at(parts, reduced[0], preserve_unit_loops=True)
        around = len(schedule.get_loops(sums)) - 2
        for copied, more in ((held, 0), (parts, count)):
            inside = schedule.get_loops(copied)[around:]
            row = inside.pop(-more - 3)
            line = inside.pop(-more - 1)
            added = _channels_inside(inside[-more:]) if more else []
            schedule.reorder(*inside[: len(inside) - more], *added, row, line)
            _keep_in_registers(schedule, copied, vectors, added[0] if more else None)
        _vectorize(schedule, lane, vectors)
        first = schedule.decompose_reduction(sums, reduced[0])
        _vectorize(schedule, schedule.get_loops(first)[-1], vectors)
    _write(schedule, last, vectors)
    _pad(schedule, vectors)
    return True


def _tiles_of_lines(schedule: Any, positions: list[Any], about: Any) -> tuple[list[Any], Any, Any]:
    """The loops over lines, over the tiles of a line, and over the positions of a tile."""
    if int(about[IN_TILES]):
        *before, far, near = positions
        return before, far, near
    *before, line = positions
    far, near = schedule.split(line, [None, int(about[ROWS])])
    return before, far, near


def _lines_of_tiles(
    schedule: Any, before: list[Any], far: Any, block: Any, channels_inside: bool
) -> tuple[list[Any], Any]:
    """The loops around tiles in order, and the last of them; lines over the cores, or tiles where lines may be one.

    Loops are made one only where their number can be divided again by numbers.
    """
    if len(before) < 2:
        outer = [far, *before, block]
        schedule.parallel(far)
    else:
        outer = [*_over_cores(schedule, before), *([far, block] if channels_inside else [block, far])]
    return outer, outer[-1]


def _over_cores(schedule: Any, loops: Sequence[Any], *, is_large: bool = True) -> list[Any]:
    """Outer loops that share their turns out; as one where their number can be divided again by numbers."""
    if all(_extent(schedule, loop) for loop in loops[1:]):
        whole = schedule.fuse(*loops)
        if is_large:
            schedule.parallel(whole)
        return [whole]
    if is_large:
        # The first may have one turn only, as a batch.
        later = next((loop for loop in loops[1:] if _extent(schedule, loop) != 1), loops[0])
        schedule.parallel(loops[0] if _extent(schedule, loops[0]) >= _MOST_ROWS else later)
    return list(loops)


def _add_up_bytes(schedule: Any, sums: Any, row: Any, lane: Any, reduced: Any, vectors: Vectors) -> None:
    """The rows and lanes of a block in instructions that add up products of bytes, after its zeros."""
    far, vector = schedule.split(lane, [None, vectors.lanes])
    schedule.unroll(row)
    schedule.unroll(far)
    # What is left without the zeros is what the instruction does.
    *_, row, far, line = schedule.get_loops(schedule.decompose_reduction(sums, reduced))
    schedule.unroll(row)
    schedule.unroll(far)
    schedule.vectorize(line)
    schedule.tensorize(vector, dot_product(vectors))


def _write(schedule: Any, last: Any, vectors: Vectors) -> None:
    """What follows the sums of a tile, in vectors; with channels that end within a tile, in vectors that do not."""
    line = schedule.get_loops(last)[-1]
    if not _has_predicate(schedule, last):
        _vectorize(schedule, line, vectors)
        return
    channels, extent = int(schedule.get(last).writes[0].source.shape[-1]), _extent(schedule, line)
    lanes = _lanes_of(channels, vectors)
    if lanes and extent % lanes == 0:
        schedule.vectorize(line if extent == lanes else schedule.split(line, [None, lanes])[1])


def _channels_inside(reduced: list[Any]) -> list[Any]:
    """The reduced loops of channels, rows and columns in the order in which data lie."""
    return [*reduced[1:], reduced[0]]


def _keep_in_registers(schedule: Any, block: Any, vectors: Vectors, reduced: Any = None) -> None:
    """The two innermost loops of a block, rows and lanes, without a loop; so are its zeros before ``reduced``."""
    *_, row, line = schedule.get_loops(block)
    about = schedule.get(row)
    # With a tile of one row there is no such loop inside.
    if about.kind == tirx.ForKind.SERIAL:
        if not _extent(schedule, row):
            raise _OpenError
        schedule.unroll(row)
    _vectorize(schedule, line, vectors)
    if reduced is not None:
        _keep_in_registers(schedule, schedule.decompose_reduction(block, reduced), vectors)


def _in_parts(schedule: Any, sums: Any, count: int) -> Any | None:
    """Make a long sum of sums of parts, whose errors do not add up so far; returns the block of the parts.

    Args:
        count: Of reduced loops.
    """
    first, *others = schedule.get_loops(sums)[-count:]
    length, within = _extent(schedule, first), math.prod(_extent(schedule, loop) for loop in others)
    if length * within <= _LONGEST_SUM:
        return None
    most = max(_LONGEST_SUM // within, 1)
    size = max(size for size in range(1, most + 1) if length % size == 0)
    if size == length or size * within < _SHORTEST_SUM:
        return None
    part, _ = schedule.split(first, [None, size])
    return schedule.rfactor(part, 0)


def _join_lines(schedule: Any, sums: Any, last: Any) -> None:
    """Count positions through, so that a tile may lie on two lines: [..., lines, length, ...] to [..., length, ...]."""
    behind = 2
    sizes = [number_or_size(size) for size in schedule.get(sums).writes[0].source.shape][:-behind]
    lengths = [size if isinstance(size, int) else 0 for size in sizes]
    # Those behind the last one that is open; and TVM's maps of indices have no place for what has one value.
    known = len(lengths) - lengths[::-1].index(0) if 0 in lengths else 0
    before = next((place for place in range(known, len(lengths)) if lengths[place] > 1), len(lengths))
    lengths = lengths[before:]
    if len(lengths) < 2:
        return
    reduced = _reduced(schedule, sums)
    schedule.transform_layout(sums, ("write", 0), _joining(before, lengths, behind))
    schedule.transform_block_layout(sums, _joining(before, lengths, behind + reduced))
    schedule.transform_block_layout(last, _joining(before, lengths, 1))


def _joining(before: int, lengths: list[int], behind: int) -> Any:
    """A map of indices that makes one index of those that count ``lengths``."""

    def join(*indices: Any) -> list[Any]:
        inside = indices[before : before + len(lengths)]
        position = inside[0]
        for index, length in zip(inside[1:], lengths[1:], strict=True):
            position = position * length + index
        return [*indices[:before], position, *indices[before + len(lengths) :]]

    return IndexMap.from_func(join, ndim=before + len(lengths) + behind)


def _depthwise(schedule: Any, vectors: Vectors) -> bool:
    """Sums of each channel by itself, in vectors of channels."""
    sums = _find(schedule, DEPTHWISE)
    if sums is None:
        return False
    about = schedule.get(sums).annotations
    last = _inline(schedule, (sums,))
    *positions, channel, ky, kx = schedule.get_loops(sums)
    (batch, y), far, near = _tiles_of_lines(schedule, positions, about)
    block, lane = schedule.split(channel, [None, int(about[WIDTH])])
    schedule.reorder(batch, y, far, block, ky, kx, near, lane)
    _over_cores(schedule, (batch, y, far))
    held = schedule.cache_write(sums, 0, "local")
    schedule.reverse_compute_at(held, block)
    schedule.reverse_compute_at(last, block)
    _write(schedule, last, vectors)
    schedule.unroll(kx)
    _keep_in_registers(schedule, held, vectors)
    _keep_in_registers(schedule, sums, vectors, ky)
    _pad(schedule, vectors)
    return True


def _contraction(schedule: Any, vectors: Vectors) -> bool:
    """A product of two tensors that are both computed: [..., rows, columns], reduced over one axis."""
    blocks = _blocks(schedule)
    heavy = [block for block in blocks if not _is_spatial(schedule, block)]
    if len(heavy) != 1 or _reduced(schedule, heavy[0]) != 1:
        return False
    (sums,) = heavy
    loops = schedule.get_loops(sums)
    if len(loops) < 3 or len(schedule.get(sums).reads) != 2:
        return False
    rows, columns, length = (_extent(schedule, loop) for loop in loops[-3:])
    if not columns or not length:
        return False
    width = next((wide * vectors.lanes for wide in (2, 1) if columns % (wide * vectors.lanes) == 0), 0)
    if not width:
        return False
    last = _inline(schedule, (sums,))
    tall = max(size for size in range(1, _MOST_ROWS + 1) if rows % size == 0) if rows else 1
    *batch, row, column, element = schedule.get_loops(sums)
    down, near = schedule.split(row, [None, tall])
    across, lane = schedule.split(column, [None, width])
    schedule.reorder(*batch, down, across, element, near, lane)
    _over_cores(schedule, (*batch, down))
    held = schedule.cache_write(sums, 0, "local")
    schedule.reverse_compute_at(held, across)
    if _name(schedule, last) != _name(schedule, sums):
        schedule.reverse_compute_at(last, across)
        _vectorize(schedule, schedule.get_loops(last)[-1], vectors)
    _keep_in_registers(schedule, held, vectors)
    _keep_in_registers(schedule, sums, vectors, element)
    return True


def _rows(schedule: Any, vectors: Vectors) -> bool:
    """Lines that are reduced and then written, as by a softmax: all of a line's steps while it is in the cache."""
    _inline_pairs(schedule)
    *before, last = _blocks(schedule)
    loops = schedule.get_loops(last)
    extents = [_extent(schedule, loop) for loop in loops]
    reducing = [block for block in before if not _is_spatial(schedule, block)]
    if not reducing or len(loops) < 2 or extents[-1] == 1 or not _is_spatial(schedule, last):
        return False
    made = []
    for block in before:
        own = schedule.get_loops(block)
        if len(own) != len(loops) or not _are_alike(schedule, own[:-1], loops[:-1]):
            return False
        if block in reducing:
            count = _reduced(schedule, block)
            if count != 1 or not _reads_along(schedule, block, 1):
                return False
            width = parts_of(_extent(schedule, own[-1]), vectors)
            if width > 1:
                _, near = schedule.split(own[-1], [None, width])
                made.append(schedule.rfactor(near, len(schedule.get(block).writes[0].source.shape)))
        made.append(block)
    *_, shared = _over_cores(schedule, schedule.get_loops(last)[:-1], is_large=_is_large(extents))
    for block in reversed(made):
        schedule.compute_at(block, shared)
    for block in (*made, last):
        inner = schedule.get_loops(block)
        if _is_spatial(schedule, block):
            if not _has_predicate(schedule, block):
                _vectorize(schedule, inner[-1], vectors)
        elif block not in reducing:
            *_, lane, far = inner
            schedule.reorder(far, lane)
            _vectorize(schedule, lane, vectors)
            first = schedule.decompose_reduction(block, far)
            _vectorize(schedule, schedule.get_loops(first)[-1], vectors)
    return True


def _lines(schedule: Any, vectors: Vectors) -> bool:
    """Whatever else: outer loops over the cores, the innermost one in vectors."""
    _inline_pairs(schedule)
    for block in _blocks(schedule):
        if _is_spatial(schedule, block):
            _spread(schedule, block, vectors)
        else:
            _reduce(schedule, block, vectors)
    return True


def _inline_pairs(schedule: Any) -> None:
    """Put what is computed element by element into its one reader."""
    for block in _blocks(schedule)[:-1]:
        readers = schedule.get_consumers(block)
        if len(readers) == 1 and _is_spatial(schedule, block) and _is_spatial(schedule, readers[0]):
            schedule.compute_inline(block)


def parts_of(length: int, vectors: Vectors) -> int:
    """In how many sums a line is reduced, element by element in turns; one where it cannot be divided."""
    # A factor that does not divide, or may not, would need a condition, with which TVM makes parts that are wrong.
    if not length:
        return 1
    width = max((size for size in range(2, _MOST_PARTS + 1) if length % size == 0), default=1)
    width = vectors.lanes if length % vectors.lanes == 0 else width
    return width if length >= 2 * width else 1


def _spread(schedule: Any, block: Any, vectors: Vectors) -> None:
    """A block that reduces nothing."""
    loops = schedule.get_loops(block)
    extents = [_extent(schedule, loop) for loop in loops]
    if not loops:
        return
    if len(loops) == 1:
        piece = _PIECE * vectors.lanes
        loops = schedule.split(loops[0], [None, min(extents[0] or piece, piece)])
    *outer, inner = loops
    _over_cores(schedule, outer, is_large=_is_large(extents))
    if not _has_predicate(schedule, block):
        _vectorize(schedule, inner, vectors)


def _reduce(schedule: Any, block: Any, vectors: Vectors) -> None:
    """A block that reduces its last axes: along lines in as many sums as a vector has, else line by line."""
    count = _reduced(schedule, block)
    loops = schedule.get_loops(block)
    extents = [_extent(schedule, loop) for loop in loops]
    reduces = [var.iter_type == tirx.IterVar.CommReduce for var in schedule.get(block).iter_vars]
    if len(loops) <= count or not all(reduces[-count:]):
        return
    spatial, reduced = loops[:-count], loops[-count:]
    is_large = _is_large(extents)
    length = math.prod(extents[-count:])
    width = parts_of(length, vectors)
    if width > 1 and _reads_along(schedule, block, count):
        # Besides being faster, sums of parts are more exact than one long sum.
        far, near = schedule.split(schedule.fuse(*reduced), [None, width])
        parts = schedule.rfactor(near, len(schedule.get(block).writes[0].source.shape))
        *_, outer = _over_cores(schedule, spatial, is_large=is_large)
        schedule.compute_at(parts, outer)
        *_, lane, far = schedule.get_loops(parts)
        schedule.reorder(far, lane)
        _vectorize(schedule, lane, vectors)
        first = schedule.decompose_reduction(parts, far)
        _vectorize(schedule, schedule.get_loops(first)[-1], vectors)
        return
    parts = _added_up_in_parts(schedule, block, spatial, reduced)
    if parts is not None:
        _reduce(schedule, parts, vectors)
        loops = schedule.get_loops(block)
        spatial, reduced = loops[:-1], loops[-1:]
        is_large = _is_large([_extent(schedule, loop) for loop in loops])
    inner = None
    if len(spatial) > 1 and extents[len(spatial) - 1] != 1:
        inner = spatial.pop()
        schedule.reorder(*spatial, *reduced, inner)
    _over_cores(schedule, spatial, is_large=is_large)
    if inner is not None:
        _vectorize(schedule, inner, vectors)
        first = schedule.decompose_reduction(block, reduced[0])
        _vectorize(schedule, schedule.get_loops(first)[-1], vectors)


def _added_up_in_parts(schedule: Any, block: Any, spatial: list[Any], reduced: list[Any]) -> Any | None:
    """The sums of the lines of an image, of which the block is to be the sum, where one sum would be long.

    Rounding of one long sum goes one way; and an image alone is shared out over the cores by its lines.
    """
    if len(spatial) < 2 or _extent(schedule, spatial[-1]) == 1 or len(schedule.get(block).writes) > 1:
        return None
    length = math.prod(_extent(schedule, loop) for loop in reduced)
    shortest = _SHORTEST_SUM if len(reduced) > 1 else _LONGEST_SUM
    if (length and length < shortest) or any(_extent(schedule, loop) == 1 for loop in reduced):
        return None
    first = reduced[0]
    if len(reduced) == 1:
        size = max((size for size in range(2, math.isqrt(length) + 1) if length % size == 0), default=0)
        if not size:
            return None
        first, _ = schedule.split(first, [size, None])
    return schedule.rfactor(first, 0)


def _reads_along(schedule: Any, block: Any, count: int) -> bool:
    """Whether the reduced axes are the last ones of what is read, in order, each by itself."""
    about = schedule.get(block)
    reduced = [var.var for var in about.iter_vars][-count:]
    places = [axis.min for axis in about.reads[0].region][-count:]
    return all(place.same_as(var) for place, var in zip(places, reduced, strict=True))


def _pad(schedule: Any, vectors: Vectors) -> None:
    block = _find(schedule, PADDED)
    if block is not None:
        _spread(schedule, block, vectors)


def _reduced(schedule: Any, block: Any) -> int:
    return sum(var.iter_type == tirx.IterVar.CommReduce for var in schedule.get(block).iter_vars)


def _has_predicate(schedule: Any, block: Any) -> bool:
    realize = getattr(schedule.get_sref(block).parent.stmt, "body", None)
    predicate = getattr(realize, "predicate", None)
    return not (isinstance(predicate, tirx.IntImm) and int(predicate))


def _lanes_of(count: int, vectors: Vectors) -> int:
    """The largest part of a vector that so many numbers fill; 0 where none is."""
    return next(
        (lanes for lanes in (vectors.lanes, vectors.lanes // 2, 4) if lanes > 1 and count % lanes == 0), 0
    )


def _vectorize(schedule: Any, loop: Any, vectors: Vectors) -> None:
    """In whole vectors, or not at all."""
    extent = _extent(schedule, loop)
    if extent < 2 or extent & (extent - 1):
        # LLVM makes vectors of the lines whose length is not known.
        whole = _lanes_of(extent, vectors)
        if not whole or extent == whole:
            return
        _, loop = schedule.split(loop, [None, whole])
    elif extent > _MOST_UNROLLED:
        _, loop = schedule.split(loop, [None, vectors.lanes])
    schedule.vectorize(loop)
