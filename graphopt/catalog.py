"""The one place that knows the built-in passes and targets, and that finds plugins.

Nothing is imported before it is asked for, so that listing names is fast and a broken plugin breaks nothing else.
A plugin package declares entry points in the groups ``graphopt.passes`` (a Pass class, a Rewrite class, or any
``onnx_ir.passes.PassBase`` class) and ``graphopt.targets`` (a Target class or instance).
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt.data.functions import load_object
from graphopt.errors import GraphoptError, UnknownNameError, UsageError
from graphopt.pipeline.spec import PassSpec, make_options
from graphopt.pipelines import GROUPS, PASSES, PIPELINES, GroupOptions

if TYPE_CHECKING:
    from graphopt.machine import Runtime
    from graphopt.pipeline.base import Pass
    from graphopt.target import Target

TARGETS: Mapping[str, str] = {
    "ort-cpu": "graphopt.targets.ort.target:OrtTarget",
    "ort-cuda": "graphopt.targets.ort.target:OrtTarget",
    "openvino": "graphopt.targets.openvino.target:OpenVinoTarget",
    "tvm-llvm": "graphopt.targets.tvm.target:TvmTarget",
    "tvm-cuda": "graphopt.targets.tvm.target:TvmCudaTarget",
}
RUNTIMES: Mapping[str, str] = {
    "ort-cpu": "graphopt.targets.ort.executable:OrtRuntime",
    "ort-cuda": "graphopt.targets.ort.executable:OrtRuntime",
    "openvino": "graphopt.targets.openvino.executable:OpenVinoRuntime",
    "tvm-llvm": "graphopt.targets.tvm.executable:TvmRuntime",
    "tvm-cuda": "graphopt.targets.tvm.cuda_executable:TvmCudaRuntime",
}
"""What loads a bundle, without the compiler."""

TARGET_GROUPS: Mapping[str, tuple[str, ...]] = {
    "cpu": ("ort-cpu", "openvino"),
    "cuda": ("ort-cuda",),
    "auto": ("ort-cuda", "ort-cpu", "openvino"),
}

_OTHER_NAMES: Mapping[str, str] = {
    "gpu": "cuda", "ort-gpu": "ort-cuda", "nvidia": "cuda", "ort": "ort-cpu", "onnxruntime": "ort-cpu", "x86": "cpu",
}  # fmt: skip
"""What other tools call a target."""


@dataclass(frozen=True)
class Entry:
    """A pass or target as listed.

    Attributes:
        name: As on the command line.
        origin: "built-in" or the plugin's distribution.
        summary: First line of its docstring.
        numerics: Of a pass.
        error: Why it cannot be loaded, where it cannot.
    """

    name: str
    origin: str
    summary: str = ""
    numerics: str = ""
    error: str = ""


@lru_cache
def _plugins(group: str) -> dict[str, importlib.metadata.EntryPoint]:
    return {entry.name: entry for entry in importlib.metadata.entry_points(group=group)}


def _load(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def pass_class(name: str) -> Any:
    """The class of a built-in pass or rewrite, of a plugin's, or of one in ``FILE.py:NAME`` or ``MODULE:NAME``.

    Raises:
        UnknownNameError: No such pass; suggests the nearest.
        UsageError: No such file or name in it.
        GraphoptError: The plugin that offers it cannot be imported.
    """
    if name in PASSES:
        return _load(PASSES[name])
    if ":" in name:
        return load_object(name, "passes", "pass")
    plugins = _plugins("graphopt.passes")
    if name in plugins:
        try:
            return plugins[name].load()
        except Exception as error:
            raise GraphoptError(
                f"the plugin pass {name!r} ({_distribution(plugins[name])}) cannot be imported: "
                f"{type(error).__name__}: {error}",
                hint="reinstall or uninstall that package",
            ) from error
    known = [*PASSES, *GROUPS, *PIPELINES, *plugins]
    raise UnknownNameError("pass", name, known, hint="graphopt passes lists them")


def expand(specs: tuple[PassSpec | object, ...]) -> list[Pass]:
    """Passes, in order, from names, groups, pipelines (``O0`` to ``O2``) and Python objects alike.

    A group brings the groups that it builds on, once: ``fuse`` runs ``fold`` before it.

    Raises:
        UnknownNameError, SpecError: As for each name and its options.
    """
    from graphopt.pipeline.base import NoOptions, as_pass

    passes: list[Pass] = []
    done: set[str] = set()
    for spec in specs:
        if not isinstance(spec, PassSpec):
            passes.append(as_pass(spec() if isinstance(spec, type) else spec))
        elif spec.name in PIPELINES:
            make_options(NoOptions, spec.options, f"pipeline {spec.name!r}")
            for name in PIPELINES[spec.name]:
                passes += _group(name, PassSpec(name), done)
        elif spec.name in GROUPS:
            passes += _group(spec.name, spec, done)
        else:
            passes.append(_single(spec))
    return passes


def _single(spec: PassSpec) -> Pass:
    from graphopt.pipeline.base import NoOptions, Pass, as_pass

    found = pass_class(spec.name)
    if isinstance(found, type) and issubclass(found, Pass):
        return found(make_options(found.Options, spec.options, f"pass {spec.name!r}"))
    make_options(NoOptions, spec.options, f"pass {spec.name!r}")
    try:
        return as_pass(found() if isinstance(found, type) else found)
    except TypeError as error:
        if ":" not in spec.name:
            raise
        raise UsageError(
            f"{spec.name} cannot stand in a pass list: {error}",
            hint="name a Pass, a Rewrite or an onnx_ir.passes.PassBase: an object, or a class without arguments",
        ) from error


def _group(name: str, spec: PassSpec, done: set[str]) -> list[Pass]:
    group = GROUPS[name]
    passes: list[Pass] = []
    for needed in group.requires:
        if needed not in done:
            passes += _group(needed, PassSpec(needed), done)
    done.add(name)
    options = make_options(GroupOptions, spec.options, f"pass {name!r}")
    members = [member for stage in group.stages for member in stage.members]
    for disabled in options.disable:
        if disabled not in members:
            raise UnknownNameError(
                f"member of {name!r} to disable", disabled, set(members), hint="graphopt passes lists them"
            )
    return passes + group.build(pass_class, frozenset(options.disable))


def passes() -> list[Entry]:
    """Every pass and rewrite, plugins last; one that cannot be imported carries its error."""
    entries = [_pass_entry(name, "built-in") for name in PASSES]
    for name, entry in sorted(_plugins("graphopt.passes").items()):
        entries.append(_pass_entry(name, _distribution(entry)))
    return entries


def _pass_entry(name: str, origin: str) -> Entry:
    try:
        found = pass_class(name)
    except Exception as error:
        return Entry(name, origin, error=str(error).splitlines()[0])
    module = importlib.import_module(found.__module__)
    # The module's docstring begins with the algebra; where several share a file, that of the class does.
    own = found.__doc__ or ""
    text = module.__doc__ if origin == "built-in" and "==>" not in own else own or module.__doc__
    summary = (text or "").strip().split("\n\n")[0].replace("\n", " ")
    numerics = getattr(getattr(found, "numerics", None), "value", "")
    return Entry(name, origin, summary, numerics)


def runtime(name: str) -> Runtime:
    """What loads bundles of the target of this name.

    Raises:
        UnknownNameError, GraphoptError: As for :func:`target`.
    """
    if name in RUNTIMES:
        built: Runtime = _load(RUNTIMES[name])(name)
        return built
    return target(name)


def target(name: str) -> Target:
    """The target of this name.

    Raises:
        UnknownNameError: No such target; suggests the nearest.
        GraphoptError: The plugin that offers it cannot be imported.
    """
    if name in TARGETS:
        built: Target = _load(TARGETS[name])(name)
        return built
    plugins = _plugins("graphopt.targets")
    if name in plugins:
        try:
            found = plugins[name].load()
            made: Target = found() if isinstance(found, type) else found
        except Exception as error:
            raise GraphoptError(
                f"the plugin target {name!r} ({_distribution(plugins[name])}) cannot be imported: "
                f"{type(error).__name__}: {error}",
                hint="reinstall or uninstall that package",
            ) from error
        return made
    known = [*TARGETS, *TARGET_GROUPS, *plugins]
    lower = name.lower()
    meant = lower if lower in known else _OTHER_NAMES.get(lower, "")
    raise UnknownNameError("target", name, known, meant=meant, hint="graphopt targets lists them")


def targets_of(
    name: str, arch: str | None = None, database: Path | None = None, device: str = ""
) -> list[Target]:
    """The targets that a name stands for: one, those of a group (``cpu``, ``cuda``, ``auto``), or several with commas
    between them, as ``cpu,tvm-llvm``.

    Args:
        arch: What to compile for, where that is not this machine; None for this machine.
        database: A folder of tuned kernels; None for that in the cache.
        device: Whose kernels to take from it, where that is not this machine.

    Raises:
        UnknownNameError: There is no such target or architecture.
        UsageError: A target compiles for this machine only, or has no kernels to tune.
    """
    parts = [part.strip() for part in name.split(",")]
    members = dict.fromkeys(member for part in parts for member in TARGET_GROUPS.get(part, (part,)))
    return [_prepared(target(member), arch, database, device) for member in members]


def _prepared(found: Target, arch: str | None, database: Path | None, device: str) -> Target:
    from graphopt.target import CrossCompiler, Tunable

    if arch is not None:
        if not isinstance(found, CrossCompiler):
            raise UsageError(
                f"the target {found.name!r} does not compile for an architecture",
                hint="leave --arch out, or compile for --target tvm-cuda or tvm-llvm",
            )
        found = found.for_architecture(arch)
    if database is not None or device:
        if not isinstance(found, Tunable):
            raise UsageError(
                f"the target {found.name!r} has no kernels that are tuned",
                hint="leave --database and --device out, or compile for --target tvm-llvm",
            )
        found = found.with_database(database, device)
    return found


def target_names() -> list[tuple[str, str]]:
    """Names and origins of all targets, groups excluded."""
    names = [(name, "built-in") for name in TARGETS]
    plugins = sorted(_plugins("graphopt.targets").items())
    return names + [(name, _distribution(entry)) for name, entry in plugins]


def _distribution(entry: importlib.metadata.EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist is not None else "plugin"
