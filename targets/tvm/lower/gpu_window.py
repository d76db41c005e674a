"""Short sums on a GPU, as of pools and depthwise convolutions: one thread adds up each, and writes what follows."""

from __future__ import annotations

import math
from typing import Any

from graphopt.targets.tvm.adapter import Schedule, tirx

MOST = 64
"""Elements of a sum that one thread adds up; DLight gives a block of threads to each sum, most of which would idle."""
_THREADS = 256


def window(function: Any) -> Any | None:
    """A function with one short sum in it, bound to blocks and threads; None where it has none, or more."""
    schedule = Schedule(function)
    blocks = list(schedule.get_child_blocks(schedule.get_sblock("root")))
    sums = [block for block in blocks if reduced_length(schedule.get(block)) != 1]
    if len(sums) != 1 or (reduced_length(schedule.get(sums[0])) or MOST + 1) > MOST:
        return None
    (main,) = sums
    place = next(
        index for index, block in enumerate(blocks) if schedule.get(block).same_as(schedule.get(main))
    )
    for block in blocks[:place]:
        schedule.compute_inline(block)
    for block in blocks[place + 1 : -1]:
        schedule.compute_inline(block)
    last, is_last = blocks[-1], place == len(blocks) - 1
    loops = schedule.get_loops(last)
    if is_last:
        kinds = [var.iter_type for var in schedule.get(main).iter_vars]
        loops = [loop for loop, kind in zip(loops, kinds, strict=True) if kind == tirx.IterVar.DataPar]
    block, thread = schedule.split(schedule.fuse(*loops), [None, _THREADS])
    schedule.bind(block, "blockIdx.x")
    schedule.bind(thread, "threadIdx.x")
    if not is_last:
        schedule.set_scope(main, 0, "local")
        schedule.compute_at(main, thread, preserve_unit_loops=True)
    count = sum(var.iter_type == tirx.IterVar.CommReduce for var in schedule.get(main).iter_vars)
    schedule.decompose_reduction(main, schedule.get_loops(main)[-count])
    return schedule.mod["main"]


def reduced_length(block: Any) -> int | None:
    """Over how many elements a block reduces, 1 where over none; None where that is not known."""
    extents = [var.dom.extent for var in block.iter_vars if var.iter_type == tirx.IterVar.CommReduce]
    return (
        math.prod(map(int, extents)) if all(isinstance(extent, tirx.IntImm) for extent in extents) else None
    )
