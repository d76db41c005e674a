"""What preparing a graph decided, on disk: the same command prepares it in the same way, without measuring again.

One ``.npz`` for each graph, kernels, calibration data and options, in the folder ``preparation`` of the cache; nothing
is pickled. It holds no graph, only what was done to it: ranges, factors of channels, weights that were rounded by more
than their nearest integer. A search that was interrupted goes on with the very graph that it began with.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt._version import __version__
from graphopt.cache import cache_folder, read_archive, write_archive
from graphopt.ir import model as ir_model
from graphopt.ir.facts import Array
from graphopt.quant.clipping import Rule
from graphopt.quant.equalize import Equalized, scale_again
from graphopt.quant.kernels import IntegerKernels
from graphopt.quant.observe import Calibration
from graphopt.quant.place import Weights
from graphopt.quant.prepare import Prepared, Step
from graphopt.quant.ranges import Range

FORMAT = 1
"""Raised when the same preparation would be written, or done, in another way."""

_MORE_TIME = 1.5
"""With so many times the time, preparing anew may find more."""
_WEIGHTS = ("rounded", "scales", "bias")


def default_folder() -> Path:
    """Under ``GRAPHOPT_CACHE``, else under the user's cache folder."""
    return cache_folder("preparation")


def key_of(*parts: object) -> str:
    """Hexadecimal digits of all that decides, by ``repr``."""
    return hashlib.sha256(repr((FORMAT, __version__, *parts)).encode()).hexdigest()[:40]


class Decisions:
    """One preparation's file.

    Args:
        folder: None keeps nothing.
        key: Of all that decides, as hexadecimal digits.
    """

    def __init__(self, folder: Path | None, key: str) -> None:
        self._path = None if folder is None else folder / f"{key}.npz"

    def replayed(self, model: ir.Model, kernels: IntegerKernels, seconds: float) -> Prepared | None:
        """The graph prepared as before; None where it was not, or in much less time.

        Args:
            model: Left as it was.
            seconds: What preparing may take now.
        """
        return read_archive(self._path, lambda archive: _replayed(model, kernels, seconds, archive))

    def keep(self, prepared: Prepared, seconds: float) -> None:
        """Write what was decided.

        Args:
            seconds: What preparing could take.
        """
        if self._path is None:
            return
        # A cache that cannot be written costs time later and nothing now.
        with contextlib.suppress(OSError):
            write_archive(self._path, _packed(prepared, seconds), compressed=False)


def _replayed(
    model: ir.Model, kernels: IntegerKernels, seconds: float, archive: Mapping[str, Any]
) -> Prepared | None:
    header = json.loads(str(archive["header"]))
    if header["format"] != FORMAT or seconds > _MORE_TIME * header["seconds"]:
        return None
    prepared = _unpacked(model, header, archive)
    if prepared.equalized:
        prepared.model = ir_model.clone(model)
        scale_again(prepared.model, kernels, prepared.equalized)
    return prepared


def _packed(prepared: Prepared, seconds: float) -> dict[str, Array]:
    calibration = prepared.calibration
    weights = {kind: getattr(prepared.weights, kind) for kind in _WEIGHTS}
    header = {
        "format": FORMAT,
        "seconds": seconds,
        "rule": None if prepared.rule is None else asdict(prepared.rule),
        "own": _plain(prepared.own),
        "target": prepared.target,
        "steps": [asdict(step) for step in prepared.steps],
        "equalized": [entry.describe() for entry in prepared.equalized],
        "ranges": _plain(calibration.ranges),
        "sizes": dict(calibration.sizes),
        "calibration": {
            name: getattr(calibration, name) for name in ("samples", "method", "notes", "warnings", "groups")
        },
        "weights": {kind: list(arrays) for kind, arrays in weights.items()},
    }
    packed = {"header": np.array(json.dumps(header))}
    packed |= {f"factors_{index}": entry.factors for index, entry in enumerate(prepared.equalized)}
    for kind, arrays in weights.items():
        packed |= {f"{kind}_{index}": array for index, array in enumerate(arrays.values())}
    return packed


def _unpacked(model: ir.Model, header: Mapping[str, Any], archive: Mapping[str, Any]) -> Prepared:
    told = header["calibration"]
    calibration = Calibration(
        _ranges(header["ranges"]),
        header["sizes"],
        **{**told, "notes": tuple(told["notes"]), "warnings": tuple(told["warnings"])},
    )
    weights = {
        kind: {name: archive[f"{kind}_{index}"] for index, name in enumerate(names)}
        for kind, names in header["weights"].items()
    }
    rule = header["rule"]
    return Prepared(
        model,
        calibration,
        Weights(**weights),
        [
            Equalized(**_tuples(entry), factors=archive[f"factors_{index}"])
            for index, entry in enumerate(header["equalized"])
        ],
        [Step(**step) for step in header["steps"]],
        None if rule is None else replace(Rule(**rule), limits=tuple(rule["limits"])),
        _ranges(header["own"]),
        header["target"],
        replayed=True,
    )


def _plain(ranges: Mapping[str, Range]) -> dict[str, tuple[float, float]]:
    return {name: (found.low, found.high) for name, found in ranges.items()}


def _ranges(plain: Mapping[str, tuple[float, float]]) -> dict[str, Range]:
    return {name: Range(low, high) for name, (low, high) in plain.items()}


def _tuples(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in entry.items()}


__all__ = ["FORMAT", "Decisions", "default_folder", "key_of"]
