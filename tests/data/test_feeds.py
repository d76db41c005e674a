"""What crosses a process boundary: arrays, and what models return besides arrays."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphopt.data.interface import load_feeds, receive_feeds, save_feeds, send_feeds

Across = Callable[[dict[str, Any]], dict[str, Any]]


@pytest.fixture(params=["saved", "sent"])
def across(request: pytest.FixtureRequest, tmp_path: Path) -> Across:
    """Writes arrays and reads them again, in one way or the other."""
    write, read = (save_feeds, load_feeds) if request.param == "saved" else (send_feeds, receive_feeds)

    def both(feeds: dict[str, Any]) -> dict[str, Any]:
        write(tmp_path / "f.npz", feeds)
        return read(tmp_path / "f.npz")

    return both


def test_arrays_and_strings_come_back(across: Across) -> None:
    feeds = {"x": np.ones((2, 0), np.float16), "s": np.array(["a", ""], dtype=object), "n": np.array(3)}
    back = across(feeds)
    assert list(back) == list(feeds)
    for name, array in feeds.items():
        assert back[name].dtype == array.dtype and np.array_equal(back[name], array)


@pytest.mark.parametrize(
    "value",
    [[np.ones(2), np.zeros((1, 3))], [], None, [{1: 0.5, 2: 0.25}], [{"a": np.arange(3)}], [[np.ones(1)]]],
)
def test_sequences_maps_and_missing_optionals_come_back(across: Across, value: object) -> None:
    back = across({"x": np.ones(2), "value": value})
    assert sorted(back) == ["value", "x"]
    np.testing.assert_equal(back["value"], value)


def test_any_name_will_do(across: Across) -> None:
    feeds = {
        name: np.full(3, index) for index, name in enumerate(("file", "allow_pickle", "args", "a/b:0", " "))
    }
    back = across(feeds)
    assert list(back) == list(feeds)
    for name, array in feeds.items():
        np.testing.assert_array_equal(back[name], array)
