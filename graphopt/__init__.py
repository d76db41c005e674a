"""graphopt: a compiler for trained models that proves what it does.

import graphopt

compiled = graphopt.compile("model.onnx")      # optimise, verify, measure
compiled.run({"x": array})                     # outputs by name
compiled.save("model.gopt")                    # the verified bundle
graphopt.load("model.gopt").run({"x": array})  # anywhere ONNX Runtime runs

graphopt.simplify("model.onnx").save("small.onnx")  # fewer nodes, ONNX's operators alone
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from graphopt._version import __version__

if TYPE_CHECKING:
    from graphopt.api import CompiledModel, Pipeline, Simplified, compile, simplify
    from graphopt.errors import GraphoptError
    from graphopt.report import Report
    from graphopt.runtime import LoadedModel, load

__all__ = [
    "CompiledModel",
    "GraphoptError",
    "LoadedModel",
    "Pipeline",
    "Report",
    "Simplified",
    "__version__",
    "compile",
    "load",
    "simplify",
]

_HOMES = {
    "CompiledModel": "graphopt.api",
    "Pipeline": "graphopt.api",
    "Simplified": "graphopt.api",
    "compile": "graphopt.api",
    "simplify": "graphopt.api",
    "GraphoptError": "graphopt.errors",
    "Report": "graphopt.report",
    "LoadedModel": "graphopt.runtime",
    "load": "graphopt.runtime",
}


def __getattr__(name: str) -> Any:
    """Import the public names when they are first used: ``import graphopt`` alone costs nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module 'graphopt' has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
