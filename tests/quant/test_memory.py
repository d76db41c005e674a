"""A search that was stopped goes on where it was, and nothing stale comes back."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from graphopt.capture import capture
from graphopt.machine import Kernel
from graphopt.models import builders
from graphopt.quant.memory import Memory, key_of
from graphopt.quant.observe import calibrate
from graphopt.quant.place import Weights, tensors_to_observe
from graphopt.quant.search import Search
from graphopt.quant.units import units_of
from graphopt.targets.ort.integers import kernels
from graphopt.verify.evaluation import Evaluation
from graphopt.verify.metrics import find_metric
from graphopt.verify.session import Session

ORT = kernels(frozenset({"avx512_vnni"}))


def samples(count: int, seed: int = 0) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_normal((1, 3, 16, 16)).astype(np.float32)} for _ in range(count)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ir.Model:
    path = tmp_path_factory.mktemp("net") / "net.onnx"
    onnx.save(builders.conv_net(channels=16, blocks=3, size=16), path)
    return capture(path).model


class Stopped(Exception):
    pass


def search(
    model: ir.Model, folder: Path, allowed: float, calls: list[str], stop_after: int = 10**9
) -> Search:
    """A search on made-up times: every product is faster on integers."""
    names = tensors_to_observe(units_of(model, ORT)[0])
    found = calibrate(model, names, samples(4))
    session = Session(model)
    feeds = samples(4, seed=1)
    references = [session.run(sample) for sample in feeds]
    evaluation = Evaluation(feeds, references, [{}] * 4, find_metric(None), allowed)

    def profile(graph: ir.Model, label: str) -> list[Kernel]:
        calls.append(label)
        fast = label != "float"
        return [
            Kernel(
                node.name or "", node.op_type, tuple(output.name or "" for output in node.outputs),
                integer=fast, milliseconds=0.1 if fast else 1.0,
            )
            for node in graph.graph
        ]  # fmt: skip

    key = key_of(model, "t", ORT, found.ranges, Weights(), evaluation, ())

    @contextlib.contextmanager
    def running(graph: ir.Model) -> Iterator[Any]:
        yield Session(graph, optimize="all").run

    made = Search(model, ORT, found, evaluation, profile, running, memory=Memory(folder, key))
    original = made.judge

    def judge(chosen: Any) -> Any:
        if calls.count("judge") >= stop_after:
            raise Stopped
        calls.append("judge")
        return original(chosen)

    made.judge = judge  # type: ignore[method-assign]
    return made


def test_a_stopped_search_goes_on(model: ir.Model, tmp_path: Path) -> None:
    whole: list[str] = []
    wanted = search(model, tmp_path / "a", 1e-5, whole).run()
    first: list[str] = []
    with pytest.raises(Stopped):
        search(model, tmp_path / "b", 1e-5, first, stop_after=2).run()
    second: list[str] = []
    found = search(model, tmp_path / "b", 1e-5, second).run()
    assert second.count("float") == 0, "the times are those that were measured before it stopped"
    assert first.count("judge") + second.count("judge") == whole.count("judge")
    assert [point.chosen for point in found.points] == [point.chosen for point in wanted.points]
    assert [point.judgement for point in found.points] == [point.judgement for point in wanted.points]
    third: list[str] = []
    again = search(model, tmp_path / "b", 1e-5, third).run()
    assert third.count("judge") == 0 and third.count("float") == 1, "times are measured anew, scores are not"
    # What holds depends on the processor: with weights of 7 bits nothing may.
    assert [None if one.best is None else one.best.chosen for one in (again, found)] == [
        None if wanted.best is None else wanted.best.chosen
    ] * 2


def test_another_budget_uses_the_same_scores(model: ir.Model, tmp_path: Path) -> None:
    calls: list[str] = []
    strict = search(model, tmp_path, 1e-5, calls).run()
    again: list[str] = []
    loose = search(model, tmp_path, 0.5, again).run()
    assert again.count("judge") == 0
    assert loose.points[0].judgement is not None and loose.points[0].judgement.allowed == 0.5
    assert loose.points[0].judgement.value == strict.points[0].judgement.value  # type: ignore[union-attr]


def test_the_key_changes_with_what_decides(model: ir.Model) -> None:
    names = tensors_to_observe(units_of(model, ORT)[0])
    ranges = calibrate(model, names, samples(2)).ranges
    evaluation = Evaluation(samples(1), [{"y": np.ones(3, np.float32)}], [{}], find_metric("cosine"))
    key = key_of(model, "t", ORT, ranges, Weights(), evaluation, (1,))
    name = next(iter(ranges))
    moved = {**ranges, name: dataclasses.replace(ranges[name], high=ranges[name].high + 1)}
    others = [
        key_of(model, "u", ORT, ranges, Weights(), evaluation, (1,)),
        key_of(model, "t", ORT, moved, Weights(), evaluation, (1,)),
        key_of(model, "t", ORT, ranges, Weights(bias={"n": np.ones(2)}), evaluation, (1,)),
        key_of(
            model, "t", ORT, ranges, Weights(), dataclasses.replace(evaluation, feeds=samples(1, 5)), (1,)
        ),
        key_of(model, "t", ORT, ranges, Weights(), evaluation, (2,)),
        key_of(model, "t", dataclasses.replace(ORT, describe="other"), ranges, Weights(), evaluation, (1,)),
    ]
    assert len({key, *others}) == 1 + len(others)


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"judged": 3'])
def test_a_damaged_file_is_as_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "k.json").write_text(content)
    memory = Memory(tmp_path, "k")
    assert memory.noise is None and memory.measured is None


def test_a_target_that_is_outrun_judges_nothing(model: ir.Model, tmp_path: Path) -> None:
    calls: list[str] = []
    looking = search(model, tmp_path, 0.5, calls)
    looking.rival = 1e-3
    found = looking.run()
    assert calls.count("judge") == 0 and found.best is None and not found.points
    assert found.fastest > 1e-3
    equal = search(model, tmp_path, 0.5, calls)
    equal.rival = found.fastest
    assert equal.run().best is not None


def test_a_search_whose_time_is_up_still_finds_what_holds(model: ir.Model, tmp_path: Path) -> None:
    calls: list[str] = []
    late = search(model, tmp_path, 0.5, calls)
    late.deadline = 0.0
    found = late.run()
    assert found.best is not None and found.best.judgement is not None and found.best.judgement.ok
    # With something that holds on another target only what is faster is looked at.
    for rival, judged in ((1e9, True), (found.fastest, False)):
        other = search(model, tmp_path / f"{rival}", 0.5, calls)
        other.deadline, other.rival = 0.0, rival
        assert bool(other.run().points) == judged


def test_where_nothing_holds_the_search_ends_soon_after_its_time(model: ir.Model, tmp_path: Path) -> None:
    calls: list[str] = []
    made = search(model, tmp_path, 1e-9, calls)
    made.deadline = time.monotonic() + 1.0
    judged = made.judge

    def slowly(chosen: Any) -> Any:
        time.sleep(0.5)
        return judged(chosen)

    made.judge = slowly  # type: ignore[method-assign]
    started = time.monotonic()
    found = made.run()
    assert found.best is None and found.points and found.hurried
    assert time.monotonic() - started < 1.3 + 3, "what was begun is ended, and one sweep of noise at most"
    unhurried = search(model, tmp_path / "b", 1e-9, []).run()
    assert unhurried.best is None and not unhurried.hurried
    assert len(unhurried.points) > len(found.points)


def test_what_holds_a_set_that_failed_is_not_tried_late(model: ir.Model, tmp_path: Path) -> None:
    made = search(model, tmp_path, 1e-9, [])
    made.deadline = time.monotonic()
    found = made.run()
    tried = [point.chosen for point in found.points]
    assert not any(small <= large for place, large in enumerate(tried) for small in tried[:place])
