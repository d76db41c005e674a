"""What capture gives to the rest of the compiler."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir

from graphopt.ir.facts import Array


@dataclass(frozen=True)
class Captured:
    """A model in the internal form, and the same model as it was given.

    Attributes:
        original: The ONNX file that it came from; None where it came from memory or from PyTorch.
        model: In the internal form: internal opset, no functions, constants as initializers, unique names.
        original_model: As given (its own opset, constants and functions). The reference runs this one. It shares
            its weights with ``model``.
        source_opset: Of ONNX's own domain, as given.
        kind: "onnx" or "torch".
        warnings: What the user should know, one sentence each.
        name: Of the model: the file's stem, the module's class, or the graph's name.
        files: That hold the model and its weights, as far as it did not come from memory.
        file_runs: Whether the backends take the file as it is: its versions are not newer than theirs.
        fixed: Inputs with a default value, which are constants of ``model``, with that value.
        example: Inputs that the model was captured with; empty where it was not, or they are no tensors.
        program: What it was exported from, as a function of inputs by name that gives the outputs in order.
    """

    original: Path | None
    model: ir.Model
    original_model: ir.Model
    source_opset: int
    kind: str
    warnings: list[str] = field(default_factory=list)
    name: str = ""
    files: frozenset[Path] = frozenset()
    file_runs: bool = True
    fixed: Mapping[str, ir.TensorProtocol] = field(default_factory=dict)
    example: Mapping[str, Array] = field(default_factory=dict)
    program: Callable[[Mapping[str, Array]], Sequence[Array]] | None = None
