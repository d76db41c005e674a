"""``graphopt simplify``: from a model file to a simpler one."""

from __future__ import annotations

from pathlib import Path

import click

from graphopt.cli._options import common, inputs_options, seed_option


@click.command("simplify", short_help="Simplify a model into an .onnx file for any runtime.")
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), metavar="OUT",
    help="The .onnx file to write.  [default: MODELNAME.simplified.onnx in this folder]",
)  # fmt: skip
@click.option(
    "--passes", default="fold", show_default=True, metavar="P,...",
    help="Passes, groups or pipelines, without lossy ones; fold,fuse brings in newer operators.",
)  # fmt: skip
@click.option(
    "--opset", type=click.IntRange(1), metavar="N",
    help="The opset to write.  [default: the oldest from the model's own on that takes the result]",
)  # fmt: skip
@inputs_options
@seed_option
@click.option(
    "--repro-dir", type=click.Path(path_type=Path), metavar="FOLDER",
    help="Where a minimal repro goes of whatever had to be undone.",
)  # fmt: skip
@common
def command(
    model: Path,
    output: Path | None,
    passes: str,
    opset: int | None,
    data: Path | None,
    transform: str | None,
    input_shapes: tuple[str, ...],
    seed: int,
    repro_dir: Path | None,
    as_json: bool,
) -> None:
    """Simplify MODEL (.onnx or .pt2) into one .onnx file of ONNX's operators, for any runtime.

    Each pass is verified, and so is the file as written. Nothing is timed, and nothing is for one backend: that is what
    compile does.

    \b
      graphopt simplify model.onnx -o small.onnx
      graphopt simplify model.onnx --input-shape x:1,3,224,224 --passes fold,fuse --opset 17
    """
    from graphopt.api import simplify
    from graphopt.cli._console import Progress, write, write_json
    from graphopt.cli._options import parse_shapes
    from graphopt.cli._place import check_parent
    from graphopt.cli._show import simplified_lines
    from graphopt.simplified import check_place

    shapes = parse_shapes(input_shapes)
    place = output if output is not None else Path(f"{model.stem}.simplified.onnx")
    check_place(place)
    check_parent(place)
    with Progress() as progress:
        simplified = simplify(
            model, passes=passes, opset=opset, data=data, transform=transform, input_shapes=shapes, seed=seed,
            repro_dir=repro_dir, progress=progress,
        )  # fmt: skip
        progress.stage("write", "verifying the file as written")
        simplified.save(place)
    if as_json:
        write_json(simplified.report.as_dict())
    else:
        write("\n".join(simplified_lines(simplified.report)))
