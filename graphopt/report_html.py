"""The report as one HTML page that needs nothing else: no script, no network, light and dark."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt._version import __version__
from graphopt.pipeline.record import PassRecord, PassStatus
from graphopt.report import FormTiming, Report, decided
from graphopt.rewrite import Numerics
from graphopt.words import milliseconds, size

if TYPE_CHECKING:
    import jinja2

TEMPLATE = Path(__file__).parent / "report.html.jinja"
_STATUS_CLASS = {
    PassStatus.APPLIED: "good",
    PassStatus.NOTHING: "quiet",
    PassStatus.PARTLY_UNDONE: "bad",
    PassStatus.UNDONE: "bad",
    PassStatus.LEFT_OUT: "bad",
}


def render(report: Report) -> str:
    """The page.

    Args:
        report: Of a finished compilation; anything in it that came from the model is escaped.
    """
    return _template().render(
        report=report,
        version=__version__,
        speed=_speed(report),
        ops=_ops(report),
        forms=_forms(report.forms, report.chosen),
        status_class=_STATUS_CLASS,
        stages=_shares(report.stages),
        lossy=[record for record in report.passes if record.numerics is Numerics.LOSSY and record.details],
        undone=[record for record in report.passes if record.undone],
    )


@lru_cache
def _template() -> jinja2.Template:
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "decided": decided, "size": size, "ms": milliseconds, "error": _error, "numbers": _numbers, "change": _change,
    }  # fmt: skip
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8"))


def _speed(report: Report) -> dict[str, Any] | None:
    """Latencies of the original and of the chosen form; None where nothing was timed."""
    baseline, optimized = report.baseline, report.optimized
    if (
        baseline is None
        or optimized is None
        or baseline.milliseconds is None
        or optimized.milliseconds is None
    ):
        return None
    return {
        "before": baseline.milliseconds,
        "after": optimized.milliseconds,
        "ratio": optimized.speedup,
        "low": optimized.low,
        "high": optimized.high,
        "rounds": optimized.rounds,
        "unchanged": optimized is baseline,
    }


def _ops(report: Report) -> list[dict[str, Any]]:
    """Every operator with its number before and after; those that changed most come first."""
    before, after = report.ops_before, report.ops_after
    most = max([*before.values(), *after.values(), 1])
    rows = [
        {
            "name": name,
            "before": before.get(name, 0),
            "after": after.get(name, 0),
            "before_share": 100 * before.get(name, 0) / most,
            "after_share": 100 * after.get(name, 0) / most,
        }
        for name in {*before, *after}
    ]
    return sorted(rows, key=lambda row: (-abs(row["before"] - row["after"]), -row["before"], row["name"]))


def _forms(forms: Sequence[FormTiming], chosen: str) -> list[dict[str, Any]]:
    """Each form with the place of its interval on a common scale, in percent from the left."""
    reach = max([1.0, *(form.high for form in forms if form.high is not None)]) * 1.04

    def place(value: float | None) -> float | None:
        return None if value is None else round(100 * value / reach, 2)

    return [
        {
            "form": form,
            "chosen": form.label == chosen,
            "low": place(form.low),
            "high": place(form.high),
            "at": place(form.speedup),
            "one": place(1.0),
        }
        for form in forms
    ]


def _shares(stages: dict[str, float]) -> list[tuple[str, float, float]]:
    total = sum(stages.values()) or 1.0
    return [(name, seconds, 100 * seconds / total) for name, seconds in stages.items()]


def _error(value: float | None) -> str:
    if value is None:
        return "not measured"
    return "0" if value == 0 else f"{value:.1e}"


def _numbers(record: PassRecord) -> str:
    if record.error is None:
        return record.numerics.value
    error = f"{_error(record.error)}, floor {_error(record.noise_floor)}"
    return ("bit-identical" if record.identical else error) + (", all passes" if record.together else "")


def _change(pair: tuple[int, int]) -> str:
    before, after = pair
    return "" if not before or before == after else f"{(after / before - 1) * 100:+.1f} %"
