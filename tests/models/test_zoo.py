"""The zoo: its recipes, fetching without trust, and each real model captured and run on realistic inputs."""

from __future__ import annotations

import hashlib
import subprocess
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphopt import zoo
from graphopt.capture import capture
from graphopt.errors import ModelError, UnknownNameError
from graphopt.ir.check import check
from graphopt.models import builders, inputs
from graphopt.testing import assert_same_numbers

NAMES = [recipe.name for recipe in zoo.listing()]


def test_every_recipe_is_complete() -> None:
    assert len(NAMES) == 20 and {
        "ppocrv4-rec",
        "silero-vad",
        "minilm",
        "crepe-full",
        "ge2e",
        "light-resnet50",
    } <= set(NAMES)
    for recipe in zoo.listing():
        assert recipe.kind in ("onnx", "torch") and recipe.example in inputs.EXAMPLES
        assert recipe.members and all(len(member.sha256) == 64 for member in recipe.members)
        assert (recipe.builder in builders.BUILDERS) == (recipe.kind == "torch")
        assert recipe.licence and recipe.description and recipe.input_shapes


def test_an_unknown_model_suggests_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="unknown zoo model 'ppocr-rec': did you mean"):
        zoo.fetch("ppocr-rec")


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, and pip that copies a wheel with the members of one recipe into the folder it is told."""
    monkeypatch.setenv("GRAPHOPT_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "rapidocr_onnxruntime-1.4.4-py3-none-any.whl"

    def run(command: Sequence[str], **_: Any) -> subprocess.CompletedProcess[str]:
        assert command[1:4] == ["-m", "pip", "download"] and "--no-deps" in command
        if not path.exists():
            return subprocess.CompletedProcess(
                command, 1, "", "WARNING: x\nERROR: No matching distribution found"
            )
        folder = Path(command[command.index("--dest") + 1])
        (folder / path.name).write_bytes(path.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    return path


def test_a_download_that_fails(wheel: Path) -> None:
    with pytest.raises(
        ModelError, match=r"cannot download rapidocr-onnxruntime==1\.4\.4: ERROR: No matching"
    ):
        zoo.fetch("ppocrv4-rec")


def test_a_wheel_that_was_altered(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx", b"other")
    with pytest.raises(ModelError, match="the wheel .* has the hash .*, not 971d7d5f"):
        zoo.fetch("ppocrv4-rec")
    assert not list((tmp_path / "cache").rglob("*.onnx"))


def test_a_member_that_was_altered(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    members = {m.path for name in NAMES for m in zoo.recipe(name).members if "rapidocr" in m.path}
    with zipfile.ZipFile(wheel, "w") as archive:
        for member in members:
            archive.writestr(member, b"other")
    actual = hashlib.sha256(wheel.read_bytes()).hexdigest()
    genuine = zoo._sha256
    monkeypatch.setattr(
        zoo,
        "_sha256",
        lambda path: zoo.recipe("ppocrv4-rec").wheel_sha256 if genuine(path) == actual else genuine(path),
    )
    with pytest.raises(ModelError, match=r"rapidocr_onnxruntime/models/.* has the hash .*, not"):
        zoo.fetch("ppocrv4-rec")
    assert not list((tmp_path / "cache").rglob("*.onnx"))


@pytest.mark.parametrize("kind", ["line", "page", "photo", "voice", "frames", "mels"])
def test_inputs_are_realistic_and_repeatable(kind: str) -> None:
    shapes = {
        "line": {"x": (2, 3, 48, 192)},
        "page": {"x": (1, 3, 160, 160)},
        "photo": {"x": (1, 3, 64, 64)},
        "voice": {"input": (1, 576), "state": (2, 1, 128), "sr": ()},
        "frames": {"f": (4, 1024)},
        "mels": {"m": (2, 160, 40)},
    }[kind]
    request = inputs.Request(shapes)
    first, again, other = (inputs.EXAMPLES[kind](request, np.random.default_rng(seed)) for seed in (0, 0, 1))
    for name, shape in shapes.items():
        assert first[name].shape == shape and np.isfinite(first[name]).all()
        np.testing.assert_array_equal(first[name], again[name])
    changing = next(name for name in shapes if name not in ("state", "sr"))
    assert not np.array_equal(first[changing], other[changing])
    assert first[changing].std() > 1e-3


def test_word_pieces() -> None:
    pieces = {piece: index for index, piece in enumerate(["[UNK]", "play", "##ing", "##s", ",", "the"])}
    assert inputs._word_pieces("Playing, the plays Ω", pieces) == [1, 2, 4, 5, 1, 3, 0]


@pytest.mark.zoo
@pytest.mark.parametrize("name", NAMES)
def test_a_real_model_is_captured_and_computes_the_same(name: str) -> None:
    path = zoo.fetch(name)
    recipe = zoo.recipe(name)
    if recipe.kind == "onnx":
        assert hashlib.sha256(path.read_bytes()).hexdigest() == recipe.members[0].sha256
    feeds = zoo.example_inputs(name)
    assert {key: value.shape for key, value in feeds.items()} == recipe.input_shapes
    captured = capture(path)
    check(captured.model)
    assert {value.name for value in captured.model.graph.inputs} == set(feeds)
    assert_same_numbers(captured.original_model, captured.model, feeds, rtol=1e-6)
    specialised = capture(path, input_shapes=recipe.input_shapes).model
    assert_same_numbers(captured.original_model, specialised, feeds, rtol=1e-6)
    for value in specialised.graph.inputs:
        assert value.shape is not None and value.shape.is_static()


@pytest.mark.zoo
def test_sentences_have_different_lengths() -> None:
    feeds = zoo.example_inputs("minilm")
    lengths = feeds["attention_mask"].sum(axis=1)
    assert len(set(lengths.tolist())) > 3 and (feeds["input_ids"][:, 0] == 101).all()
    assert ((feeds["input_ids"] == 0) == (feeds["attention_mask"] == 0)).all()
