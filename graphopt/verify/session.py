"""Runs a graph in ONNX Runtime without copying its weights.

The session is given a small file whose large initializers point into a sparse file (no disk space), and the
weights themselves as shared arrays. So a 3 GB model needs no protobuf of 3 GB and no second copy.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.data.interface import Array, Feeds
from graphopt.errors import MissingExtraError, RejectedError, TargetError, shorten
from graphopt.ir import model as ir_model

_ALIGN = 4096
_MANY_NODES = 2000


def onnxruntime() -> Any:
    """The onnxruntime module.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise MissingExtraError("onnxruntime", "cpu") from error
    if not hasattr(ort, "InferenceSession"):
        raise MissingExtraError("onnxruntime (the installed package is damaged)", "cpu")
    return ort


def seed_of(seed: int) -> int:
    """The seed to give ONNX Runtime: with 0 all its random nodes draw the same numbers, one beside the other."""
    return seed + 1


def reuses_buffers(model: ir.Model) -> bool:
    """Whether ONNX Runtime is to: its search compares each tensor with all that are free, 20 s at 10,000 nodes."""
    return len(model.graph) <= _MANY_NODES


@contextlib.contextmanager
def skeleton_file(model: ir.Model, *, share: bool) -> Iterator[tuple[Path, dict[str, Array]]]:
    """The model in a temporary file, its large weights beside it, and these as arrays by name.

    The arrays are views of what the model holds. The model is left as it was.

    Args:
        share: Leave the weights' file empty; the caller hands the arrays to the session. ONNX Runtime's graph
            optimisers read the file and not the arrays, so this is for sessions without them only.
    """
    import onnx

    with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
        large: dict[str, ir.Value] = {}
        for name, value in model.graph.initializers.items():
            tensor = value.const_value
            if tensor is not None and ir_model.is_shareable(tensor):
                large[name] = value
        kept = {name: value.const_value for name, value in large.items()}
        offset = 0
        try:
            for name, value in large.items():
                tensor = kept[name]
                assert tensor is not None
                value.const_value = ir.ExternalTensor(
                    "weights",
                    offset,
                    tensor.nbytes,
                    tensor.dtype,
                    shape=ir.Shape(tensor.shape.numpy()),
                    name=name,
                    base_dir=folder,
                )
                offset += -(-tensor.nbytes // _ALIGN) * _ALIGN
            proto = ir.to_proto(model)
        finally:
            for name, value in large.items():
                value.const_value = kept[name]
        arrays = {name: _array(tensor) for name, tensor in kept.items() if tensor is not None}
        with open(Path(folder) / "weights", "wb") as file:
            if not share:
                for array in arrays.values():
                    array.tofile(file)
                    file.seek(-(-file.tell() // _ALIGN) * _ALIGN)
            file.truncate(offset)
        path = Path(folder) / "model.onnx"
        onnx.save(proto, path)
        del proto
        yield path, arrays


def _array(tensor: ir.TensorProtocol) -> Array:
    array = tensor.numpy()
    return array if array.flags.c_contiguous else np.ascontiguousarray(array)


class Session:
    """A graph in ONNX Runtime's CPU provider.

    Args:
        model: The graph; its weights are shared, not copied.
        optimize: ONNX Runtime's own optimisations ("off" for the reference, or "all").
        threads: Of an operator.
        prepack: Whether kernels may keep a packed copy of constant weights.

    Raises:
        RejectedError: ONNX Runtime rejects the graph; its message is kept.
    """

    def __init__(
        self, model: ir.Model, *, optimize: str = "off", threads: int = 0, prepack: bool = True, seed: int = 0
    ) -> None:
        ort = onnxruntime()
        ort.set_seed(seed_of(seed))
        options = ort.SessionOptions()
        options.log_severity_level = 4
        levels = ort.GraphOptimizationLevel
        options.graph_optimization_level = (
            levels.ORT_DISABLE_ALL if optimize == "off" else levels.ORT_ENABLE_ALL
        )
        options.intra_op_num_threads = threads
        # Runs of the reference wait for one another; spinning would only take the cores from what comes next.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.enable_mem_reuse = reuses_buffers(model)
        if not prepack:
            options.add_session_config_entry("session.disable_prepacking", "1")
        self._weights: list[Any] = []
        share = optimize == "off"
        with skeleton_file(model, share=share) as (path, weights):
            for name, array in weights.items() if share else ():
                value = ort.OrtValue.ortvalue_from_numpy(array)
                self._weights.append((array, value))
                options.add_initializer(name, value)
            try:
                self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            except Exception as error:  # onnxruntime raises many unrelated classes
                raise RejectedError(f"ONNX Runtime rejects the graph: {shorten(error)}") from error
        self.input_names: tuple[str, ...] = tuple(value.name for value in self._session.get_inputs())
        self.output_names: tuple[str, ...] = tuple(output.name for output in self._session.get_outputs())

    def run(self, feeds: Mapping[str, Array], names: Sequence[str] | None = None) -> Feeds:
        """Outputs by name.

        Raises:
            TargetError: ONNX Runtime fails while running; its message is kept.
        """
        wanted = list(names if names is not None else self.output_names)
        try:
            return dict(zip(wanted, self._session.run(wanted, dict(feeds)), strict=True))
        except Exception as error:  # as above
            raise TargetError(f"ONNX Runtime fails on the graph: {shorten(error)}") from error

    def run_one_by_one(self, feeds: Mapping[str, Array], names: Sequence[str]) -> Iterator[tuple[str, Array]]:
        """Outputs one after the other, without the copy that :meth:`run` makes of all of them.

        Each is a view of ONNX Runtime's memory, read-only, and freed once nothing refers to it any more.

        Raises:
            TargetError: As :meth:`run`.
        """
        ort = onnxruntime()
        if not all(isinstance(array, np.ndarray) and array.dtype != object for array in feeds.values()):
            yield from self.run(feeds, names).items()
            return
        try:
            wrap = ort.OrtValue.ortvalue_from_numpy
            given = {name: wrap(np.ascontiguousarray(array)) for name, array in feeds.items()}
            values = self._session.run_with_ort_values(list(names), given)
        except Exception as error:  # as above
            raise TargetError(f"ONNX Runtime fails on the graph: {shorten(error)}") from error
        for index, name in enumerate(names):
            value, values[index] = values[index], None
            yield name, np.from_dlpack(value._ortvalue)
