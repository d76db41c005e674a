"""Large constants of a module  ==>  parameters behind its inputs, to be kept in a file of their own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from graphopt.targets.tvm.adapter import Constant, IRModule, relax
from graphopt.targets.tvm.executable import ALIGNMENT

_LEAST = 1 << 12
"""Bytes below which a constant stays in the library, whatever all of them come to."""
_MAIN = "main"


def taken_out(module: IRModule, most: int) -> tuple[IRModule, list[npt.NDArray[Any]]]:
    """The module with its larger constants as parameters, and what they hold, in order.

    Args:
        module: Functions are fused, so that constants are operands of what is called.
        most: Bytes that all constants may have to stay where they are.
    """
    finder = _Finder()
    finder.visit_expr(module[_MAIN])
    if sum(map(size_of, finder.found)) <= most:
        return module, []
    mover = _Mover([constant for constant in finder.found if size_of(constant) >= _LEAST])
    function = mover.visit_expr(module[_MAIN])
    made = IRModule(dict(module.functions_items()), attrs=module.attrs)
    made[_MAIN] = relax.Function(
        [*function.params, *mover.parameters.values()],
        function.body,
        function.ret_ty,
        function.is_pure,
        function.attrs,
    )
    return made, [constant.value.numpy() for constant in mover.parameters]


@relax.expr_functor.visitor
class _Finder(relax.PyExprVisitor):  # type: ignore[misc]
    """The constants of a function, each once."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[Constant, None] = {}

    def visit_generic_const_(self, op: Constant) -> None:
        self.found[op] = None


@relax.expr_functor.mutator
class _Mover(relax.PyExprMutator):  # type: ignore[misc]
    """Constants become parameters."""

    def __init__(self, constants: Sequence[Constant]) -> None:
        super().__init__()
        self.parameters = {
            constant: relax.Var(f"graphopt_weight_{place}", constant.ty)
            for place, constant in enumerate(constants)
        }

    def visit_generic_const_(self, op: Constant) -> Any:
        return self.parameters.get(op, op)


def write(arrays: Sequence[npt.NDArray[Any]], file: Path) -> list[dict[str, Any]]:
    """Write arrays one behind the other, each from an aligned place.

    Returns:
        Their types, shapes and places, as :func:`graphopt.targets.tvm.executable.mapped` wants them.
    """
    entries = []
    with file.open("wb") as stream:
        for array in arrays:
            stream.write(bytes(-stream.tell() % ALIGNMENT))
            entries.append({"dtype": str(array.dtype), "shape": list(array.shape), "offset": stream.tell()})
            stream.write(np.ascontiguousarray(array).data)
    return entries


def size_of(constant: Any) -> int:
    """Bytes of a constant."""
    data = constant.value
    return int(np.prod(data.shape, dtype=np.int64)) * np.dtype(str(data.dtype)).itemsize
