"""Which pass made a node, and from which nodes of the original model.

Kept in the node's metadata properties, so that it survives cloning, saving and loading (ONNX
``NodeProto.metadata_props``, IR version 10 and newer).
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

PASS_KEY = "graphopt.pass"
FROM_KEY = "graphopt.from"
_MOST_SOURCES = 32


def made_by(node: ir.Node) -> str | None:
    """The pass or rewrite that made ``node``; None for a node of the original model."""
    return node.metadata_props.get(PASS_KEY)


def sources(node: ir.Node) -> tuple[str, ...]:
    """Names of the original nodes that ``node`` stands for (its own name where it is original)."""
    recorded = node.metadata_props.get(FROM_KEY)
    if recorded:
        return tuple(recorded.split("\n"))
    return (node.name,) if node.name else ()


def record(node: ir.Node, maker: str, replaced: Iterable[ir.Node]) -> None:
    """Write down that ``maker`` made ``node`` in place of the nodes ``replaced``.

    At most 32 sources are kept for a node, so that long chains of rewrites stay linear in size.
    """
    names: dict[str, None] = {}
    for origin in replaced:
        for name in sources(origin):
            names.setdefault(name)
            if len(names) >= _MOST_SOURCES:
                break
    node.metadata_props[PASS_KEY] = maker
    if names:
        node.metadata_props[FROM_KEY] = "\n".join(names)
