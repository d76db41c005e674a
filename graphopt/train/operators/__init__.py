"""What each ONNX operator is in PyTorch: differentiable, in plain functions.

A function takes the operands of a node in order, None for one that is left out, and its attributes by name. What it
does not cover it refuses with :class:`NotImplementedError`, which names the attribute or form. ``tests/train`` holds
each function to the cases of ONNX's own test suite.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from graphopt.train.operators import elementwise, normalize, products, quantized, recurrent, resize, views

Operator = Callable[..., Any]

OPERATORS: Mapping[str, Operator] = {
    **elementwise.OPERATORS,
    **normalize.OPERATORS,
    **products.OPERATORS,
    **quantized.OPERATORS,
    **recurrent.OPERATORS,
    **resize.OPERATORS,
    **views.OPERATORS,
}
"""By ONNX name, domain ``ai.onnx``, opsets 21 to 24."""

SEVERAL = frozenset({"Attention", "GRU", "LSTM", "RNN", "Split", "TopK"})
"""Operators whose functions give a tuple, whatever the number of outputs."""

__all__ = ["OPERATORS", "SEVERAL", "Operator"]
