"""Whether the graph that an exporter wrote computes what the program does that it was made from.

Everything else is compared with that graph; what the exporter got wrong would pass. So graph and program run on the
example inputs, and on these with every dynamic dimension cut or repeated to another size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from graphopt.capture.captured import Captured
from graphopt.data.interface import Array, Feeds, inputs_of
from graphopt.data.synthesize import resized, sizes_of
from graphopt.errors import TargetError
from graphopt.ir import model as ir_model
from graphopt.verify.compare import Status, compare_output
from graphopt.verify.session import Session

Program = Callable[[Feeds], Sequence[Array]]

_MOST_BYTES = 512 << 20
"""Of weights: a program and a graph are two copies of them."""
_TOLERANCE = {2: 3e-2, 4: 1e-3, 8: 1e-3}
"""Of an output's largest value, by bytes of its type: two libraries round otherwise, through many layers."""
_OTHER_SIZES: tuple[Callable[[int], int], ...] = (lambda size: 2 * size, lambda size: size + 1)


def export_warnings(captured: Captured) -> list[str]:
    """Where the exported graph fails or computes something else, one sentence each; nothing where it cannot be told
    (a program that draws random numbers, whose outputs are no tensors, or that is large)."""
    program, example = captured.program, dict(captured.example)
    if program is None or not example or ir_model.nbytes(captured.original_model) > _MOST_BYTES:
        return []
    specs = inputs_of(captured.original_model)
    sizes = {key: size for key, size in sizes_of(example, specs).items() if size}
    trials = [("on the example inputs", example)]
    for other in _OTHER_SIZES if sizes else ():
        changed = {key: other(size) for key, size in sizes.items()}
        where = "with " + ", ".join(f"{key} = {size}" for key, size in changed.items())
        trials.append((where, resized(example, specs, changed)))
    try:
        session = Session(captured.original_model)
    except TargetError:
        return []  # Told where the reference is built.
    if _is_random(program, example):
        return []
    found: list[str] = []
    for where, feeds in trials:
        problem = _problem(program, session, feeds)
        if problem:
            found.append(f"{where} torch's exported graph {problem}: the exporter, not graphopt, made it so")
    return found


def _is_random(program: Program, feeds: Feeds) -> bool:
    """Whether two runs of the program differ; where it does not run at all, neither does."""
    try:
        first, second = program(feeds), program(feeds)
    except Exception:  # whatever a user's module raises
        return False
    return not all(
        np.array_equal(one, other, equal_nan=one.dtype.kind == "f")
        for one, other in zip(first, second, strict=True)
    )


def _problem(program: Program, session: Session, feeds: Feeds) -> str:
    """What is wrong with the graph on these inputs; empty where nothing is, or the program does not take them."""
    try:
        wanted = program(feeds)
    except Exception:  # as above
        return ""
    try:
        got = list(session.run(feeds).values())
    except TargetError as error:
        return f"fails where the module runs ({error.message})"
    if len(got) != len(wanted):
        return ""
    for name, result, reference in zip(session.output_names, got, wanted, strict=True):
        found = compare_output(name, reference, result, None, float("inf"))
        allowed = _TOLERANCE[reference.dtype.itemsize if reference.dtype.kind == "f" else 8]
        if found.relative_error > allowed:
            return f"differs from the module in {name!r} by {found.relative_error:.1e} of its largest value"
        if found.status is Status.DIFFERENT and not found.relative_error:
            return f"differs from the module: {found.reason}"
    return ""


__all__ = ["export_warnings"]
