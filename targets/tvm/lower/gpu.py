"""Loops for GPUs without tuning, by DLight, and the same loops for a processor: one thread after the other.

What a GPU's threads do side by side is done here in loops, in the very order in which the schedule nests them; so a
machine without a GPU computes what the kernels would, index by index and sum by sum, before their threads are told
apart.
"""

from __future__ import annotations

import math
from typing import Any

from graphopt.targets.tvm.adapter import (
    GPU_RULES,
    IRModule,
    SBlock,
    SBlockRealize,
    Schedule,
    ScheduleError,
    Target,
    realize_of,
    tirx,
    undefined_vars,
)
from graphopt.targets.tvm.executable import last_words
from graphopt.targets.tvm.lower.gpu_product import product
from graphopt.targets.tvm.lower.schedule import for_processor
from graphopt.targets.tvm.lower.tiles import Vectors

_SCHEDULED = "tirx.is_scheduled"
_SHORT = 64
"""Elements that one thread adds up rather than a block of threads: windows of pools and depthwise convolutions."""
_WAS_THREAD = "graphopt.thread"


class NoLoopsError(Exception):
    """No rule of DLight takes a function."""


class _NotFollowedError(Exception):
    """Loops cannot do what the threads of a function do."""


def scheduled(module: IRModule, target: Target) -> IRModule:
    """Every loop nest of a module with its loops bound to blocks and threads.

    Raises:
        NoLoopsError: Names the function that no rule takes.
    """
    changed = {}
    for name, function in module.functions_items():
        if isinstance(function, tirx.PrimFunc) and not function.attrs.get(_SCHEDULED, 0):
            changed[name] = _bound(name.name_hint, function, target)
    for name, function in changed.items():
        module[name] = function
    return module


def _bound(name: str, function: Any, target: Target) -> Any:
    why = "no rule takes it"
    own = _own(function)
    if own is not None:
        return own.with_attr(_SCHEDULED, True)
    for rule in _rules_for(function):
        try:
            found = rule().apply(function, target, False)
        except Exception as error:  # a rule that does not foresee a function raises whatever it comes to
            why = f"{rule.__name__}: {last_words(error)}"
            continue
        if found is not None:
            schedule = found[0] if isinstance(found, list) else found
            return schedule.mod["main"].with_attr(_SCHEDULED, True)
    raise NoLoopsError(f"there are no loops for {name} on a GPU: {why}")


def _own(function: Any) -> Any | None:
    """Loops of graphopt's own; None where DLight's are used."""
    try:
        return product(function)
    except Exception:  # as above
        return None


def _rules_for(function: Any) -> tuple[Any, ...]:
    """DLight's rules in its order; sums so short that threads would idle go before them to one thread each."""
    schedule = Schedule(function)
    try:
        blocks = _blocks_in(schedule, schedule.get_sblock("root"))
    except Exception:  # functions that are no loop nests have no root
        return GPU_RULES
    lengths = [_reduced_length(schedule.get(block)) for block in blocks]
    if all(length is not None and length <= _SHORT for length in lengths):
        products, *others, alone = GPU_RULES
        return (products, alone, *others)
    return GPU_RULES


def _reduced_length(block: Any) -> int | None:
    """Over how many elements a block reduces; None where that is not known."""
    extents = [var.dom.extent for var in block.iter_vars if var.iter_type == tirx.IterVar.CommReduce]
    return (
        math.prod(map(int, extents)) if all(isinstance(extent, tirx.IntImm) for extent in extents) else None
    )


def one_after_the_other(bound: IRModule, plain: IRModule, vectors: Vectors) -> tuple[IRModule, int]:
    """The same functions for a processor: blocks on its cores, the threads of a block in loops.

    Args:
        bound: From :func:`scheduled`.
        plain: The functions before that: where threads share a sum in a way that loops cannot follow, the function gets
            a processor's own loops.

    Returns:
        The module, and how many functions follow the threads.
    """
    made = IRModule(dict(bound.functions_items()), attrs=bound.attrs)
    followed = 0
    for name, function in bound.functions_items():
        if not isinstance(function, tirx.PrimFunc):
            continue
        try:
            made[name] = _in_shares(function.with_body(_serial(function.body, spread=True)))
            followed += 1
        except (ScheduleError, _NotFollowedError):
            made[name] = for_processor(plain[name.name_hint], vectors)
    return made, followed


def _in_shares(function: Any) -> Any:
    """Sums that threads share are added up as they do it: each its own part, then the parts."""
    schedule = Schedule(function)
    for block in _blocks_in(schedule, schedule.get_sblock("root")):
        reduced = {
            var.var for var in schedule.get(block).iter_vars if var.iter_type == tirx.IterVar.CommReduce
        }
        adding = [loop for loop in schedule.get_loops(block) if _leads_to(schedule, loop, block, reduced)]
        shared = [loop for loop in adding if _WAS_THREAD in schedule.get(loop).annotations]
        if len(shared) == sum(not _is_single(schedule, loop) for loop in adding):
            continue  # What the threads hold, one number each, may be added up in any order.
        if shared and not _is_whole(schedule, block):
            # TVM makes parts of a sum with a condition that are wrong.
            raise _NotFollowedError
        for loop in shared:
            schedule.unannotate(loop, _WAS_THREAD)
            schedule.rfactor(loop, 0)
    return schedule.mod["main"]


def _blocks_in(schedule: Any, block: Any) -> list[Any]:
    inside = list(schedule.get_child_blocks(block))
    return [found for child in inside for found in (child, *_blocks_in(schedule, child))]


def _leads_to(schedule: Any, loop: Any, block: Any, variables: set[Any]) -> bool:
    """Whether a loop counts one of these variables of a block."""
    counter = schedule.get(loop).loop_var
    pairs = zip(schedule.get(block).iter_vars, realize_of(schedule, block).iter_values, strict=True)
    return any(var.var in variables and counter in undefined_vars(value) for var, value in pairs)


def _is_single(schedule: Any, loop: Any) -> bool:
    extent = schedule.get(loop).extent
    return isinstance(extent, tirx.IntImm) and int(extent) == 1


def _is_whole(schedule: Any, block: Any) -> bool:
    predicate = realize_of(schedule, block).predicate
    return isinstance(predicate, tirx.IntImm) and bool(int(predicate))


def _serial(statement: Any, *, spread: bool) -> Any:
    """A statement with loops where it has threads; the outermost loop over blocks goes over the cores."""
    if isinstance(statement, tirx.For):
        kind, thread, annotations = statement.kind, statement.thread_binding, statement.annotations
        if kind == tirx.ForKind.THREAD_BINDING:
            is_first = spread and thread.thread_tag.startswith("blockIdx")
            kind = tirx.ForKind.PARALLEL if is_first else tirx.ForKind.SERIAL
            annotations = {_WAS_THREAD: 1} if thread.thread_tag.startswith("threadIdx") else {}
            thread, spread = None, spread and not is_first
        body = _serial(statement.body, spread=spread)
        return tirx.For(statement.loop_var, statement.min, statement.extent, kind, body, thread, annotations)
    if isinstance(statement, tirx.SeqStmt):
        return tirx.SeqStmt([_serial(part, spread=spread) for part in statement.seq])
    if isinstance(statement, tirx.IfThenElse):
        otherwise = None if statement.else_case is None else _serial(statement.else_case, spread=spread)
        return tirx.IfThenElse(statement.condition, _serial(statement.then_case, spread=spread), otherwise)
    if isinstance(statement, SBlockRealize):
        block = _serial(statement.block, spread=spread)
        return SBlockRealize(statement.iter_values, statement.predicate, block)
    if isinstance(statement, SBlock):
        first = None if statement.init is None else _serial(statement.init, spread=spread)
        return SBlock(
            statement.iter_vars, statement.reads, statement.writes, statement.name_hint,
            _serial(statement.body, spread=spread), first, statement.alloc_buffers, statement.match_buffers,
            statement.annotations,
        )  # fmt: skip
    return statement
