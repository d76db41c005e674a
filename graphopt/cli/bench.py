"""``graphopt bench``: time bundles and models against each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from graphopt.cli._options import common, inputs_options, seed_option, threads_option

if TYPE_CHECKING:
    from graphopt.cli._subject import Subject
    from graphopt.data.interface import TensorSpec


@click.command("bench", short_help="Time bundles and models against each other.")
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--seconds", type=click.FloatRange(min=0), default=4.0, show_default=True, help="Of timing.")
@inputs_options
@threads_option
@seed_option
@common
def command(
    models: tuple[Path, ...],
    seconds: float,
    data: Path | None,
    transform: str | None,
    input_shapes: tuple[str, ...],
    threads: int,
    seed: int,
    as_json: bool,
) -> None:
    """Time MODELS (bundles and .onnx files with the same inputs), interleaved, each in a process of its own.

    Where one of them fixes sizes that another leaves open, all are timed with those sizes.

    The first .onnx file is the baseline, or the first of all where there is none. The speedup is the median ratio to
    the baseline within a round, with its 95 % interval; where the baseline takes less than a millisecond, it is the
    median over five processes of each. An .onnx file runs in ONNX Runtime with its defaults.

    \b
      graphopt bench rec.gopt rec.onnx
    """
    from graphopt.cli._console import Progress, write_json
    from graphopt.cli._subject import open_subject
    from graphopt.data.functions import transform_of
    from graphopt.errors import UsageError
    from graphopt.tune.paired import time_forms

    if not math.isfinite(seconds):
        raise UsageError(f"--seconds {seconds} is no time", hint="write a number of seconds: --seconds 4")
    made_of = transform_of(transform, data)
    with Progress() as progress:
        progress.say("reading the models")
        subjects = [open_subject(path, input_shapes) for path in models]
        baseline = next((index for index, subject in enumerate(subjects) if subject.manifest is None), 0)
        ordered = [subjects[baseline], *subjects[:baseline], *subjects[baseline + 1 :]]
        specs = common_inputs(ordered)
        progress.say("preparing the inputs")
        feeds = (
            next(iter(ordered[0].samples(data, specs, made_of)))
            if data is not None
            else ordered[0].made_up(threads, seed, specs)
        )
        progress.say("timing")
        forms = [subject.form for subject in ordered]
        timings = time_forms(forms, feeds, threads=threads, seconds=seconds, progress=progress.say)
    result = {
        "baseline": str(ordered[0].path),
        "inputs": "made up" if data is None else str(data),
        "shapes": {name: list(array.shape) for name, array in feeds.items()},
        "threads": threads,
        "warnings": other_outputs(ordered),
        "models": [
            {
                "model": str(subject.path),
                "target": subject.form.target,
                "latency_ms": timing.milliseconds,
                "speedup": timing.speedup,
                "speedup_interval": [timing.low, timing.high],
                "rounds": timing.rounds,
            }
            for subject, timing in zip(ordered, timings, strict=True)
        ],
    }
    if as_json:
        write_json(result)
    else:
        _show(result)


def common_inputs(subjects: Sequence[Subject]) -> tuple[TensorSpec, ...]:
    """The inputs that all of them take, each dimension of the size that any of them fixes.

    Raises:
        UsageError: They have other inputs than the first.
    """
    from graphopt.data.intersection import differences, intersection
    from graphopt.errors import UsageError

    baseline, *others = subjects
    if not others:
        return baseline.inputs
    specs = baseline.inputs
    for other in others:
        names = (str(baseline.path), str(other.path))
        found = differences(specs, other.inputs, names)
        if found:
            raise UsageError(
                f"{names[0]} and {names[1]} have different inputs: {'; '.join(found)}",
                hint="time models with the same inputs against each other",
            )
        specs = intersection(specs, other.inputs)
    return specs


def other_outputs(subjects: Sequence[Subject]) -> list[str]:
    """Warnings of models that give other outputs than the first: they do not do the same work."""
    from graphopt.data.intersection import differences

    baseline, *others = subjects
    found = {
        str(other.path): differences(
            baseline.outputs, other.outputs, (str(baseline.path), str(other.path)), shapes=False
        )
        for other in others
    }
    return [
        f"{path} has other outputs than {baseline.path}, so a ratio says little: {'; '.join(reasons)}"
        for path, reasons in found.items()
        if reasons
    ]


def _show(result: dict[str, Any]) -> None:
    from graphopt.cli._console import bad, bold, shape, table, write
    from graphopt.words import milliseconds

    rows = []
    for index, entry in enumerate(result["models"]):
        is_baseline = index == 0
        low, high = entry["speedup_interval"]
        rows.append(
            [
                entry["model"],
                entry["target"],
                milliseconds(entry["latency_ms"]),
                "baseline" if is_baseline else bold(f"{entry['speedup']:.2f}x"),
                "" if is_baseline else f"{low:.2f} to {high:.2f}",
            ]
        )
    write(table(("model", "target", "ms", "speedup", "95 % interval"), rows, right=(2, 3)))
    shapes = ", ".join(f"{name} {shape(dims)}" for name, dims in result["shapes"].items())
    inputs = "made-up inputs" if result["inputs"] == "made up" else f"inputs of {result['inputs']}"
    for warning in result["warnings"]:
        write(f"\n{bad('warning')}  {warning}")
    write(f"\n{result['models'][0]['rounds']} interleaved rounds; {inputs}: {shapes}")
