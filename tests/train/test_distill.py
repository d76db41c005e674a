"""Distillation: nearer to the teacher, never farther, and it goes on where it was stopped."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.capture import capture
from graphopt.errors import UsageError
from graphopt.ir import check, facts, shapes
from graphopt.ir import model as ir_model
from graphopt.models import builders
from graphopt.prune.cut import cut
from graphopt.prune.structure import analyse, separate
from graphopt.testing import model_from_text, run
from graphopt.train.checkpoint import Checkpoint
from graphopt.train.distill import STOPPED, Distillation, Trained
from graphopt.train.module import NotTrainableError, weights_of, zeros_of
from graphopt.train.recipe import RATES, Recipe

pytest.importorskip("torch")

QUICK = Recipe(steps=120, rate=1e-3, batch=8)


def data(count: int, dims: tuple[int, ...] = (1, 3, 12, 12), seed: int = 0) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_normal(dims).astype(np.float32)} for _ in range(count)]


@pytest.fixture(scope="module")
def teacher() -> ir.Model:
    model = separate(capture(builders.conv_net(channels=16, blocks=2, size=12)).model)
    shapes.infer(model)
    return model


@pytest.fixture(scope="module")
def student(teacher: ir.Model) -> ir.Model:
    structure = analyse(teacher)
    pruned = cut(
        teacher, structure, frozenset(one for group in structure.groups for one in group.classes[::3])
    )
    shapes.infer(pruned)
    return pruned


def noise(teacher: ir.Model, model: ir.Model, samples: list[dict[str, np.ndarray]]) -> float:
    missed = power = 0.0
    for feeds in samples:
        wanted, got = run(teacher, feeds), run(model, feeds)
        missed += sum(float(np.square(got[name] - wanted[name]).sum()) for name in wanted)
        power += sum(float(np.square(wanted[name]).sum()) for name in wanted)
    return missed / power


def test_it_comes_nearer_on_inputs_that_it_never_saw(teacher: ir.Model, student: ir.Model) -> None:
    trained = Distillation(teacher, student, data(64), QUICK).run()
    check.check(trained.model)
    fresh = data(8, seed=9)
    before, after = noise(teacher, student, fresh), noise(teacher, trained.model, fresh)
    assert after < 0.4 * before
    assert trained.after < 0.4 * trained.before and trained.steps == 120


def test_the_student_that_came_in_stays_as_it_was(teacher: ir.Model, student: ir.Model) -> None:
    copy = ir_model.clone(student)
    Distillation(teacher, student, data(16), Recipe(steps=5, rate=1e-2)).run()
    for value in weights_of(student.graph):
        before, after = copy.graph.initializers[value.name or ""].const_value, value.const_value
        assert before is not None and after is not None
        np.testing.assert_array_equal(before.numpy(), after.numpy())


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_training_that_ruins_the_weights_hands_back_those_that_came_in(
    teacher: ir.Model, student: ir.Model, optimizer: Any
) -> None:
    trained = Distillation(
        teacher, student, data(24), Recipe(steps=10, rate=50.0, optimizer=optimizer, patience=1)
    ).run()
    assert trained.after <= trained.before
    assert noise(teacher, trained.model, data(4, seed=9)) <= noise(teacher, student, data(4, seed=9)) * (
        1 + 1e-6
    )


def test_the_same_seed_gives_the_same_weights(teacher: ir.Model, student: ir.Model) -> None:
    recipe = Recipe(steps=20, rate=1e-3, batch=8)
    one, two = (Distillation(teacher, student, data(24), recipe, threads=1).run() for _ in range(2))
    for value in weights_of(one.model.graph):
        other = two.model.graph.initializers[value.name or ""].const_value
        assert value.const_value is not None and other is not None
        np.testing.assert_array_equal(value.const_value.numpy(), other.numpy())


def stopped_at(step: int) -> Any:
    """Progress that is interrupted at a validation."""

    def progress(text: str) -> None:
        if text.startswith("step") and int(text.split()[1].rstrip(",")) >= step:
            raise KeyboardInterrupt

    return progress


def test_a_stopped_training_goes_on_and_an_ended_one_is_not_run_again(
    teacher: ir.Model, student: ir.Model, tmp_path: Path
) -> None:
    samples, place = data(64), Checkpoint(tmp_path, "key", 60.0)
    recipe = Recipe(steps=60, rate=1e-3, batch=8)

    def train(**given: Any) -> Trained:
        return Distillation(teacher, student, samples, recipe, checkpoint=place, **given).run()

    first = train(progress=stopped_at(30))
    assert 0 < first.steps < 60 and "same command goes on" in first.note
    second = train()
    assert second.steps == 60 and second.history[: len(first.history)] == first.history
    assert second.after <= first.after
    third = train()
    assert third.steps == 60 and third.note == "taken from an earlier run"
    assert third.after == second.after
    assert noise(teacher, third.model, data(4, seed=9)) == noise(teacher, second.model, data(4, seed=9))


def test_one_that_is_stopped_while_rates_are_tried_leaves_the_weights(
    teacher: ir.Model, student: ir.Model
) -> None:
    def progress(text: str) -> None:
        if text.startswith("trying"):
            raise KeyboardInterrupt

    trained = Distillation(teacher, student, data(24), Recipe(steps=40, batch=8), progress=progress).run()
    assert trained.note == STOPPED and trained.steps == 0
    fresh = data(2, seed=9)
    assert noise(teacher, trained.model, fresh) == noise(teacher, student, fresh)


def test_what_cannot_be_trained_is_refused() -> None:
    plain = model_from_text("g (float[1,4] x) => (float[1,4] y) { y = Relu(x) }")
    with pytest.raises(NotTrainableError, match="no weights"):
        Distillation(plain, plain, data(4, (1, 4)), QUICK).run()
    indices = model_from_text(
        "g (float[1,4] x) => (int64[1] y) <float[4,4] w = {0}> { p = MatMul(x, w) y = ArgMax <axis=1, keepdims=0> (p) }"
    )
    indices.graph.initializers["w"].const_value = ir.tensor(np.eye(4, dtype=np.float32), name="w")
    with pytest.raises(NotTrainableError, match="floating point"):
        Distillation(indices, indices, data(4, (1, 4)), QUICK).run()


def test_going_on_is_as_good_as_not_having_been_stopped(
    teacher: ir.Model, student: ir.Model, tmp_path: Path
) -> None:
    samples, recipe = data(64), Recipe(steps=60, rate=1e-3, batch=8)
    whole = Distillation(teacher, student, samples, recipe, threads=1).run()
    place = Checkpoint(tmp_path, "key", 60.0)
    Distillation(
        teacher, student, samples, recipe, threads=1, checkpoint=place, progress=stopped_at(30)
    ).run()
    parts = Distillation(teacher, student, samples, recipe, threads=1, checkpoint=place).run()
    assert parts.after == pytest.approx(whole.after, rel=0.02)


def test_a_damaged_checkpoint_counts_as_none(teacher: ir.Model, student: ir.Model, tmp_path: Path) -> None:
    (tmp_path / "key.npz").write_bytes(b"PK\x03\x04 cut off")
    trained = Distillation(
        teacher, student, data(16), Recipe(steps=5, rate=1e-3), checkpoint=Checkpoint(tmp_path, "key", 9.0)
    ).run()
    assert trained.steps == 5


FIXED = """
g (float[1,4,6] x) => (float[1,24] y) <float[6,6] w = {0}, float[6] b = {0,0,0,0,0,0}, int64[2] to = {1,24}>
{ p = MatMul(x, w) q = Add(p, b) y = Reshape(q, to) }
"""


def fixed(seed: int) -> ir.Model:
    model = model_from_text(FIXED)
    value = model.graph.initializers["w"]
    value.const_value = ir.tensor(
        np.random.default_rng(seed).standard_normal((6, 6)).astype(np.float32), name="w"
    )
    return model


def test_a_model_of_fixed_sizes_is_trained_sample_by_sample() -> None:
    teacher, student = fixed(0), fixed(1)
    trained = Distillation(teacher, student, data(40, (1, 4, 6)), Recipe(steps=400, rate=5e-2, batch=4)).run()
    assert trained.after < 1e-3 * trained.before


def ragged() -> Iterator[dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    for index in range(40):
        yield {"x": rng.standard_normal((1, 3 + index % 4, 32)).astype(np.float32)}


def test_samples_of_several_sizes_go_into_one_batch() -> None:
    teacher = capture(builders.transformer_block()).model
    shapes.infer(teacher)
    student = ir_model.clone(teacher)
    rng = np.random.default_rng(2)
    for value in weights_of(student.graph):
        assert value.const_value is not None
        array = value.const_value.numpy()
        noisy = array + 0.1 * array.std() * rng.standard_normal(array.shape)
        value.const_value = ir.tensor(noisy.astype(np.float32), name=value.name)
    trained = Distillation(teacher, student, list(ragged()), Recipe(steps=60, rate=1e-3, batch=8)).run()
    assert trained.after < 0.5 * trained.before
    assert trained.hidden, "layers with the same outputs in both are compared as well"


def test_a_rate_is_found(teacher: ir.Model, student: ir.Model) -> None:
    trained = Distillation(teacher, student, data(64), Recipe(steps=100, batch=8)).run()
    assert trained.rate in RATES["adam"] and trained.after < trained.before


def test_a_handful_of_steps_tells_no_rate(
    teacher: ir.Model, student: ir.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a busy machine a step may take long: what one or two of them came to is chance."""
    step = Distillation._step

    def slow(training: Distillation, *given: Any) -> None:
        time.sleep(0.2)
        step(training, *given)

    monkeypatch.setattr(Distillation, "_step", slow)
    training = Distillation(teacher, student, data(64), Recipe(batch=8), deadline=time.monotonic() + 4)
    assert training.run().rate == RATES["adam"][len(RATES["adam"]) // 2]


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"rate": -1.0}, "rate"),
        ({"rate": float("nan")}, "rate"),
        ({"batch": -1}, "batch"),
        ({"patience": 0}, "patience"),
        ({"temperature": 0.0}, "temperature"),
    ],
)
def test_impossible_recipes_are_refused(given: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        Recipe(**given)


def test_a_student_of_other_zeros_is_not_given_them_from_an_earlier_run(
    teacher: ir.Model, student: ir.Model
) -> None:
    """Two graphs of the same shapes, whose zeros lie elsewhere, have checkpoints of their own."""
    keys = set()
    for seed in (0, 1):
        copy = ir_model.clone(student)
        for value in weights_of(copy.graph):
            assert value.const_value is not None
            array = value.const_value.numpy() * (
                np.random.default_rng(seed).random(value.const_value.shape.numpy()) < 0.5
            )
            value.const_value = ir.tensor(array.astype(np.float32), name=value.name)
            value.metadata_props[facts.SPARSITY] = "unstructured"
        keys.add(tuple(zeros_of(value) for value in copy.graph.initializers.values()))
    assert len(keys) == 2 and all(any(key) for key in keys)


def test_a_checkpoint_of_a_better_student_does_not_stand_for_this_one(
    teacher: ir.Model, student: ir.Model, tmp_path: Path
) -> None:
    """What was kept is measured on this student's graph: where it serves worse, it is left."""
    place = Checkpoint(tmp_path, "key", 9.0)
    samples = data(24)
    Distillation(teacher, student, samples, Recipe(steps=5, rate=1e-3), checkpoint=place).run()
    good = Distillation(teacher, student, samples, Recipe(steps=80, rate=1e-3)).run()
    again = Distillation(teacher, good.model, samples, Recipe(steps=5, rate=1e-4), checkpoint=place).run()
    assert again.note != "taken from an earlier run"
    assert noise(teacher, again.model, data(4, seed=9)) < noise(teacher, student, data(4, seed=9))


TWO = """
g (float[N,4] x) => (float[N,3] y, int64[N] z, float[N,3] r) <float[4,3] w = {0}, float[4,3] v = {0}>
{ y = MatMul(x, w) z = ArgMax <axis=1, keepdims=0> (y) r = MatMul(x, v) }
"""


def test_outputs_that_are_indices_or_right_already_do_not_stand_in_the_way() -> None:
    rng = np.random.default_rng(4)

    def made(seed: int) -> ir.Model:
        model = model_from_text(TWO)
        for name, own in (("w", np.random.default_rng(seed)), ("v", np.random.default_rng(7))):
            value = model.graph.initializers[name]
            value.const_value = ir.tensor(own.standard_normal((4, 3)).astype(np.float32), name=name)
        shapes.infer(model)
        return model

    samples = [{"x": rng.standard_normal((2, 4)).astype(np.float32)} for _ in range(40)]
    trained = Distillation(made(0), made(1), samples, Recipe(steps=300, rate=3e-2, batch=8)).run()
    assert trained.after < 0.01 * trained.before


def test_rows_that_see_nothing_do_not_spoil_the_gradients() -> None:
    torch = pytest.importorskip("torch")
    from graphopt.train.operators.elementwise import reduce_l2
    from graphopt.train.operators.products import attention

    query = torch.randn(1, 2, 3, 4, requires_grad=True)
    mask = torch.ones(3, 3, dtype=torch.bool)
    mask[1] = False
    made, *_ = attention(query, torch.randn(1, 2, 3, 4), torch.randn(1, 2, 3, 4), mask)
    made.sum().backward()
    assert bool((made[:, :, 1] == 0).all()) and bool(torch.isfinite(query.grad).all())
    rows = torch.zeros(2, 3, requires_grad=True)
    reduce_l2(rows, torch.tensor([1])).sum().backward()
    assert bool(torch.isfinite(rows.grad).all())


def test_half_precision_comes_nearer_too(teacher: ir.Model, student: ir.Model) -> None:
    trained = Distillation(teacher, student, data(64), replace(QUICK, precision="bfloat16")).run()
    assert trained.after < 0.8 * trained.before
    assert noise(teacher, trained.model, data(8, seed=9)) < 0.8 * noise(teacher, student, data(8, seed=9))
    # Only products are computed so: what is handed back is of the student's types.
    assert {value.dtype for value in trained.model.graph.initializers.values() if facts.is_float(value)} == {
        ir.DataType.FLOAT
    }


def test_a_short_training_spends_its_time_on_steps(
    teacher: ir.Model, student: ir.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a sample takes half a second of a step, validations take a small part of a minute."""
    samples = data(512)
    training = Distillation(teacher, student, samples, Recipe(steps=1, rate=1e-3))
    training.run()
    monkeypatch.setattr(training, "_seconds", lambda batch, half, most=0.0: 0.5)
    training.recipe = Recipe(rate=1e-3)
    training.deadline = time.monotonic() + 60
    training._apart = list(range(64))
    training._budgeted()
    assert not training._half
    # At least so many rows, and so many validations: a third of a step's work for each.
    assert training._stacks and (len(training._apart), training._validations) == (32, 6)
    training.deadline = time.monotonic() + 6000
    training._apart = list(range(64))
    training._budgeted()
    assert (len(training._apart), training._validations) == (64, 20)
