"""What is the user's own, named on the command line: ``FILE.py:NAME`` or ``MODULE:NAME``."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from graphopt.errors import UsageError


@contextlib.contextmanager
def user_code() -> Iterator[None]:
    """What a function of the user's own prints goes to stderr while this lasts: stdout may be read by a program."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def transform_of(given: str | Callable[..., Any] | None, data: object) -> Callable[..., Any] | None:
    """The transform of the data, as a function or by its name; None without one.

    Args:
        data: What it is to be applied to.

    Raises:
        UsageError: There are no data, or as for :func:`load_function`.
    """
    if given is None:
        return None
    if data is None:
        raise UsageError("there is a transform, but no data", hint="give the data as well (--data)")
    return load_function(given, "transform") if isinstance(given, str) else given


def load_function(given: str, what: str) -> Callable[..., Any]:
    """The function; as :func:`load_object`.

    Raises:
        UsageError: As there, or it is no function.
    """
    function = load_object(given, what, "function")
    if not callable(function):
        raise UsageError(f"{given} is no function", hint=_takes(what, "function"))
    found: Callable[..., Any] = function
    return found


def load_object(given: str, what: str, kind: str) -> Any:
    """What a file or a module has under a name.

    Args:
        what: What it is for, as the option is called without its hyphens ("metric", "transform").
        kind: What it should be, in a word.

    Raises:
        UsageError: There is no such file or name, or the file cannot be loaded.
    """
    place, _, name = given.rpartition(":")
    if not place:
        raise UsageError(f"the {what} {given!r} names no {kind}", hint=_takes(what, kind))
    try:
        with user_code():
            return getattr(_module(place, given, what), name)
    except AttributeError:
        raise UsageError(f"{place} has no {kind} {name!r}", hint=_takes(what, kind)) from None


def _takes(what: str, kind: str) -> str:
    return f"--{what} takes FILE.py:{kind.upper()} or MODULE:{kind.upper()}"


def _module(place: str, given: str, what: str) -> Any:
    try:
        if not place.endswith(".py"):
            return importlib.import_module(place)
        if not Path(place).exists():
            raise UsageError(f"there is no file {place}", hint=f"check --{what} {given}")
        spec = importlib.util.spec_from_file_location(Path(place).stem, place)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(
            f"the {what} {given!r} cannot be loaded: {type(error).__name__}: {error}",
            hint="correct that file",
        ) from error
