"""What ``fold``, ``fuse`` and ``O0`` to ``O2`` are. Reads top to bottom.

A group is a list of stages. A stage is one transaction of the pass manager: a single pass, or rewrites that run
together until none applies any more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graphopt.pipeline.base import Pass

PASSES: Mapping[str, str] = {
    "hardswish": "graphopt.passes.hardswish:HardSwish",
}
"""Every built-in pass and rewrite by name."""


@dataclass(frozen=True)
class Stage:
    """One transaction.

    Attributes:
        name: In the report.
        members: Names of one pass, or of rewrites that run together.
    """

    name: str
    members: tuple[str, ...]


@dataclass(frozen=True)
class GroupOptions:
    """Options of every group.

    Attributes:
        disable: Members to leave out.
    """

    disable: tuple[str, ...] = ()


@dataclass(frozen=True)
class Group:
    """Stages that go by one name.

    Attributes:
        stages: In order.
        requires: Groups that run before, unless they have run.
    """

    stages: tuple[Stage, ...]
    requires: tuple[str, ...] = ()

    def build(self, find: Callable[[str], Any], disabled: frozenset[str]) -> list[Pass]:
        """The passes of the group, without the members ``disabled``.

        Args:
            find: From a name to the class.
        """
        from graphopt.pipeline.base import RewritePass
        from graphopt.rewrite import Rewrite

        passes: list[Pass] = []
        for stage in self.stages:
            classes = [find(name) for name in stage.members if name not in disabled]
            rewrites = [cls() for cls in classes if issubclass(cls, Rewrite)]
            passes += [cls() for cls in classes if not issubclass(cls, Rewrite)]
            if rewrites:
                passes.append(RewritePass(stage.name, rewrites))
        return passes


GROUPS: Mapping[str, Group] = {
    "fold": Group(()),
    "fuse": Group((Stage("fuse", ("hardswish",)),), requires=("fold",)),
}

PIPELINES: Mapping[str, tuple[str, ...]] = {
    "O0": (),
    "O1": ("fold",),
    "O2": ("fold", "fuse"),
}
