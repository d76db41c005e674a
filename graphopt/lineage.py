"""Follows each node of the original model from pass to pass, to what stands for it in the result.

What a node stands for is written into the node itself (:mod:`graphopt.ir.provenance`); this reads it after each pass,
so that it is also known which pass took a node away without another in its place: folded into a constant, dead, or
the same as another. A node that stands for more than 32 others has forgotten some of them, which then look gone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import onnx_ir as ir

from graphopt.artifact import Made, Origin, Step
from graphopt.capture import Captured
from graphopt.ir import provenance
from graphopt.pipeline.record import CHANGED, PassRecord
from graphopt.rewrite.rewrite import site_of

CAPTURE = "capture"


class Lineage:
    """A listener of the pass manager that runs over a captured model.

    Args:
        captured: The model as it was given and in internal form.
    """

    def __init__(self, captured: Captured) -> None:
        self._captured = captured
        self._steps: dict[str, list[Step]] = {}
        self._values: dict[str, dict[str, None]] = {}
        self._standing: dict[str, tuple[str, ...]] = {}
        self.run_started()

    def run_started(self) -> None:
        """Each node stands for itself."""
        for node in self._captured.model.graph.all_nodes():
            name = node.name or ""
            self._steps[name], self._standing[name] = [], (name,)
            self._values[name] = dict.fromkeys([site_of(node)])

    def pass_started(self, name: str) -> None:
        """Nothing has happened yet."""

    def pass_ended(self, record: PassRecord, model: ir.Model) -> None:
        """Write down what stands for each node now."""
        if record.status in CHANGED:
            self._advance(record.name, model, record.replaced)

    def _advance(self, stage: str, model: ir.Model, replaced: Mapping[str, str]) -> None:
        nodes = {node.name or "": node for node in model.graph.all_nodes()}
        standing: dict[str, list[str]] = {}
        for name, node in nodes.items():
            for source in provenance.sources(node):
                standing.setdefault(source, []).append(name)
        for origin, before in self._standing.items():
            now = tuple(standing.get(origin, ()))
            if now == before:
                continue
            makers = [provenance.made_by(nodes[name]) for name in now if name not in before]
            makers += [replaced.get(name) for name in before if name not in now]
            self._standing[origin] = now
            self._steps[origin].append(Step(stage, _named(makers), list(now)))
            self._values[origin].update(dict.fromkeys(site_of(nodes[name]) for name in now))

    def finish(self, final: ir.Model, target: str) -> tuple[list[Origin], list[Made]]:
        """Where the nodes of the original went, in its order, and what the nodes of the result are.

        Args:
            final: The result; the original itself where nothing else was chosen.
            target: Whose form that is.
        """
        original = self._captured.original_model
        if final is original:
            kept = [(_name(node), node) for node in final.graph.all_nodes()]
            return (
                [Origin(name, node.op_type, [site_of(node)], []) for name, node in kept],
                [Made(name, node.op_type, "", [name]) for name, node in kept],
            )
        self._advance(target, final, {})
        known = {node.name or "": node for node in self._captured.model.graph.all_nodes()}
        made_by = {value.name: name for name, node in known.items() for value in node.outputs if value.name}
        called: dict[str, str] = {}
        origins = []
        for node in original.graph.all_nodes():
            inner = node.name if node.name in known else made_by.get(site_of(node))
            if inner is None or inner in called:
                # A constant that became a weight, a function that was written out, what only passed on a constant.
                origins.append(Origin(_name(node), node.op_type, [site_of(node)], [Step(CAPTURE, [], [])]))
                continue
            called[inner] = _name(node)
            origins.append(self._origin(called[inner], node.op_type, inner, []))
        for inner, node in known.items():
            if inner not in called:
                # What a function held, or an operator of an older opset is written as.
                called[inner] = inner
                origins.append(self._origin(inner, node.op_type, inner, [Step(CAPTURE, [], [inner])]))
        return origins, [
            Made(
                node.name or "",
                node.op_type,
                provenance.made_by(node) or "",
                [called[source] for source in provenance.sources(node) if source in called],
            )
            for node in final.graph.all_nodes()
        ]

    def _origin(self, name: str, op: str, inner: str, first: list[Step]) -> Origin:
        return Origin(name, op, list(self._values[inner]), [*first, *self._steps[inner]])


def _name(node: ir.Node) -> str:
    return node.name or site_of(node)


def _named(makers: Iterable[str | None]) -> list[str]:
    return list(dict.fromkeys(maker for maker in makers if maker))


__all__ = ["CAPTURE", "Lineage"]
