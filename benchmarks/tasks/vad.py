"""Voice activity: Silero VAD hears synthesised speech with pauses in noise, its state carried from frame to frame."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.tasks import Array, Feeds, Outputs, Run, Split, Task, onnx_runtime
from benchmarks.tasks.speech import RATE, noise, utterance
from graphopt import zoo

FRAME = 512
CONTEXT = 64
SECONDS = 8.0
UTTERANCES = 30
SNR = (30, 20, 10, 5, 0, -5)
"""Signal-to-noise ratios in dB, one after the other."""
THRESHOLD = 0.5


def metric(outputs: Sequence[Mapping[str, Array]], labels: Mapping[str, Array] | None) -> float:
    """Frame accuracy: the share of frames whose decision, speech or not, is true.

    Args:
        outputs: ``output``: probabilities [batch, 1], one mapping a frame.
        labels: ``labels``: 1 for speech and 0 for none, integers [frames, batch].
    """
    assert labels is not None, "frame accuracy needs the truth: an array `labels` in the data"
    return float(np.mean(decisions(outputs) == labels["labels"].ravel()))


def decisions(outputs: Sequence[Mapping[str, Array]]) -> Array:
    """True for each frame in which there is speech."""
    return np.concatenate([frame["output"].ravel() for frame in outputs]) > THRESHOLD


class VoiceActivity(Task):
    """One of the forms of Silero VAD, on frames of 32 ms.

    The samples of a :class:`Split` hold the state that the original has reached; :meth:`predict` carries the state of
    the model that is judged.
    """

    headline = "frame accuracy"

    def __init__(self, name: str, model: str, *, has_rate: bool = True) -> None:
        self.name = name
        self._model = model
        self._has_rate = has_rate

    def model(self) -> Path:
        return zoo.fetch(self._model)

    def calibration(self, count: int) -> Split:
        """Frames from all over the recordings, at least one recording for each signal-to-noise ratio."""
        frames_each = int(SECONDS * RATE) // FRAME
        recordings = max(len(SNR), -(-count // frames_each))
        feeds, labels = self._frames(seed=9, recordings=recordings)
        chosen = np.linspace(0, len(feeds) - 1, count).astype(int)
        return Split([feeds[index] for index in chosen], {"labels": labels[chosen]})

    @functools.cached_property
    def evaluation(self) -> Split:
        feeds, labels = self._frames(seed=10, recordings=UTTERANCES)
        return Split(feeds, {"labels": labels})

    def predict(self, run: Run) -> list[Outputs]:
        return [outputs for _, outputs, _ in self._stream(run, seed=10, recordings=UTTERANCES)]

    def score(
        self, outputs: Sequence[Outputs], reference: Sequence[Outputs] | None = None
    ) -> dict[str, float]:
        scores = {self.headline: metric(outputs, self.evaluation.labels)}
        if reference is not None:
            scores["agreement with original"] = float(np.mean(decisions(outputs) == decisions(reference)))
        return scores

    def _frames(self, seed: int, recordings: int) -> tuple[list[Feeds], Array]:
        frames = list(self._stream(onnx_runtime(self.model()), seed, recordings))
        return [feeds for feeds, _, _ in frames], np.array([[int(speech)] for _, _, speech in frames])

    def _stream(self, run: Run, seed: int, recordings: int) -> Iterator[tuple[Feeds, Outputs, bool]]:
        """Inputs, outputs and truth of each frame, one recording after the other, each from an empty state."""
        for sound, mask in _recordings(seed, recordings):
            state = np.zeros((2, 1, 128), dtype=np.float32)
            padded = np.concatenate([np.zeros(CONTEXT, dtype=np.float32), sound])
            for start in range(0, len(sound) - FRAME + 1, FRAME):
                feeds = {"input": padded[None, start : start + CONTEXT + FRAME], "state": state}
                if self._has_rate:
                    feeds["sr"] = np.array(RATE, dtype=np.int64)
                outputs = run(feeds)
                yield feeds, outputs, bool(mask[start : start + FRAME].mean() > 0.5)
                state = outputs["stateN"]


@functools.cache
def _recordings(seed: int, count: int) -> tuple[tuple[Array, Array], ...]:
    rng = np.random.default_rng(seed)
    made = []
    for index in range(count):
        speech, mask = utterance(rng, SECONDS)
        background = noise(rng, len(speech)) * 10 ** (-SNR[index % len(SNR)] / 20)
        # From a whisper into a far microphone to loud.
        sound = 10 ** rng.uniform(-1.7, -0.8) * (speech + background)
        made.append((np.clip(sound, -1, 1).astype(np.float32), mask))
    return tuple(made)


TASKS: tuple[Task, ...] = (
    VoiceActivity("vad", "silero-vad"),
    VoiceActivity("vad-16k", "silero-vad-16k"),
    VoiceActivity("vad-ifless", "silero-vad-ifless"),
    VoiceActivity("vad-half", "silero-vad-half", has_rate=False),
)
