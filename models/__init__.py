"""Recipes for real models and builders of small ones, imported as ``graphopt.models``."""

if not __name__.startswith("graphopt."):
    raise ImportError(f"import graphopt.{__name__}, not {__name__}")
