"""Rewrites into what OpenVINO computes right and fast, in the order in which they are tried."""

from __future__ import annotations

from graphopt.rewrite import Rewrite
from graphopt.targets.legalize.attention import LegalizeAttention

REWRITES: tuple[type[Rewrite], ...] = (LegalizeAttention,)
