"""The content hash: what it must not see, and what it must."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.ir import model as ir_model
from graphopt.ir.hash import content_hash
from graphopt.models import builders
from graphopt.testing import model_from_text

BODY = "a = Add(x, w) b = Mul(x, v) y = Sub(a, b)"
HEAD = "g (float[2] x) => (float[2] y) <float[2] w={1,2}, float[2] v={3,4}>"

FILE = '<ir_version: 10, opset_import: ["" : 21]> '


def of(text: str) -> str:
    return content_hash(model_from_text(text))


def test_it_is_the_same_on_any_machine_and_in_any_process() -> None:
    """A constant: it changes only when the definition of the hash does."""
    wanted = "4a5e73be0a0c983ab88eec9b2109663f65bb613158f69c6d2371c4b462cf4402"
    script = (
        "from graphopt.testing import model_from_text; from graphopt.ir.hash import content_hash; "
        f"print(content_hash(model_from_text({FILE + HEAD + ' { ' + BODY + ' }'!r})))"
    )
    for seed in ("0", "1"):
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True,
            env={"PYTHONHASHSEED": seed, "PATH": "", "PYTHONPATH": ":".join(sys.path)},
        )  # fmt: skip
        assert done.stdout.strip() == wanted


@pytest.mark.parametrize(
    "text",
    [
        f"{HEAD} {{ b = Mul(x, v) a = Add(x, w) y = Sub(a, b) }}",
        f"{HEAD} {{ q = Add(x, w) r = Mul(x, v) y = Sub(q, r) }}",
        f"renamed{HEAD[1:]} {{ {BODY} }}",
        "g (float[2] x) => (float[2] y) <float[2] other={3,4}, float[2] w={1,2}>"
        " { a = Add(x, w) b = Mul(x, other) y = Sub(a, b) }",
        f"{HEAD} {{ [named] a = Add(x, w) b = Mul(x, v) y = Sub(a, b) }}",
    ],
)
def test_order_and_inner_names_do_not_matter(text: str) -> None:
    assert of(text) == of(f"{HEAD} {{ {BODY} }}")


@pytest.mark.parametrize(
    "text",
    [
        f"{HEAD.replace('{1,2}', '{1,3}')} {{ {BODY} }}",
        f"{HEAD} {{ a = Add(w, x) b = Mul(x, v) y = Sub(a, b) }}",
        f"{HEAD} {{ a = Add(x, w) b = Mul(x, v) y = Sub(b, a) }}",
        f"{HEAD} {{ a = Add(x, w) b = Mul(x, v) y = Div(a, b) }}",
        f"{HEAD} {{ a = Add(x, w) b = Mul(x, v) c = Neg(a) y = Sub(a, b) }}",
        HEAD.replace("float[2] x", "float[2] z") + " { a = Add(z, w) b = Mul(z, v) y = Sub(a, b) }",
        HEAD.replace("float[2] x", "float[N] x") + f" {{ {BODY} }}",
        HEAD.replace("float[2] y", "float[2] z") + " { a = Add(x, w) b = Mul(x, v) z = Sub(a, b) }",
    ],
)
def test_content_and_interface_matter(text: str) -> None:
    assert of(text) != of(f"{HEAD} {{ {BODY} }}")


def test_attributes_opsets_and_output_order_matter() -> None:
    base = "g (float[2] x) => (float[2] y) { y = LeakyRelu<alpha=0.1>(x) }"
    assert of(base) != of(base.replace("0.1", "0.2"))
    header = '<ir_version: 10, opset_import: ["" : %d]> '
    assert of(header % 20 + base) != of(header % 21 + base)
    two = "g (float[2] x) => (float[2] y, float[2] z) { y = Relu(x) z = Neg(x) }"
    assert of(two) != of(two.replace("(float[2] y, float[2] z)", "(float[2] z, float[2] y)"))


def test_an_import_that_nothing_uses_does_not_matter() -> None:
    body = "g (float[2] x) => (float[2] y) { y = Relu(x) }"
    assert of(f'<ir_version: 10, opset_import: ["" : 21]> {body}') == of(
        f'<ir_version: 8, opset_import: ["" : 21, "com.microsoft" : 1]> {body}'
    )


def test_sharing_matters() -> None:
    """A node computed once and read twice is another graph than the node computed twice."""
    shared = "g (float[2] x) => (float[2] y) { a = RandomNormalLike(x) y = Sub(a, a) }"
    twice = "g (float[2] x) => (float[2] y) { a = RandomNormalLike(x) b = RandomNormalLike(x) y = Sub(a, b) }"
    assert of(shared) != of(twice)
    head = "g (float[2] x) => (float[2] y) "
    assert of(head + "<float[2] w={1,2}> { a = Add(x, w) y = Add(a, w) }") != of(
        head + "<float[2] w={1,2}, float[2] v={1,2}> { a = Add(x, w) y = Add(a, v) }"
    )


def test_who_reads_which_of_two_equal_nodes_matters() -> None:
    head = "g (float[2] x) => (float[2] p, float[2] q, float[2] r) { a = RandomNormalLike(x) b = RandomNormalLike(x) "
    one = head + "p = Relu(a) q = Neg(a) r = Abs(b) }"
    other = head + "p = Relu(a) q = Neg(b) r = Abs(b) }"
    assert of(one) != of(other)
    renamed = head + "p = Relu(b) q = Neg(b) r = Abs(a) }"
    assert of(one) == of(renamed)


def test_subgraphs_count(tmp_path: Path) -> None:
    proto = builders.branch_and_loop()
    before = content_hash(ir_model.from_proto(proto))
    changed = onnx.ModelProto()
    changed.CopyFrom(proto)
    for attribute in changed.graph.node[0].attribute:
        if attribute.name == "then_branch":
            attribute.g.node[1].op_type = "Sub"
    assert content_hash(ir_model.from_proto(changed)) != before
    renamed = ir_model.from_proto(proto)
    for graph in ir_model.with_subgraphs(renamed.graph)[1:]:
        for node in graph:
            for value in node.outputs:
                value.name = f"renamed_{value.name}"
    assert content_hash(renamed) == before


def test_what_a_subgraph_captures_counts() -> None:
    text = """g (float[2] x, float[2] z, bool c) => (float[2] y) {{
      y = If (c) <then_branch = t () => (float[2] p) {{ p = Relu({}) }}, else_branch = e () => (float[2] q) {{ q = Neg(x) }}>
    }}"""
    assert of(text.format("x")) != of(text.format("z"))


@pytest.mark.parametrize("build", [builders.conv_net, builders.transformer_block])
def test_storage_does_not_matter(tmp_path: Path, build: Callable[[], onnx.ModelProto]) -> None:
    model = ir_model.from_proto(build())
    inline = ir_model.save(model, tmp_path / "a.onnx")
    outside = ir_model.save(model, tmp_path / "b.onnx", external_threshold=0)
    assert {content_hash(ir_model.load(path)) for path in (inline, outside)} == {content_hash(model)}


def test_types_of_constants_matter_where_bytes_agree() -> None:
    def model(array: np.ndarray) -> ir.Model:
        value = ir.Value(
            name="w", type=ir.TensorType(ir.Tensor(array).dtype), const_value=ir.Tensor(array, name="w")
        )
        return ir.Model(
            ir.Graph([], [value], nodes=[], initializers=[value], opset_imports={"": 26}), ir_version=13
        )

    arrays = [
        np.zeros(4, np.int32),
        np.zeros(4, np.float32),
        np.zeros((2, 2), np.float32),
        np.zeros(2, np.int64),
    ]
    assert len({content_hash(model(array)) for array in arrays}) == 4


@settings(max_examples=30, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_topological_order_gives_the_same_hash(data: st.DataObject) -> None:
    model = ir_model.from_proto(builders.transformer_block())
    wanted = content_hash(model)
    nodes = list(model.graph)
    model.graph.remove(nodes)
    placed: set[ir.Node] = set()
    while nodes:
        ready = [
            node
            for node in nodes
            if all(v is None or v.producer() is None or v.producer() in placed for v in node.inputs)
        ]
        chosen = ready[data.draw(st.integers(0, len(ready) - 1))]
        model.graph.append(chosen)
        placed.add(chosen)
        nodes.remove(chosen)
    assert content_hash(model) == wanted
