"""Verification: the reference run, its noise floor, comparison, and reduction to a minimal repro."""
