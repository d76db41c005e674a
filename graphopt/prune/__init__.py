"""Structured pruning: which channels hang together, what removing them costs, and how the rest makes up for it."""
