"""The layers: who may import whom, and what may not be imported before it is needed. Reads the source, mostly."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "graphopt"

LAYERS: tuple[tuple[str, ...], ...] = (
    ("install", "words"),
    ("errors", "_version", "machine", "processes", "cache", "denormals", "interrupt"),
    ("ir",),
    ("rewrite", "data", "capture"),
    ("verify", "models"),
    ("pipeline",),
    ("quant",),
    ("lossy",),
    ("train",),
    ("prune",),
    ("target",),
    ("report", "pipelines", "testing"),
    ("passes", "targets"),
    ("catalog",),
    ("artifact", "report_html", "tune", "zoo"),
    ("runtime", "lineage"),
    ("selection", "proposals"),
    ("bundle", "request", "storing", "forms", "simplified", "conclusion"),
    ("compiler",),
    ("api",),
    ("cli",),
    ("__main__", "__init__"),
)
"""Lowest first. A module imports from its own package and from lower layers."""

RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
HEAVY = {
    *("torch", "transformers", "tvm", "openvino", "ray", "networkx"),
    *("onnx", "onnxruntime", "onnxsim", "onnxscript"),
}
ADAPTER = Path("targets/tvm/adapter.py")
"""The one module that imports TVM's compiler, at its top; only the process that compiles imports it."""
TUNER = (Path("targets/tvm/tuning/tuner.py"), Path("targets/tvm/tuning/runners.py"))
"""The process that tunes, which imports it as well."""

PASSES_MAY_IMPORT = tuple(
    f"graphopt.{name}"
    for name in (
        "errors",
        "interrupt",
        "ir",
        "rewrite",
        "pipeline.base",
        "data.interface",
        "lossy",
        "quant",
        "prune",
        "train",
        "passes._",
    )
)

OPERATORS = Path("train/operators")
"""Functions of PyTorch alone, which import it at their top; whoever imports them does so where they are used."""


@dataclass(frozen=True)
class Import:
    """One imported module or name: ``lazy`` inside a function, ``typing`` for type checkers only."""

    name: str
    line: int
    lazy: bool
    typing: bool


def imports_of(path: Path) -> list[Import]:
    return list(_walk(ast.parse(path.read_text(encoding="utf-8")), lazy=False, typing=False))


def _walk(tree: ast.AST, *, lazy: bool, typing: bool) -> Iterator[Import]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.body:
                yield from _walk(ast.Module([child], []), lazy=lazy, typing=True)
            for child in node.orelse:
                yield from _walk(ast.Module([child], []), lazy=lazy, typing=typing)
            continue
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno, lazy, typing) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (
                Import(f"{node.module}.{alias.name}", node.lineno, lazy, typing) for alias in node.names
            )
        inner = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield from _walk(node, lazy=inner, typing=typing)


def modules() -> list[Path]:
    # rglob does not follow the links to passes/ and targets/.
    return sorted(
        Path(folder) / name
        for folder, _, names in os.walk(PACKAGE, followlinks=True)
        for name in names
        if name.endswith(".py")
    )


def owner(path: Path) -> str:
    """The part of graphopt that a file belongs to: its package, or its own name."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def test_every_part_has_a_layer() -> None:
    assert {owner(path) for path in modules()} <= set(RANK)


def test_the_architecture_tells_of_the_layers() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    told: dict[int, set[str]] = {}
    for number, modules in re.findall(r"^\| (\d+) \| ([^|]+) \|", text, re.MULTILINE):
        names = re.findall(r"`(\w+)(?:/|\.py)`", modules)
        told.setdefault(int(number), set()).update(names)
    assert told == {number: set(layer) for number, layer in enumerate(LAYERS, 1)}


def test_links_are_followed() -> None:
    assert {"passes", "targets"} <= {owner(path) for path in modules()}


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    mine = owner(path)
    wrong = []
    for entry in imports_of(path):
        parts = entry.name.split(".")
        if parts[0] != "graphopt" or entry.typing or len(parts) < 2:
            continue
        theirs = parts[1] if parts[1] in RANK else "__init__"
        if theirs != mine and RANK[theirs] >= RANK[mine] and mine != "__init__":
            wrong.append(f"line {entry.line}: {mine} imports {entry.name}, which is not in a lower layer")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_heavy_packages_are_imported_where_they_are_used(path: Path) -> None:
    if path.relative_to(PACKAGE) == ADAPTER or OPERATORS in path.relative_to(PACKAGE).parents:
        return
    wrong = [
        f"line {entry.line}: {entry.name} at the top of the module"
        for entry in imports_of(path)
        if entry.name.split(".")[0] in HEAVY and not entry.lazy and not entry.typing
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_operators_of_training_are_imported_where_they_are_used(path: Path) -> None:
    if OPERATORS in path.relative_to(PACKAGE).parents:
        return
    assert not [
        entry.line
        for entry in imports_of(path)
        if entry.name.startswith("graphopt.train.operators") and not entry.lazy and not entry.typing
    ]


@pytest.mark.parametrize("path", sorted((ROOT / "passes").glob("*.py")), ids=lambda path: path.name)
def test_passes_import_no_other_pass_target_capture_or_command(path: Path) -> None:
    wrong = [
        f"line {entry.line}: {entry.name}"
        for entry in imports_of(path)
        if entry.name.startswith("graphopt") and not entry.name.startswith(PASSES_MAY_IMPORT)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", sorted((ROOT / "targets").rglob("*.py")), ids=lambda path: path.name)
def test_targets_import_no_pass_capture_or_command(path: Path) -> None:
    wrong = [
        f"line {entry.line}: {entry.name}"
        for entry in imports_of(path)
        if entry.name.startswith(("graphopt.passes", "graphopt.capture", "graphopt.cli", "graphopt.compiler"))
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "targets").glob("*/**/*.py")), ids=lambda path: str(path.relative_to(ROOT))
)
def test_a_backend_imports_no_other(path: Path) -> None:
    own = {path.relative_to(ROOT / "targets").parts[0], "legalize", "variants"}
    names = [entry.name.split(".") for entry in imports_of(path)]
    wrong = [
        ".".join(parts) for parts in names if parts[:2] == ["graphopt", "targets"] and parts[2] not in own
    ]
    assert not wrong, "\n".join(wrong)


def test_only_the_process_that_compiles_loads_the_compiler_of_tvm() -> None:
    """Modules that import the adapter at their top are imported by each other and, in a function, by the worker."""
    pure = Path("targets/tvm/lower/tiles.py")  # It knows nothing of TVM.
    lower = {path.relative_to(PACKAGE) for path in modules() if path.parent.name == "lower"} - {pure}
    inside = {ADAPTER, *TUNER, *lower}
    above = {f"graphopt.{'.'.join(path.with_suffix('').parts)}" for path in inside}
    for path in modules():
        if path.relative_to(PACKAGE) in inside:
            continue
        for entry in imports_of(path):
            if entry.name in above or entry.name.rpartition(".")[0] in above:
                assert path.relative_to(PACKAGE) == Path("targets/tvm/worker.py")
                assert entry.lazy or entry.typing
    names = {
        entry.name.split(".")[0]
        for path in modules()
        for entry in imports_of(path)
        if path.relative_to(PACKAGE) != ADAPTER
    }
    assert "tvm" not in names


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


def loaded_after(code: str) -> set[str]:
    """Top-level packages, and modules of graphopt, that are loaded after running some code."""
    done = python("-c", f"import sys\n{code}\nsys.stderr.write('\\n' + ' '.join(sys.modules))")
    assert done.returncode == 0, done.stderr
    names = done.stderr.rpartition("\n")[2].split()
    return {name.split(".")[0] for name in names} | {name for name in names if name.startswith("graphopt.")}


def test_help_imports_nothing_heavy() -> None:
    loaded = loaded_after("from graphopt.cli import main; assert main(['--help']) == 0")
    assert not loaded & (HEAVY | {"numpy", "onnx_ir", "rich", "msgspec", "jinja2", "typer"})


def test_importing_graphopt_imports_nothing_heavy() -> None:
    assert not loaded_after("import graphopt") & (HEAVY | {"numpy", "onnx_ir", "click"})


def test_loading_a_bundle_needs_no_compiler() -> None:
    loaded = loaded_after("import graphopt; graphopt.load")
    assert not loaded & (HEAVY - {"onnxruntime"})
    forbidden = (
        "graphopt.compiler",
        "graphopt.capture",
        "graphopt.passes",
        "graphopt.rewrite",
        "graphopt.verify",
    )
    assert not [name for name in loaded if name.startswith(forbidden)]


def test_help_is_fast() -> None:
    """Under 0.3 s; the fastest of five, since other work on the machine only ever adds to it."""

    def once() -> float:
        started = time.perf_counter()
        assert python("-m", "graphopt", "--help").returncode == 0
        return time.perf_counter() - started

    assert min(once() for _ in range(5)) < 0.3


@pytest.mark.parametrize("name", ["passes", "targets"])
def test_the_linked_folders_say_how_to_import_them(name: str) -> None:
    done = python("-c", f"import {name}")
    assert done.returncode != 0
    assert f"ImportError: import graphopt.{name}, not {name}" in done.stderr
