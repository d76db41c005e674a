"""``graphopt run``: run a bundle or a model file."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from graphopt.cli._options import common, inputs_options, seed_option, threads_option


@click.command("run", short_help="Run a bundle or a model, and show or save its outputs.")
@click.argument("model", type=click.Path(path_type=Path))
@inputs_options
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), metavar="OUT",
    help="Save the outputs: to a .npz file (samples stacked), or to a folder (one .npz for each sample).",
)  # fmt: skip
@threads_option
@seed_option
@common
def command(
    model: Path,
    data: Path | None,
    transform: str | None,
    input_shapes: tuple[str, ...],
    output: Path | None,
    threads: int,
    seed: int,
    as_json: bool,
) -> None:
    """Run MODEL, a bundle or an .onnx file, on real or made-up inputs.

    \b
      graphopt run rec.gopt --data samples.npz -o outputs.npz
    """
    from graphopt.cli._console import Progress, table, write, write_json
    from graphopt.cli._subject import open_subject
    from graphopt.data.functions import transform_of

    made_of = transform_of(transform, data)
    if output is not None:
        check_place(output)
    results: list[Mapping[str, Any]] = []
    with Progress() as progress:
        progress.say(f"loading {model}")
        subject = open_subject(model, input_shapes)
        run = _runner(subject, threads)
        given = None if data is None else subject.samples(data, transform=made_of)
        for feeds in given or [subject.made_up(threads, seed)]:
            results.append(run(feeds))
            progress.say(f"sample {len(results)}")
        if output is not None:
            save(output, results)
    outputs = [_summary(name, value) for name, value in results[0].items()]
    if as_json:
        write_json(
            {
                "model": str(model),
                "samples": len(results),
                "inputs": "made up" if data is None else str(data),
                "outputs": outputs,
                "output": None if output is None else str(output),
            }
        )
        return
    what = (
        "made-up inputs"
        if data is None
        else f"{len(results)} sample{'s' if len(results) > 1 else ''} of {data}"
    )
    write(f"ran {model} on {what}" + ("; of the first sample:" if len(results) > 1 else ""))
    write()
    columns = ("name", "dtype", "shape", "min", "mean", "max")
    rows = [[_cell(entry[column]) for column in columns] for entry in outputs]
    write(table(columns, rows, right=(3, 4, 5)))
    if output is not None:
        write(f"\nwrote {output}")


def _runner(subject: Any, threads: int) -> Any:
    """From inputs to outputs by name, in this process."""
    from graphopt import catalog, runtime

    if subject.manifest is not None:
        return runtime.load(subject.path, threads=threads, check=False).run
    assert (
        subject.graph is not None
    )  # read and checked, so that a file that is no model is answered in our words
    return (
        catalog.runtime("ort-cpu").load(subject.path.parent, {"file": subject.path.name}, threads=threads).run
    )


def check_place(output: Path) -> None:
    """Raise an error where the outputs could not be saved later.

    Raises:
        UsageError: Something is there already that saving would destroy, or there is no such folder.
    """
    from graphopt.cli._place import check_parent
    from graphopt.errors import UsageError

    check_parent(output)
    if output.suffix == ".npz":
        if output.is_dir():
            raise UsageError(f"cannot write {output}: it is a folder", hint="choose another output with -o")
    elif output.suffix in (".npy", ".json", ".txt", ".zip"):
        raise UsageError(
            f"cannot write {output}: several outputs are one .npz file, or a folder with one .npz for each sample",
            hint=f"-o {output.with_suffix('.npz')}",
        )
    elif output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise UsageError(
            f"cannot write {output}: it exists and is no empty folder",
            hint="choose another output with -o, with the suffix .npz for one file",
        )


def save(output: Path, results: Sequence[Mapping[str, Any]]) -> None:
    """Write the outputs, all or nothing.

    Raises:
        DataError: The samples' outputs differ in shape, so that they cannot be stacked in one file.
    """
    import numpy as np

    from graphopt.data.interface import save_feeds
    from graphopt.errors import DataError

    temporary = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=Path(os.path.abspath(output)).parent))
    try:
        if output.suffix == ".npz":
            merged = dict(results[0])
            if len(results) > 1:
                try:
                    merged = {name: np.stack([result[name] for result in results]) for name in merged}
                except ValueError as error:
                    raise DataError(
                        f"the outputs of the {len(results)} samples differ in shape and do not stack in one file",
                        hint=f"save them to a folder: -o {output.with_suffix('')}",
                    ) from error
            save_feeds(temporary / "outputs.npz", merged)
            os.replace(temporary / "outputs.npz", output)
            return
        for index, result in enumerate(results):
            save_feeds(temporary / f"{index:06d}.npz", dict(result))
        temporary.chmod(0o755)
        if output.exists():
            output.rmdir()
        os.replace(temporary, output)
    finally:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(temporary)


def _summary(name: str, value: Any) -> dict[str, Any]:
    import numpy as np

    entry: dict[str, Any] = {"name": name, "dtype": "", "shape": None, "min": None, "mean": None, "max": None}
    if not isinstance(value, np.ndarray):
        return {**entry, "dtype": type(value).__name__}
    entry |= {"dtype": "string" if value.dtype == object else str(value.dtype), "shape": list(value.shape)}
    if value.dtype.kind in "fiub" and value.size:
        wide = value.astype(np.float64)
        entry |= {"min": float(wide.min()), "mean": float(wide.mean()), "max": float(wide.max())}
    return entry


def _cell(value: Any) -> str:
    from graphopt.cli._console import shape

    if value is None:
        return ""
    if isinstance(value, list):
        return shape(value)
    return f"{value:.5g}" if isinstance(value, float) else str(value)
