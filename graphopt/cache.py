"""Where what is fetched or measured is kept for the next time."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(name: str) -> Path:
    """The folder ``name`` under ``GRAPHOPT_CACHE``, else under the user's cache folder."""
    override = os.environ.get("GRAPHOPT_CACHE")
    if override:
        return Path(override) / name
    import platformdirs

    return Path(platformdirs.user_cache_dir("graphopt")) / name
