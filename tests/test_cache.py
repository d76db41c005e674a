"""Files of the cache are whole, and only they make room."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from graphopt import cache

KEYS = [f"{number:040x}" for number in range(4)]


def test_files_used_longest_ago_make_room_and_those_of_others_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``quantize{cache=DIR}`` may name a folder in which the user keeps data."""
    monkeypatch.setattr(cache, "_MOST_BYTES", 2500)
    (tmp_path / "samples.npz").write_bytes(b"x" * 9000)
    (tmp_path / "0123.npz").write_bytes(b"x" * 9000)
    (tmp_path / f"{KEYS[3]}.json").write_bytes(b"x" * 9000)
    for age, key in enumerate(KEYS[:3]):
        cache.write_file(tmp_path / f"{key}.npz", lambda file: file.write(b"x" * 1000))
        os.utime(tmp_path / f"{key}.npz", (age, age))
    assert {file.name for file in tmp_path.iterdir()} == {
        "samples.npz", "0123.npz", f"{KEYS[3]}.json", f"{KEYS[1]}.npz", f"{KEYS[2]}.npz"
    }  # fmt: skip
    cache.write_file(tmp_path / f"{KEYS[0]}.npz", lambda file: file.write(b"x" * 3000))
    assert (tmp_path / f"{KEYS[0]}.npz").stat().st_size == 3000


def test_a_file_that_cannot_be_finished_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / f"{KEYS[0]}.npz"
    cache.write_archive(path, {"a": np.arange(3)}, compressed=True)

    def fails(file: object) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        cache.write_file(path, fails)
    assert cache.read_archive(path, lambda archive: archive["a"].tolist()) == [0, 1, 2]
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 cut off"])
def test_a_damaged_archive_is_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / f"{KEYS[0]}.npz"
    assert cache.read_archive(path, dict) is None and cache.read_archive(None, dict) is None
    path.write_bytes(content)
    assert cache.read_archive(path, dict) is None
