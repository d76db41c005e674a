"""The pages of docs/ that come from the code are as the code says; links in the documentation lead somewhere."""

from __future__ import annotations

import ast
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_generated_pages_are_up_to_date() -> None:
    script = ROOT / "scripts" / "make_docs.py"
    done = subprocess.run(
        [sys.executable, str(script), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_files_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    broken = [
        target
        for target in targets
        if "://" not in target and not target.startswith("mailto:") and not (page.parent / target).exists()
    ]
    assert not broken


def _measured() -> list[tuple[str, str]]:
    """Modules of rewrites whose docstring quotes benchmarks/rewrites.py, each with the sentence that does."""
    found = []
    targets = ROOT / "targets"
    folders = (ROOT / "passes", targets / "legalize", targets / "ort" / "legalize")
    for path in (path for folder in folders for path in sorted(folder.glob("*.py"))):
        text = " ".join((ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split())
        quoted = re.search(r"Times as fast \(``benchmarks/rewrites\.py``(.*?)\.( |$)", text)
        if quoted:
            found.append((".".join(("graphopt", *path.relative_to(ROOT).with_suffix("").parts)), quoted[1]))
    return found


def test_some_figures_are_quoted() -> None:
    assert len(_measured()) > 15


@pytest.mark.parametrize(("module", "sentence"), _measured(), ids=[module for module, _ in _measured()])
def test_figures_of_rewrites_are_those_of_the_benchmark(module: str, sentence: str) -> None:
    """What a docstring says was printed by the command that it names, on the machine that it names."""
    results = json.loads((ROOT / "benchmarks" / "results" / "rewrites.json").read_text(encoding="utf-8"))
    names = {getattr(value, "name", None) for value in vars(importlib.import_module(module)).values()}
    printed = {f"{row['ratio']:.2f}" for row in results["rewrites"] if row["rewrite"] in names}
    quoted = set(re.findall(r"\b\d+\.\d\d\b", sentence))
    assert quoted and quoted == printed
    assert results["machine"]["processor"].replace(", ", " with ") in sentence
    assert f"{results['machine']['threads']} threads" in sentence
