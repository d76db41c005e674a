"""Transpose(f(Transpose(x, p)), q)  ==>  f'(x), and op(Transpose(x, p), Transpose(y, p))  ==>  Transpose(op'(x, y), p)

Forms: tf2onnx and Keras wrap every NCHW op of a channels-last model in two Transposes; what stands between two
of them (activations, sums with equally transposed data or with constants, Concat, Split, reductions, Softmax, Pad,
Slice, Squeeze, Unsqueeze) is computed in the other order of the axes, so that they cancel or merge. PyTorch's
``permute`` around LayerNorm-free blocks likewise.

A region of at most 24 ops between Transposes is moved as a whole, and only where fewer Transposes remain than before;
a value of the region that something outside reads gets one of its own. So the number always falls and a
fixed point is reached.

Refuses: nothing (a region that does not pay is left alone). Leaves alone: regions that read untransposed data other
than constants, different permutations, a Softmax that would leave the last axis.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from graphopt.ir import facts, operators
from graphopt.passes import _layouts
from graphopt.passes._layouts import Moved, Perm
from graphopt.rewrite import Builder, Rewrite

_MOST_OPS = 24


class TransposeSinking(Rewrite):
    """Ops between Transposes change the order of their axes, so that Transposes disappear."""

    name = "transpose-sinking"
    roots = tuple(sorted(_layouts.MOVABLE - operators.UNARY - {"Split", "Pad", "Slice"} | {"Transpose"}))

    def apply(self, node: ir.Node, build: Builder) -> Sequence[ir.Value | None] | None:
        """Collect the region above ``node``, count, and rebuild it."""
        lower = _layouts.perm_of(node) if node.op_type == "Transpose" else None
        if node.op_type == "Transpose":
            top = None if node.inputs[0] is None else node.inputs[0].producer()
            if lower is None or top is None or top.op_type == "Transpose" or top.graph is not node.graph:
                return None
        else:
            top = node
        region = _Region(node.graph)
        if not region.collect(top):
            return None
        return region.rebuild(node, lower, build)


class _Region:
    """Ops, each after those that it reads, whose data all comes from Transposes of one permutation."""

    def __init__(self, graph: ir.Graph | ir.Function | None) -> None:
        self.graph = graph
        self.ops: dict[ir.Node, Moved] = {}
        self.leaves: dict[ir.Node, Perm] = {}
        self.penalty = 0

    def collect(self, top: ir.Node) -> bool:
        """Walk upwards from ``top`` to Transposes; False where something else is met."""
        order: list[ir.Node] = []
        stack: list[tuple[ir.Node, bool]] = [(top, False)]
        seen: set[ir.Node] = set()
        while stack:
            node, done = stack.pop()
            if done:
                order.append(node)
                continue
            if node in seen:
                continue
            seen.add(node)
            indices = _layouts.data_inputs(node)
            if indices is None or len(seen) > _MOST_OPS:
                return False
            stack.append((node, True))
            for index, value in enumerate(node.inputs):
                if value is None or facts.is_constant(value):
                    continue
                if index not in indices:
                    return False
                producer = value.producer()
                if producer is None or producer.graph is not self.graph or producer.domain:
                    return False
                if producer.op_type == "Transpose":
                    perm = _layouts.perm_of(producer)
                    if perm is None or producer.inputs[0] is None:
                        return False
                    self.leaves[producer] = perm
                else:
                    stack.append((producer, False))
        return all(self._move(node) for node in order)

    def _move(self, node: ir.Node) -> bool:
        perms: set[Perm] = set()
        for index in _layouts.data_inputs(node) or ():
            value = node.inputs[index]
            producer = None if value is None else value.producer()
            if producer is None:
                continue
            perms.add(self.leaves[producer] if producer in self.leaves else self.ops[producer].out)
            if value is not producer.outputs[0] and producer in self.leaves:
                return False
        if len(perms) != 1:
            return False
        perm = perms.pop()
        ranks = {facts.rank(output) for output in node.outputs}
        moved = _layouts.move(node, perm)
        if moved is None or ranks != {len(moved.out)}:
            return False
        if node.op_type in operators.SOFTMAX:
            was_last = facts.attribute(node, "axis", -1) % len(perm) == len(perm) - 1
            if was_last and moved.attributes["axis"] != len(perm) - 1:
                self.penalty += 2  # kernels transpose for any other axis
        self.ops[node] = moved
        return True

    def rebuild(self, root: ir.Node, lower: Perm | None, build: Builder) -> list[ir.Value | None] | None:
        """Replacements for the outputs of ``root``, or None where no fewer Transposes would remain."""
        inside = {*self.ops, root}
        dying = sum(self._dies(leaf, inside) for leaf in self.leaves)
        exposed = [
            (node, index)
            for node in self.ops
            if node is not root
            for index, output in enumerate(node.outputs)
            if output.is_graph_output() or any(use.node not in inside for use in output.uses())
        ]
        top = root
        if lower is None:
            outs = [self.ops[root].out] * len(root.outputs)
        else:
            assert root.inputs[0] is not None
            source = root.inputs[0].producer()
            assert source is not None
            top = source
            outs = [_layouts.compose(self.ops[top].out, lower)]
        remaining = sum(out != tuple(range(len(out))) for out in outs)
        identical = [self.ops[node].out == tuple(range(len(self.ops[node].out))) for node, _ in exposed]
        added = remaining + identical.count(False) + self.penalty
        if added >= dying + (lower is not None):
            return None
        if len(self.leaves) == 1:
            build.place_before(next(iter(self.leaves)))
        elif exposed:
            if any(node is not top for node, _ in exposed):
                return None  # a reader of it may come before another leaf does
            build.place_before(top)
        made: dict[ir.Value, ir.Value] = {leaf.outputs[0]: _source(leaf) for leaf in self.leaves}
        for node, moved in self.ops.items():
            operands = {
                index: made[value]
                for index in _layouts.data_inputs(node) or ()
                if (value := node.inputs[index]) is not None and value in made
            }
            made.update(zip(node.outputs, _layouts.rebuild(node, moved, operands, build), strict=True))
        for node, index in exposed:
            old = node.outputs[index]
            build.replace(old, _transposed(made[old], self.ops[node].out, old, build))
        if lower is None:
            return [
                _transposed(made[old], out, old, build) for old, out in zip(root.outputs, outs, strict=True)
            ]
        assert root.inputs[0] is not None
        return [_transposed(made[root.inputs[0]], outs[0], root.outputs[0], build)]

    @staticmethod
    def _dies(leaf: ir.Node, inside: set[ir.Node]) -> bool:
        output = leaf.outputs[0]
        return not output.is_graph_output() and all(use.node in inside for use in output.uses())


def _source(leaf: ir.Node) -> ir.Value:
    value = leaf.inputs[0]
    assert value is not None
    return value


def _transposed(value: ir.Value, perm: Perm, like: ir.Value, build: Builder) -> ir.Value:
    if perm == tuple(range(len(perm))):
        return value
    return build.op("Transpose", value, like=like, perm=list(perm))
