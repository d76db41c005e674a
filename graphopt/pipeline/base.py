"""What a pass is.

A pass changes a model in place. It has a name, typed options (a frozen dataclass, whose fields are the keys of
``name{key=value}`` on the command line and of the configuration file), and a numerics class. It is also an
``onnx_ir.passes.PassBase``, so passes of either kind run in either pass manager.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import onnx_ir as ir
import onnx_ir.passes

from graphopt.rewrite import Driver, Gate, Numerics, Rewrite, RewriteLog, allow_all


@dataclass(frozen=True)
class NoOptions:
    """A pass without options."""


class Pass(onnx_ir.passes.InPlacePass):
    """One transformation of a whole model.

    Class attributes:
        name: As on the command line.
        numerics: What the pass may do to the numbers.
        native: Whether it calls native code that could crash or hang; such a pass runs in a process of its own.
        Options: The frozen dataclass of its options.
    """

    name: ClassVar[str]
    numerics: ClassVar[Numerics] = Numerics.REASSOCIATES
    native: ClassVar[bool] = False
    Options: ClassVar[type[Any]] = NoOptions

    def __init__(self, options: Any = None) -> None:
        super().__init__()
        self.options = self.Options() if options is None else options
        self.after: Pass | None = None
        """Where it is given, this pass runs only after that one has changed the model."""

    @abc.abstractmethod
    def run(self, model: ir.Model, log: RewriteLog, gate: Gate = allow_all) -> bool:
        """Transform ``model`` in place; returns whether anything changed.

        Args:
            model: The model.
            log: Receives each application, refusal and failure, in order.
            gate: To be asked before each separable change, where the pass makes such; a change that it
                declines is left out.
        """

    def declines(self, model: ir.Model) -> str:
        """Why this pass leaves ``model`` alone, where a look tells; else empty. Asked before a clone is made."""
        del model
        return ""

    def call(self, model: ir.Model) -> onnx_ir.passes.PassResult:
        """Run as a pass of onnx-ir, without a pass manager of graphopt."""
        return onnx_ir.passes.PassResult(model, self.run(model, RewriteLog()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.options!r})"


class RewritePass(Pass):
    """Rewrites that run together until none applies any more.

    Args:
        name: Of the pass, in reports.
        rewrites: Tried at each node in this order.
    """

    def __init__(self, name: str, rewrites: Sequence[Rewrite]) -> None:
        super().__init__()
        self.name = name  # type: ignore[misc]
        self.rewrites = tuple(rewrites)
        exact = all(rewrite.numerics is Numerics.EXACT for rewrite in self.rewrites)
        self.numerics = Numerics.EXACT if exact else Numerics.REASSOCIATES  # type: ignore[misc]

    def run(self, model: ir.Model, log: RewriteLog, gate: Gate = allow_all) -> bool:
        driver = Driver(self.rewrites, gate)
        driver.log = log
        before = len(log.applied)
        driver.run(model)
        return len(log.applied) > before

    def __repr__(self) -> str:
        return f"RewritePass({self.name!r}, {len(self.rewrites)} rewrites)"


class ForeignPass(Pass):
    """Any ``onnx_ir.passes.PassBase``, run as a pass of graphopt.

    Args:
        inner: The pass. What it may do to the numbers is unknown, so it is held to the noise floor like any
            pass that reassociates.
    """

    def __init__(self, inner: onnx_ir.passes.PassBase) -> None:
        super().__init__()
        self.inner = inner
        self.name = type(inner).__name__  # type: ignore[misc]

    def run(self, model: ir.Model, log: RewriteLog, gate: Gate = allow_all) -> bool:
        del log, gate
        result = self.inner(model)
        if result.model is not model:
            replace_content(model, result.model)
        return bool(result.modified)


def replace_content(model: ir.Model, other: ir.Model) -> None:
    """Let ``model`` hold what ``other`` holds (``other`` must not be used afterwards)."""
    model.graph = other.graph
    model.functions.clear()
    model.functions.update(other.functions)
    model.ir_version = other.ir_version
    model.metadata_props.clear()
    model.metadata_props.update(other.metadata_props)


def as_pass(candidate: object) -> Pass:
    """A pass of graphopt from one of graphopt, a rewrite, or any ``onnx_ir.passes.PassBase``."""
    if isinstance(candidate, Pass):
        return candidate
    if isinstance(candidate, Rewrite):
        return RewritePass(candidate.name, (candidate,))
    if isinstance(candidate, onnx_ir.passes.PassBase):
        return ForeignPass(candidate)
    raise TypeError(f"{candidate!r} is no pass: expected a graphopt or onnx_ir pass, or a rewrite")
