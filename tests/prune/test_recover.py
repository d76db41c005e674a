"""Refitting in closed form."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from graphopt.ir import check, shapes
from graphopt.models import builders
from graphopt.prune.cut import cut
from graphopt.prune.recover import Pair, Recovery, Refit, _Pace
from graphopt.prune.structure import analyse, layers_of, separate
from graphopt.prune.walk import Walk
from graphopt.testing import model_from_text, run

RNG = np.random.default_rng(3)


def noise(model: ir.Model, other: ir.Model, feeds: dict[str, np.ndarray]) -> float:
    wanted, got = run(model, feeds), run(other, feeds)
    return float(
        sum(np.square(wanted[name] - got[name]).sum() / np.square(wanted[name]).sum() for name in wanted)
    )


def redundant(op: str) -> ir.Model:
    """Two of six channels are sums of the others, so nothing need be lost without them."""
    layers = {
        "Conv": ("p = Conv(x, w) y = Conv(p, v, b)", "float[6,4,1,1] w = {0}, float[3,6,1,1] v = {0}, float[3] b = {0}", "4,5,5"),
        "MatMul": ("p = MatMul(x, w) q = MatMul(p, v) y = Add(q, b)", "float[4,6] w = {0}, float[6,3] v = {0}, float[3] b = {0}", "5,4"),
        "MatMul alone": ("p = MatMul(x, w) y = MatMul(p, v)", "float[4,6] w = {0}, float[6,3] v = {0}", "5,4"),
        "Gemm": ("p = Gemm <transB=1> (x, w) y = Gemm <alpha=0.5, beta=2.0> (p, v, b)",
                 "float[6,4] w = {0}, float[6,3] v = {0}, float[3] b = {0}", "4"),
    }  # fmt: skip
    body, constants, dims = layers[op]
    result = {"Conv": "3,5,5", "MatMul": "5,3", "MatMul alone": "5,3", "Gemm": "3"}[op]
    model = model_from_text(f"g (float[N,{dims}] x) => (float[N,{result}] y) <{constants}> {{ {body} }}")
    for value in model.graph.initializers.values():
        shape = [int(size) for size in value.shape]  # type: ignore[union-attr]
        array = RNG.standard_normal(shape).astype(np.float32)
        if value.name == "w":
            rows = array.reshape(6, 4) if op in ("Conv", "Gemm") else array.T
            rows[4], rows[5] = rows[0] + rows[1], rows[2] - rows[3]
        value.const_value = ir.tensor(array, name=value.name)
    shapes.infer(model)
    return model


@pytest.mark.parametrize("op", ["Conv", "MatMul", "MatMul alone", "Gemm"])
def test_what_the_others_can_say_is_not_lost(op: str) -> None:
    model = separate(redundant(op))
    structure = analyse(model)
    (group,) = structure.groups
    removed = frozenset(sorted(group.classes)[4:])
    shape = [int(size) for size in list(model.graph.inputs[0].shape)[1:]]  # type: ignore[arg-type]
    samples = [{"x": RNG.standard_normal((2, *shape)).astype(np.float32)} for _ in range(40)]
    pruned = cut(model, structure, removed)
    fresh = {"x": RNG.standard_normal((3, *shape)).astype(np.float32)}
    before = noise(model, pruned, fresh)
    recovery = Recovery(model, structure, removed, pruned, samples)
    recovery.run()
    check.check(pruned)
    assert before > 0.05 and noise(model, pruned, fresh) < 1e-6
    (fit,) = recovery.fits.values()
    assert fit.after < 1e-6 < fit.before and fit.ridge > 0


def test_a_net_is_nearer_to_the_original_than_without() -> None:
    from graphopt.capture import capture

    model = separate(capture(builders.conv_net(channels=16, blocks=3, size=16)).model)
    shapes.infer(model)
    structure = analyse(model)
    removed = frozenset(one for group in structure.groups for one in group.classes[::4])
    shape = (1, 3, 16, 16)
    samples = [{"x": RNG.standard_normal(shape).astype(np.float32)} for _ in range(32)]
    plain, fitted = cut(model, structure, removed), cut(model, structure, removed)
    recovery = Recovery(model, structure, removed, fitted, samples)
    recovery.run()
    fresh = {"x": RNG.standard_normal(shape).astype(np.float32)}
    assert noise(model, fitted, fresh) < 0.5 * noise(model, plain, fresh)
    assert all(fit.after <= fit.before for fit in recovery.fits.values())


@pytest.mark.parametrize("op", ["Conv", "MatMul"])
def test_a_layer_makes_up_for_what_is_added_to_it(op: str) -> None:
    """Two branches of one input are added up: what the first one lost the second one gives."""
    rng = np.random.default_rng(4)
    body, constants, dims = {
        "Conv": ("p = Conv(x, w) q = Relu(p) a = Conv(q, v) r = Conv(x, u) y = Add(r, a)",
                 "float[32,4,1,1] w = {0}, float[3,32,1,1] v = {0}, float[3,4,1,1] u = {0}", "4,5,5"),
        "MatMul": ("p = MatMul(x, w) q = Relu(p) a = MatMul(q, v) r = MatMul(x, u) y = Add(a, r)",
                   "float[4,32] w = {0}, float[32,3] v = {0}, float[4,3] u = {0}", "5,4"),
    }[op]  # fmt: skip
    made = {"Conv": "3,5,5", "MatMul": "5,3"}[op]
    model = filled(f"g (float[N,{dims}] x) => (float[N,{made}] y) <{constants}> {{ {body} }}", rng)
    shapes.infer(model)
    model = separate(model)
    structure = analyse(model)
    (group,) = structure.groups
    # Nearly all of the first branch: what is left of it cannot say what it said.
    removed = frozenset(sorted(group.classes)[2:])
    shape = [int(size) for size in list(model.graph.inputs[0].shape)[1:]]  # type: ignore[arg-type]
    samples = [{"x": rng.standard_normal((2, *shape)).astype(np.float32)} for _ in range(40)]
    pruned = cut(model, structure, removed)
    layers = {layer.name: layer for layer in layers_of(model.graph)}
    twins = {layer.name: layer for layer in layers_of(pruned.graph)}
    keep = structure.keeper(removed)
    pairs = [Pair(layer, twins[name]) for name, layer in layers.items() if layer.weight.name != "w"]
    refit = Refit(model, pruned, samples, keep=keep)
    fresh = {"x": rng.standard_normal((64, *shape)).astype(np.float32)}
    alone = cut(model, structure, removed)
    twins_alone = {layer.name: layer for layer in layers_of(alone.graph)}
    Refit(model, alone, samples, keep=keep).run([Pair(pairs[0].layer, twins_alone[pairs[0].layer.name])])
    refit.run(pairs)
    second = refit.fits[pairs[1].layer.name]
    assert 0 < second.after < 0.8 * second.before
    assert noise(model, pruned, fresh) < 0.8 * noise(model, alone, fresh)


def test_too_little_data_changes_nothing_for_the_worse() -> None:
    model = separate(redundant("Conv"))
    structure = analyse(model)
    removed = frozenset(sorted(structure.groups[0].classes)[4:])
    pruned = cut(model, structure, removed)
    sample = {"x": np.zeros((1, 4, 5, 5), np.float32)}
    Recovery(model, structure, removed, pruned, [sample]).run()
    fresh = {"x": RNG.standard_normal((1, 4, 5, 5)).astype(np.float32)}
    assert np.isfinite(run(pruned, fresh)["y"]).all()
    assert noise(model, pruned, fresh) <= noise(model, cut(model, structure, removed), fresh) * 1.0001


def test_walking_gives_what_running_does() -> None:
    from graphopt.capture import capture

    proto: onnx.ModelProto = builders.conv_net(channels=8, blocks=3, size=8)
    model = capture(proto).model
    samples = [{"x": RNG.standard_normal((1, 3, 8, 8)).astype(np.float32)} for _ in range(3)]
    walk = Walk(model, samples)
    from graphopt.ir.model import tapped

    inner = [node.outputs[0].name or "" for node in model.graph]
    for name in inner[1::3]:
        whole = tapped(model, [name])
        for feeds, array in zip(samples, walk.to(name), strict=True):
            np.testing.assert_allclose(array, run(whole, feeds)[name], rtol=1e-4, atol=1e-5)


def fitted(
    model: ir.Model, share: int, samples: list[dict[str, np.ndarray]]
) -> tuple[ir.Model, ir.Model, Recovery]:
    """The model, and it without some of each group's channels, refitted."""
    shapes.infer(model)
    model = separate(model)
    structure = analyse(model)
    removed = frozenset(one for group in structure.groups for one in group.classes[:share])
    pruned = cut(model, structure, removed)
    recovery = Recovery(model, structure, removed, pruned, samples)
    recovery.run()
    check.check(pruned)
    return model, pruned, recovery


def filled(text: str, rng: np.random.Generator = RNG) -> ir.Model:
    model = model_from_text(text)
    for value in model.graph.initializers.values():
        shape = [int(size) for size in value.shape]  # type: ignore[union-attr]
        if value.dtype == ir.DataType.FLOAT and len(shape) > 1:
            value.const_value = ir.tensor(rng.standard_normal(shape).astype(np.float32), name=value.name)
    return model


def test_rows_are_compared_with_the_same_rows() -> None:
    """Channels that are rows of the next product, as in a mixer."""
    model = filled(
        """g (float[N,3,8] x) => (float[N,2,10] y) <float[12,3,1] p = {0}, float[8,10] w = {0}, float[2,12,1] q = {0}>
           { a = Conv(x, p) r = Relu(a) t = MatMul(r, w) y = Conv(t, q) }"""
    )
    for batch in (1, 40):
        samples = [{"x": RNG.standard_normal((batch, 3, 8)).astype(np.float32)} for _ in range(24)]
        whole, pruned, recovery = fitted(model, 4, samples)
        fresh = {"x": RNG.standard_normal((8, 3, 8)).astype(np.float32)}
        after = [fit.after for fit in recovery.fits.values()][-1]
        assert noise(whole, pruned, fresh) == pytest.approx(after, rel=0.5)


def test_products_one_behind_the_other() -> None:
    model = filled(
        """g (float[N,6] x) => (float[N,5] y) <float[6,8] a = {0}, float[8,8] b = {0}, float[8,5] c = {0}>
           { p = MatMul(x, a) q = MatMul(p, b) y = MatMul(q, c) }"""
    )
    samples = [{"x": (2 + RNG.standard_normal((20, 6))).astype(np.float32)} for _ in range(40)]
    whole, pruned, recovery = fitted(model, 3, samples)
    fresh = {"x": (2 + RNG.standard_normal((200, 6))).astype(np.float32)}
    wanted, got = run(whole, fresh)["y"], run(pruned, fresh)["y"]
    actual = np.square(wanted - got).sum() / np.square(wanted).sum()
    assert actual == pytest.approx([fit.after for fit in recovery.fits.values()][-1], rel=0.5, abs=1e-6)


def test_a_bias_that_is_given_stays() -> None:
    model = filled(
        """g (float[N,6] x, float[4] e) => (float[N,4] y) <float[6,8] a = {0}, float[8,4] b = {0}>
           { p = MatMul(x, a) q = Relu(p) y = Gemm(q, b, e) }"""
    )
    samples = [
        {"x": RNG.standard_normal((8, 6)).astype(np.float32), "e": np.ones(4, np.float32)} for _ in range(40)
    ]
    whole, pruned, recovery = fitted(model, 3, samples)
    fresh = {"x": RNG.standard_normal((200, 6)).astype(np.float32), "e": np.zeros(4, np.float32)}
    (fit,) = recovery.fits.values()
    assert fit.after < fit.before
    assert noise(whole, pruned, fresh) == pytest.approx(fit.after, rel=0.5)


def test_branches_that_read_what_lies_outside() -> None:
    model = filled(
        """g (float[N,6] x, bool c) => (float[N,3] y) <float[6,8] a = {0}, float[8,6] b = {0}, float[6,3] d = {0}>
           { p = MatMul(x, a) q = Relu(p) r = MatMul(q, b)
             s = If(c) <then_branch = t () => (float[N,6] u) { u = Relu(r) }, else_branch = e () => (float[N,6] v) { v = Neg(r) }>
             y = MatMul(s, d) }"""
    )
    samples = [{"x": RNG.standard_normal((8, 6)).astype(np.float32), "c": np.array(True)} for _ in range(24)]
    whole, pruned, recovery = fitted(model, 3, samples)
    assert len(recovery.fits) == 2
    assert np.isfinite(noise(whole, pruned, samples[0]))


def test_a_bias_of_its_own_gets_a_name_of_its_own() -> None:
    """A node that is called as what it makes, as the passes of graphopt call theirs."""
    model = filled(
        """g (float[N,6] x) => (float[N,4] y) <float[6,8] a = {0}, float[8,4] b = {0}>
           { p = MatMul(x, a) q = Relu(p) r = MatMul(q, b) y = Relu(r) }"""
    )
    for node in model.graph:
        node.name = node.outputs[0].name
    samples = [{"x": RNG.standard_normal((8, 6)).astype(np.float32)} for _ in range(24)]
    whole, pruned, recovery = fitted(model, 3, samples)
    assert noise(whole, pruned, {"x": RNG.standard_normal((50, 6)).astype(np.float32)}) < 1
    names = [value.name for node in pruned.graph for value in node.outputs] + list(pruned.graph.initializers)
    assert len(names) == len(set(names)) and recovery.fits


def test_no_layer_is_left_out_for_lack_of_time() -> None:
    """With the deadline gone from the start every layer is refitted all the same, on fewer samples."""
    from graphopt.capture import capture

    model = separate(capture(builders.conv_net(channels=16, blocks=3, size=16)).model)
    shapes.infer(model)
    structure = analyse(model)
    removed = frozenset(one for group in structure.groups for one in group.classes[::4])
    samples = [{"x": RNG.standard_normal((1, 3, 16, 16)).astype(np.float32)} for _ in range(128)]
    graphs = {name: cut(model, structure, removed) for name in ("plain", "timely", "late")}
    timely = Recovery(model, structure, removed, graphs["timely"], samples)
    late = Recovery(model, structure, removed, graphs["late"], samples, deadline=0.0)
    timely.run()
    late.run()
    assert late.fits.keys() == timely.fits.keys() and not late.skipped
    assert timely.hurried == "" and late.hurried == "64 of 128 samples from layer 1 of 4 on", late.hurried
    fresh = {"x": RNG.standard_normal((4, 3, 16, 16)).astype(np.float32)}
    lost = {name: noise(model, graph, fresh) for name, graph in graphs.items()}
    assert lost["timely"] < lost["plain"] and lost["late"] < lost["plain"]


@pytest.mark.parametrize(("seconds", "samples"), [(1000.0, 64), (0.0, 32)])
def test_the_pace_of_the_first_layers_decides(seconds: float, samples: int) -> None:
    import time

    pace = _Pace(time.monotonic() + seconds, 40, 64)
    assert pace.samples(0) == (64 if seconds else 32)
    for number in range(1, 12):
        found = pace.samples(number)
    assert found == samples


@pytest.mark.parametrize("name", ["heads of all samples in one axis", "heads of keys and values repeated"])
def test_heads_that_lie_in_one_axis_with_the_samples(name: str) -> None:
    from tests.prune.test_cut import SEQUENCES, body

    text, weights, more, _ = SEQUENCES[name]
    model = body("float[N,S,8] x", "float[N,T,8] y", weights, text, more)
    samples = [{"x": RNG.standard_normal((3, 7, 8)).astype(np.float32)} for _ in range(24)]
    whole, pruned, recovery = fitted(model, 1, samples)
    fresh = {"x": RNG.standard_normal((5, 9, 8)).astype(np.float32)}
    assert recovery.fits and all(fit.after <= fit.before for fit in recovery.fits.values())
    assert noise(whole, pruned, fresh) < 1


def test_what_is_spread_over_the_outputs_is_not_compared() -> None:
    """Sums with another shape than the layer's: it is fitted to its own outputs."""
    for added, dims in (("float[1,4] x, float[7,4] z", "1"), ("float[S,4] x, float[T,4] z", None)):
        model = filled(
            f"""g ({added}) => (float[A,3] y) <float[4,16] w = {{0}}, float[16,3] v = {{0}}, float[4,3] u = {{0}}>
                {{ r = MatMul(z, u) p = MatMul(x, w) q = Relu(p) a = MatMul(q, v) y = Add(a, r) }}"""
        )
        shapes.infer(model)
        model = separate(model)
        structure = analyse(model)
        removed = frozenset(structure.groups[0].classes[:4])
        pruned = cut(model, structure, removed)
        rng = np.random.default_rng(6)
        rows = int(dims or 1)
        samples = [
            {"x": rng.standard_normal((rows, 4)).astype(np.float32), "z": rng.standard_normal((7, 4)).astype(np.float32)}
            for _ in range(80)
        ]  # fmt: skip
        recovery = Recovery(model, structure, removed, pruned, samples)
        recovery.run()
        assert recovery.fits and all(fit.after <= fit.before for fit in recovery.fits.values())
