"""One timed form in a process of its own: reads commands as lines of JSON, answers with lines of JSON.

Sessions that share a process share thread pools and the denormal mode, and spoil each other's times; so each form
that is timed gets a process, and the parent alternates between them.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from graphopt.data.interface import Feeds, receive_feeds, send_feeds
from graphopt.errors import GraphoptError
from graphopt.processes import answers, end_with_parent


def main() -> None:
    """The worker's loop. Commands: ``load``, ``run`` (timed), ``outputs`` (of given inputs, to a file)."""
    end_with_parent()
    answer_to = answers()
    executable: Any = None
    feeds: Feeds = {}
    for line in sys.stdin:
        command = json.loads(line)
        try:
            if "load" in command:
                executable, feeds = _load(command["load"])
                answer: dict[str, Any] = {"ready": True}
            elif "outputs" in command:
                request = command["outputs"]
                send_feeds(Path(request["to"]), executable.run(receive_feeds(Path(request["feeds"]))))
                answer = {"done": True}
            else:
                answer = {"seconds": _time(executable, feeds, **command["run"])}
        except GraphoptError as error:
            answer = {"error": error.message, "hint": error.hint}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}", "hint": ""}
        print(json.dumps(answer), file=answer_to, flush=True)


def _load(request: dict[str, Any]) -> tuple[Any, Feeds]:
    from graphopt import catalog

    runtime = catalog.runtime(request["target"])
    executable = runtime.load(Path(request["folder"]), request["config"], threads=request["threads"])
    return executable, receive_feeds(Path(request["feeds"])) if request["feeds"] else {}


def _time(executable: Any, feeds: Feeds, count: int, seconds: float) -> list[float]:
    """Times of up to ``count`` runs, at least one, stopping after ``seconds``."""
    times: list[float] = []
    stop = time.perf_counter() + seconds
    while len(times) < count:
        start = time.perf_counter()
        executable.run(feeds)
        end = time.perf_counter()
        times.append(end - start)
        if end > stop:
            break
    return times


if __name__ == "__main__":
    main()
