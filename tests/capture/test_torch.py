"""PyTorch models: each form that is taken, names, dynamic dimensions, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.capture import Captured, capture
from graphopt.errors import ModelError, UnsupportedModelError, UsageError
from graphopt.testing import run
from graphopt.verify.export import export_warnings

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")


class Net(torch.nn.Module):  # type: ignore[misc, name-defined]
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, 5)
        self.norm = torch.nn.BatchNorm1d(5)

    def forward(self, data: Any, mask: Any) -> Any:
        return torch.relu(self.norm(self.linear(data))) * mask, data.sum()


@pytest.fixture(scope="module")
def net() -> Any:
    torch.manual_seed(0)
    return Net().eval()


def inputs(batch: int = 3) -> tuple[Any, Any]:
    generator = torch.Generator().manual_seed(batch)
    return torch.randn(batch, 4, generator=generator), torch.rand(batch, 5, generator=generator)


def assert_computes(captured: Captured, module: Any, batch: int = 3) -> None:
    data, mask = inputs(batch)
    with torch.no_grad():
        wanted = [output.numpy() for output in module(data, mask)]
    feeds = {"data": data.numpy(), "mask": mask.numpy()}
    for model in (captured.model, captured.original_model):
        assert [value.name for value in model.graph.inputs] == ["data", "mask"]
        for reference, got in zip(wanted, run(model, feeds).values(), strict=True):
            np.testing.assert_allclose(got, reference, rtol=1e-5, atol=1e-5)


def test_a_module_with_a_tuple(net: Any) -> None:
    captured = capture(net, example_inputs=inputs())
    assert (captured.kind, captured.name, captured.original) == ("torch", "Net", None)
    assert captured.warnings == []
    assert_computes(captured, net)


def test_a_module_with_named_inputs_in_any_order(net: Any) -> None:
    data, mask = inputs()
    assert_computes(capture(net, example_inputs={"mask": mask, "data": data.numpy()}), net)


def test_dynamic_dimensions(net: Any) -> None:
    batch = torch.export.Dim("batch", min=2, max=64)
    captured = capture(net, example_inputs=inputs(), dynamic_shapes=({0: batch}, {0: batch}))
    assert [str(value.shape) for value in captured.model.graph.inputs] == ["[batch,4]", "[batch,5]"]
    assert_computes(captured, net, batch=7)


class Fixed(torch.nn.Module):  # type: ignore[misc, name-defined]
    """Works for a batch of 2 only."""

    def forward(self, x: Any, more: Any = None, *, pair: Any = None) -> Any:
        y = x.reshape(2, 8)
        y = y if more is None else y + more
        return y if pair is None else y + pair[0].reshape(2, 8) * pair[1]


def test_a_dimension_that_the_module_specialises_is_not_dropped() -> None:
    batch, other, ones = torch.export.Dim("batch"), torch.export.Dim("other"), torch.ones(2, 8)
    for shapes in ({"x": {0: batch}}, ({0: batch},), ([batch, None],)):
        with pytest.raises(UsageError, match=r"dimension 0 of input 'x' \('batch'\) is .* for size 2 only"):
            capture(Fixed(), example_inputs=(ones,), dynamic_shapes=shapes)
    with pytest.raises(UsageError, match=r"dimension 0 of input 'pair\[0\]' \('other'\)"):
        capture(
            Fixed(),
            example_inputs={"x": ones, "pair": (ones, ones)},
            dynamic_shapes={"x": None, "pair": ({0: other}, None)},
        )
    # Torch itself rejects these two; its second line tells which dimension it is.
    for hint in ("batch", torch.export.Dim.DYNAMIC):
        with pytest.raises(
            UnsupportedModelError, match=r"static shape of 2 for dimension inputs\['x'\]\.shape\[0\]"
        ):
            capture(Fixed(), example_inputs=(ones,), dynamic_shapes=({0: hint},))


class Recurrent(torch.nn.Module):  # type: ignore[misc, name-defined]
    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.cell = kind(4, 6, batch_first=True, bidirectional=True)
        self.head = torch.nn.Linear(12, 3)

    def forward(self, x: Any) -> Any:
        return self.head(self.cell(x)[0])


@pytest.mark.parametrize("kind", [torch.nn.LSTM, torch.nn.GRU])
def test_the_length_of_a_recurrent_layer_stays_dynamic_however_often_it_is_captured(kind: Any) -> None:
    module = Recurrent(kind).eval()
    dims = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    for length in (7, 9):
        example = (torch.randn(2, length, 4),)
        captured = capture(module, example_inputs=example, dynamic_shapes=(dims,))
        for shape in ((2, length, 4), (1, 3, 4), (3, 14, 4)):
            x = torch.randn(*shape)
            (got,) = run(captured.model, {"x": x.numpy()}).values()
            np.testing.assert_allclose(got, module(x).detach().numpy(), rtol=1e-4, atol=1e-6)


def test_dimensions_that_need_not_be_dynamic() -> None:
    ones = torch.ones(2, 8)
    for declared in (None, torch.export.Dim.STATIC, 2):
        captured = capture(Fixed(), example_inputs=(ones,), dynamic_shapes=({0: declared},))
        assert [str(value.shape) for value in captured.model.graph.inputs] == ["[2,8]"]


def test_dynamic_shapes_of_what_is_no_module(net: Any, tmp_path: Path) -> None:
    program = torch.export.export(net, inputs())
    for model in (program, tmp_path / "model.onnx"):
        with pytest.raises(UsageError, match=r"dynamic_shapes are for a torch\.nn\.Module"):
            capture(model, dynamic_shapes=({0: "batch"},))


def test_example_inputs_of_what_is_no_module(net: Any, tmp_path: Path) -> None:
    program = torch.export.export(net, inputs())
    for model in (program, tmp_path / "model.onnx"):
        for mistaken in ("ort-cpu", inputs(), {"data": inputs()[0]}):
            with pytest.raises(UsageError, match=r"example_inputs are for a torch\.nn\.Module"):
                capture(model, example_inputs=mistaken)


def test_attention_with_a_learned_bias() -> None:
    """torch 2.13 exports T5 with its kernel for attention on CPUs, and fails when it then decomposes it."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.T5Config(vocab_size=50, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4)
    encoder = transformers.T5EncoderModel(config).eval()

    class Encoder(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.encoder = encoder

        def forward(self, ids: Any) -> Any:
            return self.encoder(input_ids=ids)[0]

    ids = torch.randint(1, 50, (2, 9))
    captured = capture(Encoder().eval(), example_inputs=(ids,))
    (got,) = run(captured.model, {"ids": ids.numpy()}).values()
    with torch.no_grad():
        np.testing.assert_allclose(got, encoder(input_ids=ids)[0].numpy(), atol=1e-5)


def test_an_exported_program_and_its_file(net: Any, tmp_path: Path) -> None:
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(net, inputs(), dynamic_shapes=({0: batch}, {0: batch}))
    assert_computes(capture(program), net, batch=5)
    torch.export.save(program, tmp_path / "net.pt2")
    captured = capture(tmp_path / "net.pt2")
    assert (captured.name, captured.kind) == ("net", "torch")
    assert_computes(captured, net, batch=5)


def test_an_fx_graph_module(net: Any) -> None:
    assert_computes(capture(torch.fx.symbolic_trace(net), example_inputs=inputs()), net)


def test_training_mode_is_put_back() -> None:
    module = Net().train()
    captured = capture(module, example_inputs=inputs())
    assert module.training
    assert captured.warnings == ["the module was in training mode; it was captured in evaluation mode"]


def test_outputs_that_repeat_or_pass_through() -> None:
    class Repeat(torch.nn.Module):  # type: ignore[misc, name-defined]
        def forward(self, x: Any) -> Any:
            y = x + 1
            return y, y, x

    captured = capture(Repeat().eval(), example_inputs=(torch.ones(2),))
    got = list(run(captured.model, {"x": np.ones(2, np.float32)}).values())
    assert [array.tolist() for array in got] == [[2, 2], [2, 2], [1, 1]]


def test_outputs_of_a_dictionary_are_named_by_its_keys() -> None:
    class Named(torch.nn.Module):  # type: ignore[misc, name-defined]
        def forward(self, x: Any) -> Any:
            return {"logits": x * 2, "hidden": x + 1}

    captured = capture(Named().eval(), example_inputs=(torch.ones(2),))
    assert [value.name for value in captured.model.graph.outputs] == ["logits", "hidden"]


def test_arguments_left_at_none() -> None:
    class Optional(torch.nn.Module):  # type: ignore[misc, name-defined]
        def forward(self, x: Any, unused: Any = None, y: Any = None) -> Any:
            return x + y

    captured = capture(Optional().eval(), example_inputs=(torch.ones(2), None, torch.ones(2)))
    assert [value.name for value in captured.model.graph.inputs] == ["x", "y"]


def test_nested_inputs_get_the_names_of_the_exporter() -> None:
    class Nested(torch.nn.Module):  # type: ignore[misc, name-defined]
        def forward(self, pair: Any, *, scale: Any) -> Any:
            return pair[0] * pair[1] * scale

    ones = torch.ones(2)
    captured = capture(Nested().eval(), example_inputs={"pair": (ones, ones), "scale": ones})
    assert len({value.name for value in captured.model.graph.inputs}) == 3


def test_input_shapes_specialise(net: Any) -> None:
    captured = capture(
        net,
        example_inputs=inputs(),
        dynamic_shapes={"data": {0: "n"}, "mask": {0: "n"}},
        input_shapes={"data": (6, 4)},
    )
    assert [str(value.shape) for value in captured.model.graph.inputs] == ["[6,4]", "[6,5]"]


def test_example_inputs_are_needed(net: Any) -> None:
    with pytest.raises(UsageError, match="Net is a torch module: example inputs are needed"):
        capture(net)


def test_what_torch_cannot_export(capfd: pytest.CaptureFixture[str]) -> None:
    class Branches(torch.nn.Module):  # type: ignore[misc, name-defined]
        def forward(self, x: Any) -> Any:
            return x if x.sum() > 0 else x * 2

    with pytest.raises(UnsupportedModelError, match="torch cannot export Branches: .*data-dependent"):
        capture(Branches().eval(), example_inputs=(torch.ones(2),))
    assert capfd.readouterr().err == ""


def test_a_pt2_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no file"):
        capture(tmp_path / "none.pt2")
    (tmp_path / "bad.pt2").write_bytes(b"hello")
    with pytest.raises(ModelError, match=r"bad\.pt2 is not a program saved by torch\.export"):
        capture(tmp_path / "bad.pt2")


class Batches(torch.nn.Module):  # type: ignore[misc, name-defined]
    """Rows that say which of three tables of any size they are of: made-up numbers of rows seldom fit."""

    def forward(self, x: Any, weight: Any) -> Any:
        return x.reshape(37, -1) @ weight


def test_example_inputs_are_known_by_name() -> None:
    x, weight = torch.randn(37, 4), torch.randn(4, 3)
    captured = capture(Batches(), example_inputs={"weight": weight, "x": x})
    assert list(captured.example) == ["x", "weight"]
    np.testing.assert_array_equal(captured.example["x"], x.numpy())


def test_a_model_that_takes_nothing_made_up_is_verified_on_its_example() -> None:
    import graphopt

    dynamic = {"x": {0: torch.export.Dim("rows")}}
    captured = capture(Lengths(), example_inputs=(torch.randn(58),), dynamic_shapes=dynamic)
    made = graphopt.compile(
        Lengths(),
        example_inputs=(torch.randn(58),),
        dynamic_shapes=dynamic,
        target="ort-cpu",
        passes="fold",
        tune="0.2s",
    )
    assert captured.example["x"].shape == (58,)
    assert made.report.timed_on == {"x": (58,)}


class Lengths(torch.nn.Module):  # type: ignore[misc, name-defined]
    """Takes lengths that 29 divides, and says so to the exporter by a view alone."""

    def forward(self, x: Any) -> Any:
        return x.reshape(-1, 29).sum(1)


class BakedLength(torch.nn.Module):  # type: ignore[misc, name-defined]
    """Behind the recurrence the exporter writes the length of the example."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent = torch.nn.LSTM(8, 8, batch_first=True)

    def forward(self, x: Any) -> Any:
        made = self.recurrent(x)[0]
        return made.reshape(made.shape[0], made.shape[1] * 8)


class Drawing(torch.nn.Module):  # type: ignore[misc, name-defined]
    def forward(self, x: Any) -> Any:
        return x + torch.randn_like(x)


def test_a_graph_that_computes_what_the_module_does_needs_no_warning(net: Any) -> None:
    batch = torch.export.Dim("batch")
    captured = capture(net, example_inputs=inputs(), dynamic_shapes={"data": {0: batch}, "mask": {0: batch}})
    assert captured.program is not None
    assert export_warnings(captured) == []


def test_what_the_exporter_made_of_a_module_is_told(net: Any) -> None:
    captured = capture(net, example_inputs=inputs())
    graph = captured.original_model.graph
    weight = max(graph.initializers.values(), key=lambda value: value.const_value.size)  # type: ignore[union-attr]
    assert weight.const_value is not None
    weight.const_value = ir.tensor(weight.const_value.numpy() * 1.1, name=weight.name)
    (warning,) = export_warnings(captured)
    assert "differs from the module in" in warning and "on the example inputs" in warning


def test_a_length_that_the_exporter_fixed_is_told() -> None:
    dynamic = {"x": {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO}}
    captured = capture(BakedLength().eval(), example_inputs=(torch.randn(2, 12, 8),), dynamic_shapes=dynamic)
    feeds = {"x": np.random.default_rng(0).standard_normal((3, 13, 8)).astype(np.float32)}
    try:
        held = next(iter(run(captured.original_model, feeds).values())).shape == (3, 104)
    except Exception:  # onnxruntime raises many unrelated classes
        held = False
    assert any(
        "with" in warning and "exported graph" in warning for warning in export_warnings(captured)
    ) == (not held)


def test_of_a_module_that_draws_numbers_nothing_is_said() -> None:
    assert export_warnings(capture(Drawing(), example_inputs=(torch.randn(3, 4),))) == []
