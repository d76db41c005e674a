"""Reads back which kernels ONNX Runtime runs, and for how long."""

from __future__ import annotations

import collections
import json
import re
import statistics
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt

from graphopt.errors import TargetError
from graphopt.machine import Kernel

_SUFFIX = "_kernel_time"
_TOKENS = re.compile(r"(_token_\d+|_nchwc|_nhwc)+$")
_INTEGER_OPS = frozenset(
    {
        *("QGemm", "MatMulInteger", "ConvInteger", "MatMulIntegerToFloat"),
        *("DynamicQuantizeMatMul", "DynamicQuantizeLSTM"),
    }
)
_INTEGER_TYPES = frozenset({2, 3})


def kernels(
    path: Path, options: Any, providers: list[str], feeds: Mapping[str, npt.NDArray[Any]], *, runs: int,
    disabled_optimizers: list[str] | None = None,
) -> list[Kernel]:  # fmt: skip
    """The kernels of a model in the order in which they run.

    Args:
        path: The ONNX file.
        options: Session options; profiling is turned on in them.

    Raises:
        TargetError: ONNX Runtime rejects the model or fails.
    """
    import onnx
    import onnxruntime as ort

    with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
        optimized = Path(folder) / "optimized.onnx"
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        options.optimized_model_filepath = str(optimized)
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights")
        options.log_severity_level = 4
        try:
            session = ort.InferenceSession(
                str(path), options, providers=providers, disabled_optimizers=disabled_optimizers
            )
            for _ in range(runs + 1):
                session.run(None, dict(feeds))
            profile = session.end_profiling()
        except Exception as error:  # onnxruntime raises many unrelated classes
            raise TargetError(
                f"ONNX Runtime fails on {path.name}: {' '.join(str(error).split())[:600]}"
            ) from error
        events = json.loads(Path(profile).read_text(encoding="utf-8"))
        graph = onnx.load(str(optimized), load_external_data=False).graph
    times: dict[str, list[float]] = collections.defaultdict(list)
    places: dict[str, str] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(_SUFFIX):
            name = event["name"][: -len(_SUFFIX)]
            times[name].append(event["dur"] / 1000)
            places[name] = event["args"].get("provider", "")
    unnamed = _unnamed(times, {node.name for node in graph.node})
    readers: dict[str, list[str]] = collections.defaultdict(list)
    for node in graph.node:
        for name in node.input:
            readers[name].append(_plain(node.name))
    types = _element_types(graph)
    found: list[Kernel] = []
    for node in graph.node:
        name = node.name or next(unnamed.get(node.op_type, iter(())), "")
        own = times.get(name, [])
        found.append(
            Kernel(
                _plain(node.name),
                node.op_type,
                tuple(node.output),
                tuple(reader for name in node.output for reader in readers[name]),
                node.op_type.startswith("QLinear") or node.op_type in _INTEGER_OPS
                or (node.op_type not in ("QuantizeLinear", "DequantizeLinear")
                    and bool(node.input) and types.get(node.input[0]) in _INTEGER_TYPES),
                places.get(name, ""),
                # The first run warms up; a node in a loop has several times a run.
                sum(own) / (runs + 1) if len(own) != runs + 1 else statistics.median(own[1:] or own),
            )
        )  # fmt: skip
    return found


def _unnamed(times: Mapping[str, Any], named: set[str]) -> dict[str, Iterator[str]]:
    """What the profiler calls nodes without a name (``OP_INDEX``), by operator, in the order in which they ran."""
    found: dict[str, list[str]] = collections.defaultdict(list)
    for name in times:
        op, _, number = name.rpartition("_")
        if name not in named and number.isdigit():
            found[op].append(name)
    return {op: iter(names) for op, names in found.items()}


def _plain(name: str) -> str:
    return _TOKENS.sub("", name)


def _element_types(graph: Any) -> dict[str, int]:
    found = {
        value.name: value.type.tensor_type.elem_type
        for value in (*graph.input, *graph.value_info, *graph.output)
    }
    found.update({tensor.name: tensor.data_type for tensor in graph.initializer})
    for node in graph.node:
        # Value types are not always kept for what optimisers made: these operators say theirs.
        if node.op_type == "QuantizeLinear" and len(node.input) > 2:
            found[node.output[0]] = found.get(node.input[2], 2)
        elif node.op_type.startswith("QLinear") or node.op_type in (
            "NhwcMaxPool",
            "MaxPool",
            "Transpose",
            "Reshape",
        ):
            found.setdefault(
                node.output[0],
                2 if node.op_type.startswith(("QLinear", "Nhwc")) else found.get(node.input[0], 0),
            )
    return found
