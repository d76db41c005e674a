"""A model in ONNX's operators alone, as one file that any runtime takes."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from graphopt.errors import GraphoptError, UsageError
from graphopt.ir import model as ir_model
from graphopt.machine import Form
from graphopt.report import NOT_COMPARED, Report
from graphopt.selection import compare_form
from graphopt.verify.reference import Reference

_SUFFIX = ".onnx"


@dataclass
class Simplified:
    """What passes made of a model.

    Attributes:
        model: The graph; runs without anything of graphopt's.
        report: What was done and proved.
        reference: The original's outputs, which the file is held to.
    """

    model: ir.Model
    report: Report
    reference: Reference

    def save(
        self, path: str | Path, *, threads: int = 0, progress: Callable[[str], None] = lambda text: None
    ) -> Path:
        """Write the model, load the file in ONNX Runtime, compare it with the original, and only then put it in place.

        Weights of more than 1.5 GB lie beside it, in ``<name>.data``.

        Args:
            threads: Of an operator in that run; 0 leaves it to ONNX Runtime.

        Raises:
            UsageError: The place is no ``.onnx`` file.
            BundleError: It cannot be written.
            GraphoptError: The file as written does not hold; nothing is left of it.
        """
        output = Path(path)
        check_place(output)
        self.model.ir_version = _ir_version(self.model)
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as temporary:
            folder = Path(temporary)
            ir_model.save(self.model, folder / output.name)
            progress("verifying the file as written")
            self._verify(Form(output.name, "ort-cpu", folder, {"file": output.name}), threads)
            files = sorted(folder.iterdir(), key=lambda file: file.name == output.name)
            self.report.size_after = sum(file.stat().st_size for file in files)
            for file in files:
                os.replace(file, output.parent / file.name)
        self.report.output = str(output)
        return output

    def _verify(self, form: Form, threads: int) -> None:
        verification = self.report.verification
        if self.reference.is_hollow:
            verification.status = NOT_COMPARED
            return
        comparison = compare_form(form, self.reference, threads)
        verification.enter(comparison)
        if not comparison.ok:
            raise GraphoptError(
                f"the file as written does not hold: {comparison.describe()}", hint="please report this"
            )


def check_place(output: Path) -> None:
    """Raise an error where no model can be written.

    Raises:
        UsageError: The place is no ``.onnx`` file.
    """
    if output.suffix.lower() != _SUFFIX or output.is_dir():
        raise UsageError(f"{output} is no {_SUFFIX} file", hint=f"-o {output.stem or 'model'}{_SUFFIX}")


def _ir_version(model: ir.Model) -> int:
    """The oldest version of the file format that has the model's opsets."""
    from onnx import helper

    opsets = [helper.make_opsetid(domain, version) for domain, version in model.graph.opset_imports.items()]
    return int(helper.find_min_ir_version_for(opsets, ignore_unknown=True))


__all__ = ["Simplified", "check_place"]
