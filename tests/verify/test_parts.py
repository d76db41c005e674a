"""Parts of an output that are quiet beside the rest, and are judged by themselves."""

import numpy as np
import pytest

from graphopt.ir.facts import Array
from graphopt.verify.agreement import agreement, noise_share
from graphopt.verify.metrics import find_metric
from graphopt.verify.parts import quiet_parts


def boxes_and_scores(seed: int, boxes: float = 300.0) -> Array:
    """[1, 7, 50]: four coordinates and three scores for each of 50 places."""
    rng = np.random.default_rng(seed)
    return np.concatenate([boxes * rng.random((1, 4, 50)), rng.random((1, 3, 50))], axis=1).astype(np.float32)


def test_scores_beside_boxes() -> None:
    found = quiet_parts([boxes_and_scores(seed) for seed in range(4)])
    assert [(axis, indices.tolist()) for axis, indices in found] == [(1, [4, 5, 6])]


def test_like_quantities_are_one_part() -> None:
    rng = np.random.default_rng(0)
    assert quiet_parts([boxes_and_scores(seed, boxes=3.0) for seed in range(4)]) == []
    # Channels that grow quieter one by one, over 60 dB.
    steps = np.geomspace(1, 1e-3, 20).reshape(1, -1, 1)
    assert quiet_parts([(rng.standard_normal((1, 20, 9)) * steps).astype(np.float32) for _ in range(4)]) == []


def test_what_is_quiet_elsewhere_in_the_next_sample_is_no_part() -> None:
    rng = np.random.default_rng(0)
    frames = []
    for seed in range(4):
        silence = np.where(np.arange(30) % 4 == seed, 1e-6, 1.0).reshape(1, -1, 1)
        frames.append((rng.standard_normal((1, 30, 8)) * silence).astype(np.float32))
    assert quiet_parts(frames) == []


def test_of_a_few_samples_nothing_is_known() -> None:
    assert quiet_parts([boxes_and_scores(0), boxes_and_scores(1)]) == []


def test_channels_that_are_zero_are_no_part() -> None:
    arrays = [boxes_and_scores(seed, boxes=1.0) for seed in range(4)]
    for array in arrays:
        array[:, 5] = 0
    assert quiet_parts(arrays) == []


def test_samples_of_other_lengths_share_their_channels() -> None:
    arrays = [boxes_and_scores(seed)[..., : 30 + seed] for seed in range(4)]
    assert [axis for axis, _ in quiet_parts(arrays)] == [1]


@pytest.mark.parametrize("broken", ["boxes", "scores"])
def test_noise_in_a_part_counts_by_the_part(broken: str) -> None:
    references = [{"y": boxes_and_scores(seed)} for seed in range(4)]
    outputs = [{"y": wanted["y"].copy()} for wanted in references]
    for got in outputs:
        got["y"][:, slice(0, 4) if broken == "boxes" else slice(4, None)] *= 0.5
    assert noise_share(outputs, references) == pytest.approx(0.25, abs=0.01)
    assert agreement("sqnr", outputs, references) == pytest.approx(0.75, abs=0.01)
    judged = find_metric("sqnr").score(outputs, references, [{}] * 4)
    assert judged == pytest.approx(0.75, abs=0.01)


def test_infinities_of_the_original_do_not_count() -> None:
    references = [{"y": boxes_and_scores(seed)} for seed in range(4)]
    for wanted in references:
        wanted["y"][:, 0, 0] = np.inf
    outputs = [{"y": np.where(np.isfinite(wanted["y"]), wanted["y"] * 1.1, 7)} for wanted in references]
    assert noise_share(outputs, references) == pytest.approx(0.01, rel=0.01)
