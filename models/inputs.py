"""Inputs such as real models meet in use: text on paper, pictures, sound, sentences. Drawn, not downloaded."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Request:
    """What inputs are wanted.

    Attributes:
        input_shapes: By input name.
        vocabulary: One word piece a line; for sentences.
    """

    input_shapes: Mapping[str, tuple[int, ...]]
    vocabulary: Path | None = None


# Digits of a 5 by 7 dot-matrix display, a row of five dots in each number.
_GLYPHS = (
    (14, 17, 19, 21, 25, 17, 14),
    (4, 12, 4, 4, 4, 4, 14),
    (14, 17, 1, 2, 4, 8, 31),
    (31, 2, 4, 2, 1, 17, 14),
    (2, 6, 10, 18, 31, 2, 2),
    (31, 16, 30, 1, 1, 17, 14),
    (6, 8, 16, 30, 17, 17, 14),
    (31, 1, 2, 4, 8, 8, 8),
    (14, 17, 17, 14, 17, 17, 14),
    (14, 17, 17, 15, 1, 2, 12),
)


def _text(page: Array, rng: np.random.Generator, top: int, left: int, dot: int, count: int) -> None:
    """Draw digits into a grey image with values from 0 to 1, dark on light."""
    for digit in rng.integers(0, 10, count):
        rows = np.array([[row >> (4 - bit) & 1 for bit in range(5)] for row in _GLYPHS[digit]], dtype=bool)
        ink = np.kron(rows, np.ones((dot, dot), dtype=bool))
        space = page[top : top + ink.shape[0], left : left + ink.shape[1]]
        space[ink[: space.shape[0], : space.shape[1]]] = 0.1
        left += 6 * dot


def _line(recipe: Request, rng: np.random.Generator) -> dict[str, Array]:
    """A line of text, scaled as PP-OCR does: to the range from -1 to 1."""
    ((name, (batch, channels, height, width)),) = recipe.input_shapes.items()
    images = np.full((batch, channels, height, width), 0.9, dtype=np.float32)
    for image in images:
        page = image[0]
        dot = max(1, height // 9)
        _text(page, rng, dot, int(rng.integers(2, 12)), dot, width // (6 * dot) - 1)
        image[:] = page + 0.02 * rng.standard_normal(image.shape)
    return {name: ((np.clip(images, 0, 1) - 0.5) / 0.5).astype(np.float32)}


def _page(recipe: Request, rng: np.random.Generator) -> dict[str, Array]:
    """A page with lines of text, normalised as PP-OCR's detector expects (ImageNet's mean and deviation)."""
    ((name, (batch, channels, height, width)),) = recipe.input_shapes.items()
    images = np.full((batch, channels, height, width), 0.9, dtype=np.float32)
    for image in images:
        page = image[0]
        top = 20
        while top < height - 60:
            dot = int(rng.integers(2, 6))
            _text(page, rng, top, int(rng.integers(10, width // 3)), dot, int(rng.integers(4, 12)))
            top += 7 * dot + int(rng.integers(10, 40))
        image[:] = page + 0.02 * rng.standard_normal(image.shape)
    return {name: _imagenet(np.clip(images, 0, 1))}


def _photo(recipe: Request, rng: np.random.Generator) -> dict[str, Array]:
    """Smooth shading, a few coloured rectangles and sensor noise, normalised with ImageNet's mean and deviation."""
    ((name, (batch, channels, height, width)),) = recipe.input_shapes.items()
    down, across = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    images = np.empty((batch, channels, height, width), dtype=np.float32)
    for image in images:
        for channel in image:
            waves = rng.uniform(0.5, 3, 2)
            channel[:] = 0.5 + 0.3 * np.sin(waves[0] * 6 * down + rng.uniform(0, 6)) * np.cos(
                waves[1] * 6 * across
            )
        for _ in range(6):
            y, x = rng.integers(0, height - 8), rng.integers(0, width - 8)
            h, w = rng.integers(8, height // 2), rng.integers(8, width // 2)
            image[:, y : y + h, x : x + w] = rng.uniform(0, 1, (channels, 1, 1))
        image += (0.02 * rng.standard_normal(image.shape)).astype(np.float32)
    return {name: _imagenet(np.clip(images, 0, 1))}


def _imagenet(images: Array) -> Array:
    mean = np.array([0.485, 0.456, 0.406]).reshape(1, 3, 1, 1)
    deviation = np.array([0.229, 0.224, 0.225]).reshape(1, 3, 1, 1)
    return np.asarray((images - mean) / deviation, dtype=np.float32)


def _sound(rng: np.random.Generator, samples: int) -> Array:
    """A second-order picture of voice at 16 kHz: harmonics of a gliding pitch under an envelope, and breath."""
    time = np.arange(samples) / 16000
    pitch = rng.uniform(90, 240) * (1 + 0.05 * np.sin(2 * np.pi * rng.uniform(2, 6) * time))
    phase = 2 * np.pi * np.cumsum(pitch) / 16000
    voice = sum(np.sin(k * phase + rng.uniform(0, 6)) / k for k in range(1, 12))
    envelope = 0.2 + 0.8 * np.abs(np.sin(np.pi * rng.uniform(1, 4) * time + rng.uniform(0, 3)))
    sound: Array = 0.1 * envelope * np.asarray(voice) + 0.005 * rng.standard_normal(samples)
    return sound.astype(np.float32)


def _voice(recipe: Request, rng: np.random.Generator) -> dict[str, Array]:
    """One window of sound and the state at the beginning of a stream."""
    batch, samples = recipe.input_shapes["input"]
    return {
        "input": np.stack([_sound(rng, samples) for _ in range(batch)]),
        "state": np.zeros(recipe.input_shapes["state"], dtype=np.float32),
        "sr": np.array(16000, dtype=np.int64),
    }


def _frames(recipe: Request, rng: np.random.Generator) -> dict[str, Array]:
    """Windows of sound, each with mean 0 and deviation 1, as CREPE expects."""
    ((name, (count, samples)),) = recipe.input_shapes.items()
    frames = np.stack([_sound(rng, samples) for _ in range(count)])
    frames -= frames.mean(axis=1, keepdims=True)
    return {name: (frames / frames.std(axis=1, keepdims=True)).astype(np.float32)}


def _mels(recipe: Request, rng: np.random.Generator) -> dict[str, Array]:
    """Mel spectrograms in linear power: formants that move slowly over a falling spectrum."""
    ((name, (count, steps, bands)),) = recipe.input_shapes.items()
    band = np.arange(bands) / bands
    mels = np.empty((count, steps, bands), dtype=np.float32)
    for mel in mels:
        drift = np.cumsum(rng.standard_normal((steps, 3)), axis=0) * 0.01
        centres = rng.uniform(0.1, 0.8, 3) + drift
        formants = np.exp(-(((band - centres[:, :, None]) / 0.06) ** 2)).sum(axis=1)
        loudness = np.abs(np.sin(np.arange(steps) / rng.uniform(8, 20)))[:, None]
        mel[:] = 0.05 * loudness * (formants + 0.1) * np.exp(-3 * band) * rng.uniform(0.7, 1.3, mel.shape)
    return {name: mels}


def _sentences(recipe: Request, rng: np.random.Generator) -> dict[str, Array]:
    """English sentences of many lengths, from the documentation of Python's standard library, as word pieces."""
    batch, length = recipe.input_shapes["input_ids"]
    assert recipe.vocabulary is not None
    pieces = {
        piece: index for index, piece in enumerate(recipe.vocabulary.read_text(encoding="utf-8").split("\n"))
    }
    ids = np.full((batch, length), pieces["[PAD]"], dtype=np.int64)
    mask = np.zeros((batch, length), dtype=np.int64)
    texts = _documentation()
    for row, choice in enumerate(rng.permutation(len(texts))[:batch]):
        tokens = [pieces["[CLS]"], *_word_pieces(texts[choice], pieces)[: length - 2], pieces["[SEP]"]]
        ids[row, : len(tokens)] = tokens
        mask[row, : len(tokens)] = 1
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


@functools.cache
def _documentation() -> tuple[str, ...]:
    import collections
    import datetime
    import json
    import pathlib
    import random
    import re
    import string
    import threading

    found: set[str] = set()
    for module in (collections, datetime, json, pathlib, random, re, string, threading):
        for thing in vars(module).values():
            text = inspect.getdoc(thing) or ""
            if len(text) > 20:
                found.add(" ".join(text.split()))
    return tuple(sorted(found))


def _word_pieces(text: str, pieces: dict[str, int]) -> list[int]:
    """BERT's tokenizer for plain English: words and punctuation, each cut greedily into the longest known pieces."""
    import re

    tokens: list[int] = []
    for word in re.findall(r"[a-z0-9]+|[^\sa-z0-9]", text.lower()):
        start, found = 0, []
        while start < len(word):
            end = len(word)
            while end > start and ("##" if start else "") + word[start:end] not in pieces:
                end -= 1
            if end == start:
                found = [pieces["[UNK]"]]
                break
            found.append(pieces[("##" if start else "") + word[start:end]])
            start = end
        tokens += found
    return tokens


EXAMPLES: dict[str, Callable[[Request, np.random.Generator], dict[str, Array]]] = {
    "line": _line,
    "page": _page,
    "photo": _photo,
    "voice": _voice,
    "frames": _frames,
    "mels": _mels,
    "sentences": _sentences,
}
