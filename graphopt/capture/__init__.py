"""Brings models into the internal form: ONNX files and messages, PyTorch modules and programs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from graphopt.capture.captured import Captured
from graphopt.errors import UsageError

__all__ = ["Captured", "capture"]


def capture(
    model: Any,
    *,
    example_inputs: Any = None,
    dynamic_shapes: Any = None,
    input_shapes: Mapping[str, Sequence[int | None]] | None = None,
) -> Captured:
    """Bring a model into the internal form.

    Args:
        model: A path (``.onnx``, ONNX as text, ``.pt2``), an ``onnx.ModelProto``, an ``onnx_ir.Model``, a
            ``torch.nn.Module`` or ``torch.fx.GraphModule`` with example inputs, or a
            ``torch.export.ExportedProgram``. What is passed in memory is not changed.
        example_inputs: For a torch module: the positional arguments of ``forward`` (tuple) or keyword arguments
            (dict); tensors or NumPy arrays.
        dynamic_shapes: For a torch module, as for ``torch.export.export``.
        input_shapes: Sizes to specialise inputs to, by name; None leaves a dimension as it is.

    Raises:
        ModelError: Not a model, damaged, invalid or not supported; the subclass and the message tell which.
        UsageError: Arguments that do not fit the model.
        MissingExtraError: A torch model without torch.
    """
    from graphopt.capture import normalize, onnx_model, torch_model

    if dynamic_shapes is not None and not torch_model.is_module(model):
        raise UsageError(
            "dynamic_shapes are for a torch.nn.Module, which is exported with them; this model has its shapes already",
            hint="declare them when exporting it, or leave dynamic_shapes out",
        )
    if example_inputs is not None and not torch_model.is_module(model):
        raise UsageError(
            "example_inputs are for a torch.nn.Module, which is captured with them; this model has its inputs already",
            hint="give inputs to verify on as data={'name': array}, and what follows by name: target='ort-cpu'",
        )
    if isinstance(model, str | os.PathLike):
        path = Path(model)
        suffix = path.suffix.lower()
        if suffix == ".pt2":
            return torch_model.capture_pt2(path, input_shapes=input_shapes)
        if suffix in (".pt", ".pth", ".ckpt", ".bin", ".pkl", ".jit"):
            raise UsageError(
                f"{path} is a pickle or TorchScript file: loading it could run code, and it holds no graph to capture",
                hint="load it yourself and pass the module with example inputs, or save a graph: "
                "torch.export.save(torch.export.export(module, args), 'model.pt2')",
            )
        return onnx_model.capture_file(path, input_shapes=input_shapes)
    if isinstance(model, ir.Model):
        return onnx_model.capture_ir(
            normalize.clone_unsorted(model),
            name=model.graph.name or "model",
            input_shapes=input_shapes,
        )
    if torch_model.is_program(model):
        return torch_model.capture_program(model, input_shapes=input_shapes)
    if torch_model.is_module(model):
        return torch_model.capture_module(
            model, example_inputs, dynamic_shapes=dynamic_shapes, input_shapes=input_shapes
        )
    if type(model).__module__.startswith("onnx") and type(model).__name__ == "ModelProto":
        return onnx_model.capture_proto(model, input_shapes=input_shapes)
    raise UsageError(
        f"cannot capture an object of type {type(model).__module__}.{type(model).__qualname__}",
        hint="pass a path, an onnx.ModelProto, an onnx_ir.Model, or a torch module with example inputs",
    )
