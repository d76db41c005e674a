"""A rewrite, and a pass with options."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from graphopt.pipeline.base import Pass
from graphopt.rewrite import (
    Builder,
    Gate,
    Match,
    Numerics,
    PatternRewrite,
    RewriteLog,
    allow_all,
    op,
    var,
)


class ReluOfAbs(PatternRewrite):
    """relu(|x|)  ==>  |x|"""

    name = "relu-of-abs"
    numerics = Numerics.EXACT
    patterns = (op("Relu", op("Abs", var("x"))),)

    def build(self, match: Match, build: Builder) -> ir.Value | None:
        """An absolute value is never negative."""
        return build.op("Abs", match.value("x"), like=match.root.outputs[0])


@dataclass(frozen=True)
class RenameOptions:
    """Options of :class:`RenameNodes`.

    Attributes:
        prefix: Put before the name of each node.
    """

    prefix: str = "node_"


class RenameNodes(Pass):
    """node "x"  ==>  node "<prefix>x" """

    name = "rename-nodes"
    numerics = Numerics.EXACT
    Options = RenameOptions

    def run(self, model: ir.Model, log: RewriteLog, gate: Gate = allow_all) -> bool:
        """Rename every node."""
        del log, gate
        for node in model.graph:
            node.name = f"{self.options.prefix}{node.name}"
        return len(model.graph) > 0
