"""LSTM, GRU and RNN by PyTorch's own kernels: weights are brought into its order of gates, differentiably."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

_DEFAULTS: Mapping[str, tuple[str, ...]] = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh")}
_LSTM_ORDER, _GRU_ORDER, _RNN_ORDER = (0, 2, 3, 1), (1, 0, 2), (0,)
"""ONNX has i, o, f, c and z, r, h; PyTorch i, f, g, o and r, z, n."""


def _reordered(weight: Tensor, order: Sequence[int]) -> Tensor:
    blocks = weight.chunk(len(order), 0)
    return torch.cat([blocks[index] for index in order], 0)


def _run(
    function: Callable[..., Any], order: Sequence[int], states: Sequence[Tensor | None],
    x: Tensor, w: Tensor, r: Tensor, b: Tensor | None, direction: str, layout: int,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Outputs [S, D, B, H] (or batch first), then the last states [D, B, H]."""
    if layout:
        x = x.transpose(0, 1)
        states = [None if state is None else state.transpose(0, 1) for state in states]
    directions, hidden, batch = w.shape[0], r.shape[2], x.shape[1]
    zero = torch.zeros(directions, batch, hidden, dtype=x.dtype)
    first = [zero if state is None else state.contiguous() for state in states]
    flat: list[Tensor] = []
    for side in range(directions):
        flat += [_reordered(w[side], order), _reordered(r[side], order)]
        if b is not None:
            flat += [_reordered(part, order) for part in b[side].chunk(2, 0)]
    data = torch.flip(x, [0]) if direction == "reverse" else x
    given = tuple(first) if len(first) > 1 else first[0]
    training = torch.is_grad_enabled()
    made, *last = function(data, given, flat, b is not None, 1, 0.0, training, directions == 2, False)
    made = torch.flip(made, [0]) if direction == "reverse" else made
    made = made.reshape(x.shape[0], batch, directions, hidden)
    if layout:
        return (made.transpose(0, 1), *(state.transpose(0, 1) for state in last))
    return (made.permute(0, 2, 1, 3), *last)


def _check(
    name: str, activations: Sequence[str] | None, direction: str, clip: float | None, lengths: Tensor | None
) -> None:
    wanted = _DEFAULTS[name] * (2 if direction == "bidirectional" else 1)
    if activations and tuple(activations) != wanted:
        raise NotImplementedError(f"a {name} with other activations than {', '.join(wanted)}")
    if clip is not None or lengths is not None:
        raise NotImplementedError(f"a {name} that clips, or with lengths of sequences")


def lstm(
    x: Tensor, w: Tensor, r: Tensor, b: Tensor | None = None, lengths: Tensor | None = None,
    h: Tensor | None = None, c: Tensor | None = None, p: Tensor | None = None, *, hidden_size: int,
    activation_alpha: Sequence[float] | None = None, activation_beta: Sequence[float] | None = None,
    activations: Sequence[str] | None = None, clip: float | None = None, direction: str = "forward",
    input_forget: int = 0, layout: int = 0,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Long short-term memory without peepholes: outputs, last hidden and cell states."""
    del hidden_size, activation_alpha, activation_beta
    _check("LSTM", activations, direction, clip, lengths)
    if input_forget or (p is not None and bool((p != 0).any())):
        raise NotImplementedError("an LSTM with peepholes or coupled gates")
    return _run(torch._VF.lstm, _LSTM_ORDER, (h, c), x, w, r, b, direction, layout)


def gru(
    x: Tensor, w: Tensor, r: Tensor, b: Tensor | None = None, lengths: Tensor | None = None,
    h: Tensor | None = None, *, hidden_size: int, activation_alpha: Sequence[float] | None = None,
    activation_beta: Sequence[float] | None = None, activations: Sequence[str] | None = None,
    clip: float | None = None, direction: str = "forward", layout: int = 0, linear_before_reset: int = 0,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gated recurrent unit whose reset comes behind the product: outputs and last states."""
    del hidden_size, activation_alpha, activation_beta
    _check("GRU", activations, direction, clip, lengths)
    if not linear_before_reset:
        raise NotImplementedError("a GRU that resets before the product")
    return _run(torch._VF.gru, _GRU_ORDER, (h,), x, w, r, b, direction, layout)


def rnn(
    x: Tensor, w: Tensor, r: Tensor, b: Tensor | None = None, lengths: Tensor | None = None,
    h: Tensor | None = None, *, hidden_size: int, activation_alpha: Sequence[float] | None = None,
    activation_beta: Sequence[float] | None = None, activations: Sequence[str] | None = None,
    clip: float | None = None, direction: str = "forward", layout: int = 0,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Elman's network with tanh or Relu: outputs and last states."""
    del hidden_size, activation_alpha, activation_beta
    kinds = set(activations or ("Tanh",))
    if len(kinds) > 1 or not kinds <= {"Tanh", "Relu"} or clip is not None or lengths is not None:
        raise NotImplementedError(
            "an RNN with other activations than tanh or Relu, that clips, or with lengths"
        )
    function = torch._VF.rnn_relu if kinds == {"Relu"} else torch._VF.rnn_tanh
    return _run(function, _RNN_ORDER, (h,), x, w, r, b, direction, layout)


OPERATORS: Mapping[str, Callable[..., Any]] = {"GRU": gru, "LSTM": lstm, "RNN": rnn}
"""By ONNX name."""
