"""float32 graph  ==>  float16 or bfloat16 where the target has kernels, the numbers fit and the budget allows.

What overflows is found by running samples: the largest magnitude of each tensor is measured, and a node stays in
float32 where one of its tensors comes within a factor of two of 65504, where a constant does not fit, or where sums
inside it may overflow although its result does not (Micikevicius et al., Mixed Precision Training, ICLR 2018, keeps
reductions in float32 likewise).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.data.interface import Feeds
from graphopt.quant.half_graph import converted
from graphopt.quant.half_plan import HEAVY, Plan, magnitudes_of, plan_of, without_islands
from graphopt.quant.layers import Beside, Choice, Found, Setting, choose, judge, noise_of_forms
from graphopt.verify.budget import judged_of

TYPES: Mapping[str, ir.DataType] = {"float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16}
"""By the names that options use."""
_HEAVY_GAIN = 20.0
_SWEEP_SAMPLES = 2


def find(
    model: ir.Model,
    setting: Setting,
    operators: frozenset[str],
    data: Iterable[Feeds],
    *,
    dtype: ir.DataType = ir.DataType.FLOAT16,
    keep_io: bool = True,
    allowed: Callable[[ir.Node], str] = lambda node: "",
) -> Found:
    """As much of a graph in half precision as the budget allows.

    Args:
        operators: That the target has kernels for.
        data: Samples whose largest magnitudes are measured.
        keep_io: Whether inputs and outputs keep their types.
        allowed: Why a node is to stay in float32; empty where it need not.
    """
    setting.progress("largest magnitudes")
    magnitudes = magnitudes_of(model, data, threads=setting.threads)
    plan = plan_of(model, operators, magnitudes, dtype, allowed)
    name = dtype.name.lower()
    by_name = {node.name or "": node for node in model.graph}
    if not plan.chosen:
        return Found(
            details=_details(by_name, plan, frozenset(), Choice(), magnitudes, name),
            reason=_why_none(plan, name),
        )
    gains = {entry: _HEAVY_GAIN if by_name[entry].op_type in HEAVY else 1.0 for entry in plan.chosen}

    def noise(until: float) -> Mapping[str, float]:
        return noise_of_forms(
            model, dict.fromkeys(gains, _Rounded(dtype)), setting.evaluation.feeds[:_SWEEP_SAMPLES],
            threads=setting.threads, deadline=until, progress=setting.progress,
        )  # fmt: skip

    choice = choose(
        gains,
        lambda names: judge(converted(model, names, dtype, magnitudes, emulate=True), setting),
        noise,
        deadline=setting.deadline,
        limit=setting.limit,
        progress=setting.progress,
    )
    point = choice.best or choice.nearest
    held = without_islands(model, point.chosen) if choice.best is not None else frozenset[str]()
    result = converted(model, point.chosen, dtype, magnitudes, keep_io=keep_io)
    details = _details(by_name, plan, held, choice, magnitudes, name)
    kept = len(plan.reasons) + len(plan.chosen) - len(without_islands(model, point.chosen))
    label = f"{name}, {kept} kept float32" if kept else name
    if choice.best is None:
        reason = (
            f"no mix of {name} and float32 is within the budget; the nearest: {point.judgement.describe()}"
        )
        return Found(label, nearest=result, judgement=point.judgement, details=details, reason=reason)
    return Found(label, result, judgement=point.judgement, details=details)


class _Rounded:
    """The form of a node whose results are rounded to half precision."""

    def __init__(self, dtype: ir.DataType) -> None:
        self._dtype = dtype

    def __call__(self, node: ir.Node, build: Beside) -> list[ir.Value | None]:
        """Each float32 output, rounded."""
        found: list[ir.Value | None] = []
        for output in node.outputs:
            if output.dtype != ir.DataType.FLOAT or not output.name:
                found.append(None)
                continue
            half = build.op("Cast", output, like=output, dtype=self._dtype, to=self._dtype.value)
            found.append(build.op("Cast", half, like=output, to=ir.DataType.FLOAT.value))
        return found


def _details(
    nodes: Mapping[str, ir.Node], plan: Plan, held: frozenset[str], choice: Choice,
    magnitudes: Mapping[str, float], name: str,
) -> dict[str, Any]:  # fmt: skip
    layers: list[dict[str, Any]] = []
    for entry in (*plan.chosen, *plan.reasons):
        node = nodes[entry]
        largest = max((magnitudes.get(value.name or "", 0.0) for value in node.outputs), default=0.0)
        layers.append(
            {
                "node": entry,
                "op": node.op_type,
                "precision": name if entry in held else "float32",
                "reason": ""
                if entry in held
                else plan.reasons.get(entry, "its noise would break the budget"),
                "largest": largest if np.isfinite(largest) else None,
                "noise": choice.noise.get(entry),
            }
        )
    order = {name: index for index, name in enumerate(nodes)}
    return {
        "layers": sorted(layers, key=lambda layer: order[layer["node"]]),
        "judged": [
            {
                "label": f"{len(point.chosen)} layers",
                "layers": len(point.chosen),
                **judged_of(point.judgement),
            }
            for point in choice.points
        ],
        "judged_on": "an emulation in float32 that rounds each tensor, on ONNX Runtime's CPU provider",
    }


def _why_none(plan: Plan, name: str) -> str:
    if not plan.reasons:
        return "it holds no node that computes in float32"
    entry, reason = next(iter(plan.reasons.items()))
    return f"no node can compute in {name}; {entry!r}: {reason}"
