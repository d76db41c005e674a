"""Passes, one optimisation a file, imported as ``graphopt.passes``."""

if not __name__.startswith("graphopt."):
    raise ImportError(f"import graphopt.{__name__}, not {__name__}")
