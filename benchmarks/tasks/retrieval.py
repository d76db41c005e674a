"""Retrieval: MiniLM finds the docstring that a first sentence belongs to, in Python's standard library, and back.

Each text looks for its partner, so both ways count: the library has a few hundred such pairs, and one text more or less
is to be little beside a point.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.tasks import Array, Outputs, Split, Task, only
from benchmarks.tasks.text import passages, summaries
from graphopt import zoo

BATCH = 8
LENGTH = 128


def metric(outputs: Sequence[Mapping[str, Array]], labels: Mapping[str, Array] | None) -> float:
    """Recall at 1: the share of texts whose own partner is the most similar of all partners given, mean of both ways.

    Args:
        outputs: Last hidden states [batch, length, width], one mapping a sample.
        labels: ``labels``: number of the pair that a text belongs to, -1 minus that for documents, integers
            [samples, batch]; ``lengths``: how many tokens it has, integers [samples, batch].
    """
    assert labels is not None, "recall needs the pairs: arrays `labels` and `lengths` in the data"
    similarity = similarities(embeddings(outputs, labels["lengths"]), labels["labels"])
    partners = np.arange(len(similarity))
    return float(np.mean([similarity.argmax(axis=axis) == partners for axis in (0, 1)]))


class Retrieval(Task):
    """all-MiniLM-L6-v2 as the zoo exports it: eight texts of 128 tokens at a time."""

    name = "retrieval"
    headline = "recall@1"

    def model(self) -> Path:
        return zoo.fetch("minilm")

    def calibration(self, count: int) -> Split:
        """Pairs, each once; behind them passages that belong to no pair, which the metric leaves out."""
        pairs = summaries(calibration=True)
        wanted = count * BATCH
        whole = min(wanted // 2, len(pairs) - len(pairs) % (BATCH // 2))
        return _batches(pairs, whole, seed=7, alone=passages(calibration=True), others=wanted - 2 * whole)

    @functools.cached_property
    def evaluation(self) -> Split:
        pairs = summaries(calibration=False)
        return _batches(pairs, len(pairs) - len(pairs) % (BATCH // 2), seed=8)

    def score(
        self, outputs: Sequence[Outputs], reference: Sequence[Outputs] | None = None
    ) -> dict[str, float]:
        labels = self.evaluation.labels
        scores = {self.headline: metric(outputs, labels)}
        if reference is not None:
            mine, theirs = (embeddings(given, labels["lengths"]) for given in (outputs, reference))
            pairs = labels["labels"]
            scores["Spearman with original"] = spearman(
                similarities(mine, pairs), similarities(theirs, pairs)
            )
            scores["mean cosine to original"] = float(np.mean(np.sum(mine * theirs, axis=1)))
        return scores


def embeddings(outputs: Sequence[Mapping[str, Array]], lengths: Array) -> Array:
    """Sentence embeddings [texts, width] of length 1: the mean over the tokens, as the model was trained.

    Sentence-BERT, https://arxiv.org/abs/1908.10084.
    """
    hidden = np.concatenate([only(sample) for sample in outputs]).astype(np.float64)
    mask = np.arange(hidden.shape[1])[None, :, None] < lengths.reshape(-1, 1, 1)
    mean = (hidden * mask).sum(axis=1)
    return np.asarray(mean / np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-12))


def similarities(embedded: Array, pairs: Array) -> Array:
    """Cosines [queries, documents], both in the order of their pairs' numbers; texts without partner left out."""
    numbers = pairs.ravel()
    complete = np.intersect1d(numbers[numbers >= 0], -1 - numbers[numbers < 0])
    place = {int(number): row for row, number in enumerate(numbers)}
    queries = embedded[[place[int(number)] for number in complete]]
    documents = embedded[[place[-1 - int(number)] for number in complete]]
    return np.asarray(queries @ documents.T)


def spearman(a: Array, b: Array) -> float:
    """Rank correlation of two arrays of different numbers."""
    ranks = [np.argsort(np.argsort(values.ravel())).astype(np.float64) for values in (a, b)]
    return float(np.corrcoef(*ranks)[0, 1])


def _batches(
    pairs: Sequence[tuple[str, str]], count: int, seed: int, *, alone: Sequence[str] = (), others: int = 0
) -> Split:
    """``count`` pairs at random, four a sample, and as many texts that belong to none; samples in random order.

    Once all texts are used up, they come again in another order.
    """
    rng = np.random.default_rng(seed)

    def drawn(size: int, wanted: int) -> Array:
        turns = [rng.permutation(size) for _ in range(-(-wanted // size) if size else 0)]
        return np.concatenate([np.zeros(0, np.int64), *turns])[:wanted]

    tokenizer = _tokenizer()
    texts = [text for index in drawn(len(pairs), count) for text in pairs[index]]
    numbers = [sign for index in range(count) for sign in (index, -1 - index)]
    texts += [alone[index] for index in drawn(len(alone), others)]
    numbers += range(count, count + others)
    if others:
        places = rng.permutation(len(texts) // BATCH)[:, None] * BATCH + np.arange(BATCH)
        texts, numbers = ([given[place] for place in places.ravel()] for given in (texts, numbers))
    encoded = tokenizer.encode_batch(texts)
    feeds = []
    for start in range(0, len(texts), BATCH):
        part = encoded[start : start + BATCH]
        feeds.append(
            {
                "input_ids": np.array([entry.ids for entry in part], dtype=np.int64),
                "attention_mask": np.array([entry.attention_mask for entry in part], dtype=np.int64),
                "token_type_ids": np.zeros((BATCH, LENGTH), dtype=np.int64),
            }
        )
    lengths = np.array([sum(entry.attention_mask) for entry in encoded])
    return Split(
        feeds, {"labels": np.array(numbers).reshape(-1, BATCH), "lengths": lengths.reshape(-1, BATCH)}
    )


def _tokenizer() -> Any:
    """BERT's word pieces with the model's vocabulary, cut and padded to ``LENGTH``."""
    from tokenizers import BertWordPieceTokenizer

    vocabulary = next(path for path in zoo.members("minilm") if path.name == "vocab.txt")
    tokenizer = BertWordPieceTokenizer(str(vocabulary), lowercase=True)
    tokenizer.enable_truncation(LENGTH)
    tokenizer.enable_padding(length=LENGTH)
    return tokenizer
