"""Samples that are read more than once, in bounded memory, through a transform, with their labels."""

from __future__ import annotations

import builtins
import tracemalloc
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphopt.data import load
from graphopt.data import rows as rows_module
from graphopt.data.dataset import Dataset
from graphopt.data.functions import load_function
from graphopt.data.interface import TensorSpec
from graphopt.errors import DataError, UnknownNameError, UsageError

SPECS = (TensorSpec("x", "float", ("n", 3)), TensorSpec("ids", "int64", ("n",)))
IMAGE = (TensorSpec("image", "float", (1, 3, 4, 6)),)


def entry(index: int) -> dict[str, Any]:
    return {"x": np.full((2, 3), index, np.float32), "ids": np.arange(2)}


def firsts(dataset: Dataset) -> list[float]:
    return [float(sample.feeds["x"][0, 0]) for sample in dataset]


def numbers(samples: Iterable[Mapping[str, Any]]) -> list[int]:
    return [int(feeds["x"][0, 0]) for feeds in samples]


def test_one_in_four_is_held_out() -> None:
    dataset = Dataset([entry(index) for index in range(40)], SPECS)
    calibration = numbers(dataset.calibration())
    samples, held_out = dataset.evaluation(40)
    judged = numbers(sample.feeds for sample in samples)
    assert sorted(calibration + judged) == list(range(40)) and held_out
    assert [index // 4 for index in judged] == list(range(10))
    assert len({index % 4 for index in judged}) == 4, "classes that take turns"
    assert dataset.number(judging=True) == 10 and dataset.number(judging=False) == 30
    few = Dataset([entry(0), entry(1)], SPECS)
    assert len(list(few.calibration())) == 2 and few.are_few and not few.evaluation(5)[1]


def test_some_of_many_come_from_all_over_the_data() -> None:
    """Data are often in the order of classes or recordings."""
    dataset = Dataset([entry(index) for index in range(400)], SPECS)
    calibration = dataset.calibration(16)
    picked = numbers(calibration)
    assert picked == numbers(calibration) == sorted(picked) and len(picked) == 16
    assert not set(picked) & set(numbers(sample.feeds for sample in dataset.evaluation(400)[0]))
    judged = numbers(sample.feeds for sample in dataset.evaluation(16)[0])
    for found in (picked, judged):
        assert len(found) == 16 and min(found) < 100 and max(found) >= 300
        assert all(any(start <= index < start + 100 for index in found) for start in range(0, 400, 100))


def test_a_generator_is_read_once_and_iterated_often() -> None:
    reads = 0

    def generate() -> Iterator[Mapping[str, Any]]:
        nonlocal reads
        for index in range(6):
            reads += 1
            yield {**entry(index), "label": np.array(index)}

    dataset = Dataset(generate(), SPECS)
    assert len(list(dataset.calibration())) == 5
    assert firsts(dataset) == firsts(dataset) == [0, 1, 2, 3, 4, 5] and reads == 6
    assert [int(sample.labels["label"]) for sample in dataset] == [0, 1, 2, 3, 4, 5]


def test_a_large_archive_is_read_row_by_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((64, 2048, 3)).astype(np.float32)
    ids = np.tile(np.arange(2048), (64, 1))
    labels = np.arange(64)
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "data.npz", x=x, ids=ids, label=labels)
        monkeypatch.setattr(rows_module, "LARGE", 100_000)
        dataset = Dataset(tmp_path / "data.npz", SPECS)
        tracemalloc.start()
        for index, sample in enumerate(dataset):
            assert np.array_equal(sample.feeds["x"], x[index]) and sample.labels["label"] == index
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < x.nbytes / 3
        # A transform gets whole arrays.
        doubled = Dataset(tmp_path / "data.npz", SPECS, transform=lambda raw: {**raw, "x": raw["x"] * 2})
        assert np.array_equal(next(iter(doubled)).feeds["x"], x[0] * 2)


def test_rows_in_any_order_and_a_file_that_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows_module, "LARGE", 1)
    x = np.arange(60, dtype=np.float32).reshape(5, 4, 3)
    np.savez(tmp_path / "data.npz", x=x, f=np.asfortranarray(x), flat=np.arange(3))
    rows = rows_module.rows_of(tmp_path / "data.npz", "x")
    assert rows is not None and rows.shape == (5, 4, 3)
    for index in (3, 1, 4, 0, 0, 2):
        assert np.array_equal(rows[index], x[index])
    assert np.array_equal(np.asarray(rows), x)
    with pytest.raises(IndexError):
        rows[5]
    for name in ("f", "flat", "nothing"):
        assert rows_module.rows_of(tmp_path / "data.npz", name) is None
    content = (tmp_path / "data.npz").read_bytes()
    position = content.index(x[2].tobytes())
    (tmp_path / "data.npz").write_bytes(content[:position] + b"\xff" + content[position + 1 :])
    with pytest.raises(DataError, match=r"cannot read .*data\.npz"):
        list(rows[index] for index in range(5))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": np.array([[1, np.nan, 3]], np.float32)}, r"sample 1 of the data: the input 'x' holds NaN"),
        (
            {"x": np.array([[1, np.inf, 3]], np.float32)},
            r"sample 1 of the data: the input 'x' holds infinity",
        ),
        ({"x": np.zeros((0, 3), np.float32)}, r"sample 1 of the data: the input 'x' is empty"),
        ({"x": np.zeros((1, 3))}, "float64"),
        ({"x": np.zeros((1, 4), np.float32)}, "dimension 1 is 4, not 3"),
    ],
)
def test_bad_samples_are_named(change: dict[str, Any], message: str) -> None:
    rows = len(change["x"])
    wrong = {"ids": np.arange(rows), **change}
    with pytest.raises(DataError, match=message):
        list(Dataset([entry(0), wrong], SPECS))


def test_a_bad_row_is_named(tmp_path: Path) -> None:
    x = np.zeros((5, 2, 3), np.float32)
    x[3, 1, 1] = np.nan
    np.savez(tmp_path / "data.npz", x=x, ids=np.zeros((5, 2), np.int64))
    with pytest.raises(DataError, match=r"data\.npz, row 3: the input 'x' holds NaN"):
        list(Dataset(tmp_path / "data.npz", SPECS))


def test_labels_need_a_row_for_each_sample() -> None:
    stacked = {"x": np.zeros((5, 2, 3), np.float32), "ids": np.zeros((5, 2), np.int64)}
    samples = list(Dataset({**stacked, "label": np.arange(5)}, SPECS))
    assert [int(sample.labels["label"]) for sample in samples] == [0, 1, 2, 3, 4]
    with pytest.raises(DataError, match="'label' is no input of the model"):
        list(Dataset({**stacked, "label": np.arange(4)}, SPECS))
    with pytest.raises(UnknownNameError, match="did you mean 'ids'"):
        list(Dataset({"idz": np.arange(4)}, SPECS))
    with pytest.raises(DataError, match="no sample"):
        list(Dataset([], SPECS))


def write_images(folder: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    for index in range(5):
        place = folder / f"class{index % 2}"
        place.mkdir(parents=True, exist_ok=True)
        image.fromarray(np.full((4, 6, 3), 10 * index, np.uint8)).save(place / f"{index}.png")
    (folder / ".hidden").write_text("no image")


def as_input(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    return {
        "image": raw["image"].transpose(2, 0, 1)[None].astype(np.float32) / 255,
        "label": np.array("class1" in raw["path"]),
    }


def test_a_folder_of_images_goes_through_the_transform(tmp_path: Path) -> None:
    write_images(tmp_path)
    samples = list(Dataset(tmp_path, IMAGE, transform=as_input))
    # By name: those of class0 first.
    values = [round(float(sample.feeds["image"][0, 0, 0, 0]) * 255) for sample in samples]
    assert values == [0, 20, 40, 10, 30]
    assert [bool(sample.labels["label"]) for sample in samples] == [False] * 3 + [True] * 2


def test_images_without_a_transform_without_pillow_or_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path)
    with pytest.raises(DataError, match=r"holds no \.npz and no \.npy") as caught:
        list(Dataset(tmp_path, IMAGE))
    assert "transform" in caught.value.hint
    (tmp_path / "class0" / "0.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"cannot decode .*0\.png as an image"):
        list(Dataset(tmp_path, IMAGE, transform=as_input))
    load = builtins.__import__

    def without(name: str, *arguments: Any, **more: Any) -> Any:
        if name == "PIL":
            raise ImportError(name)
        return load(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(DataError, match="Pillow is not installed") as caught:
        list(Dataset(tmp_path, IMAGE, transform=as_input))
    assert "pip install pillow" in caught.value.hint
    # The path alone needs no Pillow.
    plain = Dataset(
        tmp_path,
        IMAGE,
        transform=lambda raw: {"image": np.zeros((1, 3, 4, 6), np.float32) + len(raw["path"])},
    )
    assert len(list(plain)) == 5


def test_a_transform_that_fails_or_gives_no_mapping() -> None:
    with pytest.raises(
        DataError, match=r"sample 0 of the data: the transform of the data fails: KeyError: 'y'"
    ):
        list(Dataset([entry(0)], SPECS, transform=lambda raw: {"x": raw["y"]}))
    with pytest.raises(DataError, match="the transform of the data gave a list"):
        list(Dataset([entry(0)], SPECS, transform=lambda raw: [raw["x"]]))  # type: ignore[arg-type,return-value]


def test_functions_by_name(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def double(raw):\n    return {name: 2 * array for name, array in raw.items()}\n")
    assert load_function(f"{file}:double", "transform")({"x": 3}) == {"x": 6}
    assert load_function("math:floor", "transform")(2.5) == 2
    for given, message in [
        ("double", "names no function"),
        (f"{file}:triple", "has no function 'triple'"),
        (f"{tmp_path / 'none.py'}:double", "there is no file"),
        ("no.such.module:f", "the transform 'no.such.module:f' cannot be loaded: ModuleNotFoundError"),
    ]:
        with pytest.raises(UsageError, match=message):
            load_function(given, "transform")
    file.write_text("1 / 0")
    with pytest.raises(UsageError, match="cannot be loaded: ZeroDivisionError"):
        load_function(f"{file}:double", "transform")


ONE = (TensorSpec("x", "float", (1, 3)), TensorSpec("y", "float", ("n", 2)))
OPEN = (TensorSpec("x", "float", ("n", 3)),)
BATCH = {"x": np.arange(15, dtype=np.float32).reshape(5, 3)}
LABEL = {"label": np.arange(5)}


@pytest.mark.parametrize(
    ("specs", "data", "samples"),
    [
        (ONE, {**BATCH, "y": np.zeros((5, 2), np.float32)}, 5),
        (OPEN, {**BATCH, **LABEL}, 5),
        (OPEN, {**BATCH, **LABEL, "weight": np.zeros((5, 7))}, 5),
        (OPEN, BATCH, 1),
        (OPEN, {**BATCH, "label": np.arange(4)}, 1),
        (OPEN, {**BATCH, **LABEL, "sum": np.array(3)}, 1),
        ((TensorSpec("x", "float", (5, 3)),), {**BATCH, **LABEL}, 1),
        (OPEN, {"x": BATCH["x"][:, None], **LABEL}, 5),
    ],
)
def test_a_batch_is_several_samples_where_nothing_else_can_be_meant(
    specs: tuple[TensorSpec, ...], data: dict[str, Any], samples: int, tmp_path: Path
) -> None:
    np.savez(tmp_path / "data.npz", **data)
    for source in (data, tmp_path / "data.npz"):
        dataset = Dataset(source, specs)
        found = list(dataset)
        assert len(found) == samples
        # Where the input takes one row, nothing else is possible; by labels, it is said.
        assert dataset.cuts_batches == (specs is OPEN and samples > 1 and data["x"].ndim == 2)
        if samples > 1:
            for index, sample in enumerate(found):
                np.testing.assert_array_equal(sample.feeds["x"], BATCH["x"][index : index + 1])
                assert sample.labels.get("label", index) == index
        # Without lossy passes the same samples are seen.
        taken = list(load.samples(source, specs))
        for feeds, sample in zip(taken, found, strict=True):
            assert feeds.keys() == sample.feeds.keys()
            for name, array in feeds.items():
                np.testing.assert_array_equal(array, sample.feeds[name])


def test_rows_of_a_large_batch_are_samples_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "LARGE", 8)
    np.savez(tmp_path / "data.npz", **BATCH, **LABEL)
    found = [sample.feeds["x"] for sample in Dataset(tmp_path / "data.npz", OPEN)]
    np.testing.assert_array_equal(np.concatenate(found), BATCH["x"])


def test_files_that_are_not_named_after_inputs_say_how_samples_lie(tmp_path: Path) -> None:
    """Of a model of several inputs; where there is one, they are its samples."""
    np.save(tmp_path / "000.npy", BATCH["x"])
    assert len(list(Dataset(tmp_path, OPEN))) == 1
    with pytest.raises(UnknownNameError) as error:
        list(Dataset(tmp_path, (*OPEN, TensorSpec("mask", "float", ("n",)))))
    assert "files are named after inputs, and several samples are a folder for each" in str(error.value.hint)
