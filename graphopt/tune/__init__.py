"""Measurement and search: paired timing of the forms of a model."""
