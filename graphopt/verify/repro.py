"""A minimal repro of what went wrong: a small model, its inputs, and one command.

The model is cut out around the nodes that a rewrite replaced; what flows into them becomes inputs, with the
values that they have in the reference run.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import onnx_ir as ir

from graphopt.data.interface import save_feeds
from graphopt.ir import facts
from graphopt.ir import model as ir_model
from graphopt.ir.views import part_of
from graphopt.verify.reference import Reference
from graphopt.verify.session import Session

_LARGE_BYTES = 64 << 20


def write_repro(folder: Path, name: str, model: ir.Model, nodes: Iterable[str], reference: Reference) -> Path:
    """Write ``model.onnx``, ``inputs.npz`` and ``command.txt`` into a new folder.

    Args:
        folder: Parent of the new folder.
        name: Of the pass or rewrite that the command runs.
        model: The graph before the pass.
        nodes: Names of the nodes to cut out; none: the whole graph.
        reference: Gives the inputs.

    Raises:
        OSError: The folder cannot be written.
    """
    feeds = reference.trials[0].feeds
    small, inner_feeds = model, feeds
    wanted = frozenset(nodes)
    if wanted:
        small, boundary = cut_out(model, wanted)
        inner_feeds = {}
        if boundary:
            probe = ir_model.clone(model)
            by_name = {value.name: value for node in probe.graph for value in node.outputs}
            by_name |= {value.name: value for value in probe.graph.inputs}
            outputs = [by_name[value] for value in boundary]
            known = {value.name for value in probe.graph.outputs}
            probe.graph.outputs.extend(value for value in outputs if value.name not in known)
            inner_feeds = Session(probe).run(feeds, boundary)
    if sum(facts.constant_nbytes(value) for value in small.graph.initializers.values()) > _LARGE_BYTES:
        raise ValueError("the part to reproduce holds more than 64 MB of weights")
    target = folder / name
    serial = 1
    while target.exists():
        serial += 1
        target = folder / f"{name}-{serial}"
    target.mkdir(parents=True)
    ir.save(small, target / "model.onnx")
    save_feeds(target / "inputs.npz", inner_feeds)
    command = f"graphopt compile model.onnx --passes {name} --data inputs.npz --dry-run\n"
    (target / "command.txt").write_text(command, encoding="utf-8")
    return target


def cut_out(model: ir.Model, names: frozenset[str]) -> tuple[ir.Model, list[str]]:
    """The nodes called ``names`` as a model of their own, and the names of the values that flow into it.

    Constants come along. Values that nodes outside read, and those that nothing reads, become its outputs.
    """
    clone = ir_model.clone(model)
    graph = next(
        (
            graph
            for graph in (clone.graph, *clone.graph.subgraphs())
            if any(node.name in names for node in graph)
        ),
        None,
    )
    if graph is None or graph is not clone.graph:
        return model, []
    return part_of(clone, [node for node in graph if node.name in names], "repro")
