"""Loops for GPUs without tuning, by DLight, and the same loops for a processor: one thread after the other.

What a GPU's threads do side by side is done here in loops, in the very order in which the schedule nests them; so a
machine without a GPU computes what the kernels would, index by index and sum by sum, before their threads are told
apart.
"""

from __future__ import annotations

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
from graphopt.targets.tvm.executable import reason_of
from graphopt.targets.tvm.lower.gpu_product import product
from graphopt.targets.tvm.lower.gpu_window import window
from graphopt.targets.tvm.lower.schedule import SCHEDULED, each_function, for_processor
from graphopt.targets.tvm.lower.tiles import Vectors

_MOST_BLOCKS = 65535
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
    return each_function(module, lambda name, function: _bound(name, function, target))


def _bound(name: str, function: Any, target: Target) -> Any:
    why = "no rule takes it"
    own = _own(function)
    if own is not None:
        return own.with_attr(SCHEDULED, True)
    for rule in GPU_RULES:
        try:
            found = rule().apply(function, target, False)
        except Exception as error:  # a rule that does not foresee a function raises whatever it comes to
            why = f"{rule.__name__}: {reason_of(error)}"
            continue
        if found is None:
            continue
        made = (found[0] if isinstance(found, list) else found).mod["main"]
        if _fits(made):
            return made.with_attr(SCHEDULED, True)
        why = f"{rule.__name__}: it has more blocks than a GPU launches"
    raise NoLoopsError(f"there are no loops for {name} on a GPU: {why}")


def _own(function: Any) -> Any | None:
    """Loops of graphopt's own; None where DLight's are used."""
    for rule in (product, window):
        try:
            made = rule(function)
        except Exception:  # as above
            continue
        if made is not None and _is_bound(made) and _fits(made):
            return made
    return None


def _is_bound(function: Any) -> bool:
    """Whether every loop nest lies in threads."""
    schedule = Schedule(function)
    nests = schedule.get_child_blocks(schedule.get_sblock("root"))
    return all(
        any(schedule.get(loop).kind == tirx.ForKind.THREAD_BINDING for loop in schedule.get_loops(block))
        for block in nests
    )


def _fits(function: Any) -> bool:
    """Whether no more blocks are counted along y and z than there can be (CUDA C++ Programming Guide, limits)."""
    return all(
        not isinstance(loop.extent, tirx.IntImm) or int(loop.extent) <= _MOST_BLOCKS
        for loop in _threads_of(function.body)
        if loop.thread_binding.thread_tag in ("blockIdx.y", "blockIdx.z")
    )


def _threads_of(statement: Any) -> list[Any]:
    """Loops that are bound to blocks or threads."""
    if isinstance(statement, tirx.For):
        own = [statement] if statement.kind == tirx.ForKind.THREAD_BINDING else []
        return own + _threads_of(statement.body)
    if isinstance(statement, tirx.SeqStmt):
        return [loop for part in statement.seq for loop in _threads_of(part)]
    if isinstance(statement, SBlockRealize):
        return _threads_of(statement.block.body)
    return []


def keeps_memory_of_its_own(module: IRModule) -> bool:
    """Whether a function has memory between its kernels, which TVM takes when it is called: no graph may hold it."""
    return any(
        buffer.scope() in ("", "global")
        for _, function in module.functions_items()
        if isinstance(function, tirx.PrimFunc)
        for buffer in _root_buffers(function)
    )


def _root_buffers(function: Any) -> list[Any]:
    realize = function.body
    return list(realize.block.alloc_buffers) if isinstance(realize, SBlockRealize) else []


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
            made[name] = for_processor(_loops_only(name.name_hint, plain), vectors)
    return made, followed


def _loops_only(name: str, plain: IRModule) -> Any:
    """A function as it was before it was bound.

    Raises:
        NoLoopsError: It was written for threads.
    """
    function = plain[name]
    try:
        _serial(function.body, spread=True)
    except _NotFollowedError as error:
        raise NoLoopsError(f"{name} was written for threads") from error
    return function


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
    if isinstance(statement, tirx.BufferStore):
        return statement
    # Instructions of a GPU, or threads that no loop counts.
    raise _NotFollowedError
