"""The report of a compilation: one object, printed by the command line, written as JSON and HTML."""

from __future__ import annotations

import dataclasses
import enum
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from graphopt.pipeline.record import PassRecord
from graphopt.target import Tuning
from graphopt.verify.budget import Judgement, percent
from graphopt.verify.compare import Comparison
from graphopt.verify.evaluation import Evaluation
from graphopt.words import size

Details = Mapping[str, Any]
_PRODUCTS = ("Conv", "ConvTranspose", "MatMul", "Gemm", "")
_PARTS = ("dynamic", "weights")
"""Where a lossy pass says what a second way of its came to."""
COMPILED_NOT_RUN = "compiled, not run"
"""How a result is told that this machine does not run."""


class Verdict(str, enum.Enum):
    """What is known of a result; also a plain string, as JSON holds it."""

    VERIFIED = "verified"
    NOT_VERIFIED = "not verified"
    OVER_BUDGET = "over the budget"
    NOT_RUN = "verified, not run on the target"
    """Of a target that the machine lacks: something else was run in its place."""
    NOT_COMPARED = "not compared"
    """No output holds a finite number."""

    def __str__(self) -> str:
        return self.value


@dataclass
class FormTiming:
    """One measured form.

    Attributes:
        label: Of the form.
        milliseconds: Of a run; as :class:`graphopt.tune.paired.Timing` has it.
        speedup, low, high: Ratio to the original, with its 95 % interval.
        rounds: Interleaved rounds.
        verified: Whether its outputs held; an unverified form is never chosen.
        note: Why it was not chosen, where that needs words.
        size: Bytes of its files.
        original: Whether it is the model as it came.
    """

    label: str
    milliseconds: float | None = None
    speedup: float | None = None
    low: float | None = None
    high: float | None = None
    rounds: int = 0
    verified: bool = False
    note: str = ""
    size: int | None = None
    original: bool = False


@dataclass
class KnobTiming:
    """A setting of the target (threads, denormals, ...) that was tried on a form.

    Attributes:
        label: Of the form with it.
        beside: Label of the form that it was measured against.
        speedup, low, high: Ratio to that form, with its 95 % interval.
        rounds: Interleaved rounds.
        taken: Whether the bundle has it.
    """

    label: str
    beside: str
    speedup: float
    low: float
    high: float
    rounds: int
    taken: bool = False


@dataclass
class Verification:
    """Evidence that the result computes what the original does.

    Attributes:
        status: What is known of the result.
        metric: What ``value`` is.
        value: Of the saved bundle, reloaded from disk.
        noise_floor: On the same scale.
        trials: Number of input sets, and their sizes.
        synthetic: Whether all inputs were made up.
        random_outputs: Outputs that are random in the original and were not compared.
        by: What was run in place of a result that does not run on this machine; "" where that is the graph.
    """

    status: Verdict = Verdict.NOT_VERIFIED
    metric: str = "largest error relative to the largest value"
    value: float | None = None
    noise_floor: float | None = None
    trials: list[Mapping[str, int]] = field(default_factory=list)
    synthetic: bool = True
    random_outputs: tuple[str, ...] = ()
    describe: str = ""
    by: str = ""
    budget: dict[str, Any] | None = None
    """Of a lossy result: the metric, its value, the original's, the drop, what is allowed, and decibels."""

    def judge(self, judgement: Judgement, evaluation: Evaluation, *, calibrated: bool = True) -> None:
        """Take over what a lossy form scores against its budget.

        Args:
            calibrated: Whether some of the samples may have been seen by calibration.
        """
        metric = evaluation.metric.name
        self.status = Verdict.VERIFIED if judgement.ok else Verdict.OVER_BUDGET
        self.metric, self.value, self.noise_floor = metric, judgement.value, None
        self.describe = judgement.describe()
        self.budget = {
            "metric": metric,
            "value": judgement.value,
            "original": judgement.original,
            "drop": judgement.drop,
            "allowed": judgement.allowed,
            "decibels": judgement.decibels,
            "samples": len(evaluation.feeds),
            "available": evaluation.available or len(evaluation.feeds),
            "held_out": evaluation.held_out if calibrated else None,
        }

    def enter(self, comparison: Comparison | None) -> None:
        """Take over the outcome of comparing the chosen form, before it is saved and compared again."""
        if comparison is None:
            return
        self.status = Verdict.VERIFIED if comparison.ok else Verdict.NOT_VERIFIED
        self.value = comparison.relative_error if comparison.ok else None
        self.noise_floor, self.describe = comparison.noise_floor, comparison.describe()


@dataclass
class Report:
    """Everything that happened between the model and the bundle."""

    name: str
    source: str
    source_opset: int | None
    opset: int
    target: str
    nodes_before: int = 0
    nodes_captured: int = 0
    nodes_after: int = 0
    ops_before: dict[str, int] = field(default_factory=dict)
    ops_after: dict[str, int] = field(default_factory=dict)
    size_before: int = 0
    size_after: int = 0
    passes: list[PassRecord] = field(default_factory=list)
    verification: Verification = field(default_factory=Verification)
    forms: list[FormTiming] = field(default_factory=list)
    knobs: list[KnobTiming] = field(default_factory=list)
    timed_on: dict[str, tuple[int, ...]] = field(default_factory=dict)
    chosen: str = ""
    threads: int = 0
    prefer: str = "speed"
    seconds: float = 0.0
    stages: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    tuning: Tuning | None = None
    output: str | None = None

    def compared(self, comparison: Comparison | None) -> None:
        """Take over how the result compares with the original; None where it was judged by a budget, or did not run."""
        self.verification.enter(comparison)
        if comparison is not None and comparison.not_taken:
            self.warnings.append(
                "the result fails with sizes that the data do not have, where the original does not "
                f"({comparison.not_taken}): verified for the sizes of the data"
            )

    @property
    def baseline(self) -> FormTiming | None:
        """The original's timing, the first."""
        return next((form for form in self.forms[:1] if form.original), None)

    @property
    def optimized(self) -> FormTiming | None:
        """The chosen form's timing."""
        return next((form for form in self.forms if form.label == self.chosen), None)

    @property
    def keeps_original(self) -> bool:
        """Whether the original is what was chosen."""
        return self.baseline is not None and self.baseline is self.optimized

    @property
    def speedup(self) -> float | None:
        """Ratio of the original's time to the result's; None where nothing was timed."""
        return None if self.optimized is None else self.optimized.speedup

    def as_dict(self) -> dict[str, Any]:
        """The object that ``--json`` prints."""
        baseline, optimized = self.baseline, self.optimized
        return {
            "name": self.name,
            "source": self.source,
            "source_opset": self.source_opset,
            "opset": self.opset,
            "output": self.output,
            "target": self.target,
            "tuning": None if self.tuning is None else tuning_as_dict(self.tuning),
            "baseline": {"latency_ms": None if baseline is None else baseline.milliseconds},
            "optimized": {
                "latency_ms": None if optimized is None else optimized.milliseconds,
                "form": self.chosen,
            },
            "speedup": self.speedup,
            "speedup_interval": None if optimized is None else [optimized.low, optimized.high],
            "verify": {
                "status": self.verification.status.value,
                "metric": self.verification.metric,
                "value": self.verification.value,
                "noise_floor": self.verification.noise_floor,
                "synthetic": self.verification.synthetic,
                "trials": [dict(sizes) for sizes in self.verification.trials],
                "random_outputs": list(self.verification.random_outputs),
                "by": self.verification.by,
                "budget": self.verification.budget,
            },
            "passes": [record.as_dict() for record in self.passes],
            "nodes": {"before": self.nodes_before, "after": self.nodes_after},
            "ops": {"before": self.ops_before, "after": self.ops_after},
            "size": {"before": self.size_before, "after": self.size_after},
            "forms": [vars(form) for form in self.forms],
            "knobs": [vars(knob) for knob in self.knobs],
            "timed_on": {name: list(shape) for name, shape in self.timed_on.items()},
            "threads": self.threads,
            "prefer": self.prefer,
            "seconds": round(self.seconds, 3),
            "stages": {name: round(seconds, 3) for name, seconds in self.stages.items()},
            "warnings": list(self.warnings),
        }


def tuning_as_dict(tuning: Tuning) -> dict[str, Any]:
    """As ``--json`` prints it; times in milliseconds."""
    found = dataclasses.asdict(tuning)
    for name in ("before", "estimate"):
        seconds = found.pop(name)
        found[f"{name}_ms"] = None if seconds is None else 1e3 * seconds
    return {**found, "coverage": {"tuned": tuning.tuned_share, "untuned": tuning.untuned_share}}


def decided(details: Details) -> str:
    """What a lossy pass decided, in a line: how much of a graph went to lower precision, or away, and what of the
    budget that takes.

    Args:
        details: Of its record.
    """
    text = next((words(details) for key, words in _WORDS.items() if key in details), None)
    text = _lowered(details) if text is None else text
    target = details.get("target", "")
    text = " · ".join(filter(None, (text, f"for {target}" if target and not text else target)))
    lost = _lost(details)
    return f"{text}   {lost}" if lost else text


def _lowered(details: Details) -> str:
    products = [layer for layer in details.get("layers", []) if layer.get("op") in _PRODUCTS]
    lowered = [layer for layer in products if layer.get("precision") not in (None, "float32")]
    if not products:
        return ""
    kept = len(products) - len(lowered)
    names = sorted({str(layer["precision"]) for layer in lowered}) or ["int8"]
    text = f"{len(lowered)} of {len(products)} layers to {' and '.join(names)}"
    return f"{text}, {kept} kept float" if kept else text


def _pruned(details: Details) -> str:
    layers: list[dict[str, Any]] = details["pruned"]
    if details.get("macs_left") is None:
        return f"none of {len(layers)} layers"
    narrower = sum(layer["channels"][1] < layer["channels"][0] for layer in layers)
    gone = 1 - details["macs_left"]
    return f"{gone:.0%} of the multiplications gone, {narrower} of {len(layers)} layers narrower"


def _factored(details: Details) -> str:
    layers: list[dict[str, Any]] = details["factored"]
    if details.get("macs_left") is None:
        return f"none of {len(layers)} layers"
    lower = sum(layer["rank"] is not None and layer["rank"][1] < layer["rank"][0] for layer in layers)
    gone = 1 - details["macs_left"]
    return f"{gone:.0%} of the multiplications gone, {lower} of {len(layers)} layers in two products"


def _sparsified(details: Details) -> str:
    layers: list[dict[str, Any]] = details["sparsified"]
    if details.get("zeros") is None:
        return f"none of {len(layers)} layers"
    given = sum(bool(layer["criterion"]) for layer in layers)
    sizes = details["size"]
    change = sizes["deflated"] / max(sizes["deflated_before"], 1)
    return (
        f"zeros in {given} of {len(layers)} layers, {details['zeros']:.0%} of their weights, which deflate to "
        f"{change:.0%} of what they did"
    )


def _distilled(details: Details) -> str:
    told = details["distilled"]
    before, after = told["loss"]
    share = f", loss {after / before:.0%} of what it was" if before else ""
    known = [f"{noise:.1f} dB" for noise in told["decibels"] if noise is not None]
    noise = f", {known[0]}, then {known[1]}" if len(known) == 2 else ""
    return f"{told['steps']} steps on {told['samples']} samples{share}{noise}"


def _stored(details: Details) -> str:
    before, after = details["bytes"]
    counts = Counter(constant["bits"] for constant in details["stored"])
    parts = " and ".join(f"{count} in {bits} bits" for bits, count in sorted(counts.items()))
    return f"constants: {parts}, widened on load: {size(after)} in place of {size(before)}"


_WORDS: Mapping[str, Callable[[Details], str]] = {
    "pruned": _pruned,
    "factored": _factored,
    "sparsified": _sparsified,
    "distilled": _distilled,
    "stored": _stored,
}
"""By what the details hold."""


def _lost(details: Details) -> str:
    """What of the budget the fastest form takes that was judged to hold; empty where none did."""
    judged = details.get("tried") or details.get("judged") or details.get("pareto") or []
    held = [point for point in judged if point["held"] and point["drop"] is not None]
    if not held or "allowed" not in details:
        return ""
    best = min(held, key=lambda point: point.get("macs_left", point.get("predicted_ms")) or 0.0)
    return f"drop {percent(best['drop'])} of {percent(details['allowed'])}"


def decided_layers(details: Details) -> list[dict[str, Any]]:
    """What was decided of each layer, in the order of the graph, by whichever way of the pass."""
    rows = next((details[key] for key in ("pruned", "factored", "sparsified") if key in details), None)
    found: list[dict[str, Any]] = list(details.get("layers", []) if rows is None else rows)
    for part in _PARTS:
        inner = details.get(part)
        if isinstance(inner, Mapping):
            found += inner.get("layers", [])
    return found
