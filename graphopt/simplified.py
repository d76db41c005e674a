"""A model in ONNX's operators alone, as one file that any runtime takes."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from graphopt.errors import BundleError, GraphoptError, TargetError, UsageError
from graphopt.ir import model as ir_model
from graphopt.machine import Form
from graphopt.report import Report, Verdict
from graphopt.selection import FEWER_OPTIMISATIONS
from graphopt.tune.check import compare_form
from graphopt.verify.reference import Reference

_SUFFIX = ".onnx"
_WITH_INITIALIZERS_ALONE, _WITH_FUNCTIONS = 4, 8
_LEVELS = ("all", *FEWER_OPTIMISATIONS)


@dataclass(repr=False)
class Simplified:
    """What passes made of a model.

    Attributes:
        model: The graph; runs without anything of graphopt's.
        report: What was done and proved.
        reference: The original's outputs, which the file is held to.
        changed: Whether it is another graph than the original's.
    """

    model: ir.Model
    report: Report
    reference: Reference
    changed: bool = True

    def __repr__(self) -> str:
        return f"<Simplified {self.report.name}: {ir_model.count_nodes(self.model)} nodes>"

    def save(self, path: str | Path) -> Path:
        """Write the model, load the file in ONNX Runtime, compare it with the original, and only then put it in place.

        Weights of more than 1.5 GB lie beside it, in ``<name>.data``.

        Raises:
            UsageError: The place is no ``.onnx`` file.
            BundleError: It cannot be written.
            GraphoptError: The file as written does not hold; nothing is left of it.
        """
        output = Path(path)
        check_place(output)
        if self.changed:
            self.model.ir_version = _ir_version(self.model)
        try:
            with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as temporary:
                folder = Path(temporary)
                ir_model.save(self.model, folder / output.name)
                self._verify(folder, output.name)
                files = sorted(folder.iterdir(), key=lambda file: file.name == output.name)
                self.report.size_after = sum(file.stat().st_size for file in files)
                for file in files:
                    os.replace(file, output.parent / file.name)
        except OSError as error:
            raise BundleError(
                f"cannot write {output}: {error.strerror or error}", hint="choose another output with -o"
            ) from error
        self.report.output = str(output)
        return output

    def _verify(self, folder: Path, name: str) -> None:
        """Compare the file with the original in ONNX Runtime, with fewer of its optimisations where these break it.

        Raises:
            GraphoptError: It does not hold; a model that is the original's is only said to differ.
        """
        warnings = self.report.warnings
        if self.reference.is_hollow:
            self.report.verification.status = Verdict.NOT_COMPARED
            return
        why = ""
        for level in _LEVELS:
            form = Form(name, "ort-cpu", folder, {"file": name, "level": level})
            try:
                comparison = compare_form(form, self.reference, threads=0)
            except TargetError as error:
                why = why or error.message
                continue
            if not comparison.ok:
                why = why or comparison.describe()
                continue
            if level != _LEVELS[0]:
                warnings.append(
                    f"verified at ONNX Runtime's level {level!r}: with all its optimisations {why}"
                )
            self.report.compared(comparison)
            return
        if self.changed:
            raise GraphoptError(f"the file as written does not hold: {why}", hint="please report this")
        warnings.append(f"the original itself does not run as it does in the reference: {why}")


def check_place(output: Path) -> None:
    """Raise an error where no model can be written.

    Raises:
        UsageError: The place is no ``.onnx`` file.
    """
    if output.suffix.lower() != _SUFFIX:
        raise UsageError(f"{output} is no {_SUFFIX} file", hint=f"-o {output.stem or 'model'}{_SUFFIX}")
    if output.is_dir():
        raise UsageError(f"{output} is a folder", hint="name a file that is to be written with -o")


def _ir_version(model: ir.Model) -> int:
    """The oldest version of the file format that has the model's opsets, and initializers that are no inputs."""
    from onnx import helper

    opsets = [helper.make_opsetid(domain, version) for domain, version in model.graph.opset_imports.items()]
    least = _WITH_FUNCTIONS if model.functions else _WITH_INITIALIZERS_ALONE
    return max(least, int(helper.find_min_ir_version_for(opsets, ignore_unknown=True)))


__all__ = ["Simplified", "check_place"]
