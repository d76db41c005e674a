"""What every benchmark writes beside its figures."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import platform
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "results"


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
        "machine": {"processor": processor(), "threads": threads},
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


def processor() -> str:
    """The processor's name, with its vector instructions where it has AVX-512."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    facts = {line.partition(":")[0].strip(): line.partition(":")[2].strip() for line in lines}
    name = facts.get("model name") or platform.machine()
    return f"{name}, AVX-512" if "avx512f" in facts.get("flags", "") else name
