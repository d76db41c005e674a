"""Attention in pieces, as OpenVINO fuses them."""

import numpy as np
import pytest

from graphopt.targets.legalize.attention import LegalizeAttention
from graphopt.testing import check, check_refuses

QKV = "float[2,5,12] q, float[2,7,12] k, float[2,7,12] v"
HEADS = "q_num_heads=3, kv_num_heads=3"


def attention(
    mask: str = "", attributes: str = HEADS, inputs: str = QKV, out: str = "float[2,5,12] y"
) -> str:
    operands, declared = ("q, k, v, m", f", {mask}") if mask else ("q, k, v", "")
    return f"g ({inputs}{declared}) => ({out}) {{ y = Attention<{attributes}>({operands}) }}"


@pytest.mark.parametrize("attributes", [HEADS, f"{HEADS}, scale=0.3"])
def test_merged_heads(attributes: str) -> None:
    check(LegalizeAttention(), attention(attributes=attributes))


def test_separate_heads() -> None:
    inputs = "float[2,3,5,4] q, float[2,3,7,4] k, float[2,3,7,4] v"
    check(LegalizeAttention(), attention(inputs=inputs, attributes="scale=0.5", out="float[2,3,5,4] y"))


@pytest.mark.parametrize("shape", ["2,1,5,7", "5,7", "2,3,5,7"])
def test_a_float_mask(shape: str) -> None:
    check(LegalizeAttention(), attention(f"float[{shape}] m"))


@pytest.mark.onnxruntime("1.28", "makes zero of a row that Attention masks wholly")
def test_rows_that_a_mask_closes_are_zero() -> None:
    rng = np.random.default_rng(0)
    opened = rng.random((2, 1, 5, 7)) > 0.4
    opened[0, 0, 2] = False
    feeds = {
        name: rng.standard_normal((2, size, 12)).astype(np.float32)
        for name, size in zip("qkv", (5, 7, 7), strict=True)
    }
    result = check(LegalizeAttention(), attention("bool[2,1,5,7] m"), feeds={**feeds, "m": opened})
    del result
    mask = np.where(opened, 0, -np.inf).astype(np.float32)
    check(LegalizeAttention(), attention("float[2,1,5,7] m"), feeds={**feeds, "m": mask})


def test_dynamic_lengths() -> None:
    inputs = "float[n,l,12] q, float[n,s,12] k, float[n,s,12] v"
    check(LegalizeAttention(), attention(inputs=inputs, out="float[n,l,12] y"))


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        (f"{HEADS}, is_causal=1", "causal"),
        (f"{HEADS}, softcap=2.0", "capped"),
        ("q_num_heads=3, kv_num_heads=1", "grouped"),
    ],
)
def test_refuses(attributes: str, reason: str) -> None:
    inputs = QKV if "kv_num_heads=3" in attributes else "float[2,5,12] q, float[2,7,4] k, float[2,7,4] v"
    check_refuses(LegalizeAttention(), attention(attributes=attributes, inputs=inputs), reason)
