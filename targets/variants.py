"""Settings of a processor that were measured to win on some models, whichever backend computes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir

from graphopt import denormals
from graphopt.data.interface import is_static

_ONE_THREAD_BELOW = 0.3
"""Milliseconds. Above it two threads win on a quiet machine, and one only looks good on a busy one."""


def of_a_processor(model: ir.Model, milliseconds: float | None) -> list[Mapping[str, Any]]:
    """One thread for models of a few hundred microseconds, where no size can make them larger; flushed denormals.

    Args:
        milliseconds: That the model takes; None where that is not known.
    """
    found: list[Mapping[str, Any]] = []
    if is_static(model) and (milliseconds is None or milliseconds < _ONE_THREAD_BELOW):
        found.append({"label": "one thread", "threads": 1})
    if denormals.can_flush():
        found.append({"label": "denormals flushed", "flush_denormals": True})
    return found
