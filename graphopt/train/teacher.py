"""What is learned from: the original's outputs, and its hidden values where the student has them as well."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from graphopt.data.interface import Feeds
from graphopt.ir import facts
from graphopt.ir.model import leading_to
from graphopt.quant.positions import Positions
from graphopt.train.module import to_module
from graphopt.verify.session import Session

_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN"})
_MOST_HIDDEN = 12
_SAME = 1e-10
"""Share of a hidden value's power up to which the student has it right already."""
_OTHER, _OTHER_QUANTIZED = 1.0, 0.05
"""Share from which it is another value under the same name: what prepares a graph for integers scales channels."""


class Teacher:
    """The original in ONNX Runtime; what it says of a sample is kept as long as there is room.

    Args:
        model: The original.
        names: Of values.
        samples: Inputs.
        memory: Bytes to keep.
        threads: Of an operator.
        positions: What of the values counts; None for all.
    """

    def __init__(
        self,
        model: ir.Model,
        names: Sequence[str],
        samples: Sequence[Feeds],
        *,
        memory: int,
        threads: int = 0,
        positions: Positions | None = None,
    ) -> None:
        self._positions = positions
        self.names = tuple(names)
        self._samples = samples
        self._room = memory
        self._kept: dict[int, Feeds] = {}
        self._session = Session(leading_to(model, list(names)), optimize="all", threads=threads)

    def on(self, feeds: Feeds) -> Feeds:
        """The values for inputs that are no sample, by name.

        Raises:
            TargetError: It does not run on them.
        """
        found = self._session.run(feeds, self.names)
        if self._positions is None:
            return found
        return {name: self._positions.of(name, feeds, array) for name, array in found.items()}

    def of(self, index: int) -> Feeds:
        """The values for one sample, by name."""
        if index in self._kept:
            return self._kept[index]
        found = self.on(self._samples[index])
        size = sum(array.nbytes for array in found.values())
        if size <= self._room:
            self._kept[index] = found
            self._room -= size
        return found


def hidden_of(teacher: ir.Model, student: ir.Model, sample: Feeds, threads: int = 0) -> list[str]:
    """Hidden values of the student that are comparable with the teacher's of the same name, evenly spread.

    Those of layers (products and convolutions) that have the same shape in both, and that the student does not have
    right already.

    Raises:
        NotTrainableError: The student has no differentiable form.
    """
    import torch

    theirs = {value.name for node in teacher.graph for value in node.outputs if facts.is_float(value)}
    outputs = {value.name for value in student.graph.outputs}
    named = [
        name
        for node in student.graph
        if node.op_type in _LAYERS
        and (name := _behind_bias(node).name)
        and name in theirs
        and name not in outputs
    ]
    if not named:
        return []
    wanted = Session(leading_to(teacher, named), optimize="all", threads=threads).run(sample, named)
    module = to_module(student, named)
    with torch.no_grad():
        got = dict(zip(named, (tensor.numpy() for tensor in module(sample)), strict=True))
    quantized = any(node.op_type == "QuantizeLinear" for node in student.graph)
    most = _OTHER_QUANTIZED if quantized else _OTHER
    different = []
    for name in dict.fromkeys(named):
        if got[name].shape != wanted[name].shape:
            continue
        power = float(np.square(wanted[name], dtype=np.float64).sum())
        noise = float(np.square(got[name] - wanted[name], dtype=np.float64).sum())
        if power > 0 and _SAME * power < noise < most * power:
            different.append(name)
    if len(different) <= _MOST_HIDDEN:
        return different
    places = np.linspace(0, len(different) - 1, _MOST_HIDDEN).round().astype(int)
    return [different[place] for place in places]


def _behind_bias(node: ir.Node) -> ir.Value:
    """A layer's output; behind the Add of its bias where there is one."""
    out = node.outputs[0]
    behind = facts.sole_consumer(out)
    if (
        behind is not None
        and behind.op_type == "Add"
        and any(facts.is_constant(value) for value in behind.inputs)
    ):
        return behind.outputs[0]
    return out


__all__ = ["Teacher", "hidden_of"]
