"""Which branches the verified inputs have taken."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

import graphopt
from graphopt.data.interface import Feeds
from graphopt.testing import model_from_text
from graphopt.verify.branches import unreached

TEXT = """g (float[n] x, int64 rate) => (float[m] y) <int64 wide={16}, float two={2}> {
    big = Relu(x) wanted = Equal(rate, wide)
    r = If(wanted) <then_branch = a () => (float[p] t) { t = Mul(x, two) },
                    else_branch = b () => (float[q] e) { e = Neg(big) }>
    y = Abs(r) }"""


def given(rate: int) -> Feeds:
    return {"x": np.ones(3, np.float32), "rate": np.array(rate)}


@pytest.mark.parametrize(
    ("rates", "missing"), [((16,), ["else_branch"]), ((8, 9), ["then_branch"]), ((8, 16), []), ((), [])]
)
def test_branches_that_no_input_takes(rates: tuple[int, ...], missing: list[str]) -> None:
    model = model_from_text(TEXT)
    before = [node.name for node in model.graph]
    found = unreached(model, [given(rate) for rate in rates])
    assert [name.rpartition("/")[2] for name in found] == missing
    assert [node.name for node in model.graph] == before and len(model.graph.outputs) == 1


def test_a_condition_that_is_an_input() -> None:
    text = """g (float[n] x, bool c) => (float[m] y) { y = If(c) <
        then_branch = a () => (float[p] t) { t = Relu(x) }, else_branch = b () => (float[q] e) { e = Neg(x) }> }"""
    model = model_from_text(text)
    (name,) = unreached(model, [{"x": np.ones(3, np.float32), "c": np.array(True)}])
    assert name.endswith("/else_branch")


NESTED = """g (float[n] x, int64 rate) => (float[m] y) <int64 wide={16}, int64 low={8}, float two={2}> {
    wanted = Equal(rate, wide)
    y = If(wanted) <
        then_branch = a () => (float[p] t) { t = Mul(x, two) },
        else_branch = b () => (float[q] e) {
            small = Less(rate, low)
            e = If(small) <then_branch = c () => (float[r] u) { u = Neg(x) },
                           else_branch = d () => (float[s] v) { v = Abs(x) }> }> }"""


@pytest.mark.parametrize(
    ("rates", "missing"),
    [
        ((16,), ["y/else_branch"]),
        ((4,), ["y/then_branch", "e/else_branch"]),
        ((4, 9, 16), []),
    ],
)
def test_branches_within_branches(rates: tuple[int, ...], missing: list[str]) -> None:
    found = unreached(named(NESTED), [given(rate) for rate in rates])
    assert sorted(found) == sorted(missing)


LOOP = """g (float[k] x, int64 times) => (float[k] y, float[i,k] z) <bool on={1}, int64 two={2}> {
    y, z = Loop(times, on, x) <body = b (int64 i, bool c, float[k] h) => (bool c2, float[k] h2, float[k] o) {
        c2 = Identity(c) late = Greater(i, two)
        h2 = If(late) <then_branch = d () => (float[k] u) { u = Neg(h) },
                       else_branch = e () => (float[k] v) { v = Exp(h) }>
        o = Abs(h2) }> }"""


@pytest.mark.parametrize(
    ("times", "missing"), [(0, ["h2/then_branch", "h2/else_branch"]), (3, ["h2/then_branch"]), (4, [])]
)
def test_branches_within_loops(times: int, missing: list[str]) -> None:
    assert unreached(named(LOOP), [{"x": np.ones(3, np.float32), "times": np.array(times)}]) == missing


SCAN = """g (float[n,k] x, float[k] start) => (float[k] last, float[n,k] y) <float none={0}> {
    last, y = Scan<num_scan_inputs=1, scan_output_axes=[0], body = b (float[k] h, float[k] row) => (float[k] h2, float[k] o) {
        sum = ReduceSum<keepdims=0>(row) up = Greater(sum, none)
        h2 = If(up) <then_branch = d () => (float[k] u) { u = Add(h, row) },
                     else_branch = e () => (float[k] v) { v = Sub(h, row) }>
        o = Abs(h2) }>(start, x) }"""


@pytest.mark.parametrize(("sign", "missing"), [(1, ["h2/else_branch"]), (-1, ["h2/then_branch"])])
def test_branches_within_scans(sign: int, missing: list[str]) -> None:
    feeds = {"x": np.full((2, 3), sign, np.float32), "start": np.ones(3, np.float32)}
    assert unreached(named(SCAN), [feeds]) == missing


def named(text: str) -> ir.Model:
    """The model with each node named after its first output."""
    model = model_from_text(text)
    for node in model.graph.all_nodes():
        node.name = node.outputs[0].name
    return model


def test_a_branch_that_is_as_it_was_is_not_named() -> None:
    model, before = named(NESTED), named(NESTED)
    assert not unreached(model, [given(16)], before=before)
    for node in model.graph.all_nodes():
        if node.op_type == "Abs":
            node.op_type = "Neg"
    assert unreached(model, [given(16)], before=before) == ["y/else_branch"]
    assert unreached(model, [given(4)], before=before) == ["e/else_branch"]


@pytest.mark.parametrize(
    ("rates", "work", "told"),
    [((16,), "Exp", False), ((16,), "Identity", True), ((16, 8), "Identity", False)],
)
def test_the_user_is_told(rates: tuple[int, ...], work: str, told: bool) -> None:
    """Where a pass did something in a branch that no input takes."""
    text = TEXT.replace("e = Neg(big)", f"f = {work}(big) e = Neg(f)")
    simplified = graphopt.simplify(model_from_text(text), data=[given(rate) for rate in rates])
    assert told == any("takes the branch" in warning for warning in simplified.report.warnings)
