"""The compiled bundle on disk: ``model.gopt/``.

    model.gopt/
      manifest.json    what it is, what it needs, how it was made, what was proved and measured
      model.onnx       (or what else the target writes; weights beside it where large)
      report.html      the same for people

Nothing in it is pickled. A bundle is written to a temporary folder beside its place and renamed when it is
complete, so that a failure leaves what was there before untouched.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from graphopt.data.interface import TensorSpec
from graphopt.errors import BundleError

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
SUFFIX = ".gopt"
_CHUNK = 4 << 20


class Tensor(msgspec.Struct, frozen=True):
    """One input or output; see :class:`graphopt.data.interface.TensorSpec`."""

    name: str
    dtype: str
    dims: list[int | str | None] | None

    def spec(self) -> TensorSpec:
        """As a TensorSpec."""
        return TensorSpec(self.name, self.dtype, None if self.dims is None else tuple(self.dims))


class Step(msgspec.Struct, frozen=True):
    """Where a node of the original went at one stage.

    Attributes:
        stage: A pass, "capture", or the target whose lossy passes and legalisation made it.
        by: Rewrites that took its place, as far as they are known.
        nodes: Names of what stands for it from then on; none where nothing does.
    """

    stage: str
    by: list[str]
    nodes: list[str]


class Origin(msgspec.Struct, frozen=True):
    """A node of the original model, followed to the result.

    Attributes:
        name: Of the node; of its first output where it has none.
        op: Its operator.
        values: First outputs of it and of what stood for it: what refusals call the place of a rewrite.
        steps: Where it went; none where it is as it was.
    """

    name: str
    op: str
    values: list[str]
    steps: list[Step]


class Made(msgspec.Struct, frozen=True):
    """A node of the result.

    Attributes:
        name, op: Of the node.
        by: The pass or rewrite that made it; "" for a node of the original.
        origins: Names of the nodes of the original that it stands for.
    """

    name: str
    op: str
    by: str
    origins: list[str]


class Manifest(msgspec.Struct, kw_only=True):
    """Content of ``manifest.json``.

    Attributes:
        format_version: Of this file's layout.
        graphopt: Version that wrote it.
        name: Of the model.
        target: That loads it.
        config: What the target needs to load it.
        inputs, outputs: The model's interface, in order.
        machine: What the machine must have.
        hashes: Content hashes: ``source`` and ``result`` of the graphs, and ``files`` by relative path.
        options: The options of the compilation.
        passes: The pass log.
        verification: Evidence: trials, status, errors, noise floors.
        measurements: Timings of the forms.
        report: What ``graphopt compile --json`` prints.
        warnings: What the user should know.
        origins: Where each node of the original went.
        nodes: Those of the result.
    """

    format_version: int = FORMAT_VERSION
    graphopt: str
    name: str
    target: str
    config: dict[str, Any]
    inputs: list[Tensor]
    outputs: list[Tensor]
    machine: dict[str, Any] = {}
    hashes: dict[str, Any] = {}
    options: dict[str, Any] = {}
    passes: list[dict[str, Any]] = []
    verification: dict[str, Any] = {}
    measurements: dict[str, Any] = {}
    report: dict[str, Any] = {}
    warnings: list[str] = []
    origins: list[Origin] = []
    nodes: list[Made] = []


def tensors(specs: tuple[TensorSpec, ...]) -> list[Tensor]:
    """Specifications as the manifest holds them."""
    return [Tensor(spec.name, spec.dtype, None if spec.dims is None else list(spec.dims)) for spec in specs]


def read_manifest(path: Path) -> Manifest:
    """The manifest of a bundle.

    Raises:
        BundleError: There is none, it is damaged, or of a newer format.
    """
    if not path.exists():
        raise BundleError(f"no bundle at {path}", hint="graphopt compile MODEL -o BUNDLE writes one")
    if not path.is_dir():
        raise BundleError(
            f"{path} is a file, not a bundle", hint="a bundle is the folder that compile writes"
        )
    file = path / MANIFEST
    if not file.exists():
        raise BundleError(f"{path} holds no {MANIFEST}", hint="it is no bundle, or an incomplete copy of one")
    try:
        raw = msgspec.json.decode(file.read_bytes())
        version = raw.get("format_version") if isinstance(raw, dict) else None
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise BundleError(
                f"{path} has bundle format {version}; this graphopt reads up to {FORMAT_VERSION}",
                hint="upgrade graphopt, or compile the model again",
            )
        return msgspec.convert(raw, Manifest)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise BundleError(f"{file} is damaged: {error}", hint="compile the model again") from error


def check_files(path: Path, manifest: Manifest) -> None:
    """Compare the bundle's files with the hashes in its manifest.

    Raises:
        BundleError: A file is missing or was changed.
    """
    for name, wanted in manifest.hashes.get("files", {}).items():
        file = path / name
        if not file.is_file():
            raise BundleError(
                f"{path} lacks {name}", hint="copy the whole folder, or compile the model again"
            )
        if sha256(file) != wanted:
            raise BundleError(
                f"{name} in {path} is not what was written there (its hash differs)",
                hint="copy the bundle again, or compile the model again",
            )


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write ``manifest.json`` with the hashes of all other files in ``folder``."""
    manifest.hashes = {**manifest.hashes, "files": file_hashes(folder)}
    (folder / MANIFEST).write_bytes(msgspec.json.encode(manifest) + b"\n")


def file_hashes(folder: Path) -> Mapping[str, str]:
    """SHA-256 of each file in a bundle but the manifest and the report, by relative path."""
    return {
        str(file.relative_to(folder).as_posix()): sha256(file)
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name not in (MANIFEST, "report.html")
    }


@contextlib.contextmanager
def replacing(output: Path) -> Iterator[Path]:
    """A new folder that takes the place of ``output`` when the block ends well, and vanishes when not.

    Raises:
        BundleError: The place cannot be written, or holds something that is no bundle.
    """
    output = Path(os.path.abspath(output))
    check_writable(output)
    staging = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    try:
        yield staging
        staging.chmod(0o755)
        old = None
        if output.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{output.name}-old-", dir=output.parent))
            os.replace(output, old / "bundle")
        try:
            os.replace(staging, output)
        except OSError as error:
            if old is not None:
                os.replace(old / "bundle", output)
            raise BundleError(f"cannot write {output}: {error.strerror}") from error
        if old is not None:
            shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def check_writable(output: Path) -> None:
    """Raise a BundleError now where a bundle could not be written to ``output`` later."""
    parent = Path(os.path.abspath(output)).parent
    if not parent.is_dir():
        what = "is a file, not a folder" if parent.exists() else "does not exist"
        raise BundleError(
            f"cannot write {output}: the folder {parent} {what}",
            hint="choose another output with -o" if parent.exists() else "create it first",
        )
    if output.exists() and not (
        output.is_dir() and ((output / MANIFEST).exists() or not any(output.iterdir()))
    ):
        raise BundleError(
            f"cannot write {output}: it exists and is no bundle", hint="choose another output with -o"
        )
    if output.suffix.lower() == ".onnx" and not output.exists():
        bundle = output.with_suffix(SUFFIX)
        raise BundleError(
            f"cannot write {output}: a bundle is a folder, not an .onnx file",
            hint=f"write {bundle} instead (-o {bundle}): the ONNX file lies in it, as {bundle / 'model.onnx'}; "
            f"graphopt simplify -o {output} writes one file, of ONNX's operators alone",
        )
    try:
        with tempfile.TemporaryDirectory(prefix=".graphopt-", dir=parent):
            pass
    except OSError as error:
        raise BundleError(
            f"cannot write {output}: {error.strerror}", hint="choose another output with -o"
        ) from error


def size_of(folder: Path) -> int:
    """Bytes of the model's files in a bundle (manifest and report excluded)."""
    return sum(
        file.stat().st_size
        for file in folder.rglob("*")
        if file.is_file() and file.name not in (MANIFEST, "report.html")
    )
