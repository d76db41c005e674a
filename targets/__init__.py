"""Backends, one folder each, and what several of them share, imported as ``graphopt.targets``."""

if not __name__.startswith("graphopt."):
    raise ImportError(f"import graphopt.{__name__}, not {__name__}")
