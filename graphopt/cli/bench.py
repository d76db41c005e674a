"""``graphopt bench``: time bundles and models against each other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from graphopt.cli._options import common, data_option, seed_option, threads_option

if TYPE_CHECKING:
    from graphopt.cli._subject import Subject


@click.command("bench", short_help="Time bundles and models against each other.")
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--seconds", type=click.FloatRange(min=0), default=4.0, show_default=True, help="Of timing.")
@data_option
@threads_option
@seed_option
@common
def command(
    models: tuple[Path, ...], seconds: float, data: Path | None, threads: int, seed: int, as_json: bool
) -> None:
    """Time MODELS (bundles and .onnx files with the same inputs), interleaved, each in a process of its own.

    The first .onnx file is the baseline, or the first of all where there is none. The speedup is the median ratio to
    the baseline within a round, with its 95 % interval. An .onnx file runs in ONNX Runtime with its defaults.

    \b
      graphopt bench rec.gopt rec.onnx
    """
    from graphopt.cli._console import Progress, write_json
    from graphopt.cli._subject import open_subject
    from graphopt.tune.paired import Bench

    with Progress() as progress:
        progress.say("reading the models")
        subjects = [open_subject(path) for path in models]
        baseline = next((index for index, subject in enumerate(subjects) if subject.manifest is None), 0)
        ordered = [subjects[baseline], *subjects[:baseline], *subjects[baseline + 1 :]]
        for subject in ordered[1:]:
            _check_same_inputs(ordered[0], subject)
        progress.say("preparing the inputs")
        feeds = (
            next(iter(ordered[0].samples(data))) if data is not None else ordered[0].made_up(threads, seed)
        )
        progress.say("timing")
        with Bench(feeds, threads=threads, most_loaded=len(ordered)) as bench:
            timings = bench.time(
                [subject.form for subject in ordered], seconds=seconds, progress=progress.say
            )
    result = {
        "baseline": str(ordered[0].path),
        "inputs": "made up" if data is None else str(data),
        "shapes": {name: list(array.shape) for name, array in feeds.items()},
        "threads": threads,
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


def _check_same_inputs(baseline: Subject, other: Subject) -> None:
    from graphopt.errors import UsageError

    wanted = {spec.name: spec.dtype for spec in baseline.inputs if spec.name not in baseline.optional}
    got = {spec.name: spec.dtype for spec in other.inputs if spec.name not in other.optional}
    if wanted != got:
        shown = [", ".join(map(str, subject.inputs)) for subject in (baseline, other)]
        raise UsageError(
            f"{baseline.path} and {other.path} have different inputs: ({shown[0]}) and ({shown[1]})",
            hint="time models with the same inputs against each other",
        )


def _show(result: dict[str, Any]) -> None:
    from graphopt.cli._console import bold, milliseconds, table, write

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
    shapes = ", ".join(f"{name} [{','.join(map(str, dims))}]" for name, dims in result["shapes"].items())
    write(f"\n{result['models'][0]['rounds']} interleaved rounds; {result['inputs']} inputs: {shapes}")
