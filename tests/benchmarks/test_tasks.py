"""The tasks' data are the same each time and never on both sides; scores are right where the answer is known."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.tasks import (
    Split,
    Task,
    cls,
    det,
    digits,
    ocr,
    onnx_runtime,
    pitch,
    retrieval,
    speech,
    tasks,
    text,
    vad,
)

ROOT = Path(__file__).parents[2]

Make = Callable[[bool], Split]
MAKERS: dict[str, Make] = {
    "ocr": lambda calibration: ocr._lines(6, 1 if calibration else 2, calibration),
    "cls": lambda calibration: cls._lines(6, 3 if calibration else 4, calibration),
    "det": lambda calibration: det._pages(2, 5 if calibration else 6, calibration),
    "pitch": lambda calibration: pitch._notes(2, 11 if calibration else 12),
    "digits": lambda calibration: _digits().calibration(8) if calibration else _digits().evaluation,
}


def _digits() -> Task:
    return digits.Digits("digits-cnn", "convolution")


@pytest.mark.parametrize("name", MAKERS)
def test_data_are_the_same_each_time_and_disjoint(name: str) -> None:
    sides = {side: MAKERS[name](side) for side in (True, False)}
    for side, split in sides.items():
        again = MAKERS[name](side)
        assert len(split.feeds) == len(again.feeds) > 1
        for one, other in zip(split.feeds, again.feeds, strict=True):
            assert one.keys() == other.keys()
            assert all(np.array_equal(one[key], other[key]) for key in one)
        assert all(np.array_equal(split.labels[key], again.labels[key]) for key in split.labels)
        assert all(len(rows) == len(split.feeds) for rows in split.labels.values())
    seen = {array.tobytes() for feeds in sides[True].feeds for array in feeds.values()}
    assert not seen & {array.tobytes() for feeds in sides[False].feeds for array in feeds.values()}


def test_texts_are_on_one_side_only() -> None:
    assert not set(text.sentences(True)) & set(text.sentences(False))
    calibration, evaluation = (set(text.summaries(side)) for side in (True, False))
    assert not {query for query, _ in calibration} & {query for query, _ in evaluation}
    assert not {document for _, document in calibration} & {document for _, document in evaluation}
    assert min(len(calibration), len(evaluation)) >= 400


def test_inputs_have_the_range_that_the_models_were_trained_on() -> None:
    for name in ("ocr", "cls", "det"):
        for feeds in MAKERS[name](False).feeds:
            pixels = feeds["x"]
            assert pixels.dtype == np.float32
            assert -1 <= pixels.min() < -0.3 and 0.3 < pixels.max() <= 1


def test_speech_and_its_mask() -> None:
    sound, mask = speech.utterance(np.random.default_rng(0), 4.0)
    again, _ = speech.utterance(np.random.default_rng(0), 4.0)
    assert np.array_equal(sound, again)
    assert sound.shape == mask.shape == (4 * speech.RATE,)
    assert 0.2 < mask.mean() < 0.9
    assert np.sqrt(np.mean(sound[mask] ** 2)) == pytest.approx(1)
    assert not sound[~mask].any()
    assert np.sqrt(np.mean(speech.noise(np.random.default_rng(1), 16000) ** 2)) == pytest.approx(1)


def test_a_split_is_saved_as_the_compiler_reads_it(tmp_path: Path) -> None:
    split = MAKERS["digits"](True)
    split.save(tmp_path / "new" / "calibration.npz")
    with np.load(tmp_path / "new" / "calibration.npz", allow_pickle=False) as archive:
        assert set(archive.files) == {"x", "labels"}
        assert archive["x"].shape == (8, 1, 1, 8, 8)
        assert np.array_equal(archive["labels"], split.labels["labels"])
        assert np.array_equal(archive["x"][3], split.feeds[3]["x"])


# --- Scores -----------------------------------------------------------------------------------------------------


@pytest.fixture
def alphabet(monkeypatch: pytest.MonkeyPatch) -> str:
    """A recogniser's classes without the model: the blank and a few letters."""
    monkeypatch.setattr(ocr, "characters", lambda: ("", *"abc", " "))
    return " abc"


def _written(*classes: int) -> dict[str, Any]:
    return {"y": np.eye(5, dtype=np.float32)[None, list(classes)]}


def test_ctc_merges_repetitions_and_drops_blanks(alphabet: str) -> None:
    outputs = [_written(1, 1, 0, 1, 2, 0), _written(0, 4, 3, 4, 2, 4)]
    assert [ocr.decode(sample["y"])[0] for sample in outputs] == ["aab", "c b"]
    assert ocr.metric(outputs, {"labels": np.array([["aab"], ["c b"]])}) == 1
    assert ocr.metric(outputs, {"labels": np.array([["aab"], ["cb"]])}) == 0.5
    assert ocr.metric([_written(0, 0)], {"labels": np.array([["abc"]])}) == 0


@pytest.mark.parametrize(
    ("a", "b", "distance"), [("", "", 0), ("abc", "", 3), ("kitten", "sitting", 3), ("flaw", "lawn", 2)]
)
def test_edit_distance(a: str, b: str, distance: int) -> None:
    assert ocr.edit_distance(a, b) == ocr.edit_distance(b, a) == distance


def test_recognition_scores_against_labels_and_original(
    alphabet: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = ocr.Recognition()
    monkeypatch.setitem(vars(task), "evaluation", Split([{}, {}], {"labels": np.array([["ab"], ["abc"]])}))
    right, wrong = _written(1, 2, 0), _written(1, 0, 0)
    assert task.score([right, wrong], [right, right]) == {
        "exact match": 0.5,
        "character accuracy": pytest.approx((1 + 1 / 3) / 2),
        "same text as original": 0.5,
    }


def test_detection_finds_the_boxes_that_made_the_map() -> None:
    true = np.array([[100.0, 40, 300, 70], [50, 200, 120, 240]])
    probability = np.zeros((320, 320), dtype=np.float32)
    for left, top, right, bottom in true.astype(int):
        inset = 8
        probability[top + inset : bottom - inset, left + inset : right - inset] = 0.9
    labels = {"labels": np.full((1, 1, 4, 4), -1.0)}
    labels["labels"][0, 0, :2] = true
    assert det.metric([{"y": probability[None, None]}], labels) == 1
    assert det.metric([{"y": np.zeros_like(probability)[None, None]}], labels) == 0
    probability[230:] = 0.9  # Swallows the second line, so one of two is found, and something else.
    assert det.metric([{"y": probability[None, None]}], labels) == 0.5


def test_retrieval_pools_over_tokens_and_finds_the_partner() -> None:
    rng = np.random.default_rng(0)
    meaning = rng.standard_normal((4, 16))
    hidden = rng.standard_normal((8, 6, 16))
    lengths = np.array([[2, 3, 4, 5, 6, 2, 3, 4]])
    for row in range(8):
        hidden[row, : lengths[0, row]] = meaning[row // 2]  # What lies behind the length must not count.
    labels = {"labels": np.array([[0, -1, 1, -2, 2, -3, 3, -4]]), "lengths": lengths}
    assert retrieval.metric([{"y": hidden}], labels) == 1
    embedded = retrieval.embeddings([{"y": hidden}], lengths)
    assert np.allclose(np.linalg.norm(embedded, axis=1), 1)
    shifted = {**labels, "labels": np.array([[0, -2, 1, -3, 2, -4, 3, -1]])}
    assert retrieval.metric([{"y": hidden}], shifted) == 0
    # Every query finds its document, but one document is nearer to another query than to its own.
    basis = np.eye(4)[[0, 0, 1, 1, 2, 2, 3, 3]][:, None].repeat(6, axis=1)
    basis[1] = 0.6 * basis[0] + 0.8 * basis[2]
    assert retrieval.metric([{"y": basis}], labels) == pytest.approx((1 + 3 / 4) / 2)
    alone = {**labels, "labels": np.array([[0, -1, 1, 7, 2, 8, 3, 9]])}
    assert retrieval.metric([{"y": hidden}], alone) == 1  # One pair is complete.
    assert retrieval.spearman(np.arange(9.0), np.arange(9.0) ** 3) == pytest.approx(1)
    assert retrieval.spearman(np.arange(9.0), -np.arange(9.0)) == pytest.approx(-1)


def test_pitch_within_fifty_cents() -> None:
    frequencies = np.array([[110.0, 220.0, 440.0]])
    bins = (1200 * np.log2(frequencies[0] / 10) - 1997.3794084376191) / 20
    activations = np.exp(-(((np.arange(360)[None] - bins[:, None]) / 1.5) ** 2))
    assert pitch.frequencies([{"y": activations}]) == pytest.approx(frequencies[0], rel=2e-3)
    assert pitch.metric([{"y": activations}], {"labels": frequencies}) == 1
    assert pitch.metric([{"y": activations}], {"labels": frequencies * 2 ** (70 / 1200)}) == 0
    assert pitch.metric([{"y": np.zeros((3, 360))}], {"labels": frequencies}) == 0


def test_accuracy_of_classes() -> None:
    logits = np.eye(10, dtype=np.float32)
    outputs = [{"y": logits[[digit]]} for digit in (3, 1, 4)]
    assert digits.metric(outputs, {"labels": np.array([[3], [1], [4]])}) == 1
    assert digits.metric(outputs, {"labels": np.array([[1], [3], [4]])}) == pytest.approx(1 / 3)
    assert cls.metric([{"y": logits[:2, :2]}], {"labels": np.array([[0, 1]])}) == 1


def test_state_is_carried_within_a_recording_and_not_beyond(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the model that counts frames in its state and says speech where there is sound."""
    monkeypatch.setattr(vad, "UTTERANCES", 2)
    seen = []

    def run(feeds: dict[str, Any]) -> dict[str, Any]:
        seen.append(int(feeds["state"][0, 0, 0]))
        assert feeds["input"].shape == (1, vad.CONTEXT + vad.FRAME)
        loud = np.abs(feeds["input"]).max() > 0.02
        return {"output": np.array([[float(loud)]]), "stateN": feeds["state"] + 1}

    task = vad.VoiceActivity("vad", "silero-vad")
    outputs = task.predict(run)
    frames = int(vad.SECONDS * speech.RATE) // vad.FRAME
    assert seen == [*range(frames), *range(frames)]
    truth = [speech for _, _, speech in task._stream(run, 10, 2)]
    labels = {"labels": np.array(truth)[:, None].astype(int)}
    perfect = [{"output": np.array([[float(speech)]])} for speech in truth]
    assert vad.metric(perfect, labels) == 1
    assert vad.metric([{"output": 1 - frame["output"]} for frame in perfect], labels) == 0
    assert 0.6 < vad.metric(outputs, labels) <= 1


# --- The command ------------------------------------------------------------------------------------------------


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    script = str(ROOT / "benchmarks" / "accuracy.py")
    return subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, check=False)


def test_wrong_names_are_told_in_one_line() -> None:
    for arguments, expected in (
        (["data", "ocrr", "--calibration", "x.npz"], "no task 'ocrr'"),
        (["data", "ocr"], "--calibration FILE or --evaluation FILE"),
        (["run", "--tasks", "nothing"], "no task 'nothing'"),
        (["run", "--tasks", "ocr,cls", "model.onnx"], "which task is 'model.onnx' for?"),
        (["run", "--tasks", "ocr", "cls=model.onnx"], "not among those run: ocr"),
        (["run", "--tasks", "ocr", "missing.onnx"], "no file or bundle 'missing.onnx'"),
    ):
        done = command(*arguments)
        assert done.returncode == 1
        assert expected in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.slow
@pytest.mark.zoo
def test_the_originals_are_good_at_their_tasks() -> None:
    """Else the data would not be what the models were made for."""
    least = {"ocr": 0.9, "det": 0.9, "cls": 0.9, "vad": 0.85, "vad-half": 0.85, "pitch-tiny": 0.95}
    for name, score in least.items():
        task = tasks()[name]
        scores = task.score(task.predict(onnx_runtime(task.model())))
        assert next(iter(scores)) == task.headline
        assert scores[task.headline] >= score, (name, scores)
