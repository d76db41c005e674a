"""The targets ``tvm-llvm`` and ``tvm-cuda``: kernels that TVM compiles for processors and for NVIDIA's GPUs.

A bundle holds a shared library, weights included, and machine code for each GPU beside it; TVM's runtime library runs
it.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from graphopt import install
from graphopt.data.interface import outputs_of, save_feeds
from graphopt.errors import TargetError, UsageError
from graphopt.ir import facts
from graphopt.ir import model as ir_model
from graphopt.ir.graphs import clone, subgraphs_of
from graphopt.machine import Form, Probe, floats_of_a_vector
from graphopt.pipeline.base import Pass, RewritePass
from graphopt.quant.kernels import CONVOLUTIONS, PRODUCTS, IntegerKernels
from graphopt.target import Effort, StandIn, Tuning
from graphopt.targets.tvm.architectures import (
    DEFAULT_GPUS,
    GPUS,
    PROCESSORS,
    code_for,
    gpus_here,
    gpus_of,
    nearest,
    number,
    processor_of,
    ptx_of,
)
from graphopt.targets.tvm.build import build
from graphopt.targets.tvm.cuda_code import find_compiler
from graphopt.targets.tvm.cuda_executable import CUDA, TvmCudaRuntime
from graphopt.targets.tvm.executable import (
    INSIDE,
    LIBRARY,
    LLVM,
    TvmRuntime,
    dot_products,
    has_dot_products,
    has_extension,
    vector_extension,
    version,
)
from graphopt.targets.tvm.gpu import first_gpu
from graphopt.targets.tvm.operators import check
from graphopt.targets.tvm.tuning.database import Database, hardware_name
from graphopt.targets.tvm.tuning.session import Job, tune

_CONFIG = "config.json"
_INTEGER_PRODUCTS = frozenset({"ConvInteger", "MatMulInteger"})
_SCALES = frozenset({"Cast", "Mul", "Add"})
"""What follows a product of integers until its numbers are those of the product in float."""
_MOST_VALUES = 4


class _Compiling:
    """What both targets of TVM have."""

    name: str
    runs_original = False

    def legalization(self) -> Sequence[Pass]:
        """What TVM lacks, or computes slowly."""
        from graphopt.targets.tvm.legalize import REWRITES

        return (RewritePass(self.name, [rewrite() for rewrite in REWRITES]),)

    def integer_kernels(self) -> IntegerKernels | None:
        """None that the search for a mix could measure one by one."""
        return None

    def allowed_domains(self) -> frozenset[str]:
        """None but ONNX's."""
        return frozenset()

    def variants(self, model: ir.Model, milliseconds: float | None) -> Sequence[Mapping[str, Any]]:
        """The default only: TVM's kernels have their own ways to be tuned."""
        return ({"label": "default"},)


class TvmTarget(_Compiling, TvmRuntime):
    """Kernels for this processor, or for a level of processors.

    Args:
        name: ``tvm-llvm``.
        level: As ``x86-64-v3``; "" for what this processor has.
    """

    def __init__(
        self, name: str = LLVM, level: str = "", database: Path | None = None, device: str = ""
    ) -> None:
        super().__init__(name)
        self.level, self.device = level, device
        self._folder = database

    def for_architecture(self, text: str) -> TvmTarget:
        """The same target for a level of processors.

        Raises:
            UnknownNameError: No such level, or one of another kind of processor.
        """
        return TvmTarget(self.name, processor_of(text), self._folder, self.device)

    def with_database(self, folder: Path | None, device: str) -> TvmTarget:
        """The same target with the records of a folder, and of a device."""
        return TvmTarget(self.name, self.level, folder, device)

    def legalization(self) -> Sequence[Pass]:
        """What TVM lacks, or computes slowly; products between Q and DQ on integers where there is an instruction."""
        from graphopt.targets.tvm.legalize import INTEGERS, REWRITES

        chosen = (*REWRITES, *INTEGERS) if self._dots() else REWRITES
        return (RewritePass(self.name, [rewrite() for rewrite in chosen]),)

    def integer_kernels(self) -> IntegerKernels | None:
        """What the kernels for products of bytes want; None where there is no instruction for them."""
        from graphopt.targets.tvm.integers import kernels

        return kernels(self._dots()) if self._dots() else None

    def channel_multiple(self) -> int:
        """A vector of channels."""
        return floats_of_a_vector()

    def probe(self) -> Probe:
        """As for the runtime; code for a higher level than this processor's does not run here."""
        found = super().probe()
        if not found.available or has_extension(self._vectors()):
            return found
        reason = f"this processor lacks what {self.level} has"
        return dataclasses.replace(found, runnable=False, reason=reason)

    def emit(self, model: ir.Model, folder: Path, knobs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Write the library.

        Raises:
            TargetError: What cannot be lowered is named before anything is compiled, op by op.
        """
        vectors = self._vectors_for(model)
        tiles = {key: dataclasses.asdict(tile) for key, tile in self._database().tiles().items()}
        made = _built(model, folder, {"kind": "llvm", "vectors": vectors, "tiles": tiles})
        told = {key: made[key] for key in ("weights", "mcpu", "products", "tuned")}
        told["dequantized"] = sum(_is_dequantized(node) for node in model.graph.all_nodes())
        nodes = {name: [*map(_with_values(model), entries)] for name, entries in made["nodes"].items()}
        return {**_interface(model), "vectors": vectors, **told, "nodes": nodes, **_without_label(knobs)}

    def tune(
        self,
        model: ir.Model,
        feeds: Mapping[str, Any],
        effort: Effort,
        *,
        tracker: str = "",
        progress: Callable[[str], None] = lambda text: None,
    ) -> Tuning:
        """Measure tiles of the model's products.

        Raises:
            TargetError: A node cannot be lowered, the processor is another one, or a device is lost.
        """
        check(model)
        if bool(tracker) != bool(self.device):
            raise UsageError(
                "a device elsewhere is tuned through its tracker",
                hint="graphopt tune MODEL --tracker HOST:PORT --device KEY",
            )
        probe = self.probe()
        if not tracker and not probe.runnable:
            raise TargetError(
                f"kernels are tuned where they run: {probe.reason}",
                hint="graphopt tune MODEL --tracker HOST:PORT --device KEY",
            )
        with tempfile.TemporaryDirectory(prefix="graphopt-tune-") as temporary:
            source, arrays = Path(temporary) / "model.onnx", Path(temporary) / "feeds.npz"
            _save(model, source)
            save_feeds(arrays, feeds)
            job = Job(source, _interface(model), arrays, self._vectors_for(model), tracker, self.device)
            return tune(job, self._database(), effort, progress)

    def notes(self, config: Mapping[str, Any]) -> Sequence[str]:
        """What a user is to know of a form: what quantized products compute in float, and which were tuned."""
        found = []
        if config["dequantized"]:
            reason = "" if self._dots() else f": {self.level or 'this processor'} has no products of bytes"
            found.append(f"{config['dequantized']} products between Q and DQ are computed in float{reason}")
        why = self._database().describe_absence()
        if why and not config["tuned"]:
            found.append(f"{why}: the kernels are as without tuning")
        elif self._folder is not None and config["tuned"] < config["products"]:
            found.append(f"{config['tuned']} of {config['products']} products are tuned in {self._folder}")
        return found

    def _database(self) -> Database:
        return Database(self._folder, version(), hardware_name(self._vectors(), self.device))

    def _vectors_for(self, model: ir.Model) -> str:
        """With the instruction for products of bytes where the model has such."""
        has_integers = any(node.op_type in _INTEGER_PRODUCTS for node in model.graph.all_nodes())
        return (has_integers and self._dots()) or self._vectors()

    def _dots(self) -> str:
        """The vectors with an instruction for products of bytes; "" where there is none, or may be none."""
        if self.level:
            return self._vectors() if has_dot_products(self._vectors()) else ""
        return dot_products(self._vectors())

    def _vectors(self) -> str:
        return PROCESSORS[self.level] if self.level else vector_extension()


class TvmCudaTarget(_Compiling, TvmCudaRuntime):
    """CUDA kernels, for the GPU of this machine or for others; compiling needs none.

    Args:
        name: ``tvm-cuda``.
        architectures: Compute capabilities, lowest first; none for the GPU that is here.
    """

    def __init__(self, name: str = CUDA, architectures: Sequence[str] = ()) -> None:
        super().__init__(name)
        self._asked = tuple(architectures)

    @functools.cached_property
    def architectures(self) -> tuple[str, ...]:
        """What is compiled for, lowest first; compilers are looked for when it is needed."""
        return self._asked or _default_architectures()

    def for_architecture(self, text: str) -> TvmCudaTarget:
        """The same target for one or several compute capabilities, as ``sm_80,sm_90``.

        Raises:
            UnknownNameError: CUDA's compiler knows no such architecture.
        """
        compiler = find_compiler()
        known = [name for name in gpus_here() if compiler is None or name in compiler.architectures]
        return TvmCudaTarget(self.name, gpus_of(text, known))

    def channel_multiple(self) -> int:
        """As many channels as lie in a segment of 32 bytes."""
        return 8

    def probe(self) -> Probe:
        """As for the runtime; code for other GPUs than the one that is here does not run here."""
        found, gpu = super().probe(), first_gpu()
        if not found.available:
            # The runtime needs the extra tvm alone; who compiles needs this target's own.
            reason = found.reason.replace(install.command("tvm"), install.command("tvm-cuda"))
            return dataclasses.replace(found, reason=reason)
        if gpu is None:
            return found
        if code_for(gpu.capability, (*self.architectures, ptx_of(self.architectures[-1]))) is not None:
            return found
        reason = f"this GPU is {gpu.architecture}, not {', '.join(self.architectures)}"
        return dataclasses.replace(found, runnable=False, reason=reason)

    def emit(self, model: ir.Model, folder: Path, knobs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Write the library, its machine code, and beside the folder what stands in for it where there is no GPU.

        Raises:
            TargetError: What cannot be lowered is named before anything is compiled, op by op.
        """
        stand_in, interface, vectors = self._stand_in_folder(folder), _interface(model), vector_extension()
        target = {"kind": "cuda", "architectures": self.architectures, "vectors": vectors, "stand_in": ""}
        if not self.probe().runnable:
            stand_in.mkdir()
            target["stand_in"] = str(stand_in)
        made = _built(model, folder, target)
        if target["stand_in"]:
            about = {**interface, "vectors": vectors, **made["stand_in"]}
            (stand_in / _CONFIG).write_text(json.dumps(about), encoding="utf-8")
        return {
            **interface,
            "architectures": list(self.architectures),
            **{key: made[key] for key in ("weights", "code", "compiler", "source")},
            **_without_label(knobs),
        }

    def stand_in(self, form: Form) -> StandIn | None:
        """The kernels of a form as this machine's processor computes them."""
        folder = self._stand_in_folder(form.folder)
        if not folder.is_dir():
            return None
        config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
        what = f"{config['loops']}, built for this processor"
        return StandIn(Form(form.label, LLVM, folder, config), what)

    def notes(self, config: Mapping[str, Any]) -> Sequence[str]:
        """What a user is to know of a form: whether it holds machine code."""
        if config["code"] or not config["source"]:
            return ()
        return (
            "there is neither NVRTC nor nvcc on this machine: the bundle holds CUDA source, which is compiled where it "
            f"is loaded ({install.command('tvm-cuda')})",
        )

    @staticmethod
    def _stand_in_folder(folder: Path) -> Path:
        return folder.with_name(f"{folder.name}-stand-in")


def _is_dequantized(node: ir.Node) -> bool:
    """Whether it multiplies in float what both were integers."""
    operands = node.inputs[:2] if node.op_type in CONVOLUTIONS | PRODUCTS else ()
    return len(operands) > 1 and all(facts.producer_op(value) == "DequantizeLinear" for value in operands)


def _with_values(model: ir.Model) -> Callable[[Sequence[Any]], list[Any]]:
    """What a kernel for a node is known by: the node, and the values that it and what follows it makes."""
    nodes = {node.name: node for node in model.graph.all_nodes()}

    def add(entry: Sequence[Any]) -> list[Any]:
        values: list[str | None] = []
        node = nodes.get(entry[0])
        while node is not None and len(values) < _MOST_VALUES:
            values.append(node.outputs[0].name)
            node = facts.sole_consumer(node.outputs[0])
            node = node if node is not None and node.op_type in _SCALES else None
        return [*entry, values]

    return add


def _default_architectures() -> tuple[str, ...]:
    """The GPU that is here, or the newest older one that the compiler knows; without one, those that are common."""
    gpu, compiler = first_gpu(), find_compiler()
    known = GPUS if compiler is None else tuple(compiler.architectures)
    if gpu is None:
        return tuple(name for name in DEFAULT_GPUS if name in known) or (max(known, key=number),)
    name = nearest(gpu.capability, known)
    return (name.replace("compute_", "sm_"),) if name is not None else (gpu.architecture,)


def _built(model: ir.Model, folder: Path, target: Mapping[str, Any]) -> dict[str, Any]:
    check(model)
    with tempfile.TemporaryDirectory(prefix="graphopt-", dir=folder.parent) as temporary:
        source = Path(temporary) / "model.onnx"
        _save(model, source)
        try:
            return build(source, folder, {**target, "inside": INSIDE})
        except TargetError as error:
            if not any(facts.static_dims(value) is None for value in model.graph.inputs):
                raise
            hint = "fix the sizes that are open (--input-shape NAME:SIZE,SIZE,...), or compile for --target ort-cpu"
            raise TargetError(error.message, hint=hint) from error


def _save(model: ir.Model, source: Path) -> None:
    plain = clone(model)
    # Parameters of CUDA kernels are called by the names of inputs.
    for place, value in enumerate(plain.graph.inputs):
        value.name = f"graphopt_input_{place}"
    _name_open_sizes(plain)
    ir_model.save(plain, source)


def _name_open_sizes(model: ir.Model) -> None:
    """Give each open size of an input a name that TVM can have: a number of its own, the same where it was the same."""
    names: dict[object, str] = {}
    for value in model.graph.inputs:
        sizes = list(value.shape or ())
        for place, size in enumerate(sizes):
            if not isinstance(size, int):
                key = size.value or (value.name, place)
                sizes[place] = ir.SymbolicDim(names.setdefault(key, f"size_{len(names)}"))
        value.shape = ir.Shape(sizes)


def _interface(model: ir.Model) -> dict[str, Any]:
    return {
        "file": LIBRARY,
        "inputs": [value.name for value in model.graph.inputs],
        "outputs": [spec.name for spec in outputs_of(model)],
        "constants": _constants(model),
    }


def _without_label(knobs: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in knobs.items() if key != "label"}


def _constants(model: ir.Model) -> list[str]:
    """Names of outputs that may be constants: those that no input leads to, and with branches any."""
    if any(subgraphs_of(node) for node in model.graph):
        return [value.name or "" for value in model.graph.outputs]
    reached = set(model.graph.inputs)
    for node in model.graph:
        if any(value in reached for value in node.inputs):
            reached.update(node.outputs)
    return [value.name or "" for value in model.graph.outputs if value not in reached]
