"""``graphopt tune``: measure the kernels of a model, and keep the fastest for ``compile``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from graphopt.cli._options import common, data_option, input_shape_option, seed_option
from graphopt.errors import UsageError

if TYPE_CHECKING:
    from graphopt.target import TunedKernel, Tuning

_MERGE = "merge"
_MOST_SHOWN = 12


@click.command("tune", short_help="Tune a model's kernels on the machine that will run them.")
@click.argument("model", nargs=-1, required=True)
@click.option("--target", default="tvm-llvm", show_default=True, metavar="T", help="Whose kernels to tune.")
@click.option(
    "--arch", metavar="A", help="What to compile for, as x86-64-v3.  [default: the vectors of this processor]"
)
@click.option(
    "--passes", default="fuse", show_default=True, metavar="P,...", help="What is done first, as for compile.",
)  # fmt: skip
@input_shape_option
@data_option
@click.option(
    "--tune", metavar="EFFORT",
    help="How long, as 10m, or how many kernels to measure, as 2000trials.  [default: all that are worth it]",
)  # fmt: skip
@click.option(
    "--database", type=click.Path(path_type=Path), metavar="DIR",
    help="The folder that keeps what is measured.  [default: one in the cache]",
)  # fmt: skip
@click.option("--tracker", metavar="HOST:PORT", default="", help="TVM's RPC tracker, for a device elsewhere.")
@click.option(
    "--device", metavar="KEY", default="", help="The device's key there, and its name in the database."
)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), metavar="DIR", help="Of merge: the joined database."
)
@seed_option
@common
def command(
    model: tuple[str, ...],
    target: str,
    arch: str | None,
    passes: str,
    input_shapes: tuple[str, ...],
    data: Path | None,
    tune: str | None,
    database: Path | None,
    tracker: str,
    device: str,
    output: Path | None,
    seed: int,
    as_json: bool,
) -> None:
    """Tune the kernels of MODEL; `graphopt compile --target tvm-llvm` then takes what was found.

    The same command again goes on where the last one ended. Ctrl-C ends it; what was measured is kept.

    \b
      graphopt tune model.onnx --tune 10m
      graphopt tune model.onnx --tune 2000trials --database kernels/
      graphopt tune model.onnx --tracker 10.0.0.5:9190 --device rack-7
      graphopt tune merge kernels/ others/ -o all/
    """
    if model[0] == _MERGE:
        _merge([Path(entry) for entry in model[1:]], output, as_json)
        return
    if len(model) > 1 or output is not None:
        raise UsageError(
            "one model at a time, and no output: what is measured goes into the database",
            hint="graphopt tune MODEL --database DIR",
        )
    from graphopt.api import tune as tune_model
    from graphopt.cli._console import Progress, write, write_json
    from graphopt.cli._options import parse_shapes
    from graphopt.report import tuning_as_dict

    shapes = parse_shapes(input_shapes)
    with Progress() as progress:
        found = tune_model(
            Path(model[0]),
            target=target,
            arch=arch,
            passes=passes,
            tune=tune,
            database=database,
            tracker=tracker,
            device=device,
            data=data,
            input_shapes=shapes,
            seed=seed,
            progress=progress,
        )
    if as_json:
        write_json(tuning_as_dict(found))
    else:
        write("\n".join(lines(found)))


def lines(tuning: Tuning) -> list[str]:
    """What tuning came to, as a person reads it."""
    from graphopt.cli._console import bold, dim, good, table
    from graphopt.cli._show import coverage
    from graphopt.words import milliseconds

    shown = [f"{bold('tuned for')}   {tuning.hardware}"]
    shown.append(f"{bold('measured')}    {tuning.trials} trials in {tuning.seconds:.0f} s")
    if not tuning.trials:
        shown.append(
            "            nothing: the first kernels take longer to build, or all are known; give it more time"
        )
    if tuning.before is not None and tuning.estimate is not None:
        ratio = tuning.before / tuning.estimate
        shown.append(
            f"{bold('estimate')}    {milliseconds(1e3 * tuning.before)} -> {milliseconds(1e3 * tuning.estimate)} ms   "
            f"{good(f'{ratio:.2f}x')} by the kernels' times; compile measures the model"
        )
    rest = 1 - tuning.tuned_share - tuning.untuned_share
    shown.append(f"{bold('coverage')}    {coverage(tuning)}, {rest:.0%} in kernels that have nothing to tune")
    shown.append(f"{bold('database')}    {tuning.database}")
    rows = [
        [
            kernel.name,
            str(kernel.count),
            f"{kernel.share:.1%}",
            str(kernel.trials),
            f"{kernel.gain:.2f}x",
            _state(kernel),
        ]
        for kernel in tuning.kernels[:_MOST_SHOWN]
    ]
    if rows:
        shown += ["", table(("kernel", "times", "of the time", "trials", "gained", ""), rows)]
    if len(tuning.kernels) > _MOST_SHOWN:
        shown.append(dim(f"and {len(tuning.kernels) - _MOST_SHOWN} more: --json"))
    return shown


def _state(kernel: TunedKernel) -> str:
    if not kernel.tuned:
        return "untuned"
    return "done" if kernel.finished else "begun"


def _merge(sources: list[Path], output: Path | None, as_json: bool) -> None:
    from graphopt.cli._console import write, write_json
    from graphopt.targets.tvm.tuning.database import merge

    if not sources or output is None:
        raise UsageError(
            "merge needs databases and a place for them joined", hint="graphopt tune merge A B -o ALL"
        )
    counts = merge(sources, output)
    if as_json:
        write_json({"output": str(output), "kernels": counts})
        return
    for what, count in counts.items():
        write(f"{count:6d} kernels   {what}")
    write(f"wrote {output}")
