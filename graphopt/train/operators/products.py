"""Convolutions, products of matrices, pools and attention."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Pairs = list[tuple[int, int]]


def pads_of(
    x: Tensor,
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    pads: Sequence[int] | None,
    auto_pad: str,
) -> Pairs:
    """Zeros before and after each spatial axis (ONNX specification, Conv)."""
    count = len(kernel)
    if auto_pad in ("", "NOTSET"):
        given = list(pads or [0] * (2 * count))
        return list(zip(given[:count], given[count:], strict=True))
    if auto_pad == "VALID":
        return [(0, 0)] * count
    found = []
    for size, width, stride, dilation in zip(x.shape[2:], kernel, strides, dilations, strict=True):
        whole = max((-(-size // stride) - 1) * stride + (width - 1) * dilation + 1 - size, 0)
        less, more = whole // 2, whole - whole // 2
        found.append((less, more) if auto_pad == "SAME_UPPER" else (more, less))
    return found


def padded(x: Tensor, pairs: Pairs, value: float = 0.0) -> Tensor:
    """With more elements around its spatial axes."""
    if not any(before or after for before, after in pairs):
        return x
    flat = [amount for pair in reversed(pairs) for amount in pair]
    return F.pad(x, flat, value=value)


def conv(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None, group: int = 1, kernel_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None, strides: Sequence[int] | None = None,
) -> Tensor:  # fmt: skip
    """Convolution over one to three axes, [N, C, ...] by [M, C / group, ...]."""
    del kernel_shape
    kernel = weight.shape[2:]
    strides, dilations = strides or [1] * len(kernel), dilations or [1] * len(kernel)
    pairs = pads_of(x, kernel, strides, dilations, pads, auto_pad)
    function: Any = (F.conv1d, F.conv2d, F.conv3d)[len(kernel) - 1]
    if all(before == after for before, after in pairs):
        same = [before for before, _ in pairs]
        return torch.as_tensor(function(x, weight, bias, strides, same, dilations, group))
    return torch.as_tensor(function(padded(x, pairs), weight, bias, strides, 0, dilations, group))


def conv_transpose(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None, group: int = 1, kernel_shape: Sequence[int] | None = None,
    output_padding: Sequence[int] | None = None, output_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None, strides: Sequence[int] | None = None,
) -> Tensor:  # fmt: skip
    """Transposed convolution, [N, C, ...] by [C, M / group, ...]."""
    del kernel_shape
    kernel = weight.shape[2:]
    count = len(kernel)
    strides, dilations = list(strides or [1] * count), list(dilations or [1] * count)
    extra = list(output_padding or [0] * count)
    whole = [
        (size - 1) * stride + (width - 1) * dilation + 1 + more
        for size, stride, width, dilation, more in zip(
            x.shape[2:], strides, kernel, dilations, extra, strict=True
        )
    ]
    if auto_pad in ("SAME_UPPER", "SAME_LOWER") or output_shape:
        wanted = list(
            output_shape or [size * stride for size, stride in zip(x.shape[2:], strides, strict=True)]
        )
        cuts = [full - want for full, want in zip(whole, wanted[-count:], strict=True)]
        # As ONNX Runtime: the greater half is cut at the end but for SAME_LOWER... of negative cuts nothing is known.
        if min(cuts) < 0:
            raise NotImplementedError("an output_shape that is larger than the convolution's")
        pairs = [
            (cut // 2, cut - cut // 2) if auto_pad == "SAME_UPPER" else (cut - cut // 2, cut // 2)
            for cut in cuts
        ]
    else:
        given = list(pads or [0] * (2 * count))
        pairs = list(zip(given[:count], given[count:], strict=True))
    function: Any = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[count - 1]
    made = torch.as_tensor(function(x, weight, None, strides, 0, 0, group, dilations))
    # What lies beyond the last kernel (output_padding) is zero but for the bias.
    made = padded(made, [(0, full - size) for full, size in zip(whole, made.shape[2:], strict=True)])
    for axis, (before, after) in enumerate(pairs):
        made = torch.narrow(made, axis + 2, before, made.shape[axis + 2] - before - after)
    return made if bias is None else made + bias.reshape(1, -1, *[1] * count)


def gemm(
    a: Tensor, b: Tensor, c: Tensor | None = None, *, alpha: float = 1.0, beta: float = 1.0,
    transA: int = 0, transB: int = 0,
) -> Tensor:  # fmt: skip
    """``alpha A B + beta C``."""
    made = torch.matmul(a.T if transA else a, b.T if transB else b)
    made = made if alpha == 1.0 else alpha * made
    if c is None:
        return made
    return made + (c if beta == 1.0 else beta * c)


def einsum(*operands: Tensor, equation: str) -> Tensor:
    """Sums of products by index letters."""
    return torch.einsum(equation, *operands)


def _ends(
    size: int, kernel: int, stride: int, dilation: int, pair: tuple[int, int], ceil: int
) -> tuple[int, int]:
    """Pads of one axis of a pool, with what the last window of ``ceil_mode`` reaches beyond them."""
    before, after = pair
    reach = (kernel - 1) * dilation + 1
    count = (size + before + after - reach) / stride + 1
    windows = math.ceil(count) if ceil else math.floor(count)
    if ceil and (windows - 1) * stride >= size + before:
        windows -= 1
    return before, max((windows - 1) * stride + reach - size - before, after)


def max_pool(
    x: Tensor, *, kernel_shape: Sequence[int], auto_pad: str = "NOTSET", ceil_mode: int = 0,
    dilations: Sequence[int] | None = None, pads: Sequence[int] | None = None, storage_order: int = 0,
    strides: Sequence[int] | None = None,
) -> Tensor:  # fmt: skip
    """Largest of each window."""
    del storage_order
    count = len(kernel_shape)
    strides, dilations = strides or [1] * count, dilations or [1] * count
    pairs = pads_of(x, kernel_shape, strides, dilations, pads, auto_pad)
    around = [
        _ends(*entry, ceil_mode)
        for entry in zip(x.shape[2:], kernel_shape, strides, dilations, pairs, strict=True)
    ]
    # A rounded activation is a whole number in float; a real integer has no infinity.
    lowest = -math.inf if x.is_floating_point() else torch.iinfo(x.dtype).min
    function: Any = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[count - 1]
    return torch.as_tensor(
        function(padded(x, around, lowest), list(kernel_shape), list(strides), 0, list(dilations))
    )


def average_pool(
    x: Tensor, *, kernel_shape: Sequence[int], auto_pad: str = "NOTSET", ceil_mode: int = 0,
    count_include_pad: int = 0, dilations: Sequence[int] | None = None, pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:  # fmt: skip
    """Mean of each window; elements beyond the pads never count."""
    count = len(kernel_shape)
    strides, dilations = list(strides or [1] * count), dilations or [1] * count
    if any(dilation != 1 for dilation in dilations):
        raise NotImplementedError("an AveragePool with dilations")
    pairs = pads_of(x, kernel_shape, strides, dilations, pads, auto_pad)
    around = [
        _ends(*entry, ceil_mode)
        for entry in zip(x.shape[2:], kernel_shape, strides, dilations, pairs, strict=True)
    ]
    function: Any = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[count - 1]
    found = torch.as_tensor(function(padded(x, around), list(kernel_shape), strides, 0))
    counted = torch.ones(1, 1, *x.shape[2:], dtype=x.dtype)
    inner = pairs if count_include_pad else [(0, 0)] * count
    counted = padded(padded(counted, inner, 1.0), _outside(around, inner))
    share = torch.as_tensor(function(counted, list(kernel_shape), strides, 0))
    return found / share


def _outside(around: Pairs, inner: Pairs) -> Pairs:
    return [(a - c, b - d) for (a, b), (c, d) in zip(around, inner, strict=True)]


def global_average_pool(x: Tensor) -> Tensor:
    """Mean over all places."""
    return x.mean(dim=tuple(range(2, x.ndim)), keepdim=True) if x.ndim > 2 else x


def global_max_pool(x: Tensor) -> Tensor:
    """Largest over all places."""
    return x.amax(dim=tuple(range(2, x.ndim)), keepdim=True) if x.ndim > 2 else x


def _heads(x: Tensor, count: int | None) -> Tensor:
    """[B, S, heads * size] as [B, heads, S, size]."""
    if x.ndim == 4:
        return x
    if not count:
        raise NotImplementedError("an Attention of rank 3 without a number of heads")
    return x.reshape(x.shape[0], x.shape[1], count, -1).transpose(1, 2)


def attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, past_key: Tensor | None = None,
    past_value: Tensor | None = None, lengths: Tensor | None = None, *, is_causal: int = 0,
    kv_num_heads: int | None = None, q_num_heads: int | None = None, qk_matmul_output_mode: int = 0,
    scale: float | None = None, softcap: float = 0.0, softmax_precision: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Scaled dot-product attention (ONNX specification, Attention 24): Y, present key, present value."""
    del qk_matmul_output_mode, softmax_precision
    if lengths is not None:
        raise NotImplementedError("an Attention with nonpad_kv_seqlen")
    flat = query.ndim == 3
    q, k, v = _heads(query, q_num_heads), _heads(key, kv_num_heads), _heads(value, kv_num_heads)
    if past_key is not None and past_value is not None:
        k, v = torch.cat([past_key, k], 2), torch.cat([past_value, v], 2)
    present = k, v
    if q.shape[1] != k.shape[1]:
        times = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(times, 1), v.repeat_interleave(times, 1)
    factor = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    scores = torch.matmul(q * math.sqrt(factor), k.transpose(-1, -2) * math.sqrt(factor))
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    bias = _bias(mask, bool(is_causal), scores, 0 if past_key is None else past_key.shape[2])
    if bias is not None:
        # A row that sees nothing is zero; it is left out before the softmax, since its gradient would be no number.
        blind = torch.isneginf(bias).all(-1, keepdim=True)
        scores = scores + torch.where(blind, torch.zeros_like(bias), bias)
        weights = torch.softmax(scores, -1).masked_fill(blind, 0.0)
    else:
        weights = torch.softmax(scores, -1)
    made = torch.matmul(weights, v)
    made = made.transpose(1, 2).flatten(2) if flat else made
    return (made, *present)


def _bias(mask: Tensor | None, causal: bool, scores: Tensor, past: int) -> Tensor | None:
    """What is added to the scores."""
    found = None
    if mask is not None:
        found = mask
        if mask.dtype == torch.bool:
            found = torch.zeros(mask.shape, dtype=scores.dtype).masked_fill(~mask, -math.inf)
        missing = scores.shape[-1] - found.shape[-1]
        if missing > 0:
            found = F.pad(found, [0, missing], value=-math.inf)
    if causal:
        rows, columns = scores.shape[-2:]
        later = torch.ones(rows, columns, dtype=torch.bool).triu(1 + past)
        ahead = torch.zeros(rows, columns, dtype=scores.dtype).masked_fill(later, -math.inf)
        found = ahead if found is None else found + ahead
    return found


def rotary_embedding(
    x: Tensor, cosines: Tensor, sines: Tensor, positions: Tensor | None = None, *, interleaved: int = 0,
    num_heads: int = 0, rotary_embedding_dim: int = 0,
) -> Tensor:  # fmt: skip
    """Rotary position embedding (Su et al. 2021; ONNX specification, RotaryEmbedding 23)."""
    given = x
    x = x.reshape(x.shape[0], x.shape[1], num_heads, -1) if x.ndim == 3 else x.transpose(1, 2)
    turned = rotary_embedding_dim or x.shape[-1]
    head, rest = x[..., :turned], x[..., turned:]
    if positions is not None:
        cosines, sines = cosines[positions], sines[positions]
    cos, sin = cosines[:, :, None, : turned // 2], sines[:, :, None, : turned // 2]
    if interleaved:
        left, right = head[..., 0::2], head[..., 1::2]
        made = torch.stack([cos * left - sin * right, sin * left + cos * right], -1).flatten(-2)
    else:
        left, right = head.chunk(2, -1)
        made = torch.cat([cos * left - sin * right, sin * left + cos * right], -1)
    made = torch.cat([made, rest], -1)
    return made.reshape(given.shape) if given.ndim == 3 else made.transpose(1, 2)


OPERATORS: Mapping[str, Callable[..., Any]] = {
    "Attention": attention,
    "AveragePool": average_pool,
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "Einsum": einsum,
    "Gemm": gemm,
    "GlobalAveragePool": global_average_pool,
    "GlobalMaxPool": global_max_pool,
    "MatMul": torch.matmul,
    "MaxPool": max_pool,
    "RotaryEmbedding": rotary_embedding,
}
"""By ONNX name."""
