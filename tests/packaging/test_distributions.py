"""graphopt imports the same way from a checkout, an editable install, a wheel, and a wheel made from the sdist."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
IMPORTS = (
    "import graphopt.passes, graphopt.targets, graphopt.cli; "
    "import graphopt.passes.hardswish, graphopt.targets.ort.executable; "
    "import pathlib; folder = pathlib.Path(graphopt.__file__).parent; "
    "assert graphopt.passes.__name__ == 'graphopt.passes'; "
    "assert (folder / 'models' / 'zoo.toml').is_file(); "
    "assert (folder / 'report.html.jinja').is_file(); "
    "assert (folder / 'py.typed').is_file(); "
    "print(folder)"
)
INSTALL = ("install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--ignore-installed")


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command outside the checkout's import path; returns its output."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout.strip()


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tracked and new files of the checkout, links kept as links, so that building leaves nothing in it."""
    folder = tmp_path_factory.mktemp("checkout") / "graphopt"
    folder.mkdir()
    for name in ("graphopt", "passes", "targets", "models", "docs", "scripts", "benchmarks", "tests"):
        if (ROOT / name).exists():
            run("cp", "-a", ROOT / name, folder, cwd=folder)
    for name in (
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "CHANGELOG.md",
        "constraints.txt",
        "Makefile",
        ".gitignore",
    ):
        run("cp", "-a", ROOT / name, folder, cwd=folder)
    assert (folder / "graphopt" / "passes").is_symlink()
    return folder


@pytest.fixture(scope="session")
def distributions(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, checkout, cwd=folder)
    return folder


@pytest.fixture(scope="session")
def direct_wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel as built straight from the checkout, through its links."""
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, checkout, cwd=folder)
    return next(folder.glob("*.whl"))


def fresh_venv(folder: Path) -> Path:
    """A new virtual environment that sees the packages of this one, but not graphopt; returns its interpreter."""
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    inside = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder))
    outside = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    # An editable install of graphopt in the outer environment comes as a .pth file, which this does not follow.
    (inside / "outer.pth").write_text("\n".join(sorted(outside)) + "\n", encoding="utf-8")
    return python


def install(python: Path, *what: str | Path) -> None:
    """Install into the environment of an interpreter that has no pip itself."""
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python)
    run(*pip, *INSTALL, *what, cwd=python.parent)


def expected(name: str) -> set[str]:
    """The files of a linked folder as they must lie in a distribution."""
    return {
        f"graphopt/{name}/{path.relative_to(ROOT / name)}"
        for path in (ROOT / name).rglob("*")
        if path.is_file() and not {"__pycache__", ".hypothesis"} & set(path.parts)
    }


@pytest.mark.parametrize("name", ["passes", "targets", "models"])
def test_wheel_holds_the_linked_folders_as_real_ones(
    distributions: Path, direct_wheel: Path, name: str
) -> None:
    for wheel in (next(distributions.glob("*.whl")), direct_wheel):
        with zipfile.ZipFile(wheel) as archive:
            entries = {entry.filename: entry for entry in archive.infolist()}
        assert expected(name) <= set(entries)
        assert not [entry for entry in entries if entry.startswith(f"{name}/")]
        # A link would be stored as a file with the type bits of one.
        assert not [entry for entry in entries.values() if entry.external_attr >> 28 == 0o12]


def test_wheels_from_checkout_and_sdist_hold_the_same(distributions: Path, direct_wheel: Path) -> None:
    found = [
        set(zipfile.ZipFile(wheel).namelist()) for wheel in (next(distributions.glob("*.whl")), direct_wheel)
    ]
    assert found[0] == found[1]
    assert not [
        name for name in found[0] if name.startswith(("tests/", "benchmarks/", "docs/")) or ".pyc" in name
    ]


def test_wheel_metadata(direct_wheel: Path) -> None:
    with zipfile.ZipFile(direct_wheel) as archive:
        names = archive.namelist()
        folder = next(name.split("/")[0] for name in names if ".dist-info/" in name)
        metadata = archive.read(f"{folder}/METADATA").decode()
        entry_points = archive.read(f"{folder}/entry_points.txt").decode()
        licence = archive.read(f"{folder}/licenses/LICENSE").decode()
    assert "License-Expression: Apache-2.0" in metadata and "Requires-Python: >=3.10" in metadata
    for extra in ("cpu", "cuda", "tvm", "tvm-cuda", "torch", "openvino", "ray", "zoo", "dev"):
        assert f"Provides-Extra: {extra}\n" in metadata
    assert "graphopt = graphopt.cli:main" in entry_points
    assert "Apache License" in licence and "END OF TERMS AND CONDITIONS" in licence


def test_sdist_holds_real_folders_and_the_tests(distributions: Path) -> None:
    with tarfile.open(next(distributions.glob("*.tar.gz"))) as archive:
        members = archive.getmembers()
    names = {member.name.partition("/")[2] for member in members}
    assert not [member.name for member in members if member.issym() or member.islnk()]
    for name in ("passes", "targets", "models"):
        assert expected(name) <= names
    assert {"tests/test_imports.py", "constraints.txt", "Makefile", "LICENSE", "README.md"} <= names


def test_wheel_installs_and_its_command_works(direct_wheel: Path, tmp_path: Path) -> None:
    python = fresh_venv(tmp_path / "venv")
    install(python, direct_wheel)
    folder = Path(run(python, "-c", IMPORTS, cwd=tmp_path))
    assert folder.is_relative_to(tmp_path / "venv")
    assert not (folder / "passes").is_symlink()
    assert run(tmp_path / "venv" / "bin" / "graphopt", "--version", cwd=tmp_path).startswith("graphopt ")
    assert "hardswish" in run(tmp_path / "venv" / "bin" / "graphopt", "passes", cwd=tmp_path)


def test_editable_install_and_its_command_work(checkout: Path, tmp_path: Path) -> None:
    python = fresh_venv(tmp_path / "venv")
    install(python, "-e", checkout)
    assert Path(run(python, "-c", IMPORTS, cwd=tmp_path)) == checkout / "graphopt"
    assert run(tmp_path / "venv" / "bin" / "graphopt", "--version", cwd=tmp_path).startswith("graphopt ")


def test_checkout_imports_without_being_installed(checkout: Path, tmp_path: Path) -> None:
    python = fresh_venv(tmp_path / "venv")
    assert Path(run(python, "-c", IMPORTS, cwd=checkout)) == checkout / "graphopt"
    assert run(python, "-m", "graphopt", "--version", cwd=checkout).startswith("graphopt ")
