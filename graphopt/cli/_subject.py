"""What ``run``, ``verify``, ``bench`` and ``inspect`` are given: a bundle or a model file, and inputs for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from graphopt.artifact import SUFFIX, Manifest, check_files, read_manifest
from graphopt.data.interface import Feeds, TensorSpec, check_feeds, inputs_of, optional_inputs_of, outputs_of
from graphopt.errors import DataError, GraphoptError, TargetError, UsageError
from graphopt.machine import Form

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass
class Subject:
    """A bundle, or a model file that ONNX Runtime runs as it is.

    Attributes:
        path: As given.
        manifest: Of a bundle; None for a model file.
        input_shapes: Sizes that dynamic inputs of a model file are specialised to when inputs are made up.
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
        """The inputs, in order."""
        if self.manifest is not None:
            return tuple(tensor.spec() for tensor in self.manifest.inputs)
        assert self.graph is not None
        return inputs_of(self.graph)

    @cached_property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The outputs, in order."""
        if self.manifest is not None:
            return tuple(tensor.spec() for tensor in self.manifest.outputs)
        assert self.graph is not None
        return outputs_of(self.graph)

    @cached_property
    def optional(self) -> frozenset[str]:
        """Inputs that may be left out."""
        if self.manifest is not None:
            return frozenset(self.manifest.optional_inputs)
        assert self.graph is not None
        return optional_inputs_of(self.graph)

    def samples(self, data: Path) -> Iterator[Feeds]:
        """Samples of the user's.

        Raises:
            DataError: They do not fit.
        """
        from graphopt.data.load import samples

        return samples(data, self.inputs, optional=self.optional)

    def made_up(self, threads: int, seed: int) -> Feeds:
        """The first made-up inputs that the model accepts; tried in a process of its own.

        Raises:
            DataError: It accepts none.
            TargetError: It does not load.
        """
        from graphopt.data.synthesize import feeds_for, size_candidates
        from graphopt.tune.paired import Worker

        model = self.graph if self.graph is not None else _interface_only(self.inputs)
        failure: GraphoptError | None = None
        worker = Worker(self.form, None, threads)
        try:
            worker.wait_ready()
            for plain in (False, True):
                for sizes in size_candidates(model):
                    feeds = feeds_for(model, sizes, seed, plain=plain)
                    try:
                        checked = check_feeds(feeds, self.inputs, optional=self.optional)
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
            hint="give real inputs with --data FILE.npz",
        )


def open_subject(path: Path) -> Subject:
    """A bundle (its files compared with their hashes) or a model file.

    Raises:
        BundleError: A damaged bundle.
        UsageError: Neither of the two.
        ModelError: No such file.
    """
    if path.is_dir() or path.suffix == SUFFIX:
        manifest = read_manifest(path)
        check_files(path, manifest)
        return Subject(path, manifest)
    if path.suffix.lower() == ".pt2":
        raise UsageError(
            f"{path} is a program of torch.export, which is not run as it is",
            hint=f"compile it: graphopt compile {path}",
        )
    return Subject(path)


def _interface_only(specs: tuple[TensorSpec, ...]) -> ir.Model:
    """A graph of nothing but inputs, for making up values for them."""
    import onnx_ir as ir

    inputs = [
        ir.Value(
            name=spec.name,
            type=ir.TensorType(ir.DataType[spec.dtype.upper()]),
            shape=None if spec.dims is None else ir.Shape(spec.dims),
        )
        for spec in specs
    ]
    return ir.Model(ir.Graph(inputs, [], nodes=[]), ir_version=10)
