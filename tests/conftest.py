"""A cache of the tests' own, and what an older ONNX Runtime cannot run is skipped, by name of the version that can."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from graphopt.cache import cache_folder

if (
    threading.current_thread() is threading.main_thread()
    and signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):
    # A shell starts what runs in the background so, and what the tests start would never be interrupted.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What an earlier run has measured decides nothing here; only real models, fetched once, are the user's."""
    models = cache_folder("zoo")
    folder = tmp_path_factory.mktemp("cache")
    models.mkdir(parents=True, exist_ok=True)
    (folder / "zoo").symlink_to(models, target_is_directory=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRAPHOPT_CACHE", str(folder))
        yield folder


_DRAWN_SO_FAR: dict[str, Any] = {}
"""Where each module's generator stood before its first test."""


@pytest.fixture(autouse=True)
def same_numbers(request: pytest.FixtureRequest) -> None:
    """A test draws the same numbers from its module's ``RNG`` whichever tests ran before it in this process."""
    generator = getattr(request.module, "RNG", None)
    if generator is not None:
        state = _DRAWN_SO_FAR.setdefault(request.module.__name__, generator.bit_generator.state)
        generator.bit_generator.state = state


def pytest_runtest_setup(item: pytest.Item) -> None:
    """``@pytest.mark.onnxruntime("1.25", "fuses ...")``: what that release is the first to do."""
    import onnxruntime

    for marker in item.iter_markers("onnxruntime"):
        since, what = marker.args
        if _numbers(onnxruntime.__version__) < _numbers(since):
            pytest.skip(f"ONNX Runtime {since} is the first that {what}; this is {onnxruntime.__version__}")


def pytest_report_header() -> str:
    """The versions that the results depend on."""
    import onnx
    import onnxruntime

    return f"onnxruntime {onnxruntime.__version__}, onnx {onnx.__version__}"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])
