"""For tests of passes and rewrites, those of plugins included.

    check(Gelu(), before="...", after="...")         fires, gives this text, numbers agree
    check_refuses(Gelu(), before="...", reason="used elsewhere")
    check_ignores(Gelu(), before="...")              does not match at all

Graphs are written in ONNX's text syntax (https://onnx.ai/onnx/repo-docs/Syntax.html); the header may be left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graphopt.ir import kernels, opset
from graphopt.pipeline.base import Pass, as_pass
from graphopt.rewrite import RewriteLog

OPSET = opset.limits().opset


def _header(text: str) -> str:
    called = set(re.findall(r"= *(\w+) *[(<]", text))
    version = min([OPSET, *(end for op_type, end in kernels.preferred_opsets().items() if op_type in called)])
    return f'<ir_version: {opset.limits().ir_version}, opset_import: ["" : {version}, "com.microsoft": 1]>\n'


def model_from_text(text: str) -> ir.Model:
    """A model from ONNX text; without a header it gets the opset that it would be captured at.

    That is graphopt's internal one, or an older one where the installed ONNX Runtime needs it for an operator. Shapes
    are inferred.
    """
    import onnx_ir.passes.common

    text = text.strip()
    if not text.startswith("<"):
        text = _header(text) + text
    model = ir.from_onnx_text(text)
    onnx_ir.passes.common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    onnx_ir.passes.common.ShapeInferencePass()(model)
    for index, node in enumerate(model.graph.all_nodes()):
        node.name = node.name or f"{node.op_type}_{index}"
    return model


def text_of(model: ir.Model) -> str:
    """The graph as text with inner names replaced by their order, for comparing two graphs.

    Constants are printed by content where they are small, else by shape and sum.
    """
    names: dict[ir.Value, str] = {value: f"%{value.name}" for value in model.graph.inputs}
    outputs = {value: f"%{value.name}" for value in model.graph.outputs}
    lines = [", ".join(names.values())]
    for node in model.graph:
        operands = [_operand(value, names) for value in node.inputs]
        while operands and operands[-1] == "_":
            operands.pop()
        for value in node.outputs:
            names[value] = outputs.get(value, f"%{len(names)}")
        attributes = ", ".join(f"{name}={_attribute(attr)}" for name, attr in sorted(node.attributes.items()))
        op_type = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        suffix = f" <{attributes}>" if attributes else ""
        made = ", ".join(names[value] for value in node.outputs if value.name)
        lines.append(f"{made} = {op_type}{suffix}({', '.join(operands)})")
    lines.append("return " + ", ".join(_operand(value, names) for value in model.graph.outputs))
    return "\n".join(lines)


def _operand(value: ir.Value | None, names: Mapping[ir.Value, str]) -> str:
    if value is None:
        return "_"
    if value in names:
        return names[value]
    if value.const_value is not None:
        array = value.const_value.numpy()
        if array.size <= 8:
            content = np.array2string(array.reshape(-1), separator=",", precision=6)
            content = re.sub(r"\s+", "", content)
        else:
            content = f"sum {float(np.sum(array, dtype=np.float64)):.5g}"
        return f"{array.dtype}{list(array.shape)}{content}".replace(" ", "")
    return f"%{value.name}"


def _attribute(attr: ir.Attr) -> str:
    if attr.type in (ir.AttributeType.FLOAT,):
        return f"{attr.as_float():.6g}"
    if attr.type == ir.AttributeType.TENSOR:
        return str(attr.as_tensor().numpy().tolist())
    if attr.type == ir.AttributeType.GRAPH:
        return f"graph of {len(attr.as_graph())} nodes"
    return str(attr.value)


def run(model: ir.Model, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """Outputs of ONNX Runtime with its optimisations off."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    proto = ir.to_proto(model)
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, dict(feeds)), strict=True))


def random_feeds(
    model: ir.Model, sizes: Mapping[str, int] | None = None, seed: int = 0
) -> dict[str, npt.NDArray[Any]]:
    """Normal floats, small non-negative integers and random booleans for every input.

    Args:
        sizes: Size of each dynamic dimension by name; 3 where it is not given.
    """
    rng = np.random.default_rng(seed)
    feeds: dict[str, npt.NDArray[Any]] = {}
    for value in model.graph.inputs:
        assert value.name and value.shape is not None and value.dtype is not None
        shape = [dim if isinstance(dim, int) else (sizes or {}).get(str(dim.value), 3) for dim in value.shape]
        dtype = value.dtype.numpy()
        if dtype.kind == "f":
            feeds[value.name] = rng.standard_normal(shape).astype(dtype)
        elif dtype.kind == "b":
            feeds[value.name] = rng.integers(0, 2, shape).astype(bool)
        else:
            feeds[value.name] = rng.integers(0, 3, shape).astype(dtype)
    return feeds


def assert_same_numbers(
    before: ir.Model,
    after: ir.Model,
    feeds: Mapping[str, npt.NDArray[Any]] | None = None,
    *,
    exact: bool = False,
    rtol: float = 2e-5,
) -> None:
    """Both models compute the same, at two sizes of each dynamic dimension where ``feeds`` are not given.

    Args:
        exact: Demand equal bits; else floats may differ by ``rtol`` of the largest magnitude in the output.
    """
    trials = (
        [dict(feeds)]
        if feeds is not None
        else [random_feeds(before, None, 0), random_feeds(before, _SizeFive(), 1)]
    )
    for trial in trials:
        wanted, got = run(before, trial), run(after, trial)
        assert list(wanted) == list(got), f"outputs changed: {list(wanted)} -> {list(got)}"
        for name, reference in wanted.items():
            result = got[name]
            assert reference.shape == result.shape, (name, reference.shape, result.shape)
            assert reference.dtype == result.dtype, (name, reference.dtype, result.dtype)
            if exact or reference.dtype.kind not in "f":
                np.testing.assert_array_equal(result, reference, err_msg=name)
            else:
                finite = np.isfinite(reference)
                scale = float(np.max(np.abs(reference[finite]), initial=1e-6))
                np.testing.assert_allclose(result, reference, rtol=0, atol=rtol * scale, err_msg=name)


class _SizeFive(dict[str, int]):
    def get(self, key: str, default: Any = None) -> Any:
        del key, default
        return 5


def apply(candidate: object, before: str | ir.Model) -> tuple[ir.Model, RewriteLog]:
    """Run a pass or rewrite on a copy of ``before``; raises what a rewrite raised."""
    model = model_from_text(before) if isinstance(before, str) else before.clone()
    log = RewriteLog()
    tested: Pass = as_pass(candidate)
    tested.run(model, log)
    assert not log.failed, log.failed
    return model, log


def check(
    candidate: object,
    before: str,
    after: str | None = None,
    *,
    feeds: Mapping[str, npt.NDArray[Any]] | None = None,
    exact: bool = False,
    rtol: float = 2e-5,
) -> ir.Model:
    """The pass changes ``before`` (into ``after``, where given) and the numbers agree; returns the result."""
    original = model_from_text(before)
    model, log = apply(candidate, before)
    assert text_of(model) != text_of(original), f"nothing changed; refused: {log.refused}"
    if after is not None:
        assert text_of(model) == text_of(model_from_text(after)), (
            f"got:\n{text_of(model)}\nwanted:\n{text_of(model_from_text(after))}"
        )
    assert [value.name for value in model.graph.outputs] == [value.name for value in original.graph.outputs]
    assert_same_numbers(original, model, feeds, exact=exact, rtol=rtol)
    return model


def check_refuses(candidate: object, before: str, reason: str) -> None:
    """The pass recognises the pattern in ``before``, leaves it, and says ``reason`` (a part of the text)."""
    model, log = apply(candidate, before)
    assert text_of(model) == text_of(model_from_text(before))
    assert any(reason in refusal.reason for refusal in log.refused), log.refused


def check_ignores(candidate: object, before: str) -> None:
    """The pass does not touch ``before``."""
    model, _ = apply(candidate, before)
    assert text_of(model) == text_of(model_from_text(before))
