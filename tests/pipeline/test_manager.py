"""The pass manager undoes what breaks the numbers, and only that."""

from __future__ import annotations

import ctypes
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes
import onnx_ir.passes.common
import pytest

from graphopt.pipeline.base import ForeignPass, Pass, RewritePass, as_pass
from graphopt.pipeline.manager import Limits, PassManager
from graphopt.pipeline.record import PassStatus
from graphopt.rewrite import Builder, Gate, Numerics, Rewrite, RewriteLog, allow_all
from graphopt.testing import model_from_text, text_of
from graphopt.verify.reference import Reference, build_reference

CHAIN = """
g (float[N,8] x) => (float[N,8] y)
{
  a = Relu(x)
  b = Sigmoid(a)
  c = Relu(b)
  d = Tanh(c)
  e = Relu(d)
  y = Sigmoid(e)
}
"""


class DropRelu(Rewrite):
    """Right where the operand cannot be negative, wrong at the first Relu."""

    name = "drop-relu"
    roots = ("Relu",)

    def apply(self, node: ir.Node, build: Builder) -> ir.Value | None:
        return node.inputs[0]


class SigmoidToTanh(Rewrite):
    """Always wrong."""

    name = "sigmoid-to-tanh"
    roots = ("Sigmoid",)

    def apply(self, node: ir.Node, build: Builder) -> ir.Value | None:
        return build.op("Tanh", node.inputs[0], like=node.outputs[0])


class HalfOfTanh(Rewrite):
    """Right: tanh(x) = 2 sigmoid(2 x) - 1."""

    name = "half-of-tanh"
    roots = ("Tanh",)
    numerics = Numerics.REASSOCIATES

    def apply(self, node: ir.Node, build: Builder) -> ir.Value | None:
        one, two = (np.array(number, np.float32) for number in (1, 2))
        like = node.outputs[0]
        half = build.op("Sigmoid", build.op("Mul", node.inputs[0], two, like=like), like=like)
        return build.op("Sub", build.op("Mul", half, two, like=like), one, like=like)


class Raises(Rewrite):
    """Raises at each Tanh."""

    name = "raises"
    roots = ("Tanh",)

    def apply(self, node: ir.Node, build: Builder) -> ir.Value | None:
        raise ZeroDivisionError("on purpose")


class Custom(Pass):
    """A pass made of one function."""

    name = "custom"
    numerics = Numerics.REASSOCIATES

    def __init__(self, action: Any) -> None:
        super().__init__()
        self.action = action

    def run(self, model: ir.Model, log: RewriteLog, gate: Gate = allow_all) -> bool:
        self.action(model)
        return True


@pytest.fixture(scope="module")
def model() -> ir.Model:
    return model_from_text(CHAIN)


@pytest.fixture(scope="module")
def reference(model: ir.Model) -> Reference:
    return build_reference(model)


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def test_undoes_the_one_rewrite_that_breaks_the_numbers(
    model: ir.Model, reference: Reference, tmp_path: Path
) -> None:
    manager = PassManager([RewritePass("p", [DropRelu()])], reference, repro_dir=tmp_path)
    result, (record,) = manager.run(model)
    # Behind Relu nothing is negative, behind Sigmoid neither; Tanh of a positive number is positive.
    assert ops(result) == ["Relu", "Sigmoid", "Tanh", "Sigmoid"]
    assert record.status is PassStatus.PARTLY_UNDONE
    assert [entry.what for entry in record.undone] == ["drop-relu at 'a'"]
    assert "noise floor" in record.undone[0].reason
    assert record.rewrites == {"drop-relu": 2}
    assert ops(model) == ["Relu", "Sigmoid", "Relu", "Tanh", "Relu", "Sigmoid"], (
        "the input must stay as it was"
    )


def test_the_repro_is_small_and_shows_the_error(
    model: ir.Model, reference: Reference, tmp_path: Path
) -> None:
    manager = PassManager([RewritePass("p", [DropRelu()])], reference, repro_dir=tmp_path)
    _, (record,) = manager.run(model)
    folder = Path(record.undone[0].repro or "")
    small = ir.load(folder / "model.onnx")
    assert ops(small) == ["Relu"]
    with np.load(folder / "inputs.npz") as inputs:
        assert set(inputs.files) == {value.name for value in small.graph.inputs}
    assert "--passes drop-relu" in (folder / "command.txt").read_text()
    again, (record,) = PassManager([RewritePass("p", [DropRelu()])], build_reference(small)).run(small)
    assert record.status is PassStatus.UNDONE and ops(again) == ["Relu"]


def test_a_rewrite_that_is_wrong_everywhere_is_banned(model: ir.Model, reference: Reference) -> None:
    manager = PassManager([RewritePass("p", [SigmoidToTanh(), DropRelu()])], reference)
    result, (record,) = manager.run(model)
    assert ops(result) == ["Relu", "Sigmoid", "Tanh", "Sigmoid"]
    assert any("sigmoid-to-tanh" in entry.what for entry in record.undone)
    assert "sigmoid-to-tanh" not in record.rewrites


def test_a_rewrite_that_raises_costs_only_itself(model: ir.Model, reference: Reference) -> None:
    manager = PassManager([RewritePass("p", [Raises(), DropRelu()])], reference)
    result, (record,) = manager.run(model)
    assert ops(result) == ["Relu", "Sigmoid", "Tanh", "Sigmoid"]
    assert any("ZeroDivisionError" in entry.reason for entry in record.undone)


def rename_output(model: ir.Model) -> None:
    model.graph.outputs[0].name = "other"


def break_structure(model: ir.Model) -> None:
    node = model.graph[3]
    node.replace_input_with(0, ir.Value(name="nowhere", type=ir.TensorType(ir.DataType.FLOAT)))


def remove_everything_wrong_op(model: ir.Model) -> None:
    model.graph[0].op_type = "NoSuchOp"


def hang(model: ir.Model) -> None:
    while True:
        time.sleep(0.01)


def raise_error(model: ir.Model) -> None:
    raise RuntimeError("on purpose")


@pytest.mark.parametrize(
    ("action", "reason"),
    [
        (rename_output, "outputs"),
        (break_structure, "nowhere"),
        (remove_everything_wrong_op, "NoSuchOp"),
        (raise_error, "RuntimeError: on purpose"),
        (hang, "took longer than 1 s"),
    ],
)
def test_a_bad_pass_is_undone_and_the_next_one_runs(
    model: ir.Model, reference: Reference, action: Any, reason: str
) -> None:
    manager = PassManager(
        [Custom(action), RewritePass("p", [DropRelu()])], reference, limits=Limits(pass_seconds=1.0)
    )
    result, (bad, good) = manager.run(model)
    assert bad.status is PassStatus.UNDONE and reason in bad.reason
    assert good.status is PassStatus.PARTLY_UNDONE
    assert ops(result) == ["Relu", "Sigmoid", "Tanh", "Sigmoid"]


class Crash(Pass):
    """Brings the process down."""

    name = "crash"
    native = True

    def run(self, model: ir.Model, log: RewriteLog, gate: Gate = allow_all) -> bool:
        ctypes.string_at(0)
        return True


class NativeIdentityRemoval(Pass):
    """A native pass that works."""

    name = "native-identity"
    native = True
    numerics = Numerics.EXACT

    def run(self, model: ir.Model, log: RewriteLog, gate: Gate = allow_all) -> bool:
        result = onnx_ir.passes.common.IdentityEliminationPass()(model)
        return bool(result.modified)


class Loop(Pass):
    """Hangs in a native call."""

    name = "loop"
    native = True

    def run(self, model: ir.Model, log: RewriteLog, gate: Gate = allow_all) -> bool:
        time.sleep(60)
        return True


def test_a_native_crash_and_a_native_hang_are_undone(model: ir.Model, reference: Reference) -> None:
    manager = PassManager([Crash(), Loop()], reference, limits=Limits(pass_seconds=6.0))
    result, (crash, loop) = manager.run(model)
    assert crash.status is PassStatus.UNDONE and "crashed (SIGSEGV)" in crash.reason
    assert loop.status is PassStatus.UNDONE and "took longer" in loop.reason
    assert text_of(result) == text_of(model)


def test_a_native_pass_keeps_large_weights_in_the_parent() -> None:
    weight = ir.tensor(np.arange(4096, dtype=np.float32).reshape(64, 64), name="w")
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["N", 64]))
    w = ir.Value(name="w", type=ir.TensorType(ir.DataType.FLOAT), shape=weight.shape, const_value=weight)
    identity = ir.node("Identity", [x], name="i")
    matmul = ir.node("MatMul", [identity.outputs[0], w], name="m")
    matmul.outputs[0].name = "y"
    matmul.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph([x], matmul.outputs, nodes=[identity, matmul], initializers=[w], opset_imports={"": 21})
    model = ir.Model(graph, ir_version=10)
    result, (record,) = PassManager([NativeIdentityRemoval()], build_reference(model)).run(model)
    assert ops(result) == ["MatMul"] and record.status is PassStatus.APPLIED and record.identical
    assert [value.name for value in result.graph.inputs] == ["x"]
    assert result.graph.initializers["w"].const_value is weight, "the weight must be shared, not copied"


def test_any_onnx_ir_pass_runs(model: ir.Model, reference: Reference) -> None:
    text = "g (float[N] x) => (float[N] y) { a = Identity(x) b = Relu(a) y = Identity(b) }"
    chain = model_from_text(text)
    passes = [as_pass(onnx_ir.passes.common.IdentityEliminationPass())]
    result, (record,) = PassManager(passes, build_reference(chain)).run(chain)
    assert isinstance(passes[0], ForeignPass) and record.status is PassStatus.APPLIED
    assert ops(result) == ["Relu"]


def test_our_passes_run_in_their_pass_manager(model: ir.Model) -> None:
    theirs = onnx_ir.passes.PassManager([RewritePass("p", [SigmoidToTanh()])])
    result = theirs(model.clone())
    assert result.modified and ops(result.model).count("Tanh") == 3


def test_listeners_see_every_pass(model: ir.Model) -> None:
    seen: list[str] = []

    PassManager([RewritePass("p", [DropRelu()])], listeners=[Log(seen)]).run(model)
    assert seen == ["run", "start p", "end p 3"]


class Log:
    """A listener that writes down what it is told."""

    def __init__(self, seen: list[str]) -> None:
        self.seen = seen

    def run_started(self) -> None:
        self.seen.append("run")

    def pass_started(self, name: str) -> None:
        self.seen.append(f"start {name}")

    def pass_ended(self, record: Any, model: ir.Model) -> None:
        self.seen.append(f"end {record.name} {record.nodes_after}")


AT_ONCE = Limits(nodes_apart=3)


def test_a_large_graph_is_compared_once(model: ir.Model, reference: Reference) -> None:
    passes = [as_pass(onnx_ir.passes.common.IdentityEliminationPass()), RewritePass("p", [HalfOfTanh()])]
    seen: list[str] = []
    manager = PassManager(passes, reference, [Log(seen)], AT_ONCE)
    result, records = manager.run(model)
    assert text_of(result) == text_of(PassManager(passes, reference).run(model)[0]) != text_of(model)
    assert [record.together for record in records] == [False, True]
    assert records[1].error is not None and records[1].verify_seconds
    assert seen.count("run") == 1


@pytest.mark.parametrize("breaks", [DropRelu(), SigmoidToTanh()])
def test_a_large_graph_that_does_not_hold_is_done_pass_by_pass(
    model: ir.Model, reference: Reference, breaks: Rewrite
) -> None:
    passes = [RewritePass("p", [HalfOfTanh()]), RewritePass("q", [breaks])]
    seen: list[str] = []
    result, records = PassManager(passes, reference, [Log(seen)], AT_ONCE).run(model)
    apart, expected = PassManager(passes, reference).run(model)
    assert text_of(result) == text_of(apart)
    assert [record.status for record in records] == [record.status for record in expected]
    assert records[1].undone and not any(record.together for record in records)
    assert seen[:3] == seen[5:8] == ["run", "start p", "end p 9"] and len(seen) == 10


def test_a_large_graph_that_a_pass_leaves_broken(model: ir.Model, reference: Reference) -> None:
    """What ONNX Runtime rejects is found pass by pass as well."""

    def action(model: ir.Model) -> None:
        for node in model.graph:
            if node.op_type == "Tanh":
                node.op_type = "Det"

    result, (record,) = PassManager([Custom(action)], reference, limits=AT_ONCE).run(model)
    assert record.status is PassStatus.UNDONE and text_of(result) == text_of(model)


def test_what_onnxruntime_does_not_load_is_told_from_what_it_computes_otherwise(
    model: ir.Model, reference: Reference
) -> None:
    def renamed(op: str, domain: str = "") -> Custom:
        def action(model: ir.Model) -> None:
            model.graph.opset_imports.setdefault(domain, 1)
            for node in model.graph:
                if node.op_type == "Tanh":
                    node.op_type, node.domain = op, domain

        return Custom(action)

    passes = [renamed("Nowhere", "com.microsoft"), renamed("Sin")]
    _, records = PassManager(passes, reference, allow_domains=frozenset({"com.microsoft"})).run(model)
    assert [record.status for record in records] == [PassStatus.UNDONE] * 2
    assert [record.rejected for record in records] == [True, False], [record.reason for record in records]


def test_a_pass_that_raises_on_a_large_graph_leaves_a_repro(
    model: ir.Model, reference: Reference, tmp_path: Path
) -> None:
    passes = [RewritePass("p", [Raises()])]
    _, (record,) = PassManager(passes, reference, limits=AT_ONCE, repro_dir=tmp_path).run(model)
    (undone,) = record.undone
    assert undone.repro is not None and Path(undone.repro).is_dir()
