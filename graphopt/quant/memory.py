"""What a search has found, on disk: the same command goes on where an interrupted one stopped.

One JSON file for each graph, target, processor's kernels, calibration and set of judged samples, in the folder
``search`` of the cache. What units add to the noise and what sets of them score stays, since it depends on nothing
else; times are kept until the search has ended.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt._version import __version__
from graphopt.cache import cache_folder, write_file
from graphopt.ir.hash import content_hash
from graphopt.quant.cut import Costs
from graphopt.quant.kernels import IntegerKernels
from graphopt.quant.place import Weights
from graphopt.quant.ranges import Range
from graphopt.quant.sweep import Noise
from graphopt.verify.budget import Judgement
from graphopt.verify.evaluation import Evaluation

_FORMAT = 4


def default_folder() -> Path:
    """Under ``GRAPHOPT_CACHE``, else under the user's cache folder."""
    return cache_folder("search")


def key_of(
    model: ir.Model,
    target: str,
    kernels: IntegerKernels,
    ranges: Mapping[str, Range],
    weights: Weights,
    evaluation: Evaluation,
    options: Sequence[object],
) -> str:
    """Hexadecimal digits that differ wherever a measurement could.

    Args:
        options: What else decides, by ``repr``: threads, which units are allowed.
    """
    digest = hashlib.sha256()

    def add(*parts: object) -> None:
        for part in parts:
            digest.update(part if isinstance(part, bytes) else repr(part).encode())
            digest.update(b"\0")

    add(_FORMAT, __version__, content_hash(model), target, kernels.describe, evaluation.metric.name, *options)
    add(sorted((name, found.low, found.high) for name, found in ranges.items()))
    for arrays in (weights.rounded, weights.scales, weights.bias):
        for name in sorted(arrays):
            add(name, np.ascontiguousarray(arrays[name]).tobytes())
    for samples in (evaluation.feeds, evaluation.references, evaluation.labels):
        for sample in samples:
            for name in sorted(sample):
                array = np.asarray(sample[name])
                add(
                    name,
                    array.shape,
                    array.dtype,
                    repr(array.tolist()) if array.dtype == object else array.tobytes(),
                )
    return digest.hexdigest()[:40]


class Memory:
    """One search's file.

    Args:
        folder: None keeps nothing.
        key: As from :func:`key_of`.
    """

    def __init__(self, folder: Path | None, key: str) -> None:
        self._path = None if folder is None else folder / f"{key}.json"
        self._content: dict[str, Any] = self._read()

    def judgement(self, chosen: frozenset[str], allowed: float, *, counts: bool) -> Judgement | None:
        """What this set of units scored.

        Args:
            allowed: The budget, which may be another one now.
            counts: Whether what a score has to prove besides depends on the budget.
        """
        found = self._content.get("judged", {}).get(_name(chosen))
        if found is None or (counts and found["allowed"] != allowed):
            return None
        return Judgement(**{**found, "allowed": allowed})

    def judged(self, chosen: frozenset[str], judgement: Judgement) -> None:
        """Keep what a set of units scored; on all samples, for another budget may need them."""
        if judgement.some:
            return
        self._content.setdefault("judged", {})[_name(chosen)] = asdict(judgement)
        self._write()

    @property
    def measured(self) -> tuple[Costs, float, dict[str, str]] | None:
        """Times, the whole graph's time in float, and units without an integer kernel, with reasons."""
        found = self._content.get("measured")
        if found is None:
            return None
        return Costs(found["floats"], found["integers"], found["convert"]), found["total"], found["slow"]

    def measure(self, costs: Costs, total: float, slow: Mapping[str, str]) -> None:
        """Keep the times."""
        self._content["measured"] = {
            "floats": dict(costs.floats),
            "integers": dict(costs.integers),
            "convert": dict(costs.convert),
            "total": total,
            "slow": dict(slow),
        }
        self._write()

    def finish(self) -> None:
        """Forget the times: they serve to go on with a search, and the next one may find a quieter machine."""
        if self._content.pop("measured", None) is not None:
            self._write()

    @property
    def noise(self) -> Noise | None:
        """The noise of each unit."""
        found = self._content.get("noise")
        return None if found is None else Noise(found["alone"], found["company"])

    @noise.setter
    def noise(self, noise: Noise) -> None:
        self._content["noise"] = asdict(noise)
        self._write()

    def _read(self) -> dict[str, Any]:
        if self._path is None or not self._path.is_file():
            return {}
        try:
            content = json.loads(self._path.read_text(encoding="utf-8"))
            self._path.touch()
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def _write(self) -> None:
        if self._path is None:
            return
        content = json.dumps(self._content).encode()
        try:
            write_file(self._path, lambda file: file.write(content))
        except OSError:
            # A cache that cannot be written costs time later and nothing now.
            self._path = None


def _name(chosen: frozenset[str]) -> str:
    return hashlib.sha256("\0".join(sorted(chosen)).encode()).hexdigest()[:24]
