"""What layers cost and what they matter: times of their kernels, places of their sums, noise of one changed alone."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from graphopt.data.interface import Feeds
from graphopt.errors import GraphoptError
from graphopt.ir import facts
from graphopt.ir.model import leading_to
from graphopt.lossy import Context
from graphopt.prune.structure import Layer, name_of
from graphopt.quant.attribution import attribute, is_activation
from graphopt.quant.units import Unit
from graphopt.verify.agreement import noise_share
from graphopt.verify.session import Session

_RUINED = 1e6
_SHARE_OF_TIME = 0.4
"""Of what is left, for running each change alone."""


def times(
    context: Context, model: ir.Model, nodes: Mapping[str, Sequence[ir.Node]], label: str
) -> dict[str, float]:
    """Milliseconds of layers; see :func:`all_times`."""
    return all_times(context, model, nodes, label)[0]


def all_times(
    context: Context, model: ir.Model, nodes: Mapping[str, Sequence[ir.Node]], label: str
) -> tuple[dict[str, float], list[tuple[ir.Node, float]]]:
    """Milliseconds of the layers that are found again among the kernels of the target, and of the other nodes that are;
    none where it cannot run.

    Args:
        nodes: Of ``model`` by layer: more than one where a layer is several products; the last makes its output.
        label: Of the form that is profiled.
    """
    if not context.runnable:
        return {}, []
    try:
        kernels = context.profile(model, label)
        legal = context.legalize(model)
    except GraphoptError:
        return {}, []
    names = {own[0].name or "": name for name, own in nodes.items()}
    taken = {node for own in nodes.values() for node in own}
    # What is no layer has a time of its own, but for an activation, which is computed with the node before it.
    others = [node for node in model.graph if node not in taken and not is_activation(node)]
    units = [Unit(tuple(own), "compute") for own in (*nodes.values(), *((node,) for node in others))]
    found = attribute(kernels, units, legal).milliseconds
    by_name = {node.name or "": node for node in others if node.name}
    return (
        {names[name]: milliseconds for name, milliseconds in found.items() if name in names},
        [(by_name[name], milliseconds) for name, milliseconds in found.items() if name in by_name],
    )


def per_multiplication(measured: Mapping[str, float], macs: Mapping[str, float]) -> dict[str, float]:
    """Milliseconds of a multiplication of each layer; of an average one where the layer was not measured."""
    usual = sum(measured.values()) / (sum(macs.get(name, 0.0) for name in measured) or 1.0) or 1.0
    return {
        name: measured[name] / whole if measured.get(name) and whole else usual
        for name, whole in macs.items()
    }


def places(
    model: ir.Model,
    layers: Sequence[Layer],
    sample: Feeds,
    threads: int = 0,
    recurrent: Sequence[ir.Node] = (),
) -> dict[str, int]:
    """How many sums each output channel of a layer has in one sample, by the layer's name.

    Args:
        recurrent: LSTM, GRU and RNN, which have as many as their data have rows.
    """
    made = {layer.name: layer.node.outputs[0].name or "" for layer in layers}
    read = {
        name_of(node): value.name or ""
        for node in recurrent
        for value in node.inputs[:1]
        if value is not None
    }
    names = [name for name in dict.fromkeys([*made.values(), *read.values()]) if name not in sample]
    seen = dict(sample)
    if names:
        seen |= Session(leading_to(model, names), threads=threads).run(sample, names)
    found = {name: math.prod(np.shape(seen[value])[:-1]) for name, value in read.items()}
    for layer in layers:
        dims = facts.static_dims(layer.weight)
        channels = (dims[layer.out] if dims else 1) * (
            layer.groups if layer.node.op_type == "ConvTranspose" else 1
        )
        found[layer.name] = int(seen[made[layer.name]].size // max(channels, 1))
    return found


def noises(
    model: ir.Model,
    variants: Sequence[Callable[[], ir.Model]],
    samples: Sequence[Feeds],
    context: Context,
    what: str,
    reserved: float = 0.0,
) -> list[float]:
    """Noise power over signal power of the worst output of each variant of a model; NaN where there was no time left.

    Args:
        what: Each variant changes one of, for the progress.
        reserved: Seconds that are to be left for what follows.
    """
    session = Session(model, optimize="all", threads=context.threads)
    counted = context.evaluation.counted
    references = [counted(feeds, session.run(feeds)) for feeds in samples]
    found: list[float] = []
    started = time.monotonic()
    left = max(context.deadline - started, 0.0)
    limit = started + min(_SHARE_OF_TIME * left, max(left - reserved, 0.0))
    for index, variant in enumerate(variants):
        if time.monotonic() > limit:
            found.append(float("nan"))
            continue
        context.progress(f"sensitivity of {what} {index + 1} of {len(variants)}")
        alone = Session(variant(), optimize="all", threads=context.threads)
        noise = noise_share([counted(feeds, alone.run(feeds)) for feeds in samples], references)
        found.append(float("inf") if np.isnan(noise) else noise)
    return found


def known_or_usual(ratios: Sequence[float]) -> list[float]:
    """The ratios, with the median of the known ones in place of those that are not (NaN); 1 where none is.

    What is infinite ruins the outputs, and counts as much more than all others.
    """
    known = [ratio for ratio in ratios if np.isfinite(ratio)]
    usual, ruined = (float(np.median(known)), _RUINED * max(known)) if known else (1.0, _RUINED)
    return [usual if np.isnan(ratio) else min(ratio, ruined) for ratio in ratios]


__all__ = ["all_times", "known_or_usual", "noises", "per_multiplication", "places", "times"]
