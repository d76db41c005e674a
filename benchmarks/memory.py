"""Peak memory of compiling a large model with external data.

    python benchmarks/memory.py [--gigabytes 3] [--output FILE]

Builds a model of that size (MatMul, Add and Relu with random weights in one external file), compiles it with
the command line, and samples the memory of the whole process tree. Counted is the proportional set size
(PSS), so that a page which several processes map counts once. Prints the peak over the size of the weights
and writes JSON. Linux only."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from _results import FOLDER, write

from graphopt.models import builders

DEFAULT_OUTPUT = FOLDER / "memory.json"


def descendants(pid: int) -> list[int]:
    """The process and everything that it started."""
    found, stack = [], [pid]
    while stack:
        current = stack.pop()
        found.append(current)
        try:
            for task in Path(f"/proc/{current}/task").iterdir():
                stack += map(int, (task / "children").read_text().split())
        except (OSError, ValueError):
            continue
    return found


def pss_bytes(pid: int) -> int:
    """Proportional set size of one process; 0 once it has ended."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return 0


class Sampler(threading.Thread):
    """Samples the memory of a process tree until it is told to stop.

    Attributes:
        peak: Largest sum over the tree, in bytes.
        peak_one: Largest single process, in bytes.
    """

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid = pid
        self.peak = self.peak_one = 0
        self.running = True

    def run(self) -> None:
        while self.running:
            sizes = [pss_bytes(pid) for pid in descendants(self.pid)]
            self.peak = max(self.peak, sum(sizes))
            self.peak_one = max(self.peak_one, max(sizes, default=0))
            time.sleep(0.05)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--gigabytes", type=float, default=3.0)
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="graphopt-bench-") as temporary:
        path = builders.write_large(Path(temporary) / "large.onnx", gigabytes=options.gigabytes)
        weights = sum(file.stat().st_size for file in Path(temporary).iterdir() if file.name != path.name)
        started = time.monotonic()
        command = [
            sys.executable,
            "-m",
            "graphopt",
            "compile",
            str(path),
            "-o",
            f"{temporary}/large.gopt",
            "--json",
        ]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        sampler = Sampler(process.pid)
        sampler.start()
        output, _ = process.communicate()
        sampler.running = False
        sampler.join()
        if process.returncode:
            raise SystemExit(f"compile failed with exit code {process.returncode}")
        report: dict[str, Any] = json.loads(output)
    result = {
        "weights_bytes": weights,
        "peak_bytes": sampler.peak,
        "peak_over_weights": sampler.peak / weights,
        "largest_process_over_weights": sampler.peak_one / weights,
        "seconds": time.monotonic() - started,
        "speedup": report["speedup"],
        "verify": report["verify"]["status"],
        "stages": report["stages"],
    }
    print(json.dumps(result, indent=1))
    write(options.output, result, threads=0, packages=("onnxruntime",))


if __name__ == "__main__":
    main()
