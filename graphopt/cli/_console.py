"""What goes to the terminal: results on stdout, progress on stderr."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    import onnx_ir as ir
    from rich.status import Status

    from graphopt.pipeline.record import PassRecord

SHOW_AFTER = 1.0
"""Seconds after which a command shows that it is at work."""


def write(text: str = "") -> None:
    """One line or more on stdout; colours only on a terminal, and none with ``NO_COLOR``."""
    click.echo(text, color=False if "NO_COLOR" in os.environ else None)


def write_json(value: Any) -> None:
    """The one object that ``--json`` prints; numbers that JSON lacks (NaN, infinities) become null."""
    import json

    click.echo(json.dumps(_plain(value), indent=2))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value


def bold(text: str) -> str:
    """Emphasised."""
    return click.style(text, bold=True)


def dim(text: str) -> str:
    """Of less weight."""
    return click.style(text, dim=True)


def good(text: str) -> str:
    """Something that went well."""
    return click.style(text, fg="green")


def bad(text: str) -> str:
    """Something to look at."""
    return click.style(text, fg="yellow")


def table(
    headings: Sequence[str], rows: Iterable[Sequence[str]], *, right: Iterable[int] = (), indent: int = 0
) -> str:
    """Columns as text.

    Args:
        right: Columns of numbers, set flush right.
    """
    content = [list(map(str, row)) for row in rows]
    widths = [
        max(len(click.unstyle(cell)) for cell in column)
        for column in zip(list(headings), *content, strict=True)
    ]
    flush = frozenset(right)

    def line(cells: Sequence[str]) -> str:
        padded = []
        for index, (cell, width) in enumerate(zip(cells, widths, strict=True)):
            space = " " * (width - len(click.unstyle(cell)))
            padded.append(space + cell if index in flush else cell + space)
        return (" " * indent + "  ".join(padded)).rstrip()

    head = [dim(heading) if heading else "" for heading in headings]
    return "\n".join(line(row) for row in ([head] if any(headings) else []) + content)


def shape(dims: Iterable[object]) -> str:
    """The sizes of a tensor."""
    return f"[{','.join(map(str, dims))}]"


class Progress(AbstractContextManager["Progress"]):
    """What a command is doing, on stderr: shown when it takes more than a second, and only on a terminal."""

    def __init__(self) -> None:
        self._status: Status | None = None
        self._timer: threading.Timer | None = None
        self._text = "starting"
        self._lock = threading.Lock()
        self._done = False

    def __enter__(self) -> Progress:
        if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
            self._timer = threading.Timer(SHOW_AFTER, self._show)
            self._timer.daemon = True
            self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._done = True
            if self._timer is not None:
                self._timer.cancel()
            if self._status is not None:
                self._status.stop()

    def _show(self) -> None:
        from rich.console import Console
        from rich.status import Status

        with self._lock:
            if not self._done:
                self._status = Status(self._text, console=Console(stderr=True))
                self._status.start()

    def say(self, text: str) -> None:
        """What it is doing now."""
        from_markup = text.replace("[", r"\[")
        with self._lock:
            self._text = from_markup
            if self._status is not None:
                self._status.update(from_markup)

    def stage(self, name: str, detail: str = "") -> None:
        """A stage of the compilation begins."""
        self.say(f"{name}: {detail}" if detail else name)

    def run_started(self) -> None:
        """The first pass follows."""

    def pass_started(self, name: str) -> None:
        """A pass begins."""
        self.say(f"pass {name}")

    def pass_ended(self, record: PassRecord, model: ir.Model) -> None:
        """A pass has ended; the report shows it."""
