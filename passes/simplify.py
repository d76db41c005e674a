"""any graph  ==>  onnxsim's simplification of it

Forms: whatever onnxsim 0.8's C++ core knows that no pass here does: it propagates shapes and small tensors,
folds constants and removes what does nothing, in a fixed point (https://github.com/onnxsim/onnxsim). It sees
a skeleton of the model, in which each constant above 4 KiB is one more graph input, so that weights are
neither serialised nor copied; they are put back afterwards. Of its optimizers, those that change rounding
stay off: fusing BatchNormalization, bias, scale and padding into convolutions, MatMul with Add or Transpose
into Gemm, LayerNormalization, Gelu, attention and so on, which are passes of their own here.

Refuses: graphs of more than ``max_nodes`` nodes, or with nodes that draw random numbers, of which it takes two
that look alike for one; inputs and outputs of unknown rank; a result whose inputs or outputs are not those of the
model."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import onnx_ir as ir
import onnx_ir.passes.common

from graphopt.errors import PassFailedError
from graphopt.ir import provenance
from graphopt.ir.operators import is_random
from graphopt.pipeline.base import Pass, replace_content
from graphopt.rewrite import Application, Gate, Numerics, Refusal, RewriteLog, allow_all

SKIPPED_OPTIMIZERS = (
    # These change rounding, or the sign of zero.
    "eliminate_nop_monotone_argmax",
    "eliminate_nop_softmax",
    "eliminate_nop_with_unit",
    "fuse_add_bias_into_conv",
    "fuse_attention",
    "fuse_bn_into_conv",
    "fuse_consecutive_log_softmax",
    "fuse_consecutive_mul",
    "fuse_consecutive_reduce",
    "fuse_gelu",
    "fuse_gqa",
    "fuse_layer_norm",
    "fuse_lp_normalization",
    "fuse_matmul_add_bias_into_gemm",
    "fuse_mul_into_conv",
    "fuse_pad_into_conv",
    "fuse_pad_into_pool",
    "fuse_preceding_mul_into_conv",
    "fuse_qkv",
    "fuse_rms_norm",
    "fuse_rope",
    "fuse_transpose_into_gemm",
    # These make a graph larger.
    "eliminate_loop_with_const_trip_count",
    "rewrite_arg_reduce_select_last_index",
    # onnxsim 0.8.1 inlines a branch before nodes that it reads (seen on Silero VAD) and then fails.
    "eliminate_if_with_const_cond",
    # onnxsim 0.8.1 reads past the end of a shape where the slice does; shape-fold does the same without.
    "eliminate_slice_after_shape",
)


@dataclass(frozen=True)
class SimplifyOptions:
    """How far onnxsim goes.

    Args:
        max_nodes: Larger graphs are left alone.
        fold_constants: Let it fold constants that are in the skeleton. It computes them with ONNX Runtime's
            optimisations on, which rounds float16 differently; ``constant-fold`` does not.
        infer_shapes: Let it infer shapes.
        max_constant_bytes: Larger constants are kept out of the skeleton, and larger results are not folded.
        skip_optimizers: Names of more of its optimizers to leave out.
    """

    max_nodes: int = 20_000
    fold_constants: bool = False
    infer_shapes: bool = True
    max_constant_bytes: int = 4096
    skip_optimizers: tuple[str, ...] = ()


class Simplify(Pass):
    """onnxsim on a skeleton of the model."""

    name: ClassVar[str] = "onnxsim"
    numerics: ClassVar[Numerics] = Numerics.REASSOCIATES
    native: ClassVar[bool] = True
    Options: ClassVar[type[Any]] = SimplifyOptions

    def declines(self, model: ir.Model) -> str:
        """Graphs that are too large or draw random numbers, and interfaces of unknown rank."""
        nodes = sum(1 for _ in model.graph.all_nodes())
        if nodes > self.options.max_nodes:
            return (
                f"{nodes} nodes are more than max_nodes={self.options.max_nodes}: onnxsim would take too long"
            )
        drawn = next((node.op_type for node in model.graph.all_nodes() if is_random(node)), "")
        if drawn:
            return f"onnxsim takes two nodes that draw numbers ({drawn}) for one where they look alike"
        unranked = _without_rank(model)
        return f"onnxsim takes no interface of unknown rank: {unranked!r}" if unranked else ""

    def run(self, model: ir.Model, log: RewriteLog, gate: Gate = allow_all) -> bool:
        """One application for the whole graph."""
        site = model.graph.name or "graph"
        reason = self.declines(model)
        if reason:
            log.refused.append(Refusal(self.name, site, reason))
            return False
        application = Application(self.name, site)
        if not gate(application):
            return False
        skeleton, weights = _skeleton(model, self.options.max_constant_bytes)
        simplified = self._simplify(skeleton)
        problem = _restore(simplified, model, weights)
        if problem:
            log.refused.append(Refusal(self.name, site, problem))
            return False
        if _outline(simplified.graph) == _outline(model.graph):
            return False
        _keep_provenance(model, simplified, self.name)
        replace_content(model, simplified)
        log.applied.append(application)
        return True

    def _simplify(self, skeleton: ir.Model) -> ir.Model:
        onnxsim = _onnxsim()
        try:
            result, _ = onnxsim.simplify(
                ir.to_proto(skeleton),
                check_n=0,
                skipped_optimizers=[*SKIPPED_OPTIMIZERS, *self.options.skip_optimizers],
                skip_constant_folding=not self.options.fold_constants,
                skip_shape_inference=not self.options.infer_shapes,
                tensor_size_threshold=f"{self.options.max_constant_bytes}B",
            )
        except Exception as error:  # The C++ core raises whatever it likes.
            raise PassFailedError(
                f"onnxsim failed: {str(error).splitlines()[0]}",
                hint="leave it out: fold{disable=[onnxsim]}; the other passes of the group do most of what it does",
            ) from error
        simplified: ir.Model = ir.from_proto(result)
        lift = onnx_ir.passes.common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)
        lift(simplified)
        return simplified


def _onnxsim() -> Any:
    """The module, imported without PyTorch, which it takes two thirds of its time to import and does not need here."""
    absent = "torch" not in sys.modules
    if absent:
        sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        import onnxsim
    finally:
        if absent:
            del sys.modules["torch"]
    return onnxsim


def _without_rank(model: ir.Model) -> str:
    """The first input or output that is a tensor of unknown rank; empty where there is none."""
    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.shape is None and isinstance(value.type, ir.TensorType):
            return value.name or "?"
    return ""


def _skeleton(model: ir.Model, limit: int) -> tuple[ir.Model, dict[str, ir.Value]]:
    """A copy with each constant above ``limit`` bytes as an input of the main graph; these constants by name."""
    skeleton = model.clone()
    weights: dict[str, ir.Value] = {}
    for graph in (skeleton.graph, *skeleton.graph.subgraphs()):
        for name, value in list(graph.initializers.items()):
            tensor = value.const_value
            if (
                tensor is None
                or tensor.dtype == ir.DataType.STRING
                or tensor.nbytes <= limit
                or value.is_graph_input()
                or value.is_graph_output()
            ):
                continue
            if name in weights:
                continue  # Two branches may use a name twice; the second stays inside.
            placeholder = ir.Value(name=name, type=value.type, shape=value.shape)
            value.replace_all_uses_with(placeholder)
            graph.initializers.pop(name)
            skeleton.graph.inputs.append(placeholder)
            weights[name] = value
    return skeleton, weights


def _restore(simplified: ir.Model, model: ir.Model, weights: dict[str, ir.Value]) -> str:
    """Turn the added inputs back into constants; returns what is wrong with the interface, or nothing."""
    graph = simplified.graph
    inputs = {value.name: value for value in graph.inputs}
    missing = [value.name for value in model.graph.inputs if value.name not in inputs]
    outputs = [value.name for value in graph.outputs]
    if missing:
        return f"onnxsim dropped the inputs {missing}"
    if outputs != [value.name for value in model.graph.outputs]:
        return f"onnxsim changed the outputs to {outputs}"
    graph.inputs.clear()
    graph.inputs.extend(inputs[value.name] for value in model.graph.inputs)
    for name, original in weights.items():
        value = inputs.get(name)
        if value is None or not value.uses():
            continue
        value.const_value = original.const_value
        value.shape, value.type = original.shape, original.type
        graph.register_initializer(value)
    for left, right in zip(
        (*graph.inputs, *graph.outputs), (*model.graph.inputs, *model.graph.outputs), strict=True
    ):
        left.type = right.type
        left.shape = None if right.shape is None else right.shape.copy()
    simplified.ir_version = model.ir_version
    simplified.metadata_props.clear()
    simplified.metadata_props.update(model.metadata_props)
    graph.metadata_props.update(model.graph.metadata_props)
    return ""


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    for node in graph.all_nodes():
        yield from node.outputs


def _keep_provenance(model: ir.Model, simplified: ir.Model, maker: str) -> None:
    """Nodes are known by the name of their first output, which onnxsim keeps."""
    before = {value.name: value for value in _values(model.graph) if value.name}
    for node in simplified.graph.all_nodes():
        origin = None
        for output in node.outputs:
            known = before.get(output.name or "")
            if known is None:
                continue
            origin = origin or known.producer()
            output.type = output.type or known.type
            if output.shape is None and known.shape is not None:
                output.shape = known.shape.copy()
        if origin is not None:
            node.name = origin.name
            node.metadata_props.update(origin.metadata_props)
            node.doc_string = origin.doc_string
        if origin is None or origin.op_type != node.op_type:
            provenance.record(node, maker, [origin] if origin is not None else [])


def _outline(graph: ir.Graph) -> list[tuple[str, ...]]:
    """The nodes with what they read and make: equal for graphs of equal structure."""
    return [
        (
            node.op_type,
            *(value.name or "" if value is not None else "" for value in node.inputs),
            *(value.name or "" for value in node.outputs),
        )
        for node in graph.all_nodes()
    ]
