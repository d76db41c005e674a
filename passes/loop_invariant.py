"""Loop(s: s' = s) { y = f(s, w) }  ==>  y = f(s, w), Loop { y }

Loop-invariant code motion: what is the same in every iteration is computed once, before the loop, and a state that the
body hands on as it came is read from outside. Forms: weights, lengths and masks of a TensorFlow ``while`` loop, which
tf2onnx carries as states; casts and transposes of a weight in the body of a recurrent cell. Bodies inside bodies are
looked at first, so that what they give up may move on.

Refuses: nothing. Random operators, nodes with subgraphs, and nodes that may fail on some numbers or shapes (integer
division, Gather, Reshape, a sum of tensors whose sizes have different names), which a loop that does not run would not
have come to, stay.
"""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from graphopt.ir import facts, provenance
from graphopt.passes._loops import CARRIED, STATES, Body, loops, unnamed
from graphopt.pipeline.base import Pass
from graphopt.rewrite import Builder, Gate, Numerics, RewriteLog, allow_all
from graphopt.rewrite.driver import commit, remove_dead


class LoopInvariant(Pass):
    """What every iteration of a loop computes anew is computed once."""

    name: ClassVar[str] = "loop-invariant"
    # The same operators on the same numbers; but of a state that became a constant a backend packs the weight of a
    # product, whose sums it then adds in another order, iteration after iteration.
    numerics: ClassVar[Numerics] = Numerics.REASSOCIATES

    def run(self, model: ir.Model, log: RewriteLog, gate: Gate = allow_all) -> bool:
        """Visit each loop once, inner ones first."""
        before = len(log.applied)

        def allowed(value: ir.Value) -> bool:
            return log.admit(gate, self.name, value.name)

        for around, loop, body in loops(model.graph):
            if loop.op_type == "Loop":
                kept = [place for place in _unchanged(loop, body) if allowed(body.inputs[STATES + place])]
                if kept:
                    loop = self._without_states(around, loop, body, kept)
            inside = Body(body)
            for node in list(body):
                moves = inside.is_movable(node) and all(map(inside.is_outside, node.inputs))
                if moves and not all(map(facts.is_constant, node.inputs)) and allowed(node.outputs[0]):
                    for value in node.inputs:
                        inside.export(value, around)
                    body.remove(node)
                    around.insert_before(loop, node)
        return len(log.applied) > before

    def _without_states(self, around: ir.Graph, loop: ir.Node, body: ir.Graph, places: list[int]) -> ir.Node:
        """The same loop without states that stay as they are; returns the node that takes its place."""
        build = Builder(loop, self.name)
        # One node at a time may hold the body: with the old one, what it holds would be taken apart.
        del loop.attributes["body"]
        outer = {place: loop.inputs[STATES + place] for place in places}
        dead = [body.outputs[CARRIED + place].producer() for place in places]
        for place in sorted(places, reverse=True):
            state = body.inputs[STATES + place]
            body.outputs.pop(CARRIED + place)
            body.inputs.pop(STATES + place)
            value = outer[place]
            assert value is not None
            for index, output in enumerate(body.outputs):
                if output is state:
                    # Handed on under another name as well; what a body gives must be made in it.
                    body.outputs[index] = self._copied(body, value, like=state)
            state.replace_all_uses_with(value)
        inputs = [value for index, value in enumerate(loop.inputs) if index - STATES not in outer]
        first = build.op("Loop", *inputs, outputs=len(loop.outputs) - len(outer), body=body)
        node = first.producer() if first is not None else None
        assert node is not None
        left = iter(node.outputs)
        replacements = [outer[place] if place in outer else next(left) for place in range(len(loop.outputs))]
        for place, (old, new) in enumerate(zip(loop.outputs, replacements, strict=True)):
            if place not in outer and new is not None:
                new.type, new.shape = old.type, None if old.shape is None else old.shape.copy()
        commit(around, loop, replacements, build, self.name)
        remove_dead(body, [producer for producer in dead if producer is not None])
        return node

    def _copied(self, body: ir.Graph, value: ir.Value, like: ir.Value) -> ir.Value:
        """A value from outside under a name of the body's own."""
        node = ir.node("Identity", [value], name=f"{like.name}/{self.name}")
        copy = node.outputs[0]
        copy.name, copy.type = node.name, like.type
        copy.shape = None if like.shape is None else like.shape.copy()
        provenance.record(node, self.name, [])
        body.append(node)
        return copy


def _unchanged(loop: ir.Node, body: ir.Graph) -> list[int]:
    """Places of the states that the body hands on as they came; at least one output stays, which a node needs."""
    found = [
        place
        for place, state in enumerate(body.inputs[STATES:])
        if unnamed(body.outputs[CARRIED + place]) is state and loop.inputs[STATES + place] is not None
    ]
    return found if len(found) < len(loop.outputs) else found[1:]
