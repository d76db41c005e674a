"""Networks as PyTorch's exporter writes them: without channels, heads and neurons they compute what zeros would."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from graphopt.capture import capture
from graphopt.catalog import expand
from graphopt.ir import check, shapes
from graphopt.pipeline.manager import PassManager
from graphopt.pipeline.spec import parse
from graphopt.prune.choose import choices, spared
from graphopt.prune.cut import cut
from graphopt.prune.structure import Structure, analyse, separate
from graphopt.testing import run
from tests.prune._masked import masked

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

nn, functional = torch.nn, torch.nn.functional
TOLERANCE = 2e-5


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> Any:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.SiLU(),
    )


class InvertedResidual(nn.Module):  # type: ignore[misc, name-defined]
    """MobileNetV3, EfficientNet; squeeze and excitation through a view of computed sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.deep = conv(3, 16, stride=2), nn.Sequential(conv(16, 32, 1), conv(32, 32, groups=32))
        self.gate = nn.Sequential(nn.Linear(32, 8), nn.ReLU(), nn.Linear(8, 32), nn.Sigmoid())
        self.last, self.head = nn.Conv2d(32, 16, 1), nn.Linear(16, 5)

    def forward(self, image: Any) -> Any:
        x = self.stem(image)
        y = self.deep(x)
        batch, channels, _, _ = y.size()
        gate = self.gate(functional.adaptive_avg_pool2d(y, 1).view(batch, channels))
        return self.head((x + self.last(y * gate.view(batch, channels, 1, 1))).mean([2, 3]))


class Detector(nn.Module):  # type: ignore[misc, name-defined]
    """YOLO: parts that are split and joined, pools in a row, maps resized to others, a head that flattens them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(3, 16, stride=2), conv(16, 24, stride=2)
        self.split, self.inner, self.join = conv(24, 24, 1), conv(12, 12), conv(36, 24, 1)
        self.pool, self.pooled = conv(24, 12, 1), conv(36, 24, 1)
        self.up = conv(40, 16)
        self.heads = nn.ModuleList(nn.Sequential(conv(c, 12), nn.Conv2d(12, 7, 1)) for c in (16, 24))

    def forward(self, image: Any) -> Any:
        a = self.a(image)
        first, second = self.split(self.b(a)).chunk(2, 1)
        x = self.join(torch.cat([first, second, self.inner(second)], 1))
        y = self.pool(x)
        z = functional.max_pool2d(y, 5, 1, 2)
        x = self.pooled(torch.cat([y, z, functional.max_pool2d(z, 5, 1, 2)], 1))
        top = self.up(torch.cat([functional.interpolate(x, size=a.shape[2:], mode="nearest"), a], 1))
        maps = [head(value) for head, value in zip(self.heads, (top, x), strict=True)]
        boxes, classes = torch.cat([value.view(value.shape[0], 7, -1) for value in maps], 2).split((4, 3), 1)
        return torch.cat([boxes * 2, classes.sigmoid()], 1)


class Shuffle(nn.Module):  # type: ignore[misc, name-defined]
    """ShuffleNet, groups that are normalized as a whole, dense connections."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch = conv(3, 16), nn.Sequential(conv(8, 8, 1), conv(8, 8, groups=8))
        self.norm, self.dense, self.last = nn.GroupNorm(4, 16), conv(16, 8), nn.Conv2d(24, 3, 1)

    def forward(self, image: Any) -> Any:
        first, second = self.stem(image).chunk(2, 1)
        x = torch.cat([first, self.branch(second)], 1)
        batch, channels, height, width = x.shape
        x = x.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(batch, -1, height, width)
        x = functional.silu(self.norm(x))
        return self.last(torch.cat([x, self.dense(x)], 1))


class Windows(nn.Module):  # type: ignore[misc, name-defined]
    """Swin: windows, one product for queries, keys and values, a bias for each of two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(16), nn.Linear(16, 48), nn.Linear(16, 16)
        self.bias = nn.Parameter(torch.randn(1, 2, 16, 16))
        self.deep = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 40), nn.GELU(), nn.Linear(40, 16))

    def forward(self, x: Any) -> Any:
        batch, height, width, size = x.shape
        y = self.norm(x).view(batch, height // 4, 4, width // 4, 4, size).permute(0, 1, 3, 2, 4, 5)
        y = y.reshape(-1, 16, size)
        q, k, v = self.qkv(y).reshape(y.shape[0], 16, 3, 2, 8).permute(2, 0, 3, 1, 4).unbind(0)
        y = (q @ k.transpose(-2, -1) * 8**-0.5 + self.bias).softmax(-1) @ v
        y = self.out(y.transpose(1, 2).reshape(-1, 16, size))
        y = y.view(batch, height // 4, width // 4, 4, 4, size).permute(0, 1, 3, 2, 4, 5)
        x = x + y.reshape(batch, height, width, size)
        return x + self.deep(x)


class Decoder(nn.Module):  # type: ignore[misc, name-defined]
    """Llama: rotary angles, keys and values for several queries, a gate; GPT: a mask cut out of a table."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(32, 16)
        self.q, self.k, self.v = (nn.Linear(16, size, bias=False) for size in (32, 16, 16))
        self.out, self.norm = nn.Linear(32, 16, bias=False), nn.RMSNorm(16)
        self.gate, self.up, self.down = nn.Linear(16, 40), nn.Linear(16, 40), nn.Linear(40, 16)
        self.register_buffer("mask", torch.tril(torch.ones(24, 24)).bool()[None, None])
        self.register_buffer("speeds", 1 / 100 ** (torch.arange(4) / 4))

    def forward(self, ids: Any) -> Any:
        batch, length = ids.shape
        x = self.table(ids)
        angles = torch.arange(length)[:, None] * self.speeds[None]
        angles = torch.cat([angles, angles], -1)[None, None]
        q = self.q(x).view(batch, length, 4, 8).transpose(1, 2)
        k, v = (layer(x).view(batch, length, 2, 8).transpose(1, 2) for layer in (self.k, self.v))
        q, k = (t * angles.cos() + torch.cat([-t[..., 4:], t[..., :4]], -1) * angles.sin() for t in (q, k))
        k, v = (t[:, :, None].expand(batch, 2, 2, length, 8).reshape(batch, 4, length, 8) for t in (k, v))
        bias = torch.zeros(1, 1, length, length).masked_fill(~self.mask[:, :, :length, :length], -1e9)
        y = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        x = x + self.out(y.transpose(1, 2).reshape(batch, length, 32))
        y = self.norm(x)
        return (x + self.down(functional.silu(self.gate(y)) * self.up(y))) @ self.table.weight.T


class MultiHead(nn.Module):  # type: ignore[misc, name-defined]
    """PyTorch's own layer of a transformer, whose heads of all samples lie in one axis."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(16, 4, 40, batch_first=True, dropout=0.0)
        self.cross = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x: Any) -> Any:
        x = self.layer(x)
        return self.cross(x, x, x, need_weights=False)[0]


class Audio(nn.Module):  # type: ignore[misc, name-defined]
    """Convolutions whose maps become the steps of a recurrent layer, as in a text recognizer."""

    def __init__(self) -> None:
        super().__init__()
        self.front = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d((1, 2)))
        self.steps, self.last = nn.GRU(64, 12, batch_first=True, bidirectional=True), nn.Linear(24, 6)

    def forward(self, x: Any) -> Any:
        y = self.front(x[:, None]).permute(0, 2, 1, 3)
        return self.last(self.steps(y.flatten(2))[0]).log_softmax(-1)


IMAGE = {0: "n", 2: "h", 3: "w"}
NETS: Mapping[str, tuple[Any, Sequence[int], Mapping[int, str], Sequence[tuple[int, ...]], int]] = {
    "inverted residual": (InvertedResidual, (2, 3, 16, 16), IMAGE, [(2, 3, 16, 16), (1, 3, 20, 12)], 3),
    "detector": (Detector, (2, 3, 32, 32), IMAGE, [(2, 3, 32, 32), (1, 3, 40, 24)], 10),
    "shuffle": (Shuffle, (2, 3, 8, 8), IMAGE, [(2, 3, 8, 8), (3, 3, 6, 10)], 2),
    "windows": (Windows, (2, 8, 8, 16), {0: "n"}, [(2, 8, 8, 16), (1, 8, 8, 16)], 2),
    "decoder": (Decoder, (2, 9), {0: "n", 1: "s"}, [(2, 9), (1, 12)], 2),
    "heads of all samples": (MultiHead, (2, 9, 16), {0: "n", 1: "s"}, [(2, 9, 16), (3, 5, 16)], 3),
    "convolutions and steps": (Audio, (2, 10, 16), {0: "n"}, [(2, 10, 16), (1, 10, 16)], 2),
}
"""Module, shape of the example, dynamic dimensions, shapes to compare at, groups that are found."""


@functools.cache
def exported(name: str) -> Any:
    module, shape, dynamic, _, _ = NETS[name]
    torch.manual_seed(0)
    net = module().eval()
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.3)
            layer.running_var.uniform_(0.5, 2)
    example = torch.zeros(*shape, dtype=torch.int64) if name == "decoder" else torch.randn(*shape)
    axes = ({axis: torch.export.Dim.DYNAMIC for axis in dynamic},)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        return torch.onnx.export(net, (example,), dynamo=True, dynamic_shapes=axes, verbose=False).model_proto


def removed_from(structure: Structure, seed: int) -> frozenset[int]:
    scores = np.random.default_rng(seed).random(len(structure.classes))
    found = choices(structure, scores, 1, structure.groups)
    wanted = {one for choice in found for one in choice.removed(max(choice.step, choice.rounded(0.3)))}
    return spared(structure, scores, found, wanted)


@pytest.mark.parametrize("passes", ["", "fuse"])
@pytest.mark.parametrize("name", NETS)
def test_what_an_exporter_writes(name: str, passes: str) -> None:
    model = capture(exported(name)).model
    if passes:
        model, _ = PassManager(expand(parse(passes))).run(model)
    shapes.infer(model)
    model = separate(model)
    structure = analyse(model)
    assert len(structure.groups) == NETS[name][4], (structure.groups, structure.refused)
    for seed in (0, 1):
        removed = removed_from(structure, seed)
        pruned = cut(model, structure, removed)
        shapes.infer(pruned)
        check.check(pruned)
        assert removed and weights(pruned) < 0.9 * weights(model)
        reference = masked(model, structure, removed)
        for shape in NETS[name][3]:
            rng = np.random.default_rng(seed)
            array = rng.integers(0, 32, shape) if name == "decoder" else rng.standard_normal(shape)
            feeds = {
                model.graph.inputs[0].name or "": array.astype(np.int64 if name == "decoder" else np.float32)
            }
            for wanted, got in zip(run(reference, feeds).values(), run(pruned, feeds).values(), strict=True):
                scale = max(float(np.abs(wanted).max()), 1e-3)
                np.testing.assert_allclose(got / scale, wanted / scale, atol=TOLERANCE)


def weights(model: Any) -> int:
    """Numbers in the constants of floats."""
    return sum(
        math.prod(value.shape)
        for value in model.graph.initializers.values()
        if value.dtype.is_floating_point()
    )
