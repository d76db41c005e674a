"""First-order importance against what outputs really lose."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.capture import capture
from graphopt.ir import shapes
from graphopt.models import builders
from graphopt.prune.gradients import first_order
from graphopt.prune.labels import PINNED
from graphopt.prune.structure import analyse, separate
from graphopt.testing import model_from_text, run
from tests.prune._masked import masked

pytest.importorskip("torch")
RNG = np.random.default_rng(7)


def lost(model: ir.Model, other: ir.Model, feeds: dict[str, np.ndarray]) -> float:
    wanted, got = run(model, feeds), run(other, feeds)
    return float(
        sum(np.square(wanted[name] - got[name]).sum() / np.square(wanted[name]).sum() for name in wanted)
    )


LINEAR = """
g (float[N,5] x) => (float[N,3] y) <float[5,8] w = {0}, float[8,3] v = {0}> { p = MatMul(x, w) y = MatMul(p, v) }
"""


def test_of_a_model_that_is_linear_in_its_channels_it_is_exact() -> None:
    model = model_from_text(LINEAR)
    for value in model.graph.initializers.values():
        array = RNG.standard_normal([int(size) for size in value.shape or ()]).astype(np.float32)
        value.const_value = ir.tensor(array, name=value.name)
    shapes.infer(model)
    model = separate(model)
    structure = analyse(model)
    (group,) = structure.groups
    feeds = {"x": RNG.standard_normal((1, 5)).astype(np.float32)}
    # Many projections of one sample: their mean is the square of the change.
    told = np.mean([first_order(model, structure, [feeds] * 64, seed=seed) for seed in range(60)], axis=0)
    for one in group.classes:
        assert told[one] == pytest.approx(lost(model, masked(model, structure, [one]), feeds), rel=0.15)


@pytest.mark.parametrize("name", ["conv_net", "transformer_block"])
def test_channels_that_matter_more_rank_higher(name: str) -> None:
    make = {
        "conv_net": lambda: builders.conv_net(channels=8, blocks=2, size=12),
        "transformer_block": builders.transformer_block,
    }
    model = separate(capture(make[name]()).model)
    shapes.infer(model)
    structure = analyse(model)
    sizes = {"conv_net": (1, 3, 12, 12), "transformer_block": (1, 7, 32)}
    samples = [
        {model.graph.inputs[0].name or "": RNG.standard_normal(sizes[name]).astype(np.float32)}
        for _ in range(24)
    ]
    told = first_order(model, structure, samples)
    assert told[PINNED] == 0 and np.isfinite(told).all()
    classes = [one for group in structure.groups for one in group.classes]
    real = [
        np.mean([lost(model, masked(model, structure, [one]), feeds) for feeds in samples[:4]])
        for one in classes
    ]
    ranks = [np.argsort(np.argsort(values)) for values in (told[classes], real)]
    assert np.corrcoef(ranks[0], ranks[1])[0, 1] > 0.6
