"""Where a command may write a file."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from graphopt.errors import UsageError


def check_parent(output: Path) -> None:
    """Raise an error now where nothing could be written to ``output`` later.

    Raises:
        UsageError: Its folder does not exist, or takes no new file.
    """
    parent = Path(os.path.abspath(output)).parent
    if not parent.is_dir():
        raise UsageError(f"cannot write {output}: there is no folder {parent}", hint="create it first")
    try:
        with tempfile.TemporaryDirectory(prefix=".graphopt-", dir=parent):
            pass
    except OSError as error:
        raise UsageError(
            f"cannot write {output}: {error.strerror}", hint="choose another output with -o"
        ) from error
