"""Applies rewrites to a graph until none applies any more.

Sweeps over all nodes, subgraphs included, in topological order. At each node only the rewrites whose root is of
its op type are tried; a node that a rewrite made, and the readers of what it made, are looked at again
at once. The cost is linear in the size of the graph for a bounded number of sweeps.

Every application passes a *gate* first. The pass manager uses it to find the one application that breaks the
numbers, and to run the rest without it; since rewrites are deterministic, the same graph and the same gate give
the same result.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from graphopt.errors import PassFailedError
from graphopt.ir import check, kernels, provenance
from graphopt.ir.graphs import free_name, inner_nodes
from graphopt.rewrite.rewrite import Builder, Refuse, Rewrite, site_of

_MOST_SWEEPS = 12
_WIDE = 64


@dataclass(frozen=True)
class Application:
    """One rewrite at one place: the name of the rewrite, of the value it replaces, and which time it is there."""

    rewrite: str
    site: str
    occurrence: int = 0

    def __str__(self) -> str:
        return f"{self.rewrite} at {self.site!r}"


@dataclass(frozen=True)
class Refusal:
    """A rewrite that matched but was not done, and why."""

    rewrite: str
    site: str
    reason: str


@dataclass(frozen=True)
class RewriteFailure:
    """A rewrite that raised; nothing of it was done."""

    rewrite: str
    site: str
    error: str


@dataclass
class RewriteLog:
    """What happened while rewriting, in order.

    Attributes:
        applied: Applications.
        replaced: Names of the nodes that an application took the place of.
        refused: Rewrites that matched and were not done.
        failed: Rewrites that raised.
    """

    applied: list[Application] = field(default_factory=list)
    replaced: dict[Application, tuple[str, ...]] = field(default_factory=dict)
    refused: list[Refusal] = field(default_factory=list)
    failed: list[RewriteFailure] = field(default_factory=list)

    def admit(self, gate: Gate, rewrite: str, site: str | None) -> bool:
        """Whether a gate lets a change be made, which is on record then."""
        application = Application(rewrite, site or "")
        if not gate(application):
            return False
        self.applied.append(application)
        return True

    def counts(self) -> dict[str, int]:
        """Number of applications of each rewrite, most frequent first."""
        return dict(collections.Counter(entry.rewrite for entry in self.applied).most_common())


Gate = Callable[[Application], bool]


def allow_all(application: Application) -> bool:
    """The gate that lets every application through."""
    del application
    return True


class Driver:
    """Runs a set of rewrites over a model, in place.

    Args:
        rewrites: Tried in this order at each node.
        gate: Asked before each application; False skips it.
    """

    def __init__(self, rewrites: Sequence[Rewrite], gate: Gate = allow_all) -> None:
        self._gate = gate
        self._by_root: dict[str, list[Rewrite]] = collections.defaultdict(list)
        for rewrite in rewrites:
            for root in rewrite.roots:
                self._by_root[root].append(rewrite)
        self._imports: dict[str, int] = {}
        self._broken: set[str] = set()
        self._refused: set[tuple[str, str]] = set()
        self._occurrences: collections.Counter[tuple[str, str]] = collections.Counter()
        self.log = RewriteLog()

    def run(self, model: ir.Model) -> RewriteLog:
        """Rewrite the model's graph and its subgraphs until nothing applies any more."""
        self._imports = model.graph.opset_imports
        graphs = [model.graph, *model.graph.subgraphs()]
        budget = 8 * sum(len(graph) for graph in graphs) + 1000
        for _ in range(_MOST_SWEEPS):
            before = len(self.log.applied)
            for graph in graphs:
                self._sweep(graph, budget)
            if len(self.log.applied) == before:
                break
            graphs = [model.graph, *model.graph.subgraphs()]
        return self.log

    def _sweep(self, graph: ir.Graph, budget: int) -> None:
        for node in graph:
            if not self._by_root.get(_key(node)):
                continue
            again: collections.deque[ir.Node] = collections.deque((node,))
            while again:
                if len(self.log.applied) > budget:
                    raise PassFailedError(
                        f"the rewrites reach no fixed point (the last was {self.log.applied[-1]})",
                        hint="two rewrites undo each other: disable one of them, fuse{disable=[...]}",
                    )
                candidate = again.popleft()
                if candidate.graph is graph:
                    again.extend(self._try(candidate, graph))

    def _try(self, node: ir.Node, graph: ir.Graph) -> Iterable[ir.Node]:
        site = site_of(node)
        for rewrite in self._by_root.get(_key(node), ()):
            if rewrite.name in self._broken:
                continue
            occurrence = self._occurrences[rewrite.name, site]
            build = Builder(node, rewrite.name, occurrence)
            try:
                result = rewrite.apply(node, build)
                if result is not None:
                    _require_kernels(build.nodes, self._imports.get(""))
            except Refuse as refusal:
                build.discard()
                if (rewrite.name, site) not in self._refused:
                    self._refused.add((rewrite.name, site))
                    self.log.refused.append(Refusal(rewrite.name, site, refusal.reason))
                continue
            except Exception as error:
                build.discard()
                self._broken.add(rewrite.name)
                described = f"{type(error).__name__}: {error}"
                self.log.failed.append(RewriteFailure(rewrite.name, site, described))
                continue
            if result is None:
                build.discard()
                continue
            application = Application(rewrite.name, site, occurrence)
            if not self._gate(application):
                build.discard()
                continue
            self._occurrences[rewrite.name, site] += 1
            for made in build.nodes:
                # Vendor operators have one version, and a model that gets its first must say so.
                self._imports.setdefault(made.domain, 1)
            replacements = [result] if isinstance(result, ir.Value) else list(result)
            self.log.applied.append(application)
            replaced = _between(_pairs(node, replacements, build), build.nodes)
            self.log.replaced[application] = tuple(origin.name for origin in replaced if origin.name)
            return commit(graph, node, replacements, build, rewrite.name)
        return ()


def _require_kernels(nodes: Sequence[ir.Node], opset: int | None) -> None:
    """Refuse a node that the opset of the model lacks, or that ONNX Runtime does not run at that opset.

    A model stays at an older opset where one of its operators has no kernel, or a worse one, at the internal one.
    """
    for node in nodes:
        if opset is None or node.domain:
            continue
        if check.schema_of("", node.op_type, opset) is None:
            raise Refuse(f"{node.op_type} is newer than opset {opset}, at which the model stays")
        if opset > kernels.newest_opsets().get(node.op_type, opset):
            raise Refuse(f"the installed ONNX Runtime does not run {node.op_type} of opset {opset}")


def _key(node: ir.Node) -> str:
    return f"{node.domain}::{node.op_type}" if node.domain else node.op_type


def commit(
    graph: ir.Graph,
    root: ir.Node,
    replacements: Sequence[ir.Value | None],
    build: Builder,
    maker: str,
) -> list[ir.Node]:
    """Put what a rewrite built in the place of ``root``; returns the nodes worth looking at again.

    Names stay: a value that takes the place of another also takes its name, so that graph outputs keep theirs.
    """
    pairs = _pairs(root, replacements, build)
    replaced = _between(pairs, build.nodes)

    for value in build.initializers:
        _register(graph, value)
    graph.insert_before(build.anchor, build.nodes)
    for node in build.nodes:
        provenance.record(node, maker, replaced)

    new_nodes = set(build.nodes)
    for old, new in pairs:
        if old is new:
            continue
        takes_name = new.producer() in new_nodes and not new.is_graph_output()
        if old.is_graph_output() and not takes_name:
            # The caller sees this name, and the new value already has one that must stay.
            identity = ir.node("Identity", [new], name=f"{old.name}/{maker}_identity")
            identity.outputs[0].type, identity.outputs[0].shape = old.type, old.shape
            provenance.record(identity, maker, replaced)
            producer = root if old.producer() is None else old.producer()
            assert producer is not None
            graph.insert_after(producer, identity)
            new, takes_name = identity.outputs[0], True
        if new.type is None:
            new.type = old.type
        if new.shape is None or (old.shape is not None and takes_name):
            new.shape = old.shape.copy() if old.shape is not None else new.shape
        name = old.name
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        if takes_name:
            old.name = None if old.producer() is None else f"{name}/dead"
            new.name = name
        _drop_unread(old)

    look_again = list(build.nodes)
    for _, new in pairs:
        consumers = new.consumers()
        if len(consumers) <= _WIDE:
            look_again += consumers
    dead = [old.producer() for old, _ in pairs]
    look_again += remove_dead(graph, [root, *(node for node in dead if node is not None)])
    return look_again


def _pairs(
    root: ir.Node, replacements: Sequence[ir.Value | None], build: Builder
) -> list[tuple[ir.Value, ir.Value]]:
    pairs = [(old, new) for old, new in zip(root.outputs, replacements, strict=False) if new is not None]
    return pairs + build.extra_replacements


def _register(graph: ir.Graph, value: ir.Value) -> None:
    """Constants live in the outermost graph that can see them: the one that is rewritten."""
    name = value.name
    assert name is not None
    value.name = free_name(name, graph.initializers, ".")
    graph.register_initializer(value)


def _between(pairs: Sequence[tuple[ir.Value, ir.Value]], made: Sequence[ir.Node]) -> list[ir.Node]:
    """The nodes that the replaced values were computed by, down to what the new nodes read."""
    inputs = {value for node in made for value in node.inputs if value is not None}
    inputs |= {new for _, new in pairs}
    found: dict[ir.Node, None] = {}
    stack = [old.producer() for old, _ in pairs]
    while stack and len(found) < 64:
        node = stack.pop()
        if node is None or node in found:
            continue
        found[node] = None
        stack += [value.producer() for value in node.inputs if value is not None and value not in inputs]
    return list(found)


def remove_dead(graph: ir.Graph, candidates: Iterable[ir.Node]) -> list[ir.Node]:
    """Remove those of ``candidates``, and what only they needed, whose outputs nothing reads.

    Returns the remaining readers of values that lost one, for which a pattern may match only now.
    """
    bereft: dict[ir.Node, None] = {}
    stack = list(candidates)
    while stack:
        node = stack.pop()
        if node.graph is not graph or not is_dead(node):
            continue
        inputs = list(dict.fromkeys(value for value in _reads(node) if value is not None))
        for inner in inner_nodes(node):
            for index in range(len(inner.inputs)):
                inner.replace_input_with(index, None)
        graph.remove(node, safe=True)
        for value in inputs:
            producer = value.producer()
            if producer is not None:
                stack.append(producer)
            if value.is_initializer() and not value.uses() and not value.is_graph_input():
                _drop_unread(value)
            elif len(value.uses()) <= _WIDE:
                bereft |= dict.fromkeys(value.consumers())
    return [node for node in bereft if node.graph is graph]


def _drop_unread(value: ir.Value) -> None:
    """Take ``value`` out of the initializers of its graph, where it is one that nothing reads any more."""
    if not value.is_initializer() or value.uses() or value.is_graph_input() or value.is_graph_output():
        return
    owner = value.graph
    if owner is not None:
        assert value.name is not None
        owner.initializers.pop(value.name)


def is_dead(node: ir.Node) -> bool:
    """Whether nothing reads any output of ``node`` and none is an output of the graph."""
    return not any(output.uses() or output.is_graph_output() for output in node.outputs)


def _reads(node: ir.Node) -> Iterator[ir.Value | None]:
    yield from node.inputs
    for inner in inner_nodes(node):
        yield from inner.inputs
