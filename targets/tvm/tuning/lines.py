"""Lines of a process's output, each waited for no longer than is said."""

from __future__ import annotations

import queue
import subprocess
import threading


class Lines:
    """Reads the standard output of a process.

    Args:
        process: In text mode.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        self._output = process.stdout
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def next(self, seconds: float) -> str:
        """The next line; "" where the output ends, or none comes in this time."""
        try:
            return self._lines.get(timeout=seconds)
        except queue.Empty:
            return ""

    def close(self) -> None:
        """To be called when the process has ended."""
        self._reader.join()
        self._output.close()

    def _read(self) -> None:
        for line in self._output:
            self._lines.put(line)
        self._lines.put("")
