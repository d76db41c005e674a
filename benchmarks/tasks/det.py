"""Text detection: PP-OCRv4 finds the lines on rendered pages."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.tasks import Array, Outputs, Split, Task, only
from benchmarks.tasks.render import draw_style, font, phrase, with_noise
from graphopt import zoo

SIDE = 640
COUNT = 80
MOST_LINES = 40
# As rapidocr-onnxruntime 1.4.4 sets them.
THRESHOLD = 0.3
UNCLIP = 1.6


def metric(outputs: Sequence[Mapping[str, Array]], labels: Mapping[str, Array] | None) -> float:
    """F1 of the lines found, where a line counts as found if the boxes overlap with an IoU of at least 0.5.

    Args:
        outputs: Probability maps [batch, 1, height, width], one mapping a sample.
        labels: ``labels``: boxes as left, top, right, bottom in pixels, [samples, batch, lines, 4]; -1 for no line.
    """
    assert labels is not None, "F1 needs the lines' boxes: an array `labels` in the data"
    maps = np.concatenate([only(sample)[:, 0] for sample in outputs])
    truth = labels["labels"].reshape(-1, *labels["labels"].shape[2:])
    hits = found_count = true_count = 0
    for probability, rows in zip(maps, truth, strict=True):
        found, true = boxes(probability), rows[rows[:, 0] >= 0]
        hits += matches(found, true)
        found_count += len(found)
        true_count += len(true)
    return 2 * hits / (found_count + true_count)


class Detection(Task):
    """PP-OCRv4's detector on pages of 640 by 640 pixels."""

    name = "det"
    headline = "line F1"

    def model(self) -> Path:
        return zoo.fetch("ppocrv4-det")

    def calibration(self, count: int) -> Split:
        return _pages(count, seed=5, calibration=True)

    @functools.cached_property
    def evaluation(self) -> Split:
        return _pages(COUNT, seed=6, calibration=False)

    def score(
        self, outputs: Sequence[Outputs], reference: Sequence[Outputs] | None = None
    ) -> dict[str, float]:
        scores = {self.headline: metric(outputs, self.evaluation.labels)}
        if reference is not None:
            both = either = 0
            for mine, theirs in zip(outputs, reference, strict=True):
                a, b = only(mine) > THRESHOLD, only(theirs) > THRESHOLD
                both += int(np.sum(a & b))
                either += int(np.sum(a | b))
            scores["pixel IoU with original"] = both / max(either, 1)
        return scores


def boxes(probability: Array) -> Array:
    """Boxes [n, 4] of the regions above the threshold, grown by what the model was trained to leave out.

    The distance is area times ratio over perimeter: Real-time Scene Text Detection with Differentiable Binarization,
    https://arxiv.org/abs/1911.08947, here for upright boxes.
    """
    from scipy import ndimage

    regions, _ = ndimage.label(probability > THRESHOLD)
    found = []
    for vertical, horizontal in ndimage.find_objects(regions):
        height, width = vertical.stop - vertical.start, horizontal.stop - horizontal.start
        if min(height, width) < 3:
            continue
        grow = UNCLIP * height * width / (2 * (height + width))
        found.append(
            (horizontal.start - grow, vertical.start - grow, horizontal.stop + grow, vertical.stop + grow)
        )
    return np.array(found, dtype=np.float64).reshape(-1, 4)


def matches(found: Array, true: Array, least_iou: float = 0.5) -> int:
    """How many boxes pair up, the best overlaps first, each box at most once."""
    low = np.maximum(found[:, None, :2], true[None, :, :2])
    high = np.minimum(found[:, None, 2:], true[None, :, 2:])
    common = np.prod(np.clip(high - low, 0, None), axis=2)
    areas = [np.prod(side[:, 2:] - side[:, :2], axis=1) for side in (found, true)]
    iou = common / (areas[0][:, None] + areas[1][None, :] - common)
    count = 0
    while iou.size and iou.max() >= least_iou:
        row, column = np.unravel_index(iou.argmax(), iou.shape)
        iou[row, :] = iou[:, column] = 0
        count += 1
    return count


def _pages(count: int, seed: int, calibration: bool) -> Split:
    rng = np.random.default_rng(seed)
    feeds = []
    labels = np.full((count, 1, MOST_LINES, 4), -1.0)
    for index in range(count):
        image, lines = _page(rng, calibration)
        pixels = np.asarray(image, dtype=np.float32)[:, :, ::-1].transpose(2, 0, 1)
        feeds.append({"x": ((pixels / 255 - 0.5) / 0.5)[None]})
        labels[index, 0, : len(lines)] = lines
    return Split(feeds, {"labels": labels})


def _page(rng: np.random.Generator, calibration: bool) -> tuple[Any, list[tuple[float, ...]]]:
    """A page with lines of several sizes and fonts in one or two columns, and their boxes."""
    from PIL import Image, ImageDraw, ImageFilter

    style = draw_style(rng)
    image = Image.new("RGB", (SIDE, SIDE), style.paper)
    draw = ImageDraw.Draw(image)
    lines: list[tuple[float, ...]] = []
    columns = int(rng.integers(1, 3))
    for column in range(columns):
        start, stop = SIDE * column // columns + 12, SIDE * (column + 1) // columns - 12
        top = int(rng.integers(8, 60))
        while len(lines) < MOST_LINES:
            letters = font(int(rng.integers(9)), int(rng.integers(14, 40)))
            words = phrase(rng, calibration)
            left = start + int(rng.integers(0, 60))
            box = letters.getbbox(" ".join(words))
            while len(words) > 1 and left + box[2] > stop:
                words.pop()
                box = letters.getbbox(" ".join(words))
            if top + box[3] > SIDE - 8:
                break
            if left + box[2] <= stop:
                draw.text((left, top), " ".join(words), fill=style.ink, font=letters)
                # From ascender to descender, as people draw boxes, whichever letters there are.
                full = letters.getbbox("hp")
                lines.append((left + box[0], top + full[1], left + box[2], top + full[3]))
            top += box[3] + int(rng.integers(8, 40))
    if style.blur:
        image = image.filter(ImageFilter.GaussianBlur(min(style.blur, 0.8)))
    return with_noise(image, style.noise, rng), lines
