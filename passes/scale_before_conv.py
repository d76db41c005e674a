"""Conv(Mul(x, s), W, B)  ==>  Conv(x, W s, B)

Forms: Mul, Div and Neg by a scalar or per-channel constant before Conv, ConvTranspose, Gemm, MatMul or an inference
BatchNormalization, zero padding or not; directly or through ops that the factor passes through (see scale-into-conv),
through products with other tensors (squeeze and excitation), Concat along channels, and Adds of a
constant, which becomes ``b / s``: ``s x + b = s (x + b / s)``. All readers of the product are changed at once.
PP-OCRv4's learnable affine block writes ``s * hardswish(x) + b`` before padded depthwise convolutions.

Refuses: another reader that cannot take the factor in; a weight or an added constant that something else
reads; a factor of 0 before an Add; folded constants that overflow.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from graphopt.ir import facts
from graphopt.passes import _affine
from graphopt.passes._affine_linear import Affine, LinearOp, linear_at, read_affine, rounded
from graphopt.rewrite import Builder, Refuse, Rewrite


class ScaleBeforeConv(Rewrite):
    """A constant factor before linear ops becomes part of their weights."""

    name = "scale-before-conv"
    roots = ("Div", "Mul", "Neg")

    def apply(self, node: ir.Node, build: Builder) -> ir.Value | None:
        """The factor's source takes its place; each constant that must change is replaced where it stands."""
        affine = read_affine(node)
        if affine is None:
            return None
        dims = facts.dims(affine.source)
        if not affine.is_scalar and (dims is None or dims[affine.axis] != affine.size):
            return None
        plan = _Plan(node.graph)
        plan.follow(node.outputs[0], affine)
        if not plan.reached:
            return None
        if plan.obstacle is not None:
            raise Refuse(plan.obstacle)
        for old, content in plan.constants:
            build.replace(old, build.constant(content))
        return affine.source


class _Plan:
    """Constants to change so that a factor can be left out; follows all readers, up to a budget."""

    def __init__(self, graph: ir.Graph | None) -> None:
        self._graph = graph
        self._seen: set[ir.Node] = set()
        self.constants: list[tuple[ir.Value, facts.Array]] = []
        self.reached = False
        self.obstacle: str | None = None

    def follow(self, value: ir.Value, affine: Affine) -> None:
        if value.is_graph_output():
            self.obstacle = f"{value.name!r} is an output of the graph"
            return
        for use in value.uses():
            if len(self._seen) >= _affine.MOST_READERS:
                self.obstacle = self.obstacle or f"{value.name!r} has more readers than are followed"
                return
            # A second way to the same node means two factors there, or a sum of scaled and unscaled terms.
            if use.node.graph is not self._graph or use.node in self._seen:
                self.obstacle = (
                    self.obstacle or f"{use.node.op_type} reads the product in two ways or in a subgraph"
                )
                continue
            self._seen.add(use.node)
            self._reader(use.node, use.idx, value, affine)

    def _reader(self, node: ir.Node, index: int, value: ir.Value, affine: Affine) -> None:
        linear = linear_at(node)
        if linear is not None and linear.node is node and index == 0 and linear.takes_in(affine):
            self._absorb(linear, affine.scale)
            return
        added = _affine.shifted_constant(node)
        if added is not None and added[0] is value:
            content = None
            if np.all(affine.scale != 0):
                rank = facts.rank(node.outputs[0])
                content = _affine.rescaled(added[1], 1 / affine.scale, affine.axis, rank)
            if content is None:
                self._stop(node)
                return
            self._change(added[1], content)
            self.follow(node.outputs[0], affine)
        elif index == 0 and _affine.passes_through(node, affine, up=False):
            self.follow(node.outputs[0], _affine.across(node, affine, up=False))
        elif node.domain == "" and (node.op_type == "Mul" or (node.op_type == "Div" and index == 0)):
            if affine.is_scalar or facts.same_shape(value, node.outputs[0]):
                self.follow(node.outputs[0], affine)
            else:
                self._stop(node)
        elif node.domain == "" and node.op_type == "Concat":
            self._concat(node, index, affine)
        else:
            self._stop(node)

    def _absorb(self, linear: LinearOp, scale: facts.Array) -> None:
        alpha = facts.attribute(linear.node, "alpha", 1.0) if linear.kind == "Gemm" else 1.0
        self.reached = True
        if alpha == 0:
            self._stop(linear.node)
            return
        self._change(linear.weight, linear.scaled(scale, "in") / alpha)
        if linear.kind == "BatchNormalization":
            mean = linear.node.inputs[3]
            content = facts.constant(mean)
            if mean is None or content is None or np.any(scale == 0):
                self._stop(linear.node)
                return
            self._change(mean, content.astype(np.float64) / scale)

    def _concat(self, node: ir.Node, index: int, affine: Affine) -> None:
        rank = facts.rank(node.outputs[0])
        if rank is None:
            self._stop(node)
            return
        axis = facts.attribute(node, "axis", 0) % rank
        sizes = [(facts.dims(operand) or (None,) * rank)[axis] for operand in node.inputs]
        known = [size for size in sizes if size is not None]
        if len(known) != len(sizes) or not (affine.is_scalar or affine.axis == axis):
            self._stop(node)
            return
        start = sum(known[:index])
        scale = np.ones(sum(known))
        scale[start : start + known[index]] = affine.scale
        self.follow(node.outputs[0], replace(affine, scale=scale, axis=axis))

    def _change(self, constant: ir.Value, content: facts.Array) -> None:
        if len(constant.uses()) != 1 or constant.is_graph_output():
            self.obstacle = self.obstacle or f"the constant {constant.name!r} is shared"
            return
        dtype = facts.numpy_dtype(constant)
        assert dtype is not None
        self.constants.append((constant, rounded(np.asarray(content, np.float64), dtype)))

    def _stop(self, node: ir.Node) -> None:
        self.obstacle = self.obstacle or f"{node.op_type} {node.outputs[0].name!r} cannot take the factor in"
