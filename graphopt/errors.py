"""Every error that a user of graphopt can meet.

    GraphoptError                 what happened, and the next step
    |-- UsageError                the command or the call is wrong (exit code 2)
    |   |-- UnknownNameError      unknown pass, target, metric or option; names the nearest
    |   `-- SpecError             a pass list that cannot be parsed
    |-- ModelError                the model is not one, is damaged or is invalid
    |   |-- InvalidGraphError     breaks a rule of the IR; names the node, prints its neighbourhood
    |   `-- UnsupportedModelError valid, but graphopt or its target cannot take it
    |-- DataError                 example, calibration or evaluation data do not fit the model
    |-- MissingExtraError         an optional package is needed; says what to install
    |-- PassFailedError           a pass raised, hung or broke the graph (the manager undoes it)
    |-- VerificationError         outputs differ beyond the budget
    |-- TargetError               a target cannot build or run the graph
    |   |-- RejectedError         ONNX Runtime does not load it
    |   |-- FormFailedError       a form that was written does not load or run
    |   `-- ProcessLostError      the process that runs a form is gone
    `-- BundleError               a bundle on disk is damaged, incompatible or not writable

Each carries a ``hint``, the next step for the person who reads it. The command line prints the message
and the hint and no traceback (unless ``--debug``).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Iterable, Sequence

from graphopt import install


class GraphoptError(Exception):
    """An error that a user can act on.

    Args:
        message: What happened; names the file, node, option or value that it is about.
        hint: The next step, as an instruction. May be empty.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message


class UsageError(GraphoptError):
    """The command or the call is wrong."""

    exit_code = 2


class UnknownNameError(UsageError):
    """A name that nothing answers to.

    Args:
        kind: What was looked up ("pass", "target", "option of pass 'fuse'", ...).
        name: The unknown name.
        known: The names that exist; the nearest ones are suggested.
        meant: The one that is meant, where it is called otherwise elsewhere; "" where that is not known.
    """

    def __init__(
        self, kind: str, name: str, known: Iterable[str], *, meant: str = "", hint: str = ""
    ) -> None:
        names = sorted(known)
        suggestion = did_you_mean([meant] if meant else nearest(name, names))
        if not suggestion:
            suggestion = "known: " + ", ".join(names) if names else "none are known"
        super().__init__(f"unknown {kind} {name!r}: {suggestion}", hint=hint)
        self.name = name


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """The names that look most like one that nothing answers to; three at most."""
    return difflib.get_close_matches(name, sorted(known), n=3, cutoff=0.6)


def did_you_mean(names: Sequence[str]) -> str:
    """A question that names them; empty where there are none."""
    return "did you mean " + " or ".join(map(repr, names)) + "?" if names else ""


class SpecError(UsageError):
    """A pass list, shape or option on the command line that cannot be parsed."""


class ModelError(GraphoptError):
    """The model is not one, is damaged or is invalid."""


class InvalidGraphError(ModelError):
    """The graph breaks a rule of the IR.

    Args:
        message: The broken rule and the node or value that breaks it.
        neighbourhood: The node and what surrounds it, as text.
    """

    def __init__(self, message: str, *, neighbourhood: str = "", hint: str = "") -> None:
        super().__init__(f"{message}\n{neighbourhood}" if neighbourhood else message, hint=hint)
        self.neighbourhood = neighbourhood


class UnsupportedModelError(ModelError):
    """A valid model that graphopt, or the target asked for, cannot take."""


class DataError(GraphoptError):
    """Example, calibration or evaluation data do not fit the model."""


class MissingExtraError(GraphoptError):
    """An optional package is needed.

    Args:
        package: The package that could not be imported.
        extra: The extra of graphopt that brings it.
    """

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed", hint=f"install it: {install.command(extra)}")


class PassFailedError(GraphoptError):
    """A pass raised, hung or produced a graph that is not valid."""


class VerificationError(GraphoptError):
    """The outputs differ from the original's beyond what is allowed."""


class TargetError(GraphoptError):
    """A target cannot build or run the graph."""

    @property
    def reason(self) -> str:
        """What happened, without the name of the form that it happened to."""
        return self.message


class RejectedError(TargetError):
    """ONNX Runtime does not load the graph."""


class FormFailedError(TargetError):
    """A form does not load or run.

    Args:
        label: Of the form.
        reason: How it fails.
    """

    def __init__(self, label: str, reason: str, *, hint: str = "") -> None:
        super().__init__(f"the form {label!r} fails: {reason}", hint=hint)
        self._reason = reason

    @property
    def reason(self) -> str:
        """How it fails."""
        return self._reason


class ProcessLostError(TargetError):
    """The process that runs a form ended, or does not answer; it can be asked for nothing more."""


class BundleError(GraphoptError):
    """A bundle on disk is damaged, needs what this machine lacks, or cannot be written."""


def listed(names: Collection[str], most: int = 5, *, quote: Callable[[str], str] = repr) -> str:
    """Names in quotes; how many more there are, where there are many."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(quote, list(names)[:most])) + more


_NOISE = re.compile(
    r"\[ONNXRuntimeError\] : \d+ : \w+ : |Load model from \S+ failed:|"
    # A place in ONNX Runtime's source, and the signature of the function there.
    r"/onnxruntime_src/\S+( (?=[^()]*::)[^()]*\((?:[^()]|\([^()]*\))*\)( const)?)?"
)


def shorten(error: BaseException, limit: int = 600) -> str:
    """The message of an error of ONNX Runtime on one line, without its codes, temporary files and source locations."""
    text = " ".join(_NOISE.sub("", " ".join(str(error).split())).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"
