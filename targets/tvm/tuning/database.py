"""Tuned kernels on disk: one folder, in it a file for each version of TVM and each kind of hardware.

    FOLDER/tvm-0.27.0.post1-loops-2/AMD-EPYC-9B45-avx512f-2-threads-0c3f1a.jsonl

The first line says what the file is of; each other line is the best that was found of one product until then, later
lines win. Lines are appended one by one, so what was measured survives a crash, an interruption and a full disk.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

import msgspec

from graphopt.cache import cache_folder
from graphopt.errors import GraphoptError, UsageError
from graphopt.machine import cores, cpu_name
from graphopt.targets.tvm.lower.tiles import Tile

LOOPS = 2
"""Of graphopt's own loops: a tile that was the best of one version need not be that of another."""
_SUFFIX = ".jsonl"


class Record(msgspec.Struct, frozen=True):
    """The best of one product.

    Attributes:
        product: Its key.
        tile: What it is computed in.
        seconds: Of a run.
        before: Of a run in the tile that is taken without tuning, measured beside it.
        trials: How many tiles were measured.
        finished: Whether these are all that are worth it.
    """

    product: str
    tile: Tile
    seconds: float
    before: float
    trials: int
    finished: bool = False


class Header(msgspec.Struct, frozen=True):
    """What a file is of."""

    tvm: str
    loops: int
    hardware: str


class Database:
    """Records of one version of TVM on one kind of hardware.

    Args:
        folder: Of all versions and hardware; None for graphopt's cache.
        tvm: Version.
        hardware: As from :func:`hardware_name`.
    """

    def __init__(self, folder: Path | None, tvm: str, hardware: str) -> None:
        self.folder = folder or cache_folder("tvm-kernels")
        self.header = Header(tvm, LOOPS, hardware)
        self.file = self.folder / f"tvm-{tvm}-loops-{LOOPS}" / f"{_slug(hardware)}{_SUFFIX}"

    def best(self) -> dict[str, Record]:
        """The last record of each product; damaged lines are left out."""
        return {record.product: record for record in _records(self.file)}

    def tiles(self) -> dict[str, Tile]:
        """The best tile of each product."""
        return {key: record.tile for key, record in self.best().items()}

    def add(self, record: Record) -> None:
        """Append a record.

        Raises:
            GraphoptError: It cannot be written.
        """
        self.add_all([record])

    def add_all(self, records: Iterable[Record]) -> None:
        """Append records; as :meth:`add`."""
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            lines = [] if _is_begun(self.file) else [msgspec.json.encode(self.header)]
            lines += [msgspec.json.encode(record) for record in records]
            # A line that was cut off ends here, so that the next one is whole.
            start = b"" if _ends_with_a_line(self.file) else b"\n"
            with open(self.file, "ab") as file:
                file.write(start + b"".join(line + b"\n" for line in lines))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise GraphoptError(
                f"cannot write {self.file}: {error.strerror}",
                hint="what was measured before is kept: make room or choose another folder with --database, and run "
                "the same command again",
            ) from error

    def others(self) -> list[Header]:
        """What else the folder holds records of."""
        found = (_header(file) for file in sorted(self.folder.glob(f"*/*{_SUFFIX}")) if file != self.file)
        return [header for header in found if header is not None]

    def describe_absence(self) -> str:
        """Why there is no record: what the folder holds instead; "" where it holds nothing."""
        others = self.others()
        if not others or self.file.exists():
            return ""
        what = "; ".join(f"TVM {entry.tvm} on {entry.hardware}" for entry in others[:3])
        wanted = f"TVM {self.header.tvm} on {self.header.hardware}"
        return f"{self.folder} holds tuned kernels of {what}, none of {wanted}"


def merge(sources: Iterable[Path], into: Path) -> dict[str, int]:
    """Join databases: of each product the record that was measured to gain most.

    Args:
        sources: Folders.
        into: A folder, which may be one of them, or new.

    Returns:
        How many products each file holds afterwards, by ``version/hardware``.

    Raises:
        UsageError: A source holds no records.
        GraphoptError: The folder cannot be written.
    """
    joined: dict[Header, dict[str, Record]] = {}
    for source in (*sources, into):
        files = sorted(source.glob(f"*/*{_SUFFIX}"))
        if not files and source != into:
            raise UsageError(
                f"{source} holds no tuned kernels", hint="name the folder that tune --database wrote to"
            )
        for file in files:
            header = _header(file)
            if header is None:
                raise UsageError(f"{file} is no database of tuned kernels", hint="remove it from the folder")
            best = joined.setdefault(header, {})
            for record in {record.product: record for record in _records(file)}.values():
                rival = best.get(record.product)
                # Seconds of two runs of tuning need not compare; what was gained beside the same default does.
                if rival is None or _gain(record) > _gain(rival):
                    best[record.product] = record
    counts = {}
    for header, records in joined.items():
        database = Database(into, header.tvm, header.hardware)
        there = database.best()
        database.add_all(record for key, record in records.items() if there.get(key) != record)
        counts[f"TVM {header.tvm}, {header.hardware}"] = len(records)
    return counts


def hardware_name(vectors: str, device: str = "") -> str:
    """What kernels are measured on: a device by its name, or this processor with its threads; and its vectors."""
    kind = vectors or "plain"
    return f"{device}, {kind}" if device else f"{cpu_name()}, {kind}, {cores()} threads"


def _gain(record: Record) -> float:
    return record.before / record.seconds if record.seconds > 0 else 0.0


def _records(file: Path) -> list[Record]:
    found = []
    for line in _lines(file)[1:]:
        with contextlib.suppress(msgspec.DecodeError, msgspec.ValidationError):
            found.append(msgspec.json.decode(line, type=Record))
    return found


def _header(file: Path) -> Header | None:
    for line in _lines(file)[:1]:
        with contextlib.suppress(msgspec.DecodeError, msgspec.ValidationError):
            return msgspec.json.decode(line, type=Header)
    return None


def _lines(file: Path) -> list[bytes]:
    try:
        return file.read_bytes().splitlines()
    except OSError:
        return []


def _is_begun(file: Path) -> bool:
    return file.exists() and file.stat().st_size > 0


def _ends_with_a_line(file: Path) -> bool:
    return not _is_begun(file) or file.read_bytes().endswith(b"\n")


def _slug(text: str) -> str:
    """A file's name that is nobody else's."""
    readable = re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-")
    return f"{readable}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"
