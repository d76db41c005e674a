"""Tasks with real scores on data that are made, not downloaded.

A task knows its model, two disjoint sets of inputs (one to calibrate on, one to judge by), and how good outputs are.
Everything is drawn from fixed seeds. ``benchmarks/accuracy.py`` runs them; ``metric`` in each file of a task is its
headline as a function for ``graphopt compile --metric benchmarks/tasks/ocr.py:metric``.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Feeds = Mapping[str, Array]
Outputs = Mapping[str, Array]
Run = Callable[[Feeds], Outputs]
"""Runs a model once: outputs by name, from inputs by name."""


@dataclass(frozen=True)
class Split:
    """Inputs and what is known of them.

    Attributes:
        feeds: One mapping for each sample, of the model's input shapes.
        labels: Arrays with one row a sample; their names are not names of inputs.
    """

    feeds: Sequence[Feeds]
    labels: Mapping[str, Array]

    def save(self, path: Path) -> None:
        """Write all samples to one ``.npz``, stacked along a new first axis, the labels beside them."""
        stacked = {name: np.stack([feeds[name] for feeds in self.feeds]) for name in self.feeds[0]}
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as file:
            np.savez_compressed(file, allow_pickle=False, **stacked, **self.labels)


class Task(ABC):
    """A model, data for it, and scores.

    Attributes:
        name: On the command line.
        headline: The metric that budgets are about; the first one that :meth:`score` gives.
    """

    name: str
    headline: str

    @abstractmethod
    def model(self) -> Path:
        """The original as an ONNX file."""

    @abstractmethod
    def calibration(self, count: int) -> Split:
        """So many samples to calibrate on; none of them is judged by."""

    @property
    @abstractmethod
    def evaluation(self) -> Split:
        """All samples to judge by."""

    def predict(self, run: Run) -> list[Outputs]:
        """Outputs for the evaluation data, one mapping a sample."""
        return [run(feeds) for feeds in self.evaluation.feeds]

    @abstractmethod
    def score(
        self, outputs: Sequence[Outputs], reference: Sequence[Outputs] | None = None
    ) -> dict[str, float]:
        """All metrics, the headline first, each the better the higher.

        Args:
            outputs: What :meth:`predict` gave.
            reference: The same of the original; metrics that compare with it are left out without it.
        """


@functools.cache
def tasks() -> dict[str, Task]:
    """All tasks by name."""
    from benchmarks.tasks import cls, det, digits, ocr, pitch, retrieval, vad

    found: list[Task] = [
        ocr.Recognition(),
        det.Detection(),
        cls.Direction(),
        retrieval.Retrieval(),
        *vad.TASKS,
        *pitch.TASKS,
        *digits.TASKS,
    ]
    return {task.name: task for task in found}


def only(outputs: Outputs) -> Array:
    """The output of a model that has one."""
    (array,) = outputs.values()
    return array


def onnx_runtime(path: Path, threads: int = 0) -> Run:
    """A model in ONNX Runtime on the processor, as it comes.

    Args:
        threads: Of an operator; 0 for as many as ONNX Runtime takes.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda feeds: dict(zip(names, session.run(names, dict(feeds)), strict=True))
