"""graphopt's matcher against onnxscript's: time, and what is left behind, over the size of the graph. One core.

    python benchmarks/matching.py [--nodes 100000] [--output FILE]

*Search*: 40 rules of three operators each, the innermost of which occurs nowhere, over a chain of elementwise and
MatMul nodes, so that every node is looked at and nothing is rewritten; onnxscript's rule set as it is, and the same
rules looked up by the operator of their root. *Two outputs*: one rule that replaces a pair of readers of one value.
*Provenance*: characters of metadata on the nodes after one rule has rewritten a chain of additions into another order.
*Operand order*: how many rules ``commute=True`` makes of ten. Prints a table and writes JSON.
"""

from __future__ import annotations

import argparse
import collections
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir
from _results import FOLDER, processor, write
from rich.console import Console
from rich.table import Table

from graphopt.rewrite import Builder, Match, PatternRewrite, Rewrite, op, var
from graphopt.rewrite.driver import Driver

UNARY = ("Relu", "Sigmoid", "Tanh", "Exp")
BINARY = ("Add", "Mul", "Sub", "MatMul")
NEVER = "Erf"
CHAIN = (*BINARY, *UNARY)
WIDTH = 16
REPEATS = 3


def chain(nodes: int) -> ir.Model:
    """``nodes`` nodes in a row over an input and one constant, [16, 16] float32."""
    import numpy as np

    kind, shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([WIDTH, WIDTH])
    x = ir.Value(name="x", type=kind, shape=shape)
    constant = ir.tensor(np.ones((WIDTH, WIDTH), np.float32), name="c")
    c = ir.Value(name="c", type=kind, shape=shape, const_value=constant)
    made, last = [], x
    for index in range(nodes):
        # A stride of 3 through 8 operators, with a step at each lap, so that every pair of neighbours occurs.
        op_type = CHAIN[(3 * index + index // 8) % 8]
        operands = [last, c] if op_type in BINARY else [last]
        made.append(ir.node(op_type, operands, name=f"n{index}"))
        last = made[-1].outputs[0]
        last.name, last.type, last.shape = f"v{index}", kind, shape
    return _model([x], [last], made, [c])


def pairs(nodes: int) -> ir.Model:
    """Groups of four nodes: Relu, then Sigmoid and Tanh of it, then their sum."""
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([WIDTH]))
    made, last = [], x
    for index in range(nodes // 4):
        relu = ir.node("Relu", [last], name=f"r{index}")
        both = [ir.node(kind, relu.outputs, name=f"{kind}{index}") for kind in ("Sigmoid", "Tanh")]
        total = ir.node("Add", [node.outputs[0] for node in both], name=f"a{index}")
        made += [relu, *both, total]
        last = total.outputs[0]
    for number, node in enumerate(made):
        node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = f"v{number}", x.type, x.shape
    return _model([x], [last], made, [])


def additions(nodes: int) -> ir.Model:
    """``((x + c) + c) + ...``"""
    model = chain(0)
    graph = model.graph
    last, c = graph.inputs[0], graph.initializers["c"]
    for index in range(nodes):
        node = ir.node("Add", [last, c], name=f"n{index}")
        node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = f"v{index}", last.type, last.shape
        graph.append(node)
        last = node.outputs[0]
    graph.outputs[0] = last
    return model


def _model(
    inputs: list[ir.Value], outputs: list[ir.Value], nodes: list[ir.Node], constants: list[ir.Value]
) -> ir.Model:
    graph = ir.Graph(inputs, outputs, nodes=nodes, initializers=constants, opset_imports={"": 20}, name="g")
    return ir.Model(graph, ir_version=10)


TRIPLES = [(root, CHAIN[(index + step) % 8]) for index, root in enumerate(CHAIN) for step in range(5)]
"""Root and middle operator of each of the 40 rules; the innermost is always the operator that never occurs."""


def _operands(kind: str, inner: Any, other: Any) -> list[Any]:
    return [inner, other] if kind in BINARY else [inner]


def graphopt_search_rules() -> list[Rewrite]:
    """The 40 rules as graphopt's rewrites."""
    found: list[Rewrite] = []
    for number, (root, middle) in enumerate(TRIPLES):
        innermost = op(middle, *_operands(middle, op(NEVER, var("x")), var("c")))

        def build(self: Any, match: Match, build: Builder) -> ir.Value:
            return build.op("Identity", match.value("x"), like=match.root.outputs[0])

        pattern = op(root, *_operands(root, innermost, var("d")))
        members = {"name": f"rule-{number}", "patterns": (pattern,), "build": build}
        found.append(type(f"Rule{number}", (PatternRewrite,), members)())
    return found


def onnxscript_search_rules() -> list[Any]:
    """The 40 rules as onnxscript's."""
    from onnxscript.rewriter import pattern

    def rule(number: int, root: str, middle: str) -> Any:
        def target(op: Any, x: Any, c: Any, d: Any) -> Any:
            inner = getattr(op, middle)(*_operands(middle, getattr(op, NEVER)(x), c))
            return getattr(op, root)(*_operands(root, inner, d))

        def replacement(op: Any, x: Any, **_: Any) -> Any:
            return op.Identity(x)

        return pattern.RewriteRule(target, replacement, name=f"rule-{number}")

    return [rule(number, *triple) for number, triple in enumerate(TRIPLES)]


class SplitPair(Rewrite):
    """Sigmoid(x), Tanh(x)  ==>  HardSigmoid(x), Softsign(x), both in one application."""

    name = "split-pair"
    roots = ("Sigmoid",)

    def apply(self, node: ir.Node, build: Builder) -> ir.Value | None:
        """From the Sigmoid to the Tanh through the value that both read."""
        x = node.inputs[0]
        others = [use.node for use in x.uses() if use.node.op_type == "Tanh"] if x is not None else []
        if not others:
            return None
        build.replace(others[0].outputs[0], build.op("Softsign", x, like=others[0].outputs[0]))
        return build.op("HardSigmoid", x, like=node.outputs[0])


class AddLater(PatternRewrite):
    """(x + a) + b  ==>  x + (a + b)"""

    name = "add-later"
    patterns = (op("Add", op("Add", var("x"), var("a")), var("b")),)

    def build(self, match: Match, build: Builder) -> ir.Value | None:
        """Only towards the right, so that it ends."""
        x, a, b = (match.value(name) for name in "xab")
        if x.producer() is None or match.root.inputs[1] is not b:
            return None
        return build.op("Add", x, build.op("Add", a, b, like=a), like=match.root.outputs[0])


def onnxscript_pair_rule() -> Any:
    """As :class:`SplitPair`: a pattern with two outputs."""
    from onnxscript.rewriter import pattern

    return pattern.RewriteRule(
        lambda op, x: (op.Sigmoid(x), op.Tanh(x)),
        lambda op, x: (op.HardSigmoid(x), op.Softsign(x)),
        name="split-pair",
    )


def onnxscript_add_rule() -> Any:
    """As :class:`AddLater`."""
    from onnxscript.rewriter import pattern

    return pattern.RewriteRule(
        lambda op, x, a, b: op.Add(op.Add(x, a), b),
        lambda op, x, a, b: op.Add(x, op.Add(a, b)),
        lambda context, x, **_: x.producer() is not None,
        name="add-later",
    )


def seconds(make: Callable[[], ir.Model], run: Callable[[ir.Model], Any]) -> float:
    """Median over three fresh graphs."""
    times = []
    for _ in range(REPEATS):
        model = make()
        started = time.perf_counter()
        run(model)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def search(nodes: int) -> dict[str, Any]:
    """Seconds of 40 rules that match nowhere."""
    from onnxscript.rewriter import pattern

    rules = onnxscript_search_rules()
    by_root = collections.defaultdict(list)
    for (root, _), rule in zip(TRIPLES, rules, strict=True):
        by_root[root].append(rule)

    def indexed(model: ir.Model) -> None:
        for node in model.graph:
            for rule in by_root[node.op_type]:
                assert rule.try_rewrite(model, model.graph, node) is None

    def whole(model: ir.Model) -> None:
        assert pattern.RewriteRuleSet(rules).apply_to_model(model) == 0

    def own(model: ir.Model) -> None:
        assert not Driver(graphopt_search_rules()).run(model).applied

    def make() -> ir.Model:
        return chain(nodes)

    return {
        "nodes": nodes,
        "onnxscript": seconds(make, whole),
        "onnxscript_by_root": seconds(make, indexed),
        "graphopt": seconds(make, own),
    }


def two_outputs(nodes: int) -> dict[str, Any]:
    """Seconds of one rule with two outputs, which applies to every fourth node."""
    from onnxscript.rewriter import pattern

    def theirs(model: ir.Model) -> None:
        assert pattern.RewriteRuleSet([onnxscript_pair_rule()]).apply_to_model(model) == nodes // 4

    def own(model: ir.Model) -> None:
        assert len(Driver([SplitPair()]).run(model).applied) == nodes // 4

    def make() -> ir.Model:
        return pairs(nodes)

    return {"nodes": nodes, "onnxscript": seconds(make, theirs), "graphopt": seconds(make, own)}


def provenance(nodes: int) -> dict[str, Any]:
    """Characters of metadata after one rule has rewritten a chain of additions."""
    from onnxscript.rewriter import pattern

    theirs, own = additions(nodes), additions(nodes)
    applied = pattern.RewriteRuleSet([onnxscript_add_rule()]).apply_to_model(theirs)
    ours = len(Driver([AddLater()]).run(own).applied)
    return {
        "nodes": nodes,
        "onnxscript": {"applications": applied, "characters": _characters(theirs)},
        "graphopt": {"applications": ours, "characters": _characters(own)},
    }


def _characters(model: ir.Model) -> int:
    return sum(len(text) for node in model.graph for text in node.metadata_props.values())


def commuted() -> dict[str, int]:
    """Rules that ``commute=True`` makes of ten, of which each has one to three commutative operators."""
    from onnxscript.rewriter import pattern

    def nested(depth: int, kind: str) -> Any:
        def target(op: Any, x: Any, y: Any) -> Any:
            value = op.Relu(x)
            for _ in range(depth):
                value = getattr(op, kind)(value, y)
            return value

        return pattern.RewriteRule(target, lambda op, x, y: op.Identity(x), name=f"{kind}-{depth}")

    depths = (1, 1, 2, 2, 2, 2, 2, 2, 3, 3)
    rules = [nested(depth, ("Add", "Mul")[index % 2]) for index, depth in enumerate(depths)]
    made = pattern.RewriteRuleSet(rules, commute=True).rules
    return {"rules": len(rules), "operators": sum(depths), "with_commute": len(made)}


def table(result: dict[str, Any]) -> Table:
    """For people."""
    view = Table(title=f"One core, {processor()}")
    view.add_column("")
    for heading in ("onnxscript", "by root", "graphopt"):
        view.add_column(heading, justify="right")
    for row in result["search"]:
        label = f"search, 40 rules, {row['nodes']:,} nodes"
        cells = [f"{row[key]:.2f} s" for key in ("onnxscript", "onnxscript_by_root", "graphopt")]
        view.add_row(label, *cells)
    for row in result["two_outputs"]:
        label = f"two outputs, {row['nodes']:,} nodes"
        view.add_row(label, f"{row['onnxscript']:.3f} s", "", f"{row['graphopt']:.3f} s")
    for row in result["provenance"]:
        cells = [
            f"{row[key]['characters']:,} characters, {row[key]['applications']} applications"
            for key in ("onnxscript", "graphopt")
        ]
        view.add_row(f"provenance, {row['nodes']} nodes", cells[0], "", cells[1])
    order = result["commute"]
    label = f"operand order, {order['rules']} rules"
    view.add_row(label, f"{order['with_commute']} rules", "", f"{order['rules']} rules")
    return view


def sizes(nodes: int) -> Sequence[int]:
    """A tenth and the whole, to see the growth."""
    return sorted({max(1, nodes // 10), nodes})


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--nodes", type=int, default=100_000)
    parser.add_argument("--output", type=Path, default=FOLDER / "matching.json")
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    result = {
        "search": [search(nodes) for nodes in sizes(options.nodes)],
        "two_outputs": [two_outputs(nodes) for nodes in (500, 1000, 2000)],
        "provenance": [provenance(nodes) for nodes in (8, 12, 16)],
        "commute": commuted(),
    }
    Console(width=140).print(table(result))
    write(options.output, result, threads=1, packages=("onnx-ir", "onnxscript"))


if __name__ == "__main__":
    main()
