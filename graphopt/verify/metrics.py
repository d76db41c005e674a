"""What a budget is of: a metric, of which more is better.

Those built in compare with the original's outputs, so the original itself scores 1 and a drop of 1 % is a hundredth; a
metric of the user's own gets the labels that lie beside the inputs, and its drop is relative to what the original
scores.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from graphopt.data.functions import load_function, user_code
from graphopt.data.interface import Array, Feeds
from graphopt.errors import DataError, UnknownNameError, UsageError
from graphopt.verify.agreement import METRICS, agreement

Labels = Mapping[str, Array]

DEFAULT_METRIC = "sqnr"
CONTINUOUS = frozenset({"sqnr", "cosine"})
"""Metrics that move with every number in an output."""


@dataclass(frozen=True)
class Metric:
    """What the budget is of.

    Attributes:
        name: In reports; one of :data:`graphopt.verify.agreement.METRICS` where there is no task.
        task: ``(outputs, labels) -> score`` of the user's own: one mapping of outputs for each sample, and each label
            as an array with one row for each sample.
    """

    name: str
    task: Callable[..., float] | None = None

    @property
    def counts(self) -> bool:
        """Whether it may move in steps, a sample more or less, as a user's own is taken to do."""
        return self.task is not None or self.name not in CONTINUOUS

    def score(self, outputs: Sequence[Feeds], references: Sequence[Feeds], labels: Sequence[Labels]) -> float:
        """More is better.

        Raises:
            UsageError: The user's function raises, or gives no number; a metric of ours can read none of the outputs.
        """
        if self.task is None:
            return agreement(self.name, outputs, references)
        # Copies, for a function may work in place.
        given = copy.deepcopy([dict(sample) for sample in outputs])
        try:
            takes_labels = len(inspect.signature(self.task).parameters) > 1
            with user_code():
                return float(self.task(given, _stacked(labels)) if takes_labels else self.task(given))
        except DataError:
            raise
        except (Exception, SystemExit) as error:
            raise UsageError(
                f"the metric {self.name!r} fails: {type(error).__name__}: {error}",
                hint=_received(outputs, labels),
            ) from error


def _received(outputs: Sequence[Feeds], labels: Sequence[Labels]) -> str:
    """What a metric of the user's own is called with, with the names that there are."""
    made = ", ".join(map(repr, outputs[0] if outputs else ())) or "none"
    known = ", ".join(map(repr, labels[0] if labels else ())) or "none: give labelled data with --data"
    return (
        f"it gets a list of one mapping, output name to array, for each sample (outputs: {made}) and, if it takes two "
        f"arguments, a mapping, label name to an array with one row for each sample (labels: {known})"
    )


def _stacked(labels: Sequence[Labels]) -> dict[str, Array]:
    """Labels with a row for each sample.

    Raises:
        DataError: Those of some samples have another shape.
    """
    made = {}
    for name in labels[0] if labels else ():
        arrays = [np.asarray(sample[name]) for sample in labels]
        shapes = sorted({array.shape for array in arrays})
        if len(shapes) > 1:
            raise DataError(
                f"the labels {name!r} have different shapes: {shapes[0]} and {shapes[1]}",
                hint="give them one shape; a file of one sample has its labels without an axis of samples",
            )
        made[name] = np.stack(arrays)
    return made


def find_metric(given: str | Callable[..., float] | None) -> Metric:
    """A metric by its name, by ``FILE.py:FUNCTION`` or ``MODULE:FUNCTION``, or a Python callable.

    Raises:
        UnknownNameError: No metric of this name.
        UsageError: The file or function cannot be loaded.
    """
    if given is None:
        return Metric(DEFAULT_METRIC)
    if callable(given):
        name = getattr(given, "__name__", "metric")
        # The name goes into the bundle, where it must not be taken for one of ours.
        return Metric(f"{name}()" if name in METRICS else name, task=given)
    if given in METRICS:
        return Metric(given)
    if ":" not in given:
        raise UnknownNameError(
            "metric", given, METRICS, hint="or give a function of your own: --metric file.py:function"
        )
    return Metric(given, task=load_function(given, "metric"))
