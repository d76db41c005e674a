"""Which kernels a form runs and for how long, found in a process of its own."""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from graphopt.data.interface import Feeds, receive_feeds, send_feeds
from graphopt.errors import GraphoptError, TargetError
from graphopt.machine import Form, Inspectable, Kernel
from graphopt.processes import SilentError, run_once

_TIMEOUT = 300.0


def kernels_of(form: Form, feeds: Feeds, *, threads: int = 0, runs: int = 10) -> list[Kernel]:
    """The kernels of a form in the order in which they run.

    Raises:
        TargetError: It does not load or run, or its target cannot tell.
    """
    with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
        inputs, result = Path(folder) / "feeds", Path(folder) / "kernels.json"
        send_feeds(inputs, feeds)
        request = {
            "target": form.target,
            "folder": str(form.folder.resolve()),
            "config": dict(form.config),
            "feeds": str(inputs),
            "threads": threads,
            "runs": runs,
            "to": str(result),
        }
        try:
            done = run_once("graphopt.tune.kernels", request=request, seconds=_TIMEOUT)
        except SilentError as error:
            raise TargetError(f"the form {form.label!r} was not profiled within {_TIMEOUT:g} s") from error
        if done.code or not result.exists():
            raise TargetError(f"the form {form.label!r} cannot be profiled: {done.last_words}")
        content = json.loads(result.read_text(encoding="utf-8"))
    return [
        Kernel(**{**entry, "outputs": tuple(entry["outputs"]), "readers": tuple(entry["readers"])})
        for entry in content
    ]


def main() -> None:
    """Read a request from standard input, write the kernels to the file that it names."""
    from graphopt import catalog

    request = json.loads(sys.stdin.read())
    runtime = catalog.runtime(request["target"])
    if not isinstance(runtime, Inspectable):
        raise TargetError(f"the target {request['target']!r} does not tell its kernels")
    found = runtime.kernels(
        Path(request["folder"]),
        request["config"],
        receive_feeds(Path(request["feeds"])),
        threads=request["threads"],
        runs=request["runs"],
    )
    Path(request["to"]).write_text(json.dumps([asdict(kernel) for kernel in found]), encoding="utf-8")


if __name__ == "__main__":
    try:
        main()
    except GraphoptError as error:
        sys.exit(" ".join(error.message.split()))
