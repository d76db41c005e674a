"""Reads back which kernels OpenVINO runs, from the graph that it executes."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from graphopt.machine import Kernel
from graphopt.targets.openvino.executable import read

if TYPE_CHECKING:
    from graphopt.targets.openvino.executable import OpenVinoExecutable

_NO_WORK = frozenset({"Const", "Constant", "Input", "Output", "Parameter", "Result"})
_COMPUTE = frozenset({"Convolution", "Deconvolution", "FullyConnected", "MatMul"})
_CONVERSIONS = frozenset({"FakeQuantize", "Convert"})
_INTEGER_TYPES = frozenset({"u8", "i8"})
_ADDED_TO_NAME = "/WithoutBiases"


@dataclass(frozen=True)
class Executed:
    """One node of the graph that OpenVINO executes.

    Attributes:
        name: OpenVINO's own.
        type: Of layer: ``Convolution``, ``FullyConnected``, ``Subgraph`` (generated code for several elementwise
            operators), ``Reorder`` (a change of layout or type), ...
        layers: Names of the nodes of the model that were fused into it, in the order of the computation.
        precision: Element type that it computes on (``f32``, ``u8``, ``i8``, ...): that of its first input.
        primitive: Implementation, as ``brgconv_avx512_I8`` or ``jit_avx512_f32``.
    """

    name: str
    type: str
    layers: tuple[str, ...]
    precision: str
    primitive: str

    @property
    def integer(self) -> bool:
        """Whether it computes on 8-bit integers."""
        return self.precision in _INTEGER_TYPES and (
            self.primitive.endswith("_I8") or self.type not in _COMPUTE
        )


def executed(compiled: Any) -> list[Executed]:
    """The nodes that a compiled model executes, in their order; constants, inputs and outputs left out.

    Args:
        compiled: ``openvino.CompiledModel``.
    """
    found: list[Executed] = []
    for op in compiled.get_runtime_model().get_ordered_ops():
        info = op.get_rt_info()
        facts = {key: info[key].astype(str) for key in info}
        if facts.get("layerType", "") in _NO_WORK:
            continue
        found.append(
            Executed(
                op.get_friendly_name(),
                facts.get("layerType", ""),
                tuple(
                    name.removesuffix(_ADDED_TO_NAME)
                    for name in facts.get("originalLayersNames", "").split(",")
                    if name
                ),
                facts.get("runtimePrecision", ""),
                facts.get("primitiveType", ""),
            )
        )
    return found


def kernels(
    executable: OpenVinoExecutable, feeds: Mapping[str, npt.NDArray[Any]], *, runs: int
) -> list[Kernel]:
    """The kernels of a model in the order in which they run, as the compiler wants to know them.

    A kernel is named after the first node of the model that it computes. A node that no kernel names was merged into
    the one that reads it (a product into the addition of its bias), and its tensors are told as that kernel's.

    Args:
        executable: Loaded with ``profile``.
        runs: Of the model, after one that warms up.
    """
    executable.run(feeds)
    times: dict[str, list[float]] = {}
    for _ in range(runs):
        executable.run(feeds)
        for entry in executable.request.profiling_info:
            times.setdefault(entry.node_name, []).append(entry.real_time.total_seconds() * 1000)
    nodes = executed(executable.compiled)
    source = _Source(executable.path)
    merged = source.merged({layer for node in nodes for layer in node.layers})
    names = {node.name: node.layers[0] if node.layers else node.name for node in nodes}
    readers = _readers(executable.compiled)
    found = []
    for node in nodes:
        layers = [name for layer in node.layers for name in (*merged.get(layer, ()), layer)]
        is_conversion = bool(layers) and all(source.types.get(layer) in _CONVERSIONS for layer in node.layers)
        found.append(
            Kernel(
                names[node.name],
                "QuantizeLinear" if is_conversion else node.type,
                tuple(dict.fromkeys(tensor for layer in layers for tensor in source.tensors.get(layer, ()))),
                tuple(names[reader] for reader in readers.get(node.name, ()) if reader in names),
                node.integer,
                node.primitive,
                statistics.median(times.get(node.name, [0.0])),
            )
        )
    return found


class _Source:
    """The model before OpenVINO compiled it: types of its nodes, and the tensors that they make."""

    def __init__(self, path: Path) -> None:
        import openvino

        self.types: dict[str, str] = {}
        self.tensors: dict[str, tuple[str, ...]] = {}
        self._order: list[str] = []
        self._readers: dict[str, set[str]] = {}
        model, _weights = read(openvino.Core(), path)
        for op in model.get_ordered_ops():
            name = op.get_friendly_name()
            self._order.append(name)
            self.types[name] = op.get_type_name()
            self.tensors[name] = tuple(sorted(tensor for output in op.outputs() for tensor in output.names))
            self._readers[name] = {
                port.get_node().get_friendly_name()
                for output in op.outputs()
                for port in output.get_target_inputs()
            }

    def merged(self, named: Set[str]) -> dict[str, list[str]]:
        """Nodes that no kernel names, in order, by the named node that their only way leads to."""
        leads_to: dict[str, str] = {}
        for name in reversed(self._order):
            if name in named or self.types[name] in _NO_WORK:
                continue
            ends = {reader if reader in named else leads_to.get(reader, "") for reader in self._readers[name]}
            if len(ends) == 1 and "" not in ends:
                leads_to[name] = ends.pop()
        found: dict[str, list[str]] = {}
        for name in self._order:
            if name in leads_to:
                found.setdefault(leads_to[name], []).append(name)
        return found


def _readers(compiled: Any) -> dict[str, list[str]]:
    """Which executed nodes read each executed node's results, by name."""
    return {
        op.get_friendly_name(): [
            port.get_node().get_friendly_name()
            for output in op.outputs()
            for port in output.get_target_inputs()
        ]
        for op in compiled.get_runtime_model().get_ordered_ops()
    }
