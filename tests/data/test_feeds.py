"""What crosses a process boundary: arrays, and what models return besides arrays."""

from pathlib import Path

import numpy as np
import pytest

from graphopt.data.interface import load_feeds, save_feeds


def test_arrays_and_strings_come_back(tmp_path: Path) -> None:
    feeds = {"x": np.ones((2, 0), np.float16), "s": np.array(["a", ""], dtype=object), "n": np.array(3)}
    save_feeds(tmp_path / "f.npz", feeds)
    back = load_feeds(tmp_path / "f.npz")
    assert list(back) == list(feeds)
    for name, array in feeds.items():
        assert back[name].dtype == array.dtype and np.array_equal(back[name], array)


@pytest.mark.parametrize(
    "value",
    [[np.ones(2), np.zeros((1, 3))], [], None, [{1: 0.5, 2: 0.25}], [{"a": np.arange(3)}], [[np.ones(1)]]],
)
def test_sequences_maps_and_missing_optionals_come_back(tmp_path: Path, value: object) -> None:
    save_feeds(tmp_path / "f.npz", {"x": np.ones(2), "value": value})
    back = load_feeds(tmp_path / "f.npz")
    assert sorted(back) == ["value", "x"]
    np.testing.assert_equal(back["value"], value)


def test_any_name_will_do(tmp_path: Path) -> None:
    feeds = {
        name: np.full(3, index) for index, name in enumerate(("file", "allow_pickle", "args", "a/b:0", " "))
    }
    save_feeds(tmp_path / "f.npz", feeds)
    back = load_feeds(tmp_path / "f.npz")
    assert list(back) == list(feeds)
    for name, array in feeds.items():
        np.testing.assert_array_equal(back[name], array)
