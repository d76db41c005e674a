"""Handwritten digits: a small convolution net and a small transformer, trained here in seconds.

The pictures are scikit-learn's (1,797 of 8 by 8 pixels, from the UCI repository). Trained once and kept in the
cache; another machine or version of torch trains weights that differ in the last digits.
"""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.tasks import Array, Outputs, Split, Task, only
from graphopt import zoo

REVISION = 1
"""Raised when the nets or their training change."""
TRAINING = 1000
"""So many pictures are trained on; calibration takes from them, evaluation from the others."""


def metric(outputs: Sequence[Mapping[str, Array]], labels: Mapping[str, Array] | None) -> float:
    """Top-1 accuracy.

    Args:
        outputs: Logits [batch, 10], one mapping a sample.
        labels: ``labels``: digits, integers [samples, batch].
    """
    assert labels is not None, "accuracy needs the digits: an array `labels` in the data"
    return float(np.mean(_classes(outputs) == labels["labels"].ravel()))


def _classes(outputs: Sequence[Mapping[str, Array]]) -> Array:
    return np.concatenate([only(sample).argmax(axis=1) for sample in outputs])


class Digits(Task):
    """One picture of 8 by 8 pixels at a time."""

    headline = "top-1"

    def __init__(self, name: str, network: str) -> None:
        self.name = name
        self._network = network

    def model(self) -> Path:
        path = zoo.cache_folder() / f"digits-r{REVISION}" / f"{self.name}.onnx"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=path.parent) as folder:
                made = Path(folder) / path.name
                _train(self._network, made)
                os.replace(made, path)
        return path

    def calibration(self, count: int) -> Split:
        """Pictures of the training set; all 1,000 where more are wanted."""
        pictures, digits = _pictures()
        return _split(pictures[: min(count, TRAINING)], digits[: min(count, TRAINING)])

    @functools.cached_property
    def evaluation(self) -> Split:
        pictures, digits = _pictures()
        return _split(pictures[TRAINING:], digits[TRAINING:])

    def score(
        self, outputs: Sequence[Outputs], reference: Sequence[Outputs] | None = None
    ) -> dict[str, float]:
        scores = {self.headline: metric(outputs, self.evaluation.labels)}
        if reference is not None:
            scores["same as original"] = float(np.mean(_classes(outputs) == _classes(reference)))
        return scores


def _split(pictures: Array, digits: Array) -> Split:
    return Split([{"x": picture[None]} for picture in pictures], {"labels": digits[:, None]})


@functools.cache
def _pictures() -> tuple[Array, Array]:
    """All pictures from -1 to 1, float32 [n, 1, 8, 8], and digits, int64 [n], shuffled."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    order = np.random.default_rng(13).permutation(len(bunch.target))
    pictures = (bunch.images[order, None] / 8 - 1).astype(np.float32)
    return pictures, bunch.target[order].astype(np.int64)


def _train(network: str, output: Path) -> None:
    import torch

    from graphopt.capture.torch_model import quiet

    pictures, digits = (torch.from_numpy(array[:TRAINING]) for array in _pictures())
    epochs, batches, rate = 30, 20, 4e-3
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = {"convolution": _convolution_net, "transformer": _transformer}[network]()
        optimizer = torch.optim.AdamW(module.parameters(), lr=rate, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=epochs * batches)
        for _ in range(epochs):
            for chosen in torch.randperm(TRAINING).view(batches, -1):
                noisy = pictures[chosen] + 0.3 * torch.randn(len(chosen), 1, 8, 8)
                loss = torch.nn.functional.cross_entropy(module(noisy), digits[chosen])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    with quiet():
        program = torch.onnx.export(
            module.eval(),
            (pictures[:2],),
            input_names=["x"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("n")},),
            dynamo=True,
            verbose=False,
        )
    program.save(str(output), external_data=False)


def _convolution_net() -> Any:
    """Residual and depthwise convolutions with batch normalisation, as in the usual classifiers."""
    import torch
    from torch import nn

    def block(size_in: int, size_out: int, kernel: int, stride: int = 1, groups: int = 1) -> Any:
        convolution = nn.Conv2d(size_in, size_out, kernel, stride, kernel // 2, groups=groups, bias=False)
        return nn.Sequential(convolution, nn.BatchNorm2d(size_out), nn.ReLU())

    class Residual(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.body = nn.Sequential(
                block(width, width, 3), nn.Conv2d(width, width, 3, padding=1, bias=False)
            )
            self.norm = nn.BatchNorm2d(width)

        def forward(self, x: Any) -> Any:
            return torch.relu(x + self.norm(self.body(x)))

    return nn.Sequential(
        block(1, 32, 3),
        Residual(32),
        block(32, 32, 3, stride=2, groups=32),
        block(32, 64, 1),
        Residual(64),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


def _transformer() -> Any:
    """Two encoder layers over the sixteen patches of 2 by 2 pixels."""
    import torch
    from torch import nn

    width, heads = 64, 4

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before_attention, self.before_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
            self.project, self.merge = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

        def forward(self, x: Any) -> Any:
            projected = self.project(self.before_attention(x)).unflatten(2, (3, heads, width // heads))
            query, key, value = projected.permute(2, 0, 3, 1, 4)
            mixed = nn.functional.scaled_dot_product_attention(query, key, value)
            x = x + self.merge(mixed.transpose(1, 2).flatten(2))
            return x + self.mlp(self.before_mlp(x))

    class Transformer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Conv2d(1, width, 2, stride=2)
            self.position = nn.Parameter(0.02 * torch.randn(16, width))
            self.layers = nn.Sequential(Layer(), Layer())
            self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

        def forward(self, x: Any) -> Any:
            tokens = self.embed(x).flatten(2).transpose(1, 2) + self.position
            return self.head(self.norm(self.layers(tokens)).mean(1))

    return Transformer()


TASKS: tuple[Task, ...] = (Digits("digits-cnn", "convolution"), Digits("digits-transformer", "transformer"))
