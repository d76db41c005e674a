"""Which channels go: ranking, widths, shares, and groups of convolutions that lose as many each."""

from __future__ import annotations

import itertools

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.ir import shapes
from graphopt.prune.choose import all_removed, cheapest_first, choices, macs, uniform
from graphopt.prune.score import scores
from graphopt.prune.structure import analyse
from graphopt.testing import model_from_text

RNG = np.random.default_rng(0)


def chain(widths: list[int]) -> ir.Model:
    """1x1 convolutions with Relu between them."""
    body, weights = [], []
    for place, (before, after) in enumerate(itertools.pairwise([3, *widths])):
        weights.append(f"float[{after},{before},1,1] w{place} = {{0}}")
        source = "x" if place == 0 else f"r{place - 1}"
        last = place == len(widths) - 1
        target = "y" if last else f"p{place}"
        body.append(f"{target} = Conv({source}, w{place})" + ("" if last else f" r{place} = Relu(p{place})"))
    model = model_from_text(
        f"g (float[N,3,4,4] x) => (float[N,{widths[-1]},4,4] y) <{', '.join(weights)}> {{ {' '.join(body)} }}"
    )
    for value in model.graph.initializers.values():
        dims = [int(size) for size in value.shape]  # type: ignore[union-attr]
        value.const_value = ir.tensor(RNG.standard_normal(dims).astype(np.float32), name=value.name)
    shapes.infer(model)
    return model


@pytest.mark.parametrize(
    ("width", "multiple", "step"), [(64, 16, 16), (32, 16, 16), (64, 8, 8), (30, 8, 2), (12, 16, 4)]
)
def test_widths_stay_multiples(width: int, multiple: int, step: int) -> None:
    structure = analyse(chain([width, 4]))
    (choice,) = choices(structure, np.ones(len(structure.classes)), multiple, structure.groups)
    assert choice.step == step
    for share in (0.1, 0.3, 0.5, 0.99):
        count = choice.rounded(share)
        assert count % step == 0 and count <= 0.9 * width


def test_the_least_important_ones_go_first() -> None:
    model = chain([8, 8, 4])
    structure = analyse(model)
    ranks = np.arange(len(structure.classes), dtype=float)
    for choice in choices(structure, ranks, 1, structure.groups):
        assert choice.removed(3) == sorted(choice.group.classes)[:3]


def test_macs_are_those_of_the_layers() -> None:
    model = chain([8, 16, 4])
    structure = analyse(model)
    places = {layer.name: 16 for layer in structure.layers}
    assert list(macs(structure, places).values()) == [16 * 3 * 8, 16 * 8 * 16, 16 * 16 * 4]
    found = choices(structure, np.ones(len(structure.classes)), 1, structure.groups)
    removed = uniform(found, 0.5)
    assert list(macs(structure, places, removed).values()) == [16 * 3 * 4, 16 * 4 * 8, 16 * 8 * 4]


def test_more_goes_where_it_costs_less_for_what_it_saves() -> None:
    structure = analyse(chain([8, 8, 4]))
    first, second = structure.groups
    ranks = np.zeros(len(structure.classes))
    ranks[list(first.classes)], ranks[list(second.classes)] = 1.0, 0.1
    found = choices(structure, ranks, 1, structure.groups)
    assert cheapest_first(found, {first.name: 8.0, second.name: 8.0})[:4] == [(1, 1), (1, 2), (1, 3), (1, 4)]
    assert cheapest_first(found, {first.name: 800.0, second.name: 8.0})[:2] == [(0, 1), (0, 2)]
    capped = cheapest_first(found, {first.name: 8.0, second.name: 8.0}, cap=0.5)
    assert capped == [(1, 1), (1, 2), (1, 3), (1, 4), (0, 1), (0, 2), (0, 3), (0, 4)]
    assert all_removed(found, [0, 2]) == set(sorted(second.classes)[:2])


def test_of_what_loses_nothing_the_slowest_for_its_work_goes_first() -> None:
    structure = analyse(chain([8, 8, 4]))
    first, second = structure.groups
    found = choices(structure, np.zeros(len(structure.classes)), 1, structure.groups)
    gain = {first.name: 8.0, second.name: 8.0}
    assert {index for index, _ in cheapest_first(found, gain)[:4]} == {0}
    assert {index for index, _ in cheapest_first(found, gain, per_work={second.name: 1.0})[:4]} == {1}
    # Where something is lost, it is what counts.
    ranks = np.zeros(len(structure.classes))
    ranks[list(second.classes)] = 1.0
    lossy = choices(structure, ranks, 1, structure.groups)
    assert {index for index, _ in cheapest_first(lossy, gain, per_work={second.name: 1.0})[:4]} == {0}


def test_groups_of_a_convolution_lose_as_many_each() -> None:
    model = model_from_text(
        """
        g (float[N,3,4,4] x) => (float[N,2,4,4] y)
        <float[12,3,1,1] a = {0}, float[8,3,1,1] b = {0}, float[2,8,1,1] c = {0}>
        { p = Conv(x, a) q = Conv <group=4> (p, b) y = Conv(q, c) }
        """
    )
    shapes.infer(model)
    structure = analyse(model)
    ranks = RNG.random(len(structure.classes))
    for choice in choices(structure, ranks, 1, structure.groups):
        assert all(len(unit.classes) == 4 for unit in choice.units)
        members = np.sort(np.array([unit.classes for unit in choice.units]).ravel())
        assert members.tolist() == sorted(choice.group.classes)


@pytest.mark.parametrize("criterion", ["hessian", "activation", "magnitude", "taylor"])
def test_channels_that_do_nothing_are_ranked_last(criterion: str) -> None:
    """Two channels that nothing reads, or, for what looks at data, that are always zero."""
    model = chain([8, 4])
    structure = analyse(model)
    first, second = (node.inputs[1] for node in model.graph if node.op_type == "Conv")
    weight = second.const_value.numpy().copy()  # type: ignore[union-attr]
    weight[:, [2, 5]] = 0
    second.const_value = ir.tensor(weight, name=second.name)  # type: ignore[union-attr]
    if criterion == "magnitude":
        made = first.const_value.numpy().copy()  # type: ignore[union-attr]
        made[[2, 5]] = 0
        first.const_value = ir.tensor(made, name=first.name)  # type: ignore[union-attr]
    samples = [{"x": RNG.standard_normal((4, 3, 4, 4)).astype(np.float32)} for _ in range(4)]
    ranking = scores(model, structure, samples, criterion, memory=1 << 28)  # type: ignore[arg-type]
    of_channel = structure.class_of(first, 0)
    assert of_channel is not None
    assert set(np.argsort(ranking.scores[of_channel])[:2].tolist()) == {2, 5}


def test_the_loss_of_so_many_units_is_what_least_squares_leaves() -> None:
    """One factorization for all numbers of units, in any order, against NumPy's own least squares for each."""
    model = chain([8, 4])
    structure = analyse(model)
    rows = RNG.standard_normal((2000, 3)).astype(np.float32)
    samples = [{"x": part.reshape(-1, 3, 1, 1).repeat(4, 2).repeat(4, 3)} for part in np.split(rows, 10)]
    ranking = scores(model, structure, samples, "hessian", memory=1 << 28)
    layer = structure.layers[1]
    classes = np.array(structure.groups[0].classes)
    channel_of = {one: index for index, one in enumerate(structure.class_of(layer.data, 1))}  # type: ignore[arg-type]
    first, second = (node.inputs[1].const_value.numpy() for node in model.graph if node.op_type == "Conv")  # type: ignore[union-attr]
    read = np.maximum(rows @ first[:, :, 0, 0].T, 0).astype(np.float64)
    wanted = read @ second[:, :, 0, 0].T
    order = RNG.permutation(classes)
    units = [order[:1].tolist(), order[1:3].tolist(), *([one] for one in order[3:7].tolist())]
    losses = ranking.losses(units, [layer])
    assert losses[0] == 0 and len(losses) == len(units) + 1
    gone: list[int] = []
    for unit, loss in zip(units, losses[1:], strict=True):
        gone += [channel_of[one] for one in unit]
        kept = np.delete(read, gone, axis=1)
        solution = np.linalg.lstsq(kept, wanted, rcond=None)[0]
        left = np.square(wanted - kept @ solution).sum() / np.square(wanted).sum()
        # The ridge of the ranking makes it a little larger.
        assert left * 0.9 < loss < left * 1.3 + 0.02


def test_narrow_layers_lose_their_share_together() -> None:
    structure = analyse(chain([32] * 8 + [4]))
    made = choices(structure, np.ones(len(structure.classes)), 16, structure.groups)
    assert {choice.step for choice in made} == {16}
    for share in (0.125, 0.25, 0.3, 0.5):
        removed = uniform(made, share)
        # A step is half a layer: what one loses too much another one is spared.
        assert abs(len(removed) / (8 * 32) - share) <= 16 / (8 * 32)
        lost = [len(removed.intersection(choice.group.classes)) for choice in made]
        assert set(lost) <= {0, 16}


def test_what_may_not_go_of_one_layer_is_not_taken_of_the_next() -> None:
    structure = analyse(chain([64, 64, 64, 4]))
    first = structure.groups[0]
    kept = frozenset(first.classes[16:])
    made = choices(structure, np.ones(len(structure.classes)), 8, structure.groups, kept)
    removed = uniform(made, 0.5)
    assert [len(removed.intersection(choice.group.classes)) for choice in made] == [16, 32, 32]


def test_a_step_may_go_however_small_the_share() -> None:
    structure = analyse(chain([32, 32, 4]))
    made = choices(structure, np.ones(len(structure.classes)), 16, structure.groups)
    assert cheapest_first(made, {choice.group.name: 1.0 for choice in made}, cap=0.1)
