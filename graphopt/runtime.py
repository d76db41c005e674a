"""Loads and runs a bundle. Imports neither torch nor a compiler."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from graphopt import catalog
from graphopt.artifact import Manifest, check_files, read_manifest
from graphopt.data.interface import Array, TensorSpec, check_feeds
from graphopt.errors import BundleError, UsageError


class LoadedModel:
    """A compiled model, ready to run.

    Attributes:
        manifest: What the bundle says of itself.
        inputs, outputs: Its interface, in order.
    """

    def __init__(self, path: Path, manifest: Manifest, *, threads: int = 0) -> None:
        self.path = path
        self.manifest = manifest
        self.inputs: tuple[TensorSpec, ...] = tuple(tensor.spec() for tensor in manifest.inputs)
        self.outputs: tuple[TensorSpec, ...] = tuple(tensor.spec() for tensor in manifest.outputs)
        self._executable = catalog.runtime(manifest.target).load(path, manifest.config, threads=threads)

    def run(self, feeds: Mapping[str, Any]) -> dict[str, npt.NDArray[np.generic]]:
        """Outputs by name, in the model's order.

        Args:
            feeds: Arrays (or what NumPy makes arrays of) by input name.

        Raises:
            DataError: They do not fit the model's inputs.
            UsageError: They are not by name.
        """
        if not isinstance(feeds, Mapping):
            first = self.inputs[0].name if self.inputs else "x"
            raise UsageError(
                f"run takes arrays by input name, and this is of type {type(feeds).__name__}",
                hint=f"model.run({{{first!r}: array}}), or call the model itself for arrays in order: model(array)",
            )
        checked = check_feeds(feeds, self.inputs)
        results = self._executable.run(checked)
        return {spec.name: results[spec.name] for spec in self.outputs}

    def __call__(self, *arrays: Array) -> tuple[npt.NDArray[np.generic], ...]:
        """Outputs in order, from inputs in order."""
        if len(arrays) == 1 and isinstance(arrays[0], Mapping):
            raise UsageError(
                "a call takes arrays in the order of the inputs, and this is a mapping",
                hint="model.run(mapping) takes arrays by name, and gives outputs by name",
            )
        if len(arrays) > len(self.inputs):
            raise UsageError(f"{len(arrays)} arrays given, but the model has {len(self.inputs)} inputs")
        names = [spec.name for spec in self.inputs]
        return tuple(self.run(dict(zip(names, arrays, strict=False))).values())

    def __repr__(self) -> str:
        inputs = ", ".join(map(str, self.inputs))
        outputs = ", ".join(map(str, self.outputs))
        return f"<{self.manifest.name} on {self.manifest.target}: ({inputs}) -> ({outputs})>"


def load(path: str | Path, *, threads: int = 0, check: bool = True) -> LoadedModel:
    """Load a bundle.

    Args:
        path: The folder that ``compile`` wrote.
        threads: Of an operator; 0 leaves it to the backend.
        check: Compare the files' hashes with the manifest first.

    Raises:
        BundleError: It is missing, damaged, or needs what this machine lacks (says what).
    """
    folder = Path(path)
    manifest = read_manifest(folder)
    check_machine(folder, manifest)
    if check:
        check_files(folder, manifest)
    return LoadedModel(folder, manifest, threads=threads)


def check_machine(folder: Path, manifest: Manifest) -> None:
    """Raise a BundleError that says why, where this machine cannot run the bundle in ``folder``."""
    probe = catalog.runtime(manifest.target).probe()
    if not probe.available or not probe.runnable:
        raise BundleError(
            f"{folder} needs the target {manifest.target!r}, which does not run here", hint=probe.reason
        )
    wanted, have = manifest.machine.get("machine"), probe.machine.get("machine")
    if wanted and have and wanted != have:
        raise BundleError(
            f"{folder} was compiled for {wanted} processors; this one is {have}",
            hint="compile the model here",
        )
