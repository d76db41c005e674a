"""What every benchmark writes beside its figures."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import platform
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "results"
_QUIET = 0.1
_WAITS = 20
_ATTEMPTS = 3


def write(path: Path, figures: Mapping[str, Any], *, threads: int, packages: tuple[str, ...] = ()) -> None:
    """Write the figures as JSON, with the command, the date, the machine and the versions.

    Args:
        threads: Of the timed code; 0 for as many as ONNX Runtime takes.
        packages: Distributions whose version matters, besides graphopt's.
    """
    import graphopt

    result = {
        "command": shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "date": datetime.date.today().isoformat(),
        "machine": machine(threads),
        "versions": {
            "graphopt": graphopt.__version__,
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in packages},
        },
        **figures,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {path}")


def undisturbed(measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The figures of a measurement that nothing else on the machine disturbed, as far as can be seen before and after.

    Waits for the machine to be idle and measures again where it was not, three times; then the last figures are
    returned with ``disturbed`` true, and said to be so.
    """
    for _ in range(_ATTEMPTS):
        for _ in range(_WAITS):
            if busy() <= _QUIET:
                break
        else:
            continue
        figures = measure()
        if busy() <= _QUIET:
            return figures | {"disturbed": False}
    print("the machine is busy with something else: the next figures are disturbed", file=sys.stderr)
    return measure() | {"disturbed": True}


def busy(seconds: float = 0.5) -> float:
    """The share of all cores that was in use during a while in which the caller rests; 0 where it cannot be read."""
    before = _core_times()
    time.sleep(seconds)
    spent = [now - then for now, then in zip(_core_times(), before, strict=True)]
    return 1 - (spent[3] + spent[4]) / sum(spent) if sum(spent) else 0.0


def _core_times() -> list[int]:
    """Of /proc/stat: user, nice, system, idle, waiting for disks, and so on."""
    try:
        line = Path("/proc/stat").read_text(encoding="utf-8").splitlines()[0]
    except OSError:
        return []
    return [int(number) for number in line.split()[1:]]


def machine(threads: int) -> dict[str, Any]:
    """What figures depend on besides versions."""
    return {"processor": processor(), "threads": threads}


def processor() -> str:
    """The processor's name, with its vector instructions where it has AVX-512."""
    from graphopt.machine import cpu_flags, cpu_name

    return f"{cpu_name()}, AVX-512" if "avx512f" in cpu_flags() else cpu_name()
