"""ONNX models, from a file, a protobuf message or the IR."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from graphopt.capture import normalize, upgrade
from graphopt.capture.captured import Captured
from graphopt.errors import InvalidGraphError
from graphopt.ir import check, names, shapes
from graphopt.ir import model as ir_model

if TYPE_CHECKING:
    import onnx


def capture_file(
    path: Path,
    *,
    input_shapes: Mapping[str, Sequence[int | None]] | None = None,
) -> Captured:
    """Capture an ONNX file.

    Raises:
        ModelError: See ``graphopt.ir.model.load`` and ``capture_ir``.
    """
    return capture_ir(
        ir_model.load(path),
        original=path,
        name=path.stem,
        input_shapes=input_shapes,
    )


def capture_proto(
    proto: onnx.ModelProto,
    *,
    input_shapes: Mapping[str, Sequence[int | None]] | None = None,
) -> Captured:
    """Capture a protobuf message, which stays as it is."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    model = ir_model.from_proto(copy)
    for tensor in ir_model.external_tensors(model):
        # A message does not know where it came from; paths are relative to where the program runs.
        tensor.base_dir = os.curdir
        ir_model.check_external(tensor, Path("the model"))
    return capture_ir(
        model,
        name=proto.graph.name or "model",
        input_shapes=input_shapes,
    )


def capture_ir(
    model: ir.Model,
    *,
    original: Path | None = None,
    name: str = "",
    kind: str = "onnx",
    warnings: Sequence[str] = (),
    input_shapes: Mapping[str, Sequence[int | None]] | None = None,
) -> Captured:
    """Bring a model, which this takes over, into the internal form.

    Raises:
        InvalidGraphError: The graph breaks a rule of ONNX.
        UnsupportedModelError: An operator, domain or opset that graphopt cannot take.
        UsageError: ``input_shapes`` do not fit.
    """
    files = {Path(tensor.path) for tensor in ir_model.external_tensors(model)}
    about = Captured(
        original,
        model,
        model,
        0,
        kind,
        list(warnings),
        name or model.graph.name or "model",
        frozenset(files if original is None else files | {original}),
    )
    with ir_model.paused_collection():
        if files:
            ir_model.hold_small(model)
        return _capture(model, about, input_shapes)


def _capture(
    model: ir.Model,
    about: Captured,
    input_shapes: Mapping[str, Sequence[int | None]] | None,
) -> Captured:
    noted = about.warnings
    file_runs = (model.ir_version or 0) <= normalize.MAX_IR_VERSION
    fixed = normalize.defaults(model)
    noted += normalize.repair(model)
    if "" not in model.graph.opset_imports and _uses_onnx(model):
        raise InvalidGraphError(
            "the model imports no opset of ONNX, so the meaning of its operators is not defined",
            hint="set model.opset_import when making it: onnx.helper.make_opsetid('', 21)",
        )
    source_opset = upgrade.source_opset(model)
    upgrade.require_known(model)
    _check(model)
    if upgrade.relabel_down(model):
        noted.append(
            f"opset {source_opset} is read as {upgrade.source_opset(model)}: no operator in it changed since"
        )
        file_runs = False
    given = model
    model = ir_model.clone(given)
    inlined = bool(model.functions)
    normalize.normalize(model)
    shapes.infer_anew(model)
    rewritten = upgrade.upgrade(model)
    for domain in {node.domain for node in model.graph.all_nodes()}:
        model.graph.opset_imports.setdefault(domain, upgrade.INTERNAL_OPSET if domain == "" else 1)
    model.graph.opset_imports.setdefault("", upgrade.INTERNAL_OPSET)
    model.ir_version = normalize.MAX_IR_VERSION
    if rewritten:
        names.make_unique(model)
    if input_shapes:
        shapes.specialize(model, input_shapes)
    elif rewritten or inlined:
        shapes.infer(model)
    check.check(model, allow_domains=check.RUNTIME_DOMAINS)
    return dataclasses.replace(
        about, model=model, original_model=given, source_opset=source_opset, file_runs=file_runs, fixed=fixed
    )


def _uses_onnx(model: ir.Model) -> bool:
    return any(node.domain == "" for node in model.graph.all_nodes())


def _check(model: ir.Model) -> None:
    if not model.graph.outputs:
        raise InvalidGraphError(
            "the model has no outputs, so there is nothing to compute",
            hint="name the values it is to compute as outputs of its graph, and export it again",
        )
    try:
        check.check(
            model,
            allow_domains=upgrade.STANDARD_DOMAINS,
            unique_node_names=False,
            allow_withdrawn=True,
        )
    except InvalidGraphError as error:
        if not error.hint:
            error.hint = "the model breaks a rule of ONNX: export it again, or correct this node"
        raise
