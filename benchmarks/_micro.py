"""Small graphs on each of which one rewrite applies, in the sizes of real models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graphopt.testing import model_from_text

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Case:
    """One graph.

    Attributes:
        rewrite: Name of the pass or rewrite that is timed.
        label: What the graph is, with its size.
        inputs, outputs: In ONNX's text syntax.
        body: Nodes in ONNX's text syntax.
        numbers: Small constants in ONNX's text syntax.
        weights: Constants by name: the shape of random ones (variance 1 / inputs), or their content.
    """

    rewrite: str
    label: str
    inputs: str
    outputs: str
    body: str
    numbers: str = ""
    weights: Mapping[str, tuple[int, ...] | Array] = field(default_factory=dict)

    def model(self) -> ir.Model:
        """In graphopt's internal opset; the weights are the same each time."""
        rng = np.random.default_rng(0)
        contents = {name: _content(spec, rng) for name, spec in self.weights.items()}
        declared = [f"float[{','.join(map(str, array.shape))}] {name}" for name, array in contents.items()]
        numbers = f"<{self.numbers}>" if self.numbers else ""
        text = f"g ({', '.join([self.inputs, *declared])}) => ({self.outputs}) {numbers} {{ {self.body} }}"
        model = model_from_text(text)
        for value in [value for value in model.graph.inputs if value.name in contents]:
            model.graph.inputs.remove(value)
            value.const_value = ir.tensor(contents[value.name or ""], name=value.name)
            model.graph.register_initializer(value)
        return model


def _content(spec: Sequence[int] | Array, rng: np.random.Generator) -> Array:
    if isinstance(spec, np.ndarray):
        return spec
    fan_in = np.prod(spec[1:]) if len(spec) == 4 else spec[0]
    return (rng.standard_normal(spec) / np.sqrt(fan_in)).astype(np.float32)


def _subnormal_weights() -> Array:
    """A tenth of the weights of a 1x1 convolution, wherever they are."""
    rng = np.random.default_rng(1)
    content = (rng.standard_normal((64, 64, 1, 1)) / 8).astype(np.float32)
    content[rng.random(content.shape) < 0.1] = 1e-39
    return content


def _subnormal_channels() -> Array:
    """An eighth of the output channels, so that their results are subnormal as well."""
    content = (np.random.default_rng(1).standard_normal((64, 64, 1, 1)) / 8).astype(np.float32)
    content[:8] *= 1e-38
    return content


def _halves(length: int, size: int) -> dict[str, Array]:
    angle = np.outer(np.arange(length), 10_000.0 ** (-np.arange(size // 2) / (size // 2)))
    angles = np.concatenate([angle, angle], -1)[None, None].astype(np.float32)
    return {"cos": np.cos(angles), "sin": np.sin(angles)}


MAP = "float[1,64,56,56]"
TOKENS = "float[8,128,384]"
SLOPES = np.linspace(0.1, 0.4, 64, dtype=np.float32).reshape(64, 1, 1)


def _attention(batch: int, length: int) -> Case:
    shape = f"float[{batch},{length},384]"
    return Case(
        "attention",
        f"merged heads, [{batch}, {length}, 12 x 32]",
        f"{shape} q, {shape} k, {shape} v",
        f"{shape} y",
        """q1 = Reshape(q, split) q4 = Transpose<perm=[0,2,1,3]>(q1) k1 = Reshape(k, split)
        kt = Transpose<perm=[0,2,3,1]>(k1) v1 = Reshape(v, split) v4 = Transpose<perm=[0,2,1,3]>(v1)
        s = MatMul(q4, kt) d = Mul(s, scale) p = Softmax<axis=-1>(d) o = MatMul(p, v4)
        t = Transpose<perm=[0,2,1,3]>(o) y = Reshape(t, join)""",
        "int64[4] split = {0,0,12,32}, int64[3] join = {0,0,384}, float scale = {0.1767767}",
    )


def _heads_first(batch: int, length: int) -> Case:
    shape = f"float[{batch},12,{length},32]"
    return Case(
        "attention",
        f"heads first, [{batch}, 12, {length}, 32]",
        f"{shape} q, {shape} k, {shape} v",
        f"{shape} y",
        """kt = Transpose<perm=[0,1,3,2]>(k) s = MatMul(q, kt) d = Mul(s, scale) p = Softmax<axis=-1>(d)
        y = MatMul(p, v)""",
        "float scale = {0.1767767}",
    )


def _grouped(length: int) -> Case:
    return Case(
        "attention",
        f"12 heads of queries, 4 of keys, [1, {length}]",
        f"float[1,12,{length},32] q, float[1,4,{length},32] k0, float[1,4,{length},32] v0",
        f"float[1,12,{length},32] y",
        """ku = Unsqueeze(k0, two) ke = Expand(ku, wide) k = Reshape(ke, heads) vu = Unsqueeze(v0, two)
        ve = Expand(vu, wide) v = Reshape(ve, heads) kt = Transpose<perm=[0,1,3,2]>(k) s = MatMul(q, kt)
        d = Mul(s, scale) p = Softmax<axis=-1>(d) y = MatMul(p, v)""",
        f"int64[1] two = {{2}}, int64[5] wide = {{1,4,3,{length},32}}, int64[4] heads = {{1,12,{length},32}}, "
        "float scale = {0.1767767}",
    )


def _rotary(length: int) -> Case:
    return Case(
        "rotary-embedding",
        f"halves, [1, 12, {length}, 64]",
        f"float[1,12,{length},64] x",
        f"float[1,12,{length},64] y",
        """x1 = Slice(x, i0, half, i3) x2 = Slice(x, half, far, i3) n = Neg(x2) r = Concat<axis=-1>(n, x1)
        a = Mul(x, cos) b = Mul(r, sin) y = Add(a, b)""",
        "int64[1] i0 = {0}, int64[1] i3 = {3}, int64[1] half = {32}, int64[1] far = {9223372036854775807}",
        _halves(length, 64),
    )


def _projection(length: int, rows: int, size: int) -> Case:
    return Case(
        "plain-bias",
        f"[{rows * length}, 384] x [384, {size}]",
        f"float[{rows},{length},384] x",
        f"float[{rows},{length},{size}] y",
        "m = MatMul(x, w) y = Add(m, b)",
        weights={"w": (384, size), "b": (size,)},
    )


def _residual(shape: str, size: int) -> Case:
    return Case(
        "plain-residual",
        shape,
        f"float{shape} a, float{shape} b",
        f"float{shape} y",
        "x = Add(a, b) y = LayerNormalization<axis=-1>(x, s, t)",
        weights={"s": (size,), "t": (size,)},
    )


def _pool(channels: int, size: int, window: int, stride: int, label: str) -> Case:
    out = (size - window) // stride + 1
    return Case(
        "average-pool-to-conv",
        label,
        f"float[1,{channels},{size},{size}] x",
        f"float[1,{channels},{out},{out}] y",
        f"y = AveragePool<kernel_shape=[{window},{window}], strides=[{stride},{stride}]>(x)",
    )


def _activation(rewrite: str, body: str, numbers: str = "", **weights: Array) -> Case:
    return Case(rewrite, "[1, 64, 56, 56]", f"{MAP} x", f"{MAP} y", body, numbers, weights)


CASES: tuple[Case, ...] = (
    _attention(1, 16),
    _attention(8, 128),
    _attention(1, 512),
    _heads_first(1, 16),
    _heads_first(8, 128),
    _heads_first(1, 512),
    _grouped(16),
    _grouped(128),
    _grouped(512),
    Case(
        "attention-bias",
        "keys and values, [8, 128, 12 x 32]",
        f"{TOKENS} x",
        f"{TOKENS} y",
        """km = MatMul(x, wk) k = Add(km, bk) vm = MatMul(x, wv) v = Add(vm, bv)
        a = Attention<q_num_heads=12, kv_num_heads=12>(x, k, v) o = MatMul(a, wo) y = Add(o, bo)""",
        weights={name: (384, 384) if name[0] == "w" else (384,) for name in ("wk", "bk", "wv", "bv", "wo", "bo")},
    ),
    Case(
        "residual-bias",
        "feed-forward block, [8, 128, 384]",
        f"{TOKENS} x",
        f"{TOKENS} y",
        """h = LayerNormalization<axis=-1>(x, g, t) m = MatMul(h, w1) a = Add(m, b1) r = Gelu(a) n = MatMul(r, w2)
        p = Add(n, b2) s = Add(h, p) y = LayerNormalization<axis=-1>(s, g, t)""",
        weights={"g": (384,), "t": (384,), "w1": (384, 1536), "b1": (1536,), "w2": (1536, 384), "b2": (384,)},
    ),
    _rotary(1),
    _rotary(128),
    _activation(
        "groupnorm", "y = GroupNormalization<num_groups=8>(x, g, b)", g=np.ones(64, np.float32),
        b=np.ones(64, np.float32),
    ),
    Case(
        "squeeze-excite",
        "between convolutions, [1, 64, 56, 56]",
        f"{MAP} x",
        f"{MAP} y",
        """c = Conv<pads=[1,1,1,1]>(x, w3) r = Relu(c) p = ReduceMean(r, ax) d = Conv(p, w1) e = Relu(d)
        f = Conv(e, w2) s = Sigmoid(f) m = Mul(r, s) y = Conv(m, w4)""",
        "int64[2] ax = {2,3}",
        {"w3": (64, 64, 3, 3), "w1": (16, 64, 1, 1), "w2": (64, 16, 1, 1), "w4": (64, 64, 1, 1)},
    ),
    Case(
        "subnormals",
        "two 1x1 convolutions, single weights, [1, 64, 56, 56]",
        f"{MAP} x",
        f"{MAP} y",
        "c = Conv(x, w) r = Relu(c) y = Conv(r, v)",
        weights={"w": _subnormal_weights(), "v": (64, 64, 1, 1)},
    ),
    Case(
        "subnormals",
        "two 1x1 convolutions, whole channels, [1, 64, 56, 56]",
        f"{MAP} x",
        f"{MAP} y",
        "c = Conv(x, w) r = Relu(c) y = Conv(r, v)",
        weights={"w": _subnormal_channels(), "v": (64, 64, 1, 1)},
    ),
    Case("div-to-mul", "[1024, 384]", "float[1024,384] x", "float[1024,384] y", "y = Div(x, c)", "float c = {3}"),
    _activation("prelu", "p = Relu(x) n = Neg(x) r = Relu(n) m = Mul(r, a) y = Sub(p, m)", a=SLOPES),
    _activation("mish", "s = Softplus(x) t = Tanh(s) y = Mul(x, t)"),
    _pool(24, 56, 3, 2, "window 3, stride 2, [1, 24, 56, 56]"),
    _pool(10, 14, 7, 1, "window 7, [1, 10, 14, 14]"),
    Case(
        "blocked-affine",
        "Add after HardSwish, [1, 64, 56, 56]",
        f"{MAP} x",
        f"{MAP} y",
        "c = Conv<group=64, pads=[1,1,1,1]>(x, w) h = HardSwish(c) a = Add(h, k) y = Conv(a, v)",
        "float k = {0.5}",
        {"w": (64, 1, 3, 3), "v": (64, 64, 1, 1)},
    ),
    Case(
        "blocked-affine",
        "BatchNormalization, Mul, Add after Concat, [1, 128, 56, 56]",
        f"{MAP} x",
        f"{MAP} y",
        """c = Conv(x, w) d = Conv<pads=[1,1,1,1]>(c, u) j = Concat<axis=1>(c, d) n = BatchNormalization(j, e, e, e, e)
        m = Mul(n, k) a = Add(m, k) r = Relu(a) y = Conv(r, v)""",
        weights={
            "w": (64, 64, 1, 1), "u": (64, 64, 3, 3), "v": (64, 128, 1, 1), "e": np.ones(128, np.float32),
            "k": np.linspace(0.1, 0.4, 128, dtype=np.float32).reshape(128, 1, 1),
        },
    ),
    Case(
        "conv-sum-to-add",
        "grouped convolution, [1, 24, 56, 56]",
        "float[1,24,56,56] x, float[1,24,56,56] z",
        "float[1,24,56,56] y",
        "c = Conv<group=3>(x, w, b) s = Sum(c, z) y = Relu(s)",
        weights={"w": (24, 8, 1, 1), "b": (24,)},
    ),
    Case(
        "convtranspose-to-depth",
        "2x2 and 2x2, [1, 24, 160, 160]",
        "float[1,24,160,160] x",
        "float[1,1,640,640] y",
        """t = ConvTranspose<strides=[2,2]>(x, u, a) r = Relu(t) z = ConvTranspose<strides=[2,2]>(r, w, b)
        y = Sigmoid(z)""",
        weights={"u": (24, 24, 2, 2), "a": (24,), "w": (24, 1, 2, 2), "b": (1,)},
    ),
    _activation("elu-to-exp", "y = Elu(x)"),
    Case(
        "gated-residual",
        "squeeze and excitation, [1, 96, 80, 80]",
        "float[1,96,80,80] x",
        "float[1,96,80,80] y",
        """c = Conv(x, w) p = GlobalAveragePool(c) d = Conv(p, u) e = Relu(d) f = Conv(e, v) s = HardSigmoid(f)
        m = Mul(c, s) a = Add(c, m) y = Conv(a, w)""",
        weights={"w": (96, 96, 1, 1), "u": (24, 96, 1, 1), "v": (96, 24, 1, 1)},
    ),
    Case(
        "long-conv-to-dft",
        "kernel 64 over 128 samples, [8, 128, 128, 1]",
        "float[8,128,128,1] x",
        "float[8,128,128,1] y",
        "y = Conv<pads=[31,0,32,0]>(x, w)",
        weights={"w": (128, 128, 64, 1)},
    ),
    _activation("lrn-to-conv", "y = LRN<size=5, alpha=0.0001, beta=0.75>(x)"),
    *(
        Case(
            "narrow-conv",
            f"{channels} to {outputs} channels, {side}x{side}, [1, {channels}, {size}, {size}]",
            f"float[1,{channels},{size},{size}] x",
            f"float[1,{outputs},{size},{size}] y",
            "c = Conv(x, u) r = Relu(c) y = Conv<pads=[{0},{0},{0},{0}]>(r, w, b)".format(side // 2),
            weights={
                "u": (channels, channels, 1, 1), "w": (outputs, channels, side, side), "b": (outputs,),
            },
        )
        for channels, outputs, side, size in ((32, 3, 9, 256), (64, 1, 3, 256), (64, 3, 3, 224))
    ),
    _activation("mish-to-exp", "y = Mish(x)"),
    _projection(128, 8, 384),
    _projection(128, 8, 1536),
    _projection(16, 1, 384),
    _residual("[8,128,384]", 384),
    _residual("[1,1,2048]", 2048),
    _activation("prelu-to-max", "y = PRelu(x, a)", a=SLOPES),
    Case(
        "reduce-l2-to-sum", "[512, 1024]", "float[512,1024] x", "float[512,1] y", "y = ReduceL2(x, ax)",
        "int64[1] ax = {1}",
    ),
    Case(
        "reduce-l2-to-sum", "[8, 384]", "float[8,384] x", "float[8,1] y", "y = ReduceL2(x, ax)",
        "int64[1] ax = {1}",
    ),
    _activation("softplus-to-exp", "y = Softplus(x)"),
    Case(
        "split-concat",
        "fire module, [1, 16, 54, 54]",
        "float[1,16,54,54] x",
        "float[1,32,54,54] y",
        """c1 = Conv(x, u) a = Relu(c1) c3 = Conv<pads=[1,1,1,1]>(x, v) b = Relu(c3) c = Concat<axis=1>(a, b)
        s = Conv(c, w) y = Relu(s)""",
        weights={"u": (64, 16, 1, 1), "v": (64, 16, 3, 3), "w": (32, 128, 1, 1)},
    ),
)  # fmt: skip
