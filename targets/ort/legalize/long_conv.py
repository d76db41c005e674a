"""Conv with a long one-dimensional kernel  ==>  discrete Fourier transform, one MatMul a frequency, inverse
transform

The convolution theorem with dense transforms: for a signal of some hundred samples and a kernel nearly as long,
three matrix products need a fraction of the direct sum's multiplications.

Forms: 1-D Conv, and 2-D Conv over a map of height or width 1 (CREPE's pitch tracker, long temporal convolutions).
Padding is part of the transform's length, so that nothing wraps around. Weights are transformed by nodes, which ONNX
Runtime folds when it loads the graph: a file holds the weights, not the larger spectrum. Times as fast
(``benchmarks/rewrites.py``, 2 threads, AMD EPYC with AVX-512): 11.57 for a kernel of 64 over [8, 128, 128, 1].

Refuses: a stride, dilation or group other than 1; fewer than twice the multiplications saved; transformed weights
that would be over four times the weights, or over 512 MB.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.ir import facts, windows
from graphopt.rewrite import Builder, Refuse, Rewrite

_LEAST_KERNEL = 16
_LEAST_SAVING = 2.0
_MOST_GROWTH = 4.0
_MOST_BYTES = 512 << 20


@dataclass(frozen=True)
class _Line:
    """A one-dimensional convolution: sizes of the signal and the kernel, and padding on either side."""

    length: int
    kernel: int
    before: int
    after: int

    @property
    def out_length(self) -> int:
        return self.length + self.before + self.after - self.kernel + 1

    @property
    def period(self) -> int:
        """Even length of the transform, long enough that no wrapped product reaches an output."""
        needed = max(self.length + self.before, self.out_length + self.kernel - 1 - self.before)
        return needed + needed % 2

    @property
    def frequencies(self) -> int:
        return self.period // 2 + 1


class LegalizeLongConv(Rewrite):
    """Long convolutions through the frequency domain."""

    name = "long-conv-to-dft"
    roots = ("Conv",)

    def apply(self, node: ir.Node, build: Builder) -> ir.Value | None:
        x, weight_value = node.inputs[0], node.inputs[1]
        shape = facts.dims(x)
        weight = facts.static_dims(weight_value)
        if x is None or weight_value is None or shape is None or weight is None:
            return None
        axis = _line_axis(shape, weight)
        if axis is None or facts.numpy_dtype(x) != np.float32 or not facts.is_constant(weight_value):
            return None
        length, kernel = shape[axis], weight[axis]
        pads = windows.pads(node)
        if length is None or kernel < _LEAST_KERNEL or pads is None:
            return None
        spatial = len(shape) - 2
        line = _Line(length, kernel, pads[axis - 2], pads[axis - 2 + spatial])
        others = [index for index in range(2 * spatial) if index % spatial != axis - 2]
        if any(pads[index] for index in others) or line.out_length < 1 or min(pads) < 0:
            return None
        for name in ("strides", "dilations"):
            if any(step != 1 for step in facts.attribute(node, name, ())):
                raise Refuse(f"{name} {facts.attribute(node, name)}")
        if facts.attribute(node, "group", 1) != 1:
            raise Refuse("grouped")
        out_channels, channels = weight[:2]
        _require_gain(line, channels, out_channels)
        content = facts.constant(weight_value)
        assert content is not None
        return self._build(node, build, line, content.reshape(out_channels, channels, kernel))

    def _build(self, node: ir.Node, build: Builder, line: _Line, weight: facts.Array) -> ir.Value:
        x = node.inputs[0]
        assert x is not None
        out_channels, channels, _ = weight.shape
        count = line.frequencies
        forward, of_kernel, inverse = transforms(line)

        def reshape(value: ir.Value, *dims: int) -> ir.Value:
            return build.op("Reshape", value, np.array(dims, dtype=np.int64))

        lines = np.ascontiguousarray(weight.transpose(2, 1, 0)).reshape(line.kernel, -1)
        kernel = build.op("MatMul", of_kernel, lines, dtype=ir.DataType.FLOAT)
        kernel = build.op("Transpose", reshape(kernel, 2, count, channels, -1), perm=[1, 2, 0, 3])
        kernel = reshape(kernel, count, channels, 2 * out_channels)
        signal = build.op("Transpose", reshape(x, 0, channels, line.length), perm=[0, 2, 1])
        spectrum = build.op("MatMul", forward, signal, dtype=ir.DataType.FLOAT)
        parts = build.op("Transpose", reshape(spectrum, 0, 2, count, channels), perm=[2, 1, 0, 3])
        product = build.op("MatMul", reshape(parts, count, -1, channels), kernel)
        product = reshape(product, count, 2, -1, 2, out_channels)
        product = reshape(build.op("Transpose", product, perm=[2, 0, 1, 3, 4]), -1, 4 * count, out_channels)
        result = build.op("MatMul", inverse, product, dtype=ir.DataType.FLOAT)
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            result = build.op("Add", result, node.inputs[2])
        result = build.op("Transpose", result, perm=[0, 2, 1])
        shape = facts.dims(node.outputs[0])
        assert shape is not None
        return build.op(
            "Reshape",
            result,
            np.array([0, out_channels, *_spatial(shape, line)], dtype=np.int64),
            like=node.outputs[0],
        )


def transforms(line: _Line) -> tuple[facts.Array, facts.Array, facts.Array]:
    """Transforms of the signal [2F, L] and of the kernel [2F, K], and back [Lo, 4F], as float32.

    The correlation y[t] = sum_k x[t - p + k] w[k] is, in the frequency domain, X times the conjugate spectrum of w
    times a phase for the padding p. Rows hold real parts, then imaginary ones; the inverse combines the four products.
    """
    period, count = line.period, line.frequencies
    frequency = np.arange(count)
    angle = 2 * np.pi * np.outer(frequency, np.arange(line.length)) / period
    forward = np.concatenate([np.cos(angle), -np.sin(angle)])
    angle = 2 * np.pi * np.outer(frequency, np.arange(line.kernel) - line.before) / period
    kernel = np.concatenate([np.cos(angle), np.sin(angle)])
    # Frequencies but the first and the last stand for themselves and their mirror image.
    share = np.full(count, 2.0 / period)
    share[0] = share[-1] = 1.0 / period
    angle = 2 * np.pi * np.outer(np.arange(line.out_length), frequency) / period
    cosine, sine = np.cos(angle) * share, np.sin(angle) * share
    parts = np.zeros((line.out_length, count, 2, 2))
    parts[:, :, 0, 0], parts[:, :, 1, 1] = cosine, -cosine
    parts[:, :, 0, 1] = parts[:, :, 1, 0] = -sine
    inverse = parts.reshape(line.out_length, 4 * count)
    return forward.astype(np.float32), kernel.astype(np.float32), inverse.astype(np.float32)


def _line_axis(shape: tuple[int | None, ...], weight: tuple[int, ...]) -> int | None:
    """The axis along which the convolution runs, where it is one-dimensional."""
    if len(shape) == 3:
        return 2
    if len(shape) == 4:
        if shape[2] == 1 and weight[2] == 1:
            return 3
        if shape[3] == 1 and weight[3] == 1:
            return 2
    return None


def _require_gain(line: _Line, channels: int, out_channels: int) -> None:
    count = line.frequencies
    direct = line.out_length * line.kernel * channels * out_channels
    transformed = (
        2 * count * line.length * channels
        + 4 * count * channels * out_channels
        + 4 * count * line.out_length * out_channels
    )
    if direct < _LEAST_SAVING * transformed:
        raise Refuse("the transform would not halve the multiplications")
    size = 4 * 2 * count * channels * out_channels
    if size > _MOST_BYTES or size > _MOST_GROWTH * 4 * line.kernel * channels * out_channels:
        raise Refuse("the transformed weights would be too large")


def _spatial(shape: tuple[int | None, ...], line: _Line) -> list[int]:
    if len(shape) == 3:
        return [line.out_length]
    return [1, line.out_length] if shape[2] == 1 else [line.out_length, 1]
