"""Shape inference and specialisation."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.capture import capture
from graphopt.errors import SpecError, UnknownNameError, UsageError
from graphopt.ir import model as ir_model
from graphopt.ir.shapes import infer, parse_input_shape, specialize
from graphopt.models import builders
from graphopt.testing import model_from_text, run


def shape(model: ir.Model, name: str) -> str | None:
    for graph in ir_model.with_subgraphs(model.graph):
        for value in (*graph.inputs, *(output for node in graph for output in node.outputs)):
            if value.name == name:
                return None if value.shape is None else str(value.shape)
    raise KeyError(name)


# --- infer ------------------------------------------------------------------------------------------------------


def test_infer_fills_in_types_and_shapes_in_subgraphs_too() -> None:
    model = ir_model.from_proto(builders.branch_and_loop())
    for node in model.graph.all_nodes():
        for value in node.outputs:
            value.type = value.shape = None
    assert infer(model)
    assert shape(model, "then_m") == "[3]" and shape(model, "else_m") == "[3]"
    assert all(value.dtype is not None for node in model.graph.all_nodes() for value in node.outputs)


def test_infer_follows_computed_shapes() -> None:
    model = ir_model.from_proto(builders.dynamic_net())
    assert infer(model)
    assert str(model.graph.outputs[0].shape) == "[n,3]"


def test_infer_keeps_names_that_are_known() -> None:
    model = model_from_text("g (float[batch, 4] x) => (float[batch, 4] y) { a = Relu(x) y = Neg(a) }")
    model.graph[0].outputs[0].shape = ir.Shape(["batch", None])
    assert infer(model)
    assert shape(model, "a") == "[batch,4]"


def test_infer_never_fails() -> None:
    model = model_from_text("g (float[2] x) => (float[2] y) { a = Relu(x) y = Neg(a) }")
    model.graph[0].op_type = "NoSuchOperator"
    before = shape(model, "a")
    infer(model)
    assert shape(model, "a") == before
    model.graph.opset_imports[""] = 10_000
    assert infer(model) in (True, False)
    assert shape(model, "a") == before


def test_infer_does_not_share_types_between_values() -> None:
    model = model_from_text("g (float[2] x) => (float[2] y) { a = Relu(x) y = Neg(a) }")
    infer(model)
    model.graph[0].outputs[0].dtype = ir.DataType.DOUBLE
    assert model.graph[1].outputs[0].dtype == ir.DataType.FLOAT


# --- specialize -------------------------------------------------------------------------------------------------


def dynamic() -> ir.Model:
    return capture(builders.conv_net(size="s")).model


def test_specialize_reaches_every_value() -> None:
    model = dynamic()
    specialize(model, {"x": (2, 3, 16, 16)})
    values = [value for node in model.graph for value in node.outputs]
    assert all(value.shape is not None and value.shape.is_static() for value in values)
    assert str(model.graph.outputs[0].shape) == "[2,10]"


def test_some_dimensions_may_stay() -> None:
    model = dynamic()
    specialize(model, {"x": (None, 3, 16, None)})
    assert str(model.graph.inputs[0].shape) == "[n,3,16,16]"  # the model calls height and width by one name
    assert str(model.graph.outputs[0].shape) == "[n,10]"


def test_a_symbol_gets_its_size_in_the_other_inputs() -> None:
    model = model_from_text("g (float[n, 4] x, float[m, n] z) => (y) { y = MatMul(z, x) }")
    specialize(model, {"x": (7, 4)})
    assert str(model.graph.inputs[1].shape) == "[m,7]"
    assert str(model.graph.outputs[0].shape) == "[m,4]"


def test_stale_inner_shapes_are_dropped() -> None:
    """Exporters write the sizes of the example into shapes that are dynamic."""
    model = model_from_text("g (float[n, 4] x) => (float[n, 4] y) { a = Relu(x) y = Neg(a) }")
    model.graph[0].outputs[0].shape = ir.Shape([1, 4])
    specialize(model, {"x": (5, 4)})
    assert shape(model, "a") == "[5,4]" and shape(model, "y") == "[5,4]"


def test_what_a_foreign_operator_declares_is_kept() -> None:
    model = model_from_text(
        '<ir_version: 10, opset_import: ["" : 21, "com.acme" : 1]>'
        "g (float[n, 4] x) => (float[n, 4] y) { a = com.acme.Mystery(x) y = Neg(a) }"
    )
    model.graph[0].outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    model.graph[0].outputs[0].shape = ir.Shape(["n", 4])
    specialize(model, {"x": (5, 4)})
    assert shape(model, "a") == "[5,4]" and shape(model, "y") == "[5,4]"


def test_what_is_declared_is_kept_where_inference_fails() -> None:
    model = model_from_text("g (float[n, 4] x) => (float[n, 4] y) { y = com.acme.Mystery(x) }")
    assert not infer(model)  # the domain is not imported
    specialize(model, {"x": (5, 4)})
    assert shape(model, "y") == "[5,4]"


def test_expressions_over_a_symbol_are_evaluated() -> None:
    model = model_from_text("g (float[n, 4] x, float[8] z) => (y) { y = Flatten(x) }")
    model.graph.inputs[1].shape = ir.Shape(["2*n"])
    specialize(model, {"x": (4, 4)})
    assert str(model.graph.inputs[1].shape) == "[8]"


def test_an_unknown_input_suggests_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown input 'xs': did you mean 'x'"):
        specialize(dynamic(), {"xs": (1, 3, 16, 16)})


def test_a_wrong_rank() -> None:
    with pytest.raises(
        UsageError, match=r"input 'x' has 4 dimensions \[n,3,s,s\], but 3 sizes are given"
    ) as caught:
        specialize(dynamic(), {"x": (3, 16, 16)})
    assert "x:?,3,?,?" in caught.value.hint and caught.value.exit_code == 2


def test_a_contradiction_with_a_fixed_size() -> None:
    with pytest.raises(
        UsageError, match=r"input 'x' is fixed to \[n,3,s,s\]: dimension 1 is 3 and cannot become 4"
    ):
        specialize(dynamic(), {"x": (1, 4, 16, 16)})


@pytest.mark.parametrize("size", [0, -1])
def test_a_size_that_is_not_positive(size: int) -> None:
    with pytest.raises(UsageError, match=f"dimension 0 cannot be {size}"):
        specialize(dynamic(), {"x": (size, 3, 16, 16)})


def test_two_sizes_for_one_symbol() -> None:
    with pytest.raises(UsageError, match=r"dimension 's' would be 16 in input 'x' and 24 in input 'x'"):
        specialize(dynamic(), {"x": (1, 3, 16, 24)})


def test_nothing_changes_when_it_is_refused() -> None:
    model = dynamic()
    with pytest.raises(UsageError):
        specialize(model, {"x": (1, 4, 16, 16)})
    assert str(model.graph.inputs[0].shape) == "[n,3,s,s]"


@settings(max_examples=15, deadline=None, derandomize=True)
@given(n=st.integers(1, 4), s=st.integers(3, 9))
def test_inferred_shapes_are_those_of_a_run(n: int, s: int) -> None:
    model = capture(builders.transformer_block(length="s")).model
    specialize(model, {"x": (n, s, 32)})
    nodes = list(model.graph)
    model.graph.outputs.extend(node.outputs[0] for node in nodes[:-1])
    found = run(model, {"x": np.ones((n, s, 32), dtype=np.float32)})
    for value in model.graph.outputs:
        assert value.shape is not None and found[value.name or ""].shape == value.shape.numpy()


# --- parse_input_shape ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name", "dims"),
    [
        ("x:1,3,224,224", "x", (1, 3, 224, 224)),
        ("x: 1 , 2", "x", (1, 2)),
        ("gpu_0/data:0:1,?", "gpu_0/data:0", (1, None)),
        ("sr:", "sr", ()),
    ],
)
def test_input_shapes_as_text(text: str, name: str, dims: tuple[int | None, ...]) -> None:
    assert parse_input_shape(text) == (name, dims)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,3,224", "expected NAME:SIZE,SIZE"),
        (":1,2", "expected NAME:SIZE,SIZE"),
        ("x:1,a", "'a' at position 1 is no integer"),
        ("x:1,,2", "'' at position 1 is no integer"),
        ("x:1.5", "'1.5' at position 0 is no integer"),
        ("x:1,0", "the size at position 1 is 0, but sizes are positive"),
        ("x:-1,3", "the size at position 0 is -1, but sizes are positive"),
    ],
)
def test_input_shapes_that_cannot_be_read(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        parse_input_shape(text)


@settings(max_examples=50, derandomize=True)
@given(name=st.text(min_size=1), dims=st.lists(st.integers(1, 10**6)))
def test_any_name_and_sizes_can_be_written(name: str, dims: list[int]) -> None:
    assert parse_input_shape(f"{name}:{','.join(map(str, dims))}") == (name, tuple(dims))
