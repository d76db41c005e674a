"""Products on a GPU: sums in registers, operands in shared memory, long sums in parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from graphopt.targets.tvm.adapter import (
    Schedule,
    auto_inline_consumer_chain,
    auto_inline_producers,
    index_maps_of,
    tirx,
    undefined_vars,
)

_STEP = 16
"""Elements of the reduced axis that lie in shared memory at a time."""
_MOST_STEPS, _LEAST_STEPS = 16, 9
"""Steps whose sum stays in one register: the sums of such parts are added up, so errors do not grow with the length."""
_EACH = 4
"""Rows and columns of each thread."""
_ENOUGH_BLOCKS = 128
"""About as many as a large GPU has processors."""
_TILES = ((64, 64), (32, 64), (32, 32))
"""Rows and columns of a block of threads."""
_ROWS, _COLUMNS = 0, 1


@dataclass(frozen=True)
class _Lanes:
    """How a block's threads are counted: threadIdx.x runs along what lies side by side in the result."""

    rows: int
    columns: int
    fast: int

    @property
    def counts(self) -> tuple[int, int]:
        """Of threadIdx.y and of threadIdx.x."""
        return (self.columns, self.rows) if self.fast == _ROWS else (self.rows, self.columns)


def product(function: Any) -> Any | None:
    """A function with one product of float32 in it, bound to blocks and threads; None where it has none.

    The product is brought into the form C[s, i, j] += A[s, i, k] * B[s, j, k] with DLight's analysis, which takes
    convolutions too: their windows end up where A is fetched.
    """
    schedule = Schedule(function)
    blocks = schedule.get_child_blocks(schedule.get_sblock("root"))
    sums = [block for block in blocks if _reduces(schedule.get(block))]
    if len(sums) != 1:
        return None
    (main,) = sums
    about = schedule.get(main)
    if index_maps_of(about) is None:
        return None
    if any(str(region.source.dtype) != "float32" for region in (*about.reads, *about.writes)):
        return None
    by_element = [_reads_elements_side_by_side(about, region) for region in about.reads]
    fast = _COLUMNS if _last_variables(about.writes[0]) & _all_variables(about.reads[1]) else _ROWS
    _as_matrices(schedule, main)
    extents = [schedule.get(loop).extent for loop in schedule.get_loops(main)]
    tall, wide = _tile_of(*extents[:3])
    part_length = _STEP * _steps_of(extents[3])
    schedule.pad_einsum(main, [1, tall, wide, part_length])
    parts = schedule.rfactor(schedule.split(schedule.get_loops(main)[3], [None, part_length])[0], 0)
    lanes = _Lanes(tall // _EACH, wide // _EACH, fast)
    thread, part = _spread(schedule, main, lanes)
    held = schedule.cache_write(main, 0, "local")
    schedule.reverse_compute_at(held, thread, preserve_unit_loops=True)
    schedule.set_scope(parts, 0, "local")
    schedule.compute_at(parts, part, preserve_unit_loops=True)
    *_, row, column, element = schedule.get_loops(parts)
    far, near = schedule.split(element, [None, _STEP])
    schedule.reorder(far, near, row, column)
    for index in (0, 1):
        fetched = _fetch(schedule, parts, index, far, lanes, by_element=by_element[index])
        auto_inline_producers(schedule, fetched)
    auto_inline_consumer_chain(schedule, held)
    schedule.decompose_reduction(parts, far)
    schedule.decompose_reduction(main, part)
    return schedule.mod["main"]


def _as_matrices(schedule: Any, main: Any) -> None:
    operands = [schedule.reindex(main, ("read", index)) for index in range(2)]
    result = schedule.reindex(main, ("write", 0))
    whole, of_first, of_second, of_result = index_maps_of(schedule.get(main))
    schedule.transform_layout(operands[0], ("write", 0), of_first)
    schedule.transform_layout(operands[1], ("write", 0), of_second)
    schedule.transform_layout(result, ("read", 0), of_result)
    schedule.transform_block_layout(main, whole)


def _spread(schedule: Any, main: Any, lanes: _Lanes) -> tuple[Any, Any]:
    """Tiles over blocks, what is in a tile over threads; returns the inner loop over threads, and that over parts."""
    batch, row, column, part = schedule.get_loops(main)
    rows = schedule.split(row, [None, lanes.rows, _EACH])
    columns = schedule.split(column, [None, lanes.columns, _EACH])
    axes = (rows, columns)
    fast, slow = axes[lanes.fast], axes[1 - lanes.fast]
    schedule.reorder(batch, slow[0], fast[0], slow[1], fast[1], part, rows[2], columns[2])
    # There may be billions of blocks along x, 65,535 along y.
    schedule.bind(schedule.fuse(batch, slow[0], fast[0]), "blockIdx.x")
    schedule.bind(slow[1], "threadIdx.y")
    schedule.bind(fast[1], "threadIdx.x")
    schedule.annotate(fast[1], "pragma_auto_unroll_max_step", 256)
    schedule.annotate(fast[1], "pragma_unroll_explicit", 1)
    return fast[1], part


def _fetch(schedule: Any, parts: Any, index: int, far: Any, lanes: _Lanes, *, by_element: bool) -> Any:
    """An operand's piece in shared memory as [s, k, row], brought by all threads in the order in which it lies."""
    block = schedule.cache_read(parts, index, "shared")
    schedule.transform_layout(block, ("write", 0), lambda s, row, k: [s, k, row])
    count = len(schedule.get_loops(block))
    schedule.compute_at(block, far, preserve_unit_loops=True)
    *others, row, element = schedule.get_loops(block)[-count:]
    if not by_element:
        schedule.reorder(element, row)
    loop = schedule.fuse(*others, *((row, element) if by_element else (element, row)))
    slow, fast = lanes.counts
    _, slow_thread, fast_thread = schedule.split(loop, [None, slow, fast])
    schedule.bind(slow_thread, "threadIdx.y")
    schedule.bind(fast_thread, "threadIdx.x")
    if by_element:
        # Threads write whole columns: lines that begin at different banks, still in fours.
        schedule.storage_align(block, 0, axis=1, factor=32, offset=_EACH)
    return block


def _tile_of(batch: Any, rows: Any, columns: Any) -> tuple[int, int]:
    """The largest tile with which there are enough blocks to fill a GPU."""
    sizes = [int(extent) if isinstance(extent, tirx.IntImm) else 0 for extent in (batch, rows, columns)]
    if not all(sizes):
        return _TILES[0]
    for tall, wide in _TILES:
        if sizes[0] * -(-sizes[1] // tall) * -(-sizes[2] // wide) >= _ENOUGH_BLOCKS:
            return tall, wide
    return _TILES[-1]


def _steps_of(length: Any) -> int:
    """Steps in a part, with which least is added up in vain at the end."""
    if not isinstance(length, tirx.IntImm):
        return _MOST_STEPS
    steps = -(-int(length) // _STEP)
    if steps <= _MOST_STEPS:
        return steps
    return min(range(_MOST_STEPS, _LEAST_STEPS - 1, -1), key=lambda size: -steps % size)


def _reduces(block: Any) -> bool:
    return any(var.iter_type == tirx.IterVar.CommReduce for var in block.iter_vars)


def _reads_elements_side_by_side(block: Any, region: Any) -> bool:
    """Whether what lies side by side in an operand is reduced, and not a row."""
    reduced = {var.var for var in block.iter_vars if var.iter_type == tirx.IterVar.CommReduce}
    return _last_variables(region) <= reduced


def _last_variables(region: Any) -> set[Any]:
    """Of the last index that is not the same for all."""
    found = [set(undefined_vars(axis.min)) for axis in region.region]
    return next((variables for variables in reversed(found) if variables), set())


def _all_variables(region: Any) -> set[Any]:
    return {variable for axis in region.region for variable in undefined_vars(axis.min)}
