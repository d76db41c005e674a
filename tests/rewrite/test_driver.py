"""The driver commits whole rewrites, keeps names, cleans up and comes to an end."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
import pytest

from graphopt.errors import PassFailedError
from graphopt.ir import provenance
from graphopt.ir.check import check as check_structure
from graphopt.rewrite import Builder, Driver, Refuse, Rewrite
from graphopt.testing import assert_same_numbers, model_from_text


class RemoveIdentity(Rewrite):
    """Identity(x) ==> x"""

    name = "remove-identity"
    roots = ("Identity",)

    def apply(self, node: ir.Node, build: Builder) -> ir.Value | None:
        return node.inputs[0]


class DoubleNegation(Rewrite):
    """Neg(Neg(x)) ==> x"""

    name = "double-negation"
    roots = ("Neg",)

    def apply(self, node: ir.Node, build: Builder) -> ir.Value | None:
        inner = node.inputs[0].producer() if node.inputs[0] is not None else None
        return inner.inputs[0] if inner is not None and inner.op_type == "Neg" else None


class ReluToClip(Rewrite):
    """Relu(x) ==> Clip(x, 0)"""

    name = "relu-to-clip"
    roots = ("Relu",)

    def apply(self, node: ir.Node, build: Builder) -> ir.Value | None:
        import numpy as np

        return build.op("Max", node.inputs[0], np.float32(0), like=node.outputs[0])


class Back(Rewrite):
    """The reverse, so that the two never end."""

    name = "back"
    roots = ("Max",)

    def apply(self, node: ir.Node, build: Builder) -> ir.Value | None:
        return build.op("Relu", node.inputs[0], like=node.outputs[0])


class RefusesAfterBuilding(Rewrite):
    """Builds something and then refuses."""

    name = "refuses"
    roots = ("Relu",)

    def apply(self, node: ir.Node, build: Builder) -> Sequence[ir.Value] | None:
        build.op("Neg", node.inputs[0])
        raise Refuse("on purpose")


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("g (float[N] x) => (float[N] y) { a = Relu(x) b = Neg(a) y = Neg(b) }", ["Relu", "Identity"]),
        ("g (float[N] x) => (float[N] y) { b = Neg(x) y = Neg(b) }", ["Identity"]),
        (
            "g (float[N] x) => (float[N] y, float[N] z) { y = Relu(x) b = Neg(y) z = Neg(b) }",
            ["Relu", "Identity"],
        ),
        ("g (float[N] x) => (float[N] b, float[N] z) { b = Neg(x) z = Neg(b) }", ["Neg", "Identity"]),
    ],
)
def test_outputs_keep_their_names(text: str, left: list[str]) -> None:
    model = model_from_text(text)
    before = model.clone()
    Driver([DoubleNegation()]).run(model)
    check_structure(model)
    assert [value.name for value in model.graph.outputs] == [value.name for value in before.graph.outputs]
    assert_same_numbers(before, model, exact=True)
    assert ops(model) == left


class NegToNewer(Rewrite):
    """Makes what a rewrite may not know to be too new for the model."""

    name = "newer"
    roots = ("Neg",)

    def __init__(self, op_type: str, **attributes: object) -> None:
        self.op_type = op_type
        self.attributes = attributes

    def apply(self, node: ir.Node, build: Builder) -> ir.Value:
        return build.op(self.op_type, node.inputs[0], like=node.outputs[0], **self.attributes)


@pytest.mark.parametrize(
    ("opset", "made", "reason"),
    [
        (21, "RMSNormalization", "RMSNormalization is newer than opset 21"),
        (22, "GlobalLpPool", "does not run GlobalLpPool of opset 22"),
    ],
)
def test_what_the_opset_of_the_model_does_not_run_is_refused(opset: int, made: str, reason: str) -> None:
    model = model_from_text(
        f'<ir_version: 10, opset_import: ["" : {opset}]> g (float[1,2,3] x) => (float[1,2,3] y) {{ y = Neg(x) }}'
    )
    log = Driver([NegToNewer(made)]).run(model)
    assert ops(model) == ["Neg"] and not log.applied and not log.failed
    assert reason in log.refused[0].reason


def test_what_nothing_reads_any_more_goes() -> None:
    model = model_from_text(
        "g (float[N] x) => (float[N] y) <float[1] k={2}> { a = Mul(x, k) b = Neg(a) c = Neg(b) y = Relu(c) }"
    )
    log = Driver([DoubleNegation()]).run(model)
    assert ops(model) == ["Mul", "Relu"] and log.counts() == {"double-negation": 1}
    model = model_from_text("g (float[N] x) => (float[N] y) <float[1] k={2}> { a = Mul(x, k) y = Relu(x) }")
    Driver([ReluToClip()]).run(model)
    assert "k" in model.graph.initializers, "what was dead before is not the driver's business"


def test_subgraphs_are_rewritten_too() -> None:
    model = model_from_text(
        """g (float[N] x, bool c) => (float[N] y) {
          y = If(c) <
            then_branch = t () => (float[N] p) { i = Identity(x) p = Neg(i) },
            else_branch = e () => (float[N] q) { q = Relu(x) }
          >
        }"""
    )
    before = model.clone()
    Driver([RemoveIdentity(), ReluToClip()]).run(model)
    check_structure(model)
    assert sorted(node.op_type for node in model.graph.all_nodes()) == ["If", "Max", "Neg"]
    assert_same_numbers(before, model)


def test_a_refusal_leaves_no_trace() -> None:
    model = model_from_text("g (float[N] x) => (float[N] y) { y = Relu(x) }")
    log = Driver([RefusesAfterBuilding()]).run(model)
    assert [refusal.reason for refusal in log.refused] == ["on purpose"]
    assert ops(model) == ["Relu"] and len(model.graph.inputs[0].uses()) == 1


def test_rewrites_without_a_fixed_point_are_stopped() -> None:
    model = model_from_text("g (float[N] x) => (float[N] y) { y = Relu(x) }")
    with pytest.raises(PassFailedError, match="no fixed point"):
        Driver([ReluToClip(), Back()]).run(model)


def test_provenance_names_the_original_nodes() -> None:
    model = model_from_text("g (float[N] x) => (float[N] y) { a = Neg(x) b = Neg(a) y = Relu(b) }")
    Driver([ReluToClip()]).run(model)
    made = model.graph[2]
    assert provenance.made_by(made) == "relu-to-clip" and provenance.sources(made) == ("Relu_2",)
    assert provenance.made_by(model.graph[0]) is None
