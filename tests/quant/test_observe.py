"""Calibration: what is observed, in how much memory, after an interruption, from whose data."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.data.interface import Feeds
from graphopt.errors import DataError, UsageError
from graphopt.quant import observe as module
from graphopt.quant.clipping import Rule
from graphopt.quant.observe import MEMORY, Taps, activation_bytes, calibrate, observe, parse_memory
from graphopt.testing import model_from_text, run

NET = """
g (float[n,4] x, float[n,4] z) => (float[n,3] y)
<float[4,8] w = {...}, float[8,3] v = {...}>
{
  a = MatMul(x, w)
  b = Relu(a)
  c = Add(x, z)
  d = MatMul(b, v)
  y = Tanh(d)
}
"""
NAMES = ("x", "a", "b", "c", "d", "y")


@pytest.fixture(name="net")
def _net() -> ir.Model:
    rng = np.random.default_rng(0)
    model = model_from_text(NET.replace("{...}", "{0}").replace("float[4,8] w = {0}", "float[4,8] w").replace("float[8,3] v = {0}", "float[8,3] v"))
    return model
