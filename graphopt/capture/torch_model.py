"""PyTorch models: modules, FX graphs, exported programs and ``.pt2`` files, by way of ``torch.onnx.export``."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import inspect
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from graphopt.capture.captured import Captured
from graphopt.capture.dynamic import require_granted
from graphopt.capture.onnx_model import capture_ir
from graphopt.errors import MissingExtraError, ModelError, UnsupportedModelError, UsageError

if TYPE_CHECKING:
    import torch

    from graphopt.ir.facts import Array

_RECURRENT = ("lstm", "gru")
_STRIDES = "Cannot view a tensor with shape"
"""What torch says where its attention kernel with a float mask left other strides than its decomposition leaves (T5,
BEiT, Swin): the view behind it was traced for the first."""


def require_torch() -> Any:
    """The torch module.

    Raises:
        MissingExtraError: torch, or what its exporter needs, is not installed.
    """
    for package in ("torch", "onnxscript"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, "torch")
    import torch

    return torch


def is_module(model: object) -> bool:
    """Whether ``model`` is a ``torch.nn.Module``, without importing torch."""
    return _is_a(model, "torch.nn.modules.module", "Module")


def is_program(model: object) -> bool:
    """Whether ``model`` is a ``torch.export.ExportedProgram``, without importing torch."""
    return _is_a(model, "torch.export.exported_program", "ExportedProgram")


def _is_a(model: object, module: str, name: str) -> bool:
    return any((base.__module__, base.__name__) == (module, name) for base in type(model).__mro__)


def capture_pt2(
    path: Path,
    *,
    input_shapes: Mapping[str, Sequence[int | None]] | None = None,
) -> Captured:
    """Capture a program that ``torch.export.save`` wrote.

    Raises:
        ModelError: Not such a file.
    """
    torch = require_torch()
    if not path.is_file():
        raise ModelError(f"there is no file {path}", hint="check the path")
    try:
        with quiet():
            program = torch.export.load(str(path))
    except Exception as error:  # torch raises whatever its archive reader meets
        raise ModelError(
            f"{path} is not a program saved by torch.export: {_first_line(error)}",
            hint="write it with torch.export.save(torch.export.export(module, args), path)",
        ) from error
    return capture_program(program, name=path.stem, input_shapes=input_shapes)


def capture_program(
    program: torch.export.ExportedProgram,
    *,
    name: str = "",
    input_shapes: Mapping[str, Sequence[int | None]] | None = None,
) -> Captured:
    """Capture an exported program; dynamic dimensions stay dynamic."""
    require_torch()
    user_inputs = [str(argument) for argument in program.graph_signature.user_inputs]
    model, notes = _export(program, None, None, None)
    return _finish(model, user_inputs, name or "program", notes, input_shapes)


def capture_module(
    module: torch.nn.Module,
    example_inputs: Any,
    *,
    dynamic_shapes: Any = None,
    input_shapes: Mapping[str, Sequence[int | None]] | None = None,
) -> Captured:
    """Capture a module (or FX graph module) by running it on example inputs.

    Args:
        example_inputs: Positional arguments of ``forward`` as a tuple, or its keyword arguments as a dict.
        dynamic_shapes: As for ``torch.export.export``.

    Raises:
        UsageError: No example inputs; a dimension declared dynamic that the module specialises.
        UnsupportedModelError: torch cannot export it.
    """
    require_torch()
    if example_inputs is None:
        raise UsageError(
            f"{type(module).__name__} is a torch module: example inputs are needed to capture it",
            hint="pass example_inputs=(tensor, ...) or {'name': tensor, ...}",
        )
    args, kwargs = _arguments(module, example_inputs)
    with _evaluating(module) as was_training:
        model, notes = _export(module, args, kwargs, dynamic_shapes)
    if dynamic_shapes:
        require_granted(model, module, args, kwargs, dynamic_shapes)
    if was_training:
        notes.append("the module was in training mode; it was captured in evaluation mode")
    names = _input_names(module, args, kwargs)
    captured = _finish(model, names, type(module).__name__, notes, input_shapes)
    example = _example(captured.model, names, args, kwargs)
    program = _program(module, args, kwargs, names) if example else None
    return dataclasses.replace(captured, example=example, program=program)


def _program(
    module: torch.nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], names: Sequence[str]
) -> Callable[[Mapping[str, Array]], list[Array]]:
    """The module as a function of arrays by input name, to the tensors that it gives, in order."""
    import torch
    from torch.utils import _pytree

    def run(feeds: Mapping[str, Array]) -> list[Array]:
        arrays = iter([feeds[name] for name in names])

        def taken(value: Any) -> Any:
            if not isinstance(value, torch.Tensor):
                return value
            return torch.from_numpy(np.ascontiguousarray(next(arrays))).to(value.device)

        given = [taken(value) for value in args]
        named = {name: taken(value) for name, value in kwargs.items()}
        with _evaluating(module), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            leaves, _ = _pytree.tree_flatten(module(*given, **named))
        return [leaf.detach().cpu().numpy() for leaf in leaves if isinstance(leaf, torch.Tensor)]

    return run


def _example(
    model: ir.Model, names: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[str, Array]:
    """The tensors that were passed, by input of the model; nothing where they do not come out even."""
    import torch

    given = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
    inputs = [value.name or "" for value in model.graph.inputs]
    if (
        inputs != list(names)
        or len(given) != len(inputs)
        or any(value.dtype == torch.bfloat16 for value in given)
    ):
        return {}
    return {name: value.detach().cpu().numpy() for name, value in zip(inputs, given, strict=True)}


@contextlib.contextmanager
def _evaluating(module: torch.nn.Module) -> Iterator[bool]:
    """The module in evaluation mode; yields whether it was in training mode."""
    training = module.training
    try:
        module.eval()
    except NotImplementedError:
        # The module of an exported program: its mode was settled by the export.
        yield False
        return
    try:
        yield training
    finally:
        module.train(training)


def _arguments(module: torch.nn.Module, example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(example_inputs, Mapping):
        # In the order of the signature: the exporter numbers inputs in the order in which they are passed.
        order = list(inspect.signature(module.forward).parameters)
        rank = {name: index for index, name in enumerate(order)}
        names = sorted(example_inputs, key=lambda name: rank.get(name, len(rank)))
        return (), {name: _tensor(example_inputs[name]) for name in names}
    if isinstance(example_inputs, tuple | list):
        return tuple(_tensor(value) for value in example_inputs), {}
    return (_tensor(example_inputs),), {}


def _tensor(value: Any) -> Any:
    """NumPy arrays as tensors; everything else as it is."""
    import torch

    return torch.from_numpy(value) if isinstance(value, np.ndarray) else value


def _input_names(module: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[str]:
    """Parameter names of ``forward`` for the tensors that are passed, in order."""
    import torch

    parameters = list(inspect.signature(module.forward).parameters.values())
    found: list[str] = []
    position = 0
    for index, value in enumerate(args):
        parameter = parameters[min(position, len(parameters) - 1)] if parameters else None
        if parameter is None:
            base = f"input_{index}"
        elif parameter.kind == inspect.Parameter.VAR_POSITIONAL:
            base = f"{parameter.name}_{index - position}"
        else:
            base = parameter.name
            position += 1
        if isinstance(value, torch.Tensor):
            found.append(base)
        elif value is not None and not isinstance(value, bool | int | float | str):
            return []  # A nested structure: keep the exporter's names.
    for name, value in kwargs.items():
        if isinstance(value, torch.Tensor):
            found.append(name)
        elif value is not None and not isinstance(value, bool | int | float | str):
            return []
    return found


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the exporter's progress lines and deprecation warnings."""
    loggers = [
        logging.getLogger(name) for name in ("torch", "torch.onnx", "torch.fx", "onnxscript", "onnx_ir")
    ]
    levels = [logger.level for logger in loggers]
    sink = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _forget_how_recurrence_was_traced() -> None:
    """Let LSTM and GRU be traced as one operator again.

    After one export torch 2.13 goes on in this process with a decomposition of these into one step for each position,
    which fixes the length; what it then takes comes from a cache of its dispatcher.
    """
    import torch

    for name in _RECURRENT:
        packet = getattr(torch.ops.aten, name)
        for overload in packet.overloads():
            cache = getattr(getattr(packet, overload), "_dispatch_cache", None)
            if isinstance(cache, dict):
                cache.clear()


def _program_of(model: Any, args: Any, kwargs: Any, dynamic_shapes: Any) -> Any:
    import torch

    def export() -> Any:
        with quiet():
            return torch.onnx.export(
                model,
                args if args is not None else (),
                kwargs=kwargs or None,
                dynamic_shapes=dynamic_shapes,
                dynamo=True,
                verbose=False,
            )

    try:
        return export()
    except Exception as error:
        if _STRIDES not in _cause(error):
            raise
    # What torch remembers of shapes would fail again.
    torch._subclasses.FakeTensorMode.cache_clear()
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        return export()


def _export(model: Any, args: Any, kwargs: Any, dynamic_shapes: Any) -> tuple[ir.Model, list[str]]:
    _forget_how_recurrence_was_traced()
    try:
        program = _program_of(model, args, kwargs, dynamic_shapes)
    except Exception as error:  # torch.onnx wraps all that may go wrong in a user's module
        raise UnsupportedModelError(
            f"torch cannot export {type(model).__name__}: {_cause(error)}",
            hint="try torch.export.export(module, args) by itself; it explains what it cannot trace",
        ) from error
    assert program is not None
    captured: ir.Model = program.model
    names = _output_names(program.exported_program)
    outputs = list(captured.graph.outputs)
    if len(names) == len(outputs) == len(set(outputs)):
        for value, name in zip(outputs, names, strict=True):
            if not value.is_graph_input() and not value.is_initializer():
                value.name = name
    return captured, []


def _output_names(program: Any) -> list[str]:
    """The keys, where the model returns a dictionary of tensors."""
    spec = getattr(getattr(program, "call_spec", None), "out_spec", None)
    context = getattr(spec, "context", None)
    children = (
        list(spec.children()) if spec is not None and callable(getattr(spec, "children", None)) else None
    )
    if children is None:
        children = list(getattr(spec, "children_specs", ()))
    if (
        isinstance(context, list)
        and len(context) == len(children)
        and all(isinstance(key, str) for key in context)
        and all(child.is_leaf() for child in children)
    ):
        return context
    return []


def _cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {_first_line(error)}"


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # A first line that ends in a colon only announces what happened.
    return " ".join(lines[: 2 if lines and lines[0].endswith(":") else 1])[:400]


def _finish(
    model: ir.Model,
    input_names: Sequence[str],
    name: str,
    notes: Sequence[str],
    input_shapes: Mapping[str, Sequence[int | None]] | None,
) -> Captured:
    inputs = list(model.graph.inputs)
    if len(input_names) == len(inputs) and len(set(input_names)) == len(inputs):
        for value, wanted in zip(inputs, input_names, strict=True):
            value.name = wanted
    return capture_ir(model, name=name, kind="torch", warnings=notes, input_shapes=input_shapes)
