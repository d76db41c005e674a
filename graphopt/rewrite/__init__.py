"""What a pass file is written in: patterns, rewrites, and the driver that applies them."""

from graphopt.rewrite.driver import (
    Application,
    Driver,
    Gate,
    Refusal,
    RewriteFailure,
    RewriteLog,
    allow_all,
)
from graphopt.rewrite.pattern import Pattern, any_of, const, maybe, op, var
from graphopt.rewrite.rewrite import Builder, Match, Numerics, PatternRewrite, Refuse, Rewrite, check_private

__all__ = [
    "Application",
    "Builder",
    "Driver",
    "Gate",
    "Match",
    "Numerics",
    "Pattern",
    "PatternRewrite",
    "Refusal",
    "Refuse",
    "Rewrite",
    "RewriteFailure",
    "RewriteLog",
    "allow_all",
    "any_of",
    "check_private",
    "const",
    "maybe",
    "op",
    "var",
]
