"""Def-use graphs and dominators, against networkx."""

from __future__ import annotations

import networkx
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.ir import model as ir_model
from graphopt.ir.describe import all_reads
from graphopt.ir.views import def_use, dominators, post_dominators
from graphopt.models import builders
from graphopt.testing import model_from_text


def by_networkx(graph: ir.Graph, *, post: bool) -> dict[ir.Node, ir.Node | None]:
    view = def_use(graph)
    inputs = set(graph.inputs)
    if post:
        view = view.reverse(copy=True)
        roots = [n for n in graph if not view.pred[n] or any(v.is_graph_output() for v in n.outputs)]
    else:
        roots = [n for n in graph if not view.pred[n] or any(v in inputs for v in all_reads(n))]
    view.add_edges_from(("root", node) for node in roots)
    found = networkx.immediate_dominators(view, "root")
    return {node: None if found[node] == "root" else found[node] for node in graph}


@pytest.mark.parametrize(
    "proto",
    [
        builders.conv_net(blocks=4),
        builders.transformer_block(),
        builders.branch_and_loop(),
        builders.long_chain(400),
    ],
)
def test_dominators_are_those_of_networkx(proto: onnx.ModelProto) -> None:
    graph = ir_model.from_proto(proto).graph
    assert dominators(graph) == by_networkx(graph, post=False)
    assert post_dominators(graph) == by_networkx(graph, post=True)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.lists(st.integers(0, 1000), min_size=1, max_size=3), min_size=1, max_size=25))
def test_dominators_of_random_graphs(choices: list[list[int]]) -> None:
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT))
    values, nodes = [x], []
    for reads in choices:
        node = ir.node("Sum", [values[choice % len(values)] for choice in reads])
        nodes.append(node)
        values.append(node.outputs[0])
    graph = ir.Graph([x], [values[-1]], nodes=nodes, opset_imports={"": 26})
    assert dominators(graph) == by_networkx(graph, post=False)
    assert post_dominators(graph) == by_networkx(graph, post=True)


def test_def_use_names_the_values() -> None:
    graph = model_from_text("g (float[2] x) => (float[2] y) { a = Relu(x) b = Neg(a) y = Add(a, b) }").graph
    view = def_use(graph)
    relu, neg, add = graph
    assert list(view) == [relu, neg, add]
    assert list(view.edges(data="values")) == [(relu, neg, ["a"]), (relu, add, ["a"]), (neg, add, ["b"])]


def test_what_a_subgraph_reads_counts_as_read_by_its_node() -> None:
    text = """g (float[2] x, bool c) => (float[2] y) {
      a = Relu(x)
      y = If (c) <then_branch = t () => (float[2] p) { p = Neg(a) }, else_branch = e () => (float[2] q) { q = Abs(x) }>
    }"""
    graph = model_from_text(text).graph
    relu, branch = graph
    assert list(def_use(graph).edges) == [(relu, branch)]
