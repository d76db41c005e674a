"""A training on disk: weights, the best ones so far, and the optimizer's moments; nothing is pickled.

One ``.npz`` for each teacher, shape of student, data and recipe, in the folder ``distillation`` of the cache.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.cache import cache_folder, read_archive, write_archive
from graphopt.ir.facts import Array
from graphopt.train.module import Module

if TYPE_CHECKING:
    from torch import optim

FORMAT = 1
"""Raised when the same training would be written, or done, in another way."""
_MORE_TIME = 1.5
"""With so many times the time, an ended training goes on."""


def default_folder() -> Path:
    """Under ``GRAPHOPT_CACHE``, else under the user's cache folder."""
    return cache_folder("distillation")


def key_of(*parts: object) -> str:
    """Hexadecimal digits of all that decides, by ``repr``."""
    return hashlib.sha256(repr((FORMAT, *parts)).encode()).hexdigest()[:40]


@dataclass
class State:
    """Where a training is.

    Attributes:
        step: Steps taken.
        fraction: Of the whole training, when it was kept.
        rate: Largest learning rate.
        best_loss: On the samples kept apart, where 1 is the loss before training.
        best: Weights with that loss, by name.
        history: Step and loss at each validation.
        finished: Whether it came to its end.
        weights: Where the training stood; empty for the weights that came in.
        moments: Of the optimizer, by name of the weight and of the moment.
    """

    step: int = 0
    fraction: float = 0.0
    rate: float = 0.0
    best_loss: float = 1.0
    best: dict[str, Array] = field(default_factory=dict)
    history: list[tuple[int, float]] = field(default_factory=list)
    finished: bool = False
    weights: dict[str, Array] = field(default_factory=dict)
    moments: dict[tuple[str, str], Array] = field(default_factory=dict)

    def take_best(self, module: Module) -> None:
        """The weights of now are the best ones."""
        self.best = {
            name: weight.parameter.detach().numpy().copy() for name, weight in module.weights.items()
        }

    def put_best(self, module: Module) -> None:
        """Give a module the best weights."""
        _put(module, self.best)

    def put(self, module: Module, optimizer: optim.Optimizer) -> None:
        """Give module and optimizer what was kept."""
        import torch

        _put(module, self.weights)
        for name, weight in module.weights.items():
            found = {kind: array for (owner, kind), array in self.moments.items() if owner == name}
            if found:
                optimizer.state[weight.parameter] = {
                    kind: torch.from_numpy(array) for kind, array in found.items()
                }


def _put(module: Module, arrays: Mapping[str, Array]) -> None:
    import torch

    with torch.no_grad():
        for name, array in arrays.items():
            module.weights[name].parameter.copy_(torch.from_numpy(np.array(array)))


@dataclass(frozen=True)
class Checkpoint:
    """One training's file.

    Args:
        folder: None keeps nothing.
        key: Of all that decides, as hexadecimal digits.
        seconds: That this run may take.
    """

    folder: Path | None = None
    key: str = ""
    seconds: float = 0.0

    @property
    def _path(self) -> Path | None:
        return None if self.folder is None else self.folder / f"{self.key}.npz"

    def load(self, module: Module) -> State | None:
        """What was kept; None where nothing was, or of a module with other weights."""
        state = read_archive(self._path, self._unpacked)
        if state is None or set(state.best) != set(module.weights):
            return None
        if any(
            state.best[name].shape != tuple(weight.parameter.shape) for name, weight in module.weights.items()
        ):
            return None
        return state

    def save(self, state: State, module: Module, optimizer: optim.Optimizer) -> None:
        """Keep a training."""
        if self._path is None:
            return
        import torch

        names = list(module.weights)
        header = {
            "format": FORMAT, "step": state.step, "fraction": state.fraction, "rate": state.rate,
            "best_loss": state.best_loss, "history": state.history, "finished": state.finished,
            "seconds": self.seconds, "names": names,
        }  # fmt: skip
        packed: dict[str, Array] = {}
        kinds: list[tuple[int, str]] = []
        for index, name in enumerate(names):
            parameter = module.weights[name].parameter
            packed[f"weight_{index}"] = parameter.detach().numpy()
            packed[f"best_{index}"] = state.best[name]
            for kind, moment in optimizer.state.get(parameter, {}).items():
                if isinstance(moment, torch.Tensor):
                    packed[f"moment_{index}_{kind}"] = moment.detach().numpy()
                    kinds.append((index, kind))
        packed["header"] = np.array(json.dumps({**header, "moments": kinds}))
        # A cache that cannot be written costs time later and nothing now.
        with contextlib.suppress(OSError):
            write_archive(self._path, packed, compressed=False)

    def _unpacked(self, archive: Mapping[str, Any]) -> State | None:
        header = json.loads(str(archive["header"]))
        if header["format"] != FORMAT:
            return None
        names = header["names"]
        state = State(
            step=header["step"], fraction=header["fraction"], rate=header["rate"], best_loss=header["best_loss"],
            history=[(int(step), float(loss)) for step, loss in header["history"]], finished=header["finished"],
            best={name: archive[f"best_{index}"] for index, name in enumerate(names)},
        )  # fmt: skip
        if state.finished and self.seconds > _MORE_TIME * header["seconds"]:
            # More time: another round of the schedule, from the best weights.
            state.finished, state.fraction, state.weights = False, 0.0, dict(state.best)
            return state
        state.weights = {name: archive[f"weight_{index}"] for index, name in enumerate(names)}
        state.moments = {
            (names[index], kind): archive[f"moment_{index}_{kind}"] for index, kind in header["moments"]
        }
        return state


__all__ = ["FORMAT", "Checkpoint", "State", "default_folder", "key_of"]
