"""Text recognition: PP-OCRv4 reads rendered lines of English words and numbers."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.tasks import Array, Outputs, Split, Task, only
from benchmarks.tasks.render import as_line_input, draw_style, line, phrase
from graphopt import zoo

WIDTH = 320
COUNT = 500


def metric(outputs: Sequence[Mapping[str, Array]], labels: Mapping[str, Array] | None) -> float:
    """Exact match: the share of lines that are read without any mistake.

    Args:
        outputs: Probabilities [batch, steps, characters], one mapping a sample.
        labels: ``labels``: the texts, strings [samples, batch].
    """
    assert labels is not None, "exact match needs the texts: an array `labels` in the data"
    read = [text for sample in outputs for text in decode(only(sample))]
    return float(np.mean([a == b for a, b in zip(read, labels["labels"].ravel(), strict=True)]))


def characters_right(outputs: Sequence[Mapping[str, Array]], labels: Mapping[str, Array] | None) -> float:
    """Character accuracy: 1 minus the mean edit distance, relative to the longer text; as for :func:`metric`."""
    assert labels is not None, "character accuracy needs the texts: an array `labels` in the data"
    read = [text for sample in outputs for text in decode(only(sample))]
    wanted = labels["labels"].ravel()
    distances = [edit_distance(a, b) / max(len(a), len(b), 1) for a, b in zip(read, wanted, strict=True)]
    return 1 - float(np.mean(distances))


class Recognition(Task):
    """PP-OCRv4's recogniser at its usual size, 48 by 320."""

    name = "ocr"
    headline = "exact match"

    def model(self) -> Path:
        return zoo.fetch("ppocrv4-rec")

    def calibration(self, count: int) -> Split:
        return _lines(count, seed=1, calibration=True)

    @functools.cached_property
    def evaluation(self) -> Split:
        return _lines(COUNT, seed=2, calibration=False)

    def score(
        self, outputs: Sequence[Outputs], reference: Sequence[Outputs] | None = None
    ) -> dict[str, float]:
        labels = self.evaluation.labels
        scores = {
            self.headline: metric(outputs, labels),
            "character accuracy": characters_right(outputs, labels),
        }
        if reference is not None:
            read = [text for sample in outputs for text in decode(only(sample))]
            original = [text for sample in reference for text in decode(only(sample))]
            scores["same text as original"] = float(
                np.mean([a == b for a, b in zip(read, original, strict=True)])
            )
        return scores


def _lines(count: int, seed: int, calibration: bool) -> Split:
    rng = np.random.default_rng(seed)
    feeds, texts = [], []
    while len(feeds) < count:
        words, style = phrase(rng, calibration), draw_style(rng)
        image = line(" ".join(words), style, rng)
        while 48 * image.width > WIDTH * image.height and len(words) > 1:
            words.pop()
            image = line(" ".join(words), style, rng)
        if 48 * image.width <= WIDTH * image.height:
            feeds.append({"x": as_line_input(image, WIDTH)})
            texts.append([" ".join(words)])
    return Split(feeds, {"labels": np.array(texts)})


@functools.cache
def characters() -> tuple[str, ...]:
    """What each class stands for: the blank, then the list in the model's metadata, then the space."""
    import onnx

    model = onnx.load(zoo.fetch("ppocrv4-rec"), load_external_data=False)
    listed = next(entry.value for entry in model.metadata_props if entry.key == "character")
    return ("", *listed.splitlines(), " ")


def decode(probabilities: Array) -> list[str]:
    """Greedy CTC decoding of [batch, steps, characters]: repetitions merged, blanks and outer white space dropped.

    Connectionist temporal classification, Graves et al. 2006.
    """
    table = characters()
    texts = []
    for row in probabilities.argmax(axis=2):
        changed = np.concatenate([[True], row[1:] != row[:-1]])
        texts.append("".join(table[index] for index in row[changed]).strip())
    return texts


def edit_distance(a: str, b: str) -> int:
    """Levenshtein's distance: insertions, deletions and substitutions that lead from one text to the other."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        corner, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            corner, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, corner + (x != y))
    return row[-1]
