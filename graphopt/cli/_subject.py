"""What ``run``, ``verify``, ``bench`` and ``inspect`` are given: a bundle or a model file, and inputs for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from graphopt.artifact import SUFFIX, Manifest, check_files, read_manifest
from graphopt.cli._options import parse_shapes
from graphopt.data.interface import Feeds, TensorSpec, check_feeds, inputs_of, outputs_of
from graphopt.errors import DataError, GraphoptError, TargetError, UsageError
from graphopt.machine import Form
from graphopt.runtime import check_machine

if TYPE_CHECKING:
    import onnx_ir as ir

    from graphopt.data.dataset import Transform


@dataclass
class Subject:
    """A bundle, or a model file that ONNX Runtime runs as it is.

    Attributes:
        path: As given.
        manifest: Of a bundle; None for a model file.
        input_shapes: Sizes of dynamic dimensions, by input, that all inputs are to have.
    """

    path: Path
    manifest: Manifest | None = None
    input_shapes: Mapping[str, tuple[int | None, ...]] = field(default_factory=dict)

    @cached_property
    def form(self) -> Form:
        """As something that a worker process loads."""
        if self.manifest is not None:
            return Form(str(self.path), self.manifest.target, self.path, self.manifest.config)
        return Form(str(self.path), "ort-cpu", self.path.parent, {"file": self.path.name})

    @cached_property
    def graph(self) -> ir.Model | None:
        """The graph, as far as it says which inputs make sense; None for a bundle that holds no ONNX file."""
        from graphopt.capture import capture
        from graphopt.ir import model as ir_model

        if self.manifest is None:
            return capture(self.path, input_shapes=self.input_shapes or None).model
        file = self.manifest.config.get("file")
        if isinstance(file, str) and file.endswith(".onnx"):
            return ir_model.load(self.path / file)
        return None

    @cached_property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The inputs, in order, of the sizes asked for.

        Raises:
            UsageError: Those sizes do not fit.
        """
        if self.manifest is not None:
            specs = tuple(tensor.spec() for tensor in self.manifest.inputs)
            try:
                return specialized(specs, self.input_shapes)
            except UsageError as error:
                raise UsageError(
                    f"{self.path}: {error.message}", hint=f"graphopt inspect {self.path} shows its inputs"
                ) from error
        assert self.graph is not None
        return inputs_of(self.graph)

    @cached_property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The outputs, in order."""
        if self.manifest is not None:
            return tuple(tensor.spec() for tensor in self.manifest.outputs)
        assert self.graph is not None
        return outputs_of(self.graph)

    def samples(
        self, data: Path, specs: tuple[TensorSpec, ...] | None = None, transform: Transform | None = None
    ) -> Iterator[Feeds]:
        """Samples of the user's.

        Args:
            specs: As for :meth:`made_up`.
            transform: Makes inputs of what the data hold.

        Raises:
            DataError: They do not fit.
        """
        from graphopt.data.dataset import Dataset
        from graphopt.data.load import samples

        wanted = self.inputs if specs is None else specs
        if transform is None:
            return samples(data, wanted)
        dataset = Dataset(data, wanted, transform=transform)
        return (sample.feeds for sample in dataset)

    def made_up(self, threads: int, seed: int, specs: tuple[TensorSpec, ...] | None = None) -> Feeds:
        """The first made-up inputs that the model accepts; tried in a process of its own.

        Args:
            specs: What they are to fit, where that is less than the model takes.

        Raises:
            DataError: It accepts none.
            TargetError: It does not load.
        """
        from graphopt.data.synthesize import feeds_for, size_candidates
        from graphopt.tune.paired import Worker

        wanted = self.inputs if specs is None else specs
        model = with_inputs(self.graph, wanted)
        failure: GraphoptError | None = None
        worker = Worker(self.form, None, threads)
        try:
            worker.wait_ready()
            for plain in (False, True):
                for sizes in size_candidates(model):
                    feeds = feeds_for(model, sizes, seed, plain=plain)
                    try:
                        checked = check_feeds(feeds, wanted)
                        worker.outputs(checked)
                    except (TargetError, DataError) as error:
                        failure = failure or error
                    else:
                        return checked
        finally:
            worker.close()
        reason = failure.message if failure is not None else "no size of its dynamic dimensions was accepted"
        raise DataError(
            f"{self.path} runs with none of the made-up inputs: {reason}",
            hint="give real inputs with --data FILE.npz, or fix the shapes with --input-shape",
        )


def open_subject(path: Path, input_shapes: tuple[str, ...] = ()) -> Subject:
    """A bundle (its files compared with their hashes) or a model file, to be run.

    Args:
        input_shapes: As given on the command line.

    Raises:
        BundleError: A damaged bundle, or one that this machine cannot run.
        SpecError: A shape that cannot be read.
        UsageError: Neither of the two.
        ModelError: No such file.
    """
    shapes = parse_shapes(input_shapes) or {}
    if path.is_dir() or path.suffix == SUFFIX:
        manifest = read_manifest(path)
        check_machine(path, manifest)
        check_files(path, manifest)
        return Subject(path, manifest, shapes)
    if path.suffix.lower() == ".pt2":
        raise UsageError(
            f"{path} is a program of torch.export, which is not run as it is",
            hint=f"compile it: graphopt compile {path}",
        )
    return Subject(path, None, shapes)


def with_inputs(model: ir.Model | None, specs: tuple[TensorSpec, ...]) -> ir.Model:
    """A copy of the graph whose inputs have these sizes; nothing but inputs where there is no graph."""
    import onnx_ir as ir

    from graphopt.ir import model as ir_model

    if model is None:
        return _interface_only(specs)
    dims = {spec.name: spec.dims for spec in specs}
    copy = ir_model.clone(model)
    for value in copy.graph.inputs:
        shape = dims.get(value.name or "")
        if shape is not None:
            value.shape = ir.Shape(shape)
    return copy


def specialized(
    specs: tuple[TensorSpec, ...], shapes: Mapping[str, tuple[int | None, ...]]
) -> tuple[TensorSpec, ...]:
    """The specifications with these sizes.

    Raises:
        UnknownNameError, UsageError: As for :func:`graphopt.ir.shapes.specialize`.
    """
    from graphopt.ir.shapes import specialize

    if not shapes:
        return specs
    model = _interface_only(specs)
    specialize(model, shapes)
    fixed = {spec.name: spec for spec in inputs_of(model)}
    return tuple(fixed.get(spec.name, spec) for spec in specs)


def _interface_only(specs: tuple[TensorSpec, ...]) -> ir.Model:
    """A graph of nothing but inputs; those that are no tensors are left out."""
    import onnx_ir as ir

    inputs = [
        ir.Value(
            name=spec.name,
            type=ir.TensorType(ir.DataType[spec.dtype.upper()]),
            shape=None if spec.dims is None else ir.Shape(spec.dims),
        )
        for spec in specs
        if spec.dtype.upper() in ir.DataType.__members__
    ]
    return ir.Model(ir.Graph(inputs, [], nodes=[], name="inputs"), ir_version=10)
