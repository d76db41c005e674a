"""Folding of affine maps into random linear ops: whatever fires, the numbers agree; what must fire, fires.

Covers batchnorm-into-conv, batchnorm-before-conv, scale-into-conv, scale-before-conv, add-into-bias, shift-before-conv,
affine-after-pool and consecutive-linear.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.ir import opset
from graphopt.passes.add_into_bias import AddIntoBias
from graphopt.passes.affine_after_pool import AffineAfterPool
from graphopt.passes.batchnorm_before_conv import BatchNormBeforeConv
from graphopt.passes.batchnorm_into_conv import BatchNormIntoConv
from graphopt.passes.consecutive_linear import ConsecutiveLinear
from graphopt.passes.scale_before_conv import ScaleBeforeConv
from graphopt.passes.scale_into_conv import ScaleIntoConv
from graphopt.passes.shift_before_conv import ShiftBeforeConv
from graphopt.pipeline.base import RewritePass
from graphopt.testing import apply, assert_same_numbers, random_feeds, run

Node = tuple[str, Sequence[str], dict[str, Any]]
TOLERANCE = {"float16": 4e-3, "float32": 2e-5, "float64": 1e-13}
QUICK = settings(derandomize=True, deadline=None, max_examples=60)


class Chain:
    """A chain of nodes over one input; random constants are made as nodes ask for them."""

    def __init__(self, shape: Sequence[int], dtype: str, seed: int) -> None:
        self.shape, self.dtype = list(shape), np.dtype(dtype)
        self.rng = np.random.default_rng(seed)
        self.nodes: list[Node] = []
        self.constants: dict[str, np.ndarray[Any, Any]] = {}

    def normal(self, *shape: int) -> str:
        return self.constant(self.rng.standard_normal(shape))

    def positive(self, *shape: int) -> str:
        return self.constant(self.rng.uniform(0.5, 2.0, shape))

    def constant(self, array: Any) -> str:
        name = f"c{len(self.constants)}"
        array = np.asarray(array)
        self.constants[name] = array.astype(self.dtype) if array.dtype.kind == "f" else array
        return name

    def add(self, kind: str, *inputs: str, **attributes: Any) -> Chain:
        self.nodes.append((kind, inputs, attributes))
        return self

    def model(self) -> ir.Model:
        made, previous = [], "x"
        for index, (kind, inputs, attributes) in enumerate(self.nodes):
            name = "y" if index == len(self.nodes) - 1 else f"t{index}"
            operands = [previous if value == "_" else value for value in inputs]
            made.append(onnx.helper.make_node(kind, operands, [name], name=f"n{index}", **attributes))
            previous = name
        element = onnx.helper.np_dtype_to_tensor_dtype(self.dtype)
        graph = onnx.helper.make_graph(
            made,
            "g",
            [onnx.helper.make_tensor_value_info("x", element, self.shape)],
            [onnx.helper.make_tensor_value_info("y", element, None)],
            [onnx.numpy_helper.from_array(array, name) for name, array in self.constants.items()],
        )
        newest = opset.limits()
        opsets = [onnx.helper.make_opsetid("", newest.newest_opset)]
        proto = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=newest.ir_version)
        model = ir.from_proto(proto)
        onnx_ir.passes.common.ShapeInferencePass()(model)
        return model

    def check(self, *rewrites: Any) -> tuple[ir.Model, Mapping[str, int]]:
        """Apply them; the numbers agree."""
        before = self.model()
        after, log = apply(RewritePass("tested", rewrites), before)
        if log.applied:
            assert_same_numbers(before, after, random_feeds(before), rtol=TOLERANCE[self.dtype.name])
        return after, log.counts()


def kinds(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def runs(chain: Chain) -> bool:
    """Whether the random chain is a valid model."""
    try:
        model = chain.model()
        run(model, random_feeds(model))
    except Exception:
        return False
    return True


@st.composite
def linears(draw: st.DrawFn) -> tuple[Chain, str, int, int, int]:
    """A chain without nodes, an op to put in it, its channels, the rank of its input, and the seed."""
    kind = draw(st.sampled_from(["Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization"]))
    seed = draw(st.integers(0, 1000))
    group = draw(st.sampled_from([1, 2, 4])) if kind.startswith("Conv") else 1
    inputs = group * draw(st.integers(1, 3)) + (kind in ("Gemm", "MatMul"))
    outputs = inputs if kind == "BatchNormalization" else group * draw(st.integers(1, 3)) + 1 - (group > 1)
    spatial = draw(st.integers(1, 2)) if kind not in ("Gemm", "MatMul") else 0
    dtype = "float32" if draw(st.booleans()) else "float16"
    if kind in ("Gemm", "MatMul") and draw(st.booleans()):
        dtype = "float64"
    shape = [2, inputs, *[7, 6][:spatial]]
    if kind == "MatMul" and draw(st.booleans()):
        shape = [2, 3, inputs]
    return Chain(shape, dtype, seed), kind, inputs, outputs, len(shape)


def put(
    chain: Chain, kind: str, inputs: int, outputs: int, rank: int, data: st.DataObject, pad: bool = True
) -> None:
    """Append the linear op with random attributes."""
    draw, spatial = data.draw, rank - 2
    bias = draw(st.booleans())
    if kind == "BatchNormalization":
        statistics = [
            chain.positive(inputs),
            *(chain.normal(inputs) for _ in range(2)),
            chain.positive(inputs),
        ]
        chain.add(kind, "_", *statistics, epsilon=draw(st.sampled_from([1e-5, 1e-3])))
    elif kind == "MatMul":
        chain.add(kind, "_", chain.normal(inputs, outputs))
        if bias:
            chain.add("Add", *draw(st.permutations(["_", chain.normal(outputs)])))
    elif kind == "Gemm":
        transposed = draw(st.integers(0, 1))
        weight = chain.normal(*((outputs, inputs) if transposed else (inputs, outputs)))
        shape = draw(st.sampled_from([(outputs,), (1, outputs), (1,), ()]))
        extra = [chain.normal(*shape)] if bias else []
        alpha, beta = draw(st.sampled_from([1.0, 0.5])), draw(st.sampled_from([1.0, 2.0]))
        chain.add(kind, "_", weight, *extra, transB=transposed, alpha=alpha, beta=beta)
    else:
        group = max(g for g in (1, 2, 4) if inputs % g == 0 and outputs % g == 0)
        kernel = draw(st.lists(st.integers(1, 3), min_size=spatial, max_size=spatial))
        first = (outputs, inputs // group) if kind == "Conv" else (inputs, outputs // group)
        extra = [chain.normal(outputs)] if bias else []
        pads = draw(st.lists(st.integers(0, 1), min_size=2 * spatial, max_size=2 * spatial))
        options: dict[str, Any] = {"pads": pads if pad else [0] * (2 * spatial)}
        if kind == "Conv" and draw(st.booleans()):
            modes = ["VALID", "SAME_UPPER", "SAME_LOWER"] if pad else ["VALID"]
            options = {"auto_pad": draw(st.sampled_from(modes))}
        strides = [draw(st.integers(1, 2))] * spatial
        dilations = [draw(st.integers(1, 2))] * spatial
        if "auto_pad" in options and options["auto_pad"] != "VALID":
            dilations = [1] * spatial
        options |= {"group": group, "strides": strides, "dilations": dilations}
        chain.add(kind, "_", chain.normal(*first, *kernel), *extra, **options)


def channel_axis(kind: str, rank: int) -> int:
    return rank - 1 if kind == "MatMul" else 1


def put_affine(chain: Chain, channels: int, axis: int, rank: int, data: st.DataObject) -> str:
    """Append a map by a scalar or per-channel constant; returns its op type."""
    kind = data.draw(st.sampled_from(["Mul", "Div", "Add", "Sub", "Neg"]))
    if kind == "Neg":
        chain.add(kind, "_")
        return kind
    per_channel = (channels, *(1,) * (rank - 1 - axis))
    shape = data.draw(
        st.sampled_from([(), (1,), (1,) * rank, per_channel, (1,) * (rank - len(per_channel)) + per_channel])
    )
    operands = ["_", chain.positive(*shape)]
    if kind != "Div" and data.draw(st.booleans()):
        operands.reverse()
    chain.add(kind, *operands)
    return kind


@given(linears(), st.data())
@QUICK
def test_affine_after(linear: tuple[Chain, str, int, int, int], data: st.DataObject) -> None:
    chain, kind, inputs, outputs, rank = linear
    put(chain, kind, inputs, outputs, rank, data)
    is_bias = kind == "MatMul" and len(chain.nodes) == 1
    added = put_affine(chain, outputs, channel_axis(kind, rank), rank, data)
    after, counts = chain.check(ScaleIntoConv(), AddIntoBias())
    if not (is_bias and added in ("Add", "Sub")):
        assert sum(counts.values()) >= 1
        assert len(kinds(after)) == len(chain.nodes) - 1


@given(linears(), st.data())
@QUICK
def test_batchnorm_after(linear: tuple[Chain, str, int, int, int], data: st.DataObject) -> None:
    chain, kind, inputs, outputs, rank = linear
    put(chain, kind, inputs, outputs, rank, data)
    channels = 3 if kind == "MatMul" and rank == 3 else outputs
    put(chain, "BatchNormalization", channels, channels, rank, data)
    after, counts = chain.check(BatchNormIntoConv())
    if kind == "MatMul" and rank == 3:
        assert not counts or outputs == 3
    else:
        assert counts == {"batchnorm-into-conv": 1}
        assert kinds(after).count("BatchNormalization") == (kind == "BatchNormalization")


@given(linears(), st.data())
@QUICK
def test_affine_before(linear: tuple[Chain, str, int, int, int], data: st.DataObject) -> None:
    chain, kind, inputs, outputs, rank = linear
    added = put_affine(chain, inputs, channel_axis(kind, rank), rank, data)
    put(chain, kind, inputs, outputs, rank, data, pad=False)
    _, counts = chain.check(ScaleBeforeConv(), ShiftBeforeConv())
    must = added in ("Mul", "Div", "Neg") or kind not in ("ConvTranspose", "MatMul")
    assert not must or sum(counts.values()) >= 1


@given(linears(), st.data())
@QUICK
def test_padding_never_lets_a_shift_through(
    linear: tuple[Chain, str, int, int, int], data: st.DataObject
) -> None:
    chain, kind, inputs, outputs, rank = linear
    put_affine(chain, inputs, channel_axis(kind, rank), rank, data)
    if data.draw(st.booleans()):
        put(chain, "BatchNormalization", chain.shape[1], chain.shape[1], rank, data)
    put(chain, kind, inputs, outputs, rank, data)
    chain.check(ScaleBeforeConv(), ShiftBeforeConv(), BatchNormBeforeConv())


@given(linears(), st.data(), st.lists(st.sampled_from([1, 2, 3]), max_size=4))
@QUICK
def test_any_constant_shape(
    linear: tuple[Chain, str, int, int, int], data: st.DataObject, shape: list[int]
) -> None:
    """Shapes that broadcast in some other way, enlarge the rank or a dimension: numbers and shapes must stay."""
    chain, kind, inputs, outputs, rank = linear
    if data.draw(st.booleans()):
        put(chain, kind, inputs, outputs, rank, data)
        chain.add(data.draw(st.sampled_from(["Mul", "Add", "Sub"])), "_", chain.normal(*shape))
    else:
        chain.add(data.draw(st.sampled_from(["Mul", "Add", "Sub"])), "_", chain.normal(*shape))
        put(chain, kind, inputs, outputs, rank, data)
    if runs(chain):
        chain.check(ScaleIntoConv(), AddIntoBias(), ScaleBeforeConv(), ShiftBeforeConv())


THROUGH: list[tuple[str, dict[str, Any]]] = [
    ("Relu", {}),
    ("LeakyRelu", {"alpha": 0.2}),
    ("MaxPool", {"kernel_shape": [2, 2], "pads": [1, 0, 1, 0]}),
    ("AveragePool", {"kernel_shape": [2, 3], "pads": [1, 1, 0, 1], "count_include_pad": 1}),
    ("AveragePool", {"kernel_shape": [2, 3], "pads": [1, 1, 0, 1], "count_include_pad": 0}),
    ("AveragePool", {"kernel_shape": [2, 3], "ceil_mode": 1, "strides": [2, 2]}),
    ("GlobalAveragePool", {}),
    ("GlobalMaxPool", {}),
    ("Transpose", {"perm": [0, 2, 1, 3]}),
    ("Transpose", {"perm": [3, 1, 0, 2]}),
    ("DepthToSpace", {"blocksize": 1}),
    ("Flatten", {"axis": 2}),
    ("PRelu", {}),
    ("ReduceMean", {"keepdims": 1}),
    ("ReduceMax", {"keepdims": 0}),
    ("Slice", {}),
]


@given(
    st.integers(0, 99), st.lists(st.sampled_from(THROUGH), min_size=1, max_size=3), st.data(), st.booleans()
)
@settings(derandomize=True, deadline=None, max_examples=120)
def test_ops_between(
    seed: int, between: list[tuple[str, dict[str, Any]]], data: st.DataObject, upwards: bool
) -> None:
    """Scale or shift above or below a chain of ops that some maps pass through and others do not."""
    chain = Chain([1, 3, 6, 6], "float32", seed)
    put(chain, "Conv", 3, 3, 4, data, pad=False)
    kind = data.draw(st.sampled_from(["Mul", "Add", "BatchNormalization"]))
    shape = data.draw(st.sampled_from([(), (3, 1, 1), (1, 1, 1, 1)]))

    def put_map() -> None:
        if kind == "BatchNormalization":
            put(chain, kind, 3, 3, 4, data)
        else:
            values = data.draw(st.sampled_from([chain.normal, chain.positive]))
            chain.add(kind, "_", values(*shape))

    if not upwards:
        chain.add("Sigmoid", "_")
        put_map()
    for op, attributes in between:
        extra: list[str] = []
        if op == "PRelu":
            extra = [chain.positive(1)]
        elif op.startswith("Reduce"):
            extra = [chain.constant(np.array([2], np.int64))]
        elif op == "Slice":
            extra = [chain.constant(np.array([value], np.int64)) for value in (0, 1, 2)]
        chain.add(op, "_", *extra, **attributes)
    if upwards:
        put_map()
    else:
        put(chain, "Conv", 3, 2, 4, data)
    if runs(chain):
        chain.check(
            BatchNormIntoConv(),
            ScaleIntoConv(),
            AddIntoBias(),
            ScaleBeforeConv(),
            ShiftBeforeConv(),
            BatchNormBeforeConv(),
            AffineAfterPool(),
        )


@given(
    st.integers(0, 99),
    st.data(),
    st.sampled_from(["Conv", "Gemm", "MatMul"]),
    st.tuples(*[st.integers(1, 5)] * 3),
)
@QUICK
def test_consecutive(seed: int, data: st.DataObject, kind: str, widths: tuple[int, int, int]) -> None:
    rank = 4 if kind == "Conv" else data.draw(st.sampled_from([2, 3] if kind == "MatMul" else [2]))
    a, b, c = widths
    chain = Chain([2, a, 6, 6] if kind == "Conv" else [2, 3, a][-rank:], "float32", seed)
    pointwise_last = data.draw(st.booleans())
    for inputs, outputs, is_last in ((a, b, False), (b, c, True)):
        if kind == "Conv":
            size, bias = 1 if is_last == pointwise_last else 3, data.draw(st.booleans())
            pads = [data.draw(st.integers(0, 1))] * 4 if size == 3 else [0] * 4
            extra = [chain.normal(outputs)] if bias else []
            strides = [data.draw(st.integers(1, 2))] * 2 if size == 3 else [1, 1]
            chain.add(
                "Conv", "_", chain.normal(outputs, inputs, size, size), *extra, pads=pads, strides=strides
            )
        else:
            put(chain, kind, inputs, outputs, rank, data)
    after, counts = chain.check(ConsecutiveLinear())
    if kind != "Conv":
        assert (a * c < a * b + b * c) == bool(counts)
        assert sum(op in ("MatMul", "Gemm") for op in kinds(after)) == 2 - bool(counts)


VIEWS = [
    (24, 6),
    (6, 4, 6),
    (2, 12, 6),
    (2, 3, 24),
    (2, 3, 4, 2, 3),
    (2, 3, 4, 6, 1),
    (2, 3, 4, 1, 6),
    (3, 2, 4, 6),
    (144,),
]


@given(st.integers(0, 1000), st.sampled_from(VIEWS), st.booleans(), st.data())
@QUICK
def test_views_between(seed: int, view: tuple[int, ...], up: bool, data: st.DataObject) -> None:
    """A map along any axis of a view, behind a product or before one."""
    source = (2, 3, 4, 6)
    chain = Chain((2, 3, 4, 5) if up else view, "float32", seed)
    axis = data.draw(st.integers(0, len(view) - 1))
    scale = chain.positive(view[axis], *(1,) * (len(view) - 1 - axis))
    op = data.draw(st.sampled_from(["Mul", "Add"]))
    if up:
        chain.add("MatMul", "_", chain.normal(5, 6)).add("Add", "_", chain.normal(6))
        chain.add("Reshape", "_", chain.constant(np.array(view))).add(op, "_", scale)
    else:
        chain.add(op, "_", scale).add("Reshape", "_", chain.constant(np.array(source)))
        chain.add("MatMul", "_", chain.normal(6, 5)).add("Add", "_", chain.normal(5))
    rewrites = (ScaleIntoConv(), AddIntoBias()) if up else (ScaleBeforeConv(), ShiftBeforeConv())
    _, counts = chain.check(*rewrites)
    is_scalar, is_column = view[axis] == 1, view[axis] == 6 and np.prod(view[axis + 1 :]) == 1
    assert bool(counts) == (is_scalar or is_column)
