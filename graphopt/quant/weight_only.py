"""Which weights are written in blocks: those that save most bytes for the noise they add, within the budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx_ir as ir

from graphopt.ir import facts
from graphopt.ir.facts import Array
from graphopt.quant.blocks import BlockForms, Scheme, layers_of, weight_slot
from graphopt.quant.layers import Choice, Found, Setting, choose, judge, noise_of_forms, refusals, replaced
from graphopt.verify.budget import judged_of

MAKER = "quantize-weights"
ACCURACY_LEVEL = "graphopt.accuracy_level"
"""In the metadata of a product: how precisely ONNX Runtime takes its activations (1 float32, 4 int8)."""
_SWEEP_SAMPLES = 2


def scheme_of(bits: int, block: int = 0, symmetric: bool | None = None) -> Scheme:
    """A scheme with what is left open filled in: blocks of 128 with 8 bits, of 32 with zero points with 4."""
    return Scheme(bits, block or (128 if bits == 8 else 32), bits == 8 if symmetric is None else symmetric)


def find(
    model: ir.Model,
    setting: Setting,
    scheme: Scheme,
    *,
    moments: Callable[[Sequence[ir.Node]], Mapping[str, Array]] = lambda nodes: {},
    accuracy_level: int = 4,
    allowed: Callable[[ir.Node], str] = lambda node: "",
) -> Found:
    """As many weights in blocks as the budget allows.

    Args:
        moments: Of the inputs of products, for GPTQ; products without are rounded to nearest.
        allowed: Why the weight of a node is to stay as it is; empty where it need not.
    """
    nodes, refused = layers_of(model)
    refused.update({node.name or "": reason for node in nodes if (reason := allowed(node))})
    nodes = [node for node in nodes if node.name not in refused]
    if not nodes:
        return Found(details={"layers": refusals(refused)}, reason=_why_none(refused))
    form = BlockForms(scheme, moments(nodes), {ACCURACY_LEVEL: str(accuracy_level)})
    gains: dict[str, float] = {}
    for index, node in enumerate(nodes):
        setting.progress(f"rounding weight {index + 1} of {len(nodes)}")
        gains[node.name or ""] = max(facts.constant_nbytes(_weight(node)) - form.nbytes(node), 1)

    def built(names: frozenset[str]) -> ir.Model:
        return replaced(model, {name: form for name in names}, MAKER)

    choice = choose(
        gains,
        lambda names: judge(built(names), setting),
        lambda until: noise_of_forms(
            model, {name: form for name in gains}, setting.evaluation.feeds[:_SWEEP_SAMPLES],
            threads=setting.threads, deadline=until, progress=setting.progress,
        ),
        deadline=setting.deadline,
        limit=setting.limit,
        progress=setting.progress,
    )  # fmt: skip
    point = choice.best or choice.nearest
    kept = len(nodes) - len(point.chosen)
    label = f"{scheme.bits}-bit weights" + (f", {kept} kept float" if kept else "")
    details = _details(nodes, form, choice, refused)
    if choice.best is None:
        reason = f"no choice of layers is within the budget; the nearest: {point.judgement.describe()}"
        return Found(
            label, nearest=built(point.chosen), judgement=point.judgement, details=details, reason=reason
        )
    return Found(label, built(point.chosen), judgement=point.judgement, details=details)


def _weight(node: ir.Node) -> ir.Value:
    weight = node.inputs[weight_slot(node)]
    assert weight is not None
    return weight


def _details(
    nodes: Sequence[ir.Node], form: BlockForms, choice: Choice, refused: Mapping[str, str]
) -> dict[str, Any]:
    chosen: frozenset[str] = frozenset() if choice.best is None else choice.best.chosen
    layers: list[dict[str, Any]] = []
    for node in nodes:
        inside = node.name in chosen
        layers.append(
            {
                "node": node.name,
                "op": node.op_type,
                "precision": f"{form.scheme.bits}-bit weight" if inside else "float32",
                "reason": "" if inside else "its noise would break the budget",
                "rounding": "gptq" if node.name in form.moments else "nearest",
                "bytes": facts.constant_nbytes(_weight(node)),
                "bytes_in_blocks": form.nbytes(node),
                "noise": choice.noise.get(node.name or ""),
            }
        )
    return {
        "scheme": form.scheme.describe,
        "layers": layers + refusals(refused),
        "judged": [
            {
                "label": f"{len(point.chosen)} of {len(nodes)} weights",
                "layers": len(point.chosen),
                "bytes_saved": int(point.gain),
                **judged_of(point.judgement),
            }
            for point in choice.points
        ],
    }


def _why_none(refused: Mapping[str, str]) -> str:
    if not refused:
        return "it holds no MatMul, Gemm or table with a large constant weight"
    name, reason = next(iter(refused.items()))
    return f"no weight can be written in blocks; {name!r}: {reason}"
