"""The pip command that brings what is missing, for a checkout and for an installed package alike."""

from __future__ import annotations

from pathlib import Path


def command(extra: str = "", package: str = "") -> str:
    """What to type.

    In a checkout that is its own installation with the extra, held to constraints.txt. Where graphopt is installed it
    may have come from an index, a wheel or a URL that is no longer there, so its requirements themselves are named.

    Args:
        extra: Of graphopt; "" for what it always needs.
        package: The one requirement that is missing; "" for all of the extra's.
    """
    import shlex

    root = checkout()
    if root is not None:
        place = f"{root}[{extra}]" if extra else str(root)
        install = f"pip install -c {shlex.quote(str(root / 'constraints.txt'))} -e {shlex.quote(place)}"
    else:
        wanted = _requirements(extra, package) or [package]
        install = f"pip install {shlex.join(wanted)}"
    if extra == "cuda" and _is_installed("onnxruntime"):
        # Both own the package onnxruntime: the one that is installed last overwrites files of the other.
        return f"pip uninstall onnxruntime && {install}"
    return install


def checkout() -> Path | None:
    """The root of the source tree that this module lies in; None where it was installed as a copy."""
    root = Path(__file__).resolve().parents[1]
    return root if (root / "pyproject.toml").is_file() and (root / "constraints.txt").is_file() else None


def _requirements(extra: str, package: str) -> list[str]:
    """Requirements of the extra (or of no extra) from the metadata of the installed package."""
    import importlib.metadata
    import re

    try:
        lines = importlib.metadata.requires("graphopt") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    found = []
    for line in lines:
        requirement, _, marker = line.partition(";")
        of_extra = re.search(r"extra\s*==\s*['\"]([^'\"]+)['\"]", marker)
        name = re.split(r"[^\w.-]", requirement.strip(), maxsplit=1)[0]
        if (of_extra.group(1) if of_extra else "") == extra and package in ("", name):
            found.append(requirement.strip())
    return found


def _is_installed(distribution: str) -> bool:
    import importlib.metadata

    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
