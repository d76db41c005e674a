"""Speech-like sound by formant synthesis: a glottal pulse train and noise through resonators, syllable by syllable.

The source-filter model as in Klatt, Software for a cascade/parallel formant synthesizer (1980); vowel formants after
Peterson and Barney (1952). Not words, but what tells voice from noise is there: harmonics of a pitch that falls
over a phrase, formants that move, consonants, a rhythm of syllables, pauses.
"""

from __future__ import annotations

import numpy as np

from benchmarks.tasks import Array

RATE = 16000
_STEP = 80  # Samples for which the resonators stand still: 5 ms.

# The first four formants of vowels, in Hz.
_VOWELS = np.array(
    [
        (270, 2290, 3010, 3700),
        (390, 1990, 2550, 3600),
        (530, 1840, 2480, 3500),
        (660, 1720, 2410, 3500),
        (730, 1090, 2440, 3400),
        (570, 840, 2410, 3300),
        (440, 1020, 2240, 3300),
        (300, 870, 2240, 3300),
        (640, 1190, 2390, 3400),
        (490, 1350, 1690, 3200),
    ],
    dtype=np.float64,
)
_BANDWIDTHS = np.array([60.0, 90.0, 130.0, 200.0])
# Where formants start from after a consonant made at the lips, the teeth, the palate; and of a nasal.
_LOCI = np.array(
    [(250, 900, 2300, 3300), (280, 1750, 2700, 3500), (250, 2200, 2500, 3500), (250, 1200, 2300, 3300)]
)


def utterance(rng: np.random.Generator, seconds: float) -> tuple[Array, Array]:
    """Phrases with pauses between them.

    Returns:
        The sound, float64 with a root mean square of 1 where there is speech, and True where there is speech, both
        [samples].
    """
    count = int(seconds * RATE)
    sound, mask = np.zeros(count), np.zeros(count, dtype=bool)
    tract = rng.uniform(0.95, 1.2)
    pitch = rng.uniform(90, 140) if tract < 1.08 else rng.uniform(160, 240)
    place = int(rng.uniform(0.3, 1.2) * RATE)
    while place < count - RATE // 2:
        phrase = _phrase(rng, pitch, tract, syllables=int(rng.integers(4, 12)))[: count - place]
        sound[place : place + len(phrase)] += phrase
        mask[place : place + len(phrase)] = True
        place += len(phrase) + int(rng.uniform(0.5, 1.6) * RATE)
    return sound / max(float(np.sqrt(np.mean(sound[mask] ** 2))), 1e-9), mask


def _phrase(rng: np.random.Generator, pitch: float, tract: float, syllables: int) -> Array:
    """Syllables of consonant and vowel in a row, under one contour of pitch."""
    formants, voicing, frication, centres = [], [], [], []
    for _ in range(syllables):
        vowel = _VOWELS[rng.integers(len(_VOWELS))] * tract * rng.uniform(0.95, 1.05, 4)
        locus = _LOCI[rng.integers(len(_LOCI))] * tract
        consonant, steady = int(rng.integers(8, 20)), int(rng.integers(16, 44))
        kind = rng.integers(4)  # Fricative, plosive, nasal or glide, none.
        voiced = {0: 0.05, 1: 0.02, 2: 0.5, 3: 0.9}[int(kind)]
        hiss = {0: 0.5, 1: 0.0, 2: 0.0, 3: 0.0}[int(kind)]
        glide = np.linspace(0, 1, 10)[:, None] ** 0.7
        formants += [
            np.repeat(locus[None], consonant, 0),
            locus + glide * (vowel - locus),
            np.repeat(vowel[None], steady, 0),
        ]
        rise = np.concatenate([np.linspace(voiced, 1, 10), np.linspace(1, 0.6, steady)])
        voicing += [np.full(consonant, voiced), rise * rng.uniform(0.6, 1)]
        noise = np.full(consonant, hiss)
        if kind == 1:
            noise[-2:] = 1.0
        frication += [noise, np.zeros(10 + steady)]
        centres.append(np.full(consonant + 10 + steady, rng.uniform(2500, 6500)))
    track, voice, hissing = np.concatenate(formants), np.concatenate(voicing), np.concatenate(frication)
    steps = len(track)
    time = np.arange(steps) / steps
    contour = pitch * (
        1.15 - 0.35 * time + 0.08 * np.sin(2 * np.pi * time * rng.uniform(1, 3) + rng.uniform(0, 6))
    )
    fade = np.minimum(1, np.minimum(np.arange(steps) + 1, steps - np.arange(steps)) / 6)
    source = _glottal(rng, np.repeat(contour, _STEP)) * np.repeat(voice * fade, _STEP)
    breath = rng.standard_normal(steps * _STEP)
    source += 0.02 * breath * np.repeat(voice * fade, _STEP)
    voiced_part = _cascade(source, track)
    noise_part = _resonate(breath * np.repeat(hissing * fade, _STEP), np.concatenate(centres), 1200.0)
    level = np.std(voiced_part) or 1.0
    return voiced_part / level + 0.35 * noise_part / (np.std(noise_part) or 1.0) * (hissing.max() > 0)


def _glottal(rng: np.random.Generator, pitch: Array) -> Array:
    """The derivative of Rosenberg's glottal pulses, a little irregular in period and strength."""
    jitter = np.repeat(1 + 0.01 * rng.standard_normal(len(pitch) // _STEP), _STEP)
    cycles = np.cumsum(pitch * jitter / RATE)
    phase = cycles % 1.0
    shimmer = (1 + 0.05 * rng.standard_normal(int(cycles[-1]) + 2))[cycles.astype(int)]
    opening, closing = 0.4, 0.16
    flow = np.where(
        phase < opening,
        0.5 * (1 - np.cos(np.pi * phase / opening)),
        np.where(phase < opening + closing, np.cos(np.pi * (phase - opening) / (2 * closing)), 0.0),
    )
    return np.diff(flow * shimmer, prepend=0.0)


def _cascade(source: Array, track: Array) -> Array:
    for index, bandwidth in enumerate(_BANDWIDTHS):
        source = _resonate(source, track[:, index], bandwidth)
    return source


def _resonate(source: Array, centres: Array, bandwidth: float) -> Array:
    """A digital resonator with unit gain at 0 Hz whose centre moves with every step."""
    from scipy.signal import lfilter

    result = np.empty_like(source)
    state = np.zeros(2)
    radius = np.exp(-np.pi * bandwidth / RATE)
    for step, centre in enumerate(np.minimum(centres, 0.47 * RATE)):
        recursive = [1.0, -2 * radius * np.cos(2 * np.pi * centre / RATE), radius**2]
        place = slice(step * _STEP, (step + 1) * _STEP)
        result[place], state = lfilter([sum(recursive)], recursive, source[place], zi=state)
    return result


def noise(rng: np.random.Generator, count: int) -> Array:
    """Background noise with a root mean square of 1: white, pink, brown, or hum of the mains."""
    kind = int(rng.integers(4))
    if kind == 3:
        time = np.arange(count) / RATE
        hum = sum(np.sin(2 * np.pi * 50 * k * time + rng.uniform(0, 6)) / k for k in (1, 2, 3, 5, 7))
        sound = np.asarray(hum) + 0.3 * rng.standard_normal(count)
    else:
        spectrum = np.fft.rfft(rng.standard_normal(count))
        spectrum *= np.maximum(np.arange(len(spectrum)), count / 800) ** (-0.5 * kind)
        sound = np.fft.irfft(spectrum, count)
    return np.asarray(sound / np.sqrt(np.mean(sound**2)))
