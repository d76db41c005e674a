"""``graphopt doctor``: what this machine has, and what is missing."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from pathlib import Path
from typing import Any

import click

from graphopt.cli._options import common
from graphopt.processes import total_memory

REQUIRED = (
    "numpy",
    "onnx",
    "onnx-ir",
    "onnxsim",
    "networkx",
    "click",
    "rich",
    "msgspec",
    "jinja2",
    "platformdirs",
)
EXTRAS = {
    "cpu": ("onnxruntime",),
    "cuda": ("onnxruntime-gpu",),
    "torch": ("torch", "onnxscript"),
    "tvm": ("apache-tvm", "apache-tvm-ffi"),
    "tvm-cuda": ("cuda-bindings", "nvidia-cuda-nvrtc"),
    "openvino": ("openvino",),
    "ray": ("ray",),
}
"""Packages of each extra whose versions are shown."""

_FLAGS = (
    "avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8",
    "amx_bf16", "asimd", "asimddp", "i8mm", "bf16", "sve",
)  # fmt: skip


@click.command("doctor", short_help="Say what this machine has and what is missing.")
@common
def command(as_json: bool) -> None:
    """Show versions, execution providers, CPU features and folders; for what is missing, the command that brings it.

    Exits with 1 where models cannot be compiled at all.
    """
    from graphopt.cli._console import Progress, write_json

    with Progress() as progress:
        progress.say("looking around")
        facts = examine()
    if as_json:
        write_json(facts)
    else:
        _show(facts)
    if facts["problems"]:
        raise click.exceptions.Exit(1)


def examine() -> dict[str, Any]:
    """Everything that ``doctor`` knows."""
    from graphopt import catalog, install
    from graphopt._version import __version__
    from graphopt.cli.targets import listing

    packages = {name: _version(name) for name in REQUIRED}
    extras = {extra: {name: _version(name) for name in names} for extra, names in EXTRAS.items()}
    runtime = _onnxruntime()
    targets = listing()
    plugins = [
        {"kind": "pass", "name": entry.name, "origin": entry.origin, "error": entry.error}
        for entry in catalog.passes()
        if entry.origin != "built-in"
    ]
    plugins += [
        {"kind": "target", "name": entry["name"], "origin": entry["origin"], "error": entry["error"]}
        for entry in targets
        if entry["origin"] != "built-in"
    ]
    problems = [
        f"{name} is missing: {install.command(package=name)}"
        for name, version in packages.items()
        if not version
    ]
    if runtime["error"]:
        problems.append(f"{runtime['error']}: {install.command('cpu')}")
    return {
        "graphopt": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpu": cpu(),
        "memory_bytes": total_memory(),
        "packages": packages,
        "extras": extras,
        "onnxruntime": runtime,
        "targets": targets,
        "plugins": plugins,
        "cache": _cache(),
        "problems": problems,
    }


def cpu() -> dict[str, Any]:
    """Model, number of usable cores and instruction sets of the processor."""
    from graphopt.machine import cores, cpu_flags, cpu_name

    present = cpu_flags()
    return {
        "name": cpu_name(),
        "machine": platform.machine(),
        "cores": cores(),
        "features": [flag for flag in _FLAGS if flag in present],
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _onnxruntime() -> dict[str, Any]:
    try:
        import onnxruntime
    except Exception as error:  # a broken installation raises anything
        missing = isinstance(error, ModuleNotFoundError) and error.name == "onnxruntime"
        what = "onnxruntime is not installed" if missing else f"onnxruntime cannot be imported ({error})"
        return {"version": "", "providers": [], "error": what}
    if not hasattr(onnxruntime, "InferenceSession"):
        return {"version": "", "providers": [], "error": "the installed onnxruntime is damaged"}
    note = ""
    if _version("onnxruntime") and _version("onnxruntime-gpu"):
        note = "onnxruntime and onnxruntime-gpu are both installed and overwrite each other: uninstall one"
    return {
        "version": onnxruntime.__version__,
        "providers": list(onnxruntime.get_available_providers()),
        "error": "",
        "note": note,
    }


def _cache() -> dict[str, Any]:
    import shutil

    from graphopt import zoo

    folder = Path(zoo.cache_folder())
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    return {
        "folder": str(folder),
        "writable": os.access(existing, os.W_OK),
        "bytes": sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        if folder.exists()
        else 0,
        "free_bytes": shutil.disk_usage(existing).free,
    }


def _show(facts: dict[str, Any]) -> None:
    from graphopt import install
    from graphopt.cli._console import bad, bold, dim, good, table, write
    from graphopt.cli.targets import remark, state
    from graphopt.words import size

    def line(label: str, value: str) -> None:
        write(f"{bold(label)}{' ' * max(1, 13 - len(label))}{value}")

    processor = facts["cpu"]
    line("graphopt", f"{facts['graphopt']} · Python {facts['python']} ({sys.executable})")
    line("system", facts["system"])
    line(
        "processor",
        f"{processor['name']} · {processor['cores']} cores · {size(facts['memory_bytes'])} memory",
    )
    line("features", " ".join(processor["features"]) or processor["machine"])
    cache = facts["cache"]
    writable = "" if cache["writable"] else bad("  not writable: set GRAPHOPT_CACHE to another folder")
    line(
        "cache",
        f"{cache['folder']} · {size(cache['bytes'])} used, {size(cache['free_bytes'])} free{writable}",
    )
    runtime = facts["onnxruntime"]
    providers = f"{runtime['version']} · {', '.join(runtime['providers'])}"
    line("onnxruntime", bad(runtime["error"]) if runtime["error"] else providers)
    if runtime.get("note"):
        line("", bad(runtime["note"]))
    write()
    rows = [[name, version or bad("missing"), ""] for name, version in facts["packages"].items()]
    for extra, packages in facts["extras"].items():
        rows += [
            [name, version or dim("not installed"), dim(f"optional: {extra}")]
            for name, version in packages.items()
        ]
    write(table(("package", "version", ""), rows))
    write()
    for extra, packages in facts["extras"].items():
        if not all(packages.values()):
            line(extra, dim(install.command(extra)))
    write()
    for entry in facts["targets"]:
        line(entry["name"], f"{state(entry)}  {remark(entry)}".rstrip())
    for plugin in facts["plugins"]:
        outcome = bad(plugin["error"]) if plugin["error"] else good("loads")
        line("plugin", f"{plugin['kind']} {plugin['name']} [{plugin['origin']}] {outcome}")
    write()
    for problem in facts["problems"]:
        line(bad("problem"), problem)
    if not facts["problems"]:
        write(good("ready to compile"))
