"""Builds small models from arrays, for the tests of passes that fold weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common

from graphopt.rewrite import Rewrite, RewriteLog
from graphopt.testing import apply, assert_same_numbers, random_feeds

Node = tuple[str, Sequence[str], dict[str, Any]]

TOLERANCE = {np.dtype(np.float16): 4e-3, np.dtype(np.float32): 2e-5, np.dtype(np.float64): 1e-13}


def build(
    nodes: Sequence[Node], constants: Mapping[str, Any], shape: Sequence[int | str], dtype: Any = np.float32
) -> ir.Model:
    """A chain of nodes: each is (op type, inputs, attributes), reads "_" for the one before, and the last is the output."""
    made, previous = [], "x"
    for index, (kind, inputs, attributes) in enumerate(nodes):
        name = "y" if index == len(nodes) - 1 else f"t{index}"
        made.append(
            onnx.helper.make_node(
                kind,
                [previous if value == "_" else value for value in inputs],
                [name],
                name=f"n{index}",
                **attributes,
            )
        )
        previous = name
    element = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph = onnx.helper.make_graph(
        made,
        "g",
        [onnx.helper.make_tensor_value_info("x", element, shape)],
        [onnx.helper.make_tensor_value_info("y", element, None)],
        [onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 26)], ir_version=13)
    model = ir.from_proto(proto)
    onnx_ir.passes.common.ShapeInferencePass()(model)
    return model


def rewrite(rewrites: Rewrite, model: ir.Model, dtype: Any = np.float32) -> tuple[ir.Model, RewriteLog]:
    """Apply, and compare the numbers within a few roundings of ``dtype`` if anything was done."""
    after, log = apply(rewrites, model)
    if log.applied:
        feeds = random_feeds(model, {}, 1)
        assert_same_numbers(model, after, feeds, rtol=TOLERANCE[np.dtype(dtype)])
    return after, log


def kinds(model: ir.Model) -> list[str]:
    """Op types in order."""
    return [node.op_type for node in model.graph]
