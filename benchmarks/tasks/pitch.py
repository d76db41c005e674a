"""Pitch: CREPE names the fundamental frequency of synthesised notes."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.tasks import Array, Outputs, Split, Task, only
from graphopt import zoo

BATCH = 8
SAMPLES = 1024
RATE = 16000
TOLERANCE = 50.0
"""In cents, hundredths of a semitone."""


def metric(outputs: Sequence[Mapping[str, Array]], labels: Mapping[str, Array] | None) -> float:
    """Raw pitch accuracy: the share of frames whose pitch is within 50 cents.

    Args:
        outputs: Activations [batch, 360], one mapping a sample.
        labels: ``labels``: fundamental frequencies in Hz, floats [samples, batch].
    """
    assert labels is not None, "pitch accuracy needs the frequencies: an array `labels` in the data"
    wrong = 1200 * np.abs(np.log2(frequencies(outputs) / labels["labels"].ravel()))
    return float(np.mean(wrong <= TOLERANCE))


def frequencies(outputs: Sequence[Mapping[str, Array]]) -> Array:
    """Fundamental frequencies in Hz: the mean of the nine bins around the strongest, weighted by activation.

    CREPE: A Convolutional Representation for Pitch Estimation, https://arxiv.org/abs/1802.06182.
    """
    activations = np.concatenate([only(sample) for sample in outputs]).astype(np.float64)
    bins = np.arange(activations.shape[1])
    near = np.abs(bins[None] - activations.argmax(axis=1)[:, None]) <= 4
    weights = np.where(near, activations, 0)
    mean = (weights * bins).sum(axis=1) / np.maximum(weights.sum(axis=1), 1e-12)
    # The first bin lies this many cents above 10 Hz; bins are 20 cents apart.
    return np.asarray(10 * 2 ** ((20 * mean + 1997.3794084376191) / 1200))


class Pitch(Task):
    """CREPE on eight frames of 64 ms at a time."""

    headline = "pitch within 50 cents"

    def __init__(self, name: str, model: str, samples: int) -> None:
        self.name = name
        self._model = model
        self._samples = samples

    def model(self) -> Path:
        return zoo.fetch(self._model)

    def calibration(self, count: int) -> Split:
        return _notes(count, seed=11)

    @functools.cached_property
    def evaluation(self) -> Split:
        return _notes(self._samples, seed=12)

    def score(
        self, outputs: Sequence[Outputs], reference: Sequence[Outputs] | None = None
    ) -> dict[str, float]:
        scores = {self.headline: metric(outputs, self.evaluation.labels)}
        if reference is not None:
            cents = 1200 * np.abs(np.log2(frequencies(outputs) / frequencies(reference)))
            scores["same as original within 50 cents"] = float(np.mean(cents <= TOLERANCE))
        return scores


def _notes(count: int, seed: int) -> Split:
    """Notes from E2 to C6: harmonics of several timbres, vibrato, and noise at 0 to 40 dB below."""
    rng = np.random.default_rng(seed)
    time = np.arange(SAMPLES) / RATE
    frames = np.zeros((count * BATCH, SAMPLES))
    pitches = rng.uniform(np.log2(82.4), np.log2(1046.5), count * BATCH)
    for frame, pitch in zip(frames, 2**pitches, strict=True):
        # The pitch is what it is in the middle of the frame.
        wobble = rng.uniform(0, 0.01) * np.sin(2 * np.pi * rng.uniform(4, 7) * (time - time[SAMPLES // 2]))
        phase = 2 * np.pi * np.cumsum(pitch * (1 + wobble)) / RATE
        slope = rng.uniform(0.5, 2)
        odd_only = rng.random() < 0.25
        for harmonic in range(1, int(RATE / 2 / pitch / 1.1) + 1, 2 if odd_only else 1):
            strength = rng.uniform(0.3, 1) / harmonic**slope
            frame += strength * np.sin(harmonic * phase + rng.uniform(0, 2 * np.pi))
        frame += frame.std() * 10 ** (-rng.uniform(0, 40) / 20) * rng.standard_normal(SAMPLES)
    frames -= frames.mean(axis=1, keepdims=True)
    frames /= frames.std(axis=1, keepdims=True)
    batches = frames.reshape(count, BATCH, SAMPLES).astype(np.float32)
    return Split([{"frames": batch} for batch in batches], {"labels": (2**pitches).reshape(count, BATCH)})


TASKS: tuple[Task, ...] = (Pitch("pitch-tiny", "crepe-tiny", 150), Pitch("pitch-full", "crepe-full", 40))
