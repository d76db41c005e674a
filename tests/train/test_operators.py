"""Each operator's form in PyTorch held to the cases of ONNX's own test suite."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest

from graphopt.capture import capture
from graphopt.errors import GraphoptError
from graphopt.train.module import NotTrainableError, to_module

torch = pytest.importorskip("torch")
OPERATORS = pytest.importorskip("graphopt.train.operators").OPERATORS
SEVERAL = pytest.importorskip("graphopt.train.operators").SEVERAL

KNOWN_LIMITS = {
    "Resize": 0.5,
    "Attention": 0.6,
    "AveragePool": 0.7,
    "GRU": 0.0,
    "LSTM": 0.5,
    "QuantizeLinear": 0.3,
    "DequantizeLinear": 0.3,
    "Cast": 0.1,
    "CastLike": 0.1,
    "Swish": 0.0,
    "BatchNormalization": 0.4,
    "Dropout": 0.5,
    "Not": 0.0,
    "ReduceMax": 0.8,
    "ReduceMin": 0.8,
    "ScatterElements": 0.5,
    "ScatterND": 0.25,
    "SpaceToDepth": 0.5,
}
"""Share of the cases that are covered, where it is less than nine tenths; the rest are refused by name."""


@cache
def cases() -> dict[str, list[Any]]:
    """Cases of one node, by operator."""
    from onnx.backend.test.case.node import collect_testcases

    found: dict[str, list[Any]] = {}
    types = {
        np.dtype(name) for name in ("bool", "uint8", "int8", "int16", "int32", "int64", "float32", "float64")
    }
    for case in collect_testcases(None):
        nodes = case.model.graph.node
        tensors = [value for values in case.data_sets[0] for value in values]
        plain = all(isinstance(value, np.ndarray | np.generic) for value in tensors)
        plain = plain and all(np.asarray(value).dtype in types for value in tensors)
        if plain and len(nodes) == 1 and nodes[0].op_type in OPERATORS and not nodes[0].domain:
            found.setdefault(nodes[0].op_type, []).append(case)
    return found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("op", sorted(OPERATORS))
def test_cases_of_onnx_are_computed_or_refused(op: str) -> None:
    right, refused = 0, []
    for case in cases().get(op, ()):
        names = [value.name for value in case.model.graph.input]
        feeds = dict(zip(names, map(np.asarray, case.data_sets[0][0]), strict=True))
        wanted = dict(
            zip(
                [value.name for value in case.model.graph.output],
                map(np.asarray, case.data_sets[0][1]),
                strict=True,
            )
        )
        try:
            # Statistics, masks and the like beside the first output have no form.
            first = [] if op in SEVERAL else [case.model.graph.output[0].name]
            module = to_module(capture(case.model).model, first)
            with torch.no_grad():
                made = dict(zip(module.outputs, (array.numpy() for array in module(feeds)), strict=True))
        except GraphoptError as error:
            refused.append(f"{case.name}: {error}")
            continue
        for name, got in made.items():
            array = wanted[name]
            assert got.shape == array.shape, case.name
            if op in ("QuantizeLinear",):
                # Whole numbers are carried in float.
                np.testing.assert_array_equal(got, array.astype(got.dtype), err_msg=case.name)
            elif array.dtype.kind == "f":
                tolerance = 5e-3 if array.dtype == np.float16 else 1e-5
                np.testing.assert_allclose(
                    got, array, rtol=100 * tolerance, atol=tolerance, err_msg=case.name
                )
            else:
                assert got.dtype == array.dtype, case.name
                np.testing.assert_array_equal(got, array, err_msg=case.name)
        right += 1
    share = KNOWN_LIMITS.get(op, 0.9)
    assert right >= share * (right + len(refused)), refused


def test_an_unknown_operator_is_refused_by_name() -> None:
    from graphopt.testing import model_from_text

    model = model_from_text("g (float[2,3] x) => (float[2,3] y) { y = Hardmax(x) }")
    with pytest.raises(NotTrainableError, match="Hardmax"):
        to_module(model)
