"""Raises a model to the internal opset, operator by operator.

An operator whose schema only gained element types or optional parts since the source opset is relabelled. One whose
meaning or form changed has an adapter in ``adapters.py``, which writes it in the form of the internal opset at once. A
test reads the history of all schemas in ``onnx.defs`` and demands that each change of form is listed there.

ONNX's own version converter is not used: it needs serialized weights, drops node names, skips subgraphs for some
operators, and lacks adapters for others.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from graphopt.capture.adapters import ADAPTERS, INTERNAL_OPSET, RUNTIME_OPSET, WITHOUT_KERNEL, Site
from graphopt.errors import InvalidGraphError, UnsupportedModelError
from graphopt.ir import check, facts, kernels
from graphopt.ir.check import RUNTIME_DOMAINS, schema_of
from graphopt.ir.graphs import with_subgraphs

OLDEST_OPSET = 7

__all__ = [
    "ADAPTERS",
    "INTERNAL_OPSET",
    "OLDEST_OPSET",
    "RUNTIME_OPSET",
    "STANDARD_DOMAINS",
    "WITHOUT_KERNEL",
    "lower",
    "relabel_down",
    "require_known",
    "source_opset",
    "target_opset",
    "upgrade",
]

STANDARD_DOMAINS = frozenset({"", "ai.onnx.ml"}) | RUNTIME_DOMAINS


def source_opset(model: ir.Model) -> int:
    """The opset of ONNX's own domain that the model was written in; the internal one where it uses none."""
    return int(model.graph.opset_imports.get("", INTERNAL_OPSET))


def require_known(model: ir.Model) -> None:
    """Refuse what neither the upgrade nor ONNX Runtime knows, before anything is changed.

    Raises:
        UnsupportedModelError: Names the operator, its domain and the node.
    """
    opset = source_opset(model)
    if opset < OLDEST_OPSET:
        raise UnsupportedModelError(
            f"the model is written in opset {opset}; graphopt takes {OLDEST_OPSET} and newer",
            hint="export it again with a newer opset_version",
        )
    microsoft = _runtime_operators()
    for node in model.graph.all_nodes():
        if (node.domain, node.op_type, node.overload) in model.functions:
            continue
        if node.domain not in STANDARD_DOMAINS:
            raise UnsupportedModelError(
                f"unknown domain {node.domain!r} of operator {node.op_type!r}, node {node.name!r}",
                hint="graphopt takes ONNX's operators, ai.onnx.ml and com.microsoft; export the operator as an ONNX "
                "function, or leave it out of the model",
            )
        if node.domain in RUNTIME_DOMAINS:
            if microsoft and (node.domain, node.op_type) not in microsoft:
                raise UnsupportedModelError(
                    f"domain {node.domain!r} of ONNX Runtime has no operator {node.op_type!r} (node {node.name!r})",
                    hint="the installed ONNX Runtime may be too old, or the operator comes from a library of its own",
                )
            continue
        version = node.version or model.graph.opset_imports.get(node.domain)
        if version is None:
            version = opset if node.domain == "" else 1
        if schema_of(node.domain, node.op_type, version) is None:
            raise UnsupportedModelError(
                f"opset {version} of domain {node.domain or 'ai.onnx'!r} has no operator {node.op_type!r} "
                f"(node {node.name!r})",
                hint="the operator is misspelt, newer than the model's opset, or not part of ONNX",
            )


def _runtime_operators() -> frozenset[tuple[str, str]]:
    """Operators of ONNX Runtime's own domains; empty where it is not installed."""
    try:
        from onnxruntime.capi import onnxruntime_pybind11_state as state

        schemas = state.get_all_operator_schema()
    except (ImportError, AttributeError):
        return frozenset()
    return frozenset((schema.domain, schema.name) for schema in schemas if schema.domain in RUNTIME_DOMAINS)


def relabel_down(model: ir.Model) -> bool:
    """Let a model that is too new for ONNX Runtime have the newest opset it can run, where each node means the same.

    That is so for operators that did not change since, or that only gained element types and attributes which the
    node does not use; ``check`` then verifies the types against the older schema.

    Raises:
        UnsupportedModelError: A node that needs the newer opset; names it.
    """
    opset = source_opset(model)
    runs = min(RUNTIME_OPSET, _newest(model, kernels.newest_opsets()))
    if opset <= runs or (runs < RUNTIME_OPSET and _can_read_as(model, runs)):
        return opset > runs
    if opset <= RUNTIME_OPSET:
        return False
    try:
        _read_as(model, RUNTIME_OPSET)
    except InvalidGraphError as error:
        raise UnsupportedModelError(
            f"the model needs opset {opset}, and opset {RUNTIME_OPSET} is the newest that ONNX Runtime takes: "
            f"{error.message}",
            hint=f"export the model with opset_version={RUNTIME_OPSET}",
        ) from error
    return True


def _newest(model: ir.Model, ends: Mapping[str, int]) -> int:
    """The newest opset that every operator of ``model`` allows, at most the one that ONNX Runtime takes."""
    used = {node.op_type for node in model.graph.all_nodes() if node.domain == ""}
    return min((ends[op_type] for op_type in used & ends.keys()), default=RUNTIME_OPSET)


def _can_read_as(model: ir.Model, wanted: int) -> bool:
    try:
        _read_as(model, wanted)
    except (InvalidGraphError, UnsupportedModelError):
        return False
    return True


def _read_as(model: ir.Model, wanted: int) -> None:
    """Give ``model`` an older opset; left as it was where that fails.

    Raises:
        UnsupportedModelError: A node uses what the older opset lacks; names it.
        InvalidGraphError: A node uses an element type that the older opset lacks.
    """
    opset = source_opset(model)
    for node in model.graph.all_nodes():
        if node.domain != "":
            continue
        older = schema_of("", node.op_type, wanted)
        if older is None or not all(name in older.attributes for name in node.attributes):
            raise _too_new(node, opset)
    model.graph.opset_imports[""] = wanted
    try:
        check.check(model, allow_domains=check.RUNTIME_DOMAINS | STANDARD_DOMAINS, unique_node_names=False)
    except InvalidGraphError:
        model.graph.opset_imports[""] = opset
        raise


def _too_new(node: ir.Node, opset: int) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{node.op_type} of opset {opset} (node {node.name!r}) is newer than opset {RUNTIME_OPSET}, the newest that "
        "ONNX Runtime takes",
        hint=f"export the model with opset_version={RUNTIME_OPSET}",
    )


def lower(model: ir.Model, asked: int | None, least: int) -> int:
    """Give a model the oldest opset at which each node means what it does, or the one that is asked for; in place.

    Args:
        asked: None for the oldest, from ``least`` on.

    Returns:
        The opset.

    Raises:
        UnsupportedModelError: A node means something else in the opset that is asked for, or is not in it; names it.
    """
    now = source_opset(model)
    if asked is not None and asked < OLDEST_OPSET:
        raise UnsupportedModelError(
            f"opset {asked} is older than what graphopt reads", hint=f"--opset {OLDEST_OPSET}, or newer"
        )
    if asked is None:
        return next((opset for opset in range(least, now) if _is_same_in(model, opset)), now)
    if asked > now:
        raise UnsupportedModelError(
            f"the result is of opset {now}, and is not raised to {asked}", hint=f"--opset {now}, or older"
        )
    if asked < now and not _is_same_in(model, asked):
        oldest = next((opset for opset in range(asked + 1, now) if _is_same_in(model, opset)), now)
        culprit = next((node for node in model.graph.all_nodes() if _differs(node, asked, now)), None)
        what = "it" if culprit is None else f"{culprit.op_type} (node {culprit.name!r})"
        model.graph.opset_imports[""] = now
        raise UnsupportedModelError(
            f"the result cannot be written in opset {asked}: {what} is not the same there",
            hint=f"--opset {oldest}, the oldest that takes all of it",
        )
    return asked


def _is_same_in(model: ir.Model, opset: int) -> bool:
    """Whether each node means the same in an older opset, which the model then has."""
    now = source_opset(model)
    return not any(_differs(node, opset, now) for node in model.graph.all_nodes()) and _can_read_as(
        model, opset
    )


def _differs(node: ir.Node, opset: int, now: int) -> bool:
    """Whether a node would be another thing in an older opset, or none."""
    if node.domain != "":
        return False
    older = schema_of("", node.op_type, opset)
    if older is None or older.deprecated or not all(name in older.attributes for name in node.attributes):
        return True
    if opset < _VALUES_SINCE.get((node.op_type, facts.attribute(node, _NAMED.get(node.op_type, ""))), 0):
        return True
    if opset < _NEGATIVE_AXES and node.op_type not in _ALWAYS_NEGATIVE and _has_negative_axis(node):
        return True
    return any(
        opset < changed_in <= now and not _is_as_before(node, changed_in)
        for changed_in, _ in ADAPTERS.get(node.op_type, ())
    )


_NAMED = {
    "Pad": "mode", "Resize": "coordinate_transformation_mode", "ScatterElements": "reduction", "ScatterND": "reduction",
}  # fmt: skip
"""The attribute that later opsets gave new values."""
_VALUES_SINCE: Mapping[tuple[str, object], int] = {
    ("Pad", "wrap"): 19,
    ("Resize", "half_pixel_symmetric"): 19,
    **{(name, how): 18 for name in ("ScatterElements", "ScatterND") for how in ("max", "min")},
}
_NEGATIVE_AXES = 11
_ALWAYS_NEGATIVE = frozenset({"LpNormalization", "OneHot", "TopK"})


def _has_negative_axis(node: ir.Node) -> bool:
    axes = facts.attribute(node, "axes", ()) or ()
    return any(axis < 0 for axis in (*axes, facts.attribute(node, "axis", 0)))


def _is_as_before(node: ir.Node, changed_in: int) -> bool:
    """Whether a node of an operator that changed means the same without the change."""
    given = [value for value in node.inputs if value is not None]
    match node.op_type:
        case "BatchNormalization":
            return sum(bool(value.name) for value in node.outputs) == 1
        case "Split":
            return changed_in > 13 and len(given) > 1
        case "Softmax" | "LogSoftmax" | "Hardmax":
            rank = facts.rank(node.inputs[0])
            axis = facts.attribute(node, "axis")
            return rank == 2 if axis is None else rank is not None and axis % rank == rank - 1
        case "Resize":
            return changed_in > 11 and len(given) == len(node.inputs)
        case "Squeeze":
            return len(given) == 1
        case name:
            return name.startswith("Reduce") and len(given) == 1


def target_opset(model: ir.Model) -> int:
    """The opset to raise ``model`` to: the internal one, or the newest at which ONNX Runtime runs it as well.

    A newer model is relabelled, where each node means the same in the older opset.
    """
    newest_node = max(
        (node.version for node in model.graph.all_nodes() if node.version is not None), default=0
    )
    given = max(source_opset(model), newest_node)
    wanted = min(INTERNAL_OPSET, _newest(model, kernels.preferred_opsets()))
    if given <= wanted or _can_read_as(model, wanted):
        return wanted
    if given <= INTERNAL_OPSET or _can_read_as(model, INTERNAL_OPSET):
        return min(given, INTERNAL_OPSET)
    return given


def upgrade(model: ir.Model) -> dict[str, int]:
    """Raise ``model`` to its target opset, in place. Constants must be initializers already.

    Returns:
        How many nodes of each operator were rewritten.

    Raises:
        UnsupportedModelError: A node whose old meaning has no form in the internal opset.
    """
    opset = source_opset(model)
    target = target_opset(model)
    rewritten: dict[str, int] = {}
    for graph in with_subgraphs(model.graph):
        for node in list(graph):
            if node.domain != "":
                continue
            version = node.version or opset
            node.version = None
            if node.op_type in WITHOUT_KERNEL:
                WITHOUT_KERNEL[node.op_type](Site(model.graph, graph, node, version))
                continue
            for changed_in, adapter in ADAPTERS.get(node.op_type, ()):
                if version < changed_in <= target:
                    before = node.op_type
                    adapter(Site(model.graph, graph, node, version))
                    rewritten[before] = rewritten.get(before, 0) + 1
                    if node.graph is None:
                        break
    model.graph.opset_imports[""] = target
    return rewritten
