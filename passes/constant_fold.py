"""a node whose inputs are all constant  ==>  its result as a constant

Forms: weights that are built rather than stored (ConstantOfShape, Transpose or Reshape of an initializer,
weight normalisation), float weights that are quantized while running (QuantizeLinear, as training with simulated
quantization writes them, and DynamicQuantizeLinear), position tables, masks, shape arithmetic once the shapes
are known. ONNX Runtime itself computes them, many nodes to a session and its optimisations off, so a folded
number is the number that the model computed before.

Refuses:
- random operators, and those that a session of ONNX Runtime rejects;
- DequantizeLinear and Casts that widen a large integer weight: they keep a model small, and integer kernels form
  around DequantizeLinear;
- results larger than what they are computed from by more than ``max_growth_bytes`` (ConstantOfShape, Expand,
  Tile, Range), unless they are weights of a convolution, matrix product, normalisation or recurrent layer, or
  a table that Gather reads: targets need those as constants;
- results above ``max_bytes``, and types that NumPy lacks (bfloat16, float8, int4).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import onnx_ir as ir

from graphopt.ir import facts
from graphopt.ir.graphs import inner_nodes
from graphopt.ir.operators import is_random
from graphopt.passes._evaluate import (
    TEXT_BYTES,
    EvaluationError,
    breaks_range,
    captured,
    constant_nbytes,
    evaluate,
    infer_outputs,
    is_native,
)
from graphopt.pipeline.base import Pass
from graphopt.rewrite import Application, Builder, Gate, Numerics, Refusal, RewriteLog, allow_all
from graphopt.rewrite.driver import commit

_DOMAINS = ("", "ai.onnx.ml")
# Op type -> the inputs that a target wants to know, None for all of them.
_WEIGHTS: dict[str, tuple[int, ...] | None] = {
    "BatchNormalization": (1, 2, 3, 4),
    "Conv": (1, 2),
    "ConvInteger": (1, 3),
    "ConvTranspose": (1, 2),
    "DeformConv": (1, 3),
    "DequantizeLinear": None,
    "Gather": (0,),
    "Gemm": (0, 1, 2),
    "GRU": (1, 2, 3),
    "GroupNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "LayerNormalization": (1, 2),
    "LSTM": (1, 2, 3, 7),
    "MatMul": None,
    "MatMulInteger": None,
    "PRelu": (1,),
    "QLinearConv": None,
    "QLinearMatMul": None,
    "QuantizeLinear": None,
    "RMSNormalization": (1,),
    "RNN": (1, 2, 3),
}
_ROUNDS = 16
_MOST_TRIPS = 4096
_BATCH_BYTES = 256 << 20
_GROWS = frozenset({"ConstantOfShape", "Expand", "EyeLike", "OneHot", "Pad", "Range", "Resize", "Tile"})
_INTEGERS = (ir.DataType.INT4, ir.DataType.UINT4, ir.DataType.INT8, ir.DataType.UINT8)


@dataclass(frozen=True)
class ConstantFoldOptions:
    """What is folded.

    Args:
        max_growth_bytes: By how much a result that is no weight may exceed the constants that it is computed from.
        max_bytes: Results above this size are never computed.
    """

    max_growth_bytes: int = 64 << 10
    max_bytes: int = 1 << 30


class ConstantFold(Pass):
    """Evaluation of everything that does not depend on an input."""

    name: ClassVar[str] = "constant-fold"
    numerics: ClassVar[Numerics] = Numerics.EXACT
    Options: ClassVar[type[Any]] = ConstantFoldOptions

    def run(self, model: ir.Model, log: RewriteLog, gate: Gate = allow_all) -> bool:
        """Rounds, until nothing more folds.

        A second one finds more only where a shape depends on the content of what was folded.
        """
        before = len(log.applied)
        round_ = _Round(model, self.options, self.name, log, gate)
        for _ in range(_ROUNDS):
            if not round_.run():
                break
        return len(log.applied) > before


@dataclass
class _Result:
    """What is known of the constant result of a node before it is computed."""

    node: ir.Node
    nbytes: int
    source_bytes: int


class _Round:
    """Finds what is constant, chooses what to replace, computes it in batches, and replaces it."""

    def __init__(
        self, model: ir.Model, options: ConstantFoldOptions, name: str, log: RewriteLog, gate: Gate
    ) -> None:
        self._model = model
        self._options = options
        self._name = name
        self._log = log
        self._gate = gate
        self._given_up: set[ir.Node] = set()

    def run(self) -> bool:
        """Whether anything was replaced, so that more may follow."""
        results = self._constant_results()
        chosen = self._choose(results)
        batches = self._batches(results, chosen)
        last_use = {
            value: index
            for index, batch in enumerate(batches)
            for node in batch
            for value in _operands(node)
            if value in results
        }
        folded = False
        at_hand: dict[ir.Value, facts.Array] = {}
        for index, batch in enumerate(batches):
            made = [output for node in batch for output in node.outputs]
            wanted = [value for value in made if value in chosen or last_use.get(value, index) > index]
            at_hand |= self._compute(batch, wanted, at_hand)
            for value in made:
                if value in chosen and value in at_hand:
                    self._replace(value, at_hand.pop(value))
                    folded = True
            at_hand = {value: array for value, array in at_hand.items() if last_use.get(value, 0) > index}
        return folded

    def _compute(
        self, nodes: list[ir.Node], wanted: list[ir.Value], at_hand: dict[ir.Value, facts.Array]
    ) -> dict[ir.Value, facts.Array]:
        """Those of ``wanted`` that could be computed; a node that a session rejects is found by halving."""
        if not wanted:
            return {}
        try:
            return evaluate(self._model, nodes, wanted, at_hand)
        except EvaluationError as error:
            if len(nodes) == 1:
                self._given_up.add(nodes[0])
                self._log.refused.append(Refusal(self._name, wanted[0].name or "", str(error)))
                return {}
        middle = len(nodes) // 2
        first, second = nodes[:middle], nodes[middle:]
        inside = {output for node in first for output in node.outputs}
        crossing = [value for node in second for value in _operands(node) if value in inside]
        now = list(dict.fromkeys([value for value in wanted if value in inside] + crossing))
        done = self._compute(first, now, at_hand)
        missing = {value for value in inside if value not in done}
        able: list[ir.Node] = []
        for node in second:
            if any(value in missing for value in _operands(node)):
                missing.update(node.outputs)
            else:
                able.append(node)
        then = [value for value in wanted if value not in inside and value not in missing]
        done |= self._compute(able, then, {**at_hand, **done})
        return {value: done[value] for value in wanted if value in done}

    def _replace(self, value: ir.Value, content: facts.Array) -> None:
        node = value.producer()
        assert node is not None and node.graph is not None and isinstance(node.graph, ir.Graph)
        build = Builder(node, self._name)
        constant = build.constant(content, name=f"{value.name}/constant")
        if value.dtype == ir.DataType.STRING:
            # The general tensor class cannot be written to a file when it holds text.
            encoded = [str(text).encode() for text in content.reshape(-1)]
            constant.const_value = ir.StringTensor(encoded, shape=ir.Shape(content.shape), name=constant.name)
        self._log.applied.append(Application(self._name, value.name or ""))
        if value.is_graph_output():
            # An Identity will carry the name of the output; everything else reads the constant itself.
            for use in list(value.uses()):
                use.node.replace_input_with(use.idx, constant)
        new = [constant if output is value else None for output in node.outputs]
        commit(node.graph, node, new, build, self._name)

    def _constant_results(self) -> dict[ir.Value, _Result]:
        """Outputs of nodes that depend on constants only, in topological order."""
        results: dict[ir.Value, _Result] = {}
        for node in self._model.graph.all_nodes():
            if node in self._given_up or node.domain not in _DOMAINS or not _is_pure(node):
                continue
            operands = _operands(node)
            if not all(value in results or facts.is_constant(value) for value in operands):
                continue
            sizes = self._sizes(node, results)
            if sizes is None:
                continue
            source = min(1 << 62, sum(_source_bytes(value, results) for value in dict.fromkeys(operands)))
            for output, nbytes in zip(node.outputs, sizes, strict=True):
                results[output] = _Result(node, nbytes, source)
        return results

    def _sizes(self, node: ir.Node, results: dict[ir.Value, _Result]) -> list[int] | None:
        """Bytes of each output; None where they are not known yet, or the node must not be computed."""
        if node.op_type == "DequantizeLinear" or (
            node.op_type == "Identity" and node.outputs[0].is_graph_output()
        ):
            return None
        unknown = any(
            output.name and (facts.static_dims(output) is None or output.dtype is None)
            for output in node.outputs
        )
        if unknown and not infer_outputs(self._model, node):
            # Its size shows when it is computed: only where little goes in, and nothing is still to compute before it.
            if any(value in results for value in node.inputs if value is not None):
                return None
            nbytes = sum(constant_nbytes(value) for value in _operands(node))
            if _may_grow(node) or nbytes > self._options.max_growth_bytes:
                return None
        sizes: list[int] = []
        for output in node.outputs:
            if not output.name:
                sizes.append(0)
                continue
            if not is_native(output):
                return None
            shape = facts.static_dims(output)
            assert output.dtype is not None
            count = 1
            for dim in shape or ():
                count *= dim
            itemsize = TEXT_BYTES if output.dtype == ir.DataType.STRING else output.dtype.itemsize
            sizes.append(int(count * itemsize) if shape is not None else 0)
        return sizes if sum(sizes) <= self._options.max_bytes else None

    def _choose(self, results: dict[ir.Value, _Result]) -> dict[ir.Value, None]:
        """Results that become constants: those that something reads that stays. Last node first.

        A node that must stay because its result is too large in turn keeps what it reads alive.
        """
        stays: set[ir.Node] = set()
        chosen: list[ir.Value] = []
        for value, result in reversed(results.items()):
            readers = [use.node for use in value.uses()]
            kept = [reader for reader in readers if not _is_result(reader, results) or reader in stays]
            if not kept and not value.is_graph_output():
                continue
            if self._fits(value, result):
                application = Application(self._name, value.name or "")
                if self._gate(application):
                    chosen.append(value)
                    continue
            stays.add(result.node)
        return dict.fromkeys(reversed(chosen))

    def _fits(self, value: ir.Value, result: _Result) -> bool:
        if breaks_range(value) or (
            _widens_weight(result.node) and result.nbytes > self._options.max_growth_bytes
        ):
            return False
        if result.nbytes <= result.source_bytes + self._options.max_growth_bytes:
            return True
        return any(_is_weight(use.node, use.idx) for use in value.uses())

    def _batches(self, results: dict[ir.Value, _Result], chosen: dict[ir.Value, None]) -> list[list[ir.Node]]:
        """The nodes that the chosen results need, in topological order, cut where results add up to much."""
        needed: set[ir.Node] = set()
        stack = [results[value].node for value in chosen]
        while stack:
            node = stack.pop()
            if node in needed:
                continue
            needed.add(node)
            operands = _operands(node)
            stack += [results[value].node for value in operands if value in results]
        batches: list[list[ir.Node]] = []
        nbytes = 0
        for node in dict.fromkeys(result.node for result in results.values()):
            if node not in needed:
                continue
            if not batches or nbytes > _BATCH_BYTES:
                batches.append([])
                nbytes = 0
            batches[-1].append(node)
            nbytes += sum(results[output].nbytes for output in node.outputs)
        return batches


def _may_grow(node: ir.Node) -> bool:
    """Whether a result may be much larger than what a node reads."""
    if node.op_type in _GROWS:
        return True
    inner = list(inner_nodes(node))
    if node.op_type in ("Loop", "Scan"):
        trips = facts.scalar(node.inputs[0])
        if node.op_type == "Loop" and (trips is None or trips > _MOST_TRIPS):
            return True
        return any(each.op_type in _GROWS or each.op_type == "Concat" for each in inner)
    return any(each.op_type in _GROWS for each in inner)


def _operands(node: ir.Node) -> list[ir.Value]:
    """What a node reads, its subgraphs included."""
    return [value for value in node.inputs if value is not None] + captured(node)


def _source_bytes(value: ir.Value, results: dict[ir.Value, _Result]) -> int:
    return results[value].source_bytes if value in results else constant_nbytes(value)


def _is_result(node: ir.Node, results: dict[ir.Value, _Result]) -> bool:
    return bool(node.outputs) and node.outputs[0] in results


def _is_pure(node: ir.Node) -> bool:
    """Whether a node gives the same result each time, and so do the nodes of its subgraphs."""
    if is_random(node) or node.domain not in _DOMAINS:
        return False
    return all(_is_pure(inner) for inner in inner_nodes(node))


def _widens_weight(node: ir.Node) -> bool:
    source = node.inputs[0] if node.op_type == "Cast" else None
    return source is not None and source.dtype in _INTEGERS


def _is_weight(node: ir.Node, index: int) -> bool:
    if node.domain != "" or node.op_type not in _WEIGHTS:
        return False
    positions = _WEIGHTS[node.op_type]
    return positions is None or index in positions
