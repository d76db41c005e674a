"""How a student is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from graphopt.errors import UsageError
from graphopt.train.losses import Loss

if TYPE_CHECKING:
    from torch import nn, optim

OptimizerName = Literal["adam", "sgd"]
Schedule = Literal["cosine", "linear", "constant"]
Precision = Literal["auto", "float32", "bfloat16"]

RATES: dict[str, tuple[float, ...]] = {
    "adam": (3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3),
    "sgd": (1e-4, 1e-3, 1e-2, 1e-1),
}
"""Learning rates of which some are tried where none is given: from the middle one on, the way that is better."""
_WARMUP = 0.05
_LAST = 0.01
_MOMENTUM = 0.9


@dataclass(frozen=True)
class Recipe:
    """How a student is trained.

    Attributes:
        optimizer: ``adam`` (Kingma & Ba 2015, with decoupled weight decay) or ``sgd`` with Nesterov's momentum of 0.9.
        rate: Largest learning rate; 0 tries some for a few steps each.
        schedule: What the rate does after a linear warm-up: ``cosine`` (Loshchilov & Hutter 2017), ``linear`` or
            ``constant``.
        decay: Weight decay.
        precision: Of the products while training (weights, sums and what is handed back are float32): ``bfloat16``
            (mixed precision, Micikevicius et al., ICLR 2018), or ``auto``: where time is what bounds the training, that
            if a step is measured to be faster by far, but for integers; else ``float32``.
        batch: Samples of a step; 0 takes as many as give 32 rows, or fewer where there is not time for many steps.
        steps: At most; 0 for as many as there is time for.
        hidden: Weight of hidden values beside the outputs; 0 leaves them out.
        mix: Share of the steps on mixtures of samples (mixup, Zhang et al., ICLR 2018), which learn what the teacher
            gives for these (Beyer et al., Knowledge Distillation: A Good Teacher Is Patient and Consistent, CVPR 2022);
            none where an input is not of floating point, or samples cannot be run together.
        loss: How outputs are compared: see :func:`graphopt.train.losses.kinds_of`.
        temperature: Of ``kl``.
        patience: Validations without a better one after which training ends.
        seed: Of the order of samples.
    """

    optimizer: OptimizerName = "adam"
    rate: float = 0.0
    schedule: Schedule = "cosine"
    decay: float = 0.0
    precision: Precision = "auto"
    batch: int = 0
    steps: int = 0
    hidden: float = 1.0
    mix: float = 0.5
    loss: Loss = "auto"
    temperature: float = 2.0
    patience: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("rate", "decay", "hidden", "batch", "steps"):
            if not (0 <= getattr(self, name) < math.inf):
                raise UsageError(
                    f"{name}={getattr(self, name):g} cannot be", hint=f"write {name} as 0 or more"
                )
        if not 0 <= self.mix <= 1:
            raise UsageError(f"mix={self.mix:g} is no share", hint="write mix as 0 to 1")
        for name in ("temperature", "patience"):
            if not 0 < getattr(self, name) < math.inf:
                raise UsageError(f"{name}={getattr(self, name):g} cannot be", hint=f"write {name} above 0")

    def rate_at(self, fraction: float) -> float:
        """Share of the largest rate, after a fraction of the training."""
        if fraction < _WARMUP:
            return max(fraction / _WARMUP, _LAST)
        left = 1 - (fraction - _WARMUP) / (1 - _WARMUP)
        if self.schedule == "constant":
            return 1.0
        if self.schedule == "linear":
            return max(left, _LAST)
        return _LAST + (1 - _LAST) * 0.5 * (1 - math.cos(math.pi * left))

    def make_optimizer(self, parameters: list[nn.Parameter]) -> optim.Optimizer:
        """The optimizer; its rate is set at each step."""
        import torch

        if self.optimizer == "sgd":
            return torch.optim.SGD(
                parameters, lr=0.0, momentum=_MOMENTUM, nesterov=True, weight_decay=self.decay
            )
        return torch.optim.AdamW(parameters, lr=0.0, weight_decay=self.decay, fused=True)


__all__ = ["RATES", "OptimizerName", "Precision", "Recipe", "Schedule"]
