"""One form by itself, in a process of its own, held to its budget or to the original."""

from __future__ import annotations

from graphopt.machine import Form
from graphopt.tune.paired import Worker
from graphopt.verify.budget import Judgement
from graphopt.verify.compare import Comparison
from graphopt.verify.evaluation import Evaluation
from graphopt.verify.reference import Reference

FORM_MULTIPLE = 8.0
"""How many times the noise floor a form may be off."""


def judge_form(form: Form, evaluation: Evaluation, threads: int) -> Judgement:
    """Run a form in a process of its own on every held-out sample and judge it.

    Raises:
        TargetError: It does not load or run.
    """
    worker = Worker(form, None, threads)
    try:
        worker.wait_ready()
        return evaluation.judge([worker.outputs(feeds) for feeds in evaluation.feeds])
    finally:
        worker.close()


def compare_form(
    form: Form, reference: Reference, threads: int, multiple: float = FORM_MULTIPLE
) -> Comparison:
    """Run a form in a process of its own on every trial and compare.

    Raises:
        TargetError: It does not load or run.
    """
    worker = Worker(form, None, threads)
    try:
        worker.wait_ready()
        return reference.compare(worker.outputs, multiple)
    finally:
        worker.close()
