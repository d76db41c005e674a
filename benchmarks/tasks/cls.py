"""Text direction: is a rendered line of text upright or turned by 180 degrees."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.tasks import Array, Outputs, Split, Task, only
from benchmarks.tasks.render import as_line_input, draw_style, line, phrase
from graphopt import zoo

WIDTH = 192
COUNT = 1000


def metric(outputs: Sequence[Mapping[str, Array]], labels: Mapping[str, Array] | None) -> float:
    """Accuracy: the share of lines whose direction is right.

    Args:
        outputs: Probabilities [batch, 2] of upright and turned, one mapping a sample.
        labels: ``labels``: 0 for upright and 1 for turned, integers [samples, batch].
    """
    assert labels is not None, "accuracy needs the directions: an array `labels` in the data"
    return float(np.mean(_classes(outputs) == labels["labels"].ravel()))


def _classes(outputs: Sequence[Mapping[str, Array]]) -> Array:
    return np.concatenate([only(sample).argmax(axis=1) for sample in outputs])


class Direction(Task):
    """PP-OCR's direction classifier at its usual size, 48 by 192."""

    name = "cls"
    headline = "accuracy"

    def model(self) -> Path:
        return zoo.fetch("ppocr-cls")

    def calibration(self, count: int) -> Split:
        return _lines(count, seed=3, calibration=True)

    @functools.cached_property
    def evaluation(self) -> Split:
        return _lines(COUNT, seed=4, calibration=False)

    def score(
        self, outputs: Sequence[Outputs], reference: Sequence[Outputs] | None = None
    ) -> dict[str, float]:
        scores = {self.headline: metric(outputs, self.evaluation.labels)}
        if reference is not None:
            scores["same as original"] = float(np.mean(_classes(outputs) == _classes(reference)))
        return scores


def _lines(count: int, seed: int, calibration: bool) -> Split:
    from PIL import Image

    rng = np.random.default_rng(seed)
    feeds, turned = [], []
    while len(feeds) < count:
        text = " ".join(phrase(rng, calibration))
        # A word of three letters may read as another one upside down.
        if len(text) < 6:
            continue
        image = line(text, draw_style(rng), rng)
        turned.append([int(rng.integers(2))])
        if turned[-1][0]:
            image = image.transpose(Image.Transpose.ROTATE_180)
        feeds.append({"x": as_line_input(image, WIDTH)})
    return Split(feeds, {"labels": np.array(turned)})
