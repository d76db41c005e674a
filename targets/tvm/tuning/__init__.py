"""Tuning of TVM's kernels: what was measured is kept in a database, and taken from there when a model is compiled."""
