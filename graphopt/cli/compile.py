"""``graphopt compile``: optimise, verify, measure, write a bundle."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from graphopt.cli._options import (
    common,
    data_option,
    input_shape_option,
    seed_option,
    threads_option,
    transform_option,
)
from graphopt.errors import UnknownNameError, UsageError

if TYPE_CHECKING:
    from graphopt.api import CompiledModel
    from graphopt.cli._console import Progress

_PATHS = ("output", "data", "repro_dir", "database")


def _config(ctx: click.Context, param: click.Parameter, value: Path | None) -> None:
    """Take the ``[compile]`` table of a TOML file as defaults; options on the command line win."""
    del param
    if value is not None:
        known = {entry.name for entry in ctx.command.params if entry.name} - {
            "model",
            "config",
            "debug",
            "as_json",
        }
        ctx.default_map = {**read_config(value, known), **(ctx.default_map or {})}


def read_config(path: Path, known: set[str]) -> dict[str, Any]:
    """The ``[compile]`` table, its keys as parameter names.

    Args:
        known: Parameter names that may be set.

    Raises:
        UsageError: No such file, no TOML, or no such table.
        UnknownNameError: An unknown key.
    """
    import sys

    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(
            f"cannot read {path}: {error.strerror}", hint="check the path given as --config"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}", hint="correct it at that place") from error
    section = content.get("compile")
    if not isinstance(section, dict):
        raise UsageError(f"{path} has no table [compile]", hint="write the options below a line [compile]")
    values: dict[str, Any] = {}
    shown = {_key(name) for name in known}
    for key, value in section.items():
        name = {"input-shape": "input_shapes"}.get(key.replace("_", "-"), key.replace("-", "_"))
        if name not in known:
            raise UnknownNameError(f"key of [compile] in {path}", key, shown)
        values[name] = _value(name, value, path)
    return values


def _key(name: str) -> str:
    return "input-shape" if name == "input_shapes" else name.replace("_", "-")


def _value(name: str, value: Any, path: Path) -> Any:
    if name == "input_shapes":
        if isinstance(value, dict):
            return [f"{key}:{','.join(map(str, dims))}" for key, dims in value.items()]
        return [value] if isinstance(value, str) else value
    if name == "passes" and isinstance(value, list):
        return ",".join(map(str, value))
    if name in _PATHS:
        if not isinstance(value, str):
            raise UsageError(
                f"{_key(name)!r} in {path} must be a path, not {value!r}", hint="write it in quotes"
            )
        # Relative to the file that says so, not to where the command happens to run.
        return path.parent / value
    if isinstance(value, dict | list):
        raise UsageError(f"{_key(name)!r} in {path} must be a single value, not {value!r}")
    return value


@click.command("compile", short_help="Optimise, verify, measure, and write a bundle.")
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), metavar="OUT",
    help="The bundle to write.  [default: MODELNAME.gopt in this folder]",
)  # fmt: skip
@click.option(
    "--target", default="cpu", show_default=True, metavar="T",
    help="A target, a group, or several as in cpu,tvm-llvm, of which the fastest wins; `graphopt targets` lists them.",
)  # fmt: skip
@click.option(
    "--arch", metavar="A,...",
    help="What tvm-cuda and tvm-llvm compile for, where that is not this machine: sm_80,sm_90 or x86-64-v3.",
)  # fmt: skip
@click.option(
    "--passes", default="fuse", show_default=True, metavar="P,...",
    help="Passes, groups or pipelines with options, as 'fold,fuse{disable=[gelu]}'; `graphopt passes` lists them. "
    "FILE.py:PASS is one of your own.",
)  # fmt: skip
@input_shape_option
@data_option
@click.option(
    "--max-drop",
    metavar="D",
    help="Budget of lossy passes: what the metric may lose, as 1% (the default) or 0.01.",
)
@click.option(
    "--metric", metavar="M",
    help="What the budget is of: sqnr (the default), cosine, top1, ctc, f1, or a function, FILE.py:FUNCTION.",
)  # fmt: skip
@click.option(
    "--synthetic-calibration",
    is_flag=True,
    help="Let lossy passes calibrate on made-up inputs where there is no --data.",
)
@click.option("--best-effort", is_flag=True, help="Write the nearest result where the budget cannot be kept.")
@transform_option
@click.option(
    "--max-memory",
    metavar="SIZE",
    help="What calibration may take beyond the model, as 512M or 2G (the default).",
)
@click.option(
    "--tune", metavar="TIME",
    help="Time for measuring the forms of the model, as 30s or 5m; of tvm-llvm for its kernels, or 2000trials.",
)  # fmt: skip
@click.option(
    "--prefer", type=click.Choice(("speed", "size")), default="speed", show_default=True,
    help="What decides between forms that are no slower than the original.",
)  # fmt: skip
@click.option(
    "--database", type=click.Path(path_type=Path), metavar="DIR",
    help="A folder of kernels that `graphopt tune` has tuned.  [default: one in the cache]",
)  # fmt: skip
@click.option(
    "--device", metavar="KEY", default="", help="Whose tuned kernels to take; this machine's otherwise."
)
@threads_option
@seed_option
@click.option(
    "--config", type=click.Path(path_type=Path), is_eager=True, expose_value=False, callback=_config, metavar="F",
    help="A TOML file whose table [compile] holds these options; those given here win.",
)  # fmt: skip
@click.option(
    "--repro-dir", type=click.Path(path_type=Path), metavar="FOLDER",
    help="Where a minimal repro goes of whatever had to be undone.  [default: graphopt-repro-MODELNAME beside OUT]",
)  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Do everything but write.")
@common
def command(
    model: Path,
    output: Path | None,
    target: str,
    arch: str | None,
    passes: str,
    input_shapes: tuple[str, ...],
    data: Path | None,
    max_drop: str | None,
    metric: str | None,
    synthetic_calibration: bool,
    best_effort: bool,
    transform: str | None,
    max_memory: str | None,
    tune: str | None,
    prefer: str,
    database: Path | None,
    device: str,
    threads: int,
    seed: int,
    repro_dir: Path | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Compile MODEL (.onnx or .pt2): optimise it, verify it against the original, write its fastest verified form.

    \b
      graphopt compile model.onnx
      graphopt compile model.onnx --input-shape x:1,3,224,224 --data samples.npz
      graphopt compile model.onnx --passes 'fold,fuse{disable=[gelu]}' -o small.gopt
    """
    from graphopt import artifact
    from graphopt.api import compile as compile_model
    from graphopt.cli._console import Progress, write, write_json
    from graphopt.cli._options import parse_shapes
    from graphopt.cli._show import lines

    shapes = parse_shapes(input_shapes)
    place = output if output is not None else Path(f"{model.stem}{artifact.SUFFIX}")
    if not dry_run:
        artifact.check_writable(place)
        if repro_dir is None:
            repro_dir = place.parent / f"graphopt-repro-{model.stem}"
        if repro_dir.exists() and not repro_dir.is_dir():
            raise UsageError(f"{repro_dir} is no folder", hint="name another with --repro-dir")
    with Progress() as progress:
        compiled = compile_model(
            model,
            target=target,
            arch=arch,
            passes=passes,
            data=data,
            max_drop=max_drop,
            metric=metric,
            synthetic_calibration=synthetic_calibration,
            best_effort=best_effort,
            transform=transform,
            max_memory=max_memory,
            tune=tune,
            prefer=prefer,
            database=database,
            device=device,
            input_shapes=shapes,
            seed=seed,
            threads=threads,
            repro_dir=repro_dir,
            progress=progress,
        )
        progress.stage("write", "verifying the bundle as written")
        _save(compiled, place, dry_run, progress)
    if as_json:
        write_json(compiled.report.as_dict())
    else:
        write("\n".join(lines(compiled.report)))


def _save(compiled: CompiledModel, place: Path, dry_run: bool, progress: Progress) -> None:
    """Write the bundle; in a dry run somewhere else, where it is verified just the same and thrown away."""
    if not dry_run:
        compiled.save(place)
        return
    progress.stage("dry run", "verifying the bundle that would be written")
    with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
        compiled.save(Path(folder) / place.name)
    compiled.report.output = None
