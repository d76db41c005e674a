"""Published PyTorch models in each form that is taken, with dynamic dimensions, against PyTorch itself."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import graphopt
from graphopt import zoo
from graphopt.capture import Captured, capture
from graphopt.capture.torch_model import quiet
from graphopt.models import builders
from graphopt.testing import run

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

NAMES = ("crepe-tiny", "ge2e", "minilm")
FORMS = ("module", "fx", "program's module", "program", "pt2")
pytestmark = pytest.mark.zoo


@pytest.fixture(scope="module", params=NAMES)
def real(request: pytest.FixtureRequest) -> tuple[str, Any, tuple[Any, ...]]:
    """Name, module and example inputs."""
    if request.param == "minilm":
        pytest.importorskip("transformers")
    recipe = zoo.recipe(request.param)
    zoo.fetch(request.param)
    torch.manual_seed(0)
    module, examples = builders.BUILDERS[recipe.builder](zoo._members(recipe), recipe.input_shapes)
    return request.param, module.eval(), examples


def dynamic(module: Any, examples: tuple[Any, ...]) -> dict[str, Any]:
    batch = torch.export.Dim("batch", min=1, max=64)
    return {name: {0: batch} for name in list(inspect.signature(module.forward).parameters)[: len(examples)]}


def of_batch(examples: tuple[Any, ...], size: int) -> tuple[Any, ...]:
    return tuple(torch.cat([example] * size)[:size] for example in examples)


def assert_like_eager(got: Any, module: Any, examples: tuple[Any, ...]) -> None:
    with torch.no_grad():
        wanted = module(*examples).numpy()
    assert got.shape == wanted.shape
    np.testing.assert_allclose(got, wanted, atol=1e-5 * float(np.abs(wanted).max()))


@pytest.mark.parametrize("form", FORMS)
def test_every_form_computes_what_pytorch_does(
    form: str, real: tuple[str, Any, tuple[Any, ...]], tmp_path: Path
) -> None:
    name, module, examples = real
    shapes = dynamic(module, examples)
    captured: Captured
    if form == "module":
        captured = capture(module, example_inputs=examples, dynamic_shapes=shapes)
    elif form == "fx":
        if name == "minilm":
            pytest.skip(
                "torch.fx cannot trace transformers' BERT; the module of its exported program stands for it"
            )
        captured = capture(torch.fx.symbolic_trace(module), example_inputs=examples, dynamic_shapes=shapes)
    else:
        with quiet():
            program = torch.export.export(module, examples, dynamic_shapes=shapes)
        if form == "program's module":
            captured = capture(program.module(), example_inputs=examples, dynamic_shapes=shapes)
        elif form == "program":
            captured = capture(program)
        else:
            torch.export.save(program, tmp_path / "model.pt2")
            captured = capture(tmp_path / "model.pt2")
    for size in (1, 5):
        inputs = of_batch(examples, size)
        feeds = {
            value.name or "": array.numpy()
            for value, array in zip(captured.model.graph.inputs, inputs, strict=True)
        }
        (got,) = run(captured.model, feeds).values()
        assert_like_eager(got, module, inputs)


def test_compiled_with_a_dynamic_batch(real: tuple[str, Any, tuple[Any, ...]]) -> None:
    _, module, examples = real
    compiled = graphopt.compile(
        module, example_inputs=examples, dynamic_shapes=dynamic(module, examples),
        passes="fold,fuse", target="ort-cpu", tune="1s",
    )  # fmt: skip
    report = compiled.report
    assert report.verification.status == "verified" and report.speedup is not None and report.speedup >= 1
    assert not any(record.undone for record in report.passes)
    for size in (1, 5):
        inputs = of_batch(examples, size)
        (got,) = compiled(*(array.numpy() for array in inputs))
        assert_like_eager(got, module, inputs)


def test_two_dynamic_dimensions() -> None:
    pytest.importorskip("transformers")
    recipe = zoo.recipe("minilm")
    zoo.fetch("minilm")
    module, examples = builders.BUILDERS[recipe.builder](zoo._members(recipe), recipe.input_shapes)
    batch, length = torch.export.Dim("batch", max=64), torch.export.Dim("length", max=512)
    shapes = {name: {0: batch, 1: length} for name in recipe.input_shapes}
    captured = capture(module.eval(), example_inputs=examples, dynamic_shapes=shapes)
    for rows, columns in ((1, 7), (3, 40)):
        inputs = tuple(array[:, :columns] for array in of_batch(examples, rows))
        feeds = dict(zip(recipe.input_shapes, (array.numpy() for array in inputs), strict=True))
        (got,) = run(captured.model, feeds).values()
        assert_like_eager(got, module, inputs)
