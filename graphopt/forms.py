"""The forms of one model as files: the original, the graph of each stage, and what lossy passes propose."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from graphopt.capture import Captured
from graphopt.report import FormTiming
from graphopt.target import Form, Target

ORIGINAL = "original"
"""Label of the baseline."""


@dataclass
class Forms:
    """Forms in a folder of their own, from plain to special, the original first.

    Attributes:
        work: The folder; each target has one in it.
        written: What was written, in order.
        graphs: What each computes, by label.
        left_out: What could not be written, and why.
    """

    work: Path
    written: list[Form] = field(default_factory=list)
    graphs: dict[str, ir.Model] = field(default_factory=dict)
    left_out: list[FormTiming] = field(default_factory=list)

    def folder(self, target: Target, name: str) -> Path:
        """Where a form of a target lies."""
        return self.work / target.name / name

    def add(
        self,
        label: str,
        target: Target,
        graph: ir.Model,
        folder: Path,
        knobs: Mapping[str, Any] | None = None,
        *,
        computes: ir.Model | None = None,
        original: bool = False,
    ) -> None:
        """Write a form.

        Args:
            graph: What is written.
            knobs: Of the target; its first variant's where None.
            computes: What the file stands for, where ``graph`` stores it in fewer bits.
            original: Whether it is the model as it came.

        Raises:
            TargetError: The target does not take it.
        """
        folder.mkdir(parents=True)
        config = target.emit(graph, folder, target.variants(graph, None)[0] if knobs is None else knobs)
        self._enter(
            Form(label, target.name, folder, config), graph if computes is None else computes, original
        )

    def _enter(self, form: Form, graph: ir.Model, original: bool) -> None:
        baseline = original and not self.written
        self.written.append(replace(form, original=original, baseline=baseline))
        self.graphs[form.label] = graph

    def add_original(self, target: Target, captured: Captured) -> None:
        """The model as it came: the user's own file where the target runs it. Where it is there already, it stays.

        Raises:
            TargetError: The target does not take it.
        """
        folder = self.folder(target, ORIGINAL)
        if any(form.folder == folder for form in self.written):
            return
        label = f"{target.name}: {ORIGINAL}" if self.written else ORIGINAL
        if not (target.runs_original and self._link(captured, target, folder, label)):
            self.add(label, target, captured.original_model, folder, original=True)

    def _link(self, captured: Captured, target: Target, folder: Path, label: str) -> bool:
        """Take the user's own file as the original's form where it lies on this disk.

        Weights beside it are copied: a file of several hard links is one that nobody else may read as a model's.
        """
        if captured.original is None or captured.kind != "onnx" or not captured.file_runs:
            return False
        source = Path(captured.original)
        if source.suffix != ".onnx" or any(file.parent != source.parent for file in captured.files):
            return False
        folder.mkdir(parents=True)
        try:
            for file in captured.files:
                if file.name == source.name:
                    (folder / file.name).hardlink_to(file.resolve())
                else:
                    shutil.copyfile(file, folder / file.name)
        except OSError:
            shutil.rmtree(folder)
            return False
        self._enter(Form(label, target.name, folder, {"file": source.name}), captured.original_model, True)
        return True


__all__ = ["ORIGINAL", "Forms"]
