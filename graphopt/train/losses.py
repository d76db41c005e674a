"""How far a student's values are from its teacher's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import onnx_ir as ir

from graphopt.ir import facts

if TYPE_CHECKING:
    from torch import Tensor

Loss = Literal["auto", "mse", "kl"]
Kind = Literal["mse", "kl", "probabilities"]
_LEAST = 1e-7


def kinds_of(model: ir.Model, names: Sequence[str], loss: Loss) -> list[Kind]:
    """How each output is compared: "auto" takes the divergence of what a Softmax of the last axis gives, else squares.

    Squares of logits teach at least as well as the divergence of their softmax (Kim et al., Comparing Kullback-Leibler
    Divergence and Mean Squared Error Loss in Knowledge Distillation, IJCAI 2021).
    """
    by_name = {value.name: value for value in model.graph.outputs}
    found: list[Kind] = []
    for name in names:
        value = by_name.get(name)
        node = None if value is None else value.producer()
        last = (facts.rank(value) or 0) - 1
        is_softmax = (
            node is not None and node.op_type == "Softmax" and facts.attribute(node, "axis", -1) in (-1, last)
        )
        if value is None or loss == "mse":
            found.append("mse")
        elif is_softmax:
            found.append("probabilities")
        else:
            found.append("kl" if loss == "kl" else "mse")
    return found


def distance(got: Tensor, wanted: Tensor, kind: Kind, temperature: float = 1.0) -> Tensor:
    """A scalar: squares relative to the teacher's power, or the Kullback-Leibler divergence of rows of the last axis.

    Args:
        got, wanted: Of one shape, float32. Values that are not finite in the teacher do not count.
        kind: "kl" compares the softmax of logits at a temperature (Hinton et al. 2015), "probabilities" values that
            are such already.
    """
    import torch

    if kind != "mse":
        known = torch.isfinite(wanted).all(-1)
        got, wanted = got[known], wanted[known]
        if not len(wanted):
            return got.sum()
    if kind == "kl":
        theirs = torch.log_softmax(wanted / temperature, -1)
        ours = torch.log_softmax(got / temperature, -1)
        return temperature**2 * (theirs.exp() * (theirs - ours)).sum(-1).mean()
    if kind == "probabilities":
        theirs, ours = wanted.clamp_min(_LEAST).log(), got.clamp_min(_LEAST).log()
        return (wanted * (theirs - ours)).sum(-1).mean()
    known = torch.isfinite(wanted)
    if not bool(known.all()):
        got, wanted = got[known], wanted[known]
    return (got - wanted).square().sum() / wanted.square().sum().clamp_min(1e-30)


__all__ = ["Kind", "Loss", "distance", "kinds_of"]
