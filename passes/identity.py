"""Identity(x)  ==>  x;    Dropout(x)  ==>  x

Forms: every exporter; PyTorch and Paddle write Dropout for models that were exported in training mode, and
Identity for aliases, ``detach`` and weights that are shared. An Identity that makes an output of the graph
goes too, where the node before it can take that name.

Refuses: a Dropout that trains, or may; one whose mask is read. An Identity that copies a graph input, a
constant or another output to an output of the graph stays: nothing else can carry the name.
"""

from __future__ import annotations

from typing import Any, ClassVar

import onnx_ir as ir

from graphopt.ir import facts
from graphopt.ir.graphs import subgraphs_of
from graphopt.rewrite import Builder, Numerics, Refuse, Rewrite


class EliminateIdentity(Rewrite):
    """Identity, and Dropout in inference (ONNX operators of opset 1 and 12)."""

    name: ClassVar[str] = "identity"
    roots: ClassVar[tuple[str, ...]] = ("Identity", "Dropout")
    numerics: ClassVar[Numerics] = Numerics.EXACT

    def apply(self, node: ir.Node, build: Builder) -> ir.Value | None:
        """The input takes the place of the output."""
        x = node.inputs[0]
        if x is None:
            return None
        if node.op_type == "Dropout":
            _check_inference(node)
        elif node.outputs[0].is_graph_output():
            return _take_name(node, x, build)
        return x


def _check_inference(node: ir.Node) -> None:
    training = node.inputs[2] if len(node.inputs) > 2 else None
    if training is not None and facts.scalar(training) != 0.0:
        raise Refuse("training_mode is not constantly false")
    if any(mask.uses() or mask.is_graph_output() for mask in node.outputs[1:]):
        raise Refuse("the mask is read")


def _take_name(node: ir.Node, x: ir.Value, build: Builder) -> ir.Value | None:
    """Build the producer of ``x`` anew, so that its output can carry the name of the graph output."""
    maker = x.producer()
    if maker is None or maker.graph is not node.graph or x.is_graph_output() or len(maker.outputs) != 1:
        return None
    if maker.overload or subgraphs_of(maker):
        return None
    build.place_before(maker)
    attributes: dict[str, Any] = dict(maker.attributes.items())
    again = build.op(maker.op_type, *maker.inputs, domain=maker.domain, like=x, **attributes)
    build.replace(x, again)
    return again
