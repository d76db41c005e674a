"""Passes, the transactional pass manager, and pipeline specifications."""
